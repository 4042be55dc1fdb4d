"""Worker processes: how a process is named so that any other process, now or later, recognises or stops it.

Nothing is kept in memory: a worker's name travels in the tags of its run. What the kernel says of memory that ran out
is read here too.
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
#: The UI does not show tags that begin so: a person looks for the run of a session, and never for one of a pid.
UNSHOWN = ".dagster/dlc_platform_"
PID_TAG = f"{UNSHOWN}pid"
STARTED_TAG = f"{UNSHOWN}process_started"
#: In which of the kernel's spaces of pids it runs: containers have their own, also where their hosts' names are equal.
SPACE_TAG = f"{UNSHOWN}pid_space"
#: What the tags of a run are called that version 0.6.1 or an earlier one started.
_EARLIER = {PID_TAG: "dlc_platform/pid", STARTED_TAG: "dlc_platform/process_started"}

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")
_KILL_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerProcess:
    """One process, told apart from every later one that gets its pid.

    `started` is when the process began, in the kernel's own count: a clock that is set does not change it.
    """

    host: str
    pid: int
    started: str
    space: str = ""

    @classmethod
    def of(cls, pid: int) -> "WorkerProcess":
        """The process that has this pid now; one that has just ended gets a name that is never alive."""
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
        """Whether it was started on a host of this name."""
        return self.host == socket.gethostname()

    def can_be_seen(self) -> bool:
        """True where the calling process would see it if it were alive: on the same host, in the same container."""
        return self.was_started_here() and bool(self.space) and self.space == _pid_space()

    def is_alive(self) -> bool:
        """Whether it runs on this host; a zombie does not."""
        return _started(self.pid) == self.started

    def works_for(self, home: Path) -> bool:
        """False for a process that says it works on another lab, such as the one that this lab is a copy of."""
        try:
            named = psutil.Process(self.pid).environ().get(HOME_VARIABLE)
        except psutil.Error:
            return True
        # The other place is no more when the lab was moved.
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
    """When a process began, as text to compare; None where there is no such process, or only its zombie."""
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
    """How many processes the kernel has killed so far because memory ran out; None where it does not say.

    Returns
    -------
    tuple
        Where that was read, and the count: of this process's control group where that is known, as for a unit of
        systemd or a container, else of the whole machine. Counts of two places say nothing of each other.
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
