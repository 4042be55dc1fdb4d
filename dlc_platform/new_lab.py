"""Making a lab: the first lab.yaml, for a person to read and change."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from dlc_platform.dlc.project import read_project
from dlc_platform.errors import PlatformError
from dlc_platform.settings import LAB_FILE, load_lab

_TEXT = """\
# What this lab records, how it labels, and what it trains. Relative paths are taken from this file's folder.
# Check it with `dlc-platform doctor {home}`.
name: {name}

# Below these folders lie the recorded sessions; they are only read.
raw_roots:
{raw_roots}
# How a video's path below its raw root names its session: NeuroBlueprint (sub-*/ses-*) unless you say otherwise, e.g.
# layout:
#   pattern: '(?P<subject>[^/]+)/(?P<session>[^/]+)/(?P<camera>[^/]+)\\.mp4'

# DeepLabCut projects, single-animal; they are only read.
projects:
{projects}
# What to train. `weights` is imagenet (downloaded once), random, or a folder with config.json and model.safetensors.
recipes:
{recipes}
# Which project's production model tracks which cameras: the first rule that matches the camera's name.
inference:
{inference}
# Where datasets, models, evaluations and poses are kept.
store: store

# A video is taken when it has not changed for so many seconds; the raw roots are looked at this often.
settle_seconds: 30
scan_seconds: 30

# GPUs that runs may use: auto, or a list such as [0, 1].
gpus: auto

# Keypoints with a lower likelihood are drawn hollow and left out of figures that say "confident".
likelihood_cutoff: 0.6
"""


def make_lab(home: Path, raw_roots: Sequence[Path], projects: Sequence[Path]) -> Path:
    """Write ``HOME/lab.yaml`` for these raw roots and DeepLabCut projects, with one recipe for each project.

    Raises
    ------
    PlatformError
        When there is a lab.yaml already, a folder is missing or unusable, or a project cannot be read.
    """
    file = home / LAB_FILE
    if file.exists():
        raise PlatformError(f"{file} exists already", "Edit it, or choose another HOME")
    for root in raw_roots:
        if not root.is_dir():
            raise PlatformError(f"the raw root {root} is not a folder", "Create it, or correct --raw")
        if home.is_relative_to(root):
            raise PlatformError(
                f"HOME {home} lies inside the raw root {root}, where nothing may be written",
                "Choose a HOME outside the raw data",
            )
    read = [read_project(path) for path in projects]
    entries = {}
    for project in read:
        if home.is_relative_to(project.path):
            raise PlatformError(
                f"HOME {home} lies inside the project {project.path}, where nothing may be written",
                "Choose a HOME outside the project",
            )
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", project.task).strip("-._") or "project"
        while name in entries:
            name += "-2"
        entries[name] = project
    net_types = {name: str(project.config.get("default_net_type") or "resnet_50") for name, project in entries.items()}
    text = _TEXT.format(
        home=home,
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", home.name).strip("-._") or "lab",
        raw_roots=_yaml([str(root) for root in raw_roots]),
        projects=_yaml({name: {"path": str(project.path)} for name, project in entries.items()}),
        recipes=_yaml(
            {
                f"{name}-{net_types[name].replace('_', '')}": {
                    "project": name,
                    "net_type": net_types[name],
                    "epochs": 200,
                    "batch_size": 8,
                    "test_fraction": 0.1,
                    "seed": 42,
                    "weights": "imagenet",
                }
                for name in entries
            }
        ),
        inference=_yaml([{"camera": "*", "project": next(iter(entries))}]),
    )
    home.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    load_lab(home)
    return file


def _yaml(value: object) -> str:
    lines = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000).splitlines(keepends=True)
    return "".join("  " + line for line in lines)
