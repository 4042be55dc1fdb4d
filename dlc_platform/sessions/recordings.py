"""Finding sessions and their recordings below the raw roots.

It uses only names, sizes and times; `video.probe` reads the content of a video. Nothing is ever written here, and
nothing on a disk makes a scan fail: files that cannot be used are returned with the reason.
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlc_platform.sessions.layout import Place, camera_of, normal
from dlc_platform.sessions.listing import UNREADABLE, FoundVideo, Skipped
from dlc_platform.sessions.raw_roots import Disks, every_folder
from dlc_platform.settings.layout import Layout

#: The seconds that a raw root may give no answer, if lab.yaml is not asked.
PATIENCE_SECONDS = 10.0

#: The beginning of the reason for a session that is left out until a disk answers.
UNRESOLVED = "a disk does not answer, so it is not known whether"
#: The most folders that a reason names.
_NAMED = 3
#: In bytes: a longer name does not fit into an index of the catalogue.
_LONGEST_NAME = 1500


@dataclass(frozen=True)
class VideoFile:
    """A video file as it lies on the disk; `size` in bytes. If names tell that it is not complete, `waits` says why.

    `ctime_ns` and `inode` are None if they are not known.
    """

    path: Path
    size: int
    mtime_ns: int
    ctime_ns: int | None = None
    inode: int | None = None
    waits: str | None = None


def is_registered(file: VideoFile, row: Any) -> bool:
    """True if a row of the catalogue is about this very file, as far as its place, size and time tell."""
    return (row.path, row.size_bytes, row.mtime_ns) == (str(file.path), file.size, file.mtime_ns)


def is_touched(file: VideoFile, row: Any) -> bool:
    """True if the bytes of a registered file may have changed: its ctime or inode differs. Unknown ones do not
    differ."""
    if file.ctime_ns is None or row.ctime_ns is None:
        return False
    return (row.ctime_ns, row.inode) != (file.ctime_ns, file.inode)


@dataclass(frozen=True)
class Recording:
    """The recording of one camera in a session, in files that follow each other. `name` is unique in the session."""

    name: str
    camera: str
    files: tuple[VideoFile, ...]


@dataclass(frozen=True)
class Session:
    """One recording session of one subject; `key` is ``sub-<subject>_ses-<name>``."""

    key: str
    subject: str
    name: str
    folder: Path
    recordings: tuple[Recording, ...]

    @property
    def waits(self) -> str | None:
        """The reason why the session must not be registered yet, as far as names tell: that of its first file that
        waits."""
        files = (file for recording in self.recordings for file in recording.files)
        return next((f"{file.path.name}: {file.waits}" for file in files if file.waits is not None), None)


@dataclass(frozen=True)
class Scan:
    """The content of the raw roots: sessions sorted by key, the rest sorted by path."""

    sessions: tuple[Session, ...]
    skipped: tuple[Skipped, ...]

    def left_out(self) -> list[str]:
        """A line for each reason why files are not used, with the first path that has it."""
        paths: dict[str, list[Path]] = defaultdict(list)
        for item in self.skipped:
            paths[item.reason].append(item.path)
        return [
            f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {reason}"
            for reason, found in sorted(paths.items(), key=lambda entry: len(entry[1]))
        ]


def scan(raw_roots: Iterable[Path], layout: Layout, patience: float = PATIENCE_SECONDS) -> Scan:
    """Find all sessions below the raw roots.

    A root that gives no answer for `patience` seconds, or that would take minutes, is left out completely, and named.

    Links to files are followed; links to folders too, unless they lead back to where they came from. If two folders
    claim one session key, neither is used. A root may be listed twice or lie in another one: each video counts once,
    for the first root that can place it.
    """
    raw_roots = list(raw_roots)
    skipped: list[Skipped] = []
    videos: dict[str, FoundVideo] = {}
    possible: dict[str, Place] = {}
    for root in map(str, raw_roots):
        listings = every_folder(root, layout, patience)
        if isinstance(listings, str):
            skipped.append(Skipped(Path(root), listings, "lost"))
            continue
        for listing in listings:
            skipped += listing.skipped
            for video in listing.videos:
                videos.setdefault(video.path, video)
            if listing.possible is not None:
                possible.setdefault(listing.possible.folder, listing.possible)
    # A file that one root leaves out may be a recording of another root that lies in it.
    skipped = [item for item in skipped if str(item.path) not in videos]
    sessions, refused = gather(videos.values(), Disks(map(Path, raw_roots), patience))
    used = {video.place.folder for video in videos.values()}
    skipped += refused
    unread = [item.path for item in skipped if item.reason.startswith(UNREADABLE)]
    for folder, place in possible.items():
        if folder not in used and not any(path.is_relative_to(folder) for path in unread):
            skipped.append(Skipped(Path(folder), no_video(place.key, layout)))
    return Scan(
        tuple(sorted(sessions, key=lambda session: session.key)),
        tuple(sorted(set(skipped), key=lambda item: (str(item.path), item.reason))),
    )


def no_video(key: str, layout: Layout) -> str:
    """The reason for a session's folder that holds no video of the session."""
    reason = f"the session folder of {key} holds no video ({', '.join(layout.extensions)})"
    return f"{reason}; put its videos there, or remove it"


def gather(videos: Iterable[FoundVideo], disks: Disks) -> tuple[list[Session], list[Skipped]]:
    """Combine videos into sessions, and say which cannot be used and why.

    Parameters
    ----------
    videos
        Every video of the sessions in question, each once.
    disks
        The disks to ask if two folders with the same key are one folder.
    """
    of_session: dict[str, list[FoundVideo]] = defaultdict(list)
    for video in videos:
        of_session[video.place.key].append(video)
    sessions: list[Session] = []
    skipped: list[Skipped] = []
    for key, own in of_session.items():
        claims = sorted({video.place.folder for video in own}, reverse=True)
        # The same folder may be reached on several paths.
        places = [_real(folder, disks) if len(claims) > 1 else folder for folder in claims]
        folders = dict(zip(places, claims, strict=True))
        if len(folders) > 1 or None in folders:
            ordered, more = sorted(claims), len(claims) - _NAMED
            names = " and ".join([*ordered[:_NAMED], *([f"{more} more"] if more > 0 else [])])
            reason = f"the session key {key} is claimed by {names}; rename one of them, or move it out of the raw roots"
            if None in folders:
                reason = f"{UNRESOLVED} {names} are one folder, which all hold {key}; look after their disk"
            skipped += [Skipped(Path(folder), reason, "lost") for folder in claims]
            continue
        (folder,) = folders.values()
        session = _session([video for video in own if video.place.folder == folder])
        if isinstance(session, Skipped):
            skipped.append(session)
        else:
            sessions.append(session)
    return sessions, skipped


def _real(folder: str, disks: Disks) -> str | None:
    """The real path of a folder; None if its disk does not answer."""
    return disks.ask(folder, partial(os.path.realpath, folder), None)


def _session(videos: list[FoundVideo]) -> Session | Skipped:
    place = videos[0].place
    folder = Path(place.folder)
    parts: dict[str, list[FoundVideo]] = defaultdict(list)
    for video in videos:
        # A file without a number is a recording by itself, even beside numbered files of its name.
        whole = video.path if video.place.part is None else os.path.splitext(video.place.whole)[0]
        parts[whole].append(video)
    recorded = [sorted(files, key=_recorded) for _, files in sorted(parts.items())]
    for files in recorded:
        for one, next_ in itertools.pairwise(files):
            if _recorded(one)[0] == _recorded(next_)[0]:
                reason = f"{one.path} and {next_.path} are the same part of one recording; rename or remove one of them"
                return Skipped(folder, reason, "lost")
    wholes = [Path(files[0].place.whole) for files in recorded]
    names = _unique_names([path.relative_to(folder) for path in wholes])
    too_long = next((name for name in names if len(name.encode()) > _LONGEST_NAME), None)
    if too_long:
        reason = f"a recording of {place.key} would be called {too_long[:40]}..., which is longer than "
        return Skipped(folder, f"{reason}{_LONGEST_NAME} bytes; shorten the names of its folders", "lost")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        return Skipped(folder, f"two videos of {place.key} would both be called {twice}; rename one of them", "lost")
    recordings = tuple(
        Recording(
            name,
            files[0].place.camera or camera_of(normal(whole.stem)),
            tuple(
                VideoFile(Path(file.path), file.size, file.mtime_ns, file.ctime_ns, file.inode, file.waits)
                for file in files
            ),
        )
        for name, whole, files in sorted(zip(names, wholes, recorded, strict=True))
    )
    return Session(place.key, place.subject, place.name, folder, recordings)


def _recorded(video: FoundVideo) -> tuple[list[tuple[int, str]], str]:
    """The sort key that puts the files of a recording in order: part 10 comes after part 9, whatever their names."""
    digits = re.split(r"(\d+)", video.place.part or "")
    return [(int(text), "") if text.isdigit() else (-1, text) for text in digits], video.path


def _unique_names(relative: list[Path]) -> list[str]:
    """For each file the shortest of stem, file name and joined path that no other file shares."""
    relative = [Path(normal(str(path))) for path in relative]
    names = [path.stem for path in relative]
    for longer in (lambda path: path.name, lambda path: "_".join(path.parts)):
        names = [longer(path) if names.count(name) > 1 else name for name, path in zip(names, relative, strict=True)]
    return names
