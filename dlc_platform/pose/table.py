"""The pose table: one row for each frame, individual and body part.

Columns: ``frame`` (int32, from 0), ``time_s`` (float64, seconds from the first frame, never decreasing), ``individual``
and ``bodypart`` (categories, in the project's order), ``x``, ``y`` (float32, pixels, origin at the top left of the full
frame, y downwards) and ``likelihood`` (float32, 0 to 1). Without an estimate x and y are NaN, never zero. Rows
are sorted by body part, then by individual, then by frame, so that one body part is one stretch of the file. Every
individual that has a body part has it in every frame; not every individual has all of them.

The table's format belongs here; how good its poses are is for `scores`, drawing it for `plots`.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.pose import SINGLE_ANIMAL
from dlc_platform.store import opened

if TYPE_CHECKING:
    import pandas as pd

#: DeepLabCut's name for the individual of body parts that belong to no animal, in projects of several.
UNIQUE = "single"

#: The pose table of a product of kind ``poses``.
POSE_TABLE = "poses.parquet"

#: The columns of numbers.
_KINDS: dict[str, type] = {
    "frame": np.int32,
    "time_s": np.float64,
    "x": np.float32,
    "y": np.float32,
    "likelihood": np.float32,
}
COLUMNS = ("frame", "time_s", "individual", "bodypart", "x", "y", "likelihood")


def tidy_from_dlc(frame: "pd.DataFrame", times_s: np.ndarray) -> "pd.DataFrame":
    """The pose table made from DeepLabCut's wide table, of one animal or of several; its numbers become float32.

    Parameters
    ----------
    frame
        One row for each video frame; columns (scorer, bodyparts, coords), or (scorer, individuals, bodyparts, coords)
        in any order of the columns, with coords x, y and likelihood. Categories keep the order in which the file first
        names them.
    times_s
        Seconds from the first frame, shape (frames,).

    Raises
    ------
    PlatformError
        When the table has other columns, or another number of frames than the video.
    """
    import pandas as pd

    levels = list(frame.columns.names)
    if levels not in (["scorer", "bodyparts", "coords"], ["scorer", "individuals", "bodyparts", "coords"]):
        raise PlatformError(
            f"the pose table has the column levels {', '.join(map(str, levels))}, "
            "not scorer, bodyparts, coords, with or without individuals",
            "Use the files that DeepLabCut writes for a video",
        )
    if len(frame) != len(times_s):
        raise PlatformError(
            f"the poses have {len(frame)} frames, but the video has {len(times_s)}",
            "Track the video again; if it happens again, re-encode the video with `ffmpeg -i OLD -c:v libx264 NEW`",
        )
    # Without the scorer: (bodypart, coordinate) or (individual, bodypart, coordinate).
    columns = {tuple(map(str, column[1:])): index for index, column in enumerate(frame.columns)}
    keypoints = list(dict.fromkeys(column[:-1] for column in columns))
    if len(levels) == 3:
        columns = {(SINGLE_ANIMAL, *column): index for column, index in columns.items()}
        keypoints = [(SINGLE_ANIMAL, *keypoint) for keypoint in keypoints]
    individuals = list(dict.fromkeys(individual for individual, _ in keypoints))
    bodyparts = list(dict.fromkeys(bodypart for _, bodypart in keypoints))
    keypoints.sort(key=lambda keypoint: (bodyparts.index(keypoint[1]), individuals.index(keypoint[0])))
    x, y, likelihood = (
        np.concatenate([frame.iloc[:, columns[(*keypoint, coordinate)]].to_numpy(np.float32) for keypoint in keypoints])
        for coordinate in ("x", "y", "likelihood")
    )
    known = np.isfinite(x) & np.isfinite(y)
    frames = len(frame)
    return pd.DataFrame(
        {
            "frame": np.tile(np.arange(frames, dtype=np.int32), len(keypoints)),
            "time_s": np.tile(np.asarray(times_s, np.float64), len(keypoints)),
            "individual": pd.Categorical(
                np.repeat([individual for individual, _ in keypoints], frames), categories=individuals
            ),
            "bodypart": pd.Categorical(
                np.repeat([bodypart for _, bodypart in keypoints], frames), categories=bodyparts
            ),
            "x": np.where(known, x, np.float32(np.nan)),
            "y": np.where(known, y, np.float32(np.nan)),
            "likelihood": likelihood,
        }
    )


def write_dlc_table(wide: "pd.DataFrame", path: Path, tracks: bool) -> None:
    """Write DeepLabCut's wide table as DeepLabCut does; the same table is the same bytes.

    Parameters
    ----------
    tracks
        True for tracks of several animals, which DeepLabCut keeps under another key.
    """
    import pandas as pd

    with pd.HDFStore(str(path), mode="w") as file:
        # Without the time of writing, and without the index of the rows' numbers, which holds it too; neither is
        # needed.
        key = "tracks" if tracks else "df_with_missing"
        file.put(key, wide, format="table", track_times=False, index=False)


def write_wide_table(wide: "pd.DataFrame", path: Path) -> None:
    """Write a wide table of any width to a ``.h5`` that pandas and DeepLabCut read, in pandas' fixed format.

    In the format of `write_dlc_table` the names of a few hundred body parts are too long for HDF5.
    """
    import pandas as pd

    with pd.HDFStore(str(path), mode="w") as file:
        file.put("tracks" if wide.columns.nlevels == 4 else "df_with_missing", wide, format="fixed")


def write_parquet(table: "pd.DataFrame", path: Path) -> None:
    """Write a pose table, one row group for each body part; its float32 values keep their last bit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.Schema.from_pandas(table[list(COLUMNS)], preserve_index=False)
    floats = ("time_s", "x", "y", "likelihood")
    with pq.ParquetWriter(
        path,
        schema,
        compression="lz4",
        use_dictionary=["individual", "bodypart"],  # pyright: ignore[reportArgumentType] (pyarrow's hint lacks the list)
        # Tracked coordinates have noisy low bytes: splitting the bytes lets the compression work on the others.
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT") | {"frame": "DELTA_BINARY_PACKED"},
    ) as writer:
        for _, rows in table.groupby("bodypart", observed=True, sort=False):
            writer.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False))


def read_parquet(path: Path, bodyparts: Sequence[str] | None = None) -> "pd.DataFrame":
    """Read a pose table, or some of its body parts; the others are not read.

    Raises
    ------
    PlatformError
        When a body part is not in the table; it names those that are.
    """
    return read_parquets([path], bodyparts).drop(columns="part")


def read_parquets(paths: Sequence[Path], bodyparts: Sequence[str] | None = None) -> "pd.DataFrame":
    """Read many pose tables, or some of their body parts, one after the other.

    Returns
    -------
    DataFrame
        The columns of a pose table, and `part`: the number in `paths` of the table that a row comes from.

    Raises
    ------
    PlatformError
        When a body part is not in one of the tables; it names those that are.
    """
    import pandas as pd

    if isinstance(bodyparts, str):
        bodyparts = [bodyparts]
    # Most of the time is unpacking and copying, during which other threads can run.
    with ThreadPoolExecutor(max(1, min(len(paths), os.cpu_count() or 1))) as pool:
        read = list(pool.map(lambda path: list(read_stretches(path, bodyparts)), paths))
        stretches = [(part, stretch) for part, own in enumerate(read) for stretch in own]

        def column(name: str) -> np.ndarray:
            kind = _KINDS[name]
            return np.concatenate([np.empty(0, kind), *(own.columns[name] for _, own in stretches)], dtype=kind)

        columns = dict(zip(_KINDS, pool.map(column, _KINDS), strict=True))
    lengths = [len(stretch.columns["frame"]) for _, stretch in stretches]
    bodypart_code: dict[str, int] = {}
    individual_code: dict[str, int] = {}
    for _, stretch in stretches:
        bodypart_code.setdefault(stretch.bodypart, len(bodypart_code))
        for individual in stretch.individuals:
            individual_code.setdefault(individual, len(individual_code))
    individuals = [
        np.array([individual_code[name] for name in stretch.individuals], np.int16)[stretch.individual]
        for _, stretch in stretches
    ]
    bodypart = np.array([bodypart_code[stretch.bodypart] for _, stretch in stretches], np.int16)

    def labels(codes: np.ndarray, code: dict[str, int]) -> pd.Categorical:
        return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(list(code)))  # pyright: ignore

    return pd.DataFrame(
        {
            "part": np.repeat(np.array([part for part, _ in stretches], np.int32), lengths),
            "frame": columns["frame"],
            "time_s": columns["time_s"],
            "individual": labels(np.concatenate([np.empty(0, np.int16), *individuals]), individual_code),
            "bodypart": labels(np.repeat(bodypart, lengths), bodypart_code),
            "x": columns["x"],
            "y": columns["y"],
            "likelihood": columns["likelihood"],
        },
        copy=False,
    )


@dataclass(frozen=True)
class Stretch:
    """The rows of one body part of a table; `individual` is the number, in `individuals`, of each row's individual."""

    bodypart: str
    individuals: list[str]
    individual: np.ndarray
    columns: dict[str, np.ndarray]


def read_stretches(path: Path, bodyparts: Sequence[str] | None = None) -> Iterator[Stretch]:
    """The stretches of a pose table, in its order, each read when it is asked for.

    A row group holds one body part, which its statistics name. Raises as `read_parquet` does.
    """
    import pyarrow.parquet as pq

    columns = list(_KINDS)
    seen: list[str] = []
    found = 0
    with opened(path.parent, path.name) as path, pq.ParquetFile(path) as file:
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            bodypart = group.column(COLUMNS.index("bodypart")).statistics.min
            seen.append(bodypart)
            if bodyparts is not None and bodypart not in bodyparts:
                continue
            individuals = group.column(COLUMNS.index("individual")).statistics
            if individuals.min == individuals.max:
                table = file.read_row_group(index, columns=columns, use_threads=False)
                names, codes = [individuals.min], np.zeros(len(table), np.int8)
            else:
                table = file.read_row_group(index, columns=[*columns, "individual"], use_threads=False)
                own = table["individual"].combine_chunks()
                names, codes = own.dictionary.to_pylist(), own.indices.to_numpy()
            own_columns = {name: table[name].to_numpy() for name in columns}
            own_columns["time_s"] = _in_order(own_columns["frame"], own_columns["time_s"])
            yield Stretch(bodypart, names, codes, own_columns)
            found += 1
            if bodyparts is not None and found == len(set(bodyparts)):
                return
    missing = [bodypart for bodypart in bodyparts or () if bodypart not in seen]
    if missing:
        raise PlatformError(f"{path} has no body part {', '.join(missing)}", f"Choose among {', '.join(seen)}")


def _in_order(frame: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """Times that never run backwards.

    For AVI files with B-frames, earlier versions wrote times of decoding: the same times in another order.
    """
    times = time_s[: int(frame[-1]) + 1] if len(frame) else time_s
    return time_s if (np.diff(times) >= 0).all() else np.sort(times)[frame]


def rows_back_in_time(path: Path) -> int:
    """The frames of a pose table that are, in the file, earlier than the frame before."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if not file.metadata.num_row_groups:
            return 0
        table = file.read_row_group(0, columns=["frame", "time_s"], use_threads=False)
    frame, time_s = table["frame"].to_numpy(), table["time_s"].to_numpy()
    times = time_s[: int(frame[-1]) + 1] if len(frame) else time_s
    return int(np.count_nonzero(np.diff(times) < 0))


def keypoints_at(table: "pd.DataFrame", frame: int) -> dict[str, tuple[float, float, float]]:
    """The keypoints of one frame, as body part to (x, y, likelihood); for several animals by individual and body
    part."""
    rows = table[table["frame"] == frame]
    names = rows["bodypart"].astype(str)
    if rows["individual"].nunique() > 1:
        names = rows["individual"].astype(str) + " " + names
    return {
        name: (float(x), float(y), float(likelihood))
        for name, x, y, likelihood in zip(names, rows["x"], rows["y"], rows["likelihood"], strict=True)
    }
