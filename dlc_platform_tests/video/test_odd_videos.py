"""Damage of every kind, in small videos whose pictures tell their own number: it is told, and time stays right."""

import logging
import os
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from dlc_platform.video.complaints import listening, tells_of_damage
from dlc_platform.video.decode import Decoder
from dlc_platform.video.probe import probe
from dlc_platform_tests.video.numbered import (
    BIDIRECTIONAL,
    PYRAMID,
    RATE,
    numbers,
    packets,
    remux,
    write_numbered,
)

SCANS: dict[str, Any] = {"codec": "mjpeg", "options": {"q": "3"}, "pix_fmt": "yuvj420p"}
SUMS: dict[str, Any] = {"codec": "ffv1", "options": {"level": "3", "slices": "4", "slicecrc": "1"}}
OPEN = {"bf": "2", "g": "12", "x264-params": "b-adapt=0:scenecut=0:open-gop=1"}
FORWARD = {"bf": "0", "g": "30", "x264-params": "scenecut=0"}


def shown(path: Path) -> list[tuple[bytes, bool]]:
    """The pixels of each row, and whether the row is damaged or lost."""
    reformatter = VideoReformatter()
    with Decoder(path, whole=False) as decoder:
        return [
            (b"", True)
            if row.frame is None
            else (reformatter.reformat(row.frame, format="rgb24").to_ndarray().tobytes(), row.damaged)
            for row in decoder.pictures()
        ]


def rot(path: Path, rows: list[int]) -> None:
    """Wrong bits in the scans of some pictures of Motion JPEG."""
    content = bytearray(path.read_bytes())
    places = packets(path)
    for row in rows:
        place = content.index(b"\xff\xda", places[row][0]) + 24
        content[place : place + 30] = b"\xaa\x55" * 15
    path.write_bytes(content)


def overwrite(path: Path, rows: list[int], data: bytes, offset: int) -> None:
    content = bytearray(path.read_bytes())
    places = packets(path)
    for row in rows:
        place = places[row][0] + offset
        content[place : place + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize("ending", ["avi", "mkv", "mov"])
def test_scans_that_a_jpeg_decoder_gives_up_are_damaged(tmp_path: Path, ending: str) -> None:
    """It hands out half a picture as a good one, and only writes a line into FFmpeg's log."""
    path = write_numbered(tmp_path / f"a.{ending}", **SCANS)
    good = shown(path)
    rows = [7, 8, 9, 31, 32, 50]
    rot(path, rows)
    found = shown(path)
    changed = [row for row, (before, after) in enumerate(zip(good, found, strict=True)) if before[0] != after[0]]
    assert changed == rows and [row for row, (_, is_damaged) in enumerate(found) if is_damaged] == rows
    account = probe(path).account
    assert account.damaged == 6 and not account.whole
    assert "6 of them with errors" in (account.problem(path) or "")


@pytest.mark.parametrize("ending", ["avi", "mkv"])
def test_wrong_checksums_are_damage(tmp_path: Path, ending: str) -> None:
    path = write_numbered(tmp_path / f"a.{ending}", **SUMS)
    good = shown(path)
    rows = list(range(10, 54))
    overwrite(path, rows, b"\x55", 90)
    found = shown(path)
    assert [row for row, (_, is_damaged) in enumerate(found) if is_damaged] == rows
    assert [own for own, _ in found[:10]] == [own for own, _ in good[:10]]
    account = probe(path).account
    # Of some the size of a slice is hit, and nothing is left.
    assert account.damaged + account.lost == 44 and account.damaged > 30


def test_each_reading_finds_the_same_complaints(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.avi", **SCANS)
    rot(path, list(range(5, 50, 3)))
    accounts = {probe(path).account for _ in range(5)}
    assert len(accounts) == 1 and accounts.pop().damaged == 15


@pytest.mark.parametrize(
    ("level", "writer", "text", "decoder", "expected"),
    [
        (16, "mjpeg", "overread 8", "mjpeg", True),
        (16, "mjpeg", "error y=3 x=7", "mjpeg", True),
        (16, "mjpeg", "unable to decode APP fields: Invalid data found when processing input", "mjpeg", False),
        (24, "mjpeg", "EOI missing, emulating", "mjpeg", False),
        (24, "swscaler", "deprecated pixel format used, make sure you did set range correctly", "mjpeg", False),
        (16, "ffv1", "slice CRC mismatch 12345678!", "ffv1", True),
        (24, "ffv1", "ignoring invalid SAR: 0/0", "ffv1", False),
        (16, "h264", "co located POCs unavailable", "h264", False),
        (16, "hevc", "Could not find ref with POC 3", "hevc", True),
        (16, "h264", "Frame num gap 5 3", "h264", True),
        (24, "jpeg2000", "Missing EOC Marker.", "jpeg2000", True),
        (24, "jpeg2000", "End mismatch 1", "jpeg2000", False),
        (16, "mpeg2video", "Warning MVs not available", "mpeg2video", False),
        (16, "avi", "Something is wrong", "ffv1", False),
    ],
)
def test_only_what_is_about_a_picture_is_damage(
    level: int, writer: str, text: str, decoder: str, expected: bool
) -> None:
    assert tells_of_damage([(level, writer, text)], decoder) is expected


VP8: dict[str, Any] = {"codec": "libvpx", "options": {"g": "30", "b": "1M"}}
PIECES: dict[str, dict[str, Any]] = {
    "a.asf": {"codec": "wmv2", "options": {"g": "12"}},
    "a.flv": {"options": FORWARD},
    "a.h264": {"options": FORWARD},
    "a.hevc": {"codec": "libx265", "options": {"g": "24", "x265-params": "log-level=none:info=0"}},
    "a.mxf": {"codec": "mpeg2video", "options": BIDIRECTIONAL},
    "a.nut": SCANS,
    "a.ogg": VP8,
}


def damaged(content: bytes, kind: str, seed: int) -> bytes:
    changed, rng = bytearray(content), np.random.default_rng(seed)
    place = int(rng.integers(len(content) // 4, len(content) * 3 // 4))
    if kind == "flip":
        changed[place] ^= int(rng.integers(1, 256))
    elif kind == "zero":
        place = place // 512 * 512
        changed[place : place + 512] = bytes(512)
    else:
        del changed[place : place + max(600, len(content) // 15)]
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "piece") for name in PIECES),
        *(("a.asf", "zero"), ("a.flv", "zero"), ("a.h264", "zero"), ("a.hevc", "zero"), ("a.mxf", "zero")),
        *(("a.ogg", "zero"), ("a.ogg", "flip")),
    ],
)
def test_rows_that_streams_lack_are_told(tmp_path: Path, name: str, kind: str) -> None:
    path = write_numbered(tmp_path / name, **PIECES[name])
    content = path.read_bytes()
    assert probe(path).account.whole
    for seed in range(4):
        path.write_bytes(damaged(content, kind, seed))
        account = probe(path).account
        assert not account.whole, (seed, account)
        assert account.problem(path)


@pytest.mark.parametrize("name", ["a.h264", "a.hevc"])
def test_pictures_that_raw_streams_lack_are_told(tmp_path: Path, name: str) -> None:
    """Cut on the edges of pictures: only the numbers in those that follow tell."""
    path = write_numbered(tmp_path / name, **PIECES[name])
    content, places = path.read_bytes(), packets(path)
    path.write_bytes(content[: places[33][0]] + content[places[36][0] :])
    account = probe(path).account
    assert account.decoded < 60 and account.damaged > 0


@pytest.mark.parametrize("seed", range(6))
def test_a_cluster_that_is_not_what_its_checksum_says_is_told(tmp_path: Path, seed: int) -> None:
    """VP8 decodes any bytes at all."""
    path = write_numbered(tmp_path / "a.mkv", **VP8)
    assert probe(path).account.whole
    path.write_bytes(damaged(path.read_bytes(), "flip", seed))
    account = probe(path).account
    assert account.holes == 1 and not account.whole


def without_ends(path: Path, target: Path, spoil: set[int]) -> Path:
    """Motion JPEG as of a camera that leaves out the last block of each picture; some pictures lose half of it."""

    def end_early(data: bytes, is_spoiled: bool) -> bytes:
        start, end = data.index(b"\xff\xda") + 14, len(data) - 2
        if is_spoiled:
            return data[: (start + end) // 2] + data[-2:]
        return next(short for cut in range(1, end) if is_short(short := data[: end - cut] + data[-2:]))

    def is_short(data: bytes) -> bool:
        with av.logging.Capture() as lines:
            av.CodecContext.create("mjpeg", "r").decode(av.Packet(data))
        return any("overread" in text for _, _, text in lines)

    with listening(), av.open(str(path)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            short = av.Packet(end_early(bytes(packet), number in spoil))
            short.pts, short.dts, short.time_base, short.is_keyframe = packet.pts, packet.dts, packet.time_base, True
            short.stream = stream
            new.mux(short)
    return target


@pytest.mark.parametrize("ending", ["avi", "mkv"])
def test_a_camera_that_ends_its_pictures_early_is_whole(tmp_path: Path, ending: str) -> None:
    path = write_numbered(tmp_path / f"a.{ending}", **SCANS)
    habit = probe(without_ends(path, tmp_path / f"b.{ending}", set())).account
    assert habit.whole and habit.decoded == 60
    rows = {7, 31, 50}
    found = shown(without_ends(path, tmp_path / f"c.{ending}", rows))
    assert {row for row, (_, is_damaged) in enumerate(found) if is_damaged} == rows


def test_listening_leaves_the_log_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    before = (av.logging.get_level(), av.logging.get_skip_repeated(), logging.getLogger("libav").level)
    with listening(), listening():
        assert av.logging.get_level() == av.logging.WARNING
        av.logging.log(av.logging.ERROR, "someone", "nobody wants to know")
    assert before == (av.logging.get_level(), av.logging.get_skip_repeated(), logging.getLogger("libav").level)
    assert not caplog.records


def test_frames_before_the_first_key_frame_are_counted(tmp_path: Path) -> None:
    whole = write_numbered(tmp_path / "a.mkv", ticks=130, options=FORWARD)
    path = remux(whole, tmp_path / "b.mkv", lambda number, packet: number >= 30 - 5)
    account = probe(path).account
    assert (account.decoded, account.left_out, account.lost) == (100, 5, 0)
    assert numbers(path) == list(range(30, 130))
    assert probe(whole).account.left_out == 0


@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_frames_that_lean_on_what_is_not_there_are_counted(tmp_path: Path, ending: str) -> None:
    """A file that begins in an open group: the frames behind the key frame that are shown before it."""
    whole = write_numbered(tmp_path / f"a.{ending}", options=OPEN)
    key = [number for number, is_key in enumerate(keys(whole)) if is_key][2]
    path = remux(whole, tmp_path / f"b.{ending}", lambda number, packet: number >= key)
    info = probe(path)
    first = next(number for number in numbers(path) if number is not None)
    assert info.frames == 60 - first and info.account.left_out == 2
    assert info.account.whole and (np.diff(info.times_s) > 0).all()


def keys(path: Path) -> list[bool]:
    with av.open(str(path)) as container:
        return [packet.is_keyframe for packet in container.demux(video=0) if packet.size]


def test_what_an_edit_list_hides_is_not_counted(tmp_path: Path) -> None:
    whole = write_numbered(tmp_path / "a.mp4", options={"g": "12", "bf": "0", "x264-params": "scenecut=0"})

    def later(number: int, packet: av.Packet) -> bool:
        assert packet.pts is not None and packet.dts is not None
        packet.pts -= 17 * 512
        packet.dts -= 17 * 512
        return number >= 12

    account = probe(remux(whole, tmp_path / "b.mp4", later)).account
    assert (account.decoded, account.left_out) == (43, 0) and account.whole


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_time_stays_right_around_a_hole(tmp_path: Path, ending: str, seed: int) -> None:
    """A picture that is what it was has the time that it had, whatever is missing before it and after it."""
    path = write_numbered(tmp_path / f"a.{ending}")
    number_of = {pixels: number for number, (pixels, _) in enumerate(shown(path))}
    content, places = bytearray(path.read_bytes()), packets(path)
    rng = np.random.default_rng(seed)
    first = int(rng.integers(5, 45))
    start, end = places[first][0] - 6, places[first + 4 + 2 * seed][0] + 5
    content[start:end] = rng.bytes(end - start)
    path.write_bytes(content)
    info, found = probe(path), shown(path)
    times = info.times_s * RATE
    assert (np.diff(times) >= 0).all() and not info.account.whole
    same = [(times[row], number_of[pixels]) for row, (pixels, _) in enumerate(found) if pixels in number_of]
    assert len(same) > 15
    for time, number in same:
        assert time == pytest.approx(number, abs=0.05)


def test_frames_behind_a_lost_one_of_an_avi_file_are_not_early(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.avi", **SCANS)
    content, (place, size) = bytearray(path.read_bytes()), packets(path)[30]
    # Its header too, so that FFmpeg finds no packet.
    content[place - 8 : place + size] = b"\xff" * (size + 8)
    path.write_bytes(content)
    info = probe(path)
    assert info.account.holes == 1 and numbers(path) == [*range(30), *range(31, 60)]
    np.testing.assert_allclose(info.times_s * RATE, [*range(30), *range(31, 60)])


def test_damaged_frames_of_an_avi_with_b_frames_stay_in_order(tmp_path: Path) -> None:
    for codec, options in (("libx264", PYRAMID), ("mpeg4", BIDIRECTIONAL)):
        path = write_numbered(tmp_path / f"{codec}.avi", codec, options=options)
        overwrite(path, [20, 21], b"\x00" * 12, 8)
        info = probe(path)
        assert (np.diff(info.times_s) >= 0).all() and info.frames in (59, 60, 61)
        told = [(row, number) for row, number in enumerate(numbers(path)) if number is not None]
        assert all(abs(info.times_s[row] * RATE - number) <= 3 for row, number in told[-20:])


def test_a_stream_that_appears_in_the_middle_stops_nothing(tmp_path: Path) -> None:
    """Damage can make a transport stream name another stream, which PyAV does not know."""
    path = write_numbered(tmp_path / "a.ts")
    whole = path.read_bytes()
    tables = [place for place in range(188, len(whole), 188) if whole[place + 1 : place + 3] == b"\x50\x00"]
    content = bytearray(whole)
    for place in tables[1:]:
        # Another number for the stream, and no checksum that fits.
        content[place + 17] ^= 1
    path.write_bytes(content)
    assert probe(path).frames > 50


def test_real_videos_are_whole_and_begin_at_their_first_frame() -> None:
    if "DLC_PLATFORM_TEST_DATA" not in os.environ:
        pytest.skip("DLC_PLATFORM_TEST_DATA does not say where the shared data are")
    root = Path(os.environ["DLC_PLATFORM_TEST_DATA"])
    # The large ones are in other tests.
    videos = [
        path
        for path in (*root.glob("sessions*/**/*"), *root.glob("tracking/**/*"))
        if path.suffix in (".mp4", ".avi") and path.stat().st_size < 2_000_000
    ]
    assert len(videos) >= 8
    for path in videos:
        account = probe(path).account
        assert account.problem(path) is None, path
        odd = (account.left_out, account.times_reordered, account.times_estimated, account.clock_resets)
        assert odd == (0, 0, 0, 0), path


def without_packets(source: Path, target: Path, first_frame: int, frames: int | None, count: int | None) -> Path:
    """Copy a transport stream without packets of its video: those of so many frames, or so many one after the other."""
    content = source.read_bytes()
    every = [content[start : start + 188] for start in range(0, len(content), 188)]
    of = [(packet[1] & 0x1F) << 8 | packet[2] for packet in every]
    video = [number for number, pid in enumerate(of) if pid == max(set(of), key=of.count)]
    starts = [number for number in video if every[number][1] & 0x40]
    lost = [number for number in video if number >= starts[first_frame]][:count]
    if frames is not None:
        lost = [number for number in lost if number < starts[first_frame + frames]]
    target.write_bytes(b"".join(packet for number, packet in enumerate(every) if number not in set(lost)))
    return target


HEVC: dict[str, Any] = {"codec": "libx265", "options": {"x265-params": "log-level=none"}}


@pytest.mark.parametrize("first", [10, 23, 40])
@pytest.mark.parametrize(
    ("codec", "frames", "count"),
    [
        ({}, 1, None),
        ({}, 7, None),
        (HEVC, 1, None),
        (HEVC, 7, None),
        ({"codec": "mpeg2video", "options": BIDIRECTIONAL}, 7, None),
        # The counter of packets is one of 16: so many are missed by it, but not by the frames that follow.
        ({}, None, 16),
        (HEVC, None, 16),
    ],
    ids=["h264", "h264_seven", "hevc", "hevc_seven", "mpeg2", "h264_sixteen_packets", "hevc_sixteen_packets"],
)
def test_packets_that_a_transport_stream_lacks_are_told(
    tmp_path: Path, codec: dict[str, Any], first: int, frames: int | None, count: int | None
) -> None:
    path = write_numbered(tmp_path / "a.ts", **codec)
    whole = probe(path)
    assert whole.account.whole and whole.frames == 60
    account = probe(without_packets(path, tmp_path / "b.ts", first, frames, count)).account
    assert account.damage is not None and not account.truncated
    # Frames that nobody can decode are rows, so that those after them keep their numbers and times.
    assert account.holes or account.lost
    if frames is not None:
        assert account.holes == 1 and account.decoded + account.lost <= 60 - frames
        assert "frames may be missing in 1 place" in account.damage
