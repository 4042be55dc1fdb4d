"""A Dagster instance with a real daemon, driven as the UI does it, for tests and benchmarks of run launchers."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from dagster import DagsterInstance, DagsterRun
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_graphql.schema import create_schema

from dlc_platform.devices.processes import WorkerProcess

# Generous: the tests wait for things to happen, never measure how long they took.
DEADLINE_SECONDS = 120

LAUNCH = """
mutation Launch($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message stack }
  }
}
"""
TERMINATE = """
mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }
"""


class Daemon:
    """A `dagster-daemon` process that can be killed and started again."""

    def __init__(self, home: Path, code: Path):
        self._home = home
        self._code = code
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._home / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dagster._daemon", "run", "-f", str(self._code), "-d", str(self._code.parent)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """Kill the daemon and its code server, if it runs; the workers have sessions of their own and live on."""
        if self._process:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                if os.getsid(child.pid) == os.getsid(0):
                    child.kill()
            self._process.kill()
            self._process.wait()
            self._process = None


class Lab:
    """An instance, driven through GraphQL as the UI does."""

    def __init__(self, instance: DagsterInstance, workspace: WorkspaceProcessContext, daemon: Daemon, home: Path):
        self.instance = instance
        self.daemon = daemon
        self.home = home
        self._workspace = workspace
        self._schema = create_schema()

    def _ask(self, query: str, **variables: Any) -> Any:
        context = self._workspace.create_request_context()
        result = asyncio.run(self._schema.execute_async(query, variables=variables, context_value=context))
        assert not result.errors, result.errors
        return result.data

    def launch(self, asset: str, tags: dict[str, str] | None = None, **config: Any) -> str:
        """Materialise an asset through the implicit asset job, with the config of its op; the run's id."""
        (location,) = self._workspace.create_request_context().code_locations
        parameters = {
            "selector": {
                "repositoryLocationName": location.name,
                "repositoryName": "__repository__",
                "pipelineName": "__ASSET_JOB",
                "assetSelection": [{"path": [asset]}],
                "assetCheckSelection": [],
            },
            "runConfigData": {"ops": {asset: {"config": {"folder": str(self.home), **config}}}},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
        }
        answer = self._ask(LAUNCH, parameters=parameters)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def terminate(self, run_id: str) -> None:
        """Terminate a run from this process, which did not launch it."""
        assert self._ask(TERMINATE, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"

    def run(self, run_id: str) -> DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run
        return run

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not happen; see {self.home}"
            time.sleep(0.1)
        return value

    def report(self, run_id: str) -> dict[str, Any]:
        """What the step of a run says about its process, once it has begun."""
        file = self.home / f"{run_id}.json"
        self.wait(f"the step of {run_id}", lambda: file.exists() or self.run(run_id).is_finished)
        assert file.exists(), self.messages(run_id)
        return json.loads(file.read_text())

    def let_go(self, run_id: str) -> None:
        """Let a run's step end."""
        (self.home / f"{run_id}.go").touch()

    def ends(self, run_id: str) -> str:
        """A run's final status."""
        self.wait(f"the end of {run_id}", lambda: self.run(run_id).is_finished)
        return self.run(run_id).status.value

    def messages(self, run_id: str) -> str:
        records = self.instance.all_logs(run_id)
        return "\n".join(record.message for record in records)

    def says(self, run_id: str, text: str) -> None:
        self.wait(f"{text!r} of {run_id}", lambda: text in self.messages(run_id))

    def worker(self, run_id: str) -> WorkerProcess:
        worker = WorkerProcess.from_tags(self.run(run_id).tags)
        assert worker
        return worker
