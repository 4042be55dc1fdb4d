"""Exports are made once, proved against DeepLabCut before anybody uses them, and need neither deeplabcut nor torch."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc_platform.dlc import exports
from dlc_platform.dlc.engine import load_engine
from dlc_platform.dlc.exports import TOLERANCE_LIKELIHOOD, TOLERANCE_PX, find_export, load_export, make_export
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.store import MANIFEST, Store
from dlc_platform_tests.dlc.deeplabcut_videos import read_video
from dlc_platform_tests.products import manifest_of


@pytest.fixture
def store(tiny_store: Store, tiny_model: TrainedModel, tmp_path: Path) -> Store:
    """A store with the dataset and the model of `tiny_store`, and no export."""
    for kind in ("datasets", "models"):
        shutil.copytree(tiny_store.root / kind, tmp_path / "store" / kind)
    return Store(tmp_path / "store")


@pytest.fixture
def model(store: Store, tiny_model: TrainedModel) -> Path:
    return store.path("models", tiny_model.id)


def imported(model: Path, store: Store) -> Path:
    """The same model without its dataset."""
    manifest = {key: value for key, value in manifest_of(store.path("models", model.name)).items() if key != "dataset"}

    def write(product: Path) -> None:
        for file in model.iterdir():
            if file.name != MANIFEST:
                shutil.copyfile(file, product / file.name)

    return store.put("models", sha256_json(model.name), manifest, write)


def no_pictures() -> list[np.ndarray]:
    return []


def test_an_export_is_made_once_and_says_how_exact_it_is(model: Path, store: Store, tiny_dataset):
    assert find_export(model, store) is None
    export = make_export(model, store, no_pictures)
    assert export is not None and export.accepted and export.reason is None
    assert export.deviation_px is not None and 0 <= export.deviation_px <= TOLERANCE_PX
    assert export.deviation_likelihood is not None and export.deviation_likelihood <= TOLERANCE_LIKELIHOOD
    labels = tiny_dataset.labels()
    assert export.images == labels.loc[labels["side"] == "test", "image"].nunique()
    assert export.eager_ms_per_frame > 0 and export.ms_per_frame is not None and export.ms_per_frame > 0
    assert (export.model_id, export.backend, export.device) == (model.name, "openvino", "cpu")
    written = (export.path / MANIFEST).stat().st_mtime_ns
    assert find_export(model, store) == make_export(model, store, no_pictures) == export
    assert (export.path / MANIFEST).stat().st_mtime_ns == written
    assert [path.name for path in (store.root / "exports").iterdir()] == [export.id]
    engine = load_engine(model, store, device="cpu")
    assert (engine.backend, engine.export) == ("openvino", export)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says which files a process holds in memory")
def test_an_engine_that_is_let_go_leaves_nothing_in_memory(model: Path, store: Store, tiny_video: Path):
    make_export(model, store, no_pictures)
    engine = load_engine(model, store, device="cpu")
    assert engine.export is not None
    engine.predict(read_video(tiny_video, 2))
    network, maps = str(engine.export.path / "network.bin"), Path("/proc/self/maps")
    assert network in maps.read_text()
    del engine
    gc.collect()
    assert network not in maps.read_text()


def test_an_export_that_is_not_exact_is_kept_as_a_record_alone(
    model: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    """No network is this exact: the comparison is the real one, and only the tolerance is not."""
    monkeypatch.setattr(exports, "TOLERANCE_PX", -1)
    engine = load_engine(model, store, device="cpu")
    assert engine.backend == "pytorch"
    export = engine.export
    assert export is not None and not export.accepted and "px from DeepLabCut's" in str(export.reason)
    assert export.deviation_px is not None and export.ms_per_frame is not None
    assert [path.name for path in export.path.iterdir()] == [MANIFEST]
    monkeypatch.undo()
    assert load_engine(model, store, device="cpu").backend == "pytorch"  # it is not tried again


def test_a_network_that_is_exported_wrongly_is_found_out(model: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    """What is exported is another network than the one that it is compared with."""
    import torch

    real = exports.keypoint_network

    def wrong(path: Path) -> torch.nn.Module:
        network = real(path)
        with torch.no_grad():
            next(network.parameters()).mul_(1.01)
        return network

    monkeypatch.setattr(exports, "keypoint_network", wrong)
    export = make_export(model, store, no_pictures)
    assert export is not None and not export.accepted
    assert export.deviation_px is not None and export.deviation_px > TOLERANCE_PX


def test_a_network_that_cannot_be_exported_runs_in_pytorch(model: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    """It holds an operation that OpenVINO does not know."""
    import torch

    real = exports.keypoint_network

    class Odd(torch.nn.Module):
        def __init__(self, path: Path):
            super().__init__()
            self.network = real(path)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(self.network(pictures))

    monkeypatch.setattr(exports, "keypoint_network", Odd)
    engine = load_engine(model, store, device="cpu")
    assert engine.backend == "pytorch"
    export = engine.export
    assert export is not None and not export.accepted and "cannot be exported" in str(export.reason)
    assert export.deviation_px is None and [path.name for path in export.path.iterdir()] == [MANIFEST]


def test_half_precision_has_an_export_and_an_identity_of_its_own(model: Path, store: Store, tiny_video: Path):
    full = make_export(model, store, no_pictures)
    half = make_export(model, store, no_pictures, "half")
    assert full is not None and half is not None and half.id != full.id and half.accepted
    assert half.deviation_px is not None and full.deviation_px is not None
    assert half.deviation_px >= full.deviation_px
    estimators = [PoseEstimator(model, store, device="cpu", precision=precision) for precision in ("full", "half")]
    video = sha256_file(tiny_video)
    assert len({estimator.identity(video) for estimator in estimators}) == 2
    poses = estimators[1].estimate(tiny_video, video)
    manifest = json.loads((poses.path / MANIFEST).read_text())
    assert manifest["export"] == half.id and manifest["parameters"] == {"precision": "half"}


def test_an_imported_model_is_proved_on_first_frames_of_a_video(model: Path, store: Store, tiny_video: Path):
    stranger = imported(model, store)
    assert make_export(stranger, store, no_pictures) is None
    assert load_engine(stranger, store, device="cpu").backend == "pytorch"
    estimator = PoseEstimator(stranger, store, device="cpu")
    estimator.estimate(tiny_video, sha256_file(tiny_video))
    assert estimator.engine is not None and estimator.engine.backend == "openvino"
    assert estimator.engine.export is not None and estimator.engine.export.images == 16


def test_a_damaged_export_is_made_anew(model: Path, store: Store, tiny_video: Path):
    """A changed weight would not be seen in the numbers: each file is compared with the hash in the manifest."""
    export = make_export(model, store, no_pictures)
    assert export is not None
    expected = load_engine(model, store, device="cpu").predict(read_video(tiny_video, 2))
    for name in ("network.bin", "network.xml", "manifest.json"):
        content = bytearray((export.path / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (export.path / name).write_bytes(content)
        engine = load_engine(model, store, device="cpu")
        assert engine.export is not None and engine.export.accepted and engine.export.id == export.id
        assert (export.path / name).read_bytes() != bytes(content)
        found = engine.predict(read_video(tiny_video, 2))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE_PX)


_EXPORT = """
import sys
from pathlib import Path

from dlc_platform.dlc.exports import make_export
from dlc_platform.store import Store

print(make_export(Path(sys.argv[1]), Store(Path(sys.argv[2])), list).id)
"""


def test_two_processes_that_want_the_same_export_make_one(model: Path, store: Store):
    command = [sys.executable, "-c", _EXPORT, str(model), str(store.root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    names = {out for out, _ in results}
    (name,) = (path.name for path in (store.root / "exports").iterdir())
    assert names == {f"{name}\n"}
    assert load_export(store.path("exports", name)).accepted


_LIGHT = """
import socket
import sys
from pathlib import Path

connections = []
sys.addaudithook(
    lambda event, args: connections.append(args) if event in ("socket.connect", "socket.getaddrinfo") else None
)

from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.identity import sha256_file
from dlc_platform.store import Store

model, store, video = Path(sys.argv[1]), Store(Path(sys.argv[2])), Path(sys.argv[3])
estimator = PoseEstimator(model, store, device="cpu")
poses = estimator.estimate(video, sha256_file(video))
assert estimator.engine.backend == "openvino" and poses.frames == 20
heavy = {"deeplabcut", "torch", "torchvision", "timm", "dagster", "matplotlib", "openvino_telemetry"}
print(sorted(name for name in heavy if sys.modules.get(name) is not None), connections)
"""


def test_a_worker_with_an_export_imports_no_deeplabcut_no_torch(model: Path, store: Store, tiny_video: Path):
    make_export(model, store, no_pictures)
    command = [sys.executable, "-c", _LIGHT, str(model), str(store.root), str(tiny_video)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] []\n"
