"""Single frames are those that decoding everything in order gives."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.video.frames import read_frames
from dlc_platform_tests.video.conftest import spoil, write_video

Make = Callable[..., Path]


def all_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("closed.mp4", {}),
        ("open.mp4", {"codec_options": {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}}),
        ("short.mp4", {"codec_options": {"g": "3", "bf": "2", "x264-params": "scenecut=0"}}),
        ("intra.mp4", {"codec_options": {"g": "1"}}),
        ("a.mkv", {}),
        ("a.avi", {"codec": "mpeg4"}),
        ("raw.h264", {"format": "h264"}),
    ],
)
def test_every_frame_is_exact(make_video: Make, name: str, options: dict) -> None:
    path = make_video(name, **options)
    expected = all_frames(path)
    assert len(expected) == 60
    for number, frame in enumerate(read_frames(path, range(60))):
        np.testing.assert_array_equal(frame, expected[number])
    for number in (0, 1, 7, 23, 24, 25, 47, 58, 59):
        (alone,) = read_frames(path, [number])
        np.testing.assert_array_equal(alone, expected[number])


def test_keeps_the_order_asked_for_and_repeats(make_video: Make) -> None:
    path = make_video("a.mp4")
    numbers = [40, 3, 40]
    levels = [frame[:, :50].mean() - 40 for frame in read_frames(path, numbers)]
    assert levels == pytest.approx(numbers, abs=3)
    assert read_frames(path, []) == []


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_is_the_picture_that_opencv_gives_a_tracker(make_video: Make, turn: int) -> None:
    path = make_video("turned.mp4", frames=5, rotation=turn)
    capture = cv2.VideoCapture(str(path))
    for frame in read_frames(path, range(5)):
        np.testing.assert_array_equal(frame, capture.read()[1][:, :, ::-1])


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_names_the_frames_that_are_not_there(make_video: Make, name: str) -> None:
    path = make_video(name, codec="mpeg4" if name.endswith("avi") else "libx264", frames=10)
    with pytest.raises(PlatformError, match="has no frame -1, 10"):
        read_frames(path, [3, 10, -1])


_FRAMES_WHILE_THE_LOG_IS_HEARD = """
import sys
from pathlib import Path
from dlc_platform.video.complaints import listening
from dlc_platform.video.frames import find_frames

with listening():
    for number in range(60):
        find_frames(Path(sys.argv[1]), [number % 20], whole=True)
"""


def test_a_decoder_that_complains_while_it_is_closed_ends(tmp_path: Path) -> None:
    """Its threads write into the log when a picture was enough, and another thread hears what FFmpeg says."""
    path = write_video(tmp_path / "spoilt.mp4", 120)
    spoil(path, range(3, 110, 2))
    subprocess.run([sys.executable, "-c", _FRAMES_WHILE_THE_LOG_IS_HEARD, str(path)], check=True, timeout=240)
