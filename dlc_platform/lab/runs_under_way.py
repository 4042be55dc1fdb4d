"""The runs that are under way for each session, read from Dagster's own tables.

A listing command asks this. The tables are read by SQL, because loading Dagster takes longer than the whole command. A
test in `orchestration` compares the answers with Dagster's own.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from dlc_platform.errors import PlatformError
from dlc_platform.postgres.connection import existing_dagster_url

#: The sessions of a run are those from one partition to another, in the order in which the partitions were added.
_ORDER = "select partition from dynamic_partitions where partitions_def_name = 'sessions' order by id"
#: Unfinished runs, and those that Dagster is about to start again.
_RUNS = """
select r.run_id, r.status, r.run_body, r.create_timestamp, r.update_timestamp, r.start_time,
       (select jsonb_object_agg(t.key, t.value) from run_tags t where t.run_id = r.run_id) as tags
from runs r
where r.status in ('NOT_STARTED', 'QUEUED', 'STARTING', 'STARTED', 'CANCELING')
or (r.status = 'FAILURE' and r.update_timestamp > cast(:lately as timestamp)
    and exists (select from run_tags t where t.run_id = r.run_id and t.key = 'dagster/will_retry' and t.value = 'true')
    and not exists (select from run_tags t where t.key = 'dagster/parent_run_id' and t.value = r.run_id))
order by r.id
"""
#: Dagster's daemon starts a failed run again within seconds, and reports every 30 s that it is alive.
_LATELY, _SILENT = timedelta(hours=1), timedelta(minutes=2)

#: An asset, and the session to make it for.
Wanted = tuple[str, str]
State = Literal["retried", "queued", "starting", "is handed to Slurm", "waits for a device", "running"]
#: If several runs are for one session, the state first in this list is shown.
_NEAREST: tuple[State, ...] = ("running", "waits for a device", "is handed to Slurm", "starting", "queued", "retried")


@dataclass(frozen=True)
class RunUnderWay:
    """A run that has not ended; `until` is when a failed one is tried again, None if that is not known."""

    id: str
    state: State
    since: datetime
    until: datetime | None = None

    def __str__(self) -> str:
        if self.state == "retried":
            when = "in a moment" if self.until is None else f"at {self.until:%Y-%m-%d %H:%M} UTC"
            return f"its run failed, and is tried again {when}"
        what = {"queued": "is queued", "starting": "is starting", "running": "is at work"}.get(self.state, self.state)
        return f"its run {what}, since {self.since:%Y-%m-%d %H:%M} UTC"


def under_way(engine: Engine, assets: tuple[str, ...], now: datetime | None = None) -> dict[Wanted, RunUnderWay]:
    """The runs that are under way for these assets, by asset and session.

    Empty if Dagster's tables do not exist or may not be read.
    """
    lately = (now or datetime.now(UTC)) - _LATELY
    try:
        with _dagster(engine) as connection:
            rows = connection.execute(text(_RUNS), {"lately": lately.replace(tzinfo=None)}).all()
            order = connection.scalars(text(_ORDER)).all() if rows else []
    except (DBAPIError, PlatformError):
        return {}
    place = {key: index for index, key in enumerate(order)}
    found: dict[Wanted, RunUnderWay] = {}
    for row in rows:
        run = _run(row)
        for asset in _assets(row.run_body, assets):
            for session in _sessions(row.tags or {}, place, order):
                other = found.get((asset, session))
                if other is None or _NEAREST.index(run.state) <= _NEAREST.index(other.state):
                    found[asset, session] = run
    return found


def daemon_lives(engine: Engine, now: datetime | None = None) -> bool | None:
    """True if Dagster's daemon reports that it is alive, without which nothing starts by itself; None if unknown."""
    try:
        with _dagster(engine) as connection:
            heard = connection.scalar(text("select max(timestamp) from daemon_heartbeats"))
    except (DBAPIError, PlatformError):
        return None
    return heard is not None and (now or datetime.now(UTC)) - _utc(heard) < _SILENT


@contextmanager
def _dagster(engine: Engine) -> Iterator[Connection]:
    dagster = create_engine(existing_dagster_url(engine.url), poolclass=NullPool)
    with dagster.connect() as connection:
        yield connection


def _run(row: Any) -> RunUnderWay:
    tags, created = row.tags or {}, _utc(row.create_timestamp)
    if row.status == "FAILURE":
        return RunUnderWay(row.run_id, "retried", _utc(row.update_timestamp))
    if row.status in ("NOT_STARTED", "QUEUED"):
        if tags.get("dlc_platform/waits") == "yes":
            return RunUnderWay(row.run_id, "retried", created, datetime.fromisoformat(tags["dlc_platform/waits_until"]))
        return RunUnderWay(row.run_id, "queued", created)
    if row.start_time is not None:
        return RunUnderWay(row.run_id, "running", datetime.fromtimestamp(row.start_time, UTC))
    state: State = "is handed to Slurm" if "dlc_platform/slurm_job" in tags else "starting"
    if tags.get("dlc_platform/device") == "none yet":
        state = "waits for a device"
    return RunUnderWay(row.run_id, state, _utc(row.update_timestamp))


def _assets(run_body: str, assets: tuple[str, ...]) -> list[str]:
    """Those of these assets that a run makes; all of them for a run that names none."""
    selection = json.loads(run_body).get("asset_selection")
    if selection is None:
        return list(assets)
    selected = {"/".join(key["path"]) for key in selection["__frozenset__"]}
    return [asset for asset in assets if asset in selected]


def _sessions(tags: dict[str, str], place: dict[str, int], order: Any) -> list[str]:
    if (one := tags.get("dagster/partition")) is not None:
        return [one]
    ends = [tags.get(f"dagster/asset_partition_range_{end}", "") for end in ("start", "end")]
    if not all(end in place for end in ends):
        return [end for end in ends if end]
    return list(order[place[ends[0]] : place[ends[1]] + 1])


def _utc(moment: datetime) -> datetime:
    """A time from Dagster's tables: it has no time zone there and means UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
