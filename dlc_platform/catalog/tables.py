"""The catalogue's tables.

Rows hold identities, lineage and summaries; arrays stay in the store, whose paths follow from the identities. Rows of
products are written once and never changed. A change here needs a migration in ``migrations/versions``. The
migrations also make the views.

`manifest_sha256` is the SHA-256 of a product's manifest in the store, which names the SHA-256 of its other files; it is
null for products that are older than manifests.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from dlc_platform.catalog import SCHEMA

_Identity = String(64)


def _storable(value: Any) -> Any:
    """A value of JSON without what Postgres refuses: zero bytes and half characters in texts, and values that are not
    numbers."""
    if isinstance(value, str):
        return value.replace("\0", "").encode(errors="replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


class _Words(TypeDecorator[str]):
    """Text from any program that a person reads; characters that Postgres refuses are left out."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return _storable(value)


class _Json(TypeDecorator[Any]):
    """JSON of values from disks and other programs; what Postgres refuses in it is left out."""

    impl = JSONB
    cache_ok = True

    def __init__(self, none_as_null: bool = False) -> None:
        super().__init__(none_as_null=none_as_null)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return _storable(value)


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
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: _Json, list[str]: _Json}


def _now() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


class LabBeginning(Base):
    """The one row that says when the lab's catalogue was made; in an older lab, when its first thing was registered."""

    __tablename__ = "lab_beginning"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    began_at: Mapped[datetime] = _now()


class Migration(Base):
    """The version of the platform that brought the tables to a migration, so that an older version can name it."""

    __tablename__ = "migration"

    revision: Mapped[str] = mapped_column(primary_key=True)
    platform: Mapped[str]
    migrated_at: Mapped[datetime] = _now()


class Environment(Base):
    """Software and hardware that computed something."""

    __tablename__ = "environment"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    details: Mapped[dict[str, Any]]


class Subject(Base):
    """An animal, or a person who is recorded; `details` is what the lab's own tables say about it."""

    __tablename__ = "subject"

    key: Mapped[str] = mapped_column(primary_key=True)
    details: Mapped[dict[str, Any] | None] = mapped_column(_Json(none_as_null=True))
    registered_at: Mapped[datetime] = _now()


class Session(Base):
    """A recording session of one subject; `details` is what the lab's own tables say about it."""

    __tablename__ = "session"
    __table_args__ = (Index("ix_session_registered_at_key", "registered_at", "key"),)

    key: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(ForeignKey(Subject.key), index=True)
    name: Mapped[str]
    folder: Mapped[str]
    details: Mapped[dict[str, Any] | None] = mapped_column(_Json(none_as_null=True))
    registered_at: Mapped[datetime] = _now()


class Camera(Base):
    """A camera; `project` is the one whose production model tracks it, by the inference rules that were read last.

    It is kept here so that the database alone can say which poses are stale.
    """

    __tablename__ = "camera"

    name: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str | None]


class Video(Base):
    """The content of a video file; its identity is the SHA-256 of the file's bytes.

    `frames` counts its rows, including those whose picture is lost; `damage` says in a sentence what is missing, and is
    null for a whole video. `video_streams` counts the video streams of the file, of which one is read; it is null if
    nobody counted them. `video.account.FrameAccount` says what the other figures are. If `decoder` is null, the figures
    cannot be relied on, and the video is read again when its session is next registered.
    """

    __tablename__ = "video"
    __table_args__ = (
        CheckConstraint("frames > 0 and width > 0 and height > 0", name="has_frames"),
        CheckConstraint("frame_rate_numerator > 0 and frame_rate_denominator > 0 and duration_s > 0", name="has_time"),
        CheckConstraint("rotation in (0, 90, 180, 270)", name="rotation"),
        CheckConstraint(
            "frames_lost between 0 and frames and frames_damaged >= 0 and frames_missing_at_end >= 0",
            name="account",
        ),
    )

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    frame_rate_numerator: Mapped[int] = mapped_column(BigInteger)
    frame_rate_denominator: Mapped[int] = mapped_column(BigInteger)
    frames: Mapped[int]
    frames_declared: Mapped[int | None]
    frames_lost: Mapped[int] = mapped_column(server_default=text("0"))
    frames_damaged: Mapped[int] = mapped_column(server_default=text("0"))
    frames_missing_at_end: Mapped[int] = mapped_column(server_default=text("0"))
    truncated: Mapped[bool] = mapped_column(server_default=text("false"))
    duplicated_timestamps: Mapped[int | None]
    variable_frame_rate: Mapped[bool | None]
    damage: Mapped[str | None] = mapped_column(_Words)
    decoder: Mapped[str | None]
    duration_s: Mapped[float]
    codec: Mapped[str]
    pixel_format: Mapped[str]
    rotation: Mapped[int]
    start_time: Mapped[datetime | None]
    video_streams: Mapped[int | None]
    frames_left_out: Mapped[int | None]
    times_reordered: Mapped[int | None]
    times_estimated: Mapped[int | None]
    clock_resets: Mapped[int | None]
    environment_id: Mapped[str | None] = mapped_column(ForeignKey(Environment.id))
    registered_at: Mapped[datetime] = _now()


class VideoQuality(Base):
    """The quality of the pictures and timestamps of a video; `video.quality.VideoQuality` says what the figures are.

    Videos that were registered before this was measured have no row. `black` and `frozen` list stretches: the first
    frame of each, its number of frames, and its seconds; `black_s` and `frozen_s` are the longest ones.
    """

    __tablename__ = "video_quality"

    video_id: Mapped[str] = mapped_column(ForeignKey(Video.id), primary_key=True)
    exposure: Mapped[float | None]
    fraction_dark: Mapped[float | None]
    fraction_bright: Mapped[float | None]
    focus: Mapped[float | None]
    black: Mapped[list[Any]] = mapped_column(_Json)
    frozen: Mapped[list[Any]] = mapped_column(_Json)
    black_s: Mapped[float]
    frozen_s: Mapped[float]
    dropped: Mapped[int | None]
    longest_gap_s: Mapped[float | None]
    jitter_ms: Mapped[float | None]


class Recording(Base):
    """The recording of one camera in a session, in one file or in several that follow each other."""

    __tablename__ = "recording"
    __table_args__ = (UniqueConstraint("session_key", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[str] = mapped_column(ForeignKey(Session.key))
    name: Mapped[str]
    camera: Mapped[str] = mapped_column(ForeignKey(Camera.name), index=True)
    registered_at: Mapped[datetime] = _now()


class RecordingFile(Base):
    """A file of a recording as it was when the platform looked at it; a changed file is a new row.

    `position` counts the recording's files from 0 in the order of recording. `ctime_ns` and `inode` are null until the
    file is looked at by a version that knows them. Either `video_id` names the content of the file, or `problem` says
    why it could not be read. A file that only moved keeps its row, and `registered_at` says since when it lies there.
    `missing_since` says since when the file is gone while its root can be read.
    """

    __tablename__ = "recording_file"
    __table_args__ = (
        CheckConstraint("(video_id is null) <> (problem is null)", name="video_or_problem"),
        CheckConstraint("position >= 0", name="position"),
        Index(
            "uq_recording_file_current",
            "recording_id",
            "position",
            unique=True,
            postgresql_where=text("replaced_at is null"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    recording_id: Mapped[int] = mapped_column(ForeignKey(Recording.id), index=True)
    position: Mapped[int]
    path: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    ctime_ns: Mapped[int | None] = mapped_column(BigInteger)
    inode: Mapped[int | None] = mapped_column(BigInteger)
    video_id: Mapped[str | None] = mapped_column(ForeignKey(Video.id), index=True)
    problem: Mapped[str | None] = mapped_column(_Words)
    registered_at: Mapped[datetime] = _now()
    replaced_at: Mapped[datetime | None]
    missing_since: Mapped[datetime | None]

    recording: Mapped[Recording] = relationship(lazy="joined", innerjoin=True)


class SessionLabels(Base):
    """The number of labelled images of a project that came from a session, at the last count."""

    __tablename__ = "session_labels"

    session_key: Mapped[str] = mapped_column(ForeignKey(Session.key), primary_key=True)
    project: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[int]
    counted_at: Mapped[datetime] = _now()


class Skeleton(Base):
    """The body parts of a project in their order, and the lines between them; the identity is a hash of both."""

    __tablename__ = "skeleton"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)


class Bodypart(Base):
    """A body part of a skeleton; `position` counts from 0 in the project's order."""

    __tablename__ = "bodypart"
    __table_args__ = (
        UniqueConstraint("skeleton_id", "position"),
        CheckConstraint("position >= 0", name="position"),
        CheckConstraint("name <> 'all'", name="name"),
    )

    skeleton_id: Mapped[str] = mapped_column(ForeignKey(Skeleton.id), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]


class SkeletonEdge(Base):
    """A line of a skeleton between two of its body parts."""

    __tablename__ = "skeleton_edge"
    __table_args__ = (
        ForeignKeyConstraint(["skeleton_id", "bodypart_a"], [Bodypart.skeleton_id, Bodypart.name]),
        ForeignKeyConstraint(["skeleton_id", "bodypart_b"], [Bodypart.skeleton_id, Bodypart.name]),
    )

    skeleton_id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    bodypart_a: Mapped[str] = mapped_column(primary_key=True)
    bodypart_b: Mapped[str] = mapped_column(primary_key=True)


class ParameterSet(Base):
    """Validated training parameters, independent of the recipe, project or device that they are used with."""

    __tablename__ = "parameter_set"

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    parameters: Mapped[dict[str, Any]]
    registered_at: Mapped[datetime] = _now()


class RecipeVersion(Base):
    """The parameters of a recipe since a moment; versions of a recipe count from 1."""

    __tablename__ = "recipe_version"
    __table_args__ = (CheckConstraint("version > 0", name="version"),)

    recipe: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str]
    parameter_set_id: Mapped[str] = mapped_column(ForeignKey(ParameterSet.id), index=True)
    first_used_at: Mapped[datetime] = _now()


class Dataset(Base):
    """A training dataset: labelled images, each on its side of the frozen split."""

    __tablename__ = "dataset"
    __table_args__ = (
        CheckConstraint("train_images > 0 and test_images > 0", name="has_images"),
        CheckConstraint("test_fraction > 0 and test_fraction < 1", name="test_fraction"),
    )

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    project: Mapped[str]
    skeleton_id: Mapped[str] = mapped_column(ForeignKey(Skeleton.id))
    train_images: Mapped[int]
    test_images: Mapped[int]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    test_fraction: Mapped[float | None]
    environment_id: Mapped[str | None] = mapped_column(ForeignKey(Environment.id))
    manifest_sha256: Mapped[str | None] = mapped_column(_Identity)
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
    """An immutable trained network; its identity covers the weights and the configuration.

    The labels and the parameters of an imported version are not known; `source` says where it came from.
    """

    __tablename__ = "model_version"
    __table_args__ = (
        CheckConstraint(
            "origin = 'imported' and source is not null or origin = 'trained' and dataset_id is not null and "
            "parameter_set_id is not null",
            name="origin",
        ),
    )

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    project: Mapped[str] = mapped_column(index=True)
    origin: Mapped[str]
    skeleton_id: Mapped[str] = mapped_column(ForeignKey(Skeleton.id))
    net_type: Mapped[str | None]
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey(Dataset.id), index=True)
    parameter_set_id: Mapped[str | None] = mapped_column(ForeignKey(ParameterSet.id), index=True)
    weights_sha256: Mapped[str] = mapped_column(_Identity)
    detector_sha256: Mapped[str | None] = mapped_column(_Identity)
    scorer: Mapped[str]
    source: Mapped[dict[str, Any] | None] = mapped_column(_Json(none_as_null=True))
    manifest_sha256: Mapped[str | None] = mapped_column(_Identity)
    registered_at: Mapped[datetime] = _now()


class TrainingRun(Base):
    """A training that ended with a model version; the newest one of a recipe is the recipe's current model."""

    __tablename__ = "training_run"
    __table_args__ = (CheckConstraint("epochs > 0 and seconds >= 0", name="took_time"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id), index=True)
    epochs: Mapped[int]
    seconds: Mapped[float]
    environment_id: Mapped[str] = mapped_column(ForeignKey(Environment.id))
    run_id: Mapped[str]
    trained_at: Mapped[datetime] = _now()


class ModelExport(Base):
    """A model version written for a faster backend, compared with eager PyTorch; the network itself is in the store.

    It is used only if it was accepted: no keypoint moved further than the tolerance. Deviations are the largest ones on
    the same images, in pixels and in likelihood; they and the time are null if the export could not run. `device` is
    ``cpu`` or the name of the GPU that it was made on and for.
    """

    __tablename__ = "model_export"
    __table_args__ = (
        CheckConstraint("precision in ('full', 'half')", name="precision"),
        CheckConstraint("images >= 0 and eager_ms_per_frame > 0", name="measured"),
    )

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id), index=True)
    backend: Mapped[str]
    device: Mapped[str]
    precision: Mapped[str]
    accepted: Mapped[bool]
    images: Mapped[int]
    deviation_px: Mapped[float | None]
    deviation_likelihood: Mapped[float | None]
    eager_ms_per_frame: Mapped[float]
    ms_per_frame: Mapped[float | None]
    manifest_sha256: Mapped[str] = mapped_column(_Identity)
    environment_id: Mapped[str] = mapped_column(ForeignKey(Environment.id))
    run_id: Mapped[str | None]
    made_at: Mapped[datetime] = _now()


class Evaluation(Base):
    """A model version run on every image of a training dataset.

    `test_images` counts the images on the dataset's test side that the version was not trained on; its test errors are
    over these. `taught_images` counts those that it was trained on. If `training_known` is false, nobody knows what it
    was trained on. All three are null, and there are no errors, if an older platform took images that the version was
    trained on for test images; the next `model_comparison` reads them from the store again.
    """

    __tablename__ = "evaluation"
    __table_args__ = (
        UniqueConstraint("model_id", "dataset_id"),
        CheckConstraint("likelihood_cutoff between 0 and 1", name="likelihood_cutoff"),
    )

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id))
    dataset_id: Mapped[str] = mapped_column(ForeignKey(Dataset.id), index=True)
    likelihood_cutoff: Mapped[float]
    test_images: Mapped[int | None]
    taught_images: Mapped[int | None]
    training_known: Mapped[bool | None]
    seconds: Mapped[float | None]
    manifest_sha256: Mapped[str | None] = mapped_column(_Identity)
    environment_id: Mapped[str] = mapped_column(ForeignKey(Environment.id))
    run_id: Mapped[str]
    evaluated_at: Mapped[datetime] = _now()


class EvaluationError(Base):
    """Distances between labels and predictions, in pixels; body part `all` sums over the body parts.

    Side `test` is over the images that the version was not trained on, side `train` over those that it was trained on.
    `missed` counts the labelled keypoints to which it gave no position; null in rows of an older platform.
    """

    __tablename__ = "evaluation_error"
    __table_args__ = (CheckConstraint("side in ('train', 'test')", name="side"),)

    evaluation_id: Mapped[str] = mapped_column(ForeignKey(Evaluation.id), primary_key=True)
    side: Mapped[str] = mapped_column(primary_key=True)
    bodypart: Mapped[str] = mapped_column(primary_key=True)
    keypoints: Mapped[int]
    missed: Mapped[int | None]
    rmse_px: Mapped[float | None]
    rmse_confident_px: Mapped[float | None]
    mean_px: Mapped[float | None]
    median_px: Mapped[float | None]
    mean_likelihood: Mapped[float | None]
    fraction_confident: Mapped[float | None]


class EvaluationSessionError(Base):
    """The same distances over all body parts, by the session that the images came from."""

    __tablename__ = "evaluation_session_error"
    __table_args__ = (CheckConstraint("side in ('train', 'test')", name="side"),)

    evaluation_id: Mapped[str] = mapped_column(ForeignKey(Evaluation.id), primary_key=True)
    side: Mapped[str] = mapped_column(primary_key=True)
    session_key: Mapped[str] = mapped_column(ForeignKey(Session.key), primary_key=True, index=True)
    keypoints: Mapped[int]
    missed: Mapped[int | None]
    rmse_px: Mapped[float | None]
    rmse_confident_px: Mapped[float | None]
    mean_px: Mapped[float | None]
    median_px: Mapped[float | None]
    mean_likelihood: Mapped[float | None]
    fraction_confident: Mapped[float | None]


class Comparison(Base):
    """Model versions of a project side by side on the same test images; a project's newest comparison is in force."""

    __tablename__ = "comparison"
    __table_args__ = (
        CheckConstraint("test_images > 0", name="has_images"),
        CheckConstraint("likelihood_cutoff between 0 and 1", name="likelihood_cutoff"),
        Index("ix_comparison_project_made_at", "project", "made_at"),
    )

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    project: Mapped[str]
    dataset_id: Mapped[str] = mapped_column(ForeignKey(Dataset.id))
    test_images: Mapped[int]
    likelihood_cutoff: Mapped[float]
    run_id: Mapped[str]
    made_at: Mapped[datetime] = _now()


class ComparisonError(Base):
    """The test error of one version in a comparison, in pixels; body part `all` covers the parts that all versions
    know.

    `images` counts the images behind the figures; null in rows of an older platform. The interval is the 95 % interval
    of a bootstrap over images; it is null if there are fewer than six images. `missed` counts the keypoints to which
    this version gave no position; they are left out for every version.
    """

    __tablename__ = "comparison_error"
    __table_args__ = (CheckConstraint("rmse_low_px <= rmse_high_px", name="interval"),)

    comparison_id: Mapped[str] = mapped_column(ForeignKey(Comparison.id), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id), primary_key=True)
    bodypart: Mapped[str] = mapped_column(primary_key=True)
    evaluation_id: Mapped[str] = mapped_column(ForeignKey(Evaluation.id))
    images: Mapped[int | None]
    keypoints: Mapped[int]
    missed: Mapped[int | None]
    rmse_px: Mapped[float | None]
    rmse_low_px: Mapped[float | None]
    rmse_high_px: Mapped[float | None]
    rmse_confident_px: Mapped[float | None]
    fraction_confident: Mapped[float | None]


class Promotion(Base):
    """The production model of a project since a moment: who decided, why, and on what evaluation.

    Each promotion names the one that it follows, and only one can follow: the database takes only one of two at the
    same time. `weighed_until` is the time of the newest evaluation that the choice could know of. `test_rmse_px` is the
    error that the choice relied on, in pixels, over `test_images` images that the version was not trained on; both are
    null if there was none. `warning` is what the version's own test images said against it at the promotion, such as
    that it is hopeless; null if there was nothing, and in promotions that are older than this check.
    """

    __tablename__ = "promotion"
    __table_args__ = (
        UniqueConstraint("project", "previous_id", postgresql_nulls_not_distinct=True),
        CheckConstraint("kind in ('first', 'rule', 'person', 'rollback')", name="kind"),
        CheckConstraint("reason <> '' and promoted_by <> ''", name="says_why"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.id), index=True)
    evaluation_id: Mapped[str | None] = mapped_column(ForeignKey(Evaluation.id))
    kind: Mapped[str]
    promoted_by: Mapped[str]
    reason: Mapped[str]
    previous_id: Mapped[int | None] = mapped_column(ForeignKey(f"{SCHEMA}.promotion.id"))
    weighed_until: Mapped[datetime | None]
    test_rmse_px: Mapped[float | None]
    test_images: Mapped[int | None]
    warning: Mapped[str | None]
    run_id: Mapped[str | None]
    promoted_at: Mapped[datetime] = _now()


class PoseEstimate(Base):
    """The poses that a model version gives for a video; the arrays are in the store.

    `parameters` are those of the inference that are part of the identity: the region if it is not the whole picture,
    the precision if it is not full, and the way in which several animals are tracked. `frames_lost` counts the rows
    without a picture, and so without poses. `backend`, `device` and `export_id` say what ran the network; they are null
    if that was not written down. The row of an export in `ModelExport` may come later than the poses that it made. The
    model of imported poses may be unknown; `source` says where they came from.
    """

    __tablename__ = "pose_estimate"
    __table_args__ = (
        CheckConstraint("frames > 0", name="has_frames"),
        CheckConstraint("frames_lost between 0 and frames", name="frames_lost"),
        CheckConstraint(
            "origin = 'imported' and source is not null or origin = 'computed' and model_id is not null and "
            "seconds is not null and run_id is not null",
            name="origin",
        ),
    )

    id: Mapped[str] = mapped_column(_Identity, primary_key=True)
    video_id: Mapped[str] = mapped_column(ForeignKey(Video.id), index=True)
    model_id: Mapped[str | None] = mapped_column(ForeignKey(ModelVersion.id), index=True)
    origin: Mapped[str]
    scorer: Mapped[str]
    frames: Mapped[int]
    frames_lost: Mapped[int] = mapped_column(server_default=text("0"))
    parameters: Mapped[dict[str, Any] | None] = mapped_column(_Json(none_as_null=True))
    backend: Mapped[str | None]
    device: Mapped[str | None]
    export_id: Mapped[str | None] = mapped_column(_Identity)
    seconds: Mapped[float | None]
    source: Mapped[dict[str, Any] | None] = mapped_column(_Json(none_as_null=True))
    environment_id: Mapped[str] = mapped_column(ForeignKey(Environment.id))
    manifest_sha256: Mapped[str | None] = mapped_column(_Identity)
    run_id: Mapped[str | None]
    estimated_at: Mapped[datetime] = _now()


class PoseScore(Base):
    """The scores of an estimate, by individual and by body part or limb; `pose.scores` says what each score is.

    A limb is written ``one to other``; individual and body part ``all`` stand for everything together. A score is null
    if there is nothing to measure. `PoseVerdict.basis` says what the scores were measured with.
    """

    __tablename__ = "pose_score"

    pose_estimate_id: Mapped[str] = mapped_column(ForeignKey(PoseEstimate.id), primary_key=True)
    individual: Mapped[str] = mapped_column(primary_key=True)
    bodypart: Mapped[str] = mapped_column(primary_key=True)
    rows: Mapped[int | None]
    mean_likelihood: Mapped[float | None]
    fraction_confident: Mapped[float | None]
    fraction_missing: Mapped[float | None]
    jumps: Mapped[float | None]
    unsure_jumps: Mapped[float | None]
    swaps: Mapped[float | None]
    limb_outliers: Mapped[float | None]
    outside: Mapped[float | None]
    reprojection_px: Mapped[float | None]
    temporal_norm_px: Mapped[float | None]
    confident_when_seen: Mapped[float | None]
    fraction_empty: Mapped[float | None]
    still: Mapped[float | None]
    still_in_motion: Mapped[float | None]
    no_animal: Mapped[float | None]
    background: Mapped[float | None]


class PoseVerdict(Base):
    """The verdict on an estimate by the limits that held when it was judged.

    `basis` is what the scores depend on besides the poses: with the same basis they need not be measured
    again. `limits` and `floors` are those of lab.yaml; a limit that lab.yaml leaves open follows from `evaluation_id`,
    which is null if there was no evaluation. Verdicts that are older than the floors have null there. `findings` are
    the scores beyond their limits, with each limit and its source.
    """

    __tablename__ = "pose_verdict"
    __table_args__ = (
        CheckConstraint("verdict in ('pass', 'warn', 'fail')", name="verdict"),
        Index("ix_pose_verdict_not_pass", "verdict", postgresql_where=text("verdict <> 'pass'")),
    )

    pose_estimate_id: Mapped[str] = mapped_column(ForeignKey(PoseEstimate.id), primary_key=True)
    verdict: Mapped[str]
    basis: Mapped[dict[str, Any]]
    limits: Mapped[dict[str, Any]]
    floors: Mapped[dict[str, Any] | None] = mapped_column(_Json(none_as_null=True))
    findings: Mapped[list[dict[str, Any]]] = mapped_column(_Json)
    evaluation_id: Mapped[str | None] = mapped_column(ForeignKey(Evaluation.id))
    run_id: Mapped[str | None]
    judged_at: Mapped[datetime] = _now()


class RecordingPoses(Base):
    """A materialisation of the poses of a recording's file; the newest one of a file is in force."""

    __tablename__ = "recording_poses"
    __table_args__ = (Index("ix_recording_poses_recording_file_id_id", "recording_file_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    recording_file_id: Mapped[int] = mapped_column(ForeignKey(RecordingFile.id))
    pose_estimate_id: Mapped[str] = mapped_column(ForeignKey(PoseEstimate.id), index=True)
    run_id: Mapped[str | None]
    materialized_at: Mapped[datetime] = _now()


class Quarantine(Base):
    """A reason why a session waits for a person or for another file, with what to do.

    `stage` says what it holds up. ``videos``: the tracking of the whole session, or of the file at `path` alone.
    ``poses``: the next request for the session. ``quality``: what lab.yaml lets bad poses block. `evidence` is a hash
    of what was judged: the same evidence does not bring back an entry that a person released, and other evidence ends
    an entry by itself. An entry is open until `released_at`.
    """

    __tablename__ = "quarantine"
    __table_args__ = (
        CheckConstraint("stage in ('videos', 'labels', 'poses', 'quality')", name="stage"),
        CheckConstraint("reason <> '' and remedy <> ''", name="says_why"),
        CheckConstraint("(released_at is null) = (released_by is null)", name="released"),
        Index(
            "uq_quarantine_open",
            "session_key",
            "stage",
            "path",
            unique=True,
            postgresql_where=text("released_at is null"),
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[str] = mapped_column(ForeignKey(Session.key), index=True)
    stage: Mapped[str]
    path: Mapped[str | None]
    reason: Mapped[str] = mapped_column(_Words)
    remedy: Mapped[str] = mapped_column(_Words)
    evidence: Mapped[str] = mapped_column(_Identity)
    run_id: Mapped[str | None]
    since: Mapped[datetime] = _now()
    released_at: Mapped[datetime | None]
    released_by: Mapped[str | None]
    release_reason: Mapped[str | None] = mapped_column(_Words)


class Notification(Base):
    """Something that a channel of lab.yaml must be told, once.

    `subject` names it among those of its kind: a run's id, an entry of the quarantine, a day. `message` is the message
    that carries it, with everything else that waited at that time; a message that failed is tried again unchanged. The
    row is done when it was sent or given up. `unanswered` counts the attempts after which the receiver may have it. No
    row holds a secret: neither the channel's URL nor an answer that quotes it.
    """

    __tablename__ = "notification"
    __table_args__ = (
        UniqueConstraint("kind", "subject", "channel"),
        CheckConstraint("kind in ('run_failure', 'quarantine', 'stale', 'daily_report')", name="kind"),
        CheckConstraint("sent_at is null or given_up_at is null", name="one_end"),
        Index("ix_notification_open", "channel", postgresql_where=text("sent_at is null and given_up_at is null")),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    channel: Mapped[str]
    title: Mapped[str] = mapped_column(_Words)
    body: Mapped[str] = mapped_column(_Words)
    created_at: Mapped[datetime] = _now()
    message: Mapped[str | None] = mapped_column(index=True)
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    unanswered: Mapped[int] = mapped_column(server_default=text("0"))
    next_attempt_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    given_up_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(_Words)


class ScannedRoot(Base):
    """A raw root as the scan knows it; this table and those below are a memory that may be emptied at any time.

    `layout` is a hash of the layout by which its files were assigned. `checked` and `listed` are the folders at which
    the next look goes on: `checked` where it asks folders for their times, `listed` where it lists them whatever their
    times say.
    """

    __tablename__ = "scanned_root"

    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(unique=True)
    layout: Mapped[str] = mapped_column(_Identity)
    checked: Mapped[str] = mapped_column(server_default=text("''"))
    listed: Mapped[str] = mapped_column(server_default=text("''"))
    problem: Mapped[str | None] = mapped_column(_Words)


class ScannedFolder(Base):
    """A folder below a raw root; `path` is the way to it from there and ends with a slash.

    `changed_ns` is its time of change as last seen, and `seen_at` is when that was first seen, by the clock of the host
    that scans. `listed_ns` is its time of change when it was listed: null if it never was, 0 if a later change could
    have left the same time. `session_key` is the session whose folder it is; `left_out` lists name, reason and kind of
    what is not used in it.
    """

    __tablename__ = "scanned_folder"
    __table_args__ = (UniqueConstraint("root_id", "path"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    root_id: Mapped[int] = mapped_column(ForeignKey(ScannedRoot.id, ondelete="CASCADE"))
    path: Mapped[str]
    changed_ns: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[datetime]
    listed_ns: Mapped[int | None] = mapped_column(BigInteger)
    session_key: Mapped[str | None]
    left_out: Mapped[list[str] | None] = mapped_column(_Json(none_as_null=True))


class Sighting(Base):
    """A video file below a raw root as it was last seen; `waits` says why it is not complete, if its name tells.

    `ctime_ns`, the time when its content or its attributes last changed, and `inode` reveal a file that was replaced by
    one of the same size and time.
    """

    __tablename__ = "sighting"

    folder_id: Mapped[int] = mapped_column(ForeignKey(ScannedFolder.id, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    ctime_ns: Mapped[int | None] = mapped_column(BigInteger)
    inode: Mapped[int | None] = mapped_column(BigInteger)
    waits: Mapped[str | None] = mapped_column(_Words)
    session_key: Mapped[str] = mapped_column(index=True)


class WaitingSession(Base):
    """A session whose files changed, and may differ from those that are registered.

    `changed_at` is when a change was last seen, by the clock of the host that scans. `newest_ns` is the time of its
    newest file, which only puts sessions in order. The next look is at `look_at`; the waits double after
    `unready_since`, when the session was first found not to be complete. `held` is the evidence of the quarantine that
    it waits in, and `left_out` lists path, reason and kind of what is wrong with it.
    """

    __tablename__ = "waiting_session"
    session_key: Mapped[str] = mapped_column(primary_key=True)
    newest_ns: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[datetime]
    look_at: Mapped[datetime] = mapped_column(server_default=text("'-infinity'"))
    unready_since: Mapped[datetime | None]
    held: Mapped[str | None]
    left_out: Mapped[list[str] | None] = mapped_column(_Json(none_as_null=True))
