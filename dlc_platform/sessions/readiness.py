"""Completeness of a video: by the names around it, and by opening its container.

`scanning` checks that its size and time have settled. `video` reads its content, to the last frame.
"""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from dlc_platform.errors import PlatformError
from dlc_platform.settings.layout import Layout

#: Endings that copying and recording programs append to the name of an unfinished file, in small letters: browsers,
#: KDE, WinSCP, rclone, Aspera, aria2, Resilio, FreeFileSync, gsutil, and endings of labs' own scripts.
_UNDER_WAY = (
    *(".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".opdownload", ".download", ".incomplete"),
    *(".inprogress", ".writing", ".copying", ".uploading", ".aspx", ".aspera-ckpt", ".aria2", ".!sync", ".ffs_tmp"),
    *("_.gstmp", ".lock", ".lck"),
)
#: The name of the complete file within that of a temporary one.
_AROUND = tuple(
    re.compile(pattern, re.I | re.S)
    for pattern in (
        r"(?:\.syncthing\.|~syncthing~)(.+)\.tmp",
        r"\.unison\.(.+)\.[0-9a-f]+\.unison\.tmp",
        r"(.+)\.[0-9a-f]{8}\.partial",  # rclone
        r"(.+)\.(?=\d*[a-f])[0-9a-f]{8}",  # the AWS client
        r"(.+)\.[0-9a-f]{4}\.ffs_tmp",
        r"\.(.+)\.~[0-9a-f]+",  # Nextcloud
        r"\.~lock\.(.+)#",
        r"~\$?(.+)",
        # With or without the dot of a hidden file before it.
        rf"\.?(.+?)(?:{'|'.join(map(re.escape, _UNDER_WAY))})",
        r"\.(.+)\.[A-Za-z0-9]{6}",  # rsync
    )
)
_MOST_PACKETS = 1000


def final_name(name: str, extensions: tuple[str, ...]) -> str | None:
    """The final name of a video that is being written under a temporary name; None for any other name."""
    lower = name.lower()
    if not any(extension in lower for extension in extensions):
        return None
    if lower.endswith(extensions) and name[0] not in ".~":
        return None
    for pattern in _AROUND:
        found = pattern.fullmatch(name)
        if found and found[1].lower().endswith(extensions):
            return found[1]
    return None


def is_backup(name: str, extensions: tuple[str, ...]) -> bool:
    """True for the name that editors and `rsync --backup` give to an earlier file: ``video.mp4~``."""
    return name.endswith("~") and name.rstrip("~").lower().endswith(extensions)


def under_way(names: Iterable[str], extensions: tuple[str, ...]) -> dict[str, str]:
    """The names that a folder's temporary and lock files refer to, each with one of these files.

    A lock may leave out the extension of its video: ``video.lock``.
    """
    partners: dict[str, str] = {}
    for name in names:
        final = final_name(name, extensions)
        stem, extension = os.path.splitext(name)
        if final is not None:
            partners[final] = name
        elif extension.lower() in (".lock", ".lck"):
            partners[stem.removeprefix(".")] = name
    return partners


def unready(name: str, names: Collection[str], partners: dict[str, str], layout: Layout) -> str | None:
    """The reason why a video is not complete, as far as the names in its folder tell.

    If a lab names a completion marker, nothing else counts. A marker for a whole session may lie in another folder;
    `unmarked` looks for that.

    Parameters
    ----------
    names, partners
        All names in the video's folder, and the result of `under_way` for them.
    """
    if layout.marker is not None:
        marker = marker_of(name, layout.marker)
        if marker == layout.marker or marker in names:
            return None
        return f"it waits for the file {marker} beside it, as layout.marker of lab.yaml says; write it when it is done"
    partner = partners.get(name) or partners.get(os.path.splitext(name)[0])
    if partner is None:
        return None
    return f"{partner} beside it says that it is still being written; remove that file if it was left behind"


def unmarked(folder: str, session_folder: str, layout: Layout) -> str | None:
    """The reason why the videos of a folder are not complete, if the lab's marker stands for all videos of a session.

    The marker may lie in the folder or in one above it, up to that of the session.
    """
    if layout.marker is None or "{" in layout.marker:
        return None
    place = folder
    while True:
        if os.path.exists(os.path.join(place, layout.marker)):
            return None
        if place == session_folder or len(place) <= len(session_folder):
            return (
                f"it waits for the file {layout.marker} in {session_folder}, as layout.marker of lab.yaml says; write "
                "it when all videos of the session are there"
            )
        place = os.path.dirname(place)


def marker_of(name: str, marker: str) -> str:
    """The name of the file that marks a video as complete, by `layout.marker`."""
    return marker.replace("{stem}", os.path.splitext(name)[0]).replace("{name}", name)


@dataclass(frozen=True)
class Header:
    """The promises of a container's header, which need not be true; None if it promises nothing."""

    frames: int | None
    duration_s: float | None


def unopened(path: Path) -> str | None:
    """The reason why a video's container does not open; None if it has a header and a first packet of a video stream.

    The file is read as far as that takes, which is a few megabytes at most. A file that is not an ordinary one is
    never opened.
    """
    header = read_header(path)
    return header if isinstance(header, str) else None


def read_header(path: Path) -> Header | str:
    """The promises of a video's header, or the reason why its container does not open; reads as little as
    `unopened`."""
    try:
        status = path.stat()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not S_ISREG(status.st_mode):
        return "it is not a file"
    if status.st_size == 0:
        return "it is empty (0 bytes)"

    from av.error import FFmpegError

    from dlc_platform.video.opening import open_video

    try:
        with open_video(path) as (container, stream):
            header = Header(stream.frames or None, container.duration / 1e6 if container.duration else None)
            for number, packet in enumerate(container.demux()):
                if packet.stream_index == stream.index and packet.size:
                    return header
                if number == _MOST_PACKETS:
                    break
    except PlatformError as error:
        return error.problem.removeprefix(f"{path} ")
    except (FFmpegError, ValueError) as error:
        return f"its first packet cannot be read: {error}"
    return "it holds no packet of a video"
