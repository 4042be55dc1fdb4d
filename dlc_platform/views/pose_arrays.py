"""The poses of a file as plain arrays: any stretch of frames, and extremes over longer and longer steps of them.

A pose table of an hour holds millions of rows, and a screen has two thousand columns. So the arrays lie on the disk
keypoint by keypoint, and beside them the smallest and largest values over 16, 256 and 4,096 frames.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.pose.table import POSE_TABLE, read_stretches
from dlc_platform.store import Store

#: Frames behind each value of a level.
STEPS = (16, 256, 4096)
#: The values of a keypoint: x and y in pixels, likelihood from 0 to 1, and the speed in pixels per second.
VALUES = ("x", "y", "likelihood", "speed")
_POSES, _TIMES, _ABOUT = "poses.f32", "times.f64", "about.json"


@dataclass(frozen=True)
class PoseArrays:
    """The arrays of one pose estimate, read from the disk as far as they are asked for.

    Attributes
    ----------
    folder
        The view.
    keypoints
        Individual and body part of each keypoint, in the order of the project.
    frames
        How many frames there are.
    """

    folder: Path
    keypoints: tuple[tuple[str, str], ...]
    frames: int

    @cached_property
    def poses(self) -> np.ndarray:
        """x, y and likelihood, float32, shape (keypoints, frames, 3); x and y are NaN where there is no estimate."""
        return _mapped(self.folder / _POSES, (len(self.keypoints), self.frames, 3))

    @cached_property
    def times_s(self) -> np.ndarray:
        """When each frame is shown, in seconds from the first, float64, shape (frames,)."""
        return np.fromfile(self.folder / _TIMES, np.float64)

    def extremes(self, step: int) -> np.ndarray:
        """The smallest and largest of each of `VALUES` over steps of so many frames.

        Returns
        -------
        float32 array
            Shape (keypoints, steps, values, 2); NaN where nothing is known.
        """
        return _mapped(self.folder / _level(step), (len(self.keypoints), -(-self.frames // step), len(VALUES), 2))


def _mapped(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(file, np.float32, "r", shape=shape) if all(shape) else np.zeros(shape, np.float32)


def pose_arrays(store: Store, estimate: str) -> PoseArrays:
    """The arrays of a pose estimate, made if nobody has looked at them before.

    Raises
    ------
    PlatformError
        When the estimate is missing from the store, or damaged.
    """
    folder = store.view("poses", estimate, lambda made: _write(store.path("poses", estimate), made))
    about = json.loads((folder / _ABOUT).read_text())
    keypoints = tuple((individual, bodypart) for individual, bodypart in about["keypoints"])
    return PoseArrays(folder, keypoints, about["frames"])


def _write(product: Path, folder: Path) -> None:
    keypoints: list[tuple[str, str]] = []
    frames: int | None = None
    with ExitStack() as files:
        poses = files.enter_context(open(folder / _POSES, "wb"))
        levels = {step: files.enter_context(open(folder / _level(step), "wb")) for step in STEPS}
        # One keypoint after the other: all of them at a time would fill the memory.
        for stretch in read_stretches(product / POSE_TABLE):
            for code, individual in enumerate(stretch.individuals):
                rows = np.flatnonzero(stretch.individual == code)
                if not len(rows):
                    continue
                own = np.stack([stretch.columns[name][rows] for name in ("x", "y", "likelihood")], axis=1)
                times = stretch.columns["time_s"][rows]
                if frames is None:
                    frames = len(own)
                    times.tofile(folder / _TIMES)
                if len(own) != frames:
                    raise PlatformError(
                        f"{product / POSE_TABLE} has {len(own)} rows for {stretch.bodypart}, and {frames} for others",
                        "Compare the store with its manifests: `dlc-platform verify HOME`",
                    )
                keypoints.append((individual, stretch.bodypart))
                own.tofile(poses)
                for step, extremes in _extremes(own, times):
                    extremes.tofile(levels[step])
    (folder / _ABOUT).write_text(json.dumps({"keypoints": keypoints, "frames": frames or 0}))


def _extremes(own: np.ndarray, times_s: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Of one keypoint: each step, with the smallest and largest values over it, shape (steps, values, 2)."""
    low = high = np.concatenate([own, speed(own[:, :2], times_s)[:, None]], axis=1)
    done = 1
    for step in STEPS:
        starts = np.arange(0, len(low), step // done)
        # They leave out what is unknown.
        low, high = np.fmin.reduceat(low, starts, axis=0), np.fmax.reduceat(high, starts, axis=0)
        done = step
        yield step, np.stack([low, high], axis=2)


def _level(step: int) -> str:
    return f"extremes-{step}.f32"


def speed(points: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """The speed of a keypoint from the frame before to each frame, in pixels per second; NaN in the first frame.

    Parameters
    ----------
    points
        x and y in pixels, shape (frames, 2).
    times_s
        Seconds, shape (frames,).
    """
    moved = np.full(len(points), np.nan, np.float32)
    if len(points) > 1:
        step = np.hypot(*np.diff(points, axis=0).T)
        passed = np.diff(times_s)
        moved[1:] = np.divide(step, passed, out=np.full(len(step), np.nan), where=passed > 0)
    return moved
