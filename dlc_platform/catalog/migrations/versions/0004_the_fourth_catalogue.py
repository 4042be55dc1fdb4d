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
    _scan()


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
