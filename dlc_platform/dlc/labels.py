"""The labels of a project: its CollectedData tables and the images they belong to.

Only CSV tables are read: HDF5 tables of others can hold pickles, and DeepLabCut writes both side by side.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.project import CONFIG_FILE, Project
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file

if TYPE_CHECKING:
    import pandas as pd

Point = tuple[float, float]
_UNLABELLED: Point = (math.nan, math.nan)
_HEADER = ("scorer", "bodyparts", "coords")


@dataclass(frozen=True)
class LabelTable:
    """Every labelled image of a project.

    Attributes
    ----------
    images
        Columns folder, file, path (absolute), sha256; one row for each image with at least one label.
    points
        Columns folder, file, bodypart, x, y; one row for each image and body part of the project. Pixels of the full
        image, origin at the top left; NaN where the body part is not labelled.
    unlabelled
        Rows of the tables that were left out because they hold no label.
    outside
        Labels that were taken for not labelled because they lie outside their image, as DeepLabCut takes them.
    """

    images: pd.DataFrame
    points: pd.DataFrame
    unlabelled: int
    outside: int

    def folders(self) -> list[str]:
        """The folders of ``labeled-data`` that hold labelled images."""
        return sorted(self.images["folder"].unique())


def read_labels(project: Project) -> LabelTable:
    """Read ``labeled-data/*/CollectedData_*.csv`` of every folder, named in ``video_sets`` or not.

    Raises
    ------
    PlatformError
        When a table cannot be understood, names an unknown body part or a missing image, or when nothing is labelled.
    """
    import pandas as pd

    images, points = [], []
    unlabelled = outside = 0
    for table in _tables(project):
        folder = table.parent.name
        for file, labels in _read_table(table, project).items():
            width, height = _image_size(table, file)
            inside = {part: point for part, point in labels.items() if 0 < point[0] < width and 0 < point[1] < height}
            outside += sum(not math.isnan(point[0]) for point in labels.values()) - len(inside)
            if not inside:
                unlabelled += 1
                continue
            path = (table.parent / file).absolute()
            images.append((folder, file, str(path), sha256_file(path)))
            points += [(folder, file, part, *inside.get(part, _UNLABELLED)) for part in project.bodyparts]
    if not images:
        raise PlatformError(
            f"no labelled frame was found in {project.path / 'labeled-data'}",
            "Label frames with DeepLabCut (napari) and save them, then try again",
        )
    return LabelTable(
        pd.DataFrame(images, columns=pd.Index(["folder", "file", "path", "sha256"])),
        pd.DataFrame(points, columns=pd.Index(["folder", "file", "bodypart", "x", "y"])),
        unlabelled,
        outside,
    )


def _tables(project: Project) -> Iterator[Path]:
    for folder in sorted((project.path / "labeled-data").glob("*/")):
        if folder.name.endswith("_labeled") or folder.name.startswith("."):  # labels drawn in; copies of an editor
            continue
        tables = sorted(folder.glob("CollectedData_*.csv"))
        own = folder / f"CollectedData_{project.scorer}.csv"
        if own in tables:
            yield own
        elif len(tables) == 1:
            yield tables[0]
        elif tables:
            raise PlatformError(
                f"{folder} holds {', '.join(table.name for table in tables)}, and none is by the scorer of the project",
                f"Keep one of them, or name the right one {own.name}",
            )
        elif hdf := sorted(folder.glob("CollectedData_*.h5")):
            csv_name = hdf[0].with_suffix(".csv").name
            raise PlatformError(
                f"{folder} holds {hdf[0].name} but no {csv_name}, and HDF5 tables are not read because they can hold "
                "pickles",
                f"Save the labels again in napari, or run `pandas.read_hdf({str(hdf[0])!r}).to_csv("
                f"{str(hdf[0].with_suffix('.csv'))!r})` if you trust the file",
            )


def _read_table(table: Path, project: Project) -> dict[str, dict[str, Point]]:
    """The labels of each image file of one table, by body part."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PlatformError(f"{table} cannot be read: {error}", "Save the labels again in napari") from error
    names = tuple(row[0] for row in rows[:4])
    if names[1:2] == ("individuals",):
        raise PlatformError(f"{table} holds labels of a multi-animal project", "Use a single-animal project")
    if names[:3] != _HEADER:
        raise PlatformError(
            f"{table} is not a label table: its first lines must begin with {', '.join(_HEADER)}",
            "Save the labels again in napari",
        )
    # pandas leaves the cells of the header empty over the second and third index column.
    first = next((index for index, cell in enumerate(rows[2]) if index and cell), 1)
    named, measured = (max(index for index, cell in enumerate(row) if cell.strip()) for row in rows[1:3])
    if named != measured:
        raise PlatformError(
            f"{table} has {named} columns in its line `bodyparts` and {measured} in its line `coords`",
            "Save the labels again in napari",
        )
    columns = [(index, rows[1][index], rows[2][index]) for index in range(first, measured + 1)]
    unknown = sorted({bodypart for _, bodypart, _ in columns} - set(project.bodyparts))
    if unknown:
        raise PlatformError(
            f"{table} labels {', '.join(unknown)}, which `bodyparts` in {project.path / CONFIG_FILE} does not name",
            "Add them there, or remove these columns from the table",
        )
    labels: dict[str, dict[str, Point]] = {}
    for row in rows[3:]:
        # The tables of Windows carry back-slashes; images always lie beside their table.
        file = "/".join(row[:first]).replace("\\", "/").rsplit("/", 1)[-1]
        cells: dict[str, dict[str, float]] = {}
        for index, bodypart, coordinate in columns:
            cells.setdefault(bodypart, {})[coordinate] = _number(row[index] if index < len(row) else "", table, file)
        image = {}
        for bodypart, values in cells.items():
            point = (values.get("x", math.nan), values.get("y", math.nan))
            image[bodypart] = _UNLABELLED if any(map(math.isnan, point)) else point
        if file in labels and repr(labels[file]) != repr(image):  # repr: NaN equals NaN
            raise PlatformError(f"{table} labels {file} twice and differently", "Remove one of the two lines")
        labels[file] = image
    return labels


def _number(cell: str, table: Path, file: str) -> float:
    try:
        number = float(cell) if cell.strip() else math.nan
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise PlatformError(
            f"{table} holds {cell!r} for {file}, which is not a number", "Correct that cell, or leave it empty"
        )
    return number


def _image_size(table: Path, file: str) -> tuple[int, int]:
    """Width and height of a labelled image, in pixels."""
    from PIL import Image, UnidentifiedImageError

    path = table.parent / file
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise PlatformError(
            f"{path} is missing, but {table.name} holds labels for it",
            "Put the image back, or remove its line from the table",
        ) from None
    except (OSError, UnidentifiedImageError) as error:
        raise PlatformError(f"{path} is not an image that can be read: {error}", "Replace or remove it") from error
