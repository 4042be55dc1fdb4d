"""The compose deployment of a server: its services run here as ordinary processes, its files against their schemas.

There is no Docker here. What a container would do, its entrypoint does without one; `docker` itself is a double that
writes down what it was asked for, and the identity provider a double that knows two people by their cookies.
"""

import contextlib
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
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

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


@dataclass(frozen=True)
class WebServer:
    """One of the two web servers, as its container starts it."""

    kind: str
    port: int
    secrets: Path
    process: subprocess.Popen[bytes]

    @property
    def token(self) -> str:
        return (self.secrets / f"web_{self.kind}_token").read_text()

    def ask(self, query: str) -> dict[str, Any] | None:
        """What it answers to who has its token, or None while it answers nothing."""
        try:
            status, body = self.post(query, {"Authorization": f"Bearer {self.token}"})
        except OSError:
            return None
        assert status == 200, body
        return json.loads(body)["data"]

    def post(self, query: str, headers: dict[str, str]) -> tuple[int, str]:
        return request(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), query, headers)


def request(connection: http.client.HTTPConnection, query: str, headers: dict[str, str]) -> tuple[int, str]:
    body = json.dumps({"query": query})
    with contextlib.closing(connection):
        connection.request("POST", "/graphql", body, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


@contextmanager
def web_server(place: Place, server: Server, kind: str) -> Iterator[WebServer]:
    """The one of editors (`edit`) or of viewers (`view`), with the command and the variables of compose.yaml."""
    service = compose()["services"]["webserver" if kind == "edit" else "viewer"]
    port = free_port()
    environment = {
        name: value.replace("/run/secrets", str(server.secrets))
        for name, value in service["environment"].items()
        if "TOKEN" in name
    }
    assert len(environment) == 1
    environment |= place.of_dagster | {"PORT": str(port), "DLC_PLATFORM_WEB_HOSTS": f"{kind}.localhost"}
    with place.serving(kind, environment, *service["command"]) as process:
        yield WebServer(kind, port, server.secrets, process)


@pytest.fixture(scope="module")
def web_servers(server: Server, place: Place) -> Iterator[dict[str, WebServer]]:
    """Both, once they have loaded the definitions from the code server."""
    question = (
        "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename "
        "... on PythonError { message } } } } } }"
    )
    with (
        place.serving("code-server", place.environment | {"PORT": str(place.port)}, "code-server") as code,
        web_server(place, server, "edit") as edit,
        web_server(place, server, "view") as view,
    ):
        assert "postgresql" not in Path(f"/proc/{code.pid}/cmdline").read_text()
        both = {"edit": edit, "view": view}

        def loaded(web: WebServer) -> bool:
            assert code.poll() is None, place.said("code-server")
            assert web.process.poll() is None, place.said(web.kind)
            found = web.ask(question)
            entries: Any = found and found["workspaceOrError"]["locationEntries"]
            done = entries and entries[0]["locationOrLoadError"]
            if not done or (done["__typename"] == "PythonError" and "UNAVAILABLE" in done["message"]):
                return False  # The web server asks again by itself.
            assert entries == [
                {"name": "dlc_platform.definitions", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
            ]
            return True

        for web in both.values():
            wait_for(lambda web=web: loaded(web))
        yield both


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


def test_a_viewers_web_server_shows_the_lab_and_changes_nothing(
    server: Server, place: Place, web_servers: dict[str, WebServer]
):
    found = web_servers["view"].ask("{ permissions { permission value } }")
    assert found and not any(permission["value"] for permission in found["permissions"])
    found = web_servers["edit"].ask("{ permissions { permission value } }")
    assert found and any(permission["value"] for permission in found["permissions"])
    environment = ""
    for web in web_servers.values():
        assert "postgresql" not in Path(f"/proc/{web.process.pid}/cmdline").read_text()
        environment += Path(f"/proc/{web.process.pid}/environ").read_text()
        assert web.token not in environment
    said = "".join(place.said(name) for name in ("code-server", "edit", "view")) + place.migrated
    for role in ("dagster", "platform"):
        password = (server.secrets / f"{role}_password").read_text().strip()
        assert password not in said
        assert (password in environment) == (role == "dagster")


RELOAD = "mutation { reloadWorkspace { __typename } }"


def test_past_the_proxy_nobody_gets_in(web_servers: dict[str, WebServer]):
    """Neither another container, nor a viewer's token at the editors' server, nor another name or origin."""
    edit, view = web_servers["edit"], web_servers["view"]
    assert edit.token != view.token and len(edit.token) == len(view.token) == 64
    for web, other in ((edit, view), (view, edit)):
        for headers in ({}, {"Authorization": f"Bearer {other.token}"}, {"Authorization": "Bearer "}):
            assert web.post(RELOAD, headers)[0] == 401
        known = {"Authorization": f"Bearer {web.token}"}
        assert web.post(RELOAD, known | {"Host": f"{other.kind}.localhost"})[0] == 403
        assert web.post(RELOAD, known | {"Origin": "https://elsewhere.example"})[0] == 403
    found = view.post(RELOAD, {"Authorization": f"Bearer {view.token}"})
    assert found[0] == 403 and "Nothing can be changed here" in found[1]


def test_the_health_check_of_a_container_needs_no_token(web_servers: dict[str, WebServer]):
    for web in web_servers.values():
        service = compose()["services"]["webserver" if web.kind == "edit" else "viewer"]
        _, program, *arguments = service["healthcheck"]["test"]
        assert program == "python"
        check = [argument.replace(":3000/", f":{web.port}/") for argument in arguments]
        subprocess.run([sys.executable, *check], check=True)


@pytest.mark.parametrize("kind", ["edit", "view"])
@pytest.mark.parametrize("left", ["nothing", "a token that is empty"])
def test_a_web_server_without_a_token_does_not_start(place: Place, tmp_path: Path, kind: str, left: str):
    """As with the files of an earlier version; it says what is missing instead of being open."""
    arguments = ["webserver"] if kind == "edit" else ["webserver", "--read-only"]
    variable = "DLC_PLATFORM_WEB_TOKEN_FILE" if kind == "edit" else "DLC_PLATFORM_WEB_READ_ONLY_TOKEN_FILE"
    environment = {variable: str(tmp_path / "token")} if left != "nothing" else {}
    (tmp_path / "token").touch()
    done = subprocess.run(
        [ENTRYPOINT, *arguments],
        env=plain_environment() | place.of_dagster | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert ("holds no token" if environment else "there is no lab to work on") in done.stderr


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
        "run --rm --no-deps tokens",
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


def test_a_deployment_from_before_gets_its_tokens_once(machine: Machine, tmp_path: Path):
    """It has a folder of secrets from an earlier version, which only root may write into."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    machine.put("SECRETS", f"SECRETS='{secrets}'")
    drawing = "v2: compose run --rm --no-deps tokens"
    assert machine.deploy("v2", fail=" tokens$") == 1
    # Nothing is at work with it yet, and the same is said as a command.
    assert machine.calls[-1] == drawing
    told = machine.said.splitlines()[-1].partition("sudo ")[2]
    assert told == f"PLATFORM_UID=10001 {machine.checkout}/workstation/make-tokens {secrets}"
    subprocess.run(["sh", "-euc", told.replace("10001", str(os.getuid()))], check=True)
    assert machine.deploy("v2") == 0
    assert drawing not in machine.calls
    # What Compose runs is this script, on this folder.
    service = compose()["services"]["tokens"]
    assert service["entrypoint"] == ["sh", "/make-tokens", "/secrets"]
    mounts = {mount["target"]: mount["source"] for mount in service["volumes"]}
    assert mounts == {"/make-tokens": "./make-tokens", "/secrets": "${SECRETS:?the folder of the secrets}"}
    assert (machine.place / "current" / "make-tokens").exists()


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


def test_an_image_without_a_registry_is_known_by_its_tag(machine: Machine):
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


def test_the_new_version_stays_if_the_old_cannot_read_the_tables(machine: Machine):
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
def test_a_version_with_an_interrupted_start_yields_to_the_old(
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


def test_findings_of_doctor_leave_the_version_in_force(machine: Machine):
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
def test_containers_with_changed_files_are_made_anew(machine: Machine, changed: str):
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


def test_settings_of_the_target_win_over_the_environment(machine: Machine):
    assert machine.deploy("v2", LAB_FILE="/of/the/runner/lab.yaml", SIGN_ON_IMAGE="", TAG="v0") == 0
    release = (machine.place / "current").resolve()
    assert machine.places == {f"{release} of .env"}
    assert (release / ".env").samefile(machine.place / ".env")
    assert all(call.startswith("v2: ") for call in machine.calls)


def test_the_environment_does_not_fill_in_missing_settings(machine: Machine):
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


def test_the_unit_starts_nothing_while_a_deployment_is_under_way(machine: Machine):
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


def test_the_compose_file_has_no_secrets_and_only_needed_rights():
    described = compose()
    services = described["services"]
    of_platform = {name for name, service in services.items() if str(service["image"]).startswith("${IMAGE")}
    assert of_platform == {"code-server", "daemon", "webserver", "viewer", "migrate", "validate", "tokens"}
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
        # The folder of the secrets is root's.
        own = "0:0" if name == "tokens" else "${PLATFORM_UID:-10001}:${PLATFORM_GID:-10001}"
        assert services[name]["user"] == own
        mounts = {mount["target"]: mount for mount in services[name]["volumes"]}
        for target in {"/raw", "/projects", "/lab/lab.yaml"} & mounts.keys():
            assert mounts[target]["read_only"] is True, (name, target)
    for name in ("webserver", "viewer"):
        token = f"web_{'edit' if name == 'webserver' else 'view'}_token"
        assert services[name]["secrets"] == ["dagster_url", "postgres_ca", token]
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
    made = (WORKSTATION / "make-secrets").read_text() + (WORKSTATION / "make-tokens").read_text()
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


def trusting() -> ssl.SSLContext:
    """Takes a certificate of Caddy's own authority."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Proxy:
    """Caddy at work, with the Caddyfile of the deployment."""

    port: int

    def name(self, kind: str) -> str:
        """As what a browser knows it."""
        return f"{kind}.localhost:{self.port}"

    def connection(self, kind: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(f"{kind}.localhost", self.port)
        connection.sock = trusting().wrap_socket(self.connected(), server_hostname=f"{kind}.localhost")
        return connection

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30)

    def get(self, kind: str, path: str = "/runs", **headers: str) -> tuple[int, str, dict[str, str]]:
        with contextlib.closing(self.connection(kind)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode(), dict(response.getheaders())


@contextmanager
def proxying(folder: Path, secrets: Path, signing: str, webserver: str, viewer: str) -> Iterator[Proxy]:
    """The proxy before two web servers; `signing` is the sign-on."""
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("the system has no Caddy: install the package caddy")
    proxy = Proxy(free_port())
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HTTP_PORT": str(free_port()),
        "EDIT_HOST": f"https://{proxy.name('edit')}",
        "VIEW_HOST": f"https://{proxy.name('view')}",
        "EDITORS": "dlc-editors",
        "VIEWERS": "dlc-editors,dlc-viewers",
        "SIGN_ON": signing,
        "WEBSERVER": webserver,
        "VIEWER": viewer,
        "TOKENS": str(secrets / "proxy_tokens"),
    }
    # The variables of both deployments are these.
    (pod,) = [
        container
        for manifest in yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / "proxy.yaml").read_text())
        for container in manifest["spec"].get("template", {}).get("spec", {}).get("containers", [])
        if container["name"] == "caddy"
    ]
    of_pod = environment.keys() - {"PATH", "HOME"} | {"TLS"}
    assert {one["name"] for one in pod["env"]} == of_pod
    assert compose()["services"]["proxy"]["environment"].keys() == of_pod - {"HTTP_PORT"}
    command = [caddy, "run", "--config", WORKSTATION / "Caddyfile", "--adapter", "caddyfile"]
    log = (folder / "log").open("wb")
    with log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                # Each name has a certificate of its own, which is made first.
                return all(proxy.get(kind)[0] for kind in ("edit", "view"))
            except (ConnectionError, ssl.SSLError):
                return False

        try:
            wait_for(answers)
            yield proxy
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    make_tokens(folder)
    return folder


def make_tokens(folder: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PLATFORM_UID": str(os.getuid())}
    subprocess.run([WORKSTATION / "make-tokens", folder], env=environment, check=True)


def test_the_proxy_admits_known_users_and_viewers_to_the_viewer(tmp_path: Path, tokens: Path):
    with (
        answering(sign_on) as signing,
        answering(lambda request: (200, f"everything {request.headers['Authorization']}")) as webserver,
        answering(lambda request: (200, f"looking on {request.headers['Authorization']}")) as viewer,
        proxying(tmp_path, tokens, signing, webserver, viewer) as proxy,
    ):
        status, body, headers = proxy.get("edit")
        assert (status, body) == (302, "")
        assert headers["Location"] == "/oauth2/start?rd=https://edit.localhost/runs"
        assert headers["Strict-Transport-Security"]
        answers = {(kind, who): proxy.get(kind, Cookie=who)[:2] for kind in ("edit", "view") for who in GROUPS}
        of_edit, of_view = ((tokens / f"web_{kind}_token").read_text() for kind in ("edit", "view"))
        assert answers[("edit", "ada")] == (200, f"everything Bearer {of_edit}")
        assert answers[("view", "ada")] == answers[("view", "visitor")] == (200, f"looking on Bearer {of_view}")
        for refused in (("edit", "visitor"), ("edit", "stranger"), ("view", "stranger")):
            assert answers[refused] == (403, "")
        # What a browser says of itself is not handed on, and opens nothing.
        own = {"Authorization": f"Bearer {of_edit}"}
        assert proxy.get("view", Cookie="visitor", **own)[1] == f"looking on Bearer {of_view}"
        assert proxy.get("edit", Cookie="visitor", **own)[:2] == (403, "")
        assert proxy.get("edit", **own)[0] == 302
        # To sign on, nobody has to have signed on.
        assert proxy.get("view", "/oauth2/start")[1] == f"signing on for view.localhost:{proxy.port}"


def test_a_browser_works_with_the_web_servers_through_the_proxy(
    tmp_path: Path, server: Server, web_servers: dict[str, WebServer]
):
    local = {kind: f"127.0.0.1:{web.port}" for kind, web in web_servers.items()}
    with (
        answering(sign_on) as signing,
        proxying(tmp_path, server.secrets, signing, local["edit"], local["view"]) as proxy,
    ):

        def post(kind: str, query: str, origin: str, who: str = "ada") -> tuple[int, str]:
            return request(proxy.connection(kind), query, {"Cookie": who, "Origin": origin})

        def listen(kind: str, who: str, origin: str) -> str | int:
            """What comes of a WebSocket, as the UI opens it."""
            address, headers = f"wss://{proxy.name(kind)}/graphql", {"Cookie": who}
            try:
                with connect(
                    address,
                    sock=proxy.connected(),
                    ssl=trusting(),
                    server_hostname=f"{kind}.localhost",
                    origin=origin,  # pyright: ignore
                    additional_headers=headers,
                    subprotocols=["graphql-ws"],  # pyright: ignore
                    proxy=None,
                ) as opened:
                    opened.send(json.dumps({"type": "connection_init"}))
                    return json.loads(opened.recv(30))["type"]
            except InvalidStatus as error:
                return error.response.status_code

        for kind in ("edit", "view"):
            own = f"https://{proxy.name(kind)}"
            status, page, headers = proxy.get(kind, "/runs", Cookie="ada", Accept="text/html")
            assert (status, headers["X-Frame-Options"]) == (200, "DENY")
            assert "/_next/static/" in page
            # The token stays between the proxy and the web server.
            assert "Set-Cookie" not in headers and web_servers[kind].token not in page + str(headers)
            assert post(kind, "{ version }", own)[0] == 200
            assert listen(kind, "ada", own) == "connection_ack"
            # The link of the sign-on leads here from another site.
            link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
            assert proxy.get(kind, "/runs", Cookie="ada", Accept="text/html", **link)[0] == 200
            for other in ("https://elsewhere.example", "null", f"https://{kind}.localhost:1"):
                assert post(kind, RELOAD, other)[0] == 403
                assert listen(kind, "ada", other) == 403
            assert listen(kind, "stranger", own) == 403
        own = f"https://{proxy.name('edit')}"
        assert post("edit", RELOAD, f"https://{proxy.name('view')}")[0] == 403
        assert '"reloadWorkspace"' in post("edit", RELOAD, own)[1]
        assert post("edit", RELOAD, own, "visitor")[0] == 403
        refused = post("view", RELOAD, f"https://{proxy.name('view')}", "visitor")
        assert refused[0] == 403 and "Nothing can be changed here" in refused[1]


def test_tokens_stay_when_they_are_made_again(tmp_path: Path):
    """Each belongs to who reads it, and what an earlier version left is completed."""
    make_tokens(tmp_path)
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert made.keys() == {"web_edit_token", "web_view_token", "proxy_tokens"}
    for kind in ("edit", "view"):
        assert f'Bearer {made[f"web_{kind}_token"]}"' in made["proxy_tokens"]
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
    make_tokens(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == made
    (tmp_path / "web_view_token").unlink()
    (tmp_path / "proxy_tokens").unlink()
    make_tokens(tmp_path)
    again = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert again["web_edit_token"] == made["web_edit_token"]
    assert again["web_view_token"] != made["web_view_token"]
    assert again["web_view_token"] in again["proxy_tokens"]
