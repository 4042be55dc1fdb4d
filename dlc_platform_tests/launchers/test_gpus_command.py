"""`dlc-platform gpus`, on a test double of NVML."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dlc_platform.cli.app import app
from dlc_platform.devices import leases
from dlc_platform.devices.gpus import find_devices
from dlc_platform.devices.locks import DIRECTORY_VARIABLE
from dlc_platform.devices.needs import Needs
from dlc_platform.errors import PlatformError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(Path(__file__).with_name("doubles"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setenv("TEST_NVML", str(tmp_path / "nvml.json"))
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "leases"))
    gpus = [{"uuid": "GPU-7f1c", "memory_gb": 24}, {"uuid": "GPU-02ab", "memory_gb": 24, "computing": [1]}]
    (tmp_path / "nvml.json").write_text(json.dumps(gpus))
    (tmp_path / "lab").mkdir()
    settings = {"raw_roots": [str(tmp_path / "raw")], "projects": {"mouse": {"path": str(tmp_path / "project")}}}
    (tmp_path / "lab" / "lab.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "lab"


def _gpus(home: Path, *options: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["gpus", str(home), "--json", *options], catch_exceptions=False)
    return json.loads(result.stdout)


def test_devices_are_shown_with_who_computes_there(home: Path):
    with leases.acquire(find_devices([0]), "run 1a2b", needs=Needs(1, 6.5)):
        first, second = _gpus(home)
    assert first["held_by"].startswith("run 1a2b (pid ") and first["shared_gb"] == 6.5
    assert (first["gpu"], first["uuid"], first["memory_gb"]) == ("0", "GPU-7f1c", 24.0)
    assert (first["drained"], first["without_lease"]) == ("", "")
    assert (second["held_by"], second["without_lease"]) == ("", "1")


def test_a_device_is_drained_and_takes_work_again(home: Path):
    assert [bool(row["drained"]) for row in _gpus(home, "--drain", "1")] == [False, True]
    with leases.acquire(find_devices("auto"), "a run") as lease:
        assert str(lease) == "GPU 0"
    assert not any(row["drained"] for row in _gpus(home, "--resume", "1"))
    with pytest.raises(PlatformError, match=r"runs of this lab use no GPU '7'.*Name one of 0, 1, or its UUID"):
        _gpus(home, "--drain", "7")


def test_a_device_is_drained_by_its_uuid_for_every_container(home: Path, tmp_path: Path):
    assert [bool(row["drained"]) for row in _gpus(home, "--drain", "GPU-02ab")] == [False, True]
    # A container that sees the second GPU only calls it 0.
    (tmp_path / "nvml.json").write_text(json.dumps([{"uuid": "GPU-02ab", "memory_gb": 24}]))
    (row,) = _gpus(home)
    assert row["gpu"] == "0" and row["drained"]
    (row,) = _gpus(home, "--resume", "gpu-02AB")
    assert not row["drained"]
