"""The last look at the raw roots: folders with their times, the video files in them, and sessions that wait.

All of it may be lost: that costs a second look. `sessions.scanning` decides where to look and what a look means;
registered files are in `sessions`. Lists travel as one array for each column, because there are hundreds of thousands
of rows.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, text

from dlc_platform.catalog.quarantine import OTHER_EVIDENCE

Order = Literal["newest", "oldest", "name"]

#: A folder as it was known before a look: its path, the time of its last change, that time when it was listed, and, if
#: its listing cannot be trusted, when it was seen. A plain row of the database, because there are very many.
KnownFolder = tuple[str, int, int | None, datetime | None]

#: The most reasons that are told at a time.
_REASONS = 1000
_ORDERS: dict[Order, str] = {
    "newest": "w.newest_ns desc, w.session_key",
    "oldest": "w.newest_ns, w.session_key",
    "name": "w.session_key",
}
#: A session that is not asked for again before a person releases it, or another file comes.
_HELD = (
    "exists (select from dlc.quarantine q where q.session_key = w.session_key and q.stage = 'videos' "
    "and q.path is null and q.evidence = w.held and q.released_at is null)"
)


@dataclass(frozen=True)
class Folder:
    """A folder as it was seen: the time of its last change, and that time when it was listed, 0 if that cannot be
    trusted; in ns.

    `session_key` is the session whose folder it is; `left_out` lists what in it is not used and why, as JSON.
    """

    path: str
    changed_ns: int
    listed_ns: int
    session_key: str | None
    left_out: str | None


@dataclass(frozen=True)
class Sighting:
    """A video file as it was seen in a folder; if it is not complete yet, `waits` says what it waits for."""

    folder_id: int
    name: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int | None
    inode: int | None
    waits: str | None
    session_key: str


@dataclass(frozen=True)
class Status:
    """The ctime and inode of a file now and before, with the other signs that it is this very file."""

    folder_id: int
    name: str
    path: str
    size_bytes: int
    mtime_ns: int
    session_key: str
    now: tuple[int | None, int | None]
    before: tuple[int | None, int | None]


@dataclass(frozen=True)
class Later:
    """A session that is looked at again at a time; `left_out` says why, as JSON."""

    session_key: str
    since: datetime
    look_at: datetime
    left_out: str


def set_back_clock(engine: Engine, now: datetime, settle: timedelta) -> None:
    """Shorten waits that lie further ahead than any wait can: a wrong clock had set them."""
    # A file that cannot be opened yet is looked at again after as long as it has waited.
    statement = text(
        "update dlc.waiting_session set changed_at = least(changed_at, :now), "
        "unready_since = least(unready_since, :now), "
        "look_at = case when isfinite(look_at) then least(look_at, cast(:now as timestamptz)) else look_at end "
        "where changed_at > :now or unready_since > :now or (isfinite(look_at) "
        "and look_at > cast(:now as timestamptz) + greatest(cast(:settle as interval), :now - unready_since))"
    )
    with engine.begin() as connection:
        connection.execute(statement, {"now": now, "settle": settle})


# --- roots and folders ---


def set_roots(engine: Engine, paths: Sequence[str], layout: str) -> Sequence[Any]:
    """Keep these roots, with this layout, and forget all others with everything that was seen in them.

    Returns
    -------
    Sequence
        Of each root its id, its path, the folders at which the next look goes on (checked, listed), and holds_videos,
        true if a video was seen in it.
    """
    with engine.begin() as connection:
        gone = "path <> all(:paths) or layout <> :layout"
        values = {"paths": paths, "layout": layout}
        keys = connection.scalars(
            text(
                "select distinct s.session_key from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id "
                f"join dlc.scanned_root r on r.id = f.root_id where r.{gone.replace('layout', 'r.layout', 1)}"
            ),
            values,
        ).all()
        if keys:
            # Two folders may have claimed a session, and one of them does not count any more.
            connection.execute(
                text("update dlc.waiting_session set look_at = '-infinity' where session_key = any(:keys)"),
                {"keys": keys},
            )
        connection.execute(text(f"delete from dlc.scanned_root where {gone}"), values)
        connection.execute(
            text(
                "insert into dlc.scanned_root (path, layout) select path, :layout from "
                "unnest(cast(:paths as text[])) path on conflict (path) do nothing"
            ),
            values,
        )
        return connection.execute(
            text(
                "select r.id, r.path, r.checked, r.listed, exists (select from dlc.scanned_folder f "
                "join dlc.sighting s on s.folder_id = f.id where f.root_id = r.id) holds_videos from dlc.scanned_root r"
            )
        ).all()


def set_problems(engine: Engine, problems: Mapping[int, str | None]) -> None:
    """Write down why roots cannot be looked through, by their ids."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "update dlc.scanned_root r set problem = n.problem from unnest(cast(:ids as int[]), "
                "cast(:problems as text[])) n (id, problem) where r.id = n.id and r.problem is distinct from n.problem"
            ),
            {"ids": list(problems), "problems": list(problems.values())},
        )


def go_on_at(connection: Connection, root: int, checked: str, listed: str) -> None:
    """Write down where the next look at a root goes on."""
    connection.execute(
        text("update dlc.scanned_root set checked = :checked, listed = :listed where id = :id"),
        {"id": root, "checked": checked, "listed": listed},
    )


def known_folders(engine: Engine, root: int) -> dict[str, KnownFolder]:
    """The folders of a root as they were seen last, by path."""
    statement = (
        "select path, changed_ns, listed_ns, case when listed_ns is distinct from changed_ns then seen_at end "
        "from dlc.scanned_folder where root_id = %s"
    )
    # With hundreds of thousands of rows, an object for each would be most of the cost.
    with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(statement, (root,))
        return {row[0]: row for row in cursor.fetchall()}


def write_folders(connection: Connection, root: int, folders: Sequence[Folder], now: datetime) -> None:
    """Write down folders as they are seen now."""
    connection.execute(
        text(
            "insert into dlc.scanned_folder as f (root_id, path, changed_ns, seen_at, listed_ns, session_key, left_out)"
            " select :root, n.path, n.changed_ns, :now, n.listed_ns, n.session_key, cast(n.left_out as jsonb) "
            "from unnest(cast(:paths as text[]), cast(:changed as bigint[]), cast(:listed as bigint[]), "
            "cast(:keys as text[]), cast(:left_out as text[])) n (path, changed_ns, listed_ns, session_key, left_out) "
            "on conflict (root_id, path) do update set changed_ns = excluded.changed_ns, "
            "seen_at = case when f.changed_ns = excluded.changed_ns then f.seen_at else excluded.seen_at end, "
            "listed_ns = excluded.listed_ns, session_key = excluded.session_key, left_out = excluded.left_out "
            "where (f.changed_ns, f.listed_ns, f.session_key, f.left_out) "
            "is distinct from (excluded.changed_ns, excluded.listed_ns, excluded.session_key, excluded.left_out)"
        ),
        {
            "root": root,
            "now": now,
            "paths": [folder.path for folder in folders],
            "changed": [folder.changed_ns for folder in folders],
            "listed": [folder.listed_ns for folder in folders],
            "keys": [folder.session_key for folder in folders],
            "left_out": [folder.left_out for folder in folders],
        },
    )


def write_unlisted(engine: Engine, root: int, changed_ns: Mapping[str, int], now: datetime) -> None:
    """Write down folders that were seen and are not listed yet: the time of their last change in ns, by path."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "insert into dlc.scanned_folder (root_id, path, changed_ns, seen_at) "
                "select :root, n.path, n.changed, :now "
                "from unnest(cast(:paths as text[]), cast(:changed as bigint[])) n (path, changed) "
                "on conflict do nothing"
            ),
            {"root": root, "now": now, "paths": list(changed_ns), "changed": list(changed_ns.values())},
        )


def folder_ids(connection: Connection, root: int, paths: Sequence[str]) -> dict[str, int]:
    """The ids of folders of a root, by path."""
    rows = connection.execute(
        text("select id, path from dlc.scanned_folder where root_id = :root and path = any(:paths)"),
        {"root": root, "paths": paths},
    )
    return {path: identity for identity, path in rows}


def forget_folders(connection: Connection, root: int, gone: Sequence[str]) -> Sequence[Any]:
    """Forget folders, and everything below them.

    Returns
    -------
    Sequence
        Of each video that was seen in them its path in the root, session_key and mtime_ns.
    """
    values = {"root": root, "gone": gone}
    below = (
        "dlc.scanned_folder f where f.root_id = :root and exists (select from "
        "unnest(cast(:gone as text[])) g (path) where starts_with(f.path, g.path))"
    )
    videos = connection.execute(
        text(
            "select f.path || s.name path, s.session_key, s.mtime_ns from dlc.sighting s "
            f"join (select f.id, f.path from {below}) f on f.id = s.folder_id"
        ),
        values,
    ).all()
    connection.execute(text(f"delete from {below}"), values)
    return videos


def folders_of(engine: Engine, keys: Collection[str]) -> dict[str, set[tuple[str, str]]]:
    """The folders in which videos of these sessions were seen, each with its root."""
    statement = text(
        "select distinct s.session_key, r.path, f.path from dlc.sighting s join dlc.scanned_folder f "
        "on f.id = s.folder_id join dlc.scanned_root r on r.id = f.root_id where s.session_key = any(:keys)"
    )
    found: dict[str, set[tuple[str, str]]] = {key: set() for key in keys}
    with engine.connect() as connection:
        for key, root, folder in connection.execute(statement, {"keys": list(keys)}):
            found[key].add((root, folder))
    return found


# --- video files ---


def sightings_in(connection: Connection, folders: Sequence[int]) -> list[Sighting]:
    """The video files that were seen last in these folders."""
    rows = connection.execute(
        text(
            "select folder_id, name, size_bytes, mtime_ns, ctime_ns, inode, waits, session_key from dlc.sighting "
            "where folder_id = any(:folders)"
        ),
        {"folders": folders},
    )
    return [Sighting(*row) for row in rows]


def write_sightings(connection: Connection, files: Sequence[Sighting]) -> None:
    """Write down video files as they are seen now."""
    connection.execute(
        text(
            "insert into dlc.sighting (folder_id, name, size_bytes, mtime_ns, ctime_ns, inode, waits, session_key) "
            "select * from unnest(cast(:folders as int[]), cast(:names as text[]), cast(:sizes as bigint[]), "
            "cast(:times as bigint[]), cast(:ctimes as bigint[]), cast(:inodes as bigint[]), cast(:waits as text[]), "
            "cast(:keys as text[])) on conflict (folder_id, name) do update set size_bytes = excluded.size_bytes, "
            "mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, inode = excluded.inode, "
            "waits = excluded.waits, session_key = excluded.session_key"
        ),
        {
            "folders": [file.folder_id for file in files],
            "names": [file.name for file in files],
            "sizes": [file.size_bytes for file in files],
            "times": [file.mtime_ns for file in files],
            "ctimes": [file.ctime_ns for file in files],
            "inodes": [file.inode for file in files],
            "waits": [file.waits for file in files],
            "keys": [file.session_key for file in files],
        },
    )


def forget_sightings(connection: Connection, files: Sequence[Sighting]) -> None:
    """Forget video files that are gone."""
    connection.execute(
        text(
            "delete from dlc.sighting s using unnest(cast(:folders as int[]), cast(:names as text[])) "
            "g (folder_id, name) where s.folder_id = g.folder_id and s.name = g.name"
        ),
        {"folders": [file.folder_id for file in files], "names": [file.name for file in files]},
    )


def write_status(connection: Connection, files: Sequence[Status], are_the_same: bool) -> None:
    """Write down the ctime and inode of files that were seen.

    If they are not known to be the same, a registered file that had none gets those from before.
    """
    if not files:
        return
    seen = text(
        "update dlc.sighting s set ctime_ns = n.ctime_ns, inode = n.inode from unnest(cast(:folders as int[]), "
        "cast(:names as text[]), cast(:ctimes as bigint[]), cast(:inodes as bigint[])) "
        "n (folder_id, name, ctime_ns, inode) where s.folder_id = n.folder_id and s.name = n.name"
    )
    # Only a file that was registered as it was seen before; any other file is read anew.
    registered = text(
        "update dlc.recording_file f set ctime_ns = n.ctime_ns, inode = n.inode from unnest(cast(:paths as text[]), "
        "cast(:ctimes as bigint[]), cast(:inodes as bigint[]), cast(:sizes as bigint[]), cast(:times as bigint[])) "
        "n (path, ctime_ns, inode, size_bytes, mtime_ns), dlc.recording r where r.id = f.recording_id "
        "and r.session_key = any(:keys) and f.replaced_at is null and f.path = n.path and f.size_bytes = n.size_bytes "
        "and f.mtime_ns = n.mtime_ns and (f.ctime_ns is null or :overwrite)"
    )
    now = [file.now for file in files]
    values = {
        "folders": [file.folder_id for file in files],
        "names": [file.name for file in files],
        "paths": [file.path for file in files],
        "sizes": [file.size_bytes for file in files],
        "times": [file.mtime_ns for file in files],
        "keys": list({file.session_key for file in files}),
        "overwrite": are_the_same,
    }
    for statement, status in ((seen, now), (registered, now if are_the_same else [file.before for file in files])):
        own = {"ctimes": [ctime_ns for ctime_ns, _ in status], "inodes": [inode for _, inode in status]}
        connection.execute(statement, {**values, **own})


def seen_videos(connection: Connection, keys: Collection[str]) -> Iterable[Any]:
    """The videos of sessions as they were seen last: root, folder, name, size_bytes, mtime_ns, ctime_ns, inode, waits,
    session_key.
    """
    statement = text(
        "select r.path root, f.path folder, s.name, s.size_bytes, s.mtime_ns, s.ctime_ns, s.inode, s.waits, "
        "s.session_key from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id "
        "join dlc.scanned_root r on r.id = f.root_id where s.session_key = any(:keys)"
    )
    return connection.execute(statement, {"keys": list(keys)})


# --- registered files ---


def registered_files(connection: Connection, keys: Collection[str]) -> Iterable[Any]:
    """The current files of sessions, as plain rows, because there are very many."""
    statement = text(
        "select r.session_key, r.name, r.camera, f.recording_id, f.position, f.id, f.path, f.size_bytes, f.mtime_ns, "
        "f.ctime_ns, f.inode, f.registered_at, f.missing_since "
        "from dlc.recording_file f join dlc.recording r on r.id = f.recording_id "
        "where r.session_key = any(:keys) and f.replaced_at is null"
    )
    return connection.execute(statement, {"keys": list(keys)})


def set_missing(connection: Connection, keys: Iterable[str], paths: Sequence[str], since: datetime | None) -> None:
    """Write down since when registered files are gone, or that they are back."""
    connection.execute(
        text(
            "update dlc.recording_file f set missing_since = :since from dlc.recording r where r.id = f.recording_id "
            "and r.session_key = any(:keys) and f.replaced_at is null and f.path = any(:paths) "
            "and (f.missing_since is null) <> (cast(:since as timestamptz) is null)"
        ),
        {"since": since, "keys": list(keys), "paths": paths},
    )


def set_cameras(connection: Connection, cameras: Mapping[int, str], projects: Mapping[str, str | None]) -> None:
    """Give recordings, by their ids, other cameras; `projects` are those that track the cameras."""
    connection.execute(
        text("insert into dlc.camera (name, project) values (:name, :project) on conflict do nothing"),
        [{"name": name, "project": project} for name, project in sorted(projects.items())],
    )
    connection.execute(
        text("update dlc.recording set camera = :camera where id = :id"),
        [{"id": identity, "camera": camera} for identity, camera in sorted(cameras.items())],
    )


# --- sessions that wait ---


def wait(connection: Connection, newest_ns: Mapping[str, int], now: datetime) -> None:
    """Let sessions wait from now on, whatever they waited for before; `newest_ns` is the time of each one's newest
    file."""
    if newest_ns:
        connection.execute(
            text(
                "insert into dlc.waiting_session as w (session_key, newest_ns, changed_at) "
                "select n.key, n.newest_ns, :now from unnest(cast(:keys as text[]), cast(:newest as bigint[])) "
                "n (key, newest_ns) order by n.key on conflict (session_key) do update set "
                "newest_ns = greatest(w.newest_ns, excluded.newest_ns), changed_at = excluded.changed_at, "
                "look_at = default, unready_since = null, held = null, left_out = null"
            ),
            {"now": now, "keys": list(newest_ns), "newest": list(newest_ns.values())},
        )


def wait_no_more(connection: Connection, keys: Sequence[str]) -> None:
    """End the wait of sessions that have nothing to wait for."""
    connection.execute(text("delete from dlc.waiting_session where session_key = any(:keys)"), {"keys": keys})


def look_again(connection: Connection, keys: Sequence[str]) -> None:
    """Look again at sessions that were found not to be complete."""
    connection.execute(
        text(
            "update dlc.waiting_session set look_at = default where session_key = any(:keys) "
            "and unready_since is not null"
        ),
        {"keys": keys},
    )


def look_later(engine: Engine, sessions: Sequence[Later]) -> None:
    """Look again at sessions, each at its time."""
    statement = text(
        "update dlc.waiting_session w set unready_since = n.since, look_at = n.look_at, "
        "left_out = cast(n.left_out as jsonb) from unnest(cast(:keys as text[]), cast(:since as timestamptz[]), "
        "cast(:times as timestamptz[]), cast(:left_out as text[])) n (key, since, look_at, left_out) "
        "where w.session_key = n.key"
    )
    values = {
        "keys": [later.session_key for later in sessions],
        "since": [later.since for later in sessions],
        "times": [later.look_at for later in sessions],
        "left_out": [later.left_out for later in sessions],
    }
    with engine.begin() as connection:
        connection.execute(statement, values)


def refuse(connection: Connection, left_out: Mapping[str, str], unresolved: str) -> None:
    """Do not use sessions; `left_out` gives the reasons of each as JSON.

    If the first reason begins with `unresolved`, as when nobody can say whether two folders are one, the session is
    looked at again after ten minutes.
    """
    statement = text(
        "update dlc.waiting_session w set look_at = case when cast(n.left_out as jsonb) -> 0 ->> 1 like :unresolved "
        "then now() + interval '10 minutes' else 'infinity' end, left_out = cast(n.left_out as jsonb) "
        "from unnest(cast(:keys as text[]), cast(:left_out as text[])) n (key, left_out) where w.session_key = n.key"
    )
    values = {"keys": list(left_out), "left_out": list(left_out.values()), "unresolved": f"{unresolved}%"}
    connection.execute(statement, values)


def hold(connection: Connection, evidence: Mapping[str, str]) -> None:
    """Do not ask for sessions again until a person releases them or their files change."""
    connection.execute(
        text(
            "update dlc.waiting_session w set held = n.evidence "
            "from unnest(cast(:keys as text[]), cast(:evidence as text[])) n (key, evidence) "
            "where w.session_key = n.key"
        ),
        {"keys": list(evidence), "evidence": list(evidence.values())},
    )


def waiting_states(connection: Connection, keys: Collection[str]) -> dict[str, Any]:
    """For each session: unready_since, how often a person released it, and the evidence of its open quarantine."""
    statement = text(
        "select k.key session_key, w.unready_since, "
        "(select count(*) from dlc.quarantine q where q.session_key = k.key and q.stage = 'videos' "
        f"and q.released_by <> '{OTHER_EVIDENCE}') released, "
        "array(select q.evidence::text from dlc.quarantine q where q.session_key = k.key and q.stage = 'videos' "
        "and q.path is null and q.released_at is null) evidence "
        "from unnest(cast(:keys as text[])) k (key) left join dlc.waiting_session w on w.session_key = k.key"
    )
    return {row.session_key: row for row in connection.execute(statement, {"keys": list(keys)})}


def settled_sessions(
    engine: Engine, settled: datetime, now: datetime, but: Sequence[str], order: Order, most: int
) -> Sequence[str]:
    """The first sessions that did not change after `settled` and whose roots answer, except those in `but`."""
    statement = text(
        "select w.session_key from dlc.waiting_session w where w.changed_at <= :settled and w.look_at <= :now "
        f"and w.session_key <> all(cast(:others as text[])) and not (w.held is not null and {_HELD}) "
        "and not exists (select from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id "
        "join dlc.scanned_root r on r.id = f.root_id where s.session_key = w.session_key and r.problem is not null) "
        f"order by {_ORDERS[order]} limit :limit"
    )
    with engine.connect() as connection:
        values = {"settled": settled, "now": now, "others": but, "limit": most}
        return connection.scalars(statement, values).all()


# --- what a look tells ---


def scan_counts(engine: Engine, settled: datetime, now: datetime, under_way: Collection[str]) -> Any:
    """Count the sessions, the unlisted folders, and two kinds of sessions that are not under way: settling and queued
    ones.
    """
    statement = text(
        "select (select count(*) from (select distinct session_key from dlc.sighting) s) "
        "- count(*) filter (where look_at = 'infinity') sessions, "
        "count(*) filter (where look_at < 'infinity' and not turn) settling, "
        "count(*) filter (where look_at < 'infinity' and turn and not held) queued, "
        "(select count(*) from dlc.scanned_folder where listed_ns is null) unlisted "
        "from (select w.look_at, w.changed_at <= :settled and w.look_at <= :now turn, "
        f"w.held is not null and {_HELD} held from dlc.waiting_session w "
        "where w.session_key <> all(cast(:under_way as text[]))) w"
    )
    with engine.connect() as connection:
        return connection.execute(statement, {"settled": settled, "now": now, "under_way": list(under_way)}).one()


def root_problems(engine: Engine) -> Sequence[Any]:
    """The path and the problem of each root that cannot be looked through."""
    with engine.connect() as connection:
        return connection.execute(
            text("select path, problem from dlc.scanned_root where problem is not null order by path")
        ).all()


def folders_without_videos(engine: Engine) -> Sequence[Any]:
    """The path and the session_key of folders of sessions in which no video lies."""
    statement = text(
        "select rtrim(r.path || '/' || f.path, '/') path, f.session_key from dlc.scanned_folder f "
        "join dlc.scanned_root r on r.id = f.root_id where f.session_key is not null and f.listed_ns is not null "
        "and not exists (select from dlc.sighting s where s.session_key = f.session_key) "
        # A root that is not looked through completely does not tell what is missing.
        "and f.root_id not in (select root_id from dlc.scanned_folder where listed_ns is null) "
        f"order by 1 limit {_REASONS}"
    )
    with engine.connect() as connection:
        return connection.execute(statement).all()


def reasons_left_out(engine: Engine) -> Sequence[Any]:
    """Each reason why files are not used, with the first path that has it and the number (n) of paths that have it."""
    statement = text(
        "select min(path) path, count(*) n, reason from ("
        "select e ->> 0 path, e ->> 1 reason from dlc.scanned_folder f, jsonb_array_elements(f.left_out) e "
        "union all "
        "select e ->> 0, e ->> 1 from dlc.waiting_session w, jsonb_array_elements(w.left_out) e) s "
        f"group by reason order by n, path limit {_REASONS}"
    )
    with engine.connect() as connection:
        return connection.execute(statement).all()
