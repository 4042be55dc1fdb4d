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
