"""HDF5 files of other people, opened only if they hold plain data sets, and no more data than the file itself.

HDF5 is like a file system: it links to other files, keeps data in them, combines them into virtual data sets, loads
programs to unpack data, and can declare a few bytes to be terabytes. PyTables keeps pickles in it. All of that is
refused here, before any data is read.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import open_plain
from dlc_platform.interop.pickled_labels import read_pickled_labels

if TYPE_CHECKING:
    import h5py
    import numpy as np

#: A pose file of DeepLabCut has about twenty objects; one of pandas' other format has five for each block.
_MOST_OBJECTS = 2000
_MOST_ATTRIBUTE_BYTES = 4 << 20
#: The largest unpacked size of a file: so many times its size, or so many bytes. PyTables reserves 5 MB for an index.
_MOST_TIMES, _MOST_BYTES = 20, 16 << 20
#: The filters that HDF5 itself unpacks: deflate, shuffle and the checksum. Any other filter is a program to load.
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3
_CHECKSUM_BYTES = 4
#: Kinds of values: booleans, integers, floats, and texts of a fixed length; tables have rows of these.
_KINDS = "biufS"


@contextmanager
def open_hdf(file: Path, anew: str) -> Iterator[h5py.File]:
    """Open a ``.h5`` whose links all lead to its own groups and data sets; `check_contents` checks these.

    Parameters
    ----------
    anew
        The remedy for a file that cannot be used: a way to write it again.

    Raises
    ------
    PlatformError
        When it is not a plain file, or holds a link of another kind.
    OSError
        When it cannot be opened, or is not HDF5.
    """
    import h5py

    # With an open file, HDF5 never opens a path by itself.
    with open_plain(file) as opened, h5py.File(opened, "r") as hdf:
        for _ in _objects(file, hdf, anew):
            pass
        yield hdf


def check_contents(file: Path, hdf: h5py.File, anew: str) -> None:
    """Check that a file holds only plain data sets of a plausible size, and only pickles of labels.

    Raises
    ------
    PlatformError
        When it holds anything else; it names the file and the place.
    """
    import h5py

    most = max(_MOST_BYTES, _MOST_TIMES * file.stat().st_size)
    total = 0
    for name, found in _objects(file, hdf, anew):
        _check_attributes(file, name, found, anew)
        if isinstance(found, h5py.Dataset):
            if found.dtype.hasobject and "PSEUDOATOM" in found.attrs:
                raise PlatformError(f"{file} holds pickled objects in {name}, which are not read", anew)
            _check_kind(file, name, found, anew)
            total += max(_bytes(found.shape, found.dtype), _bytes(found.chunks or (), found.dtype))
            if total > most:
                raise PlatformError(
                    f"{file} has {file.stat().st_size / 1e6:,.1f} MB and asks for {total / 1e6:,.0f} MB of memory, "
                    f"with {name}",
                    anew,
                )


def read_whole(file: Path, data: Any, anew: str) -> np.ndarray:
    """The values of a data set that `check_contents` has checked; all of them must be in the file.

    Raises
    ------
    PlatformError
        When some were never written, so that HDF5 would make them up, or a packed part holds more than it declares.
    """
    import h5py

    if not isinstance(data, h5py.Dataset):
        raise PlatformError(f"{file} lacks a data set that pandas writes", anew)
    there = data.id.get_storage_size()
    if data.chunks is None:
        if there < _bytes(data.shape, data.dtype):
            raise PlatformError(_made_up(file, data), anew)
        return data[()]
    wanted = math.prod(-(-length // chunk) for length, chunk in zip(data.shape, data.chunks, strict=True))
    if data.id.get_num_chunks() < wanted:
        raise PlatformError(_made_up(file, data), anew)
    if data.compression is not None:
        _check_packed(file, data, wanted, anew)
    return data[()]


def _objects(file: Path, hdf: h5py.File, anew: str) -> Iterator[tuple[str, Any]]:
    """The groups and data sets of a file with their names; only links to such objects of the file are followed.

    Raises
    ------
    PlatformError
        When there is a link of another kind, a second link to one object, or too many objects.
    """
    import h5py
    from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue] (parts in C, of which it knows nothing)

    kinds = {h5l.TYPE_SOFT: "a link to another name", h5l.TYPE_EXTERNAL: "a link to another file"}
    todo: list[tuple[str, Any]] = [("/", hdf["/"])]
    seen: set[int] = {h5o.get_info(hdf.id).addr}
    while todo:
        place, found = todo.pop()
        yield place, found
        if not isinstance(found, h5py.Group):
            continue
        if len(found) + len(seen) > _MOST_OBJECTS:
            raise PlatformError(f"{file} holds more than {_MOST_OBJECTS} objects, but a table of pandas has few", anew)
        for name in found.id:
            kind = found.id.links.get_info(name).type
            where = f"{place.rstrip('/')}/{name.decode(errors='backslashreplace')}"
            if kind != h5l.TYPE_HARD:
                raise PlatformError(
                    f"{file} holds {kinds.get(kind, 'a link of a kind of its own')}, {where}, which is not followed",
                    anew,
                )
            address = h5o.get_info(found.id, name).addr
            below = found[name]
            if address in seen or not isinstance(below, h5py.Group | h5py.Dataset):
                raise PlatformError(f"{file} holds {where}, which is neither a group nor a data set of its own", anew)
            seen.add(address)
            todo.append((where, below))


def _check_attributes(file: Path, name: str, found: Any, anew: str) -> None:
    import h5py

    for label in found.attrs:
        attribute = h5py.h5a.open(found.id, label.encode(errors="surrogateescape"))
        space = attribute.get_space()
        if space.get_simple_extent_npoints() * attribute.get_type().get_size() > _MOST_ATTRIBUTE_BYTES:
            raise PlatformError(f"{file} has more than 4 MB in the attribute {label} of {name}", anew)
        if space.get_simple_extent_type() != h5py.h5s.SCALAR:
            continue
        value = found.attrs[label]
        if isinstance(value, str):
            value = value.encode(errors="surrogateescape")
        # PyTables unpickles every text with this ending.
        if isinstance(value, bytes) and len(value) > 2 and value.endswith(b"."):
            read_pickled_labels(value, f"{file}, {label}")


def _check_kind(file: Path, name: str, data: Any, anew: str) -> None:
    import h5py

    plan = data.id.get_create_plist()
    filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        odd = "is put together from other files (a virtual data set)"
    elif plan.get_external_count():
        odd = "lies in another file (external storage)"
    elif unknown := [number for number in filters if number not in (_DEFLATE, _SHUFFLE, _CHECKSUM)]:
        odd = f"is packed in a way that needs another program (filter {unknown[0]})"
    elif len(set(filters)) < len(filters):
        odd = "is packed twice"
    elif not _is_plain(data.dtype):
        odd = "holds more than numbers and texts of a fixed length"
    elif data.shape is None:
        odd = "is empty"
    else:
        return
    raise PlatformError(f"{file} holds {name}, which {odd}: it is not read", anew)


def _is_plain(dtype: np.dtype) -> bool:
    if dtype.hasobject:
        return False
    if dtype.names is not None:
        return all(_is_plain(dtype[name].base) for name in dtype.names)
    return dtype.kind in _KINDS


def _check_packed(file: Path, data: Any, chunks: int, anew: str) -> None:
    """Unpack each part only up to its declared size: HDF5 itself would go on to the end."""
    plan = data.id.get_create_plist()
    filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
    most = _bytes(data.chunks, data.dtype) + _CHECKSUM_BYTES
    for index in range(chunks):
        stored = data.id.get_chunk_info(index)
        mask, packed = data.id.read_direct_chunk(stored.chunk_offset)
        if mask & 1 << filters.index(_DEFLATE):
            is_more = len(packed) > most + _CHECKSUM_BYTES
        else:
            try:
                unpacker = zlib.decompressobj()
                is_more = len(unpacker.decompress(packed, most + 1)) > most or not unpacker.eof
            except zlib.error as error:
                raise PlatformError(f"{file} is damaged: {data.name} cannot be unpacked ({error})", anew) from error
        if is_more:
            raise PlatformError(f"{file} is damaged: a part of {data.name} does not have the declared size", anew)


def _made_up(file: Path, data: Any) -> str:
    return f"{file} is damaged: not all of {data.name} was written, although it declares {data.shape} values"


def _bytes(shape: tuple[int, ...] | None, dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize if shape is not None else 0
