"""The URLs of the lab's Postgres, embedded or external.

Dagster's storage lies in the schema `dagster`, the catalogue in a schema of its own. Their tables do not belong here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, ProgrammingError

from dlc_platform.errors import PlatformError
from dlc_platform.postgres import server
from dlc_platform.settings.environment import DAGSTER_POSTGRES_FILE_VARIABLE, POSTGRES_FILE_VARIABLE, POSTGRES_VARIABLE

DAGSTER_SCHEMA = "dagster"
_DRIVER = "postgresql+psycopg2"
_CONNECT_SECONDS = 10


def is_external() -> bool:
    """True if the environment names a database; else the lab has an embedded server."""
    return bool(os.environ.get(POSTGRES_VARIABLE) or os.environ.get(POSTGRES_FILE_VARIABLE))


def postgres_url(home: Path) -> URL:
    """The lab's database: the one that the environment names, else that of the server in HOME/postgres.

    ``DLC_PLATFORM_POSTGRES_URL`` holds the URL, or ``DLC_PLATFORM_POSTGRES_URL_FILE`` names a file that does.

    The embedded server is started if it does not run; an external database must exist and answer.

    Returns
    -------
    URL
        With its password, for SQLAlchemy with psycopg2.

    Raises
    ------
    PlatformError
        When the URL is malformed, its file cannot be read, or its database cannot be reached. It never shows the
        password.
    """
    if not is_external():
        return server.ensure_running(home / "postgres")
    if not (given := os.environ.get(POSTGRES_VARIABLE)):
        url = _from_file(POSTGRES_FILE_VARIABLE)
    elif os.environ.get(POSTGRES_FILE_VARIABLE):
        raise PlatformError(f"{POSTGRES_VARIABLE} and {POSTGRES_FILE_VARIABLE} are both set", "Unset one of them")
    else:
        url = _parse(given, POSTGRES_VARIABLE)
    with _connect(url):
        pass
    return url


def existing_url(home: Path) -> URL | None:
    """As `postgres_url`; but None if the lab has no embedded server yet, and nothing is made or started."""
    # A first start that was interrupted leaves the folder without data. For root, `data` is a link.
    if not is_external() and not os.path.lexists(home / "postgres" / "data"):
        return None
    return postgres_url(home)


def answering_url(home: Path) -> URL | None:
    """As `postgres_url`; but None if the embedded server does not run, and nothing is started."""
    return postgres_url(home) if is_external() else server.answering_url(home / "postgres")


def dagster_url(url: URL) -> URL:
    """The same database for Dagster's own storage, whose tables go to the schema `dagster`; makes the schema.

    dagster-postgres knows no schemas, but makes and finds its tables by the search path of its connections. If
    ``DLC_PLATFORM_DAGSTER_POSTGRES_URL_FILE`` names a file, Dagster connects with the URL in it.

    Raises
    ------
    PlatformError
        When the role may not make the schema, or the file cannot be used.
    """
    url = _role_of_dagster(url)
    with _connect(url) as connection:
        # IF NOT EXISTS alone fails if two processes do it at once, or if the role may not make schemas at all.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('dlc_platform schema'))"))
        exists = connection.execute(text("SELECT to_regnamespace(:name)"), {"name": DAGSTER_SCHEMA}).scalar_one()
        if exists is None:
            try:
                connection.execute(text(f"CREATE SCHEMA {DAGSTER_SCHEMA}"))
            except ProgrammingError as error:
                raise PlatformError(
                    f"the schema {DAGSTER_SCHEMA} cannot be made in {_place(url)}: {_said(error)}",
                    f'Let its administrator run `CREATE SCHEMA {DAGSTER_SCHEMA} AUTHORIZATION "{url.username}"`',
                ) from error
            connection.commit()
    return in_dagster_schema(url)


def existing_dagster_url(url: URL) -> URL:
    """As `dagster_url`; but no schema is made, and no database is asked."""
    return in_dagster_schema(_role_of_dagster(url))


def _role_of_dagster(url: URL) -> URL:
    return _from_file(DAGSTER_POSTGRES_FILE_VARIABLE) if os.environ.get(DAGSTER_POSTGRES_FILE_VARIABLE) else url


def in_dagster_schema(url: URL) -> URL:
    """The same database and role, whose connections make and find tables in Dagster's schema."""
    options = [*url.normalized_query.get("options", ()), f"-csearch_path={DAGSTER_SCHEMA}"]
    return url.update_query_dict({"options": " ".join(options)})


def _from_file(variable: str) -> URL:
    file = Path(os.environ[variable])
    try:
        given = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise PlatformError(
            f"{file}, which {variable} names, cannot be read: {error.strerror}",
            "Correct the path, or let the account that runs the platform read the file",
        ) from None
    except UnicodeDecodeError:
        raise PlatformError(f"{file}, which {variable} names, is not UTF-8", "Write a URL and nothing else") from None
    return _parse(given, f"{file} ({variable})")


def _parse(given: str, source: str) -> URL:
    """The URL, for psycopg2; `source` is the variable or the file that it was read from."""
    remedy = (
        "Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of the password percent-encoded "
        "(@ is %40, / is %2F), or unset the variable to use the embedded server"
    )
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # The parser's message may quote the password.
        raise PlatformError(f"the value of {source} is not a URL", remedy) from None
    if url.drivername not in ("postgresql", "postgres", _DRIVER):
        raise PlatformError(f"{source} begins with {url.drivername}://, which is not Postgres", remedy)
    if "@" in f"{url.host}{url.database}":
        # An unencoded @ in the password: its rest was taken for the host.
        raise PlatformError(f"the value of {source} has one @ too many", remedy)
    if "password" in url.query:
        # SQLAlchemy hides only the other password when it shows a URL.
        raise PlatformError(f"{source} has its password among the parameters after the ?", remedy)
    if not url.database:
        raise PlatformError(f"{source} names no database on {_host(url)}", remedy)
    return url.set(drivername=_DRIVER)


@contextmanager
def _connect(url: URL) -> Iterator[Connection]:
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
    try:
        connection = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=arguments).connect()
    except DBAPIError as error:
        raise PlatformError(
            f"{_place(url)} cannot be reached: {_said(error)}",
            f"Check that the server runs, that the database exists (it is not made for you), and that the user and the "
            f"password in {POSTGRES_VARIABLE}, or in the file that a variable names, are right",
        ) from error
    with connection:
        yield connection


def _host(url: URL) -> str:
    host = url.host or ", ".join(url.normalized_query.get("host", ("the local socket",)))
    return f"{host}:{url.port}" if url.port else host


def _place(url: URL) -> str:
    return f"the Postgres database {url.database!r} on {_host(url)}"


def _said(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split()).rstrip(".")
