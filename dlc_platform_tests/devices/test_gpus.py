"""Devices by a test double of NVML, because no machine that runs the tests need have a GPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dlc_platform.devices.gpus import CPU, Device, computing, environment, find_devices
from dlc_platform.errors import PlatformError
from dlc_platform.lab.doctor import examine_devices
from dlc_platform.settings.lab import Lab

DOUBLES = Path(__file__).parents[1] / "launchers" / "doubles"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Says which GPUs the machine has; None for no driver."""
    monkeypatch.syspath_prepend(DOUBLES)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)

    def has(gpus: list[dict[str, Any]] | None) -> None:
        if gpus is None:
            monkeypatch.delenv("TEST_NVML", raising=False)
            return
        (tmp_path / "nvml.json").write_text(json.dumps(gpus))
        monkeypatch.setenv("TEST_NVML", str(tmp_path / "nvml.json"))

    return has


def test_devices_are_found_with_their_memory(machine):
    machine([{"memory_gb": 24}, {"memory_gb": None}])
    assert find_devices("auto") == (
        Device("gpu-0", "0", 24.0, "A test double", "GPU-0"),
        Device("gpu-1", "1", None, "A test double", "GPU-1"),
    )
    assert [str(device) for device in (*find_devices("auto"), CPU)] == ["GPU 0", "GPU 1", "the CPU"]


def test_a_gpu_has_one_lease_however_it_is_listed(machine):
    machine([{"memory_gb": 24}, {"memory_gb": 24}])
    assert find_devices([1]) == find_devices(["GPU-1"]) == find_devices([1, "GPU-1"])


def test_a_container_with_some_gpus_uses_the_same_leases(machine):
    """It numbers those that it sees from 0, so that its GPU 0 may be another one than that of the host."""
    first, second, third = ({"uuid": f"GPU-{name}", "memory_gb": 24} for name in ("7F1c", "02ab", "55e0"))
    machine([first, second, third])
    host = find_devices("auto")
    machine([third, second])
    by_number, inside = find_devices([0]), find_devices("auto")
    assert [device.key for device in inside] == [host[2].key, host[1].key] == ["gpu-55e0", "gpu-02ab"]
    assert by_number == find_devices(["GPU-55e0"]) == inside[:1]
    assert environment(by_number)["CUDA_VISIBLE_DEVICES"] == "0"
    machine(None)
    assert find_devices(["GPU-55e0"])[0].key == by_number[0].key, "a container without NVML"


def test_doctor_says_that_listed_gpus_have_no_driver(machine):
    lab = Lab.model_validate({"raw_roots": ["/raw"], "projects": {"maze": {"path": "/maze"}}, "gpus": [0, 7]})
    machine(None)
    finding = examine_devices(lab.gpus)
    assert "lists GPU 0, GPU 7, and this machine has no NVIDIA driver" in finding.found and finding.remedy
    machine([{"memory_gb": 24}])
    finding = examine_devices(lab.gpus)
    assert "this machine has no GPU 7" in finding.found and finding.remedy
    machine([{"memory_gb": 24}] * 8)
    assert (examine_devices(lab.gpus).found, examine_devices(lab.gpus).remedy) == ("GPU 0, GPU 7", "")


def test_a_gpu_that_is_cut_stands_for_its_slices(machine):
    machine([{"memory_gb": 80, "slices": [{"memory_gb": 40}, {"memory_gb": 20}]}, {"memory_gb": 80}])
    first, second, whole = find_devices("auto")
    assert (first.key, first.visible, first.memory_gb) == ("mig-0-0", "MIG-0-0", 40.0)
    assert find_devices([0]) == find_devices(["GPU-0"]) == (first, second)
    assert find_devices(["MIG-0-1"]) == (second,)
    assert environment([second])["CUDA_VISIBLE_DEVICES"] == "MIG-0-1"
    assert (first.is_slice, whole.is_slice) == (True, False)


def test_without_a_driver_there_are_the_listed_devices(machine):
    machine(None)
    assert find_devices("auto") == ()
    assert find_devices([]) == ()
    assert find_devices([2, "GPU-abc"]) == (Device("gpu-2", "2"), Device("gpu-abc", "GPU-abc", uuid="GPU-abc"))
    assert computing(Device("gpu-2", "2")) == frozenset()


def test_a_gpu_that_is_not_there_is_named(machine):
    machine([{"memory_gb": 24}])
    with pytest.raises(PlatformError, match=r"this machine has no GPU 3: NVML knows GPU 0.*nvidia-smi -L"):
        find_devices([0, 3])


def test_who_computes_is_known(machine):
    machine([{"memory_gb": 24, "computing": [11, 12]}, {"slices": [{"memory_gb": 10, "computing": [13]}]}])
    assert [computing(device) for device in find_devices("auto")] == [{11, 12}, {13}]
    assert computing(Device("gpu-9", "9")) == frozenset()


def test_a_silent_driver_does_not_mean_a_machine_without_gpus(machine, monkeypatch: pytest.MonkeyPatch):
    machine([{"memory_gb": 24}])
    import pynvml

    def fail() -> None:
        raise pynvml.NVMLError(999)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    with pytest.raises(PlatformError, match="the NVIDIA driver does not say which GPUs there are"):
        find_devices("auto")
