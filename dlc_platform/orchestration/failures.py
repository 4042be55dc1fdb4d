"""Why a run failed, in the words that were meant for a person."""

from collections.abc import Iterable

import dagster as dg
from dagster._core.events import RunFailureReason

from dlc_platform.errors import PlatformError


def failure_reasons(events: Iterable[dg.DagsterEvent]) -> list[str]:
    """What the failed steps of a run say, or the run itself where no step failed; of any events of the run."""
    events = list(events)
    failures = [event.step_failure_data for event in events if event.is_step_failure]
    told = [failure.user_failure_data for failure in failures]
    errors = [failure.error for failure in failures] or [
        event.job_failure_data.error for event in events if event.is_job_failure
    ]
    prefix = f"{PlatformError.__module__}.{PlatformError.__qualname__}: "
    found = [failure.description for failure in told if failure is not None and failure.description]
    for error in errors if not found else []:
        # Dagster wraps what an asset raises.
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None:
            found.append(error.message.strip().removeprefix(prefix))
    return found


def failed_sessions(events: Iterable[dg.DagsterEvent]) -> list[tuple[str, str]] | None:
    """The sessions that failed in a run, each with what is said of it; None when anything else failed.

    `partitions.for_each_session` names them in the metadata of its failure.
    """
    found: list[tuple[str, str]] = []
    for event in events:
        if event.is_step_failure:
            told = event.step_failure_data.user_failure_data
            if told is None or not told.metadata:
                return None
            found += [(key, str(value.value)) for key, value in told.metadata.items()]
        elif event.is_job_failure and event.job_failure_data.failure_reason != RunFailureReason.STEP_FAILURE:
            return None
    return found or None
