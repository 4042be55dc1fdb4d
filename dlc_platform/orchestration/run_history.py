"""Removal of old logs of runs from Dagster's tables.

A run of networks writes dozens of events, and a lab makes thousands of runs a year: nobody will read most of Dagster's
tables again. The facts that Dagster answers with are kept for ever: that a run existed, when and how it began and
ended, and what it should make, made and checked. The lab's own lineage is in the catalogue and needs none of it.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import dagster as dg
from sqlalchemy import delete, or_, select

from dlc_platform.errors import PlatformError
from dlc_platform.launchers.dagster_internals import FINISHED_STATUSES, SqlEventLogStorage, SqlEventLogStorageTable

#: Kinds of events that stay: those of assets and of whole runs. `None` stands for the log of a run's own code.
_STAY = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_FAILED_TO_MATERIALIZE,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
    dg.DagsterEventType.FRESHNESS_STATE_CHANGE,
    dg.DagsterEventType.FRESHNESS_STATE_EVALUATION,
    dg.DagsterEventType.RUN_ENQUEUED,
    dg.DagsterEventType.RUN_DEQUEUED,
    dg.DagsterEventType.RUN_STARTING,
    dg.DagsterEventType.RUN_START,
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELING,
    dg.DagsterEventType.RUN_CANCELED,
    # The reason why a run failed.
    dg.DagsterEventType.STEP_FAILURE,
)
#: The most events of one transaction, so that nobody waits for it, and of one call: the rest waits for the next call.
_BATCH = 5_000
_MOST = 1_000_000


@dataclass(frozen=True)
class Forgotten:
    """The number of removed events and folders, and True if there is more for the next time."""

    events: int
    log_folders: int
    more: bool


def forget(
    instance: dg.DagsterInstance, keep_days: int, now: datetime | None = None, most_events: int = _MOST
) -> Forgotten:
    """Remove events that runs logged more than `keep_days` ago, except those of runs under way, and their processes'
    output.

    Raises
    ------
    PlatformError
        When Dagster's storage is of a kind that cannot be asked.
    """
    before = (now or datetime.now(UTC)) - timedelta(days=keep_days)
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    under_way = {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=unfinished))}
    events = _forget_events(instance, before, under_way, most_events)
    folders = _forget_output(Path(instance.root_directory), before, under_way)
    return Forgotten(events, folders, events >= most_events)


def _forget_events(instance: dg.DagsterInstance, before: datetime, under_way: set[str], most: int) -> int:
    storage = instance.event_log_storage
    # If an instance is not made from dagster.yaml, Dagster wraps the Postgres storage.
    storage = getattr(storage, "event_log_storage", storage)
    if not isinstance(storage, SqlEventLogStorage):
        raise PlatformError(
            f"Dagster keeps its events in {type(storage).__name__}, which cannot be asked to forget",
            "Set `runs: {keep_events_days: null}` in lab.yaml, or let `dlc-platform` write dagster.yaml",
        )
    events = SqlEventLogStorageTable
    removed, last = 0, 0
    while removed < most:
        kind = events.c.dagster_event_type
        # By number, so that events that stay are passed over once and not in every batch. Dagster's times have no zone.
        batch = (
            select(events.c.id)
            .where(events.c.id > last)
            .where(events.c.timestamp < before.replace(tzinfo=None))
            .where(or_(kind.is_(None), kind.not_in([one.value for one in _STAY])))
            .where(events.c.run_id.not_in(under_way))
            .order_by(events.c.id)
            .limit(min(_BATCH, most - removed))
        )
        with storage.index_connection() as connection:
            numbers = list(connection.execute(batch).scalars())
            if not numbers:
                return removed
            connection.execute(delete(events).where(events.c.id.in_(numbers)))
        last = numbers[-1]
        removed += len(numbers)
    return removed


def _is_run(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _forget_output(root: Path, before: datetime, under_way: set[str]) -> int:
    """Remove the output of old runs' processes: Dagster's folders, and the launcher's files."""
    removed = 0
    for folder in (root / "compute-logs", root / "run-logs"):
        for place in folder.glob("*"):
            try:
                old = place.stat().st_mtime < before.timestamp()
            except FileNotFoundError:
                continue
            # Beside the folders of runs lies one for the output of all sensors and schedules.
            if not old or place.stem in under_way or not _is_run(place.stem):
                continue
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)
            removed += 1
    return removed
