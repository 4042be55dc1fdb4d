"""A stored model, loaded for inference by DeepLabCut's own pose runner."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.training import CONFIG_FILE, SNAPSHOT_FILE
from dlc_platform.errors import PlatformError
from dlc_platform.store import MANIFEST

if TYPE_CHECKING:
    from deeplabcut.pose_estimation_pytorch.runners import PoseInferenceRunner


def load_runner(model_path: Path, batch_size: int, device: str | None) -> "tuple[PoseInferenceRunner, str]":
    """The runner of a model, and the device it runs on (the GPU when there is one, by default).

    Raises
    ------
    PlatformError
        When it is an imported model of a kind that is not run here.
    """
    if reason := json.loads((model_path / MANIFEST).read_text()).get("unusable"):
        raise PlatformError(
            f"the model {model_path.name} cannot be used: {reason}", "Use a bottom-up model of a single animal"
        )
    from deeplabcut.pose_estimation_pytorch.apis.utils import get_pose_inference_runner
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from deeplabcut.pose_estimation_pytorch.utils import resolve_device

    config = PoseConfig.from_yaml(model_path / CONFIG_FILE)
    config.runner.load_weights_only = True  # whatever the file says: a snapshot must not run code
    device = device or resolve_device(config)
    runner = get_pose_inference_runner(config, model_path / SNAPSHOT_FILE, batch_size=batch_size, device=device)
    return runner, device
