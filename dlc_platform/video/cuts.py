"""Files that end before their promised end: AVI, FLV, ASF, Ogg, MPEG-TS and fragmented MP4, by their own structure.

FFmpeg reads such a file to its end and reports nothing. A file is called cut only if its structure proves it, because
cameras write zero, a placeholder or a wrong size into whole files. Matroska has its own module, and `Decoder` reads the
index of an MP4 file. No data is read.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_BROADCAST = 1
_HAS_INDEX = 0x10
_INDEX_OF_INDEXES = 0
#: Sizes that writers put in while they do not know the size: zero, and the largest numbers of 31 and 32 bits.
_PLACEHOLDERS = (range(1), range(0x7FFFFF00, 0x80000001), range(0xFFFFFF00, 0x100000000))
#: Some writers count a header of 8 bytes or a byte of padding too many.
_SLACK = 9
#: A stated duration is rounded, or ends with the last frame.
_SLACK_S = 1.0
_OGG_ENDS = 4
#: Lengths of the packets of a transport stream, each with the place of the byte that begins it.
_TS_PACKETS, _TS_SYNC = ((188, 0), (192, 4)), 0x47
_FLV_TAGS = (8, 9, 18)


def is_cut(path: Path) -> bool:
    """True if the structure of a file proves that something is missing at its end."""
    with open(path, "rb") as file:
        start = file.read(16)
        size = os.fstat(file.fileno()).st_size
        if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
            return _is_cut_avi(file, size)
        if start[:3] == b"FLV":
            return _is_cut_flv(file, size)
        if start == _ASF_HEADER:
            return _is_cut_asf(file, size)
        if start[:4] == b"OggS":
            return _is_cut_ogg(file, size)
        if start[4:8] == b"ftyp":
            return _is_cut_mp4(file, size)
        return _is_cut_ts(file, size)


class _Chunk(NamedTuple):
    """A chunk of a RIFF file, with the type of its list; `end` is None if its size is a placeholder."""

    name: bytes
    data: int
    end: int | None


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[_Chunk]:
    while start + 8 <= end:
        file.seek(start)
        name, length = struct.unpack("<4sI", file.read(8))
        data = start + 8
        if name in (b"RIFF", b"LIST"):
            name += file.read(4)
            data += 4
        if any(length in sizes for sizes in _PLACEHOLDERS) and name != b"JUNK":
            yield _Chunk(name, data, None)
            return
        yield _Chunk(name, data, start + 8 + length)
        start += 8 + length + length % 2


def _is_cut_avi(file: BinaryIO, size: int) -> bool:
    """Proof is: two sizes that agree, an index that is itself cut, or an index with places beyond the end."""
    for riff in _chunks(file, 0, size):
        if riff.name not in (b"RIFFAVI ", b"RIFFAVIX"):
            return False
        promises_more = riff.end is not None and riff.end > size + _SLACK
        has_index = is_indexed = False
        for chunk in _chunks(file, riff.data, min(riff.end or size, size)):
            if chunk.name == b"LISThdrl" and chunk.end is not None:
                flags, is_indexed_beyond = _avi_header(file, chunk.data, min(chunk.end, size), size)
                is_indexed = bool(flags & _HAS_INDEX)
                if is_indexed_beyond:
                    return True
            if chunk.name == b"LISTmovi":
                if chunk.end is None:
                    return False
                if chunk.end > size + _SLACK:
                    return promises_more
            if chunk.name == b"idx1":
                has_index = True
                if chunk.end is not None and chunk.end > size:
                    return True
        if promises_more and is_indexed and not has_index:
            return True
    return False


def _avi_header(file: BinaryIO, start: int, end: int, size: int) -> tuple[int, bool]:
    """The flags of the file, and True if an index of its indexes names one beyond its end."""
    flags, is_beyond = 0, False
    for chunk in _chunks(file, start, end):
        if chunk.name == b"avih":
            file.seek(chunk.data + 12)
            flags = int.from_bytes(file.read(4), "little")
        elif chunk.name == b"LISTstrl" and chunk.end is not None:
            is_beyond |= _avi_header(file, chunk.data, min(chunk.end, end), size)[1]
        elif chunk.name == b"indx" and chunk.end is not None:
            file.seek(chunk.data)
            _, _, kind, entries = struct.unpack("<HBBI", file.read(8).ljust(8, b"\0"))
            file.seek(chunk.data + 24)
            table = file.read(min(16 * entries, max(0, min(chunk.end, end) - chunk.data - 24)))
            if kind == _INDEX_OF_INDEXES:
                places = struct.iter_unpack("<QII", table[: len(table) // 16 * 16])
                is_beyond |= any(offset + length > size + _SLACK for offset, length, _ in places)
    return flags, is_beyond


def _is_cut_flv(file: BinaryIO, size: int) -> bool:
    file.seek(5)
    place = int.from_bytes(file.read(4)) + 4
    said: dict[bytes, float] = {}
    last_s = 0.0
    while place + 11 <= size:
        file.seek(place)
        header = file.read(11)
        length = int.from_bytes(header[1:4])
        if header[0] & 0x1F not in _FLV_TAGS:
            return False
        if place + 11 + length > size:
            return True
        if header[0] == _FLV_TAGS[-1] and not said:
            said = _flv_numbers(file.read(length))
        last_s = max(last_s, int.from_bytes(header[7:8] + header[4:7]) / 1000)
        place += 11 + length + 4
    if size_said := said.get(b"filesize"):
        return size_said > size
    return said.get(b"duration", 0.0) > last_s + _SLACK_S


def _flv_numbers(script: bytes) -> dict[bytes, float]:
    numbers = {}
    for name in (b"filesize", b"duration"):
        # The length of the name, the name, the type of a number, and the number.
        place = script.find(len(name).to_bytes(2) + name + b"\0")
        value = script[place + len(name) + 3 : place + len(name) + 11]
        if place >= 0 and len(value) == 8:
            numbers[name] = struct.unpack(">d", value)[0]
    return numbers


def _is_cut_asf(file: BinaryIO, size: int) -> bool:
    file.seek(16)
    header_end = min(int.from_bytes(file.read(8), "little"), size)
    place = 30
    while place + 24 <= header_end:
        file.seek(place)
        identity, length = file.read(16), int.from_bytes(file.read(8), "little")
        if identity == _ASF_PROPERTIES:
            properties = file.read(68)
            flags = int.from_bytes(properties[64:68], "little")
            return not flags & _ASF_BROADCAST and int.from_bytes(properties[16:24], "little") > size
        if length < 24:
            return False
        place += length
    return False


def _is_cut_ogg(file: BinaryIO, size: int) -> bool:
    """The format requires a mark on the last page of each stream."""
    flags: dict[bytes, int] = {}
    place = 0
    while place < size:
        file.seek(place)
        header = file.read(27)
        if header[:4] != b"OggS"[: len(header)]:
            return False
        if len(header) < 27:
            return True
        segments = file.read(header[26])
        place += 27 + header[26] + sum(segments)
        if len(segments) < header[26] or place > size:
            return True
        flags[header[14:18]] = header[5]
    return any(not own & _OGG_ENDS for own in flags.values())


def _is_cut_mp4(file: BinaryIO, size: int) -> bool:
    """Proof is: a fragment that breaks off before its index is complete, or an index of segments that names more of
    them."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            length, header = int.from_bytes(file.read(8)), 16
        if length < header:
            return False
        end = place + length
        if kind in (b"moof", b"mfra") and end > size:
            return True
        if kind == b"sidx" and end <= size and _segments_end(file.read(length - header), end) > size:
            return True
        place = end
    return False


def _segments_end(box: bytes, anchor: int) -> int:
    """The end of the last segment that an index of segments names."""
    wide = bool(box[:1] != b"\0")
    first = int.from_bytes(box[20:28] if wide else box[16:20])
    table = box[28 if wide else 20 :]
    count = int.from_bytes(table[2:4])
    sizes = (int.from_bytes(table[4 + 12 * number : 8 + 12 * number]) & 0x7FFFFFFF for number in range(count))
    return anchor + first + sum(sizes)


def _is_cut_ts(file: BinaryIO, size: int) -> bool:
    """Proof is a packet that breaks off. The intended end of a stream is unknown."""
    for length, place in _TS_PACKETS:
        if size < 4 * length:
            continue
        last = size // length * length
        found = set()
        for packet in (0, length, 2 * length, last - length, last):
            file.seek(packet + place)
            found.add(file.read(1))
        if size % length > place and found == {bytes([_TS_SYNC])}:
            return True
    return False
