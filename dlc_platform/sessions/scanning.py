"""The scan of the raw roots that goes on for ever, in looks of bounded length.

What was seen last is kept in the database: the folders with their times, the video files in them, and the sessions
that wait because their files changed. A look asks each known folder for its time and lists those whose time is another
one; it lists folders that it never saw, the newest first, and each time some of the others whatever their times say,
because a file that is replaced in its place changes no folder. Where its time is over, the next look goes on. A session
is ready when nothing of it was seen to change for a while by the clock of this host, and once more when its folders
were just listed again; times of files are only compared with each other.

All that is kept may be lost: it costs a second look, and what is registered is found to be so. How a disk is asked is
in `walking`, how a folder is read in `listing`, how videos make sessions in `sessions`; what is asked of a session is
for those who call.
"""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import regex
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from dlc_platform.catalog.quarantine import OTHER_EVIDENCE
from dlc_platform.identity import sha256_json, short
from dlc_platform.sessions.layout import Place, place_of
from dlc_platform.sessions.listing import UNWRITTEN, FoundVideo, Skipped, list_folder
from dlc_platform.sessions.raw_roots import (
    Disks,
    KnownFolder,
    Listed,
    NestedRoots,
    Root,
    Threads,
    Walk,
    lies_below,
    stalled,
    taken,
)
from dlc_platform.sessions.readiness import unopened
from dlc_platform.sessions.recordings import (
    UNRESOLVED,
    Scan,
    Session,
    VideoFile,
    gather,
    is_registered,
    is_touched,
    no_video,
    scan,
)
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.layout import Layout
from dlc_platform.text.words import counted, said_of

#: File systems keep times as coarse as two seconds: a change right after a listing may leave a folder's time as it was.
COARSE_SECONDS = 3.0
#: What a look may take longer than its time for what is just under way, and a disk until it counts as silent.
_GRACE_SECONDS = 1.0
#: A marker can be written in a folder whose time tells nothing, as through some links.
_LONGEST_WAIT = timedelta(hours=1)
#: Counts the rules by which names are read: what was seen by others is looked at again.
_RULES = 2
#: Sessions whose files one look has read again because only their ctime or inode changed, and files of one root with
#: such a change from which on it is the disk that changed, if they are more than half of those that were looked at.
_READ_AGAIN, _OF_THE_DISK = 100, 50
#: Reasons that are told at a time.
_REASONS = 1000
#: Of a look's time, the parts after which no more sessions are compared, no more folders listed, and none opened.
_COMPARING, _LISTING, _OPENING = 0.25, 0.7, 0.8


@dataclass(frozen=True)
class Candidate:
    """A session whose files are not those that are registered.

    Attributes
    ----------
    fingerprint
        A hash of the places, sizes and times of its files, of the rows that it has in the catalogue, and of how often
        a person released it: when any of these is another one, it may be asked for again.
    newest_ns
        The time of its newest file.
    new_files
        Its files that are not registered as they are.
    unready_since
        When it was found not to be complete the first time.
    """

    session: Session
    fingerprint: str
    newest_ns: int
    new_files: tuple[Path, ...]
    unready_since: datetime | None


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes
    ----------
    ready
        Sessions to be registered, in the order of lab.yaml; no more than were asked for.
    waiting
        How many sessions are new or changed and have not settled.
    queued
        How many have settled and have to wait for their turn.
    unfinished
        Folders that were seen and not yet listed.
    news
        Lines for people: what was found to be otherwise, and was settled by this look itself.
    left_out
        A line for each reason why something is not used, with the first path that has it.
    unreachable
        The raw roots that did not answer, or are not there.
    """

    ready: tuple[Candidate, ...]
    sessions: int
    waiting: int
    queued: int
    unfinished: int
    news: tuple[str, ...]
    left_out: tuple[str, ...]
    unreachable: tuple[Path, ...]


def look(
    engine: Engine, lab: Lab, now: datetime, most: int, under_way: Collection[str] = (), seconds: float | None = None
) -> Look:
    """Look at the raw roots for as long as lab.yaml says, and tell which sessions are ready to be registered.

    Parameters
    ----------
    now
        By the clock of this host, which also said it at every look before.
    most
        As many sessions as can be asked for now.
    under_way
        Sessions that were asked for, and wait for nothing else.
    seconds
        In place of lab.yaml's.
    """
    began = time.monotonic()
    seconds = lab.scan.tick_seconds if seconds is None else seconds
    roots = _roots(engine, lab)
    with engine.begin() as connection:
        # A clock that was set back would let them wait for as long as it was wrong.
        connection.execute(_NOT_IN_THE_FUTURE, {"now": now, "settle": timedelta(seconds=lab.settle_seconds)})
    seen = _Seen()
    settled = _settled(engine, lab, now, most, under_way, began + _COMPARING * seconds, seen)
    folders = _folders_of(engine, settled)
    urgent = {folder for own in folders.values() for folder in own}
    _walk(engine, lab, roots, now, urgent, began + _LISTING * seconds, seen)
    unchanged = [key for key in settled if key not in seen.changed and folders[key] <= seen.listed]
    ready = _complete(engine, lab, now, compare(engine, lab, unchanged).wanted, began + _OPENING * seconds)
    return Look(
        tuple(sorted(ready, key=lambda candidate: settled.index(candidate.session.key))),
        *_counts(engine, lab, now, under_way, len(ready)),
        tuple(seen.news),
        tuple(_left_out(engine, lab.layout)),
        tuple(Path(path) for path, root in roots.items() if root.problem is not None),
    )


@dataclass(frozen=True)
class Compared:
    """Sessions as they were last seen, held against the catalogue; those that can be neither are left out.

    `renamed` are the recordings whose cameras have other names now, as lines for people.
    """

    wanted: list[Candidate]
    registered: set[str]
    renamed: list[str]


def find_sessions(engine: Engine, lab: Lab, keys: Collection[str]) -> Scan:
    """These sessions as they lie on the disk now: their folders are listed again, and all roots for those not known."""
    videos: dict[str, FoundVideo] = {}
    skipped: list[Skipped] = []
    disks = Disks(lab.raw_roots, lab.scan.root_timeout_seconds)
    for root, path in sorted({folder for own in _folders_of(engine, keys).values() for folder in own}):
        listing = disks.ask(root, partial(list_folder, root, path, lab.layout), None)
        if listing is None:
            continue
        skipped += listing.skipped
        for video in listing.videos:
            if video.place.key in keys:
                videos.setdefault(video.path, video)
    sessions, refused = gather(videos.values(), disks)
    if {session.key for session in sessions} >= set(keys):
        return Scan(tuple(sorted(sessions, key=lambda session: session.key)), (*skipped, *refused))
    return scan(lab.raw_roots, lab.layout, lab.scan.root_timeout_seconds)


def unregistered(engine: Engine, sessions: Sequence[Session]) -> list[str]:
    """Those of these sessions whose files are not those that are registered."""
    rows: dict[str, dict[tuple[str, int], Any]] = defaultdict(dict)
    with engine.connect() as connection:
        for row in connection.execute(_ROWS, {"keys": [session.key for session in sessions]}):
            rows[row.session_key][row.name, row.position] = row
    return [session.key for session in sessions if not _differences(_files(session), rows[session.key])[1]]


# --- the roots and what is known of them ---


def _roots(engine: Engine, lab: Lab) -> dict[str, Root]:
    """The roots of lab.yaml in their order; what is known of others, or by another layout, is forgotten."""
    # Labs from before there was a word on links keep what they know.
    unsaid = {"links_outside"} if lab.layout.links_outside == "follow" else None
    layout = sha256_json([_RULES, lab.layout.model_dump(mode="json", exclude=unsaid)])
    paths = list(dict.fromkeys(map(str, lab.raw_roots)))
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
            # Two folders may have claimed a session, and one of them counts no more.
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
        rows = connection.execute(
            text(
                "select r.id, r.path, r.checked, r.listed, exists (select from dlc.scanned_folder f "
                "join dlc.sighting s on s.folder_id = f.id where f.root_id = r.id) holds_videos from dlc.scanned_root r"
            )
        ).all()
    known = {row.path: Root(row.id, row.path, row.checked, row.listed, row.holds_videos) for row in rows}
    return {path: known[path] for path in paths}


def _known(engine: Engine, root: Root) -> dict[str, KnownFolder]:
    statement = (
        "select path, changed_ns, listed_ns, case when listed_ns is distinct from changed_ns then seen_at end "
        "from dlc.scanned_folder where root_id = %s"
    )
    # Of hundreds of thousands of rows, what an object for each costs is most of it.
    with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(statement, (root.id,))
        return {row[0]: row for row in cursor.fetchall()}


# --- looking at the disks ---

_threads = Threads()


@dataclass(frozen=True)
class _Seen:
    """What a look saw: the sessions whose files changed, and each folder that was listed, by its root."""

    changed: set[str] = field(default_factory=set)
    listed: set[tuple[str, str]] = field(default_factory=set)
    #: By root, the files with the size and time of before: those with another ctime or inode, and how many are there.
    touched: dict[str, list["_Touched"]] = field(default_factory=lambda: defaultdict(list))
    same: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    news: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Touched:
    """A file whose ctime or inode is another one than before."""

    folder: int
    name: str
    session: str
    before: tuple[int | None, int | None]
    video: FoundVideo


def _walk(
    engine: Engine,
    lab: Lab,
    roots: dict[str, Root],
    now: datetime,
    urgent: set[tuple[str, str]],
    until: float,
    seen: _Seen,
) -> None:
    """Look at every root, until then at the latest, and write down what is there."""
    walks = []
    for path, root in roots.items():
        first = sorted(folder for own, folder in urgent if own == path)
        walk = Walk(root, _known(engine, root), first, lab.layout, until)
        silent = _threads.start(path, walk.run)
        if silent is None:
            walks.append(walk)
        else:
            root.problem = stalled(silent)
    nested = NestedRoots(list(roots), lab.layout)
    while walks:
        for walk in list(walks):
            is_done = walk.done
            batch = taken(walk.found)
            silent = time.monotonic() - walk.answered
            if batch:
                _write(engine, walk, batch, nested, now, seen)
            elif is_done:
                _finish(engine, walk, now, seen)
                walks.remove(walk)
            elif silent > lab.scan.root_timeout_seconds or time.monotonic() > until + _GRACE_SECONDS:
                walk.root.problem = stalled(silent) if silent > _GRACE_SECONDS else None
                _write_pending(engine, walk, now)
                walks.remove(walk)
        if walks:
            time.sleep(0.002)
    for path in roots:
        _read_again(engine, path, seen, now)
    with engine.begin() as connection:
        connection.execute(
            text(
                "update dlc.scanned_root r set problem = n.problem from unnest(cast(:ids as int[]), "
                "cast(:problems as text[])) n (id, problem) where r.id = n.id and r.problem is distinct from n.problem"
            ),
            {"ids": [r.id for r in roots.values()], "problems": [r.problem for r in roots.values()]},
        )


# --- writing down what was seen ---

_FOLDERS = text(
    "insert into dlc.scanned_folder as f (root_id, path, changed_ns, seen_at, listed_ns, session_key, left_out) "
    "select :root, n.path, n.changed_ns, :now, n.listed_ns, n.session_key, cast(n.left_out as jsonb) "
    "from unnest(cast(:paths as text[]), cast(:changed as bigint[]), cast(:listed as bigint[]), cast(:keys as text[]), "
    "cast(:left_out as text[])) n (path, changed_ns, listed_ns, session_key, left_out) "
    "on conflict (root_id, path) do update set changed_ns = excluded.changed_ns, "
    "seen_at = case when f.changed_ns = excluded.changed_ns then f.seen_at else excluded.seen_at end, "
    "listed_ns = excluded.listed_ns, session_key = excluded.session_key, left_out = excluded.left_out "
    "where (f.changed_ns, f.listed_ns, f.session_key, f.left_out) "
    "is distinct from (excluded.changed_ns, excluded.listed_ns, excluded.session_key, excluded.left_out)"
)
_SIGHTINGS = text(
    "insert into dlc.sighting (folder_id, name, size_bytes, mtime_ns, ctime_ns, inode, waits, session_key) "
    "select * from unnest(cast(:folders as int[]), cast(:names as text[]), cast(:sizes as bigint[]), "
    "cast(:times as bigint[]), cast(:ctimes as bigint[]), cast(:inodes as bigint[]), cast(:waits as text[]), "
    "cast(:keys as text[])) on conflict (folder_id, name) do update set size_bytes = excluded.size_bytes, "
    "mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, inode = excluded.inode, waits = excluded.waits, "
    "session_key = excluded.session_key"
)


def _write(engine: Engine, walk: Walk, batch: list[Listed], nested: NestedRoots, now: datetime, seen: _Seen) -> None:
    """Write down what listings say; a folder that cannot be written down is named, and holds up no other one.

    Names and numbers from a disk are bounded where they are read, so this is for what nobody thought of.
    """
    try:
        _write_together(engine, walk, batch, nested, now, seen)
    except (DBAPIError, ValueError) as error:
        if not _is_of_the_values(error):
            raise
        if len(batch) > 1:
            for found in batch:
                _write(engine, walk, [found], nested, now, seen)
            return
        (found,) = batch
        said = str(error.orig if isinstance(error, DBAPIError) else error).splitlines()[0]
        folder = f"{walk.root.path}/{found.path}"
        reason = (
            f"{UNWRITTEN} ({said}), so nothing new of it is used; rename it and its files, or move it out of the raw "
            "roots"
        )
        seen.news.append(f"{folder}: {reason}")
        possible = found.listing.possible
        left_out = json.dumps([[folder, reason, "lost", None if possible is None else possible.key]])
        values = {"root": walk.root.id, "now": now, "paths": [found.path], "changed": [found.mtime_ns], "listed": [0]}
        # Its own path may be what is refused.
        with suppress(DBAPIError, ValueError), engine.begin() as connection:
            connection.execute(_FOLDERS, {**values, "keys": [None], "left_out": [left_out]})


def _is_of_the_values(error: Exception) -> bool:
    """True when Postgres refused a value, and not when it could not be asked: classes 22, 23 and 54 of its codes."""
    if not isinstance(error, DBAPIError):
        return True
    return str(getattr(error.orig, "pgcode", None) or "")[:2] in ("22", "23", "54")


def _write_together(
    engine: Engine, walk: Walk, batch: list[Listed], nested: NestedRoots, now: datetime, seen: _Seen
) -> None:
    """Write down what listings say, and which sessions have other files than before."""
    root = walk.root.path
    folders: dict[str, tuple[int, int, str | None, str | None]] = {}
    for found in batch:
        known = walk.known.get(found.path)
        _, changed_ns, _, seen_at = known or (None, None, None, None)
        is_old = changed_ns == found.mtime_ns and (seen_at is None or (now - seen_at).total_seconds() >= COARSE_SECONDS)
        possible = found.listing.possible
        is_session = possible is not None and f"{possible.folder}/" == f"{root}/{found.path}"
        left_out = [[str(i.path), i.reason, i.kind] for i in nested.left_out(root, found.listing.skipped)]
        folders[found.path] = (
            found.mtime_ns,
            found.mtime_ns if is_old and not found.failed else 0,
            possible.key if possible is not None and is_session else None,
            json.dumps(left_out) if left_out else None,
        )
    with engine.begin() as connection:
        changed, listed, keys, left_outs = (list(column) for column in zip(*folders.values(), strict=True))
        values = {"root": walk.root.id, "now": now, "paths": list(folders), "changed": changed, "listed": listed}
        connection.execute(_FOLDERS, {**values, "keys": keys, "left_out": left_outs})
        ids = connection.execute(
            text("select id, path from dlc.scanned_folder where root_id = :root and path = any(:paths)"),
            {"root": walk.root.id, "paths": [found.path for found in batch if not found.failed]},
        )
        folder_of = {path: identity for identity, path in ids}
        videos = {
            (folder_of[found.path], os.path.basename(video.path)): video
            for found in batch
            if not found.failed
            for video in nested.videos(root, found.listing.videos)
        }
        before = connection.execute(
            text(
                "select folder_id, name, size_bytes, mtime_ns, waits, session_key, ctime_ns, inode from dlc.sighting "
                "where folder_id = any(:folders)"
            ),
            {"folders": list(folder_of.values())},
        ).all()
        path_of = {identity: path for path, identity in folder_of.items()}
        same: set[tuple[int, str]] = set()
        renumbered: list[_Touched] = []
        touched: dict[str, int] = {}
        gone = []
        for row in before:
            place = (row.folder_id, row.name)
            video = videos.get(place)
            if video is None:
                gone.append(place)
            elif (video.size, video.mtime_ns, video.waits, video.place.key) == row[2:6]:
                same.add(place)
                seen.same[root] += 1
                if (video.ctime_ns, video.inode) == (row.ctime_ns, row.inode):
                    continue
                # Where a file was replaced, its folder has another time; without, the disk counts its files anew.
                known = walk.known.get(path_of[row.folder_id])
                is_replaced = known is not None and known[1] != folders[path_of[row.folder_id]][0]
                file = _Touched(*place, row.session_key, (row.ctime_ns, row.inode), video)
                is_other = row.ctime_ns is not None and (video.ctime_ns != row.ctime_ns or is_replaced)
                (seen.touched[root] if is_other else renumbered).append(file)
                continue
            touched[row.session_key] = max(row.mtime_ns, touched.get(row.session_key, 0))
        new = [
            (*place, video.size, video.mtime_ns, video.ctime_ns, video.inode, video.waits, video.place.key)
            for place, video in videos.items()
            if place not in same
        ]
        for _, _, _, mtime_ns, *_, key in new:
            touched[key] = max(mtime_ns, touched.get(key, 0))
        _set_status(connection, renumbered, are_the_same=True)
        if gone:
            _missing(connection, touched, [f"{root}/{path_of[folder]}{name}" for folder, name in gone], now)
            connection.execute(
                text(
                    "delete from dlc.sighting s using unnest(cast(:folders as int[]), cast(:names as text[])) "
                    "g (folder_id, name) where s.folder_id = g.folder_id and s.name = g.name"
                ),
                {"folders": [folder for folder, _ in gone], "names": [name for _, name in gone]},
            )
        if new:
            names = ("folders", "names", "sizes", "times", "ctimes", "inodes", "waits", "keys")
            connection.execute(_SIGHTINGS, dict(zip(names, map(list, zip(*new, strict=True)), strict=True)))
            _missing(connection, touched, [v.path for place, v in videos.items() if place not in same], None)
        _touch(connection, touched, now)
        # A marker may have been written in a folder that holds none of the videos.
        awake = {
            found.listing.possible.key
            for found in batch
            if found.listing.possible is not None
            and found.path in walk.known
            and walk.known[found.path][1] != found.mtime_ns
        }
        connection.execute(
            text(
                "update dlc.waiting_session set look_at = default where session_key = any(:keys) "
                "and unready_since is not null"
            ),
            {"keys": list(awake)},
        )
    seen.changed.update(touched)
    seen.listed.update((root, found.path) for found in batch if not found.failed)


def _set_status(connection: Connection, files: Sequence[_Touched], are_the_same: bool) -> None:
    """Write down the ctime and inode of files that were seen.

    Where they are not known to be the same, what was registered has those of before, if it had none.
    """
    if not files:
        return
    now = [(file.video.ctime_ns, file.video.inode) for file in files]
    registered = now if are_the_same else [file.before for file in files]
    values = {
        "folders": [file.folder for file in files],
        "names": [file.name for file in files],
        "paths": [file.video.path for file in files],
        "sizes": [file.video.size for file in files],
        "times": [file.video.mtime_ns for file in files],
        "keys": list({file.session for file in files}),
        "overwrite": are_the_same,
    }
    for statement, status in ((_STATUS, now), (_REGISTERED_STATUS, registered)):
        own = {"ctimes": [ctime_ns for ctime_ns, _ in status], "inodes": [inode for _, inode in status]}
        connection.execute(statement, {**values, **own})


_STATUS = text(
    "update dlc.sighting s set ctime_ns = n.ctime_ns, inode = n.inode from unnest(cast(:folders as int[]), "
    "cast(:names as text[]), cast(:ctimes as bigint[]), cast(:inodes as bigint[])) "
    "n (folder_id, name, ctime_ns, inode) where s.folder_id = n.folder_id and s.name = n.name"
)
#: Only a file that was registered as it was seen before: any other one is read for itself.
_REGISTERED_STATUS = text(
    "update dlc.recording_file f set ctime_ns = n.ctime_ns, inode = n.inode from unnest(cast(:paths as text[]), "
    "cast(:ctimes as bigint[]), cast(:inodes as bigint[]), cast(:sizes as bigint[]), cast(:times as bigint[])) "
    "n (path, ctime_ns, inode, size_bytes, mtime_ns), dlc.recording r where r.id = f.recording_id "
    "and r.session_key = any(:keys) and f.replaced_at is null and f.path = n.path and f.size_bytes = n.size_bytes "
    "and f.mtime_ns = n.mtime_ns and (f.ctime_ns is null or :overwrite)"
)


def _read_again(engine: Engine, root: str, seen: _Seen, now: datetime) -> None:
    """Let the sessions wait whose files may have been replaced by others of the same size and time.

    Where most files of a disk changed so at once, it was mounted anew, or copied: then nothing is read again.
    """
    files = seen.touched[root]
    if not files:
        return
    if len(files) >= _OF_THE_DISK and 2 * len(files) > seen.same[root]:
        with engine.begin() as connection:
            _set_status(connection, files, are_the_same=True)
        seen.news.append(
            f"{root}: {len(files)} files have another ctime or inode at once, with the size and time of before, as "
            "after a new mount or a copy of the disk; they are taken for the same. To have the files of a session "
            "read again, materialise session_videos for it"
        )
        return
    newest: dict[str, int] = {}
    for file in files:
        newest[file.session] = max(file.video.mtime_ns, newest.get(file.session, file.video.mtime_ns))
    # The others are found again when their folders are listed the next time.
    newest = dict(sorted(newest.items())[:_READ_AGAIN])
    with engine.begin() as connection:
        _set_status(connection, [file for file in files if file.session in newest], are_the_same=False)
        _touch(connection, newest, now)
    seen.changed.update(newest)


def _write_pending(engine: Engine, walk: Walk, now: datetime) -> None:
    """Write down the folders that the next look is to list. Until then a look that is killed has seen none of them.

    That loses nothing: a folder in which new ones were seen is listed once more, as its time is not trusted at first.
    """
    pending = {path: -newest for newest, path in list(walk.pending) if path not in walk.known}
    if pending:
        with engine.begin() as connection:
            connection.execute(
                text(
                    "insert into dlc.scanned_folder (root_id, path, changed_ns, seen_at) "
                    "select :root, n.path, n.changed, :now "
                    "from unnest(cast(:paths as text[]), cast(:changed as bigint[])) n (path, changed) "
                    "on conflict do nothing"
                ),
                {"root": walk.root.id, "now": now, "paths": list(pending), "changed": list(pending.values())},
            )


def _finish(engine: Engine, walk: Walk, now: datetime, seen: _Seen) -> None:
    """Write down which folders are gone, and where the next look goes on."""
    root = walk.root
    root.problem = walk.problem
    _write_pending(engine, walk, now)
    with engine.begin() as connection:
        if walk.gone:
            values = {"root": root.id, "gone": walk.gone}
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
            touched: dict[str, int] = {}
            for row in videos:
                touched[row.session_key] = max(row.mtime_ns, touched.get(row.session_key, 0))
            _missing(connection, touched, [f"{root.path}/{row.path}" for row in videos], now)
            connection.execute(text(f"delete from {below}"), values)
            _touch(connection, touched, now)
            seen.changed.update(touched)
        if walk.problem is None and (root.checked, root.listed) != (walk.checked, walk.listed):
            connection.execute(
                text("update dlc.scanned_root set checked = :checked, listed = :listed where id = :id"),
                {"id": root.id, "checked": walk.checked, "listed": walk.listed},
            )


def _touch(connection: Connection, touched: dict[str, int], now: datetime) -> None:
    """Let sessions wait from now on, whatever they waited for before."""
    if touched:
        connection.execute(
            text(
                "insert into dlc.waiting_session as w (session_key, newest_ns, changed_at) "
                "select n.key, n.newest_ns, :now from unnest(cast(:keys as text[]), cast(:newest as bigint[])) "
                "n (key, newest_ns) order by n.key on conflict (session_key) do update set "
                "newest_ns = greatest(w.newest_ns, excluded.newest_ns), changed_at = excluded.changed_at, "
                "look_at = default, unready_since = null, held = null, left_out = null"
            ),
            {"now": now, "keys": list(touched), "newest": list(touched.values())},
        )


def _missing(connection: Connection, keys: Iterable[str], paths: list[str], since: datetime | None) -> None:
    """Write down since when registered files lie nowhere, or that they are back."""
    connection.execute(
        text(
            "update dlc.recording_file f set missing_since = :since from dlc.recording r where r.id = f.recording_id "
            "and r.session_key = any(:keys) and f.replaced_at is null and f.path = any(:paths) "
            "and (f.missing_since is null) <> (cast(:since as timestamptz) is null)"
        ),
        {"since": since, "keys": list(keys), "paths": paths},
    )


# --- sessions that wait ---

_ORDERS = {"newest": "w.newest_ns desc, w.session_key", "oldest": "w.newest_ns, w.session_key", "name": "w.session_key"}
#: What is not to be asked for again before a person says so, or another file comes.
_HELD = (
    "exists (select from dlc.quarantine q where q.session_key = w.session_key and q.stage = 'videos' "
    "and q.path is null and q.evidence = w.held and q.released_at is null)"
)


def _settled(
    engine: Engine, lab: Lab, now: datetime, most: int, under_way: Collection[str], until: float, seen: _Seen
) -> list[str]:
    """The first sessions that have settled as far as is known, and that are to be registered."""
    wanted: list[str] = []
    statement = text(
        "select w.session_key from dlc.waiting_session w where w.changed_at <= :settled and w.look_at <= :now "
        f"and w.session_key <> all(cast(:others as text[])) and not (w.held is not null and {_HELD}) "
        "and not exists (select from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id "
        "join dlc.scanned_root r on r.id = f.root_id where s.session_key = w.session_key and r.problem is not null) "
        f"order by {_ORDERS[lab.scan.order]} limit :limit"
    )
    settled = now - timedelta(seconds=lab.settle_seconds)
    while len(wanted) < most and time.monotonic() < until:
        with engine.connect() as connection:
            values = {"settled": settled, "now": now, "others": [*under_way, *wanted], "limit": 2 * most}
            keys = connection.scalars(statement, values).all()
        compared = compare(engine, lab, keys)
        seen.news.extend(compared.renamed)
        found = {candidate.session.key for candidate in compared.wanted}
        wanted += [key for key in keys if key in found]
        if not keys:
            break
    return wanted[:most]


def compare(engine: Engine, lab: Lab, keys: Collection[str]) -> Compared:
    """Hold sessions, as they were last seen, against the catalogue; what has nothing to wait for waits no more."""
    compared = Compared([], set(), [])
    if not keys:
        return compared
    values = {"keys": list(keys)}
    pattern = regex.compile(lab.layout.pattern)
    disks = Disks(lab.raw_roots, lab.scan.root_timeout_seconds)
    videos: dict[str, dict[str, FoundVideo]] = {key: {} for key in keys}
    rows: dict[str, dict[tuple[str, int], Any]] = {key: {} for key in keys}
    with engine.begin() as connection:
        for root, folder, name, size, mtime_ns, ctime_ns, inode, waits, key in connection.execute(_SEEN_VIDEOS, values):
            place = place_of(pattern, root, f"{folder}{name}", lab.layout.unnamed_session)
            if isinstance(place, Place):
                path = os.path.join(root, f"{folder}{name}")
                videos[key].setdefault(path, FoundVideo(place, path, size, mtime_ns, ctime_ns, inode, waits))
        for row in connection.execute(_ROWS, values):
            rows[row.session_key][row.name, row.position] = row
        states = {row.session_key: row for row in connection.execute(_STATES, values)}
        over, refused, held = [], {}, {}
        cameras: dict[int, tuple[str, str]] = {}
        for key in keys:
            sessions, skipped = gather(videos[key].values(), disks)
            state = states.get(key)
            if not sessions:
                if skipped:
                    refused[key] = json.dumps([[str(item.path), item.reason, item.kind] for item in skipped])
                else:
                    over.append(key)
                continue
            (session,) = sessions
            files = _files(session)
            cameras |= {
                rows[key][recording.name, 0].recording_id: (rows[key][recording.name, 0].camera, recording.camera)
                for recording in session.recordings
                if (recording.name, 0) in rows[key] and rows[key][recording.name, 0].camera != recording.camera
            }
            new, is_known = _differences(files, rows[key])
            touched = [
                place
                for place, file in sorted(files.items())
                if (row := rows[key].get(place)) is not None and is_registered(file, row) and is_touched(file, row)
            ]
            if is_known and not touched:
                over.append(key)
                compared.registered.add(key)
                continue
            fingerprint = short(
                sha256_json(
                    [
                        [[*place, str(file.path), file.size, file.mtime_ns] for place, file in sorted(files.items())],
                        sorted([row.id, row.registered_at.isoformat()] for row in rows[key].values()),
                        state.released if state else 0,
                        *([[*place, files[place].ctime_ns, files[place].inode] for place in touched]),
                    ]
                )
            )
            if state and fingerprint in state.evidence:
                held[key] = fingerprint
                continue
            newest_ns = max(file.mtime_ns for file in files.values())
            since = state.unready_since if state else None
            to_read = tuple(file.path for file in [*new, *(files[place] for place in touched)])
            compared.wanted.append(Candidate(session, fingerprint, newest_ns, to_read, since))
        if over:
            connection.execute(text("delete from dlc.waiting_session where session_key = any(:keys)"), {"keys": over})
        if refused:
            values = {"keys": list(refused), "left_out": list(refused.values()), "unresolved": f"{UNRESOLVED}%"}
            connection.execute(_REFUSE, values)
        if held:
            connection.execute(_HOLD, {"keys": list(held), "evidence": list(held.values())})
        if cameras:
            _call(connection, lab, {recording: camera for recording, (_, camera) in cameras.items()})
    compared.renamed.extend(
        f"{counted(number, 'recording')} of the camera {old} {'is' if number == 1 else 'are'} of the camera {new} "
        "now, by their names; their poses stay"
        for (old, new), number in Counter(cameras.values()).items()
    )
    return compared


def _call(connection: Connection, lab: Lab, cameras: Mapping[int, str]) -> None:
    """Let recordings have the cameras that their names say now; their poses stay."""
    values = [{"name": name, "project": lab.project_of(name)} for name in sorted(set(cameras.values()))]
    connection.execute(
        text("insert into dlc.camera (name, project) values (:name, :project) on conflict do nothing"), values
    )
    connection.execute(
        text("update dlc.recording set camera = :camera where id = :id"),
        [{"id": identity, "camera": camera} for identity, camera in sorted(cameras.items())],
    )


_SEEN_VIDEOS = text(
    "select r.path, f.path, s.name, s.size_bytes, s.mtime_ns, s.ctime_ns, s.inode, s.waits, s.session_key "
    "from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id join dlc.scanned_root r on r.id = f.root_id "
    "where s.session_key = any(:keys)"
)
_ROWS = text(
    "select r.session_key, r.name, r.camera, f.recording_id, f.position, f.id, f.path, f.size_bytes, f.mtime_ns, "
    "f.ctime_ns, f.inode, f.registered_at, f.missing_since "
    "from dlc.recording_file f join dlc.recording r on r.id = f.recording_id "
    "where r.session_key = any(:keys) and f.replaced_at is null"
)
_STATES = text(
    "select k.key session_key, w.unready_since, "
    "(select count(*) from dlc.quarantine q where q.session_key = k.key and q.stage = 'videos' "
    f"and q.released_by <> '{OTHER_EVIDENCE}') released, "
    "array(select q.evidence::text from dlc.quarantine q where q.session_key = k.key and q.stage = 'videos' "
    "and q.path is null and q.released_at is null) evidence "
    "from unnest(cast(:keys as text[])) k (key) left join dlc.waiting_session w on w.session_key = k.key"
)
_REFUSE = text(
    # Whether folders are one is asked again after a while.
    "update dlc.waiting_session w set look_at = case when cast(n.left_out as jsonb) -> 0 ->> 1 like :unresolved "
    "then now() + interval '10 minutes' else 'infinity' end, left_out = cast(n.left_out as jsonb) "
    "from unnest(cast(:keys as text[]), cast(:left_out as text[])) n (key, left_out) where w.session_key = n.key"
)
_HOLD = text(
    "update dlc.waiting_session w set held = n.evidence from unnest(cast(:keys as text[]), cast(:evidence as text[])) "
    "n (key, evidence) where w.session_key = n.key"
)


def _files(session: Session) -> dict[tuple[str, int], VideoFile]:
    return {(own.name, position): file for own in session.recordings for position, file in enumerate(own.files)}


def _differences(
    files: dict[tuple[str, int], VideoFile], rows: dict[tuple[str, int], Any]
) -> tuple[list[VideoFile], bool]:
    """The files that are not registered as they are, and whether the session is registered as a whole."""
    known = {place: row for place, row in rows.items() if row.missing_since is None}
    new = [file for place, file in files.items() if place not in known or not is_registered(file, known[place])]
    return new, not new and known.keys() == files.keys()


def _complete(
    engine: Engine, lab: Lab, now: datetime, candidates: Sequence[Candidate], until: float
) -> list[Candidate]:
    """Those of which nothing says that they are under way, and whose new files open, or did not for long enough.

    The others are looked at again, each time after as long again as they have waited already.
    """
    reasons: dict[str, tuple[str, str] | None] = {}
    for root in map(str, lab.raw_roots):
        own = [c for c in candidates if c.session.waits is None and lies_below(str(c.session.folder) + "/", root)]
        if own:
            _threads.start(f"{root}, opening", partial(_open, own, reasons, until))
    opening = {candidate.session.key for candidate in candidates if candidate.session.waits is None}
    while not opening <= reasons.keys() and time.monotonic() < until + _GRACE_SECONDS:
        time.sleep(0.002)
    patience = timedelta(seconds=lab.scan.unopened_seconds)
    ready: list[Candidate] = []
    later: list[tuple[str, datetime, datetime, str]] = []
    for candidate in candidates:
        key, since = candidate.session.key, candidate.unready_since or now
        wait = max(timedelta(seconds=lab.settle_seconds), now - since)
        if candidate.session.waits is not None:
            what = [[str(candidate.session.folder), candidate.session.waits, "expected"]]
            later.append((key, since, now + min(wait, _LONGEST_WAIT), json.dumps(what)))
        elif key in reasons:
            found = reasons[key]
            if found is None or now - since >= patience:
                ready.append(candidate)
            else:
                path, reason = found
                what = [[path, f"it does not open ({reason}); it may still be under way, or be broken", "odd"]]
                later.append((key, since, min(now + wait, since + patience), json.dumps(what)))
    if later:
        keys, sinces, times, left_out = map(list, zip(*later, strict=True))
        with engine.begin() as connection:
            connection.execute(_LATER, {"keys": keys, "since": sinces, "times": times, "left_out": left_out})
    return ready


def _open(candidates: Sequence[Candidate], reasons: dict[str, tuple[str, str] | None], until: float) -> None:
    """Say of each session which of its new files does not open and why; in a thread that a disk may hold for ever."""
    for candidate in candidates:
        if time.monotonic() > until:
            return
        found = ((str(path), unopened(path)) for path in candidate.new_files)
        reasons[candidate.session.key] = next(((path, reason) for path, reason in found if reason is not None), None)


#: What waits to open is looked at again after as long as it has waited.
_NOT_IN_THE_FUTURE = text(
    "update dlc.waiting_session set changed_at = least(changed_at, :now), unready_since = least(unready_since, :now), "
    "look_at = case when isfinite(look_at) then least(look_at, cast(:now as timestamptz)) else look_at end "
    "where changed_at > :now or unready_since > :now or (isfinite(look_at) "
    "and look_at > cast(:now as timestamptz) + greatest(cast(:settle as interval), :now - unready_since))"
)
_LATER = text(
    "update dlc.waiting_session w set unready_since = n.since, look_at = n.look_at, "
    "left_out = cast(n.left_out as jsonb) from unnest(cast(:keys as text[]), cast(:since as timestamptz[]), "
    "cast(:times as timestamptz[]), cast(:left_out as text[])) n (key, since, look_at, left_out) "
    "where w.session_key = n.key"
)


def _folders_of(engine: Engine, keys: Collection[str]) -> dict[str, set[tuple[str, str]]]:
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


# --- what a look tells ---


def _counts(
    engine: Engine, lab: Lab, now: datetime, under_way: Collection[str], ready: int
) -> tuple[int, int, int, int]:
    """How many sessions there are, how many of them settle and how many wait for their turn; and folders not listed."""
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
    values = {"settled": now - timedelta(seconds=lab.settle_seconds), "now": now, "under_way": list(under_way)}
    with engine.connect() as connection:
        sessions, settling, queued, unlisted = connection.execute(statement, values).one()
    return sessions, settling, queued - ready, unlisted


def _left_out(engine: Engine, layout: Layout) -> list[str]:
    """A line for each reason why something is not used, with the first path that has it; roots first."""
    statement = text(
        "select min(path) path, count(*) n, reason from ("
        "select e ->> 0 path, e ->> 1 reason from dlc.scanned_folder f, jsonb_array_elements(f.left_out) e "
        "union all "
        "select e ->> 0, e ->> 1 from dlc.waiting_session w, jsonb_array_elements(w.left_out) e) s "
        f"group by reason order by n, path limit {_REASONS}"
    )
    empty = text(
        "select rtrim(r.path || '/' || f.path, '/'), f.session_key from dlc.scanned_folder f join dlc.scanned_root r "
        "on r.id = f.root_id where f.session_key is not null and f.listed_ns is not null "
        "and not exists (select from dlc.sighting s where s.session_key = f.session_key) "
        # A root that is not looked through says nothing of what is not there.
        "and f.root_id not in (select root_id from dlc.scanned_folder where listed_ns is null) "
        f"order by 1 limit {_REASONS}"
    )
    roots = text("select path, problem from dlc.scanned_root where problem is not null order by path")
    with engine.connect() as connection:
        lines = [said_of(path, problem) for path, problem in connection.execute(roots)]
        lines += [said_of(path, no_video(key, layout)) for path, key in connection.execute(empty)]
        found = connection.execute(statement).all()
    return lines + [
        f"{path} and {n - 1} more: {reason}" if n > 1 else said_of(path, reason) for path, n, reason in found
    ]
