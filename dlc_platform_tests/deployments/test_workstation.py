"""The compose deployment of a server: its services run here as ordinary processes, its files against their schemas.

There is no Docker here. What a container would do, its entrypoint does without one; `docker` itself is a double that
writes down what it was asked for, and the identity provider a double that knows two people by their cookies.
"""

import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest
import yaml

from dlc_platform_tests.deployments.conftest import DEPLOYMENTS, Server
from dlc_platform_tests.orchestration.up import plain_environment, wait_for

WORKSTATION = DEPLOYMENTS / "workstation"
ENTRYPOINT = DEPLOYMENTS / "entrypoint"
PROGRAMS = str(Path(sys.executable).parent)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def compose() -> dict[str, Any]:
    return yaml.safe_load((WORKSTATION / "compose.yaml").read_text())


class Place:
    """A lab as its containers see it, below a folder instead of below the root."""

    def __init__(self, folder: Path, project: Path, server: Server):
        self.folder = folder
        self.home = folder / "lab"
        self.home.mkdir()
        (folder / "raw").mkdir()
        lab = {"raw_roots": [str(folder / "raw")], "projects": {"tiny": {"path": str(project)}}, "gpus": []}
        (self.home / "lab.yaml").write_text(yaml.safe_dump(lab))
        self.port = free_port()
        self.migrated = ""
        workspace = yaml.safe_load((WORKSTATION / "workspace.yaml").read_text())
        workspace["load_from"][0]["grpc_server"] |= {"host": "localhost", "port": self.port}
        (folder / "workspace.yaml").write_text(yaml.safe_dump(workspace))
        # As in the image and in compose.yaml; the webserver gets the URL of Dagster's role alone.
        self.of_dagster = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOST": "127.0.0.1",
            "WORKSPACE": str(folder / "workspace.yaml"),
            "DAGSTER_HOME": str(self.home / "dagster"),
            "DAGSTER_DISABLE_TELEMETRY": "true",
            "DLC_PLATFORM_DAGSTER_POSTGRES_URL_FILE": str(server.secrets / "dagster_url"),
        }
        self.environment = self.of_dagster | {
            "DLC_PLATFORM_HOME": str(self.home),
            "DLC_PLATFORM_LEASE_DIR": str(folder / "leases"),
            "DLC_PLATFORM_POSTGRES_URL_FILE": str(server.secrets / "platform_url"),
        }

    def step(self, *arguments: str) -> str:
        done = subprocess.run(
            [ENTRYPOINT, *arguments],
            env=plain_environment() | self.environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self, name: str, environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        with (
            (self.folder / f"{name}.log").open("wb") as log,
            subprocess.Popen(
                [ENTRYPOINT, *arguments],
                env=plain_environment() | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def place(
    server: Server,
    make_reachable: Callable[[], AbstractContextManager[Path]],
    make_project: Callable[..., Path],
) -> Iterator[Place]:
    """A lab whose database `migrate` has made."""
    with make_reachable() as folder:
        place = Place(folder, make_project(folder / "tiny-tester-2026-01-01", 4), server)
        server.empty()
        place.migrated = place.step("migrate")
        yield place


def ask(port: int, query: str) -> dict[str, Any] | None:
    """What the webserver answers, or None while it answers nothing."""
    request = Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urlopen(request, timeout=30) as response:
            return json.load(response)["data"]
    except OSError:
        return None


def test_the_definitions_are_validated_without_a_database(place: Place):
    blind = {name: value for name, value in place.environment.items() if "POSTGRES" not in name}
    done = subprocess.run(
        [ENTRYPOINT, "validate"], env=plain_environment() | blind, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Validation successful" in done.stdout + done.stderr


def test_each_role_makes_its_tables(server: Server, place: Place):
    lines = place.migrated.splitlines()
    assert [line.partition(" the tables of ")[0] for line in lines] == ["the catalogue:", "Dagster's storage:"]
    assert all(line.endswith("are new: they were at nothing") for line in lines)
    assert place.step("migrate", "--check").count("nothing to do") == 2
    owners = server.ask(
        "select n.nspname || ' ' || c.relowner::regrole from pg_class c join pg_namespace n on n.oid = relnamespace "
        "where n.nspname in ('dlc', 'dagster') and relkind = 'r' group by 1 order by 1"
    )
    assert owners.split("\n") == ["dagster dagster", "dlc platform"]


def test_a_viewers_webserver_shows_the_lab_and_changes_nothing(server: Server, place: Place):
    web = free_port()
    with (
        place.serving("code-server", place.environment | {"PORT": str(place.port)}, "code-server") as code,
        place.serving("viewer", place.of_dagster | {"PORT": str(web)}, "webserver", "--read-only") as viewer,
    ):

        def loaded() -> dict[str, Any] | None:
            assert code.poll() is None, place.said("code-server")
            assert viewer.poll() is None, place.said("viewer")
            found = ask(
                web,
                "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename "
                "... on PythonError { message } } } } } permissions { permission value } }",
            )
            entries: Any = found and found["workspaceOrError"]["locationEntries"]
            done = entries and entries[0]["locationOrLoadError"]
            if done and done["__typename"] == "PythonError" and "UNAVAILABLE" in done["message"]:
                return None  # The webserver asks again by itself.
            return found if done else None

        found = wait_for(loaded)
        (entry,) = found["workspaceOrError"]["locationEntries"]
        assert entry == {
            "name": "dlc_platform.definitions",
            "locationOrLoadError": {"__typename": "RepositoryLocation"},
        }
        assert not any(permission["value"] for permission in found["permissions"])
        for process in (code, viewer):
            call = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert "postgresql" not in call
        environment = Path(f"/proc/{viewer.pid}/environ").read_text()
    for role in ("dagster", "platform"):
        password = (server.secrets / f"{role}_password").read_text().strip()
        assert password not in place.said("code-server") + place.said("viewer") + place.migrated
        assert (password in environment) == (role == "dagster")


def test_a_server_keeps_its_runs_in_order_as_one_lab_does(place: Place):
    """What `migrate` writes into the lab's dagster.yaml, and what the chart's values say, is the same."""
    of_lab = yaml.safe_load((place.home / "dagster" / "dagster.yaml").read_text())
    of_kubernetes = yaml.safe_load((DEPLOYMENTS / "kubernetes" / "values.yaml").read_text())["additionalInstanceConfig"]
    # That one depends on the machine's processors.
    for of_any in (of_lab, of_kubernetes):
        assert of_any["concurrency"]["runs"].pop("max_concurrent_runs") > 1
    assert of_lab.pop("run_launcher")["class"] == "GpuRunLauncher"
    # Where the files lie is another matter, and the chart writes the rest itself.
    for key in {*of_lab, *of_kubernetes} - {"storage", "compute_logs", "local_artifact_storage", "telemetry"}:
        assert of_kubernetes.get(key) == of_lab.get(key), key


#: A double of docker, which is not here: it writes down where it was asked for what, with which lab.yaml and which
#: settings in its environment, and fails or takes its time where it is told to.
DOCKER = r"""#!/bin/sh
if [ "$1 $2" = "image inspect" ]; then
    sed -n "s/^\(.*\):${5#*:}@/\1@/p" "$CALLS.registry"
    exit
fi
echo "$TAG${DIGEST-}" >> "$CALLS.images"
echo "$TAG: $*" >> "$CALLS"
echo "$(pwd -P) ${LAB_FILE-of .env}" >> "$CALLS.places"
env | grep --extended-regexp '^(STAGE|OIDC_SCOPE|COMPOSE_[A-Z_]*)=' >> "$CALLS.environment"
! echo "$TAG: $*" | grep --quiet --extended-regexp "${SLOW:-nothing}" || exec sleep "${SECONDS_OF_IT:-60}"
! echo "$TAG: $*" | grep --quiet --extended-regexp "$FAIL"
"""


class Machine:
    """A checkout, the folder of a deployment, and a double of docker."""

    def __init__(self, folder: Path):
        self.checkout = folder / "checkout"
        for name in ("workstation", "postgres"):
            shutil.copytree(DEPLOYMENTS / name, self.checkout / name)
        self.place = folder / "production"
        self.place.mkdir()
        (self.checkout / "lab.yaml").write_text("raw_roots: [/raw]\n")
        example = (WORKSTATION / "env.example").read_text()
        own = re.sub("(?m)^LAB_FILE=.*", f"LAB_FILE={self.checkout / 'lab.yaml'}", example)
        (self.place / ".env").write_text(own)
        (folder / "bin").mkdir()
        (folder / "bin" / "docker").write_text(DOCKER)
        (folder / "bin" / "docker").chmod(0o755)
        self._calls = folder / "calls"
        Path(f"{self._calls}.registry").touch()
        self.said = ""
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self._calls),
            "DEPLOYMENT_FOLDER": str(self.place),
        }

    def deploy(self, tag: str, fail: str = "nothing", **environment: str) -> int:
        """Run the script; `calls` and `places` are then what docker was asked for."""
        self._calls.unlink(missing_ok=True)
        for kind in ("places", "environment", "images"):
            Path(f"{self._calls}.{kind}").unlink(missing_ok=True)
        with self.deploying(tag, fail, **environment) as process:
            _, self.said = process.communicate()
        return process.returncode

    def deploying(self, tag: str, fail: str = "nothing", **environment: str) -> subprocess.Popen[str]:
        """The script at work, in a group of its own as in a terminal."""
        return subprocess.Popen(
            [self.checkout / "workstation" / "deploy", tag],
            env=self.environment | {"FAIL": fail} | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def push(self, tag: str, letter: str) -> str:
        """Have the registry's tag name an image; its digest."""
        digest = f"@sha256:{64 * letter}"
        registry = Path(f"{self._calls}.registry")
        others = [line for line in registry.read_text().splitlines() if f":{tag}@" not in line]
        registry.write_text("\n".join([*others, f"dlc-platform:{tag}{digest}", ""]))
        return digest

    @property
    def images(self) -> list[str]:
        """The tags and digests that the steps of the last deployment worked with, the pull first."""
        return list(dict.fromkeys(Path(f"{self._calls}.images").read_text().splitlines()))

    def put(self, name: str, line: str) -> None:
        """Have another line for a setting, or none."""
        settings = self.place / ".env"
        settings.write_text(re.sub(f"(?m)^{name}=.*", line, settings.read_text()))

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    @property
    def places(self) -> set[str]:
        return set(Path(f"{self._calls}.places").read_text().splitlines())

    @property
    def in_environment(self) -> set[str]:
        return set(Path(f"{self._calls}.environment").read_text().splitlines())

    def in_force(self) -> tuple[str, str]:
        """The tag, and the Caddyfile that the proxy is started with."""
        (line,) = [line for line in (self.place / ".env").read_text().splitlines() if line.startswith("TAG=")]
        return line.removeprefix("TAG="), (self.place / "current" / "Caddyfile").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


STARTING = "compose up --detach --wait --remove-orphans"


def test_a_deployment_backs_up_and_migrates_before_it_starts(machine: Machine):
    assert machine.deploy("v2") == 0
    assert machine.in_force() == ("v2", (WORKSTATION / "Caddyfile").read_text())
    assert all(call.startswith("v2: compose ") for call in machine.calls)
    order = [
        "pull",
        "run --rm --no-deps validate",
        "migrate --check",
        "backup /lab",
        "deps migrate",
        "up",
        "doctor /lab",
    ]
    rest = iter(machine.calls)
    for step in order:
        assert any(step in call for call in rest), f"{step} does not come in its turn: {machine.calls}"


def test_going_back_brings_the_image_that_the_tag_named(machine: Machine):
    of_v1, of_v2 = machine.push("v1", "1"), machine.push("v2", "2")
    assert machine.deploy("v1") == 0
    assert machine.images == ["v1", f"v1{of_v1}"]
    assert f"\nDIGEST={of_v1}\n" in (machine.place / ".env").read_text()
    assert machine.deploy("v2") == 0
    assert machine.images == ["v2", f"v2{of_v2}"]
    # Somebody has given the name to another image.
    machine.push("v1", "e")
    assert machine.deploy("v1") == 0
    assert machine.images == [f"v1{of_v1}"]
    assert (machine.place / "digests").read_text() == f"dlc-platform:v1 {of_v1}\ndlc-platform:v2 {of_v2}\n"
    of_v3 = machine.push("v3", "3")
    assert machine.deploy("v3", fail=f"v3: {STARTING}") == 1
    assert machine.images == ["v3", f"v3{of_v3}", f"v1{of_v1}"]
    assert f"\nTAG=v1\nDIGEST={of_v1}\n" in (machine.place / ".env").read_text()


def test_an_image_that_comes_from_no_registry_is_known_by_its_tag(machine: Machine):
    assert machine.deploy("v1") == 0
    assert machine.images == ["v1"]
    assert "dlc-platform:v1 comes from no registry and has no digest" in machine.said
    assert "\nDIGEST=\n" in (machine.place / ".env").read_text() and (machine.place / "digests").read_text() == ""


@pytest.mark.parametrize("step", ["pull", "validate", "migrate --check", "backup", "deps migrate$"])
def test_what_fails_leaves_the_old_version_at_work(machine: Machine, step: str):
    """With the files that it was started with, although those of the new one were there already."""
    assert machine.deploy("v2") == 0
    of_v2, before = (machine.place / "current").resolve(), machine.in_force()
    (machine.checkout / "workstation" / "Caddyfile").write_text("of v3")
    assert machine.deploy("v3", fail=step) != 0
    assert machine.in_force() == before
    assert re.search(step, machine.calls[-1])
    assert not any(STARTING in call for call in machine.calls)
    assert of_v2.joinpath("Caddyfile").read_text() == before[1]
    # Postgres at work is not replaced by one of the new files before everything was looked at.
    for call in machine.calls:
        assert "--no-deps" in call or "--no-recreate postgres" in call or "pull" in call, call


def test_a_version_that_does_not_start_gives_way_to_the_old_one(machine: Machine):
    assert machine.deploy("v2") == 0
    before = machine.in_force()
    (machine.checkout / "workstation" / "Caddyfile").write_text("of v3")
    assert machine.deploy("v3", fail=f"v3: {STARTING}") == 1
    assert machine.in_force() == before
    assert machine.calls[-2:] == ["v2: compose run --rm --no-deps migrate", f"v2: {STARTING}"]
    assert any(place.startswith(str((machine.place / "current").resolve())) for place in machine.places)


def test_where_the_old_version_does_not_know_the_tables_the_new_one_stays(machine: Machine):
    assert machine.deploy("v2") == 0
    (machine.checkout / "workstation" / "Caddyfile").write_text("of v3")
    assert machine.deploy("v3", fail=f"v3: {STARTING}|v2: .* migrate$") == 1
    assert machine.in_force() == ("v3", "of v3")
    assert f"v2: {STARTING}" not in machine.calls


def test_a_first_version_that_does_not_start_is_not_in_force(machine: Machine):
    assert machine.deploy("v1", fail=STARTING) == 1
    assert not (machine.place / "current").exists()
    assert "\nTAG=cuda\n" in (machine.place / ".env").read_text()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("reaches", [os.kill, os.killpg], ids=["the script", "its group"])
def test_a_version_whose_start_is_cut_off_gives_way_to_the_old_one(
    machine: Machine, sign: signal.Signals, reaches: Callable[[int, int], None]
):
    assert machine.deploy("v2") == 0
    before = machine.in_force()
    (machine.checkout / "workstation" / "Caddyfile").write_text("of v3")
    with machine.deploying("v3", SLOW=f"v3: {STARTING}") as process:
        wait_for(lambda: f"v3: {STARTING}" in machine.calls)
        reaches(process.pid, sign)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert machine.in_force() == before
    assert machine.calls[-2:] == ["v2: compose run --rm --no-deps migrate", f"v2: {STARTING}"]
    assert "v3 was cut off" in said and "v2 is at work again" in said


def test_going_back_is_not_cut_off(machine: Machine):
    """Who presses Ctrl-C does so more than once."""
    assert machine.deploy("v2") == 0
    slow = f"v3: {STARTING}|v2: .* migrate$"
    with machine.deploying("v3", SLOW=slow, SECONDS_OF_IT="3") as process:
        for call in (f"v3: {STARTING}", "v2: compose run --rm --no-deps migrate"):
            wait_for(lambda call=call: call in machine.calls[-1:])
            os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert machine.in_force()[0] == "v2"
    assert "v2 is at work again" in said, said


def test_a_doctor_who_finds_something_leaves_the_version_in_force_and_says_so(machine: Machine):
    assert machine.deploy("v2", fail="doctor /lab") == 1
    assert machine.said.endswith("deploy: v2 is in force; doctor found something wrong\n")
    assert machine.in_force()[0] == "v2"


def test_the_newest_releases_stay_and_the_one_in_force(machine: Machine):
    made = []
    for number in range(7):
        (machine.checkout / "workstation" / "Caddyfile").write_text(f"of v{number}")
        assert machine.deploy(f"v{number}", fail="v1: .* doctor") == (1 if number == 1 else 0)
        made.append((machine.place / "current").resolve().parent)
        os.utime(made[-1], (number, number))
    assert {path for path in made if path.exists()} == set(made[2:])
    # One that is in force again is a new one.
    (machine.checkout / "workstation" / "Caddyfile").write_text("of v2")
    assert machine.deploy("v2") == 0
    (machine.checkout / "workstation" / "Caddyfile").write_text("of v7")
    assert machine.deploy("v7", fail=f"v7: {STARTING}") == 1
    assert {path for path in made if path.exists()} == set(made[2:])
    assert machine.in_force() == ("v2", "of v2")


@pytest.mark.parametrize("changed", ["workstation/Caddyfile", "postgres/pg_hba.conf", "lab.yaml"])
def test_containers_are_made_anew_where_a_file_of_theirs_has_changed(machine: Machine, changed: str):
    """Compose compares the paths of what is mounted, not what is in it."""
    assert machine.deploy("v2") == 0
    of_v2 = (machine.place / "current").resolve()
    assert machine.deploy("v3") == 0
    assert (machine.place / "current").resolve() == of_v2
    with (machine.checkout / changed).open("a") as file:
        file.write("# another one\n")
    assert machine.deploy("v4") == 0
    of_v4 = (machine.place / "current").resolve()
    assert of_v4 != of_v2
    deployed = of_v4 / changed if changed == "lab.yaml" else of_v4.parent / changed
    assert deployed.read_text().endswith("# another one\n")
    for service in compose()["services"].values():
        for mount in service.get("volumes", []):
            assert mount["source"].startswith(("./", "../postgres", "${")) or mount["type"] == "volume", mount
            if mount["source"].startswith("."):
                assert of_v4.joinpath(mount["source"]).exists()


def test_every_account_of_a_container_may_read_the_files(machine: Machine):
    os.chmod(machine.checkout / "workstation" / "Caddyfile", 0o600)
    assert machine.deploy("v2") == 0
    release = (machine.place / "current").resolve().parent
    for path in [release, *release.rglob("*")]:
        assert path.stat().st_mode & 0o005 == (0o005 if path.is_dir() else path.stat().st_mode & 0o001 | 0o004), path
    assert (release / "postgres" / "initialise.sh").stat().st_mode & 0o001


def test_the_settings_of_the_target_count_for_more_than_the_environment(machine: Machine):
    assert machine.deploy("v2", LAB_FILE="/of/the/runner/lab.yaml", SIGN_ON_IMAGE="", TAG="v0") == 0
    release = (machine.place / "current").resolve()
    assert machine.places == {f"{release} of .env"}
    assert (release / ".env").samefile(machine.place / ".env")
    assert all(call.startswith("v2: ") for call in machine.calls)


def test_the_environment_does_not_count_for_what_the_settings_lack(machine: Machine):
    machine.put("STAGE", "")
    machine.put("COMPOSE_FILE", "")
    caller = {"STAGE": "staging", "OIDC_SCOPE": "openid", "COMPOSE_PROFILES": "deployment", "COMPOSE_FILE": "/other"}
    assert machine.deploy("v2", **caller) == 0
    assert machine.in_environment == set()


@pytest.mark.parametrize("quote", ['"', "'"])
def test_settings_may_stand_in_quotes_as_compose_takes_them(machine: Machine, quote: str):
    machine.put("LAB_FILE", f"LAB_FILE={quote}{machine.checkout / 'lab.yaml'}{quote}")
    machine.put("TAG", f"TAG={quote}v1{quote}")
    (machine.place / "current").mkdir()
    assert machine.deploy("v2", fail=f"v2: {STARTING}") == 1
    assert machine.calls[-1] == f"v1: {STARTING}"


def test_the_commands_of_the_readme_bring_a_first_version(machine: Machine):
    """Somewhere else than below the root; `sudo`, Docker and systemd are doubles."""
    elsewhere = machine.place.parent / "root"
    text = (DEPLOYMENTS / "README.md").read_text().partition("## A server")[2]
    block = text.partition("\n\n    ")[2].partition("\n\n")[0]
    below = re.compile(r"(?<![\w.])(/etc/dlc-platform|/etc/systemd|/srv|/var/\w+|/opt)(?=/|$)", re.MULTILINE)
    here = elsewhere / "checkout" / "deployments"
    shutil.copytree(DEPLOYMENTS, here)
    for file in (here / "workstation" / "env.example", here / "workstation" / "deploy"):
        file.write_text(below.sub(rf"{elsewhere}\1", file.read_text()))
    # The lab's own.
    (here / "workstation" / "lab.yaml").write_text("raw_roots: [/raw]\n")
    (elsewhere / "etc" / "systemd" / "system").mkdir(parents=True)
    programs = elsewhere / "bin"
    programs.mkdir()
    for name, double in (("docker", DOCKER), ("sudo", '#!/bin/sh\nexec "$@"\n'), ("systemctl", "#!/bin/sh\n")):
        (programs / name).write_text(double)
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "USER": str(os.geteuid()),
        "CALLS": str(elsewhere / "calls"),
        "FAIL": "nothing",
        "TAG": "",
    }
    done = subprocess.run(
        ["sh", "-euc", below.sub(rf"{elsewhere}\1", block)],
        cwd=here.parent,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "v1 is in force" in done.stderr
    # Whoever deploys, who is not root, reads it.
    for path in (elsewhere / "etc" / "dlc-platform", elsewhere / "etc" / "dlc-platform" / "lab.yaml"):
        assert path.stat().st_mode & 0o004, path
    assert (elsewhere / "etc" / "dlc-platform" / "secrets" / "platform_url").stat().st_mode & 0o077 == 0


def test_the_folder_above_the_secrets_is_for_who_deploys_too(tmp_path: Path):
    """lab.yaml lies there."""
    environment = {"PATH": os.environ["PATH"], "POSTGRES_UID": str(os.getuid()), "PLATFORM_UID": str(os.getuid())}
    folder = tmp_path / "etc" / "secrets"
    subprocess.run([WORKSTATION / "make-secrets", folder], env=environment, check=True, capture_output=True)
    assert folder.parent.stat().st_mode & 0o005 == 0o005
    assert (folder / "platform_url").stat().st_mode & 0o077 == 0
    assert not (folder / "openssl.log").exists()


def test_what_openssl_says_is_shown_where_it_fails(tmp_path: Path):
    (tmp_path / "openssl").write_text('#!/bin/sh\n[ "$1" = rand ] || { echo "no such curve" >&2; exit 1; }\n')
    (tmp_path / "openssl").chmod(0o755)
    done = subprocess.run(
        [WORKSTATION / "make-secrets", tmp_path / "secrets"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no such curve" in done.stderr


def unit_command(machine: Machine) -> list[str]:
    lines = (WORKSTATION / "dlc-platform-server@.service").read_text().splitlines()
    (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    return start.replace("/opt/dlc-platform/%i", str(machine.place)).replace("/usr/bin/docker", "docker").split()


def test_the_unit_starts_what_is_down_and_nothing_while_a_deployment_is_under_way(machine: Machine):
    assert machine.deploy("v2") == 0
    told = {"cwd": machine.place / "current", "env": machine.environment | {"FAIL": "nothing", "TAG": ""}}
    before = machine.calls
    subprocess.run(unit_command(machine), check=True, **told)
    assert machine.calls == [*before, ": compose --progress quiet up --detach --wait --no-recreate"]
    with (machine.place / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(unit_command(machine), check=True, **told)
    assert len(machine.calls) == len(before) + 1


def test_a_deployment_waits_for_another_one(machine: Machine):
    with (machine.place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [machine.checkout / "workstation" / "deploy", "v2"],
            env=machine.environment | {"FAIL": "nothing"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline()
        assert machine.calls == []
    assert process.wait(60) == 0
    process.stderr.close()
    assert machine.in_force()[0] == "v2"


def test_nothing_secret_is_in_the_compose_file_and_nothing_runs_with_more_than_it_needs():
    described = compose()
    services = described["services"]
    of_platform = {name for name, service in services.items() if str(service["image"]).startswith("${IMAGE")}
    assert of_platform == {"code-server", "daemon", "webserver", "viewer", "migrate", "validate"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert "docker.sock" not in json.dumps(service), name
        assert "PASSWORD:" not in json.dumps(service.get("environment", {}))
        # Only the proxy is reached from outside.
        assert ("ports" in service) == (name == "proxy"), name
    for name in of_platform:
        assert services[name]["user"] == "${PLATFORM_UID:-10001}:${PLATFORM_GID:-10001}"
        mounts = {mount["target"]: mount for mount in services[name]["volumes"]}
        for target in {"/raw", "/projects", "/lab/lab.yaml"} & mounts.keys():
            assert mounts[target]["read_only"] is True, (name, target)
    for name in ("webserver", "viewer"):
        assert services[name]["secrets"] == ["dagster_url", "postgres_ca"]
        assert set(services[name]["networks"]) == {"database", "services"}
    assert described["networks"]["database"] == described["networks"]["services"] == {"internal": True}
    # Who stops runs has to see the workers and to bear the name of their machine.
    assert services["webserver"]["pid"] == "service:daemon"
    assert services["webserver"]["hostname"] == services["daemon"]["hostname"]


def test_everything_that_compose_asks_for_has_an_example():
    given = {
        line.partition("=")[0]
        for line in (WORKSTATION / "env.example").read_text().splitlines()
        if line and not line.startswith("#")
    }
    text = (WORKSTATION / "compose.yaml").read_text()
    asked = {part.split("}")[0].partition(":")[0] for part in text.split("${")[1:]}
    assert asked - given <= {"OIDC_SCOPE", "OIDC_GROUPS_CLAIM"}
    # The last is for `deploy`.
    assert given - asked <= {"COMPOSE_PROJECT_NAME", "COMPOSE_FILE", "LAB_FILE"}
    # make-secrets makes what compose mounts.
    made = (WORKSTATION / "make-secrets").read_text()
    for name in compose()["secrets"]:
        assert name in made or name.removesuffix("_password") in made or name.removesuffix("_url") in made


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], tuple[int, str]]) -> Iterator[str]:
    """A web server on loopback; its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


#: Who is in which groups, by the cookie.
GROUPS = {"ada": {"dlc-editors"}, "visitor": {"dlc-viewers"}, "stranger": {"others"}}


def sign_on(request: BaseHTTPRequestHandler) -> tuple[int, str]:
    """As oauth2-proxy answers: 202 for a member of an allowed group, 403 for another one, 401 for nobody."""
    url = urlsplit(request.path)
    if url.path != "/oauth2/auth":
        return 200, f"signing on for {request.headers['X-Forwarded-Host']}"
    groups = GROUPS.get(request.headers.get("Cookie", ""))
    if groups is None:
        return 401, ""
    allowed = parse_qs(url.query)["allowed_groups"][0].split(",")
    return (202 if groups & set(allowed) else 403), ""


def test_the_proxy_lets_in_whom_the_sign_on_knows_and_viewers_to_the_viewer_alone(tmp_path: Path):
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("the system has no Caddy: install the package caddy")
    port = free_port()
    with (
        answering(sign_on) as signing,
        answering(lambda request: (200, "everything")) as webserver,
        answering(lambda request: (200, "looking on")) as viewer,
    ):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HTTP_PORT": str(free_port()),
            "EDIT_HOST": f"https://edit.localhost:{port}",
            "VIEW_HOST": f"https://view.localhost:{port}",
            "EDITORS": "dlc-editors",
            "VIEWERS": "dlc-editors,dlc-viewers",
            "SIGN_ON": signing,
            "WEBSERVER": webserver,
            "VIEWER": viewer,
        }
        log = (tmp_path / "log").open("wb")
        command = [caddy, "run", "--config", WORKSTATION / "Caddyfile", "--adapter", "caddyfile"]
        with log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:

            def get(name: str, cookie: str = "", path: str = "/runs") -> tuple[int, str, dict[str, str]] | None:
                assert process.poll() is None, (tmp_path / "log").read_text()
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                try:
                    with socket.create_connection(("127.0.0.1", port), 30) as plain:
                        connection = http.client.HTTPConnection(f"{name}.localhost", port)
                        connection.sock = context.wrap_socket(plain, server_hostname=f"{name}.localhost")
                        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
                        response = connection.getresponse()
                        return response.status, response.read().decode(), dict(response.getheaders())
                except (ConnectionError, ssl.SSLError):
                    return None

            try:
                status, _, headers = wait_for(lambda: get("edit"))
                assert status == 302
                assert headers["Location"] == "/oauth2/start?rd=https://edit.localhost/runs"
                assert headers["Strict-Transport-Security"]
                answers = {
                    (name, who): wait_for(lambda n=name, w=who: get(n, w))[:2]
                    for name in ("edit", "view")
                    for who in GROUPS
                }
                assert answers[("edit", "ada")] == (200, "everything")
                assert answers[("view", "ada")] == answers[("view", "visitor")] == (200, "looking on")
                for refused in (("edit", "visitor"), ("edit", "stranger"), ("view", "stranger")):
                    assert answers[refused] == (403, "")
                # To sign on, nobody has to have signed on.
                assert wait_for(lambda: get("view", path="/oauth2/start"))[1] == f"signing on for view.localhost:{port}"
            finally:
                process.terminate()
