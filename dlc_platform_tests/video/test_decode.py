"""The rows that decoding gives: the same from every start, one for each frame, and in OpenCV's colours."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from dlc_platform.errors import PlatformError
from dlc_platform.video.decode import Decoder, to_bgr
from dlc_platform_tests.video.conftest import cut, rot

Make = Callable[..., Path]


def rows(path: Path, whole: bool, start: int = 0) -> list[tuple[int | None, bool, bytes | None]]:
    """Each row as its timestamp, whether it is damaged, and its pixels."""
    reformatter = VideoReformatter()
    with Decoder(path, whole) as decoder:
        return [
            (row.pts, row.damaged, None if row.frame is None else to_bgr(row.frame, reformatter).tobytes())
            for row in decoder.pictures(start)
        ]


VIDEOS = [
    ("closed.mp4", {}),
    ("open.mp4", {"codec_options": {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}}),
    ("refresh.mp4", {"codec_options": {"g": "8", "bf": "0", "x264-params": "intra-refresh=1:scenecut=0"}}),
    ("open_hevc.mp4", {"codec": "libx265", "codec_options": {"x265-params": "keyint=8:open-gop=1:log-level=none"}}),
    ("a.mkv", {"codec_options": {"g": "8", "bf": "2"}}),
    ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ("mpeg4.mp4", {"codec": "mpeg4"}),
    ("a.avi", {"codec": "mpeg4"}),
    ("h264.avi", {}),
    ("jpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "codec_options": {"q": "3"}}),
    ("a.webm", {"codec": "libvpx-vp9", "codec_options": {"g": "8", "cpu-used": "8", "auto-alt-ref": "1"}}),
    ("raw.h264", {"format": "h264"}),
    ("a.ts", {"format": "mpegts"}),
]


@pytest.mark.parametrize(("name", "options"), VIDEOS)
def test_the_rows_are_the_same_from_every_start(make_video: Make, name: str, options: dict) -> None:
    path = make_video(name, frames=33, **options)
    expected = rows(path, whole=True)
    assert len(expected) == 33
    assert not any(damaged or pixels is None for _, damaged, pixels in expected)
    assert rows(path, whole=False) == expected
    with Decoder(path, whole=True) as decoder:
        reformatter = VideoReformatter()
        for start in range(35):
            tail = [
                (row.pts, row.damaged, to_bgr(row.frame, reformatter).tobytes())
                for row in decoder.pictures(start)
                if row.frame is not None
            ]
            assert tail == expected[start:]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_decoding_from_the_middle_begins_at_a_key_frame(make_video: Make, name: str) -> None:
    path = make_video(name, codec_options={"g": "12", "bf": "2", "x264-params": "scenecut=0"})
    with Decoder(path, whole=True) as decoder:
        assert [decoder.begins_at(row) for row in (0, 11, 12, 13, 47, 59)] == [0, 0, 12, 12, 36, 48]
    with Decoder(path, whole=False) as decoder:
        assert decoder.begins_at(59) == 0
