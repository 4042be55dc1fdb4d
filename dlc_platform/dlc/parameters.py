"""The parts of a stored model and of an inference that enter the identity of poses. Nothing here loads a network, nor
NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc_platform.files.yaml import load_yaml
from dlc_platform.store import opened
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    from dlc_platform.dlc.backends import Precision

#: A model product's configuration, as DeepLabCut wrote it.
CONFIG_FILE = "pytorch_config.yaml"

#: Part of the identity of such poses; it gets another number when the same detections give other tracks. Before 2, only
#: DeepLabCut tracked them, which mixes animals up.
TRACKING = 2


def read_configuration(model_path: Path) -> dict[str, Any]:
    """The configuration of a stored model, as DeepLabCut wrote it."""
    with opened(model_path, CONFIG_FILE, whole=True) as file:
        return load_yaml(file, file.read_text(encoding="utf-8"))


def has_several_animals(model_path: Path) -> bool:
    """True for a stored model whose poses distinguish individuals; decided without importing deeplabcut."""
    metadata = read_configuration(model_path)["metadata"]
    return len(metadata["individuals"]) > 1 or bool(metadata.get("unique_bodyparts"))


def inference_parameters(region: Region | None, precision: Precision, several_animals: bool) -> dict[str, Any]:
    """The parameters of an inference that are part of its identity; usual values are left out."""
    parameters: dict[str, Any] = {"region": region.as_dict()} if region else {}
    if precision != "full":
        parameters["precision"] = precision
    if several_animals:
        parameters["tracking"] = TRACKING
    return parameters
