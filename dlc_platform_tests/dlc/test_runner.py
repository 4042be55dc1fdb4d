"""Networks and options that the engine does not reproduce give what `analyze_videos` gives for the same project.

The networks have random weights: their numbers are as good for equality as those of trained ones.
"""

import json
import math
import pickle
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dlc_platform.dlc import chunks, reader
from dlc_platform.dlc.chunks import Progress
from dlc_platform.dlc.dataset import Dataset
from dlc_platform.dlc.evaluation import evaluate_model, not_evaluable
from dlc_platform.dlc.importing import import_model, load_imported_model
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.dlc.parameters import CONFIG_FILE, TRACKING, has_several_animals
from dlc_platform.dlc.runner import DETECTOR_FILE, DeepLabCutRunner, unusable
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.interop.dlc_poses import read_poses
from dlc_platform.pose.table import (
    POSE_TABLE,
    SINGLE_ANIMAL,
    keypoints_at,
    read_parquet,
    tidy_from_dlc,
    write_dlc_table,
)
from dlc_platform.store import MANIFEST, Store
from dlc_platform_tests.dlc.deeplabcut_videos import write_frames

FRAMES = 60
SEVERAL = {
    "multianimalproject": True,
    "bodyparts": "MULTI!",
    "individuals": ["a", "b"],
    "multianimalbodyparts": ["nose", "ear", "back", "tail"],
    "uniquebodyparts": [],
    "identity": False,
    "skeleton": [["nose", "ear"], ["ear", "back"], ["back", "tail"]],
}
ONE = {"multianimalproject": False, "bodyparts": ["nose", "tail"], "individuals": ["animal"], "skeleton": []}


@dataclass(frozen=True)
class Analysed:
    """What `analyze_videos` says of a video with the network of a project: the file, and the imported model."""

    project: Path
    h5: Path
    model: Path
    runner: DeepLabCutRunner
    frames: np.ndarray

    def theirs(self) -> np.ndarray:
        """DeepLabCut's file as (frames, columns), with a row for every frame."""
        table = pd.read_hdf(self.h5)
        assert isinstance(table, pd.DataFrame)
        return table.reindex(range(FRAMES)).to_numpy(np.float32)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blobs that take a step now and then, over noise that stands still; the last frames are black."""
    import cv2

    path = tmp_path_factory.mktemp("video") / "two.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (96, 96))
    floor = np.random.default_rng(4).integers(60, 160, (96, 96, 3), dtype=np.uint8)
    for number in range(FRAMES):
        frame = floor.copy()
        cv2.circle(frame, (25 + number // 16 * 4, 30), 9, (250, 250, 250), -1)
        cv2.circle(frame, (70, 70 - number // 16 * 4), 9, (10, 10, 230), -1)
        writer.write(frame if number < FRAMES - 5 else np.zeros_like(frame))
    writer.release()
    return path


def read(video: Path) -> np.ndarray:
    import cv2

    capture = cv2.VideoCapture(str(video))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            return np.stack(frames)
        frames.append(frame)


def _liven(detector: Any, video: Path) -> None:
    """Let a detector of random weights depend on the picture, and find nothing in the black frames at the end."""
    import torch

    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    rgb = (read(video)[::8, :, :, ::-1] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    frames = torch.tensor(rgb, dtype=torch.float32).permute(0, 3, 1, 2)
    target = {"boxes": torch.tensor([[20.0, 20.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
    with torch.no_grad():
        detector(frames, [target] * len(frames))
        detector.eval()
        _, found = detector(frames)
    *others, black = (float(torch.logit(one["scores"].max())) for one in found)
    assert black < min(others)
    for name, parameter in detector.named_parameters():
        if "classification_head" in name and name.endswith("1.bias"):
            # Of a score of 0.001, which is what SSDLite keeps, halfway between the two.
            parameter.data[1::2] += math.log(0.001 / 0.999) - (black + min(others)) / 2


def set_up(
    folder: Path, video: Path, net_type: str, top_down: bool, change: dict[str, Any], tracking: Any, **project: Any
) -> Analysed:
    """Lay out a project with a network of random weights, analyse the video with it, and import the model."""
    import deeplabcut
    import torch
    from deeplabcut.core.engine import Engine
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig, TestConfig
    from deeplabcut.pose_estimation_pytorch.models import DETECTORS, PoseModel
    from deeplabcut.utils.auxiliaryfunctions import get_model_folder

    config = {
        "Task": "tiny",
        "scorer": "tester",
        "date": "Jan1",
        "project_path": str(folder),
        "TrainingFraction": [0.95],
        "iteration": 0,
        "snapshotindex": -1,
        "detector_snapshotindex": -1,
        "batch_size": 8,
        "video_sets": {str(video): {"crop": "0, 96, 0, 96"}},
    } | project
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    home = folder / get_model_folder(0.95, 1, config, engine=Engine.PYTORCH)
    (home / "train").mkdir(parents=True)
    (home / "test").mkdir()
    file = home / "train" / CONFIG_FILE
    pose = PoseConfig.build(config, file, top_down=top_down, net_type=net_type)
    for key, value in change.items():
        pose.set_nested(key, value)
    pose.to_yaml(file, overwrite=True)
    TestConfig.build(pose, test_config_path=home / "test" / "pose_cfg.yaml", save=True)
    if tracking:
        defaults = yaml.safe_load((Path(deeplabcut.__file__).parent / "inference_cfg.yaml").read_text())
        several = {"minimalnumberofconnections": 2, "topktoretain": len(project["individuals"])}
        (home / "test" / "inference_cfg.yaml").write_text(yaml.safe_dump(defaults | several | tracking))
    torch.manual_seed(0)
    network = PoseModel.build(pose.model.to_dict(), pretrained_backbone=False)
    for name, parameter in network.named_parameters():
        if name.startswith("heads.") and "heatmap" in name:  # so that it is likely to see something somewhere
            parameter.data.mul_(30) if parameter.ndim > 1 else parameter.data.fill_(0.5)
    torch.save({"model": network.state_dict()}, home / "train" / "snapshot-001.pt")
    if pose.detector is not None:
        detector = DETECTORS.build(pose.detector.to_dict()["model"], pretrained=False)
        _liven(detector, video)
        torch.save({"model": detector.state_dict()}, home / "train" / "snapshot-detector-001.pt")
    out = folder / "out"
    out.mkdir()
    deeplabcut.analyze_videos(str(folder / "config.yaml"), [str(video)], shuffle=1, device="cpu", destfolder=str(out))
    (h5,) = out.glob("*.h5")
    model = import_model(home / "train", Store(folder / "store")).path
    return Analysed(folder, h5, model, DeepLabCutRunner(model, device="cpu"), read(video))


@pytest.fixture(scope="module")
def top_down(tmp_path_factory: pytest.TempPathFactory, video: Path) -> Analysed:
    """One animal, which the detector does not find in the black frames at the end."""
    return set_up(tmp_path_factory.mktemp("top_down"), video, "cspnext_s", True, {}, {}, **ONE)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory, video: Path) -> Analysed:
    """Several animals from the top down, tracked by their boxes, as the project's config.yaml says."""
    project = SEVERAL | {"default_track_method": "box"}
    return set_up(tmp_path_factory.mktemp("boxes"), video, "cspnext_s", True, {}, {}, **project)


@pytest.fixture(scope="module")
def ellipses(tmp_path_factory: pytest.TempPathFactory, video: Path) -> Analysed:
    """Several animals bottom-up, which the network tells apart, with a body part that belongs to none of them."""
    project = SEVERAL | {"uniquebodyparts": ["feeder"], "identity": True}
    tracking = {"iou_threshold": 0.02}
    return set_up(tmp_path_factory.mktemp("ellipses"), video, "resnet_50", False, {}, tracking, **project)


def test_a_top_down_model_gives_the_numbers_of_analyze_videos(top_down: Analysed):
    theirs = top_down.theirs().reshape(FRAMES, 1, 2, 3)
    missing = (theirs == -1).all(axis=-1)
    assert missing[-5:].all() and not missing.all()
    ours = top_down.runner.predict(top_down.frames)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, np.where(missing[..., None], np.nan, theirs))
    assert (top_down.runner.individuals, top_down.runner.bodyparts) == ((SINGLE_ANIMAL,), ("nose", "tail"))
    assert not top_down.runner.tracks and not has_several_animals(top_down.model)


def test_frames_are_independent_and_empty_ones_are_kept(top_down: Analysed):
    whole = top_down.runner.predict(top_down.frames)
    chunks = [top_down.runner.predict(chunk) for chunk in np.split(top_down.frames, [FRAMES - 13, FRAMES - 2])]
    assert [len(chunk) for chunk in chunks] == [FRAMES - 13, 11, 2] and np.isnan(chunks[2]).all()
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-3)


def test_a_call_that_failed_leaves_nothing_for_the_next(top_down: Analysed):
    frames = top_down.frames[:2]
    expected = top_down.runner.predict(frames)
    with pytest.raises((IndexError, ValueError)):
        top_down.runner.predict([frames[0], np.zeros(3, np.uint8)])  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(top_down.runner.predict(frames), expected)


def test_mixed_precision_is_that_of_analyze_videos(tmp_path: Path, video: Path):
    change = {"inference.autocast.enabled": True}
    found = set_up(tmp_path, video, "cspnext_s", False, change, {}, **ONE)
    np.testing.assert_array_equal(found.runner.predict(found.frames).reshape(FRAMES, -1), found.theirs())


@pytest.mark.parametrize(("kind", "suffix"), [("boxes", "_bx"), ("ellipses", "_el")])
def test_tracks_are_those_of_analyze_videos(kind: str, suffix: str, request: pytest.FixtureRequest, tmp_path: Path):
    import tables

    found: Analysed = request.getfixturevalue(kind)
    detections = found.runner.detect(found.frames)
    tracks = found.runner.track(detections)
    assert (tracks.suffix, tracks.poses.dtype) == (suffix, np.float32)
    assert found.h5.stem.endswith(suffix) and np.isfinite(tracks.poses[:, :2]).any()
    ours = found.runner.table(tracks.poses)
    np.testing.assert_array_equal(ours.to_numpy(), found.theirs())

    write_dlc_table(ours, tmp_path / "ours.h5", tracks=True)
    one, other = read_poses(tmp_path / "ours.h5"), read_poses(found.h5)
    assert one.rows == FRAMES and (one.individuals, one.bodyparts) == (other.individuals, other.bodyparts)
    layouts = []
    for file in (tmp_path / "ours.h5", found.h5):
        with tables.open_file(str(file)) as hdf:
            nodes = {str(node._v_pathname): type(node).__name__ for node in hdf.walk_nodes()}
            layouts.append({name: kind for name, kind in nodes.items() if "/_i_" not in name})
    assert layouts[0] == layouts[1] and "/tracks/table" in layouts[0]
    time.sleep(1.1)  # what HDF5 notes of the time is in seconds
    again = found.runner.track(detections)
    write_dlc_table(found.runner.table(again.poses), tmp_path / "again.h5", tracks=True)
    assert (tmp_path / "ours.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()


def test_an_estimate_of_several_animals_holds_their_tracks(boxes: Analysed, video: Path, tmp_path: Path):
    estimator = PoseEstimator(boxes.model, Store(tmp_path), batch_size=7, device="cpu")
    poses = estimator.estimate(video, sha256_file(video))
    assert (poses.frames, poses.backend) == (FRAMES, "deeplabcut")
    (file,) = poses.path.glob("*_bx.h5")
    one, other = read_poses(file), read_poses(boxes.h5)
    assert one.rows == FRAMES and (one.individuals, one.bodyparts) == (other.individuals, other.bodyparts)
    table = read_parquet(poses.path / POSE_TABLE)
    assert len(table) == FRAMES * len(one.individuals) * len(one.bodyparts)
    assert set(table["individual"]) == set(boxes.runner.individuals) and table["x"].notna().any()


@pytest.mark.parametrize("frames", [1, 30])
def test_3485_a_video_without_any_animal_has_rows_without_poses(
    boxes: Analysed, top_down: Analysed, frames: int, tmp_path: Path
):
    black = write_frames(tmp_path / "black.mp4", [np.zeros((96, 96, 3), np.uint8)] * frames)
    for found in (boxes, top_down):
        estimator = PoseEstimator(found.model, Store(tmp_path), batch_size=7, device="cpu")
        poses = estimator.estimate(black, sha256_file(black))
        table = read_parquet(poses.path / POSE_TABLE)
        assert len(table) == frames * len(found.runner.individuals) * len(found.runner.bodyparts)
        assert table[["x", "y", "likelihood"]].isna().all(axis=None)
        assert ("no individual could be followed" in poses.note) == found.runner.tracks


def test_animals_are_followed_across_chunks_and_interruptions(
    boxes: Analysed, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (reader, chunks):
        monkeypatch.setattr(module, "CHUNK_FRAMES", 16)

    def stop(progress: Progress) -> None:
        if progress.done > 40:
            raise KeyboardInterrupt

    estimator = PoseEstimator(boxes.model, Store(tmp_path), batch_size=7, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        estimator.estimate(video, sha256_file(video), on_progress=stop)
    poses = estimator.estimate(video, sha256_file(video))
    whole = boxes.runner.track(boxes.runner.detect(boxes.frames))
    assert poses.note == whole.note
    table = read_parquet(poses.path / POSE_TABLE)
    expected = tidy_from_dlc(boxes.runner.table(whole.poses), np.arange(FRAMES) / 25)
    np.testing.assert_allclose(table[["x", "y"]], expected[["x", "y"]], atol=0.5)
    assert json.loads((poses.path / MANIFEST).read_text())["parameters"] == {"tracking": TRACKING}


def test_unique_body_parts_belong_to_an_individual_of_their_own(ellipses: Analysed):
    assert ellipses.runner.individuals == ("a", "b", "single")
    assert ellipses.runner.bodyparts == ("nose", "ear", "back", "tail", "feeder")
    detections = ellipses.runner.detect(ellipses.frames)
    assert set(np.unique(detections[:, :2, :4, 3])) <= {0, 1}
    table = tidy_from_dlc(ellipses.runner.table(ellipses.runner.predict(ellipses.frames)), np.arange(FRAMES) / 25)
    assert list(keypoints_at(table, 3)) == [
        *(f"{individual} {part}" for part in ("nose", "ear", "back", "tail") for individual in "ab"),
        "single feeder",
    ]
    assert table["x"].notna().all()


def test_where_no_track_can_be_made_every_frame_says_so(ellipses: Analysed):
    detections = ellipses.runner.detect(ellipses.frames)
    detections[:, :2, :4, :3] = -1
    tracks = ellipses.runner.track(detections)
    assert tracks.note == "no individual could be followed through 10 frames, so there is no track"
    assert tracks.poses.shape == (FRAMES, 3, 5, 3) and np.isnan(tracks.poses[:, :2]).all()
    np.testing.assert_array_equal(tracks.poses[:, 2, 4], detections[:, 2, 4, :3])


def test_how_a_project_tracks_is_part_of_its_model(boxes: Analysed, ellipses: Analysed):
    assert json.loads((boxes.model / MANIFEST).read_text())["tracker"] == {"method": "box"}
    assert json.loads((ellipses.model / MANIFEST).read_text())["tracker"] == {"iou_threshold": 0.02}
    config = boxes.project / "config.yaml"
    text = config.read_text()
    (train,) = boxes.project.glob("dlc-models-pytorch/*/*/train")
    config.write_text(text.replace("default_track_method: box", "default_track_method: ellipse"))
    assert import_model(train, Store(boxes.project / "store")).id != boxes.model.name
    config.write_text(text.replace("default_track_method: box", "default_track_method: skeleton"))
    with pytest.raises(PlatformError, match=r"`default_track_method` in .*config.yaml is 'skeleton'"):
        import_model(train, Store(boxes.project / "store"))
    config.write_text(text)


def test_the_assembler_of_a_project_is_not_taken_for_its_tracker(ellipses: Analysed):
    # DeepLabCut writes `method: m1` there, which assembles animals; and only `analyze_videos` writes the tracker.
    (file,) = ellipses.project.glob("dlc-models-pytorch/*/*/test/inference_cfg.yaml")
    assert yaml.safe_load(file.read_text())["method"] == "m1"
    config = ellipses.project / "config.yaml"
    text = config.read_text()
    config.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(text).items() if k != "default_track_method"}))
    assert import_model(file.parents[1] / "train", Store(ellipses.project / "store")).id == ellipses.model.name
    config.write_text(text)


def test_top_down_models_are_evaluated_and_multi_animal_ones_not(
    top_down: Analysed, ellipses: Analysed, tiny_dataset: Dataset, tmp_path: Path
):
    import cv2

    evaluation = evaluate_model(top_down.model, tiny_dataset.path, 0.6, Store(tmp_path), device="cpu")
    predictions = evaluation.predictions()
    assert evaluation.images == 24 and predictions["predicted_x"].notna().any()
    first = predictions.iloc[0]
    image = cv2.imread(str(tiny_dataset.image_path(first["image"], first["file"])))
    assert image is not None
    expected = top_down.runner.predict(image[None])[0, 0, 0, :2]
    np.testing.assert_allclose(first[["predicted_x", "predicted_y"]].astype(float), expected, atol=1e-3)
    assert not_evaluable(top_down.model) is None and not_evaluable(ellipses.model) is not None
    with pytest.raises(PlatformError, match="cannot be evaluated: it is a model of several animals"):
        evaluate_model(ellipses.model, tiny_dataset.path, 0.6, Store(tmp_path))


def test_usability_is_judged_by_the_files_not_by_an_old_answer(
    top_down: Analysed, ellipses: Analysed, tiny_model: TrainedModel, tmp_path: Path
):
    assert unusable(top_down.model) is None and unusable(ellipses.model) is None and unusable(tiny_model.path) is None
    old = tmp_path / ellipses.model.name
    shutil.copytree(ellipses.model, old)
    manifest = json.loads((old / MANIFEST).read_text())
    del manifest["tracker"]
    (old / MANIFEST).write_text(json.dumps(manifest | {"unusable": "it is a model of several animals"}))
    assert load_imported_model(old).unusable is None
    assert DeepLabCutRunner(old, device="cpu").individuals == ("a", "b", "single")

    without = tmp_path / top_down.model.name
    shutil.copytree(top_down.model, without)
    (without / DETECTOR_FILE).unlink()
    with pytest.raises(PlatformError, match=r"cannot be used: it is a top-down model .* without the snapshot"):
        DeepLabCutRunner(without, device="cpu")
    # As of a version that kept no list of its files, which would tell of the change.
    manifest = json.loads((without / MANIFEST).read_text())
    (without / MANIFEST).write_text(json.dumps({key: value for key, value in manifest.items() if key != "files"}))
    config = yaml.safe_load((without / CONFIG_FILE).read_text())
    (without / CONFIG_FILE).write_text(yaml.safe_dump(config | {"method": "ctd"}))
    assert "conditional top-down" in str(unusable(without))


def test_a_detector_cannot_ask_for_unsafe_loading(top_down: Analysed, tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    model = tmp_path / "model"
    shutil.copytree(top_down.model, model)
    config = yaml.safe_load((model / CONFIG_FILE).read_text())
    config["detector"]["runner"]["load_weights_only"] = False
    (model / CONFIG_FILE).write_text(yaml.safe_dump(config))
    (model / DETECTOR_FILE).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(pickle.UnpicklingError):
        DeepLabCutRunner(model, device="cpu")
    assert not (tmp_path / "harmed").exists()
