"""The labels of a project: its CollectedData tables and their images.

DeepLabCut writes each table twice, as .h5 and as .csv, and reads only the .h5. Here both are read, the .h5 without
unpickling, and if they differ neither is used.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.images import examine_images
from dlc_platform.dlc.label_tables import UNLABELLED, LabelFile, LabelRow, Point, Remark, read_label_file, same_name
from dlc_platform.dlc.project import CONFIG_FILE, Project
from dlc_platform.errors import PlatformError
from dlc_platform.video.region import Region
from dlc_platform.video.registered import KnownFile

if TYPE_CHECKING:
    import pandas as pd

#: The largest difference in pixels between a number of the .csv and that of the .h5: writing rounds tables.
_ROUNDING = 0.051
_NAMES_SHOWN = 5
_IMAGE_COLUMNS = ("folder", "file", "path", "sha256", "pixels_sha256", "width", "height", "is_turned")
_SAVE_BOTH = (
    "Open the folder in napari, see which labels are right, and save them, which writes both tables; or move the table "
    "that is wrong out of labeled-data"
)


@dataclass(frozen=True)
class LabelTable:
    """Every labelled image of a project.

    Attributes
    ----------
    images
        Columns folder, file, path (absolute), and those of `images.Image`: sha256, pixels_sha256, width, height (in
        pixels, as DeepLabCut reads it), is_turned; one row for each image with at least one label.
    points
        Columns folder, file, bodypart, x, y; one row for each image and body part of the project. Pixels of the full
        picture, origin at the top left; NaN where the body part is not labelled.
    unlabelled
        Rows of the tables that were left out because they hold no label.
    outside
        The number of labels that count as not labelled because they lie outside their image, as in DeepLabCut.
    regions
        The regions of interest that the labels were compared with, by folder.
    outside_region
        The number of labels that count as not labelled because they lie outside the region of their image.
    without_region_label
        Images that were left out because none of their labels lies in their region.
    remarks
        Facts about the reading of the tables that a person should know.
    """

    images: pd.DataFrame
    points: pd.DataFrame
    unlabelled: int
    outside: int
    regions: Mapping[str, Region] = field(default_factory=dict)
    outside_region: int = 0
    without_region_label: int = 0
    remarks: tuple[Remark, ...] = ()

    def folders(self) -> list[str]:
        """The folders of ``labeled-data`` that hold labelled images."""
        return sorted(self.images["folder"].unique())


def check_tables(project: Project) -> None:
    """Read every table of labels as `read_labels` does, without reading the images.

    Raises
    ------
    PlatformError
        When a table cannot be understood, contradicts itself or another one, or names an unknown body part.
    """
    _labelled_rows(project)


def read_labels(project: Project) -> LabelTable:
    """Read the ``CollectedData_*`` of every folder of ``labeled-data``, named in ``video_sets`` or not.

    Raises
    ------
    PlatformError
        When a table cannot be understood, contradicts itself or another one, names an unknown body part or a missing
        image; when a labelled image is damaged; or when nothing is labelled.
    """
    import pandas as pd

    labelled, unlabelled, remarks = _labelled_rows(project)
    decoded = examine_images([path for path, _ in labelled.values()])
    images, points = [], []
    outside = without_label = 0
    for ((folder, file), (path, labels)), image in zip(labelled.items(), decoded, strict=True):
        inside = {
            part: point for part, point in labels.items() if 0 < point[0] < image.width and 0 < point[1] < image.height
        }
        outside += sum(not math.isnan(point[0]) for point in labels.values()) - len(inside)
        if not inside:
            without_label += 1
            continue
        images.append(
            (folder, file, str(path), image.sha256, image.pixels_sha256, image.width, image.height, image.is_turned)
        )
        points += [(folder, file, part, *inside.get(part, UNLABELLED)) for part in project.bodyparts]
    if not images:
        raise PlatformError(
            f"no labelled frame was found in {project.path / 'labeled-data'}",
            "Label frames with DeepLabCut (napari) and save them, then try again",
        )
    return LabelTable(
        pd.DataFrame(images, columns=pd.Index(list(_IMAGE_COLUMNS))),
        pd.DataFrame(points, columns=pd.Index(["folder", "file", "bodypart", "x", "y"])),
        unlabelled + without_label,
        outside,
        remarks=tuple(remarks),
    )


def within_regions(
    labels: LabelTable, files: Mapping[str, KnownFile], region_for: Callable[[str, str], Region | None]
) -> LabelTable:
    """The labels that lie in the regions of interest; images without a known region stay unchanged.

    DeepLabCut crops frames when it takes them from a video, if its project says so. An image of the region's size
    counts as such a frame, so that its labels are pixels of the region: they are moved to their place in the full
    picture. An image of the video's size is a full picture.

    Parameters
    ----------
    files
        The file that the images of a folder were taken from, if known, by folder.
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
        # Not on the edges either: for DeepLabCut such labels are not labelled.
        inside = (own > (region.x, region.y)) & (own < (region.x + region.width, region.y + region.height))
        lost = ~inside.all(axis=1) & ~np.isnan(own).any(axis=1)
        own[lost] = UNLABELLED
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


#: For each image that has a label, by folder and file: its path and its labels.
_Labelled = dict[tuple[str, str], tuple[Path, dict[str, Point]]]


def _labelled_rows(project: Project) -> tuple[_Labelled, int, list[Remark]]:
    """The labels of every image, the number of images with a row and no label, and the remarks about the tables."""
    tables, remarks = _tables(project)
    folders = {same_name(folder.name): folder for folder in _folders(project)}
    files = {folder: _by_spelling(_names(folder)) for folder in folders.values()}
    rows_of: dict[tuple[Path, str], list[tuple[LabelFile, LabelRow]]] = defaultdict(list)
    renamed = []
    for folder, table in tables:
        former = _former_name(folder, table, folders)
        if former:
            renamed.append(f"{former} (now {folder.name})")
        for row in table.rows:
            own = folder if former or row.folder is None else _folder_named(row.folder, folder, folders) or folder
            name = same_name(row.file)
            rows_of[own, files[own].get(name) or files[own].get(name.casefold()) or name].append((table, row))
        remarks += table.remarks
    labelled: _Labelled = {}
    unlabelled = 0
    for (folder, name), found in rows_of.items():
        found = [(table, row) for table, row in found if row.is_labelled]
        if not found:
            unlabelled += 1
            continue
        table, row = found[0]
        if name not in files[folder].values():
            raise PlatformError(
                f"{folder / name} is missing, but {table.path.name} holds labels for it in {row.place}",
                "Put the image back, from a copy of the project or by taking that frame of its video again with "
                "DeepLabCut; its labels stay as they are",
            )
        for other_table, other in found[1:]:
            if _differ(row.points, other.points):
                where = other.place if other_table is table else f"{other.place} of {other_table.path}"
                raise PlatformError(
                    f"{table.path} labels {name} twice and differently, in {row.place} and in {where}",
                    "Correct the line that is wrong, so that both say the same",
                )
        labelled[folder.name, name] = ((folder / name).absolute(), row.points)
    if renamed:
        remarks.append(
            Remark(
                f"tables whose rows name a folder that is not there are taken for those of folders that were renamed: "
                f"{_some(renamed)}",
                "See that they are; DeepLabCut finds their images once the paths in the tables name the new folders",
            )
        )
    known = {same_name(path.stem) for path in project.video_paths}
    strangers = sorted({folder for folder, _ in labelled if same_name(folder) not in known})
    if strangers:
        remarks.append(
            Remark(
                f"the labels of {_some(strangers)} are used, though `video_sets` in {project.path / CONFIG_FILE} names "
                "no such video, and DeepLabCut leaves them out",
                "Add the videos there (deeplabcut.add_new_videos), or move folders that are not meant out of "
                "labeled-data",
            )
        )
    return labelled, unlabelled, remarks


def _folders(project: Project) -> list[Path]:
    """The folders of labeled-data, except those with drawn labels and the copies of an editor."""
    above = project.path / "labeled-data"
    names = _names(above) if above.is_dir() else []
    folders = [above / name for name in names if not name.endswith("_labeled") and not name.startswith(".")]
    return [folder for folder in folders if folder.is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise PlatformError(
            f"{folder} cannot be read: {error.strerror}", "See that the disk is there, and who may enter the folder"
        ) from error


def _tables(project: Project) -> tuple[list[tuple[Path, LabelFile]], list[Remark]]:
    """The table of each folder that has one."""
    found, remarks = [], []
    for folder in _folders(project):
        by_scorer: dict[str, dict[str, Path]] = defaultdict(dict)
        for name in _names(folder):
            # By hand, because a scorer's name may hold a dot.
            if table := re.fullmatch(r"CollectedData_(.*)(\.csv|\.h5)", name, re.IGNORECASE | re.DOTALL):
                by_scorer[same_name(table[1])][table[2].lower()] = folder / name
        if not by_scorer:
            continue
        scorers = sorted(by_scorer)
        scorer = same_name(project.scorer)
        if scorer not in by_scorer:
            if len(scorers) > 1:
                raise PlatformError(
                    f"{folder} holds the tables of {', '.join(scorers)}, and none of {project.scorer}, the scorer of "
                    "the project",
                    f"Name the right one CollectedData_{project.scorer}, or correct `scorer` in config.yaml",
                )
            (scorer,) = scorers
            remarks.append(
                Remark(
                    f"the table in {folder} is by {scorer} and not by {project.scorer}, the scorer of the project: it "
                    "is used, and DeepLabCut leaves it out",
                    "Leave it so if its labels are meant; otherwise move it out of labeled-data",
                )
            )
        elif len(scorers) > 1:
            others = [other for other in scorers if other != scorer]
            remarks.append(
                Remark(
                    f"of the tables in {folder} that of {scorer}, the scorer of the project, is used, and not that of "
                    f"{_some(others)}",
                    f"Leave it so if {scorer} is right; otherwise write another `scorer` in config.yaml",
                )
            )
        found.append((folder, _one_table(by_scorer[scorer], project, remarks)))
    return found, remarks


def _one_table(files: Mapping[str, Path], project: Project, remarks: list[Remark]) -> LabelFile:
    """The common content of the .csv and the .h5 of a table.

    Raises
    ------
    PlatformError
        When the .csv cannot be read, or the two differ; when the .h5 cannot be read and is alone.
    """
    if ".csv" not in files:
        return read_label_file(files[".h5"], project)
    table = read_label_file(files[".csv"], project)
    if ".h5" not in files:
        return table
    try:
        twin = read_label_file(files[".h5"], project)
    except PlatformError as error:
        remarks.append(
            Remark(
                f"{table.path} is used; it is not known whether DeepLabCut's table beside it says the same: "
                f"{error.problem}",
                error.remedy,
            )
        )
        return table
    ours, theirs = _by_image(table), _by_image(twin)
    differing = [
        image
        for image in {**ours, **theirs}
        if _differ(ours[image].points if image in ours else {}, theirs[image].points if image in theirs else {})
    ]
    if differing:
        raise PlatformError(
            f"{table.path} and {twin.path.name} beside it have different labels for {len(differing)} of "
            f"{len({**ours, **theirs})} images, such as {differing[0]}; DeepLabCut uses {twin.path.name}",
            _SAVE_BOTH,
        )
    return table


def _by_image(table: LabelFile) -> dict[str, LabelRow]:
    own = table.path.parent.name
    return {same_name(f"{row.folder or own}/{row.file}"): row for row in table.rows if row.is_labelled}


def _differ(first: Mapping[str, Point], second: Mapping[str, Point]) -> bool:
    """True if only one of them has a label, or if a label differs by more than rounding."""
    for part in {**first, **second}:
        one, other = first.get(part, UNLABELLED), second.get(part, UNLABELLED)
        if math.isnan(one[0]) and math.isnan(other[0]):
            continue
        if not all(abs(a - b) <= _ROUNDING for a, b in zip(one, other, strict=True)):
            return True
    return False


def _former_name(folder: Path, table: LabelFile, folders: Mapping[str, Path]) -> str | None:
    """The name that a folder had when all of its rows were written; None if they name the present folder.

    Raises
    ------
    PlatformError
        When its rows may be of another folder.
    """
    named = {row.folder for row in table.rows if row.folder is not None}
    elsewhere = sorted(name for name in named if _folder_named(name, folder, folders) != folder)
    if not elsewhere:
        return None
    there = [name for name in elsewhere if _folder_named(name, folder, folders) is not None]
    if len(there) == len(named) and all(row.folder is not None for row in table.rows):
        raise PlatformError(
            f"all rows of {table.path} are of images in {_some(there)}, which is another folder: either those are "
            "labelled twice, or the paths are wrong",
            f"If they are labels of the images in {folder.name}, write that folder into the paths of the table; if it "
            "is a copy, move it out of labeled-data",
        )
    if len(there) == len(elsewhere):
        return None  # rows of several folders, each of which is there
    missing = [name for name in elsewhere if name not in there]
    if len(named) > 1 or any(row.folder is None for row in table.rows):
        first = next(row for row in table.rows if row.folder == missing[0])
        raise PlatformError(
            f"{first.place} of {table.path} is of an image in the folder {missing[0]}, which is not in labeled-data, "
            "while other rows are of other folders",
            f"Bring the folder {missing[0]} into labeled-data; or, if these are images of {folder.name}, write that "
            "folder into their paths",
        )
    return missing[0]


def _folder_named(name: str, own: Path, folders: Mapping[str, Path]) -> Path | None:
    """The folder of labeled-data that a row means: by its exact name, else by its name in any case."""
    exact = folders.get(same_name(name))
    if exact is not None:
        return exact
    if same_name(name).casefold() == same_name(own.name).casefold():
        return own
    alike = [folder for other, folder in folders.items() if other.casefold() == same_name(name).casefold()]
    return alike[0] if len(alike) == 1 else None


def _by_spelling(names: Sequence[str]) -> dict[str, str]:
    """Names by themselves, and in small letters if those are unambiguous."""
    small = Counter(same_name(name).casefold() for name in names)
    found = {low: name for name in names if small[low := same_name(name).casefold()] == 1}
    return found | {same_name(name): name for name in names}


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
