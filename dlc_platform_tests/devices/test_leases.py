"""Leases between real processes. The devices are test doubles: nothing here computes on them."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dlc_platform.devices import gpus, leases, locks
from dlc_platform.devices.gpus import CPU, Device
from dlc_platform.devices.locks import DIRECTORY_VARIABLE, drain_directory
from dlc_platform.devices.needs import Needs
from dlc_platform.errors import PlatformError

DOUBLES = Path(__file__).parents[1] / "launchers" / "doubles"
GPUS = tuple(Device(f"gpu-{number}", str(number), 24.0) for number in range(4))
TWO = GPUS[:2]

HOLD = """
import sys
from dlc_platform.devices import leases
from dlc_platform.devices.gpus import Device
from dlc_platform.launchers.needs import Needs
gpus = [Device(f"gpu-{number}", number, 24.0) for number in sys.argv[3:]]
lease = leases.acquire(gpus, sys.argv[1], needs=Needs(1, float(sys.argv[2]) or None))
print(lease, flush=True)
sys.stdin.read()
"""
#: A worker, in a session of its own, with a child that has not inherited the lease.
PARENT = """
import subprocess, sys
from dlc_platform.devices import leases
from dlc_platform.devices.gpus import Device
lease = leases.acquire([Device("gpu-0", "0", 24.0)], "a run")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


class _Busy(Exception):
    pass


def _refuse_to_wait(seconds: float) -> None:
    raise _Busy


def _hold(purpose: str, *gpus: int, memory_gb: float = 0) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, purpose, str(memory_gb), *map(str, gpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout and holder.stdout.readline()
    return holder


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def lease_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "leases"))
    return tmp_path / "leases"


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that tells the test double of NVML what there is."""
    monkeypatch.syspath_prepend(DOUBLES)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setenv("TEST_NVML", str(tmp_path / "nvml.json"))
    return tmp_path / "nvml.json"


def test_each_lease_is_on_another_device_and_a_third_waits():
    with leases.acquire(TWO, "first") as first, leases.acquire(TWO, "second") as second:
        assert {first.devices, second.devices} == {TWO[:1], TWO[1:]}
        with pytest.raises(_Busy):
            leases.acquire(TWO, "third", pause=_refuse_to_wait)
    with leases.acquire(TWO, "fourth", pause=_refuse_to_wait) as again:
        assert again.devices == TWO[:1]


def test_a_lease_shows_its_process_its_devices_only():
    with leases.acquire(GPUS[3:], "a run") as lease:
        assert lease.environment() == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "3"}


def test_without_a_gpu_there_is_one_lease_on_the_cpu():
    with leases.acquire([], "first", needs=Needs(2, 8.0)) as lease:
        assert (lease.devices, str(lease)) == ((CPU,), "the CPU")
        assert lease.environment() == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ""}
        with pytest.raises(_Busy):
            leases.acquire([], "second", pause=_refuse_to_wait)


def test_a_waiting_process_gets_the_device_of_a_killed_holder():
    holder = _hold("run 1a2b", 0)
    said: list[str] = []
    pauses: list[float] = []

    def kill_at_the_third_pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            _end(holder)

    with leases.acquire(GPUS[:1], "second", said.append, kill_at_the_third_pause) as lease:
        assert lease.devices == GPUS[:1]
    assert said == [f"Waiting for a device: GPU 0 is held by run 1a2b (pid {holder.pid})"]
    assert len(pauses) == 3


def test_a_forked_child_keeps_the_device_of_its_dead_parent():
    """A worker's own processes may still compute on the GPU when the worker has gone."""
    ready, tell = os.pipe()
    stay, let_go = os.pipe()
    parent = os.fork()
    if parent == 0:
        leases.acquire(GPUS[:1], "a run")
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
        leases.acquire(GPUS[:1], "next", pause=_refuse_to_wait)
    os.close(let_go)
    leases.acquire(GPUS[:1], "next").release()


def test_what_a_killed_worker_leaves_behind_keeps_its_device():
    """A child that was started and not forked holds no lease, and may hold memory of the GPU all the same."""
    worker = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert worker.stdout
    child = int(worker.stdout.readline())
    _end(worker)
    said: list[str] = []
    with pytest.raises(_Busy):
        leases.acquire(GPUS[:1], "next", said.append, _refuse_to_wait)
    assert said == [f"Waiting for a device: what a run (pid {worker.pid}) left behind on GPU 0 still runs"]
    os.kill(child, signal.SIGKILL)
    leases.acquire(GPUS[:1], "next").release()


def test_several_devices_are_leased_together_or_not_at_all():
    with leases.acquire(GPUS[1:2], "one"):
        said: list[str] = []
        with pytest.raises(_Busy):
            leases.acquire(TWO, "two", said.append, _refuse_to_wait, Needs(2))
        assert "Waiting for 2 GPUs" in said[0] and "GPU 0 alone is not enough" in said[0]
        with leases.acquire(GPUS, "three", pause=_refuse_to_wait, needs=Needs(3)) as lease:
            assert lease.devices == (GPUS[0], GPUS[2], GPUS[3])
            assert lease.environment()["CUDA_VISIBLE_DEVICES"] == "0,2,3"
            assert str(lease) == "GPU 0 and GPU 2 and GPU 3"


def test_small_runs_share_a_device_as_far_as_its_memory_goes():
    first = _hold("first", 0, 1, memory_gb=10)
    second = _hold("second", 0, 1, memory_gb=10)
    with leases.acquire(TWO, "third", needs=Needs(1, 6.5)) as third:
        assert str(third) == "6.5 GB of GPU 1"
        assert third.environment()["DLC_PLATFORM_GPU_MEMORY_GB"] == "6.5"
        with leases.acquire(TWO, "fourth", needs=Needs(1, 4)) as fourth:
            assert fourth.devices == TWO[:1], "the fullest device that has room is taken"
            said: list[str] = []
            with pytest.raises(_Busy):
                leases.acquire(TWO, "whole", said.append, _refuse_to_wait)
            assert "GPU 0 is held by " in said[0] and "fourth (pid " in said[0], "in any order"
            with pytest.raises(_Busy):
                leases.acquire(TWO[:1], "too much", said.append, _refuse_to_wait, Needs(1, 0.5))
            assert "GPU 0 has 0.0 GB left beside" in said[1]
    _end(first)
    _end(second)
    with leases.acquire(TWO, "whole", needs=Needs(2)) as whole:
        assert whole.devices == TWO


def test_a_long_wait_comes_before_a_stream_of_small_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "_PATIENCE_SECONDS", 0.0)
    small = leases.acquire(GPUS[:1], "small", needs=Needs(1, 4))
    pauses = 0

    def others_come(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        said: list[str] = []
        with pytest.raises(_Busy):
            leases.acquire(GPUS[:1], "another small one", said.append, _refuse_to_wait, Needs(1, 4))
        assert said == ["Waiting for 4 GB of a GPU: GPU 0 is kept for whole, which has waited longer"]
        with leases.acquire(TWO, "elsewhere", pause=_refuse_to_wait, needs=Needs(1, 4)) as lease:
            assert lease.devices == TWO[1:], "only what it needs is kept for it"
        if pauses == 2:
            small.release()

    with leases.acquire(GPUS[:1], "whole", pause=others_come) as lease:
        assert str(lease) == "GPU 0"
    assert pauses == 2


def test_who_died_while_waiting_keeps_nothing(monkeypatch: pytest.MonkeyPatch, lease_directory: Path):
    monkeypatch.setattr(leases, "_PATIENCE_SECONDS", 0.0)
    (lease_directory / "waiting").mkdir(parents=True)
    (lease_directory / "waiting" / f"{time.time_ns()}-1").write_text(
        json.dumps({"purpose": "dead", "choices": ["gpu-0"], "gpus": 1})
    )
    leases.acquire(GPUS[:1], "alive", pause=_refuse_to_wait).release()
    assert not list((lease_directory / "waiting").iterdir())


def test_what_else_lies_among_those_who_wait_is_nobody(monkeypatch: pytest.MonkeyPatch, lease_directory: Path):
    """Every user of the machine may write there."""
    monkeypatch.setattr(leases, "_PATIENCE_SECONDS", 0.0)
    waiting = lease_directory / "waiting"
    waiting.mkdir(parents=True)
    (waiting / f"{time.time_ns()}-1").write_text(json.dumps({"purpose": "dead", "choices": ["gpu-0"], "gpus": 1}))
    others = {"foo-bar", "-1", "1-", "\u0661-1", f"{time.time_ns()}-1.part"}
    for name in others:
        (waiting / name).touch()
    (waiting / "1-1").symlink_to("elsewhere")
    leases.acquire(GPUS[:1], "alive", pause=_refuse_to_wait).release()
    assert {file.name for file in waiting.iterdir()} == {*others, "1-1"}


def test_a_drained_device_finishes_its_work_and_takes_no_more():
    with leases.acquire(GPUS[:1], "running"):
        leases.drain(GPUS[0])
        (state,) = leases.survey(GPUS[:1])
        assert [holder.purpose for holder in state.holders] == ["running"] and state.drained
    said: list[str] = []
    with pytest.raises(_Busy):
        leases.acquire(GPUS[:1], "next", said.append, _refuse_to_wait)
    assert "GPU 0 is drained (by " in said[0]
    with leases.acquire(TWO, "next", pause=_refuse_to_wait) as lease:
        assert lease.devices == TWO[1:]
    leases.resume(GPUS[0])
    leases.acquire(GPUS[:1], "next", pause=_refuse_to_wait).release()
    assert leases.survey(GPUS[:1])[0].drained is None


def test_a_drain_outlives_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A reboot empties the temporary folder, where the leases are unless it is said otherwise."""
    lasting, before, after = (tmp_path / name for name in ("lasting", "before", "after"))
    for folder in (lasting, before, after):
        folder.mkdir()
    monkeypatch.delenv(DIRECTORY_VARIABLE)
    monkeypatch.setattr(locks, "_LASTING", lasting)
    monkeypatch.setattr(tempfile, "tempdir", str(before))
    leases.acquire(GPUS[:1], "before", pause=_refuse_to_wait).release()
    leases.drain(GPUS[0])
    (drain,) = drain_directory().iterdir()
    assert stat.S_IMODE(drain.parent.stat().st_mode) == 0o1777
    assert stat.S_IMODE(drain.stat().st_mode) == 0o1666, "left alone by what tidies temporary folders up"
    leases.drain(GPUS[0])
    monkeypatch.setattr(tempfile, "tempdir", str(after))
    with pytest.raises(_Busy):
        leases.acquire(GPUS[:1], "after", pause=_refuse_to_wait)
    leases.resume(GPUS[0])
    leases.acquire(GPUS[:1], "after", pause=_refuse_to_wait).release()


def test_a_container_and_the_host_do_not_share_a_gpu(tmp_path: Path, nvml: Path):
    """Each numbers the GPUs that it sees from 0; the folder of the leases is the same."""
    first, second = {"uuid": "GPU-7f1c", "memory_gb": 24}, {"uuid": "GPU-02ab", "memory_gb": 24}
    nvml.write_text(json.dumps([first, second]))
    with leases.acquire(gpus.find_devices([1]), "on the host"):
        nvml.write_text(json.dumps([second]))
        with pytest.raises(_Busy):
            leases.acquire(gpus.find_devices([0]), "in a container", pause=_refuse_to_wait)
        nvml.write_text(json.dumps([first]))
        leases.acquire(gpus.find_devices([0]), "in another", pause=_refuse_to_wait).release()


def test_a_device_is_left_alone_on_which_a_stranger_computes(nvml: Path):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    holder = _hold("ours", 1, memory_gb=4)
    told = [{"memory_gb": 24, "computing": [stranger.pid]}, {"memory_gb": 24, "computing": [holder.pid]}]
    nvml.write_text(json.dumps(told))
    said: list[str] = []
    with pytest.raises(_Busy):
        leases.acquire(GPUS[:1], "next", said.append, _refuse_to_wait, avoid_busy=True)
    assert f"GPU 0 is used by the process {stranger.pid} (python" in said[0]
    assert [state.strangers for state in leases.survey(TWO)] == [{stranger.pid}, set()]
    with leases.acquire(TWO, "next", pause=_refuse_to_wait, needs=Needs(1, 4), avoid_busy=True) as lease:
        assert lease.devices == TWO[1:], "who shares by a lease is no stranger"
    leases.acquire(GPUS[:1], "next", pause=_refuse_to_wait).release()
    _end(stranger)
    _end(holder)


def test_nothing_is_kept_for_who_cannot_be_served(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "_PATIENCE_SECONDS", 0.0)
    leases.drain(GPUS[0])
    pauses = 0

    def others_come(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        leases.acquire(TWO, "one", pause=_refuse_to_wait).release()
        if pauses == 2:
            leases.resume(GPUS[0])

    with leases.acquire(TWO, "both", pause=others_come, needs=Needs(2)) as lease:
        assert lease.devices == TWO
    assert pauses == 2


def test_what_is_kept_is_not_where_a_stranger_computes(nvml: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "_PATIENCE_SECONDS", 0.0)
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    nvml.write_text(json.dumps([{"memory_gb": 24, "computing": [stranger.pid]}, {"memory_gb": 24, "computing": []}]))
    ours = leases.acquire(GPUS[1:2], "ours")
    pauses = 0

    def others_come(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 2:
            ours.release()
            said: list[str] = []
            with pytest.raises(_Busy):
                leases.acquire(TWO, "late", said.append, _refuse_to_wait, avoid_busy=True)
            assert "GPU 1 is kept for first, which has waited longer" in said[0]

    with leases.acquire(TWO, "first", pause=others_come, avoid_busy=True) as lease:
        assert lease.devices == TWO[1:]
    _end(stranger)


def test_a_broken_driver_is_not_asked_about_the_cpu(nvml: Path):
    nvml.write_text("this is no answer")
    leases.acquire((), "a run", pause=_refuse_to_wait, avoid_busy=True).release()
    assert leases.survey(())[0].strangers == frozenset()


def test_what_no_device_can_give_is_refused_at_once():
    with pytest.raises(PlatformError, match=r"3 GPUs cannot be had: of GPU 0 \(24.0 GB\), GPU 1 \(24.0 GB\) only 2"):
        leases.acquire(TWO, "a run", needs=Needs(3))
    with pytest.raises(PlatformError, match=r"30 GB of a GPU cannot be had: .* only 0 would do"):
        leases.acquire(TWO, "a run", needs=Needs(1, 30.0))
    slices = [Device("mig-a", "MIG-a", 10.0), Device("mig-b", "MIG-b", 10.0)]
    with pytest.raises(PlatformError, match=r"2 GPUs cannot be had: of MIG-a \(10.0 GB\), .* only 0"):
        leases.acquire(slices, "a run", needs=Needs(2))
    unknown = [Device("gpu-7", "7")]
    with leases.acquire(unknown, "a run", needs=Needs(1, 30.0)) as lease:
        assert str(lease) == "GPU 7", "a device of unknown memory is not shared"


def test_a_removed_lease_file_is_not_a_second_lease(lease_directory: Path):
    """Whoever opened the file before a cleaner of temporary files removed it must not lock the dead one."""
    with leases.acquire(GPUS[:1], "first"):
        (lease_directory / "gpu-0").unlink()
        with leases.acquire(GPUS[:1], "second"), pytest.raises(_Busy):
            leases.acquire(GPUS[:1], "third", pause=_refuse_to_wait)


def test_every_user_of_the_machine_can_open_the_files(lease_directory: Path):
    leases.acquire(GPUS[:1], "first").release()
    share = leases.acquire(GPUS[:1], "second", needs=Needs(1, 4))
    (own,) = (lease_directory / "gpu-0.shares").iterdir()
    for folder in (lease_directory, own.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    for file in (lease_directory / "gpu-0", lease_directory / "choosing", own):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666
    share.release()
    assert not own.exists()


def test_a_folder_that_cannot_be_used_is_named(lease_directory: Path):
    lease_directory.mkdir()
    (lease_directory / "gpu-0").symlink_to("elsewhere")
    with pytest.raises(PlatformError, match=r"gpu-0 cannot be opened.*DLC_PLATFORM_LEASE_DIR"):
        leases.acquire(GPUS[:1], "first")
