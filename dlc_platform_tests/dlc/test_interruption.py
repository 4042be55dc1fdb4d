"""Inference that is interrupted: killed, run twice, out of space; what is there at the end is the same."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dlc_platform.dlc.chunks import Progress
from dlc_platform.dlc.engine import load_engine
from dlc_platform.dlc.inference import PoseEstimate, PoseEstimator, load_poses
from dlc_platform.dlc.reader import CHUNK_FRAMES
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.store import Store
from dlc_platform_tests.dlc.long_video import write_long_video

CHUNKS = ["chunk-000000000.npz", "chunk-000000256.npz"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_video(tmp_path_factory.mktemp("video") / "long.mp4")


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: TrainedModel, tiny_store: Store, video: Path) -> PoseEstimate:
    return PoseEstimator(tiny_model.path, tiny_store, device="cpu").estimate(video, sha256_file(video))


@pytest.fixture
def store(tiny_store: Store, uninterrupted: PoseEstimate, tmp_path: Path) -> Store:
    """A store with the model, its dataset and its export, and no poses."""
    for kind in ("models", "datasets", "exports"):
        (tmp_path / "store" / kind).parent.mkdir(exist_ok=True)
        (tmp_path / "store" / kind).symlink_to(tiny_store.root / kind)
    return Store(tmp_path / "store")


def start(store: Store, model: TrainedModel, video: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dlc_platform_tests.dlc.estimating", store.root, model.path, video]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def workspace(store: Store, poses: PoseEstimate) -> Path:
    return store.root / "poses" / f".work-{poses.id}"


def chunks(store: Store, poses: PoseEstimate) -> list[str]:
    return sorted(path.name for path in workspace(store, poses).glob("chunk-*.npz"))


def files(poses: PoseEstimate) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in poses.path.iterdir() if path.name != "manifest.json"}


def same(one: PoseEstimate, other: PoseEstimate) -> bool:
    """The same bytes, and the same manifest but for how long it took and in which batches."""
    first, second = (json.loads((poses.path / "manifest.json").read_text()) for poses in (one, other))
    how = {"seconds": 0, "batch_size": 0}
    return files(one) == files(other) and first | how == second | how


def test_a_killed_process_is_continued_to_the_same_bytes(
    tiny_model: TrainedModel, store: Store, video: Path, uninterrupted: PoseEstimate
):
    first = start(store, tiny_model, video)
    assert first.stdout is not None
    for line in first.stdout:
        if int(line.split()[0]) > CHUNK_FRAMES:
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert chunks(store, uninterrupted)[0] == "chunk-000000000.npz"
    assert not store.has("poses", uninterrupted.id)

    second = start(store, tiny_model, video)
    out, _ = second.communicate()
    done = [int(line.split()[0]) for line in out.splitlines()[:-1]]
    assert done[0] > CHUNK_FRAMES and done[-1] == 700, "it goes on behind the chunks that are there"
    assert same(load_poses(store.path("poses", uninterrupted.id)), uninterrupted)
    assert not workspace(store, uninterrupted).exists()


def test_a_light_worker_imports_neither_deeplabcut_nor_torch(
    tiny_model: TrainedModel, store: Store, video: Path, uninterrupted: PoseEstimate
):
    out, _ = start(store, tiny_model, video).communicate()
    assert out.splitlines()[-1] == f"poses {uninterrupted.id}"


def test_one_of_two_processes_works_and_the_other_finds_poses(
    tiny_model: TrainedModel, store: Store, video: Path, uninterrupted: PoseEstimate
):
    both = [start(store, tiny_model, video) for _ in range(2)]
    lines = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(len(own) > 1 for own in lines) == [False, True]
    assert {own[-1] for own in lines} == {f"poses {uninterrupted.id}"}
    assert same(load_poses(store.path("poses", uninterrupted.id)), uninterrupted)


def test_what_was_begun_under_other_conditions_is_not_mixed_in(
    tiny_model: TrainedModel, store: Store, video: Path, uninterrupted: PoseEstimate
):
    def stop(progress: Progress) -> None:
        if progress.done > CHUNK_FRAMES:
            raise KeyboardInterrupt

    other = PoseEstimator(tiny_model.path, store, device="cpu")
    other.engine = load_engine(tiny_model.path, Store(store.root / "empty"), device="cpu")
    with pytest.raises(KeyboardInterrupt):
        other.estimate(video, sha256_file(video), on_progress=stop)
    assert chunks(store, uninterrupted) == ["chunk-000000000.npz"]
    settings = json.loads((workspace(store, uninterrupted) / "settings.json").read_text())
    assert settings["backend"] == "pytorch"

    done: list[int] = []
    PoseEstimator(tiny_model.path, store, device="cpu").estimate(
        video, sha256_file(video), on_progress=lambda progress: done.append(progress.done)
    )
    assert done[0] < CHUNK_FRAMES
    assert same(load_poses(store.path("poses", uninterrupted.id)), uninterrupted)


def test_a_found_batch_size_is_kept_for_the_continuation(
    tiny_model: TrainedModel, store: Store, video: Path, uninterrupted: PoseEstimate
):
    def stop(progress: Progress) -> None:
        if progress.done > CHUNK_FRAMES:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PoseEstimator(tiny_model.path, store, device="cpu").estimate(video, sha256_file(video), on_progress=stop)
    file = workspace(store, uninterrupted) / "settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"batch_size": 5}))
    done: list[int] = []
    PoseEstimator(tiny_model.path, store, device="cpu").estimate(
        video, sha256_file(video), on_progress=lambda progress: done.append(progress.done)
    )
    assert done[:2] == [CHUNK_FRAMES + 5, CHUNK_FRAMES + 10]
    assert same(load_poses(store.path("poses", uninterrupted.id)), uninterrupted)


def spoil(folder: Path, what: str) -> None:
    first, second, settings = (folder / name for name in (CHUNKS[0], CHUNKS[1], "settings.json"))
    match what:
        case "half a chunk":
            second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
        case "an empty chunk":
            first.write_bytes(b"")
        case "a flipped byte":
            content = bytearray(second.read_bytes())
            content[len(content) // 2] ^= 0xFF
            second.write_bytes(content)
        case "another chunk":
            shutil.copy(first, second)
        case "a folder":
            second.unlink()
            second.mkdir()
        case "no settings":
            settings.write_bytes(b"")
        case "other settings":
            settings.write_text("[]")


@pytest.mark.parametrize(
    "what",
    ["half a chunk", "an empty chunk", "a flipped byte", "another chunk", "a folder", "no settings", "other settings"],
)
def test_what_is_damaged_is_computed_again(
    what: str, tiny_model: TrainedModel, store: Store, video: Path, uninterrupted: PoseEstimate
):
    def stop(progress: Progress) -> None:
        if progress.done > 2 * CHUNK_FRAMES:
            raise KeyboardInterrupt

    estimator = PoseEstimator(tiny_model.path, store, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        estimator.estimate(video, sha256_file(video), on_progress=stop)
    assert chunks(store, uninterrupted) == CHUNKS
    spoil(workspace(store, uninterrupted), what)
    assert same(estimator.estimate(video, sha256_file(video)), uninterrupted)


def test_a_full_disk_keeps_what_is_done(
    tiny_model: TrainedModel, store: Store, video: Path, uninterrupted: PoseEstimate, small_disk: Path
):
    (store.root / "poses").symlink_to(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(small_disk_free(small_disk) - 24_000))
    with pytest.raises(PlatformError, match="no space left on the disk of the store"):
        PoseEstimator(tiny_model.path, store, device="cpu").estimate(video, sha256_file(video))
    assert len(chunks(store, uninterrupted)) >= 1
    filler.unlink()
    done: list[int] = []
    poses = PoseEstimator(tiny_model.path, store, device="cpu").estimate(
        video, sha256_file(video), on_progress=lambda progress: done.append(progress.done)
    )
    assert done[0] > CHUNK_FRAMES
    assert same(poses, uninterrupted)


def small_disk_free(folder: Path) -> int:
    import os

    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


def test_a_file_of_deeplabcut_does_not_hold_the_time(uninterrupted: PoseEstimate, store: Store, tiny_model, video):
    time.sleep(1.1)  # HDF5 counts seconds
    again = PoseEstimator(tiny_model.path, store, device="cpu").estimate(video, sha256_file(video))
    assert np.array_equal(files(again).keys(), files(uninterrupted).keys()) and same(again, uninterrupted)
