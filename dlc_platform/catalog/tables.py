"""The catalogue's tables.

Rows hold identities, lineage and summaries; arrays stay in the store, whose paths follow from the identities. Rows of
products are written once and never changed. A change here needs a migration in ``migrations/versions``.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, MetaData, String, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "dlc"

_Identity = String(64)


class Base(DeclarativeBase):
    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        },
    )
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB, list[str]: JSONB}


def _now() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


class Session(Base):
    """A recording session of one subject."""

    __tablename__ = "session"

    key: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str]
    name: Mapped[str]
    folder: Mapped[str]
    registered_at: Mapped[datetime] = _now()


class Video(Base):
    """The content of a video file; its identity is the SHA-256 of the file's bytes."""

    __tablename__ = "video"
    __table_args__ = (CheckConstraint("frames > 0 and width > 0 and height > 0", name="has_frames"),)

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    frame_rate_numerator: Mapped[int] = mapped_column(BigInteger)
    frame_rate_denominator: Mapped[int] = mapped_column(BigInteger)
    frames: Mapped[int]
    frames_declared: Mapped[int | None]
    duration_s: Mapped[float]
    codec: Mapped[str]
    pixel_format: Mapped[str]
    rotation: Mapped[int]
    registered_at: Mapped[datetime] = _now()


class Recording(Base):
    """A file of a session as it was when it was looked at; a file that changed is a new row.

    Either `video_id` says what it holds, or `problem` says why it could not be read.
    """

    __tablename__ = "recording"
    __table_args__ = (
        CheckConstraint("(video_id is null) <> (problem is null)", name="video_or_problem"),
        Index("uq_recording_current", "session_key", "name", unique=True, postgresql_where=text("replaced_at is null")),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[str] = mapped_column(ForeignKey(Session.key))
    name: Mapped[str]
    camera: Mapped[str]
    path: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    video_id: Mapped[str | None] = mapped_column(ForeignKey(Video.id), index=True)
    problem: Mapped[str | None]
    registered_at: Mapped[datetime] = _now()
    replaced_at: Mapped[datetime | None]


class SessionLabels(Base):
    """How many labelled images of a project came from a session, when it was last looked at."""

    __tablename__ = "session_labels"

    session_key: Mapped[str] = mapped_column(ForeignKey(Session.key), primary_key=True)
    project: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[int]
    counted_at: Mapped[datetime] = _now()


class Environment(Base):
    """Software and hardware that computed something."""

    __tablename__ = "environment"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    details: Mapped[dict[str, Any]]


class ParameterSet(Base):
    """The validated parameters of a recipe, whatever the recipe is called."""

    __tablename__ = "parameter_set"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    parameters: Mapped[dict[str, Any]]
    registered_at: Mapped[datetime] = _now()


class Dataset(Base):
    """A training dataset: labelled images, each on its side of the frozen split."""

    __tablename__ = "dataset"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    project: Mapped[str]
    bodyparts: Mapped[list[str]]
    train_images: Mapped[int]
    test_images: Mapped[int]
    run_id: Mapped[str]
    made_at: Mapped[datetime] = _now()


class DatasetImage(Base):
    """A labelled image of a training dataset; its identity is the SHA-256 of the file's bytes."""

    __tablename__ = "dataset_image"
    __table_args__ = (CheckConstraint("side in ('train', 'test')", name="side"),)

    dataset_id: Mapped[str] = mapped_column(ForeignKey(Dataset.id), primary_key=True)
    image_id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    folder: Mapped[str]
    file: Mapped[str]
    session_key: Mapped[str | None] = mapped_column(ForeignKey(Session.key), index=True)
    side: Mapped[str]


class DatasetBuild(Base):
    """A materialisation of a recipe's training dataset; the newest one is the recipe's current dataset."""

    __tablename__ = "dataset_build"

    id: Mapped[int] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(index=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey(Dataset.id))
    run_id: Mapped[str]
    built_at: Mapped[datetime] = _now()


class ModelVersion(Base):
    """An immutable trained network: the identity covers the weights and the configuration."""

    __tablename__ = "model_version"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    project: Mapped[str]
    dataset_id: Mapped[str] = mapped_column(ForeignKey(Dataset.id))
    parameter_set_id: Mapped[str] = mapped_column(ForeignKey(ParameterSet.id))
    weights_sha256: Mapped[str] = mapped_column(_Identity)
    scorer: Mapped[str]
    registered_at: Mapped[datetime] = _now()


class TrainingRun(Base):
    """A training that ended with a model version; the newest one of a recipe is the recipe's current model."""

    __tablename__ = "training_run"

    id: Mapped[int] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id))
    epochs: Mapped[int]
    seconds: Mapped[float]
    environment_id: Mapped[str] = mapped_column(ForeignKey(Environment.id))
    run_id: Mapped[str]
    trained_at: Mapped[datetime] = _now()


class Evaluation(Base):
    """A model version run on every image of a training dataset."""

    __tablename__ = "evaluation"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id), index=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey(Dataset.id))
    likelihood_cutoff: Mapped[float]
    environment_id: Mapped[str] = mapped_column(ForeignKey(Environment.id))
    run_id: Mapped[str]
    evaluated_at: Mapped[datetime] = _now()


class EvaluationError(Base):
    """Distances between labels and predictions, in pixels; body part `all` sums over the body parts."""

    __tablename__ = "evaluation_error"
    __table_args__ = (CheckConstraint("side in ('train', 'test')", name="side"),)

    evaluation_id: Mapped[str] = mapped_column(ForeignKey(Evaluation.id), primary_key=True)
    side: Mapped[str] = mapped_column(primary_key=True)
    bodypart: Mapped[str] = mapped_column(primary_key=True)
    keypoints: Mapped[int]
    rmse_px: Mapped[float | None]
    rmse_confident_px: Mapped[float | None]
    mean_px: Mapped[float | None]
    median_px: Mapped[float | None]
    mean_likelihood: Mapped[float | None]
    fraction_confident: Mapped[float | None]


class Promotion(Base):
    """A project's production model from then on; the newest row of a project is in force.

    `weighed_until` is when the newest evaluation was made that the choice could know of.
    """

    __tablename__ = "promotion"

    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id))
    evaluation_id: Mapped[str | None] = mapped_column(ForeignKey(Evaluation.id))
    reason: Mapped[str]
    weighed_until: Mapped[datetime | None]
    run_id: Mapped[str]
    promoted_at: Mapped[datetime] = _now()


class PoseEstimate(Base):
    """The poses that a model version gives for a video; the arrays are in the store."""

    __tablename__ = "pose_estimate"
    __table_args__ = (CheckConstraint("frames > 0", name="has_frames"),)

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    video_id: Mapped[str] = mapped_column(ForeignKey(Video.id), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id), index=True)
    frames: Mapped[int]
    seconds: Mapped[float]
    environment_id: Mapped[str] = mapped_column(ForeignKey(Environment.id))
    run_id: Mapped[str]
    estimated_at: Mapped[datetime] = _now()


class PoseSummary(Base):
    """The quality of an estimate, by body part."""

    __tablename__ = "pose_summary"

    pose_estimate_id: Mapped[str] = mapped_column(ForeignKey(PoseEstimate.id), primary_key=True)
    bodypart: Mapped[str] = mapped_column(primary_key=True)
    mean_likelihood: Mapped[float | None]
    fraction_confident: Mapped[float]
    fraction_missing: Mapped[float]


class RecordingPoses(Base):
    """A materialisation of a recording's poses; the newest one of a recording is in force."""

    __tablename__ = "recording_poses"

    id: Mapped[int] = mapped_column(primary_key=True)
    recording_id: Mapped[int] = mapped_column(ForeignKey(Recording.id), index=True)
    pose_estimate_id: Mapped[str] = mapped_column(ForeignKey(PoseEstimate.id), index=True)
    run_id: Mapped[str]
    materialized_at: Mapped[datetime] = _now()
