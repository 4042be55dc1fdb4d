"""A stored model run by DeepLabCut's own runners, for networks and options that the engine does not reproduce.

This module also decides which models can run at all. `tracking` makes tracks from the results of a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc_platform.dlc.network import SNAPSHOT_FILE
from dlc_platform.dlc.offline import without_network
from dlc_platform.dlc.parameters import CONFIG_FILE, read_configuration
from dlc_platform.dlc.tracking import Tracker, Tracks, track
from dlc_platform.errors import PlatformError
from dlc_platform.manifests import ModelManifest
from dlc_platform.pose.table import SINGLE_ANIMAL, UNIQUE
from dlc_platform.store import intact

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from deeplabcut.pose_estimation_pytorch.runners import InferenceRunner, PoseInferenceRunner

DETECTOR_FILE = "snapshot-detector.pt"

#: DeepLabCut's value for x, y and likelihood of an animal that it did not find.
_MISSING = -1


class DeepLabCutRunner:
    """A model, loaded for single frames: no frame depends on earlier ones.

    Attributes
    ----------
    bodyparts
        The unique body parts of a model of several animals come last.
    individuals
        `pose.table.SINGLE_ANIMAL` alone for a model of one animal. Unique body parts belong to the last individual,
        `pose.table.UNIQUE`.
    tracks
        True for a model of several animals: the results of `detect` in all frames go through `track`.
    device
        The device on which it runs, as torch names it.
    """

    def __init__(self, model_path: Path, batch_size: int = 8, device: str | None = None):
        from deeplabcut.pose_estimation_pytorch.apis.utils import get_detector_inference_runner

        config = _read_config(model_path)
        self.batch_size = batch_size
        # With its thread, DeepLabCut gives no answer at all if no frame of a call shows an animal.
        config.inference.multithreading.enabled = False
        self._detector: InferenceRunner | None = None
        with without_network(f"the network of the model {model_path.name}"):
            self._pose, self.device = _load(model_path, config, batch_size, device)
            if config.detector is not None:
                self._detector = get_detector_inference_runner(
                    config, intact(model_path, DETECTOR_FILE), batch_size=batch_size, device=self.device
                )
        metadata = config.metadata
        self.tracks = bool(len(metadata.individuals) > 1 or metadata.unique_bodyparts)
        self._unique = tuple(metadata.unique_bodyparts) if self.tracks else ()
        self.bodyparts: tuple[str, ...] = (*metadata.bodyparts, *self._unique)
        self.individuals: tuple[str, ...] = (SINGLE_ANIMAL,)
        if self.tracks:
            self.individuals = (*metadata.individuals, *([UNIQUE] if self._unique else []))
        manifest = ModelManifest.read(model_path)
        self._scorer: str = manifest.scorer
        self._tracker = Tracker.model_validate(manifest.tracker)

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """The network's result for each frame, as `analyze_videos` has it before tracking.

        Parameters
        ----------
        frames
            uint8, shape (n, height, width, 3), BGR.

        Returns
        -------
        array
            float32, shape (n, individuals, bodyparts, 3): x and y in pixels of the frame, and the likelihood. All three
            are NaN if an animal or a body part was not found, or if an individual has no such body part.
        """
        import numpy as np

        found = self.detect(frames)[..., :3]
        found[(found == _MISSING).all(axis=-1)] = np.nan
        return found

    def detect(self, frames: np.ndarray) -> np.ndarray:
        """The input of `track` for each frame: as `predict`, with one number more, and without any change of the
        results.

        The fourth number is the index of the individual that the keypoint looks like, if the network distinguishes
        animals by their looks, else -1. Animals that were not found are -1 throughout, as in DeepLabCut.
        """
        import numpy as np

        pictures = [np.ascontiguousarray(frame[..., ::-1]) for frame in frames]
        if self._detector is None:
            predictions = _infer(self._pose, pictures)
        else:
            boxes = _infer(self._detector, pictures)
            predictions = _infer(self._pose, list(zip(pictures, boxes, strict=True)))
        animals = len(self.individuals) - bool(self._unique)
        multi = len(self.bodyparts) - len(self._unique)
        found = np.full((len(frames), len(self.individuals), len(self.bodyparts), 4), np.nan, np.float32)
        found[..., 3] = -1
        found[:, :animals, :multi, :3] = _MISSING
        if self._unique:
            found[:, -1, multi:, :3] = _MISSING
        for own, prediction in zip(found, predictions, strict=True):
            # The result for fewer individuals is never spread over all of them.
            seen = prediction["bodyparts"][:animals, :, :3]
            own[: len(seen), :multi, :3] = seen
            if "identity_scores" in prediction:
                own[: len(seen), :multi, 3] = prediction["identity_scores"][:animals].argmax(axis=-1)
            if self._unique and len(prediction["unique_bodyparts"]):
                own[-1, multi:, :3] = prediction["unique_bodyparts"][0, :, :3]
        return found

    def track(self, detections: np.ndarray) -> Tracks:
        """The tracks of a video from the network's results, of several animals, in all frames; see `tracking`."""
        return track(detections, self.individuals, self.bodyparts, len(self._unique), self._tracker)

    def table(self, poses: np.ndarray) -> pd.DataFrame:
        """DeepLabCut's wide table of the poses from `predict` or `track`, with the keypoints that can exist.

        Columns (scorer, bodyparts, coords), or (scorer, individuals, bodyparts, coords) of several animals; one row for
        each frame, from 0; float32.
        """
        import numpy as np
        import pandas as pd

        multi = len(self.bodyparts) - len(self._unique)
        own = np.zeros(poses.shape[1:3], bool)
        own[:, :multi] = True
        if self._unique:
            own[-1] = ~own[-1]
        columns = [
            (self._scorer, individual, bodypart, coordinate)
            for row, individual in zip(own, self.individuals, strict=True)
            for has, bodypart in zip(row, self.bodyparts, strict=True)
            if has
            for coordinate in ("x", "y", "likelihood")
        ]
        names = ["scorer", "individuals", "bodyparts", "coords"]
        table = pd.DataFrame(
            poses[:, own].reshape(len(poses), -1), columns=pd.MultiIndex.from_tuples(columns, names=names)
        )
        return table if self.tracks else table.droplevel("individuals", axis="columns")


def _infer(runner: InferenceRunner, inputs: list[Any]) -> list[dict[str, np.ndarray]]:
    # Pictures that a failed call left behind, for lack of memory for example, would be answered in this one.
    runner._batch_list, runner._model_kwargs = [], {}
    runner._contexts, runner._image_batch_sizes, runner._predictions = [], [], []
    return runner.inference(inputs)


def unusable(model_path: Path) -> str | None:
    """The reason why a stored model cannot estimate poses here; None if it can.

    It is decided from its files, without importing deeplabcut.
    """
    match read_configuration(model_path)["method"].lower():
        case "ctd":
            return (
                "it is a conditional top-down model, which needs the poses that another model sees in the same frame, "
                "and such pairs are not run here"
            )
        case "td" if not (model_path / DETECTOR_FILE).is_file():
            return "it is a top-down model that was imported without the snapshot of its detector"
    return None


def _load(model_path: Path, config: PoseConfig, batch_size: int, device: str | None) -> tuple[PoseInferenceRunner, str]:
    from deeplabcut.pose_estimation_pytorch.apis.utils import get_pose_inference_runner
    from deeplabcut.pose_estimation_pytorch.utils import resolve_device

    device = device or resolve_device(config)
    snapshot = intact(model_path, SNAPSHOT_FILE)
    runner = get_pose_inference_runner(config, snapshot, batch_size=batch_size, device=device)
    return runner, device


def _read_config(model_path: Path) -> PoseConfig:
    """A model's configuration, without values that would make it run code."""
    if reason := unusable(model_path):
        raise PlatformError(f"the model {model_path.name} cannot be used: {reason}", "Use another version")
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig

    config = PoseConfig.from_yaml(model_path / CONFIG_FILE)
    # Whatever the file says: a snapshot must not run code.
    config.runner.load_weights_only = True
    if config.detector is not None and config.detector.runner is not None:
        config.detector.runner.load_weights_only = True
    return config
