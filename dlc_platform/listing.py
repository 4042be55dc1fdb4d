"""What lies in one folder below a raw root: its videos, the folders to look at next, and what is left out and why.

Only names, sizes and times are looked at. Nothing on a disk makes a listing fail. Which folders are listed, and when,
is for those who scan.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from dlc_platform.layout import Place, place_of
from dlc_platform.settings import Layout

_UNFINISHED = (".part", ".tmp", ".partial", ".crdownload")
_MADE_BY_DLC = re.compile(r"DLC_|_labeled\.[^.]+$")


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
class FoundVideo:
    """A video file below a raw root, and where the layout puts it; `size` in bytes."""

    place: Place
    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """What lies in a folder.

    Attributes
    ----------
    possible
        The session that the layout would take videos of this folder for, whether it holds any or not.
    folders
        Paths below the raw root, each ending with a slash, of the folders in it that may hold videos.
    """

    possible: Place | None
    videos: tuple[FoundVideo, ...]
    folders: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def list_folder(root: str, relative: str, layout: Layout) -> Listing:
    """Look into one folder.

    Links to files are followed; links to folders too, unless they lead back to a folder on the way to them.

    Parameters
    ----------
    relative
        The folder's path below the raw root, ending with a slash; empty for the root itself.
    """
    pattern = re.compile(layout.pattern)
    folder = os.path.join(root, relative).rstrip("/") or "/"
    videos: list[FoundVideo] = []
    folders: list[str] = []
    skipped: list[Skipped] = []
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if relative:
            reason = f"the folder cannot be read: {error.strerror}; check its permissions"
            skipped.append(Skipped(Path(folder), reason))
        else:
            reason = f"the raw root cannot be read: {error.strerror}; mount it, or correct raw_roots in lab.yaml"
            skipped.append(Skipped(Path(root), reason, "lost"))
        return Listing(_possible(pattern, root, relative, layout), (), (), tuple(skipped))
    for entry in listed:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            name = entry.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            skipped.append(Skipped(Path(folder), f"the name {name} is not UTF-8; rename it"))
            continue
        match _entry(root, relative, entry, pattern, layout.extensions):
            case str(below):
                folders.append(below)
            case FoundVideo() as video:
                videos.append(video)
            case Skipped() as left_out:
                skipped.append(left_out)
    return Listing(_possible(pattern, root, relative, layout), tuple(videos), tuple(folders), tuple(skipped))


def _possible(pattern: re.Pattern[str], root: str, relative: str, layout: Layout) -> Place | None:
    if relative:
        for extension in layout.extensions:
            place = place_of(pattern, root, f"{relative}x{extension}")
            if isinstance(place, Place) and place.in_folder_names:
                return place
    return None


def _entry(
    root: str, relative: str, entry: os.DirEntry[str], pattern: re.Pattern[str], extensions: tuple[str, ...]
) -> str | FoundVideo | Skipped | None:
    """A folder's path below the root, a video, what is left out, or None for what is no business of ours."""
    path = Path(entry.path)
    is_video = entry.name.lower().endswith(extensions)
    try:
        if entry.is_dir():
            if entry.name.startswith("."):
                return Skipped(path, "it is hidden", "expected")
            if is_video:
                return Skipped(path, "it is a folder with the name of a video; rename it")
            if entry.is_symlink() and _leads_back(root, relative, entry.path):
                return Skipped(path, "the link leads back to a folder that holds it")
            return f"{relative}{entry.name}/"
        reason = _name_reason(entry.name, extensions)
        if reason:
            return Skipped(path, reason, "expected")
        if not is_video:
            return None
        stat = entry.stat()
    except FileNotFoundError:
        if is_video:
            return Skipped(path, "the link leads nowhere; restore the file it points to, or remove it")
        return None
    except OSError as error:
        return Skipped(path, f"it cannot be read: {error.strerror}; check the link or the disk")
    if not S_ISREG(stat.st_mode):
        return Skipped(path, "it is not a file; remove it")
    place = place_of(pattern, root, f"{relative}{entry.name}")
    if isinstance(place, Place):
        return FoundVideo(place, entry.path, stat.st_size, stat.st_mtime_ns)
    return Skipped(path, place)


def _leads_back(root: str, relative: str, link: str) -> bool:
    """Whether a link to a folder leads to one of those that were gone through to reach it."""
    target = os.path.realpath(link)
    on_the_way = [root]
    for name in relative.split("/")[:-1]:
        on_the_way.append(os.path.join(on_the_way[-1], name))
    return any(os.path.realpath(folder) == target for folder in on_the_way)


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
