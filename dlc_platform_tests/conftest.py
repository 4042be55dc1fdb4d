"""What more than one layer is tested with.

A tiny labelled project, its dataset, and a network trained on it once; a Postgres server, a catalogue for each test.
"""

import csv
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sqlalchemy
import yaml
from sqlalchemy import URL, Engine

from dlc_platform.catalog.database import migrate, open_catalog
from dlc_platform.devices.locks import DIRECTORY_VARIABLE
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
# Messages are one line where nobody looks at a screen of so many columns.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")  # which readline sets behind the back of `os.environ`
# Workers share the cores: threads that wait for each other there cost small networks five times what they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session", autouse=True)
def without_fsync() -> Iterator[None]:
    """What the process of the tests writes need not outlive a power cut: it would wait for thousands of files."""
    with pytest.MonkeyPatch.context() as patch:
        # A descriptor that is none is still found out.
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leases of this process alone: its runs do not wait for those of other workers, or of labs of the machine."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(DIRECTORY_VARIABLE, str(tmp_path_factory.mktemp("leases")))
        yield


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Each test leaves the variables as it found them: commands that run in its process set those of their lab."""
    before = dict(os.environ)
    yield
    # Only what differs: a thread that connects to Postgres at this moment reads the others, and would crash.
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


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


def made_once(shared: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """A folder in `shared`, filled by the first who asks for it; the others wait for it, and must not change it.

    Who fails or is killed meanwhile leaves nothing that the others take: the next of them fills it.
    """
    made = shared / f"shared-{name}"
    with open(shared / f"shared-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            begun = Path(tempfile.mkdtemp(dir=shared))
            fill(begun)
            begun.rename(made)
    return made


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`made_once` for all workers of this run of pytest: a function that takes the name and what fills the folder."""
    shared = tmp_path_factory.getbasetemp()
    return partial(made_once, shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared)


@pytest.fixture(scope="session")
def tiny_model(
    tiny_dataset: "Dataset",
    tiny_recipe: Recipe,
    tiny_store: Store,
    make_once: Callable[[str, Callable[[Path], None]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> "TrainedModel":
    """A small network trained for a few epochs on `tiny_dataset`: it runs everywhere and finds the animal roughly."""
    from dlc_platform.dlc.training import load_model, train_model

    def train(folder: Path) -> None:
        train_model(tiny_dataset.path, tiny_recipe, Store(folder), tmp_path_factory.mktemp("workspace"), device="cpu")

    (trained,) = (make_once("tiny-model", train) / "models").iterdir()
    return load_model(shutil.copytree(trained, tiny_store.root / "models" / trained.name))


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
        # By copying files: without fsync that takes half as long as by way of the write-ahead log.
        connection.execute(sqlalchemy.text(f"create database {name} template {template} strategy file_copy"))
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


#: Modules and folders that take minutes, the longest first: whoever gets them last keeps everybody waiting. Those that
#: wait a lot, and those that want the tracked lab while it is made, do not begin side by side.
_LONGEST = (
    "orchestration/test_services.py",
    "launchers",
    "dlc/test_engine.py",
    "orchestration/test_bad_input.py",
    "deployments/test_local.py",
    "docs/test_tutorial.py",
    "orchestration/test_promotion.py",
    "dlc/test_runner.py",
    "orchestration/test_materialize.py",
    "orchestration/test_disorder.py",
    "orchestration/test_upkeep.py",
    "deployments",
    "web",
    "orchestration",
    "dlc",
    "cli",
    "test_known_faults.py",
    "lab",
    "postgres",
    "models",
    "estimates",
    "benchmarks",
    "demo",
    "video",
    "sessions",
)
#: What a test is marked with for a fixture that it asks for.
_MARKS = {
    "tiny_dataset": "network",
    "tiny_model": "network",
    "small_disk": "machine",
    "slurm": "machine",
    "tracked_lab": "lab",
    "make_reachable": "catalog",
    "postgres_home": "catalog",
}
#: What all tests of a folder are marked with: `unit` is for those that need none of this.
_MARKS_OF_FOLDERS = {
    "benchmarks": "lab",
    "demo": "lab",
    "deployments": "machine",
    "devices": "machine",
    "dlc": "network",
    "launchers": "machine",
    "orchestration": "lab",
    "postgres": "catalog",
    "video": "video",
    "web": "lab",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """All tests run side by side, and those that somebody names one after the other, in the process that is watched."""
    # Of those that run side by side, one waits most of the time: for a server, for Slurm, for a sensor.
    return len(os.sched_getaffinity(0)) + 1 if config.args_source is config.ArgsSource.TESTPATHS else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers side by side share the work by modules, whose fixtures are made once; a machine's devices stay together.

    The marks for that, `xdist_group`, have no effect with pytest 9.2 and pytest-xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModules(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "launchers" if {"launchers", "devices"} & set(path.split("/")) else path

    return ByModules(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m unit`, a folder that has no such test is not imported: Dagster alone takes seconds."""
    tests = Path(__file__).parent
    if config.option.markexpr != "unit" or tests not in collection_path.parents:
        return None
    return collection_path.relative_to(tests).parts[0] in _MARKS_OF_FOLDERS or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it needs, and let workers side by side begin with the longest modules."""
    places = {item: item.path.relative_to(Path(__file__).parent) for item in items}
    known = {*_MARKS.values(), *_MARKS_OF_FOLDERS.values()}
    for item, place in places.items():
        marks = {mark.name for mark in item.iter_markers() if mark.name in known}
        marks |= {_MARKS[name] for name in getattr(item, "fixturenames", ()) if name in _MARKS}
        if (mark := _MARKS_OF_FOLDERS.get(place.parts[0])) is not None:
            marks.add(mark)
        for mark in marks or {"unit"}:
            item.add_marker(mark)
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {name: rank for rank, name in enumerate(_LONGEST)}
        last = len(ranks)
        items.sort(key=lambda item: ranks.get(str(places[item]), ranks.get(places[item].parts[0], last)))


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
