"""What is deployed, as far as it can be seen without the machine that it is for."""

import subprocess
from pathlib import Path

from dlc_platform import cli
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment

UNIT = Path(cli.__file__).parents[1] / "deployments" / "systemd" / "dlc-platform@.service"


def test_each_lab_of_a_machine_has_a_port_of_its_own():
    lines = UNIT.read_text().splitlines()
    # What the lab's own file says comes later, and wins.
    assert lines.index("Environment=PORT=3000") < lines.index("EnvironmentFile=-/etc/dlc-platform/%i.env")
    (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    _, *arguments = start.replace("%i", "lab").replace("${PORT}", "70000").split()
    done = subprocess.run([COMMAND, *arguments], env=plain_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Invalid value for '--port'" in done.stderr
