"""the fifth catalogue: what keeps a number from being silently wrong"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BEST_MODELS = """
create view dlc.best_models as
select c.project, x.bodypart,
       rank() over (partition by c.id, x.bodypart order by {order}) as rank,
       x.model_id as model, {images}x.keypoints, {missed}x.rmse_px, x.rmse_low_px, x.rmse_high_px, x.rmse_confident_px,
       x.fraction_confident, c.test_images, {known}x.evaluation_id as evaluation, q.model is not null as production,
       c.id as comparison, c.made_at
from (select distinct on (project) * from dlc.comparison order by project, made_at desc, id) c
join dlc.comparison_error x on x.comparison_id = c.id
join dlc.evaluation e on e.id = x.evaluation_id
left join dlc.production_models q on q.project = c.project and q.model = x.model_id
where x.rmse_px is not null
"""
_ABOUT_BEST_MODELS = (
    "Which model is best on the frozen test images, by body part (all: over those that every version knows)?"
)

#: What is known of a file beyond its size and time; null where nobody has looked since.
_STATUS = (("recording_file", "ctime_ns"), ("recording_file", "inode"), ("sighting", "ctime_ns"), ("sighting", "inode"))

#: When a lab from before this table registered its first thing.
_FIRST = """
select 1, coalesce(least(
    (select min(registered_at) from dlc.session), (select min(registered_at) from dlc.video),
    (select min(registered_at) from dlc.model_version), (select min(made_at) from dlc.dataset),
    (select min(counted_at) from dlc.session_labels)
), now())
"""

#: What the account of a video's frames counts besides; null for videos that nobody has read since.
_ACCOUNT = ("frames_left_out", "times_reordered", "times_estimated", "clock_resets")


def upgrade() -> None:
    _migrations()
    _floors()
    _test_errors()
    _files()
    _beginning()


def downgrade() -> None:
    op.drop_column("promotion", "warning", schema="dlc")
    op.drop_column("pose_verdict", "floors", schema="dlc")
    for score in _SCORES:
        op.drop_column("pose_score", score, schema="dlc")
    op.drop_table("migration", schema="dlc")
    op.drop_table("lab_beginning", schema="dlc")
    for column in ("video_streams", *_ACCOUNT):
        op.drop_column("video", column, schema="dlc")
    for table, column in _STATUS:
        op.drop_column(table, column, schema="dlc")
    op.execute("drop view dlc.best_models")
    op.execute(_BEST_MODELS.format(order="x.rmse_px", images="", missed="", known=""))
    op.execute(f"comment on view dlc.best_models is '{_ABOUT_BEST_MODELS}'")
    for table, columns in (
        ("evaluation", ("test_images", "taught_images", "training_known")),
        ("evaluation_error", ("missed",)),
        ("evaluation_session_error", ("missed",)),
        ("comparison_error", ("images", "missed")),
        ("promotion", ("test_rmse_px", "test_images")),
    ):
        for column in columns:
            op.drop_column(table, column, schema="dlc")


def _test_errors() -> None:
    """Test errors are over images that the version was not trained on, and their number stands beside them."""
    for table, column in (
        ("evaluation", sa.Column("test_images", sa.Integer(), nullable=True)),
        ("evaluation", sa.Column("taught_images", sa.Integer(), nullable=True)),
        ("evaluation", sa.Column("training_known", sa.Boolean(), nullable=True)),
        ("evaluation_error", sa.Column("missed", sa.Integer(), nullable=True)),
        ("evaluation_session_error", sa.Column("missed", sa.Integer(), nullable=True)),
        ("comparison_error", sa.Column("images", sa.Integer(), nullable=True)),
        ("comparison_error", sa.Column("missed", sa.Integer(), nullable=True)),
        ("promotion", sa.Column("test_rmse_px", sa.Float(), nullable=True)),
        ("promotion", sa.Column("test_images", sa.Integer(), nullable=True)),
    ):
        op.add_column(table, column, schema="dlc")
    # What was evaluated on images that it was not trained on keeps its errors, ...
    op.execute(
        """
update dlc.evaluation e
set test_images = d.test_images, taught_images = 0, training_known = m.dataset_id is not null
from dlc.model_version m, dlc.dataset d
where m.id = e.model_id and d.id = e.dataset_id and not exists (
    select from dlc.dataset_image i
    join dlc.dataset_image t on t.dataset_id = m.dataset_id and t.side = 'train'
        and (t.image_id = i.image_id or t.folder = i.folder and t.file = i.file)
    where i.dataset_id = e.dataset_id and i.side = 'test'
)
"""
    )
    # ... and errors that are partly those of training images go; `model_comparison` reads them from the store again.
    for table in ("evaluation_error", "evaluation_session_error"):
        op.execute(
            f"delete from dlc.{table} x using dlc.evaluation e where e.id = x.evaluation_id and e.test_images is null"
        )
    # The rule wrote down what it weighed; of other promotions the evaluation says it.
    op.execute(
        r"""
update dlc.promotion p
set test_rmse_px = substring(p.reason from '^test RMSE ([0-9.]+) px, against')::float,
    test_images = substring(p.reason from 'on the ([0-9]+) test images they share')::int
where p.kind = 'rule' and p.reason ~ '^test RMSE [0-9.]+ px, against .* on the [0-9]+ test images they share'
"""
    )
    op.execute(
        """
update dlc.promotion p
set test_rmse_px = x.rmse_px, test_images = e.test_images
from dlc.evaluation e
join dlc.evaluation_error x on x.evaluation_id = e.id and x.side = 'test' and x.bodypart = 'all'
where p.evaluation_id = e.id and p.kind <> 'rule' and e.test_images is not null
"""
    )
    op.execute(
        """
update dlc.comparison_error x set rmse_low_px = null, rmse_high_px = null
from dlc.comparison c where c.id = x.comparison_id and c.test_images < 6
"""
    )
    op.execute("drop view dlc.best_models")
    op.execute(
        _BEST_MODELS.format(
            order="coalesce(x.missed, 0), x.rmse_px",
            images="x.images, ",
            missed="x.missed, ",
            known="e.training_known, ",
        )
    )
    op.execute(f"comment on view dlc.best_models is '{_ABOUT_BEST_MODELS}'")


def _files() -> None:
    for table, column in _STATUS:
        op.add_column(table, sa.Column(column, sa.BigInteger(), nullable=True), schema="dlc")
    for column in ("video_streams", *_ACCOUNT):
        op.add_column("video", sa.Column(column, sa.Integer(), nullable=True), schema="dlc")
    # No recording began then, and programs fail at such times.
    op.execute("update dlc.video set start_time = null where start_time >= '2200-01-01 00:00:00+00'")


def _beginning() -> None:
    op.create_table(
        "lab_beginning",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_lab_beginning_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lab_beginning")),
        schema="dlc",
    )
    op.execute(f"insert into dlc.lab_beginning (id, began_at) {_FIRST}")


def _migrations() -> None:
    """The tables remember which version of the platform made them."""
    op.create_table(
        "migration",
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("platform", sa.String(), nullable=False),
        sa.Column("migrated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_migration")),
        schema="dlc",
    )


_SCORES = ("confident_when_seen", "fraction_empty", "still", "still_in_motion")


def _floors() -> None:
    """Add the columns of the floors that poses must keep whatever their model does, and of the warning of a
    promotion."""
    for score in _SCORES:
        op.add_column("pose_score", sa.Column(score, sa.Float(), nullable=True), schema="dlc")
    op.add_column("pose_verdict", sa.Column("floors", postgresql.JSONB(), nullable=True), schema="dlc")
    op.add_column("promotion", sa.Column("warning", sa.String(), nullable=True), schema="dlc")
