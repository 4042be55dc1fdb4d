"""A machine with labs of its own: its unit and its `deploy`, on a real systemd.

The environment of a release is the tests' own, because making one takes minutes: `uv` is a double there.
"""

import io
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from dlc_platform_tests.deployments.conftest import DEPLOYMENTS
from dlc_platform_tests.deployments.machine import CHECKOUT, Machine, Started, booted
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment

UNIT = DEPLOYMENTS / "local" / "dlc-platform@.service"
DEPLOY = DEPLOYMENTS / "local" / "deploy"
#: Makes an environment whose `dlc-platform` fails where the release's file `fails` says so, and takes long once it has
#: done its work where `sleeps` does.
UV = f"""#!/bin/sh
set -eu
[ "$*" = "sync --no-dev --compile-bytecode" ] && [ "$UV_PYTHON_INSTALL_DIR" = /opt/dlc-platform/python ]
mkdir --parents .venv/bin
ln -s {CHECKOUT}/.venv/bin/dagster .venv/bin/dagster
cat >.venv/bin/dlc-platform <<'END'
#!/bin/sh
case "$*" in
    $(cat "${{0%/.venv/*}}/fails")) echo "this release fails" >&2; exit 1 ;;
    $(cat "${{0%/.venv/*}}/sleeps")) {CHECKOUT}/.venv/bin/dlc-platform "$@"; sleep 987 ;;
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


def archive(fails: str = "nothing", sleeps: str = "nothing") -> bytes:
    """A release, as `git archive` writes it."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, content in (("pyproject.toml", b""), ("fails", fails.encode()), ("sleeps", sleeps.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return written.getvalue()


def in_force(machine: Machine, lab: str) -> str:
    return Path(machine.do("readlink", f"/opt/dlc-platform/labs/{lab}")).name


@pytest.fixture
def release(machine: Machine) -> str:
    """The release in force for `maze`: what an earlier test has brought, or else one of its own."""
    if machine.run("readlink", "/opt/dlc-platform/labs/maze").returncode:
        done = machine.run(DEPLOY, "v0", given=archive())
        assert done.returncode == 0, done.stderr
    return in_force(machine, "maze")


def answers(machine: Machine) -> bool:
    return "dagster_version" in machine.run("curl", "--silent", "http://127.0.0.1:3456/server_info").stdout


def servers(machine: Machine) -> set[str]:
    """The units that a Postgres is in."""
    return set(machine.run("ps", "-C", "postgres", "--no-headers", "--format=unit").stdout.split())


def test_a_failing_release_leaves_the_lab_as_it_was(machine: Machine):
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
    # The journal, which others may read, says how to get the address with the token, and not the token.
    home = "/srv/dlc-platform/maze"
    journal = machine.do("journalctl", "--no-pager", "--unit", unit)
    token = machine.do("cat", f"{home}/web.token")
    assert "The lab is up: http://127.0.0.1:3456/ (" in journal and token not in journal
    program = "/opt/dlc-platform/labs/maze/.venv/bin/dlc-platform"
    told = machine.do("runuser", "-u", "dlc-platform", "--", program, "ui", home, "--port", "3456")
    assert told == f"http://127.0.0.1:3456/?token={token}"
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
    done = machine.run(DEPLOY, "v5", given=archive("up *"))
    assert done.returncode == 1 and "v5 that is here was made of another archive" in done.stderr, done.stderr
    assert in_force(machine, "maze") == "v1"
    done = machine.run(DEPLOY, "v5")
    assert done.returncode == 0, done.stderr
    assert in_force(machine, "maze") == "v5" and answers(machine)
    assert machine.do("ls", "/opt/dlc-platform/releases").split() == ["v3", "v4", "v5"]
    backups = machine.do("ls", "/var/backups/dlc-platform").split()
    assert len(backups) == 4, backups

    machine.do("systemctl", "stop", unit)
    assert not servers(machine)
    assert machine.do("systemctl", "show", "--property=Result", "--value", unit) == "success"


def await_sleep(machine: Machine, under_way: Started) -> None:
    deadline = time.monotonic() + 300
    while not machine.run("pgrep", "--full", "sleep 987").stdout:
        assert under_way.runs() and time.monotonic() < deadline, under_way.said()
        time.sleep(0.2)


def test_an_interrupted_deployment_leaves_the_lab_as_it_was(machine: Machine, release: str):
    unit = "dlc-platform@maze.service"
    migrate = "migrate /srv/dlc-platform/maze"
    machine.do("systemctl", "start", unit)
    # Ctrl-C reaches the whole group, `kill` and a runner of CI the script alone.
    for step, number, group in (
        (migrate, signal.SIGINT, True),
        ("backup *", signal.SIGTERM, False),
        (f"{migrate} --check", signal.SIGTERM, False),
    ):
        machine.run("rm", "-r", "/opt/dlc-platform/releases/v7")
        pid = machine.do("systemctl", "show", "--property=MainPID", "--value", unit)
        with machine.started(DEPLOY, "v7", given=archive(sleeps=step)) as under_way:
            await_sleep(machine, under_way)
            under_way.signal(number, group)
            code, said = under_way.wait(), under_way.said()
        assert servers(machine) == {unit}, said
        assert not machine.run("pgrep", "--full", "sleep 987").stdout, said
        assert not machine.do("systemctl", "list-units", "--all", "--plain", "--no-legend", "dlc-platform-deploy-*")
        assert in_force(machine, "maze") == release and answers(machine)
        assert code == 1 and "interrupted" in said, said
        restarted = machine.do("systemctl", "show", "--property=MainPID", "--value", unit) != pid
        assert restarted == (f"maze: it goes on with {release}" in said) == (step == migrate), said
    machine.do("systemctl", "stop", unit)


def test_bad_names_of_folders_and_units_are_refused_first(machine: Machine):
    machine.do("mkdir", "--parents", "/opt/dlc-platform/releases")
    before = machine.do("ls", "/opt/dlc-platform/releases")
    for tag in ("feature/maze", "..", "a b"):
        done = machine.run(DEPLOY, tag, given=archive())
        assert done.returncode == 1 and f"the tag '{tag}'" in done.stderr, done.stderr
    add_lab(machine, "my lab")
    done = machine.run(DEPLOY, "v8", given=archive())
    machine.do("rm", "-r", "/srv/dlc-platform/my lab")
    assert done.returncode == 1 and "'/srv/dlc-platform/my lab' cannot name a unit" in done.stderr, done.stderr
    done = machine.run("env", "ACCOUNT=nobody-here", DEPLOY, "v8", given=archive())
    assert done.returncode == 1 and "no account nobody-here" in done.stderr, done.stderr
    assert machine.do("ls", "/opt/dlc-platform/releases") == before


def test_a_machine_without_labs_says_so(machine: Machine):
    done = machine.run("env", "LABS=/srv/none", DEPLOY, "v8", given=archive())
    assert done.returncode == 0 and "there is no lab in /srv/none" in done.stderr, done.stderr


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
    assert "--port: input should be less than or equal to 65535" in done.stderr
