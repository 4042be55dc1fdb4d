"""The listing of one folder below a raw root: its videos, the folders to look at next, and what is left out and why.

It uses only names, sizes and times; no file is opened. Nothing on a disk makes a listing fail. `scanning` decides which
folders are listed, and when; `readiness` tells from names if a file is complete.
"""

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISREG
from typing import Literal

import regex

from dlc_platform.files.plain import is_of_the_kernel
from dlc_platform.sessions.layout import LEADS_OUT, Place, leads_out, place_of
from dlc_platform.sessions.readiness import final_name, is_backup, under_way, unmarked, unready
from dlc_platform.settings.layout import Layout

#: The beginning of the reason why the content of a folder is not known.
UNREADABLE = "the folder cannot be read"
#: The reason why a link is not followed if lab.yaml leaves such links out.
LINK_OUTSIDE = (
    "the link leads out of the raw root, and lab.yaml says `links_outside: leave_out` under `layout`; put the file "
    "itself there, or name the folder that it leads to in raw_roots"
)
#: The beginning of the reason why nothing new in a folder is used; its session is named beside it.
UNWRITTEN = "its content cannot be recorded"
#: The most links to folders on one path: folders that link to each other could be walked through for ever.
_MOST_LINKS = 3
#: Extensions that cameras and their programs write, besides those that a lab begins with.
OTHER_VIDEOS = (
    *(".wmv", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".flv", ".f4v", ".h264", ".264", ".h265", ".hevc"),
    *(".asf", ".mxf", ".3gp", ".3g2", ".dv", ".ogv", ".vob", ".nut", ".mjpeg", ".mjpg", ".ivf", ".y4m", ".seq"),
    *(".ufmf", ".fmf", ".cine", ".divx", ".xvid", ".rm", ".rmvb", ".insv", ".lrv", ".r3d", ".braw"),
)
#: The names of DeepLabCut's outputs for a video: the name of the source, followed by that of the network.
_OF_A_NETWORK = re.compile(r"(?P<source>.*?)(?P<network>DLC_.+|_superanimal_.+)", re.S)
_DRAWN = re.compile(r".+_(?:labeled|full)(?:_.*)?", re.S)
#: The whole name of a network of DeepLabCut, with its shuffle; only DeepLabCut writes that before `_labeled`.
_NETWORK = re.compile(r"DLC_.+shuffle\d+_.+", re.S)
#: Endings of files that DeepLabCut writes beside a video that it analysed.
_DATA = (".h5", ".csv", ".pickle", ".json")
#: Limits of the catalogue: whole numbers have 64 bits, and a longer text, in bytes, does not fit into an index.
_LEAST, _MOST = -(2**63), 2**63 - 1
_LONGEST_FOLDER = 1700
_KINDS = {S_IFIFO: "a pipe", S_IFSOCK: "a socket", S_IFBLK: "a device", S_IFCHR: "a device"}


@dataclass(frozen=True)
class Skipped:
    """Something below a raw root that is not used, and why.

    `expected` is found in every lab (files under way, hidden files, those of DeepLabCut); `lost` is a recording, or a
    whole raw root, that cannot be used before a person mends it.
    """

    path: Path
    reason: str
    kind: Literal["expected", "odd", "lost"] = "odd"


@dataclass(frozen=True)
class FoundVideo:
    """A video file below a raw root, and its place in the layout; `size` in bytes.

    `ctime_ns` and `inode` are None for a file that an older catalogue recorded without them. `waits` says why it is not
    complete, as far as names and the lab's completion marker tell; None if they do not.
    """

    place: Place
    path: str
    size: int
    mtime_ns: int
    ctime_ns: int | None = None
    inode: int | None = None
    waits: str | None = None


def time_ns(nanoseconds: int) -> int:
    """A file's time as it is kept and compared; later times than 2262, where 64 bits end, are cut to that."""
    return min(max(nanoseconds, _LEAST), _MOST)


@dataclass(frozen=True)
class Listing:
    """The content of a folder.

    Attributes
    ----------
    possible
        The session that the layout gives to videos in this folder, even if it holds none.
    folders
        Paths below the raw root, each ending with a slash, of the folders in it that may hold videos.
    """

    possible: Place | None
    videos: tuple[FoundVideo, ...]
    folders: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def list_folder(root: str, relative: str, layout: Layout) -> Listing:
    """Look into one folder.

    Links to files are followed; links to folders too, unless they lead back to a folder on their own path. If lab.yaml
    says so, links that lead out of the root are left out.

    Parameters
    ----------
    relative
        The folder's path below the raw root, ending with a slash; empty for the root itself.
    """
    pattern = regex.compile(layout.pattern)
    folder = os.path.join(root, relative).rstrip("/") or "/"
    videos: list[FoundVideo] = []
    folders: list[str] = []
    skipped: list[Skipped] = []
    if leads_out(relative):
        return Listing(None, (), (), (Skipped(Path(folder), LEADS_OUT),))
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if relative:
            reason = f"{UNREADABLE}: {error.strerror}; check its permissions"
            skipped.append(Skipped(Path(folder), reason))
        else:
            reason = f"the raw root cannot be read: {error.strerror}; mount it, or correct raw_roots in lab.yaml"
            skipped.append(Skipped(Path(root), reason, "lost"))
        return Listing(_possible(pattern, root, relative, layout), (), (), tuple(skipped))
    names: set[str] = set()
    readable: list[os.DirEntry[str]] = []
    for entry in listed:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            name = entry.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            kind = "lost" if name.lower().endswith(layout.extensions) else "odd"
            skipped.append(Skipped(Path(folder), f"the name {name} is not UTF-8; rename it", kind))
        else:
            names.add(entry.name)
            readable.append(entry)
    partners = under_way(names, layout.extensions)
    waiting: dict[str, str | None] = {}
    for entry in readable:
        match _entry(root, relative, entry, pattern, layout, names):
            case str(below):
                folders.append(below)
            case FoundVideo(place=place) as video:
                if place.folder not in waiting:
                    waiting[place.folder] = unmarked(folder, place.folder, layout)
                waits = waiting[place.folder] or unready(entry.name, names, partners, layout)
                videos.append(video if waits is None else replace(video, waits=waits))
            case Skipped() as left_out:
                skipped.append(left_out)
    return Listing(_possible(pattern, root, relative, layout), tuple(videos), tuple(folders), tuple(skipped))


def may_follow(root: str, path: str, layout: Layout) -> bool:
    """False for a path that leaves its raw root through links, if lab.yaml leaves such links out."""
    return layout.links_outside == "follow" or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _possible(pattern: regex.Pattern[str], root: str, relative: str, layout: Layout) -> Place | None:
    if relative:
        for extension in layout.extensions:
            place = place_of(pattern, root, f"{relative}x{extension}", layout.unnamed_session)
            if isinstance(place, Place) and place.in_folder_names:
                return place
    return None


def _entry(
    root: str,
    relative: str,
    entry: os.DirEntry[str],
    pattern: regex.Pattern[str],
    layout: Layout,
    names: Collection[str],
) -> str | FoundVideo | Skipped | None:
    """A folder's path below the root, a video, something left out, or None for a file that does not matter."""
    path = Path(entry.path)
    is_video = entry.name.lower().endswith(layout.extensions)
    try:
        if entry.is_symlink() and not may_follow(root, entry.path, layout):
            return Skipped(path, LINK_OUTSIDE) if is_video or entry.is_dir() else None
        reason = _name_reason(entry.name, layout.extensions, names)
        if entry.is_dir():
            if entry.name.startswith("."):
                return Skipped(path, "it is hidden", "expected")
            if reason:
                return Skipped(path, reason, "expected")
            if is_video:
                return Skipped(path, "it is a folder with the name of a video; rename it")
            with suppress(OSError):  # listing it reports the error
                if is_of_the_kernel(entry.stat()):
                    return Skipped(path, "it leads to files that the kernel makes up, such as /proc; remove it")
            if entry.is_symlink() and (reason := _link_reason(root, relative, entry.path)):
                return Skipped(path, reason)
            if len(os.fsencode(entry.path)) > _LONGEST_FOLDER:
                reason = f"its path is longer than {_LONGEST_FOLDER} bytes, so nothing in it is used; move it up"
                return Skipped(path, reason)
            return f"{relative}{entry.name}/"
        if reason:
            return Skipped(path, reason, "expected")
        if not is_video:
            if entry.name.lower().endswith(OTHER_VIDEOS):
                return Skipped(path, _other_extension(entry.name, layout))
            return None
        stat = entry.stat()
    except FileNotFoundError:
        if not is_video:
            return None
        if entry.is_symlink():
            return Skipped(path, "the link leads nowhere; restore the file it points to, or remove it")
        return Skipped(path, "it was removed while its folder was listed", "expected")
    except OSError as error:
        return Skipped(path, f"it cannot be read: {error.strerror}; check the link or the disk")
    if not S_ISREG(stat.st_mode):
        return Skipped(path, f"it is not a file but {_KINDS.get(S_IFMT(stat.st_mode), 'something else')}; remove it")
    if is_of_the_kernel(stat):
        return Skipped(path, "it leads to a file that the kernel makes up, such as those of /proc; remove it")
    place = place_of(pattern, root, f"{relative}{entry.name}", layout.unnamed_session)
    if isinstance(place, Place):
        times = time_ns(stat.st_mtime_ns), time_ns(stat.st_ctime_ns)
        # An inode is an unsigned number of 64 bits.
        return FoundVideo(place, entry.path, stat.st_size, *times, (stat.st_ino - _LEAST) % 2**64 + _LEAST)
    return Skipped(path, place)


def _link_reason(root: str, relative: str, link: str) -> str | None:
    """The reason not to follow a link to a folder: it leads back to one of the folders on its path."""
    target = os.stat(link)
    on_the_way = [root]
    for name in relative.split("/")[:-1]:
        on_the_way.append(os.path.join(on_the_way[-1], name))
    if any(os.path.samestat(os.stat(folder), target) for folder in on_the_way):
        return "the link leads back to a folder that holds it"
    if sum(map(os.path.islink, on_the_way[1:])) >= _MOST_LINKS:
        return f"the link lies below {_MOST_LINKS} others; put its target, or a link to it, further up"
    return None


def _other_extension(name: str, layout: Layout) -> str:
    extensions = ", ".join((*layout.extensions, os.path.splitext(name)[1].lower()))
    return f"it seems to be a video; to have it used write `extensions: [{extensions}]` under `layout` in lab.yaml"


def _name_reason(name: str, extensions: tuple[str, ...], names: Collection[str]) -> str | None:
    """The reason why a file that looks like a video is not a recording, by its name and by the names beside it."""
    if final_name(name, extensions) is not None:
        return "it is still being written (or was left unfinished), by its name"
    if is_backup(name, extensions):
        return "it is a backup copy of an earlier file, by its name"
    if not name.lower().endswith(extensions):
        return None
    if name.startswith("."):
        return "it is hidden"
    return _drawn(os.path.splitext(name)[0], names, extensions)


def _drawn(stem: str, names: Collection[str], extensions: tuple[str, ...]) -> str | None:
    """The reason to take a video for one into which DeepLabCut drew poses; None if only its name hints at it.

    Such a video has the whole name of a network before `_labeled`, or its source or DeepLabCut's data lie beside it.
    """
    found = _OF_A_NETWORK.fullmatch(stem)
    is_drawn = _DRAWN.fullmatch(stem) is not None
    if found is not None and is_drawn and _NETWORK.fullmatch(found["network"]):
        return f"DeepLabCut drew poses into it, by its name ({found['network']}); rename it if it is a recording"
    if found is not None:
        source, others = found["source"], extensions
    elif stem.endswith("_labeled"):
        source, others = stem.removesuffix("_labeled"), ()
    else:
        return None
    beside = next((name for name in sorted(names) if source and _shows(name, source, others, is_drawn)), None)
    if beside is None:
        return None
    return f"DeepLabCut drew poses into it, as {beside} beside it shows; rename it if it is a recording"


def _shows(name: str, source: str, extensions: tuple[str, ...], is_drawn: bool) -> bool:
    """True if `name` is the source of a drawn video, or DeepLabCut's data for that source."""
    stem, ending = os.path.splitext(name)
    if stem == source:
        return ending.lower() in extensions
    return is_drawn and name.startswith((f"{source}DLC_", f"{source}_superanimal_")) and ending.lower() in _DATA
