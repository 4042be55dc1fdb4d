"""Faults of the machine, as opposed to faults of the data: the one place that decides.

A lost database, a full or broken disk, a mount or a network that does not answer, a lack of memory and a failing GPU
say nothing about a session. `machine_fault` decides for an exception, `is_told_of_machine` for Dagster's record of one.
"""

import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlc_platform.errors import MachineFault, PlatformError

FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK = (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)
_AWAY = (
    *(errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.ENETRESET, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN),
    *(errno.EREMOTEIO, errno.ENOLINK, errno.ECOMM),
)
_SHORT = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOLCK)
_OF_THE_MACHINE = frozenset((*FULL, *_DISK, *_AWAY, *_SHORT))

#: The errors of drivers and of Dagster for a database that cannot be used.
_DATABASE_ERRORS = frozenset(("OperationalError", "InterfaceError", "DagsterPostgresException", "DisconnectionError"))
#: SQLSTATE classes: a statement exceeds the resources of Postgres, or was cancelled; and a damaged database.
_OF_THE_STATEMENT, _DAMAGED = "54", ("XX001", "XX002")
_CUDA = re.compile(r"CUDA (error|driver)|cu(DNN|BLAS) error|no CUDA-capable device|NVML", re.IGNORECASE)
#: Errors of CUDA that a wrong request of the program causes.
_CUDA_OF_THE_PROGRAM = ("device-side assert", "invalid argument", "out of memory")
_AGAIN = "Nothing is wrong with the data, and it is tried again by itself"


def machine_fault(error: BaseException) -> MachineFault | None:
    """The fault of the machine that an error comes from, in words for people; None for any other error."""
    chain = list(_chain(error))
    for place, one in enumerate(chain):
        if isinstance(one, MachineFault):
            # Only its words: the error itself would keep open the files in its frames.
            return MachineFault(one.problem, one.remedy)
        # Code that turned a lack of memory into a sentence has already tried with less.
        said = next((other for other in chain[: place + 1] if isinstance(other, PlatformError)), None)
        if (told := _told(one, unexpected=said is None)) is not None:
            return MachineFault(said.problem, f"{said.remedy}. {_AGAIN}") if said else MachineFault(*told)
    return None


def gone(path: Path) -> MachineFault:
    """The fault that a file has disappeared; nothing is said about its content."""
    return MachineFault(
        f"{path} is not there any more", "Bring it back, or mount its disk; the session goes on by itself then"
    )


def is_lost_database(error: BaseException) -> bool:
    """True if an error comes from a database that is lost, is full, or refused a connection."""
    return any(_is_database(one) for one in _chain(error))


def is_told_of_machine(told: Sequence[tuple[str | None, str]]) -> bool:
    """True if a chain of errors, each given by the name of its class and its message, comes from the machine."""
    for name, message in told:
        short = (name or "").rpartition(".")[2]
        if short == MachineFault.__name__ or short in _DATABASE_ERRORS:
            return True
        number = re.search(r"\[Errno (\d+)\]", message)
        if number and int(number[1]) in _OF_THE_MACHINE and "av.error" not in message.partition(":")[0]:
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _told(error: BaseException, unexpected: bool) -> tuple[str, str] | None:
    """The words and the remedy for a single error, if it comes from the machine."""
    if _is_database(error):
        told = " ".join(str(getattr(error, "orig", None) or error).split()).rstrip(".")
        return f"the lab's database could not be used: {told}", f"Look after Postgres if this goes on. {_AGAIN}"
    # FFmpeg gives the numbers of the system to files that are damaged.
    if isinstance(error, OSError) and not type(error).__module__.startswith("av."):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in FULL:
            return f"no space left on the disk{where}", f"Free some space. {_AGAIN}"
        if error.errno in _OF_THE_MACHINE:
            return f"a disk, a mount or the system failed: {error.strerror}{where}", f"Look after it. {_AGAIN}"
    if unexpected and isinstance(error, MemoryError):
        return "the memory of the machine ran out", f"Let less run at a time. {_AGAIN}"
    if unexpected and isinstance(error, RuntimeError) and _CUDA.search(str(error)):
        said = " ".join(str(error).split())[:300]
        if not any(word in said for word in _CUDA_OF_THE_PROGRAM):
            return f"a GPU failed: {said}", f"Look at it with `nvidia-smi`. {_AGAIN}"
    return None


def _is_database(error: BaseException) -> bool:
    # By name: code that only computes has not imported the drivers of databases.
    code = str(getattr(getattr(error, "orig", error), "pgcode", None) or "")
    if code.startswith(_OF_THE_STATEMENT):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    is_pool = type(error).__name__ == "TimeoutError" and type(error).__module__ == "sqlalchemy.exc"
    return (
        bool(names & _DATABASE_ERRORS)
        or code in _DAMAGED
        or is_pool
        or getattr(error, "connection_invalidated", False) is True
    )
