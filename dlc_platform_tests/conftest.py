"""What more than one layer is tested with.

A tiny labelled project, its dataset, and a network trained on it once; a Postgres server, a catalogue for each test.
"""

import csv
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import sqlalchemy
import yaml
from sqlalchemy import URL, Engine

from dlc_platform.catalog.database import migrate, open_catalog
from dlc_platform.postgres import server
from dlc_platform.settings.environment import STAGE_VARIABLE
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store
from dlc_platform_tests.servers import ensure_running_without_fsync

if TYPE_CHECKING:
    from dlc_platform.dlc.dataset import Dataset
    from dlc_platform.dlc.training import TrainedModel

# The tests say themselves which stage a lab is at, and wait for its sensors.
os.environ.pop(STAGE_VARIABLE, None)

SIZE = 96
TINY_RECIPE = Recipe(
    project="tiny",
    net_type="cspnext_s",
    epochs=12,
    batch_size=8,
    learning_rate=1e-3,
    test_fraction=0.25,
    seed=1,
    weights="random",
)


def draw_frame(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An animal on a noisy floor, (height, width, 3) BGR, and its nose and tail as rows of x, y."""
    import cv2

    image = random.integers(90, 110, (SIZE, SIZE, 3), dtype=np.uint8)
    centre, heading = random.uniform(30, SIZE - 30, 2), random.uniform(0, 2 * np.pi)
    ahead = 16 * np.array([np.cos(heading), np.sin(heading)])
    nose, tail = centre + ahead, centre - ahead
    cv2.line(image, nose.astype(int).tolist(), tail.astype(int).tolist(), (40, 40, 40), 6)
    cv2.circle(image, nose.astype(int).tolist(), 5, (255, 255, 255), -1)
    cv2.circle(image, tail.astype(int).tolist(), 4, (0, 0, 220), -1)
    return image, np.array([nose, tail])


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Path]:
    """A function that writes a single-animal DeepLabCut project: folder, number of frames, seed, folder of labels."""
    import cv2

    def make(path: Path, frames: int, seed: int = 0, folder: str = "video1") -> Path:
        labelled = path / "labeled-data" / folder
        labelled.mkdir(parents=True)
        config = {
            "Task": "tiny",
            "scorer": "tester",
            "date": "Jan1",
            "multianimalproject": False,
            "project_path": "WILL BE SET LATER",
            "video_sets": {f"C:\\videos\\{folder}.mp4": {"crop": f"0, {SIZE}, 0, {SIZE}"}},
            "bodyparts": ["nose", "tail"],
            "skeleton": [["nose", "tail"], ["bodypart1", "objectA"]],
        }
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        random = np.random.default_rng(seed)
        rows = [
            ["scorer", *["tester"] * 4],
            ["bodyparts", "nose", "nose", "tail", "tail"],
            ["coords", "x", "y", "x", "y"],
        ]
        for number in range(frames):
            image, points = draw_frame(random)
            cv2.imwrite(str(labelled / f"img{number:03}.png"), image)
            rows.append([f"labeled-data/{folder}/img{number:03}.png", *map(str, points.ravel().round(3))])
        with open(labelled / "CollectedData_tester.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """A project of 24 labelled frames of 96 x 96 pixels with the body parts nose and tail."""
    return make_project(tmp_path_factory.mktemp("project") / "tiny-tester-2026-01-01", 24)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of `tiny_dataset` and `tiny_model`."""
    return Store(tmp_path_factory.mktemp("tiny_store"))


@pytest.fixture(scope="session")
def tiny_dataset(tiny_project: Path, tiny_store: Store) -> "Dataset":
    """The dataset of `tiny_project`, split by `TINY_RECIPE`."""
    from dlc_platform.dlc.dataset import make_dataset
    from dlc_platform.dlc.labels import read_labels
    from dlc_platform.dlc.project import read_project

    project = read_project(tiny_project)
    recipe = TINY_RECIPE
    sessions = {"video1": "sub-1_ses-1"}
    return make_dataset(project, read_labels(project), recipe.seed, recipe.test_fraction, sessions, tiny_store)


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """The recipe of `tiny_model`."""
    return TINY_RECIPE


@pytest.fixture(scope="session")
def tiny_model(
    tiny_dataset: "Dataset", tiny_recipe: Recipe, tiny_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> "TrainedModel":
    """A small network trained for a few epochs on `tiny_dataset`: it runs everywhere and finds the animal roughly."""
    import torch

    from dlc_platform.dlc.training import train_model

    # Threads that wait for each other on a busy machine cost this network five times what they gain.
    torch.set_num_threads(1)
    return train_model(tiny_dataset.path, tiny_recipe, tiny_store, tmp_path_factory.mktemp("workspace"), device="cpu")


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames of 96 x 96 pixels that `tiny_model` has not seen, at 25 frames per second."""
    import av

    path = tmp_path_factory.mktemp("video") / "unseen.mp4"
    random = np.random.default_rng(99)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for _ in range(20):
            image, _ = draw_frame(random)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    return path


@contextmanager
def _reachable() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dlc-postgres-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for lock in folder.rglob("lock"):
            server.stop(lock.parent)
            place = (lock.parent / "data").resolve().parent
            if folder not in place.parents:
                shutil.rmtree(place)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def make_reachable() -> Callable[[], AbstractContextManager[Path]]:
    """Makes a folder that every user can reach (pytest's own is private); servers in it are stopped at the end."""
    return _reachable


@pytest.fixture(scope="session")
def postgres_home() -> Iterator[Path]:
    """A folder whose `postgres` is the server that all tests share which only need some server."""
    with _reachable() as folder:
        ensure_running_without_fsync(folder / "postgres")
        yield folder


_NUMBERS = count()


@contextmanager
def _new_database(some: URL, template: str) -> Iterator[URL]:
    """A database beside another one of the same server, dropped at the end."""
    name = f"test_{next(_NUMBERS)}"
    administration = sqlalchemy.create_engine(some, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with administration.connect() as connection:
        connection.execute(sqlalchemy.text(f"create database {name} template {template}"))
    try:
        yield some.set(database=name)
    finally:
        with administration.connect() as connection:
            connection.execute(sqlalchemy.text(f"drop database {name} with (force)"))


@pytest.fixture(scope="session")
def migrated_database(postgres_home: Path) -> Iterator[URL]:
    """The database that every test's own is copied from."""
    with _new_database(server.ensure_running(postgres_home / "postgres"), "template1") as url:
        engine = open_catalog(url)
        migrate(engine)
        engine.dispose()
        yield url


@pytest.fixture
def empty_database(postgres_home: Path) -> Iterator[URL]:
    """A database of the test's own, with nothing in it."""
    with _new_database(server.ensure_running(postgres_home / "postgres"), "template1") as url:
        yield url


@pytest.fixture
def engine(postgres_home: Path, migrated_database: URL) -> Iterator[Engine]:
    """A catalogue of the test's own; `engine.url`, with its password, is what DLC_PLATFORM_POSTGRES_URL would hold."""
    some = server.ensure_running(postgres_home / "postgres")
    with _new_database(some, str(migrated_database.database)) as url:
        engine = open_catalog(url)
        yield engine
        engine.dispose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [mount, "-t", "tmpfs", "-o", "size=3m,nr_inodes=50", "tmpfs", str(disk)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let workers side by side (`-n`) share the work by files, but for what is one lab or one machine's devices."""
    for item in items:
        place = item.path.relative_to(Path(__file__).parent)
        if "lab_home" in getattr(item, "fixturenames", ()):
            group = "lab"
        elif place.parts[0] in ("launchers", "devices"):
            group = "launchers"
        else:
            group = str(place)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where nothing may be skipped (DLC_PLATFORM_TEST_NO_SKIP), a skipped test has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("DLC_PLATFORM_TEST_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {report.longrepr}"
    return report
