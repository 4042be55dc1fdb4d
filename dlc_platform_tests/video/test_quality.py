"""What is measured of videos, of real ones and of those written here with every fault of a camera or a program."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from dlc_platform.plots.canvas import LIMIT_BYTES
from dlc_platform.plots.videos import video_timeline
from dlc_platform.video.probe import probe
from dlc_platform_tests.video.conftest import spoil

WIDTH, HEIGHT = 192, 128
RANDOM = np.random.default_rng(7)


#: A floor with texture, in grey levels.
FLOOR = np.kron(RANDOM.uniform(60, 180, (HEIGHT // 8, WIDTH // 8)), np.ones((8, 8)))


def noisy(frames: int, sigma: float = 4.0) -> list[np.ndarray]:
    """An animal at rest, under a camera with noise."""
    return [FLOOR + RANDOM.normal(0, sigma, FLOOR.shape) for _ in range(frames)]


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Grey pictures as a video of 25 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.bit_rate = 8_000_000  # or encoders leave out the noise
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures):
            grey = np.clip(picture, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[:, :, None], 3, axis=2), format="rgb24")
            if number == 0:
                stream.height, stream.width = grey.shape
                stream.pix_fmt = pix_fmt
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def retimed(path: Path, times_ms: Sequence[int]) -> Path:
    """A copy whose frames are shown at these times, in Matroska, which keeps milliseconds."""
    target = path.with_name("retimed.mkv")
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet, time in zip(packets, times_ms, strict=True):
            packet.stream = stream
            packet.time_base = stream.time_base or packet.time_base
            packet.pts = packet.dts = round(time / 1000 / float(packet.time_base or 1))
            container.mux(packet)
    return target


#: Codecs and formats whose first plane holds the luma, in 8 bits and more, and others.
FORMATS = [
    ("libx264", "yuv420p", "mp4"),
    ("libx264", "yuv444p", "mp4"),
    ("libx264", "gray", "mp4"),
    ("libx264rgb", "rgb24", "mp4"),
    ("libx265", "yuv420p10le", "mp4"),
    ("mjpeg", "yuvj420p", "avi"),
    ("mpeg4", "yuv420p", "avi"),
    ("ffv1", "gray", "mkv"),
    ("ffv1", "gray16le", "mkv"),
    ("ffv1", "bgr0", "mkv"),
    ("ffv1", "gbrp10le", "mkv"),
    ("rawvideo", "yuyv422", "avi"),
    ("png", "rgb24", "mov"),
]


@pytest.mark.parametrize(("codec", "pix_fmt", "kind"), FORMATS)
def test_exposure_is_the_same_in_every_format(tmp_path: Path, codec: str, pix_fmt: str, kind: str) -> None:
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    quality = probe(write(tmp_path / f"a.{kind}", noisy(20), codec, pix_fmt, options)).quality
    assert quality.exposure == pytest.approx(FLOOR.mean(), abs=2)
    assert quality.fraction_dark == quality.fraction_bright == 0
    assert quality.black == quality.frozen == ()
    assert quality.focus is not None and quality.focus > 50


@pytest.mark.parametrize(("codec", "pix_fmt", "kind"), FORMATS)
def test_black_is_black_in_every_format(tmp_path: Path, codec: str, pix_fmt: str, kind: str) -> None:
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    dark = [np.zeros((HEIGHT, WIDTH))] * 25
    quality = probe(write(tmp_path / f"a.{kind}", [*noisy(10), *dark, *noisy(10)], codec, pix_fmt, options)).quality
    (stretch,) = quality.black
    assert (stretch.first_frame, stretch.frames) == (10, 25)
    assert stretch.seconds == quality.black_s == pytest.approx(1.0, abs=0.01)
    assert quality.fraction_dark is not None and 0.2 < quality.fraction_dark < 0.8


def test_an_animal_that_is_lit_in_the_dark_is_not_black(tmp_path: Path) -> None:
    pictures = [np.zeros((HEIGHT, WIDTH)) for _ in range(25)]
    for number, picture in enumerate(pictures):
        picture[60:66, 20 + number : 26 + number] = 150
    assert probe(write(tmp_path / "a.mp4", pictures)).quality.black == ()


@pytest.mark.parametrize(
    ("codec", "kind", "options"),
    [
        ("libx264", "mp4", {}),
        ("libx264", "mp4", {"g": "12", "crf": "18"}),
        ("libx264", "mp4", {"preset": "ultrafast", "crf": "20"}),
        ("mpeg4", "avi", {}),
        ("mjpeg", "avi", {}),
        ("ffv1", "mkv", {}),
    ],
)
def test_a_hanging_camera_is_frozen_and_a_resting_animal_is_not(
    tmp_path: Path, codec: str, kind: str, options: dict[str, str]
) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    rest = noisy(60)
    quality = probe(write(tmp_path / f"rest.{kind}", rest, codec, pix_fmt, options)).quality
    assert quality.frozen_s < 2, "at most what lies between two key frames"
    hung = [*rest[:20], *[rest[20]] * 100, *rest[21:40]]
    quality = probe(write(tmp_path / f"hung.{kind}", hung, codec, pix_fmt, options)).quality
    stretch = quality.frozen[0]
    # An encoder refines the first of the pictures that repeat each other, for up to a second.
    assert 20 <= stretch.first_frame <= 45
    assert abs(stretch.first_frame + stretch.frames - 120) <= 3
    assert quality.frozen_s == stretch.seconds > 2.5


def test_over_exposed_and_blurred(tmp_path: Path) -> None:
    import cv2

    sharp = noisy(10, 1)
    plain = probe(write(tmp_path / "sharp.mp4", sharp)).quality
    blurred = probe(write(tmp_path / "blurred.mp4", [cv2.GaussianBlur(p, (0, 0), 3) for p in sharp])).quality
    bright = probe(write(tmp_path / "bright.mp4", [p + 130 for p in sharp])).quality
    assert plain.focus is not None and blurred.focus is not None and blurred.focus < plain.focus / 10
    assert blurred.exposure == pytest.approx(plain.exposure, abs=1)
    assert bright.exposure is not None and bright.exposure > 220
    assert bright.fraction_bright is not None and bright.fraction_bright > 0.3


@pytest.mark.parametrize("size", [(16, 16), (2, 2), (34, 18), (130, 66), (WIDTH, HEIGHT)])
def test_small_and_odd_sizes_and_single_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    quality = probe(write(tmp_path / "one.mkv", [np.full((height, width), 100.0)], "ffv1")).quality
    assert quality.exposure == pytest.approx(100, abs=2)
    assert (quality.dropped, quality.longest_gap_s, quality.jitter_ms) == (None, None, None)
    assert quality.black == quality.frozen == ()
    assert (quality.focus is None) is (min(size) < 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 17)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    quality = probe(write(tmp_path / "odd.mkv", [np.full((height, width), 100.0)] * 30, "ffv1", "gray")).quality
    assert quality.exposure == pytest.approx(100, abs=1)
    assert quality.frozen_s == pytest.approx(30 / 25, abs=0.05)


def test_a_turned_video_has_the_same_figures(tmp_path: Path) -> None:
    pictures = noisy(10)
    # Without loss: of the same pictures x264 does not always write the same bytes.
    upright = probe(write(tmp_path / "a.mp4", pictures, options={"qp": "0"}))
    turned = probe(write(tmp_path / "b.mp4", pictures, options={"qp": "0"}, rotation=90))
    assert (turned.width, turned.height) == (upright.height, upright.width)
    assert turned.quality.exposure == upright.quality.exposure and turned.quality.focus == upright.quality.focus


def jittered() -> list[int]:
    return [40 * number + (number % 3) * 4 for number in range(60)]


@pytest.mark.parametrize(
    ("times_ms", "dropped", "longest_gap_s", "jitter_ms"),
    [
        ([40 * n for n in range(60)], 0, 0.04, 0),
        ([40 * n for n in range(64) if n not in (20, 40, 41, 42)], 4, 0.16, 0),
        # Three in a row and one, with an interval that is no whole number of others.
        ([40 * n + (15 if n > 30 else 0) for n in range(60)], 0, 0.055, pytest.approx(2, abs=0.5)),
        (jittered(), 0, 0.044, pytest.approx(5.6, abs=0.5)),
        ([40 * n for n in range(59)] + [40 * 58], 0, 0.04, 0),
        # No rate that frames could drop out of.
        (np.cumsum([10 + 37 * (n % 5) for n in range(60)]).tolist(), None, 0.158, pytest.approx(52.3, abs=0.5)),
    ],
)
def test_timestamps(
    tmp_path: Path, times_ms: list[int], dropped: int | None, longest_gap_s: float, jitter_ms: float
) -> None:
    path = retimed(write(tmp_path / "a.mkv", noisy(60), "mjpeg", "yuvj420p"), times_ms)
    info = probe(path)
    assert info.frames == 60
    quality = info.quality
    assert (quality.dropped, quality.longest_gap_s) == (dropped, pytest.approx(longest_gap_s))
    assert quality.jitter_ms == jitter_ms


def test_rounded_timestamps_are_no_gaps(make_video: Callable[..., Path]) -> None:
    quality = probe(make_video("a.mkv", rate=30)).quality
    assert quality.dropped == 0 and quality.jitter_ms is not None and quality.jitter_ms < 0.6
    assert probe(make_video("raw.h264", format="h264")).quality.dropped is None


def test_lost_frames_are_not_measured(make_video: Callable[..., Path]) -> None:
    info = probe(spoil(make_video("a.mp4", codec_options={"g": "1"}), [10, 11]))
    assert info.account.lost > 0
    timeline = info.quality.timeline
    assert len(timeline.exposure) == len(timeline.change) == len(timeline.focus) == info.frames
    assert int(np.isnan(timeline.exposure).sum()) == info.account.lost


@pytest.mark.parametrize("frames", [1, 2, 60])
def test_the_timeline_is_a_small_picture(make_video: Callable[..., Path], frames: int) -> None:
    info = probe(make_video("a.mp4", frames=frames))
    drawn = video_timeline(info.times_s, info.quality.timeline)
    assert drawn.startswith(b"\x89PNG") and len(drawn) <= LIMIT_BYTES
    assert drawn == video_timeline(info.times_s, info.quality.timeline)


def test_real_videos_are_not_black_or_frozen_and_lack_no_frame() -> None:
    if "DLC_PLATFORM_TEST_DATA" not in os.environ:
        pytest.skip("DLC_PLATFORM_TEST_DATA does not say where the shared data are")
    sessions = Path(os.environ["DLC_PLATFORM_TEST_DATA"]) / "sessions"
    videos = [path for path in sessions.rglob("*") if path.suffix in (".mp4", ".avi")]
    assert len(videos) >= 8
    for path in videos:
        quality = probe(path).quality
        assert quality.black == quality.frozen == () and quality.dropped == 0, path
        assert quality.exposure is not None and quality.focus is not None, path
