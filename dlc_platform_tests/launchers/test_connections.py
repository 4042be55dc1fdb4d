"""Connections to Dagster's database, on a real server: kept during runs, and made again after the server was away."""

import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.pool import QueuePool

from dlc_platform.launchers import connections

_OTHERS = (
    "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
    "and backend_type = 'client backend'"
)


@pytest.fixture
def stored(empty_database: URL, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    url = empty_database.render_as_string(hide_password=False)
    overrides = {"storage": {"postgres": {"postgres_url": url}}, "telemetry": {"enabled": False}}
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path), overrides=overrides)) as instance:
        yield instance


@pytest.fixture
def instance(stored: dg.DagsterInstance) -> Iterator[dg.DagsterInstance]:
    with connections.kept_connections(stored, waits=True):
        yield stored


@pytest.fixture
def engine(empty_database: URL) -> Iterator[Engine]:
    engine = create_engine(empty_database)
    yield engine
    engine.dispose()


def write(instance: dg.DagsterInstance) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization("poses"))


def pids(engine: Engine) -> set[int]:
    with engine.connect() as connection:
        return set(connection.scalars(text(f"select pid {_OTHERS}")))


def test_events_share_a_connection(instance: dg.DagsterInstance, engine: Engine):
    write(instance)
    kept = pids(engine)
    assert kept
    for _ in range(5):
        write(instance)
    assert pids(engine) == kept


def test_nothing_is_kept_at_the_end(stored: dg.DagsterInstance, engine: Engine):
    with connections.kept_connections(stored, waits=True):
        write(stored)
        assert pids(engine)
    waits = time.monotonic() + 60
    while pids(engine):  # Postgres ends them a moment later.
        assert time.monotonic() < waits
        time.sleep(0.05)
    write(stored)
    assert not event.contains(QueuePool, "checkout", connections._ask)


def test_a_server_that_was_away_is_not_noticed(instance: dg.DagsterInstance, engine: Engine):
    write(instance)
    before = pids(engine)
    with engine.begin() as connection:
        connection.execute(text(f"select pg_terminate_backend(pid) {_OTHERS}"))
    write(instance)
    assert before.isdisjoint(pids(engine))
    assert len(instance.fetch_materializations(dg.AssetKey("poses"), limit=10).records) == 2
