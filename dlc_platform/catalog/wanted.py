"""Registered sessions that lack labels or poses, wait for them, or are late; each question is one query of the
database.

The callers decide what to do about them, and when. Sessions whose files are not registered belong to `scanning`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select, text

from dlc_platform.catalog.asking import frame
from dlc_platform.catalog.quarantine import OTHER_EVIDENCE, Stage
from dlc_platform.catalog.sightings import Order
from dlc_platform.catalog.tables import Recording, RecordingFile, RecordingPoses

if TYPE_CHECKING:
    import pandas as pd


_ORDERS: dict[Order, str] = {
    "newest": "newest_ns desc, session_key",
    "oldest": "newest_ns, session_key",
    "name": "session_key",
}


@dataclass(frozen=True)
class Wanted:
    """A session that needs work: labels to be counted, or poses to be estimated.

    Attributes
    ----------
    evidence
        A hash of what the work would be made of, and of how often a person released the session. Work that failed is
        not tried again on the same evidence.
    newest_ns
        The time of the session's newest file.
    lacks
        True if work is wanted; false if the caller only asked about the session.
    """

    session_key: str
    evidence: str
    newest_ns: int
    lacks: bool


def labels(
    engine: Engine,
    projects: Collection[str],
    order: Order = "newest",
    limit: int | None = None,
    but: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[Wanted]:
    """The sessions whose files could all be read, and whose labels are not yet counted in each of these projects.

    The other arguments are those of `poses`.
    """
    # A file that cannot be read waits for a person, and the session's labels with it.
    files = (
        "select r.session_key, f.id, f.mtime_ns, l.n is null lacks, f.problem is null usable from dlc.recording_file f "
        "join dlc.recording r on r.id = f.recording_id left join (select session_key, count(*) n "
        "from dlc.session_labels where project = any(:projects) group by session_key having count(*) = :n) l "
        "on l.session_key = r.session_key where f.replaced_at is null "
        "and case when cast(:only as text[]) is null then l.n is null else r.session_key = any(:only) end"
    )
    # Another project has other labels.
    salt = ",".join(sorted(projects))
    values = {"projects": list(projects), "n": len(projects), "salt": salt}
    return _wanted(engine, "labels", files, values, order, limit, but, only)


def poses(
    engine: Engine,
    in_production: Collection[str],
    damaged: bool,
    order: Order = "newest",
    limit: int | None = None,
    but: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[Wanted]:
    """The sessions with a file that can be tracked and has no poses by any model.

    Parameters
    ----------
    in_production
        The projects that have a production model.
    damaged
        True if damaged videos are tracked. One that a person has released is tracked in any case.
    limit
        The most sessions to return.
    but
        Sessions to leave out, such as those that are under way.
    only
        Return these sessions even if nothing is wanted of them; those without a file that can be tracked are left out.
    """
    lacks = "not exists (select from dlc.recording_poses p where p.recording_file_id = f.id)"
    trackable = (
        "from dlc.recording_file f join dlc.recording r on r.id = f.recording_id "
        "join dlc.camera c on c.name = r.camera join dlc.video v on v.id = f.video_id "
        "where f.replaced_at is null and f.missing_since is null "
        "and c.project = any(:projects) and (:damaged or v.damage is null or exists (select from dlc.quarantine q "
        "where q.session_key = r.session_key and q.stage = 'videos' and q.path = f.path "
        f"and q.released_by <> '{OTHER_EVIDENCE}')) "
        "and not exists (select from dlc.quarantine q where q.session_key = r.session_key and q.stage = 'videos' "
        "and q.released_at is null and (q.path is null or q.path = f.path))"
    )
    files = f"select r.session_key, f.id, f.mtime_ns, {lacks} lacks, true usable {trackable} and "
    files += (
        f"r.session_key in (select r.session_key {trackable} and {lacks})"
        if only is None
        else "r.session_key = any(:only)"
    )
    values = {"projects": list(in_production), "damaged": damaged, "salt": ""}
    return _wanted(engine, "poses", files, values, order, limit, but, only)


def labelled(engine: Engine, projects: Collection[str], keys: Collection[str]) -> set[str]:
    """Those of these sessions whose labels are counted in all of these projects."""
    statement = text(
        "select session_key from dlc.session_labels where project = any(:projects) and session_key = any(:keys) "
        "group by session_key having count(*) = :n"
    )
    with engine.connect() as connection:
        values = {"projects": list(projects), "keys": list(keys), "n": len(projects)}
        return set(connection.scalars(statement, values))


def unfinished(engine: Engine, keys: Collection[str]) -> set[str]:
    """Those of these sessions whose files are to be looked at, or that are in quarantine."""
    statement = text(
        "select session_key from dlc.waiting_session where session_key = any(:keys) union "
        "select session_key from dlc.quarantine where session_key = any(:keys) and released_at is null"
    )
    with engine.connect() as connection:
        return set(connection.scalars(statement, {"keys": list(keys)}))


def unknown(engine: Engine, keys: Collection[str]) -> set[str]:
    """Those of these sessions that are not registered, and of which no file was seen."""
    statement = text(
        "select k.key from unnest(cast(:keys as text[])) k (key) "
        "where not exists (select from dlc.session s where s.key = k.key) "
        "and not exists (select from dlc.sighting s where s.session_key = k.key) "
        "and not exists (select from dlc.waiting_session w where w.session_key = k.key)"
    )
    with engine.connect() as connection:
        return set(connection.scalars(statement, {"keys": list(keys)}))


def sizes(engine: Engine, keys: Collection[str]) -> dict[str, int]:
    """The size of the video files of each of these sessions in bytes, as far as they were seen or registered."""
    statement = text(
        "select session_key, max(size) from (select session_key, sum(size_bytes) size from dlc.sighting "
        "where session_key = any(:keys) group by session_key union all select r.session_key, sum(f.size_bytes) "
        "from dlc.recording_file f join dlc.recording r on r.id = f.recording_id "
        "where r.session_key = any(:keys) and f.replaced_at is null group by r.session_key) s group by session_key"
    )
    with engine.connect() as connection:
        return {key: int(size) for key, size in connection.execute(statement, {"keys": list(keys)})}


def _wanted(
    engine: Engine,
    stage: Stage,
    files: str,
    values: dict[str, Any],
    order: Order,
    limit: int | None,
    but: Collection[str],
    only: Collection[str] | None,
) -> list[Wanted]:
    """Combine files into sessions: `lacks` says that a file needs work, `usable` that it does not hold up the
    others."""
    released = (
        "(select count(*) from dlc.quarantine q where q.session_key = files.session_key and q.stage = :stage "
        f"and q.released_by <> '{OTHER_EVIDENCE}')"
    )
    evidence = f"concat_ws('/', string_agg(id::text, ',' order by id), cast(:salt as text), {released})"
    may_be_asked_for = (
        "lacks and session_key <> all(cast(:but as text[])) "
        "and not exists (select from dlc.waiting_session o where o.session_key = w.session_key) "
        "and not exists (select from dlc.quarantine q where q.session_key = w.session_key and q.stage = :stage "
        "and q.path is null and q.released_at is null and q.evidence = w.evidence) "
        "and exists (select from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id "
        "join dlc.scanned_root r on r.id = f.root_id where s.session_key = w.session_key and r.problem is null)"
    )
    statement = text(
        "select session_key, evidence, newest_ns, lacks from (select session_key, max(mtime_ns) newest_ns, "
        f"bool_or(lacks) and bool_and(usable) lacks, encode(sha256(convert_to({evidence}, 'UTF8')), 'hex') evidence "
        f"from ({files}) files group by session_key) w where {may_be_asked_for if only is None else 'true'} "
        f"order by {_ORDERS[order]} limit :limit"
    )
    given = {"stage": stage, "limit": limit, "but": list(but), "only": None if only is None else list(only)}
    with engine.connect() as connection:
        return [Wanted(*row) for row in connection.execute(statement, {**values, **given})]


#: The files that wait for poses at a moment, each since when it could have been tracked; null while its project has no
#: model. A damaged one waits where lab.yaml lets it be tracked, or a person released it.
_WAITING = """
select r.session_key as session, f.id, f.path, c.project,
       case when p.since is not null then greatest(f.registered_at, p.since, q.released_at) end as since
from dlc.recording_file f
join dlc.recording r on r.id = f.recording_id
join dlc.camera c on c.name = r.camera and c.project is not null
join dlc.video v on v.id = f.video_id and v.registered_at < :until
left join lateral (
    select min(promoted_at) as since from dlc.promotion where project = c.project and promoted_at < :until
) p on true
left join lateral (
    select bool_or(released_at is null or released_at >= :until) as held,
           max(released_at) filter (where released_at < :until and released_by <> 'other evidence') as released_at
    from dlc.quarantine
    where session_key = r.session_key and stage in ('videos', 'poses') and (path is null or path = f.path)
    and since < :until
) q on true
where (f.replaced_at is null or f.replaced_at >= :until)
and (f.missing_since is null or f.missing_since >= :until)
and (v.damage is null or :damaged_videos = 'track' or q.released_at is not null)
and not coalesce(q.held, false)
and not exists (
    select from dlc.recording_poses m where m.recording_file_id = f.id and m.materialized_at < :until
)
"""

#: A wait is named by its session and by when the newest of the files arrived that can be late, tracked or not.
_LATE_SESSIONS = f"""
select *, count(*) over () as sessions
from (
    select l.*, session || ' ' || (
        select to_char(max(f.registered_at) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
        from dlc.recording_file f join dlc.recording r on r.id = f.recording_id
        where r.session_key = session and f.replaced_at is null and f.registered_at < :before
    ) as wait
    from (
        select session, min(project) as project, count(*) as files, min(path) as file, min(since) as since
        from ({_WAITING}) w
        where since < :before
        group by session
    ) l
) n
where cast(:untold_to as text[]) is null or (
    select count(*) from dlc.notification
    where kind = 'stale' and subject = wait and channel = any(cast(:untold_to as text[]))
) < cardinality(cast(:untold_to as text[]))
order by since, session
limit :most
"""


def waiting_sessions(engine: Engine, until: datetime, damaged_videos: str) -> int:
    """Count the sessions that had, at a moment, a file without poses although an inference rule names a project for it.

    Parameters
    ----------
    damaged_videos
        The rule of lab.yaml; with ``stop``, a damaged video does not wait unless a person released it.
    """
    with engine.connect() as connection:
        query = text(f"select count(distinct session) from ({_WAITING}) w")
        return connection.scalar(query, {"until": until, "damaged_videos": damaged_videos}) or 0


def late_sessions(
    engine: Engine, before: datetime, damaged_videos: str, most: int, untold_to: Sequence[str] | None = None
) -> "pd.DataFrame":
    """The sessions that wait for poses although they could have been tracked before a moment; the oldest first.

    `since` is when the session had arrived, its project had a model and no quarantine held it up. `sessions` counts all
    of them, also those beyond `most`. `wait` names this wait among the notifications. If `untold_to` names channels,
    waits that all of these were told of are left out.
    """
    return frame(
        engine,
        _LATE_SESSIONS,
        until=datetime.now(UTC),
        before=before,
        damaged_videos=damaged_videos,
        most=most,
        untold_to=None if untold_to is None else list(untold_to),
    )


def untracked_files(engine: Engine) -> list[tuple[str, str, str]]:
    """The session, camera and path of every file that has no poses by any model."""
    poses = select(RecordingPoses.id).where(RecordingPoses.recording_file_id == RecordingFile.id)
    statement = select(Recording.session_key, Recording.camera, RecordingFile.path).join(RecordingFile)
    current = (RecordingFile.replaced_at.is_(None), RecordingFile.missing_since.is_(None), ~poses.exists())
    statement = statement.where(*current).order_by(Recording.session_key, RecordingFile.id)
    with engine.connect() as connection:
        return [(session, camera, path) for session, camera, path in connection.execute(statement)]
