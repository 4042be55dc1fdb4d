"""How the worker of a run keeps its connections to Dagster's database.

Dagster opens one for each event that it writes. A session has dozens of events, and of a short one they take longer
than its network does.
"""

from typing import Any

from dagster import DagsterInstance
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

_SECONDS_KEPT = 3600
_MOST_AT_A_TIME = 10


def keep_connections(instance: DagsterInstance) -> None:
    """Let this process use its connections again, each after a question whether it still holds.

    So a database that was started again in between is noticed as little as with a connection for each event.
    """
    event.listen(QueuePool, "checkout", _ask)
    # Named after the webserver, but there is no other way to choose how Dagster connects.
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=_SECONDS_KEPT, max_overflow=_MOST_AT_A_TIME)


def _ask(connection: Any, *_: Any) -> None:
    try:
        cursor = connection.cursor()
        cursor.execute("select 1")
        cursor.close()
    except Exception as error:
        raise DisconnectionError from error
