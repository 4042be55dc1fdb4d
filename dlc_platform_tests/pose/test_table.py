"""The pose table keeps what DeepLabCut said, to the last bit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.pose.table import (
    COLUMNS,
    SINGLE_ANIMAL,
    keypoints_at,
    read_parquet,
    rows_back_in_time,
    tidy_from_dlc,
    write_parquet,
)

BODYPARTS = ["snout", "left ear", "tail/base"]


def wide(frames: int = 1000) -> pd.DataFrame:
    columns = pd.MultiIndex.from_product(
        [["DLC_Resnet50"], BODYPARTS, ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    values = np.random.default_rng(0).random((frames, 9)).astype(np.float32)
    return pd.DataFrame(values, columns=columns)


def test_one_row_for_each_frame_and_bodypart() -> None:
    frame = wide()
    frame.iloc[7, 1] = np.nan
    frame.iloc[8, 0] = np.inf
    table = tidy_from_dlc(frame, np.arange(1000) / 30)
    assert tuple(table.columns) == COLUMNS
    assert list(table["bodypart"].cat.categories) == BODYPARTS
    assert set(table["individual"]) == {SINGLE_ANIMAL}
    assert table[["x", "y", "likelihood"]].dtypes.unique().tolist() == [np.float32]
    ear = table[table["bodypart"] == "left ear"]
    np.testing.assert_array_equal(ear["x"], frame["DLC_Resnet50", "left ear", "x"])
    np.testing.assert_array_equal(ear["likelihood"], frame["DLC_Resnet50", "left ear", "likelihood"])
    np.testing.assert_array_equal(ear["frame"], np.arange(1000))
    np.testing.assert_array_equal(ear["time_s"], np.arange(1000) / 30)
    snout = table[table["bodypart"] == "snout"]
    # Half an estimate is none.
    assert snout.loc[snout["frame"].isin([7, 8]), ["x", "y"]].isna().all(axis=None)
    assert snout["x"].isna().sum() == 2


def test_refuses_poses_of_another_length_than_the_video() -> None:
    with pytest.raises(PlatformError, match="the poses have 18 frames, but the video has 40"):
        tidy_from_dlc(wide(18), np.arange(40))


def several(frames: int = 50) -> pd.DataFrame:
    """Two animals with two body parts each, and one body part of none, in another order than the table's."""
    keypoints = [("b", "tail"), ("a", "snout"), ("a", "tail"), ("b", "snout"), ("single", "feeder")]
    columns = pd.MultiIndex.from_tuples(
        [("s", *keypoint, coordinate) for keypoint in keypoints for coordinate in ("likelihood", "x", "y")],
        names=["scorer", "individuals", "bodyparts", "coords"],
    )
    return pd.DataFrame(np.random.default_rng(1).random((frames, 15)).astype(np.float32), columns=columns)


def test_several_animals_are_sorted_by_bodypart_then_individual() -> None:
    frame = several()
    table = tidy_from_dlc(frame, np.arange(50) / 25)
    assert list(table["individual"].cat.categories) == ["b", "a", "single"]
    assert list(table["bodypart"].cat.categories) == ["tail", "snout", "feeder"]
    keypoints = table[["bodypart", "individual"]].drop_duplicates().astype(str).to_numpy().tolist()
    assert keypoints == [["tail", "b"], ["tail", "a"], ["snout", "b"], ["snout", "a"], ["feeder", "single"]]
    for (bodypart, individual), rows in table.groupby(["bodypart", "individual"], observed=True):
        np.testing.assert_array_equal(rows["frame"], np.arange(50))
        for coordinate in ("x", "y", "likelihood"):
            np.testing.assert_array_equal(rows[coordinate], frame["s", individual, bodypart, coordinate])


def test_several_animals_keep_one_row_group_for_each_bodypart(tmp_path: Path) -> None:
    table = tidy_from_dlc(several(), np.arange(50) / 25)
    path = tmp_path / "poses.parquet"
    write_parquet(table, path)
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    pd.testing.assert_frame_equal(read_parquet(path), table, check_exact=True)
    assert len(read_parquet(path, ["feeder"])) == 50


def test_refuses_other_columns() -> None:
    with pytest.raises(PlatformError, match="column levels bodyparts, coords"):
        tidy_from_dlc(wide().droplevel("scorer", axis=1), np.arange(1000))


def test_parquet_keeps_every_bit(tmp_path: Path) -> None:
    frame = wide()
    frame.iloc[3, 0] = np.nan
    table = tidy_from_dlc(frame, np.arange(1000) / 29.97)
    write_parquet(table, tmp_path / "poses.parquet")
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "poses.parquet"), table, check_exact=True)


def test_one_bodypart_is_read_from_its_own_row_group(tmp_path: Path) -> None:
    table = tidy_from_dlc(wide(), np.arange(1000) / 30)
    path = tmp_path / "poses.parquet"
    write_parquet(table, path)
    read = read_parquet(path, ["tail/base"])
    assert set(read["bodypart"]) == {"tail/base"}
    np.testing.assert_array_equal(read["x"], table.loc[table["bodypart"] == "tail/base", "x"])
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    names = [group.column(3).statistics.min for group in groups]
    assert names == [group.column(3).statistics.max for group in groups] == BODYPARTS
    assert "BYTE_STREAM_SPLIT" in groups[0].column(4).encodings
    assert groups[0].column(4).compression == "LZ4"


def test_names_the_bodyparts_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "poses.parquet"
    write_parquet(tidy_from_dlc(wide(5), np.arange(5)), path)
    with pytest.raises(PlatformError, match=r"no body part nose\. Choose among snout, left ear, tail/base"):
        read_parquet(path, ["snout", "nose"])


def test_a_table_without_frames_is_kept(tmp_path: Path) -> None:
    table = tidy_from_dlc(wide(0), np.zeros(0))
    write_parquet(table, tmp_path / "poses.parquet")
    assert len(read_parquet(tmp_path / "poses.parquet")) == 0


def test_times_of_decoding_are_read_in_order(tmp_path: Path) -> None:
    """As earlier versions wrote them for AVI files with B-frames, for one animal and for several."""
    decoded = np.array([0, 3, 2, 4, 1, 7, 6, 8, 5, 9]) / 25
    for table in (wide(10), several(10)):
        path = tmp_path / f"{len(table.columns)}.parquet"
        write_parquet(tidy_from_dlc(table, decoded), path)
        assert rows_back_in_time(path) == 4
        read = read_parquet(path)
        np.testing.assert_array_equal(read["time_s"], read["frame"] / 25)
        write_parquet(tidy_from_dlc(table, np.arange(10) / 25), path)
        assert rows_back_in_time(path) == 0
        pd.testing.assert_frame_equal(read_parquet(path), read)


def test_the_keypoints_of_one_frame() -> None:
    frame = wide(4)
    found = keypoints_at(tidy_from_dlc(frame, np.arange(4)), 2)
    assert list(found) == BODYPARTS
    np.testing.assert_array_equal(np.array(list(found.values())).ravel(), frame.iloc[2])
    assert keypoints_at(tidy_from_dlc(frame, np.arange(4)), 4) == {}
