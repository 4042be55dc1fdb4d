"""The layout of an MXF file: the sequence of its elements, and the places of its parts.

After SMPTE ST 377-1: an element is a key of 16 bytes, its length and its data; the pack at the beginning of a partition
tells where the last partition is, and the pack at the end of the file where all of them are. No data is read.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LABEL = bytes.fromhex("060e2b34")
_PARTITION = bytes.fromhex("060e2b34020501010d01020101")
_PARTITIONS = tuple(_PARTITION + bytes([kind]) for kind in (2, 3, 4))
_RANDOM_INDEX = _PARTITION + bytes.fromhex("110100")
_SCAN_BYTES = 1 << 20
#: Of a partition pack, before the place of the last partition.
_BEFORE_FOOTER = 24
_INDEX_ENTRY = 12


@dataclass(frozen=True)
class Layout:
    """The layout of a file by its elements.

    Attributes
    ----------
    is_cut
        True if the last partition should begin after the end of the file.
    holes
        The number of places in which bytes are not elements, and of partitions that are not at their declared place,
        because bytes before them are missing.
    """

    is_cut: bool
    holes: int


def read_layout(path: Path) -> Layout:
    """Go through the elements of a file; a file of another format has none."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_PARTITION)) != _PARTITION:
            return Layout(False, 0)
        holes = footer = place = 0
        partitions: set[int] = set()
        told: set[int] = set()
        while place < size:
            file.seek(place)
            key = file.read(16)
            length = _length(file)
            if key[:4] != _LABEL[: len(key)] or (length is None and len(key) == 16 and file.tell() < size):
                holes += 1
                place = _find_label(file, place + 1)
                continue
            if length is None:
                break
            data = file.tell()
            if key.startswith(_PARTITIONS):
                partitions.add(place)
                footer = max(footer, int.from_bytes(file.read(_BEFORE_FOOTER + 8)[_BEFORE_FOOTER:]))
            if key == _RANDOM_INDEX:
                # The last 4 bytes are the length of the pack itself.
                table = file.read(max(0, length - 4))
                told = {int.from_bytes(table[at + 4 : at + 12]) for at in range(0, len(table), _INDEX_ENTRY)}
            place = data + length
        return Layout(footer >= size, holes or int(not told <= partitions))


def _length(file: BinaryIO) -> int | None:
    """A length as BER writes it: in one byte, or in as many as the first one says."""
    first = file.read(1)
    if not first:
        return None
    if first[0] < 0x80:
        return first[0]
    count = first[0] & 0x7F
    rest = file.read(count)
    return int.from_bytes(rest) if 0 < count <= 8 and len(rest) == count else None


def _find_label(file: BinaryIO, start: int) -> int:
    """The beginning of the next element from a place on, or the end of the file."""
    file.seek(start)
    place, before = start, b""
    while chunk := file.read(_SCAN_BYTES):
        found = (before + chunk).find(_LABEL)
        if found >= 0:
            return place - len(before) + found
        place += len(chunk)
        before = chunk[-3:]
    return place
