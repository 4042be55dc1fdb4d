"""Opening a video file; it is refused with the reason if it is not a video, lists other files, or cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import SEEK_END
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import open_plain

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

COPY_AGAIN = "Copy the file again from the recording machine"
#: FFmpeg's formats that only name other files: their bytes are not those of a video.
_LISTS = ("concat", "hls", "dash", "imf", "image2", "sdp", "rtsp")
#: The beginnings of such files: scripts of FFmpeg, playlists, descriptions of streams in XML and of sessions.
_LIST_STARTS = (b"ffconcat", b"#EXTM3U", b"[playlist]", b"<?xml", b"<MPD", b"<smil", b"<asx", b"v=0\r\n", b"v=0\n")
#: The largest width times height: an eight-bit picture of that size fills 200 MB in DeepLabCut.
_LARGEST_PICTURE = 2**26
#: The kinds of the first box of an MP4 or QuickTime file.
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
#: The most boxes of an MP4 file that are searched for its index.
_MOST_BOXES = 10_000
#: The beginnings of files of AVI, Matroska, ASF, FLV, Ogg and MPEG.
_MAGIC = (b"RIFF", b"\x1aE\xdf\xa3", b"0&\xb2u", b"FLV", b"OggS", b"\0\0\x01\xba", b"\0\0\x01\xb3")
#: The packets that are read to distinguish a cover picture from a video.
_MOST_PACKETS = 1000


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
        start = b""  # FFmpeg's message about it is used below
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
        # PyAV has no codec if this FFmpeg has no decoder.
        streams = [stream for stream in moving_streams(container) if stream.codec_context is not None]
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

    PyAV frees a decoder without letting other threads run. If one of the decoder's threads writes into the log just
    then, it waits for Python, and Python waits for it: for ever.
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


def moving_streams(container: "InputContainer") -> list["VideoStream"]:
    """The video streams, without marked cover pictures."""
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


def _unopened(path: Path, error: Exception) -> PlatformError:
    """The reason why a file does not open, as far as known: a cause is named only if the file itself shows it."""
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
    """True if a box `moov` begins and ends within the file; boxes are followed, none is read."""
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
    # With so many boxes nothing is known.
    return True
