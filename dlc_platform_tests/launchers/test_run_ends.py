"""Real processes of runs that die at the worst moments, on a real Postgres."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from sqlalchemy import URL, Engine, create_engine, text

from dlc_platform.devices.processes import SPACE_TAG, WorkerProcess
from dlc_platform.errors import HOME_VARIABLE
from dlc_platform.launchers.for_good import fail_for_good
from dlc_platform.launchers.gpu_run_launcher import GpuRunLauncher
from dlc_platform.launchers.run_ends import as_told, connection_names, fail_unstarted, settled
from dlc_platform.orchestration.services import Services

WORKER = """
import sys, time
from pathlib import Path
import dagster as dg
from dagster._core.execution.api import execute_run
from dagster._core.instance.ref import InstanceRef
from dlc_platform_tests.launchers.test_run_ends import job, reference
folder, url, run_id = sys.argv[1:]
with dg.DagsterInstance.from_ref(reference(Path(folder), url)) as instance:
    execute_run(dg.reconstructable(job), instance.get_run_by_id(run_id), instance)
"""
#: What Postgres does with the write by which a process tells that its run has succeeded.
SKIP = "return null"
WAIT = "perform pg_advisory_xact_lock(7); return new"
EVENT = "before insert on event_logs for each row when (new.dagster_event_type = 'PIPELINE_SUCCESS')"
STATUS = "before update on runs for each row when (new.status = 'SUCCESS')"
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
ENDS = {dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED}


@dg.op(config_schema={"seconds": float})
def work(context: dg.OpExecutionContext) -> None:
    time.sleep(context.op_config["seconds"])


@dg.job(executor_def=dg.in_process_executor)
def job():
    work()


def reference(folder: Path, url: str) -> InstanceRef:
    storage = {"postgres": {"postgres_url": url}}
    return InstanceRef.from_dir(str(folder), overrides={"storage": storage, "telemetry": {"enabled": False}})


class Lab:
    """An instance, and the processes of its runs."""

    def __init__(self, instance: dg.DagsterInstance, engine: Engine, folder: Path, url: str):
        self.instance = instance
        self._engine = engine
        self._folder, self._url = folder, url
        self._processes: list[subprocess.Popen[bytes]] = []

    def on(self, write: str, does: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                text(f"create function meddle() returns trigger language plpgsql as $$begin {does}; end$$")
            )
            connection.execute(text(f"create trigger meddle {write} execute function meddle()"))

    def start(self, seconds: float = 0) -> tuple[str, subprocess.Popen[bytes]]:
        origin = RemoteJobOrigin(
            RemoteRepositoryOrigin(
                ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(python_file=__file__), "tests"), "tests"
            ),
            "job",
        )
        run = self.instance.create_run_for_job(
            job,
            run_config={"ops": {"work": {"config": {"seconds": seconds}}}},
            remote_job_origin=origin,
            job_code_origin=dg.reconstructable(job).get_python_origin(),
        )
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(self._folder), self._url, run.run_id],
            env={**os.environ, HOME_VARIABLE: str(self._folder), **connection_names(run.run_id)},
            start_new_session=True,
        )
        self._processes.append(process)
        self.instance.add_run_tags(run.run_id, WorkerProcess.of(process.pid).tags())
        return run.run_id, process

    def wait_for(self, look: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not look():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def has(self, run_id: str, kind: dg.DagsterEventType) -> bool:
        return bool(self.instance.all_logs(run_id, of_type={kind}))

    def ends(self, run_id: str) -> list[str]:
        entries = self.instance.all_logs(run_id, of_type=ENDS)
        return [entry.get_dagster_event().event_type_value for entry in entries]

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def stop(self) -> int:
        """What the end of `up` does with the workers of runs."""
        (self._folder / "lab.yaml").write_text("{raw_roots: [raw], projects: {maze: {path: project}}}")
        services = Services(self._folder, 1, {}, print)
        services.__dict__["instance"] = self.instance
        return services._stop_workers()

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def lab(empty_database: URL, tmp_path: Path) -> Iterator[Lab]:
    url = empty_database.render_as_string(hide_password=False)
    engine = create_engine(empty_database)
    with dg.DagsterInstance.from_ref(reference(tmp_path, url)) as instance:
        lab = Lab(instance, engine, tmp_path, url)
        instance.run_storage.get_runs()  # the tables are made
        yield lab
        lab.end()
    engine.dispose()


@pytest.mark.parametrize("write", [STATUS, EVENT], ids=["after-the-event", "after-the-last-step"])
def test_a_success_stays_if_the_lab_stops_before_its_status(lab: Lab, write: str):
    lab.on(write, SKIP)
    run_id, process = lab.start()
    process.wait(120)
    assert lab.run(run_id).status == dg.DagsterRunStatus.STARTED
    assert lab.has(run_id, dg.DagsterEventType.STEP_SUCCESS)
    with lab._engine.begin() as connection:
        connection.execute(text("drop function meddle cascade"))
    assert lab.stop() == 0
    assert lab.run(run_id).status == SUCCESS
    assert lab.ends(run_id) == ["PIPELINE_SUCCESS"]


def test_queries_that_a_killed_process_sent_are_waited_for(lab: Lab):
    lab.on(EVENT, WAIT)
    with lab._engine.connect() as holder:
        holder.execute(text("select pg_advisory_lock(7)"))
        run_id, process = lab.start()
        waiting = text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
        lab.wait_for(lambda: holder.execute(waiting).scalar())
        process.kill()
        process.wait()
        assert as_told(lab.instance, run_id) == lab.run(run_id)
        with ThreadPoolExecutor() as beside:
            settling = beside.submit(settled, lab.instance, run_id)
            time.sleep(0.5)
            holder.execute(text("select pg_advisory_unlock(7)"))
            run = settling.result()
    assert run is not None and run.status == SUCCESS
    assert lab.ends(run_id) == ["PIPELINE_SUCCESS"]


def test_a_run_that_is_really_interrupted_fails_and_is_retried(lab: Lab):
    run_id, process = lab.start(seconds=600)
    lab.wait_for(lambda: lab.has(run_id, dg.DagsterEventType.STEP_START))
    assert lab.stop() == 1
    assert process.wait(10) < 0
    run = lab.run(run_id)
    assert run.status == FAILURE
    assert run.tags[MAX_RETRIES_TAG] == str(lab.instance.run_retries_max_retries + 1)
    assert lab.ends(run_id) == ["PIPELINE_FAILURE"]


def test_monitoring_and_refusals_leave_a_success_alone(lab: Lab):
    lab.on(STATUS, SKIP)
    run_id, process = lab.start()
    process.wait(120)
    stale = lab.run(run_id)
    with lab._engine.begin() as connection:
        connection.execute(text("drop function meddle cascade"))
    launcher = GpuRunLauncher()
    launcher.register_instance(lab.instance)
    assert launcher.check_run_worker_health(stale).status.value == "SUCCESS"
    assert not launcher.terminate(run_id)
    fail_for_good(lab.instance, stale, "no device fits")
    assert lab.run(run_id).status == SUCCESS
    assert lab.ends(run_id) == ["PIPELINE_SUCCESS"]


def test_a_worker_that_died_with_its_launcher_is_found(lab: Lab) -> None:
    run_id, process = lab.start(seconds=600)
    process.send_signal(signal.SIGSTOP)
    starting = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_STARTING.value, job_name="job")
    lab.instance.report_dagster_event(starting, run_id=run_id)
    assert not fail_unstarted(lab.instance, lab.run(run_id))
    process.kill()
    process.wait()
    # Of a process in another container nothing can be said.
    tags = {**lab.run(run_id).tags, SPACE_TAG: "pid:[1]"}
    assert not fail_unstarted(lab.instance, lab.run(run_id).with_tags(tags))
    # A run that is tried again has the tags of the one before until its own worker is started.
    first = lab.run(run_id)
    again = {"parent_run_id": run_id, "root_run_id": run_id}
    follows = lab.instance.create_run_for_job(job, run_config=first.run_config, tags=first.tags, **again)
    lab.instance.report_dagster_event(starting, run_id=follows.run_id)
    assert not fail_unstarted(lab.instance, lab.run(follows.run_id))
    assert lab.run(follows.run_id).status == dg.DagsterRunStatus.STARTING
    assert fail_unstarted(lab.instance, lab.run(run_id))
    assert lab.run(run_id).status == FAILURE and lab.ends(run_id) == ["PIPELINE_FAILURE"]
    assert not fail_unstarted(lab.instance, lab.run(run_id))
