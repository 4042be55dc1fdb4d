"""What a video file holds, found by decoding all of it.

Headers are not believed: an AVI may claim twice its frames, a raw stream claims nothing, and a file whose copy stopped
half-way still promises all of them. Reading pictures out of a video is `frames.py`.
"""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.video.decode import COPY_AGAIN, open_video

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

_REENCODE = "or keep what can be read of it with `ffmpeg -i OLD -c:v libx264 -crf 17 NEW` and use that file instead"

_CLOCK_WAS_SET = datetime(1990, 1, 1, tzinfo=UTC)

#: What a header says beyond that is a placeholder, and no integer column holds it.
_MOST_FRAMES = 2**31 - 1


@dataclass(frozen=True)
class VideoInfo:
    """A whole, readable video.

    Attributes
    ----------
    sha256
        Of the file's bytes: the identity of the video.
    width, height
        In pixels, as the picture is shown: after `rotation`.
    frame_rate
        Average, in frames per second, as the container states it; `times_s` is what was measured.
    frames
        Counted by decoding.
    frames_declared
        What the container's header says, None where it says nothing.
    duration_s
        From the first frame to the end of the last one.
    rotation
        Degrees, counter-clockwise, by which a player turns the stored picture: 0, 90, 180 or 270.
    start_time
        When the recording began, as the container's ``creation_time`` says; None where it says nothing that can be.
    times_s
        Presentation time of each frame in seconds from the first, shape (frames,).
    """

    sha256: str
    size_bytes: int
    width: int
    height: int
    frame_rate: Fraction
    frames: int
    frames_declared: int | None
    duration_s: float
    codec: str
    pixel_format: str
    rotation: int
    start_time: datetime | None
    times_s: np.ndarray


def probe(path: Path) -> VideoInfo:
    """Decode a video once, from end to end, and say what it holds.

    Raises
    ------
    PlatformError
        When the file is missing, unreadable, empty, not a video, truncated or damaged, or changed meanwhile.
    """
    before = _stat(path)
    if before.st_size == 0:
        raise PlatformError(f"{path} is empty (0 bytes)", COPY_AGAIN)
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be read: {error.strerror}",
            "Check its permissions and the disk",
        ) from error

    with open_video(path) as (container, stream):
        # One thread for the frames: others would still find errors in a frame that is handed out as a good one. On two
        # cores this takes 0.9 to 1.2 times as long as with threads.
        stream.thread_type = "NONE"
        is_mp4 = "mp4" in container.format.name
        promised = stream.frames if 0 < stream.frames <= _MOST_FRAMES else None
        pts = array("q")
        lacks_pts = False
        failed = damaged = 0
        last: VideoFrame | None = None
        for frame in _decode(container, stream):
            if frame is None:
                failed += 1
                continue
            last = frame
            damaged += frame.is_corrupt
            lacks_pts |= frame.pts is None
            pts.append(frame.pts or 0)
        frames = len(pts)
        frame_rate = stream.average_rate or stream.guessed_rate
        time_base = stream.time_base
        # Bytes promised beyond the end of the file prove a truncation; fewer frames alone do not (edit lists).
        cut = _matroska_end(path) > before.st_size or (
            is_mp4 and any(entry.pos + entry.size > before.st_size for entry in stream.index_entries)
        )
        expected = sum(not entry.is_discard for entry in stream.index_entries) if is_mp4 else 0
        codec = stream.codec_context.name
        start_time = _start_time(stream.metadata.get("creation_time") or container.metadata.get("creation_time"))

    of_promised = f"{frames} of {promised}" if promised else str(frames)
    if cut:
        raise PlatformError(
            f"{path} is truncated: {of_promised} frames can be decoded, then the file ends",
            f"{COPY_AGAIN}, {_REENCODE}",
        )
    if failed or damaged:
        raise PlatformError(
            f"{path} is damaged: {of_promised} frames can be decoded, {damaged} of them with errors, and {failed} "
            "packets cannot",
            f"{COPY_AGAIN}, {_REENCODE}",
        )
    if last is None:
        raise PlatformError(f"{path} holds no frames", f"{COPY_AGAIN}, or remove it")
    if frames < expected:
        raise PlatformError(
            f"{path} is damaged: its index promises {expected} frames, but {frames} can be decoded",
            f"{COPY_AGAIN}, {_REENCODE}",
        )
    if not (last.width and last.height and frame_rate):
        raise PlatformError(
            f"{path} has {last.width} x {last.height} pixels at {frame_rate or 0} frames per second",
            "Write it again with a size and a frame rate, for example `ffmpeg -r 30 -i OLD -c copy NEW`",
        )
    after = _stat(path)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise PlatformError(
            f"{path} changed while it was read",
            "Try again when it is written completely",
        )

    if lacks_pts or time_base is None:
        times_s = np.arange(frames) / float(frame_rate)
        last_s = 1 / float(frame_rate)
    else:
        times_s = (np.frombuffer(pts, np.int64) - pts[0]) * float(time_base)
        last_s = last.duration * float(time_base) if last.duration else 1 / float(frame_rate)
    rotation = last.rotation % 360
    width, height = (last.height, last.width) if rotation in (90, 270) else (last.width, last.height)
    return VideoInfo(
        sha256=sha256,
        size_bytes=before.st_size,
        width=width,
        height=height,
        frame_rate=frame_rate,
        frames=frames,
        frames_declared=promised,
        duration_s=float(times_s[-1] + last_s),
        codec=codec,
        pixel_format=last.format.name,
        rotation=rotation,
        start_time=start_time,
        times_s=times_s,
    )


def _decode(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame | None"]:
    """Each decoded frame in order of presentation; None for each packet that cannot be read or decoded."""
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except FFmpegError:
            yield None
            return
        if packet.is_corrupt:
            yield None
        try:
            yield from packet.decode()
        except FFmpegError:
            yield None


def _start_time(text: str | None) -> datetime | None:
    """A container's time, which is in UTC unless it says otherwise; None for one that was never set (1904 and 1970)."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time if time > _CLOCK_WAS_SET else None


def _matroska_end(path: Path) -> int:
    """Where the segment of a Matroska or WebM file says it ends, in bytes; 0 for other files and for open ends.

    The layout is that of RFC 8794: an element's ID, its size as a number whose leading zeros tell its length, its data.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"\x1a\x45\xdf\xa3":
            return 0
        header = _vint(file)
        file.seek(header, os.SEEK_CUR)
        if file.read(4) != b"\x18\x53\x80\x67":
            return 0
        segment = _vint(file)
        return file.tell() + segment if segment else 0


def _vint(file: BinaryIO) -> int:
    """A number of variable length; 0 where all its bits are set, which means unknown."""
    first = file.read(1)
    length = 9 - first[0].bit_length() if first else 0
    value = int.from_bytes(first + file.read(length - 1)) & ((1 << 7 * length) - 1) if length in range(1, 9) else 0
    return 0 if value == (1 << 7 * length) - 1 else value


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise PlatformError(
            f"{path} does not exist",
            "Put the video back, or remove what refers to it and scan again",
        ) from None
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be read: {error.strerror}",
            "Check its permissions and the disk",
        ) from error
