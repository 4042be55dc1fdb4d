"""The endless scan of the raw roots, in looks of limited length.

The database keeps the last look: the folders with their times, the video files in them, and the sessions that wait
because their files changed. A look asks each known folder for its time and lists those whose time changed. It lists
folders that it never saw, the newest first. It also lists some of the others whatever their times say, because a file
that is replaced in its place does not change its folder. When its time is over, the next look goes on there. A session
is ready if no change of it was seen for a while by the clock of this host, and none when its folders were listed once
more. Times of files are only compared with each other.

All that is kept may be lost: that costs a second look, which finds the registered files to be registered. `raw_roots`
asks the disks, `listing` reads folders, `recordings` combines videos into sessions. The callers decide what to do with
a session.
"""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import regex
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from dlc_platform.catalog import sightings
from dlc_platform.catalog.sightings import Folder, Later, Sighting, Status
from dlc_platform.identity import sha256_json, short
from dlc_platform.sessions.layout import Place, place_of
from dlc_platform.sessions.listing import UNWRITTEN, FoundVideo, Skipped, list_folder
from dlc_platform.sessions.raw_roots import (
    Disks,
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
#: The extra seconds of a look for work in progress, and the seconds until a disk counts as silent.
_GRACE_SECONDS = 1.0
#: A marker can be written in a folder whose time does not tell, as behind some links.
_LONGEST_WAIT = timedelta(hours=1)
#: The version of the rules by which names are read: files that were seen under other rules are looked at again.
_RULES = 2
#: The most sessions whose files one look has read again because only their ctime or inode changed; and the number of
#: files of one root with such a change from which the disk is taken to have changed, if they are more than half of all.
_READ_AGAIN, _OF_THE_DISK = 100, 50
#: The parts of a look's time after which no more sessions are compared, no more folders listed, and no files opened.
_COMPARING, _LISTING, _OPENING = 0.25, 0.7, 0.8


@dataclass(frozen=True)
class Candidate:
    """A session whose files differ from the registered ones.

    Attributes
    ----------
    fingerprint
        A hash of the places, sizes and times of its files, of its rows in the catalogue, and of how often a person
        released it. When it changes, the session may be asked for again.
    newest_ns
        The time of its newest file.
    new_files
        Its files that are not registered as they are now.
    unready_since
        The time when it was first found not to be complete.
    """

    session: Session
    fingerprint: str
    newest_ns: int
    new_files: tuple[Path, ...]
    unready_since: datetime | None


@dataclass(frozen=True)
class Look:
    """The result of one look.

    Attributes
    ----------
    ready
        Sessions to register, in the order of lab.yaml; at most as many as were asked for.
    waiting
        The number of sessions that are new or changed and have not settled.
    queued
        The number of sessions that have settled and wait for their turn.
    unfinished
        The number of folders that were seen and are not listed yet.
    news
        Lines for people about changes that this look itself has dealt with.
    left_out
        A line for each reason why files are not used, with the first path that has it.
    unreachable
        The raw roots that did not answer, or do not exist.
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
        The time by the clock of this host, as in all earlier looks.
    most
        The most sessions that can be asked for now.
    under_way
        Sessions that were asked for and are not finished.
    seconds
        The time of the look, instead of lab.yaml's.
    """
    began = time.monotonic()
    seconds = lab.scan.tick_seconds if seconds is None else seconds
    roots = _roots(engine, lab)
    # After a clock was set back, they would wait for as long as it was wrong.
    sightings.set_back_clock(engine, now, timedelta(seconds=lab.settle_seconds))
    seen = _Seen()
    settled = _settled(engine, lab, now, most, under_way, began + _COMPARING * seconds, seen)
    folders = sightings.folders_of(engine, settled)
    urgent = {folder for own in folders.values() for folder in own}
    _walk(engine, lab, roots, now, urgent, began + _LISTING * seconds, seen)
    unchanged = [key for key in settled if key not in seen.changed and folders[key] <= seen.listed]
    ready = _complete(engine, lab, now, compare(engine, lab, unchanged).wanted, began + _OPENING * seconds)
    counts = sightings.scan_counts(engine, now - timedelta(seconds=lab.settle_seconds), now, under_way)
    return Look(
        tuple(sorted(ready, key=lambda candidate: settled.index(candidate.session.key))),
        counts.sessions,
        counts.settling,
        counts.queued - len(ready),
        counts.unlisted,
        tuple(seen.news),
        tuple(_left_out(engine, lab.layout)),
        tuple(Path(path) for path, root in roots.items() if root.problem is not None),
    )


@dataclass(frozen=True)
class Compared:
    """Sessions as they were last seen, compared with the catalogue; sessions that cannot be compared are left out.

    `renamed` has lines for people about recordings whose cameras have other names now.
    """

    wanted: list[Candidate]
    registered: set[str]
    renamed: list[str]


def find_sessions(engine: Engine, lab: Lab, keys: Collection[str]) -> Scan:
    """These sessions as they lie on the disk now: their folders are listed again, and all roots for unknown
    sessions."""
    videos: dict[str, FoundVideo] = {}
    skipped: list[Skipped] = []
    disks = Disks(lab.raw_roots, lab.scan.root_timeout_seconds)
    for root, path in sorted({folder for own in sightings.folders_of(engine, keys).values() for folder in own}):
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
    """Those of these sessions whose files differ from the registered ones."""
    rows: dict[str, dict[tuple[str, int], Any]] = defaultdict(dict)
    with engine.connect() as connection:
        for row in sightings.registered_files(connection, [session.key for session in sessions]):
            rows[row.session_key][row.name, row.position] = row
    return [session.key for session in sessions if not _differences(_files(session), rows[session.key])[1]]


# --- the roots and what is known of them ---


def _roots(engine: Engine, lab: Lab) -> dict[str, Root]:
    """The roots of lab.yaml in their order; the knowledge of other roots, or by another layout, is forgotten."""
    # Labs that are older than the key for links keep what they know.
    unsaid = {"links_outside"} if lab.layout.links_outside == "follow" else None
    layout = sha256_json([_RULES, lab.layout.model_dump(mode="json", exclude=unsaid)])
    paths = list(dict.fromkeys(map(str, lab.raw_roots)))
    rows = sightings.set_roots(engine, paths, layout)
    known = {row.path: Root(row.id, row.path, row.checked, row.listed, row.holds_videos) for row in rows}
    return {path: known[path] for path in paths}


# --- looking at the disks ---

_threads = Threads()


@dataclass(frozen=True)
class _Seen:
    """The findings of a look: the sessions whose files changed, and each folder that was listed, by its root."""

    changed: set[str] = field(default_factory=set)
    listed: set[tuple[str, str]] = field(default_factory=set)
    #: By root, files with unchanged size and time: those whose ctime or inode changed, and the number of the others.
    touched: dict[str, list[Status]] = field(default_factory=lambda: defaultdict(list))
    same: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    news: list[str] = field(default_factory=list)


def _walk(
    engine: Engine,
    lab: Lab,
    roots: dict[str, Root],
    now: datetime,
    urgent: set[tuple[str, str]],
    until: float,
    seen: _Seen,
) -> None:
    """Look at every root, at most until `until`, and write down what is there."""
    walks = []
    for path, root in roots.items():
        first = sorted(folder for own, folder in urgent if own == path)
        walk = Walk(root, sightings.known_folders(engine, root.id), first, lab.layout, until)
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
    sightings.set_problems(engine, {root.id: root.problem for root in roots.values()})


# --- writing down what was seen ---


def _write(engine: Engine, walk: Walk, batch: list[Listed], nested: NestedRoots, now: datetime, seen: _Seen) -> None:
    """Write listings down; a folder that cannot be written down is named, and does not hold up another one.

    Names and numbers from a disk are limited where they are read, so this is for unexpected cases.
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
        place = f"{walk.root.path}/{found.path}"
        reason = (
            f"{UNWRITTEN} ({said}), so nothing new in it is used; rename it and its files, or move it out of the raw "
            "roots"
        )
        seen.news.append(f"{place}: {reason}")
        possible = found.listing.possible
        left_out = json.dumps([[place, reason, "lost", None if possible is None else possible.key]])
        # Its own path may be the refused value.
        with suppress(DBAPIError, ValueError), engine.begin() as connection:
            folder = Folder(found.path, found.mtime_ns, 0, None, left_out)
            sightings.write_folders(connection, walk.root.id, [folder], now)


def _is_of_the_values(error: Exception) -> bool:
    """True if Postgres refused a value, false if it could not be asked: classes 22, 23 and 54 of its codes."""
    if not isinstance(error, DBAPIError):
        return True
    return str(getattr(error.orig, "pgcode", None) or "")[:2] in ("22", "23", "54")


def _write_together(
    engine: Engine, walk: Walk, batch: list[Listed], nested: NestedRoots, now: datetime, seen: _Seen
) -> None:
    """Write listings down, and which sessions have other files than before."""
    root = walk.root.path
    folders: dict[str, Folder] = {}
    for found in batch:
        known = walk.known.get(found.path)
        _, changed_ns, _, seen_at = known or (None, None, None, None)
        is_old = changed_ns == found.mtime_ns and (seen_at is None or (now - seen_at).total_seconds() >= COARSE_SECONDS)
        possible = found.listing.possible
        is_session = possible is not None and f"{possible.folder}/" == f"{root}/{found.path}"
        left_out = [[str(i.path), i.reason, i.kind] for i in nested.left_out(root, found.listing.skipped)]
        folders[found.path] = Folder(
            found.path,
            found.mtime_ns,
            found.mtime_ns if is_old and not found.failed else 0,
            possible.key if possible is not None and is_session else None,
            json.dumps(left_out) if left_out else None,
        )
    with engine.begin() as connection:
        sightings.write_folders(connection, walk.root.id, list(folders.values()), now)
        readable = [found.path for found in batch if not found.failed]
        folder_of = sightings.folder_ids(connection, walk.root.id, readable)
        videos = {
            (folder_of[found.path], os.path.basename(video.path)): video
            for found in batch
            if not found.failed
            for video in nested.videos(root, found.listing.videos)
        }
        path_of = {identity: path for path, identity in folder_of.items()}
        same: set[tuple[int, str]] = set()
        renumbered: list[Status] = []
        touched: dict[str, int] = {}
        gone = []
        for old in sightings.sightings_in(connection, list(folder_of.values())):
            place = (old.folder_id, old.name)
            video = videos.get(place)
            if video is None:
                gone.append(old)
            elif (video.size, video.mtime_ns, video.waits, video.place.key) == (
                *(old.size_bytes, old.mtime_ns, old.waits, old.session_key),
            ):
                same.add(place)
                seen.same[root] += 1
                if (video.ctime_ns, video.inode) == (old.ctime_ns, old.inode):
                    continue
                # If a file was replaced, its folder has a new time; if it has not, the disk numbers its files anew.
                known = walk.known.get(path_of[old.folder_id])
                is_replaced = known is not None and known[1] != folders[path_of[old.folder_id]].changed_ns
                status = Status(
                    *place,
                    *(video.path, video.size, video.mtime_ns, old.session_key),
                    now=(video.ctime_ns, video.inode),
                    before=(old.ctime_ns, old.inode),
                )
                is_other = old.ctime_ns is not None and (video.ctime_ns != old.ctime_ns or is_replaced)
                (seen.touched[root] if is_other else renumbered).append(status)
                continue
            touched[old.session_key] = max(old.mtime_ns, touched.get(old.session_key, 0))
        new = {
            video.path: Sighting(
                *place, video.size, video.mtime_ns, video.ctime_ns, video.inode, video.waits, video.place.key
            )
            for place, video in videos.items()
            if place not in same
        }
        for file in new.values():
            touched[file.session_key] = max(file.mtime_ns, touched.get(file.session_key, 0))
        sightings.write_status(connection, renumbered, are_the_same=True)
        if gone:
            paths = [f"{root}/{path_of[file.folder_id]}{file.name}" for file in gone]
            sightings.set_missing(connection, touched, paths, now)
            sightings.forget_sightings(connection, gone)
        if new:
            sightings.write_sightings(connection, list(new.values()))
            sightings.set_missing(connection, touched, list(new), None)
        sightings.wait(connection, touched, now)
        # A marker may have been written in a folder that holds none of the videos.
        awake = {
            found.listing.possible.key
            for found in batch
            if found.listing.possible is not None
            and found.path in walk.known
            and walk.known[found.path][1] != found.mtime_ns
        }
        sightings.look_again(connection, list(awake))
    seen.changed.update(touched)
    seen.listed.update((root, found.path) for found in batch if not found.failed)


def _read_again(engine: Engine, root: str, seen: _Seen, now: datetime) -> None:
    """Let the sessions wait whose files may have been replaced by files of the same size and time.

    If most files of a disk changed so at once, the disk was mounted anew or copied: then nothing is read again.
    """
    files = seen.touched[root]
    if not files:
        return
    if len(files) >= _OF_THE_DISK and 2 * len(files) > seen.same[root]:
        with engine.begin() as connection:
            sightings.write_status(connection, files, are_the_same=True)
        seen.news.append(
            f"{root}: {len(files)} files have another ctime or inode at once, with unchanged size and time, as after "
            "a new mount or a copy of the disk; they are taken for the same files. To have the files of a session "
            "read again, materialise session_videos for it"
        )
        return
    newest: dict[str, int] = {}
    for file in files:
        newest[file.session_key] = max(file.mtime_ns, newest.get(file.session_key, file.mtime_ns))
    # The others are found again when their folders are next listed.
    newest = dict(sorted(newest.items())[:_READ_AGAIN])
    with engine.begin() as connection:
        sightings.write_status(connection, [file for file in files if file.session_key in newest], are_the_same=False)
        sightings.wait(connection, newest, now)
    seen.changed.update(newest)


def _write_pending(engine: Engine, walk: Walk, now: datetime) -> None:
    """Write down the folders that the next look must list. If a look is killed before that, it has seen none of them.

    That loses nothing: a folder in which new ones were seen is listed once more, because its time is not trusted at
    first.
    """
    pending = {path: -newest for newest, path in list(walk.pending) if path not in walk.known}
    if pending:
        sightings.write_unlisted(engine, walk.root.id, pending, now)


def _finish(engine: Engine, walk: Walk, now: datetime, seen: _Seen) -> None:
    """Write down which folders are gone, and where the next look goes on."""
    root = walk.root
    root.problem = walk.problem
    _write_pending(engine, walk, now)
    with engine.begin() as connection:
        if walk.gone:
            videos = sightings.forget_folders(connection, root.id, walk.gone)
            touched: dict[str, int] = {}
            for row in videos:
                touched[row.session_key] = max(row.mtime_ns, touched.get(row.session_key, 0))
            sightings.set_missing(connection, touched, [f"{root.path}/{row.path}" for row in videos], now)
            sightings.wait(connection, touched, now)
            seen.changed.update(touched)
        if walk.problem is None and (root.checked, root.listed) != (walk.checked, walk.listed):
            sightings.go_on_at(connection, root.id, walk.checked, walk.listed)


# --- sessions that wait ---


def _settled(
    engine: Engine, lab: Lab, now: datetime, most: int, under_way: Collection[str], until: float, seen: _Seen
) -> list[str]:
    """The first sessions that have settled, as far as is known, and that must be registered."""
    wanted: list[str] = []
    settled = now - timedelta(seconds=lab.settle_seconds)
    while len(wanted) < most and time.monotonic() < until:
        keys = sightings.settled_sessions(engine, settled, now, [*under_way, *wanted], lab.scan.order, 2 * most)
        compared = compare(engine, lab, keys)
        seen.news.extend(compared.renamed)
        found = {candidate.session.key for candidate in compared.wanted}
        wanted += [key for key in keys if key in found]
        if not keys:
            break
    return wanted[:most]


def compare(engine: Engine, lab: Lab, keys: Collection[str]) -> Compared:
    """Compare sessions, as they were last seen, with the catalogue; end the wait of those that have nothing to wait
    for."""
    compared = Compared([], set(), [])
    if not keys:
        return compared
    pattern = regex.compile(lab.layout.pattern)
    disks = Disks(lab.raw_roots, lab.scan.root_timeout_seconds)
    videos: dict[str, dict[str, FoundVideo]] = {key: {} for key in keys}
    rows: dict[str, dict[tuple[str, int], Any]] = {key: {} for key in keys}
    with engine.begin() as connection:
        for root, folder, name, size, mtime_ns, ctime_ns, inode, waits, key in sightings.seen_videos(connection, keys):
            place = place_of(pattern, root, f"{folder}{name}", lab.layout.unnamed_session)
            if isinstance(place, Place):
                path = os.path.join(root, f"{folder}{name}")
                videos[key].setdefault(path, FoundVideo(place, path, size, mtime_ns, ctime_ns, inode, waits))
        for row in sightings.registered_files(connection, keys):
            rows[row.session_key][row.name, row.position] = row
        states = sightings.waiting_states(connection, keys)
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
            sightings.wait_no_more(connection, over)
        if refused:
            sightings.refuse(connection, refused, UNRESOLVED)
        if held:
            sightings.hold(connection, held)
        if cameras:
            # Their poses stay.
            now_called = {recording: camera for recording, (_, camera) in cameras.items()}
            projects = {camera: lab.tracking.project_of(camera) for camera in now_called.values()}
            sightings.set_cameras(connection, now_called, projects)
    compared.renamed.extend(
        f"{counted(number, 'recording')} of the camera {old} {'is' if number == 1 else 'are'} of the camera {new} "
        "now, by their names; their poses stay"
        for (old, new), number in Counter(cameras.values()).items()
    )
    return compared


def _files(session: Session) -> dict[tuple[str, int], VideoFile]:
    return {(own.name, position): file for own in session.recordings for position, file in enumerate(own.files)}


def _differences(
    files: dict[tuple[str, int], VideoFile], rows: dict[tuple[str, int], Any]
) -> tuple[list[VideoFile], bool]:
    """The files that are not registered as they are now; and True if the session is registered completely."""
    known = {place: row for place, row in rows.items() if row.missing_since is None}
    new = [file for place, file in files.items() if place not in known or not is_registered(file, known[place])]
    return new, not new and known.keys() == files.keys()


def _complete(
    engine: Engine, lab: Lab, now: datetime, candidates: Sequence[Candidate], until: float
) -> list[Candidate]:
    """The sessions that nothing shows to be under way, and whose new files open, or have not opened for long enough.

    The others are looked at again, each time after as long as they have waited already.
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
    later: list[Later] = []
    for candidate in candidates:
        key, since = candidate.session.key, candidate.unready_since or now
        wait = max(timedelta(seconds=lab.settle_seconds), now - since)
        if candidate.session.waits is not None:
            what = [[str(candidate.session.folder), candidate.session.waits, "expected"]]
            later.append(Later(key, since, now + min(wait, _LONGEST_WAIT), json.dumps(what)))
        elif key in reasons:
            found = reasons[key]
            if found is None or now - since >= patience:
                ready.append(candidate)
            else:
                path, reason = found
                what = [[path, f"it does not open ({reason}); it may still be under way, or be broken", "odd"]]
                later.append(Later(key, since, min(now + wait, since + patience), json.dumps(what)))
    if later:
        sightings.look_later(engine, later)
    return ready


def _open(candidates: Sequence[Candidate], reasons: dict[str, tuple[str, str] | None], until: float) -> None:
    """For each session, name a new file that does not open, and why; in a thread that a disk may block for ever."""
    for candidate in candidates:
        if time.monotonic() > until:
            return
        found = ((str(path), unopened(path)) for path in candidate.new_files)
        reasons[candidate.session.key] = next(((path, reason) for path, reason in found if reason is not None), None)


# --- what a look tells ---


def _left_out(engine: Engine, layout: Layout) -> list[str]:
    """A line for each reason why files are not used, with the first path that has it; roots first."""
    lines = [said_of(path, problem) for path, problem in sightings.root_problems(engine)]
    lines += [said_of(path, no_video(key, layout)) for path, key in sightings.folders_without_videos(engine)]
    return lines + [
        f"{path} and {n - 1} more: {reason}" if n > 1 else said_of(path, reason)
        for path, n, reason in sightings.reasons_left_out(engine)
    ]
