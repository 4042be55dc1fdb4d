"""Networks and options that the engine does not reproduce give what `analyze_videos` gives for the same project.

The networks have random weights: their numbers are as good for equality as those of trained ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dlc_platform.dlc.importing import import_model
from dlc_platform.dlc.training import CONFIG_FILE
from dlc_platform.store import Store

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
class Lab:
    """A project of DeepLabCut with one network, what `analyze_videos` says of a video, and the imported model."""

    project: Path
    theirs: pd.DataFrame
    model: Path
    frames: np.ndarray


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


def set_up(
    folder: Path, video: Path, net_type: str, top_down: bool, change: dict[str, Any], tracking: Any, **project: Any
) -> Lab:
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
        torch.save({"model": detector.state_dict()}, home / "train" / "snapshot-detector-001.pt")
    out = folder / "out"
    out.mkdir()
    deeplabcut.analyze_videos(str(folder / "config.yaml"), [str(video)], shuffle=1, device="cpu", destfolder=str(out))
    (h5,) = out.glob("*.h5")
    theirs = pd.read_hdf(h5)
    assert isinstance(theirs, pd.DataFrame)
    return Lab(folder, theirs, import_model(home / "train", Store(folder / "store")).path, read(video))
