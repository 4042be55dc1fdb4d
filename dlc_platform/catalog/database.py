"""Opening the catalogue: the engine, and the migrations.

Opening a lab leaves its tables as they are. Only the start of a lab and `dlc-platform migrate` change them. These need
the tables as classes, and Alembic; opening imports neither, so that lists are quick.
"""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from dlc_platform.catalog import SCHEMA
from dlc_platform.errors import PlatformError, command
from dlc_platform.faults import is_lost_database
from dlc_platform.postgres.connection import existing_url, is_external
from dlc_platform.store import Store
from dlc_platform.text.words import counted
from dlc_platform.version import __version__

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Any number, as long as nothing else in the database uses it.
_MIGRATION_LOCK = 0x646C63
#: The waits between tries to write what took hours to compute, while the database does not answer.
_PAUSES_SECONDS = (1.0, 5.0, 15.0, 60.0, 120.0)

Result = TypeVar("Result")


def open_catalog(url: URL) -> Engine:
    """Connect to the catalogue; each use takes a fresh connection, so a restarted server does no harm."""
    return create_engine(url, pool_pre_ping=True, pool_size=2, max_overflow=8)


def outlasting(write: Callable[[], Result]) -> Result:
    """Call `write`, one transaction, and return its result; call it again if the database is lost meanwhile."""
    for pause in _PAUSES_SECONDS:
        try:
            return write()
        except DBAPIError as error:
            if not is_lost_database(error):
                raise
        time.sleep(pause)
    return write()


def open_lab(home: Path) -> Engine:
    """The catalogue of a lab as it is, to read and to write rows; its tables are neither made nor changed.

    Raises
    ------
    PlatformError
        When the lab has no catalogue yet, its tables are those of another version of the platform, or Postgres cannot
        be reached; with the command that helps.
    """
    engine = open_where_there(home)
    if engine is None:
        raise PlatformError(
            f"the lab {home} has no catalogue yet",
            f"Register the sessions with {command('run', home, 'session_videos')}, or start the lab with "
            f"{command('up', home)}",
        )
    return engine


def open_where_there(home: Path) -> Engine | None:
    """As `open_lab`, but return None if the lab has no catalogue yet; nothing is made."""
    url = existing_url(home)
    if url is None:
        return None
    engine = open_catalog(url)
    with engine.connect() as connection:
        found = require_known(connection)
    if found is None:
        engine.dispose()
        return None
    newest = _revisions()[0]
    if found != newest:
        engine.dispose()
        raise PlatformError(
            f"the catalogue of {home} has the tables of an older version of the platform ({found}, where this version "
            f"has {newest})",
            f"Stop all work on the lab with the older version, then bring them up to date with "
            f"{command('migrate', home)}",
        )
    return engine


def lost_catalog(home: Path, store: Store) -> PlatformError | None:
    """The error for a lab that has products and no catalogue that knows of them; None if all is well.

    A new catalogue beside them would track each session once more, with nothing known of earlier models and releases.
    """
    if (url := existing_url(home)) is not None:
        engine = open_catalog(url)
        try:
            with engine.connect() as connection:
                if catalog_revision(connection) is not None:
                    return None
        finally:
            engine.dispose()
    if not (products := len(store.products())):
        return None
    place = "the database that the environment names" if is_external() else str(home / "postgres")
    return PlatformError(
        f"the lab {home} has {counted(products, 'product')} in {store.root}, and no catalogue that knows of "
        f"{'it' if products == 1 else 'them'} in {place}",
        "See that the disk of the database is mounted, or that its address is right. If the database is lost, make a "
        "lab of the newest backup in a new folder, with `dlc-platform restore`. A new lab needs its own "
        "store",
    )


def migrate(engine: Engine) -> None:
    """Bring the catalogue's tables up to date. Processes that start together wait for each other.

    Raises
    ------
    PlatformError
        When a newer platform has changed them.
    """
    from sqlalchemy.dialects.postgresql import insert

    from dlc_platform.catalog.tables import Migration

    with engine.begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        # IF NOT EXISTS would fail nevertheless if the role may not make schemas.
        if connection.scalar(text("select to_regnamespace(:name)"), {"name": SCHEMA}) is None:
            connection.execute(CreateSchema(SCHEMA))
        require_known(connection)
        _upgrade(connection, "head")
        who = insert(Migration).values(revision=catalog_revision(connection), platform=__version__)
        connection.execute(who.on_conflict_do_nothing())


def make_tables(connection: Connection, revision: str) -> None:
    """Make the tables of an older catalogue, as they were at a migration, in a database that has none."""
    connection.execute(CreateSchema(SCHEMA))
    _upgrade(connection, revision)


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command

    command.upgrade(alembic_config(connection), revision)


def catalog_revision(connection: Connection) -> str | None:
    """The migration that the catalogue's tables are at; None where there are none."""
    if connection.scalar(text("select to_regclass(:table)"), {"table": f"{SCHEMA}.alembic_version"}) is None:
        return None
    return connection.execute(text(f"select version_num from {SCHEMA}.alembic_version")).scalar_one()


def knows_revision(revision: str) -> bool:
    """True if `migrate` can go on from this migration; false if it belongs to a newer platform."""
    return revision in _revisions()


def require_known(connection: Connection) -> str | None:
    """The migration that the catalogue's tables are at, if this platform knows it; None if there are no tables.

    Raises
    ------
    PlatformError
        When a newer platform has changed them.
    """
    found = catalog_revision(connection)
    if found is not None and not knows_revision(found):
        raise newer_tables("the catalogue", found, migrated_by(connection, found))
    return found


def newer_tables(whose: str, revision: str, platform: str | None = None) -> PlatformError:
    """The error that a newer platform has changed some tables; `platform` is its version, if known."""
    return PlatformError(
        f"the tables of {whose} are at {revision}, which this version of the platform does not know: "
        f"{'a newer one' if platform is None else f'version {platform}'} has changed them, and this is "
        f"{__version__}",
        f"Install {'that version' if platform is None else f'version {platform} or a newer one'}, or restore the "
        "backup that was made before it into an empty database",
    )


def migrated_by(connection: Connection, revision: str) -> str | None:
    """The version of the platform that brought the tables to a migration; None if the tables do not tell."""
    statement = text(f"select platform from {SCHEMA}.migration where revision = :revision")
    try:
        with connection.begin_nested():
            return connection.scalar(statement, {"revision": revision})
    except DBAPIError:  # a newer platform may keep this elsewhere
        return None


@cache
def _revisions() -> list[str]:
    """The migrations that this version of the platform brings, the newest first, by the names of their files.

    Importing Alembic would take longer than most answers.
    """
    files = (_MIGRATIONS / "versions").glob("[0-9]*_*.py")
    return sorted((file.name.partition("_")[0] for file in files), reverse=True)


def alembic_config(connection: Connection):
    """Alembic's configuration for this connection; what it runs belongs to the connection's transaction."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
