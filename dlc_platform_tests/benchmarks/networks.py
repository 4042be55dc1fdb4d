"""Networks that are compared for their speed: of random weights, drawn from a seed, as models of the store."""

import shutil
from pathlib import Path

import yaml

from dlc_platform.dlc.importing import import_model
from dlc_platform.dlc.network import CONFIG_FILE, SNAPSHOT_FILE
from dlc_platform.store import Store

BODYPARTS = ("snout", "leftear", "rightear", "tailbase")


def random_model(net_type: str, folder: Path, store: Store) -> Path:
    """A model of one animal with `BODYPARTS`; its product directory.

    The weights of its heads are made larger, so that heat maps have peaks, as those of a trained network have.
    """
    import torch
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from deeplabcut.pose_estimation_pytorch.models import PoseModel

    folder.mkdir(parents=True)
    project = {"Task": "speed", "bodyparts": list(BODYPARTS), "project_path": str(folder)}
    config = PoseConfig.build(project, folder / CONFIG_FILE, top_down=False, net_type=net_type)
    config.to_yaml(folder / CONFIG_FILE, overwrite=True)
    torch.manual_seed(0)
    network = PoseModel.build(config.model.to_dict(), pretrained_backbone=False)
    for name, parameter in network.named_parameters():
        if name.startswith("heads.") and "heatmap" in name and parameter.ndim > 1:
            parameter.data.mul_(30)
    torch.save({"model": network.state_dict()}, folder / "snapshot-001.pt")
    return import_model(folder, store).path


def lay_out_project(model_path: Path, video: Path, batch_size: int, folder: Path) -> Path:
    """A DeepLabCut project in which `analyze_videos` runs a model of the store on a video; its config.yaml."""
    from deeplabcut.core.engine import Engine
    from deeplabcut.pose_estimation_pytorch.config import TestConfig
    from deeplabcut.utils.auxiliaryfunctions import get_model_folder

    config = yaml.safe_load((model_path / CONFIG_FILE).read_text())
    project = {
        "Task": "speed",
        "scorer": "benchmark",
        "date": "Jan1",
        "multianimalproject": False,
        "project_path": str(folder),
        "bodyparts": config["metadata"]["bodyparts"],
        "TrainingFraction": [0.95],
        "iteration": 0,
        "snapshotindex": -1,
        "batch_size": batch_size,
        "video_sets": {str(video): {"crop": "0, 640, 0, 480"}},
    }
    home = folder / get_model_folder(0.95, 1, project, engine=Engine.PYTORCH)
    (home / "train").mkdir(parents=True)
    (home / "test").mkdir()
    config["metadata"] |= {"project_path": str(folder), "pose_config_path": str(home / "train" / CONFIG_FILE)}
    (folder / "config.yaml").write_text(yaml.safe_dump(project))
    (home / "train" / CONFIG_FILE).write_text(yaml.safe_dump(config))
    TestConfig.build(config, test_config_path=home / "test" / "pose_cfg.yaml", save=True)
    shutil.copy(model_path / SNAPSHOT_FILE, home / "train" / "snapshot-001.pt")
    return folder / "config.yaml"
