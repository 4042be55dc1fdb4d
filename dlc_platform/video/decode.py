"""The pictures of a video, decoded in their order: every reader of a video file goes through here.

`probe.py` reads a whole file, `account.py` counts its frames, and `frames.py` reads single pictures by their number.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import dropwhile, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.video import matroska, mxf
from dlc_platform.video.complaints import RAISE_LEVELS, listening, tells_of_skipped
from dlc_platform.video.cuts import is_cut
from dlc_platform.video.opening import (
    moving_streams,
    open_video,
)
from dlc_platform.video.rows import (
    LATEST,
    Picture,
    Tally,
    counts_frames,
    packets,
    picture_rows,
)

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter


#: Containers from which pictures may be missing without any trace except in the later pictures.
_UNINDEXED = ("h264", "mpegts", "mpeg")

#: A larger number in a header is a placeholder, and does not fit into an integer column.
_MOST_FRAMES = 2**31 - 1


#: So many rows show everything that is left out at the beginning of a file.
_BEGINNING = 2 * LATEST


class Decoder:
    """A video file, opened, and the rows that decoding gives: a context manager.

    The rows are the same in every run, and from every `start`. Ask for the promises of the file (`is_truncated`,
    `holes`, `frames_indexed`, `frames_left_out`) after the last row; else rows are decoded once more for them.

    Parameters
    ----------
    whole
        True if decoding all of it found neither a lost nor a damaged frame. Such a file is decoded with threads and
        seeking. Any other is decoded by one thread from its beginning, because threads find damage in different frames
        in each run, and because the pictures after damage depend on those before it.

    Attributes
    ----------
    container, stream
        As FFmpeg opened them.
    time_base
        The time base of the pictures' timestamps, in seconds; None if the stream has none.
    frame_rate
        Average, in frames per second, as the container states it.
    codec, decoder
        The name of the codec; FFmpeg's version and the decoder, on which the pixels may depend.
    frames_declared
        The number of frames in the container's header; None if it has none.
    video_streams
        The number of video streams in the file, without marked cover pictures.
    """

    container: "InputContainer"
    stream: "VideoStream"
    time_base: Fraction | None
    frame_rate: Fraction
    codec: str
    decoder: str
    frames_declared: int | None
    video_streams: int

    def __init__(self, path: Path, whole: bool) -> None:
        self._path = path
        self._whole = whole
        self._files = ExitStack()
        self._current: Generator[Picture, None, None] = self._of_one_size(iter(()), 0)
        self._is_begun = False
        self._is_drained = False
        self._is_sought = False
        self._tally = Tally()
        self._index: _Index | None = None

    def __enter__(self) -> Self:
        import av

        self._open()
        stream = self.stream
        frame_rate = stream.average_rate or stream.guessed_rate
        if not frame_rate:
            self.__exit__()
            raise PlatformError(
                f"{self._path} has no frame rate",
                "Write it again with one, for example `ffmpeg -r 30 -i OLD -c copy NEW`",
            )
        self.frame_rate = frame_rate
        self.time_base = stream.time_base
        self.codec = stream.codec_context.name
        version = ".".join(str(part) for part in av.library_versions["libavcodec"])
        self.decoder = f"libavcodec {version} (PyAV {av.__version__}), {stream.codec_context.codec.name}"
        self.video_streams = len(moving_streams(self.container))
        self.frames_declared = stream.frames if 0 < stream.frames <= _MOST_FRAMES else None
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def pictures(self, start: int = 0) -> Iterator[Picture]:
        """The rows of the video, beginning with row number `start`. It ends the rows of an earlier call.

        Raises
        ------
        PlatformError
            When the pictures change their size: no network sees two sizes as one video.
        """
        rows = self._sought(start)
        if rows is None:
            self._begin()
            rows = islice(picture_rows(self.container, self.stream, self._tally), start, None)
        self._current = self._of_one_size(rows, start)
        return self._current

    def begins_at(self, start: int) -> int:
        """The row at which decoding must begin to give row `start`."""
        key = self._key_before(start)
        return key.row if key else 0

    @property
    def is_truncated(self) -> bool:
        """True if the file ends before its promised end.

        Fewer frames than declared are not a proof: an edit list may leave some out.
        """
        if not self._whole:
            self._read_to_the_end()
        size = self._path.stat().st_size
        return (
            self._matroska.end > size
            or self._mxf.is_cut
            or (self._is_mp4 and any(entry.pos + entry.size > size for entry in self.stream.index_entries))
            or is_cut(self._path)
        )

    @property
    def holes(self) -> int:
        """The number of places where frames may have been that the container does not give.

        For a Matroska file, places that are not part of it or have changed since it was written; for an AVI file,
        the packets of its index that were not found; for a transport stream, places where packets do not follow
        one another; for others, the number of times that FFmpeg reported skipped bytes. MP4 gives each packet of
        its index. A stream that was cut on the edge of a packet may show nothing.
        """
        if self.container.format.name == "avi":
            self._read_to_the_end()
            return max(0, sum(entry.size > 0 for entry in self.stream.index_entries) - self._tally.packets)
        if not self._whole:
            self._read_to_the_end()
        return max(self._matroska.holes, self._mxf.holes, self._tally.skipped + self._skipped_at_opening)

    @property
    def keeps_presentation_times(self) -> bool:
        """False for AVI, which keeps only times of decoding."""
        return self.container.format.name != "avi"

    @property
    def frames_indexed(self) -> int:
        """The rows that the index of an MP4 file promises; 0 for other files."""
        if not self._is_mp4:
            return 0
        if not self._whole:
            self._read_to_the_end()
        from_key = dropwhile(lambda entry: not entry.is_keyframe, self.stream.index_entries)
        return sum(not entry.is_discard for entry in from_key)

    @cached_property
    def frames_left_out(self) -> int:
        """Packets at the beginning that give no row, because the pictures that they depend on are not in the file.

        They come before the first key frame, or depend on earlier pictures. Each may have been a recorded frame, so
        that the number of a row may differ from that of a camera's trigger. Frames that an edit list hides are not
        counted.
        """
        if self._is_drained and not self._is_sought:
            return self._tally.left_out
        tally = Tally()
        with open_video(self._path) as (container, stream):
            stream.thread_type = "NONE"
            deque(islice(picture_rows(container, stream, tally), _BEGINNING), maxlen=0)
        return tally.left_out

    @cached_property
    def _matroska(self) -> matroska.Layout:
        # A file that was found whole is not read once more for this.
        return matroska.read_layout(self._path, with_sums=not self._whole)

    @cached_property
    def _mxf(self) -> mxf.Layout:
        return mxf.read_layout(self._path)

    @property
    def _is_mp4(self) -> bool:
        return "mp4" in self.container.format.name

    def _open(self) -> None:
        from av.logging import Capture

        self._close()
        if not self._whole:
            self._files.enter_context(listening())
        # FFmpeg reads the first packets when it opens a file, to know its content.
        with Capture() as lines:
            self.container, self.stream = self._files.enter_context(open_video(self._path))
        self._skipped_at_opening = tells_of_skipped(lines, self.container.format.name)
        if self.container.format.name in _UNINDEXED and not self._whole:
            self.stream.codec_context.options = RAISE_LEVELS
        self.stream.thread_type = "AUTO" if self._whole else "NONE"
        self._is_begun = False

    def _close(self) -> None:
        # The iteration ends first: FFmpeg must not be asked for another frame of a closed file.
        self._current.close()
        self._files.close()

    def _begin(self) -> None:
        # Opened again, because not every format can be sought to its beginning.
        if self._is_begun:
            self._open()
        self._is_begun = True
        self._is_drained = False
        self._is_sought = False
        self._tally = Tally()

    def _read_to_the_end(self) -> None:
        # A part of the index is found on the way; continued work may have needed no more rows.
        if not self._is_drained:
            deque(self.pictures(), maxlen=0)

    def _of_one_size(self, rows: Iterator[Picture], start: int) -> Generator[Picture, None, None]:
        size: tuple[int, int] | None = None
        for number, picture in enumerate(rows, start):
            if frame := picture.frame:
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    raise PlatformError(
                        f"{self._path} changes the size of its pictures at frame {number}: from {size[0]} x {size[1]} "
                        f"to {frame.width} x {frame.height} pixels",
                        "Cut it there into files of one size",
                    )
            yield picture
        self._is_drained = True

    def _sought(self, start: int) -> Iterator[Picture] | None:
        """The rows from `start`, after a seek to the key frame before it; None if that key frame cannot be relied
        on."""
        from av.error import FFmpegError

        key = self._key_before(start)
        if key is None or self._index is None:
            return None
        self._begin()
        self._is_sought = True
        try:
            self.container.seek(key.dts, stream=self.stream)
        except FFmpegError:
            return self._forget_keys()
        rows = picture_rows(self.container, self.stream, self._tally)
        first = next((row for row in rows if row.pts is not None and row.pts >= key.pts), None)
        # A container may call any frame a key frame; the decoder knows.
        if first is None or first.pts != key.pts or first.frame is None or not first.frame.key_frame:
            return self._forget_keys()
        if start == key.row:
            return _chain(first, rows)
        row = next(islice(rows, start - key.row - 1, None), None)
        if row is None or row.pts != self._index.timestamps[start]:
            return self._forget_keys()
        return _chain(row, rows)

    def _key_before(self, start: int) -> "_Key | None":
        if not self._whole or start <= 0:
            return None
        if self._index is None:
            with open_video(self._path) as (container, stream):
                self._index = _index(container, stream)
        return self._index.key_before(start)

    def _forget_keys(self) -> None:
        self._index = _NO_INDEX


class _Key(NamedTuple):
    row: int
    pts: int
    dts: int


@dataclass(frozen=True)
class _Index:
    """The timestamps of all rows, sorted, and the key frames among them; both are empty if packets do not count
    rows."""

    timestamps: np.ndarray
    keys: list[_Key]

    def key_before(self, row: int) -> _Key | None:
        place = bisect_left(self.keys, row + 1, key=lambda key: key.row)
        return self.keys[place - 1] if place and row < len(self.timestamps) else None


_NO_INDEX = _Index(np.zeros(0, np.int64), [])


def to_bgr(frame: "VideoFrame", reformatter: "VideoReformatter") -> np.ndarray:
    """A picture as DeepLabCut sees it: pixel for pixel what OpenCV's reader of videos gives.

    OpenCV converts with swscale's bicubic filter; with any other, the colours of many formats differ.

    Parameters
    ----------
    reformatter
        One for each thread and video: it keeps what it needs for their format.

    Returns
    -------
    uint8 array
        Shape (height, width, 3), blue first, turned as the video is shown.
    """
    from av.video.reformatter import Interpolation

    picture = reformatter.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC).to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, rotation(frame) // 90))


def rotation(frame: "VideoFrame") -> int:
    """The degrees, counter-clockwise, by which a picture is turned to be shown: 0, 90, 180 or 270.

    As in OpenCV, an angle that is not a quarter turn when rounded to whole degrees counts as none. PyAV's own
    `rotation` cuts off the decimals. The formula is that of FFmpeg's ``av_display_rotation_get``.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).astype(float)
    across, down = np.hypot(a, c), np.hypot(b, d)
    if not (across and down):
        return 0
    degrees = round(-np.degrees(np.arctan2(b / down, a / across))) % 360
    return degrees if degrees % 90 == 0 else 0


def _chain(first: Picture, rest: Iterator[Picture]) -> Iterator[Picture]:
    yield first
    yield from rest


def _index(container: "InputContainer", stream: "VideoStream") -> _Index:
    """The index of a video by its packets, without decoding; `picture_rows` says which of them are rows."""
    from av.error import FFmpegError

    if not counts_frames(container, stream):
        return _NO_INDEX
    timestamps = array("q")
    keys: list[tuple[int, int]] = []
    first_key: int | None = None
    latest: int | None = None
    try:
        for packet in packets(container, stream):
            if not packet.size:
                continue
            if packet.is_keyframe and first_key is None:
                first_key = packet.pts
            if packet.is_discard:
                continue
            if packet.pts is None or first_key is None or packet.pts < first_key:
                return _NO_INDEX
            # With right timestamps, no frame that is stored before a key frame is shown after it.
            if packet.is_keyframe and latest is not None and latest > packet.pts:
                return _NO_INDEX
            latest = packet.pts if latest is None else max(latest, packet.pts)
            timestamps.append(packet.pts)
            if packet.is_keyframe:
                # Seeking goes by the time of decoding, which is never later than that of presentation.
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
    except FFmpegError:
        return _NO_INDEX
    as_stored = np.frombuffer(timestamps, np.int64)
    ordered = np.sort(as_stored)
    # If frames are reordered and their timestamps are not, the timestamps are times of decoding.
    is_wrong = stream.codec_context.has_b_frames and (as_stored == ordered).all()
    if is_wrong or (np.diff(ordered) == 0).any():
        return _NO_INDEX
    rows = np.searchsorted(ordered, [pts for pts, _ in keys])
    return _Index(ordered, sorted(_Key(int(row), pts, dts) for row, (pts, dts) in zip(rows, keys, strict=True)))
