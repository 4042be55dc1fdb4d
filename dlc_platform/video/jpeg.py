"""Cameras that leave out the end of each picture of Motion JPEG: as far as can be known, their pictures are whole.

FFmpeg writes the same line, "overread", for a picture that a camera ends a few blocks too early and for one that lost
half its data. Two things distinguish them: how much of a picture is missing in its data, and if the whole file is like
that.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.container import InputContainer

#: Rows of pixels in the largest blocks that are coded as one.
_BLOCK_ROWS = 16
#: Pictures at the beginning of a file by which a camera's habit is known, and how many of them must show it.
_SAMPLE, _MOST = 32, 7 / 8
_EARLY_END = "overread"


class EarlyEnds:
    """The habit of a camera to end its pictures within their last row of blocks.

    Parameters
    ----------
    opened
        Opens the file once more. Its beginning is decoded, once, when a picture is asked for.
    """

    def __init__(self, opened: "Callable[[], AbstractContextManager[tuple[InputContainer, VideoStream]]]") -> None:
        self._opened = opened
        self._is_habit: bool | None = None

    def explain(self, packet: "Packet", stream: "VideoStream", lines: Sequence[tuple[int, str, str]]) -> bool:
        """True if a picture lacks no more than all pictures of its file do.

        Parameters
        ----------
        lines
            The decoder's lines about it, as `av.logging.Capture` gives them.
        """
        if self._is_habit is None:
            self._is_habit = self._find()
        return self._is_habit and _ends_early(packet, stream, lines)

    def _find(self) -> bool:
        from av.error import FFmpegError
        from av.logging import Capture

        early = pictures = 0
        try:
            with self._opened() as (container, stream):
                for packet in islice((packet for packet in container.demux(stream) if packet.size), _SAMPLE):
                    pictures += 1
                    with Capture() as lines:
                        _alone(packet, stream)
                    early += _ends_early(packet, stream, lines)
        except (FFmpegError, IndexError):
            # The code that reads it finds and reports that, too.
            return False
        return early > 1 and early >= _MOST * pictures


def _ends_early(packet: "Packet", stream: "VideoStream", lines: Sequence[tuple[int, str, str]]) -> bool:
    import av.logging

    errors = [text for level, writer, text in lines if level <= av.logging.ERROR and writer == "mjpeg"]
    if not any(_EARLY_END in text for text in errors):
        return False
    if any("error" in text or "bad vlc" in text for text in errors):
        return False
    return (rows := _rows_without_data(packet, stream)) is not None and 0 < rows <= _BLOCK_ROWS


def _rows_without_data(packet: "Packet", stream: "VideoStream") -> int | None:
    """The rows of pixels at the bottom of a picture that are not in its data, counted up to the highest block."""
    planes = _alone(packet, stream)
    if planes is None:
        return None
    height = planes[0].shape[0]
    # Pixels that no decoder wrote are 0 in all planes, which is a green that no camera sees.
    is_empty = np.all([plane == 0 for plane in planes[1:] or planes], axis=0)
    rows = np.flatnonzero(is_empty.any(axis=1))
    return int(np.ceil(height * (1 - rows[0] / len(is_empty)))) if len(rows) else 0


def _alone(packet: "Packet", stream: "VideoStream") -> "list[np.ndarray] | None":
    """The planes of a picture, decoded into empty memory of its own; None if it cannot be decoded."""
    from av import CodecContext, Packet
    from av.error import FFmpegError

    context = CodecContext.create("mjpeg", "r")
    context.extradata = stream.codec_context.extradata
    try:
        frame = next(iter(context.decode(Packet(bytes(packet)))), None)
    except FFmpegError:
        return None
    if frame is None:
        return None
    return [
        np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes
    ]
