"""The engine: a model version, ready to find keypoints in pictures. All networks are run through here.

A bottom-up model of one animal runs on the fastest backend that is proved for it (`exports`), without importing
deeplabcut; every other model, and every option that `network` does not reproduce, runs in DeepLabCut's own runners
(`runner`). `inference` works through the frames of a whole video.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.dlc.backends import Precision, PyTorch, most_pictures
from dlc_platform.dlc.exports import Export, find_export, make_export
from dlc_platform.dlc.geometry import Geometry, geometry
from dlc_platform.dlc.memory import keep_to_share, with_smaller_batches
from dlc_platform.dlc.network import is_reproduced
from dlc_platform.dlc.parameters import read_configuration
from dlc_platform.errors import PlatformError
from dlc_platform.manifests import ModelManifest
from dlc_platform.pose.table import SINGLE_ANIMAL
from dlc_platform.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from dlc_platform.dlc.backends import Backend
    from dlc_platform.dlc.exports import Pictures
    from dlc_platform.dlc.runner import DeepLabCutRunner
    from dlc_platform.dlc.tracking import Tracks


_logger = logging.getLogger(__name__)


class Engine:
    """A loaded model version.

    Attributes
    ----------
    scorer, bodyparts, individuals
        The names in DeepLabCut's files; the individual of a model of one animal is `pose.table.SINGLE_ANIMAL`.
    backend
        ``openvino``, ``pytorch`` or ``deeplabcut``.
    device
        ``cpu``, ``cuda``, ``cuda:0``...
    export
        The export that is used, or one that is not used because it is too far from DeepLabCut; else None.
    tracks
        True for a model of several animals: the results of `detect` for all frames go through `track`.
    largest_batch
        The most pictures that fit into memory, known after it has run out; else None.
    """

    def __init__(
        self,
        model_path: Path,
        network: Backend | None,
        runner: DeepLabCutRunner | None,
        precision: Precision,
        export: Export | None = None,
    ):
        manifest = ModelManifest.read(model_path)
        self.model_id = model_path.name
        self.scorer: str = manifest.scorer
        self.precision = precision
        self.export = export
        self.largest_batch: int | None = None
        self._network = network
        self._runner = runner
        self._inference = read_configuration(model_path)["data"]["inference"]
        self.bodyparts: tuple[str, ...] = runner.bodyparts if runner else tuple(manifest.bodyparts)
        self.individuals: tuple[str, ...] = runner.individuals if runner else (SINGLE_ANIMAL,)
        self.tracks = runner is not None and runner.tracks
        self.backend = network.name if network else "deeplabcut"
        self.device: str = (network or runner).device  # pyright: ignore[reportOptionalMemberAccess] (there is one)

    def table(self, poses: np.ndarray) -> pd.DataFrame:
        """DeepLabCut's wide table of poses of a whole video, shape (frames, individuals, bodyparts, 3)."""
        if self._runner is not None:
            return self._runner.table(poses)
        import pandas as pd

        levels = [[self.scorer], list(self.bodyparts), ["x", "y", "likelihood"]]
        columns = pd.MultiIndex.from_product(levels, names=["scorer", "bodyparts", "coords"])
        return pd.DataFrame(poses.reshape(len(poses), -1), columns=columns)

    def fitting(self, width: int, height: int) -> Geometry:
        """The changes to pictures of a size before they are given to `detect`."""
        return geometry(self._inference if self._network else {}, width, height)

    def batch_size(self, width: int, height: int) -> int:
        """The best number of pictures of a size, as `fitting` fits them, to give to `detect` at once."""
        best = self._network.batch_size(width, height) if self._network else self._runner_batch(width, height)
        return min(best, self.largest_batch or best)

    def detect(self, pictures: np.ndarray) -> np.ndarray:
        """Run the network on fitted pictures, each by itself; only a few at a time if memory runs out.

        Parameters
        ----------
        pictures
            uint8, shape (pictures, height, width, 3), blue first.

        Returns
        -------
        array
            float32, shape (pictures, individuals, bodyparts, 3): x, y in pixels of the given picture, and the
            likelihood. For a model of several animals, the last axis holds the numbers that `track` needs.

        Raises
        ------
        PlatformError
            When memory does not hold a single picture.
        """
        return self._in_batches(self._detect, pictures)

    def _in_batches(self, compute: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray) -> np.ndarray:
        def attempt(size: int) -> np.ndarray:
            return np.concatenate([compute(pictures[at : at + size]) for at in range(0, len(pictures), size)])

        asked = min(len(pictures), self.largest_batch or len(pictures))
        found, size = with_smaller_batches(attempt, asked, _logger.warning, "inference")
        if size < asked:
            self.largest_batch = size
        return found

    def _detect(self, pictures: np.ndarray) -> np.ndarray:
        if self._network is not None:
            return self._network(pictures)[:, np.newaxis]
        assert self._runner is not None
        return self._runner.detect(pictures) if self.tracks else self._runner.predict(pictures)

    def track(self, detections: np.ndarray) -> Tracks:
        """Join the results of `detect` in all frames of a video to tracks."""
        assert self._runner is not None
        return self._runner.track(detections)

    def predict(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The keypoints of single pictures, which may differ in size.

        Parameters
        ----------
        pictures
            uint8, each of shape (height, width, 3), blue first.

        Returns
        -------
        array
            float32, shape (pictures, individuals, bodyparts, 3): x, y in pixels of the picture, and the likelihood.
        """
        poses = np.full((len(pictures), len(self.individuals), len(self.bodyparts), 3), np.nan, np.float32)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for number, picture in enumerate(pictures):
            by_size.setdefault(picture.shape, []).append(number)
        for (height, width, _), numbers in by_size.items():
            fitting = self.fitting(width, height)
            size = self.batch_size(*fitting.input_size)
            for first in range(0, len(numbers), size):
                own = numbers[first : first + size]
                batch = np.stack([fitting.fit(pictures[number]) for number in own])
                found = self._in_batches(self._runner.predict if self._runner is not None else self._detect, batch)
                fitting.back(found)
                poses[own] = found
        return poses

    def _runner_batch(self, width: int, height: int) -> int:
        assert self._runner is not None
        return min(self._runner.batch_size, most_pictures(width, height))


def load_engine(
    model_path: Path,
    store: Store,
    pictures: Pictures = list,
    device: str | None = None,
    precision: Precision = "full",
    batch_size: int | None = None,
) -> Engine:
    """Load a model version for the device, with the fastest backend that is proved for it.

    A missing export is made and compared once; that takes the import of deeplabcut.

    Parameters
    ----------
    pictures
        See `exports.make_export`; without any, an imported model is not exported.
    device
        ``cpu``, ``cuda``...; the GPU when there is one, by default.
    batch_size
        The pictures of a batch; None to have it found. It changes only speed and memory.

    Raises
    ------
    PlatformError
        When the model cannot run here, or not in half precision.
    """
    from dlc_platform.dlc.runner import DeepLabCutRunner, unusable

    if reason := unusable(model_path):
        raise PlatformError(f"the model {model_path.name} cannot be used: {reason}", "Use another version")
    device = device or _device()
    if device.startswith("cuda"):
        keep_to_share()
    if not is_reproduced(read_configuration(model_path)):
        if precision != "full":
            raise PlatformError(
                f"the model {model_path.name} is run by DeepLabCut itself, which has no precision to choose",
                "Remove `precision` from its inference rule in lab.yaml",
            )
        runner = DeepLabCutRunner(model_path, batch_size or _RUNNER_BATCH, device)
        return Engine(model_path, None, runner, precision)
    export = None
    if device == "cpu":
        export = find_export(model_path, store, precision) or make_export(model_path, store, pictures, precision)
        if export is not None and export.accepted:
            return Engine(model_path, export.load(batch_size), None, precision, export)
    return Engine(model_path, PyTorch(model_path, device, precision, batch_size), None, precision, export)


_RUNNER_BATCH = 8


def _device() -> str:
    """The GPU if there is one; torch is asked only if a driver reports one, because its import takes seconds."""
    import pynvml

    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") == "":
        return "cpu"
    try:
        pynvml.nvmlInit()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
