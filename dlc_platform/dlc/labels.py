"""The labels of a project: its CollectedData tables and the images they belong to.

Only CSV tables are read: HDF5 tables of others can hold pickles, and DeepLabCut writes both side by side.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.catalog.registry import KnownFile
from dlc_platform.dlc.project import CONFIG_FILE, Project
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.video.region import Region

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
        Columns folder, file, path (absolute), sha256, width, height (in pixels); one row for each image with at least
        one label.
    points
        Columns folder, file, bodypart, x, y; one row for each image and body part of the project. Pixels of the full
        picture, origin at the top left; NaN where the body part is not labelled.
    unlabelled
        Rows of the tables that were left out because they hold no label.
    outside
        Labels that were taken for not labelled because they lie outside their image, as DeepLabCut takes them.
    regions
        The regions of interest that the labels were held against, by folder.
    outside_region
        Labels that were taken for not labelled because they lie outside the region of their image.
    without_region_label
        Images that were left out because none of their labels lies in their region.
    """

    images: pd.DataFrame
    points: pd.DataFrame
    unlabelled: int
    outside: int
    regions: Mapping[str, Region] = field(default_factory=dict)
    outside_region: int = 0
    without_region_label: int = 0

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
            images.append((folder, file, str(path), sha256_file(path), width, height))
            points += [(folder, file, part, *inside.get(part, _UNLABELLED)) for part in project.bodyparts]
    if not images:
        raise PlatformError(
            f"no labelled frame was found in {project.path / 'labeled-data'}",
            "Label frames with DeepLabCut (napari) and save them, then try again",
        )
    return LabelTable(
        pd.DataFrame(images, columns=pd.Index(["folder", "file", "path", "sha256", "width", "height"])),
        pd.DataFrame(points, columns=pd.Index(["folder", "file", "bodypart", "x", "y"])),
        unlabelled,
        outside,
    )


def within_regions(
    labels: LabelTable, files: Mapping[str, KnownFile], region_for: Callable[[str, str], Region | None]
) -> LabelTable:
    """The labels that lie in the regions of interest; images of which no region is known stay as they are.

    DeepLabCut crops frames when it takes them from a video, where its project says so. An image of the region's size is
    taken for such a frame, so that its labels are pixels of the region: they are moved to where they lie in the full
    picture. An image of the video's size is a full picture.

    Parameters
    ----------
    files
        From a folder to the file that its images were taken from, where it is known.
    region_for
        The region of a session's key and a camera's name.

    Raises
    ------
    PlatformError
        When a region does not lie in its video, an image has the size of neither, or no label is left.
    """
    import numpy as np

    regions: dict[str, Region] = {}
    for folder, file in files.items():
        region = region_for(file.session, file.camera)
        if region is not None:
            region.check(file.width, file.height, f"the video {file.name} of {file.session}")
            regions[folder] = region
    images = labels.images
    points = labels.points.reset_index(drop=True)
    rows_of = points.groupby(["folder", "file"]).indices
    outside = 0
    for image in images[images["folder"].isin(regions)].itertuples():
        region, file = regions[str(image.folder)], files[str(image.folder)]
        rows = rows_of[image.folder, image.file]
        own = points.loc[rows, ["x", "y"]].to_numpy()
        if (image.width, image.height) == (region.width, region.height):
            own += (region.x, region.y)
        elif (image.width, image.height) != (file.width, file.height):
            raise PlatformError(
                f"{image.path} is {image.width} x {image.height}, which is the size neither of its video, {file.name} "
                f"of {file.session} ({file.width} x {file.height}), nor of the region {region}",
                "Correct `regions` in lab.yaml to what DeepLabCut has cropped, or take its frames anew",
            )
        # Not on the edges either: DeepLabCut takes such labels for not labelled.
        inside = (own > (region.x, region.y)) & (own < (region.x + region.width, region.y + region.height))
        lost = ~inside.all(axis=1) & ~np.isnan(own).any(axis=1)
        own[lost] = _UNLABELLED
        points.loc[rows, ["x", "y"]] = own
        outside += int(lost.sum())
    labelled = points.loc[points["x"].notna(), ["folder", "file"]].drop_duplicates()
    kept = images.merge(labelled, on=["folder", "file"])
    if kept.empty:
        raise PlatformError(
            f"none of the labels of the {len(images)} labelled images lies in its region",
            "Correct `regions` in lab.yaml",
        )
    return replace(
        labels,
        images=kept,
        points=points.merge(labelled, on=["folder", "file"]),
        regions=regions,
        outside_region=outside,
        without_region_label=len(images) - len(kept),
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
