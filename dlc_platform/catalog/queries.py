"""The catalogue read as tables: what `Platform` and the command line show.

The questions that a lab asks for years are views of the database (``dlc.pose_lineage``, ``model_sessions``,
``stale_sessions``, ``best_models``), so that any tool answers them with one query.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, text

if TYPE_CHECKING:
    import pandas as pd

_SESSIONS = """
select s.key as session, s.subject, r.name as recording, r.camera, f.position, f.path, v.width, v.height,
       round(v.frame_rate_numerator::numeric / v.frame_rate_denominator, 3)::float as frame_rate, v.frames,
       v.frames_lost, v.frames_damaged, v.duration_s, v.start_time, f.video_id as video, p.model_id as model,
       p.materialized_at as estimated_at, v.damage, f.problem
from dlc.session s
left join (dlc.recording r join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null)
    on r.session_key = s.key
left join dlc.video v on v.id = f.video_id
left join lateral (
    select e.model_id, m.materialized_at
    from dlc.recording_poses m join dlc.pose_estimate e on e.id = m.pose_estimate_id
    where m.recording_file_id = f.id order by m.id desc limit 1
) p on true
where cast(:session as text) is null or s.key = :session
order by s.key, r.name, f.position
"""

_MODELS = """
select m.project, m.origin, t.recipe, m.id as model, m.net_type, m.scorer, d.train_images, d.test_images, t.epochs,
       t.seconds as train_seconds, e.rmse_px as test_rmse_px, p.model is not null as production,
       coalesce(t.trained_at, m.registered_at) as made_at, m.dataset_id as dataset,
       m.parameter_set_id as parameter_set, t.run_id, m.source
from dlc.model_version m
left join dlc.training_run t on t.model_id = m.id
left join dlc.dataset d on d.id = m.dataset_id
left join lateral (
    select x.rmse_px
    from dlc.evaluation v
    join dlc.evaluation_error x on x.evaluation_id = v.id and x.side = 'test' and x.bodypart = 'all'
    where v.model_id = m.id and (m.dataset_id is null or v.dataset_id = m.dataset_id)
    order by v.evaluated_at desc limit 1
) e on true
left join dlc.production_models p on p.project = m.project and p.model = m.id
order by made_at, t.id
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
select p.session, p.recording, p.camera, p.position, p.frames, p.frames_lost, p.model, p.origin, p.scorer, p.video,
       p.pose_estimate, q.mean_likelihood, q.fraction_confident, p.seconds, p.run_id, p.materialized_at
from dlc.poses_in_force p
left join lateral (
    select avg(mean_likelihood) as mean_likelihood, avg(fraction_confident) as fraction_confident
    from dlc.pose_summary where pose_estimate_id = p.pose_estimate
) q on true
where cast(:session as text) is null or p.session = :session
order by p.session, p.recording, p.position
"""

#: The estimates to read for sessions; with a model, the newest that it made of each file, in force or not.
_ESTIMATES = """
select r.session_key as session, r.name as recording, f.position, e.id as pose_estimate, v.frames, v.duration_s
from dlc.recording r
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
join dlc.video v on v.id = f.video_id
join lateral (
    select e.id
    from dlc.recording_poses m join dlc.pose_estimate e on e.id = m.pose_estimate_id
    where m.recording_file_id = f.id and (cast(:model as text) is null or e.model_id = :model)
    order by m.id desc limit 1
) e on true
where r.session_key = any(:sessions)
order by r.session_key, r.name, f.position
"""

#: Files that both models tracked, of sessions that no label of the project came from.
_TRACKED_BY_BOTH = """
select r.session_key as session, r.name as recording, f.position, f.id as recording_file, o.id as old, n.id as new
from dlc.recording_file f
join dlc.recording r on r.id = f.recording_id
join dlc.session s on s.key = r.session_key
join dlc.video v on v.id = f.video_id
join dlc.pose_estimate o on o.video_id = v.id and o.model_id = :old
join dlc.pose_estimate n on n.video_id = v.id and n.model_id = :new
where f.replaced_at is null
and not exists (
    select from dlc.dataset_image i join dlc.dataset d on d.id = i.dataset_id
    where d.project = :project and i.session_key = r.session_key
)
and not exists (
    select from dlc.session_labels l where l.project = :project and l.session_key = r.session_key and l.images > 0
)
order by coalesce(v.start_time, s.registered_at) desc, r.session_key, r.name, f.position
limit :most
"""

_DAMAGED_RECORDINGS = """
select r.session_key as session, r.name as recording, f.position, f.path, v.frames_declared, v.frames, v.frames_lost,
       v.frames_damaged, v.frames_missing_at_end, v.truncated, v.damage, f.video_id as video
from dlc.recording r
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
join dlc.video v on v.id = f.video_id
where v.damage is not null
order by r.session_key, r.name, f.position
"""

_REPEATED_VIDEOS = """
select a.session_key as session, f.path, b.session_key as other_session, g.path as other_path, f.video_id as video
from dlc.recording_file f
join dlc.recording a on a.id = f.recording_id
join dlc.recording_file g on g.video_id = f.video_id and g.replaced_at is null and g.missing_since is null
join dlc.recording b on b.id = g.recording_id
where f.replaced_at is null and f.missing_since is null and a.session_key <> b.session_key
  and (a.session_key = :session or cast(:session as text) is null and f.id < g.id)
order by a.session_key, f.path, b.session_key, g.path
"""
_INCOMPLETE_POSES = """
select p.session, p.recording, p.position, p.path, v.frames, p.frames as rows, p.frames_lost, p.frames_damaged,
       p.damage, p.pose_estimate
from dlc.poses_in_force p
join dlc.video v on v.id = p.video
where p.damage is not null or p.frames_lost > 0 or p.frames <> v.frames
order by p.session, p.recording, p.position
"""

_COMPUTED_POSES = """
select session, camera, recording, position, path, coalesce(inference_parameters, '{}') as inference_parameters
from dlc.poses_in_force
where origin = 'computed'
order by session, recording, position
"""

_PROMOTIONS = """
select p.project, p.model_id as model, p.kind, p.promoted_by, p.reason, x.rmse_px as test_rmse_px, p.promoted_at,
       p.evaluation_id as evaluation, p.run_id, p.id as promotion
from dlc.promotion p
left join dlc.evaluation_error x on x.evaluation_id = p.evaluation_id and x.side = 'test' and x.bodypart = 'all'
order by p.id
"""

_PARAMETERS = """
select v.recipe, v.version, v.project, v.first_used_at, v.parameter_set_id as parameter_set, s.parameters,
       (select array_agg(distinct o.recipe order by o.recipe) from dlc.recipe_version o
        where o.parameter_set_id = v.parameter_set_id and o.recipe <> v.recipe) as also_called
from dlc.recipe_version v
join dlc.parameter_set s on s.id = v.parameter_set_id
order by v.recipe, v.version
"""

_STALE_UNDER = """
select p.session, c.project, array_agg(distinct p.model) as models, bool_and(p.origin = 'imported') as imported,
       count(*) as files, sum(p.frames) as frames, coalesce(min(v.start_time), min(s.registered_at)) as recorded_at
from dlc.poses_in_force p
join dlc.camera c on c.name = p.camera
join dlc.session s on s.key = p.session
join dlc.video v on v.id = p.video
where c.project = (select project from dlc.model_version where id = :model) and p.model is distinct from :model
group by p.session, c.project
order by recorded_at desc, p.session desc
"""


def sessions(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """One row for each current file of each session, with the model that tracked it or the problem it has."""
    return _frame(engine, _SESSIONS, session=session)


def models(engine: Engine) -> "pd.DataFrame":
    """One row for each training and each imported version, oldest first.

    `test_rmse_px` is on the model's own frozen test images; for an imported one, on those it was evaluated on last.
    """
    return _frame(engine, _MODELS)


def evaluations(engine: Engine) -> "pd.DataFrame":
    """One row for each evaluation, side and body part; distances in pixels."""
    return _frame(engine, _EVALUATIONS)


def poses(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """One row for each file of a recording that has poses, with the estimate that is in force."""
    return _frame(engine, _POSES, session=session)


def estimates(engine: Engine, sessions: Sequence[str], model: str | None = None) -> "pd.DataFrame":
    """The estimates that hold the poses of sessions, a row for each file, in the order of recording.

    Parameters
    ----------
    model
        Take what this version made, in force or not; the poses in force by default.
    """
    return _frame(engine, _ESTIMATES, sessions=list(sessions), model=model)


def damaged_recordings(engine: Engine) -> "pd.DataFrame":
    """The current files whose video is truncated or damaged, with what is missing from it."""
    return _frame(engine, _DAMAGED_RECORDINGS)


def repeated_videos(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """Pairs of files of different sessions that hold the very same video: those of a session, or of all."""
    return _frame(engine, _REPEATED_VIDEOS, session=session)


def incomplete_poses(engine: Engine) -> "pd.DataFrame":
    """The poses in force that do not stand for every frame that was recorded.

    `frames` are the rows of the video and `rows` those of the poses, of which `frames_lost` are empty.
    """
    return _frame(engine, _INCOMPLETE_POSES)


def computed_poses(engine: Engine) -> "pd.DataFrame":
    """The poses in force that were not imported, with the parameters of their inference; {} where all are as usual."""
    return _frame(engine, _COMPUTED_POSES)


def tracked_by_both(engine: Engine, project: str, old: str, new: str, most: int) -> "pd.DataFrame":
    """Files that two models tracked, of sessions that no label of the project came from; the newest recordings."""
    return _frame(engine, _TRACKED_BY_BOTH, project=project, old=old, new=new, most=most)


def promotions(engine: Engine) -> "pd.DataFrame":
    """Every promotion, oldest first: who promoted which version, when, why, and the evaluation it stood on."""
    return _frame(engine, _PROMOTIONS)


def exports(engine: Engine) -> "pd.DataFrame":
    """One row for each export of a model version, oldest first, with what it was measured to deviate and to take."""
    return _frame(
        engine,
        "select model_id as model, backend, device, precision, accepted, images, deviation_px, deviation_likelihood, "
        "eager_ms_per_frame, ms_per_frame, made_at from dlc.model_export order by made_at, id",
    )


def parameters(engine: Engine) -> "pd.DataFrame":
    """One row for each version of each recipe; `also_called` names the recipes that had the very same parameters."""
    return _frame(engine, _PARAMETERS)


def stale_under(engine: Engine, model: str) -> "pd.DataFrame":
    """The sessions with poses in force that this version did not make although it may track their cameras."""
    return _frame(engine, _STALE_UNDER, model=model)


def lineage(engine: Engine, session: str) -> "pd.DataFrame":
    """What made the poses in force of a session, one row for each file."""
    return _frame(
        engine, "select * from dlc.pose_lineage where session = :session order by recording, position", session=session
    )


def model_sessions(engine: Engine, model: str) -> "pd.DataFrame":
    """The sessions that a model version touched: `role` is taught, tested or tracked."""
    return _frame(engine, "select * from dlc.model_sessions where model = :model order by role, session", model=model)


def stale_sessions(engine: Engine, imported: bool = True) -> "pd.DataFrame":
    """The sessions with poses in force that their production model did not make, the newest recording first.

    Parameters
    ----------
    imported
        Whether sessions all of whose poses were imported are among them.
    """
    return _frame(
        engine,
        "select * from dlc.stale_sessions where :imported or not imported "
        "order by recorded_at desc, session desc, project",
        imported=imported,
    )


def best_models(engine: Engine) -> "pd.DataFrame":
    """The versions of each project's newest comparison by body part, the best first; errors in pixels."""
    return _frame(engine, "select * from dlc.best_models order by project, bodypart <> 'all', bodypart, rank, model")


def _frame(engine: Engine, query: str, **parameters: Any) -> "pd.DataFrame":
    import pandas as pd

    with engine.connect() as connection:
        return pd.read_sql_query(text(query), connection, params=parameters)
