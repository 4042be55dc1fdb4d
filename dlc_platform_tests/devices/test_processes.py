"""Real processes: named, recognised, killed."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dlc_platform.devices import processes
from dlc_platform.devices.processes import WorkerProcess, killed_for_memory
from dlc_platform.errors import HOME_VARIABLE

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def _start_session() -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    return process, int(process.stdout.readline())


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_process_is_found_again_through_the_tags():
    worker = WorkerProcess.current()
    assert worker.is_alive() and worker.was_started_here()
    assert WorkerProcess.from_tags({**worker.tags(), "other": "tag"}) == worker
    assert WorkerProcess.from_tags({"other": "tag"}) is None
    # As version 0.6.1 named it.
    earlier = {"dlc_platform/host": "h", "dlc_platform/pid": "7", "dlc_platform/process_started": "b:1"}
    assert WorkerProcess.from_tags(earlier) == WorkerProcess("h", 7, "b:1")
    assert WorkerProcess.from_tags(earlier | worker.tags()) == worker, "a run that is tried again has those of before"


def test_another_process_with_the_same_pid_is_not_the_worker():
    process, child = _start_session()
    boot, _, ticks = WorkerProcess.of(process.pid).started.partition(":")
    earlier = dataclasses.replace(WorkerProcess.of(process.pid), started=f"{boot}:{int(ticks) - 1}")
    assert not earlier.is_alive()
    earlier.signal(signal.SIGKILL)
    earlier.kill()
    assert _runs(process.pid) and _runs(child)
    WorkerProcess.of(process.pid).kill()
    process.wait()


def test_a_zombie_is_not_alive():
    process, _ = _start_session()
    worker = WorkerProcess.of(process.pid)
    worker.kill()
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert not worker.is_alive()
    process.wait()


def test_kill_takes_the_children():
    process, child = _start_session()
    WorkerProcess.of(process.pid).kill()
    process.wait()
    assert not _runs(child)


def test_kill_finds_the_orphans_of_a_dead_worker():
    process, child = _start_session()
    worker = WorkerProcess.of(process.pid)
    process.kill()
    process.wait()
    assert _runs(child)
    worker.kill()
    assert not _runs(child)


def test_kill_stays_within_the_worker():
    """A process that leads no session, such as a command in a terminal, must not take its terminal with it."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    process, neighbour = subprocess.Popen(command), subprocess.Popen(command)
    assert os.getsid(process.pid) == os.getsid(neighbour.pid)
    WorkerProcess.of(process.pid).kill()
    assert process.wait() == -signal.SIGKILL
    assert neighbour.poll() is None
    neighbour.kill()
    neighbour.wait()


def test_the_kernel_counts_whom_it_killed_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_CGROUPS", tmp_path)
    monkeypatch.setattr(processes, "_VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr(processes, "_CGROUP", tmp_path / "cgroup")
    assert killed_for_memory() is None
    (tmp_path / "vmstat").write_text("pgfault 12\noom_kill 7\n")
    assert killed_for_memory() == (tmp_path / "vmstat", 7)
    (tmp_path / "cgroup").write_text("4:memory:/a/b\n")
    (tmp_path / "memory" / "a" / "b").mkdir(parents=True)
    (tmp_path / "memory" / "a" / "b" / "memory.oom_control").write_text("under_oom 0\noom_kill 3\n")
    assert killed_for_memory() == (tmp_path / "memory" / "a" / "b" / "memory.oom_control", 3)
    (tmp_path / "cgroup").write_text("0::/unit.service\n")
    (tmp_path / "unit.service").mkdir()
    (tmp_path / "unit.service" / "memory.events").write_text("max 5\noom 2\noom_kill 1\n")
    assert killed_for_memory() == (tmp_path / "unit.service" / "memory.events", 1)


def test_a_copied_lab_knows_the_processes_of_the_other_one(tmp_path: Path):
    original, copy = tmp_path / "lab", tmp_path / "copy"
    original.mkdir()
    copy.mkdir()
    process = subprocess.Popen(["sleep", "60"], env=os.environ | {HOME_VARIABLE: str(original)})
    try:
        # The kernel shows a new program before it shows its environment.
        while HOME_VARIABLE not in psutil.Process(process.pid).environ():
            time.sleep(0.01)
        worker = WorkerProcess.of(process.pid)
        assert worker.works_for(original) and not worker.works_for(copy)
        original.rename(tmp_path / "moved")
        assert worker.works_for(tmp_path / "moved")
    finally:
        process.kill()
        process.wait()
