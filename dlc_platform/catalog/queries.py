"""The catalogue read as tables: what `Platform` and the command line show."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, text

if TYPE_CHECKING:
    import pandas as pd

_SESSIONS = """
select s.key as session, s.subject, r.name as recording, r.camera, r.path, v.width, v.height,
       round(v.frame_rate_numerator::numeric / v.frame_rate_denominator, 3)::float as frame_rate, v.frames,
       v.duration_s, r.video_id as video, p.model_id as model, p.materialized_at as estimated_at, r.problem
from dlc.session s
left join dlc.recording r on r.session_key = s.key and r.replaced_at is null
left join dlc.video v on v.id = r.video_id
left join lateral (
    select e.model_id, m.materialized_at
    from dlc.recording_poses m join dlc.pose_estimate e on e.id = m.pose_estimate_id
    where m.recording_id = r.id order by m.id desc limit 1
) p on true
where cast(:session as text) is null or s.key = :session
order by s.key, r.name
"""

_MODELS = """
select m.project, t.recipe, m.id as model, m.scorer, d.train_images, d.test_images, t.epochs,
       t.seconds as train_seconds, e.rmse_px as test_rmse_px, p.model_id is not null as production,
       t.trained_at, m.dataset_id as dataset, m.parameter_set_id as parameter_set, t.run_id
from dlc.training_run t
join dlc.model_version m on m.id = t.model_id
join dlc.dataset d on d.id = m.dataset_id
left join lateral (
    select x.rmse_px
    from dlc.evaluation v
    join dlc.evaluation_error x on x.evaluation_id = v.id and x.side = 'test' and x.bodypart = 'all'
    where v.model_id = m.id and v.dataset_id = m.dataset_id order by v.evaluated_at desc limit 1
) e on true
left join lateral (
    select q.model_id from (
        select model_id from dlc.promotion where project = m.project order by id desc limit 1
    ) q where q.model_id = m.id
) p on true
order by t.id
"""

_EVALUATIONS = """
select m.project, v.model_id as model, v.dataset_id as dataset, x.side, x.bodypart, x.keypoints, x.rmse_px,
       x.rmse_confident_px, x.mean_px, x.median_px, x.mean_likelihood, x.fraction_confident, v.likelihood_cutoff,
       v.evaluated_at, v.id as evaluation
from dlc.evaluation v
join dlc.model_version m on m.id = v.model_id
join dlc.evaluation_error x on x.evaluation_id = v.id
order by v.evaluated_at, v.id, x.side, x.bodypart = 'all', x.bodypart
"""

_POSES = """
select r.session_key as session, r.name as recording, r.camera, e.frames, e.model_id as model, e.video_id as video,
       e.id as pose_estimate, q.mean_likelihood, q.fraction_confident, e.seconds, m.run_id, m.materialized_at
from dlc.recording r
join lateral (
    select * from dlc.recording_poses x where x.recording_id = r.id order by x.id desc limit 1
) m on true
join dlc.pose_estimate e on e.id = m.pose_estimate_id
left join lateral (
    select avg(mean_likelihood) as mean_likelihood, avg(fraction_confident) as fraction_confident
    from dlc.pose_summary where pose_estimate_id = e.id
) q on true
where r.replaced_at is null and (cast(:session as text) is null or r.session_key = :session)
order by r.session_key, r.name
"""

_LINEAGE = """
select r.session_key as session, r.name as recording, r.path, e.video_id as video, e.id as pose_estimate,
       m.run_id, m.materialized_at, e.run_id as estimated_by_run, e.estimated_at, pe.details as estimation_environment,
       v.id as model, v.project, v.scorer, v.weights_sha256, t.recipe, t.run_id as training_run, t.trained_at,
       te.details as training_environment, v.parameter_set_id as parameter_set, s.parameters, v.dataset_id as dataset,
       d.train_images, d.test_images,
       (select array_agg(distinct i.session_key order by i.session_key) from dlc.dataset_image i
        where i.dataset_id = d.id and i.session_key is not null) as labelled_sessions
from dlc.recording r
join lateral (
    select * from dlc.recording_poses x where x.recording_id = r.id order by x.id desc limit 1
) m on true
join dlc.pose_estimate e on e.id = m.pose_estimate_id
join dlc.environment pe on pe.id = e.environment_id
join dlc.model_version v on v.id = e.model_id
join dlc.parameter_set s on s.id = v.parameter_set_id
join dlc.dataset d on d.id = v.dataset_id
join lateral (
    select * from dlc.training_run y where y.model_id = v.id order by y.id limit 1
) t on true
join dlc.environment te on te.id = t.environment_id
where r.replaced_at is null and r.session_key = :session
order by r.name
"""


def sessions(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """One row for each current file of each session, with the model that tracked it or the problem it has."""
    return _frame(engine, _SESSIONS, session=session)


def models(engine: Engine) -> "pd.DataFrame":
    """One row for each training, oldest first; `test_rmse_px` is on the model's own frozen test images."""
    return _frame(engine, _MODELS)


def evaluations(engine: Engine) -> "pd.DataFrame":
    """One row for each evaluation, side and body part; distances in pixels."""
    return _frame(engine, _EVALUATIONS)


def poses(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """One row for each recording that has poses, with the estimate that is in force."""
    return _frame(engine, _POSES, session=session)


def lineage(engine: Engine, session: str) -> "pd.DataFrame":
    """What made the poses in force of a session, one row for each recording."""
    return _frame(engine, _LINEAGE, session=session)


def _frame(engine: Engine, query: str, **parameters: Any) -> "pd.DataFrame":
    import pandas as pd

    with engine.connect() as connection:
        return pd.read_sql_query(text(query), connection, params=parameters)
