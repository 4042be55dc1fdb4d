import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest


def is_running(directory: Path) -> bool:
    """Whether a server of this directory lives: its processes hold the lock."""
    try:
        with open(directory / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@pytest.fixture
def reachable(make_reachable: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """A folder of the test's own that every user can reach; servers in it are stopped at the end."""
    with make_reachable() as folder:
        yield folder


@pytest.fixture
def directory(reachable: Path) -> Path:
    return reachable / "lab" / "postgres"


@pytest.fixture(scope="module")
def shared_directory(make_reachable: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """For the tests of a module that only need some server."""
    with make_reachable() as folder:
        yield folder / "lab" / "postgres"
