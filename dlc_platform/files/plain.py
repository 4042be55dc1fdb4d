"""Files that other people send; they are opened only if they are plain files.

A name in a folder may stand for a pipe that never answers, for an endless device, or, through a link, for a file that
the kernel makes up. Such a file is refused before a byte of it is read.
"""

import errno
import os
from functools import cache
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFSOCK
from typing import BinaryIO

from dlc_platform.errors import PlatformError

_KINDS = {
    S_IFIFO: "a pipe",
    S_IFSOCK: "a socket",
    S_IFBLK: "a device",
    S_IFCHR: "a device",
    S_IFDIR: "a folder",
}
_MOUNTS = Path("/proc/self/mountinfo")
#: File systems without real files: the kernel makes up what is read there.
_OF_THE_KERNEL = frozenset(
    (
        *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs"),
        *("bpf", "mqueue", "pstore", "efivarfs", "fusectl", "binfmt_misc", "nsfs", "selinuxfs", "rpc_pipefs"),
    )
)


def oddity(status: os.stat_result) -> str | None:
    """The kind of thing at a path that is not a plain file, such as `a pipe`; None for a plain file."""
    kind = _KINDS.get(S_IFMT(status.st_mode))
    return kind or ("a file that the kernel makes up, as below /proc" if is_of_the_kernel(status) else None)


def is_of_the_kernel(status: os.stat_result) -> bool:
    """True for a file or a folder below /proc, /sys and the like."""
    return status.st_dev in _devices_of_the_kernel()


def open_plain(path: Path, most_bytes: int | None = None) -> BinaryIO:
    """Open a file for reading; if it is not plain, this fails at once and never waits.

    Raises
    ------
    PlatformError
        When it is not a plain file, or is larger than `most_bytes`.
    OSError
        When it cannot be opened, as for `open`.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes into it.
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        # A socket cannot be opened, nor an absent device, and Python opens no folder.
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EISDIR) and (odd := oddity(os.stat(path))) is not None:
            raise _no_file(path, odd) from error
        raise
    try:
        status = os.fstat(file.fileno())
        if (odd := oddity(status)) is not None:
            raise _no_file(path, odd)
        if most_bytes is not None and status.st_size > most_bytes:
            raise PlatformError(
                f"{path} has {status.st_size / 1e6:,.0f} MB, and no file of its kind has more than "
                f"{most_bytes / 1e6:,.0f} MB",
                "Check that it is the right file",
            )
    except BaseException:
        file.close()
        raise
    return file


def read_plain(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file; errors are those of `open_plain`."""
    with open_plain(path, most_bytes) as file:
        return file.read()


def _no_file(path: Path, odd: str) -> PlatformError:
    return PlatformError(f"{path} is not a file but {odd}", "Remove it, or put the file itself in its place")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


@cache
def _devices_of_the_kernel() -> frozenset[int]:
    """The numbers of the devices of such file systems; empty on systems without Linux' list of mounts."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = set()
    for line in lines:
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] in _OF_THE_KERNEL:
            major, minor = before.split(" ")[2].split(":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)
