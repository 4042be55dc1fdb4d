"""Faults of the machine, told apart from faults of the data."""

import errno
import os

import av
import pytest
import sqlalchemy
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy import Engine, text

from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.faults import is_lost_database, is_told_of_machine, machine_fault


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/data/x")


def raised(engine: Engine, statement: str) -> Exception:
    with pytest.raises(sqlalchemy.exc.DBAPIError) as caught, engine.connect() as connection:
        connection.execute(text(statement))
    return caught.value


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "name",
    [
        "ENOSPC",
        "EDQUOT",
        "EIO",
        "ESTALE",
        "ENOTCONN",
        "EHOSTDOWN",
        "ETIMEDOUT",
        "EROFS",
        "EMFILE",
        "ENFILE",
        "ENOMEM",
        "ENODEV",
        "EREMOTEIO",
    ],
)
def test_what_the_system_says_of_disks_and_mounts(name: str) -> None:
    error = system_error(getattr(errno, name))
    assert "/data/x" in str(machine_fault(error))
    # A sentence for people keeps its words.
    fault = machine_fault(caused(PlatformError("the video x cannot be read", "Look"), error))
    assert fault is not None and fault.problem == "the video x cannot be read"
    assert is_told_of_machine([("OSError", f"OSError: {error}")])


@pytest.mark.parametrize(
    "error",
    [
        system_error(errno.ENOENT),
        system_error(errno.EACCES),
        system_error(errno.ENAMETOOLONG),
        # FFmpeg says so of files that are cut off.
        av.error.FFmpegError(errno.EIO, "Input/output error", "x.mp4"),
        PlatformError("the video x is damaged", "Copy it again"),
        caused(PlatformError("inference ran out of memory even with a batch of 1", "Use less"), MemoryError()),
        RuntimeError("shape mismatch"),
        KeyError("camera"),
    ],
)
def test_what_the_data_did_is_no_fault_of_the_machine(error: Exception) -> None:
    assert machine_fault(error) is None


def test_errors_of_databases(engine: Engine) -> None:
    gone = sqlalchemy.create_engine(engine.url.set(port=1))
    with pytest.raises(sqlalchemy.exc.OperationalError) as caught, gone.connect():
        pass
    killed = raised(engine, "select pg_terminate_backend(pg_backend_pid())")
    for error in (caught.value, killed, DagsterPostgresException("too many retries for DB connection")):
        assert machine_fault(error) is not None and is_lost_database(error)
        assert is_told_of_machine([(type(error).__name__, str(error))])
        wrapped = caused(RuntimeError("the step failed"), error)
        assert machine_fault(wrapped) is not None and is_lost_database(wrapped)
    for statement in ("select 1 / 0", "select * from nowhere", "insert into dlc.subject (key) values (null)"):
        assert machine_fault(raised(engine, statement)) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [(MemoryError(), "memory"), (RuntimeError("CUDA error: an illegal memory access was encountered"), "GPU")],
)
def test_memory_and_devices(error: Exception, said: str) -> None:
    assert said in str(machine_fault(error))
    assert machine_fault(RuntimeError("CUDA error: device-side assert triggered")) is None


def test_a_fault_keeps_its_kind_whatever_it_is_wrapped_in() -> None:
    fault = MachineFault("the raw root is away", "Mount it")
    assert str(machine_fault(caused(ValueError("x"), fault))) == str(fault)
    assert is_told_of_machine([("DagsterExecutionStepExecutionError", "x"), ("MachineFault", "y")])
    assert not is_told_of_machine([("PlatformError", "dlc_platform.errors.PlatformError: x")])
