import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlc_platform.postgres.server import stop


@contextmanager
def _reachable() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dlc-postgres-"))
    folder.chmod(0o755)
    yield folder
    for lock in folder.rglob("lock"):
        stop(lock.parent)
        place = (lock.parent / "data").resolve().parent
        if folder not in place.parents:
            shutil.rmtree(place)
    shutil.rmtree(folder)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A temporary folder that every user can reach (pytest's own is private); servers in it are stopped at the end."""
    with _reachable() as folder:
        yield folder


@pytest.fixture
def directory(reachable: Path) -> Path:
    return reachable / "lab" / "postgres"


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    """For the tests of a module that only need some server."""
    with _reachable() as folder:
        yield folder / "lab" / "postgres"
