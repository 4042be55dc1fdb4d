"""Dagster's part of a lab that is restored from a backup: its tables, and an end for the runs that were under way.

A row of a run names its program, container and settings on the machine that made the backup. None of that is taken
over: such a run ends, and Dagster makes its successor from the definitions of this lab.
"""

import os
import tempfile
from pathlib import Path

import dagster as dg
import yaml
from dagster_postgres import run_storage
from dagster_postgres.utils import pg_alembic_config
from dagster_shared.check import CheckError
from dagster_shared.serdes.errors import DeserializationError
from sqlalchemy import JSON, URL, Connection, cast, create_engine, delete, or_, select, update
from sqlalchemy.exc import DataError

from dlc_platform.errors import one_line
from dlc_platform.lab.backup import Storage
from dlc_platform.launchers.dagster_internals import (
    FINISHED_STATUSES,
    MAX_RETRIES_TAG,
    BulkActionsFilter,
    BulkActionStatus,
    RunsTable,
    RunStorageSqlMetadata,
    RunTagsTable,
    ScheduleStorageSqlMetadata,
    SqlEventLogStorageMetadata,
    serialize_value,
    stamp_alembic_rev,
)
from dlc_platform.orchestration.retries import STOPPED_TAG
from dlc_platform.postgres.connection import in_dagster_schema

_URL_VARIABLE = "DLC_PLATFORM_RESTORED_POSTGRES_URL"
_UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
_UNFINISHED_BACKFILLS = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]
#: The tags that give settings of a container; a successor has the tags of its run.
_OF_CONTAINERS = "dagster-k8s/"
_WHY = "The lab was restored from a backup, in which this run was under way"
#: A run that was stopped like this is tried once more, however often it was tried.
_RETRIES = 10


def make_tables(connection: Connection) -> None:
    """Make Dagster's tables, empty, in the first schema of the connection's search path."""
    for tables in (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata):
        tables.create_all(connection)
    stamp_alembic_rev(pg_alembic_config(run_storage.__file__), connection)


def settle_runs(url: URL) -> None:
    """End every run and backfill that is under way in a restored database; nothing is started.

    Raises
    ------
    ValueError
        When a row is not one of Dagster's; with its fault.
    """
    # With the role that restored: it owns everything until roles are assigned anew.
    url = in_dagster_schema(url)
    _check_names(url)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "storage": {"postgres": {"postgres_url": {"env": _URL_VARIABLE}}},
            # Dagster decides at a run's end if it is tried again, and writes that down.
            "run_retries": {"enabled": True, "max_retries": _RETRIES},
            "telemetry": {"enabled": False},
        }
        Path(folder, "dagster.yaml").write_text(yaml.safe_dump(settings))
        os.environ[_URL_VARIABLE] = url.render_as_string(hide_password=False)
        try:
            with dg.DagsterInstance.from_config(folder) as instance:
                for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
                    _end(instance, _without_containers(url, run))
                for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED_BACKFILLS)):
                    instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
        except (DeserializationError, dg.DagsterError, CheckError, RecursionError, ValueError, TypeError) as error:
            raise ValueError(f"its runs under way are not runs of Dagster: {one_line(str(error))}") from error
        finally:
            del os.environ[_URL_VARIABLE]


def _check_names(url: URL) -> None:
    """Check that run ids have Dagster's form, because files are named after them."""
    body = cast(RunsTable.c.run_body, JSON)["run_id"].as_string()
    odd = select(RunsTable.c.run_id, body).where(
        or_(RunsTable.c.run_id.op("!~")("^[A-Za-z0-9_-]{1,64}$"), body.is_distinct_from(RunsTable.c.run_id))
    )
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            found = connection.execute(odd.limit(1)).first()
    except DataError as error:
        raise ValueError(f"a row of dagster.runs is not one of Dagster's: {one_line(str(error.orig))}") from error
    finally:
        engine.dispose()
    if found is not None:
        raise ValueError(
            f"the row {one_line(repr(found[0]))} of dagster.runs is of the run {one_line(repr(found[1]))}, which is "
            "not a run of Dagster's"
        )


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    # A run without this origin belonged to a `dlc-platform run`; one that was not started belonged to nobody.
    if run.remote_job_origin is None or run.status in (
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.CANCELING,
    ):
        instance.report_run_canceled(run, _WHY)
        return
    # Failed, because only failed runs are tried again; and being restored does not count as a try.
    most = int(run.tags.get(MAX_RETRIES_TAG, _RETRIES))
    instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: str(most + 1), STOPPED_TAG: run.run_id})
    instance.report_run_failed(run, f"{_WHY}; it is tried again when the lab is started")


def _without_containers(url: URL, run: dg.DagsterRun) -> dg.DagsterRun:
    kept = {name: value for name, value in run.tags.items() if not name.startswith(_OF_CONTAINERS)}
    if kept == run.tags:
        return run
    run = run.with_tags(kept)
    engine = create_engine(url)
    with engine.begin() as connection:
        body = {"run_body": serialize_value(run)}
        connection.execute(update(RunsTable).where(RunsTable.c.run_id == run.run_id).values(body))
        told = RunTagsTable.c.key.startswith(_OF_CONTAINERS, autoescape=True)
        connection.execute(delete(RunTagsTable).where(RunTagsTable.c.run_id == run.run_id, told))
    engine.dispose()
    return run


DAGSTER = Storage(make_tables, settle_runs)
