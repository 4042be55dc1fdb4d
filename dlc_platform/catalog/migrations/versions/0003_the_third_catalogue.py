"""the third catalogue: what is missing from a video, the parameters of an inference, and exported networks"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

#: Name, and the query of the second catalogue with new columns at its end: no other change of a view keeps what other
#: views and tools read of it.
VIEWS = (
    (
        "poses_in_force",
        """
select r.session_key as session, r.name as recording, r.camera, f.position, f.path, f.id as recording_file,
       e.id as pose_estimate, e.video_id as video, e.model_id as model, e.origin, e.scorer, e.frames, e.seconds,
       m.run_id, m.materialized_at, e.parameters as inference_parameters, e.frames_lost, w.frames_damaged, w.damage
from dlc.recording r
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
join lateral (
    select x.pose_estimate_id, x.run_id, x.materialized_at
    from dlc.recording_poses x where x.recording_file_id = f.id order by x.id desc limit 1
) m on true
join dlc.pose_estimate e on e.id = m.pose_estimate_id
join dlc.video w on w.id = e.video_id
""",
    ),
    (
        "pose_lineage",
        """
select p.session, p.recording, p.camera, p.position, p.path, p.video, p.pose_estimate, p.origin, p.scorer,
       e.source, p.run_id, p.materialized_at, e.run_id as estimated_by_run, e.estimated_at,
       pe.details ->> 'host' as host, pe.details ->> 'gpu' as gpu, pe.details as estimation_environment,
       v.id as model, v.project, v.origin as model_origin, v.source as model_source, v.weights_sha256,
       v.detector_sha256, t.recipe, t.run_id as training_run, t.trained_at, te.details as training_environment,
       v.parameter_set_id as parameter_set, s.parameters, v.dataset_id as dataset, d.train_images, d.test_images,
       (select array_agg(distinct i.session_key order by i.session_key) from dlc.dataset_image i
        where i.dataset_id = d.id and i.session_key is not null) as labelled_sessions,
       p.inference_parameters, p.frames_lost, p.frames_damaged, p.damage, e.backend, e.device, e.export_id as export
from dlc.poses_in_force p
join dlc.pose_estimate e on e.id = p.pose_estimate
join dlc.environment pe on pe.id = e.environment_id
left join dlc.model_version v on v.id = e.model_id
left join dlc.parameter_set s on s.id = v.parameter_set_id
left join dlc.dataset d on d.id = v.dataset_id
left join lateral (
    select y.recipe, y.run_id, y.trained_at, y.environment_id
    from dlc.training_run y where y.model_id = v.id order by y.id limit 1
) t on true
left join dlc.environment te on te.id = t.environment_id
""",
    ),
)


def upgrade() -> None:
    op.create_table(
        "model_export",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("deviation_px", sa.Double(), nullable=True),
        sa.Column("deviation_likelihood", sa.Double(), nullable=True),
        sa.Column("eager_ms_per_frame", sa.Double(), nullable=False),
        sa.Column("ms_per_frame", sa.Double(), nullable=True),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("environment_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("precision in ('full', 'half')", name=op.f("ck_model_export_precision")),
        sa.CheckConstraint("images >= 0 and eager_ms_per_frame > 0", name=op.f("ck_model_export_measured")),
        sa.ForeignKeyConstraint(["environment_id"], ["dlc.environment.id"], name=op.f("fk_model_export_environment_id")),
        sa.ForeignKeyConstraint(["model_id"], ["dlc.model_version.id"], name=op.f("fk_model_export_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_export")),
        schema="dlc",
    )
    op.create_index(op.f("ix_model_export_model_id"), "model_export", ["model_id"], unique=False, schema="dlc")
    for name in ("frames_lost", "frames_damaged", "frames_missing_at_end"):
        op.add_column("video", sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False), schema="dlc")
    op.add_column(
        "video", sa.Column("truncated", sa.Boolean(), server_default=sa.text("false"), nullable=False), schema="dlc"
    )
    op.add_column("video", sa.Column("duplicated_timestamps", sa.Integer(), nullable=True), schema="dlc")
    op.add_column("video", sa.Column("variable_frame_rate", sa.Boolean(), nullable=True), schema="dlc")
    op.add_column("video", sa.Column("damage", sa.String(), nullable=True), schema="dlc")
    op.add_column("video", sa.Column("decoder", sa.String(), nullable=True), schema="dlc")
    op.create_check_constraint(
        op.f("ck_video_account"),
        "video",
        "frames_lost between 0 and frames and frames_damaged >= 0 and frames_missing_at_end >= 0",
        schema="dlc",
    )
    op.add_column(
        "pose_estimate",
        sa.Column("parameters", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        schema="dlc",
    )
    op.add_column(
        "pose_estimate", sa.Column("frames_lost", sa.Integer(), server_default=sa.text("0"), nullable=False), schema="dlc"
    )
    for column in (
        sa.Column("backend", sa.String(), nullable=True),
        sa.Column("device", sa.String(), nullable=True),
        sa.Column("export_id", sa.String(length=64), nullable=True),
    ):
        op.add_column("pose_estimate", column, schema="dlc")
    op.create_check_constraint(
        op.f("ck_pose_estimate_frames_lost"), "pose_estimate", "frames_lost between 0 and frames", schema="dlc"
    )
    for name, query in VIEWS:
        op.execute(f"create or replace view dlc.{name} as {query}")


def downgrade() -> None:
    raise RuntimeError("The second catalogue cannot hold what the third one does: restore a backup made before")
