"""YAML as DeepLabCut reads and writes it: version 1.2, in which `on`, `off`, `no` and `1:30` are text.

This module reads lab.yaml and every YAML file of DeepLabCut, so that a name without quotes means the same in all of
them. A key that is written twice is refused, because a parser that keeps the last one loses the first.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import read_plain

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

#: The config.yaml of a project with 10,000 videos has a megabyte, and no file of DeepLabCut's lies deeper than ten.
_MOST_BYTES, _DEEPEST = 4 << 20, 50
#: Values once every alias stands for what it means, the merge key `<<` included.
_MOST_VALUES = 200_000
#: Digits of a number; Python prints none of more than 4300, and takes long to try.
_LONGEST_NUMBER = 1000
_NUMBER, _MERGE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:merge"
#: The errors that ruamel raises if the letters of a value do not fit its tag, as in `!!bool maybe`.
_WRONG_VALUE = (ValueError, IndexError, KeyError, AttributeError)


def yaml_text(file: Path) -> str:
    """The text of a YAML file that somebody else may have written.

    Raises
    ------
    PlatformError
        When it is not a plain file, or is larger than any of ours.
    OSError, UnicodeDecodeError
        When it cannot be read, or is not UTF-8.
    """
    return read_plain(file, _MOST_BYTES).decode("utf-8")


@dataclass(frozen=True)
class Written:
    """The line (from 1) and the letters of a value in a file; the letters are empty for a value that holds others."""

    line: int
    value: str


def load_yaml(file: Path, text: str) -> Any:
    """The plain values that the text of a file holds; None for an empty one.

    Raises
    ------
    PlatformError
        Naming the file, when it is not YAML, asks for an object of Python, has a key twice, or holds more values, or
        more deeply nested ones, than any file of ours.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    parser = YAML(typ="safe", pure=True)
    root = None
    _check_depth(file, text)
    try:
        root = parser.compose(text.removeprefix("\ufeff"))
        _check_values(file, root)
        twice = _written_twice(root)
        content = None if twice or root is None else parser.constructor.construct_document(root)
    except _WRONG_VALUE as error:
        # A value that looks like a date or a number and is not one; the parser does not say where.
        written, told = next(_not_constructed(root), (None, _in_words(error)))
        raise PlatformError(
            f"{file} is not YAML: {told}" + (f" (line {written.line}: {written.value[:60]})" if written else ""),
            "Mend that line; put a text in quotes",
        ) from error
    except RecursionError as error:
        raise PlatformError(f"{file} is not valid: it nests more than {_DEEPEST} values", "Write them out") from error
    except (YAMLError, TypeError) as error:
        raise PlatformError(f"{file} is not YAML: {' '.join(str(error).split())}", "Mend that line") from error
    if twice:
        raise PlatformError(f"{file} is not valid: {'; '.join(twice)}", "Rename or remove one of the two")
    return content


def written_at(text: str, place: Sequence[str | int]) -> Written | None:
    """Find the line and the letters of the value at a place: the keys and, in lists, the numbers that lead to it.

    For a key that is missing, return the line of the mapping that should hold it; None if nothing of the place is
    written.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    node: Any = YAML(typ="safe", pure=True).compose(text.removeprefix("\ufeff"))
    found = None
    for part in place:
        key = None
        if isinstance(node, MappingNode):
            entries = {str(name.value): (name, value) for name, value in _entries(node)}
            key, node = entries.get(str(part), (None, None))
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            node = None
        if node is None:
            return found
        value = str(node.value) if isinstance(node, ScalarNode) else ""
        found = Written((key or node).start_mark.line + 1, value)
    return found


def keys_not_text(text: str) -> list[tuple[tuple[str, ...], int]]:
    """The keys of a YAML text that are not text, such as `2024`: the path to each, and its line."""
    from ruamel.yaml import YAML

    root = YAML(typ="safe", pure=True).compose(text.removeprefix("\ufeff"))
    return [
        ((*place, str(key.value)), key.start_mark.line + 1)
        for place, key, _ in _nodes(root)
        if key is not None and key.tag not in ("tag:yaml.org,2002:str", _MERGE)
    ]


def _check_depth(file: Path, text: str) -> None:
    """Refuse brackets that are open within each other; the parser takes a minute for a thousand of them.

    Brackets within quotes and comments count too, unless they are closed in their line.
    """
    depth = 0
    for line in text.splitlines():
        opening, closing = line.count("[") + line.count("{"), line.count("]") + line.count("}")
        if not opening and not closing:
            continue
        if opening > _DEEPEST:
            # A line of many brackets may be a list of short lists.
            deepest = here = 0
            for sign in re.findall(r"[\[\]{}]", line):
                here += 1 if sign in "[{" else -1
                deepest = max(deepest, here)
        else:
            deepest = opening
        if depth + deepest > _DEEPEST:
            raise PlatformError(f"{file} is not valid: it nests more than {_DEEPEST} lists", "Write them out")
        depth = max(0, depth + opening - closing)


def _check_values(file: Path, root: "Node | None") -> None:
    """Refuse more values than any file of ours holds: above all aliases that stand for each other over and over.

    A hundred bytes of these can mean more values than fit into memory.
    """
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: "Node", depth: int) -> int:
        if depth > _DEEPEST:
            raise PlatformError(f"{file} is not valid: it nests more than {_DEEPEST} values", "Write them out")
        if id(node) in open_nodes:
            raise PlatformError(
                f"{file} is not valid: line {node.start_mark.line + 1} holds an alias of itself", "Write it out"
            )
        if id(node) not in sizes:
            open_nodes.add(id(node))
            below: list[Node] = []
            if isinstance(node, SequenceNode):
                below = node.value
            elif isinstance(node, MappingNode):
                below = [one for pair in node.value for one in pair]
                if keys := [key for key, _ in node.value if not isinstance(key, ScalarNode)]:
                    line = keys[0].start_mark.line + 1
                    raise PlatformError(f"{file} is not valid: the key in line {line} is a list", "Write a name there")
            elif reason := _wrong_letters(node):
                raise PlatformError(
                    f"{file} is not valid: line {node.start_mark.line + 1} holds {reason}", "Mend that line"
                )
            sizes[id(node)] = 1 + sum(size(one, depth + 1) for one in below)
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if root is not None and size(root, 0) > _MOST_VALUES:
        raise PlatformError(
            f"{file} is not valid: with its aliases written out it has more than {_MOST_VALUES:,} values",
            "Write out what the aliases stand for",
        )


def _wrong_letters(node: "Node") -> str | None:
    """The reason why no later reader can use a value; None if it can be used."""
    if node.tag == _NUMBER and len(node.value) > _LONGEST_NUMBER:
        return f"a number of {len(node.value)} digits"
    try:
        os.fsencode(node.value)
    except UnicodeEncodeError:
        return "half of a character"
    return None


def dump_yaml(content: Any, sort_keys: bool = True) -> str:
    """The text of plain values, which parsers of YAML 1.1 and of 1.2 read as the same values."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True, width=1_000_000)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that version 1.1 reads as text and version 1.2 reads as a number, such as `1e3` and `0o10`."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if re.match(r"[0-9+.-]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _written_twice(root: "Node | None") -> list[str]:
    """The keys that a mapping has twice, with their lines."""
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    found: list[str] = []
    seen: set[int] = set()

    def visit(node: "Node | None", place: tuple[str, ...]) -> None:
        if node is None or id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                visit(item, (*place, str(index)))
        elif isinstance(node, MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines:
                    found.append(f"{'.'.join((*place, name))} is written twice, in lines {lines[name]} and {line}")
                lines[name] = line
                visit(value, (*place, name))

    visit(root, ())
    return found


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """The keys and values of a mapping, after those of the mappings that it merges in."""
    from ruamel.yaml.nodes import MappingNode

    for key, value in node.value:
        if key.tag == _MERGE:
            for merged in [value] if isinstance(value, MappingNode) else value.value:
                yield from _entries(merged)
    yield from (entry for entry in node.value if entry[0].tag != _MERGE)


def _nodes(root: "Node | None") -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Every node of a document, once: the path to it, its key (None in a list), and the node."""
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    waiting: list[tuple[tuple[str, ...], Any, Any]] = [((), None, root)]
    seen: set[int] = set()
    while waiting:
        place, key, node = waiting.pop()
        yield place, key, node
        own = place if key is None else (*place, str(key.value))
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            waiting += [((*own, str(index)), None, item) for index, item in reversed(list(enumerate(node.value)))]
        elif isinstance(node, MappingNode):
            waiting += [(own, name, value) for name, value in reversed(node.value)]


def _not_constructed(root: "Node | None") -> Iterator[tuple[Written, str]]:
    """The scalars that cannot become values, each with the reason."""
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import ScalarNode

    constructor = YAML(typ="safe", pure=True).constructor
    for _, *pair in _nodes(root):
        for node in pair:
            if isinstance(node, ScalarNode):
                try:
                    constructor.construct_object(node)
                except _WRONG_VALUE as error:
                    yield Written(node.start_mark.line + 1, str(node.value)), _in_words(error)


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "a value that does not fit the type that its tag names"
