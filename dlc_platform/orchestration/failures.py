"""The reasons why a run failed, in words for a person, and the question if the machine was at fault."""

import json
from collections.abc import Iterable

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from dlc_platform.faults import is_told_of_machine
from dlc_platform.launchers.dagster_internals import RunFailureReason

#: The beginning of the names of our own exceptions, whose messages are for people.
_OURS = "dlc_platform."
#: The key, in the metadata of a failed step, of the sessions that a fault of the machine kept from being worked on, as
#: JSON, each with its message.
OF_THE_MACHINE = "dlc_platform/of_the_machine"


def failure_reasons(events: Iterable[dg.DagsterEvent]) -> list[str]:
    """The messages of a run's failed steps, or of the run itself if no step failed; `events` are any events of the
    run."""
    events = list(events)
    failures = [event.step_failure_data for event in events if event.is_step_failure]
    told = [failure.user_failure_data for failure in failures]
    errors = [failure.error for failure in failures] or [
        # The event of a run that Dagster itself gave up has no error.
        event.job_failure_data.error
        for event in events
        if event.is_job_failure and event.event_specific_data
    ]
    found = [failure.description for failure in told if failure is not None and failure.description]
    return found or [reason for error in errors if error is not None and (reason := _reason(error))]


def _reason(error: SerializableErrorInfo) -> str:
    """Our message nearest to the top, else that of the deepest cause: Dagster wraps the errors of assets."""
    chain = [error]
    while (cause := chain[-1].cause or chain[-1].context) is not None:
        chain.append(cause)
    for one in chain:
        name, separator, said = one.message.strip().partition(": ")
        if separator and name.startswith(_OURS):
            return said
    causes = _causes(error)
    # An exception without a text says less than the one raised because of it.
    return next((said for one in reversed(causes) if ": " in (said := one.message.strip())), error.message.strip())


def _causes(error: SerializableErrorInfo) -> list[SerializableErrorInfo]:
    causes = [error]
    while causes[-1].cause is not None:
        causes.append(causes[-1].cause)
    return causes


def is_of_the_machine(events: Iterable[dg.DagsterEvent], session: str) -> bool:
    """True if the failures of a run tell nothing about a session: the machine failed, or a disk or server is away."""
    found = False
    for event in events:
        error = None
        if event.is_step_failure:
            failure = event.step_failure_data
            told = failure.user_failure_data
            if told is not None:
                if session in told.metadata:
                    return False
                waits = told.metadata.get(OF_THE_MACHINE)
                found = found or (waits is not None and session in json.loads(str(waits.value)))
                continue
            error = failure.error
        elif event.is_job_failure and event.event_specific_data:
            error = event.job_failure_data.error
            # By the clock, it never began its work.
            found = found or event.job_failure_data.failure_reason == RunFailureReason.START_TIMEOUT
        if error is not None:
            found = found or is_told_of_machine([(one.cls_name, one.message) for one in _causes(error)])
    return found


def failed_sessions(events: Iterable[dg.DagsterEvent]) -> list[tuple[str, str]] | None:
    """The sessions that failed in a run, each with its message; None if something else failed, or the machine.

    `partitions.for_each_session` names them in the metadata of its failure.
    """
    found: list[tuple[str, str]] = []
    for event in events:
        if event.is_step_failure:
            told = event.step_failure_data.user_failure_data
            if told is None or not told.metadata or OF_THE_MACHINE in told.metadata:
                return None
            found += [(key, str(value.value)) for key, value in told.metadata.items()]
        elif event.is_job_failure and event.job_failure_data.failure_reason != RunFailureReason.STEP_FAILURE:
            return None
    return found or None
