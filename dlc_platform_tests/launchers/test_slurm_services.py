"""`deployments/slurm` as it lies there: its services and its dagster.yaml, on a real Slurm.

The database is of the embedded server, which listens where the virtual nodes, processes of this machine, reach it.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml
from dagster import DagsterInstance, DagsterRun
from dagster_graphql import DagsterGraphQLClient
from sqlalchemy import URL

from dlc_platform.cli import app
from dlc_platform.launchers.slurm_follower import JOB_TAG
from dlc_platform.orchestration.web_access import authorization
from dlc_platform.postgres.connection import dagster_url
from dlc_platform_tests.launchers.slurm_lab import SlurmLab, wait
from dlc_platform_tests.orchestration.up import plain_environment

DEPLOYMENT = Path(app.__file__).parents[2] / "deployments" / "slurm"


class Services:
    """The script `services` of a lab, as a process of its own."""

    def __init__(self, folder: Path, database: URL, slurm: SlurmLab):
        self.folder = folder
        self.instance = folder.parent / "lab" / "dagster"
        self._log = folder.parent / "services.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        url = database.render_as_string(hide_password=False)
        self._environment = plain_environment() | {
            **slurm.environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LAB": str(folder.parent / "lab"),
            "PORT": str(self.port),
            "DLC_PLATFORM_POSTGRES_URL": url,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when the webserver has loaded the definitions."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.folder / "services"],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait("the definitions", self._has_loaded)

    def _has_loaded(self) -> bool:
        assert self.process and self.process.poll() is None, self._log.read_text()
        query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
        try:
            return bool(self.ask(query, authorization(self.instance.parent))["repositoriesOrError"].get("nodes"))
        except OSError:
            return False

    def ask(self, query: str, headers: dict[str, str]) -> Any:
        """What the webserver answers; HTTPError when it refuses."""
        call = Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"} | headers,
        )
        with urlopen(call, timeout=60) as answer:
            return json.load(answer)["data"]

    def launch(self, job: str) -> str:
        """Ask the webserver for a run; its id."""
        headers = authorization(self.instance.parent)
        return DagsterGraphQLClient("127.0.0.1", port_number=self.port, headers=headers).submit_job_execution(job)

    def stop(self) -> int:
        """Stop them as systemd does; the exit code."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def processes(self) -> list[psutil.Process]:
        """They, what they started, and the workers."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                told = process.environ()
                if str(self.instance) == told.get("DAGSTER_HOME") or told.get("LAB") == str(self.instance.parent):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def services(
    tmp_path: Path,
    empty_database: URL,
    slurm: SlurmLab,
    make_project: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Services]:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    home, raw = tmp_path / "lab", tmp_path / "raw"
    home.mkdir()
    raw.mkdir()
    project = make_project(tmp_path / "tiny-tester-2026-01-01", 4)
    folder = shutil.copytree(DEPLOYMENT, tmp_path / "dagster")
    lab = {
        "raw_roots": [str(raw)],
        "projects": {"tiny": {"path": str(project)}},
        "gpus": [],
        "runs": {"gpu_runs": 200},
        "dagster_yaml": str(folder / "dagster.yaml"),
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(lab))
    told = yaml.safe_load((folder / "dagster.yaml").read_text())
    # The virtual nodes are small, and a test does not wait.
    told["run_launcher"]["config"] |= {"cpus": "1", "memory": "2000", "poll_seconds": 1.0}
    told["run_monitoring"]["poll_interval_seconds"] = 1
    (folder / "dagster.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setenv(
        "DLC_PLATFORM_DAGSTER_POSTGRES_URL", dagster_url(empty_database).render_as_string(hide_password=False)
    )
    services = Services(folder, empty_database, slurm)
    try:
        yield services
    finally:
        for process in services.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_services_with_slurm_stop_without_a_trace_and_go_on(services: Services, slurm: SlurmLab, tmp_path: Path):
    def run() -> DagsterRun:
        with DagsterInstance.from_config(str(services.instance)) as instance:
            found = instance.get_run_by_id(run_id)
            assert found
            return found

    services.start()
    # Other accounts of the node reach the port, and nothing behind it.
    with pytest.raises(HTTPError, match="401"):
        services.ask("{ version }", {})
    # What waits in the queue meanwhile does not notice that the services are stopped.
    slurm.ask("scontrol", "update", "PartitionName=work", "State=DOWN")
    try:
        run_id = services.launch("verify_store")
        job = wait("a job", lambda: run().tags.get(JOB_TAG))
        assert services.stop() == 0
        wait("the end of the code servers", lambda: not services.processes())
    finally:
        slurm.ask("scontrol", "update", "PartitionName=work", "State=UP")
    services.start()
    wait("the end of the run", lambda: run().is_finished)
    assert run().status.value == "SUCCESS"
    assert run().tags[JOB_TAG] == job
    wait("no entry is left", lambda: not list((services.instance / "slurm" / "runs").glob("*.json")))
    assert services.stop() == 0
    wait("the end of the code servers", lambda: not services.processes())
