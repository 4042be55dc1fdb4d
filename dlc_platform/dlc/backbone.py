"""The source of a network's first weights: ImageNet (downloaded), a local folder, or nothing (random).

Every training starts from an explicit first snapshot made here, because without one DeepLabCut downloads ImageNet
weights.
"""

import json
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.offline import without_network
from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import read_plain

if TYPE_CHECKING:
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig

IMAGENET = "imagenet"
RANDOM = "random"
#: The file of a local folder that holds the weights.
LOCAL_WEIGHTS = "model.safetensors"

#: The networks of `settings.NET_TYPES`, and the name of each in timm; None if timm does not have it.
NETWORKS: dict[str, str | None] = {
    "cspnext_s": None,
    "cspnext_m": None,
    "cspnext_x": None,
    "hrnet_w18": "hrnet_w18",
    "hrnet_w32": "hrnet_w32",
    "hrnet_w48": "hrnet_w48",
    "resnet_50": "resnet50_gn",
    "resnet_101": "resnet101",
}
_MOST_BYTES = 1 << 20
_CONNECT_SECONDS = 4.0
_WITHOUT = "Set `weights: random` in the recipe, or the folder of a local copy (config.json and model.safetensors)"


def check_weights(weights: str, net_type: str) -> None:
    """Make sure, within seconds and before any work, that the first weights of a training are available.

    Parameters
    ----------
    weights
        ``imagenet``, ``random``, or a folder with config.json and model.safetensors as timm writes them.

    Raises
    ------
    PlatformError
        When there is no such network, no way to its ImageNet weights, or no fitting local weights.
    """
    if net_type not in NETWORKS:
        raise PlatformError(
            f"there is no single-animal network `{net_type}`", f"Use one of {', '.join(NETWORKS)} as `net_type`"
        )
    if weights == IMAGENET:
        if not _is_cached(net_type) and not _hub_answers():
            raise PlatformError(
                f"the ImageNet weights of {net_type} are not on this machine, and the Hugging Face hub cannot be "
                "reached",
                _WITHOUT,
            )
    elif weights != RANDOM:
        _check_folder(Path(weights), net_type)


def write_first_snapshot(config: "PoseConfig", weights: str, net_type: str, file: Path) -> None:
    """Write the snapshot of epoch 0 from which DeepLabCut trains; the heads' weights are always random.

    Raises
    ------
    PlatformError
        When the weights cannot be downloaded, or do not fit the network.
    """
    import torch
    from deeplabcut.pose_estimation_pytorch.models import PoseModel

    model_config = config.model.to_dict()
    local = weights not in (IMAGENET, RANDOM)
    if local:
        model_config["backbone"]["model_name"] = f"local-dir:{weights}"
    fetched = nullcontext() if weights == IMAGENET else without_network(f"the weights {weights} of {net_type}")
    try:
        with fetched:
            model = PoseModel.build(model_config, pretrained_backbone=weights != RANDOM)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if weights == RANDOM:
            raise
        reason = " ".join(str(error).split())[:300]
        if local:
            raise PlatformError(
                f"the weights in {weights} do not fit {net_type}: {reason}",
                f"Use the weights of timm's {NETWORKS[net_type]}",
            ) from error
        raise PlatformError(f"the ImageNet weights of {net_type} could not be had: {reason}", _WITHOUT) from error
    snapshot = {"model": model.state_dict(), "metadata": {"epoch": 0, "metrics": {}, "losses": {}}}
    torch.save(snapshot, file)


def _check_folder(folder: Path, net_type: str) -> None:
    architecture = NETWORKS[net_type]
    if architecture is None:
        raise PlatformError(
            f"{net_type} cannot start from a local folder", "Set `weights: random`, or use a ResNet or an HRNet"
        )
    for name in ("config.json", LOCAL_WEIGHTS):
        if not (folder / name).is_file():
            raise PlatformError(f"the folder of weights {folder} holds no {name}", _WITHOUT)
    try:
        found = json.loads(read_plain(folder / "config.json", _MOST_BYTES)).get("architecture")
    except (ValueError, AttributeError, RecursionError) as error:
        raise PlatformError(f"{folder / 'config.json'} is not timm's: {error}", _WITHOUT) from error
    if found != architecture:
        raise PlatformError(
            f"the weights in {folder} are of the architecture {found}, and {net_type} is {architecture}",
            "Use weights of that architecture, or change `net_type`",
        )


def _is_cached(net_type: str) -> bool:
    """True if the weights lie where DeepLabCut or timm look for them; neither is imported, because that takes long."""
    architecture = NETWORKS[net_type]
    if architecture is None:
        spec = find_spec("deeplabcut")
        folder = Path(spec.origin).parent if spec and spec.origin else Path()
        backbones = folder / "pose_estimation_pytorch" / "models" / "backbones"
        return (backbones / "pretrained_weights" / f"{net_type}.pt").is_file()
    from huggingface_hub import constants

    # One network has weights of several trainings, named after a dot; a download that fails has its own message.
    cached = Path(constants.HF_HUB_CACHE).glob(f"models--timm--{architecture}.*/snapshots/*/model.safetensors")
    return any(cached)


def _hub_answers() -> bool:
    from threading import Thread
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = []

    def ask() -> None:
        try:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_CONNECT_SECONDS).close()
        except HTTPError:
            pass  # this is an answer, too
        except OSError:
            return
        answered.append(True)

    # A thread, because the look-up of a name has no time limit.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS + 1)
    return bool(answered)
