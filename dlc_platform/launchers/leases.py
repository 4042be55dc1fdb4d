"""Leases: which process of this machine may compute on which device, now.

A lease is a `flock` on a file, so the kernel takes it back from a process that dies, however it dies. Every lab of a
machine uses the same folder, and so shares its GPUs. A machine without a GPU has one lease, on its CPU, because two
DeepLabCut processes there only slow each other down.
"""

import errno
import fcntl
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dlc_platform.errors import PlatformError
from dlc_platform.launchers import devices

DIRECTORY_VARIABLE = "DLC_PLATFORM_LEASE_DIR"
_POLL_SECONDS = 0.5

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The right to compute on one device, until `release` or the end of the process.

    A forked child holds it as well: a device is free when nobody is left who could be using it.
    """

    device: int | None
    descriptor: int

    def __str__(self) -> str:
        return _name(self.device)

    def environment(self) -> dict[str, str]:
        """The variables with which a process sees this device only."""
        return devices.environment(self.device)

    def release(self) -> None:
        """Give the device back."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def acquire(
    gpus: Sequence[int],
    purpose: str,
    announce: Callable[[str], None] = _logger.info,
    pause: Callable[[float], None] = time.sleep,
) -> Lease:
    """Wait for a free device and lease it.

    Parameters
    ----------
    gpus
        The devices that will do (see `devices.gpu_indices`); none of them means the CPU.
    purpose
        What the lease is for, such as ``run 1a2b``: told to those who wait for it.
    announce
        Called once, with a sentence, if it has to wait.
    pause
        Called with a number of seconds between two tries; what it raises ends the wait.

    Raises
    ------
    PlatformError
        When the lease folder cannot be used.
    """
    choices: tuple[int | None, ...] = tuple(gpus) or (None,)
    announced = False
    while True:
        for device in choices:
            if lease := _try(device, purpose):
                return lease
        if not announced:
            held = "; ".join(f"{_name(device)} is held by {_holder(device)}" for device in choices)
            announce(f"Waiting for a device: {held}")
            announced = True
        # The jitter keeps two waiting processes from knocking at the same moments for ever.
        pause(_POLL_SECONDS * random.uniform(0.5, 1.5))


def directory() -> Path:
    """The folder of the lease files: ``DLC_PLATFORM_LEASE_DIR``, or the machine's own below its temporary folder."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / "dlc-platform-leases"


def _name(device: int | None) -> str:
    return "the CPU" if device is None else f"GPU {device}"


def _file(device: int | None) -> Path:
    return directory() / ("cpu" if device is None else f"gpu-{device}")


def _try(device: int | None, purpose: str) -> Lease | None:
    file = _file(device)
    while True:
        try:
            descriptor = _open(file)
        except OSError as error:
            raise PlatformError(
                f"the lease file {file} cannot be opened: {error.strerror}",
                f"Make it writable for everybody, or set {DIRECTORY_VARIABLE} to a folder that is",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise PlatformError(
                f"the lease file {file} cannot be locked: {error.strerror}",
                f"Set {DIRECTORY_VARIABLE} to a folder on a local disk",
            ) from error
        if _is_current(descriptor, file):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{purpose} (pid {os.getpid()})".encode(), 0)
            return Lease(device, descriptor)
        os.close(descriptor)


def _open(file: Path) -> int:
    """Open a lease file, or create one that every user of the machine can open."""
    if not file.parent.is_dir():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.parent.chmod(0o1777)
    # First without O_CREAT: in a sticky folder Linux refuses it on a file of another user (fs.protected_regular).
    try:
        return os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return _open(file)
    os.fchmod(descriptor, 0o666)
    return descriptor


def _is_current(descriptor: int, file: Path) -> bool:
    """Whether the locked file is still the one with that name: a cleaner of old temporary files may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _holder(device: int | None) -> str:
    try:
        return _file(device).read_text() or "another process"
    except OSError:
        return "another process"
