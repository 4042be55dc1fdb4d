"""The pose files that DeepLabCut writes for a video, ``.h5`` and ``.csv``, of one animal or of several.

They are read without trust: nothing in them is unpickled, and the files that are kept are written here, from checked
values. Poses that were computed elsewhere become a product of kind ``poses`` here, like those of `dlc.inference`, but
marked as imported.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import open_plain
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.interop.pandas_hdf import Columns, read_hdf_table
from dlc_platform.manifests import ImportedPosesManifest
from dlc_platform.pose.table import POSE_TABLE, SINGLE_ANIMAL, tidy_from_dlc, write_parquet, write_wide_table
from dlc_platform.store import Store
from dlc_platform.text.words import counted
from dlc_platform.video.probe import VideoInfo

if TYPE_CHECKING:
    import pandas as pd

_LEVELS = {
    3: ("scorer", "bodyparts", "coords"),
    4: ("scorer", "individuals", "bodyparts", "coords"),
}
_COORDINATES = {"x", "y", "likelihood"}
_ANEW = "Analyze the video again with DeepLabCut, and import the file that it writes"

#: Networks sometimes place keypoints slightly outside the picture, but not further out than this fraction of it.
_MARGIN = 0.1
#: The size of twenty-four hours at 120 frames per second with a hundred body parts in double precision.
_MOST_FILE_BYTES = 30_000_000_000
#: The longest line, in characters: the names of 15,000 columns.
_LONGEST_LINE = 2_000_000


@dataclass(frozen=True)
class PoseFile:
    """The content of a pose file of DeepLabCut.

    Attributes
    ----------
    scorer
        The name that DeepLabCut gave to the model.
    individuals
        In the file's order; body parts that belong to no individual have one called ``single``. A file of a single
        animal has one individual, `pose.table.SINGLE_ANIMAL`.
    poses
        One row for each row of the file; the index is the frame number, from 0, and increases. Columns (scorer,
        bodyparts, coords) or (scorer, individuals, bodyparts, coords), in the file's order.
    """

    scorer: str
    individuals: tuple[str, ...]
    bodyparts: tuple[str, ...]
    poses: pd.DataFrame

    @property
    def rows(self) -> int:
        """The number of frames in the file."""
        return len(self.poses)


@dataclass(frozen=True)
class ImportedPoses:
    """Imported poses of the store.

    Attributes
    ----------
    model_id
        The model that the importing person named; None if none was named.
    note
        Differences between the file and its video, signs that they do not belong together, and a loss of digits in the
        pose table, in words; empty if there are none.
    """

    id: str
    path: Path
    video_id: str
    model_id: str | None
    scorer: str
    frames: int
    rows_in_file: int
    file: str
    file_sha256: str
    note: str


def import_poses(
    file: Path, video: VideoInfo, store: Store, model_id: str | None = None, allow_mismatch: bool = False
) -> ImportedPoses:
    """Put a pose file of DeepLabCut into the store as the poses of a video, with all its numbers beside them.

    The file itself is not kept, because it may hold more than numbers, which other programs may open: its numbers are
    written anew, to a ``.h5`` of the same name. The identity covers the video, the file's bytes, and the model if one
    is named.

    Parameters
    ----------
    model_id
        The model that made them, if the platform has it.
    allow_mismatch
        Leave out rows beyond the video, and leave frames without a row empty, instead of refusing the file.

    Raises
    ------
    PlatformError
        When the file cannot be read, changes meanwhile, or its number of rows is not the video's number of frames.
    """
    sha256 = sha256_file(_readable(file))
    found = read_poses(file)
    difference = _difference(file, found, video)
    if difference and not allow_mismatch:
        raise PlatformError(
            difference,
            "Import it for the video that it was made from; or use `--allow-mismatch`, which leaves out rows beyond "
            "the video and gives frames without a row no estimate",
        )
    poses = found.poses.reindex(range(video.frames))
    table = tidy_from_dlc(poses, video.times_s)
    note = "; ".join(filter(None, (difference, _outside(table, video), _without_likelihood(table), _rounded(poses))))
    manifest = ImportedPosesManifest(
        video=video.sha256,
        model=model_id,
        scorer=found.scorer,
        individuals=list(found.individuals),
        bodyparts=list(found.bodyparts),
        frames=video.frames,
        rows_in_file=found.rows,
        origin="imported",
        file=file.name,
        file_sha256=sha256,
        file_path=str(file.absolute()),
        note=note,
    )

    def write(folder: Path) -> None:
        if sha256_file(file) != sha256:
            raise PlatformError(f"{file} changed while it was imported", "Import it when it is written completely")
        write_wide_table(found.poses, folder / f"{file.stem}.h5")
        write_parquet(table, folder / POSE_TABLE)

    model = {} if model_id is None else {"model": model_id}
    identity = sha256_json({"video": video.sha256, "file": sha256} | model)
    return load_imported_poses(store.put("poses", identity, manifest.said(), write))


def load_imported_poses(path: Path) -> ImportedPoses:
    """The imported poses in the product directory `path`."""
    manifest = ImportedPosesManifest.read(path)
    return ImportedPoses(
        id=path.name,
        path=path,
        video_id=manifest.video,
        model_id=manifest.model,
        scorer=manifest.scorer,
        frames=manifest.frames,
        rows_in_file=manifest.rows_in_file,
        file=manifest.file_path,
        file_sha256=manifest.file_sha256,
        note=manifest.note,
    )


def read_poses(file: Path) -> PoseFile:
    """Read a pose file without unpickling anything in it.

    It reads ``.h5`` files in pandas' table and fixed formats, under any key, and ``.csv`` files with three or four
    lines of header.

    Raises
    ------
    PlatformError
        When the file is of another kind, is damaged, holds more than poses or impossible values, or its rows are not
        numbered by frame.
    """
    import pandas as pd

    match _readable(file).suffix.lower():
        case ".h5" | ".hdf5":
            columns, frames, values = _read_hdf(file)
        case ".csv":
            columns, frames, values = _read_csv(file)
        case suffix:
            raise PlatformError(
                f"{file} is not a pose file that can be imported: `{suffix}` is neither .h5 nor .csv",
                "Import the .h5 or .csv that DeepLabCut wrote beside it",
            )
    levels = _check_columns(file, columns)
    _check_values(file, columns, values)
    scorer = columns[0][0]
    if frames.size and frames.min() < 0:
        raise PlatformError(f"{file} has the frame number {frames.min()}", _ANEW)
    numbers, counts = np.unique(frames, return_counts=True)
    if (counts > 1).any():
        raise PlatformError(f"{file} has frame {numbers[counts > 1][0]} more than once", _ANEW)
    poses = pd.DataFrame(values, index=frames, columns=pd.MultiIndex.from_tuples(columns, names=levels)).sort_index()
    individuals = [column[1] for column in columns] if len(levels) == 4 else [SINGLE_ANIMAL]
    return PoseFile(
        scorer=scorer,
        individuals=tuple(dict.fromkeys(individuals)),
        bodyparts=tuple(dict.fromkeys(column[-2] for column in columns)),
        poses=poses,
    )


def _readable(file: Path) -> Path:
    """The file itself, if it is a plain file that can be opened."""
    try:
        open_plain(file, _MOST_FILE_BYTES).close()
    except FileNotFoundError:
        raise PlatformError(f"{file} does not exist", "Give the path of a .h5 or .csv of DeepLabCut") from None
    except OSError as error:
        raise PlatformError(f"{file} cannot be read: {error.strerror}", "Check the file and its permissions") from error
    return file


def _difference(file: Path, found: PoseFile, video: VideoInfo) -> str:
    """The difference between the rows of a file and the frames of its video, in words; empty if there is none."""
    beyond = int((found.poses.index >= video.frames).sum())
    missing = video.frames - (found.rows - beyond)
    parts = []
    if beyond:
        parts.append(f"{counted(beyond, 'row lies', 'rows lie')} beyond the video")
    if missing:
        parts.append(f"{counted(missing, 'frame has', 'frames have')} no row")
    if not parts:
        return ""
    return (
        f"{file.name} has {counted(found.rows, 'row')} and the video has {counted(video.frames, 'frame')}: "
        f"{', and '.join(parts)}"
    )


def _outside(table: pd.DataFrame, video: VideoInfo) -> str:
    """The number of keypoints outside the video's picture, in words; empty if there are none."""
    estimates = table[table["x"].notna()]
    distance = np.maximum.reduce(
        [
            -estimates["x"].to_numpy(),
            estimates["x"].to_numpy() - video.width,
            -estimates["y"].to_numpy(),
            estimates["y"].to_numpy() - video.height,
        ]
    )
    margin = _MARGIN * max(video.width, video.height)
    outside = int((distance > margin).sum())
    if not outside:
        return ""
    return (
        f"{outside} of {counted(len(estimates), 'keypoint')} {'lies' if outside == 1 else 'lie'} more than "
        f"{margin:.0f} px outside the picture of {video.width} x "
        f"{video.height} px, up to {distance.max():.0f} px: the poses may belong to another video, or to one of "
        "another size"
    )


def _without_likelihood(table: pd.DataFrame) -> str:
    """The number of keypoints with a place and no likelihood, in words; empty if there are none."""
    without = int((table["x"].notna() & table["likelihood"].isna()).sum())
    return (
        f"{counted(without, 'keypoint has', 'keypoints have')} no likelihood, and never count as confident"
        if without
        else ""
    )


def _rounded(poses: pd.DataFrame) -> str:
    """The note that the file has more digits than the pose table keeps; empty if it has not."""
    values = poses.to_numpy(np.float64)
    values = values[~np.isnan(values)]
    kept = values.astype(np.float32)
    rounded = kept != values
    # A .csv of float32 numbers holds the shortest decimals that tell them apart, and these lose nothing.
    if (kept[rounded].astype(str).astype(np.float64) == values[rounded]).all():
        return ""
    return "coordinates are kept to float32's seven digits; the .h5 in the product has all of them"


def _check_columns(file: Path, columns: Columns) -> tuple[str, ...]:
    """The names of the column levels.

    Raises
    ------
    PlatformError
        When a keypoint does not have x, y and likelihood exactly once, when there are several scorers, or when a body
        part is called ``all``.
    """
    levels = _LEVELS.get(len(columns[0]) if columns else 0)
    if levels is None or any(len(column) != len(levels) for column in columns):
        raise PlatformError(
            f"{file} is not a pose file of DeepLabCut: its columns are not labelled with scorer, (individuals,) "
            "bodyparts and coords",
            _ANEW,
        )
    scorers = {column[0] for column in columns}
    if len(scorers) > 1:
        raise PlatformError(f"{file} holds poses of several scorers: {', '.join(sorted(scorers))}", _ANEW)
    if len(set(columns)) < len(columns):
        raise PlatformError(f"{file} has the same column twice", _ANEW)
    coordinates: dict[tuple[str, ...], set[str]] = {}
    for column in columns:
        coordinates.setdefault(column[1:-1], set()).add(column[-1])
    for keypoint, found in coordinates.items():
        if found != _COORDINATES:
            raise PlatformError(
                f"{file} has {', '.join(sorted(found))} for {' '.join(keypoint)}, not x, y and likelihood",
                "Import the poses of one video; labels and 3D poses cannot be imported here",
            )
    if any(column[-2] == "all" for column in columns):
        raise PlatformError(
            f"{file} names a body part `all`, which stands for their total in tables",
            "Rename it in a copy of the .csv that DeepLabCut wrote, and import that",
        )
    return levels


def _check_values(file: Path, columns: Columns, values: np.ndarray) -> None:
    """Refuse impossible values, in the precision in which poses are kept; NaN stands for no estimate.

    Raises
    ------
    PlatformError
        When a coordinate is infinite, only one of x and y is given, or a likelihood is not between 0 and 1.
    """
    is_likelihood = np.array([column[-1] == "likelihood" for column in columns])
    with np.errstate(over="ignore"):
        kept = values.astype(np.float32)
    if infinite := int(np.isinf(kept[:, ~is_likelihood]).sum()):
        raise PlatformError(
            f"{file} has {counted(infinite, 'coordinate that is', 'coordinates that are')} infinite, or too large for "
            "a pixel",
            _ANEW,
        )
    position = {column: index for index, column in enumerate(columns)}
    for column, index in position.items():
        if column[-1] == "x":
            lacks = np.isnan(values[:, index]) != np.isnan(values[:, position[*column[:-1], "y"]])
            if lacks.any():
                raise PlatformError(
                    f"{file} has only one of x and y for {' '.join(column[1:-1])} in "
                    f"{counted(int(lacks.sum()), 'row')}",
                    _ANEW,
                )
    likelihood = kept[:, is_likelihood]
    if wrong := int(((likelihood < 0) | (likelihood > 1)).sum()):
        raise PlatformError(
            f"{file} has {counted(wrong, 'likelihood that is', 'likelihoods that are')} not between 0 and 1", _ANEW
        )


def _read_csv(file: Path) -> tuple[Columns, np.ndarray, np.ndarray]:
    """Column labels, frame numbers, and values (rows, columns) of a .csv."""
    import pandas as pd

    _check_line_lengths(file)
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = [row for row, _ in zip(csv.reader(lines), range(4), strict=False)]
        names = tuple(row[0] if row else "" for row in rows)
        levels = next((levels for levels in _LEVELS.values() if names[: len(levels)] == levels), None)
        if levels is None or len({len(row) for row in rows[: len(levels)]}) > 1:
            raise PlatformError(
                f"{file} is not a pose file of DeepLabCut: its first lines must begin with scorer, (individuals,) "
                "bodyparts and coords, and be of the same length",
                _ANEW,
            )
        header = [row[1:] for row in rows[: len(levels)]]
        _check_lines(file, len(rows[0]))
        table = pd.read_csv(
            file,
            header=None,
            names=range(len(header[0]) + 1),
            skiprows=len(levels),
            index_col=0,
            dtype={0: np.int64} | dict.fromkeys(range(1, len(header[0]) + 1), np.float64),
            float_precision="round_trip",
            encoding="utf-8-sig",
        )
    except (OSError, ValueError, csv.Error) as error:
        raise PlatformError(
            f"{file} cannot be read: {' '.join(str(error).split())}",
            "Every row must hold a frame number and then only numbers, as DeepLabCut writes them for a video",
        ) from error
    scorer = header[0][0] if header[0] else ""
    # A table that was read and written with pandas numbers the cells of its first line: SCORER, SCORER.1, SCORER.2...
    header[0] = [scorer if name == f"{scorer}.{position}" else name for position, name in enumerate(header[0])]
    return list(zip(*header, strict=True)), table.index.to_numpy(), table.to_numpy(np.float64)


def _check_line_lengths(file: Path) -> None:
    """Refuse an endless line before it is read whole.

    Raises
    ------
    PlatformError
        When there is such a line; it names the line.
    """
    with open_plain(file) as lines:
        number = 1
        while piece := lines.readline(_LONGEST_LINE):
            if len(piece) == _LONGEST_LINE:
                raise PlatformError(
                    f"line {number} of {file} has more than {_LONGEST_LINE:,} characters: it is not a table of poses",
                    _ANEW,
                )
            number += 1


def _check_lines(file: Path, width: int) -> None:
    """Refuse a line that is cut off or too long; pandas would fill it up or shift it.

    Raises
    ------
    PlatformError
        When there is such a line; it names the line.
    """
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip() and (cells := line.count(",") + 1) != width and '"' not in line:
                raise PlatformError(
                    f"line {number} of {file} has {counted(cells, 'cell')}, and its header has {width}: the line is "
                    f"{'cut off' if cells < width else 'too long'}",
                    "Copy the file again if that was interrupted; otherwise analyze the video again with DeepLabCut",
                )


def _read_hdf(file: Path) -> tuple[Columns, np.ndarray, np.ndarray]:
    """Column labels, frame numbers, and values (rows, columns) of a .h5."""
    table = read_hdf_table(file, _ANEW)
    if not isinstance(table.index, np.ndarray):
        raise PlatformError(
            f"the rows of {file} are not numbered by frame",
            "Import the poses of a video; those of images cannot be imported here",
        )
    return table.columns, table.index, table.values
