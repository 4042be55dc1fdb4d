"""A whole lab, made once: rendered sessions, a trained and promoted model, and poses.

Tests share it. A test that needs a session adds its own to the raw root, and leaves those of the others alone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from dlc_platform.demo import lab as material
from dlc_platform.orchestration.materialize import materialize
from dlc_platform.settings.quality import PoseFloors
from dlc_platform_tests.servers import ensure_running_without_fsync

RECIPE = "quick"
#: A network of two epochs is hopeless, and so are its poses: none of that is what the shared lab is for. What becomes
#: of such a network by the floors that labs have is in `test_hopeless.py`.
NOTHING_IS_HOPELESS = {"hopeless": {"correct": None, "confident": None, "spread": None}}
NO_FLOORS = {"floors": dict.fromkeys(PoseFloors.model_fields, None)}


@pytest.fixture(scope="session")
def lab_home(make_reachable: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """The home of the demo's lab with a recipe of two epochs; nothing is materialised yet."""
    with make_reachable() as folder:
        home = folder / "lab"
        lab = material.make_lab(home)
        settings = {
            "raw_roots": [str(lab.raw)],
            "projects": {material.PROJECT: {"path": str(lab.project)}},
            "recipes": {RECIPE: {**material.RECIPE.model_dump(mode="json"), "epochs": 2}},
            "inference": [{"camera": "*", "project": material.PROJECT}],
            "settle_seconds": 1,
            "scan_seconds": 2,
            "scan": {"unopened_seconds": 0},
            "promotion": NOTHING_IS_HOPELESS,
            "pose_quality": NO_FLOORS,
            "runs": {"retry_minutes": [0.05]},
        }
        (home / "lab.yaml").write_text(yaml.safe_dump(settings))
        ensure_running_without_fsync(home / "postgres")
        before = dict(os.environ)
        yield home
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def tracked_lab(lab_home: Path) -> Path:
    """The lab after `dlc-platform run --select '*'`: everything has been materialised once."""
    said: list[str] = []
    assert materialize(lab_home, "*", [], said.append), "\n".join(said)
    return lab_home
