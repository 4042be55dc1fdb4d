"""Small videos whose pictures tell their own number, so that each decoded row can be held against the truth."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from dlc_platform.video.decode import Decoder

SIZE = 64
RATE = 25
_BITS = 8

#: B-frames that lean on others, wherever they are allowed.
PYRAMID = {"bf": "3", "g": "24", "crf": "18", "x264-params": "b-adapt=0:scenecut=0:b-pyramid=normal"}
BIDIRECTIONAL = {"bf": "2", "g": "12", "qmin": "2", "qmax": "4"}


def picture(number: int) -> np.ndarray:
    """A moving pattern, and above it the number in eight black and white bars; uint8, shape (64, 64, 3)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    gray = (128 + 30 * np.sin((x + 2 * number) / 7) + 8 * np.cos((y - number) / 5)).astype(np.uint8)
    width = SIZE // _BITS
    for bit in range(_BITS):
        gray[: SIZE // 2, bit * width : (bit + 1) * width] = 235 if number >> bit & 1 else 20
    return np.repeat(gray[:, :, None], 3, 2)


def number_of(rgb: np.ndarray) -> int | None:
    """The number of a decoded picture; None where it cannot be made out."""
    width = SIZE // _BITS
    found = 0
    for bit in range(_BITS):
        level = rgb[2 : SIZE // 2 - 2, bit * width + 2 : (bit + 1) * width - 2, 1].mean()
        if 90 < level < 166:
            return None
        found |= int(level > 128) << bit
    return found


def write_numbered(
    path: Path,
    codec: str = "libx264",
    ticks: Sequence[int] | int = 60,
    rate: int = RATE,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Write a video.

    Parameters
    ----------
    ticks
        When each picture is shown, in units of ``1 / rate`` seconds; or how many there are, one after the other.
    """
    shown = list(range(ticks)) if isinstance(ticks, int) else list(ticks)
    _write(path, codec, shown, rate, pix_fmt, options, container_options, format)
    # Of some hundred files x265 spoils a picture in one, as it decodes everywhere: that is not what is tested.
    while codec == "libx265" and _numbers_inside(path) != list(range(len(shown))):
        _write(path, codec, shown, rate, pix_fmt, options, container_options, format)
    return path


def _numbers_inside(path: Path) -> list[int | None]:
    with av.open(str(path)) as container:
        return sorted(
            (number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)),
            key=lambda number: -1 if number is None else number,
        )


def _write(
    path: Path,
    codec: str,
    ticks: Sequence[int],
    rate: int,
    pix_fmt: str,
    options: dict[str, str] | None,
    container_options: dict[str, str] | None,
    format: str | None,
) -> None:
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=PYRAMID if options is None else options)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = SIZE
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def remux(
    source: Path,
    target: Path,
    change: Callable[[int, "av.Packet"], bool] = lambda number, packet: True,
    format: str | None = None,
) -> Path:
    """Copy the packets of a video; `change` gets each with its number, and says whether it is kept."""
    with av.open(str(source)) as old, av.open(str(target), "w", format=format) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        number = 0
        for packet in old.demux(video=0):
            if packet.size:
                if change(number, packet):
                    packet.stream = stream
                    new.mux(packet)
                number += 1
    return target


def packets(path: Path) -> list[tuple[int, int]]:
    """Where the data of each packet begins and how long it is, in bytes."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size and packet.pos]


def numbers(path: Path, whole: bool = False) -> list[int | None]:
    """The number that each row shows; None where its picture is lost, or cannot be made out."""
    reformatter = VideoReformatter()
    with Decoder(path, whole) as decoder:
        return [
            None if row.frame is None else number_of(reformatter.reformat(row.frame, format="rgb24").to_ndarray())
            for row in decoder.pictures()
        ]
