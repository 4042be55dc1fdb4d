from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sqlalchemy
import yaml
from alembic import command
from sqlalchemy import URL, text

from dlc_platform.catalog.database import alembic_config, open_catalog
from dlc_platform.errors import PlatformError
from dlc_platform.orchestration.migration import Revision, migrate, require_known, revisions
from dlc_platform.settings.environment import POSTGRES_VARIABLE


@pytest.fixture
def home(
    empty_database: URL,
    make_reachable: Callable[[], AbstractContextManager[Path]],
    make_project: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A lab whose database is there and empty."""
    # Those which an instance sets for its process.
    for name in ("DAGSTER_HOME", "DLC_PLATFORM_HOME", "DLC_PLATFORM_DAGSTER_POSTGRES_URL", "DAGSTER_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    with make_reachable() as folder:
        (folder / "raw").mkdir()
        project = make_project(folder / "tiny-tester-2026-01-01", 4)
        settings = {"raw_roots": [str(folder / "raw")], "projects": {"tiny": {"path": str(project)}}, "gpus": []}
        (folder / "lab").mkdir()
        (folder / "lab" / "lab.yaml").write_text(yaml.safe_dump(settings))
        yield folder / "lab"


def execute(url: URL, statement: str) -> None:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_an_older_database_is_brought_up_to_date(home: Path, empty_database: URL):
    engine = open_catalog(empty_database)
    with engine.begin() as connection:
        connection.execute(text("create schema dlc"))
        command.upgrade(alembic_config(connection), "0003")
    engine.dispose()
    of_catalogue, of_dagster = revisions(home)
    assert (of_catalogue.now, of_catalogue.known) == ("0003", True)
    assert of_dagster == Revision("Dagster's storage", None, of_dagster.newest, True)
    done = migrate(home)
    assert [(one.what, before) for one, before in done] == [("the catalogue", "0003"), ("Dagster's storage", None)]
    assert all(one.now == one.newest for one, _ in done)
    # Once more, there is nothing to do.
    assert [before for _, before in migrate(home)] == [of_catalogue.newest, of_dagster.newest]


@pytest.mark.parametrize(("schema", "what"), [("dlc", "the catalogue"), ("dagster", "Dagster's storage")])
def test_tables_of_a_newer_platform_are_left_alone(home: Path, empty_database: URL, schema: str, what: str):
    execute(empty_database, f"create schema {schema}")
    execute(empty_database, f"create table {schema}.alembic_version (version_num text)")
    execute(empty_database, f"insert into {schema}.alembic_version values ('9999')")
    with pytest.raises(PlatformError, match=f"the tables of {what} are at 9999.*backup"):
        require_known(revisions(home))
    with pytest.raises(PlatformError, match=f"the tables of {what} are at 9999"):
        migrate(home)
    other = "dagster" if schema == "dlc" else "dlc"
    execute(empty_database, f"create schema {other}")  # which nothing has made


def test_a_lab_without_a_database_gets_none_by_looking(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(POSTGRES_VARIABLE)
    assert revisions(home) == []
    assert not (home / "postgres").exists()
