"""Checks that nobody has to start, and the sensors that evaluate them and tell people what waits for them.

The outcome of a check about waiting changes with time, not when an asset is made. So a sensor evaluates it, and gives
the UI an evaluation when the outcome changes. `dlc_platform.notify.outbox` writes and sends the messages.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from sqlalchemy import Engine

from dlc_platform.catalog.notifications import announced
from dlc_platform.catalog.quarantine import quarantine_counts, quarantine_table, reasons_held_or_told
from dlc_platform.catalog.wanted import late_sessions
from dlc_platform.errors import command, in_this_lab
from dlc_platform.lab.waiting import waiting
from dlc_platform.launchers.dagster_internals import (
    WILL_RETRY_TAG,
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
    FreshnessState,
)
from dlc_platform.notify.messages import News
from dlc_platform.notify.outbox import announce, announce_quarantine, deliver
from dlc_platform.orchestration import schedules
from dlc_platform.orchestration.assets.poses import pose_estimates
from dlc_platform.orchestration.assets.sessions import session_videos
from dlc_platform.orchestration.failures import failed_sessions, failure_reasons
from dlc_platform.orchestration.metadata import table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.settings.operation import Freshness
from dlc_platform.text.words import counted

#: The most rows of a check's table, names in its sentence, late sessions that one look reports, and runs it asks about.
_LISTED = 100
_NAMED = 5
_LATE = 10_000
_RUNS = 300
#: The most failed steps that are compared with the quarantine; a run with more of them is reported itself.
_STEPS = 20
#: The time that the first look goes back, and the overlap of each look with the previous one: Dagster marks a run for a
#: retry a moment after it has failed.
_FIRST_LOOK = timedelta(days=1)
_OVERLAP = timedelta(minutes=2)
_FAILURES = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}


def freshness_policy(rule: Freshness) -> dg.FreshnessPolicy | None:
    """The allowed age of the newest poses, whatever was recorded; None if lab.yaml sets none."""
    if rule.fail_hours is None:
        return None
    warn = None if rule.warn_hours is None else timedelta(hours=rule.warn_hours)
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=rule.fail_hours), warn_window=warn)


@dg.asset_check(asset=session_videos)
def no_session_in_quarantine(lab: LabResource) -> dg.AssetCheckResult:
    """No session is held up for a reason that a person must deal with."""
    counts = quarantine_counts(lab.engine)
    if counts.empty:
        return dg.AssetCheckResult(passed=True, metadata={"sessions": 0})
    entries = quarantine_table(lab.engine, most=_LISTED)
    told = ", ".join(f"{row.sessions} at the stage {row.stage}" for row in counts.itertuples())
    return dg.AssetCheckResult(
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Sessions are in quarantine: {told}. Do what the remedy says, or release one as it is with "
        f"{command('sessions', 'release', lab.home, 'KEY')}",
        metadata={
            "stages": table(counts),
            "sessions": table(entries[["session", "stage", "file", "reason", "remedy", "since"]]),
        },
    )


@dg.asset_check(asset=session_videos)
def no_session_held_up(lab: LabResource) -> dg.AssetCheckResult:
    """No session waits for a person, registered or not."""
    held = [one for one in waiting(lab.engine, lab.settings) if not one.passing]
    if not held:
        return dg.AssetCheckResult(passed=True, metadata={"sessions": 0})
    number = len({one.session for one in held})
    return dg.AssetCheckResult(
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{counted(number, 'session is', 'sessions are')} held up, such as {held[0].session}: "
        f"{in_this_lab(held[0].reason)}. {command('sessions', lab.home, '--waiting')} lists all",
        metadata={
            "sessions": number,
            "held_up": table(
                [
                    {
                        "session": one.session,
                        "waits_for": one.step,
                        "file": one.file or "",
                        "since": "" if one.since is None else f"{one.since:%Y-%m-%d %H:%M} UTC",
                        "reason": one.reason,
                        "remedy": one.remedy,
                    }
                    for one in held[:_LISTED]
                ]
            ),
        },
    )


@dg.asset_check(asset=pose_estimates)
def poses_follow_recordings(lab: LabResource) -> dg.AssetCheckResult:
    """Every session that can be tracked has poses within the hours that `freshness` in lab.yaml allows."""
    hours = lab.settings.freshness.poses_within_hours
    if hours is None:
        return dg.AssetCheckResult(passed=True, description="lab.yaml sets no limit: freshness.poses_within_hours")
    late = late_sessions(lab.engine, datetime.now(UTC) - timedelta(hours=hours), lab.settings.damaged_videos, _LISTED)
    if late.empty:
        return dg.AssetCheckResult(passed=True, metadata={"late_sessions": 0})
    count = int(late["sessions"].iloc[0])
    names = ", ".join(late["session"].head(_NAMED)) + (f" and {count - _NAMED} more" if count > _NAMED else "")
    return dg.AssetCheckResult(
        passed=False,
        description=(
            f"{counted(count, 'session has', 'sessions have')} waited for poses for more than {hours:g} hours: "
            f"{names}. Check that the sensor new_session_videos is on, and read the errors of its runs"
        ),
        metadata={"late_sessions": count, "sessions": table(late[["session", "project", "files", "file", "since"]])},
    )


alert_checks = [no_session_in_quarantine, no_session_held_up, poses_follow_recordings]


def watch_sessions(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
    """Evaluates the checks about waiting, shows changes in the UI, and has people told who is late.

    It compares with the UI, not with its own last evaluation: a failed run leaves its checks without outcome.
    """
    keys = [check.check_key for check in alert_checks]
    shown = context.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    events, told = [], []
    for check, key in zip(alert_checks, keys, strict=True):
        result: Any = check(lab=lab)
        if not result.passed:
            told.append(str(result.description))
        if not _is_shown(context.instance, shown.get(key), result):
            events.append(
                dg.AssetCheckEvaluation(
                    asset_key=key.asset_key,
                    check_name=key.name,
                    passed=result.passed,
                    severity=result.severity,
                    description=result.description,
                    metadata=result.metadata,
                )
            )
    announce(lab.engine, lab.settings.notify.channels, _stale(lab, context.instance))
    seen = "; ".join(told) or "no session is late, held up or in quarantine"
    context.log.info(seen)
    return dg.SensorResult(
        asset_events=events, skip_reason=dg.SkipReason(f"{'New' if events else 'As before'}: {seen}")
    )


def deliver_notifications(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
    """Tells the channels of lab.yaml about failures, quarantine and all else that waits to be told, each once.

    A run that Dagster will retry is not a failure yet. If the quarantine holds every session that failed in a run, for
    the same reasons, the message about the quarantine is enough for channels that get it.
    """
    channels = lab.settings.notify.channels
    if not channels:
        return dg.SensorResult(skip_reason=dg.SkipReason("lab.yaml names no channel under `notify`"))
    announce_quarantine(lab.engine, channels)
    now = datetime.now(UTC)
    since = datetime.fromisoformat(context.cursor) if context.cursor else now - _FIRST_LOOK
    # A full look leads ahead by the overlap. After a clock was set back, the time of the last look means nothing.
    since = min(since, now + _OVERLAP)
    failed = context.instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since - _OVERLAP),
        limit=_RUNS,
        order_by="update_timestamp",
        ascending=True,
    )
    young = [record for record in failed if _may_be_retried(record, now)]
    settled = [record for record in failed if not _may_be_retried(record, now)]
    told = list(_failures(context.instance, lab.engine, settled))
    announce(lab.engine, channels, [news for news, in_quarantine in told if not in_quarantine])
    deaf = [channel for channel in channels if "quarantine" not in channel.send]
    announce(lab.engine, deaf, [news for news, in_quarantine in told if in_quarantine])
    until = now
    if len(failed) == _RUNS:
        # There may be more runs: the next look goes on from the last of these, or from the first that was too young.
        until = _utc(failed[-1].update_timestamp) + _OVERLAP
        if young:
            until = min(until, _utc(young[0].update_timestamp) + _OVERLAP - timedelta(milliseconds=1))
    sent = deliver(lab.engine, lab.settings.name, lab.settings.notify, context.log.warning)
    seen = (
        f"{counted(len(failed), 'run')} failed since {since - _OVERLAP:%Y-%m-%d %H:%M} UTC; "
        f"{counted(sent, 'message')} sent now"
    )
    context.log.info(seen)
    return dg.SensorResult(skip_reason=dg.SkipReason(seen), cursor=until.isoformat())


def alert_sensors(status: dg.DefaultSensorStatus) -> list[dg.SensorDefinition]:
    """The sensors of this module, on or off until somebody changes that in the UI."""
    return [
        dg.sensor(minimum_interval_seconds=seconds, default_status=status, description=what)(look)
        for look, seconds, what in (
            (
                watch_sessions,
                120,
                "Finds the sessions that are late, held up or in quarantine, and shows them at the checks.",
            ),
            (deliver_notifications, 30, "Tells the channels of lab.yaml what failed and what waits for a person."),
        )
    ]


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_shown(
    instance: dg.DagsterInstance, record: AssetCheckExecutionRecord | None, result: dg.AssetCheckResult
) -> bool:
    """True if the UI shows this very result, or a run under way is about to show one."""
    if record is None:
        return False
    if record.status == AssetCheckExecutionRecordStatus.PLANNED:
        run = instance.get_run_by_id(record.run_id)
        return run is not None and not run.is_finished
    shown = record.evaluation
    return shown is not None and (shown.passed, shown.description, shown.metadata) == (
        result.passed,
        result.description,
        result.metadata,
    )


def _stale(lab: LabResource, instance: dg.DagsterInstance) -> Iterator[News]:
    """News about sessions whose poses are late, about old poses if lab.yaml sets a limit, and about missed
    schedules."""
    rule = lab.settings.freshness
    if rule.poses_within_hours is not None:
        before = datetime.now(UTC) - timedelta(hours=rule.poses_within_hours)
        channels = [channel.name for channel in lab.settings.notify.channels if "stale" in channel.send]
        late = late_sessions(lab.engine, before, lab.settings.damaged_videos, _LATE, channels)
        for row in late.itertuples():
            yield News(
                "stale",
                str(row.wait),
                f"{row.session} has waited for poses for more than {rule.poses_within_hours:g} hours",
                f"{counted(int(str(row.files)), 'file')}, such as {row.file}, since {row.since:%Y-%m-%d %H:%M} UTC",
            )
    if rule.fail_hours is not None:
        state = instance.get_freshness_state_records([pose_estimates.key]).get(pose_estimates.key)
        if state is not None and state.freshness_state == FreshnessState.FAIL:
            yield News(
                "stale",
                f"pose_estimates {state.updated_at.isoformat()}",
                f"No poses were estimated for more than {rule.fail_hours:g} hours",
                "This is the limit freshness.fail_hours of lab.yaml; it counts even if nothing was recorded",
            )
    for one in schedules.late(lab.settings, instance):
        asset = one.asset.to_user_string()
        missed = f"The schedule {one.schedule} should have made it" + ("" if one.made_before else ", and never did")
        yield News(
            "stale",
            f"{asset} {one.since.isoformat()}",
            f"{asset} is late",
            f"{missed}. Check in the UI that it is on, and read the errors of its runs",
        )


def _may_be_retried(record: dg.RunRecord, now: datetime) -> bool:
    """True if a run failed so recently that Dagster may not have decided yet to retry it."""
    ended = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else _utc(record.update_timestamp)
    return WILL_RETRY_TAG not in record.dagster_run.tags and now - ended < _OVERLAP / 2


def _failures(
    instance: dg.DagsterInstance, engine: Engine, records: Sequence[dg.RunRecord]
) -> Iterator[tuple[News, bool]]:
    """The runs that failed and were not reported, and for each whether the quarantine holds every session that
    failed."""
    told_already = announced(engine, "run_failure", [record.dagster_run.run_id for record in records])
    for record in records:
        run = record.dagster_run
        if run.run_id in told_already or run.tags.get(WILL_RETRY_TAG) == "true":
            continue
        entries = instance.get_records_for_run(run.run_id, of_type=_FAILURES, limit=_STEPS).records
        events = [event for entry in entries if (event := entry.event_log_entry.dagster_event) is not None]
        why = "; ".join(failure_reasons(events))
        what = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ())) or run.job_name
        news = News(
            "run_failure", run.run_id, f"A run of {what} failed", f"{why or 'no reason is known'} (run {run.run_id})"
        )
        failed = failed_sessions(events) if len(events) < _STEPS else None
        yield news, failed is not None and _all_in_quarantine(engine, run.run_id, failed)


def _all_in_quarantine(engine: Engine, run_id: str, failed: Sequence[tuple[str, str]]) -> bool:
    """True if each session is in quarantine for this run's reason, or was released after that had been reported."""
    reasons = reasons_held_or_told(engine, [key for key, _ in failed], run_id)
    return all(any(reason in said for reason in reasons.get(key, ())) for key, said in failed)
