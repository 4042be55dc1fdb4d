"""Rows from a backup that anybody may have made: values that Postgres accepts, and that would do harm when used.

Parts of paths must have the form of their kind. The code that uses such a value checks it again: `Store.path` for
products, `layout.root_of` and `layout.leads_out` for what lies below a raw root. Python must be able to read times and
JSON, or no table of the lab could be shown.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, DateTime, Select, Text, cast, func, select
from sqlalchemy.dialects.postgresql import JSONB

from dlc_platform.catalog.tables import SCHEMA, Base
from dlc_platform.errors import one_line


@dataclass(frozen=True)
class _Form:
    """The form that values must match, as a regular expression of Postgres, and the words for one that does not
    match."""

    pattern: str
    otherwise: str


_IDENTITY = _Form("^[0-9a-f]{64}$", "is not the identity of a product")
_ABSOLUTE = _Form(r"^(?!.*/\.\.?(/|$))/", "is not an absolute path without `..`")
_BELOW = _Form(r"^(?!/)(?!(.*/)?\.\.?(/|$))", "is not a path below a raw root")
_NAME = _Form(r"^(?!\.\.?$)[^/]+$", "is not the name of a file")
#: Texts, and all else that is not a bracket.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[^][{}]', re.DOTALL)
_COLUMNS = {
    ("dataset", "id"): _IDENTITY,
    ("model_version", "id"): _IDENTITY,
    ("model_export", "id"): _IDENTITY,
    ("evaluation", "id"): _IDENTITY,
    ("pose_estimate", "id"): _IDENTITY,
    ("pose_estimate", "export_id"): _IDENTITY,
    ("session", "folder"): _ABSOLUTE,
    ("recording_file", "path"): _ABSOLUTE,
    ("scanned_root", "path"): _ABSOLUTE,
    ("scanned_folder", "path"): _BELOW,
    ("sighting", "name"): _NAME,
}


#: The years that Python knows, a day away from each end for the time zones.
_TIMES = "0001-01-02 00:00+00", "9999-12-30 00:00+00"
#: Columns in which a time may be infinite.
_WITHOUT_END = ("waiting_session", "look_at")
#: The greatest depth of the platform's own JSON.
_DEEPEST = 50


def harmful_row(connection: Connection) -> str | None:
    """Find a harmful value in a catalogue that is up to date: its table, row and value in words; None if there is
    none."""
    for (table, column), form in _COLUMNS.items():
        place = Base.metadata.tables[f"{SCHEMA}.{table}"].c[column]
        for row, value in connection.execute(_rows(place, cast(place, Text)).where(place.op("!~")(form.pattern))):
            return _told(place, row, value, form.otherwise)
    for place in (column for table in Base.metadata.sorted_tables for column in table.columns):
        if isinstance(place.type, DateTime) and (place.table.name, place.name) != _WITHOUT_END:
            for row, value in connection.execute(_rows(place, cast(place, Text)).where(~place.between(*_TIMES))):
                return _told(place, row, value, "is not a time that can be read")
        elif isinstance(place.type, JSONB) or isinstance(getattr(place.type, "impl", None), JSONB):
            for row, value in _with_many_brackets(connection, place):
                if _depth(value) > _DEEPEST:
                    return _told(place, row, value, f"is JSON of more than {_DEEPEST} levels")
    return None


def _rows(place: Column[Any], value: ColumnElement[str]) -> Select[Any, str]:
    keys = place.table.primary_key
    return select(func.concat_ws(", ", *keys), value).order_by(*keys).limit(1)


def _told(place: Column[Any], row: str, value: str, otherwise: str) -> str:
    row, value = one_line(repr(row)), one_line(repr(value))
    return f"the row {row} of {SCHEMA}.{place.table.name} has {value} as {place.name}, which {otherwise}"


def _with_many_brackets(connection: Connection, place: Column[Any]) -> Iterator[tuple[str, str]]:
    """Texts of JSON with so many brackets that they could be too deep, each with its row."""
    words = cast(place, Text)
    brackets = func.length(words) - func.length(func.translate(words, "[{", ""))
    statement = _rows(place, words).where(brackets > _DEEPEST).limit(None)
    with connection.execute(statement.execution_options(yield_per=100)) as found:
        yield from found.tuples()


def _depth(words: str) -> int:
    """The depth of a JSON text. Only brackets are counted, so a text that is too deep is never parsed."""
    deepest = depth = 0
    for bracket in _BRACKETS.sub("", words):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
