import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dlc_platform.dlc.inference import PoseEstimate, PoseEstimator, pose_identity
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.store import Store
from dlc_platform.video.probe import probe


@pytest.fixture(scope="module")
def estimator(tiny_model: TrainedModel, tiny_store: Store) -> PoseEstimator:
    return PoseEstimator(tiny_model.path, tiny_store, device="cpu")


@pytest.fixture(scope="module")
def poses(estimator: PoseEstimator, tiny_video: Path) -> PoseEstimate:
    return estimator.estimate(tiny_video, sha256_file(tiny_video))


def hdf(poses: PoseEstimate, model: TrainedModel) -> Path:
    return poses.path / f"unseen{model.scorer}.h5"


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
    pd.testing.assert_frame_equal(
        ours.droplevel("scorer", axis=1), theirs.droplevel("scorer", axis=1), check_exact=True
    )
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
    manifest = json.loads((poses.path / "manifest.json").read_text())
    assert (manifest["video"], manifest["model"]) == (sha256_file(tiny_video), tiny_model.id)
    assert (manifest["scorer"], manifest["frames"]) == (tiny_model.scorer, 20)


def test_the_batch_size_changes_neither_identity_nor_numbers(
    poses: PoseEstimate, tiny_model: TrainedModel, tiny_video: Path, tmp_path: Path
):
    progress = []
    single = PoseEstimator(tiny_model.path, batch_size=3, device="cpu").estimate(
        tiny_video,
        sha256_file(tiny_video),
        Store(tmp_path),
        on_progress=lambda done, frames: progress.append((done, frames)),
    )
    assert single.id == poses.id
    assert progress == [(done, 20) for done in range(1, 21)]
    one, other = read_parquet(single.path / POSE_TABLE), read_parquet(poses.path / POSE_TABLE)
    np.testing.assert_allclose(one["x"], other["x"], atol=1e-3)


def test_poses_that_are_there_are_found(
    estimator: PoseEstimator, poses: PoseEstimate, tiny_video: Path, tiny_store: Store
):
    missing = tiny_video.with_name("moved.mp4")
    assert estimator.estimate(missing, sha256_file(tiny_video), tiny_store) == poses


def test_a_video_that_changed_is_not_tracked(estimator: PoseEstimator, tiny_video: Path, tmp_path: Path):
    store = Store(tmp_path / "store")
    with pytest.raises(PlatformError, match="its content has changed"):
        estimator.estimate(tiny_video, "0" * 64, store)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(tiny_video.read_bytes()[:-600])
    with pytest.raises(PlatformError, match=str(cut)):
        estimator.estimate(cut, sha256_file(cut), store)
    assert not store.root.exists()


def test_a_video_that_changes_while_it_is_tracked_gets_no_poses(
    estimator: PoseEstimator, tiny_video: Path, tmp_path: Path
):
    store = Store(tmp_path / "store")
    video = tmp_path / "video.mp4"
    shutil.copy(tiny_video, video)
    identity = sha256_file(video)

    def replace(done: int, frames: int) -> None:
        if done == 5:
            shutil.copyfile(tiny_video, video)

    with pytest.raises(PlatformError, match="changed while it was tracked"):
        estimator.estimate(video, identity, store, on_progress=replace)
    assert not store.root.exists()


def test_a_run_that_stops_in_the_middle_leaves_nothing_and_the_next_completes(
    estimator: PoseEstimator, poses: PoseEstimate, tiny_video: Path, tmp_path: Path
):
    store = Store(tmp_path / "store")

    def stop(done: int, frames: int) -> None:
        if done == 5:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        estimator.estimate(tiny_video, sha256_file(tiny_video), store, on_progress=stop)
    assert not store.root.exists()
    again = estimator.estimate(tiny_video, sha256_file(tiny_video), store)
    pd.testing.assert_frame_equal(read_parquet(again.path / POSE_TABLE), read_parquet(poses.path / POSE_TABLE))


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
        PoseEstimator(model, device="cpu")
    assert not (tmp_path / "harmed").exists()
