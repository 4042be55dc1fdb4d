"""The URLs of the lab's Postgres, embedded or external.

Dagster's storage lies in the schema `dagster`, the catalogue in a schema of its own. What is in them does not belong
here.
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
from dlc_platform.postgres.server import ensure_running
from dlc_platform.settings import POSTGRES_VARIABLE

DAGSTER_SCHEMA = "dagster"
_DRIVER = "postgresql+psycopg2"
_CONNECT_SECONDS = 10


def postgres_url(home: Path) -> URL:
    """The lab's database: the one that ``DLC_PLATFORM_POSTGRES_URL`` names, else that of the server in HOME/postgres.

    The embedded server is started if it does not run; an external database must exist and answer.

    Returns
    -------
    URL
        With its password, for SQLAlchemy with psycopg2.

    Raises
    ------
    PlatformError
        When the variable is malformed or its database cannot be reached; it never shows the password.
    """
    given = os.environ.get(POSTGRES_VARIABLE)
    if not given:
        return ensure_running(home / "postgres")
    url = _parse(given)
    with _connect(url):
        pass
    return url


def existing_url(home: Path) -> URL | None:
    """As `postgres_url`; but None, and nothing is made or started, where the lab has no embedded server yet."""
    if not os.environ.get(POSTGRES_VARIABLE) and not (home / "postgres").exists():
        return None
    return postgres_url(home)


def dagster_url(url: URL) -> URL:
    """The same database for Dagster's own storage, whose tables go to the schema `dagster`; makes the schema.

    dagster-postgres knows no schemas, but makes and finds its tables by the search path of its connections.

    Raises
    ------
    PlatformError
        When the role may not make the schema.
    """
    with _connect(url) as connection:
        # IF NOT EXISTS alone fails when two processes are at it, and where the role may not make schemas at all.
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
    options = [*url.normalized_query.get("options", ()), f"-csearch_path={DAGSTER_SCHEMA}"]
    return url.update_query_dict({"options": " ".join(options)})


def _parse(given: str) -> URL:
    remedy = (
        f"Set {POSTGRES_VARIABLE} to postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of the "
        "password percent-encoded (@ is %40, / is %2F), or unset it to use the embedded server"
    )
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # What the parser says may quote the password.
        raise PlatformError(f"the value of {POSTGRES_VARIABLE} is not a URL", remedy) from None
    if url.drivername not in ("postgresql", "postgres", _DRIVER):
        raise PlatformError(f"{POSTGRES_VARIABLE} begins with {url.drivername}://, which is not Postgres", remedy)
    if "@" in f"{url.host}{url.database}":
        # An unencoded @ in the password: its rest was taken for the host.
        raise PlatformError(f"the value of {POSTGRES_VARIABLE} has an @ too many", remedy)
    if "password" in url.query:
        # SQLAlchemy hides only the other one where it shows a URL.
        raise PlatformError(f"{POSTGRES_VARIABLE} has its password among the parameters after the ?", remedy)
    if not url.database:
        raise PlatformError(f"{POSTGRES_VARIABLE} names no database on {_host(url)}", remedy)
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
            f"password in {POSTGRES_VARIABLE} are right",
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
