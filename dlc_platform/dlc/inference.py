"""Inference: the poses of a video under one model, as DeepLabCut's own file and as a Parquet table.

A product of kind ``poses`` belongs to a video and a model. It says nothing of sessions and recordings: the same video
in two sessions has the same poses, and whoever reads them adds the names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.runner import load_runner
from dlc_platform.dlc.training import CONFIG_FILE
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json
from dlc_platform.pose.table import POSE_TABLE, tidy_from_dlc, write_parquet
from dlc_platform.store import MANIFEST, Store
from dlc_platform.video.probe import probe

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[int, int], None]
_REENCODE = "Encode the video anew with `ffmpeg -i OLD -c:v libx264 -crf 17 NEW` and use that file instead"


@dataclass(frozen=True)
class PoseEstimate:
    """Poses of the store; `seconds` is the wall time of the inference, without the loading of the model."""

    id: str
    path: Path
    frames: int
    seconds: float


class PoseEstimator:
    """A model, loaded once for many videos.

    Parameters
    ----------
    batch_size
        Frames to a batch: speed and memory only.
    device
        ``cpu``, ``cuda``, ``cuda:0``...; the GPU when there is one, by default.
    """

    def __init__(self, model_path: Path, batch_size: int = 8, device: str | None = None):
        self.model_id = model_path.name
        self.scorer: str = json.loads((model_path / MANIFEST).read_text())["scorer"]
        self._model_path = model_path
        self._runner, self.device = load_runner(model_path, batch_size, device)

    def estimate(
        self, video_path: Path, video_id: str, store: Store, on_progress: Progress = lambda done, frames: None
    ) -> PoseEstimate:
        """Estimate the poses of a video, or find them in the store.

        Parameters
        ----------
        video_id
            SHA-256 of the video's bytes.
        on_progress
            Called, from a thread of DeepLabCut, with the number of frames read and the number there are.

        Raises
        ------
        PlatformError
            When the video cannot be read, is another one, changes meanwhile, or DeepLabCut reads another number of
            frames than it holds.
        """
        identity = pose_identity(video_id, self.model_id)
        if store.has("poses", identity):
            return load_poses(store.path("poses", identity))

        from deeplabcut.pose_estimation_pytorch.apis.videos import create_df_from_prediction
        from deeplabcut.pose_estimation_pytorch.config import PoseConfig

        before = _state(video_path)
        video = probe(video_path)
        if video.sha256 != video_id:
            raise PlatformError(
                f"{video_path} is not the video that was registered: its content has changed",
                "Register its session again, then estimate its poses",
            )
        started = time.monotonic()
        predictions = self._runner.inference(_frames(video_path, video.frames, on_progress))
        seconds = time.monotonic() - started
        if _state(video_path) != before:
            raise PlatformError(
                f"{video_path} changed while it was tracked",
                "Register its session again when it is written completely, then estimate its poses",
            )
        if len(predictions) != video.frames:
            raise PlatformError(
                f"DeepLabCut (OpenCV) read {len(predictions)} frames of {video_path}, which holds {video.frames}",
                _REENCODE,
            )
        manifest = {
            "video": video_id,
            "model": self.model_id,
            "scorer": self.scorer,
            "frames": video.frames,
            "seconds": seconds,
            "device": self.device,
            "versions": versions(),
        }
        config = PoseConfig.from_yaml(self._model_path / CONFIG_FILE)

        def write(folder: Path) -> None:
            poses = create_df_from_prediction(
                predictions,
                self.scorer,
                multi_animal=False,
                model_cfg=config,  # pyright: ignore[reportArgumentType] (a PoseConfig reads like a dictionary)
                output_path=folder,
                output_prefix=video_path.stem + self.scorer,
            )
            write_parquet(tidy_from_dlc(poses, video.times_s), folder / POSE_TABLE)

        return load_poses(store.put("poses", identity, manifest, write))


def pose_identity(video_id: str, model_id: str) -> str:
    """The identity of the poses of a video under a model: neither device nor batch size enter it."""
    return sha256_json({"video": video_id, "model": model_id})


def load_poses(path: Path) -> PoseEstimate:
    """The poses whose product directory is `path`."""
    manifest = json.loads((path / MANIFEST).read_text())
    return PoseEstimate(path.name, path, manifest["frames"], manifest["seconds"])


def _state(video_path: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    try:
        status = video_path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _frames(video_path: Path, count: int, on_progress: Progress) -> Iterator[np.ndarray]:
    """The frames as DeepLabCut decodes them, (height, width, 3), RGB."""
    from deeplabcut.utils.auxfun_videos import VideoReader

    try:
        reader = VideoReader(video_path)
    except OSError as error:
        raise PlatformError(f"DeepLabCut (OpenCV) cannot open {video_path}: {error}", _REENCODE) from error
    try:
        done = 0
        while (frame := reader.read_frame()) is not None:
            yield frame.copy()  # torch takes no negative strides
            done += 1
            on_progress(done, count)
    finally:
        reader.close()
