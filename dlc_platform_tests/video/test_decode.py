"""The rows that decoding gives: the same from every start, one for each frame, and in OpenCV's colours."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from dlc_platform.errors import PlatformError
from dlc_platform.video.account import Decoded, account_of
from dlc_platform.video.decode import Decoder, to_bgr
from dlc_platform.video.frames import read_frames
from dlc_platform.video.probe import probe
from dlc_platform.video.times import NO_TIME
from dlc_platform_tests.video.conftest import cut, rot, spoil

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


@pytest.mark.parametrize("break_it", [lambda path: rot(path, 800), lambda path: cut(path, 0.6)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"container_options": {"movflags": "faststart"}}),
        ("a.mkv", {}),
        ("mpeg4.mp4", {"codec": "mpeg4", "container_options": {"movflags": "faststart"}}),
        ("a.avi", {"codec": "mpeg4"}),
        ("raw.h264", {"format": "h264"}),
    ],
)
def test_rows_of_a_damaged_video_are_the_same_from_every_start(
    make_video: Make, name: str, options: dict, break_it: Callable[[Path], Path]
) -> None:
    path = break_it(make_video(name, **options))
    expected = rows(path, whole=False)
    assert len(expected) > 8
    for start in (0, 1, 7, 29, 30, 31, 32, 33, len(expected) - 1, len(expected)):
        assert rows(path, whole=False, start=start) == expected[start:]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.hevc.mp4", "jpeg.avi"])
def test_a_lost_frame_keeps_its_place(make_video: Make, name: str) -> None:
    """What is not hit by the damage is what it was, and in its row."""
    options = {
        "a.hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "keyint=12:log-level=none"}},
        "jpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "codec_options": {"q": "3"}},
    }
    path = make_video(name, **options.get(name, {}))
    expected = rows(path, whole=True)
    spoil(path, [30, 31, 32])
    found = rows(path, whole=False)
    assert [pts for pts, _, _ in found] == [pts for pts, _, _ in expected]
    assert any(damaged or pixels is None for _, damaged, pixels in found)
    assert sum(pixels is None for _, _, pixels in found) <= 20
    assert found[:20] == expected[:20] and found[-6:] == expected[-6:]


@pytest.mark.parametrize("name", ["a.mp4", "fragments.mp4", "a.mkv", "a.hevc.mp4"])
def test_a_lost_first_key_frame_keeps_the_later_places(make_video: Make, name: str) -> None:
    options = {
        "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
        "a.hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "keyint=24:log-level=none"}},
    }
    h264 = {"codec_options": {"g": "24", "bf": "2", "x264-params": "scenecut=0"}}
    path = make_video(name, **{**h264, **options.get(name, {})})
    expected = rows(path, whole=True)
    spoil(path, [0])
    found = rows(path, whole=False)
    assert [pts for pts, _, _ in found] == [pts for pts, _, _ in expected]
    assert all(pixels is None for _, _, pixels in found[:24]) and found[24:] == expected[24:]
    account = probe(path).account
    assert (account.lost, account.missing_at_end, account.damaged) == (24, 0, 0)


def test_a_video_beginning_without_a_key_frame_has_lost_nothing(make_video: Make) -> None:
    path = make_video("a.mkv", codec_options={"g": "12", "bf": "0", "x264-params": "scenecut=0"})
    headless = path.with_name("headless.mkv")
    with av.open(str(path)) as source, av.open(str(headless), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= 5 and packet.pts is not None:
                packet.stream = stream
                target.mux(packet)
    found = rows(headless, whole=False)
    assert found == rows(path, whole=True)[12:]
    assert rows(headless, whole=True, start=30) == found[30:]


@pytest.mark.parametrize("x264_params", ["scenecut=0", "scenecut=0:open-gop=1"])
def test_a_file_without_times_of_presentation_has_lost_nothing(make_video: Make, x264_params: str) -> None:
    """Some writers store the order of decoding as that of presentation: the decoder's order is right, and kept."""
    path = make_video("a.mp4", codec_options={"g": "12", "bf": "2", "x264-params": x264_params})
    wrong = path.with_name("wrong.mp4")
    with av.open(str(path)) as source, av.open(str(wrong), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.pts is not None:
                packet.pts = packet.dts = number * 512
                packet.stream = stream
                target.mux(packet)
    pictures = [row[1:] for row in rows(wrong, whole=False)]
    assert pictures == [row[1:] for row in rows(path, whole=True)]
    for start in range(1, 60):
        assert [row[1:] for row in rows(wrong, whole=True, start=start)] == pictures[start:]


def test_interlaced_pictures_are_whole(make_video: Make) -> None:
    path = make_video("a.mp4", codec_options={"g": "12", "x264-params": "interlaced=1"})
    found = rows(path, whole=False)
    assert len(found) == 60 and all(pixels is not None and not damaged for _, damaged, pixels in found)


def assert_as_opencv_gives(path: Path) -> None:
    capture = cv2.VideoCapture(str(path))
    reformatter = VideoReformatter()
    with Decoder(path, whole=True) as decoder:
        pictures = [to_bgr(row.frame, reformatter) for row in decoder.pictures() if row.frame is not None]
    assert len(pictures) == 4
    for picture in pictures:
        assert picture.flags.c_contiguous
        np.testing.assert_array_equal(picture, capture.read()[1])


@pytest.mark.parametrize("size", [(128, 96), (97, 61)])
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "color_range"),
    [
        ("libx264", "yuv420p", 1),
        ("libx264", "yuv420p", 2),
        ("libx264", "yuvj420p", 2),
        ("libx264", "yuv422p", 1),
        ("libx264", "yuv444p", 1),
        ("libx264", "yuv420p10le", 1),
        ("libx264", "gray", 1),
        ("libx264", "gray10le", 1),
        ("ffv1", "gray16le", 1),
        ("mpeg4", "yuv420p", 1),
        ("mjpeg", "yuvj422p", 2),
        ("mjpeg", "yuvj420p", 2),
    ],
)
def test_pictures_are_those_that_opencv_gives(
    make_video: Make, codec: str, pix_fmt: str, color_range: int, size: tuple[int, int]
) -> None:
    if size[0] % 2 and codec == "libx264" and pix_fmt in ("yuv420p", "yuvj420p", "yuv422p", "yuv420p10le"):
        size = (98, 62)  # the encoder takes even sizes only
    options = {"codec": codec, "pix_fmt": pix_fmt, "color_range": color_range, "codec_options": {"threads": "1"}}
    assert_as_opencv_gives(make_video("a.mkv", frames=4, size=size, **options))


@pytest.mark.parametrize("turn", [90, 180, 270])
@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv444p"), ("libx264", "gray10le"), ("mpeg4", "yuv420p")])
def test_turned_pictures_of_an_odd_size_are_those_of_opencv(
    make_video: Make, codec: str, pix_fmt: str, turn: int
) -> None:
    options = {"codec": codec, "pix_fmt": pix_fmt, "codec_options": {"threads": "1"}}
    assert_as_opencv_gives(make_video("a.mov", frames=4, size=(97, 61), rotation=turn, **options))


@pytest.mark.parametrize("turn", [1, 45, -45, 89, 89.6, 91, 135, 179, 269.7, 271])
def test_only_quarter_turns_are_made_as_by_opencv(make_video: Make, turn: float) -> None:
    path = make_video("a.mov", frames=4, rotation=turn, codec_options={"threads": "1"})
    assert_as_opencv_gives(path)
    info = probe(path)
    assert info.rotation == {89.6: 90, 269.7: 270}.get(turn, 0)
    assert (info.width, info.height) == ((96, 128) if info.rotation else (128, 96))


def test_single_pictures_of_a_damaged_video_match_its_rows(make_video: Make) -> None:
    path = rot(make_video("a.mp4"), 800)
    found = rows(path, whole=False)
    lost = [number for number, row in enumerate(found) if row[2] is None]
    kept = [number for number, row in enumerate(found) if row[2] is not None]
    pictures = read_frames(path, kept, whole=False)
    assert [picture[:, :, ::-1].tobytes() for picture in pictures] == [found[number][2] for number in kept]
    if lost:
        with pytest.raises(PlatformError, match=f"has no frame {lost[0]}"):
            read_frames(path, lost[:1], whole=False)


def test_an_account_counts_each_row_once() -> None:
    lost, damaged = np.array([False, True, False, False]), np.array([False, False, True, False])
    facts = {"declared": 9, "truncated": True, "holes": 1, "left_out": 2, "decoder": "a decoder"}
    facts |= {"keeps_presentation_times": True}
    untimed = np.full(4, NO_TIME)
    account, clock = account_of(Decoded(np.array([0, 2, 4, 4]), untimed, lost, damaged), indexed=6, **facts)
    assert (account.decoded, account.lost, account.damaged, account.missing_at_end) == (3, 1, 1, 2)
    assert (account.duplicated_timestamps, account.variable_frame_rate) == (1, True)
    assert (account.left_out, account.times_reordered, account.times_estimated, account.clock_resets) == (2, 0, 0, 0)
    assert clock.ticks.tolist() == [0, 2, 4, 4]
    assert account.problem(Path("/raw/a.mp4")) == (
        "/raw/a.mp4 is truncated: 3 of 9 frames can be decoded, 1 of them with errors, 1 between them cannot, 2 more "
        "that the index promises are missing, frames may be missing in 1 place where bytes are wrong or missing, "
        "then the file ends"
    )
    without_times, _ = account_of(Decoded(untimed, untimed, lost, damaged), indexed=0, **facts)
    assert (without_times.duplicated_timestamps, without_times.variable_frame_rate) == (None, None)
