"""What is done when memory runs out. A small device is a test double: a network that refuses large batches.

It refuses them with the error that PyTorch raises on a GPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dlc_platform.devices.needs import GPU_MEMORY_VARIABLE
from dlc_platform.dlc.dataset import Dataset
from dlc_platform.dlc.engine import load_engine
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.dlc.memory import gpu_peak_gb, is_out_of_memory, keep_to_share, with_smaller_batches
from dlc_platform.dlc.training import TrainedModel, load_model, parameters_of, train_model
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store
from dlc_platform_tests.products import manifest_of


@pytest.fixture
def short_recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.model_copy(update={"epochs": 1})


def _full(*arguments: Any) -> Any:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_errors_of_all_allocators_are_told_from_others():
    import torch

    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, np.uint8)
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as of_cuda:
        _full()
    assert all(is_out_of_memory(error.value) for error in (of_numpy, of_torch, of_cuda))
    others = (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), RuntimeError("std::bad_alloc"))
    assert all(map(is_out_of_memory, others))
    assert not any(map(is_out_of_memory, (RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("x"))))


def test_batches_are_halved_until_they_fit():
    tried: list[int] = []
    said: list[str] = []

    def attempt(size: int) -> str:
        tried.append(size)
        return "done" if size <= 3 else _full()

    assert with_smaller_batches(attempt, 24, said.append, "the work") == ("done", 3)
    assert tried == [24, 12, 6, 3]
    assert said[0].startswith("the work ran out of memory with a batch of 24, and is tried with 12: CUDA out of memory")
    with pytest.raises(PlatformError, match="the work ran out of memory even with a batch of 1: CUDA out of memory"):
        with_smaller_batches(_full, 2, said.append, "the work")
    with pytest.raises(ZeroDivisionError):
        with_smaller_batches(lambda size: 1 / 0, 2, said.append, "the work")


def test_training_out_of_memory_begins_anew_in_smaller_batches(
    tiny_dataset: Dataset, short_recipe: Recipe, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from deeplabcut.pose_estimation_pytorch.models import PoseModel

    forward = PoseModel.forward
    monkeypatch.setattr(PoseModel, "forward", lambda self, x, *rest: _full() if len(x) > 4 else forward(self, x, *rest))
    said: list[str] = []
    model = train_model(tiny_dataset.path, short_recipe, tiny_store, tmp_path, "cpu", warn=said.append)
    assert model.batch_size == 4
    assert len(said) == 1 and "training ran out of memory with a batch of 8, and is tried with 4" in said[0]
    manifest = manifest_of(tiny_store.path("models", model.id))
    assert (manifest["batch_size"], manifest["recipe"]["batch_size"]) == (4, 8)
    assert yaml.safe_load((model.path / "pytorch_config.yaml").read_text())["train_settings"]["batch_size"] == 4
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    same = train_model(
        tiny_dataset.path, short_recipe.model_copy(update={"batch_size": 4}), tiny_store, tmp_path, "cpu"
    )
    assert same.weights_sha256 == model.weights_sha256, "nothing of the first try is left in the second"


def test_inference_out_of_memory_gives_the_same_in_small_batches(
    tiny_model: TrainedModel, tiny_store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    engine = load_engine(tiny_model.path, tiny_store, device="cpu")
    pictures = np.random.default_rng(1).integers(0, 255, (10, 96, 96, 3), np.uint8)
    expected = engine.detect(pictures)
    assert engine.largest_batch is None
    compute = engine._detect
    monkeypatch.setattr(engine, "_detect", lambda part: _full() if len(part) > 3 else compute(part))
    assert np.array_equal(engine.detect(pictures), expected)
    assert engine.largest_batch == 2 and engine.batch_size(96, 96) == 2
    assert "inference ran out of memory with a batch of 10, and is tried with 5" in caplog.text
    caplog.clear()
    assert np.array_equal(engine.detect(pictures), expected)
    assert not caplog.text, "what is known of the memory is not found out again"


def test_poses_of_a_video_say_with_which_batches_they_were_made(
    tiny_model: TrainedModel, tiny_store: Store, tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = PoseEstimator(tiny_model.path, tiny_store, device="cpu").estimate(tiny_video, sha256_file(tiny_video))
    engine = load_engine(tiny_model.path, tiny_store, device="cpu")
    compute = engine._detect
    monkeypatch.setattr(engine, "_detect", lambda part: _full() if len(part) > 2 else compute(part))
    estimator = PoseEstimator(tiny_model.path, Store(tmp_path), device="cpu")
    estimator.engine = engine
    poses = estimator.estimate(tiny_video, sha256_file(tiny_video))
    assert (poses.id, poses.batch_size) == (expected.id, engine.largest_batch)
    assert expected.batch_size is not None and poses.batch_size is not None
    assert 1 <= poses.batch_size <= 2 < expected.batch_size
    assert read_parquet(poses.path / POSE_TABLE).equals(read_parquet(expected.path / POSE_TABLE))


def test_several_gpus_of_a_recipe_become_deeplabcuts_own_setting(
    tiny_dataset: Dataset, short_recipe: Recipe, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As far as that can be seen without a GPU: what DeepLabCut is called with."""
    import torch
    from deeplabcut.pose_estimation_pytorch.apis import training

    class Called(Exception):
        pass

    seen: dict[str, Any] = {}

    def train(**given: Any) -> None:
        seen.update(given)
        raise Called

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    recipe = short_recipe.model_copy(update={"gpus": 2})
    with pytest.raises(Called):
        train_model(tiny_dataset.path, recipe, tiny_store, tmp_path, "cuda")
    assert seen["device"] == "cuda" and seen["run_config"]["runner"]["gpus"] == [0, 1]
    with pytest.raises(Called):
        train_model(tiny_dataset.path, short_recipe, tiny_store, tmp_path, "cuda")
    assert seen["run_config"]["runner"]["gpus"] is None
    said: list[str] = []
    with pytest.raises(Called):
        train_model(tiny_dataset.path, recipe, tiny_store, tmp_path, "cpu", warn=said.append)
    assert seen["device"] == "cpu" and seen["run_config"]["runner"]["gpus"] is None
    assert said == ["the recipe asks for 2 GPUs and this process sees 0: it is trained on cpu alone"]


def test_what_is_needed_of_gpus_is_no_parameter_of_a_model(tiny_recipe: Recipe):
    same = tiny_recipe.model_copy(update={"gpus": 2, "gpu_memory_gb": 6.0})
    assert parameters_of(same) == parameters_of(tiny_recipe)


def test_an_older_model_was_trained_with_its_recipes_batches(tiny_model: TrainedModel):
    assert load_model(tiny_model.path).batch_size == 8


def test_a_process_keeps_to_its_share_of_each_gpu(monkeypatch: pytest.MonkeyPatch):
    import torch

    shares: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Properties", (), {"total_memory": 20e9})
    )
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: shares.append((part, device))
    )
    monkeypatch.delenv(GPU_MEMORY_VARIABLE, raising=False)
    keep_to_share()
    assert not shares
    monkeypatch.setenv(GPU_MEMORY_VARIABLE, "6.5")
    keep_to_share()
    assert shares == [(pytest.approx(0.3), 0), (pytest.approx(0.3), 1)]
    for wrong in ("", "much", "nan", "inf", "-1", "0"):
        monkeypatch.setenv(GPU_MEMORY_VARIABLE, wrong)
        with pytest.raises(PlatformError, match=f"{GPU_MEMORY_VARIABLE} is '{wrong}'"):
            keep_to_share()


def test_without_a_gpu_nothing_of_one_was_used():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_peak_gb() is None
