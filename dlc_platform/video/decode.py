"""The pictures of a video, decoded in their order: every reader of a video file goes through here.

What a file holds as a whole is `probe.py`'s to find out, and what that says about it `account.py`'s. Single pictures by
their number are `frames.py`'s.
"""

from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from io import SEEK_END
from itertools import dropwhile, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Self

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import open_plain
from dlc_platform.video import matroska, mxf
from dlc_platform.video.complaints import RAISE_LEVELS, listening, tells_of_damage, tells_of_skipped
from dlc_platform.video.cuts import is_cut
from dlc_platform.video.jpeg import EarlyEnds

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

COPY_AGAIN = "Copy the file again from the recording machine"

#: FFmpeg's names of files that only name other files: their bytes are not those of a video.
_LISTS = ("concat", "hls", "dash", "imf", "image2", "sdp", "rtsp")
#: How such files begin: scripts of FFmpeg, playlists, descriptions of streams in XML and of sessions.
_LIST_STARTS = (b"ffconcat", b"#EXTM3U", b"[playlist]", b"<?xml", b"<MPD", b"<smil", b"<asx", b"v=0\r\n", b"v=0\n")

#: Of width times height: an eight-bit picture of so many fills 200 MB as DeepLabCut takes it.
_LARGEST_PICTURE = 2**26

#: Codecs of which each packet gives one frame, so that timestamps count frames without decoding them.
_ONE_FRAME_A_PACKET = ("h264", "hevc")

#: Containers, by a part of FFmpeg's name, that keep the timestamp of each packet; those of `_STREAMED` may give one
#: frame in several packets.
_TIMED = ("mp4", "matroska")
_STREAMED = ("mpegts", "flv")

#: Containers from which pictures may be missing of which the pictures after them alone tell.
_UNINDEXED = ("h264", "mpegts", "mpeg")

#: What a header says beyond that is a placeholder, and no integer column holds it.
_MOST_FRAMES = 2**31 - 1

#: How an MP4 or QuickTime file begins: the kinds of its first box.
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
#: Boxes of an MP4 file that are looked through for its index.
_MOST_BOXES = 10_000
#: How files of AVI, Matroska, ASF, FLV, Ogg and MPEG begin.
_MAGIC = (b"RIFF", b"\x1aE\xdf\xa3", b"0&\xb2u", b"FLV", b"OggS", b"\0\0\x01\xba", b"\0\0\x01\xb3")

#: Packets that are read to tell a cover picture from a video.
_MOST_PACKETS = 1000

#: A decoder gives a frame at most this many packets after its own: FFmpeg reorders 16 and works on 16 at a time.
_LATEST = 32
#: So many rows show all that is left out at the beginning of a file.
_BEGINNING = 2 * _LATEST


@dataclass(frozen=True)
class Picture:
    """One row of a video: a picture in its order of presentation, or the place where one should be.

    Attributes
    ----------
    pts
        When it is shown, by its own timestamp in units of the stream's time base; None where the file does not say. The
        time that counts is that of `times.Clock`.
    dts
        The time of decoding of the packet with which it came out of the decoder; None for the last ones, which come
        without.
    frame
        None where it was lost: its packet is in the file, but gave no picture.
    damaged
        The decoder found errors in it and covered them up.
    """

    pts: int | None
    dts: int | None
    frame: "VideoFrame | None"
    damaged: bool


class Decoder:
    """A video file, opened, and the rows that decoding gives: a context manager.

    The rows are the same in every run, and from every `start`. Ask what the file promises (`is_truncated`, `holes`,
    `frames_indexed`, `frames_left_out`) after the last row, or rows are decoded once more for it.

    Parameters
    ----------
    whole
        That decoding all of it found neither a lost nor a damaged frame. Such a file is decoded with threads and sought
        in. Any other is decoded by one thread from its beginning, because threads find damage in other frames from one
        run to the next, and because what follows damage depends on what came before.

    Attributes
    ----------
    container, stream
        As FFmpeg opened them.
    time_base
        Of the pictures' timestamps, in seconds; None where the stream has none.
    frame_rate
        Average, in frames per second, as the container states it.
    codec, decoder
        The name of the codec; FFmpeg's version and the decoder, on which the pixels may depend.
    frames_declared
        What the container's header says, None where it says nothing.
    video_streams
        How many video streams the file holds, without cover pictures that say that they are such.
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
        self._tally = _Tally()
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
        self.video_streams = len(_moving_streams(self.container))
        self.frames_declared = stream.frames if 0 < stream.frames <= _MOST_FRAMES else None
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def pictures(self, start: int = 0) -> Iterator[Picture]:
        """The rows of the video, beginning with row number `start`. What an earlier call gave then ends.

        Raises
        ------
        PlatformError
            When the pictures change their size: no network sees two sizes as one video.
        """
        rows = self._sought(start)
        if rows is None:
            self._begin()
            rows = islice(_rows(self.container, self.stream, self._tally), start, None)
        self._current = self._of_one_size(rows, start)
        return self._current

    def begins_at(self, start: int) -> int:
        """The row at which decoding has to begin to give row `start`."""
        key = self._key_before(start)
        return key.row if key else 0

    @property
    def is_truncated(self) -> bool:
        """The file ends before what it promises.

        Fewer frames than declared alone are no proof: an edit list may leave some out.
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
        """Places where frames may have been that the container does not give.

        Of a Matroska file, those that are no part of it or are not what they were when it was written; of an
        AVI file, the packets of its index that were not found; of a transport stream, those whose packets do
        not follow one another; of others, the times that FFmpeg wrote that it skipped bytes. MP4 gives each
        packet of its index, and of a stream that was cut on the edge of a packet nothing may be known.
        """
        if self.container.format.name == "avi":
            self._read_to_the_end()
            return max(0, sum(entry.size > 0 for entry in self.stream.index_entries) - self._tally.packets)
        if not self._whole:
            self._read_to_the_end()
        return max(self._matroska.holes, self._mxf.holes, self._tally.skipped + self._skipped_at_opening)

    @property
    def keeps_presentation_times(self) -> bool:
        """False for AVI, which keeps times of decoding only."""
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
        """Packets at the beginning that give no row, because what they build on is not in the file.

        They come before the first key frame, or lean on what was before it. Each may have been a frame that was
        recorded, so that the number of a row is not that of a camera's trigger. What an edit list hides is not counted.
        """
        if self._is_drained and not self._is_sought:
            return self._tally.left_out
        tally = _Tally()
        with open_video(self._path) as (container, stream):
            stream.thread_type = "NONE"
            deque(islice(_rows(container, stream, tally), _BEGINNING), maxlen=0)
        return tally.left_out

    @cached_property
    def _matroska(self) -> matroska.Layout:
        # A file that was found whole is not read for it once more.
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
        # To know what it holds, FFmpeg reads the first packets when it is opened.
        with Capture() as lines:
            self.container, self.stream = self._files.enter_context(open_video(self._path))
        self._skipped_at_opening = tells_of_skipped(lines, self.container.format.name)
        if self.container.format.name in _UNINDEXED and not self._whole:
            self.stream.codec_context.options = RAISE_LEVELS
        self.stream.thread_type = "AUTO" if self._whole else "NONE"
        self._is_begun = False

    def _close(self) -> None:
        # The iteration first: FFmpeg must not be asked for another frame of a file that is closed.
        self._current.close()
        self._files.close()

    def _begin(self) -> None:
        # Opened again, because not every format can be sought to its beginning.
        if self._is_begun:
            self._open()
        self._is_begun = True
        self._is_drained = False
        self._is_sought = False
        self._tally = _Tally()

    def _read_to_the_end(self) -> None:
        # Some of an index is found on the way; who goes on with interrupted work may have needed no more rows.
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
        """The rows from `start`, by way of the key frame before it; None where that key frame cannot be relied on."""
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
        rows = _rows(self.container, self.stream, self._tally)
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
    """The timestamps of all rows, sorted, and the key frames among them; both empty where packets do not count rows."""

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

    As OpenCV does it: an angle that is no quarter turn when it is rounded to whole degrees is none at all. PyAV's own
    `rotation` cuts off what is behind the point. The formula is that of FFmpeg's ``av_display_rotation_get``.
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


@contextmanager
def open_video(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The container and its first stream of moving pictures that can be decoded.

    Every reader of a video opens it here. Titles and other text in the container, cover pictures, sound and data never
    decide whether it can be read.

    Raises
    ------
    PlatformError
        When it cannot be opened, or holds no video.
    """
    import av.error as error_types

    try:
        with open_plain(path) as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        start = b""  # what FFmpeg says of it is told below
    # Before FFmpeg opens it, which would look at the other files first.
    if start.lower().startswith(tuple(name.lower() for name in _LIST_STARTS)):
        raise _a_list(path)
    try:
        container = _open_container(path)
    except error_types.PermissionError:
        raise PlatformError(f"{path} cannot be read: permission denied", "Check its permissions") from None
    except (error_types.FFmpegError, ValueError) as error:
        raise _unopened(path, error) from error
    with container:
        if container.format.name.endswith("_pipe"):
            raise PlatformError(f"{path} is not a video but a picture", "Remove it, or put the video in its place")
        if container.format.name in _LISTS:
            raise _a_list(path)
        # PyAV has no codec where this FFmpeg has no decoder.
        streams = [stream for stream in _moving_streams(container) if stream.codec_context is not None]
        if not streams:
            raise _without_video(path, container)
        if len(streams) == 1:
            _check_size(path, streams[0])
            with _at_rest(streams[0]):
                yield container, streams[0]
            return
        index = _first_that_moves(container, streams)
    # Opened again, because not every format can be sought to its beginning.
    with _open_container(path) as container:
        stream = next(stream for stream in container.streams.video if stream.index == index)
        _check_size(path, stream)
        with _at_rest(stream):
            yield container, stream


def _check_size(path: Path, stream: "VideoStream") -> None:
    """Refuse pictures that would fill the memory before a single one of them is decoded."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _LARGEST_PICTURE:
        raise PlatformError(
            f"{path} says that its pictures are {width} x {height}, and more than {_LARGEST_PICTURE:,} pixels are not "
            "decoded",
            "Copy it again if that is not so; otherwise scale it down",
        )


def _a_list(path: Path) -> PlatformError:
    return PlatformError(
        f"{path} is a list of other files, not a video, and none of them is opened",
        "Put the videos themselves in its place",
    )


@contextmanager
def _at_rest(stream: "VideoStream") -> Iterator[None]:
    """Let a decoder's threads come to rest at the end, while others may run.

    PyAV frees a decoder without letting other threads run. One of the decoder's own that writes into the log just then
    waits for Python, which waits for it: for ever.
    """
    try:
        yield
    finally:
        if stream.codec_context.is_open:
            stream.codec_context.flush_buffers()


def _open_container(path: Path) -> "InputContainer":
    """A file of the raw data as FFmpeg opens it: it never makes FFmpeg open an address in the network."""
    import av

    # Cameras and editors write text as Latin-1, Shift-JIS or whatever they like.
    return av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")


def _moving_streams(container: "InputContainer") -> list["VideoStream"]:
    """The video streams, without cover pictures that say that they are such."""
    from av.stream import Disposition

    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _first_that_moves(container: "InputContainer", streams: "list[VideoStream]") -> int:
    """The index of the first stream with a second packet: Matroska does not say that a stream is a cover picture."""
    from av.error import FFmpegError

    seen = dict.fromkeys((stream.index for stream in streams), 0)
    with suppress(FFmpegError):
        for packet in islice(container.demux(streams), _MOST_PACKETS):
            if packet.size:
                seen[packet.stream_index] += 1
            if all(number > 1 for number in seen.values()):
                break
    return next((index for index, number in seen.items() if number > 1), streams[0].index)


def _without_video(path: Path, container: "InputContainer") -> PlatformError:
    if any(stream.codec_context is None for stream in container.streams.video):
        return PlatformError(
            f"{path} holds a video stream of a codec that this FFmpeg cannot decode",
            "Write it again with another codec, for example `ffmpeg -i OLD -c:v libx264 -crf 12 NEW`",
        )
    kinds = {"audio": "sound", "subtitle": "subtitles", "data": "data", "video": "a still picture"}
    there = sorted({kinds.get(stream.type, stream.type or "") for stream in container.streams} - {""})
    only = f", only {' and '.join(there)}" if there else ""
    return PlatformError(f"{path} holds no video stream{only}", "Remove it, or put the video in its place")


def _chain(first: Picture, rest: Iterator[Picture]) -> Iterator[Picture]:
    yield first
    yield from rest


@dataclass
class _Tally:
    """What a reading counts besides its rows: packets with data, those at the beginning that give no row, and the times
    that bytes between packets were skipped."""

    packets: int = 0
    left_out: int = 0
    skipped: int = 0


def _rows(container: "InputContainer", stream: "VideoStream", tally: _Tally) -> Iterator[Picture]:
    """Each row of the video in order of presentation, from where the container stands.

    A packet that no frame answers is a lost row. It comes before the first frame that is later than it, and that frame
    waits until the packet is too old for an answer: where timestamps say nothing of the order (a file written without
    times of presentation), an earlier frame may still follow a later one, and nothing is lost.
    """
    counts_frames = _counts_frames(container, stream)
    is_transport_stream = container.format.name == "mpegts"
    waits = counts_frames or _is_timed(container, stream, _STREAMED)
    stores_order = _stores_order(container, stream)
    first_key: int | None = None
    is_indexed_key = _first_indexed_key(container, stream)
    unanswered: list[_Unanswered] = []
    leading: set[int] = set()
    corrupt: set[int] = set()
    lost: set[int] = set()
    held: list[tuple[Picture, int]] = []
    # Packets that failed are not counted: they push no frame out of the decoder.
    decoded = 0
    latest: int | None = None
    is_reordered = is_interlaced = False
    # Without timestamps nobody knows to which picture it belongs: the next one that comes stands for it.
    is_next_spoiled = False

    def released(now: int) -> Iterator[Picture]:
        while held:
            picture, fed = held[0]
            earlier = _earlier(unanswered, picture, fed)
            if earlier is None:
                del held[0]
                yield picture
            elif now - earlier.number >= _LATEST:
                unanswered.remove(earlier)
                if earlier.is_row:
                    lost.add(earlier.pts)
                    yield Picture(earlier.pts, None, None, damaged=False)
            else:
                return

    for packet, frames, has_failed, is_spoiled in _decoded(container, stream, tally):
        if packet and packet.size:
            tally.packets += 1
            tally.skipped += is_transport_stream and packet.is_corrupt
        decoded += not has_failed
        pts = packet.pts if packet else None
        is_corrupt = packet is not None and packet.is_corrupt
        if packet and first_key is None and (packet.is_keyframe or is_indexed_key(packet)):
            first_key = pts
        # Pictures that an edit list leaves out, and those that lean on what was before the first key frame, are not
        # missing when no frame comes of them.
        is_shown = packet is None or not packet.is_discard
        if pts is None:
            is_next_spoiled |= is_corrupt or is_spoiled
            if is_shown and (has_failed or is_corrupt) and not frames:
                held.append((Picture(None, None, None, damaged=False), decoded))
        else:
            # Only pictures that are stored out of their order show that the timestamps are those of presentation.
            is_reordered |= waits and latest is not None and pts < latest
            latest = pts if latest is None else max(latest, pts)
            is_awaited = waits and first_key is not None and pts >= first_key
            if is_shown and (is_awaited or has_failed or is_corrupt):
                is_row = counts_frames or has_failed or is_corrupt or is_spoiled
                insort(unanswered, _Unanswered(pts, decoded, has_failed or is_corrupt, is_row))
            elif is_shown and packet and packet.size and (first_key is None or pts < first_key):
                leading.add(pts)
            # AV1's decoder fails at a packet for the data of one before it.
            if is_corrupt or is_spoiled or has_failed:
                corrupt.add(pts)
        for frame in frames:
            _answer(unanswered, frame)
            is_interlaced = frame.interlaced_frame
            damaged = frame.is_corrupt or frame.pts in corrupt or is_next_spoiled
            is_next_spoiled = False
            if frame.pts is not None:
                corrupt.discard(frame.pts)
                leading.discard(frame.pts)
            if frame.pts in lost:
                # It comes too late: its place is behind us.
                lost.discard(frame.pts)
                continue
            is_ordered = is_reordered or (stores_order and any(packet.has_failed for packet in unanswered))
            row = (Picture(frame.pts, frame.dts, frame, damaged), decoded)
            held.insert(_place(held, frame.pts) if is_ordered else len(held), row)
        tally.left_out = len(leading)
        yield from released(decoded)
    yield from released(decoded + _LATEST)
    for packet in unanswered:
        if packet.has_failed or (packet.is_row and not is_interlaced):
            yield Picture(packet.pts, None, None, damaged=False)


def _first_indexed_key(container: "InputContainer", stream: "VideoStream") -> Callable[["Packet"], bool]:
    """Says whether a packet is the first key frame of the container's index.

    FFmpeg takes the mark of a key frame from an H.264 packet whose data is spoiled; the index keeps it.
    """
    stamp = next((entry.timestamp for entry in stream.index_entries if entry.is_keyframe), None)
    # MP4 indexes times of decoding, Matroska those of presentation.
    if "mp4" in container.format.name:
        return lambda packet: stamp is not None and packet.dts == stamp
    return lambda packet: stamp is not None and packet.pts == stamp


class _Unanswered(NamedTuple):
    """A packet whose frame has not come: its timestamp, and how many packets had been decoded with it.

    It is a lost row unless `is_row` is false, where packets do not count frames.
    """

    pts: int
    number: int
    has_failed: bool
    is_row: bool


def _earlier(unanswered: list[_Unanswered], picture: Picture, fed: int) -> _Unanswered | None:
    """The first packet that should have given a row before this picture; `fed` packets were decoded when it came."""
    if picture.pts is None:
        return None
    for packet in unanswered:
        if packet.pts >= picture.pts:
            return None
        if packet.number <= fed:
            return packet
    return None


def _place(held: list[tuple[Picture, int]], pts: int | None) -> int:
    """Where a frame comes among those that wait, by its timestamp.

    Where packets fail or are missing, a decoder may give the frames before them after those that follow.
    """
    place = len(held)
    if pts is not None:
        while place and (other := held[place - 1][0].pts) is not None and other > pts:
            place -= 1
    return place


def _answer(unanswered: list[_Unanswered], frame: "VideoFrame") -> None:
    if frame.pts is None:
        return
    place = bisect_left(unanswered, frame.pts, key=lambda packet: packet.pts)
    if place < len(unanswered) and unanswered[place].pts == frame.pts:
        del unanswered[place]
    if frame.interlaced_frame:
        # Its two fields may come in two packets, and only one of them gives the frame its timestamp.
        unanswered[:place] = [packet for packet in unanswered[:place] if packet.has_failed]


def _decoded(
    container: "InputContainer", stream: "VideoStream", tally: _Tally
) -> Iterator[tuple["Packet | None", list["VideoFrame"], bool, bool]]:
    """Each packet, the frames that came when it was decoded, whether that failed, and whether the decoder complained.

    The packet is None where it cannot be read.
    """
    from av.error import FFmpegError
    from av.logging import Capture

    packets = _packets(container, stream)
    decoder = stream.codec_context.codec.name
    slots = _slots(container, stream)
    has_no_times = not _stores_order(container, stream)
    early_ends = EarlyEnds(lambda: open_video(Path(container.name)))
    is_begun = False
    while True:
        packet, has_ended = None, False
        with Capture() as lines:
            try:
                packet = next(packets)
            except StopIteration:
                has_ended = True
            except FFmpegError:
                pass
        tally.skipped += tells_of_skipped(lines, container.format.name)
        if has_ended:
            return
        if packet is None:
            yield None, [], True, False
            return
        if packet.dts is not None and (late := slots.get(packet.pos, packet.dts) - packet.dts) > 0:
            packet.dts += late
            packet.pts = None if packet.pts is None else packet.pts + late
        if has_no_times:
            packet.pts = packet.dts
        with Capture() as lines:
            try:
                frames = packet.decode()
                has_failed = False
            except FFmpegError:
                frames, has_failed = [], True
        # Before its first picture the decoder of H.264 misses what was recorded before the file begins.
        is_spoiled = tells_of_damage(lines, decoder) and (is_begun or decoder != "h264")
        is_begun |= bool(frames)
        if is_spoiled and decoder == "mjpeg":
            is_spoiled = not early_ends.explain(packet, stream, lines)
        yield packet, frames, has_failed, is_spoiled


def _packets(container: "InputContainer", stream: "VideoStream") -> Iterator["Packet"]:
    """The packets of a stream, also of a file in which damage, or a late sound track, makes others appear."""
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            # PyAV does not know the stream of that packet, and goes on with the next one.
            continue


def _stores_order(container: "InputContainer", stream: "VideoStream") -> bool:
    """False where timestamps say nothing of the order of presentation.

    AVI files keep times of decoding. For most codecs FFmpeg works out the others; for these it gives the time of the
    next packet.
    """
    return container.format.name != "avi" or stream.codec_context.name not in _ONE_FRAME_A_PACKET


def _slots(container: "InputContainer", stream: "VideoStream") -> dict[int | None, int]:
    """The time of each packet by its place, as the index of an AVI file has it.

    FFmpeg counts the packets that it finds, so that those behind a lost one would come too early.
    """
    if container.format.name != "avi":
        return {}
    # The index tells where the header of 8 bytes begins.
    return {entry.pos + 8: entry.timestamp for entry in stream.index_entries}


def _counts_frames(container: "InputContainer", stream: "VideoStream") -> bool:
    return _is_timed(container, stream, _TIMED)


def _is_timed(container: "InputContainer", stream: "VideoStream", formats: tuple[str, ...]) -> bool:
    return stream.codec_context.name in _ONE_FRAME_A_PACKET and any(name in container.format.name for name in formats)


def _index(container: "InputContainer", stream: "VideoStream") -> _Index:
    """What the packets say, without decoding; see `_rows` for which of them are rows."""
    from av.error import FFmpegError

    if not _counts_frames(container, stream):
        return _NO_INDEX
    timestamps = array("q")
    keys: list[tuple[int, int]] = []
    first_key: int | None = None
    latest: int | None = None
    try:
        for packet in _packets(container, stream):
            if not packet.size:
                continue
            if packet.is_keyframe and first_key is None:
                first_key = packet.pts
            if packet.is_discard:
                continue
            if packet.pts is None or first_key is None or packet.pts < first_key:
                return _NO_INDEX
            # No frame that is stored before a key frame is shown after it, where timestamps are right.
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
    # Where frames are reordered and their timestamps are not, those are the times of decoding.
    is_wrong = stream.codec_context.has_b_frames and (as_stored == ordered).all()
    if is_wrong or (np.diff(ordered) == 0).any():
        return _NO_INDEX
    rows = np.searchsorted(ordered, [pts for pts, _ in keys])
    return _Index(ordered, sorted(_Key(int(row), pts, dts) for row, (pts, dts) in zip(rows, keys, strict=True)))


def _unopened(path: Path, error: Exception) -> PlatformError:
    """Why a file does not open, as far as that is known: a cause is named only where the file itself shows it."""
    try:
        with open(path, "rb") as file:
            start = file.read(12)
            has_no_index = start[4:8] in _MP4_BOXES and not _has_mp4_index(file)
    except OSError as reading:
        return PlatformError(
            f"{path} cannot be read: {reading.strerror}",
            "Check its name and its permissions",
        )
    if has_no_index:
        return PlatformError(
            f"{path} cannot be opened: its index is missing, because the recording or a copy was interrupted",
            f"{COPY_AGAIN}, or rebuild its index with a tool such as `untrunc`",
        )
    is_known = any(start.startswith(magic) for magic in _MAGIC) or start[4:8] in _MP4_BOXES
    said = getattr(error, "strerror", None) or error.__class__.__name__
    if is_known:
        return PlatformError(
            f"{path} cannot be opened: it begins as a video does, and FFmpeg says: {said}",
            f"{COPY_AGAIN}; if it is the same there, try to write it anew with `ffmpeg -i OLD -c copy NEW`",
        )
    return PlatformError(
        f"{path} is not a video that FFmpeg knows ({said})",
        f"{COPY_AGAIN}, or remove it if it is no video",
    )


def _has_mp4_index(file: BinaryIO) -> bool:
    """True when a box `moov` begins and ends within the file; its boxes are followed, none is read."""
    size = file.seek(0, SEEK_END)
    place = 0
    for _ in range(_MOST_BOXES):
        file.seek(place)
        header = file.read(16)
        if len(header) < 8:
            return False
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:16])
        elif length == 0:
            length = size - place
        if header[4:8] == b"moov":
            return place + length <= size
        if length < 8:
            return False
        place += length
    # Of so many nothing is known.
    return True
