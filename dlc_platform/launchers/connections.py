"""How the worker of a run keeps its connections to Dagster's database and to the catalogue.

Dagster opens one for each event that it writes. A session has dozens of events, and of a short one they take longer
than its network does. And a database that is started again while a run computes ends no run: whoever connects waits
for it.
"""

import time
from typing import Any

from dagster import DagsterInstance
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

_SECONDS_KEPT = 3600
_MOST_AT_A_TIME = 10
#: How long a database that is away is waited for, and how often it is asked.
_PATIENCE_SECONDS, _PAUSE_SECONDS = 60.0, 0.5
#: What a server says that answers, and will say the same again.
_REFUSED = ("authentication failed", "does not exist", "pg_hba.conf")


def keep_connections(instance: DagsterInstance) -> None:
    """Let this process use its connections again, each after a question whether it still holds.

    So a database that was started again in between is noticed as little as with a connection for each event.
    """
    event.listen(QueuePool, "checkout", _ask)
    event.listen(Engine, "do_connect", _connect)
    # Named after the webserver, but there is no other way to choose how Dagster connects.
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=_SECONDS_KEPT, max_overflow=_MOST_AT_A_TIME)


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
