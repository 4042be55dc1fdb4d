"""Pose files of DeepLabCut come in as they are: every number, every name, and nothing run."""

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.interop.dlc_poses import import_poses, load_imported_poses, read_poses
from dlc_platform.pose.table import POSE_TABLE, SINGLE_ANIMAL, read_parquet
from dlc_platform.store import Store
from dlc_platform.video.account import FrameAccount
from dlc_platform.video.probe import VideoInfo, probe
from dlc_platform.video.quality import Timeline, VideoQuality
from dlc_platform_tests.products import manifest_of

SCORER = "DLC_Resnet50_tinyJan1shuffle1_snapshot_best-190"


def single(rows: int = 20, start: int = 0) -> pd.DataFrame:
    columns = pd.MultiIndex.from_product(
        [[SCORER], ["Front Paw R", "Butt/Proximal Tail"], ["x", "y", "likelihood"]],
        names=["scorer", "bodyparts", "coords"],
    )
    values = np.random.default_rng(0).random((rows, 6)).astype(np.float32)
    return pd.DataFrame(values, columns=columns, index=range(start, start + rows))


def several(rows: int = 20) -> pd.DataFrame:
    keypoints = [("mouse1", "snout"), ("mouse1", "tail"), ("mouse2", "snout"), ("mouse2", "tail"), ("single", "feeder")]
    columns = pd.MultiIndex.from_tuples(
        [(SCORER, *keypoint, coordinate) for keypoint in keypoints for coordinate in ("x", "y", "likelihood")],
        names=["scorer", "individuals", "bodyparts", "coords"],
    )
    values = np.random.default_rng(1).random((rows, 15)).astype(np.float32)
    values[3:6, :6] = np.nan  # the first mouse is lost for a while
    return pd.DataFrame(values, columns=columns)


def video(frames: int = 20, width: int = 96, height: int = 96) -> VideoInfo:
    return VideoInfo(
        sha256="0" * 64,
        size_bytes=1,
        width=width,
        height=height,
        frame_rate=Fraction(25),
        frames=frames,
        account=FrameAccount(frames, frames, 0, 0, False, 0, 0, 0, False, "a decoder"),
        duration_s=frames / 25,
        codec="h264",
        pixel_format="yuv420p",
        rotation=0,
        start_time=None,
        times_s=np.arange(frames) / 25,
        video_streams=1,
        quality=VideoQuality(None, None, None, None, (), (), None, None, None, Timeline(*np.full((3, frames), np.nan))),
    )


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        found, wanted, check_exact=True, check_index_type=False, check_column_type=False, check_dtype=False
    )


@pytest.mark.parametrize("made", [single(), several()], ids=["single", "several"])
@pytest.mark.parametrize("layout", ["table", "fixed", "csv"])
def test_reads_what_pandas_wrote(made: pd.DataFrame, layout: str, tmp_path: Path):
    file = tmp_path / ("poses.csv" if layout == "csv" else "poses.h5")
    if layout == "csv":
        made.to_csv(file)
    else:
        made.to_hdf(file, key="tracks" if made.columns.nlevels == 4 else "df_with_missing", format=layout)
    found = read_poses(file)
    same(found.poses.astype(made.dtypes.iloc[0]), made)
    assert found.scorer == SCORER and found.rows == 20
    if made.columns.nlevels == 4:
        assert found.individuals == ("mouse1", "mouse2", "single")
        assert found.bodyparts == ("snout", "tail", "feeder")
    else:
        assert found.individuals == (SINGLE_ANIMAL,)
        assert found.bodyparts == ("Front Paw R", "Butt/Proximal Tail")


@pytest.mark.parametrize("layout", ["table", "fixed"])
def test_columns_of_several_types_keep_their_order(layout: str, tmp_path: Path):
    made = single().astype({(SCORER, "Front Paw R", "y"): np.float64, (SCORER, "Butt/Proximal Tail", "x"): np.int64})
    made.to_hdf(tmp_path / "poses.h5", key="df_with_missing", format=layout)
    with h5py.File(tmp_path / "poses.h5") as hdf:
        group = hdf["df_with_missing"]
        third = "values_block_2" in group["table"].dtype.names if layout == "table" else "block2_values" in group
    assert third, "the columns lie in three blocks"
    same(read_poses(tmp_path / "poses.h5").poses, made)


def test_the_index_is_the_frame_number(tmp_path: Path):
    made = single(12).drop(index=[3, 4])
    made.index = made.index + 5
    made = made.sample(frac=1, random_state=1)
    made.to_hdf(tmp_path / "poses.h5", key="df_with_missing", format="table")
    found = read_poses(tmp_path / "poses.h5").poses
    assert list(found.index) == [5, 6, 7, 10, 11, 12, 13, 14, 15, 16]
    same(found, made.sort_index())
    imported = import_poses(tmp_path / "poses.h5", video(), Store(tmp_path / "store"), allow_mismatch=True)
    table = read_parquet(imported.path / POSE_TABLE, ["Front Paw R"])
    assert table.loc[table["x"].isna(), "frame"].tolist() == [0, 1, 2, 3, 4, 8, 9, 17, 18, 19]
    assert table.loc[10, "x"] == np.float32(made.loc[10, (SCORER, "Front Paw R", "x")])
    assert imported.note == "poses.h5 has 10 rows and the video has 20 frames: 10 frames have no row"


class Harm:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("attribute", ["non_index_axes", "values_block_0_kind"])
def test_a_pickle_in_the_labels_is_not_run(attribute: str, tmp_path: Path):
    file, harmed = tmp_path / "poses.h5", tmp_path / "harmed"
    single().to_hdf(file, key="df_with_missing", format="table")
    with h5py.File(file, "r+") as hdf:
        group = hdf["df_with_missing"]
        node = group if attribute == "non_index_axes" else group["table"]
        node.attrs[attribute] = np.bytes_(pickle.dumps([(1, [Harm(harmed)])], 0))
    with pytest.raises(PlatformError, match=rf"poses\.h5, {attribute} holds a pickle with the instruction GLOBAL"):
        read_poses(file)
    assert not harmed.exists()
    with suppress(Exception):
        pd.read_hdf(file)
    assert harmed.exists(), "the same file does harm when pandas reads it"


def test_pickled_objects_in_the_fixed_format_are_refused(tmp_path: Path):
    file, harmed = tmp_path / "poses.h5", tmp_path / "harmed"
    made = single()
    made[SCORER, "Front Paw R", "x"] = "text"
    made.to_hdf(file, key="df_with_missing", format="fixed")
    with pytest.raises(PlatformError, match="holds pickled objects in /df_with_missing/block1_values"):
        read_poses(file)
    assert not harmed.exists()


def refused(file: Path, match: str) -> None:
    with pytest.raises(PlatformError, match=match) as error:
        read_poses(file)
    assert str(file) in str(error.value)


def test_what_is_no_pose_file_is_named(tmp_path: Path):
    refused(tmp_path / "none.h5", "does not exist")
    file = tmp_path / "poses.pickle"
    file.write_bytes(b"")
    refused(file, r"`\.pickle` is neither \.h5 nor \.csv")
    for name in ("poses.h5", "poses.csv"):
        file = tmp_path / name
        for content in (b"", b"\x00\xff\x00", b"x,y\n1,2\n"):
            file.write_bytes(content)
            refused(file, "cannot be read|is not a pose file")
    single().to_hdf(tmp_path / "two.h5", key="one", format="table")
    single().to_hdf(tmp_path / "two.h5", key="two", format="table")
    refused(tmp_path / "two.h5", r"2 tables of pandas \(one, two\)")
    whole = single().to_csv().encode()
    (tmp_path / "poses.csv").write_bytes(whole.replace(b"\n7,", b"\nimg7.png,"))
    refused(tmp_path / "poses.csv", "cannot be read")
    (tmp_path / "poses.csv").write_bytes(whole.replace(b"\n7,", b"\n6,"))
    refused(tmp_path / "poses.csv", "frame 6 more than once")
    (tmp_path / "poses.csv").write_bytes(whole.replace(b"\n7,", b"\n-7,"))
    refused(tmp_path / "poses.csv", "frame number -7")


@pytest.mark.parametrize("layout", ["table", "fixed"])
def test_a_truncated_file_is_an_error(layout: str, tmp_path: Path):
    file = tmp_path / "poses.h5"
    single(5000).to_hdf(file, key="df_with_missing", format=layout)
    whole = file.read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 500):
        file.write_bytes(whole[:size])
        refused(file, "cannot be read|is damaged")


def test_labels_are_not_poses(tmp_path: Path):
    labels = single().drop(columns="likelihood", level="coords")
    labels.to_hdf(tmp_path / "CollectedData.h5", key="df_with_missing", format="table")
    refused(tmp_path / "CollectedData.h5", "x, y for Front Paw R, not x, y and likelihood")
    other = pd.concat([single(), single().rename(columns={SCORER: "other"})], axis=1)
    other.to_csv(tmp_path / "both.csv")
    refused(tmp_path / "both.csv", "several scorers: DLC_Resnet50.*, other")
    images = single()
    images.index = pd.Index([f"img{number}.png" for number in images.index])
    images.to_hdf(tmp_path / "images.h5", key="df_with_missing", format="table")
    refused(tmp_path / "images.h5", "not numbered by frame")

    named = single().rename(columns={"Front Paw R": "all"})
    named.to_csv(tmp_path / "all.csv")
    refused(tmp_path / "all.csv", "names a body part `all`, which stands for their total in tables")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", ["h5", "csv"])
@pytest.mark.parametrize(
    ("coordinate", "values", "match"),
    [
        ("x", [np.inf, -np.inf], "has 2 coordinates that are infinite"),
        ("y", [1e39, np.nan], "has 1 coordinate that is infinite"),  # as float32, it is
        ("likelihood", [-0.1, 1.1], "has 2 likelihoods that are not between 0 and 1"),
        ("likelihood", [np.inf, 1.0], "has 1 likelihood that is not between 0 and 1"),
    ],
)
def test_what_no_pose_can_be_is_refused(layout: str, coordinate: str, values: list[float], match: str, tmp_path: Path):
    file = tmp_path / f"poses.{layout}"
    made = single().astype(np.float64)
    made.loc[[3, 7], (SCORER, "Front Paw R", coordinate)] = values
    if layout == "csv":
        made.to_csv(file)
    else:
        made.to_hdf(file, key="df_with_missing", format="table")
    refused(file, match)
    with pytest.raises(PlatformError, match=match):
        import_poses(file, video(), Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_likelihood_may_be_missing_or_as_good_as_one(tmp_path: Path):
    made = single().astype(np.float64)
    made.loc[[3, 7], (SCORER, "Front Paw R", "likelihood")] = [np.nan, 1 + 1e-12]
    made.to_csv(tmp_path / "poses.csv")
    assert read_poses(tmp_path / "poses.csv").rows == 20


def test_digits_that_are_not_kept_are_said(tmp_path: Path):
    store = Store(tmp_path / "store")
    note = "coordinates are kept to float32's seven digits; the .h5 in the product has all of them"
    for number, (made, wanted) in enumerate(
        [
            (several(), ""),
            (several().astype(np.float64), ""),  # DeepLabCut's own numbers are float32, in columns of float64
            (several().astype(np.float64) / 3, note),
        ]
    ):
        for suffix in (".h5", ".csv"):
            file = tmp_path / f"poses{number}{suffix}"
            if suffix == ".csv":
                made.to_csv(file)
            else:
                made.to_hdf(file, key="tracks", format="table")
            assert import_poses(file, video(), store).note == wanted


def test_import_keeps_the_numbers_of_the_file(tmp_path: Path):
    file = tmp_path / "poses.h5"
    made = several()
    made.to_hdf(file, key="tracks", format="table")
    store = Store(tmp_path / "store")
    imported = import_poses(file, video(), store, model_id=None)
    assert imported.id == sha256_json({"video": "0" * 64, "file": sha256_file(file)})
    same(pd.read_hdf(imported.path / "poses.h5"), made)
    assert imported.note == "" and imported.model_id is None and imported.rows_in_file == imported.frames == 20
    manifest = manifest_of(store.path("poses", imported.id))
    assert (manifest["origin"], manifest["scorer"], manifest["file"]) == ("imported", SCORER, "poses.h5")
    assert manifest["file_path"] == str(file)
    table = read_parquet(imported.path / POSE_TABLE)
    snout = table[(table["bodypart"] == "snout") & (table["individual"] == "mouse1")]
    np.testing.assert_array_equal(snout["x"], made[SCORER, "mouse1", "snout", "x"].astype(np.float32))
    assert snout["x"].isna().sum() == 3
    assert import_poses(file, video(), store) == imported == load_imported_poses(imported.path)
    named = import_poses(file, video(), store, model_id="f" * 64)
    assert named.id != imported.id and named.model_id == "f" * 64


def test_other_rows_than_frames_are_said_and_never_swallowed(tmp_path: Path):
    file = tmp_path / "poses.csv"
    single(21).to_csv(file)
    store = Store(tmp_path / "store")
    message = "poses.csv has 21 rows and the video has 20 frames: 1 row lies beyond the video"
    with pytest.raises(PlatformError, match=message):
        import_poses(file, video(), store)
    assert not store.root.exists()
    imported = import_poses(file, video(), store, allow_mismatch=True)
    assert imported.note == message and manifest_of(store.path("poses", imported.id))["note"] == message
    assert (imported.frames, imported.rows_in_file) == (20, 21)
    assert len(read_parquet(imported.path / POSE_TABLE)) == 40
    with pytest.raises(PlatformError, match="21 rows and the video has 24 frames: 3 frames have no row"):
        import_poses(file, video(24), store)
    made = single(20, start=5)
    made.to_csv(file)
    with pytest.raises(PlatformError, match=r"20 rows .* 20 frames: 5 rows lie beyond the video, and 5 frames have no"):
        import_poses(file, video(), store)


def test_keypoints_far_outside_the_picture_are_said(tmp_path: Path):
    file = tmp_path / "poses.h5"
    made = single()
    made.loc[:, made.columns.get_level_values("coords") != "likelihood"] *= np.float32(90)
    made[SCORER, "Front Paw R", "x"] = np.float32(100)  # just outside, as networks do
    made.to_hdf(file, key="df_with_missing", format="table")
    assert import_poses(file, video(), Store(tmp_path / "store")).note == ""
    small = replace(video(), width=48, height=48, sha256="1" * 64)
    note = import_poses(file, small, Store(tmp_path / "store")).note
    assert "of 40 keypoints lie more than 5 px outside the picture of 48 x 48 px, up to 52 px" in note
    assert "another video" in note


@pytest.fixture(scope="module")
def data() -> Path:
    if "DLC_PLATFORM_TEST_DATA" not in os.environ:
        pytest.skip("DLC_PLATFORM_TEST_DATA does not say where the shared data are")
    return Path(os.environ["DLC_PLATFORM_TEST_DATA"])


def test_the_h5_and_the_csv_of_a_real_video_are_the_same(data: Path):
    name = "raw_clip1DLC_resnet50_OpenFieldHighResApr8shuffle1_1030000"
    hdf, text = (read_poses(data / "predictions" / "dlc_single" / f"{name}{suffix}") for suffix in (".h5", ".csv"))
    same(hdf.poses, text.poses)
    assert hdf.rows == 7200 and hdf.scorer == text.scorer == name.removeprefix("raw_clip1")
    assert hdf.bodyparts == (
        "Snout",
        "Front Paw R",
        "Front Paw L",
        "Hind Paw R",
        "Hind Paw L",
        "Butt/Proximal Tail",
    )


@pytest.mark.parametrize(
    "name",
    ["dlc_multi/montblanc_tracks.h5", "dlc_single/m3v1mp4DLC_resnet50_openfieldAug20shuffle1_30000.h5"],
)
def test_real_files_read_as_pandas_reads_them(data: Path, name: str):
    found = read_poses(data / "predictions" / name)
    same(found.poses, pd.DataFrame(pd.read_hdf(data / "predictions" / name)))


def test_a_real_file_with_a_row_more_than_its_video(data: Path, tmp_path: Path):
    file = data / "predictions" / "dlc_single" / "cropped_video.csv"
    info = probe(data / "sessions" / "sub-vame01" / "ses-01" / "cropped_video.mp4")
    store = Store(tmp_path)
    with pytest.raises(PlatformError, match="750 rows and the video has 749 frames: 1 row lies beyond the video"):
        import_poses(file, info, store)
    imported = import_poses(file, info, store, allow_mismatch=True)
    assert "750 rows and the video has 749 frames" in imported.note
    assert imported.note.endswith("the .h5 in the product has all of them"), "it was not written by DeepLabCut"
    assert imported.scorer == "DeepCut_resnet50_VAME-FinalNov7shuffle1_350000"


@pytest.mark.parametrize("suffix", [".h5", ".csv"])
def test_of_a_real_file_of_deeplabcut_no_digit_is_lost(data: Path, suffix: str, tmp_path: Path):
    name = f"raw_clip1DLC_resnet50_OpenFieldHighResApr8shuffle1_1030000{suffix}"
    imported = import_poses(data / "predictions" / "dlc_single" / name, video(7200, 4096, 4096), Store(tmp_path))
    assert imported.note == ""


def test_a_real_file_of_several_birds(data: Path, tmp_path: Path):
    file = data / "predictions" / "dlc_multi" / "montblanc_tracks.h5"
    imported = import_poses(file, video(180, 1920, 1080), Store(tmp_path))
    table = read_parquet(imported.path / POSE_TABLE)
    assert list(table["individual"].cat.categories) == ["bird1", "bird2", "bird3", "single"]
    assert set(table.loc[table["individual"] == "single", "bodypart"]) == {"center"}


@pytest.mark.parametrize("kind", ["fixed", "table"])
@pytest.mark.parametrize("parts", [[1], [1, 2]])
def test_body_parts_that_are_numbers_are_named_by_their_digits(tmp_path: Path, kind: str, parts: list[int]):
    columns = pd.MultiIndex.from_product(
        [[SCORER], parts, ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    poses = pd.DataFrame(np.full((5, len(columns)), 0.5), columns=columns)
    poses.to_hdf(tmp_path / "poses.h5", key="df_with_missing", format=kind)
    poses.to_csv(tmp_path / "poses.csv")
    for name in ("poses.h5", "poses.csv"):
        assert read_poses(tmp_path / name).bodyparts == tuple(map(str, parts))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda line: line.rsplit(",", 1)[0], "line 6 .* the line is cut off"),
        (lambda line: line.split(",")[0], "line 6 .* the line is cut off"),
        (lambda line: line + ",0.5", "line 6 .* the line is too long"),
    ],
)
def test_a_line_of_a_csv_that_is_cut_off_or_too_long_is_refused(
    tmp_path: Path, change: Callable[[str], str], says: str
):
    single(12).to_csv(tmp_path / "poses.csv")
    lines = (tmp_path / "poses.csv").read_text().splitlines()
    lines[5] = change(lines[5])
    (tmp_path / "poses.csv").write_text("\n".join(lines) + "\n")
    refused(tmp_path / "poses.csv", says)


def test_half_a_place_is_refused_and_no_likelihood_is_reported(tmp_path: Path):
    poses = single(20)
    part = poses.columns[0][1]
    poses.loc[3, (SCORER, part, "likelihood")] = np.nan
    poses.to_csv(tmp_path / "poses.csv")
    imported = import_poses(tmp_path / "poses.csv", video(), Store(tmp_path / "store"))
    assert "1 keypoint has no likelihood" in imported.note
    poses.loc[4, (SCORER, part, "x")] = np.nan
    poses.to_csv(tmp_path / "poses.csv")
    refused(tmp_path / "poses.csv", f"only one of x and y for {part} in 1 row")
