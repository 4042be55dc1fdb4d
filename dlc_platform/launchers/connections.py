"""Connections to Dagster's database and to the catalogue that a process keeps while it executes runs.

Dagster opens one for each event that it writes. A session has dozens of events, and for a short session they take
longer than the network. A database that is restarted while a worker computes ends no run: a process that connects waits
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
#: The seconds that a process waits for a lost database, and the seconds between two tries.
_PATIENCE_SECONDS, _PAUSE_SECONDS = 180.0, 0.5
#: Errors of a server that answers, and that will give the same error again.
_REFUSED = ("authentication failed", "does not exist", "pg_hba.conf")


@contextmanager
def kept_connections(instance: DagsterInstance, waits: bool) -> Iterator[None]:
    """Let this process use its connections again, each after a question that only a live one answers.

    So a restart of the database in between does no harm, as with a connection for each event. At the end the free ones
    are closed.

    Parameters
    ----------
    waits
        True to wait for a lost database when connecting: somebody restarts it, as `up` does.
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
        # Dagster named this after the webserver, but there is no other way to choose how it connects.
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
