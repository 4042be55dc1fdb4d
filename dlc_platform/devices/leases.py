"""Leases: the right of a process of this machine to compute on a device, now.

A lease is a `flock` on a file, so the kernel takes it back from a process that dies, however it dies. Every lab of a
machine uses the same folder, and so shares its GPUs. A machine without a GPU has one lease, on its CPU, because two
DeepLabCut processes there only slow each other down.

The files of a device are named by its key, its UUID, so that containers which number the GPUs in their own ways agree
if they share the folder. A process that has the whole device locks ``gpu-7f1c`` for itself. Processes that share it
lock that file together, and each locks its own file in ``gpu-7f1c.shares``, which says how much of the memory it may
use. A file ``gpu-7f1c.drained`` keeps new work away, also after a reboot. A process that looks for a device locks
``choosing`` meanwhile, so that several devices are leased together or not at all.

An earlier version named leases by the number of the GPU. Its workers are not seen: let them end before new ones start,
or set `avoid_busy`.
"""

import contextlib
import fcntl
import json
import logging
import os
import random
import re
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from dlc_platform.devices import gpus as gpu
from dlc_platform.devices.gpus import CPU, Device
from dlc_platform.devices.locks import (
    _SHARED_FILE,
    directory,
    drain_directory,
    is_locked,
    lock,
    open_file,
    unusable,
)
from dlc_platform.devices.needs import GPU_MEMORY_VARIABLE, Needs, UnmetNeed
from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.errors import PlatformError

_POLL_SECONDS = 0.5
_CHOOSING = "choosing"
_CHOOSING_SECONDS = 2.0
#: A process that has waited for so long is served before later ones, or many small runs would starve a large one.
_PATIENCE_SECONDS = 60.0
#: The names of the files of waiting processes: since when, in nanoseconds, and the process.
_TICKET = re.compile(r"(?P<since>[0-9]+)-[0-9]+")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The right to compute on devices, until `release` or the end of the process.

    A forked child holds it as well: a device is free when nobody is left who could be using it.

    Attributes
    ----------
    memory_gb
        The gigabytes of each device's memory that may be used; None for all of it.
    """

    devices: tuple[Device, ...]
    memory_gb: float | None
    _descriptors: tuple[int, ...] = field(repr=False)
    _shares: tuple[Path, ...] = field(repr=False, default=())

    def __str__(self) -> str:
        names = " and ".join(str(device) for device in self.devices)
        return names if self.memory_gb is None else f"{self.memory_gb:g} GB of {names}"

    def environment(self) -> dict[str, str]:
        """The variables with which a process sees these devices only, and knows how much memory it may use."""
        share = {} if self.memory_gb is None else {GPU_MEMORY_VARIABLE: f"{self.memory_gb:g}"}
        return gpu.environment([device for device in self.devices if device != CPU]) | share

    def release(self) -> None:
        """Give the devices back."""
        for share in self._shares:
            share.unlink(missing_ok=True)
        for descriptor in self._descriptors:
            # A process that finds a name there must ask if the named process still tidies up.
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True)
class Holder:
    """The process that holds a device, or held it last, as it wrote itself; `worker` is None if it wrote none."""

    purpose: str
    worker: WorkerProcess | None = None
    memory_gb: float | None = None

    def __str__(self) -> str:
        return f"{self.purpose} (pid {self.worker.pid})" if self.worker else self.purpose

    def processes(self) -> list[psutil.Process]:
        """Those of its processes that run, as far as they can be seen from this host."""
        return self.worker.family() if self.worker and self.worker.was_started_here() else []


@dataclass(frozen=True)
class DeviceState:
    """A device at one moment.

    Attributes
    ----------
    holders
        The processes that compute there by a lease.
    drained
        Who drained it and when; None if it takes new work.
    strangers
        Processes that compute there without a lease, by NVML.
    """

    device: Device
    holders: tuple[Holder, ...]
    drained: str | None
    strangers: frozenset[int]


def acquire(
    devices: Sequence[Device],
    purpose: str,
    announce: Callable[[str], None] = _logger.info,
    pause: Callable[[float], None] = time.sleep,
    needs: Needs | None = None,
    avoid_busy: bool = False,
) -> Lease:
    """Wait for free devices and lease as many as are needed, all at once.

    Parameters
    ----------
    devices
        The devices to choose from (see `devices.find_devices`); an empty one means the CPU, whatever is needed.
    purpose
        The purpose of the lease, such as ``run 1a2b``; processes that wait for the device read it.
    announce
        Called once, with a sentence, if it has to wait.
    pause
        Called with a number of seconds between two tries; an exception that it raises ends the wait.
    needs
        One whole device by default.
    avoid_busy
        Leave out devices on which a process without a lease computes.

    Raises
    ------
    UnmetNeed
        When the machine has fewer devices, or none with so much memory.
    PlatformError
        When the lease folder cannot be used.
    """
    needs = needs if needs and devices else Needs()
    wanted = _Wanted(_suitable(devices or [CPU], needs), purpose, needs, avoid_busy)
    with contextlib.ExitStack() as waiting:
        ticket: Path | None = None
        while True:
            chosen = _choose(wanted, ticket)
            if isinstance(chosen, Lease):
                return chosen
            if ticket is None and chosen:
                announce(f"Waiting for {'a device' if needs == Needs() else needs}: {'; '.join(chosen)}")
                ticket = waiting.enter_context(_in_line(wanted))
            # The jitter keeps two waiting processes from knocking at the same moments for ever.
            pause(_POLL_SECONDS * random.uniform(0.5, 1.5))


def survey(devices: Sequence[Device]) -> list[DeviceState]:
    """The state of each device: its holders, and who drained it."""
    with _choosing():
        holders = {device: _holders(device) for device in devices or (CPU,)}
    return [
        DeviceState(
            device, own, _drained(device), (frozenset() if device == CPU else gpu.computing(device)) - _pids(own)
        )
        for device, own in holders.items()
    ]


def drain(device: Device) -> None:
    """Keep new work away from a device; runs that compute there go on to their end."""
    who = f"{_user()} at {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    file = _drain_file(device)
    try:
        descriptor = open_file(file)
    except OSError as error:
        raise unusable(file, "opened", error) from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, who.encode(), 0)
        with contextlib.suppress(PermissionError):  # Another user drained it; the file is that user's.
            # Programs that clean temporary folders leave files with this bit alone.
            os.fchmod(descriptor, _SHARED_FILE | stat.S_ISVTX)
    finally:
        os.close(descriptor)


def resume(device: Device) -> None:
    """Let a drained device take new work.

    Raises
    ------
    PlatformError
        When another user drained it.
    """
    file = _drain_file(device)
    try:
        file.unlink(missing_ok=True)
    except PermissionError as error:
        raise PlatformError(
            f"{device} was drained by {_drained(device)}, and {file} is that user's", "Ask that user, or root"
        ) from error


@dataclass(frozen=True)
class _Wanted:
    """The request of a process for devices."""

    choices: tuple[Device, ...]
    purpose: str
    needs: Needs
    avoid_busy: bool

    def shares(self, device: Device) -> bool:
        """True if part of the device is enough."""
        return self.needs.memory_gb is not None and device.memory_gb is not None


def _suitable(devices: Sequence[Device], needs: Needs) -> tuple[Device, ...]:
    """The devices that would be enough if they were free."""
    suitable = [device for device in devices if device.memory_gb is None or device.memory_gb >= (needs.memory_gb or 0)]
    if needs.gpus > 1:
        suitable = [device for device in suitable if not device.is_slice]  # CUDA shows a process one slice at most.
    if len(suitable) < needs.gpus:
        raise UnmetNeed(
            f"{needs} cannot be had: of {', '.join(map(_size, devices))} only {len(suitable)} would do",
            "Ask for fewer GPUs or less memory, or list more under `gpus` in lab.yaml",
        )
    return tuple(suitable)


def _size(device: Device) -> str:
    return str(device) if device.memory_gb is None else f"{device} ({device.memory_gb:.1f} GB)"


def _choose(wanted: _Wanted, ticket: Path | None) -> Lease | list[str]:
    """Lease the wanted devices now; else say for each device why not. The list is empty if others are choosing."""
    asked = [device for device in wanted.choices if wanted.avoid_busy and device != CPU]
    busy = {device: gpu.computing(device) for device in asked}
    with _choosing() as alone:
        if not alone:
            return []
        if ticket is not None:
            # Nothing is kept for it on a device where a stranger computes, who may stay for days.
            occupied = {device for device, pids in busy.items() if pids - _pids(_holders(device))}
            ticket.write_bytes(_ticket(wanted, occupied))
        reserved = _reserved(ticket)
        reasons, parts = [], []
        for device in _by_room(wanted):
            reason = _drained(device) and f"{device} is drained (by {_drained(device)})"
            if not reason and device.key in reserved:
                reason = f"{device} is kept for {reserved[device.key]}, which has waited longer"
            if not reason:
                part = _take(device, wanted, busy.get(device, frozenset()))
                if isinstance(part, _Part):
                    parts.append(part)
                else:
                    reason = part
            if reason:
                reasons.append(reason)
            if len(parts) == wanted.needs.gpus:
                return _lease(parts, wanted)
        for part in parts:
            reasons.append(f"{part.device} alone is not enough")
            part.give_back()
        return reasons


@dataclass(frozen=True)
class _Part:
    """A device that is locked already, while the number of free ones is not known yet."""

    device: Device
    descriptor: int

    def give_back(self) -> None:
        os.close(self.descriptor)


def _take(device: Device, wanted: _Wanted, computing: frozenset[int]) -> _Part | str:
    """Lock a device if it has room; else return the reason why not."""
    share = wanted.shares(device)
    descriptor = lock(_file(device), fcntl.LOCK_SH if share else fcntl.LOCK_EX)
    if descriptor is None:
        return f"{device} is held by {' and '.join(map(str, _holders(device))) or 'another process'}"
    part = _Part(device, descriptor)
    # The lock is free as soon as its process is gone, and its children and the driver may take a moment longer.
    last = _read(_file(device))
    present = _sharers(device)
    reason = None
    if last and last.processes():
        reason = f"what {last} left behind on {device} still runs"
    elif not share and present:
        reason = f"what {present[0]} left behind on {device} still runs"
    elif share and device.memory_gb is not None and wanted.needs.memory_gb is not None:
        left = device.memory_gb - sum(holder.memory_gb or 0 for holder in present)
        if wanted.needs.memory_gb > left + 1e-6:
            reason = f"{device} has {left:.1f} GB left beside {' and '.join(map(str, present))}"
    if reason is None and computing and (strangers := computing - _pids(present)):
        reason = f"{device} is used by {', '.join(map(_stranger, sorted(strangers)))}"
    if reason is not None:
        part.give_back()
        return reason
    return part


def _lease(parts: Sequence[_Part], wanted: _Wanted) -> Lease:
    shares: list[Path] = []
    descriptors = [part.descriptor for part in parts]
    for part in parts:
        text = _record(wanted, part.device)
        if wanted.shares(part.device):
            share = _shares(part.device) / uuid.uuid4().hex
            descriptor = lock(share, fcntl.LOCK_EX)
            assert descriptor is not None
            descriptors.append(descriptor)
            shares.append(share)
            # The last process that had all of it has left nothing behind.
            os.ftruncate(part.descriptor, 0)
        else:
            descriptor = part.descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
    memory_gb = wanted.needs.memory_gb if shares else None
    return Lease(tuple(part.device for part in parts), memory_gb, tuple(descriptors), tuple(shares))


def _by_room(wanted: _Wanted) -> list[Device]:
    """The choices; for a share the fullest first, so that whole devices stay free for runs that need one."""
    if wanted.needs.memory_gb is None:
        return list(wanted.choices)
    used = {device: sum(own.memory_gb or 0 for own in _sharers(device)) for device in wanted.choices}
    return sorted(wanted.choices, key=lambda device: (device.memory_gb or 0) - used[device] if used[device] else 1e9)


@contextmanager
def _choosing() -> Iterator[bool]:
    """Be the only process that chooses; False if another one takes long, such as one that was stopped."""
    deadline = time.monotonic() + _CHOOSING_SECONDS
    while (descriptor := lock(directory() / _CHOOSING, fcntl.LOCK_EX)) is None:
        if time.monotonic() > deadline:
            yield False
            return
        time.sleep(0.01)
    try:
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def _in_line(wanted: _Wanted) -> Iterator[Path]:
    """Register as a waiting process."""
    ticket = directory() / "waiting" / f"{time.time_ns()}-{os.getpid()}"
    descriptor = lock(ticket, fcntl.LOCK_EX)
    assert descriptor is not None
    os.pwrite(descriptor, _ticket(wanted, ()), 0)
    try:
        yield ticket
    finally:
        ticket.unlink(missing_ok=True)
        os.close(descriptor)


def _ticket(wanted: _Wanted, occupied: Collection[Device]) -> bytes:
    """The facts that others need about a waiting process, as JSON."""
    choices = [device.key for device in wanted.choices if device not in occupied]
    return json.dumps({"purpose": wanted.purpose, "choices": choices, "gpus": wanted.needs.gpus}).encode()


def _reserved(ticket: Path | None) -> dict[str, str]:
    """The devices that are kept for processes that came before `ticket` and have waited too long, by key."""
    reserved: dict[str, str] = {}
    for file in sorted((directory() / "waiting").glob("*-*")):
        # Every user may write there; any other file there is ignored.
        if (named := _TICKET.fullmatch(file.name)) is None:
            continue
        since = int(named["since"])
        if time.time_ns() - since < _PATIENCE_SECONDS * 1e9 or (ticket is not None and file.name >= ticket.name):
            break
        try:
            descriptor = lock(file, fcntl.LOCK_EX)
        except PlatformError:
            continue
        if descriptor is not None:
            # It died while it waited; another user's file can be removed by that user only.
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(descriptor)
            continue
        with contextlib.suppress(OSError, ValueError):
            says = json.loads(file.read_text())
            free = [key for key in says["choices"] if key not in reserved and not _drained_key(key)]
            # Devices that nobody has alone are the nearest to being free.
            free.sort(key=lambda key: is_locked(directory() / key, fcntl.LOCK_SH))
            # If there are not enough, such as beside a drained one, kept devices would stand still for nothing.
            if len(free) >= says["gpus"]:
                reserved |= dict.fromkeys(free[: says["gpus"]], says["purpose"])
    return reserved


def _holders(device: Device) -> tuple[Holder, ...]:
    """The processes that have leased a device."""
    if is_locked(_file(device), fcntl.LOCK_SH):
        return (_read(_file(device)) or Holder("another process"),)
    return _sharers(device)


def _sharers(device: Device) -> tuple[Holder, ...]:
    """The processes that share a device; one that has ended counts as long as a process of it runs."""
    sharers = []
    for file in sorted(_shares(device).glob("*")):
        holder = _read(file)
        if is_locked(file, fcntl.LOCK_EX):
            sharers.append(holder or Holder("another process", None, device.memory_gb))
        elif holder and holder.processes():
            sharers.append(holder)
        else:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    return tuple(sharers)


def _pids(holders: Sequence[Holder]) -> frozenset[int]:
    return frozenset(process.pid for holder in holders for process in holder.processes())


def _stranger(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"the process {pid} ({process.name()} of {process.username()})"
    except psutil.Error:
        return f"the process {pid}"


def _record(wanted: _Wanted, device: Device) -> bytes:
    said: dict[str, Any] = WorkerProcess.current().tags()
    if wanted.shares(device):
        said["memory_gb"] = wanted.needs.memory_gb
    return f"{wanted.purpose}\n{json.dumps(said)}".encode()


def _read(file: Path) -> Holder | None:
    """The holder that a lease file names; None if it is empty."""
    try:
        purpose, _, said = file.read_text().partition("\n")
    except OSError:
        return None
    if not purpose:
        return None
    try:
        parts = json.loads(said)
        return Holder(purpose, WorkerProcess.from_tags(parts), parts.get("memory_gb"))
    except ValueError:
        return Holder(purpose)


def _file(device: Device) -> Path:
    return directory() / device.key


def _shares(device: Device) -> Path:
    return directory() / f"{device.key}.shares"


def _drain_file(device: Device) -> Path:
    return drain_directory() / f"{device.key}.drained"


def _drained(device: Device) -> str | None:
    return _drained_key(device.key)


def _drained_key(key: str) -> str | None:
    try:
        return (drain_directory() / f"{key}.drained").read_text() or "somebody"
    except OSError:
        return None


def _user() -> str:
    try:
        return psutil.Process().username()
    except (psutil.Error, KeyError):
        return f"user {os.getuid()}"
