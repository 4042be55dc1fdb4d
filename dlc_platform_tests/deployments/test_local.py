"""The unit of one machine, as far as it can be seen without the machine that it is for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dlc_platform_tests.deployments.conftest import DEPLOYMENTS
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment

UNIT = DEPLOYMENTS / "local" / "dlc-platform@.service"


def test_each_lab_of_a_machine_has_a_port_of_its_own():
    lines = UNIT.read_text().splitlines()
    # What the lab's own file says comes later, and wins.
    assert lines.index("Environment=PORT=3000") < lines.index("EnvironmentFile=-/etc/dlc-platform/%i.env")
    (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    _, *arguments = start.replace("%i", "lab").replace("${PORT}", "70000").split()
    done = subprocess.run([COMMAND, *arguments], env=plain_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Invalid value for '--port'" in done.stderr


def test_systemd_knows_every_line_of_the_unit(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the system has no systemd")
    unit = tmp_path / "dlc-platform@.service"
    # Neither the program nor its account is on this machine.
    unit.write_text(UNIT.read_text().replace("/opt/dlc-platform/current/.venv/bin/dlc-platform", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "dlc-platform@lab.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    of_unit = [line for line in done.stderr.splitlines() if "dlc-platform@" in line]
    assert not of_unit, of_unit
