"""Products of the store that rows of the catalogue name, and the right to make one.

`lab.retention` decides what becomes of products that no row names.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.exc import DBAPIError

from dlc_platform.catalog.asking import rows
from dlc_platform.catalog.tables import SCHEMA, Dataset, Evaluation, ModelExport, ModelVersion, PoseEstimate
from dlc_platform.store import Kind, Product

_HOLDINGS = """
select (select count(*) from dlc.session) as sessions, (select count(*) from dlc.model_version) as models,
       (select count(distinct r.session_key) from dlc.recording_poses p
        join dlc.recording_file f on f.id = p.recording_file_id and f.replaced_at is null
        join dlc.recording r on r.id = f.recording_id) as tracked
"""

_PRODUCTS: dict[Kind, Any] = {
    "datasets": Dataset,
    "models": ModelVersion,
    "exports": ModelExport,
    "evaluations": Evaluation,
    "poses": PoseEstimate,
}


def holdings(engine: Engine) -> Mapping[str, int]:
    """Count the lab's sessions, those of them that have poses in force, and the model versions."""
    (row,) = rows(engine, _HOLDINGS)
    return row


@contextmanager
def making_alone(engine: Engine, identity: str) -> Iterator[None]:
    """Hold the right to make a product: another process that wants to make it, on any host, waits until this ends.

    The lock is the database's and belongs to a connection, so a process that dies gives it up. If the connection is
    lost meanwhile, the work goes on. Another process may then make the same product beside this one. That costs only
    time: the identity names all that a product is made of, and the store keeps it once.
    """
    lock = {"identity": identity}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("select pg_advisory_lock(hashtextextended(:identity, 1))"), lock)
        try:
            yield
        finally:
            try:
                connection.execute(text("select pg_advisory_unlock(hashtextextended(:identity, 1))"), lock)
            except DBAPIError:
                # Lost, and the lock with it. A connection that does not give up its lock must not be used again either.
                connection.invalidate()


def recorded_products(engine: Engine) -> dict[Product, str | None]:
    """Every product of the store that a row names, with the SHA-256 of its manifest if the row has it."""
    found: dict[Product, str | None] = {}
    with engine.connect() as connection:
        for kind, table in _PRODUCTS.items():
            for identity, manifest_sha256 in connection.execute(select(table.id, table.manifest_sha256)):
                found[kind, identity] = manifest_sha256
    return found


def named_products(connection: Connection) -> set[Product]:
    """Every product of the store that a row names; the tables may be those of an older platform."""
    there = set(inspect(connection).get_table_names(SCHEMA))
    return {
        (kind, identity)
        for kind, table in _PRODUCTS.items()
        if table.__tablename__ in there
        for identity in connection.scalars(select(table.id))
    }


def is_recorded(engine: Engine, kind: Kind, identity: str) -> bool:
    """True when a row names this product of the store."""
    table = _PRODUCTS[kind]
    with engine.connect() as connection:
        return connection.scalar(select(table.id).where(table.id == identity)) is not None
