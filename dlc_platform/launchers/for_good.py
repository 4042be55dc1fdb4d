"""Runs that fail for good: Dagster does not try them again, because another try would end in the same way.

Every launcher calls `give_own_retries` when it launches a run: a run that somebody starts instead of such a run has its
tags.
"""

from dagster import DagsterInstance, DagsterRun

from dlc_platform.launchers.dagster_internals import MAX_RETRIES_TAG, DagsterRunNotFoundError
from dlc_platform.launchers.run_ends import as_told

#: A tag of a run that is not tried again. Its value is the run's own id, because a successor inherits tags.
FOR_GOOD_TAG = "dlc_platform/failed_for_good"


def fail_for_good(instance: DagsterInstance, run: DagsterRun, why: str) -> None:
    """Fail a run that another try would not help; a run that somebody starts instead has retries again.

    A run that has ended keeps its end.
    """
    now = as_told(instance, run.run_id)
    if now is None or now.is_finished:
        return
    if now.tags.get(MAX_RETRIES_TAG) != "0":
        instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: "0", FOR_GOOD_TAG: run.run_id})
    instance.report_run_failed(run, why)


def give_own_retries(instance: DagsterInstance, run: DagsterRun) -> None:
    """Let a run that replaces one that failed for good be tried again as often as any other."""
    if run.parent_run_id is None or run.tags.get(FOR_GOOD_TAG) != run.parent_run_id:
        return
    try:
        group = instance.get_run_group(run.run_id)
    except DagsterRunNotFoundError:
        return  # The first run was deleted, and Dagster retries none of its successors.
    # Dagster counts all runs with the same first run.
    before = len(list(group[1])) - 1 if group else 0
    instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: str(before + instance.run_retries_max_retries)})
