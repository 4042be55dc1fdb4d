"""Connections to Dagster's database and to the catalogue that a process keeps while it executes runs.

Dagster opens one for each event that it writes. A session has dozens of events, and of a short one they take longer
than its network does. And a database that is started again while a worker computes ends no run: whoever connects waits
for it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dagster import DagsterInstance
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

_SECONDS_KEPT = 3600
_MOST_AT_A_TIME = 10
#: How long a database that is away is waited for, and how often it is asked.
_PATIENCE_SECONDS, _PAUSE_SECONDS = 60.0, 0.5
#: What a server says that answers, and will say the same again.
_REFUSED = ("authentication failed", "does not exist", "pg_hba.conf")


@contextmanager
def kept_connections(instance: DagsterInstance, waits: bool) -> Iterator[None]:
    """Let this process use its connections again, each after a question that only a live one answers.

    So a database that was started again in between is noticed as little as with a connection for each event. At the
    end those that are free are closed.

    Parameters
    ----------
    waits
        Who connects waits for a database that is away: somebody starts it again, as `up` does.
    """
    used: set[Engine] = set()

    def note(connection: Connection) -> None:
        used.add(connection.engine)

    listeners: list[tuple[Any, str, Any]] = [(QueuePool, "checkout", _ask), (Engine, "engine_connect", note)]
    if waits:
        listeners.append((Engine, "do_connect", _connect))
    for listener in listeners:
        event.listen(*listener)
    try:
        # Named after the webserver, but there is no other way to choose how Dagster connects.
        instance.optimize_for_webserver(statement_timeout=0, pool_recycle=_SECONDS_KEPT, max_overflow=_MOST_AT_A_TIME)
        yield
    finally:
        for listener in listeners:
            event.remove(*listener)
        for engine in used:
            engine.dispose()


def _connect(dialect: Any, _: Any, arguments: Any, named: Any) -> Any:
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return dialect.connect(*arguments, **named)
        except dialect.loaded_dbapi.OperationalError as error:
            if time.monotonic() > until or any(words in str(error) for words in _REFUSED):
                raise
        time.sleep(_PAUSE_SECONDS)


def _ask(connection: Any, *_: Any) -> None:
    try:
        cursor = connection.cursor()
        cursor.execute("select 1")
        cursor.close()
    except Exception as error:
        raise DisconnectionError from error
