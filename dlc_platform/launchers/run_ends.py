"""The end that a run gave itself, for code that finds its process dead or is about to end it from outside.

Dagster writes the end of a run in two steps: the event first, then the status. A process that dies between them, or
after its last step, leaves a run that seems to be still at work. Failing it then would replace a success by a
failure, and Dagster's retry of it would find no step to do.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus

from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.launchers.dagster_internals import SqlRunStorage

_ENDS = {DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED}
_STEP_ENDS = {DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_SKIPPED}
#: The variable by which libpq names each connection of a process.
_NAME_VARIABLE = "PGAPPNAME"
_QUIET_SECONDS = 5.0


def connection_names(run_id: str) -> dict[str, str]:
    """The environment in which a process names its connections to Postgres after the run that it works on."""
    return {_NAME_VARIABLE: _name(run_id)}


def as_told(instance: DagsterInstance, run_id: str) -> DagsterRun | None:
    """A run, with the end that its own process reported, if it did; None if the run is deleted.

    The process may still be alive.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return run
    told = instance.event_log_storage.get_logs_for_run(run_id, of_type=_ENDS, limit=1)
    if not told:
        return run
    instance.run_storage.handle_run_event(run_id, told[0].get_dagster_event())
    return instance.get_run_by_id(run_id)


def settled(instance: DagsterInstance, run_id: str) -> DagsterRun | None:
    """A run whose process is dead: finished if the process reported an end or did every step, else unchanged.

    It waits for the statements that the process had sent to Postgres when it died.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return run
    _wait_for_last_words(instance, run_id)
    run = as_told(instance, run_id)
    if run is None or run.is_finished or not _did_everything(instance, run):
        return run
    done = DagsterEvent(
        event_type_value=DagsterEventType.RUN_SUCCESS.value,
        job_name=run.job_name,
        message="Every step of this run succeeded before its process died.",
    )
    instance.report_dagster_event(done, run_id=run_id)
    return instance.get_run_by_id(run_id)


def fail_unstarted(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Fail a run whose worker died before it began, if this host can see that; True if it has failed so.

    The launcher waits for its workers and does that at once, unless it dies together with them, as when all services of
    a machine stop. Monitoring only checks how long ago such runs were launched.
    """
    worker = WorkerProcess.from_tags(run.tags)
    if worker is None or not worker.can_be_seen() or worker.is_alive():
        return False
    before = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    if before is not None and WorkerProcess.from_tags(before.tags) == worker:
        return False  # It has the tags of its predecessor, and its own worker is not started yet.
    worker.kill()
    now = settled(instance, run.run_id)
    if now is None or now.status != DagsterRunStatus.STARTING or WorkerProcess.from_tags(now.tags) != worker:
        return False
    instance.report_run_failed(now, f"The worker ({worker}) died before it began, and so did what had started it")
    return True


def _did_everything(instance: DagsterInstance, run: DagsterRun) -> bool:
    if run.execution_plan_snapshot_id is None:
        return False
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    wanted = set(run.step_keys_to_execute or plan.step_keys_to_execute)
    done = {entry.step_key for entry in instance.all_logs(run.run_id, of_type=_STEP_ENDS)}
    return bool(wanted) and wanted <= done


def _wait_for_last_words(instance: DagsterInstance, run_id: str) -> None:
    """Return when Postgres has executed the last statements of a dead process, and ended its connections.

    Connections of a lost machine may stay for hours; it does not wait for them.
    """
    deadline = time.monotonic() + _QUIET_SECONDS
    with _postgres(instance) as connection:
        if connection is None:
            return
        count = sqlalchemy.text("select count(*) from pg_stat_activity where application_name = :name")
        while connection.execute(count, {"name": _name(run_id)}).scalar() and time.monotonic() < deadline:
            time.sleep(0.05)


@contextmanager
def _postgres(instance: DagsterInstance) -> Iterator[sqlalchemy.Connection | None]:
    """A connection to the database of Dagster's runs; None if that is not Postgres."""
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        yield None
        return
    with storage.connect() as connection:
        yield connection if connection.dialect.name == "postgresql" else None


def _name(run_id: str) -> str:
    return f"dlc_platform run {run_id}"
