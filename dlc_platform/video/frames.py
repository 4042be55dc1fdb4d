"""Single pictures out of a video, by exact frame number.

What a video holds and whether it is whole is `probe.py`'s to say; a tracker that needs all frames reads them itself.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.video.probe import open_video

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

#: Codecs of which each packet gives one frame, so that timestamps count frames without decoding them.
_ONE_FRAME_A_PACKET = ("h264", "hevc")


def read_frames(path: Path, indices: Sequence[int]) -> list[np.ndarray]:
    """The frames of a video with these numbers, in the order asked for.

    Parameters
    ----------
    indices
        Frame numbers in order of presentation, from 0, as `VideoInfo.frames` counts them.

    Returns
    -------
    list of uint8 arrays
        RGB, shape (height, width, 3), turned as the video is shown.

    Raises
    ------
    PlatformError
        When the video cannot be opened, or has no frame of such a number.
    """
    wanted = sorted(set(indices))
    pictures: dict[int, np.ndarray] = {}
    # Whatever seeking does not find is looked for by decoding from the start.
    for find in (_by_seeking, _from_the_start):
        missing = [number for number in wanted if number not in pictures]
        if missing:
            pictures |= {number: _picture(frame) for number, frame in find(path, missing)}
    missing = [str(number) for number in wanted if number not in pictures]
    if missing:
        raise PlatformError(
            f"{path} has no frame {', '.join(missing)}",
            "If it has changed since it was registered, scan the sessions again",
        )
    return [pictures[index] for index in indices]


def _from_the_start(path: Path, numbers: list[int]) -> Iterator[tuple[int, "VideoFrame"]]:
    with open_video(path) as (container, stream):
        for number, frame in zip(range(numbers[-1] + 1), _frames(container, stream), strict=False):
            if number in numbers:
                yield number, frame


def _by_seeking(path: Path, numbers: list[int]) -> Iterator[tuple[int, "VideoFrame"]]:
    """Decode from the last key frame before each number; nothing where packets do not count frames."""
    with open_video(path) as (container, stream):
        if stream.codec_context.name not in _ONE_FRAME_A_PACKET:
            return
        timestamps: list[int] = []
        keys: list[tuple[int, int]] = []
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                return
            timestamps.append(packet.pts)
            if packet.is_keyframe:
                # Seeking goes by the time of decoding, which is never later than that of presentation.
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if len(set(timestamps)) < len(timestamps):
            return
        timestamps.sort()
    with open_video(path) as (container, stream):
        frames: Iterator[VideoFrame] = iter(())
        position = None
        for number in numbers:
            if not 0 <= number < len(timestamps):
                continue
            target = timestamps[number]
            key, seek_to = max((key for key in keys if key[0] <= target), default=(target, target))
            if position is None or key > position:
                container.seek(seek_to, stream=stream)
                frames = _frames(container, stream)
            for frame in frames:
                position = frame.pts
                if position is None or position >= target:
                    if position == target:
                        yield number, frame
                    break


def _picture(frame: "VideoFrame") -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def _frames(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame"]:
    for packet in container.demux(stream):
        yield from packet.decode()
