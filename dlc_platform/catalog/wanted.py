"""Which registered sessions lack labels or poses, asked of the database in one query for each.

What is to be done about them, and when, is for those who ask. Sessions whose files are not registered are the business
of `scanning`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Engine, text

from dlc_platform.catalog.quarantine import OTHER_EVIDENCE, Stage

Order = Literal["newest", "oldest", "name"]
_ORDERS: dict[Order, str] = {
    "newest": "newest_ns desc, session_key",
    "oldest": "newest_ns, session_key",
    "name": "session_key",
}


@dataclass(frozen=True)
class Wanted:
    """A session that something is wanted of.

    Attributes
    ----------
    evidence
        A hash of what it would be made of, and of how often a person released the session: what failed on it is not to
        be tried again on the same.
    newest_ns
        The time of the session's newest file.
    lacks
        Whether it is wanted, or was only asked about.
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
    """The sessions whose files could be read and whose labels are not counted in each of these projects.

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
    """The sessions with a file that can be tracked and has no poses, of whatever model.

    Parameters
    ----------
    in_production
        The projects that have a production model.
    damaged
        Whether videos are tracked that are not whole. One that a person has let go is tracked in any case.
    limit
        How many sessions at most.
    but
        Sessions that are left out, such as those that are under way.
    only
        These sessions, whether anything is wanted of them or not; those without a file that can be tracked are left
        out.
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
    """How large the video files of these sessions are together, in bytes, as far as they were seen or registered."""
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
    """Files make sessions: `lacks` says that something is wanted of one, `usable` that it holds up none of the rest."""
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
