"""Routes by rule, and a Slurm behind a router; a local launcher behind one is in `test_gpu_run_launcher` too."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dagster import DagsterInstance, DagsterRun
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.base import LaunchRunContext, RunLauncher, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRunStatus

from dlc_platform.devices.locks import DIRECTORY_VARIABLE
from dlc_platform.errors import PlatformError
from dlc_platform.launchers.gpu_run_launcher import GpuRunLauncher
from dlc_platform.launchers.routing_run_launcher import ROUTE_TAG, Route, RoutingRunLauncher, launcher_of
from dlc_platform.launchers.slurm_follower import JOB_TAG
from dlc_platform_tests.launchers.slurm_lab import SlurmLab, wait
from dlc_platform_tests.launchers.slurm_service import SlurmService, slurm_service


class _Elsewhere(RunLauncher):
    """A test double for a launcher of a machine that we lack; it watches nothing and stops everything."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[DagsterRun] = []
        self.terminated: list[str] = []

    def launch_run(self, context: LaunchRunContext) -> None:
        self.launched.append(context.dagster_run)

    def terminate(self, run_id: str) -> bool:
        self.terminated.append(run_id)
        return True


@pytest.fixture
def instance():
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def elsewhere() -> _Elsewhere:
    return _Elsewhere()


@pytest.fixture
def launcher(instance: DagsterInstance, elsewhere: _Elsewhere) -> RoutingRunLauncher:
    routes = [Route("elsewhere", elsewhere, tags={"lab/where": "*"}), Route("local", GpuRunLauncher(gpus=[]))]
    launcher = RoutingRunLauncher(routes)
    launcher.register_instance(instance)
    return launcher


def _run(instance: DagsterInstance, **tags: str) -> DagsterRun:
    return instance.add_run(
        DagsterRun(job_name="job", tags={key.replace("_", "/"): value for key, value in tags.items()}, status=_STARTED)
    )


_STARTED = DagsterRunStatus.STARTED


def test_a_run_is_launched_and_stopped_by_its_route(
    instance: DagsterInstance, launcher: RoutingRunLauncher, elsewhere: _Elsewhere
):
    run = _run(instance, lab_where="cluster")
    launcher.launch_run(LaunchRunContext(run, None))
    (launched,) = elsewhere.launched
    assert launched.tags[ROUTE_TAG] == "elsewhere"
    assert launcher.route_of(launched) == launcher._routes["elsewhere"]
    assert launcher.terminate(run.run_id) and elsewhere.terminated == [run.run_id]
    assert launcher.check_run_worker_health(launched).status == WorkerStatus.RUNNING
    assert launcher.supports_check_run_worker_health and launcher.supports_resume_run


def test_a_retried_run_takes_a_route_of_its_own(
    instance: DagsterInstance, launcher: RoutingRunLauncher, elsewhere: _Elsewhere
):
    run = instance.add_run(DagsterRun(job_name="job", tags={ROUTE_TAG: "local", "lab/where": "cluster"}))
    launcher.launch_run(LaunchRunContext(run, None))
    assert elsewhere.launched[0].tags[ROUTE_TAG] == "elsewhere"


def test_a_run_without_its_route_is_not_stopped_nor_called_dead(
    instance: DagsterInstance, launcher: RoutingRunLauncher
):
    run = instance.add_run(DagsterRun(job_name="job", tags={ROUTE_TAG: "old"}, status=_STARTED))
    health = launcher.check_run_worker_health(run)
    assert health.status == WorkerStatus.RUNNING and "old, which is not in dagster.yaml any more" in str(health.msg)
    assert not launcher.terminate(run.run_id)
    assert "Cannot terminate this run: its route is old" in instance.all_logs(run.run_id)[-1].message


def test_the_last_route_takes_every_run_and_names_differ():
    local = GpuRunLauncher(gpus=[])
    with pytest.raises(PlatformError, match="no last route that takes every run"):
        RoutingRunLauncher([Route("gpu", local, pool="gpu")])
    with pytest.raises(PlatformError, match="several routes called local"):
        RoutingRunLauncher([Route("local", local, pool="gpu"), Route("local", local)])


def test_any_launcher_can_be_named_in_dagster_yaml(tmp_path: Path):
    gpus: dict[str, Any] = {"module": "dlc_platform.launchers.gpu_run_launcher", "class": "GpuRunLauncher"}
    routes = [
        {"name": "gpu", "pool": "gpu", "launcher": gpus | {"config": {"gpus": [0, "GPU-abc"]}}},
        {"name": "default", "launcher": {"module": "dagster", "class": "DefaultRunLauncher"}},
    ]
    told = {
        "run_launcher": {
            "module": "dlc_platform.launchers.routing_run_launcher",
            "class": "RoutingRunLauncher",
            "config": {"routes": routes},
        }
    }
    reference = InstanceRef.from_dir(str(tmp_path), overrides=told)
    with DagsterInstance.from_ref(reference) as instance:
        launcher = launcher_of(instance, DagsterRun(job_name="job", tags={ROUTE_TAG: "gpu"}))
        assert isinstance(launcher, GpuRunLauncher) and launcher.gpus == [0, "GPU-abc"]
        assert launcher._instance is instance
        with pytest.raises(PlatformError, match=r"launched by the route 'old', which dagster\.yaml lacks"):
            launcher_of(instance, DagsterRun(job_name="job", tags={ROUTE_TAG: "old"}))


@pytest.fixture
def routed(slurm: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmService]:
    """A lab whose GPU runs, and those that ask for it by a tag, go to Slurm; all others work on this machine."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "leases"))
    cluster = {
        "module": "dlc_platform.launchers.slurm_run_launcher",
        "class": "SlurmRunLauncher",
        "config": {"memory": "600", "poll_seconds": 1.0},
    }
    local = {
        "module": "dlc_platform.launchers.gpu_run_launcher",
        "class": "GpuRunLauncher",
        "config": {"gpus": [], "grace_seconds": 3.0},
    }
    router = {
        "module": "dlc_platform.launchers.routing_run_launcher",
        "class": "RoutingRunLauncher",
        "config": {
            "routes": [
                {"name": "gpus of the cluster", "pool": "gpu", "launcher": cluster},
                {"name": "cluster", "tags": {"lab/where": "cluster"}, "launcher": cluster},
                {"name": "local", "launcher": local},
            ]
        },
    }
    with slurm_service(tmp_path, {}, run_launcher=router) as service:
        yield service


def test_a_router_watches_resumes_and_stops_slurm_runs(routed: SlurmService):
    gpu, stopped = routed.launch("on_gpu"), routed.launch("on_cpu", {"lab/where": "cluster"})
    local = routed.launch("on_cpu", {"lab/where": "here"})
    runs = {gpu: "gpus of the cluster", stopped: "cluster", local: "local"}
    begun = {run: routed.begins(run) for run in runs}
    for run, route in runs.items():
        tags = routed.run(run).tags
        assert tags[ROUTE_TAG] == route
        assert (JOB_TAG in tags) == ("SLURM_JOB_ID" in begun[run]) == (route != "local")
    job = routed.run(gpu).tags[JOB_TAG]

    routed.kill_daemon()
    os.kill(begun[gpu]["pid"], 9)
    routed.start_daemon()
    routed.begins(gpu, times=2)
    assert routed.run(gpu).tags[JOB_TAG] != job
    assert "killed by signal 9" in routed.messages(gpu)

    routed.terminate(stopped)
    assert routed.ends(stopped) == "CANCELED"
    wait("the end of its worker", lambda: not psutil.pid_exists(begun[stopped]["pid"]))
    for run in (gpu, local):
        routed.let_go(run)
        assert routed.ends(run) == "SUCCESS"
    assert len(routed.records(local, "begin")) == 1
    wait("no entry is left", lambda: not list((routed.home / "slurm" / "runs").glob("*.json")))
