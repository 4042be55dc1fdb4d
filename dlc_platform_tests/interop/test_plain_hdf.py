"""A .h5 of somebody else's gives its numbers or is refused: nothing in it is run, followed, waited for or unpacked."""

import os
import pickle
import resource
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.interop.dlc_poses import import_poses, read_poses
from dlc_platform.interop.pandas_hdf import read_hdf_table
from dlc_platform.store import Store
from dlc_platform_tests.interop.test_dlc_poses import Harm, single, video

KEY = "df_with_missing"
#: Changes an open .h5 of pandas; its types are those of h5py, which knows no shapes of files.
Attack = Callable[[Any, Path], None]


@contextmanager
def little_memory(megabytes: int = 200) -> Iterator[None]:
    """Let this process have so much more memory than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def replace(hdf: Any, **options: Any) -> Any:
    """The values of the fixed format once more, kept in another way."""
    group = hdf[KEY]
    values = group["block0_values"][()]
    kept = dict(group["block0_values"].attrs)
    del group["block0_values"]
    made = group.create_dataset("block0_values", **({"data": values} | options))
    made.attrs.update(kept)
    return made


def external_link(hdf: Any, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["values"] = np.zeros((20, 6))
    del hdf[KEY]["block0_values"]
    hdf[KEY]["block0_values"] = h5py.ExternalLink("other.h5", "/values")


def external_link_at_the_top(hdf: Any, folder: Path) -> None:
    single().to_hdf(folder / "other.h5", key="other")
    del hdf[KEY]
    hdf[KEY] = h5py.ExternalLink("other.h5", "/other")


def soft_link(hdf: Any, folder: Path) -> None:
    hdf[KEY].move("block0_values", "elsewhere")
    hdf[KEY]["block0_values"] = h5py.SoftLink(f"/{KEY}/elsewhere")


def hard_link_in_a_circle(hdf: Any, folder: Path) -> None:
    hdf[KEY]["again"] = hdf[KEY]


def external_storage(hdf: Any, folder: Path) -> None:
    group = hdf[KEY]
    kept = dict(group["block0_values"].attrs)
    del group["block0_values"]
    made = group.create_dataset("block0_values", (20, 6), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    made.attrs.update(kept)


def virtual(hdf: Any, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["values"] = np.zeros((20, 6), "f4")
    layout = h5py.VirtualLayout((20, 6), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "values", (20, 6))
    kept = dict(hdf[KEY]["block0_values"].attrs)
    del hdf[KEY]["block0_values"]
    hdf[KEY].create_virtual_dataset("block0_values", layout).attrs.update(kept)


def virtual_beside_the_table(hdf: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((20, 6), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "values", (20, 6))
    hdf.create_virtual_dataset("beside", layout)


def of_another_program(hdf: Any, folder: Path) -> None:
    replace(hdf, compression="lzf")


def objects(hdf: Any, folder: Path) -> None:
    replace(hdf, data=np.array([["text"] * 6] * 20, object), dtype=h5py.string_dtype())


def references(hdf: Any, folder: Path) -> None:
    replace(hdf, data=None, shape=(20, 6), dtype=h5py.ref_dtype)


def compound_with_objects(hdf: Any, folder: Path) -> None:
    replace(hdf, data=None, shape=(20, 6), dtype=np.dtype([("a", "f4"), ("b", h5py.string_dtype())]))


def gigabytes_that_are_not_there(hdf: Any, folder: Path) -> None:
    replace(hdf, data=None, shape=(20, 200_000_000), dtype="f4", chunks=(20, 1000))


def gigabytes_that_are_packed(hdf: Any, folder: Path) -> None:
    made = replace(hdf, data=None, shape=(1, 1 << 28), dtype="f8", chunks=(1, 1 << 21), compression="gzip")
    packed = zlib.compress(bytes(8 << 21), 9)
    for part in range(20):
        made.id.write_direct_chunk((0, part << 21), packed)


def a_part_of_a_gigabyte(hdf: Any, folder: Path) -> None:
    replace(hdf, data=None, shape=(20, 6), dtype="f4", chunks=(1 << 14, 1 << 14), maxshape=(None, None))


def a_part_that_is_more_than_it_says(hdf: Any, folder: Path) -> None:
    made = replace(hdf, chunks=(20, 6), compression="gzip")
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    made.id.write_direct_chunk((0, 0), packed)


def packed_twice(hdf: Any, folder: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((20, 6))
    plan.set_deflate(9)
    plan.set_deflate(9)
    del hdf[KEY]["block0_values"]
    space = h5py.h5s.create_simple((20, 6))
    h5py.h5d.create(hdf[KEY].id, b"block0_values", h5py.h5t.IEEE_F32LE, space, plan)


def values_that_were_never_written(hdf: Any, folder: Path) -> None:
    replace(hdf, data=None, shape=(20, 6), dtype="f4", fillvalue=5.0)


def parts_that_were_never_written(hdf: Any, folder: Path) -> None:
    made = replace(hdf, data=None, shape=(20, 6), dtype="f4", chunks=(10, 6), fillvalue=5.0)
    made[:10] = 1.0


def very_many_objects(hdf: Any, folder: Path) -> None:
    for number in range(2100):
        hdf.create_group(f"group{number}")


ATTACKS: dict[Attack, str] = {
    external_link: r"a link to another file, /df_with_missing/block0_values, which is not followed",
    external_link_at_the_top: r"a link to another file, /df_with_missing, which is not followed",
    soft_link: r"a link to another name, /df_with_missing/block0_values",
    hard_link_in_a_circle: r"holds /df_with_missing/again, which is neither",
    external_storage: r"block0_values, which lies in another file \(external storage\)",
    virtual: r"block0_values, which is put together from other files",
    virtual_beside_the_table: r"holds /beside, which is put together from other files",
    of_another_program: r"needs another program \(filter 32000\)",
    objects: r"holds more than numbers and texts",
    references: r"holds more than numbers and texts",
    compound_with_objects: r"holds more than numbers and texts",
    gigabytes_that_are_not_there: r"asks for 16,000 MB of memory",
    gigabytes_that_are_packed: r"asks for 2,147 MB of memory",
    a_part_of_a_gigabyte: r"asks for 1,07\d MB of memory",
    a_part_that_is_more_than_it_says: r"a part of /df_with_missing/block0_values does not have the declared size",
    packed_twice: r"is packed twice",
    values_that_were_never_written: r"not all of /df_with_missing/block0_values was written",
    parts_that_were_never_written: r"not all of /df_with_missing/block0_values was written",
    very_many_objects: r"more than 2000 objects",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: getattr(attack, "__name__", ""))
def test_what_is_no_plain_data_set_is_refused(attack: Attack, tmp_path: Path):
    file = tmp_path / "poses.h5"
    single().to_hdf(file, key=KEY, format="fixed")
    read_poses(file)
    with h5py.File(file, "r+") as hdf:
        attack(hdf, tmp_path)
    with little_memory(), pytest.raises(PlatformError, match=ATTACKS[attack]) as error:
        read_poses(file)
    assert str(file) in error.value.problem
    with pytest.raises(PlatformError, match=ATTACKS[attack]):
        read_hdf_table(file, "Save it again")  # as labels are read
    with pytest.raises(PlatformError):
        import_poses(file, video(), Store(tmp_path / "store"))
    assert not (tmp_path / "store" / "poses").exists()


@pytest.mark.parametrize("packed", [{}, {"complevel": 9, "complib": "zlib"}, {"complevel": 5, "fletcher32": True}])
@pytest.mark.parametrize("layout", ["table", "fixed"])
def test_packed_poses_are_read(layout: str, packed: dict[str, Any], tmp_path: Path):
    file, made = tmp_path / "poses.h5", single(2000)
    with pd.HDFStore(file, mode="w", **packed) as hdf:
        hdf.put(KEY, made, format=layout)
    pd.testing.assert_frame_equal(read_poses(file).poses, made, check_exact=True, check_index_type=False)


@pytest.mark.parametrize("place", ["/", KEY, f"{KEY}/table"])
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_in_any_attribute_is_refused(place: str, protocol: int, tmp_path: Path):
    file, harmed = tmp_path / "poses.h5", tmp_path / "harmed"
    single().to_hdf(file, key=KEY, format="table")
    hdf: Any
    with h5py.File(file, "r+") as hdf:
        hdf[place].attrs["info"] = np.bytes_(pickle.dumps({"harm": Harm(harmed)}, protocol))
    with pytest.raises(PlatformError, match="info holds a pickle with the instruction"):
        import_poses(file, video(), Store(tmp_path / "store"))
    assert not harmed.exists() and not (tmp_path / "store" / "poses").exists()


def test_nothing_of_the_file_but_its_numbers_is_kept(tmp_path: Path):
    file = tmp_path / "poses.h5"
    single().to_hdf(file, key=KEY, format="table")
    with h5py.File(file, "r+") as hdf:
        hdf.attrs["secret"] = "a text that nobody asked for"
        hdf["beside"] = np.arange(3)
    product = import_poses(file, video(), Store(tmp_path / "store")).path
    assert b"a text that nobody asked for" in file.read_bytes()
    for kept in product.iterdir():
        assert b"a text that nobody asked for" not in kept.read_bytes()
    with h5py.File(product / "poses.h5") as hdf:
        assert list(hdf) == [KEY]


def test_poses_of_very_many_body_parts_are_kept(tmp_path: Path):
    names = [("scorer of a long name", f"body part {n}", c) for n in range(900) for c in ("x", "y", "likelihood")]
    columns = pd.MultiIndex.from_tuples(names, names=["scorer", "bodyparts", "coords"])
    made = pd.DataFrame(np.random.default_rng(0).random((3, len(names))), columns=columns)
    made.to_csv(tmp_path / "poses.csv")
    product = import_poses(tmp_path / "poses.csv", video(3), Store(tmp_path / "store")).path
    pd.testing.assert_frame_equal(pd.DataFrame(pd.read_hdf(product / "poses.h5")), made, check_exact=True)


@pytest.mark.parametrize("suffix", [".h5", ".csv"])
def test_a_pipe_or_a_device_is_not_waited_for(suffix: str, tmp_path: Path):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"messages{suffix}").symlink_to("/proc/self/status")
    for name, what in (("pipe", "a pipe"), ("zeros", "a device"), ("messages", "the kernel")):
        with pytest.raises(PlatformError, match=what):
            read_poses(tmp_path / f"{name}{suffix}")


def test_a_line_without_an_end_is_refused(tmp_path: Path):
    (tmp_path / "poses.csv").write_bytes(b"scorer," + b"x" * 50_000_000)
    with little_memory(), pytest.raises(PlatformError, match=r"line 1 of .* more than 2,000,000 characters"):
        read_poses(tmp_path / "poses.csv")
