"""Runs whose worker died are tried again, and not at once.

Which runs are tried again is Dagster's `run_retries`: those whose worker died, never those whose computation failed.
Dagster starts them at once, and what killed a worker (memory, a disk, a server that restarts) is mostly still there.
So a run that is tried again enters the queue with a tag that nothing may start with, and a sensor changes that when its
time has come: no slot and no device is held meanwhile, and no process has to remember it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._core.storage.tags import RETRY_NUMBER_TAG
from dagster._serdes import ConfigurableClassData

WAITS_TAG = "dlc_platform/waits"
WAITS, STARTS = "yes", "no"
#: How often, and after how many seconds each, the queue tries to launch a run while lab.yaml is not valid.
_MOST_LOADS, _LOAD_SECONDS = 10_000, 30
UNTIL_TAG = "dlc_platform/waits_until"
#: On a run that ended because the lab was stopped: its own id, as what follows it has the tags of what it follows.
STOPPED_TAG = "dlc_platform/stopped_with_the_lab"
#: For dagster.yaml: nothing that waits is started.
NONE_THAT_WAITS = {"key": WAITS_TAG, "value": WAITS, "limit": 0}


class PatientRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, in which runs that are tried again wait for `retry_minutes`, by their number."""

    def __init__(self, retry_minutes: list[float] | None = None, **others: Any):
        # While lab.yaml is not valid nothing can be launched: what is in the queue waits, and does not fail.
        super().__init__(
            **{"max_user_code_failure_retries": _MOST_LOADS, "user_code_failure_retry_delay": _LOAD_SECONDS, **others}
        )
        self._retry_minutes = retry_minutes or []

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
        """Queue a run; one that is tried again is to wait first."""
        run = context.dagster_run
        # A run that was tried again brings the tags of the one before.
        if RETRY_NUMBER_TAG in run.tags or WAITS_TAG in run.tags:
            minutes = self._minutes(run.tags, run.parent_run_id)
            until = datetime.now(UTC) + timedelta(minutes=minutes)
            tags = {WAITS_TAG: WAITS if minutes else STARTS, UNTIL_TAG: until.isoformat(timespec="seconds")}
            self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)

    def _minutes(self, tags: Mapping[str, str], parent_run_id: str | None) -> float:
        number = int(tags.get(RETRY_NUMBER_TAG, "0"))
        by_itself = tags.get(STOPPED_TAG, "") != parent_run_id
        if not (number and by_itself and self._retry_minutes):
            return 0
        return self._retry_minutes[min(number, len(self._retry_minutes)) - 1]


# On at every stage: a run that somebody started by hand there would otherwise wait for ever once its worker has died.
@dg.sensor(minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def start_waiting_retries(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Lets runs that are tried again start when they have waited for as long as lab.yaml says."""
    now = datetime.now(UTC)
    waiting = context.instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED], tags={WAITS_TAG: WAITS}), limit=1000
    )
    due = [run for run in waiting if datetime.fromisoformat(run.tags[UNTIL_TAG]) <= now]
    for run in due:
        context.instance.add_run_tags(run.run_id, {WAITS_TAG: STARTS})
    return dg.SkipReason(f"{len(due)} runs may start now, {len(waiting) - len(due)} go on waiting")
