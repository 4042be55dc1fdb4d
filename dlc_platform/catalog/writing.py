"""Writing rows of any subject: once, safe to repeat, and safe against another process that does the same.

Rows that several subjects share are here too: body parts with their skeleton, parameters, environments.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, orm, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.tables import (
    Base,
    Bodypart,
    Dataset,
    Environment,
    Evaluation,
    ModelExport,
    ModelVersion,
    ParameterSet,
    PoseEstimate,
    Skeleton,
    SkeletonEdge,
)
from dlc_platform.identity import sha256_json

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class BodyParts:
    """The output of a network: body parts in their order, and the lines between them."""

    names: Sequence[str]
    skeleton: Sequence[tuple[str, str]] = ()

    @property
    def id(self) -> str:
        """A hash of the names in their order and of the lines."""
        return sha256_json({"bodyparts": list(self.names), "skeleton": [list(edge) for edge in self.skeleton]})


def first(engine: Engine, statement: Select[Row]) -> Row | None:
    with orm.Session(engine, expire_on_commit=False) as session:
        return session.scalars(statement).first()


def every_row(engine: Engine, statement: Select[Row]) -> list[Row]:
    with orm.Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(statement))


def skeleton_of(connection: Connection, bodyparts: BodyParts) -> str:
    if insert_new(connection, Skeleton(id=bodyparts.id)):
        for position, name in enumerate(bodyparts.names):
            insert_new(connection, Bodypart(skeleton_id=bodyparts.id, name=name, position=position))
        for a, b in bodyparts.skeleton:
            insert_new(connection, SkeletonEdge(skeleton_id=bodyparts.id, bodypart_a=a, bodypart_b=b))
    return bodyparts.id


def parameter_set_of(connection: Connection, parameters: Mapping[str, Any]) -> str:
    identity = sha256_json(parameters)
    insert_new(connection, ParameterSet(id=identity, parameters=dict(parameters)))
    return identity


def environment_of(connection: Connection, details: Mapping[str, Any]) -> str:
    identity = sha256_json(details)
    insert_new(connection, Environment(id=identity, details=dict(details)))
    return identity


def values_of(row: Base) -> dict[str, Any]:
    """The columns that were given a value; the database fills the others."""
    return {column.key: row.__dict__[column.key] for column in row.__table__.columns if column.key in row.__dict__}


def insert_product(
    connection: Connection, row: Dataset | ModelVersion | ModelExport | Evaluation | PoseEstimate
) -> bool:
    """Write a product's row, once; if the product was lost and made again, its row gets the new manifest."""
    if insert_new(connection, row):
        return True
    if row.manifest_sha256 is not None:
        kind = type(row)
        connection.execute(update(kind).where(kind.id == row.id).values(manifest_sha256=row.manifest_sha256))
    return False


def insert_new(connection: Connection, row: Base) -> bool:
    statement = insert(type(row)).values(**values_of(row)).on_conflict_do_nothing()
    return connection.execute(statement).rowcount == 1


def overwrite(connection: Connection, rows: Iterable[Base]) -> None:
    """Write rows of one table; they replace rows with the same primary keys."""
    for row in rows:
        values = values_of(row)
        keys = [column.key for column in row.__table__.primary_key]
        changes = {name: value for name, value in values.items() if name not in keys}
        statement = insert(type(row)).values(**values)
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes))
