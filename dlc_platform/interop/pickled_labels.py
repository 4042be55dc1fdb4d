"""The pickles in which PyTables keeps a table's labels, read without unpickling.

A pickle is a program, and running a foreign one can do anything. Labels, and the other values that pandas keeps beside
them, need few of its instructions, none of which can call anything; only these are known here.
"""

import pickletools
from typing import Any

from dlc_platform.errors import PlatformError

_MARK = object()
#: Instructions for None, and for whole numbers and truth values, which protocol 0 writes alike.
_VALUES = frozenset(("UNICODE", "STRING", "INT", "LONG", "FLOAT", "NONE"))


def read_pickled_labels(data: bytes, where: str) -> Any:
    """The lists, tuples, dictionaries, strings and numbers that a pickle of PyTables (protocol 0) holds.

    Parameters
    ----------
    where
        The file and the place in it, for the error.

    Raises
    ------
    PlatformError
        When it holds any other instruction, or is not a pickle. Nothing has been run then.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "MARK":
                    stack.append(_MARK)
                case name if name in _VALUES:
                    stack.append(argument)
                case "LIST" | "TUPLE" | "DICT" as kind:
                    mark = max(index for index, item in enumerate(stack) if item is _MARK)
                    items = stack[mark + 1 :]
                    del stack[mark:]
                    if kind == "DICT":
                        stack.append(dict(zip(items[::2], items[1::2], strict=True)))
                    else:
                        stack.append(items if kind == "LIST" else tuple(items))
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    dict.__setitem__(stack[-1], key, value)
                case "APPEND":
                    item = stack.pop()
                    list.append(stack[-1], item)
                case "PUT":
                    memo[int(argument or 0)] = stack[-1]
                case "GET":
                    stack.append(memo[int(argument or 0)])
                case "STOP":
                    return stack.pop()
                case name:
                    raise PlatformError(
                        f"{where} holds a pickle with the instruction {name}, which labels do not need; it was not run",
                        "Do not open this file with pandas unless you know who made it; import the .csv that "
                        "DeepLabCut wrote beside it",
                    )
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise PlatformError(
            f"{where} cannot be read: {error}", "Write the file anew with DeepLabCut, or import its .csv"
        ) from error
    raise AssertionError("genops ends with STOP, or raises")
