"""Bringing a lab's database up to date: the tables of the catalogue, and those of Dagster's own storage.

The start of a lab does the former by itself; Dagster leaves the latter to its own command. If services are started one
by one, both must be done before those of a new version start. The migrations themselves do not belong here.
"""

from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from dlc_platform.catalog.database import alembic_config, migrated_by, newer_tables, open_catalog
from dlc_platform.catalog.tables import SCHEMA
from dlc_platform.launchers.dagster_internals import ALEMBIC_SCRIPTS_LOCATION
from dlc_platform.orchestration.instance import open_instance, prepare, used
from dlc_platform.postgres.connection import DAGSTER_SCHEMA, existing_url
from dlc_platform.settings.loading import load_lab


@dataclass(frozen=True)
class Revision:
    """The migration that some tables of the database are at.

    Attributes
    ----------
    what
        The owner of the tables.
    now
        The migration that they are at; None if there are no tables yet.
    newest
        The last migration of this version of the platform.
    known
        False if `now` is a migration of a newer version, which this one cannot work with.
    platform
        The version of the platform that brought the tables to an unknown migration, if the tables tell.
    """

    what: str
    now: str | None
    newest: str
    known: bool
    platform: str | None = None


def revisions(home: Path) -> list[Revision]:
    """The migrations that the tables of a lab's database are at. Nothing is changed; a lab without a database has none.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid or Postgres cannot be reached.
    """
    load_lab(home)
    if (url := existing_url(home)) is None:
        return []
    engine = open_catalog(url)
    try:
        with engine.connect() as connection:
            of_dagster = Config()
            of_dagster.set_main_option("script_location", ALEMBIC_SCRIPTS_LOCATION)
            return [
                _revision("the catalogue", SCHEMA, alembic_config(connection), connection),
                _revision("Dagster's storage", DAGSTER_SCHEMA, of_dagster, connection),
            ]
    finally:
        engine.dispose()


def require_known(found: list[Revision]) -> None:
    """Make sure that this version of the platform can work with the tables.

    Raises
    ------
    PlatformError
        When a newer version has changed some of them.
    """
    for revision in found:
        if not revision.known:
            raise newer_tables(revision.what, str(revision.now), revision.platform)


def migrate(home: Path) -> list[tuple[Revision, str | None]]:
    """Bring all tables up to date, and write dagster.yaml and the limits of the pools as every start does.

    Returns
    -------
    list
        The tables with their present migration, each with its previous one.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid, Postgres cannot be reached, or a newer version has changed the tables.
    """
    with used(home):
        before = revisions(home)
        require_known(before)
        with open_instance(prepare(home)) as instance:
            instance.upgrade()
        earlier = {revision.what: revision.now for revision in before}
        return [(revision, earlier.get(revision.what)) for revision in revisions(home)]


def _revision(what: str, schema: str, config: Config, connection: Connection) -> Revision:
    script = ScriptDirectory.from_config(config)
    now = None
    if connection.scalar(text("select to_regclass(:table)"), {"table": f"{schema}.alembic_version"}) is not None:
        now = connection.scalar(text(f"select version_num from {schema}.alembic_version"))
    known = now is None or any(step.revision == now for step in script.walk_revisions())
    platform = None if known or schema != SCHEMA else migrated_by(connection, str(now))
    return Revision(what, now, str(script.get_current_head()), known, platform)
