"""Worker processes: a name for a process, so that any other process, now or later, recognises or stops it.

Nothing is kept in memory: a worker's name travels in the tags of its run. This module also reads the kernel's count of
processes that were killed for lack of memory.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from dlc_platform.errors import HOME_VARIABLE

HOST_TAG = "dlc_platform/host"
#: The UI hides tags that begin so: a person looks for the run of a session, never for that of a pid.
UNSHOWN = ".dagster/dlc_platform_"
PID_TAG = f"{UNSHOWN}pid"
STARTED_TAG = f"{UNSHOWN}process_started"
#: The kernel's space of pids in which it runs: containers have their own, even if their hosts' names are equal.
SPACE_TAG = f"{UNSHOWN}pid_space"
#: The names of these tags in runs that version 0.6.1 or an earlier one started.
_EARLIER = {PID_TAG: "dlc_platform/pid", STARTED_TAG: "dlc_platform/process_started"}

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")
_KILL_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerProcess:
    """One process, told apart from every later process with the same pid.

    `started` is when the process began, in the kernel's own count; setting the clock does not change it.
    """

    host: str
    pid: int
    started: str
    space: str = ""

    @classmethod
    def of(cls, pid: int) -> "WorkerProcess":
        """The process that has this pid now; for one that has just ended, a name that is never alive."""
        return cls(socket.gethostname(), pid, _started(pid) or "ended", _pid_space())

    @classmethod
    def current(cls) -> "WorkerProcess":
        """The calling process."""
        return cls.of(os.getpid())

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "WorkerProcess | None":
        """The worker that a run's tags name, if they name one."""
        names = (PID_TAG, STARTED_TAG)
        if not tags.keys() >= {*names}:
            names = tuple(_EARLIER[name] for name in names)
        try:
            return cls(tags[HOST_TAG], int(tags[names[0]]), tags[names[1]], tags.get(SPACE_TAG, ""))
        except KeyError:
            return None

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    def tags(self) -> dict[str, str]:
        """The tags that name this process as the worker of a run."""
        return {HOST_TAG: self.host, PID_TAG: str(self.pid), STARTED_TAG: self.started, SPACE_TAG: self.space}

    def was_started_here(self) -> bool:
        """True if it was started on a host with the name of this one."""
        return self.host == socket.gethostname()

    def can_be_seen(self) -> bool:
        """True if the calling process would see it if it were alive: on the same host, in the same container."""
        return self.was_started_here() and bool(self.space) and self.space == _pid_space()

    def is_alive(self) -> bool:
        """True if it runs on this host; a zombie does not run."""
        return _started(self.pid) == self.started

    def works_for(self, home: Path) -> bool:
        """False for a process that says it works on another lab, such as the one that this lab is a copy of."""
        try:
            named = psutil.Process(self.pid).environ().get(HOME_VARIABLE)
        except psutil.Error:
            return True
        # If the lab was moved, the other place does not exist any more.
        return named is None or not Path(named).exists() or Path(named).resolve() == home.resolve()

    def signal(self, number: int) -> None:
        """Send it a signal, if it is alive."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and every process that it left behind: its descendants and the members of its session."""
        # A process can fork while it is being looked at, so look until nobody is left or somebody cannot be killed.
        deadline = time.monotonic() + _KILL_SECONDS
        while (family := self.family()) and time.monotonic() < deadline:
            for process in family:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        """It and every process that it left behind, as far as they run: descendants and members of its session."""
        now = _started(self.pid)
        if now is not None and now != self.started:
            return []  # The kernel gives a pid away again only when no session has that number.
        if _boot() != self.started.split(":")[0]:
            return []
        processes = [process for process in psutil.process_iter() if _session(process.pid) == self.pid]
        if now is not None:
            try:
                leader = psutil.Process(self.pid)
                processes += [leader, *leader.children(recursive=True)]
            except psutil.NoSuchProcess:
                pass
        return [process for process in set(processes) if _runs(process)]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> str | None:
    """The start of a process, as text to compare; None if there is no such process, or only its zombie."""
    try:
        process = psutil.Process(pid)
        if not _runs(process):
            return None
        if not psutil.LINUX:
            return f"{_boot()}:{process.create_time()}"
        # psutil's time moves with the clock; field 22 counts ticks since the boot. Field 2 may hold any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{_boot()}:{fields[19]}"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _boot() -> str:
    return _BOOT_ID.read_text().strip() if psutil.LINUX else "boot"


def killed_for_memory() -> tuple[Path, int] | None:
    """Count the processes that the kernel has killed so far for lack of memory; None if it does not say.

    Returns
    -------
    tuple
        The file of the count, and the count: for this process's control group if known, as for a unit of systemd or a
        container, else for the whole machine. Counts of two files cannot be compared.
    """
    for file in (*_group_counters(), _VMSTAT):
        try:
            counts = dict(line.split()[:2] for line in file.read_text().splitlines() if len(line.split()) > 1)
            return file, int(counts["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return None


def _group_counters() -> list[Path]:
    try:
        groups = [line.split(":", 2) for line in _CGROUP.read_text().splitlines()]
    except OSError:
        return []
    files = []
    for _, controllers, path in groups:
        folder = path.lstrip("/")
        if controllers == "":
            files.append(_CGROUPS / folder / "memory.events")
        elif "memory" in controllers.split(","):
            # Inside a container its own group is mounted in the place of the root.
            files += [_CGROUPS / "memory" / folder / "memory.oom_control", _CGROUPS / "memory" / "memory.oom_control"]
    return files
