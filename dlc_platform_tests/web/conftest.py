"""Dagster's web server behind the gate, with a job and a sensor of its own: one to work in and one to look only."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import dagster as dg
import pytest

from dlc_platform.orchestration.web_access import address, token_of
from dlc_platform.web.gate import Rules
from dlc_platform_tests.orchestration.up import plain_environment, wait_for

_DEFINITIONS = """
import dagster as dg

@dg.op
def work(context):
    context.log.info("the secret of the log")

@dg.job
def tiny():
    work()

@dg.sensor(job=tiny, default_status=dg.DefaultSensorStatus.RUNNING)
def looks(context):
    return dg.SkipReason("nothing is to be done")

defs = dg.Definitions(jobs=[tiny], sensors=[looks])
"""
#: A host name that the test's browser resolves to this machine, and another one that the lab's settings name.
FOREIGN, OWN = "evil.example", "dlc.lab.example"
_WHERE = 'repositoryName: "__repository__", repositoryLocationName: "definitions.py"'
#: What starts a run of the job, as a document of its own.
LAUNCH = (
    f'mutation {{ launchRun(executionParams: {{ selector: {{ {_WHERE}, jobName: "tiny" }}, mode: "default" }}) '
    "{ __typename ... on LaunchRunSuccess { run { id } } ... on PythonError { message } } }"
)
RUNS = "{ runsOrError { ... on Runs { results { id status } } } }"
SENSORS = (
    f'{{ sensorOrError(sensorSelector: {{ {_WHERE}, sensorName: "looks" }}) '
    "{ __typename ... on Sensor { sensorState { id status selectorId } } } }"
)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class Server:
    """A running web server of a lab."""

    home: Path
    port: int
    read_only: bool

    @property
    def token(self) -> str:
        return token_of(self.home, self.read_only)

    @property
    def address(self) -> str:
        """What lets a browser in."""
        return address(self.home, self.port, self.read_only)

    @property
    def cookie(self) -> dict[str, str]:
        return {"Cookie": f"{Rules(self.token).cookie}={self.token}"}

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None, known: bool = True
    ) -> Answer:
        """What is answered; `known` brings the token along."""
        given = {"Authorization": f"Bearer {self.token}"} if known else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, given | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read().decode(errors="replace"))
        finally:
            connection.close()

    def post(self, query: str, **headers: str) -> Answer:
        """What a question or a change brings in the one way that is open."""
        return self.request(
            "POST", "/graphql", {"Content-Type": "application/json"} | headers, json.dumps({"query": query})
        )

    def ask(self, query: str) -> Any:
        return json.loads(self.post(query).body)["data"]

    def state(self) -> tuple[list[str], str]:
        """What others would have changed: the runs there are, and whether the sensor is on."""
        runs = [run["id"] for run in self.ask(RUNS)["runsOrError"]["results"]]
        return runs, self.ask(SENSORS)["sensorOrError"]["sensorState"]["status"]


@dataclass(frozen=True)
class Servers:
    work: Server
    look: Server


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    # Reachable for another account, as a lab is whose folder is not closed.
    home = tmp_path_factory.mktemp("lab")
    for folder in (home, *home.parents[:2]):
        folder.chmod(0o755)
    (home / "definitions.py").write_text(_DEFINITIONS)
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    environment = {
        **plain_environment(),
        "DLC_PLATFORM_HOME": str(home),
        "DLC_PLATFORM_WEB_HOSTS": f"https://{OWN}:8443",
        "DAGSTER_HOME": str(home / "dagster"),
    }
    # Two servers that begin a new instance at one moment would each make its tables.
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        assert instance.get_runs_count() == len(instance.all_instigator_state()) == 0
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    both = Servers(Server(home, ports[0], False), Server(home, ports[1], True))
    processes = []
    try:
        for server in (both.work, both.look):
            call = [sys.executable, "-m", "dlc_platform.web", "-p", str(server.port), "-f", "definitions.py"]
            processes.append(
                subprocess.Popen(
                    [*call, *(["--read-only"] if server.read_only else [])],
                    cwd=home,
                    env=environment,
                    stdout=(home / f"{server.port}.log").open("wb"),
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        for process, server in zip(processes, (both.work, both.look), strict=True):

            def answers(process: subprocess.Popen[bytes] = process, server: Server = server) -> bool:
                assert process.poll() is None, (home / f"{server.port}.log").read_text()
                try:
                    with urlopen(f"http://127.0.0.1:{server.port}/server_info", timeout=5):
                        return True
                except URLError:
                    return False

            wait_for(answers)
        yield both
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(60)
