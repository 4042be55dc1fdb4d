"""What DeepLabCut itself says of a video, and models and real videos to ask it about."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pandas as pd
import pytest
import yaml
from av.video.stream import VideoStream

from dlc_platform.dlc.backbone import RANDOM, write_first_snapshot
from dlc_platform.dlc.network import CONFIG_FILE, SNAPSHOT_FILE
from dlc_platform.identity import sha256_json
from dlc_platform.store import Store

if TYPE_CHECKING:
    from deeplabcut.pose_estimation_pytorch.models import PoseModel

BODYPARTS = ("snout", "leftear", "rightear", "tailbase")


def analyze_with_deeplabcut(model_path: Path, video: Path, folder: Path, **options: Any) -> Path:
    """The file that ``deeplabcut.analyze_videos`` writes, with the model put where DeepLabCut looks for it.

    Parameters
    ----------
    folder
        An empty one, for the project.
    options
        Of ``analyze_videos``.
    """
    import deeplabcut
    from deeplabcut.core.engine import Engine
    from deeplabcut.pose_estimation_pytorch.config import TestConfig
    from deeplabcut.utils.auxiliaryfunctions import get_model_folder

    config = yaml.safe_load((model_path / CONFIG_FILE).read_text())
    project = {
        "Task": "tiny",
        "scorer": "tester",
        "date": "Jan1",
        "project_path": str(folder),
        "bodyparts": config["metadata"]["bodyparts"],
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
    config["metadata"] |= {"project_path": str(folder), "pose_config_path": str(home / "train" / CONFIG_FILE)}
    (home / "train" / CONFIG_FILE).write_text(yaml.safe_dump(config))
    TestConfig.build(config, test_config_path=home / "test" / "pose_cfg.yaml", save=True)
    shutil.copy(model_path / SNAPSHOT_FILE, home / "train" / "snapshot-012.pt")
    (folder / "out").mkdir()
    scorer = deeplabcut.analyze_videos(
        str(folder / "config.yaml"), [str(video)], shuffle=1, device="cpu", destfolder=str(folder / "out"), **options
    )
    return folder / "out" / f"{video.stem}{scorer}.h5"


def deeplabcut_poses(model_path: Path, video: Path, folder: Path, **options: Any) -> np.ndarray:
    """What `analyze_with_deeplabcut` writes, as float32 of shape (frames, bodyparts, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    return poses_of(analyze_with_deeplabcut(model_path, video, folder, **options))


def poses_of(hdf: Path) -> np.ndarray:
    """The poses of one animal in a file of DeepLabCut, as float32 of shape (frames, bodyparts, 3)."""
    table = pd.read_hdf(hdf)
    assert isinstance(table, pd.DataFrame)
    return table.to_numpy(np.float32).reshape(len(table), -1, 3)


def store_network(
    store: Store, net_type: str, frames: Sequence[np.ndarray], change: Mapping[str, Any] | None = None
) -> Path:
    """Store a network that was not trained, and behaves like one that was.

    Its weights are random, and its batch normalisation is set by what it sees in `frames`. Without that, the numbers of
    a deep network grow with each layer, and so do the differences of rounding, until keypoints lie thousands of pixels
    out of the picture and a pixel from each other.

    Parameters
    ----------
    frames
        Of one size, multiples of 32 pixels: uint8, shape (height, width, 3), blue first.
    change
        Of the configuration: values by their dotted keys.
    """
    import torch
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from deeplabcut.pose_estimation_pytorch.models import PoseModel

    changes = dict(change or {})
    store.root.mkdir(parents=True, exist_ok=True)
    project = {"Task": "dataset", "bodyparts": list(BODYPARTS), "project_path": ""}
    config = PoseConfig.build(project, store.root / CONFIG_FILE, top_down=False, net_type=net_type)
    for key, value in changes.items():
        config.set_nested(key, value)
    torch.manual_seed(7)
    file = store.root / SNAPSHOT_FILE
    write_first_snapshot(config, RANDOM, net_type, file)
    snapshot = torch.load(file, weights_only=True)
    file.unlink()
    model = PoseModel.build(config.model.to_dict(), pretrained_backbone=False)
    model.load_state_dict(snapshot["model"])
    _see(model, np.stack(frames))
    normalised = config.to_dict(normalize=True)
    normalised["metadata"] |= {"project_path": None, "pose_config_path": None}

    def write(product: Path) -> None:
        (product / CONFIG_FILE).write_text(yaml.safe_dump(normalised))
        torch.save(snapshot | {"model": model.state_dict()}, product / SNAPSHOT_FILE)

    manifest = {"scorer": f"DLC_{net_type}", "bodyparts": BODYPARTS, "origin": "imported"}
    return store.put("models", sha256_json({"network": net_type, "change": changes}), manifest, write)


def _see(model: "PoseModel", frames: np.ndarray) -> None:
    """Set a network's batch normalisation to what it sees in frames, and its heads so that keypoints spread."""
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean of all that is seen
        # Most numbers are above zero then, as a layer gives them: what does not change them cannot make chaos of them.
        norm.weight.data.fill_(0.5)
        norm.bias.data.fill_(1)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pictures = torch.from_numpy(((frames[..., ::-1] / 255 - mean) / deviation).astype(np.float32)).permute(0, 3, 1, 2)
    head = model.heads["bodypart"]
    with torch.no_grad():
        model(pictures)
        for norm in norms:
            norm.eval()
        outputs = model(pictures)["bodypart"]
        # Likelihoods around their mean in most places of the picture, and refinements of a few pixels.
        for name, spread, mean in (("heatmap", 0.1, 0.3), ("locref", 0.2, 0)):
            own = head.get_submodule(f"{name}_head")
            last = [module for module in own.modules() if isinstance(module, torch.nn.ConvTranspose2d)][-1]
            assert last.bias is not None
            factor = spread / outputs[name].std((0, 2, 3))
            last.weight *= factor.view(1, -1, 1, 1)
            last.bias.copy_(mean - (outputs[name].mean((0, 2, 3)) - last.bias) * factor)


def real_video() -> Path:
    """A mouse in an open field: 640 x 480 pixels, H.264 in 4:4:4."""
    if not (data := os.environ.get("DLC_PLATFORM_TEST_DATA")):
        pytest.skip("DLC_PLATFORM_TEST_DATA is not set: no real video")
    return Path(data) / "sessions" / "sub-m3v1" / "ses-20181030" / "m3v1mp4.mp4"


def read_video(path: Path, most: int | None = None) -> list[np.ndarray]:
    """The frames of a video as OpenCV gives them: uint8, shape (height, width, 3), blue first."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    while (most is None or len(frames) < most) and (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return frames


def write_frames(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    color_range: int | None = None,
    rotation: int = 0,
) -> Path:
    """Write frames as a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if color_range is not None:
            stream.codec_context.color_range = color_range
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="bgr24")))
        container.mux(stream.encode(None))
    return path
