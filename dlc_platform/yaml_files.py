"""YAML as DeepLabCut reads and writes it: version 1.2, in which `on`, `off`, `no` and `1:30` are text.

Every file of DeepLabCut and lab.yaml are read here, so that a name without quotes means the same in all of them. A key
that is written twice is refused: a parser that keeps the last one loses what the first one said.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dlc_platform.errors import PlatformError

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node


def load_yaml(file: Path, text: str) -> Any:
    """The plain values that the text of a file holds; None for an empty one.

    Raises
    ------
    PlatformError
        Naming the file, when it is not YAML, asks for an object of Python, or has a key twice.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    parser = YAML(typ="safe", pure=True)
    try:
        root = parser.compose(text.removeprefix("\ufeff"))
        twice = _written_twice(root)
        content = None if twice or root is None else parser.constructor.construct_document(root)
    # ValueError: what looks like a date but is none. RecursionError: deeper than any file of ours.
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise PlatformError(f"{file} is not YAML: {' '.join(str(error).split())}", "Mend that line") from error
    if twice:
        raise PlatformError(f"{file} is not valid: {'; '.join(twice)}", "Rename or remove one of the two")
    return content


def dump_yaml(content: Any, sort_keys: bool = True) -> str:
    """The text of plain values, which parsers of YAML 1.1 and of 1.2 read as the same values."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True, width=1_000_000)


class _Dumper(yaml.SafeDumper):
    """Quotes what version 1.1 takes for text and 1.2 for a number, such as `1e3` and `0o10`."""


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
