"""Training datasets in the catalogue: their builds, and on which side and of which session each image is."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.tables import Dataset, DatasetBuild, DatasetImage
from dlc_platform.catalog.writing import BodyParts, environment_of, first, insert_product, skeleton_of, values_of


def record_dataset(
    engine: Engine,
    recipe: str,
    dataset: Dataset,
    bodyparts: BodyParts,
    images: Iterable[DatasetImage],
    environment: Mapping[str, Any],
) -> None:
    """Write down a training dataset and that it is the recipe's current one."""
    with engine.begin() as connection:
        dataset.skeleton_id = skeleton_of(connection, bodyparts)
        dataset.environment_id = environment_of(connection, environment)
        if not insert_product(connection, dataset):
            # The same labels; lab.yaml may give their project another name now.
            connection.execute(update(Dataset).where(Dataset.id == dataset.id).values(project=dataset.project))
        statement = insert(DatasetImage).values([values_of(image) for image in images])
        # Which session an image came from can become known later, and stays known when its video is taken away;
        # everything else is part of the identity.
        session_key = func.coalesce(statement.excluded.session_key, DatasetImage.session_key)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["dataset_id", "image_id"], set_={"session_key": session_key}
            )
        )
        connection.execute(insert(DatasetBuild).values(recipe=recipe, dataset_id=dataset.id, run_id=dataset.run_id))


def current_dataset(engine: Engine, recipe: str) -> str | None:
    """The identity of the training dataset that was last made for a recipe."""
    statement = (
        select(DatasetBuild.dataset_id).where(DatasetBuild.recipe == recipe).order_by(DatasetBuild.id.desc()).limit(1)
    )
    with engine.connect() as connection:
        return connection.scalar(statement)


def registered_dataset(engine: Engine, dataset_id: str) -> Dataset | None:
    """A training dataset by its identity."""
    return first(engine, select(Dataset).where(Dataset.id == dataset_id))


def image_sides(engine: Engine, dataset_id: str) -> dict[str, str]:
    """The side of the split that each image of a dataset is on."""
    statement = select(DatasetImage.image_id, DatasetImage.side).where(DatasetImage.dataset_id == dataset_id)
    with engine.connect() as connection:
        return {image: side for image, side in connection.execute(statement)}


def newest_dataset(engine: Engine, project: str) -> str | None:
    """The identity of the training dataset that was last made for any recipe of a project."""
    statement = (
        select(DatasetBuild.dataset_id)
        .join(Dataset, Dataset.id == DatasetBuild.dataset_id)
        .where(Dataset.project == project)
        .order_by(DatasetBuild.id.desc())
        .limit(1)
    )
    with engine.connect() as connection:
        return connection.scalar(statement)


def image_sessions(engine: Engine, dataset_id: str) -> dict[str, str]:
    """The session that each image of a dataset came from, where it is known."""
    statement = select(DatasetImage.image_id, DatasetImage.session_key).where(DatasetImage.dataset_id == dataset_id)
    with engine.connect() as connection:
        return {image: session for image, session in connection.execute(statement) if session is not None}
