"""The layout of a Matroska or WebM file: its declared end, and the sequence of its elements up to there.

FFmpeg silently skips bytes that it does not understand between two blocks, so frames may be missing without a trace.
The layout is that of RFC 8794 (an element is its ID, its size, its data) with the IDs of RFC 9559. Data is read only
where a cluster begins with a checksum: many writers of Matroska write them, those of WebM do not.
"""

import os
import zlib
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_HEADER = 0x1A45DFA3
_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
_TRACKS = 0x1654AE6B
_TRACK = 0xAE
_TRACK_NUMBER = 0xD7
_SIMPLE_BLOCK = 0xA3
_VOID, _CRC = 0xEC, 0xBF
#: The elements of a segment: also the seek head, the information, cues, attachments, chapters and tags.
_IN_SEGMENT = (
    *(_CLUSTER, _TRACKS, _VOID, _CRC, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),
)
#: The elements of a cluster: its time, silent tracks, position, size of the previous one, and blocks of four kinds.
_IN_CLUSTER = (_SIMPLE_BLOCK, _VOID, _CRC, 0xE7, 0x5854, 0xA7, 0xAB, 0xA0, 0xAF)
_SCAN_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """The layout of a file by its elements.

    Attributes
    ----------
    end
        The end of the segment in bytes as it declares it, or the end of its last element if it does not; 0 for files of
        other formats.
    holes
        The number of places in which bytes are not elements: frames may have been there, nobody knows how many. Or the
        number of clusters that differ from their checksum, if that is larger.
    """

    end: int
    holes: int


def read_layout(path: Path, with_sums: bool) -> Layout:
    """Go through the elements of a file; a file of another format has none.

    Parameters
    ----------
    with_sums
        Read all clusters that have a checksum, and compare.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _element(file)
        if header is None or header[0] != _HEADER or header[1] is None:
            return Layout(0, 0)
        file.seek(header[1], os.SEEK_CUR)
        segment = _element(file)
        if segment is None or segment[0] != _SEGMENT:
            return Layout(0, 0)
        end = file.tell() + segment[1] if segment[1] is not None else 0
        holes, last = _holes(file, min(end or size, size), with_sums)
        return Layout(end or last, holes)


def _holes(file: BinaryIO, end: int, with_sums: bool) -> tuple[int, int]:
    """The holes of a segment, and the end of its last element; an element that breaks off is not a hole."""
    holes = wrong_sums = 0
    last = end
    tracks: set[int] = set()
    expected: Container[int] = _IN_SEGMENT
    cluster_end: int | None = None
    while (start := file.tell()) < end:
        if start == cluster_end:
            expected, cluster_end = _IN_SEGMENT, None
        element = _element(file)
        if element is None:
            # Within its header.
            last = end + 1
            break
        identity, length = element
        after = None if length is None else file.tell() + length
        if identity == _CLUSTER:
            if cluster_end is not None:
                holes += 1  # the previous one declared a greater length
            expected, cluster_end = (*_IN_CLUSTER, *_IN_SEGMENT) if after is None else _IN_CLUSTER, after
            last = after or end
            if with_sums and after is not None and after <= end:
                wrong_sums += not _has_right_sum(file, after)
            continue
        is_whole = identity in expected and after is not None and after <= (cluster_end or after)
        if is_whole and identity == _SIMPLE_BLOCK and tracks:
            is_whole = _number(file, keep_marker=False) in tracks
        if is_whole and after is not None:
            if identity == _TRACKS:
                tracks = _track_numbers(file, after)
            file.seek(after)
            last = max(after, cluster_end or 0)
            continue
        holes += 1
        if not _find_cluster(file, start + 1):
            break
        expected, cluster_end = _IN_SEGMENT, None
    return max(holes, wrong_sums), last


def _has_right_sum(file: BinaryIO, end: int) -> bool:
    """False if a cluster, at whose data the file stands, begins with a checksum that does not fit the rest."""
    start = file.tell()
    element = _element(file)
    if element != (_CRC, 4):
        file.seek(start)
        return True
    told, found = int.from_bytes(file.read(4), "little"), 0
    while chunk := file.read(min(_SCAN_BYTES, end - file.tell())):
        found = zlib.crc32(chunk, found)
    file.seek(start)
    return found == told


def _track_numbers(file: BinaryIO, end: int) -> set[int]:
    found = set()
    while file.tell() < end and (element := _element(file)) is not None:
        identity, length = element
        if identity == _TRACK_NUMBER and length is not None:
            found.add(int.from_bytes(file.read(length)))
        elif identity != _TRACK:  # of which the children follow
            file.seek(length or 0, os.SEEK_CUR)
    return found


def _find_cluster(file: BinaryIO, start: int) -> bool:
    """Go to the next cluster from a place on; false if there is none."""
    mark = _CLUSTER.to_bytes(4)
    file.seek(start)
    before = b""
    while chunk := file.read(_SCAN_BYTES):
        place = (before + chunk).find(mark)
        if place >= 0:
            file.seek(place - len(before) - len(chunk), os.SEEK_CUR)
            return True
        before = chunk[-3:]
    return False


def _element(file: BinaryIO) -> tuple[int, int | None] | None:
    """The ID of the element that begins here and the size of its data, None for an unknown one; None at the end."""
    identity, length = _number(file, keep_marker=True), _number(file, keep_marker=False)
    if identity is None or length is None:
        return None
    return identity, None if length < 0 else length


def _number(file: BinaryIO, keep_marker: bool) -> int | None:
    """A number whose leading zeros tell its length; -1 if all its bits are set, and None if there is none."""
    first = file.read(1)
    if not first:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1) if length <= 8 else b""
    if length > 8:
        return 0 if keep_marker else -1
    if len(rest) < length - 1:
        return None
    value = int.from_bytes(first + rest)
    if keep_marker:
        return value
    value &= (1 << 7 * length) - 1
    return -1 if value == (1 << 7 * length) - 1 else value
