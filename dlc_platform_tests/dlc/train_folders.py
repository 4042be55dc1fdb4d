"""Train folders as DeepLabCut lays them out in a project, made of a model of the store."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from dlc_platform.dlc.network import CONFIG_FILE
from dlc_platform.dlc.training import TrainedModel


def make_project(path: Path) -> Path:
    """A project's config.yaml, as far as models need it."""
    config = {
        "Task": "tiny",
        "date": "Jan1",
        "iteration": 2,
        "skeleton": [["nose", "tail"], ["nose", "no such part"]],
    }
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def shuffle_folder(project: Path, prefix: str = "", iteration: int = 2, trainset: int = 95, shuffle: int = 1) -> Path:
    return (
        project
        / prefix
        / "dlc-models-pytorch"
        / f"iteration-{iteration}"
        / f"tinyJan1-trainset{trainset}shuffle{shuffle}"
    )


def lay_out(
    model: TrainedModel, project: Path, *names: str, change: dict[str, Any] | None = None, **place: Any
) -> Path:
    """Put a model's snapshot, under these names, and its configuration where DeepLabCut would; the train folder."""
    folder = shuffle_folder(project, **place) / "train"
    folder.mkdir(parents=True)
    config = yaml.safe_load((model.path / CONFIG_FILE).read_text())
    config["metadata"] |= {"project_path": "/home/somebody/tiny", "pose_config_path": "/home/somebody/tiny/cfg.yaml"}
    for key, value in (change or {}).items():
        *above, last = key.split(".")
        node = config
        for part in above:
            node = node[part]
        node[last] = value
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(config))
    for name in names:
        shutil.copyfile(model.path / "snapshot.pt", folder / name)
    return folder


def write_evaluation(folder: Path, prefix: str, rows: list[str]) -> Path:
    """DeepLabCut's table of evaluations of a project."""
    file = folder / prefix / "evaluation-results-pytorch" / "iteration-2" / "CombinedEvaluation-results.csv"
    file.parent.mkdir(parents=True)
    header = (
        "%Training dataset,Shuffle number,Training epochs,Detector epochs (TD only),pcutoff,train rmse,"
        "train rmse_pcutoff,train mAP,train mAR,test rmse,test rmse_pcutoff,test mAP,test mAR"
    )
    file.write_text("\n".join([header, *rows]) + "\n")
    return file
