"""The end of the runs that were asked for: done, tried again, or quarantine with the reason."""

import time
from collections.abc import Iterable, Mapping

import dagster as dg

from dlc_platform.catalog import tables, wanted
from dlc_platform.catalog.quarantine import Fault
from dlc_platform.catalog.sessions import name_session
from dlc_platform.errors import command
from dlc_platform.launchers.dagster_internals import RUN_KEY_TAG
from dlc_platform.orchestration.failures import failure_reasons, is_of_the_machine
from dlc_platform.orchestration.outcomes import hold, wanted_labels, wanted_poses
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import WAITS, WAITS_TAG, give_up, is_followed, newest_try, nobody_starts
from dlc_platform.orchestration.under_way import STAGES, Cursor
from dlc_platform.sessions import scanning
from dlc_platform.text.assets import LABELED_FRAMES, POSE_ESTIMATES, SESSION_VIDEOS

_IN_LINE = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
_WORK = {
    SESSION_VIDEOS: "register its videos",
    LABELED_FRAMES: "count its labels",
    POSE_ESTIMATES: "estimate its poses",
}


def forget_ended(lab: LabResource, instance: dg.DagsterInstance, cursor: Cursor) -> set[str]:
    """Remove the requests that are done, and those that will not be done; the latter go into quarantine with the
    reason.

    Returns
    -------
    set of str
        The first assets of the runs that wait for their turn.
    """
    in_line: set[str] = set()
    if not cursor.runs:
        return in_line
    # Before asking what is lacking: work that a run does in its last moments must not count as not done.
    runs = {run_key: _newest_run(instance, run_key) for run_key in cursor.runs}
    videos = scanning.compare(lab.engine, lab.settings, cursor.under_way(SESSION_VIDEOS))
    changed = {candidate.session.key: candidate for candidate in videos.wanted}
    missing: dict[str, Mapping[str, str]] = {
        SESSION_VIDEOS: {key: candidate.fingerprint for key, candidate in changed.items()},
        LABELED_FRAMES: lacking(wanted_labels(lab, only=cursor.under_way(LABELED_FRAMES))),
        POSE_ESTIMATES: lacking(wanted_poses(lab, only=cursor.under_way(POSE_ESTIMATES))),
    }
    for run_key, asked in list(cursor.runs.items()):
        run = runs[run_key]
        lost = run is not None and nobody_starts(instance, run)
        ended = run is None or lost or (run.is_finished and not is_followed(instance, run))
        first = asked.assets[0]
        wanted_still = {
            key: evidence
            for key, evidence in asked.sessions.items()
            if any(key in missing[asset] for asset in asked.assets)
            # Its files are out of sight.
            or (first == SESSION_VIDEOS and key not in videos.registered)
        }
        for key in asked.sessions.keys() - wanted_still.keys():
            cursor.again.pop(key, None)
        asked.sessions = wanted_still
        if asked.sessions and not ended:
            # A run that waits for its next try is not a reason for others to wait behind it.
            if run is not None and run.status in _IN_LINE and run.tags.get(WAITS_TAG) != WAITS:
                in_line.add(first)
            continue
        del cursor.runs[run_key]
        events = _failures(instance, run) if run is not None and asked.sessions else []
        if run is not None and lost:
            give_up(instance, run)
        for key, evidence in asked.sessions.items():
            # A missing run was deleted, or Dagster was cut off before it had written the run's sessions.
            if lost or (run is None and key not in cursor.again) or is_of_the_machine(events, key):
                cursor.postpone(key, time.time())
                continue
            # If the first asset failed, the next one was not tried; sessions that changed since are asked for again.
            now = missing[first].get(key)
            if now is not None and evidence in (now, ""):
                if first == SESSION_VIDEOS:
                    session = changed[key].session
                    name_session(
                        lab.engine,
                        tables.Session(key=key, subject=session.subject, name=session.name, folder=str(session.folder)),
                    )
                fault = Fault(_fate(instance, run, first, key), _remedy(lab, run, key), now)
                hold(lab, key, STAGES[first], fault, run.run_id if run else None)
    return in_line


def _newest_run(instance: dg.DagsterInstance, run_key: str) -> dg.DagsterRun | None:
    # One at a time, as Dagster does itself: its tables are slow for many at once.
    run = next(iter(instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: run_key}), limit=1)), None)
    return newest_try(instance, run) if run is not None else None


def _failures(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dg.DagsterEvent]:
    """The failures that the steps of a run, and the run itself, wrote."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run.run_id, of_type=kinds).records
    return [event for record in records if (event := record.event_log_entry.dagster_event) is not None]


def _fate(instance: dg.DagsterInstance, run: dg.DagsterRun | None, asset: str, key: str) -> str:
    """The end of a run that should have worked on a session and did not, in words."""
    what = f"the run that was to {_WORK[asset]}"
    if run is None:
        return f"{what} was deleted"
    if run.status == dg.DagsterRunStatus.CANCELED:
        return f"{what} was cancelled"
    if run.is_success:
        return f"{what} ended without doing so"
    return f"{what} failed{_why(instance, run, key)}"


def _why(instance: dg.DagsterInstance, run: dg.DagsterRun, key: str) -> str:
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
        for record in instance.get_records_for_run(run.run_id, of_type=kind, limit=1).records:
            event = record.event_log_entry.dagster_event
            told = event.step_failure_data.user_failure_data if event and event.is_step_failure else None
            if told is not None:
                own = told.metadata.get(key)
                return f": {own.value if own is not None else told.description}"
            if event is not None and (reasons := failure_reasons([event])):
                return f": {reasons[0]}"
            if event is not None and event.message:
                return f": {event.message.splitlines()[0]}"
    return ""


def _remedy(lab: LabResource, run: dg.DagsterRun | None, key: str) -> str:
    look = f"Look at the run {run.run_id} in the UI, and when" if run else "When"
    return f"{look} it may be tried again, {command('sessions', 'release', lab.home, key)}"


def lacking(asked_about: Iterable[wanted.Wanted]) -> dict[str, str]:
    return {session.session_key: session.evidence for session in asked_about if session.lacks}
