import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from dlc_platform.dlc.chunks import Progress
from dlc_platform.dlc.engine import load_engine
from dlc_platform.dlc.exports import TOLERANCE_LIKELIHOOD, TOLERANCE_PX
from dlc_platform.dlc.inference import PoseEstimate, PoseEstimator, pose_identity
from dlc_platform.dlc.reader import CHUNK_FRAMES
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.docs.reference import column_types
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.store import Store
from dlc_platform.video.probe import probe
from dlc_platform.video.region import Region
from dlc_platform_tests.dlc.long_video import write_long_video


@pytest.fixture(scope="module")
def estimator(tiny_model: TrainedModel, tiny_store: Store) -> PoseEstimator:
    return PoseEstimator(tiny_model.path, tiny_store, device="cpu")


@pytest.fixture(scope="module")
def poses(estimator: PoseEstimator, tiny_video: Path) -> PoseEstimate:
    return estimator.estimate(tiny_video, sha256_file(tiny_video))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven hundred frames of 96 x 96 pixels, of which the last chunk is not full; a key frame every 50."""
    return write_long_video(tmp_path_factory.mktemp("video") / "long.mp4")


def test_the_pose_table_has_the_columns_of_the_reference(poses: PoseEstimate) -> None:
    written = pq.read_schema(poses.path / "poses.parquet")
    assert {name: str(written.field(name).type) for name in written.names} == column_types("poses.parquet")


def manifest(poses: PoseEstimate) -> dict:
    return json.loads((poses.path / "manifest.json").read_text())


def hdf(poses: PoseEstimate, model: TrainedModel) -> Path:
    return poses.path / f"unseen{model.scorer}.h5"


def test_a_video_with_the_longest_name_is_tracked(
    tiny_model: TrainedModel, tiny_video: Path, poses: PoseEstimate, tmp_path: Path
):
    video = tmp_path / f"{'Mäuse' * 41}abcde.mp4"
    assert len(video.name.encode()) == 255
    shutil.copy(tiny_video, video)
    found = PoseEstimator(tiny_model.path, Store(tmp_path / "store"), device="cpu").estimate(video, sha256_file(video))
    (table,) = found.path.glob("*.h5")
    assert table.read_bytes() == next(poses.path.glob("*.h5")).read_bytes()
    assert read_parquet(found.path / POSE_TABLE).equals(read_parquet(poses.path / POSE_TABLE))


def analyze_with_deeplabcut(model: TrainedModel, video: Path, folder: Path) -> Path:
    """What deeplabcut.analyze_videos writes for a video, with the model put where DeepLabCut looks for it."""
    import deeplabcut
    from deeplabcut.core.engine import Engine
    from deeplabcut.pose_estimation_pytorch.config import TestConfig
    from deeplabcut.utils.auxiliaryfunctions import get_model_folder

    project = {
        "Task": "tiny",
        "scorer": "tester",
        "date": "Jan1",
        "project_path": str(folder),
        "bodyparts": ["nose", "tail"],
        "TrainingFraction": [0.95],
        "iteration": 0,
        "snapshotindex": -1,
        "batch_size": 8,
        "video_sets": {str(video): {"crop": "0, 96, 0, 96"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(project))
    home = folder / get_model_folder(0.95, 1, project, engine=Engine.PYTORCH)
    (home / "train").mkdir(parents=True)
    (home / "test").mkdir()
    config = yaml.safe_load((model.path / "pytorch_config.yaml").read_text())
    config["metadata"] |= {"project_path": str(folder), "pose_config_path": str(home / "train" / "pytorch_config.yaml")}
    (home / "train" / "pytorch_config.yaml").write_text(yaml.safe_dump(config))
    TestConfig.build(config, test_config_path=home / "test" / "pose_cfg.yaml", save=True)
    shutil.copy(model.path / "snapshot.pt", home / "train" / "snapshot-012.pt")
    (folder / "out").mkdir()
    scorer = deeplabcut.analyze_videos(
        str(folder / "config.yaml"), [str(video)], shuffle=1, device="cpu", destfolder=str(folder / "out")
    )
    return folder / "out" / f"{video.stem}{scorer}.h5"


def test_the_file_is_the_one_that_deeplabcut_writes(
    poses: PoseEstimate, tiny_model: TrainedModel, tiny_video: Path, tmp_path: Path
):
    import tables

    theirs_path = analyze_with_deeplabcut(tiny_model, tiny_video, tmp_path)
    ours, theirs = pd.read_hdf(hdf(poses, tiny_model)), pd.read_hdf(theirs_path)
    assert isinstance(ours, pd.DataFrame) and isinstance(theirs, pd.DataFrame)
    assert set(ours.columns.get_level_values("scorer")) == {tiny_model.scorer}
    ours_numbers, theirs_numbers = ours.droplevel("scorer", axis=1), theirs.droplevel("scorer", axis=1)
    assert list(ours_numbers.columns) == list(theirs_numbers.columns)
    difference = (ours_numbers - theirs_numbers).abs().max()
    assert difference.xs("x", level="coords").max() <= TOLERANCE_PX
    assert difference.xs("y", level="coords").max() <= TOLERANCE_PX
    assert difference.xs("likelihood", level="coords").max() <= TOLERANCE_LIKELIHOOD
    assert set(map(str, ours.dtypes)) == {"float32"}
    layouts = []
    for path in (hdf(poses, tiny_model), theirs_path):
        with tables.open_file(str(path)) as file:
            layouts.append([(node._v_pathname, type(node).__name__) for node in file.walk_nodes()])
            assert "/df_with_missing" in [name for name, _ in layouts[-1]]
    assert layouts[0] == layouts[1]


def test_the_table_holds_the_same_numbers(poses: PoseEstimate, tiny_model: TrainedModel, tiny_video: Path):
    table = read_parquet(poses.path / POSE_TABLE)
    wide = pd.read_hdf(hdf(poses, tiny_model))[tiny_model.scorer]
    for part in ("nose", "tail"):
        mine = table[table["bodypart"] == part].sort_values("frame")
        for column in ("x", "y", "likelihood"):
            np.testing.assert_array_equal(mine[column], wide[part, column])
        np.testing.assert_array_equal(mine["time_s"], probe(tiny_video).times_s)
    assert poses.frames == 20 and len(table) == 40


def test_products_of_poses_name_neither_session_nor_device(
    poses: PoseEstimate, tiny_model: TrainedModel, tiny_video: Path
):
    assert poses.id == pose_identity(sha256_file(tiny_video), tiny_model.id)
    assert {path.name for path in poses.path.iterdir()} == {
        "manifest.json",
        "poses.parquet",
        f"unseen{tiny_model.scorer}.h5",
    }
    said = manifest(poses)
    assert (said["video"], said["model"]) == (sha256_file(tiny_video), tiny_model.id)
    assert (said["scorer"], said["frames"]) == (tiny_model.scorer, 20)


def test_batch_size_and_backend_change_no_identity_or_numbers(
    poses: PoseEstimate, tiny_model: TrainedModel, tiny_video: Path, tmp_path: Path
):
    progress: list[Progress] = []
    estimator = PoseEstimator(tiny_model.path, Store(tmp_path), batch_size=3, device="cpu")
    # Without its dataset beside it and without a video to compare on, a model has no export.
    estimator.engine = load_engine(tiny_model.path, Store(tmp_path), device="cpu", batch_size=3)
    single = estimator.estimate(tiny_video, sha256_file(tiny_video), on_progress=progress.append)
    assert single.id == poses.id
    assert manifest(single)["backend"] == "pytorch" and manifest(poses)["backend"] == "openvino"
    assert [(step.done, step.frames) for step in progress] == [(done, 20) for done in (3, 6, 9, 12, 15, 18, 20)]
    assert progress[-1].seconds_left == 0 and progress[0].per_second > 0
    one, other = read_parquet(single.path / POSE_TABLE), read_parquet(poses.path / POSE_TABLE)
    np.testing.assert_allclose(one["x"], other["x"], atol=TOLERANCE_PX)
    np.testing.assert_allclose(one["likelihood"], other["likelihood"], atol=TOLERANCE_LIKELIHOOD)


def test_poses_that_are_there_are_found(estimator: PoseEstimator, poses: PoseEstimate, tiny_video: Path):
    missing = tiny_video.with_name("moved.mp4")
    found = estimator.estimate(missing, sha256_file(tiny_video))
    assert found.found and replace(found, found=poses.found) == poses


def test_poses_in_a_region_are_in_pixels_of_the_full_frame(
    estimator: PoseEstimator, poses: PoseEstimate, tiny_video: Path
):
    region = Region(x=32, y=16, width=64, height=64)
    cropped = estimator.estimate(tiny_video, sha256_file(tiny_video), region)
    assert cropped.id == pose_identity(sha256_file(tiny_video), estimator.model_id, {"region": region.as_dict()})
    assert cropped.id != poses.id
    assert manifest(cropped)["parameters"] == {"region": {"x": 32, "y": 16, "width": 64, "height": 64}}
    table = read_parquet(cropped.path / POSE_TABLE)
    whole = read_parquet(poses.path / POSE_TABLE)
    near = (np.hypot(table["x"] - whole["x"], table["y"] - whole["y"]) < 8) & (whole["x"] > 40) & (whole["y"] > 24)
    assert near.sum() > 5, "the network finds in the region what it finds in the full frame, in the same place"
    with pytest.raises(PlatformError, match=r"reaches over the picture of .*unseen.mp4"):
        estimator.estimate(tiny_video, sha256_file(tiny_video), Region(x=64, y=0, width=64, height=64))


def test_the_account_of_the_frames_is_part_of_the_poses(poses: PoseEstimate):
    assert poses.account is not None and poses.account.whole
    assert (poses.account.decoded, poses.account.lost, poses.account.declared) == (20, 0, 20)
    assert not poses.account.variable_frame_rate and poses.account.duplicated_timestamps == 0
    assert "libavcodec" in poses.account.decoder
    assert manifest(poses)["lost_frames"] == manifest(poses)["damaged_frames"] == []


def test_lost_frames_are_rows_without_an_estimate(
    tiny_model: TrainedModel, tiny_store: Store, tmp_path: Path, long_video: Path
):
    video = tmp_path / "rotten.mp4"
    content = bytearray(long_video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    video.write_bytes(content)
    info = probe(video)
    assert not info.account.whole and info.account.lost
    estimator = PoseEstimator(tiny_model.path, tiny_store, device="cpu")
    poses = estimator.estimate(video, info.sha256)
    assert poses.account == info.account and poses.frames == info.frames
    table = read_parquet(poses.path / POSE_TABLE)
    own = table[table["bodypart"] == "nose"].reset_index(drop=True)
    np.testing.assert_array_equal(own["time_s"], info.times_s)
    lost = np.zeros(info.frames, bool)
    for first, last in manifest(poses)["lost_frames"]:
        lost[first : last + 1] = True
    assert lost.sum() == info.account.lost
    for column in ("x", "y", "likelihood"):
        np.testing.assert_array_equal(own[column].isna(), lost)


def test_a_video_that_changed_is_not_tracked(tiny_model: TrainedModel, tiny_video: Path, tmp_path: Path):
    store = Store(tmp_path / "store")
    estimator = PoseEstimator(tiny_model.path, store, device="cpu")
    with pytest.raises(PlatformError, match="its content has changed"):
        estimator.estimate(tiny_video, "0" * 64)
    # One that is gone is not one that changed: its disk may be away.
    with pytest.raises(MachineFault, match="is not there any more"):
        estimator.estimate(tmp_path / "nowhere.mp4", sha256_file(tiny_video))
    assert not store.products()


def test_a_video_that_changes_while_it_is_tracked_gets_no_poses(
    estimator: PoseEstimator, long_video: Path, tiny_store: Store, tmp_path: Path
):
    video = tmp_path / "video.mp4"
    shutil.copy(long_video, video)
    with open(video, "ab") as file:
        file.write(b"another one")
    identity = sha256_file(video)

    def touch(progress: Progress) -> None:
        if progress.done >= CHUNK_FRAMES:
            os.utime(video)

    with pytest.raises(PlatformError, match="changed while it was tracked"):
        estimator.estimate(video, identity, on_progress=touch)
    assert not tiny_store.has("poses", estimator.identity(identity))
    workspace = tiny_store.root / "poses" / f".work-{estimator.identity(identity)}"
    assert not list(workspace.glob("chunk-*")), "what was found in it is not used for anything"


def test_a_video_with_other_frames_than_registered_gets_no_poses(
    estimator: PoseEstimator, tiny_video: Path, tmp_path: Path, tiny_store: Store
):
    video = tmp_path / "video.mp4"
    video.write_bytes(tiny_video.read_bytes() + b"another one")
    with pytest.raises(PlatformError, match="gave 20 of 20 frames when it was tracked, and was whole with 21"):
        estimator.estimate(video, sha256_file(video), whole=True, frames=21)
    assert not tiny_store.has("poses", estimator.identity(sha256_file(video)))


def test_a_model_cannot_ask_for_unsafe_loading(tiny_model: TrainedModel, tmp_path: Path):
    import pickle

    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    model = tmp_path / "model"
    shutil.copytree(tiny_model.path, model)
    config = yaml.safe_load((model / "pytorch_config.yaml").read_text())
    config["runner"]["load_weights_only"] = False
    (model / "pytorch_config.yaml").write_text(yaml.safe_dump(config))
    (model / "snapshot.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(pickle.UnpicklingError):
        load_engine(model, Store(tmp_path / "store"), device="cpu")
    assert not (tmp_path / "harmed").exists()
