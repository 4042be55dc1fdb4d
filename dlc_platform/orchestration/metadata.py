"""Dagster metadata that the UI shows with a computation: tables, pictures and numbers.

The UI keeps the order of an asset's metadata: first the values that a person looks at, then those that one looks up.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from dlc_platform.errors import in_this_lab
from dlc_platform.identity import short

if TYPE_CHECKING:
    import pandas as pd


#: Event rows stay small.
_MOST_ROWS = 100


def table(rows: "Sequence[Mapping[str, Any]] | pd.DataFrame") -> dg.TableMetadataValue:
    """A table that the UI shows in place, with numbers rounded to four digits."""
    plain = rows if isinstance(rows, Sequence) else rows.rename(columns=str).to_dict("records")
    records = [dg.TableRecord({str(key): _cell(value) for key, value in row.items()}) for row in plain]
    return dg.MetadataValue.table(records, schema=None if records else dg.TableSchema(columns=[]))


def stale_rows(sessions: "pd.DataFrame") -> "pd.DataFrame":
    """Stale sessions as a table of the UI, cut to the newest ones."""
    shown = sessions.head(_MOST_ROWS)
    return shown.assign(models=[", ".join(short(m) if m else "imported" for m in own) for own in shown["models"]])


def gpu_memory(declared_gb: float | None, peak_gb: float | None) -> dict[str, Any]:
    """The declared and the used memory of a GPU, in gigabytes; unknown figures are left out."""
    known = {"gpu_memory_gb": declared_gb, "gpu_memory_peak_gb": peak_gb}
    return {name: number(value) for name, value in known.items() if value is not None}


def number(value: float) -> float:
    """A measurement for people, rounded to four digits."""
    return float(f"{value:.4g}")


def picture(image: bytes, caption: str) -> dg.MarkdownMetadataValue:
    """A picture that the UI shows from the event itself, so that it needs no file server."""
    from dlc_platform.plots.canvas import as_markdown

    return dg.MetadataValue.md(as_markdown(image, caption))


def _cell(value: Any) -> str | int | float | bool | None:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return None if value != value else number(value)
    if isinstance(value, str):
        return in_this_lab(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value.isoformat()
    return str(value)
