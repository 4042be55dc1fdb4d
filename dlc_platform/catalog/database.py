"""Opening the catalogue: the engine, and the migrations that every start applies."""

from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.schema import CreateSchema

from dlc_platform.catalog.registry import assign_cameras
from dlc_platform.catalog.tables import SCHEMA
from dlc_platform.errors import PlatformError
from dlc_platform.settings import Lab

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Any number, as long as nothing else in the database uses it.
_MIGRATION_LOCK = 0x646C63


def open_catalog(url: URL) -> Engine:
    """Connect to the catalogue; each use takes a fresh connection, so a restarted server does no harm."""
    return create_engine(url, pool_pre_ping=True, pool_size=2, max_overflow=8)


def open_lab(url: URL, lab: Lab) -> Engine:
    """The catalogue of a lab, up to date: its tables, and what the inference rules say of its cameras."""
    engine = open_catalog(url)
    migrate(engine)
    assign_cameras(engine, lab.project_of)
    return engine


def open_unchanged(url: URL) -> Engine | None:
    """The catalogue to read from, as it is; None where the database has none.

    Raises
    ------
    PlatformError
        When its tables are those of another version of the platform.
    """
    from alembic.script import ScriptDirectory

    engine = open_catalog(url)
    with engine.connect() as connection:
        if (found := require_known(connection)) is None:
            return None
        if found != ScriptDirectory.from_config(alembic_config(connection)).get_current_head():
            raise PlatformError(
                "the catalogue has the tables of an older version of the platform",
                "Run any other command, such as `dlc-platform sessions HOME`, which brings them up to date",
            )
    return engine


def migrate(engine: Engine) -> None:
    """Bring the catalogue's tables up to date. Processes that start together wait for each other.

    Raises
    ------
    PlatformError
        When a newer platform has changed them.
    """
    from alembic import command

    with engine.begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        # IF NOT EXISTS would fail all the same where the role may not make schemas.
        if connection.scalar(text("select to_regnamespace(:name)"), {"name": SCHEMA}) is None:
            connection.execute(CreateSchema(SCHEMA))
        require_known(connection)
        command.upgrade(alembic_config(connection), "head")


def catalog_revision(connection: Connection) -> str | None:
    """The migration that the catalogue's tables are at; None where there are none."""
    if connection.scalar(text("select to_regclass(:table)"), {"table": f"{SCHEMA}.alembic_version"}) is None:
        return None
    return connection.execute(text(f"select version_num from {SCHEMA}.alembic_version")).scalar_one()


def knows_revision(connection: Connection, revision: str) -> bool:
    """True when `migrate` can go on from this migration; false for one of a newer platform."""
    from alembic.script import ScriptDirectory

    steps = ScriptDirectory.from_config(alembic_config(connection)).walk_revisions()
    return any(step.revision == revision for step in steps)


def require_known(connection: Connection) -> str | None:
    """The migration that the catalogue's tables are at, which is one that this platform knows, or None.

    Raises
    ------
    PlatformError
        When a newer platform has changed them.
    """
    found = catalog_revision(connection)
    if found is not None and not knows_revision(connection, found):
        raise newer_tables("the catalogue", found)
    return found


def newer_tables(whose: str, revision: str) -> PlatformError:
    """That a newer platform has changed some tables."""
    return PlatformError(
        f"the tables of {whose} are at {revision}, which this version of the platform does not know: a newer one has "
        "changed them",
        "Install that version, or restore the backup that was made before it into an empty database",
    )


def alembic_config(connection: Connection):
    """Alembic's configuration for this connection; what it runs belongs to the connection's transaction."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
