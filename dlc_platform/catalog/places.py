"""The values of rows that are parts of paths, and the forms that they have.

Rows can come from the backup of anybody. Whoever uses such a value asks again: `Store.path` for products,
`layout.root_of` and `layout.leads_out` for what lies below a raw root.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from dlc_platform.catalog.tables import SCHEMA, Base
from dlc_platform.errors import one_line


@dataclass(frozen=True)
class _Form:
    """What values match, in the words of Postgres, and what is said of one that does not."""

    pattern: str
    otherwise: str


_IDENTITY = _Form("^[0-9a-f]{64}$", "is no identity of a product")
_ABSOLUTE = _Form(r"^(?!.*/\.\.?(/|$))/", "is no absolute path without `..`")
_BELOW = _Form(r"^(?!/)(?!(.*/)?\.\.?(/|$))", "is no path below a raw root")
_NAME = _Form(r"^(?!\.\.?$)[^/]+$", "is no file's name")
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


def misplaced(connection: Connection) -> str | None:
    """A row of a catalogue that is up to date whose value could lead to files of others, in words; None for none."""
    for (table, column), form in _COLUMNS.items():
        of_table = Base.metadata.tables[f"{SCHEMA}.{table}"].c[column]
        key = func.concat_ws(", ", *of_table.table.primary_key)
        odd = select(key, of_table).where(of_table.op("!~")(form.pattern)).order_by(*of_table.table.primary_key)
        if (found := connection.execute(odd.limit(1)).first()) is not None:
            row, value = (one_line(repr(one)) for one in found)
            return f"the row {row} of {SCHEMA}.{table} has {value} as {column}, which {form.otherwise}"
    return None
