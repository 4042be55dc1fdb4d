"""The content of a video file, found by decoding all of it.

Headers are not trusted: an AVI may claim twice its frames, a raw stream claims nothing, and a file whose copy stopped
half-way still promises all of them. Missing frames do not stop the reading: `account.py` counts them, and the callers
decide. `quality.py` measures the pictures. `frames.py` reads pictures from a video.
"""

import os
from array import array
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import oddity
from dlc_platform.identity import sha256_file
from dlc_platform.video.account import Decoded, FrameAccount, account_of
from dlc_platform.video.decode import Decoder, rotation
from dlc_platform.video.opening import COPY_AGAIN, open_video
from dlc_platform.video.quality import QualityMeter, VideoQuality
from dlc_platform.video.times import NO_TIME

if TYPE_CHECKING:
    from av import VideoFrame

#: The earliest and the latest possible beginning of a recording; clocks that were never set, or died, give other times.
_EARLIEST, _LATEST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class VideoInfo:
    """A video with at least one frame that can be decoded; `account` tells if it is whole.

    Attributes
    ----------
    sha256
        The SHA-256 of the file's bytes: the identity of the video.
    width, height
        The size of the picture in pixels, as it is shown: after `rotation`.
    frame_rate
        Average, in frames per second, as the container states it; `times_s` is what was measured.
    frames
        The number of rows, counted by decoding, including those whose picture is lost.
    account
        The account of the frames.
    quality
        The quality of the pictures and timestamps.
    duration_s
        From the first frame to the end of the last one.
    rotation
        Degrees, counter-clockwise, by which a player turns the stored picture: 0, 90, 180 or 270.
    start_time
        The beginning of the recording by the container's ``creation_time``; None if that is missing or impossible.
    video_streams
        The number of video streams in the file; the first one that moves and can be decoded is read.
    times_s
        Presentation time of each row in seconds from the first, shape (frames,), never decreasing; see `times.Clock`.
    """

    sha256: str
    size_bytes: int
    width: int
    height: int
    frame_rate: Fraction
    frames: int
    account: FrameAccount
    quality: VideoQuality
    duration_s: float
    codec: str
    pixel_format: str
    rotation: int
    start_time: datetime | None
    video_streams: int
    times_s: np.ndarray


def probe(path: Path) -> VideoInfo:
    """Decode a video once, from end to end, and describe its content and its losses.

    Raises
    ------
    PlatformError
        When the file is missing, unreadable, empty, not a video, without a single frame that can be decoded, or changed
        meanwhile.
    """
    before = _stat(path)
    if (odd := oddity(before)) is not None:
        raise PlatformError(f"{path} is not a file but {odd}", "Remove it, or put the file itself in its place")
    if before.st_size == 0:
        raise PlatformError(f"{path} is empty (0 bytes)", COPY_AGAIN)
    # A file that is not a video need not be read to its end first; it may have a terabyte of nothing.
    with open_video(path):
        pass
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be read: {error.strerror}",
            "Check its permissions and the disk",
        ) from error

    # As if it were damaged: threads would find errors in a frame after it was given out as a good one. On two cores
    # this takes 0.9 to 1.2 times as long as with them.
    with Decoder(path, whole=False) as decoder:
        pts, dts = array("q"), array("q")
        lost, damaged = bytearray(), bytearray()
        last: VideoFrame | None = None
        meter = QualityMeter()
        for row in decoder.pictures():
            meter.add(row.frame)
            last = row.frame or last
            pts.append(NO_TIME if row.pts is None else row.pts)
            dts.append(NO_TIME if row.dts is None else row.dts)
            lost.append(row.frame is None)
            damaged.append(row.damaged)
        rows = Decoded(
            np.frombuffer(pts, np.int64),
            np.frombuffer(dts, np.int64),
            np.frombuffer(lost, np.bool_),
            np.frombuffer(damaged, np.bool_),
        )
        account, clock = account_of(
            rows,
            declared=decoder.frames_declared,
            indexed=decoder.frames_indexed,
            truncated=decoder.is_truncated,
            holes=decoder.holes,
            left_out=decoder.frames_left_out,
            keeps_presentation_times=decoder.keeps_presentation_times,
            decoder=decoder.decoder,
        )
        metadata = decoder.stream.metadata.get("creation_time") or decoder.container.metadata.get("creation_time")
        streams = decoder.video_streams

    if last is None:
        raise PlatformError(
            f"{path} holds no frames that can be decoded" + (f", of {len(pts)} that are in it" if pts else ""),
            f"{COPY_AGAIN}, or remove it",
        )
    if not (last.width and last.height):
        raise PlatformError(
            f"{path} has {last.width} x {last.height} pixels",
            "Write it again with a size, for example `ffmpeg -i OLD NEW`",
        )
    after = _stat(path)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise PlatformError(
            f"{path} changed while it was read",
            "Try again when it is written completely",
        )

    times = clock.seconds(decoder.time_base, decoder.frame_rate)
    is_timed = clock.known and decoder.time_base is not None and last.duration
    last_s = last.duration * float(decoder.time_base or 0) if is_timed else 1 / float(decoder.frame_rate)
    turn = rotation(last)
    width, height = (last.height, last.width) if turn in (90, 270) else (last.width, last.height)
    return VideoInfo(
        sha256=sha256,
        size_bytes=before.st_size,
        width=width,
        height=height,
        frame_rate=decoder.frame_rate,
        frames=len(times),
        account=account,
        quality=meter.quality(clock, decoder.time_base, np.append(times, times[-1] + last_s)),
        duration_s=float(times[-1] + last_s),
        codec=decoder.codec,
        pixel_format=last.format.name,
        rotation=turn,
        start_time=_start_time(metadata),
        video_streams=streams,
        times_s=times,
    )


def _start_time(text: str | None) -> datetime | None:
    """A container's time, which is in UTC unless it says otherwise; None for one that cannot be (1904, 1970, 2446)."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time if _EARLIEST < time < _LATEST else None


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
