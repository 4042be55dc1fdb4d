"""Routes by rule; that launchers behind a router do their work is tested with real ones in `test_gpu_run_launcher`."""

from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.base import LaunchRunContext, RunLauncher, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRunStatus

from dlc_platform.errors import PlatformError
from dlc_platform.launchers.gpu_run_launcher import GpuRunLauncher
from dlc_platform.launchers.routing_run_launcher import ROUTE_TAG, Route, RoutingRunLauncher, launcher_of


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


def test_a_run_whose_route_is_gone_is_neither_stopped_nor_called_dead(
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
