"""Leases between real processes."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.launchers import devices, leases

HOLD = """
import sys
from dlc_platform.launchers import leases
lease = leases.acquire([int(argument) for argument in sys.argv[2:]], sys.argv[1])
print(lease.device, flush=True)
sys.stdin.read()
"""


class _Busy(Exception):
    pass


def _refuse_to_wait(seconds: float) -> None:
    raise _Busy


def _hold(purpose: str, *gpus: int) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, purpose, *map(str, gpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout and holder.stdout.readline()
    return holder


@pytest.fixture(autouse=True)
def lease_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(leases.DIRECTORY_VARIABLE, str(tmp_path / "leases"))
    return tmp_path / "leases"


def test_each_lease_is_on_another_device_and_a_third_waits():
    with leases.acquire([0, 3], "first") as first, leases.acquire([0, 3], "second") as second:
        assert {first.device, second.device} == {0, 3}
        with pytest.raises(_Busy):
            leases.acquire([0, 3], "third", pause=_refuse_to_wait)
    with leases.acquire([0, 3], "fourth", pause=_refuse_to_wait) as again:
        assert again.device == 0


def test_a_lease_shows_its_process_one_device():
    with leases.acquire([3], "a run") as lease:
        assert lease.environment() == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "3"}


def test_without_a_gpu_there_is_one_lease_on_the_cpu():
    with leases.acquire([], "first") as lease:
        assert lease.device is None
        assert lease.environment()["CUDA_VISIBLE_DEVICES"] == ""
        with pytest.raises(_Busy):
            leases.acquire([], "second", pause=_refuse_to_wait)


def test_who_waits_is_told_once_who_holds_the_device_and_gets_it_when_the_holder_is_killed():
    holder = _hold("run 1a2b", 0)
    said: list[str] = []
    pauses: list[float] = []

    def kill_at_the_third_pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            holder.kill()
            holder.wait()

    with leases.acquire([0], "second", said.append, kill_at_the_third_pause) as lease:
        assert lease.device == 0
    assert said == [f"Waiting for a device: GPU 0 is held by run 1a2b (pid {holder.pid})"]
    assert len(pauses) == 3


def test_a_forked_child_keeps_the_device_of_its_dead_parent():
    """A worker's own processes may still compute on the GPU when the worker has gone."""
    ready, tell = os.pipe()
    stay, let_go = os.pipe()
    parent = os.fork()
    if parent == 0:
        leases.acquire([0], "a run")
        if os.fork() == 0:
            os.close(let_go)
            os.write(tell, b"x")
            os.read(stay, 1)
            os._exit(0)
        signal.pause()
    os.read(ready, 1)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    with pytest.raises(_Busy):
        leases.acquire([0], "next", pause=_refuse_to_wait)
    os.close(let_go)
    leases.acquire([0], "next").release()


def test_a_removed_lease_file_is_not_a_second_lease(lease_directory: Path):
    """Whoever opened the file before a cleaner of temporary files removed it must not lock the dead one."""
    with leases.acquire([0], "first"):
        (lease_directory / "gpu-0").unlink()
        with leases.acquire([0], "second"), pytest.raises(_Busy):
            leases.acquire([0], "third", pause=_refuse_to_wait)


def test_every_user_of_the_machine_can_open_the_files(lease_directory: Path):
    leases.acquire([0], "first").release()
    assert stat.S_IMODE(lease_directory.stat().st_mode) == 0o1777
    assert stat.S_IMODE((lease_directory / "gpu-0").stat().st_mode) == 0o666


def test_a_folder_that_cannot_be_used_is_named(lease_directory: Path):
    lease_directory.mkdir()
    (lease_directory / "gpu-0").symlink_to("elsewhere")
    with pytest.raises(PlatformError, match=r"gpu-0 cannot be opened.*DLC_PLATFORM_LEASE_DIR"):
        leases.acquire([0], "first")


def test_listed_gpus_are_taken_as_they_are():
    assert devices.gpu_indices((2, 5)) == (2, 5)
    assert devices.gpu_indices(()) == ()
