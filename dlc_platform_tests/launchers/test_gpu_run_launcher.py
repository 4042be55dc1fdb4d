"""Runs through the launcher with a real daemon and real worker processes.

The GPUs are a test double (`doubles`): two of 24 GB each, on which nothing here computes. The storage is SQLite, for
speed.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dagster import DagsterInstance, DagsterRun
from dagster._core.storage.tags import MAX_RETRIES_TAG, WILL_RETRY_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget

from dlc_platform.devices import leases
from dlc_platform.devices.gpus import Device
from dlc_platform.devices.locks import DIRECTORY_VARIABLE
from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.errors import HOME_VARIABLE
from dlc_platform.launchers.gpu_run_launcher import (
    DEVICE_TAG,
    EARLIER_MEMORY_KILLS_TAG,
    MEMORY_KILLS_TAG,
    _killed_at_start,
)
from dlc_platform.launchers.needs import GPUS_TAG, MEMORY_TAG
from dlc_platform.launchers.routing_run_launcher import ROUTE_TAG
from dlc_platform_tests.launchers.launching_lab import Daemon, Lab

CODE = Path(__file__).with_name("gpu_runs.py")
DOUBLES = Path(__file__).with_name("doubles")
GPUS = (Device("gpu-0", "0", 24.0), Device("gpu-1", "1", 24.0))


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@contextmanager
def _lab(home: Path, configuration: dict[str, Any], environment: pytest.MonkeyPatch) -> Iterator[Lab]:
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}, **configuration}))
    environment.setenv("DAGSTER_HOME", str(home))
    environment.setenv("TEST_DEATH_ON_LOAD", str(home / "death-on-load"))
    environment.setenv(DIRECTORY_VARIABLE, str(home / "leases"))
    environment.delenv(HOME_VARIABLE, raising=False)
    (home / "nvml.json").write_text(json.dumps([{"memory_gb": 24}, {"memory_gb": 24}]))
    environment.setenv("TEST_NVML", str(home / "nvml.json"))
    environment.setenv("PYTHONPATH", os.pathsep.join((str(DOUBLES), *filter(None, [os.environ.get("PYTHONPATH")]))))
    daemon = Daemon(home, CODE)
    target = PythonFileTarget(str(CODE), attribute=None, working_directory=str(CODE.parent), location_name="gpu_runs")
    with DagsterInstance.from_config(str(home)) as instance:
        try:
            if "run_coordinator" not in configuration:
                daemon.start()  # Runs are queued unless it is said otherwise. It loads while this process does.
            with WorkspaceProcessContext(instance, target) as workspace:
                yield Lab(instance, workspace, daemon, home)
        finally:
            daemon.kill()
            for run in instance.get_runs():
                if worker := WorkerProcess.from_tags(run.tags):
                    worker.kill()


def _launcher(gpus: Any) -> dict[str, Any]:
    return {
        "module": "dlc_platform.launchers.gpu_run_launcher",
        "class": "GpuRunLauncher",
        "config": {"gpus": gpus, "grace_seconds": 3.0},
    }


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch) -> Iterator[Lab]:
    configuration = {
        "run_launcher": _launcher([0, 1]),
        "run_queue": {"dequeue_interval_seconds": 1},
        "concurrency": {"pools": {"granularity": "run"}},
        "run_monitoring": {"enabled": True, "poll_interval_seconds": 1},
        # Only runs whose tags say so are tried again.
        "run_retries": {"enabled": True, "max_retries": 0},
    }
    with _lab(tmp_path_factory.mktemp("gpus") / "home", configuration, environment) as lab:
        yield lab


def test_the_kills_of_a_run_of_an_earlier_version_are_read() -> None:
    """One that is tried again has the tag of its predecessor, too."""
    earlier = {EARLIER_MEMORY_KILLS_TAG: "3 /sys/fs/cgroup/memory.events"}
    now = {MEMORY_KILLS_TAG: "5 /sys/fs/cgroup/memory.events"}
    assert _killed_at_start(DagsterRun("job", tags=earlier)) == "3 /sys/fs/cgroup/memory.events"
    assert _killed_at_start(DagsterRun("job", tags=earlier | now)) == "5 /sys/fs/cgroup/memory.events"
    assert _killed_at_start(DagsterRun("job")) == ""


def test_a_third_run_waits_and_inherits_a_killed_workers_device(lab: Lab):
    first, second = lab.launch("on_gpu"), lab.launch("on_gpu")
    reports = {run: lab.report(run) for run in (first, second)}
    assert {report["devices"] for report in reports.values()} == {"0", "1"}
    assert reports[first]["order"] == "PCI_BUS_ID"
    assert lab.run(first).tags[DEVICE_TAG] == f"GPU {reports[first]['devices']}"

    third = lab.launch("on_gpu")
    lab.says(third, "Waiting for a device")
    assert f"is held by run {first} (pid {lab.worker(first).pid})" in lab.messages(third)

    os.kill(lab.worker(first).pid, signal.SIGKILL)
    assert lab.report(third)["devices"] == reports[first]["devices"]
    assert lab.ends(first) == "FAILURE"
    assert "was killed by SIGKILL" in lab.messages(first)
    assert "memory ran out" not in lab.messages(first)
    assert not _runs(reports[first]["child"])

    lab.let_go(second)
    lab.let_go(third)
    assert (lab.ends(second), lab.ends(third)) == ("SUCCESS", "SUCCESS")


def test_a_run_outside_the_pool_sees_and_awaits_no_device(lab: Lab):
    with leases.acquire(GPUS, "another lab"), leases.acquire(GPUS, "another lab"):
        run = lab.launch("on_cpu")
        assert lab.report(run)["devices"] == ""
        lab.let_go(run)
        assert lab.ends(run) == "SUCCESS"
    assert DEVICE_TAG not in lab.run(run).tags


def test_small_runs_share_a_device_and_a_large_one_has_two(lab: Lab):
    small = [lab.launch("on_gpu", {MEMORY_TAG: "10"}) for _ in range(3)]
    reports = [lab.report(run) for run in small]
    assert sorted(report["devices"] for report in reports) in (["0", "0", "1"], ["0", "1", "1"])
    assert {report["memory_gb"] for report in reports} == {"10"}
    assert lab.run(small[0]).tags[DEVICE_TAG] == f"10 GB of GPU {reports[0]['devices']}"
    large = lab.launch("on_gpu", {GPUS_TAG: "2"})
    lab.says(large, "Waiting for 2 GPUs")
    for run in small:
        lab.let_go(run)
    assert lab.report(large)["devices"] == "0,1"
    lab.let_go(large)
    assert {lab.ends(run) for run in (*small, large)} == {"SUCCESS"}


def test_a_worker_that_gets_no_memory_says_so_before_it_dies(lab: Lab):
    run = lab.launch("on_gpu", last_words="terminate called after throwing an instance of 'std::bad_alloc'")
    assert lab.ends(run) == "FAILURE"
    assert "was killed by SIGABRT: memory ran out (its output says: terminate called" in lab.messages(run)


@pytest.mark.parametrize(
    ("gpus", "said"), [("3", "No device for this run: 3 GPUs cannot be had"), ("three", "Write a whole number of GPUs")]
)
def test_a_need_that_no_device_can_meet_fails_the_run_at_once(lab: Lab, gpus: str, said: str):
    run = lab.launch("on_gpu", {GPUS_TAG: gpus, MAX_RETRIES_TAG: "2"})
    assert lab.ends(run) == "FAILURE"
    assert said in lab.messages(run)
    # Dagster decides a moment after the failure.
    lab.wait("the decision", lambda: WILL_RETRY_TAG in lab.run(run).tags)
    assert lab.run(run).tags[WILL_RETRY_TAG] == "false"


def test_a_terminated_run_stops_with_its_children(lab: Lab):
    run = lab.launch("on_gpu")
    report = lab.report(run)
    lab.terminate(run)
    assert lab.ends(run) == "CANCELED"
    lab.wait("the end of the worker", lambda: not lab.worker(run).is_alive())
    lab.wait("the end of its child", lambda: not _runs(report["child"]))


def test_a_run_that_does_not_listen_is_killed_and_ends_canceled(lab: Lab):
    run = lab.launch("on_gpu", deaf=True)
    report = lab.report(run)
    lab.terminate(run)
    assert lab.ends(run) == "CANCELED"
    assert "was killed, because it had not stopped after 3 s" in lab.messages(run)
    assert not lab.worker(run).is_alive()
    assert not _runs(report["child"])


def test_a_run_that_waits_for_a_device_can_be_terminated(lab: Lab):
    with leases.acquire(GPUS, "another lab"), leases.acquire(GPUS, "another lab"):
        run = lab.launch("on_gpu")
        lab.says(run, "GPU 1 is held by another lab")
        assert lab.run(run).status.value == "STARTED"
        assert lab.run(run).tags[DEVICE_TAG] == "none yet"
        lab.terminate(run)
        assert lab.ends(run) == "CANCELED"
    assert not (lab.home / f"{run}.json").exists()


def test_a_worker_that_dies_before_its_run_starts_fails_it(lab: Lab):
    (lab.home / "death-on-load").touch()
    try:
        run = lab.launch("on_cpu")
        assert lab.ends(run) == "FAILURE"
    finally:
        (lab.home / "death-on-load").unlink()
    assert "was killed by SIGKILL" in lab.messages(run)


def test_a_restarted_daemon_knows_the_runs_of_the_one_before(lab: Lab):
    kept, killed = lab.launch("on_gpu"), lab.launch("on_gpu")
    lab.report(kept)
    lab.report(killed)
    lab.daemon.kill()
    os.kill(lab.worker(killed).pid, signal.SIGKILL)
    lab.daemon.start()
    assert lab.ends(killed) == "FAILURE"
    assert "its exit code is not known" in lab.messages(killed)
    lab.let_go(kept)
    assert lab.ends(kept) == "SUCCESS"


def test_each_run_is_watched_stopped_and_resumed_on_its_route(tmp_path: Path, environment: pytest.MonkeyPatch):
    routes = [
        {"name": "without_gpus", "tags": {"lab/where": "here"}, "launcher": _launcher([])},
        {"name": "gpus", "pool": "gpu", "launcher": _launcher("auto")},
        {"name": "others", "launcher": _launcher([])},
    ]
    configuration = {
        "run_launcher": {
            "module": "dlc_platform.launchers.routing_run_launcher",
            "class": "RoutingRunLauncher",
            "config": {"routes": routes},
        },
        "run_queue": {"dequeue_interval_seconds": 1},
        "run_monitoring": {"enabled": True, "poll_interval_seconds": 1, "max_resume_run_attempts": 1},
    }
    with environment.context() as patch, _lab(tmp_path / "home", configuration, patch) as lab:
        here = lab.launch("on_gpu", {"lab/where": "here"})
        by_pool = lab.launch("on_gpu", {"lab/where": "elsewhere"})
        other = lab.launch("on_cpu")
        assert [lab.report(run)["devices"] for run in (here, by_pool, other)] == ["", "0", ""]
        assert [lab.run(run).tags[ROUTE_TAG] for run in (here, by_pool, other)] == ["without_gpus", "gpus", "others"]

        lab.terminate(here)
        assert lab.ends(here) == "CANCELED"
        lab.wait("the end of its worker", lambda: not lab.worker(here).is_alive())

        killed = lab.worker(by_pool)
        (lab.home / f"{by_pool}.json").unlink()
        os.kill(killed.pid, signal.SIGKILL)
        lab.says(by_pool, "Started process for resuming job")
        assert lab.report(by_pool)["devices"] in ("0", "1")
        assert lab.worker(by_pool) != killed
        os.kill(lab.worker(by_pool).pid, signal.SIGKILL)
        assert lab.ends(by_pool) == "FAILURE", "it is resumed once and no more"
        assert "was killed by SIGKILL" in lab.messages(by_pool)
        lab.let_go(other)
        assert lab.ends(other) == "SUCCESS"


def test_without_a_gpu_runs_compute_on_the_cpu_one_at_a_time(tmp_path: Path, environment: pytest.MonkeyPatch):
    """Here the test's process launches, as a webserver does that queues nothing."""
    coordinator = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
    with (
        environment.context() as patch,
        _lab(tmp_path / "home", {"run_launcher": _launcher([]), "run_coordinator": coordinator}, patch) as lab,
    ):
        with leases.acquire([], "another lab"):
            run = lab.launch("on_gpu")
            lab.says(run, "the CPU is held by another lab")
        assert lab.report(run)["devices"] == ""
        assert lab.run(run).tags[DEVICE_TAG] == "the CPU"
        lab.let_go(run)
        assert lab.ends(run) == "SUCCESS"

        (lab.home / "leases" / "cpu").unlink()
        (lab.home / "leases" / "cpu").symlink_to("elsewhere")
        run = lab.launch("on_gpu")
        assert lab.ends(run) == "FAILURE"
        assert "No device for this run: the lease file" in lab.messages(run)
