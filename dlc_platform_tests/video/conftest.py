"""Real video files, written for each test."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A frame that tells its number: the brightness of the left half, and noise that compresses badly."""
    rgb = np.random.default_rng(number).integers(0, 60, (height, width, 3), dtype=np.uint8)
    rgb[:, : width // 2] = number % 200 + 40
    return rgb


def write_video(
    path: Path,
    frames: int = 60,
    size: tuple[int, int] = (128, 96),
    rate: Fraction | int = 30,
    codec: str = "libx264",
    times_ms: Sequence[int] | None = None,
    rotation: float = 0,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
    pix_fmt: str = "yuv420p",
    color_range: int | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options or {"g": "12", "bf": "2"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if color_range is not None:
            stream.codec_context.color_range = color_range
        if rotation:
            stream.set_display_rotation(rotation)
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times_ms is not None:
                frame.time_base = Fraction(1, 1000)
                frame.pts = times_ms[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, fraction: float) -> Path:
    """The beginning of the file alone, as a broken copy leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def rot(path: Path, count: int) -> Path:
    """`count` wrong bytes in the middle of the file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + count] = np.random.default_rng(1).bytes(count)
    path.write_bytes(content)
    return path


def spoil(path: Path, frames: Sequence[int]) -> Path:
    """The data of the frames with these numbers, in the order of the file, overwritten."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.pos is not None]
        # The position is that of the block, whose header Matroska needs to find the next one.
        header = 20 if "matroska" in container.format.name else 0
    content = bytearray(path.read_bytes())
    for position, size in (packets[number] for number in frames):
        content[position + header : position + size] = b"\xff" * (size - header)
    path.write_bytes(content)
    return path


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video into the test's folder: ``make_video(name, frames=60, ...)``."""
    return lambda name, **options: write_video(tmp_path / name, **options)
