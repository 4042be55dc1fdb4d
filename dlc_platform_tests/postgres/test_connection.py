import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import URL

from dlc_platform.errors import PlatformError
from dlc_platform.postgres.connection import dagster_url, postgres_url
from dlc_platform.postgres.server import ensure_running
from dlc_platform.settings.environment import DAGSTER_POSTGRES_FILE_VARIABLE, POSTGRES_FILE_VARIABLE, POSTGRES_VARIABLE
from dlc_platform_tests.postgres.conftest import is_running

SECRET = "s3cret-w0rd"


@pytest.fixture
def url(shared_directory: Path, monkeypatch: pytest.MonkeyPatch) -> URL:
    monkeypatch.delenv(POSTGRES_VARIABLE, raising=False)
    url = ensure_running(shared_directory)
    execute(url, "DROP SCHEMA IF EXISTS dagster CASCADE")
    return url


def execute(url: URL, statement: str) -> Sequence[Any]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(sqlalchemy.text(statement))
        return result.scalars().all() if result.returns_rows else []


def test_embedded_by_default(url: URL, shared_directory: Path) -> None:
    assert postgres_url(shared_directory.parent) == url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_external(url: URL, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = url.set(drivername=scheme).update_query_dict({"sslmode": "prefer"})
    monkeypatch.setenv(POSTGRES_VARIABLE, given.render_as_string(hide_password=False))
    found = postgres_url(tmp_path)
    assert found == given.set(drivername="postgresql+psycopg2")
    assert execute(found, "SELECT 1") == [1]
    assert not is_running(tmp_path / "postgres")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (f"lab:{SECRET}@db.example/lab", "not a URL"),
        (f"postgresql://lab:{SECRET}@db.example:port/lab", "not a URL"),
        (f"mysql://lab:{SECRET}@db.example/lab", "begins with mysql"),
        (f"postgresql+asyncpg://lab:{SECRET}@db.example/lab", "begins with postgresql"),
        (f"postgresql://lab:p@{SECRET}@db.example/lab", "one @ too many"),
        (f"postgresql://lab:p@ss/{SECRET}@db.example/lab", "one @ too many"),
        (f"postgresql://lab:{SECRET}@db.example", "names no database on db.example"),
        (f"postgresql://db.example/lab?password={SECRET}", "has its password among"),
    ],
)
def test_malformed(given: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, given)
    with pytest.raises(PlatformError, match=problem) as caught:
        postgres_url(tmp_path)
    assert SECRET not in str(caught.value)
    assert POSTGRES_VARIABLE in str(caught.value)


def test_unreachable(url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    cases = {
        url.set(password=SECRET): "password authentication failed",
        url.set(database="absent"): 'database "absent" does not exist',
        url.set(port=closed): "refused",
        url.update_query_dict({"nonsense": "1"}): "nonsense",
    }
    for wrong, said in cases.items():
        monkeypatch.setenv(POSTGRES_VARIABLE, wrong.render_as_string(hide_password=False))
        with pytest.raises(PlatformError, match=said) as caught:
            postgres_url(tmp_path)
        assert f"database '{wrong.database}' on 127.0.0.1:{wrong.port}" in str(caught.value)
        assert str(wrong.password) not in str(caught.value)


def test_the_url_comes_from_a_file(url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "url"
    file.write_text(url.set(drivername="postgresql").render_as_string(hide_password=False) + "\n")
    monkeypatch.setenv(POSTGRES_FILE_VARIABLE, str(file))
    assert postgres_url(tmp_path) == url
    assert not is_running(tmp_path / "postgres")
    monkeypatch.setenv(POSTGRES_VARIABLE, url.render_as_string(hide_password=False))
    with pytest.raises(PlatformError, match=f"{POSTGRES_VARIABLE} and {POSTGRES_FILE_VARIABLE} are both set"):
        postgres_url(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is not a URL"),
        (b"\xff\xfe", "is not UTF-8"),
        (f"postgresql://lab:p@{SECRET}@db.example/lab".encode(), "one @ too many"),
    ],
)
def test_a_file_of_no_use_is_named(
    content: bytes | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.delenv(POSTGRES_VARIABLE, raising=False)
    monkeypatch.setenv(POSTGRES_FILE_VARIABLE, str(file))
    with pytest.raises(PlatformError, match=problem) as caught:
        postgres_url(tmp_path)
    assert str(file) in str(caught.value)
    assert POSTGRES_FILE_VARIABLE in str(caught.value)
    assert SECRET not in str(caught.value)


def test_dagster_may_have_a_role_of_its_own(url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(url, "create role keeper login password 'kept' in role pg_read_all_data")
    execute(url, "create schema dagster authorization keeper")
    file = tmp_path / "url"
    own = url.set(username="keeper", password="kept")
    file.write_text(own.render_as_string(hide_password=False))
    monkeypatch.setenv(DAGSTER_POSTGRES_FILE_VARIABLE, str(file))
    try:
        assert execute(dagster_url(url), "select current_user || current_schema") == ["keeperdagster"]
    finally:
        execute(url, "drop schema dagster cascade")
        execute(url, "drop role keeper")


def test_dagster_keeps_its_tables_in_its_schema(url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster import DagsterInstance

    of_dagster = dagster_url(url)
    assert dagster_url(url) == of_dagster
    monkeypatch.setenv("TEST_DAGSTER_URL", of_dagster.render_as_string(hide_password=False))
    (tmp_path / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: TEST_DAGSTER_URL}}}\n")
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.optimize_for_webserver(statement_timeout=5000, pool_recycle=3600, max_overflow=20)
        instance.upgrade()
        instance.reindex()
        instance.add_dynamic_partitions("sessions", ["sub-001_ses-01"])
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_dynamic_partitions("sessions") == ["sub-001_ses-01"]
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = '{}'"
    assert {"runs", "event_logs", "jobs", "alembic_version"} <= set(execute(url, tables.format("dagster")))
    assert execute(url, tables.format("public")) == []


def test_dagster_url_keeps_other_options(url: URL) -> None:
    given = url.update_query_dict({"options": "-cwork_mem=5MB"})
    assert execute(dagster_url(given), "SELECT current_setting('work_mem') || ' ' || current_schema()") == [
        "5MB dagster"
    ]


def test_many_make_the_schema_at_once(url: URL) -> None:
    with ThreadPoolExecutor(8) as executor:
        assert len(set(executor.map(dagster_url, [url] * 8))) == 1


def test_a_role_that_may_not_make_the_schema(url: URL) -> None:
    execute(url, f"CREATE ROLE guest LOGIN PASSWORD '{SECRET}'")
    guest = url.set(username="guest", password=SECRET)
    with pytest.raises(PlatformError, match='CREATE SCHEMA dagster AUTHORIZATION "guest"') as caught:
        dagster_url(guest)
    assert SECRET not in str(caught.value)
    execute(url, "CREATE SCHEMA dagster AUTHORIZATION guest")
    assert execute(dagster_url(guest), "SELECT current_schema()") == ["dagster"]
