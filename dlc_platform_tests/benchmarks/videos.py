"""Videos that inference is measured on: pieces of a real one as it is encoded, and drawn ones of any length."""

from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.video.probe import probe

if TYPE_CHECKING:
    from av import Packet

#: The type of "supplemental enhancement information" in H.264.
_SEI = 6


def cut(video: Path, frames: int, pieces: int, folder: Path) -> list[Path]:
    """Copy frames of a video, which begins anew where it ends, into files of their own without encoding them anew.

    Each piece begins at the next key frame after the piece before, so that the encoding, and with it the cost of
    decoding, is that of the video. Together they have `frames` frames.
    """
    import av

    folder.mkdir(parents=True)
    packets = _endless(video)
    about = _about_encoder(video)
    files = []
    for number in range(pieces):
        length = frames // pieces + (number < frames % pieces)
        key = next(packet for packet in packets if packet.is_keyframe)
        first = av.Packet(about + bytes(key))
        first.pts, first.dts, first.time_base, first.is_keyframe = key.pts, key.dts, key.time_base, True
        origin = key.dts or 0
        files.append(folder / f"piece-{number:02}.mp4")
        with av.open(str(video)) as source, av.open(str(files[-1]), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in chain([first], islice(packets, length - 1)):
                assert packet.pts is not None and packet.dts is not None
                packet.pts -= origin
                packet.dts -= origin
                packet.stream = stream
                target.mux(packet)
        assert probe(files[-1]).account.whole
    return files


def draw(path: Path, frames: int, width: int, height: int, seed: int = 0) -> Path:
    """Write a video of a spot that wanders over a noisy floor, at 25 frames per second."""
    import av

    floor = np.random.default_rng(seed).integers(60, 120, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = floor.copy()
            x, y = number % (width - 8), number // 7 % (height - 8)
            picture[y : y + 8, x : x + 8] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())
    return path


def _about_encoder(video: Path) -> bytes:
    """What the first packet of H.264 in MP4 says of its encoder, in units of a length of 4 bytes and a type.

    x264 says its version there, once. Without it FFmpeg cannot decode 4:4:4 of its old versions, which have a fault.
    """
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name != "h264" or not (stream.codec_context.extradata or b"").startswith(b"\x01"):
            return b""
        data = bytes(next(container.demux(stream)))
    end = 0
    while data[end + 4] & 31 == _SEI:
        end += 4 + int.from_bytes(data[end : end + 4], "big")
    return data[:end]


def _endless(video: Path) -> "Iterator[Packet]":
    """The packets of a video, over and over, with timestamps that go on."""
    import av

    duration = 0
    for turn in count():
        start = turn * duration
        with av.open(str(video)) as container:
            for packet in container.demux(video=0):
                if packet.pts is None or packet.dts is None:  # the end
                    continue
                duration = max(duration, packet.pts + (packet.duration or 0))
                packet.pts += start
                packet.dts += start
                yield packet
