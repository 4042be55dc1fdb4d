"""The tutorial's commands and Python run in their order, and give what the tutorial says.

Two things are not as they are for a student. The demo itself is not run: its material is made as it makes it. And the
recipe has two epochs instead of 35, so the floors that stop a hopeless network are taken away.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

import dlc_platform
from dlc_platform.demo import lab as material
from dlc_platform.settings.quality import PoseFloors
from dlc_platform.settings.schema import SCHEMA_FILE, lab_schema

TUTORIAL = Path(dlc_platform.__file__).parent / "docs" / "pages" / "tutorial.md"
_BLOCK = re.compile(r"```(bash|yaml|python)\n(.*?)```", re.S)


@pytest.mark.lab
def test_the_tutorial_runs_from_beginning_to_end(
    make_reachable: Callable[[], AbstractContextManager[Path]],
) -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    python = ""
    with make_reachable() as folder:
        said: dict[str, str] = {}
        for language, block in _BLOCK.findall(text):
            if language == "yaml":
                _take_recipes(folder / "my-lab" / "lab.yaml", block)
                # As in a lab that an earlier version made: what starts it brings the schema of this one.
                (folder / "my-lab" / SCHEMA_FILE).unlink()
            elif language == "python":
                python += block
            else:
                for line in block.splitlines():
                    said[line] = _run(line, folder)
        assert json.loads((folder / "my-lab" / SCHEMA_FILE).read_text()) == lab_schema()
        assert "10 sessions" in said["uv run dlc-platform scan my-lab --dry-run"]
        assert "sub-005_ses-002" in said["uv run dlc-platform poses my-lab"]
        printed = _call([sys.executable, "-c", "import matplotlib; matplotlib.use('Agg')\n" + python], folder)
        assert "tailbase" in printed and re.search(r"median error \d+\.\d px, 95 % below \d+\.\d px", printed)
        assert (folder / "speed.png").stat().st_size > 5000


def _run(line: str, folder: Path) -> str:
    words = shlex.split(line)
    assert words[:3] == ["uv", "run", "dlc-platform"], line
    if words[3] == "demo":
        material.drop_sessions(material.make_lab(folder / "demo-lab"), pause=0)
        return ""
    program = [sys.executable, "-c", "from dlc_platform.cli.app import main; main()", *words[3:]]
    # With nothing running yet `doctor` warns, and ends with 0.
    return _call(program, folder)


def _call(command: list[str], folder: Path) -> str:
    # Other tests compute on the CPU, too: nobody waits for them.
    environment = {**os.environ, "COLUMNS": "80", "DLC_PLATFORM_LEASE_DIR": str(folder / "leases")}
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, f"{command}: {ended.stdout}\n{ended.stderr}"
    return ended.stdout


def _take_recipes(file: Path, block: str) -> None:
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    written |= yaml.safe_load(block)
    written["recipes"]["mouse"]["epochs"] = 2
    written["promotion"]["hopeless"] = {"correct": None, "confident": None, "spread": None}
    written["pose_quality"]["floors"] = dict.fromkeys(PoseFloors.model_fields, None)
    file.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
