"""The layout of text and tables for people, in the width of their terminal; values that are copied are never cut."""

import re
import shutil
import textwrap
import unicodedata
from collections.abc import Collection, Iterator, Sequence

from dlc_platform.errors import in_a_line

#: The width if nothing says how wide the screen is, as in a pipe.
_WIDTH = 80
_GAP = "  "
#: A head of so many characters is not worth a second line.
_SHORT_HEAD = 8
#: The indent of values that do not fit into a row and stand below it.
_BELOW, _FURTHER = 4, 8
_NUMBER = re.compile(r"-?\d+(\.\d+)?( (s|min|h|kB|MB|GB|fps)|%)?")
#: A figure and its unit stay on one line.
_WITH_UNIT = r"\b\d+ (?:s|min|h|kB|MB|GB|fps|px)\b"
#: A path with spaces in its folders, or in the name of a video or a table.
_PATH = (
    r"(?<!\S)'?/\S*(?:(?: [^\s/]+){0,3} [^\s/]+/\S*)+|"
    r"(?<!\S)/\S*(?: [^\s/]+){0,3} [^\s/]+\.(?:mp4|avi|mov|mkv|m4v|mts|ts|h5|csv|tsv)\b"
)


def width() -> int:
    """The number of characters in a line: COLUMNS, or the terminal's width; 80 in a pipe."""
    return shutil.get_terminal_size((_WIDTH, 24)).columns


def wrapped(
    text: str, width: int, indent: int = 0, further: int | None = None, whole: Collection[str] = ()
) -> list[str]:
    """Break a text into lines between two words.

    Words, figures with their unit, paths, commands to paste and the texts in `whole` are never broken, however long.

    Parameters
    ----------
    indent, further
        The number of spaces before the first line, and before the later ones (the same, by default).
    """
    kept = [re.escape(one) for one in sorted(whole, key=len, reverse=True) if " " in one]
    together = "|".join(["`[^`]*`", *kept, _PATH, _WITH_UNIT])
    line = re.sub(together, lambda found: found[0].replace(" ", "\0"), in_a_line(text))
    lines = textwrap.wrap(
        line,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent if further is None else further),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [one.replace("\0", " ") for one in lines]


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, whole: Collection[str] = ()
) -> Iterator[str]:
    """The lines of a table that is not wider than the screen.

    A column that does not fit beside those before it stands below each row that has a value in it, with its name. A
    column without any value is left out. Only a value that is longer than a line makes a longer line.

    Parameters
    ----------
    columns
        Their heads; see `folded`.
    rows
        One cell for each column; an empty text if there is no value.
    whole
        The columns whose values are copied, such as paths: they are never broken at a space.
    """
    filled = _filled(columns, rows)
    widths = _widths(columns, rows, filled)
    beside, used = filled[:1], widths[0]
    for place in filled[1:]:
        if used + len(_GAP) + widths[place] <= width:
            beside.append(place)
            used += len(_GAP) + widths[place]
    below = [place for place in filled if place not in beside]
    right = {place for place in beside if all(_NUMBER.fullmatch(row[place]) for row in rows if row[place])}

    def line(cells: Sequence[str]) -> str:
        padded = []
        for place in beside:
            room = " " * (widths[place] - _cells(cells[place]))
            padded.append(room + cells[place] if place in right else cells[place] + room)
        return _GAP.join(padded).rstrip()

    heads = [column.split("\n") for column in columns]
    height = max(len(heads[place]) for place in beside)
    for number in range(height):
        yield line(["\n".join([*[""] * (height - len(head)), *head]).split("\n")[number] for head in heads])
    names = [columns[place].replace("\n", "") for place in below]
    for row in rows:
        yield line(row)
        yield from _values_below(names, [row[place] for place in below], width, whole)


def folded(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The heads of a table that is too wide for a screen, in two lines where the values take less room than the head.

    A head is folded behind an underscore. Those of a table that fits stay as they are.
    """
    filled = _filled(columns, rows)
    if sum(_widths(columns, rows, filled).values()) + len(_GAP) * (len(filled) - 1) <= width:
        return list(columns)
    made = []
    for place, column in enumerate(columns):
        ends = range(1, len(column)) if len(column) > _SHORT_HEAD else ()
        ways = [f"{column[:end]}\n{column[end:]}" for end in ends if column[end - 1] == "_"]
        values = max((_cells(row[place]) for row in rows), default=0)
        made.append(min([column, *ways], key=lambda way: max(values, _head(way))))
    return made


def _filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The places of the columns that have a value, and of the first one."""
    return [place for place in range(len(columns)) if place == 0 or any(row[place] for row in rows)]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], filled: Sequence[int]) -> dict[int, int]:
    return {place: max(_head(columns[place]), *(_cells(row[place]) for row in rows)) for place in filled}


def _head(column: str) -> int:
    return max(map(_cells, column.split("\n")))


def fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, spare: Collection[int]
) -> tuple[list[int], list[int]]:
    """Choose the columns of a table to show on a screen: all that are needed, and as many others as fit beside these.

    Parameters
    ----------
    spare
        The numbers of the columns that a reader can do without, the most useful first.

    Returns
    -------
    tuple
        The numbers of the columns to show, and of those that have a value and do not fit.
    """
    filled = _filled(columns, rows)
    widths = _widths(columns, rows, filled)
    used = -len(_GAP)
    for place in filled:
        if place not in spare and (used < 0 or used + len(_GAP) + widths[place] <= width):
            used += len(_GAP) + widths[place]
    shown, left = [place for place in filled if place not in spare], []
    for place in spare:
        if place not in filled:
            continue
        if used + len(_GAP) + widths[place] <= width:
            shown.append(place)
            used += len(_GAP) + widths[place]
        else:
            left.append(place)
    return sorted(shown), sorted(left)


def details(title: str, pairs: Sequence[tuple[str, str]], width: int, whole: Collection[str] = ()) -> Iterator[str]:
    """The lines about one thing with many values: its name, and below it each key that has a value, with the value.

    Parameters
    ----------
    pairs
        A value of several lines stands below its key, as it is.
    whole
        The keys whose values are copied, such as paths: they are never broken at a space.
    """
    yield title
    room = max((_cells(key) for key, value in pairs if value and "\n" not in value), default=0)
    for key, value in pairs:
        if not value:
            continue
        if key in whole:
            yield f"{' ' * _BELOW}{_padded(key, room)}{_GAP}{value}"
            continue
        if "\n" in value:
            yield f"{' ' * _BELOW}{key}:"
            yield from (f"{' ' * _FURTHER}{line}" for line in value.splitlines())
            continue
        first, *others = wrapped(value, max(width - _BELOW - room - len(_GAP), 1))
        yield f"{' ' * _BELOW}{_padded(key, room)}{_GAP}{first}"
        yield from (f"{' ' * (_BELOW + room)}{_GAP}{line}" for line in others)


def _padded(text: str, room: int) -> str:
    return text + " " * (room - _cells(text))


def _values_below(names: Sequence[str], values: Sequence[str], width: int, whole: Collection[str]) -> Iterator[str]:
    """The values of a row that do not fit beside the others, with their names; short ones share a line."""
    copied = [value for name, value in zip(names, values, strict=True) if name in whole]
    shared = ""
    for name, value in zip(names, values, strict=True):
        if not value:
            continue
        said = f"{name}: {value}"
        longer = f"{shared}{_GAP}{_GAP}{said}" if shared else " " * _BELOW + said
        if _cells(longer) <= width:
            shared = longer
            continue
        if shared:
            yield shared
        shared = " " * _BELOW + said
        if _cells(shared) > width:
            yield from wrapped(said, width, _BELOW, _FURTHER, [said] if name in whole else copied)
            shared = ""
    if shared:
        yield shared


def _cells(text: str) -> int:
    """The number of columns that a text takes in a terminal: two for a wide letter, none for an accent of its own."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else not unicodedata.combining(one) for one in text)
