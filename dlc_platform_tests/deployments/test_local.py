"""A machine with labs of its own: its unit and its `deploy`, on a real systemd.

The environment of a release is the tests' own, because making one takes minutes: `uv` is a double there.
"""

import io
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from dlc_platform_tests.deployments.conftest import DEPLOYMENTS
from dlc_platform_tests.deployments.machine import CHECKOUT, Machine, booted
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment

UNIT = DEPLOYMENTS / "local" / "dlc-platform@.service"
DEPLOY = DEPLOYMENTS / "local" / "deploy"
#: Makes an environment whose `dlc-platform` fails where the release's file `fails` says so.
UV = f"""#!/bin/sh
set -eu
[ "$*" = "sync --no-dev" ] && [ "$UV_PYTHON_INSTALL_DIR" = /opt/dlc-platform/python ]
mkdir --parents .venv/bin
ln -s {CHECKOUT}/.venv/bin/dagster .venv/bin/dagster
cat >.venv/bin/dlc-platform <<'END'
#!/bin/sh
case "$*" in
    $(cat "${{0%/.venv/*}}/fails")) echo "this release fails" >&2; exit 1 ;;
esac
exec {CHECKOUT}/.venv/bin/dlc-platform "$@"
END
chmod 755 .venv/bin/dlc-platform
"""


@pytest.fixture(scope="module")
def machine(make_reachable: Callable[[], AbstractContextManager[Path]]) -> Iterator[Machine]:
    """A machine with the unit, the account and one lab, `maze`, to which nothing has been deployed."""
    with make_reachable() as folder, booted(folder) as machine:
        machine.write("/usr/local/bin/uv", UV, 0o755)
        machine.write("/etc/systemd/system/dlc-platform@.service", UNIT.read_text())
        machine.do("useradd", "--system", "--no-create-home", "dlc-platform")
        add_lab(machine, "maze")
        yield machine


def add_lab(machine: Machine, name: str, **settings: object) -> None:
    home = f"/srv/dlc-platform/{name}"
    content = {"raw_roots": ["raw"], "projects": {"maze": {"path": "project"}}, "gpus": [], **settings}
    machine.write(f"{home}/lab.yaml", yaml.safe_dump(content))
    machine.do("mkdir", f"{home}/raw", f"{home}/project")
    machine.do("chown", "--recursive", "dlc-platform:", home)
    # systemd reads this file, no shell does.
    machine.write(
        f"/etc/dlc-platform/{name}.env", "PORT=3456\nLAB_HOOK=https://hook.example.org/?a=1&b=$(date)\n", 0o600
    )


def archive(fails: str = "nothing") -> bytes:
    """A release, as `git archive` writes it."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, content in (("pyproject.toml", b""), ("fails", fails.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return written.getvalue()


def in_force(machine: Machine, lab: str) -> str:
    return Path(machine.do("readlink", f"/opt/dlc-platform/labs/{lab}")).name


def answers(machine: Machine) -> bool:
    return "dagster_version" in machine.run("curl", "--silent", "http://127.0.0.1:3456/server_info").stdout


def servers(machine: Machine) -> set[str]:
    """The units that a Postgres is in."""
    return set(machine.run("ps", "-C", "postgres", "--no-headers", "--format=unit").stdout.split())


def test_a_release_takes_over_and_one_that_fails_leaves_the_lab_as_it_was(machine: Machine):
    unit = "dlc-platform@maze.service"
    done = machine.run(DEPLOY, "v1", given=archive())
    assert done.returncode == 0, done.stderr
    assert in_force(machine, "maze") == "v1"
    assert not servers(machine), "the steps of a deployment leave nothing running"

    # `migrate HOME --check` goes well there, `migrate HOME` does not.
    done = machine.run(DEPLOY, "v2", given=archive("migrate /srv/dlc-platform/maze"))
    assert done.returncode == 1 and "maze: it goes on with v1" in done.stderr, done.stderr
    assert in_force(machine, "maze") == "v1"

    # systemd knows when the lab is up.
    machine.do("systemctl", "start", unit)
    assert answers(machine)
    assert servers(machine) == {unit}
    environment = machine.do("systemctl", "show", "--property=Environment", unit)
    assert "PORT=3000" in environment
    pid = machine.do("systemctl", "show", "--property=MainPID", "--value", unit)
    assert "LAB_HOOK=https://hook.example.org/?a=1&b=$(date)" in machine.do("cat", f"/proc/{pid}/environ").split("\0")

    # Nothing is stopped for a release that cannot back up.
    done = machine.run(DEPLOY, "v3", given=archive("backup *"))
    assert done.returncode == 1 and "v3 was not brought to: maze" in done.stderr, done.stderr
    assert machine.do("systemctl", "show", "--property=MainPID", "--value", unit) == pid
    assert in_force(machine, "maze") == "v1"

    done = machine.run(DEPLOY, "v4", given=archive("up *"))
    assert done.returncode == 1 and "maze: it goes on with v1" in done.stderr, done.stderr
    assert in_force(machine, "maze") == "v1" and answers(machine)
    assert servers(machine) == {unit}

    # What does not fit one lab changes none.
    add_lab(machine, "broken", raw_roots=[])
    done = machine.run(DEPLOY, "v5", given=archive())
    assert done.returncode != 0 and "raw_roots" in done.stderr + done.stdout
    assert in_force(machine, "maze") == "v1" and answers(machine)
    machine.do("rm", "-r", "/srv/dlc-platform/broken")

    # It is there already.
    done = machine.run(DEPLOY, "v5")
    assert done.returncode == 0, done.stderr
    assert in_force(machine, "maze") == "v5" and answers(machine)
    assert machine.do("ls", "/opt/dlc-platform/releases").split() == ["v3", "v4", "v5"]
    backups = machine.do("ls", "/var/backups/dlc-platform").split()
    assert len(backups) == 4, backups

    machine.do("systemctl", "stop", unit)
    assert not servers(machine)
    assert machine.do("systemctl", "show", "--property=Result", "--value", unit) == "success"


def test_what_is_no_release_is_refused(machine: Machine):
    done = machine.run(DEPLOY, "v9", given=b"")
    assert done.returncode != 0
    assert not machine.run("ls", "/opt/dlc-platform/releases/v9/.complete").stdout


def test_each_lab_of_a_machine_has_a_port_of_its_own():
    lines = UNIT.read_text().splitlines()
    # What the lab's own file says comes later, and wins.
    assert lines.index("Environment=PORT=3000") < lines.index("EnvironmentFile=-/etc/dlc-platform/%i.env")
    (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    _, *arguments = start.replace("%i", "lab").replace("${PORT}", "70000").split()
    done = subprocess.run([COMMAND, *arguments], env=plain_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Invalid value for '--port'" in done.stderr
