"""the second catalogue: recordings of several files, skeletons, recipes' versions, imports, comparisons, and the views"""

import hashlib
import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: Name, what it answers, and the query. A later change of a view is a migration of its own.
VIEWS = (
    (
        "production_models",
        "The production model of each project: who decided for it, when and why.",
        """
select distinct on (project) project, model_id as model, evaluation_id as evaluation, kind, promoted_by, reason,
       promoted_at, run_id, id as promotion
from dlc.promotion
order by project, id desc
""",
    ),
    (
        "poses_in_force",
        "The poses of each current file of each recording: those that were materialised last.",
        """
select r.session_key as session, r.name as recording, r.camera, f.position, f.path, f.id as recording_file,
       e.id as pose_estimate, e.video_id as video, e.model_id as model, e.origin, e.scorer, e.frames, e.seconds,
       m.run_id, m.materialized_at
from dlc.recording r
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
join lateral (
    select x.pose_estimate_id, x.run_id, x.materialized_at
    from dlc.recording_poses x where x.recording_file_id = f.id order by x.id desc limit 1
) m on true
join dlc.pose_estimate e on e.id = m.pose_estimate_id
""",
    ),
    (
        "pose_lineage",
        "Which model, trained on which labels, with which parameters, on which machine, made the poses of a session?",
        """
select p.session, p.recording, p.camera, p.position, p.path, p.video, p.pose_estimate, p.origin, p.scorer,
       e.source, p.run_id, p.materialized_at, e.run_id as estimated_by_run, e.estimated_at,
       pe.details ->> 'host' as host, pe.details ->> 'gpu' as gpu, pe.details as estimation_environment,
       v.id as model, v.project, v.origin as model_origin, v.source as model_source, v.weights_sha256,
       v.detector_sha256, t.recipe, t.run_id as training_run, t.trained_at, te.details as training_environment,
       v.parameter_set_id as parameter_set, s.parameters, v.dataset_id as dataset, d.train_images, d.test_images,
       (select array_agg(distinct i.session_key order by i.session_key) from dlc.dataset_image i
        where i.dataset_id = d.id and i.session_key is not null) as labelled_sessions
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
    (
        "model_sessions",
        "Which sessions did a model touch? Those whose labels taught it or tested it, and those that it tracked.",
        """
select v.id as model, v.project, i.session_key as session,
       case i.side when 'train' then 'taught' else 'tested' end as role, count(*) as images, null::bigint as frames
from dlc.model_version v
join dlc.dataset_image i on i.dataset_id = v.dataset_id
where i.session_key is not null
group by v.id, v.project, i.session_key, i.side
union all
select e.model_id, v.project, s.session_key, 'tracked', null, sum(e.frames)
from dlc.pose_estimate e
join dlc.model_version v on v.id = e.model_id
join lateral (
    select distinct r.session_key
    from dlc.recording_poses m
    join dlc.recording_file f on f.id = m.recording_file_id
    join dlc.recording r on r.id = f.recording_id
    where m.pose_estimate_id = e.id
) s on true
group by e.model_id, v.project, s.session_key
""",
    ),
    (
        "stale_sessions",
        "Which sessions are stale: poses in force that were not made by the production model of the project of their camera?",
        """
select p.session, c.project, q.model as production_model, q.promotion, array_agg(distinct p.model) as models,
       bool_and(p.origin = 'imported') as imported, count(*) as files, sum(p.frames) as frames,
       coalesce(min(v.start_time), min(s.registered_at)) as recorded_at
from dlc.poses_in_force p
join dlc.camera c on c.name = p.camera
join dlc.production_models q on q.project = c.project
join dlc.session s on s.key = p.session
join dlc.video v on v.id = p.video
where p.model is distinct from q.model
group by p.session, c.project, q.model, q.promotion
""",
    ),
    (
        "best_models",
        "Which model is best on the frozen test images, by body part (all: over those that every version knows)?",
        """
select c.project, x.bodypart, rank() over (partition by c.id, x.bodypart order by x.rmse_px) as rank,
       x.model_id as model, x.keypoints, x.rmse_px, x.rmse_low_px, x.rmse_high_px, x.rmse_confident_px,
       x.fraction_confident, c.test_images, x.evaluation_id as evaluation, q.model is not null as production,
       c.id as comparison, c.made_at
from (select distinct on (project) * from dlc.comparison order by project, made_at desc, id) c
join dlc.comparison_error x on x.comparison_id = c.id
left join dlc.production_models q on q.project = c.project and q.model = x.model_id
where x.rmse_px is not null
""",
    ),
)


def upgrade() -> None:
    op.create_table(
        "camera",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_camera")),
        schema="dlc",
    )
    op.create_table(
        "skeleton",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_skeleton")),
        schema="dlc",
    )
    op.create_table(
        "subject",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_subject")),
        schema="dlc",
    )
    op.create_table(
        "bodypart",
        sa.Column("skeleton_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.CheckConstraint("name <> 'all'", name=op.f("ck_bodypart_name")),
        sa.CheckConstraint("position >= 0", name=op.f("ck_bodypart_position")),
        sa.ForeignKeyConstraint(["skeleton_id"], ["dlc.skeleton.id"], name=op.f("fk_bodypart_skeleton_id")),
        sa.PrimaryKeyConstraint("skeleton_id", "name", name=op.f("pk_bodypart")),
        sa.UniqueConstraint("skeleton_id", "position", name=op.f("uq_bodypart_skeleton_id_position")),
        schema="dlc",
    )
    op.create_table(
        "recipe_version",
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("parameter_set_id", sa.String(length=64), nullable=False),
        sa.Column("first_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("version > 0", name=op.f("ck_recipe_version_version")),
        sa.ForeignKeyConstraint(
            ["parameter_set_id"], ["dlc.parameter_set.id"], name=op.f("fk_recipe_version_parameter_set_id")
        ),
        sa.PrimaryKeyConstraint("recipe", "version", name=op.f("pk_recipe_version")),
        schema="dlc",
    )
    op.create_index(
        op.f("ix_recipe_version_parameter_set_id"), "recipe_version", ["parameter_set_id"], unique=False, schema="dlc"
    )
    op.create_table(
        "comparison",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(length=64), nullable=False),
        sa.Column("test_images", sa.Integer(), nullable=False),
        sa.Column("likelihood_cutoff", sa.Double(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("likelihood_cutoff between 0 and 1", name=op.f("ck_comparison_likelihood_cutoff")),
        sa.CheckConstraint("test_images > 0", name=op.f("ck_comparison_has_images")),
        sa.ForeignKeyConstraint(["dataset_id"], ["dlc.dataset.id"], name=op.f("fk_comparison_dataset_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        schema="dlc",
    )
    op.create_index("ix_comparison_project_made_at", "comparison", ["project", "made_at"], unique=False, schema="dlc")
    op.create_table(
        "skeleton_edge",
        sa.Column("skeleton_id", sa.String(length=64), nullable=False),
        sa.Column("bodypart_a", sa.String(), nullable=False),
        sa.Column("bodypart_b", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["skeleton_id", "bodypart_a"],
            ["dlc.bodypart.skeleton_id", "dlc.bodypart.name"],
            name=op.f("fk_skeleton_edge_skeleton_id_bodypart_a"),
        ),
        sa.ForeignKeyConstraint(
            ["skeleton_id", "bodypart_b"],
            ["dlc.bodypart.skeleton_id", "dlc.bodypart.name"],
            name=op.f("fk_skeleton_edge_skeleton_id_bodypart_b"),
        ),
        sa.PrimaryKeyConstraint("skeleton_id", "bodypart_a", "bodypart_b", name=op.f("pk_skeleton_edge")),
        schema="dlc",
    )
    op.create_table(
        "recording_file",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("video_id", sa.String(length=64), nullable=True),
        sa.Column("problem", sa.String(), nullable=True),
        sa.Column("registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(video_id is null) <> (problem is null)", name=op.f("ck_recording_file_video_or_problem")),
        sa.CheckConstraint("position >= 0", name=op.f("ck_recording_file_position")),
        sa.ForeignKeyConstraint(["recording_id"], ["dlc.recording.id"], name=op.f("fk_recording_file_recording_id")),
        sa.ForeignKeyConstraint(["video_id"], ["dlc.video.id"], name=op.f("fk_recording_file_video_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recording_file")),
        schema="dlc",
    )
    op.create_index(
        op.f("ix_recording_file_recording_id"), "recording_file", ["recording_id"], unique=False, schema="dlc"
    )
    op.create_index(op.f("ix_recording_file_video_id"), "recording_file", ["video_id"], unique=False, schema="dlc")
    op.create_index(
        "uq_recording_file_current",
        "recording_file",
        ["recording_id", "position"],
        unique=True,
        schema="dlc",
        postgresql_where=sa.text("replaced_at is null"),
    )
    op.create_table(
        "comparison_error",
        sa.Column("comparison_id", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("bodypart", sa.String(), nullable=False),
        sa.Column("evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("keypoints", sa.Integer(), nullable=False),
        sa.Column("rmse_px", sa.Double(), nullable=True),
        sa.Column("rmse_low_px", sa.Double(), nullable=True),
        sa.Column("rmse_high_px", sa.Double(), nullable=True),
        sa.Column("rmse_confident_px", sa.Double(), nullable=True),
        sa.Column("fraction_confident", sa.Double(), nullable=True),
        sa.CheckConstraint("rmse_low_px <= rmse_high_px", name=op.f("ck_comparison_error_interval")),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["dlc.comparison.id"], name=op.f("fk_comparison_error_comparison_id")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["dlc.evaluation.id"], name=op.f("fk_comparison_error_evaluation_id")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["dlc.model_version.id"], name=op.f("fk_comparison_error_model_id")),
        sa.PrimaryKeyConstraint("comparison_id", "model_id", "bodypart", name=op.f("pk_comparison_error")),
        schema="dlc",
    )
    op.create_table(
        "evaluation_session_error",
        sa.Column("evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("side", sa.String(), nullable=False),
        sa.Column("session_key", sa.String(), nullable=False),
        sa.Column("keypoints", sa.Integer(), nullable=False),
        sa.Column("rmse_px", sa.Double(), nullable=True),
        sa.Column("rmse_confident_px", sa.Double(), nullable=True),
        sa.Column("mean_px", sa.Double(), nullable=True),
        sa.Column("median_px", sa.Double(), nullable=True),
        sa.Column("mean_likelihood", sa.Double(), nullable=True),
        sa.Column("fraction_confident", sa.Double(), nullable=True),
        sa.CheckConstraint("side in ('train', 'test')", name=op.f("ck_evaluation_session_error_side")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["dlc.evaluation.id"], name=op.f("fk_evaluation_session_error_evaluation_id")
        ),
        sa.ForeignKeyConstraint(
            ["session_key"], ["dlc.session.key"], name=op.f("fk_evaluation_session_error_session_key")
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "side", "session_key", name=op.f("pk_evaluation_session_error")),
        schema="dlc",
    )
    op.create_index(
        op.f("ix_evaluation_session_error_session_key"),
        "evaluation_session_error",
        ["session_key"],
        unique=False,
        schema="dlc",
    )
    op.add_column("dataset", sa.Column("skeleton_id", sa.String(length=64), nullable=True), schema="dlc")
    op.add_column("dataset", sa.Column("seed", sa.BigInteger(), nullable=True), schema="dlc")
    op.add_column("dataset", sa.Column("test_fraction", sa.Double(), nullable=True), schema="dlc")
    op.add_column("dataset", sa.Column("environment_id", sa.String(length=64), nullable=True), schema="dlc")
    op.add_column("dataset", sa.Column("manifest_sha256", sa.String(length=64), nullable=True), schema="dlc")
    op.create_foreign_key(
        op.f("fk_dataset_environment_id"),
        "dataset",
        "environment",
        ["environment_id"],
        ["id"],
        source_schema="dlc",
        referent_schema="dlc",
    )
    op.add_column("evaluation", sa.Column("seconds", sa.Double(), nullable=True), schema="dlc")
    op.add_column("evaluation", sa.Column("manifest_sha256", sa.String(length=64), nullable=True), schema="dlc")
    op.drop_index(op.f("ix_evaluation_model_id"), table_name="evaluation", schema="dlc")
    op.create_index(op.f("ix_evaluation_dataset_id"), "evaluation", ["dataset_id"], unique=False, schema="dlc")
    op.create_unique_constraint(
        op.f("uq_evaluation_model_id_dataset_id"), "evaluation", ["model_id", "dataset_id"], schema="dlc"
    )
    op.add_column("model_version", sa.Column("origin", sa.String(), nullable=True), schema="dlc")
    op.add_column("model_version", sa.Column("skeleton_id", sa.String(length=64), nullable=True), schema="dlc")
    op.add_column("model_version", sa.Column("net_type", sa.String(), nullable=True), schema="dlc")
    op.add_column("model_version", sa.Column("detector_sha256", sa.String(length=64), nullable=True), schema="dlc")
    op.add_column(
        "model_version",
        sa.Column("source", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        schema="dlc",
    )
    op.add_column("model_version", sa.Column("manifest_sha256", sa.String(length=64), nullable=True), schema="dlc")
    op.alter_column("model_version", "dataset_id", existing_type=sa.VARCHAR(length=64), nullable=True, schema="dlc")
    op.alter_column(
        "model_version", "parameter_set_id", existing_type=sa.VARCHAR(length=64), nullable=True, schema="dlc"
    )
    op.create_index(op.f("ix_model_version_dataset_id"), "model_version", ["dataset_id"], unique=False, schema="dlc")
    op.create_index(
        op.f("ix_model_version_parameter_set_id"), "model_version", ["parameter_set_id"], unique=False, schema="dlc"
    )
    op.create_index(op.f("ix_model_version_project"), "model_version", ["project"], unique=False, schema="dlc")
    op.add_column("pose_estimate", sa.Column("origin", sa.String(), nullable=True), schema="dlc")
    op.add_column("pose_estimate", sa.Column("scorer", sa.String(), nullable=True), schema="dlc")
    op.add_column(
        "pose_estimate",
        sa.Column("source", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        schema="dlc",
    )
    op.add_column("pose_estimate", sa.Column("manifest_sha256", sa.String(length=64), nullable=True), schema="dlc")
    op.alter_column("pose_estimate", "model_id", existing_type=sa.VARCHAR(length=64), nullable=True, schema="dlc")
    op.alter_column(
        "pose_estimate", "seconds", existing_type=sa.DOUBLE_PRECISION(precision=53), nullable=True, schema="dlc"
    )
    op.alter_column("pose_estimate", "run_id", existing_type=sa.VARCHAR(), nullable=True, schema="dlc")
    op.add_column("promotion", sa.Column("kind", sa.String(), nullable=True), schema="dlc")
    op.add_column("promotion", sa.Column("promoted_by", sa.String(), nullable=True), schema="dlc")
    op.add_column("promotion", sa.Column("previous_id", sa.Integer(), nullable=True), schema="dlc")
    op.alter_column("promotion", "run_id", existing_type=sa.VARCHAR(), nullable=True, schema="dlc")
    op.drop_index(op.f("ix_promotion_project"), table_name="promotion", schema="dlc")
    op.create_index(op.f("ix_promotion_model_id"), "promotion", ["model_id"], unique=False, schema="dlc")
    op.create_foreign_key(
        op.f("fk_promotion_previous_id"),
        "promotion",
        "promotion",
        ["previous_id"],
        ["id"],
        source_schema="dlc",
        referent_schema="dlc",
    )
    op.create_index(op.f("ix_session_subject"), "session", ["subject"], unique=False, schema="dlc")
    op.create_index(op.f("ix_training_run_model_id"), "training_run", ["model_id"], unique=False, schema="dlc")
    op.add_column("video", sa.Column("start_time", sa.DateTime(timezone=True), nullable=True), schema="dlc")
    op.add_column("video", sa.Column("environment_id", sa.String(length=64), nullable=True), schema="dlc")
    op.create_foreign_key(
        op.f("fk_video_environment_id"),
        "video",
        "environment",
        ["environment_id"],
        ["id"],
        source_schema="dlc",
        referent_schema="dlc",
    )
    _fill_recordings()
    _fill_skeletons()
    op.execute(
        "update dlc.model_version m set origin = 'trained', net_type = s.parameters ->> 'net_type' "
        "from dlc.parameter_set s where s.id = m.parameter_set_id"
    )
    op.execute(
        "update dlc.pose_estimate e set origin = 'computed', scorer = m.scorer from dlc.model_version m "
        "where m.id = e.model_id"
    )
    # Who promoted was not written down, but a person's reason is none of the rule's sentences.
    op.execute(
        "update dlc.promotion p set reason = coalesce(nullif(reason, ''), 'not written down'), "
        "kind = case when reason = 'the first evaluated version' then 'first' when reason like 'test RMSE %' "
        "then 'rule' else 'person' end, promoted_by = case when reason = 'the first evaluated version' or reason like "
        "'test RMSE %' then 'the rule of lab.yaml' else 'not written down' end, previous_id = (select max(q.id) from "
        "dlc.promotion q where q.project = p.project and q.id < p.id)"
    )
    op.execute(
        """
insert into dlc.recipe_version (recipe, version, project, parameter_set_id, first_used_at)
select recipe, row_number() over (partition by recipe order by first), project, parameter_set_id, first
from (select t.recipe, m.project, m.parameter_set_id, min(t.trained_at) as first
      from dlc.training_run t join dlc.model_version m on m.id = t.model_id
      group by t.recipe, m.project, m.parameter_set_id) used
"""
    )
    for table, column in (
        ("dataset", "skeleton_id"),
        ("model_version", "origin"),
        ("model_version", "skeleton_id"),
        ("pose_estimate", "origin"),
        ("pose_estimate", "scorer"),
        ("promotion", "kind"),
        ("promotion", "promoted_by"),
    ):
        op.alter_column(table, column, nullable=False, schema="dlc")
    op.create_foreign_key(
        op.f("fk_session_subject"),
        "session",
        "subject",
        ["subject"],
        ["key"],
        source_schema="dlc",
        referent_schema="dlc",
    )
    op.create_foreign_key(
        op.f("fk_dataset_skeleton_id"),
        "dataset",
        "skeleton",
        ["skeleton_id"],
        ["id"],
        source_schema="dlc",
        referent_schema="dlc",
    )
    op.create_foreign_key(
        op.f("fk_model_version_skeleton_id"),
        "model_version",
        "skeleton",
        ["skeleton_id"],
        ["id"],
        source_schema="dlc",
        referent_schema="dlc",
    )
    op.create_unique_constraint(
        op.f("uq_promotion_project_previous_id"),
        "promotion",
        ["project", "previous_id"],
        schema="dlc",
        postgresql_nulls_not_distinct=True,
    )
    op.drop_column("dataset", "bodyparts", schema="dlc")
    for table, name, condition in (
        ("video", "has_time", "frame_rate_numerator > 0 and frame_rate_denominator > 0 and duration_s > 0"),
        ("video", "rotation", "rotation in (0, 90, 180, 270)"),
        ("dataset", "has_images", "train_images > 0 and test_images > 0"),
        ("dataset", "test_fraction", "test_fraction > 0 and test_fraction < 1"),
        (
            "model_version",
            "origin",
            "origin = 'imported' and source is not null or origin = 'trained' and dataset_id is not null and "
            "parameter_set_id is not null",
        ),
        ("training_run", "took_time", "epochs > 0 and seconds >= 0"),
        ("evaluation", "likelihood_cutoff", "likelihood_cutoff between 0 and 1"),
        ("promotion", "kind", "kind in ('first', 'rule', 'person', 'rollback')"),
        ("promotion", "says_why", "reason <> '' and promoted_by <> ''"),
        (
            "pose_estimate",
            "origin",
            "origin = 'imported' and source is not null or origin = 'computed' and model_id is not null and "
            "seconds is not null and run_id is not null",
        ),
        ("pose_summary", "fractions", "fraction_confident between 0 and 1 and fraction_missing between 0 and 1"),
    ):
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition, schema="dlc")
    for name, answers, query in VIEWS:
        op.execute(f"create view dlc.{name} as {query}")
        op.execute(f"comment on view dlc.{name} is '{answers}'")


def _fill_recordings() -> None:
    """A recording was one row for each state of its file; now it is one row, and its file's states are rows of theirs."""
    op.execute("insert into dlc.subject (key) select distinct subject from dlc.session")
    op.execute("insert into dlc.camera (name) select distinct camera from dlc.recording")
    op.execute(
        """
insert into dlc.recording_file
    (id, recording_id, position, path, size_bytes, mtime_ns, video_id, problem, registered_at, replaced_at)
select id, min(id) over (partition by session_key, name), 0, path, size_bytes, mtime_ns, video_id, problem,
       registered_at, replaced_at
from dlc.recording
"""
    )
    op.execute(
        "select setval(pg_get_serial_sequence('dlc.recording_file', 'id'), (select max(id) from dlc.recording_file))"
    )
    op.drop_index("ix_recording_poses_recording_id", table_name="recording_poses", schema="dlc")
    op.drop_constraint("fk_recording_poses_recording_id", "recording_poses", schema="dlc", type_="foreignkey")
    op.alter_column("recording_poses", "recording_id", new_column_name="recording_file_id", schema="dlc")
    op.alter_column("recording_poses", "run_id", nullable=True, schema="dlc")
    op.create_index(
        "ix_recording_poses_recording_file_id_id", "recording_poses", ["recording_file_id", "id"], schema="dlc"
    )
    op.create_foreign_key(
        "fk_recording_poses_recording_file_id",
        "recording_poses",
        "recording_file",
        ["recording_file_id"],
        ["id"],
        source_schema="dlc",
        referent_schema="dlc",
    )
    # The camera is what the newest state says.
    op.execute(
        """
update dlc.recording r set camera = newest.camera
from (select distinct on (session_key, name) session_key, name, camera from dlc.recording
      order by session_key, name, id desc) newest
where newest.session_key = r.session_key and newest.name = r.name
"""
    )
    op.drop_index("ix_recording_video_id", table_name="recording", schema="dlc")
    op.drop_index("uq_recording_current", table_name="recording", schema="dlc")
    op.execute("delete from dlc.recording where id not in (select recording_id from dlc.recording_file)")
    for column in ("path", "size_bytes", "mtime_ns", "problem", "video_id", "replaced_at"):
        op.drop_column("recording", column, schema="dlc")
    op.create_index("ix_recording_camera", "recording", ["camera"], schema="dlc")
    op.create_unique_constraint("uq_recording_session_key_name", "recording", ["session_key", "name"], schema="dlc")
    op.create_foreign_key(
        "fk_recording_camera",
        "recording",
        "camera",
        ["camera"],
        ["name"],
        source_schema="dlc",
        referent_schema="dlc",
    )


def _fill_skeletons() -> None:
    """The lines between body parts were not written down, so the skeletons of old datasets have none."""
    connection = op.get_bind()
    for dataset, bodyparts in connection.execute(sa.text("select id, bodyparts from dlc.dataset")).all():
        content = json.dumps(
            {"bodyparts": bodyparts, "skeleton": []}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        skeleton = hashlib.sha256(content.encode()).hexdigest()
        connection.execute(
            sa.text("insert into dlc.skeleton (id) values (:id) on conflict do nothing"), {"id": skeleton}
        )
        for position, bodypart in enumerate(bodyparts):
            connection.execute(
                sa.text("insert into dlc.bodypart values (:skeleton, :name, :position) on conflict do nothing"),
                {"skeleton": skeleton, "name": bodypart, "position": position},
            )
        connection.execute(
            sa.text("update dlc.dataset set skeleton_id = :skeleton where id = :id"),
            {"skeleton": skeleton, "id": dataset},
        )
    connection.execute(
        sa.text(
            "update dlc.model_version m set skeleton_id = d.skeleton_id from dlc.dataset d where d.id = m.dataset_id"
        )
    )


def downgrade() -> None:
    raise RuntimeError("The first catalogue cannot hold what the second one does: restore a backup made before")
