"""What writes to the catalogue. Reading it as tables is in `queries`.

Each function is one transaction, safe to repeat and safe against another process that does the same.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, delete, func, inspect, literal, or_, orm, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from dlc_platform.catalog import queries
from dlc_platform.catalog.tables import (
    SCHEMA,
    Base,
    Bodypart,
    Camera,
    Comparison,
    ComparisonError,
    Dataset,
    DatasetBuild,
    DatasetImage,
    Environment,
    Evaluation,
    EvaluationError,
    EvaluationSessionError,
    ModelExport,
    ModelVersion,
    ParameterSet,
    PoseEstimate,
    PoseScore,
    PoseSummary,
    PoseVerdict,
    Promotion,
    RecipeVersion,
    Recording,
    RecordingFile,
    RecordingPoses,
    Session,
    SessionLabels,
    Skeleton,
    SkeletonEdge,
    Subject,
    TrainingRun,
    Video,
    VideoQuality,
)
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json
from dlc_platform.store import Kind, Product
from dlc_platform.video.registered import KnownFile

Row = TypeVar("Row", bound=Base)


_PRODUCTS: dict[Kind, Any] = {
    "datasets": Dataset,
    "models": ModelVersion,
    "exports": ModelExport,
    "evaluations": Evaluation,
    "poses": PoseEstimate,
}


@dataclass(frozen=True)
class BodyParts:
    """What a network predicts: body parts in their order, and the lines between them."""

    names: Sequence[str]
    skeleton: Sequence[tuple[str, str]] = ()

    @property
    def id(self) -> str:
        """A hash of the names in their order and of the lines."""
        return sha256_json({"bodyparts": list(self.names), "skeleton": [list(edge) for edge in self.skeleton]})


def register_session(
    engine: Engine,
    session: Session,
    files: Iterable[tuple[RecordingFile, Video | None]],
    environment: Mapping[str, Any] | None = None,
    details: tuple[Any, Any] | None = None,
    qualities: Iterable[VideoQuality] = (),
) -> None:
    """Write down a session and what each of its files holds now.

    A file that is unchanged, or only lies elsewhere or was touched, keeps its row and so its poses; a changed one gets
    a new row and the old row is marked as replaced. The row of a file that is gone is marked as missing, and as
    replaced when its content lies elsewhere in the session now. A new row takes over the poses of a row with the same
    content that is replaced or missing, in whatever session: a video that moved is not tracked again. What was read of
    a video that is known already takes the place of what was known.

    Parameters
    ----------
    files
        Each with its `recording`, of which name and camera are taken, and its video where it was read.
    environment
        What read the videos.
    details
        What the lab's own tables say of the subject and of the session; without it what they said before stays.
    qualities
        Of the videos that were read.
    """
    files = list(files)
    with engine.begin() as connection:
        _insert_new(connection, Subject(key=session.subject))
        _insert_new(connection, session)
        if details is not None:
            _set_details(connection, Subject, session.subject, details[0])
            _set_details(connection, Session, session.key, details[1])
        # Its folder may have been renamed, or moved to another root.
        connection.execute(update(Session).where(Session.key == session.key).values(folder=session.folder))
        # One registration of a session at a time.
        connection.execute(select(Session.key).where(Session.key == session.key).with_for_update())
        # In one order, or two sessions that hold the same videos could wait for each other for ever.
        for camera in sorted({file.recording.camera for file, _ in files}):
            _insert_new(connection, Camera(name=camera))
        read_by = _environment(connection, environment) if environment else None
        videos = sorted((video for _, video in files if video is not None), key=lambda video: video.id)
        for video in videos:
            video.environment_id = read_by
        _overwrite(connection, videos)
        measured = sorted(qualities, key=lambda quality: quality.video_id)
        _overwrite(connection, measured)
        recordings = {file.recording.name: _recording(connection, session.key, file.recording) for file, _ in files}
        current = {
            (row.recording_id, row.position): row
            for row in connection.execute(
                select(RecordingFile.__table__)
                .join(Recording.__table__)
                .where(Recording.session_key == session.key, RecordingFile.replaced_at.is_(None))
            )
        }
        new: dict[int, RecordingFile] = {}
        for file, _ in files:
            file.recording_id = recordings[file.recording.name]
            old = current.pop((file.recording_id, file.position), None)
            if old is not None:
                if _same_content(old, file):
                    _move(connection, old, file)
                    continue
                _replace(connection, old.id)
            values = insert(RecordingFile).values(**_values(file)).returning(RecordingFile.id)
            new[connection.execute(values).scalar_one()] = file
        contents = {file.video_id for file, _ in files}
        for old in current.values():
            if old.video_id is None or old.video_id in contents:
                _replace(connection, old.id)
            elif old.missing_since is None:
                gone = update(RecordingFile).where(RecordingFile.id == old.id)
                connection.execute(gone.values(missing_since=func.now()))
        for file_id, file in new.items():
            _take_over_poses(connection, file_id, file)


def name_session(engine: Engine, session: Session) -> None:
    """Write down that there is a session, whatever becomes of its files."""
    with engine.begin() as connection:
        _insert_new(connection, Subject(key=session.subject))
        _insert_new(connection, session)


def update_details(engine: Engine, subjects: Mapping[str, Any], sessions: Mapping[str, Any]) -> int:
    """Write down what the lab's own tables say now of known subjects and sessions, by their keys.

    Returns
    -------
    int
        The rows that changed.
    """
    changed = 0
    with engine.begin() as connection:
        for table, own in ((Subject, subjects), (Session, sessions)):
            before = dict(connection.execute(select(table.key, table.details)).tuples().all())
            # In one order, or two of these could wait for each other for ever.
            for key in sorted(key for key in own if key in before and before[key] != own[key]):
                changed += _set_details(connection, table, key, own[key])
    return changed


def all_details(engine: Engine) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the lab's own tables said of subjects and of sessions, by their keys, where they said something."""
    with engine.connect() as connection:
        subjects, sessions = (
            dict(connection.execute(select(table.key, table.details).where(table.details.is_not(None))).tuples().all())
            for table in (Subject, Session)
        )
    return subjects, sessions


def known_details(engine: Engine, subject: str, session_key: str) -> tuple[Any, Any]:
    """What the lab's own tables said of a subject and of a session; None for nothing."""
    with engine.connect() as connection:
        return (
            connection.scalar(select(Subject.details).where(Subject.key == subject)),
            connection.scalar(select(Session.details).where(Session.key == session_key)),
        )


def session_places(engine: Engine) -> list[tuple[str, str, str, str, list[str]]]:
    """The key, subject, name and folder of every session, and the paths of its current files."""
    place = (Session.key, Session.subject, Session.name, Session.folder)
    statement = (
        select(*place, func.array_agg(RecordingFile.path))
        .join(Recording, Recording.session_key == Session.key)
        .join(RecordingFile, RecordingFile.recording_id == Recording.id)
        .where(RecordingFile.replaced_at.is_(None))
        .group_by(*place)
        .order_by(Session.key)
    )
    with engine.connect() as connection:
        return [
            (key, subject, name, folder, sorted(paths))
            for key, subject, name, folder, paths in connection.execute(statement)
        ]


def forget_account(engine: Engine, video_id: str) -> None:
    """Have a video read again when its session is registered next: decoding it gave other frames than are known."""
    with engine.begin() as connection:
        connection.execute(update(Video).where(Video.id == video_id).values(decoder=None))


def cameras(engine: Engine) -> dict[str, str | None]:
    """The cameras that are known, each with the project that tracks it by the rules that were read last."""
    with engine.connect() as connection:
        rows = connection.execute(select(Camera.name, Camera.project).order_by(Camera.name))
        return {name: project for name, project in rows}


def assign_cameras(
    engine: Engine, project_of: Callable[[str], str | None], only: Collection[str] | None = None
) -> None:
    """Write down which project tracks each known camera, or `only` these, by the inference rules as they are now."""
    cameras = select(Camera.name, Camera.project).order_by(Camera.name)
    if only is not None:
        cameras = cameras.where(Camera.name.in_(only))
    with engine.begin() as connection:
        for name, project in connection.execute(cameras).all():
            if project_of(name) != project:
                connection.execute(update(Camera).where(Camera.name == name).values(project=project_of(name)))


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
        dataset.skeleton_id = _skeleton(connection, bodyparts)
        dataset.environment_id = _environment(connection, environment)
        if not _insert_product(connection, dataset):
            # The same labels, of a project that lab.yaml may call otherwise now.
            connection.execute(update(Dataset).where(Dataset.id == dataset.id).values(project=dataset.project))
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


def record_recipe(engine: Engine, recipe: str, project: str, parameters: Mapping[str, Any]) -> list[str]:
    """Write down the parameters that a recipe has now; another set than the last one is a new version of the recipe.

    Returns
    -------
    list of str
        The other recipes, of whatever project, that had the very same parameters before.
    """
    with engine.begin() as connection:
        parameter_set = _parameter_set(connection, parameters)
        connection.execute(
            text("select pg_advisory_xact_lock(hashtextextended(:recipe, 0))"), {"recipe": f"version of {recipe}"}
        )
        versions = select(RecipeVersion.version, RecipeVersion.project, RecipeVersion.parameter_set_id)
        newest = connection.execute(
            versions.where(RecipeVersion.recipe == recipe).order_by(RecipeVersion.version.desc()).limit(1)
        ).first()
        if newest is None or (newest.project, newest.parameter_set_id) != (project, parameter_set):
            number = newest.version + 1 if newest else 1
            connection.execute(
                insert(RecipeVersion).values(
                    recipe=recipe, version=number, project=project, parameter_set_id=parameter_set
                )
            )
        same = select(RecipeVersion.recipe).where(
            RecipeVersion.parameter_set_id == parameter_set, RecipeVersion.recipe != recipe
        )
        return sorted(set(connection.scalars(same)))


def record_training(
    engine: Engine,
    model: ModelVersion,
    bodyparts: BodyParts,
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
        model.origin = "trained"
        model.skeleton_id = _skeleton(connection, bodyparts)
        model.parameter_set_id = _parameter_set(connection, parameters)
        run.environment_id = _environment(connection, environment)
        new = _insert_product(connection, model)
        connection.execute(insert(TrainingRun).values(**_values(run)))
    return new


def record_export(engine: Engine, export: ModelExport, environment: Mapping[str, Any]) -> None:
    """Write down an export of a model version and what it was measured to do (once).

    Parameters
    ----------
    environment
        What made and measured it.
    """
    with engine.begin() as connection:
        export.environment_id = _environment(connection, environment)
        _insert_product(connection, export)


def record_evaluation(
    engine: Engine,
    evaluation: Evaluation,
    errors: Iterable[EvaluationError],
    environment: Mapping[str, Any],
    session_errors: Sequence[EvaluationSessionError] = (),
) -> None:
    """Write down an evaluation (once) and its errors, by side and body part and by side and session.

    The errors are those of the likelihood cut-off that holds now, of the sessions that are known now, and of the images
    that the model was not trained on.
    """
    view = {
        name: getattr(evaluation, name)
        for name in ("likelihood_cutoff", "test_images", "taught_images", "training_known")
    }
    with engine.begin() as connection:
        evaluation.environment_id = _environment(connection, environment)
        if not _insert_product(connection, evaluation):
            other = or_(*(getattr(Evaluation, name).is_distinct_from(value) for name, value in view.items()))
            changed = update(Evaluation).where(Evaluation.id == evaluation.id, other).values(**view)
            if not connection.execute(changed).rowcount:
                errors = ()
        _overwrite(connection, errors)
        _overwrite(connection, session_errors)


def record_comparison(engine: Engine, comparison: Comparison, errors: Iterable[ComparisonError]) -> None:
    """Write down a comparison, which is its project's newest one from now on, made before or not."""
    with engine.begin() as connection:
        if not _insert_new(connection, comparison):
            again = {"made_at": func.now(), "run_id": comparison.run_id}
            connection.execute(update(Comparison).where(Comparison.id == comparison.id).values(**again))
        # An older platform wrote intervals of too few images.
        _overwrite(connection, errors)


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
    in_force = select(Promotion.id, Promotion.model_id).where(Promotion.project == promotion.project)
    with engine.begin() as connection:
        previous = connection.execute(in_force.order_by(Promotion.id.desc()).limit(1)).first()
        if (previous.model_id if previous else None) != expected:
            return False
        promotion.previous_id = previous.id if previous else None
        # Of two that follow the same promotion the database takes one.
        return _insert_new(connection, promotion)


def record_poses(
    engine: Engine,
    estimate: PoseEstimate,
    summaries: Iterable[PoseSummary],
    materialization: RecordingPoses,
    environment: Mapping[str, Any],
) -> None:
    """Write down an estimate (once) and that it holds the poses of a recording's file from now on.

    The summaries are those of the likelihood cut-off that holds now: they take the place of those before.
    """
    with engine.begin() as connection:
        estimate.environment_id = _environment(connection, environment)
        _insert_product(connection, estimate)
        _overwrite(connection, summaries)
        connection.execute(insert(RecordingPoses).values(**_values(materialization)))


def pose_summaries(pose_estimate_id: str, rows: Iterable[Mapping[Any, Any]]) -> list[PoseSummary]:
    """What `pose.table.summarize` says of an estimate, as the catalogue keeps it: NaN is null."""
    return [
        PoseSummary(
            pose_estimate_id=pose_estimate_id,
            bodypart=row["bodypart"],
            mean_likelihood=row["mean_likelihood"] if row["mean_likelihood"] == row["mean_likelihood"] else None,
            fraction_confident=row["fraction_confident"],
            fraction_missing=row["fraction_missing"],
        )
        for row in rows
    ]


def record_verdict(engine: Engine, verdict: PoseVerdict, scores: Sequence[PoseScore] | None) -> None:
    """Write down the verdict on an estimate, in the place of the one before.

    Parameters
    ----------
    scores
        What was measured anew; None where the verdict stands on the scores that are there.
    """
    verdict.judged_at = datetime.now(UTC)
    with engine.begin() as connection:
        # One verdict on an estimate at a time.
        estimate = select(PoseEstimate.id).where(PoseEstimate.id == verdict.pose_estimate_id)
        connection.execute(estimate.with_for_update())
        if scores is not None:
            connection.execute(delete(PoseScore).where(PoseScore.pose_estimate_id == verdict.pose_estimate_id))
            connection.execute(insert(PoseScore), [_values(score) for score in scores])
        _overwrite(connection, [verdict])


def pose_estimate(engine: Engine, pose_estimate_id: str) -> PoseEstimate | None:
    """Poses by their identity; when and by which run they were made first."""
    return _first(engine, select(PoseEstimate).where(PoseEstimate.id == pose_estimate_id))


def pose_verdict(engine: Engine, pose_estimate_id: str) -> PoseVerdict | None:
    """The verdict on an estimate; None where it was never judged."""
    return _first(engine, select(PoseVerdict).where(PoseVerdict.pose_estimate_id == pose_estimate_id))


def pose_scores(engine: Engine, pose_estimate_id: str) -> list[PoseScore]:
    """What was measured of an estimate."""
    return _all(engine, select(PoseScore).where(PoseScore.pose_estimate_id == pose_estimate_id))


def record_imported_model(engine: Engine, model: ModelVersion, bodyparts: BodyParts) -> bool:
    """Write down a model version that was trained elsewhere; `source` says where.

    Returns
    -------
    bool
        False when it was known already.
    """
    with engine.begin() as connection:
        model.origin = "imported"
        model.skeleton_id = _skeleton(connection, bodyparts)
        return _insert_product(connection, model)


def record_imported_poses(
    engine: Engine,
    estimate: PoseEstimate,
    summaries: Iterable[PoseSummary],
    file_id: int,
    environment: Mapping[str, Any],
    use: bool,
) -> bool:
    """Write down an estimate that was made elsewhere, once; `source` says where.

    It is in force from now on if the recording's file has no poses yet.

    Parameters
    ----------
    environment
        That of the import.
    use
        Put it in force even if the file has other poses.

    Returns
    -------
    bool
        Whether it is in force now.
    """
    with engine.begin() as connection:
        estimate.origin = "imported"
        estimate.environment_id = _environment(connection, environment)
        if _insert_product(connection, estimate):
            connection.execute(insert(PoseSummary), [_values(summary) for summary in summaries])
        # One import for a file at a time.
        connection.execute(select(RecordingFile.id).where(RecordingFile.id == file_id).with_for_update())
        in_force = connection.scalar(
            select(RecordingPoses.pose_estimate_id)
            .where(RecordingPoses.recording_file_id == file_id)
            .order_by(RecordingPoses.id.desc())
            .limit(1)
        )
        if in_force is not None and (in_force == estimate.id or not use):
            return in_force == estimate.id
        connection.execute(insert(RecordingPoses).values(recording_file_id=file_id, pose_estimate_id=estimate.id))
    return True


@contextmanager
def alone(engine: Engine, identity: str) -> Iterator[None]:
    """Hold the right to make a product: another process that wants to make it, on any host, waits until this ends.

    The lock is the database's and belongs to a connection, so a process that dies gives it up. A connection that is
    lost meanwhile ends no work: then another process may make the same product beside this one, which costs time and
    nothing else, because a product is made of what its identity names, and is there once.
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
                # Lost, and the lock with it. What does not give up its lock must not be used again either.
                connection.invalidate()


def promotion_in_force(engine: Engine, project: str) -> Promotion | None:
    """The promotion that says which model version a project uses; None before the first one."""
    return _first(engine, select(Promotion).where(Promotion.project == project).order_by(Promotion.id.desc()).limit(1))


def promotions_of(engine: Engine, project: str) -> list[Promotion]:
    """Every promotion of a project, oldest first."""
    return _all(engine, select(Promotion).where(Promotion.project == project).order_by(Promotion.id))


def production_model(engine: Engine, project: str) -> str | None:
    """The identity of a project's production model; None before the first promotion."""
    statement = select(Promotion.model_id).where(Promotion.project == project).order_by(Promotion.id.desc()).limit(1)
    with engine.connect() as connection:
        return connection.scalar(statement)


def current_dataset(engine: Engine, recipe: str) -> str | None:
    """The identity of the training dataset that was last made for a recipe."""
    statement = (
        select(DatasetBuild.dataset_id).where(DatasetBuild.recipe == recipe).order_by(DatasetBuild.id.desc()).limit(1)
    )
    with engine.connect() as connection:
        return connection.scalar(statement)


def dataset(engine: Engine, dataset_id: str) -> Dataset | None:
    """A training dataset by its identity."""
    return _first(engine, select(Dataset).where(Dataset.id == dataset_id))


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


def models_of(engine: Engine, project: str) -> list[ModelVersion]:
    """The model versions of a project, trained and imported, oldest first."""
    statement = select(ModelVersion).where(ModelVersion.project == project)
    return _all(engine, statement.order_by(ModelVersion.registered_at, ModelVersion.id))


def bodyparts_of(engine: Engine, model_id: str) -> list[str]:
    """The body parts that a model version predicts, in its order."""
    statement = (
        select(Bodypart.name)
        .join(ModelVersion, ModelVersion.skeleton_id == Bodypart.skeleton_id)
        .where(ModelVersion.id == model_id)
        .order_by(Bodypart.position)
    )
    with engine.connect() as connection:
        return list(connection.scalars(statement))


def require_model(engine: Engine, start: str) -> ModelVersion:
    """The model version whose identity begins with `start`; see `queries.require_model_id`."""
    model = model_version(engine, queries.require_model_id(engine, start))
    assert model is not None  # rows of models stay
    return model


def session_keys(engine: Engine) -> set[str]:
    """The sessions that were ever registered."""
    with engine.connect() as connection:
        return set(connection.scalars(select(Session.key)))


def current_files(engine: Engine, session_key: str, missing: bool = False) -> list[RecordingFile]:
    """The files of a session as they were last registered, by recording, in the order of recording.

    Parameters
    ----------
    missing
        Those that lie nowhere now too.
    """
    statement = _current().where(Recording.session_key == session_key)
    return _all(engine, statement if missing else statement.where(RecordingFile.missing_since.is_(None)))


def require_files(engine: Engine, session_key: str) -> list[RecordingFile]:
    """The files of a session that are there, as `current_files` gives them.

    Raises
    ------
    PlatformError
        When the session was never registered, or none of its files is there now.
    """
    files = current_files(engine, session_key)
    if files:
        return files
    gone = current_files(engine, session_key, missing=True)
    if not gone:
        raise PlatformError(f"session {session_key} is not registered", "Materialise session_videos for it first")
    since = min(file.missing_since for file in gone if file.missing_since is not None)
    raise PlatformError(
        f"the videos of session {session_key} are gone since {since:%Y-%m-%d %H:%M} UTC, {gone[0].path} first of all",
        "Bring them back, and the session goes on by itself",
    )


def registered_sessions(engine: Engine) -> set[str]:
    """The sessions whose files were registered."""
    with engine.connect() as connection:
        statement = select(Recording.session_key).join(RecordingFile, RecordingFile.recording_id == Recording.id)
        return set(connection.scalars(statement.where(RecordingFile.replaced_at.is_(None)).distinct()))


def unreadable_sessions(engine: Engine) -> set[str]:
    """The sessions with a file that could not be read."""
    with engine.connect() as connection:
        statement = select(Recording.session_key).join(RecordingFile, RecordingFile.recording_id == Recording.id)
        current = (RecordingFile.replaced_at.is_(None), RecordingFile.problem.is_not(None))
        return set(connection.scalars(statement.where(*current).distinct()))


def untracked_files(engine: Engine) -> list[tuple[str, str, str]]:
    """The session, camera and path of every file without poses, of whatever model."""
    poses = select(RecordingPoses.id).where(RecordingPoses.recording_file_id == RecordingFile.id)
    statement = select(Recording.session_key, Recording.camera, RecordingFile.path).join(RecordingFile)
    current = (RecordingFile.replaced_at.is_(None), RecordingFile.missing_since.is_(None), ~poses.exists())
    statement = statement.where(*current).order_by(Recording.session_key, RecordingFile.id)
    with engine.connect() as connection:
        return [(session, camera, path) for session, camera, path in connection.execute(statement)]


def video(engine: Engine, video_id: str) -> Video:
    """A registered video."""
    with orm.Session(engine, expire_on_commit=False) as session:
        return session.get_one(Video, video_id)


def damaged_videos(engine: Engine) -> dict[str, str]:
    """What is missing from each video that is not whole, by the video's identity."""
    with engine.connect() as connection:
        rows = connection.execute(select(Video.id, Video.damage).where(Video.damage.is_not(None)))
        return {video: damage for video, damage in rows if damage is not None}


def unaccounted_videos(engine: Engine) -> set[str]:
    """The videos whose frames are to be accounted for: registered before that was done, or forgotten since."""
    with engine.connect() as connection:
        return set(connection.scalars(select(Video.id).where(Video.decoder.is_(None))))


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


def tracked_files(engine: Engine) -> set[int]:
    """The files of recordings that have poses, of whatever model."""
    with engine.connect() as connection:
        return set(connection.scalars(select(RecordingPoses.recording_file_id).distinct()))


def evaluated_models(engine: Engine) -> set[str]:
    """The model versions that have an evaluation."""
    with engine.connect() as connection:
        return set(connection.scalars(select(Evaluation.model_id)))


def known_files(engine: Engine) -> list[KnownFile]:
    """Every readable file of every session, in the order of session, recording and position."""
    statement = (
        select(
            Recording.session_key,
            Recording.camera,
            RecordingFile.path,
            Video.id,
            RecordingFile.size_bytes,
            Video.width,
            Video.height,
        )
        .join(Recording, Recording.id == RecordingFile.recording_id)
        .join(Video, Video.id == RecordingFile.video_id)
        .where(RecordingFile.replaced_at.is_(None))
        .order_by(Recording.session_key, Recording.name, RecordingFile.position)
    )
    with engine.connect() as connection:
        return [
            KnownFile(session, camera, PurePath(path).stem, video, size_bytes, width, height)
            for session, camera, path, video, size_bytes, width, height in connection.execute(statement)
        ]


def products(engine: Engine) -> dict[Product, str | None]:
    """Every product of the store that a row names, with the SHA-256 of its manifest where the row knows it."""
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


def evaluations_of(engine: Engine, project: str) -> list[Evaluation]:
    """The evaluations of a project's model versions, oldest first."""
    statement = (
        select(Evaluation)
        .join(ModelVersion, ModelVersion.id == Evaluation.model_id)
        .where(ModelVersion.project == project)
        .order_by(Evaluation.evaluated_at, Evaluation.id)
    )
    return _all(engine, statement)


def evaluation_of(engine: Engine, model_id: str) -> Evaluation | None:
    """The newest evaluation of a model version on the dataset that taught it, or else on any."""
    own = select(ModelVersion.dataset_id).where(ModelVersion.id == model_id).scalar_subquery()
    statement = (
        select(Evaluation)
        .where(Evaluation.model_id == model_id)
        .order_by((Evaluation.dataset_id == own).desc().nulls_last(), Evaluation.evaluated_at.desc(), Evaluation.id)
        .limit(1)
    )
    return _first(engine, statement)


def _first(engine: Engine, statement: Select[Row]) -> Row | None:
    with orm.Session(engine, expire_on_commit=False) as session:
        return session.scalars(statement).first()


def _all(engine: Engine, statement: Select[Row]) -> list[Row]:
    with orm.Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(statement))


def _current() -> Select[RecordingFile]:
    return (
        select(RecordingFile)
        .join(RecordingFile.recording)
        .where(RecordingFile.replaced_at.is_(None))
        .options(orm.contains_eager(RecordingFile.recording))
        .order_by(Recording.session_key, Recording.name, RecordingFile.position)
    )


def _recording(connection: Connection, session_key: str, recording: Recording) -> int:
    statement = insert(Recording).values(session_key=session_key, name=recording.name, camera=recording.camera)
    return connection.execute(
        statement.on_conflict_do_update(
            index_elements=["session_key", "name"], set_={"camera": statement.excluded.camera}
        ).returning(Recording.id)
    ).scalar_one()


def _skeleton(connection: Connection, bodyparts: BodyParts) -> str:
    if _insert_new(connection, Skeleton(id=bodyparts.id)):
        for position, name in enumerate(bodyparts.names):
            _insert_new(connection, Bodypart(skeleton_id=bodyparts.id, name=name, position=position))
        for a, b in bodyparts.skeleton:
            _insert_new(connection, SkeletonEdge(skeleton_id=bodyparts.id, bodypart_a=a, bodypart_b=b))
    return bodyparts.id


def _parameter_set(connection: Connection, parameters: Mapping[str, Any]) -> str:
    identity = sha256_json(parameters)
    _insert_new(connection, ParameterSet(id=identity, parameters=dict(parameters)))
    return identity


def _environment(connection: Connection, details: Mapping[str, Any]) -> str:
    identity = sha256_json(details)
    _insert_new(connection, Environment(id=identity, details=dict(details)))
    return identity


def _same_content(old: Any, new: RecordingFile) -> bool:
    return old.video_id == new.video_id and old.problem == new.problem


def _take_over_poses(connection: Connection, file_id: int, file: RecordingFile) -> None:
    """Let a new row have the poses of one with its content that lies nowhere any more; of its own project's cameras."""
    project = select(Camera.project).where(Camera.name == file.recording.camera).scalar_subquery()
    poses = (
        select(literal(file_id), RecordingPoses.pose_estimate_id, RecordingPoses.run_id)
        .join(RecordingFile, RecordingFile.id == RecordingPoses.recording_file_id)
        .join(Recording, Recording.id == RecordingFile.recording_id)
        .join(Camera, Camera.name == Recording.camera)
        .where(
            RecordingFile.video_id == file.video_id,
            RecordingFile.id != file_id,
            or_(RecordingFile.replaced_at.is_not(None), RecordingFile.missing_since.is_not(None)),
            or_(Camera.name == file.recording.camera, Camera.project == project),
        )
        .order_by(RecordingPoses.id.desc())
        .limit(1)
    )
    columns = ["recording_file_id", "pose_estimate_id", "run_id"]
    connection.execute(insert(RecordingPoses).from_select(columns, poses))


def _move(connection: Connection, old: Any, new: RecordingFile) -> None:
    """Let the row of a file say where it lies now, and when it was seen there."""
    place = {field: getattr(new, field) for field in ("path", "size_bytes", "mtime_ns")}
    status = {field: getattr(new, field) for field in ("ctime_ns", "inode")}
    if any(getattr(old, field) != value for field, value in status.items()):
        connection.execute(update(RecordingFile).where(RecordingFile.id == old.id).values(**status))
    if old.missing_since is not None or any(getattr(old, field) != value for field, value in place.items()):
        statement = update(RecordingFile).where(RecordingFile.id == old.id)
        connection.execute(statement.values(**place, registered_at=func.now(), missing_since=None))


def _set_details(
    connection: Connection, table: type[Subject] | type[Session], key: str, details: dict[str, Any] | None
) -> int:
    """Let a row say what the lab's own tables say; returns whether it said something else."""
    statement = update(table).where(
        table.key == key, table.details.is_distinct_from(literal(details, table.details.type))
    )
    return connection.execute(statement.values(details=details)).rowcount


def _replace(connection: Connection, file_id: int) -> None:
    connection.execute(update(RecordingFile).where(RecordingFile.id == file_id).values(replaced_at=func.now()))


def _values(row: Base) -> dict[str, Any]:
    """The columns that were given a value; the others are the database's."""
    return {column.key: row.__dict__[column.key] for column in row.__table__.columns if column.key in row.__dict__}


def _insert_product(
    connection: Connection, row: Dataset | ModelVersion | ModelExport | Evaluation | PoseEstimate
) -> bool:
    """Write a product's row, once; one that was lost from the store and made again has another manifest."""
    if _insert_new(connection, row):
        return True
    if row.manifest_sha256 is not None:
        kind = type(row)
        connection.execute(update(kind).where(kind.id == row.id).values(manifest_sha256=row.manifest_sha256))
    return False


def _insert_new(connection: Connection, row: Base) -> bool:
    statement = insert(type(row)).values(**_values(row)).on_conflict_do_nothing()
    return connection.execute(statement).rowcount == 1


def _overwrite(connection: Connection, rows: Iterable[Base]) -> None:
    """Write rows of one table in the place of those that have the same primary keys."""
    for row in rows:
        values = _values(row)
        keys = [column.key for column in row.__table__.primary_key]
        changes = {name: value for name, value in values.items() if name not in keys}
        statement = insert(type(row)).values(**values)
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes))
