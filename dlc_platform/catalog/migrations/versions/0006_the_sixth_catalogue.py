"""the sixth catalogue: poses of an empty cage"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

#: Null in scores from before they were measured.
_SCORES = ("no_animal", "background")


def upgrade() -> None:
    for score in _SCORES:
        op.add_column("pose_score", sa.Column(score, sa.Float(), nullable=True), schema="dlc")


def downgrade() -> None:
    for score in _SCORES:
        op.drop_column("pose_score", score, schema="dlc")
