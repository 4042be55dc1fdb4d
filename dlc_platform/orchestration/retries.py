"""Retries, after a wait, of runs whose worker died and of runs that a fault of the machine ended.

Dagster's `run_retries` decides which runs are tried again: those whose worker died, and those marked by `try_again`;
never those whose computation failed. Dagster starts them at once, but the cause (memory, a disk, a server that
restarts) is mostly still there. So a run that is tried again enters the queue with a tag that forbids its start, and a
sensor changes the tag when its time has come. Meanwhile no slot and no device is held, and no process has to remember
the run.

The same sensor finds a worker that died, with its launcher, before it began: Dagster would wait for it for
`start_minutes`. If Dagster was cut off while it made or queued a run, as by a database whose disk is full, nobody would
ever start that run: `nobody_starts` finds it, and the same sensor starts it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import dagster as dg

from dlc_platform.faults import machine_fault
from dlc_platform.launchers.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    RETRY_NUMBER_TAG,
    RETRY_ON_ASSET_OR_OP_FAILURE_TAG,
    RUN_FAILURE_REASON_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    WILL_RETRY_TAG,
    ConfigurableClassData,
    QueuedRunCoordinator,
    RunFailureReason,
    SubmitRunContext,
    auto_reexecution_should_retry_run,
)
from dlc_platform.launchers.run_ends import fail_unstarted
from dlc_platform.orchestration.clock import TOLERANCE
from dlc_platform.text.words import counted

#: The sensor that asks for sessions, and the schedule that asks for those that it missed.
SESSION_SENSOR, CATCH_UP = "new_session_videos", "catch_up"
WAITS_TAG = "dlc_platform/waits"
WAITS, STARTS = "yes", "no"
#: The number of times, and the seconds between them, that the queue tries to launch a run while lab.yaml is not valid.
_MOST_LOADS, _LOAD_SECONDS = 10_000, 30
#: A run that was made and not queued for so long, or whose next try was not made: nobody will do it any more.
_FORGOTTEN = timedelta(minutes=3)
_MOST_RUNS = 1000
#: Within this time a living launcher has noticed that a worker died before it began.
_LAUNCHING = timedelta(seconds=30)
UNTIL_TAG = "dlc_platform/waits_until"
#: A tag of a run that ended because the lab was stopped. Its value is the run's own id, because a successor inherits
#: tags.
STOPPED_TAG = "dlc_platform/stopped_with_the_lab"
#: A tag of a run that nobody started and that other runs replaced; its value is the run's own id, too.
GIVEN_UP_TAG = "dlc_platform/given_up"
#: A limit for dagster.yaml: no waiting run is started.
NONE_THAT_WAITS = {"key": WAITS_TAG, "value": WAITS, "limit": 0}


def try_again(instance: dg.DagsterInstance, run_id: str) -> None:
    """Let Dagster try a run again whose step is about to fail because of the machine."""
    # The database itself may have failed: then this run is like any other failed one.
    with suppress(Exception):
        instance.add_run_tags(run_id, {RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "true"})


def tried_again(asset: Callable[..., Any]) -> Callable[..., Any]:
    """An asset's function whose run is tried again when a fault of the machine ends it.

    It raises a `MachineFault` instead of the error, of whatever kind, that came from the machine.
    """

    @contextmanager
    def told(context: dg.AssetExecutionContext) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            fault = machine_fault(error)
            if fault is None:
                raise
            if not sensor_asks_again(context.run_tags):
                try_again(context.instance, context.run_id)
            raise fault from error

    if isgeneratorfunction(asset):

        @wraps(asset)
        def events(context: dg.AssetExecutionContext, **given: Any) -> Iterator[Any]:
            with told(context):
                yield from asset(context, **given)

        return events

    @wraps(asset)
    def result(context: dg.AssetExecutionContext, **given: Any) -> Any:
        with told(context):
            return asset(context, **given)

    return result


def sensor_asks_again(tags: Mapping[str, str]) -> bool:
    """True if these tags are of a run whose sessions the sensor asks for again after the machine ended it."""
    return tags.get(SENSOR_NAME_TAG) == SESSION_SENSOR or tags.get(SCHEDULE_NAME_TAG) == CATCH_UP


class PatientRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, in which runs that are tried again wait for `retry_minutes`, by their number."""

    def __init__(self, retry_minutes: list[float] | None = None, **others: Any):
        # While lab.yaml is not valid nothing can be launched: queued runs wait, and do not fail.
        super().__init__(
            **{"max_user_code_failure_retries": _MOST_LOADS, "user_code_failure_retry_delay": _LOAD_SECONDS, **others}
        )
        self.retry_minutes = retry_minutes or []

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The keys below ``config`` in ``dagster.yaml``."""
        return {"retry_minutes": dg.Field([float], default_value=[])}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "PatientRunCoordinator":
        """The queue that ``dagster.yaml`` describes."""
        return cls(retry_minutes=config_value["retry_minutes"], inst_data=inst_data)

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        """Queue a run; one that is tried again must wait first."""
        run = context.dagster_run
        # A run that is tried again has the tags of the previous one.
        if RETRY_NUMBER_TAG in run.tags or WAITS_TAG in run.tags:
            minutes = self._minutes(run.tags, run.parent_run_id)
            until = datetime.now(UTC) + timedelta(minutes=minutes)
            tags = {WAITS_TAG: WAITS if minutes else STARTS, UNTIL_TAG: until.isoformat(timespec="seconds")}
            self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)

    def _minutes(self, tags: Mapping[str, str], parent_run_id: str | None) -> float:
        number = int(tags.get(RETRY_NUMBER_TAG, "0"))
        by_itself = tags.get(STOPPED_TAG, "") != parent_run_id
        if not (number and by_itself and self.retry_minutes):
            return 0
        return self.retry_minutes[min(number, len(self.retry_minutes)) - 1]


def longest_wait(instance: dg.DagsterInstance) -> float:
    """The longest wait in minutes before a run is tried again."""
    queue = instance.run_coordinator
    return max(queue.retry_minutes, default=0.0) if isinstance(queue, PatientRunCoordinator) else 0.0


def nobody_starts(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """True for a run that waits to be started and that nobody will start.

    That is a run that was made and not queued, or one that should be tried again and has no successor.
    """
    record = instance.get_run_record_by_id(run.run_id)
    if record is None or _since(record.update_timestamp) < _FORGOTTEN:
        return False
    run = record.dagster_run
    if run.tags.get(GIVEN_UP_TAG) == run.run_id:
        return False
    if run.status == dg.DagsterRunStatus.NOT_STARTED or run.is_complete_and_waiting_to_retry:
        return True
    if run.status != dg.DagsterRunStatus.FAILURE:
        return False
    successor = run.tags.get(AUTO_RETRY_RUN_ID_TAG)
    if successor is not None:
        next_one = instance.get_run_by_id(successor)
        return next_one is None or next_one.status == dg.DagsterRunStatus.NOT_STARTED
    # Dagster removes the mark for a retry if it could not make the next run; if it was cut off between the failure and
    # that, it says nothing.
    reason = run.tags.get(RUN_FAILURE_REASON_TAG)
    return (
        run.tags.get(WILL_RETRY_TAG) != "true"
        and instance.run_retries_enabled
        and auto_reexecution_should_retry_run(instance, run, RunFailureReason(reason) if reason else None)
    )


def newest_try(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    """The last successor of a run that was tried again, whatever its tags."""
    while (successor := run.tags.get(AUTO_RETRY_RUN_ID_TAG)) is not None:
        next_one = instance.get_run_by_id(successor)
        if next_one is None or next_one.status == dg.DagsterRunStatus.NOT_STARTED:
            break
        run = next_one
    return run


def is_followed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """True for a failed run that another one replaces, or may replace: Dagster has not decided yet."""
    if run.status != dg.DagsterRunStatus.FAILURE:
        return False
    if run.is_complete_and_waiting_to_retry or AUTO_RETRY_RUN_ID_TAG in run.tags:
        return True
    if WILL_RETRY_TAG in run.tags or not instance.run_retries_enabled:
        return False
    record = instance.get_run_record_by_id(run.run_id)
    return record is not None and _since(record.update_timestamp) < _FORGOTTEN


def not_started(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs of the last day that nobody starts, whoever asked for them."""
    made = dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED])
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.now(UTC) - timedelta(days=1))
    runs = [run for which in (made, failed) for run in instance.get_runs(which, limit=_MOST_RUNS)]
    return [run for run in runs if nobody_starts(instance, run)]


def give_up(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Give up a run that was never started, and its retries; other runs replace it."""
    ids = [run.run_id, run.tags.get(AUTO_RETRY_RUN_ID_TAG, "")]
    for one in instance.get_runs(dg.RunsFilter(run_ids=[run_id for run_id in ids if run_id])):
        if one.status == dg.DagsterRunStatus.NOT_STARTED:
            instance.report_run_canceled(one, "It was made and never queued; its work is asked for again")
    if run.status == dg.DagsterRunStatus.FAILURE:
        instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false", GIVEN_UP_TAG: run.run_id})


def _set_going(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Have Dagster try again a run that nobody starts: it does so when it is told of a failure."""
    why = "Dagster was cut off before this run, or the one in its place, was queued"
    if run.status == dg.DagsterRunStatus.NOT_STARTED:
        if run.parent_run_id is None or RETRY_NUMBER_TAG not in run.tags:
            instance.report_run_failed(run, why)
            return
        parent = instance.get_run_by_id(run.parent_run_id)
        # The run that its parent names is queued when the parent is started.
        if parent is None or parent.tags.get(AUTO_RETRY_RUN_ID_TAG) != run.run_id:
            give_up(instance, run)
        return
    instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    instance.report_run_failed(run, why)


def _since(time_of_dagster: datetime) -> timedelta:
    """The time that has passed since a time of Dagster's; a time without a zone means UTC."""
    return datetime.now(UTC) - (time_of_dagster if time_of_dagster.tzinfo else time_of_dagster.replace(tzinfo=UTC))


# On at every stage: else a run that somebody started by hand would wait for ever once its worker has died.
@dg.sensor(
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts runs again that a fault of the machine ended, after the time that lab.yaml says.",
)
def start_waiting_retries(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Lets runs that are tried again start when they have waited for as long as lab.yaml says."""
    now = datetime.now(UTC)
    waiting = context.instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED], tags={WAITS_TAG: WAITS}), limit=1000
    )
    # A run that must wait longer than the longest wait was queued by a clock that was set back since.
    latest = now + timedelta(minutes=longest_wait(context.instance)) + TOLERANCE
    due = [run for run in waiting if not now < datetime.fromisoformat(run.tags[UNTIL_TAG]) <= latest]
    for run in due:
        context.instance.add_run_tags(run.run_id, {WAITS_TAG: STARTS})
    launched = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING], updated_before=now - _LAUNCHING)
    for run in context.instance.get_runs(launched, limit=_MOST_RUNS):
        if fail_unstarted(context.instance, run):
            context.log.warning(f"the worker of the run {run.run_id} died before it began")
    lost = []
    # Only one look in three minutes asks: for many failures the storage is asked one by one.
    looked = float(context.cursor or 0)
    if not 0 <= now.timestamp() - looked < _FORGOTTEN.total_seconds():
        context.update_cursor(str(now.timestamp()))
        # The sensor that asked for sessions asks for them again.
        lost = [run for run in not_started(context.instance) if run.tags.get(SENSOR_NAME_TAG) != SESSION_SENSOR]
        for run in lost:
            _set_going(context.instance, run)
            context.log.warning(f"the run {run.run_id} was never started, and is started now")
    told = f"{counted(len(due), 'run')} may start now, {counted(len(waiting) - len(due), 'goes', 'go')} on waiting"
    if not waiting:
        told = "no run waits to be tried again"
    set_going = counted(len(lost), "that nobody had started is", "that nobody had started are")
    return dg.SkipReason(f"{told}; {set_going} set going" if lost else told)
