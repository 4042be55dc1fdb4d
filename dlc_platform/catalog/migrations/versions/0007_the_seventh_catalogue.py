"""the seventh catalogue: the fraction of confident keypoints has one denominator, and lists of sessions are quick"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

#: Versions before 0.5 gave 0 to poses that have places and no likelihood at all, which are neither sure nor unsure.
_NOT_SURE = """
update dlc.pose_score set fraction_confident = null
where bodypart <> 'all' and rows is not null and mean_likelihood is null and fraction_missing < 1
  and fraction_confident is not null
returning pose_estimate_id
"""
#: Of everything together: the confident keypoints over those that can be confident. Limbs have no rows.
_OVER_ALL = """
update dlc.pose_score a set fraction_confident = k.confident / nullif(k.keypoints, 0)
from (
    select s.pose_estimate_id, sum(s.fraction_confident * greatest(s.rows - e.frames_lost, 0)) as confident,
           sum(greatest(s.rows - e.frames_lost, 0)) as keypoints
    from dlc.pose_score s
    join dlc.pose_estimate e on e.id = s.pose_estimate_id
    where s.bodypart <> 'all' and s.rows is not null and s.fraction_confident is not null
    group by s.pose_estimate_id
) k
right join unnest(cast(:estimates as text[])) as c (pose_estimate_id) on c.pose_estimate_id = k.pose_estimate_id
where a.pose_estimate_id = c.pose_estimate_id and a.individual = 'all' and a.bodypart = 'all'
"""


def upgrade() -> None:
    connection = op.get_bind()
    changed = sorted(set(connection.scalars(sa.text(_NOT_SURE))))
    if changed:
        connection.execute(sa.text(_OVER_ALL), {"estimates": changed})
    op.drop_table("pose_summary", schema="dlc")
    # The list of sessions begins with the newest, and finds those that do not pass without a look at the others.
    op.create_index("ix_session_registered_at_key", "session", ["registered_at", "key"], schema="dlc")
    op.create_index(
        "ix_pose_verdict_not_pass",
        "pose_verdict",
        ["verdict"],
        schema="dlc",
        postgresql_where=sa.text("verdict <> 'pass'"),
    )


def downgrade() -> None:
    op.drop_index("ix_pose_verdict_not_pass", "pose_verdict", schema="dlc")
    op.drop_index("ix_session_registered_at_key", "session", schema="dlc")
    op.create_table(
        "pose_summary",
        sa.Column("pose_estimate_id", sa.String(length=64), nullable=False),
        sa.Column("bodypart", sa.String(), nullable=False),
        sa.Column("mean_likelihood", sa.Double(), nullable=True),
        sa.Column("fraction_confident", sa.Double(), nullable=False),
        sa.Column("fraction_missing", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "fraction_confident between 0 and 1 and fraction_missing between 0 and 1",
            name=op.f("ck_pose_summary_fractions"),
        ),
        sa.ForeignKeyConstraint(
            ["pose_estimate_id"], ["dlc.pose_estimate.id"], name=op.f("fk_pose_summary_pose_estimate_id")
        ),
        sa.PrimaryKeyConstraint("pose_estimate_id", "bodypart", name=op.f("pk_pose_summary")),
        schema="dlc",
    )
