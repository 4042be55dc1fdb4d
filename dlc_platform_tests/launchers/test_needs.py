from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from dlc_platform.devices.gpus import Device
from dlc_platform.devices.needs import Needs
from dlc_platform.errors import HOME_VARIABLE, PlatformError
from dlc_platform.launchers.needs import GPUS_TAG, MEMORY_TAG, declared_needs, gpu_slots, needs_of
from dlc_platform.settings.lab import Lab


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "raw_roots": [str(tmp_path / "raw")],
        "projects": {"mouse": {"path": str(tmp_path / "project")}},
        "recipes": {
            "large": {"project": "mouse", "gpus": 2},
            "small": {"project": "mouse", "gpu_memory_gb": 6},
        },
        "inference": [
            {"project": "mouse", "camera": "top", "gpu_memory_gb": 3},
            {"project": "mouse", "gpu_memory_gb": 4},
        ],
    }


@dg.asset(pool="gpu", partitions_def=dg.StaticPartitionsDefinition(["large", "small"]))
def trained_model() -> None: ...


@dg.asset(pool="gpu")
def pose_estimates() -> None: ...


@dg.asset
def session_videos() -> None: ...


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def _run(instance: dg.DagsterInstance, asset: str, tags: dict[str, str], partition: str | None = None) -> dg.DagsterRun:
    job = dg.Definitions(assets=[trained_model, pose_estimates, session_videos]).resolve_implicit_global_asset_job_def()
    job = job.get_subset(asset_selection={dg.AssetKey(asset)})
    return instance.create_run_for_job(job, tags=tags | ({"dagster/partition": partition} if partition else {}))


def test_a_run_of_the_pool_needs_one_device_and_others_none(instance: dg.DagsterInstance, monkeypatch):
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    assert needs_of(instance, _run(instance, "pose_estimates", {})) == Needs(1, None)
    assert needs_of(instance, _run(instance, "session_videos", {})) is None
    assert needs_of(instance, _run(instance, "session_videos", {GPUS_TAG: "1"})) == Needs(1, None)
    assert needs_of(instance, _run(instance, "pose_estimates", {GPUS_TAG: "0"})) is None


def test_lab_yaml_declares_and_the_tags_of_a_run_go_before(
    instance: dg.DagsterInstance, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "lab.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "lab"))
    assert needs_of(instance, _run(instance, "trained_model", {}, "large")) == Needs(2, None)
    assert needs_of(instance, _run(instance, "trained_model", {}, "small")) == Needs(1, 6.0)
    assert needs_of(instance, _run(instance, "pose_estimates", {})) == Needs(1, 4.0)
    assert needs_of(instance, _run(instance, "trained_model", {MEMORY_TAG: "7.5"}, "large")) == Needs(2, 7.5)
    assert needs_of(instance, _run(instance, "trained_model", {GPUS_TAG: "3"}, "small")) == Needs(3, 6.0)


@pytest.mark.parametrize(("tag", "text"), [(GPUS_TAG, "two"), (GPUS_TAG, "-1"), (MEMORY_TAG, "0"), (MEMORY_TAG, "all")])
def test_a_tag_that_is_no_number_is_named(instance: dg.DagsterInstance, tag: str, text: str):
    with pytest.raises(PlatformError, match=f"the tag {tag} of the run"):
        needs_of(instance, _run(instance, "pose_estimates", {tag: text}))


def test_who_works_for_several_needs_what_is_enough_for_each(settings: dict[str, Any]):
    lab = Lab.model_validate(settings)
    assert declared_needs(lab, ["trained_model", "model_evaluation", "model_comparison"], ["small"]) == Needs(1, None)
    assert declared_needs(lab, ["trained_model"], []) == Needs(2, None)
    assert declared_needs(lab, ["session_videos"], []) == Needs(1, None)
    settings["recipes"]["large"]["gpu_memory_gb"] = 20
    assert declared_needs(Lab.model_validate(settings), ["model_comparison", "pose_estimates"], []) == Needs(1, 20.0)


def test_there_are_slots_for_computing_runs_and_a_few_waiting(settings: dict[str, Any]):
    lab = Lab.model_validate(settings | {"recipes": {}, "inference": []})
    gpus = [Device(f"gpu-{number}", str(number), 24.0) for number in range(8)]
    assert [gpu_slots(gpus[:count], lab) for count in (0, 1, 2, 8)] == [1, 2, 3, 12]
    assert gpu_slots(gpus[:1], Lab.model_validate(settings)) == 8 + 1
    assert gpu_slots([Device("gpu-0", "0", 7.0)], Lab.model_validate(settings)) == 2 + 1
    assert gpu_slots([Device("gpu-0", "0", None)], Lab.model_validate(settings)) == 1 + 1


def test_gpus_are_listed_by_number_or_uuid(settings: dict[str, Any]):
    assert Lab.model_validate(settings | {"gpus": [0, "GPU-1a2b", "MIG-3c"]}).gpus == (0, "GPU-1a2b", "MIG-3c")
    with pytest.raises(ValueError, match="must be auto, or a list of device numbers"):
        Lab.model_validate(settings | {"gpus": ["0000:3b:00.0"]})


def test_more_gpus_than_images_in_a_batch_are_refused(settings: dict[str, Any]):
    settings["recipes"]["large"]["batch_size"] = 1
    with pytest.raises(ValueError, match="gpus is 2 and batch_size 1"):
        Lab.model_validate(settings)
