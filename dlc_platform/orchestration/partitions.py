"""Partitions: the recording sessions and the recipes, and how one run works through many sessions."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext
from sqlalchemy.exc import OperationalError

from dlc_platform.errors import PlatformError

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"

sessions = dg.DynamicPartitionsDefinition(name="sessions")

#: Many sessions travel in one run, so that the process starts and the model loads once.
many_sessions = dg.BackfillPolicy.single_run()
# Dagster says so at every load, to every command.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)


def range_tags(keys: Sequence[str]) -> dict[str, str]:
    """The tags of one run over neighbouring partitions."""
    return {RANGE_START: keys[0], RANGE_END: keys[-1]}


def neighbours(keys: Iterable[str], order: Sequence[str], most: int) -> list[list[str]]:
    """Split partition keys into stretches that lie side by side in `order`, each of at most `most` keys."""
    place = {key: index for index, key in enumerate(order)}
    stretches: list[list[str]] = []
    for key in sorted(keys, key=place.__getitem__):
        last = stretches[-1] if stretches else None
        if last and len(last) < most and place[key] == place[last[-1]] + 1:
            last.append(key)
        else:
            stretches.append([key])
    return stretches


def newest_first(keys: Sequence[str], order: Sequence[str], most: int) -> list[list[str]]:
    """Split sessions into runs that begin with the newest: stretches of neighbours, each of at most `most` keys.

    Parameters
    ----------
    keys
        The newest session first.
    order
        All partitions as Dagster keeps them; a run can only hold neighbours.
    """
    age = {key: index for index, key in enumerate(keys)}
    live = set(order)
    known = [key for key in keys if key in live]
    return sorted(neighbours(known, order, most), key=lambda stretch: min(age[key] for key in stretch))


def for_each_session(
    context: AssetExecutionContext,
    work: Callable[[str], Mapping[str, Any]],
    outcome: Callable[[str, PlatformError | None], None] | None = None,
) -> None:
    """Materialise each session of this run by itself: one that fails does not stop the others.

    Parameters
    ----------
    work
        Takes a session's key and returns the metadata of its materialisation.
    outcome
        Is told of each session what is wrong with it, or that nothing is.

    Raises
    ------
    dagster.Failure
        After the last session, when any of them failed.
    """
    done: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, str] = {}
    for key in context.partition_keys:
        problem = None
        try:
            done[key] = work(key)
        except PlatformError as error:
            problem = error
            context.log.error(f"{key}: {error}")
        except OperationalError:
            raise
        except Exception as error:
            problem = PlatformError(f"{type(error).__name__}: {error}", f"Look at the log of the run {context.run_id}")
            context.log.exception(f"{key} failed")
        if problem is not None:
            failed[key] = str(problem)
        if outcome is not None:
            outcome(key, problem)
    if not failed:
        for key, metadata in done.items():
            context.add_asset_metadata(metadata, partition_key=key)
        return
    # A failing step emits nothing by itself, so the sessions that did work are written down here.
    for key, metadata in done.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata))
    raise dg.Failure(
        f"{len(failed)} of {len(context.partition_keys)} sessions failed: "
        + "; ".join(f"{key}: {reason}" for key, reason in failed.items()),
        metadata={key: dg.MetadataValue.text(reason) for key, reason in failed.items()},
        allow_retries=False,
    )
