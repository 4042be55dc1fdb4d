"""What writes to the catalogue. Reading it as tables is in `queries`.

Each function is one transaction, safe to repeat and safe against another process that does the same.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, func, orm, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.tables import (
    Base,
    Dataset,
    DatasetBuild,
    DatasetImage,
    Environment,
    Evaluation,
    EvaluationError,
    ModelVersion,
    ParameterSet,
    PoseEstimate,
    PoseSummary,
    Promotion,
    Recording,
    RecordingPoses,
    Session,
    SessionLabels,
    TrainingRun,
    Video,
)
from dlc_platform.identity import sha256_json

Row = TypeVar("Row", bound=Base)


def register_session(engine: Engine, session: Session, recordings: Iterable[tuple[Recording, Video | None]]) -> None:
    """Write down a session and what each of its files holds now.

    A file that is unchanged keeps its row; a changed one gets a new row and the old row is marked as replaced, as is
    the row of a file that is gone.
    """
    recordings = list(recordings)
    with engine.begin() as connection:
        _insert_new(connection, session)
        # One registration of a session at a time.
        connection.execute(select(Session.key).where(Session.key == session.key).with_for_update())
        current = {
            row.name: row
            for row in connection.execute(
                select(Recording.__table__).where(Recording.session_key == session.key, Recording.replaced_at.is_(None))
            )
        }
        # In one order, or two sessions that hold the same videos could wait for each other for ever.
        for video in sorted((video for _, video in recordings if video is not None), key=lambda video: video.id):
            _insert_new(connection, video)
        for recording, _ in recordings:
            old = current.pop(recording.name, None)
            if old is not None:
                if _same_file(old, recording):
                    continue
                _replace(connection, old.id)
            connection.execute(insert(Recording).values(**_values(recording)))
        for old in current.values():
            _replace(connection, old.id)


def record_session_labels(engine: Engine, session_key: str, images_by_project: Mapping[str, int]) -> None:
    """Write down how many labelled images each project took from a session."""
    with engine.begin() as connection:
        for project, images in images_by_project.items():
            statement = insert(SessionLabels).values(session_key=session_key, project=project, images=images)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["session_key", "project"], set_={"images": images, "counted_at": func.now()}
                )
            )


def record_dataset(engine: Engine, recipe: str, dataset: Dataset, images: Iterable[DatasetImage]) -> None:
    """Write down a training dataset and that it is the recipe's current one."""
    with engine.begin() as connection:
        _insert_new(connection, dataset)
        statement = insert(DatasetImage).values([_values(image) for image in images])
        # Which session an image came from can become known later, and stays known when its video is taken away;
        # everything else is part of the identity.
        session_key = func.coalesce(statement.excluded.session_key, DatasetImage.session_key)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["dataset_id", "image_id"], set_={"session_key": session_key}
            )
        )
        connection.execute(insert(DatasetBuild).values(recipe=recipe, dataset_id=dataset.id, run_id=dataset.run_id))


def record_training(
    engine: Engine,
    model: ModelVersion,
    run: TrainingRun,
    parameters: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> bool:
    """Write down a trained model version, its parameters and the training that made it.

    Returns
    -------
    bool
        False when the same version was known already.
    """
    with engine.begin() as connection:
        model.parameter_set_id = sha256_json(parameters)
        _insert_new(connection, ParameterSet(id=model.parameter_set_id, parameters=dict(parameters)))
        run.environment_id = _environment(connection, environment)
        new = _insert_new(connection, model)
        connection.execute(insert(TrainingRun).values(**_values(run)))
    return new


def record_evaluation(
    engine: Engine, evaluation: Evaluation, errors: Iterable[EvaluationError], environment: Mapping[str, Any]
) -> None:
    """Write down an evaluation and its errors by side and body part."""
    with engine.begin() as connection:
        evaluation.environment_id = _environment(connection, environment)
        if _insert_new(connection, evaluation):
            connection.execute(insert(EvaluationError), [_values(error) for error in errors])


def promote(engine: Engine, promotion: Promotion, expected: str | None) -> bool:
    """Make a model version the production model of its project.

    Parameters
    ----------
    expected
        The production model that the decision was made against; None for none.

    Returns
    -------
    bool
        False when another promotion came in between, and nothing was written.
    """
    with engine.begin() as connection:
        connection.execute(
            text("select pg_advisory_xact_lock(hashtextextended(:project, 0))"),
            {"project": f"promotion of {promotion.project}"},
        )
        in_force = select(Promotion.model_id).where(Promotion.project == promotion.project)
        if connection.scalar(in_force.order_by(Promotion.id.desc()).limit(1)) != expected:
            return False
        connection.execute(insert(Promotion).values(**_values(promotion)))
    return True


def record_poses(
    engine: Engine,
    estimate: PoseEstimate,
    summaries: Iterable[PoseSummary],
    materialization: RecordingPoses,
    environment: Mapping[str, Any],
) -> None:
    """Write down an estimate (once) and that it holds the poses of a recording from now on."""
    with engine.begin() as connection:
        estimate.environment_id = _environment(connection, environment)
        if _insert_new(connection, estimate):
            connection.execute(insert(PoseSummary), [_values(summary) for summary in summaries])
        connection.execute(insert(RecordingPoses).values(**_values(materialization)))


def promotion_in_force(engine: Engine, project: str) -> Promotion | None:
    """The promotion that says which model version a project uses; None before the first one."""
    return _first(engine, select(Promotion).where(Promotion.project == project).order_by(Promotion.id.desc()).limit(1))


def production_model(engine: Engine, project: str) -> str | None:
    """The identity of a project's production model; None before the first promotion."""
    promotion = promotion_in_force(engine, project)
    return promotion.model_id if promotion else None


def current_dataset(engine: Engine, recipe: str) -> str | None:
    """The identity of the training dataset that was last made for a recipe."""
    statement = (
        select(DatasetBuild.dataset_id).where(DatasetBuild.recipe == recipe).order_by(DatasetBuild.id.desc()).limit(1)
    )
    with engine.connect() as connection:
        return connection.scalar(statement)


def current_model(engine: Engine, recipe: str) -> ModelVersion | None:
    """The model version that was last trained for a recipe."""
    statement = (
        select(ModelVersion)
        .join(TrainingRun, TrainingRun.model_id == ModelVersion.id)
        .where(TrainingRun.recipe == recipe)
        .order_by(TrainingRun.id.desc())
        .limit(1)
    )
    return _first(engine, statement)


def model_version(engine: Engine, model_id: str) -> ModelVersion | None:
    """A model version by its identity."""
    return _first(engine, select(ModelVersion).where(ModelVersion.id == model_id))


def current_recordings(engine: Engine, session_key: str) -> list[Recording]:
    """The files of a session as they were last registered, by name."""
    statement = (
        select(Recording)
        .where(Recording.session_key == session_key, Recording.replaced_at.is_(None))
        .order_by(Recording.name)
    )
    return _all(engine, statement)


def recordings_by_session(engine: Engine) -> dict[str, list[Recording]]:
    """The current files of every session."""
    found: dict[str, list[Recording]] = {}
    for recording in _all(engine, select(Recording).where(Recording.replaced_at.is_(None))):
        found.setdefault(recording.session_key, []).append(recording)
    return found


def labelled_sessions(engine: Engine, projects: Collection[str]) -> set[str]:
    """The sessions whose labels have been counted in all of these projects."""
    statement = (
        select(SessionLabels.session_key)
        .where(SessionLabels.project.in_(projects))
        .group_by(SessionLabels.session_key)
        .having(func.count() == len(projects))
    )
    with engine.connect() as connection:
        return set(connection.scalars(statement))


def tracked_recordings(engine: Engine) -> set[int]:
    """The recordings that have poses, of whatever model."""
    with engine.connect() as connection:
        return set(connection.scalars(select(RecordingPoses.recording_id)))


def evaluated_models(engine: Engine) -> set[str]:
    """The model versions that have an evaluation."""
    with engine.connect() as connection:
        return set(connection.scalars(select(Evaluation.model_id)))


def known_recordings(engine: Engine) -> list[tuple[str, str, str, int]]:
    """Every readable file of every session: session key, recording name, video identity, size in bytes."""
    statement = (
        select(Recording.session_key, Recording.name, Recording.video_id, Recording.size_bytes)
        .where(Recording.replaced_at.is_(None), Recording.video_id.is_not(None))
        .order_by(Recording.session_key, Recording.name)
    )
    with engine.connect() as connection:
        return [(key, name, str(video), size) for key, name, video, size in connection.execute(statement)]


def evaluations_of(engine: Engine, project: str) -> list[Evaluation]:
    """The evaluations of a project's model versions, oldest first."""
    statement = (
        select(Evaluation)
        .join(ModelVersion, ModelVersion.id == Evaluation.model_id)
        .where(ModelVersion.project == project)
        .order_by(Evaluation.evaluated_at, Evaluation.id)
    )
    return _all(engine, statement)


def _first(engine: Engine, statement: Select[Row]) -> Row | None:
    with orm.Session(engine, expire_on_commit=False) as session:
        return session.scalars(statement).first()


def _all(engine: Engine, statement: Select[Row]) -> list[Row]:
    with orm.Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(statement))


def _environment(connection: Connection, details: Mapping[str, Any]) -> str:
    identity = sha256_json(details)
    _insert_new(connection, Environment(id=identity, details=dict(details)))
    return identity


def _same_file(old: Any, new: Recording) -> bool:
    # A path that moved within its session is still the same file, but what the row says of it must be true.
    return all(
        getattr(old, field) == getattr(new, field)
        for field in ("size_bytes", "mtime_ns", "path", "camera", "video_id", "problem")
    )


def _replace(connection: Connection, recording_id: int) -> None:
    connection.execute(update(Recording).where(Recording.id == recording_id).values(replaced_at=func.now()))


def _values(row: Base) -> dict[str, Any]:
    """The columns that were given a value; the others are the database's."""
    return {column.key: row.__dict__[column.key] for column in row.__table__.columns if column.key in row.__dict__}


def _insert_new(connection: Connection, row: Base) -> bool:
    statement = insert(type(row)).values(**_values(row)).on_conflict_do_nothing()
    return connection.execute(statement).rowcount == 1
