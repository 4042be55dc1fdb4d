"""The sensor that makes the platform automatic.

What is done is read from the catalogue at every look, so the cursor holds only what is under way: files that may still
be growing, and what was asked for and has not come out yet. A restart therefore neither loses nor repeats a session,
and a lost cursor costs a second look, not a second result.

A session is asked for once for each state of its files, and its poses once for each choice of files that can be
tracked: one that cannot be read, that is damaged where lab.yaml says to stop there, or whose project has no production
model yet, does not hold up the others. A run whose
worker died is retried by Dagster. A run that a person cancelled or deleted, or that failed by its own fault, waits for
a person, who sees it in the UI: `dlc-platform run HOME --select pose_estimates` completes what is missing, and so does
a file that is replaced.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from dlc_platform.catalog import queries, registry, tables
from dlc_platform.identity import sha256_json, short
from dlc_platform.ingest import is_registered
from dlc_platform.orchestration.jobs import estimate_poses, process_sessions
from dlc_platform.orchestration.partitions import neighbours, newest_first, range_tags, sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.sessions import Scan, Session

#: Sessions that travel in one run: few enough that a run soon shows its results, many enough to spare process starts.
SESSIONS_PER_RUN = 25
#: Runs of stale sessions that one look asks for: a new recording does not wait behind thousands of old ones.
_STALE_RUNS = 4
#: What is left out of the raw roots has as many reasons; the log of a tick has all of them, its summary the first.
_REASONS_SHOWN = 5

#: For each asset, the sessions it is wanted for, each with the fingerprint of its files.
Wanted = dict[str, dict[str, str]]


@dataclass
class Cursor:
    """What the sensor remembers between two looks.

    Attributes
    ----------
    seen
        For each session that is new or changed: the fingerprint of its files, and since when (seconds since the epoch,
        by the sensor's own clock) it has been the same.
    requested
        What was asked for and has not come out.
    """

    seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    requested: Wanted = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        return cls(**json.loads(text)) if text else cls()

    def write(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def session_sensor(interval_seconds: int) -> dg.SensorDefinition:
    """The sensor `new_session_videos`, which looks at the raw roots every `interval_seconds`."""

    @dg.sensor(
        job=process_sessions,
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def new_session_videos(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
        """Registers sessions whose videos have stopped growing, and starts inference on those that could be read."""
        cursor = Cursor.read(context.cursor)
        found = lab.scan()
        wanted, settling = look(lab, found, cursor, time.time())
        new = {
            asset: [key for key, value in keys.items() if cursor.requested.get(asset, {}).get(key) != value]
            for asset, keys in wanted.items()
        }
        # What was out of sight for a moment, as on a network disk, is still under way when it comes back.
        on_disk = {session.key for session in found.sessions}
        under_way = {
            asset: keys
            | {
                key: value
                for key, value in cursor.requested.get(asset, {}).items()
                if key not in on_disk or settling.get(key) == value
            }
            for asset, keys in wanted.items()
        }
        partitions = context.instance.get_dynamic_partitions("sessions")
        added = sorted({key for keys in new.values() for key in keys} - set(partitions))
        requests = [
            dg.RunRequest(
                run_key=short(sha256_json([asset, [(key, wanted[asset][key]) for key in stretch]])),
                asset_selection=[dg.AssetKey(asset)],
                tags=range_tags(stretch),
            )
            for asset, keys in new.items()
            for stretch in neighbours(keys, [*partitions, *added], SESSIONS_PER_RUN)
        ]
        summary = f"{len(found.sessions)} sessions on disk, {len(settling)} new or changed ones still settling"
        context.log.info(summary)
        left_out = found.left_out()
        for line in left_out:
            context.log.info(f"left out: {line}")
        if left_out:
            summary += f". Left out: {'; '.join(left_out[:_REASONS_SHOWN])}"
            if len(left_out) > _REASONS_SHOWN:
                summary += f"; and {len(left_out) - _REASONS_SHOWN} more, which the tick's log names"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else dg.SkipReason(summary),
            dynamic_partitions_requests=[sessions.build_add_request(added)] if added else [],
            cursor=Cursor(cursor.seen, under_way).write(),
        )

    return new_session_videos


@dg.sensor(job=estimate_poses, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED)
def reestimate_stale_sessions(context: dg.SensorEvaluationContext, lab: LabResource) -> dg.SensorResult:
    """While a person leaves it switched on: estimates stale sessions again, the newest first, some runs at a time.

    A session is asked for once for each promotion: one that failed waits for a person. Imported poses are left as they
    are.
    """
    asked: dict[str, str] = json.loads(context.cursor or "{}")
    stale = queries.stale_sessions(lab.engine, imported=False)
    # The promotion and not its model, because Dagster remembers for ever what it was asked for: after a promotion, a
    # roll back and the same promotion again, it must be asked again.
    wanted = dict(zip(stale["session"], map(str, stale["promotion"]), strict=True))
    asked = {key: promotion for key, promotion in asked.items() if wanted.get(key) == promotion}
    new = [key for key in wanted if key not in asked]
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    under_way = context.instance.get_runs_count(
        dg.RunsFilter(tags={"dagster/sensor_name": "reestimate_stale_sessions"}, statuses=unfinished)
    )
    runs = newest_first(new, context.instance.get_dynamic_partitions("sessions"), SESSIONS_PER_RUN)
    runs = runs[: max(0, _STALE_RUNS - under_way)]
    asked |= {key: wanted[key] for stretch in runs for key in stretch}
    requests = [
        dg.RunRequest(
            run_key=short(sha256_json([(key, wanted[key]) for key in stretch])),
            asset_selection=[dg.AssetKey("pose_estimates")],
            tags=range_tags(stretch),
        )
        for stretch in runs
    ]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(f"{len(wanted)} stale sessions, {under_way} runs under way"),
        cursor=json.dumps(asked, sort_keys=True),
    )


def changed_sessions(lab: LabResource, found: Scan) -> dict[str, str]:
    """The sessions on disk whose files are not those that are registered, with the fingerprint of their files."""
    known = registry.files_by_session(lab.engine)
    changed = {}
    for session in found.sessions:
        rows = {(row.recording.name, row.position): row for row in known.get(session.key, [])}
        files = {
            (recording.name, position): file
            for recording in session.recordings
            for position, file in enumerate(recording.files)
        }
        if rows.keys() != files.keys() or not all(is_registered(file, rows[place]) for place, file in files.items()):
            changed[session.key] = _fingerprint(session, known)
    return changed


def look(lab: LabResource, found: Scan, cursor: Cursor, now: float) -> tuple[Wanted, dict[str, str]]:
    """What is wanted now, and the sessions that are still settling; updates `cursor.seen`."""
    changed = changed_sessions(lab, found)
    known = registry.files_by_session(lab.engine)
    registered = {session.key: _fingerprint(session, known) for session in found.sessions if session.key not in changed}
    cursor.seen = {
        key: cursor.seen[key] if key in cursor.seen and cursor.seen[key][0] == fingerprint else (fingerprint, now)
        for key, fingerprint in changed.items()
    }
    waiting = {session.key for session in found.sessions if session.waits is not None}
    settled = {
        key: value
        for key, value in changed.items()
        if now - cursor.seen[key][1] >= lab.settings.settle_seconds and key not in waiting
    }

    # A file that could not be read waits for a person, and the session's labels with it; it is looked at again when it
    # changes.
    readable = {key: value for key, value in registered.items() if all(row.problem is None for row in known[key])}
    labelled = registry.labelled_sessions(lab.engine, lab.settings.projects)
    tracked = registry.tracked_files(lab.engine)
    in_production = {project for project in lab.settings.projects if registry.production_model(lab.engine, project)}

    stopped = registry.damaged_videos(lab.engine) if lab.settings.damaged_videos == "stop" else {}
    trackable = {
        key: sorted(
            row.id
            for row in known[key]
            if row.problem is None
            and row.video_id not in stopped
            and lab.settings.project_of(row.recording.camera) in in_production
        )
        for key in registered
    }
    wanted = {
        "session_videos": settled,
        "labeled_frames": {key: value for key, value in readable.items() if key not in labelled},
        # What is tracked counts too, or the session would be asked for again while its run goes from file to file.
        "pose_estimates": {
            key: short(sha256_json([value, trackable[key]]))
            for key, value in registered.items()
            if not tracked.issuperset(trackable[key])
        },
    }
    return wanted, {key: value for key, value in changed.items() if key not in settled}


def _fingerprint(session: Session, known: Mapping[str, list[tables.RecordingFile]]) -> str:
    """A hash of the places, sizes and times of a session's files, and of the rows they have in the catalogue.

    The rows, and when they were written, because Dagster remembers for ever what it was asked for: a file that is put
    back after another one stood in its place must be asked for again, and so must one that is moved to and fro.
    """
    files = [[r.name, str(f.path), f.size, f.mtime_ns] for r in session.recordings for f in r.files]
    rows = sorted((row.id, row.registered_at.isoformat()) for row in known.get(session.key, []))
    return short(sha256_json([files, rows]))
