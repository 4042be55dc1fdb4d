"""What bash, zsh and fish are offered at the Tab key."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine

from dlc_platform.settings.environment import LAB_FILE, POSTGRES_VARIABLE
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment

SESSION = "sub-1_ses-1"


def offered(line: str, shell: str = "bash", **environment: str) -> list[str]:
    words = line.split(" ")
    completion = {
        "_DLC_PLATFORM_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [COMMAND], env=plain_environment() | completion | environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def home(tmp_path: Path, make_project: Callable[..., Path]) -> Path:
    settings = {
        "raw_roots": ["raw"],
        "projects": {"maze": {"path": str(make_project(tmp_path / "project", 2))}},
        "recipes": {name: {"project": "maze", "weights": "random"} for name in ("quick", "quiet", "slow")},
    }
    (tmp_path / "raw").mkdir()
    (tmp_path / LAB_FILE).write_text(yaml.safe_dump(settings))
    return tmp_path


def test_commands_recipes_sessions_and_models_are_offered(lab: Engine, home: Path) -> None:
    url = {POSTGRES_VARIABLE: lab.url.render_as_string(hide_password=False)}
    assert set(offered("dlc-platform doc")) == {"docs", "doctor"}
    assert offered(f"dlc-platform train {home} qui") == ["quick", "quiet"]
    for shell in ("bash", "zsh", "fish"):
        assert SESSION in " ".join(offered(f"dlc-platform lineage {home} {SESSION[:4]}", shell, **url))
    assert offered(f"dlc-platform lineage {home} zzz", **url) == []
    assert offered(f"dlc-platform impact {home} b", **url) == ["b" * 12]
    assert offered(f"dlc-platform run {home} pose") == ["pose_estimates", "pose_quality"]
    assert offered(f"dlc-platform run {home} pose_estimates,pose_q") == ["pose_estimates,pose_quality"]
    assert offered(f"dlc-platform compare {home} --project m") == ["maze"]


def test_a_lab_that_does_not_answer_is_not_started_for_it(home: Path) -> None:
    assert offered(f"dlc-platform lineage {home} sub") == []
    assert not (home / "postgres").exists()
    assert offered(f"dlc-platform train {home / 'none'} qui") == []
