"""What workers of the tests share is made once, and whole; and one test does not change what the next one sees."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from dlc_platform_tests.conftest import made_once

Fill = Callable[[Path], None]

_DIES = """
import os, signal, sys
from pathlib import Path
from dlc_platform_tests.conftest import made_once

def fill(folder):
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)

made_once(Path(sys.argv[1]), "made", fill)
"""


def test_what_is_made_is_made_once(make_once: Callable[[str, Fill], Path]) -> None:
    name, made = str(uuid4()), []
    folders = {make_once(name, made.append) for _ in range(2)}
    assert len(made) == len(folders) == 1


def test_who_fails_leaves_nothing_to_the_others(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        made_once(tmp_path, "made", fill)
    made = made_once(tmp_path, "made", lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_who_is_killed_leaves_nothing_to_the_others(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", _DIES, tmp_path], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    made = made_once(tmp_path, "made", lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


@pytest.mark.parametrize("_again", [1, 2])
def test_a_test_leaves_no_variables_to_the_next(_again: int) -> None:
    assert "LEFT_BY_A_TEST" not in os.environ
    os.environ["LEFT_BY_A_TEST"] = "1"
