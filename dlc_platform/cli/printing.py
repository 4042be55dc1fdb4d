"""What commands print: sentences, and tables of rows for people or as JSON. Which rows is for each command to say."""

import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc_platform.errors import at_home, in_a_line, printable
from dlc_platform.text import screen

if TYPE_CHECKING:
    import pandas as pd

#: The lab that the command is about, as it was typed.
labs: list[Path] = []
#: What a listing command was asked for besides its usual table; of each call anew.
csv_asked, wide_asked = False, False
#: Columns whose values are cut to as much as a person needs; `--json` has them whole.
_IDENTITIES = ("model", "models", "production_model", "dataset", "parameter_set")
#: What columns are called in tables, where their own name takes more room than their figures.
_HEADINGS = {
    "fraction_confident": "confident",
    "mean_likelihood": "likelihood",
    "rmse_low_px": "low_px",
    "rmse_high_px": "high_px",
    "frames_per_second": "frames/s",
    "limb_outliers": "limbs",
}
#: Columns of paths, which a person copies.
_COPIED = ("path", "file")
#: Numbers that a missing one among them has made floats, and those that mostly are whole.
_COUNTS = ("position", "frames", "images", "rank", "train_images", "test_images", "epochs", "frame_rate")


def pasteable(message: str) -> str:
    """A message with this lab in its commands, and without what would command the terminal."""
    return printable(at_home(message, labs[0]) if labs else message)


def say(line: str) -> None:
    try:
        print(pasteable(line), flush=True)
    except OSError:
        # Nobody reads any more, as when the terminal was closed; what is at work must still end in order.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, nothing: str = "none yet"
) -> None:
    """Print rows as a table of these columns; as JSON or CSV, with all columns that they have.

    With `--wide` a table has all columns too, and as much width as they take.
    """
    if as_json:
        print(json.dumps([{name: _in_json(value) for name, value in row.items()} for row in rows], indent=2))
        return
    if csv_asked:
        _write_csv(rows, columns)
        return
    if not rows:
        print(nothing)
        return
    # Almost every recording is one file.
    shown = [name for name in columns if name != "position" or any(row[name] for row in rows)]
    if wide_asked:
        shown = list(dict.fromkeys([*shown, *rows[0]]))
    cells = [[_cell(name, row[name]) for name in shown] for row in rows]
    headings = [_HEADINGS.get(name, name) for name in shown]
    for line in screen.table(headings, cells, sys.maxsize if wide_asked else screen.width(), _COPIED):
        print(line)


def _write_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    names = list(rows[0]) if rows else list(columns)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [_in_json(row[name]) for name in names]
        plain = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
        writer.writerow([printable(value) if isinstance(value, str) else value for value in plain])


def rows_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


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
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and column in _COUNTS else f"{value:.3f}"
    return in_a_line(pasteable(str(value)))


def _in_json(value: Any) -> Any:
    """A value as JSON has it: a time in UTC to the millisecond, and null for what is no number."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return None if value != value else value
