"""A lab that was at work is the same after it was lost."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd

from dlc_platform.platform import Platform
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment


def call(*arguments: object) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], env=plain_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_restored_lab_goes_on_where_the_lost_one_was(
    tracked_lab: Path, make_reachable: Callable[[], AbstractContextManager[Path]], tmp_path: Path
):
    """Every product was recorded with its checksum, and Dagster knows what has been materialised."""
    assert call("verify", tracked_lab) == "The store is as the catalogue knows it\n"
    call("backup", tracked_lab, tmp_path / "file")
    with make_reachable() as folder:
        restored = folder / "lab"
        shutil.copytree(tracked_lab / "store", restored / "store")
        assert "warning" not in call("restore", tmp_path / "file", restored)
        assert call("verify", restored) == "The store is as the catalogue knows it\n"
        assert call("gc", restored) == "Nothing to remove\n"
        before, after = Platform(tracked_lab), Platform(restored)
        pd.testing.assert_frame_equal(after.estimates(), before.estimates())
        for session in before.estimates()["session"].unique():
            pd.testing.assert_frame_equal(after.poses(session), before.poses(session))
            pd.testing.assert_frame_equal(after.lineage(session), before.lineage(session))
        after._engine.dispose()
        said = call("run", restored, "training_dataset,trained_model,model_evaluation").splitlines()
        assert said == [
            f"{asset}: nothing is missing" for asset in ("training_dataset", "trained_model", "model_evaluation")
        ]
