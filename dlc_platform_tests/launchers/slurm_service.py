"""Dagster on a Slurm: an instance with a real daemon, driven through GraphQL as the UI does."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget
from dagster_graphql.schema import create_schema

from dlc_platform_tests.launchers.slurm_lab import wait

CODE = Path(__file__).with_name("slurm_runs.py")

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
mutation Terminate($run: String!, $policy: TerminateRunPolicy!) { terminateRun(runId: $run, terminatePolicy: $policy) {
  __typename ... on TerminateRunFailure { message } ... on PythonError { message stack } } }
"""


class SlurmService:
    """The instance, its daemon and its runs."""

    def __init__(self, instance: DagsterInstance, workspace: WorkspaceProcessContext, home: Path):
        self.instance = instance
        self.home = home
        self._workspace = workspace
        self._schema = create_schema()
        self._daemon: psutil.Popen | None = None

    def start_daemon(self) -> None:
        with (self.home / "daemon.log").open("ab") as log:
            self._daemon = psutil.Popen(
                [sys.executable, "-m", "dagster._daemon", "run", "-f", str(CODE), "-d", str(CODE.parent)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill_daemon(self) -> None:
        """Kill the daemon and its code server; workers on this machine have sessions of their own and live on."""
        if self._daemon is not None:
            for child in self._daemon.children(recursive=True):
                if os.getsid(child.pid) == os.getsid(0):
                    child.kill()
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def _ask(self, query: str, **variables: Any) -> Any:
        context = self._workspace.create_request_context()
        result = asyncio.run(self._schema.execute_async(query, variables=variables, context_value=context))
        assert not result.errors, result.errors
        return result.data

    def launch(self, asset: str, tags: dict[str, str] | None = None, **config: Any) -> str:
        """Ask for a run that materialises an asset; its id."""
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
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
            "mode": "default",
        }
        answer = self._ask(LAUNCH, parameters=parameters)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def terminate(self, run_id: str) -> None:
        """Terminate a run from this process, which did not launch it."""
        # As the UI does: Dagster lets a run that has not begun only be marked.
        begun = self.run(run_id).status == DagsterRunStatus.STARTED
        policy = "SAFE_TERMINATE" if begun else "MARK_AS_CANCELED_IMMEDIATELY"
        answer = self._ask(TERMINATE, run=run_id, policy=policy)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def run(self, run_id: str) -> DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run
        return run

    def records(self, run_id: str, what: str) -> list[dict[str, Any]]:
        """What a run's computation wrote down when it began (`begin`) and ended (`end`), each time."""
        file = self.home / f"{run_id}.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [record for line in lines if (record := json.loads(line))["what"] == what]

    def begins(self, run_id: str, times: int = 1) -> dict[str, Any]:
        """Wait until a run's computation has begun so often; what it wrote the last time."""

        def begun() -> bool:
            assert not self.run(run_id).is_finished, self.messages(run_id)
            return len(self.records(run_id, "begin")) >= times

        wait(f"the beginning of {run_id}", begun)
        return self.records(run_id, "begin")[-1]

    def let_go(self, run_id: str) -> None:
        (self.home / f"{run_id}.go").touch()

    def ends(self, run_id: str) -> str:
        """A run's final status."""
        wait(f"the end of {run_id}", lambda: self.run(run_id).is_finished)
        return self.run(run_id).status.value

    def messages(self, run_id: str) -> str:
        return "\n".join(record.message for record in self.instance.all_logs(run_id))

    def says(self, run_id: str, text: str) -> None:
        wait(f"{text!r} of {run_id}", lambda: text in self.messages(run_id))


@contextmanager
def slurm_service(home: Path, launcher: dict[str, Any], **configuration: Any) -> Iterator[SlurmService]:
    """A service with a running daemon; `home` must exist, and the environment lead to the Slurm and to `home`."""
    told = {
        "telemetry": {"enabled": False},
        "run_launcher": {
            "module": "dlc_platform.launchers.slurm_run_launcher",
            "class": "SlurmRunLauncher",
            "config": {"poll_seconds": 0.5, "collect_seconds": 0.3, "grace_seconds": 10.0, **launcher},
        },
        "run_monitoring": {
            "enabled": True,
            "poll_interval_seconds": 1,
            "start_timeout_seconds": 86400,
            "max_resume_run_attempts": 3,
        },
        "concurrency": {"pools": {"granularity": "run", "default_limit": 1000}, "runs": {"max_concurrent_runs": 1000}},
        "run_coordinator": {
            "module": "dagster._core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"dequeue_interval_seconds": 1},
        },
        **configuration,
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(told))
    os.environ["DAGSTER_HOME"] = str(home)
    target = PythonFileTarget(str(CODE), attribute=None, working_directory=str(CODE.parent), location_name="slurm_runs")
    with (
        DagsterInstance.from_config(str(home)) as instance,
        WorkspaceProcessContext(instance, target) as workspace,
    ):
        service = SlurmService(instance, workspace, home)
        try:
            service.start_daemon()
            yield service
        finally:
            service.kill_daemon()
