"""How sessions and their recordings are found below the raw roots.

Only names, sizes and times are looked at; what is inside a video is the business of `video.probe`. Nothing is ever
written here, and nothing on a disk makes a scan fail: what cannot be used is returned with the reason.
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from dlc_platform.settings import Layout

#: What Dagster refuses in a partition key, and what the platform uses to separate keys.
_INVALID_IN_KEY = re.compile(r"\.\.\.|[\x00-\x1f\x7f|,/]")
_UNFINISHED = (".part", ".tmp", ".partial", ".crdownload")
_MADE_BY_DLC = re.compile(r"DLC_|_labeled\.[^.]+$")
#: How cameras number the files of one recording, where layout.pattern has no group `part`.
_PART = re.compile(r"[-_. ]*(?<![A-Za-z])part[-_. ]?(?P<part>\d+)(?![A-Za-z0-9])", re.I)
_CAMERA = re.compile(
    r"(?<![A-Za-z])cam(?:era)?(?:[-_ ]?(?P<number>\d+)(?![A-Za-z])|[-_ ](?P<name>[A-Za-z0-9]+))",
    re.I,
)


@dataclass(frozen=True)
class VideoFile:
    """A video file as it lies on the disk; `size` in bytes."""

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Recording:
    """What one camera recorded in a session, in files that follow each other. `name` is unique within the session."""

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


@dataclass(frozen=True)
class Skipped:
    """Something below a raw root that is not used, and why.

    `expected` lies there in every lab (files under way, hidden ones, those of DeepLabCut); `lost` is a recording, or a
    whole raw root, that cannot be used before a person mends it.
    """

    path: Path
    reason: str
    kind: Literal["expected", "odd", "lost"] = "odd"


@dataclass(frozen=True)
class Scan:
    """What lies below the raw roots: sessions sorted by key, the rest sorted by path."""

    sessions: tuple[Session, ...]
    skipped: tuple[Skipped, ...]

    def left_out(self) -> list[str]:
        """A line for each reason why something is not used, with the first path that has it."""
        paths: dict[str, list[Path]] = defaultdict(list)
        for item in self.skipped:
            paths[item.reason].append(item.path)
        return [
            f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {reason}"
            for reason, found in sorted(paths.items(), key=lambda entry: len(entry[1]))
        ]


@dataclass(frozen=True)
class _Place:
    """Where the layout puts a video: its session, the session's folder, and the camera where the path says it.

    `whole` is its path without what says which part of a recording it is, and `part` what that says, where it does.
    """

    key: str
    subject: str
    name: str
    folder: str
    in_folder_names: bool
    camera: str | None
    whole: str
    part: str | None


@dataclass(frozen=True)
class _Video:
    place: _Place
    path: str
    size: int
    mtime_ns: int


def scan(raw_roots: Iterable[Path], layout: Layout) -> Scan:
    """Find all sessions below the raw roots.

    Links to files are followed; links to folders too, unless they lead back to where they came from. A session key
    that two folders claim is used for neither. A root may be listed twice or lie in another one: each
    video counts once, as the first root that can place it says.
    """
    pattern = re.compile(layout.pattern)
    skipped: list[Skipped] = []
    videos: dict[str, list[_Video]] = defaultdict(list)
    taken: set[str] = set()
    possible: dict[str, _Place] = {}
    for root in raw_roots:
        for item in _walk(str(root), pattern, layout.extensions):
            match item:
                case Skipped():
                    skipped.append(item)
                case _Video() if item.path not in taken:
                    taken.add(item.path)
                    videos[item.place.folder].append(item)
                case _Place():
                    possible.setdefault(item.folder, item)

    # What one root leaves out may be a recording of another root that lies in it.
    skipped = [item for item in skipped if str(item.path) not in taken]
    claims: dict[str, dict[str, str]] = defaultdict(dict)
    for folder, found in sorted(videos.items()):
        for video in found:
            claims[video.place.key].setdefault(os.path.realpath(folder), folder)

    sessions = []
    for key, folders in claims.items():
        if len(folders) > 1:
            names = " and ".join(sorted(folders.values()))
            reason = f"the session key {key} is claimed by {names}; rename one of them, or move it out of the raw roots"
            skipped += [Skipped(Path(folder), reason, "lost") for folder in folders.values()]
            continue
        (folder,) = folders.values()
        session = _session([video for video in videos[folder] if video.place.key == key])
        if isinstance(session, Skipped):
            skipped.append(session)
        else:
            sessions.append(session)

    for folder, place in possible.items():
        if folder not in videos:
            reason = f"the session folder of {place.key} holds no video ({', '.join(layout.extensions)})"
            skipped.append(Skipped(Path(folder), f"{reason}; put its videos there, or remove it"))
    return Scan(
        tuple(sorted(sessions, key=lambda session: session.key)),
        tuple(sorted(set(skipped), key=lambda item: (str(item.path), item.reason))),
    )


def _walk(root: str, pattern: re.Pattern[str], extensions: tuple[str, ...]) -> Iterator[Skipped | _Video | _Place]:
    """Every video, every folder that the layout would take videos from, and everything left out, below one root."""
    try:
        start = os.stat(root)
    except OSError as error:
        yield Skipped(
            Path(root),
            f"the raw root cannot be read: {error.strerror}; mount it, or correct raw_roots in lab.yaml",
            "lost",
        )
        return
    # Folders still to be looked at: absolute path, path below the root, and the identities on the way to it.
    todo = [(root, "", frozenset({(start.st_dev, start.st_ino)}))]
    while todo:
        folder, relative, ancestors = todo.pop()
        if relative:
            for extension in extensions:
                place = _place(pattern, root, f"{relative}x{extension}")
                if isinstance(place, _Place) and place.in_folder_names:
                    yield place
                    break
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            yield Skipped(
                Path(folder),
                f"the folder cannot be read: {error.strerror}; check its permissions",
            )
            continue
        for entry in listed:
            is_video = entry.name.lower().endswith(extensions)
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                name = entry.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                yield Skipped(Path(folder), f"the name {name} is not UTF-8; rename it")
                continue
            try:
                if entry.is_dir():
                    reason, identity = _folder_reason(entry, is_video, ancestors)
                    if reason:
                        yield Skipped(Path(entry.path), reason, "expected" if entry.name.startswith(".") else "odd")
                    else:
                        todo.append(
                            (
                                entry.path,
                                f"{relative}{entry.name}/",
                                ancestors | {identity},
                            )
                        )
                    continue
                reason = _name_reason(entry.name, extensions)
                if reason:
                    yield Skipped(Path(entry.path), reason, "expected")
                    continue
                if not is_video:
                    continue
                stat = entry.stat()
            except FileNotFoundError:
                if is_video:
                    yield Skipped(
                        Path(entry.path),
                        "the link leads nowhere; restore the file it points to, or remove it",
                    )
                continue
            except OSError as error:
                yield Skipped(
                    Path(entry.path),
                    f"it cannot be read: {error.strerror}; check the link or the disk",
                )
                continue
            if not S_ISREG(stat.st_mode):
                yield Skipped(Path(entry.path), "it is not a file; remove it")
                continue
            place = _place(pattern, root, f"{relative}{entry.name}")
            if isinstance(place, _Place):
                yield _Video(place, entry.path, stat.st_size, stat.st_mtime_ns)
            else:
                yield Skipped(Path(entry.path), place)


def _folder_reason(
    entry: os.DirEntry[str], is_video: bool, ancestors: frozenset[tuple[int, int]]
) -> tuple[str | None, tuple[int, int]]:
    stat = entry.stat()
    identity = (stat.st_dev, stat.st_ino)
    if entry.name.startswith("."):
        return "it is hidden", identity
    if is_video:
        return "it is a folder with the name of a video; rename it", identity
    if identity in ancestors:
        return "the link leads back to a folder that holds it", identity
    return None, identity


def _name_reason(name: str, extensions: tuple[str, ...]) -> str | None:
    """Why a file that looks like a video is none of the recordings."""
    lower = name.lower()
    for ending in _UNFINISHED:
        if lower.removesuffix(ending).endswith(extensions) and lower.endswith(ending):
            return "it is still being written (or was left unfinished)"
    if not lower.endswith(extensions):
        return None
    if name.startswith("."):
        return "it is hidden"
    if _MADE_BY_DLC.search(name):
        return "it was made by DeepLabCut from another video"
    return None


def _place(pattern: re.Pattern[str], root: str, relative: str) -> _Place | str:
    """Where a video belongs by its path below the root, or why it belongs nowhere."""
    found = pattern.fullmatch(relative)
    if not found:
        return "its path does not match layout.pattern of lab.yaml; rename it, or correct the pattern"
    subject, name = found["subject"], found["session"]
    if not subject or not name:
        return (
            "layout.pattern of lab.yaml finds no subject or no session in its path; rename it, or correct the pattern"
        )
    key = f"sub-{subject}_ses-{name}"
    if _INVALID_IN_KEY.search(key):
        return f"its session key {key!r} holds '...', '|', ',', '/' or a control character; rename its folders"
    # The session's folder is the part of the path that has said both names; names in a file's name leave its folder.
    named_at = max(found.end("subject"), found.end("session"))
    end = relative.find("/", named_at)
    in_folder_names = end >= 0
    if not in_folder_names:
        end = max(relative.rfind("/"), 0)
    camera = found["camera"] if "camera" in pattern.groupindex else None
    whole, part = _without_part(found, relative)
    return _Place(
        key, subject, name, os.path.join(root, relative[:end]), in_folder_names, camera, os.path.join(root, whole), part
    )


def _without_part(found: re.Match[str], relative: str) -> tuple[str, str | None]:
    """A path without what numbers the files of a recording, and that number."""
    if "part" in found.re.groupindex:
        if not found["part"]:
            return relative, None
        before, after = relative[: found.start("part")], relative[found.end("part") :]
        return before.rstrip("-_. ") + after, found["part"]
    folder, name = os.path.split(relative)
    stem, suffix = os.path.splitext(name)
    numbered = list(_PART.finditer(stem))
    if not numbered:
        return relative, None
    last = numbered[-1]
    rest = (stem[: last.start()] + stem[last.end() :]).strip("-_. ")
    return os.path.join(folder, (rest or stem) + suffix), last["part"]


def _session(videos: list[_Video]) -> Session | Skipped:
    place = videos[0].place
    folder = Path(place.folder)
    parts: dict[str, list[_Video]] = defaultdict(list)
    for video in videos:
        # What is not numbered is a recording by itself, even beside numbered files of its name.
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
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        return Skipped(folder, f"two videos of {place.key} would both be called {twice}; rename one of them", "lost")
    recordings = tuple(
        Recording(
            name,
            files[0].place.camera or _camera(whole.stem),
            tuple(VideoFile(Path(file.path), file.size, file.mtime_ns) for file in files),
        )
        for name, whole, files in sorted(zip(names, wholes, recorded, strict=True))
    )
    return Session(place.key, place.subject, place.name, folder, recordings)


def _recorded(video: _Video) -> tuple[list[tuple[int, str]], str]:
    """Sorts the files of a recording as they were recorded: part 10 comes after part 9, whatever their names."""
    digits = re.split(r"(\d+)", video.place.part or "")
    return [(int(text), "") if text.isdigit() else (-1, text) for text in digits], video.path


def _unique_names(relative: list[Path]) -> list[str]:
    """The shortest of stem, file name and joined path that tells each file from the others."""
    names = [path.stem for path in relative]
    for longer in (lambda path: path.name, lambda path: "_".join(path.parts)):
        names = [longer(path) if names.count(name) > 1 else name for name, path in zip(names, relative, strict=True)]
    return names


def _camera(stem: str) -> str:
    found = _CAMERA.search(stem)
    return (found["number"] or found["name"]) if found else stem
