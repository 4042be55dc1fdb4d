"""What tests of the catalogue look at tables with, and do at the same moment."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pandas as pd
from sqlalchemy import Engine, select

from dlc_platform.catalog import tables
from dlc_platform.catalog.database import open_catalog


def rows(engine: Engine, table: type[tables.Base], *columns: str) -> list[tuple]:
    """Given columns of a whole table, in the order of writing."""
    with engine.connect() as connection:
        wanted = [table.__table__.c[column] for column in columns]
        order = next(iter(table.__table__.primary_key))
        return [tuple(row) for row in connection.execute(select(*wanted).order_by(order))]


def at_once(engine: Engine, *tasks: Callable[[Engine], object]) -> list[object]:
    """What the tasks return, each run by a thread with a connection of its own at the same moment."""
    barrier = Barrier(len(tasks))
    engines = [open_catalog(engine.url) for _ in tasks]

    def run(task: Callable[[Engine], object], own: Engine) -> object:
        own.connect().close()
        barrier.wait(60)
        return task(own)

    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(run, tasks, engines))
    finally:
        for own in engines:
            own.dispose()


def records(frame: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """Rows of some columns, None for whatever is missing."""
    wanted = frame[list(columns)].astype(object)
    return list(wanted.where(wanted.notna(), None).itertuples(index=False, name=None))
