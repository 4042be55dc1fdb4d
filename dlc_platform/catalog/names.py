"""Keys and identities that begin with what a person typed so far.

A shell waits for them, so nothing is imported for them but what asks.
"""

from sqlalchemy import Engine

from dlc_platform.catalog.asking import rows


def sessions_that_begin(engine: Engine, start: str, most: int) -> list[str]:
    """The keys of registered sessions that begin so, in the order of the alphabet."""
    query = "select key from dlc.session where starts_with(key, :start) order by key limit :most"
    return [row["key"] for row in rows(engine, query, start=start, most=most)]


def models_that_begin(engine: Engine, start: str, most: int) -> list[str]:
    """The identities of model versions that begin so, the newest first."""
    query = "select id from dlc.model_version where starts_with(id, :start) order by registered_at desc limit :most"
    return [row["id"] for row in rows(engine, query, start=start, most=most)]
