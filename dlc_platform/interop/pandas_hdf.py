"""The one table of numbers that pandas wrote into a ``.h5``, read without unpickling.

DeepLabCut keeps labels and poses so, in pandas' fixed format or in its table format. The callers know what the rows and
columns mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.interop.pickled_labels import read_pickled_labels
from dlc_platform.interop.plain_hdf import check_contents, open_hdf, read_whole

Columns = list[tuple[str, ...]]
#: A table of a hundred body parts of fifty animals has 15,000 columns; a folder of labels has a few hundred images.
_MOST_COLUMNS, _MOST_NAMED_ROWS = 50_000, 1_000_000


@dataclass(frozen=True)
class HdfTable:
    """A table of numbers.

    Attributes
    ----------
    columns
        The labels of each column, one for each level; numbers are text, as a .csv has them.
    index
        The labels of each row: whole numbers in an array, or text, one for each level.
    values
        Shape (rows, columns), integers or floats.
    """

    columns: Columns
    index: "np.ndarray | Columns"
    values: np.ndarray


def read_hdf_table(file: Path, anew: str) -> HdfTable:
    """Read a ``.h5`` that holds one table of pandas.

    Parameters
    ----------
    anew
        The remedy for a file that cannot be used: a way to write it again.

    Raises
    ------
    PlatformError
        When it is not a plain file, or holds more than plain data sets of its own (see `plain_hdf`); when it does not
        hold exactly one table, or holds objects that only unpickling could read, or anything else than numbers; when it
        is damaged, or has a column twice.
    """
    import h5py

    try:
        with open_hdf(file, anew) as hdf:
            frames = {
                name: group
                for name, group in hdf.items()
                if isinstance(group, h5py.Group) and _text(group.attrs.get("pandas_type")).startswith("frame")
            }
            if len(frames) != 1:
                raise PlatformError(
                    f"{file} holds {len(frames)} tables of pandas ({', '.join(frames) or 'none'}), but a file of "
                    "DeepLabCut holds one",
                    anew,
                )
            check_contents(file, hdf, anew)
            (group,) = frames.values()
            is_table = _text(group.attrs["pandas_type"]) == "frame_table"
            columns, index, values = (_table_format if is_table else _fixed_format)(file, group, anew)
    except (OSError, KeyError, IndexError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise PlatformError(f"{file} cannot be read as a table of pandas: {error}", anew) from error
    if values.dtype.kind not in "fiu":
        raise PlatformError(f"{file} holds more than numbers", anew)
    if len(set(columns)) < len(columns):
        raise PlatformError(f"{file} has the same column twice", anew)
    if values.shape != (len(index), len(columns)):
        raise PlatformError(
            f"{file} is damaged: {values.shape} values, {len(index)} rows and {len(columns)} columns", anew
        )
    return HdfTable(columns, index, values)


def _table_format(file: Path, group: Any, anew: str) -> tuple[Columns, "np.ndarray | Columns", np.ndarray]:
    """pandas' table format: rows of an index and of blocks of columns; the labels lie in attributes, pickled."""

    def labels(attribute: Any, where: str) -> Columns:
        found = read_pickled_labels(attribute, f"{file}, {where}") if isinstance(attribute, bytes) else None
        if where == "non_index_axes" and isinstance(found, list) and len(found) == 1:  # [(axis, labels)]
            ((_, found),) = found
        if not isinstance(found, list) or not all(isinstance(label, tuple) for label in found):
            raise PlatformError(f"{file} does not hold the labels of its columns in {where}", anew)
        return [tuple(_name(file, part, anew) for part in label) for label in found]

    table = group["table"]
    columns = labels(group.attrs["non_index_axes"], "non_index_axes")
    rows = read_whole(file, table, anew)
    blocks: dict[tuple[str, ...], np.ndarray] = {}
    for name in rows.dtype.names or ():
        if name == "index":
            continue
        own = labels(table.attrs[f"{name}_kind"], f"{name}_kind")
        if len(own) != math.prod(rows.dtype[name].shape):
            raise PlatformError(f"{file} is damaged: {name}_kind does not name each column of {name}", anew)
        values = rows[name].reshape(len(rows), -1)
        blocks |= {label: values[:, position] for position, label in enumerate(own)}
    return columns, _index(file, [rows["index"]], anew), _side_by_side(blocks, columns, len(rows))


def _fixed_format(file: Path, group: Any, anew: str) -> tuple[Columns, "np.ndarray | Columns", np.ndarray]:
    """pandas' fixed format: one array for each part. Arrays of objects, which are pickles, are refused."""

    def array(name: str) -> np.ndarray:
        return read_whole(file, group[name], anew)

    def levels(prefix: str) -> list[np.ndarray]:
        """The labels of an axis, an array for each level."""
        found = []
        for level in range(int(group.attrs[f"{prefix}_nlevels"])):
            names, codes = array(f"{prefix}_level{level}"), array(f"{prefix}_label{level}")
            if len(codes) and codes.min() < 0:  # pandas writes a missing label so
                raise PlatformError(f"{file} has a label without a name in {prefix}_level{level}", anew)
            if len(codes) > (_MOST_COLUMNS if prefix != "axis1" else _MOST_NAMED_ROWS):
                raise PlatformError(f"{file} has {len(codes)} labels in {prefix}_label{level}, which is too many", anew)
            found.append(names[codes])
        return found

    def labels(prefix: str) -> Columns:
        return list(
            zip(*([_name(file, part, anew) for part in level.tolist()] for level in levels(prefix)), strict=True)
        )

    columns = labels("axis0")
    is_multiple = "axis1_nlevels" in group.attrs
    index = _index(file, levels("axis1") if is_multiple else [array("axis1")], anew)
    blocks: dict[tuple[str, ...], np.ndarray] = {}
    for number in range(int(group.attrs["nblocks"])):
        values = array(f"block{number}_values")
        if not group[f"block{number}_values"].attrs.get("transposed", False):
            values = values.T
        blocks |= {label: values[:, position] for position, label in enumerate(labels(f"block{number}_items"))}
    return columns, index, _side_by_side(blocks, columns, len(index))


def _index(file: Path, levels: Sequence[np.ndarray], anew: str) -> "np.ndarray | Columns":
    if len(levels) == 1 and levels[0].dtype.kind in "iu":
        return levels[0].astype(np.int64)
    return list(zip(*([_name(file, part, anew) for part in level.tolist()] for level in levels), strict=True))


def _side_by_side(blocks: dict[tuple[str, ...], np.ndarray], columns: Columns, rows: int) -> np.ndarray:
    return np.column_stack([blocks[column] for column in columns]) if columns else np.empty((rows, 0))


def _name(file: Path, label: Any, anew: str) -> str:
    """A label, as a .csv has it."""
    if isinstance(label, bytes):
        return label.decode()
    if isinstance(label, str | int | float) and not isinstance(label, bool):
        return str(label)
    raise PlatformError(f"{file} has a label that is a {type(label).__name__}, neither text nor a number", anew)


def _text(value: Any) -> str:
    """An attribute of PyTables as text; empty if it is missing."""
    return value.decode() if isinstance(value, bytes) else value if isinstance(value, str) else ""
