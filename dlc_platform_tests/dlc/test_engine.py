"""The engine gives the numbers of ``deeplabcut.analyze_videos``, for every network, option and kind of video."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dlc_platform.dlc.backends import PyTorch
from dlc_platform.dlc.engine import Engine, load_engine
from dlc_platform.dlc.exports import TOLERANCE_LIKELIHOOD, TOLERANCE_PX
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.dlc.network import CONFIG_FILE, SNAPSHOT_FILE
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.store import MANIFEST, Store
from dlc_platform.video.region import Region
from dlc_platform_tests.dlc.deeplabcut_videos import (
    deeplabcut_poses,
    poses_of,
    read_video,
    real_video,
    store_network,
    write_frames,
)
from dlc_platform_tests.dlc.networks import networks_to_compare

FRAMES = 4
#: Of each family, those that are exported within seconds; the larger ones have the same layers, only more of them.
EXPORTED = ("cspnext_s", "cspnext_m", "hrnet_w18", "resnet_50", "resnet_101")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Frames of a real video, 640 x 480 pixels."""
    return read_video(real_video(), FRAMES)


@pytest.fixture(scope="module")
def small(frames: list[np.ndarray]) -> list[np.ndarray]:
    """The same, as small as the slowest networks want them: 160 x 128 pixels."""
    import cv2

    return [cv2.resize(frame, (160, 128)) for frame in frames]


def estimate(engine: Engine, model_path: Path, video: Path, store: Store, region: Region | None = None) -> np.ndarray:
    """What a run of the platform writes for a video, shape (frames, bodyparts, 3)."""
    estimator = PoseEstimator(model_path, store, device="cpu")
    estimator.engine = engine
    poses = estimator.estimate(video, sha256_file(video), region)
    (hdf,) = poses.path.glob("*.h5")
    return poses_of(hdf)


def in_pytorch(model_path: Path) -> Engine:
    """The engine as it is where no export is accepted."""
    return Engine(model_path, PyTorch(model_path, "cpu"), None, "full")


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[..., :2], theirs[..., :2], rtol=0, atol=TOLERANCE_PX)
    np.testing.assert_allclose(ours[..., 2], theirs[..., 2], rtol=0, atol=TOLERANCE_LIKELIHOOD)


@pytest.mark.parametrize("net_type", networks_to_compare())
def test_every_network_gives_the_numbers_of_deeplabcut(net_type: str, small: list[np.ndarray], tmp_path: Path):
    """In PyTorch bit for bit, as an export within the tolerance."""
    video = write_frames(tmp_path / "small.mp4", small)
    seen = read_video(video)
    store = Store(tmp_path / "store")
    model = store_network(store, net_type, seen)
    theirs = deeplabcut_poses(model, video, tmp_path / "project")
    spread = theirs.std(axis=(0, 1))
    assert spread[:2].min() > 1 and spread[2] > 0.01  # or there would be nothing to compare
    np.testing.assert_array_equal(estimate(in_pytorch(model), model, video, Store(tmp_path / "eager")), theirs)
    if net_type in EXPORTED:
        engine = load_engine(model, store, lambda: seen, "cpu")
        assert engine.backend == "openvino", engine.export
        assert_same(estimate(engine, model, video, store), theirs)


def with_configuration(model: TrainedModel, store: Store, change: dict[str, Any]) -> Path:
    """A trained model with other values in its configuration, by their dotted keys; imported, so to say."""
    config = yaml.safe_load((model.path / CONFIG_FILE).read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    manifest = json.loads((model.path / MANIFEST).read_text()) | {"dataset": None}

    def write(product: Path) -> None:
        (product / CONFIG_FILE).write_text(yaml.safe_dump(config))
        (product / SNAPSHOT_FILE).write_bytes((model.path / SNAPSHOT_FILE).read_bytes())

    return store.put("models", sha256_json([model.id, change]), manifest, write)


@pytest.mark.parametrize("load", [None, in_pytorch], ids=["openvino", "pytorch"])
def test_a_trained_model_gives_deeplabcuts_numbers_on_real_video(
    load: Callable[[Path], Engine] | None,
    tiny_model: TrainedModel,
    tiny_store: Store,
    frames: list[np.ndarray],
    tmp_path: Path,
):
    video = write_frames(tmp_path / "real.mp4", frames)
    engine = load(tiny_model.path) if load else load_engine(tiny_model.path, tiny_store, device="cpu")
    assert engine.backend == ("pytorch" if load else "openvino")
    ours = estimate(engine, tiny_model.path, video, Store(tmp_path / "store"))
    assert_same(ours, deeplabcut_poses(tiny_model.path, video, tmp_path / "project"))


PADDING = {"pad_width_divisor": 32, "pad_height_divisor": 32, "position": "center"}


@pytest.mark.parametrize(
    "inference",
    [
        {"resize": {"width": 320, "height": 200}},
        {"resize": {"width": 320, "height": 200, "keep_ratio": False}},
        {"longest_max_size": 300},
        {"auto_padding": PADDING},
        {"auto_padding": PADDING | {"position": "top_right", "border_mode": "constant", "border_value": 128}},
        {"normalize_images": False, "scale_to_unit_range": True},
    ],
    ids=str,
)
def test_every_option_of_inference_gives_deeplabcuts_numbers(
    inference: dict[str, Any], tiny_model: TrainedModel, frames: list[np.ndarray], tmp_path: Path
):
    store = Store(tmp_path / "store")
    model = with_configuration(tiny_model, store, {f"data.inference.{key}": value for key, value in inference.items()})
    video = write_frames(tmp_path / "real.mkv", [frame[:477, :639] for frame in frames[:2]], pix_fmt="yuv444p")
    engine = load_engine(model, store, lambda: read_video(video), "cpu")
    assert engine.backend == "openvino", engine.export
    assert_same(estimate(engine, model, video, store), deeplabcut_poses(model, video, tmp_path / "project"))


def test_where_an_export_is_not_exact_the_engine_is(tiny_model: TrainedModel, frames: list[np.ndarray], tmp_path: Path):
    """Numbers a hundred times larger than those that it was trained on make rounding count in a network."""
    store = Store(tmp_path / "store")
    model = with_configuration(tiny_model, store, {"data.inference.normalize_images": False})
    video = write_frames(tmp_path / "real.mp4", frames[:2])
    engine = load_engine(model, store, lambda: read_video(video), "cpu")
    assert engine.export is not None and (engine.export.deviation_px or 0) > TOLERANCE_PX
    assert engine.backend == "pytorch"
    theirs = deeplabcut_poses(model, video, tmp_path / "project")
    np.testing.assert_array_equal(estimate(engine, model, video, store), theirs)


def test_a_region_gives_numbers_of_a_crop_in_pixels_of_the_frame(
    tiny_model: TrainedModel, tiny_store: Store, frames: list[np.ndarray], tmp_path: Path
):
    video = write_frames(tmp_path / "real.mp4", frames)
    region = Region(101, 57, 333, 222)
    engine = load_engine(tiny_model.path, tiny_store, device="cpu")
    ours = estimate(engine, tiny_model.path, video, Store(tmp_path / "store"), region)
    theirs = deeplabcut_poses(tiny_model.path, video, tmp_path / "project", cropping=[101, 434, 57, 279])
    assert_same(ours, theirs + np.array([region.x, region.y, 0], np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": 90},
        {"rotation": 180, "pix_fmt": "yuv444p"},
        {"rotation": 270, "codec": "mpeg4"},
        {"pix_fmt": "gray"},
        {"pix_fmt": "yuv420p10le"},
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuvj420p", "color_range": 2},
    ],
    ids=str,
)
def test_every_kind_of_video_gives_the_numbers_of_deeplabcut(
    options: dict[str, Any], tiny_model: TrainedModel, tiny_store: Store, frames: list[np.ndarray], tmp_path: Path
):
    """The sizes are odd where the encoder takes that."""
    odd = options.get("pix_fmt") in ("yuv444p", "gray") or options.get("codec") == "mpeg4"
    video = write_frames(tmp_path / "real.mov", [frame[: 240 - odd, : 320 - odd] for frame in frames[:2]], **options)
    engine = load_engine(tiny_model.path, tiny_store, device="cpu")
    ours = estimate(engine, tiny_model.path, video, Store(tmp_path / "store"))
    assert_same(ours, deeplabcut_poses(tiny_model.path, video, tmp_path / "project"))


def test_single_pictures_of_any_size_give_deeplabcuts_numbers(
    tiny_model: TrainedModel, tiny_store: Store, frames: list[np.ndarray]
):
    from deeplabcut.pose_estimation_pytorch.apis.utils import get_pose_inference_runner

    pictures = [frames[0], frames[1][:99, :131], frames[2], frames[3][:99, :131], frames[0][:200, 7:207]]
    engine = load_engine(tiny_model.path, tiny_store, device="cpu")
    runner = get_pose_inference_runner(
        tiny_model.path / CONFIG_FILE, tiny_model.path / SNAPSHOT_FILE, batch_size=1, device="cpu"
    )
    theirs = [found["bodyparts"][0] for found in runner.inference([picture[..., ::-1].copy() for picture in pictures])]
    ours = engine.predict(pictures)
    assert ours.shape == (5, 1, 2, 3) and ours.dtype == np.float32
    assert_same(ours[:, 0], np.stack(theirs))
    assert engine.predict([]).shape == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"inference": {"autocast": {"enabled": True}}},
        {"data.inference.resize": {"width": 320, "height": 200}, "data.inference.longest_max_size": 300},
    ],
    ids=["autocast", "two sizes"],
)
def test_other_options_take_the_own_path_of_deeplabcut(
    change: dict[str, Any], tiny_model: TrainedModel, frames: list[np.ndarray], tmp_path: Path
):
    store = Store(tmp_path / "store")
    model = with_configuration(tiny_model, store, change)
    video = write_frames(tmp_path / "real.mp4", frames[:2])
    engine = load_engine(model, store, device="cpu")
    assert engine.backend == "deeplabcut" and not store.products()[1:]
    assert_same(estimate(engine, model, video, store), deeplabcut_poses(model, video, tmp_path / "project"))


_SMALL_PICTURES = """
import sys
from pathlib import Path

import numpy as np

from dlc_platform.dlc.engine import load_engine
from dlc_platform.store import Store

engine = load_engine(Path(sys.argv[1]), Store(Path(sys.argv[2])), device="cpu")
assert engine.backend == "openvino", engine.export
for size in (96, 224):
    found = engine.predict([np.full((size, size, 3), 90, np.uint8)] * 3)
    assert np.isfinite(found).all() and (found == found[0]).all()
print("fine")
"""


def test_small_pictures_do_not_crash_group_norms_of_resnet_50(small: list[np.ndarray], tmp_path: Path):
    """With the fused kernels of OpenVINO they do, and take the process with them."""
    store = Store(tmp_path / "store")
    model = store_network(store, "resnet_50", small)
    load_engine(model, store, lambda: small, "cpu")
    command = [sys.executable, "-c", _SMALL_PICTURES, str(model), str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "fine\n", done.stderr
