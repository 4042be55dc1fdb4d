"""Every way in which a video file can lie, on files that are written here and on real ones."""

import os
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.video.decode import Decoder
from dlc_platform.video.probe import probe
from dlc_platform_tests.video.conftest import cut, rot

Make = Callable[..., Path]


def test_says_what_a_video_holds(make_video: Make) -> None:
    path = make_video("a.mp4", frames=61, rate=Fraction(30000, 1001))
    info = probe(path)
    assert info.sha256 == sha256_file(path)
    assert info.size_bytes == path.stat().st_size
    assert (info.width, info.height, info.rotation) == (128, 96, 0)
    assert info.frame_rate == Fraction(30000, 1001)
    assert info.frames == info.account.declared == info.account.decoded == 61
    assert (info.codec, info.pixel_format) == ("h264", "yuv420p")
    assert info.times_s.dtype == np.float64
    np.testing.assert_allclose(info.times_s, np.arange(61) * 1001 / 30000, atol=1e-4)
    assert info.duration_s == pytest.approx(61 * 1001 / 30000, abs=1e-3)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_keeps_the_times_of_a_variable_frame_rate(make_video: Make, name: str) -> None:
    times_ms = np.cumsum([10 + (number % 7) * 9 for number in range(60)])
    info = probe(make_video(name, times_ms=times_ms.tolist()))
    np.testing.assert_allclose(info.times_s, (times_ms - times_ms[0]) / 1000, atol=1.1e-3)
    assert info.account.variable_frame_rate and info.account.whole


@pytest.mark.parametrize(("turn", "size"), [(90, (96, 128)), (180, (128, 96)), (270, (96, 128))])
def test_measures_a_turned_video_as_it_is_shown(make_video: Make, turn: int, size: tuple[int, int]) -> None:
    info = probe(make_video("turned.mp4", frames=5, rotation=turn))
    assert (info.rotation, info.width, info.height) == (turn, *size)


def test_a_raw_stream_declares_no_frames(make_video: Make) -> None:
    info = probe(make_video("raw.h264", format="h264"))
    assert (info.frames, info.account.declared) == (60, None)
    np.testing.assert_allclose(info.times_s, np.arange(60) / float(info.frame_rate))


def test_an_avi_that_claims_twice_its_frames_is_whole(make_video: Make) -> None:
    path = make_video("a.avi", codec="mpeg4")
    content = bytearray(path.read_bytes())
    for chunk, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = content.index(chunk) + offset
        assert int.from_bytes(content[at : at + 4], "little") == 60
        content[at : at + 4] = (120).to_bytes(4, "little")
    path.write_bytes(content)
    info = probe(path)
    assert (info.frames, info.account.declared) == (60, 120)
    assert info.duration_s == pytest.approx(2)


def test_a_placeholder_in_the_header_is_no_number_of_frames(make_video: Make) -> None:
    path = make_video("a.avi", codec="mpeg4")
    content = bytearray(path.read_bytes())
    for chunk, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = content.index(chunk) + offset
        content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    info = probe(path)
    assert (info.frames, info.account.declared) == (60, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("front.mp4", {"movflags": "faststart"}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
    ],
)
def test_a_truncated_file_gives_what_it_holds_and_says_so(make_video: Make, name: str, options: dict[str, str]) -> None:
    path = make_video(name, container_options=options)
    whole = probe(path)
    assert whole.frames == 60 and whole.account.whole and whole.account.problem(path) is None
    info = probe(cut(path, 0.6))
    with Decoder(path, whole=False) as decoder:
        assert decoder.is_truncated, "whether or not the rows were asked for"
    assert info.account.truncated and not info.account.whole
    assert 30 <= info.account.decoded <= info.frames < 40
    np.testing.assert_array_equal(info.times_s, whole.times_s[: info.frames])
    problem = info.account.problem(path)
    assert problem and re.search(
        rf"{name} is truncated: 3\d (of 60 )?frames can be decoded.*then the file ends", problem
    )


def test_a_truncated_avi_says_so(make_video: Make) -> None:
    path = cut(make_video("a.avi", codec="mpeg4"), 0.6)
    account = probe(path).account
    assert account.damaged + account.lost == 1
    assert re.search(
        r"a\.avi is truncated: \d+ of 60 frames can be decoded.*then the file ends", account.problem(path) or ""
    )


def test_refuses_a_file_whose_index_was_never_written(make_video: Make) -> None:
    with pytest.raises(PlatformError, match=r"its index is missing.*Copy the file again"):
        probe(cut(make_video("a.mp4"), 0.6))


@pytest.mark.parametrize("count", [4, 400, 4000])
def test_bit_rot_leaves_a_row_for_each_frame(make_video: Make, count: int) -> None:
    path = make_video("a.mp4")
    times_s = probe(path).times_s
    info = probe(rot(path, count))
    assert info.frames == 60 and info.account.lost + info.account.damaged > 0
    np.testing.assert_array_equal(info.times_s, times_s)
    assert re.search(r"a\.mp4 is damaged: \d\d of 60 frames can be decoded", info.account.problem(path) or "")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {}),
        ("live.mkv", {"container_options": {"live": "1"}}),
        ("mpeg4.mkv", {"codec": "mpeg4"}),
        ("jpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "codec_options": {"q": "3"}}),
    ],
)
def test_frames_that_vanish_from_a_file_are_noticed(make_video: Make, name: str, options: dict) -> None:
    """FFmpeg skips a packet whose header is overwritten, and what lies between it and the next one it can make out."""
    path = make_video(name, **options)
    assert probe(path).account.whole
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.pos is not None]
    content = bytearray(path.read_bytes())
    position, size = packets[30]
    position -= 8  # before the data of an AVI file
    content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    info = probe(path)
    with Decoder(path, whole=False) as decoder:
        assert decoder.holes == info.account.holes, "whether or not the rows were asked for"
    assert info.frames < 60 and info.account.holes > 0 and not info.account.whole
    assert "frames may be missing in" in (info.account.problem(path) or "")


def test_refuses_a_video_of_which_nothing_can_be_decoded(make_video: Make) -> None:
    path = make_video("a.mp4", frames=10)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : content.index(b"moov") - 4] = bytes(content.index(b"moov") - 4 - start)
    path.write_bytes(content)
    with pytest.raises(PlatformError, match=r"a\.mp4 holds no frames that can be decoded, of 10 that are in it"):
        probe(path)


def test_a_damaged_file_has_the_same_answer_every_time(make_video: Make) -> None:
    path = make_video("a.avi", codec="mpeg4")
    whole = path.read_bytes()
    for place in range(len(whole) // 5, len(whole) // 2, len(whole) // 60):
        path.write_bytes(whole[:place] + np.random.default_rng(1).bytes(30) + whole[place + 30 :])
        assert len({probe(path).account for _ in range(20)}) == 1


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize("rate", [30, Fraction(30000, 1001), 25, 120])
def test_a_steady_frame_rate_is_no_variable_one(make_video: Make, name: str, rate: Fraction) -> None:
    account = probe(make_video(name, rate=rate)).account
    assert (account.variable_frame_rate, account.duplicated_timestamps) == (False, 0)


def test_timestamps_that_come_twice_are_counted(make_video: Make) -> None:
    path = make_video("a.mkv", codec="mjpeg", pix_fmt="yuvj420p", codec_options={"q": "3"})
    twice = path.with_name("twice.mkv")
    before = 0
    with av.open(str(path)) as source, av.open(str(twice), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.pts is not None:
                if number % 20 == 19:
                    packet.pts = packet.dts = before
                before = packet.pts
                packet.stream = stream
                target.mux(packet)
    info = probe(twice)
    assert (info.frames, info.account.duplicated_timestamps, info.account.variable_frame_rate) == (60, 3, True)
    assert info.account.whole


def test_a_file_with_a_wrong_extension_is_read_by_its_content(make_video: Make) -> None:
    path = make_video("a.avi", codec="mpeg4")
    whole = probe(path)
    mislabelled = path.rename(path.with_name("a.mp4"))
    info = probe(mislabelled)
    assert (info.sha256, info.frames, info.account) == (whole.sha256, 60, whole.account) and info.account.whole


def test_refuses_pictures_of_two_sizes(make_video: Make) -> None:
    small, large = make_video("a.h264", format="h264"), make_video("b.h264", format="h264", size=(160, 120))
    both = small.with_name("both.h264")
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(PlatformError, match=r"at frame 60: from 128 x 96 to 160 x 120 pixels"):
        probe(both)


def test_an_edit_list_is_no_truncation(make_video: Make, tmp_path: Path) -> None:
    # A copy without re-encoding from 5 frames after a key frame: those 5 stay in the file and are not shown.
    whole, trimmed = (
        make_video("a.mp4", codec_options={"g": "12", "bf": "0", "x264-params": "scenecut=0"}),
        tmp_path / "b.mp4",
    )
    with av.open(str(whole)) as source, av.open(str(trimmed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= 12 and packet.pts is not None and packet.dts is not None:
                packet.pts -= 17 * 512
                packet.dts -= 17 * 512
                packet.stream = stream
                target.mux(packet)
    info = probe(trimmed)
    assert (info.frames, info.account.declared) == (43, 48)
    assert info.account.whole


def write_text(path: Path) -> None:
    path.write_text("a protocol, not a video\n" * 50)


def write_picture(path: Path) -> None:
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path, "JPEG")


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.rate, frame.pts = 44100, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (Path.touch, r"is empty \(0 bytes\)"),
        (write_text, "is not a video that FFmpeg knows"),
        (write_picture, "is not a video but a picture"),
        (write_sound, "holds no video stream"),
        (lambda path: path.write_bytes(np.random.default_rng(0).bytes(50_000)), "is not a video"),
        (Path.mkdir, "is not a file but a folder"),
        (lambda path: None, "does not exist"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
)
def test_refuses_what_is_no_video(tmp_path: Path, write: Callable[[Path], None], problem: str) -> None:
    path = tmp_path / "session.mp4"
    write(path)
    with pytest.raises(PlatformError, match=problem) as caught:
        probe(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_a_list_of_files_is_not_followed(make_video: Make, tmp_path: Path) -> None:
    make_video("a.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(PlatformError, match=r"list\.mp4 is a list of other files, not a video"):
        probe(tmp_path / "list.mp4")


def test_bit_rot_in_a_real_video_costs_the_frames_that_it_hits(tmp_path: Path) -> None:
    """OpenCV stops at the damage; here the frames behind it keep their rows and times."""
    if "DLC_PLATFORM_TEST_DATA" not in os.environ:
        pytest.skip("DLC_PLATFORM_TEST_DATA does not say where the shared data are")
    video = Path(os.environ["DLC_PLATFORM_TEST_DATA"]) / "sessions/sub-m3v1/ses-20181030/m3v1mp4.mp4"
    whole = probe(video)
    assert whole.frames == 2330 and whole.account.whole
    rotten = tmp_path / "rotten.mp4"
    shutil.copyfile(video, rotten)
    info = probe(rot(rotten, 4000))
    assert info.frames == 2330 and not info.account.whole
    assert 0 < info.account.lost < 20
    np.testing.assert_array_equal(info.times_s, whole.times_s)


@pytest.mark.parametrize(
    ("name", "size", "frames", "rate"),
    [
        ("sub-dog01/ses-01/dog_clip.avi", (350, 370), 296, Fraction(30)),
        ("sub-vame01/ses-01/cropped_video.mp4", (1064, 1070), 749, Fraction(25)),
        ("sub-df3d01/ses-01/camera_0.mp4", (960, 480), 15, Fraction(1, 5)),
        ("sub-bsoid01/ses-02/locomote_hstacked.mp4", (1350, 360), 117, Fraction(15)),
    ],
)
def test_real_videos(name: str, size: tuple[int, int], frames: int, rate: Fraction) -> None:
    if "DLC_PLATFORM_TEST_DATA" not in os.environ:
        pytest.skip("DLC_PLATFORM_TEST_DATA does not say where the shared data are")
    info = probe(Path(os.environ["DLC_PLATFORM_TEST_DATA"]) / "sessions" / name)
    assert ((info.width, info.height), info.frames, info.frame_rate) == (size, frames, rate)
    assert info.account.whole and not info.account.variable_frame_rate
    assert info.duration_s == pytest.approx(frames / float(rate), abs=1e-3)
    assert (np.diff(info.times_s) > 0).all()
