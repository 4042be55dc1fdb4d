"""Asset checks of single sessions, for an asset that works through many sessions.

The checks belong to the asset's own step, so that a session is checked even if another one of its run has failed.
Checks over the whole catalogue are in `checks.py`.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.errors import PlatformError, in_this_lab
from dlc_platform.launchers.dagster_internals import AssetCheckEvaluationTargetMaterializationData
from dlc_platform.orchestration.partitions import for_each_session, sessions
from dlc_platform.text.words import counted

# Dagster would print this warning at every load, to every command.
warnings.filterwarnings("ignore", message="Specifying a partitions_def", category=dg.PreviewWarning)


def session_checks(asset: str, descriptions: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    """The checks of an asset that is partitioned by session, for its `check_specs`; `descriptions` are by name."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=description, partitions_def=sessions)
        for name, description in descriptions.items()
    ]


def for_each_checked_session(
    context: AssetExecutionContext,
    work: Callable[[str], Mapping[str, Any] | Callable[[], Mapping[str, Any]]],
    check: Callable[[str], Iterable[dg.AssetCheckResult]],
    blocking: bool = False,
    outcome: Callable[[str, PlatformError | None], None] | None = None,
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckEvaluation | dg.Output[None]]:
    """Materialise each session of this run as `for_each_session` does, and check it, even if that failed.

    The asset is a generator that ends in ``yield from for_each_checked_session(context, work, check)`` and has
    ``check_specs=session_checks(...)``; its return annotation is an Iterator. In the UI, each check has its sessions
    under Partitions.

    Parameters
    ----------
    work
        As `for_each_session` takes it.
    check
        Takes a session's key and returns a result for each check, with its `check_name`.
    blocking
        True if assets that depend on this one must not start in this run after a check failed as an error.
    outcome
        As `for_each_session` takes it.

    Raises
    ------
    dagster.Failure
        After the last session and its checks, if any session failed or could not be checked.
    """
    try:
        for_each_session(context, work, outcome)
    except dg.Failure:
        yield from _evaluations(context, check, blocking)
        raise
    yield dg.MaterializeResult()
    unchecked = yield from _evaluations(context, check, blocking)
    if unchecked:
        raise dg.Failure(f"{counted(len(unchecked), 'session')} could not be checked: {', '.join(unchecked)}")
    # A check is also an output of its step, which this run must give once, however many sessions it checked.
    for key in context.selected_asset_check_keys:
        yield dg.Output(None, context.assets_def.get_output_name_for_asset_check_key(key))


def _evaluations(
    context: AssetExecutionContext, check: Callable[[str], Iterable[dg.AssetCheckResult]], blocking: bool
) -> Generator[dg.AssetCheckEvaluation, None, list[str]]:
    """Check the sessions, and return those that could not be checked; these stop neither the others nor the report."""
    unchecked = []
    for key in context.partition_keys:
        try:
            results = list(check(key))
            target = _materialization(context, key)
        except Exception:
            context.log.exception(f"{key} could not be checked")
            unchecked.append(key)
            continue
        for result in results:
            yield dg.AssetCheckEvaluation(
                asset_key=context.asset_key,
                check_name=str(result.check_name),
                passed=result.passed,
                metadata=result.metadata,
                target_materialization_data=target,
                severity=result.severity,
                description=None if result.description is None else in_this_lab(result.description),
                blocking=blocking,
                partition=key,
            )
    return unchecked


def _materialization(context: AssetExecutionContext, key: str) -> AssetCheckEvaluationTargetMaterializationData | None:
    """The newest materialisation of a session: the UI takes a check that names another one for missing."""
    newest = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(context.asset_key, asset_partitions=[key]), limit=1
    ).records
    if not newest:
        return None
    (record,) = newest
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
    )
