import subprocess
import sys

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from dlc_platform.catalog import registry
from dlc_platform.catalog.database import migrate, open_catalog
from dlc_platform.catalog.tables import SCHEMA, Base
from dlc_platform_tests.catalog.small_lab import (
    dataset,
    evaluate,
    image,
    record_dataset,
    recording,
    session,
    train,
    video,
)

MIGRATE = """
import os
import sys
from dlc_platform.catalog.database import migrate, open_catalog
from sqlalchemy import make_url
engine = open_catalog(make_url(os.environ["CATALOGUE"]))
print("ready", flush=True)
sys.stdin.readline()
migrate(engine)
"""


def tables_in(engine: Engine) -> set[str]:
    return set(sqlalchemy.inspect(engine).get_table_names(SCHEMA))


def test_migrations_give_the_tables_of_the_code(engine: Engine) -> None:
    def is_ours(name: str | None, kind: str, _: object) -> bool:
        return kind != "schema" or name == SCHEMA

    with engine.connect() as connection:
        options = {"include_schemas": True, "include_name": is_ours, "version_table_schema": SCHEMA}
        context = MigrationContext.configure(connection, opts=options | {"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    declared = {table.name: table for table in Base.metadata.tables.values()}
    assert tables_in(engine) == {*declared, "alembic_version"}
    # Alembic does not compare check constraints.
    for name, table in declared.items():
        checks = {str(c.name) for c in table.constraints if isinstance(c, sqlalchemy.CheckConstraint)}
        found = sqlalchemy.inspect(engine).get_check_constraints(name, SCHEMA)
        assert {str(check["name"]) for check in found} == checks


def test_processes_that_migrate_at_once(empty_database: URL) -> None:
    environment = {"CATALOGUE": empty_database.render_as_string(hide_password=False)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * 6, errors
    engine = open_catalog(empty_database)
    assert "session" in tables_in(engine)
    engine.dispose()


def test_migrating_again_changes_nothing(lab: Engine) -> None:
    before = tables_in(lab)
    migrate(lab)
    migrate(lab)
    assert tables_in(lab) == before
    assert len(registry.files_by_session(lab)) == 2


def test_a_migration_that_fails_leaves_nothing(empty_database: URL) -> None:
    engine = open_catalog(empty_database)
    with engine.begin() as connection:
        connection.execute(text("create schema dlc"))
        connection.execute(text("create table dlc.recording_poses (id int)"))
    with pytest.raises(ProgrammingError):
        migrate(engine)
    assert tables_in(engine) == {"recording_poses"}
    with engine.begin() as connection:
        connection.execute(text("drop table dlc.recording_poses"))
    migrate(engine)
    assert "session" in tables_in(engine)
    engine.dispose()


def test_the_engine_survives_a_lost_connection(engine: Engine) -> None:
    with engine.connect() as connection:
        pid = connection.scalar(text("select pg_backend_pid()"))
    other = sqlalchemy.create_engine(engine.url, poolclass=sqlalchemy.NullPool)
    with other.connect() as connection:
        connection.execute(text("select pg_terminate_backend(:pid)"), {"pid": pid})
    assert registry.files_by_session(engine) == {}


def test_a_recording_holds_either_a_video_or_a_problem(engine: Engine) -> None:
    key = "sub-1_ses-1"
    for wrong, content in (
        (recording(key, "a"), None),
        (recording(key, "a", "1", problem="cut short"), video("1")),
        (recording(key, "a", "1"), None),  # a video that nobody knows
    ):
        with pytest.raises(IntegrityError):
            registry.register_session(engine, session(key), [(wrong, content)])
    assert registry.files_by_session(engine) == {}


@pytest.mark.parametrize("key", ["frames", "width", "height"])
def test_a_video_has_frames(engine: Engine, key: str) -> None:
    with pytest.raises(IntegrityError, match="has_frames"):
        registry.register_session(
            engine, session("sub-1_ses-1"), [(recording("sub-1_ses-1", "a", "1"), video("1", **{key: 0}))]
        )


def test_other_rows_that_make_no_sense(lab: Engine) -> None:
    with pytest.raises(IntegrityError, match="ck_dataset_image_side"):
        record_dataset(lab, "first", dataset("e"), [image("e", "3", None, side="both")])
    with pytest.raises(IntegrityError, match="fk_dataset_image_session_key"):
        record_dataset(lab, "first", dataset("e"), [image("e", "3", "sub-9_ses-9")])
    with pytest.raises(IntegrityError, match="fk_model_version_dataset_id"):
        train(lab, "c", dataset="e")
    with pytest.raises(IntegrityError, match="fk_evaluation_model_id"):
        evaluate(lab, "c", model="c", dataset="d", rmse_px=1.0)
    assert registry.current_dataset(lab, "first") == "d" * 64
