"""The files that leases lock, in a folder that all users of the machine share; `leases` says what a lock means."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path

from dlc_platform.errors import PlatformError

DIRECTORY_VARIABLE = "DLC_PLATFORM_LEASE_DIR"
#: Kept over a reboot, and writable for every user.
_LASTING = Path("/var/tmp")
_SHARED_FILE = 0o666


def directory() -> Path:
    """The folder of the lease files: ``DLC_PLATFORM_LEASE_DIR``, or the machine's own below its temporary folder."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / "dlc-platform-leases"


def drain_directory() -> Path:
    """The folder of the notes about drained devices: ``DLC_PLATFORM_LEASE_DIR``, or a folder that reboots do not
    empty."""
    return directory() if os.environ.get(DIRECTORY_VARIABLE) else _LASTING / "dlc-platform-drained"


def is_locked(file: Path, kind: int) -> bool:
    """True if somebody's lock prevents a lock of this kind."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def lock(file: Path, kind: int) -> int | None:
    """Open and lock a file and return its descriptor; None if somebody's lock is in the way."""
    while True:
        try:
            descriptor = open_file(file)
        except OSError as error:
            raise unusable(file, "opened", error) from error
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise unusable(file, "locked", error) from error
        if _is_current(descriptor, file):
            return descriptor
        os.close(descriptor)


def unusable(file: Path, what: str, error: OSError) -> PlatformError:
    return PlatformError(
        f"the lease file {file} cannot be {what}: {error.strerror}",
        f"Make it writable for everybody, or set {DIRECTORY_VARIABLE} to a folder on a local disk that is",
    )


def open_file(file: Path) -> int:
    """Open a lease file, or create one that every user of the machine can open."""
    own = (directory(), drain_directory())
    for folder in (file.parent.parent, file.parent):
        if any(folder.is_relative_to(root) for root in own) and not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o1777)
    # First without O_CREAT: in a sticky folder Linux refuses it on a file of another user (fs.protected_regular).
    try:
        return os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return open_file(file)
    os.fchmod(descriptor, _SHARED_FILE)
    return descriptor


def _is_current(descriptor: int, file: Path) -> bool:
    """True if the locked file still has that name: a cleaner of old temporary files may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
