"""The sensor that makes the platform automatic.

What is on the disks is known to `scanning`, what is done to the catalogue, so the cursor holds only what is under way:
the runs that were asked for and have not ended, with their sessions, never more than lab.yaml lets wait at a time. A
restart therefore neither loses nor repeats a session, and a lost cursor costs a second look, not a second result.

A session is asked for once for each state of its files, and its poses once for each choice of files that can be
tracked: one that cannot be read, that is damaged where lab.yaml says to stop there, or whose project has no production
model yet, or one that is hopeless or cannot be judged, does not hold up the others. A run whose worker died is retried
by Dagster. A session that a fault of the machine kept from being worked on is asked for again, after longer and longer
pauses, until it goes on; and so is one whose run Dagster has lost. The sessions of a run that a person cancelled, or
deleted twice, or that failed by its own fault, go into quarantine with what became of the run: they hold up nothing,
and come back when a file of theirs is replaced, when a person releases them, or with `dlc-platform run HOME --select
pose_estimates`, which completes what is missing.

Dagster's partitions are the sessions that something is or was lately wanted of, in the order in which it was asked for,
so that those of one run lie side by side. When there are more than `scan.live_sessions`, the oldest that are done are
taken off; they stay in the catalogue, and are added again when something is wanted of them.
"""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.tags import PRIORITY_TAG, RUN_KEY_TAG, SCHEDULE_NAME_TAG, SENSOR_NAME_TAG

from dlc_platform.catalog import queries, registry, tables, wanted
from dlc_platform.catalog.quarantine import Fault, held_sessions
from dlc_platform.errors import command, in_this_lab, printable
from dlc_platform.identity import sha256_json, short
from dlc_platform.orchestration.failures import failure_reasons, is_of_the_machine
from dlc_platform.orchestration.instance import lab_problem
from dlc_platform.orchestration.jobs import estimate_poses, process_sessions
from dlc_platform.orchestration.news import keep_news
from dlc_platform.orchestration.outcomes import hold, wanted_labels, wanted_poses
from dlc_platform.orchestration.partitions import RANGE_END, RANGE_START, in_use, newest_first, range_tags, sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import (
    CATCH_UP,
    SESSION_SENSOR,
    WAITS,
    WAITS_TAG,
    give_up,
    is_followed,
    newest_try,
    nobody_starts,
)
from dlc_platform.sessions import scanning
from dlc_platform.sessions.raw_roots import Threads
from dlc_platform.sessions.sidecars import Sidecars
from dlc_platform.text.words import counted

#: Runs of stale sessions that one look asks for: a new recording does not wait behind thousands of old ones.
_STALE_RUNS = 4
#: What is left out of the raw roots has as many reasons; the log of a tick has all of them, its summary the first.
_REASONS_SHOWN = 5
#: Sessions that one look takes off the partitions.
_RETIRED_TOGETHER = 200

_STAGES: dict[str, Literal["videos", "labels", "poses"]] = {
    "session_videos": "videos",
    "labeled_frames": "labels",
    "pose_estimates": "poses",
}
#: What travels with the assets of a run.
_WITH: dict[tuple[str, ...], tuple[str, ...]] = {("pose_estimates",): ("pose_quality",)}
#: How long a look waits for the lab's own tables.
_FOLLOWING_SECONDS = 2.0
_threads = Threads()
#: Of each lab whose tables were followed since it was last asked: their state, or what went wrong.
_followed: dict[str, str | Exception] = {}
#: Dagster's priorities: what was recorded lately comes before the backlog, and both before what has poses already.
_LATELY = timedelta(days=1)
_PRIORITIES = {"lately": "10", "stale": "-10"}
#: How long a session waits that the machine kept from being worked on: the first time, and at
#: most; and how long it counts that it did.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _DAY_SECONDS = 30.0, 600.0, 86400.0
_IN_LINE = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
_WORK = {
    "session_videos": "register its videos",
    "labeled_frames": "count its labels",
    "pose_estimates": "estimate its poses",
}


@dataclass
class Asked:
    """A run that was asked for: its assets, and its sessions, each with a hash of what the run was to work on."""

    assets: list[str]
    sessions: dict[str, str]


@dataclass
class Cursor:
    """What the sensor remembers between two looks.

    Attributes
    ----------
    runs
        What was asked for and has not come out, by run key.
    rules
        A hash of the rules by which the cameras in the catalogue have their projects and its videos were judged.
    tables
        A hash of the lab's own tables in the raw roots, as they were when the catalogue last followed them.
    strays
        Partitions of which the last look found no session.
    again
        Sessions that the machine kept from being worked on: how often, and the time from which on they are asked for
        again.
    """

    runs: dict[str, Asked] = field(default_factory=dict)
    rules: str = ""
    tables: str = ""
    strays: list[str] = field(default_factory=list)
    again: dict[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> "Cursor | None":
        """None when there is none, or one of a platform that remembered other things."""
        content = json.loads(text) if text else {}
        if "runs" not in content:
            return None
        return cls(
            {key: Asked(**asked) for key, asked in content["runs"].items()},
            content["rules"],
            content.get("tables", ""),
            content.get("strays", []),
            {key: (tries, until) for key, (tries, until) in content.get("again", {}).items()},
        )

    def write(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def postpone(self, key: str, now: float) -> None:
        """Let a session wait before it is asked for again, the longer the more often it has waited."""
        self.again = {key: (tries, until) for key, (tries, until) in self.again.items() if now - until < _DAY_SECONDS}
        tries = self.again.get(key, (0, now))[0] + 1
        self.again[key] = tries, now + min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2 ** (tries - 1))

    def postponed(self, now: float) -> set[str]:
        """The sessions that are not to be asked for yet."""
        # A clock that was set back must not let them wait for as long.
        return {key for key, (_, until) in self.again.items() if 0 < until - now <= _LONGEST_PAUSE_SECONDS}

    def under_way(self, *assets: str) -> set[str]:
        """The sessions under way for any of these assets, or for any asset."""
        runs = [run for run in self.runs.values() if not assets or set(assets) & set(run.assets)]
        return {key for run in runs for key in run.sessions}


def session_sensor(interval_seconds: int, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """The sensor `new_session_videos`, which looks at the raw roots every `interval_seconds`."""

    @dg.sensor(
        job=process_sessions,
        minimum_interval_seconds=interval_seconds,
        default_status=status,
    )
    def new_session_videos(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
        """Registers sessions whose videos have stopped growing, and starts inference on those that could be read."""
        from dlc_platform.estimates.quality_gate import not_tracked_by_itself

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
        for sentence in not_tracked_by_itself(lab.engine, lab.store, lab.settings).values():
            context.log.warning(sentence)
            summary += f"; {sentence}"
        if (problem := lab_problem(Path(lab.home))).exists():
            sentence = f"the last edit of lab.yaml is not in force: {problem.read_text(encoding='utf-8')}"
            context.log.warning(sentence)
            summary = f"{sentence} {summary}"
        if taken_off:
            keys = ", ".join(str(one.partition) for one in taken_off)
            summary += f"; taken off the list of sessions, because there is no such session: {keys}"
        if "pose_estimates" in in_line:
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


def caught_up(instance: dg.DagsterInstance) -> set[str]:
    """The sessions that runs of the schedule `catch_up` are under way for."""
    return _under_way(instance, {SCHEDULE_NAME_TAG: CATCH_UP}).under_way()


def recover(instance: dg.DagsterInstance) -> Cursor:
    """What is under way by what Dagster knows of it, when the cursor is lost."""
    return _under_way(instance, {SENSOR_NAME_TAG: SESSION_SENSOR})


def _under_way(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> Cursor:
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    runs = instance.get_runs(dg.RunsFilter(tags=dict(tags), statuses=unfinished))
    order = instance.get_dynamic_partitions("sessions") if runs else []
    place = {key: index for index, key in enumerate(order)}
    cursor = Cursor()
    for run in runs:
        first, last = place.get(run.tags.get(RANGE_START, "")), place.get(run.tags.get(RANGE_END, ""))
        if RUN_KEY_TAG in run.tags and run.asset_selection and first is not None and last is not None:
            assets = [asset for asset in _STAGES if dg.AssetKey(asset) in run.asset_selection]
            cursor.runs[run.tags[RUN_KEY_TAG]] = Asked(assets, dict.fromkeys(order[first : last + 1], ""))
    return cursor


def follow_rules(lab: LabResource, cursor: Cursor) -> None:
    """Let the catalogue know what lab.yaml says now of cameras and of videos in quarantine, when that has changed."""
    from dlc_platform.sessions.registration import judge

    said = lab.settings.model_dump(mode="json", include={"inference", "damaged_videos", "video_quality"})
    rules = short(sha256_json(said))
    if rules != cursor.rules:
        registry.assign_cameras(lab.engine, lab.settings.project_of)
        for key in held_sessions(lab.engine, "videos"):
            judge(lab.engine, lab.settings, key, files_only=True)
        cursor.rules = rules


def follow_tables(lab: LabResource, cursor: Cursor, unreachable: Iterable[Path]) -> None:
    """Let the catalogue say what the lab's own tables do, when one in a raw root is another one than before.

    A disk may answer slowly or never, and an archive has many tables: what takes longer than a while goes on beside
    the looks, and a later one finds it done.
    """
    from dlc_platform.sessions.registration import update_details

    settings, engine, before = lab.settings, lab.engine, cursor.tables

    def follow() -> None:
        try:
            sidecars = Sidecars(settings.raw_roots, unreachable)
            state = short(sidecars.state(()))
            if state != before:
                update_details(engine, sidecars)
            _followed[lab.home] = state
        except Exception as problem:  # a thread has nobody else to tell
            _followed[lab.home] = problem

    if lab.home not in _followed:
        _threads.start(lab.home, follow)
    until = time.monotonic() + _FOLLOWING_SECONDS
    while lab.home not in _followed and time.monotonic() < until:
        time.sleep(0.002)
    outcome = _followed.pop(lab.home, before)
    if isinstance(outcome, Exception):
        raise outcome
    cursor.tables = outcome


def forget_ended(lab: LabResource, instance: dg.DagsterInstance, cursor: Cursor) -> set[str]:
    """Strike out what came out, and what will not: that goes into quarantine with what became of its run.

    Returns
    -------
    set of str
        The first assets of the runs that wait for their turn.
    """
    in_line: set[str] = set()
    if not cursor.runs:
        return in_line
    # Before what is lacking: what a run does in its last moments is not to count as not done.
    runs = {run_key: _newest_run(instance, run_key) for run_key in cursor.runs}
    videos = scanning.compare(lab.engine, lab.settings, cursor.under_way("session_videos"))
    changed = {candidate.session.key: candidate for candidate in videos.wanted}
    lacking: dict[str, Mapping[str, str]] = {
        "session_videos": {key: candidate.fingerprint for key, candidate in changed.items()},
        "labeled_frames": _lacking(wanted_labels(lab, only=cursor.under_way("labeled_frames"))),
        "pose_estimates": _lacking(wanted_poses(lab, only=cursor.under_way("pose_estimates"))),
    }
    for run_key, asked in list(cursor.runs.items()):
        run = runs[run_key]
        lost = run is not None and nobody_starts(instance, run)
        ended = run is None or lost or (run.is_finished and not is_followed(instance, run))
        first = asked.assets[0]
        wanted_still = {
            key: evidence
            for key, evidence in asked.sessions.items()
            if any(key in lacking[asset] for asset in asked.assets)
            # Its files are out of sight.
            or (first == "session_videos" and key not in videos.registered)
        }
        for key in asked.sessions.keys() - wanted_still.keys():
            cursor.again.pop(key, None)
        asked.sessions = wanted_still
        if asked.sessions and not ended:
            # What waits before it is tried again is no reason for others to wait behind it.
            if run is not None and run.status in _IN_LINE and run.tags.get(WAITS_TAG) != WAITS:
                in_line.add(first)
            continue
        del cursor.runs[run_key]
        events = _failures(instance, run) if run is not None and asked.sessions else []
        if run is not None and lost:
            give_up(instance, run)
        for key, evidence in asked.sessions.items():
            # A run that is not there was deleted, or Dagster was cut off before it had written what it was for.
            if lost or (run is None and key not in cursor.again) or is_of_the_machine(events, key):
                cursor.postpone(key, time.time())
                continue
            # Where the first asset failed the next one was not tried; and what changed since is asked for again.
            now = lacking[first].get(key)
            if now is not None and evidence in (now, ""):
                if first == "session_videos":
                    session = changed[key].session
                    registry.name_session(
                        lab.engine,
                        tables.Session(key=key, subject=session.subject, name=session.name, folder=str(session.folder)),
                    )
                fault = Fault(_fate(instance, run, first, key), _remedy(lab, run, key), now)
                hold(lab, key, _STAGES[first], fault, run.run_id if run else None)
    return in_line


def _newest_run(instance: dg.DagsterInstance, run_key: str) -> dg.DagsterRun | None:
    # One at a time, as Dagster does itself: its tables are slow at many.
    run = next(iter(instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: run_key}), limit=1)), None)
    return newest_try(instance, run) if run is not None else None


def _failures(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dg.DagsterEvent]:
    """What the failed steps of a run wrote, and the run itself."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run.run_id, of_type=kinds).records
    return [event for record in records if (event := record.event_log_entry.dagster_event) is not None]


def _lacking(asked_about: Iterable[wanted.Wanted]) -> dict[str, str]:
    return {session.session_key: session.evidence for session in asked_about if session.lacks}


def _fate(instance: dg.DagsterInstance, run: dg.DagsterRun | None, asset: str, key: str) -> str:
    """What became of a run that was to work on a session and did not."""
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


def ask(
    lab: LabResource,
    instance: dg.DagsterInstance,
    cursor: Cursor,
    ready: Sequence[scanning.Candidate],
    room: int,
    in_line: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> tuple[list[dg.RunRequest], list[str]]:
    """Ask for what is wanted, the first in the order of lab.yaml first, for as many sessions as there is room.

    Behind a run for poses that waits for its turn another one could only wait too: what comes meanwhile is gathered,
    so that few runs load their networks for few sessions.

    Parameters
    ----------
    in_line
        The first assets of the runs that wait for their turn.
    elsewhere
        Sessions that somebody else asked for, and that are under way.

    Returns
    -------
    tuple
        The runs, and the sessions that are to be added to the partitions for them, in this order.
    """
    if not room:
        return [], []
    projects = list(lab.settings.projects)
    labelled = wanted.labelled(lab.engine, projects, [candidate.session.key for candidate in ready])
    but = cursor.under_way("session_videos") | set(elsewhere) | cursor.postponed(time.time())
    changed = {candidate.session.key for candidate in ready}
    together = ("session_videos", "labeled_frames")
    # By session: its newest file, and of each run that it is wanted for the assets and the evidence.
    newest: dict[str, int] = {candidate.session.key: candidate.newest_ns for candidate in ready}
    runs: dict[tuple[str, ...], dict[str, str]] = {together: {}, together[:1]: {}}
    for candidate in ready:
        runs[together[:1] if candidate.session.key in labelled else together][candidate.session.key] = (
            candidate.fingerprint
        )
    for asset, look in (("labeled_frames", wanted_labels), ("pose_estimates", wanted_poses)):
        found = look(lab, limit=room, but=changed | but | cursor.under_way(asset))
        if asset in in_line and len(found) < min(room, lab.settings.scan.sessions_per_run):
            continue
        runs[(asset,)] = {session.session_key: session.evidence for session in found}
        newest |= {session.session_key: session.newest_ns for session in found}
    first = _ordered(newest, lab.settings.scan.order)[:room]
    order = list(instance.get_dynamic_partitions("sessions")) if first else []
    known = set(order)
    added: list[str] = []
    requests: list[tuple[int, dg.RunRequest]] = []
    place = {key: index for index, key in enumerate(first)}
    sizes = wanted.sizes(lab.engine, first)
    lately = 1e9 * (time.time() - _LATELY.total_seconds())
    for assets, evidence in runs.items():
        keys = [key for key in first if key in evidence]
        new = [key for key in keys if key not in known]
        known.update(new)
        order += new
        added += new
        for stretch in newest_first(keys, order, lab.settings.scan, sizes):
            asked_for = [(key, evidence[key], *_tries(cursor, key)) for key in stretch]
            run_key = short(sha256_json([assets, asked_for]))
            cursor.runs[run_key] = Asked(list(assets), {key: evidence[key] for key in stretch})
            request = dg.RunRequest(
                run_key=run_key,
                asset_selection=[dg.AssetKey(asset) for asset in (*assets, *_WITH.get(assets, ()))],
                tags={
                    **range_tags(stretch),
                    **({PRIORITY_TAG: _PRIORITIES["lately"]} if any(newest[key] >= lately for key in stretch) else {}),
                },
            )
            requests.append((min(place[key] for key in stretch), request))
    return [request for _, request in sorted(requests, key=lambda entry: entry[0])], added


def _tries(cursor: Cursor, key: str) -> tuple[int, ...]:
    """How often the machine kept a session from being worked on: Dagster starts what has one key once."""
    return cursor.again[key][:1] if key in cursor.again else ()


def _ordered(newest: Mapping[str, int], order: wanted.Order) -> list[str]:
    keys = sorted(newest)
    if order == "name":
        return keys
    return sorted(keys, key=newest.__getitem__, reverse=order == "newest")


def retire(lab: LabResource, instance: dg.DagsterInstance, cursor: Cursor) -> None:
    """Take the oldest sessions off the partitions that nothing is wanted of, as long as there are too many."""
    live = instance.get_dynamic_partitions("sessions")
    surplus = len(live) - lab.settings.scan.live_sessions
    left = min(surplus, _RETIRED_TOGETHER)
    used = in_use(instance) if left > 0 else set()
    for start in range(0, max(0, surplus), _RETIRED_TOGETHER):
        oldest = live[start : start + _RETIRED_TOGETHER]
        busy = cursor.under_way() | used | wanted.unfinished(lab.engine, oldest)
        busy |= _lacking(wanted_labels(lab, only=oldest)).keys() | _lacking(wanted_poses(lab, only=oldest)).keys()
        done = [key for key in oldest if key not in busy][:left]
        for key in done:
            instance.delete_dynamic_partition("sessions", key)
        left -= len(done)
        if not left:
            return


def take_off_strays(
    lab: LabResource, instance: dg.DagsterInstance, cursor: Cursor, found: scanning.Look
) -> list[dg.AssetObservation]:
    """Take partitions off that a person added by hand, and of which there is no session.

    Only what two looks in a row found nowhere, neither registered nor on a disk, and what nothing is under way for; and
    only while all raw roots answer and have been looked through.

    Returns
    -------
    list of AssetObservation
        What the UI says of each.
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
                "session_videos",
                partition=key,
                description=f"{key} was taken off the list of sessions: it is not registered, and no folder below the "
                "raw roots holds videos of it. Sessions add themselves when their videos are there; "
                f"{command('scan', lab.home, '--dry-run', '--all')} says what is not used, and why",
            )
        )
    return told


@dg.sensor(job=estimate_poses, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED)
def reestimate_stale_sessions(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
    """While a person leaves it switched on: estimates stale sessions again, the newest first, some runs at a time.

    A session is asked for once for each promotion: one that failed waits for a person. Imported poses are left as they
    are, and so are all of a project whose production model is hopeless or cannot be judged.
    """
    from dlc_platform.estimates.quality_gate import not_tracked_by_itself

    asked: dict[str, str] = json.loads(context.cursor or "{}")
    stale = queries.stale_sessions(lab.engine, imported=False)
    held = not_tracked_by_itself(lab.engine, lab.store, lab.settings)
    for sentence in held.values():
        context.log.warning(sentence)
    left = stale["project"].isin(list(held))
    stale = stale[~left]
    # The promotion and not its model, because Dagster remembers for ever what it was asked for: after a promotion, a
    # roll back and the same promotion again, it must be asked again.
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
            asset_selection=[dg.AssetKey("pose_estimates"), dg.AssetKey("pose_quality")],
            tags={**range_tags(stretch), PRIORITY_TAG: _PRIORITIES["stale"]},
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
