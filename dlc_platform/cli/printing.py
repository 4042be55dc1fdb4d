"""Printing for commands: sentences, and tables of rows for people or as JSON. Which rows is for each command to say."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dlc_platform.errors import at_home, in_a_line, printable
from dlc_platform.text import screen
from dlc_platform.text.words import counted, lasting, rounded, sized

if TYPE_CHECKING:
    import pandas as pd

#: The lab that the command is about, as it was typed.
labs: list[Path] = []
#: What a listing command was asked for besides its usual table; of each call anew.
csv_asked, wide_asked = False, False
#: Columns whose values are cut to as much as a person needs; `--json` has them whole.
_IDENTITIES = ("model", "models", "production_model", "dataset", "parameter_set")
#: Heads are the names that JSON and CSV have, without the unit: that stands with each value.
_HEADINGS = {"seconds": "time", "train_seconds": "train_time"}
#: The beginnings of the names of columns that are a part of something, and shown in percent.
_FRACTIONS = ("fraction_", "confident_when", "jumps", "unsure_jumps", "swaps", "limb_outliers", "outside", "still")
_FRACTIONS += ("no_animal", "background")
#: What a table does without where it would not fit beside the rest, the most useful first; `--wide` has all.
_SPARE = (
    "duration_s",
    "frames",
    "camera",
    "train_images",
    "images",
    "origin",
    "frames_per_second",
    "frame_rate",
    "epochs",
)
_SPARE += ("tested_on", "size", "first_used_at", "attempts", "scorer")
#: The ends of names of columns whose values are shown with a unit that suits them.
_UNIT = re.compile(r"(_s|_?seconds|_hours|_gb|_bytes)\b|_hours(?=_)")
#: Columns of paths, which a person copies.
_COPIED = ("path", "file")
#: Numbers that a missing one among them has made floats, and those that mostly are whole.
_COUNTS = ("position", "frames", "images", "rank", "train_images", "test_images", "epochs")
#: A spreadsheet takes a text that begins so for a formula, and runs it.
_FORMULA = re.compile("[-=+@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def pasteable(message: str) -> str:
    """A message with this lab in its commands, and without what would command the terminal."""
    return printable(at_home(message, labs[0]) if labs else message)


def say(line: str, further: int = 2) -> None:
    """Print a message; in a terminal, lines after its first one are indented by so many characters more."""
    try:
        print(_laid_out(pasteable(line), sys.stdout, further), flush=True)
    except OSError:
        # Nobody reads any more, as when the terminal was closed; what is at work must still end in order.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: object) -> None:
    """Tell something beside what was asked for."""
    print(complaint(message), file=sys.stderr)


def remark(message: object) -> None:
    """Say something on stderr that goes with an output to copy, and is no fault."""
    print(_laid_out(pasteable(str(message)), sys.stderr, 2), file=sys.stderr)


def complaint(message: object) -> str:
    """A message as it goes to stderr."""
    return _laid_out(pasteable(f"dlc-platform: {message}"), sys.stderr, 2)


def _laid_out(message: str, where: TextIO, further: int) -> str:
    """A message in lines of the terminal, or of COLUMNS; elsewhere it stays one line, which other programs search."""
    if not (where.isatty() or os.environ.get("COLUMNS")):
        return message
    lines = []
    for paragraph in message.split("\n"):
        indent = len(paragraph) - len(paragraph.lstrip(" "))
        lines += screen.wrapped(paragraph.strip(), screen.width(), indent, indent + further) or [""]
    return "\n".join(lines)


def show_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool = False, nothing: str = "nothing"
) -> None:
    """Print rows as a table of these columns, or that there are none; as JSON or CSV, with all columns that they have.

    A table without the columns that it can do without says so below. With `--wide` it has all columns that there are,
    and as much width as they take.
    """
    if as_json:
        print(json.dumps([{name: _in_json(value) for name, value in row.items()} for row in rows], indent=2))
        return
    if csv_asked:
        _write_csv(rows, columns)
        return
    if not rows:
        say(nothing)
        return
    shown, headings, cells = _as_text(rows, columns, _cell)
    if wide_asked:
        left, further, width = [], 0, sys.maxsize
    else:
        width = screen.width()
        spare = [shown.index(name) for name in _SPARE if name in shown[1:]]
        headings = screen.folded(headings, cells, width)
        places, left = screen.fitting(headings, cells, width, spare)
        left = [headings[place].replace("\n", "") for place in left]
        further = sum(any(_cell(name, row[name]) for row in rows) for name in rows[0] if name not in shown)
        headings = [headings[place] for place in places]
        cells = [[row[place] for place in places] for row in cells]
    for line in screen.table(headings, cells, width, _COPIED):
        print(line)
    if left:
        more = f" and {counted(further, 'more column')}" if further else ""
        print(f"(`--wide` shows {', '.join(left)}{more}, too)")


def show_details(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool = False, nothing: str = "nothing"
) -> None:
    """Print rows with much to say of each, one value below the other; as JSON or CSV they are those of `show_table`.

    The first column names the row.
    """
    if as_json or csv_asked or not rows:
        show_table(rows, columns, as_json, nothing)
        return
    _, headings, cells = _as_text(rows, columns, _detail)
    for title, *values in cells:
        pairs = list(zip(headings[1:], values, strict=True))
        for line in screen.details(title, pairs, sys.maxsize if wide_asked else screen.width(), _COPIED):
            print(line)


def _as_text(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_text: Callable[[str, object], str]
) -> tuple[list[str], list[str], list[list[str]]]:
    """The columns to show, with `--wide` all that there are; their headings; and the cells of each row."""
    # Almost every recording is one file.
    shown = [name for name in columns if name != "position" or any(row[name] for row in rows)]
    if wide_asked:
        shown = list(dict.fromkeys([*shown, *rows[0]]))
    cells = [[as_text(name, row[name]) for name in shown] for row in rows]
    return shown, [_HEADINGS.get(name) or _UNIT.sub("", name) for name in shown], cells


def show_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print several tables as one CSV, or nothing if they have no rows.

    The first column says of which table a row is; what a table lacks is empty.
    """
    names = list(dict.fromkeys(name for rows in tables.values() for row in rows for name in row))
    together = [
        {"table": table, **{name: row.get(name) for name in names}} for table, rows in tables.items() for row in rows
    ]
    if together:
        _write_csv(together, [])


def _write_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    names = list(rows[0]) if rows else list(columns)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [_in_json(row[name]) for name in names]
        plain = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
        writer.writerow([no_formula(printable(value)) if isinstance(value, str) else value for value in plain])


def no_formula(text: str) -> str:
    """A text that a spreadsheet takes for a text: an apostrophe comes before what begins like a formula.

    What reads as a number stays one.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def rows_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _detail(name: str, value: object) -> str:
    """A value below others; what has values by name stands as YAML, which can be copied into lab.yaml."""
    if not (isinstance(value, dict) and value):
        return _cell(name, value)
    from dlc_platform.files.yaml import dump_yaml

    return dump_yaml(value)


def _cell(column: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(column, item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if column in _IDENTITIES:
        return str(value)[:12]
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, int | float) and (unit := _UNIT.search(column)):
        return _with_unit(float(value), unit[0])
    if isinstance(value, int | float) and column.startswith(_FRACTIONS):
        return f"{value:.1%}"
    if isinstance(value, int | float) and column == "frame_rate":
        return f"{value:.4g} fps"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and column in _COUNTS else f"{value:.3f}"
    return in_a_line(pasteable(str(value)))


def _with_unit(value: float, unit: str) -> str:
    """A figure in the unit that suits a person, by the end of its column's name."""
    if unit == "_gb":
        return f"{rounded(value)} GB"
    if unit == "_bytes":
        return sized(value)
    return lasting(value if unit == "_hours" else value / 3600)


def _in_json(value: Any) -> Any:
    """A value as JSON has it: a time in UTC to the millisecond, and null for what is no number."""
    if value != value:
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value
