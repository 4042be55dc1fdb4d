"""Exports: a model version in the form of a faster backend, proved against DeepLabCut before anybody uses it.

An export is a product of kind ``exports``. It is made once for a model version, a precision, a device and a version of
the backend. It records the distance of its keypoints from those of the network in PyTorch, on the model's own test
images. In full precision it is used only within `TOLERANCE_PX` and `TOLERANCE_LIKELIHOOD`; an export beyond them is
kept as a record, without its files. The lab judges the cost of half precision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc_platform.dlc.backends import Backend, OpenVino, Precision, PyTorch, openvino
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.geometry import geometry
from dlc_platform.dlc.network import keypoint_network
from dlc_platform.dlc.parameters import read_configuration
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.manifests import ExportManifest, ModelManifest
from dlc_platform.store import Store

if TYPE_CHECKING:
    from openvino import Model

    from dlc_platform.dlc.dataset import Dataset

#: The largest distance from DeepLabCut's keypoints, in pixels, and the largest difference of likelihoods.
TOLERANCE_PX = 1e-3
TOLERANCE_LIKELIHOOD = 1e-4

_NETWORK = "network.xml"
#: The most test images that are compared; they are evenly spread if there are more.
_MOST_IMAGES = 32
#: Raised when the exported network itself changes.
_FORMAT = 1

Pictures = Callable[[], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Export:
    """An export of the store.

    Attributes
    ----------
    accepted
        False when its keypoints are too far from DeepLabCut's, it could not be made, or it is damaged: `reason` says
        which.
    images
        The number of pictures on which it was compared.
    deviation_px, deviation_likelihood
        The largest difference of a coordinate, and of a likelihood; None if the export could not be made.
    eager_ms_per_frame, ms_per_frame
        The time that PyTorch and the export took for a picture there, in milliseconds.
    """

    id: str
    path: Path
    model_id: str
    backend: str
    device: str
    precision: Precision
    accepted: bool
    reason: str | None
    images: int
    deviation_px: float | None
    deviation_likelihood: float | None
    eager_ms_per_frame: float
    ms_per_frame: float | None

    def load(self, batch_size: int | None = None) -> Backend:
        """The exported network."""
        return OpenVino(self.path / _NETWORK, self.precision, batch_size)


def find_export(model_path: Path, store: Store, precision: Precision = "full") -> Export | None:
    """The export of a model for this machine's CPU; None if there is none whose files are those that were proved."""
    identity = _identity(model_path.name, precision)
    if not store.has("exports", identity):
        return None
    try:
        export = load_export(store.path("exports", identity))
        files = ExportManifest.read(export.path).files
        if files is None or any(sha256_file(export.path / file.path) != file.sha256 for file in files):
            return None
    except (PlatformError, OSError, ValueError, KeyError):
        return None
    return export


def make_export(model_path: Path, store: Store, pictures: Pictures, precision: Precision = "full") -> Export | None:
    """Export a model for CPUs, or find its export; None if there is no picture to compare on.

    A damaged export is made anew: it holds nothing that the model does not.

    Parameters
    ----------
    pictures
        Gives pictures to compare on, uint8, shape (height, width, 3), blue first, for a model without test images of
        its own: an imported one.
    """
    identity = _identity(model_path.name, precision)
    with store.workspace("exports", identity):
        found = find_export(model_path, store, precision)
        if found is not None:
            return found
        inputs = _fitted(model_path, own_pictures(model_path, store) or pictures())
        if not inputs:
            return None
        store.discard("exports", identity)
        eager, eager_ms = _run(PyTorch(model_path, "cpu"), inputs)
        manifest: dict[str, Any] = {}

        def write(folder: Path) -> None:
            # The manifest is written after this, with the results from here.
            proof = _prove(model_path, folder, precision, inputs, eager)
            found = ExportManifest(
                model=model_path.name,
                backend=OpenVino.name,
                device=OpenVino.device,
                precision=precision,
                images=sum(map(len, inputs)),
                eager_ms_per_frame=eager_ms,
                versions=dict(versions()),
                **proof,
            )
            manifest.update(found.said())

        return load_export(store.put("exports", identity, manifest, write))


def load_export(path: Path) -> Export:
    """The export in the product directory `path`."""
    manifest = ExportManifest.read(path)
    return Export(
        id=path.name,
        path=path,
        model_id=manifest.model,
        backend=manifest.backend,
        device=manifest.device,
        precision=manifest.precision,
        accepted=manifest.accepted,
        reason=manifest.reason,
        images=manifest.images,
        deviation_px=manifest.deviation_px,
        deviation_likelihood=manifest.deviation_likelihood,
        eager_ms_per_frame=manifest.eager_ms_per_frame,
        ms_per_frame=manifest.ms_per_frame,
    )


def own_pictures(model_path: Path, store: Store) -> list[np.ndarray]:
    """Test images of the dataset that a model was trained on, blue first; none for an imported model."""
    from dlc_platform.dlc.dataset import load_dataset

    dataset_id = ModelManifest.read(model_path).dataset
    if dataset_id is None or not store.has("datasets", dataset_id):
        return []
    return images_to_compare(load_dataset(store.path("datasets", dataset_id)))


def _identity(model_id: str, precision: Precision) -> str:
    return sha256_json(
        {
            "model": model_id,
            "backend": OpenVino.name,
            "version": version("openvino"),
            "device": OpenVino.device,
            "precision": precision,
            "format": _FORMAT,
        }
    )


def images_to_compare(dataset: Dataset) -> list[np.ndarray]:
    """Some test images of a dataset, blue first."""
    labels = dataset.labels()
    test = labels[labels["side"] == "test"].drop_duplicates("image")
    test = test.iloc[np.unique(np.linspace(0, len(test) - 1, min(len(test), _MOST_IMAGES)).round().astype(int))]
    return [dataset.picture(image, file) for image, file in zip(test["image"], test["file"], strict=True)]


def _fitted(model_path: Path, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The pictures as the network takes them: those of one size together."""
    inference = read_configuration(model_path)["data"]["inference"]
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for picture in pictures:
        fitted = geometry(inference, picture.shape[1], picture.shape[0]).fit(picture)
        by_size.setdefault(fitted.shape, []).append(fitted)
    return [np.stack(own) for own in by_size.values()]


def _prove(
    model_path: Path, folder: Path, precision: Precision, inputs: Sequence[np.ndarray], eager: np.ndarray
) -> dict[str, Any]:
    """Export into `folder` and compare; if it is not accepted, no file stays there."""
    proof = {"deviation_px": None, "deviation_likelihood": None, "ms_per_frame": None}
    try:
        converted = _convert(model_path, inputs[0][:1])
    except Exception as error:  # PyTorch's tracing and OpenVINO's reading of it have many kinds
        return proof | {"accepted": False, "reason": f"it cannot be exported: {' '.join(str(error).split())[:300]}"}
    # Not in the `try`: a full disk tells nothing about the network.
    openvino().save_model(converted, folder / _NETWORK, compress_to_fp16=False)
    try:
        keypoints, milliseconds = _run(OpenVino(folder / _NETWORK, precision), inputs)
    except RuntimeError as error:  # what OpenVINO raises
        _empty(folder)
        return proof | {"accepted": False, "reason": f"it does not run: {' '.join(str(error).split())[:300]}"}
    difference = np.abs(keypoints - eager)
    pixels, likelihood = float(difference[..., :2].max()), float(difference[..., 2].max())
    if precision == "full":
        accepted = pixels <= TOLERANCE_PX and likelihood <= TOLERANCE_LIKELIHOOD
    else:
        accepted = math.isfinite(pixels + likelihood)
    if not accepted:
        _empty(folder)
    return {
        "accepted": accepted,
        "reason": None if accepted else f"its keypoints lie up to {pixels:.3g} px from DeepLabCut's",
        "deviation_px": pixels,
        "deviation_likelihood": likelihood,
        "ms_per_frame": milliseconds,
    }


def _convert(model_path: Path, example: np.ndarray) -> Model:
    """The network as OpenVINO holds it."""
    import logging
    import warnings

    import torch

    network = keypoint_network(model_path)
    root = logging.getLogger()
    level = root.level
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of tracing: the proof afterwards shows that sizes are handled
        try:
            return openvino().convert_model(network, example_input=torch.from_numpy(example))
        finally:
            root.setLevel(level)


def _run(backend: Backend, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """The keypoints of all pictures, and the milliseconds that each took."""
    keypoints, seconds = [], 0.0
    for pictures in inputs:
        size = backend.batch_size(pictures.shape[2], pictures.shape[1])
        backend(pictures[:1])  # prepares for the size
        started = time.perf_counter()
        keypoints += [backend(pictures[first : first + size]) for first in range(0, len(pictures), size)]
        seconds += time.perf_counter() - started
    return np.concatenate(keypoints), 1000 * seconds / sum(map(len, inputs))


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
