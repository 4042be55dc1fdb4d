"""Files that end early: what proves it, and what whole files may look like all the same."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlc_platform.video.cuts import is_cut
from dlc_platform.video.probe import probe
from dlc_platform_tests.video.numbered import PYRAMID, RATE, packets, write_numbered

VP8 = {"g": "12"}
JPEG: dict[str, Any] = {"codec": "mjpeg", "options": {"q": "3"}, "pix_fmt": "yuvj420p"}
FRAGMENTS: dict[str, Any] = {"container_options": {"movflags": "frag_keyframe+empty_moov"}}


@pytest.mark.parametrize("beyond", [0, 5], ids=["between_packets", "within_a_header"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jpeg.avi", JPEG),
        ("h264.avi", {}),
        ("a.mkv", {}),
        ("live.mkv", {"container_options": {"live": "1"}}),
        ("live.webm", {"codec": "libvpx", "options": VP8, "container_options": {"live": "1"}}),
        ("front.mp4", {"container_options": {"movflags": "faststart"}}),
        ("fragments.mp4", FRAGMENTS),
        ("a.flv", {}),
        ("a.asf", {"codec": "wmv2", "options": {}}),
        ("a.ogg", {"codec": "libvpx", "options": VP8}),
    ],
)
def test_a_file_that_ends_early_is_truncated(tmp_path: Path, name: str, options: dict[str, Any], beyond: int) -> None:
    path = write_numbered(tmp_path / name, **options)
    whole = probe(path)
    assert whole.account.whole and whole.frames == 60
    content, places = path.read_bytes(), packets(path)
    # In ASF and Ogg several frames share a packet of the container.
    place, size = places[len(places) * 5 // 8]
    if name in ("a.asf", "a.ogg"):
        place, size = len(content) * 5 // 8, 0
    path.write_bytes(content[: place + size + beyond])
    account = probe(path).account
    assert account.truncated and not account.whole and 20 < account.decoded < 60
    assert "then the file ends" in (account.problem(path) or "")


@pytest.mark.parametrize("ending", ["avi", "fragments.mp4"])
def test_an_index_that_is_cut_is_told(tmp_path: Path, ending: str) -> None:
    path = write_numbered(tmp_path / f"a.{ending}", **(FRAGMENTS if ending != "avi" else JPEG))
    path.write_bytes(path.read_bytes()[:-20])
    account = probe(path).account
    assert account.decoded == 60 and account.truncated


def test_a_transport_stream_is_cut_only_within_a_packet(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.ts")
    content = path.read_bytes()
    assert not is_cut(path)
    path.write_bytes(content[: 188 * 40])
    assert not is_cut(path)
    path.write_bytes(content[: 188 * 40 + 100])
    assert is_cut(path)


def sized(content: bytes, riff: int | None, movi: int | None) -> bytes:
    """An AVI file with other sizes written into it."""
    changed = bytearray(content)
    if riff is not None:
        struct.pack_into("<I", changed, 4, riff)
    if movi is not None:
        struct.pack_into("<I", changed, content.index(b"movi") - 4, movi)
    return bytes(changed)


def without_index(content: bytes) -> bytes:
    return content[: content.rindex(b"idx1")]


@pytest.mark.parametrize(
    "write",
    [
        lambda content: sized(content, 0, None),
        lambda content: sized(content, 0, 0),
        lambda content: sized(content, 0xFFFFFFFF, 0xFFFFFFFF),
        lambda content: sized(content, 0x7FFFFFFF, None),
        lambda content: sized(content, len(content), None),
        lambda content: sized(content, len(content) * 3, None),
        lambda content: sized(content, len(content) // 3, None),
        lambda content: content + bytes(1000),
        # What a recorder leaves that was killed: no index, and no sizes.
        lambda content: sized(without_index(content), 0, 0),
        lambda content: sized(without_index(content), len(without_index(content)) - 8, None),
    ],
)
def test_a_whole_avi_with_odd_sizes_is_whole(tmp_path: Path, write: Callable[[bytes], bytes]) -> None:
    path = write_numbered(tmp_path / "a.avi", **JPEG)
    path.write_bytes(write(path.read_bytes()))
    account = probe(path).account
    assert account.decoded == 60 and account.whole


def in_two_segments(path: Path) -> None:
    """Write an AVI file anew as OpenDML: two segments, and an index that tells where the index of each begins."""
    content = path.read_bytes()
    start = content.index(b"movi") - 8
    chunks = [content[place - 8 : place + size + size % 2] for place, size in packets(path)]

    def listed(chunks: list[bytes]) -> bytes:
        index = b"ix00" + struct.pack("<I", 24) + bytes(24)
        data = b"movi" + b"".join(chunks) + index
        return b"LIST" + struct.pack("<I", len(data)) + data

    first, second = listed(chunks[:30]), listed(chunks[30:])
    head = bytearray(content[:start])
    riff = b"RIFF" + struct.pack("<I", 4 + len(second)) + b"AVIX" + second
    struct.pack_into("<I", head, 4, len(head) + len(first) - 8)
    place = head.index(b"strf")
    place += 8 + struct.unpack_from("<I", head, place + 4)[0]
    place = head.index(b"JUNK", place)
    head[place : place + 4] = b"indx"
    ends = (start + len(first), start + len(first) + len(riff))
    struct.pack_into("<HBBI4s3I", head, place + 8, 4, 0, 0, 2, b"00dc", 0, 0, 0)
    for number, end in enumerate(ends):
        struct.pack_into("<QII", head, place + 32 + 16 * number, end - 32, 32, 30)
    path.write_bytes(bytes(head) + first + riff)


def test_an_avi_of_several_segments_lacks_the_last_one(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.avi", **JPEG)
    in_two_segments(path)
    account = probe(path).account
    assert account.decoded == 60 and not account.truncated
    content = path.read_bytes()
    # On the edge of the segments, where each size is right and only the index tells.
    path.write_bytes(content[: content.index(b"AVIX") - 8])
    account = probe(path).account
    assert account.decoded == 30 and account.truncated
    path.write_bytes(content[: content.index(b"AVIX") + 900])
    assert probe(path).account.truncated


def test_an_index_of_segments_tells_of_those_that_are_missing(tmp_path: Path) -> None:
    content = write_numbered(tmp_path / "a.mp4", **FRAGMENTS).read_bytes()
    first = content.index(b"moof") - 4
    media = content[first : content.rindex(b"mfra") - 4]
    table = struct.pack(">IIIIIHH", 0, 1, RATE, 0, 0, 0, 1) + struct.pack(">III", len(media), 60, 0)
    index = struct.pack(">I4s", 8 + len(table), b"sidx") + table
    path = tmp_path / "b.mp4"
    path.write_bytes(content[:first] + index + media)
    assert not is_cut(path)
    path.write_bytes(path.read_bytes()[: path.read_bytes().rindex(b"moof") - 4])
    assert is_cut(path)


def test_a_clip_that_announces_more_seconds_than_it_has_is_cut(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.flv", options=PYRAMID)
    content = path.read_bytes().replace(b"filesize", b"filesiz_")
    path.write_bytes(content)
    assert not is_cut(path)
    place, size = packets(path)[30]
    path.write_bytes(content[: place + size + 4])
    assert is_cut(path)


@pytest.mark.parametrize("name", ["a.avi", "a.flv", "a.asf", "a.ogg", "a.ts", "fragments.mp4"])
def test_any_bytes_after_a_header_end_in_an_answer(tmp_path: Path, name: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "a.asf": {"codec": "wmv2", "options": {}},
        "a.ogg": {"codec": "libvpx", "options": VP8},
        "fragments.mp4": FRAGMENTS,
    }
    path = write_numbered(tmp_path / name, ticks=5, **options.get(name, {}))
    content = path.read_bytes()
    for length in [*range(0, min(len(content), 7000), 13), len(content)]:
        path.write_bytes(content[:length])
        assert is_cut(path) in (True, False)
        path.write_bytes(content[:length] + b"\xff" * 300)
        assert is_cut(path) in (True, False)
