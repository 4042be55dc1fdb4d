"""the first catalogue"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dataset",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("bodyparts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("train_images", sa.Integer(), nullable=False),
        sa.Column("test_images", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
        schema="dlc",
    )
    op.create_table(
        "environment",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_environment")),
        schema="dlc",
    )
    op.create_table(
        "parameter_set",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_parameter_set")),
        schema="dlc",
    )
    op.create_table(
        "session",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_session")),
        schema="dlc",
    )
    op.create_table(
        "video",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("frame_rate_numerator", sa.BigInteger(), nullable=False),
        sa.Column("frame_rate_denominator", sa.BigInteger(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("frames_declared", sa.Integer(), nullable=True),
        sa.Column("duration_s", sa.Double(), nullable=False),
        sa.Column("codec", sa.String(), nullable=False),
        sa.Column("pixel_format", sa.String(), nullable=False),
        sa.Column("rotation", sa.Integer(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("frames > 0 and width > 0 and height > 0", name=op.f("ck_video_has_frames")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_video")),
        schema="dlc",
    )
    op.create_table(
        "dataset_build",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("built_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dlc.dataset.id"], name=op.f("fk_dataset_build_dataset_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_build")),
        schema="dlc",
    )
    op.create_index(op.f("ix_dataset_build_recipe"), "dataset_build", ["recipe"], unique=False, schema="dlc")
    op.create_table(
        "dataset_image",
        sa.Column("dataset_id", sa.String(length=64), nullable=False),
        sa.Column("image_id", sa.String(length=64), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("session_key", sa.String(), nullable=True),
        sa.Column("side", sa.String(), nullable=False),
        sa.CheckConstraint("side in ('train', 'test')", name=op.f("ck_dataset_image_side")),
        sa.ForeignKeyConstraint(["dataset_id"], ["dlc.dataset.id"], name=op.f("fk_dataset_image_dataset_id")),
        sa.ForeignKeyConstraint(["session_key"], ["dlc.session.key"], name=op.f("fk_dataset_image_session_key")),
        sa.PrimaryKeyConstraint("dataset_id", "image_id", name=op.f("pk_dataset_image")),
        schema="dlc",
    )
    op.create_index(op.f("ix_dataset_image_session_key"), "dataset_image", ["session_key"], unique=False, schema="dlc")
    op.create_table(
        "model_version",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(length=64), nullable=False),
        sa.Column("parameter_set_id", sa.String(length=64), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("scorer", sa.String(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dlc.dataset.id"], name=op.f("fk_model_version_dataset_id")),
        sa.ForeignKeyConstraint(
            ["parameter_set_id"], ["dlc.parameter_set.id"], name=op.f("fk_model_version_parameter_set_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_version")),
        schema="dlc",
    )
    op.create_table(
        "recording",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("session_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("camera", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("video_id", sa.String(length=64), nullable=True),
        sa.Column("problem", sa.String(), nullable=True),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(video_id is null) <> (problem is null)", name=op.f("ck_recording_video_or_problem")),
        sa.ForeignKeyConstraint(["session_key"], ["dlc.session.key"], name=op.f("fk_recording_session_key")),
        sa.ForeignKeyConstraint(["video_id"], ["dlc.video.id"], name=op.f("fk_recording_video_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recording")),
        schema="dlc",
    )
    op.create_index(op.f("ix_recording_video_id"), "recording", ["video_id"], unique=False, schema="dlc")
    op.create_index(
        "uq_recording_current",
        "recording",
        ["session_key", "name"],
        unique=True,
        schema="dlc",
        postgresql_where=sa.text("replaced_at is null"),
    )
    op.create_table(
        "session_labels",
        sa.Column("session_key", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["session_key"], ["dlc.session.key"], name=op.f("fk_session_labels_session_key")),
        sa.PrimaryKeyConstraint("session_key", "project", name=op.f("pk_session_labels")),
        schema="dlc",
    )
    op.create_table(
        "evaluation",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=64), nullable=False),
        sa.Column("likelihood_cutoff", sa.Double(), nullable=False),
        sa.Column("environment_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("evaluated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dlc.dataset.id"], name=op.f("fk_evaluation_dataset_id")),
        sa.ForeignKeyConstraint(["environment_id"], ["dlc.environment.id"], name=op.f("fk_evaluation_environment_id")),
        sa.ForeignKeyConstraint(["model_id"], ["dlc.model_version.id"], name=op.f("fk_evaluation_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
        schema="dlc",
    )
    op.create_index(op.f("ix_evaluation_model_id"), "evaluation", ["model_id"], unique=False, schema="dlc")
    op.create_table(
        "pose_estimate",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("video_id", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("environment_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("estimated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("frames > 0", name=op.f("ck_pose_estimate_has_frames")),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["dlc.environment.id"], name=op.f("fk_pose_estimate_environment_id")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["dlc.model_version.id"], name=op.f("fk_pose_estimate_model_id")),
        sa.ForeignKeyConstraint(["video_id"], ["dlc.video.id"], name=op.f("fk_pose_estimate_video_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pose_estimate")),
        schema="dlc",
    )
    op.create_index(op.f("ix_pose_estimate_model_id"), "pose_estimate", ["model_id"], unique=False, schema="dlc")
    op.create_index(op.f("ix_pose_estimate_video_id"), "pose_estimate", ["video_id"], unique=False, schema="dlc")
    op.create_table(
        "training_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("epochs", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("environment_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("trained_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["dlc.environment.id"], name=op.f("fk_training_run_environment_id")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["dlc.model_version.id"], name=op.f("fk_training_run_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_run")),
        schema="dlc",
    )
    op.create_index(op.f("ix_training_run_recipe"), "training_run", ["recipe"], unique=False, schema="dlc")
    op.create_table(
        "evaluation_error",
        sa.Column("evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("side", sa.String(), nullable=False),
        sa.Column("bodypart", sa.String(), nullable=False),
        sa.Column("keypoints", sa.Integer(), nullable=False),
        sa.Column("rmse_px", sa.Double(), nullable=True),
        sa.Column("rmse_confident_px", sa.Double(), nullable=True),
        sa.Column("mean_px", sa.Double(), nullable=True),
        sa.Column("median_px", sa.Double(), nullable=True),
        sa.Column("mean_likelihood", sa.Double(), nullable=True),
        sa.Column("fraction_confident", sa.Double(), nullable=True),
        sa.CheckConstraint("side in ('train', 'test')", name=op.f("ck_evaluation_error_side")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["dlc.evaluation.id"], name=op.f("fk_evaluation_error_evaluation_id")
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "side", "bodypart", name=op.f("pk_evaluation_error")),
        schema="dlc",
    )
    op.create_table(
        "pose_summary",
        sa.Column("pose_estimate_id", sa.String(length=64), nullable=False),
        sa.Column("bodypart", sa.String(), nullable=False),
        sa.Column("mean_likelihood", sa.Double(), nullable=True),
        sa.Column("fraction_confident", sa.Double(), nullable=False),
        sa.Column("fraction_missing", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pose_estimate_id"], ["dlc.pose_estimate.id"], name=op.f("fk_pose_summary_pose_estimate_id")
        ),
        sa.PrimaryKeyConstraint("pose_estimate_id", "bodypart", name=op.f("pk_pose_summary")),
        schema="dlc",
    )
    op.create_table(
        "promotion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("evaluation_id", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("weighed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["evaluation_id"], ["dlc.evaluation.id"], name=op.f("fk_promotion_evaluation_id")),
        sa.ForeignKeyConstraint(["model_id"], ["dlc.model_version.id"], name=op.f("fk_promotion_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotion")),
        schema="dlc",
    )
    op.create_index(op.f("ix_promotion_project"), "promotion", ["project"], unique=False, schema="dlc")
    op.create_table(
        "recording_poses",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("pose_estimate_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("materialized_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["pose_estimate_id"], ["dlc.pose_estimate.id"], name=op.f("fk_recording_poses_pose_estimate_id")
        ),
        sa.ForeignKeyConstraint(["recording_id"], ["dlc.recording.id"], name=op.f("fk_recording_poses_recording_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recording_poses")),
        schema="dlc",
    )
    op.create_index(
        op.f("ix_recording_poses_pose_estimate_id"), "recording_poses", ["pose_estimate_id"], unique=False, schema="dlc"
    )
    op.create_index(
        op.f("ix_recording_poses_recording_id"), "recording_poses", ["recording_id"], unique=False, schema="dlc"
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_recording_poses_recording_id"), table_name="recording_poses", schema="dlc")
    op.drop_index(op.f("ix_recording_poses_pose_estimate_id"), table_name="recording_poses", schema="dlc")
    op.drop_table("recording_poses", schema="dlc")
    op.drop_index(op.f("ix_promotion_project"), table_name="promotion", schema="dlc")
    op.drop_table("promotion", schema="dlc")
    op.drop_table("pose_summary", schema="dlc")
    op.drop_table("evaluation_error", schema="dlc")
    op.drop_index(op.f("ix_training_run_recipe"), table_name="training_run", schema="dlc")
    op.drop_table("training_run", schema="dlc")
    op.drop_index(op.f("ix_pose_estimate_video_id"), table_name="pose_estimate", schema="dlc")
    op.drop_index(op.f("ix_pose_estimate_model_id"), table_name="pose_estimate", schema="dlc")
    op.drop_table("pose_estimate", schema="dlc")
    op.drop_index(op.f("ix_evaluation_model_id"), table_name="evaluation", schema="dlc")
    op.drop_table("evaluation", schema="dlc")
    op.drop_table("session_labels", schema="dlc")
    op.drop_index(
        "uq_recording_current", table_name="recording", schema="dlc", postgresql_where=sa.text("replaced_at is null")
    )
    op.drop_index(op.f("ix_recording_video_id"), table_name="recording", schema="dlc")
    op.drop_table("recording", schema="dlc")
    op.drop_table("model_version", schema="dlc")
    op.drop_index(op.f("ix_dataset_image_session_key"), table_name="dataset_image", schema="dlc")
    op.drop_table("dataset_image", schema="dlc")
    op.drop_index(op.f("ix_dataset_build_recipe"), table_name="dataset_build", schema="dlc")
    op.drop_table("dataset_build", schema="dlc")
    op.drop_table("video", schema="dlc")
    op.drop_table("session", schema="dlc")
    op.drop_table("parameter_set", schema="dlc")
    op.drop_table("environment", schema="dlc")
    op.drop_table("dataset", schema="dlc")
