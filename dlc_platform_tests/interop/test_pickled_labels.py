"""The labels come out as pickle would give them, and nothing that could do something is done."""

import os
import pickle
from pathlib import Path

import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.interop.pickled_labels import read_pickled_labels


@pytest.mark.parametrize(
    "value",
    [
        [(1, [("scorer", "Front Paw R", "x"), ("scorer", "Butt/Proximal Tail", "x")])],
        [("scörer", "nose\nand\\mouth", "鼻")],
        [],
        [("same",) * 3, (), -7],
    ],
)
def test_gives_what_was_pickled(value: object):
    assert read_pickled_labels(pickle.dumps(value, 0), "here") == value


def test_reads_the_strings_of_python_2():
    assert read_pickled_labels(b"(lp0\n(S'scorer'\np1\nS'nose'\np2\ntp3\na.", "here") == [("scorer", "nose")]


class Harm:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_runs_nothing(tmp_path: Path, protocol: int):
    data = pickle.dumps([("scorer", Harm(tmp_path / "harmed"))], protocol)
    with pytest.raises(PlatformError, match=r"here holds a pickle with the instruction [A-Z0-9_]+.*it was not run"):
        read_pickled_labels(data, "here")
    assert not (tmp_path / "harmed").exists()
    pickle.loads(data)  # the file would have done it
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize("data", [b"", b"(lp0\n", b"l.", b"a.", b"g7\n.", b"(lVx\na", b"Ix\n.", b"\xff", b"I1\nI2\na."])
def test_what_is_no_pickle_is_an_error(data: bytes):
    with pytest.raises(PlatformError, match="here"):
        read_pickled_labels(data, "here")
