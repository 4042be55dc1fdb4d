"""Partitions: the recording sessions and the recipes, and how one run works through many sessions."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.errors import PlatformError, sentence_for_people
from dlc_platform.faults import is_lost_database, machine_fault
from dlc_platform.launchers.dagster_internals import (
    FINISHED_STATUSES,
    PARTITION_NAME_TAG,
    BulkActionsFilter,
    BulkActionStatus,
)
from dlc_platform.orchestration.failures import OF_THE_MACHINE
from dlc_platform.orchestration.retries import sensor_asks_again, try_again
from dlc_platform.settings.operation import ScanRule
from dlc_platform.text.words import counted, listed, said_of

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
#: The tag that the UI's list of runs shows for a run over many sessions, and the most sessions that it names.
SESSIONS_TAG, _NAMED = "sessions", 3
_UNFINISHED_BACKFILLS = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
#: The daemon makes the next run within seconds; that one may wait for long.
_LONGEST_UNTIL_RETRY = timedelta(hours=1)
#: The pauses before work on a session is repeated after the run lost the database: Postgres is back within seconds.
_DATABASE_SECONDS = (1.0, 5.0, 15.0)

sessions = dg.DynamicPartitionsDefinition(name="sessions")

#: Many sessions travel in one run, so that the process starts and the model loads once.
many_sessions = dg.BackfillPolicy.single_run()
# Dagster would print this warning at every load, to every command.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)


def in_use(instance: dg.DagsterInstance) -> set[str]:
    """The sessions for which runs and backfills are under way, whoever asked for them: these stay partitions.

    A run that failed and is about to be tried again counts too.
    """
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    runs = list(instance.get_runs(dg.RunsFilter(statuses=unfinished)))
    lately = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.now(UTC) - _LONGEST_UNTIL_RETRY
    )
    runs += [run for run in instance.get_runs(lately) if run.is_complete_and_waiting_to_retry]
    found = {run.tags[PARTITION_NAME_TAG] for run in runs if PARTITION_NAME_TAG in run.tags}
    ranges = [
        (run.tags[RANGE_START], run.tags[RANGE_END]) for run in runs if {RANGE_START, RANGE_END} <= run.tags.keys()
    ]
    order = instance.get_dynamic_partitions(str(sessions.name)) if ranges else []
    place = {key: index for index, key in enumerate(order)}
    for start, end in ranges:
        found |= {start, end}
        if start in place and end in place:
            found |= set(order[place[start] : place[end] + 1])
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED_BACKFILLS)):
        found |= set(backfill.partition_names or ())
        if (data := backfill.asset_backfill_data) is not None:
            for subset in data.target_subset.partitions_subsets_by_asset_key.values():
                found |= set(subset.get_partition_keys())
    return found


def range_tags(keys: Sequence[str]) -> dict[str, str]:
    """The tags of one run over neighbouring partitions; one tag names the first session, for a person who looks for
    it."""
    return {RANGE_START: keys[0], RANGE_END: keys[-1], SESSIONS_TAG: listed(keys, _NAMED)}


def neighbours(
    keys: Iterable[str],
    order: Sequence[str],
    most: int,
    sizes: Mapping[str, int] | None = None,
    most_bytes: float = math.inf,
) -> list[list[str]]:
    """Split partition keys into stretches that lie side by side in `order`, each of at most `most` keys.

    With `sizes`, in bytes, a stretch of several keys is not larger than `most_bytes`.
    """
    place = {key: index for index, key in enumerate(order)}
    sizes = sizes or {}
    stretches: list[list[str]] = []
    size = 0
    for key in sorted(keys, key=place.__getitem__):
        last = stretches[-1] if stretches else None
        size += sizes.get(key, 0)
        if last and len(last) < most and size <= most_bytes and place[key] == place[last[-1]] + 1:
            last.append(key)
        else:
            stretches.append([key])
            size = sizes.get(key, 0)
    return stretches


def newest_first(
    keys: Sequence[str], order: Sequence[str], rules: ScanRule, sizes: Mapping[str, int]
) -> list[list[str]]:
    """Split sessions into runs that begin with the newest: stretches of neighbours, within the limits of lab.yaml.

    Parameters
    ----------
    keys
        The newest session first.
    order
        All partitions as Dagster keeps them; a run can only hold neighbours.
    rules
        The limits of lab.yaml.
    sizes
        The bytes of each session's video files.
    """
    age = {key: index for index, key in enumerate(keys)}
    live = set(order)
    known = [key for key in keys if key in live]
    runs = neighbours(known, order, rules.sessions_per_run, sizes, 1e9 * rules.gigabytes_per_run)
    return sorted(runs, key=lambda run: min(age[key] for key in run))


def for_each_session(
    context: AssetExecutionContext,
    work: Callable[[str], Mapping[str, Any] | Callable[[], Mapping[str, Any]]],
    outcome: Callable[[str, PlatformError | None], None] | None = None,
) -> None:
    """Materialise each session of this run by itself: one that fails does not stop the others.

    Parameters
    ----------
    work
        Takes a session's key and returns the metadata of its materialisation, or a function that makes it, which is
        called in another thread while the next session is worked on.
    outcome
        Called for each session with its fault, or with None. It is not called for a session that a fault of the machine
        kept from being worked on: such a session is tried again.

    Raises
    ------
    dagster.Failure
        After the last session, if any of them failed.
    """
    done: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, str] = {}
    waits: dict[str, str] = {}

    def end(key: str, metadata: Future[Mapping[str, Any]]) -> None:
        problem = None
        try:
            done[key] = metadata.result()
        except Exception as error:
            if machine_fault(error) is not None:
                raise
            problem = sentence_for_people(error) or PlatformError(
                f"{type(error).__name__}: {error}", f"Look at the log of the run {context.run_id}"
            )
            if isinstance(error, PlatformError):
                context.log.error(said_of(key, str(error)))
            else:
                context.log.exception(f"{key} failed")
            failed[key] = str(problem)
        if outcome is not None:
            outcome(key, problem)

    def end_well(key: str, metadata: Future[Mapping[str, Any]]) -> None:
        """End a session, and work on it again where the database was lost; what it made is found then."""
        for pause in (*_DATABASE_SECONDS, None):
            try:
                end(key, metadata)
                return
            except Exception as error:
                told = str(machine_fault(error) or "")
                if not told:
                    raise
                done.pop(key, None)
                failed.pop(key, None)
                if pause is None or not is_lost_database(error):
                    waits[key] = told
                    context.log.warning(f"{key} waits: {told}")
                    return
            time.sleep(pause)
            metadata = _begun(work, key, beside)

    with ThreadPoolExecutor(max_workers=1) as beside:
        before: tuple[str, Future[Mapping[str, Any]]] | None = None
        for key in context.partition_keys:
            metadata = _begun(work, key, beside)
            if before is not None:
                end_well(*before)
            before = key, metadata
        if before is not None:
            end_well(*before)
    if not failed and not waits:
        for key, metadata in done.items():
            context.add_asset_metadata(metadata, partition_key=key)
        return
    # A failing step emits nothing by itself, so the successful sessions are written down here.
    for key, metadata in done.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata))
    if waits and not sensor_asks_again(context.run_tags):
        try_again(context.instance, context.run_id)
    told = []
    if failed:
        told.append(f"{len(failed)} of {counted(len(context.partition_keys), 'session')} failed: " + _listed(failed))
    if waits:
        told.append(
            f"{len(waits)} of {counted(len(context.partition_keys), 'session')} could not be worked on now: "
            + _listed(waits)
        )
    raise dg.Failure(
        "; ".join(told),
        metadata={
            **{key: dg.MetadataValue.text(reason) for key, reason in failed.items()},
            **({OF_THE_MACHINE: dg.MetadataValue.text(json.dumps(waits))} if waits else {}),
        },
        allow_retries=False,
    )


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(said_of(key, reason) for key, reason in reasons.items())


def _begun(
    work: Callable[[str], Mapping[str, Any] | Callable[[], Mapping[str, Any]]], key: str, beside: ThreadPoolExecutor
) -> Future[Mapping[str, Any]]:
    """Work on a session, and have its metadata made; an error is in the future."""
    made: Future[Mapping[str, Any]] = Future()
    try:
        result = work(key)
    except Exception as error:
        made.set_exception(error)
        return made
    if callable(result):
        return beside.submit(result)
    made.set_result(result)
    return made
