"""the fourth catalogue: what the lab's own tables say of sessions, files that are gone, and sessions in quarantine"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("subject", "session"):
        op.add_column(table, sa.Column("details", postgresql.JSONB(), nullable=True), schema="dlc")
    op.add_column("recording_file", sa.Column("missing_since", sa.DateTime(timezone=True), nullable=True), schema="dlc")
    _quarantine()
    _video_quality()
    _notifications()
    _pose_quality()
    _scan()


def downgrade() -> None:
    # Those that refer to others first; an index goes with its table.
    for table in (
        "waiting_session",
        "sighting",
        "scanned_folder",
        "scanned_root",
        "pose_verdict",
        "pose_score",
        "notification",
        "video_quality",
        "quarantine",
    ):
        op.drop_table(table, schema="dlc")
    op.drop_column("recording_file", "missing_since", schema="dlc")
    for table in ("session", "subject"):
        op.drop_column(table, "details", schema="dlc")


def _scan() -> None:
    op.create_table(
        "scanned_root",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("layout", sa.String(length=64), nullable=False),
        sa.Column("checked", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("listed", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("problem", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scanned_root")),
        sa.UniqueConstraint("path", name=op.f("uq_scanned_root_path")),
        schema="dlc",
    )
    op.create_table(
        "scanned_folder",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("root_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("changed_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("listed_ns", sa.BigInteger(), nullable=True),
        sa.Column("session_key", sa.String(), nullable=True),
        sa.Column("left_out", postgresql.JSONB(), nullable=True),
        sa.ForeignKeyConstraint(
            ["root_id"], ["dlc.scanned_root.id"], name=op.f("fk_scanned_folder_root_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scanned_folder")),
        sa.UniqueConstraint("root_id", "path", name=op.f("uq_scanned_folder_root_id_path")),
        schema="dlc",
    )
    op.create_table(
        "sighting",
        sa.Column("folder_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("waits", sa.String(), nullable=True),
        sa.Column("session_key", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["dlc.scanned_folder.id"], name=op.f("fk_sighting_folder_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "name", name=op.f("pk_sighting")),
        schema="dlc",
    )
    op.create_index(op.f("ix_sighting_session_key"), "sighting", ["session_key"], schema="dlc")
    op.create_table(
        "waiting_session",
        sa.Column("session_key", sa.String(), nullable=False),
        sa.Column("newest_ns", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("look_at", sa.DateTime(timezone=True), server_default=sa.text("'-infinity'"), nullable=False),
        sa.Column("unready_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held", sa.String(), nullable=True),
        sa.Column("left_out", postgresql.JSONB(), nullable=True),
        sa.PrimaryKeyConstraint("session_key", name=op.f("pk_waiting_session")),
        schema="dlc",
    )


def _quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("session_key", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("remedy", sa.String(), nullable=False),
        sa.Column("evidence", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("released_by", sa.String(), nullable=True),
        sa.Column("release_reason", sa.String(), nullable=True),
        sa.CheckConstraint("stage in ('videos', 'labels', 'poses', 'quality')", name=op.f("ck_quarantine_stage")),
        sa.CheckConstraint("reason <> '' and remedy <> ''", name=op.f("ck_quarantine_says_why")),
        sa.CheckConstraint("(released_at is null) = (released_by is null)", name=op.f("ck_quarantine_released")),
        sa.ForeignKeyConstraint(["session_key"], ["dlc.session.key"], name=op.f("fk_quarantine_session_key")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
        schema="dlc",
    )
    op.create_index(op.f("ix_quarantine_session_key"), "quarantine", ["session_key"], schema="dlc")
    op.create_index(
        "uq_quarantine_open",
        "quarantine",
        ["session_key", "stage", "path"],
        unique=True,
        schema="dlc",
        postgresql_where=sa.text("released_at is null"),
        postgresql_nulls_not_distinct=True,
    )


def _notifications() -> None:
    op.create_table(
        "notification",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("unanswered", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("given_up_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.CheckConstraint(
            "kind in ('run_failure', 'quarantine', 'stale', 'daily_report')", name=op.f("ck_notification_kind")
        ),
        sa.CheckConstraint("sent_at is null or given_up_at is null", name=op.f("ck_notification_one_end")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification")),
        sa.UniqueConstraint("kind", "subject", "channel", name=op.f("uq_notification_kind_subject_channel")),
        schema="dlc",
    )
    op.create_index(op.f("ix_notification_message"), "notification", ["message"], schema="dlc")
    op.create_index(
        "ix_notification_open",
        "notification",
        ["channel"],
        schema="dlc",
        postgresql_where=sa.text("sent_at is null and given_up_at is null"),
    )


def _pose_quality() -> None:
    scores = (
        "mean_likelihood",
        "fraction_confident",
        "fraction_missing",
        "jumps",
        "unsure_jumps",
        "swaps",
        "limb_outliers",
        "outside",
        "reprojection_px",
        "temporal_norm_px",
    )
    op.create_table(
        "pose_score",
        sa.Column("pose_estimate_id", sa.String(length=64), nullable=False),
        sa.Column("individual", sa.String(), nullable=False),
        sa.Column("bodypart", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=True),
        *(sa.Column(score, sa.Float(), nullable=True) for score in scores),
        sa.ForeignKeyConstraint(
            ["pose_estimate_id"], ["dlc.pose_estimate.id"], name=op.f("fk_pose_score_pose_estimate_id")
        ),
        sa.PrimaryKeyConstraint("pose_estimate_id", "individual", "bodypart", name=op.f("pk_pose_score")),
        schema="dlc",
    )
    op.create_table(
        "pose_verdict",
        sa.Column("pose_estimate_id", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        *(sa.Column(name, postgresql.JSONB(), nullable=False) for name in ("basis", "limits", "findings")),
        sa.Column("evaluation_id", sa.String(length=64), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("judged_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("verdict in ('pass', 'warn', 'fail')", name=op.f("ck_pose_verdict_verdict")),
        sa.ForeignKeyConstraint(
            ["pose_estimate_id"], ["dlc.pose_estimate.id"], name=op.f("fk_pose_verdict_pose_estimate_id")
        ),
        sa.ForeignKeyConstraint(["evaluation_id"], ["dlc.evaluation.id"], name=op.f("fk_pose_verdict_evaluation_id")),
        sa.PrimaryKeyConstraint("pose_estimate_id", name=op.f("pk_pose_verdict")),
        schema="dlc",
    )


def _video_quality() -> None:
    op.create_table(
        "video_quality",
        sa.Column("video_id", sa.String(length=64), nullable=False),
        sa.Column("exposure", sa.Float(), nullable=True),
        sa.Column("fraction_dark", sa.Float(), nullable=True),
        sa.Column("fraction_bright", sa.Float(), nullable=True),
        sa.Column("focus", sa.Float(), nullable=True),
        sa.Column("black", postgresql.JSONB(), nullable=False),
        sa.Column("frozen", postgresql.JSONB(), nullable=False),
        sa.Column("black_s", sa.Float(), nullable=False),
        sa.Column("frozen_s", sa.Float(), nullable=False),
        sa.Column("dropped", sa.Integer(), nullable=True),
        sa.Column("longest_gap_s", sa.Float(), nullable=True),
        sa.Column("jitter_ms", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["video_id"], ["dlc.video.id"], name=op.f("fk_video_quality_video_id")),
        sa.PrimaryKeyConstraint("video_id", name=op.f("pk_video_quality")),
        schema="dlc",
    )
