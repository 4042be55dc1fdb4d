"""The sensor that makes the platform automatic.

`scanning` knows the disks, and the catalogue knows the finished work. So the cursor holds only the work under way: the
runs that were asked for and have not ended, with their sessions, within the limit of lab.yaml. A restart neither loses
nor repeats a session, and a lost cursor costs a second look, not a second result.

A session is asked for once for each state of its files, and its poses once for each set of files that can be tracked.
Some files cannot be tracked: they cannot be read, or are damaged and lab.yaml says to stop, or their project has no
production model, or has one that is hopeless or cannot be judged. Such a file does not hold up the others.

Dagster retries a run whose worker died. A session that a fault of the machine kept from being worked on is asked for
again, after longer and longer pauses, until it goes on; so is one whose run Dagster has lost. If a person cancelled a
run, or deleted it twice, or if it failed by its own fault, its sessions go into quarantine with the reason. They hold
up nothing, and come back when one of their files is replaced, when a person releases them, or with `dlc-platform run
HOME pose_estimates`, which completes missing work.

Dagster's partitions are the sessions with present or recent work, in the order of the requests, so that those of one
run lie side by side. When there are more than `scan.live_sessions`, the oldest finished ones are removed; they stay in
the catalogue, and are added again when there is work for them.
"""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from dlc_platform.catalog import wanted
from dlc_platform.catalog.estimates import stale_sessions
from dlc_platform.errors import command, in_this_lab, printable
from dlc_platform.identity import sha256_json, short
from dlc_platform.launchers.dagster_internals import FINISHED_STATUSES, PRIORITY_TAG, SENSOR_NAME_TAG
from dlc_platform.orchestration.ended_runs import (
    forget_ended,
    lacking,
)
from dlc_platform.orchestration.following import follow_rules, follow_tables
from dlc_platform.orchestration.instance import lab_problem
from dlc_platform.orchestration.jobs import estimate_poses, process_sessions
from dlc_platform.orchestration.news import keep_news
from dlc_platform.orchestration.outcomes import wanted_labels, wanted_poses
from dlc_platform.orchestration.partitions import in_use, newest_first, range_tags, sessions
from dlc_platform.orchestration.requests import PRIORITIES, ask
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.under_way import (
    Cursor,
    caught_up,
    recover,
)
from dlc_platform.sessions import scanning
from dlc_platform.text.assets import POSE_ESTIMATES, POSE_QUALITY, SESSION_VIDEOS
from dlc_platform.text.words import counted

#: The most runs of stale sessions that one look asks for: a new recording does not wait behind thousands of old ones.
_STALE_RUNS = 4
#: The most reasons for left-out files that the summary of a tick names; its log has all of them.
_REASONS_SHOWN = 5
#: The most sessions that one look removes from the partitions.
_RETIRED_TOGETHER = 200


def session_sensor(interval_seconds: int, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """The sensor `new_session_videos`, which looks at the raw roots every `interval_seconds`."""

    @dg.sensor(
        job=process_sessions,
        minimum_interval_seconds=interval_seconds,
        default_status=status,
        description="Looks below the raw roots, registers sessions whose videos have stopped growing, and has those "
        "tracked that can be. Without runs, a tick says what was seen.",
    )
    def new_session_videos(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
        from dlc_platform.estimates.eligibility import find_trackers

        cursor = Cursor.read(context.cursor) or recover(context.instance)
        follow_rules(lab, cursor)
        in_line = forget_ended(lab, context.instance, cursor)
        now = datetime.fromtimestamp(time.time(), UTC)
        elsewhere = caught_up(context.instance)
        room = max(0, lab.settings.scan.queued_sessions - len(cursor.under_way() | elsewhere))
        away = cursor.under_way() | elsewhere | cursor.postponed(time.time())
        found = scanning.look(lab.engine, lab.settings, now, room, away)
        try:
            follow_tables(lab, cursor, found.unreachable)
        except Exception as problem:
            context.log.warning(f"the lab's own tables could not be followed, and are tried again: {problem}")
        requests, added = ask(lab, context.instance, cursor, found.ready, room, in_line, elsewhere)
        if not requests:
            retire(lab, context.instance, cursor)
        taken_off = take_off_strays(lab, context.instance, cursor, found)
        summary = _summary(found, cursor)
        held = find_trackers(lab.engine, lab.store, lab.settings.projects, lab.settings.model_rules).held
        for sentence in held.values():
            context.log.warning(sentence)
            summary += f"; {sentence}"
        if (problem := lab_problem(Path(lab.home))).exists():
            sentence = f"the last edit of lab.yaml is not in force: {problem.read_text(encoding='utf-8')}"
            context.log.warning(sentence)
            summary = f"{sentence} {summary}"
        if taken_off:
            keys = ", ".join(str(one.partition) for one in taken_off)
            summary += f"; taken off the list of sessions, because there is no such session: {keys}"
        if POSE_ESTIMATES in in_line:
            summary += "; a run for poses waits for its turn, and those of more sessions are asked for behind it"
        context.log.info(summary)
        for line in found.news:
            context.log.warning(line)
        keep_news(context.instance, found.news)
        for line in found.left_out:
            context.log.info(f"left out: {printable(line)}")
        if found.left_out:
            summary += f". Left out: {'; '.join(found.left_out[:_REASONS_SHOWN])}"
            if len(found.left_out) > _REASONS_SHOWN:
                summary += f"; and {len(found.left_out) - _REASONS_SHOWN} more, which the tick's log names"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else dg.SkipReason(in_this_lab(summary)),
            dynamic_partitions_requests=[sessions.build_add_request(added)] if added else [],
            asset_events=taken_off,
            cursor=cursor.write(),
        )

    return new_session_videos


def _summary(found: scanning.Look, cursor: Cursor) -> str:
    summary = f"{counted(found.sessions, 'session')} on disk, {found.waiting} new or changed ones still settling"
    if found.queued:
        summary += f", {found.queued} waiting for their turn behind {len(cursor.under_way())} under way"
    if found.unfinished:
        summary += f"; {counted(found.unfinished, 'folder is', 'folders are')} still to be looked into"
    return summary


def retire(lab: LabResource, instance: dg.DagsterInstance, cursor: Cursor) -> None:
    """Remove the oldest sessions without work from the partitions, as long as there are too many."""
    live = instance.get_dynamic_partitions("sessions")
    surplus = len(live) - lab.settings.scan.live_sessions
    left = min(surplus, _RETIRED_TOGETHER)
    used = in_use(instance) if left > 0 else set()
    for start in range(0, max(0, surplus), _RETIRED_TOGETHER):
        oldest = live[start : start + _RETIRED_TOGETHER]
        busy = cursor.under_way() | used | wanted.unfinished(lab.engine, oldest)
        busy |= lacking(wanted_labels(lab, only=oldest)).keys() | lacking(wanted_poses(lab, only=oldest)).keys()
        done = [key for key in oldest if key not in busy][:left]
        for key in done:
            instance.delete_dynamic_partition("sessions", key)
        left -= len(done)
        if not left:
            return


def take_off_strays(
    lab: LabResource, instance: dg.DagsterInstance, cursor: Cursor, found: scanning.Look
) -> list[dg.AssetObservation]:
    """Remove partitions that a person added by hand and for which there is no session.

    Only partitions that two looks in a row found neither registered nor on a disk, and that no run is under way for;
    and only while all raw roots answer and have been walked through.

    Returns
    -------
    list of AssetObservation
        The message of the UI about each.
    """
    live = instance.get_dynamic_partitions("sessions")
    strays = set() if found.unreachable or found.unfinished else wanted.unknown(lab.engine, live)
    if strays:
        strays -= cursor.under_way() | in_use(instance)
    gone = sorted(strays & set(cursor.strays))
    cursor.strays = sorted(strays.difference(gone))
    told = []
    for key in gone:
        instance.delete_dynamic_partition("sessions", key)
        told.append(
            dg.AssetObservation(
                SESSION_VIDEOS,
                partition=key,
                description=f"{key} was taken off the list of sessions: it is not registered, and no folder below the "
                "raw roots holds videos of it. Sessions add themselves when their videos are there; "
                f"{command('scan', lab.home, '--dry-run', '--all')} says what is not used, and why",
            )
        )
    return told


@dg.sensor(
    job=estimate_poses,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="While it is switched on, tracks stale sessions again, the newest first: those whose poses the "
    "production model did not make.",
)
def reestimate_stale_sessions(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
    """While a person leaves it switched on: estimates stale sessions again, the newest first, some runs at a time.

    A session is asked for once for each promotion: one that failed waits for a person. Imported poses are left as they
    are, and so are all of a project whose production model is hopeless or cannot be judged.
    """
    from dlc_platform.estimates.eligibility import find_trackers

    asked: dict[str, str] = json.loads(context.cursor or "{}")
    stale = stale_sessions(lab.engine, imported=False)
    held = find_trackers(lab.engine, lab.store, lab.settings.projects, lab.settings.model_rules).held
    for sentence in held.values():
        context.log.warning(sentence)
    left = stale["project"].isin(list(held))
    stale = stale[~left]
    # The promotion and not its model, because Dagster remembers every request for ever: after a promotion, a rollback
    # and the same promotion again, it must be asked again.
    to_do = dict(zip(stale["session"], map(str, stale["promotion"]), strict=True))
    asked = {key: promotion for key, promotion in asked.items() if to_do.get(key) == promotion}
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    under_way = context.instance.get_runs_count(
        dg.RunsFilter(tags={SENSOR_NAME_TAG: "reestimate_stale_sessions"}, statuses=unfinished)
    )
    runs_left = max(0, _STALE_RUNS - under_way)
    new = [key for key in to_do if key not in asked][: runs_left * lab.settings.scan.sessions_per_run]
    order = context.instance.get_dynamic_partitions("sessions")
    live = set(order)
    added = [key for key in new if key not in live]
    runs = newest_first(new, [*order, *added], lab.settings.scan, wanted.sizes(lab.engine, new))[:runs_left]
    asked |= {key: to_do[key] for stretch in runs for key in stretch}
    requests = [
        dg.RunRequest(
            run_key=short(sha256_json([(key, to_do[key]) for key in stretch])),
            asset_selection=[dg.AssetKey(POSE_ESTIMATES), dg.AssetKey(POSE_QUALITY)],
            tags={**range_tags(stretch), PRIORITY_TAG: PRIORITIES["stale"]},
        )
        for stretch in runs
    ]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None
        if requests
        else dg.SkipReason(
            "; ".join(
                [f"{counted(len(to_do), 'stale session')}, {counted(under_way, 'run')} under way", *held.values()]
            )
        ),
        dynamic_partitions_requests=[sessions.build_add_request(added)] if added else [],
        cursor=json.dumps(asked, sort_keys=True),
    )
