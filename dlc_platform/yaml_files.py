"""YAML as DeepLabCut reads and writes it: version 1.2, in which `on`, `off`, `no` and `1:30` are text.

Every file of DeepLabCut and lab.yaml are read here, so that a name without quotes means the same in all of them. A key
that is written twice is refused: a parser that keeps the last one loses what the first one said.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dlc_platform.errors import PlatformError

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node


@dataclass(frozen=True)
class Written:
    """In which line (from 1) a file writes a value, and in which letters; these are empty for what holds others."""

    line: int
    value: str


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
    root = None
    try:
        root = parser.compose(text.removeprefix("\ufeff"))
        twice = _written_twice(root)
        content = None if twice or root is None else parser.constructor.construct_document(root)
    except ValueError as error:
        # What looks like a date or a number and is none: the parser does not say where.
        written, told = next(_not_constructed(root), (None, str(error)))
        raise PlatformError(
            f"{file} is not YAML: {told}" + (f" (line {written.line}: {written.value[:60]})" if written else ""),
            "Mend that line; what is meant as text stands in quotes",
        ) from error
    # RecursionError: deeper than any file of ours.
    except (YAMLError, TypeError, RecursionError) as error:
        raise PlatformError(f"{file} is not YAML: {' '.join(str(error).split())}", "Mend that line") from error
    if twice:
        raise PlatformError(f"{file} is not valid: {'; '.join(twice)}", "Rename or remove one of the two")
    return content


def written_at(text: str, place: Sequence[str | int]) -> Written | None:
    """How a YAML text writes the value at a place: the keys and, in lists, the numbers that lead to it.

    What a place says that is not written, as a key that is missing, is that of what ought to hold it; None for a place
    of which nothing is written.
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
    """The keys of a YAML text that it does not take for text, such as `2024`: where they lead to, and in which line."""
    from ruamel.yaml import YAML

    root = YAML(typ="safe", pure=True).compose(text.removeprefix("\ufeff"))
    return [
        ((*place, str(key.value)), key.start_mark.line + 1)
        for place, key, _ in _nodes(root)
        if key is not None and key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
    ]


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


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """The keys and values of a mapping, after those that it merges in."""
    from ruamel.yaml.nodes import MappingNode

    for key, value in node.value:
        if key.value == "<<":
            for merged in [value] if isinstance(value, MappingNode) else value.value:
                yield from _entries(merged)
    yield from (entry for entry in node.value if entry[0].value != "<<")


def _nodes(root: "Node | None") -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """All that a document holds, each once: where it is, its key, which is None in a list, and itself."""
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
    """The scalars of which no value can be made, each with the reason."""
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import ScalarNode

    constructor = YAML(typ="safe", pure=True).constructor
    for _, *pair in _nodes(root):
        for node in pair:
            if isinstance(node, ScalarNode):
                try:
                    constructor.construct_object(node)
                except ValueError as error:
                    yield Written(node.start_mark.line + 1, str(node.value)), str(error)
