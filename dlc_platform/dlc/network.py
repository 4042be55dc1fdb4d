"""A network as one function of PyTorch, from pictures to keypoints: it runs as it is, or is exported.

It is built from DeepLabCut's own modules, so that there is only one definition of a model's computation. This module
also decides for which models it can be built; DeepLabCut's own runners (`runner`) run the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc_platform.dlc.geometry import reproduces
from dlc_platform.dlc.offline import without_network
from dlc_platform.dlc.parameters import CONFIG_FILE, read_configuration
from dlc_platform.store import opened

if TYPE_CHECKING:
    import torch

#: The weights of a model product.
SNAPSHOT_FILE = "snapshot.pt"

#: albumentations' A.Normalize with the figures of ImageNet, which DeepLabCut uses for every network.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


def is_reproduced(configuration: Mapping[str, Any]) -> bool:
    """True for a bottom-up model of one animal whose every option `keypoint_network` and `geometry` know."""
    metadata, heads = configuration["metadata"], configuration["model"]["heads"]
    inference = configuration.get("inference") or {}
    return (
        configuration["method"].lower() == "bu"
        and len(metadata["individuals"]) <= 1
        and not metadata.get("unique_bodyparts")
        and not metadata.get("with_identity")
        and list(heads) == ["bodypart"]
        and heads["bodypart"]["type"] == "HeatmapHead"
        and heads["bodypart"]["predictor"]["type"] == "HeatmapPredictor"
        and (configuration["data"].get("colormode") or "RGB") == "RGB"
        and not (inference.get("autocast") or {}).get("enabled")
        and reproduces(configuration["data"]["inference"])
    )


def keypoint_network(model_path: Path) -> torch.nn.Module:
    """The network of a stored model, on the CPU.

    Returns
    -------
    Module
        From uint8 pictures of one size, shape (pictures, height, width, 3), blue first, as `geometry` fits them, to
        float32 keypoints, shape (pictures, bodyparts, 3): x, y in pixels of those pictures, and the likelihood.
    """
    import torch
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from deeplabcut.pose_estimation_pytorch.models import PoseModel

    config = PoseConfig.from_yaml(model_path / CONFIG_FILE)
    inference = read_configuration(model_path)["data"]["inference"]
    with without_network(f"the network of the model {model_path.name}"):
        model = PoseModel.build(config.model.to_dict(), pretrained_backbone=False)
    with opened(model_path, SNAPSHOT_FILE, whole=True) as file:
        snapshot = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(snapshot["model"])

    class KeypointNetwork(torch.nn.Module):
        mean: torch.Tensor
        factor: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            mean, factor = torch.zeros(3), torch.ones(3)
            if inference.get("normalize_images"):
                # In the order of A.Normalize, whose roundings these are.
                mean = torch.tensor(_MEAN) * 255
                factor = (torch.tensor(_DEVIATION) * 255).reciprocal()
            elif inference.get("scale_to_unit_range"):
                factor = torch.full((3,), 1 / 255)
            self.register_buffer("mean", mean.view(1, 3, 1, 1))
            self.register_buffer("factor", factor.view(1, 3, 1, 1))

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            x = (pictures.permute(0, 3, 1, 2).flip(1).float() - self.mean) * self.factor
            if x.device.type == "cpu":
                # As DeepLabCut lays pictures out: PyTorch is faster the other way, and then gives other last digits.
                x = x.contiguous()
            return self.model.get_predictions(self.model(x))["bodypart"]["poses"][:, 0]

    network = KeypointNetwork()
    network.eval()
    return network
