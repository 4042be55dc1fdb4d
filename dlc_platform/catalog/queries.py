"""The catalogue read as tables: what `Platform` and the command line show.

The questions that a lab asks for years are views of the database (``dlc.pose_lineage``, ``model_sessions``,
``stale_sessions``, ``best_models``), so that any tool answers them with one query. A `Question` is answered with a
DataFrame, or with plain rows where importing pandas would take longer than the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from sqlalchemy import Engine, text

from dlc_platform.errors import PlatformError

if TYPE_CHECKING:
    import pandas as pd

#: A query and its parameters.
Asked = tuple[str, dict[str, Any]]
Parameters = ParamSpec("Parameters")

#: Digits of an identity that tables show, and versions that are named where several are meant.
_SHORT, _CANDIDATES = 12, 5

_SESSIONS = """
select s.key as session, s.subject, r.name as recording, r.camera, f.position, f.path, v.width, v.height,
       round(v.frame_rate_numerator::numeric / v.frame_rate_denominator, 3)::float as frame_rate, v.frames,
       v.frames_lost, v.frames_damaged, v.duration_s, v.start_time, f.video_id as video, p.model_id as model,
       p.materialized_at as estimated_at, v.damage, v.frames_left_out, f.problem, f.missing_since
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

#: A row for each value that the lab's own tables give a session or its subject, or a JSON file beside a video.
_DETAILS = """
select s.key as session, d.of, d.name, d.value, d.source
from dlc.session s
join dlc.subject a on a.key = s.subject
join lateral (
    select 'subject' as of, e.key as name, e.value, a.details -> 'sources' ->> e.key as source
    from jsonb_each_text(a.details -> 'values') e
    union all
    select 'session', e.key, e.value, s.details -> 'sources' ->> e.key
    from jsonb_each_text(s.details -> 'values') e
    union all
    select v.key, e.key, e.value, v.value ->> 'source'
    from jsonb_each(s.details -> 'videos') v, jsonb_each_text(v.value -> 'values') e
) d on true
where cast(:session as text) is null or s.key = :session
order by s.key, d.of <> 'subject', d.of <> 'session', d.of, d.name
"""

#: What a test error is over, in words; null where there is none.
_TESTED_ON = """
case when {images} = 0 then 'no image that it was not trained on'
     else {images} || case when {images} = 1 then ' image' else ' images' end
          || case when not {known} then ', perhaps trained on' else '' end end
"""

_MODELS = f"""
select m.project, m.origin, t.recipe, m.id as model, m.net_type, m.scorer, d.train_images, e.test_images, t.epochs,
       t.seconds as train_seconds, e.rmse_px as test_rmse_px,
       {_TESTED_ON.format(images="e.test_images", known="e.known")} as tested_on, p.model is not null as production,
       coalesce(t.trained_at, m.registered_at) as made_at, m.dataset_id as dataset,
       m.parameter_set_id as parameter_set, t.run_id, m.source
from dlc.model_version m
left join dlc.training_run t on t.model_id = m.id
left join dlc.dataset d on d.id = m.dataset_id
left join lateral (
    select x.rmse_px, v.test_images, v.training_known as known
    from dlc.evaluation v
    join dlc.evaluation_error x on x.evaluation_id = v.id and x.side = 'test' and x.bodypart = 'all'
    where v.model_id = m.id and (m.dataset_id is null or v.dataset_id = m.dataset_id)
    order by v.evaluated_at desc limit 1
) e on true
left join dlc.production_models p on p.project = m.project and p.model = m.id
order by made_at, t.id
"""

_EVALUATIONS = """
select m.project, v.model_id as model, v.dataset_id as dataset, x.side, x.bodypart, v.test_images, v.taught_images,
       v.training_known, x.keypoints, x.missed, x.rmse_px, x.rmse_confident_px, x.mean_px, x.median_px,
       x.mean_likelihood, x.fraction_confident, v.likelihood_cutoff,
       v.evaluated_at, v.id as evaluation
from dlc.evaluation v
join dlc.model_version m on m.id = v.model_id
join dlc.evaluation_error x on x.evaluation_id = v.id
order by v.evaluated_at, v.id, x.side, x.bodypart = 'all', x.bodypart
"""

#: The figures of judged poses are those of the verdict, so that each has one value everywhere.
_POSES = """
select p.session, p.recording, p.camera, p.position, p.frames, p.frames_lost, p.model, p.origin, p.scorer, p.video,
       p.pose_estimate, coalesce(s.mean_likelihood, q.mean_likelihood) as mean_likelihood,
       coalesce(s.fraction_confident, q.fraction_confident) as fraction_confident, p.seconds, p.run_id,
       p.materialized_at
from dlc.poses_in_force p
left join dlc.pose_score s on s.pose_estimate_id = p.pose_estimate and s.individual = 'all' and s.bodypart = 'all'
left join lateral (
    select avg(mean_likelihood) as mean_likelihood, avg(fraction_confident) as fraction_confident
    from dlc.pose_summary where pose_estimate_id = p.pose_estimate
) q on true
where cast(:session as text) is null or p.session = :session
order by p.session, p.recording, p.position
"""

#: The current files of sessions with the estimates to read; with a model, the newest that it made of each file, in
#: force or not. A file without one stands here too, because it moves the frames of those that follow it.
_ESTIMATES = """
select r.session_key as session, r.name as recording, r.camera, f.position, f.path, e.id as pose_estimate,
       e.model_id as model, coalesce(e.parameters ->> 'precision', 'full') as precision, v.frames, v.duration_s
from dlc.recording r
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
left join dlc.video v on v.id = f.video_id
left join lateral (
    select e.id, e.model_id, e.parameters
    from dlc.recording_poses m join dlc.pose_estimate e on e.id = m.pose_estimate_id
    where m.recording_file_id = f.id and (cast(:model as text) is null or e.model_id = :model)
    order by m.id desc limit 1
) e on true
where r.session_key = any(:sessions)
order by r.session_key, r.name, f.position
"""

#: Files that both models tracked, of sessions that no label of the project came from; of several estimates by one
#: model, as those of another region, the newest.
_TRACKED_BY_BOTH = """
select r.session_key as session, r.name as recording, f.position, f.id as recording_file, o.id as old, n.id as new
from dlc.recording_file f
join dlc.recording r on r.id = f.recording_id
join dlc.session s on s.key = r.session_key
join dlc.video v on v.id = f.video_id
join lateral (
    select id from dlc.pose_estimate where video_id = v.id and model_id = :old order by estimated_at desc, id limit 1
) o on true
join lateral (
    select id from dlc.pose_estimate where video_id = v.id and model_id = :new order by estimated_at desc, id limit 1
) n on true
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

_HOLDINGS = """
select (select count(*) from dlc.session) as sessions, (select count(*) from dlc.model_version) as models,
       (select count(distinct r.session_key) from dlc.recording_poses p
        join dlc.recording_file f on f.id = p.recording_file_id and f.replaced_at is null
        join dlc.recording r on r.id = f.recording_id) as tracked
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

#: The figures of a session's files, a row for each; those of a video that was not measured are null.
_VIDEO_FIGURES = """
select r.camera, r.name as recording, f.position, f.path, f.size_bytes, f.mtime_ns, f.problem, f.video_id as video,
       v.width, v.height, v.frames, v.frames_declared, v.damage, v.duration_s, v.duplicated_timestamps as repeated,
       v.video_streams, v.frames_left_out, v.times_reordered, v.times_estimated, v.clock_resets,
       v.variable_frame_rate, q.video_id is not null as measured, q.exposure, q.fraction_dark, q.fraction_bright,
       q.focus, q.black, q.frozen, q.black_s, q.frozen_s, q.dropped, q.longest_gap_s, q.jitter_ms
from dlc.recording r
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
left join dlc.video v on v.id = f.video_id
left join dlc.video_quality q on q.video_id = f.video_id
where r.session_key = :session
order by r.name, f.position
"""

#: The newest videos of a camera in other sessions.
_EARLIER_VIDEOS = """
select v.width, v.height, q.exposure, q.focus, q.jitter_ms
from dlc.recording_file f
join dlc.recording r on r.id = f.recording_id
join dlc.video v on v.id = f.video_id
left join dlc.video_quality q on q.video_id = f.video_id
where f.replaced_at is null and r.camera = :camera and r.session_key <> :session
order by f.id desc
limit :most
"""

#: Of each video that several files hold, the first of them and another one; of a session, each of its files.
_REPEATED_VIDEOS = """
with present as (
    select f.id, f.video_id, f.path, r.session_key, count(*) over (partition by f.video_id) as files
    from dlc.recording_file f
    join dlc.recording r on r.id = f.recording_id
    where f.replaced_at is null and f.missing_since is null and f.video_id is not null
    and (cast(:session as text) is null or f.video_id in (
        select g.video_id from dlc.recording_file g join dlc.recording s on s.id = g.recording_id
        where s.session_key = :session
    ))
), repeated as (
    select *, row_number() over (partition by video_id order by id) as number from present where files > 1
)
select a.session_key as session, a.path, b.session_key as other_session, b.path as other_path, a.files,
       a.video_id as video, a.number = 1 as first
from repeated a
join repeated b on b.video_id = a.video_id and b.number = case when a.number = 1 then 2 else 1 end
where a.session_key = :session or cast(:session as text) is null and (a.number = 1 or :each)
order by a.session_key, a.path
"""
_INCOMPLETE_POSES = """
select p.session, p.recording, p.position, p.path, v.frames, p.frames as rows, p.frames_lost, p.frames_damaged,
       p.damage, p.pose_estimate
from dlc.poses_in_force p
join dlc.video v on v.id = p.video
where p.damage is not null or p.frames_lost > 0 or p.frames <> v.frames
order by p.session, p.recording, p.position
"""

#: Poses in force whose video stores times in another order, or of which nobody knows whether it does.
_POSES_TO_TIME = """
select p.session, p.recording, p.position, p.path, p.pose_estimate
from dlc.poses_in_force p
join dlc.video v on v.id = p.video
where v.times_reordered is null or v.times_reordered > 0
order by p.session, p.recording, p.position
"""

#: The poses in force of a session with what judging them needs.
_POSES_TO_JUDGE = """
select p.pose_estimate, p.path, p.recording, p.camera, p.model, m.project, v.frames, v.width, v.height, p.frames_lost,
       v.size_bytes, v.damage is null as whole
from dlc.poses_in_force p
join dlc.video v on v.id = p.video
left join dlc.model_version m on m.id = p.model
where p.session = :session
order by p.recording, p.position
"""

_POSE_QUALITY_COLUMNS = """
select p.session, p.recording, p.position, p.camera, s.individual, s.bodypart, s.rows, s.mean_likelihood,
       s.fraction_confident, s.fraction_missing, s.jumps, s.unsure_jumps, s.swaps, s.limb_outliers, s.outside,
       s.reprojection_px, s.temporal_norm_px, s.confident_when_seen, s.fraction_empty, s.still, s.still_in_motion,
       s.no_animal, s.background,
       v.verdict, v.findings, p.model, p.pose_estimate, v.judged_at, v.floors is not null as by_floors
from dlc.poses_in_force p
join dlc.pose_score s on s.pose_estimate_id = p.pose_estimate
join dlc.pose_verdict v on v.pose_estimate_id = p.pose_estimate
"""
_POSE_QUALITY = f"""{_POSE_QUALITY_COLUMNS}
left join dlc.model_version m on m.id = p.model
left join dlc.bodypart b on b.skeleton_id = m.skeleton_id and b.name = s.bodypart
where cast(:session as text) is null or p.session = :session
order by p.session, p.recording, p.position, s.bodypart = 'all', s.limb_outliers is not null, s.individual, b.position,
         s.bodypart
"""

#: The newest recordings whose poses do not pass, each with its row over everything.
_POSES_THAT_DO_NOT_PASS = f"""{_POSE_QUALITY_COLUMNS}
join dlc.video w on w.id = p.video
join dlc.session a on a.key = p.session
where v.verdict <> 'pass' and s.individual = 'all' and s.bodypart = 'all'
order by coalesce(w.start_time, a.registered_at) desc, p.session, p.recording, p.position
limit :most
"""

_POSE_VERDICTS = """
select v.verdict, count(*) as recordings
from dlc.poses_in_force p join dlc.pose_verdict v on v.pose_estimate_id = p.pose_estimate
group by v.verdict
"""

#: The worst verdict on the poses in force of each session.
_SESSION_VERDICTS = """
select p.session, (array_agg(v.verdict order by array_position(array['fail', 'warn', 'pass'], v.verdict)))[1] as verdict
from dlc.poses_in_force p join dlc.pose_verdict v on v.pose_estimate_id = p.pose_estimate
where p.session = any(:sessions)
group by p.session
order by p.session
"""

_JUDGED_FILES = """
select p.path, v.floors is not null as by_floors
from dlc.poses_in_force p left join dlc.pose_verdict v on v.pose_estimate_id = p.pose_estimate
where cast(:session as text) is null or p.session = :session
order by p.session, p.recording, p.position
"""

#: Sessions in quarantine for the quality of one of these estimates.
_HELD_BACK = """
select distinct r.session_key as session, q.reason
from dlc.quarantine q
join dlc.recording r on r.session_key = q.session_key
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
join dlc.recording_poses x on x.recording_file_id = f.id
join dlc.pose_verdict v on v.pose_estimate_id = x.pose_estimate_id and v.verdict = 'fail'
where q.stage = 'quality' and q.released_at is null and x.pose_estimate_id = any(:estimates)
order by session
"""

_FAILING_VERSIONS = """
select e.model_id as model, count(*) as estimates, count(*) filter (where v.verdict = 'fail') as failed
from dlc.pose_verdict v
join dlc.pose_estimate e on e.id = v.pose_estimate_id
join dlc.model_version m on m.id = e.model_id
where m.project = :project
group by e.model_id
"""

_COMPUTED_POSES = """
select session, camera, recording, position, path, model,
       coalesce(inference_parameters, '{}') as inference_parameters
from dlc.poses_in_force
where origin = 'computed'
order by session, recording, position
"""

_PROMOTIONS = f"""
select p.project, p.model_id as model, p.kind, p.promoted_by, p.reason, p.test_rmse_px, p.test_images,
       {_TESTED_ON.format(images="p.test_images", known="coalesce(v.training_known, m.dataset_id is not null)")}
       as tested_on, p.promoted_at, p.evaluation_id as evaluation, p.run_id, p.id as promotion, p.warning
from dlc.promotion p
join dlc.model_version m on m.id = p.model_id
left join dlc.evaluation v on v.id = p.evaluation_id
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

_QUARANTINE = """
select session_key as session, stage, path as file, reason, remedy, since, run_id, released_at, released_by,
       release_reason
from dlc.quarantine
where not :open_only or released_at is null
order by since desc, id desc
limit :most
"""

_QUARANTINE_COUNTS = """
select stage, count(distinct session_key) as sessions, count(path) as files, min(since) as since
from dlc.quarantine
where released_at is null
group by stage
order by stage
"""

#: The files that wait for poses at a moment, each since when it could have been tracked; null while its project has no
#: model. A damaged one waits where lab.yaml lets it be tracked, or a person released it.
_WAITING = """
select r.session_key as session, f.id, f.path, c.project,
       case when p.since is not null then greatest(f.registered_at, p.since, q.released_at) end as since
from dlc.recording_file f
join dlc.recording r on r.id = f.recording_id
join dlc.camera c on c.name = r.camera and c.project is not null
join dlc.video v on v.id = f.video_id and v.registered_at < :until
left join lateral (
    select min(promoted_at) as since from dlc.promotion where project = c.project and promoted_at < :until
) p on true
left join lateral (
    select bool_or(released_at is null or released_at >= :until) as held,
           max(released_at) filter (where released_at < :until and released_by <> 'other evidence') as released_at
    from dlc.quarantine
    where session_key = r.session_key and stage in ('videos', 'poses') and (path is null or path = f.path)
    and since < :until
) q on true
where (f.replaced_at is null or f.replaced_at >= :until)
and (f.missing_since is null or f.missing_since >= :until)
and (v.damage is null or :damaged_videos = 'track' or q.released_at is not null)
and not coalesce(q.held, false)
and not exists (
    select from dlc.recording_poses m where m.recording_file_id = f.id and m.materialized_at < :until
)
"""

#: A wait is named by its session and by when the newest of the files arrived that can be late, tracked or not.
_LATE_SESSIONS = f"""
select *, count(*) over () as sessions
from (
    select l.*, session || ' ' || (
        select to_char(max(f.registered_at) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
        from dlc.recording_file f join dlc.recording r on r.id = f.recording_id
        where r.session_key = session and f.replaced_at is null and f.registered_at < :before
    ) as wait
    from (
        select session, min(project) as project, count(*) as files, min(path) as file, min(since) as since
        from ({_WAITING}) w
        where since < :before
        group by session
    ) l
) n
where cast(:untold_to as text[]) is null or (
    select count(*) from dlc.notification
    where kind = 'stale' and subject = wait and channel = any(cast(:untold_to as text[]))
) < cardinality(cast(:untold_to as text[]))
order by since, session
limit :most
"""


class Question(Generic[Parameters]):
    """A question to the catalogue, made of the function that gives its query and parameters (as a decorator)."""

    def __init__(self, asks: Callable[Parameters, Asked]):
        self._asks = asks
        update_wrapper(self, asks)

    def __call__(self, engine: Engine, *args: Parameters.args, **kwargs: Parameters.kwargs) -> "pd.DataFrame":
        query, parameters = self._asks(*args, **kwargs)
        return _frame(engine, query, **parameters)

    def rows(self, engine: Engine, *args: Parameters.args, **kwargs: Parameters.kwargs) -> list[dict[str, Any]]:
        """The answer as a list of rows by column, with whole and broken numbers as Python's own."""
        query, parameters = self._asks(*args, **kwargs)
        return [{name: _plain(value) for name, value in row.items()} for row in _rows(engine, query, **parameters)]


def _plain(value: Any) -> Any:
    """A number of Postgres's numeric type, which sums have, as an int or float."""
    if not isinstance(value, Decimal):
        return value
    return int(value) if value == value.to_integral_value() else float(value)


@Question
def sessions(session: str | None = None) -> Asked:
    """One row for each current file of each session, with the model that tracked it or the problem it has."""
    return _SESSIONS, {"session": session}


def details(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """One row for each value that the lab's own tables, or a JSON file beside a video, give a session.

    `of` is ``subject``, ``session`` or the name of the video file; `source` is the file that says so.
    """
    return _frame(engine, _DETAILS, session=session)


@Question
def models() -> Asked:
    """One row for each training and each imported version, oldest first.

    `test_rmse_px` is on the test images of the version's own dataset; for an imported one, on those that it was
    evaluated on last. `test_images` says how many they are, and `tested_on` says it in words, and whether it may have
    been trained on them.
    """
    return _MODELS, {}


def evaluations(engine: Engine) -> "pd.DataFrame":
    """One row for each evaluation, side and body part; distances in pixels.

    Side ``test`` is over `test_images` images that the version was not trained on, and ``train`` over those that it
    was. `taught_images` counts the images on the test side of the dataset that it was trained on. Where
    `training_known` is false, nobody knows what it was trained on.
    """
    return _frame(engine, _EVALUATIONS)


@Question
def poses(session: str | None = None) -> Asked:
    """One row for each file of a recording that has poses, with the estimate that is in force."""
    return _POSES, {"session": session}


def estimates(engine: Engine, sessions: Sequence[str], model: str | None = None) -> "pd.DataFrame":
    """The current files of sessions in the order of recording, each with the estimate that holds its poses.

    Parameters
    ----------
    model
        Take what this version made, in force or not; the poses in force by default.

    Returns
    -------
    DataFrame
        One row for each file, `pose_estimate` null where it has no poses, and `frames` and `duration_s` where its video
        cannot be read.
    """
    return _frame(engine, _ESTIMATES, sessions=list(sessions), model=model)


def holdings(engine: Engine) -> Mapping[str, int]:
    """How many sessions a lab has, how many of them have poses in force, and how many model versions."""
    (row,) = _rows(engine, _HOLDINGS)
    return row


def damaged_recordings(engine: Engine) -> "pd.DataFrame":
    """The current files whose video is truncated or damaged, with what is missing from it."""
    return _frame(engine, _DAMAGED_RECORDINGS)


def video_figures(engine: Engine, session: str) -> list[Mapping[str, Any]]:
    """What is known of each current file of a session: what it holds and how good that is, by column."""
    return _rows(engine, _VIDEO_FIGURES, session=session)


def earlier_videos(engine: Engine, camera: str, session: str, most: int) -> list[Mapping[str, Any]]:
    """Size and figures of the newest videos that a camera recorded in other sessions, by column."""
    return _rows(engine, _EARLIER_VIDEOS, camera=camera, session=session, most=most)


def repeated_videos(engine: Engine, session: str | None = None, each: bool = False) -> "pd.DataFrame":
    """A row for each video that several files hold: one of them, another one, and how many there are in all.

    Parameters
    ----------
    session
        A row for each file of this session whose video another file holds too.
    each
        A row for each such file of all sessions; `first` is true for one of each video.
    """
    return _frame(engine, _REPEATED_VIDEOS, session=session, each=each)


def incomplete_poses(engine: Engine) -> "pd.DataFrame":
    """The poses in force that do not stand for every frame that was recorded.

    `frames` are the rows of the video and `rows` those of the poses, of which `frames_lost` are empty.
    """
    return _frame(engine, _INCOMPLETE_POSES)


def poses_to_time(engine: Engine) -> "pd.DataFrame":
    """The poses in force whose times may run backwards in their file."""
    return _frame(engine, _POSES_TO_TIME)


@Question
def computed_poses() -> Asked:
    """The poses in force that were not imported, with the parameters of their inference; {} where all are as usual."""
    return _COMPUTED_POSES, {}


def poses_to_judge(engine: Engine, session: str) -> "pd.DataFrame":
    """The poses in force of a session, with what judging them needs; `project` is that of the model."""
    return _frame(engine, _POSES_TO_JUDGE, session=session)


@Question
def pose_quality(session: str | None = None) -> Asked:
    """One row for each judged recording in force, individual and body part; `verdict` is that on the recording."""
    return _POSE_QUALITY, {"session": session}


@Question
def poses_that_do_not_pass(most: int) -> Asked:
    """The columns of `pose_quality`, for the newest recordings whose verdict is not pass, over all body parts."""
    return _POSES_THAT_DO_NOT_PASS, {"most": most}


def pose_verdicts(engine: Engine) -> dict[str, int]:
    """How many recordings with poses in force have each verdict."""
    return {row["verdict"]: row["recordings"] for row in _rows(engine, _POSE_VERDICTS)}


def session_verdicts(engine: Engine, sessions: Sequence[str]) -> dict[str, str]:
    """The worst verdict on the poses in force of each of these sessions that has judged ones."""
    return {row["session"]: row["verdict"] for row in _rows(engine, _SESSION_VERDICTS, sessions=list(sessions))}


def judged_files(engine: Engine, session: str | None = None) -> dict[str, bool]:
    """The files that have poses in force, of a session or of all, and whether these were judged by floors."""
    return {row["path"]: row["by_floors"] for row in _rows(engine, _JUDGED_FILES, session=session)}


def held_back(engine: Engine, estimates: Sequence[str]) -> "pd.DataFrame":
    """The sessions that are in quarantine for one of these estimates, with the reason."""
    return _frame(engine, _HELD_BACK, estimates=list(estimates))


def failing_versions(engine: Engine, project: str) -> "pd.DataFrame":
    """How many estimates of each version of a project were judged, and how many of them failed."""
    return _frame(engine, _FAILING_VERSIONS, project=project)


def tracked_by_both(engine: Engine, project: str, old: str, new: str, most: int) -> "pd.DataFrame":
    """Files that two models tracked, of sessions that no label of the project came from; the newest recordings."""
    return _frame(engine, _TRACKED_BY_BOTH, project=project, old=old, new=new, most=most)


@Question
def promotions() -> Asked:
    """Every promotion, oldest first: who promoted which version, when, why, and the evaluation it stood on.

    `test_rmse_px` is the error that the choice was made on, over `test_images` images; see `tested_on` of `models`.
    """
    return _PROMOTIONS, {}


def exports(engine: Engine) -> "pd.DataFrame":
    """One row for each export of a model version, oldest first, with what it was measured to deviate and to take."""
    return _frame(
        engine,
        "select model_id as model, backend, device, precision, accepted, images, deviation_px, deviation_likelihood, "
        "eager_ms_per_frame, ms_per_frame, made_at from dlc.model_export order by made_at, id",
    )


@Question
def parameters() -> Asked:
    """One row for each version of each recipe; `also_called` names the recipes that had the very same parameters."""
    return _PARAMETERS, {}


@Question
def stale_under(model: str) -> Asked:
    """The sessions with poses in force that this version did not make although it may track their cameras."""
    return _STALE_UNDER, {"model": model}


@Question
def lineage(session: str) -> Asked:
    """What made the poses in force of a session, one row for each file."""
    query = "select * from dlc.pose_lineage where session = :session order by recording, position"
    return query, {"session": session}


@Question
def model_sessions(model: str) -> Asked:
    """The sessions that a model version touched: `role` is taught, tested or tracked."""
    return "select * from dlc.model_sessions where model = :model order by role, session", {"model": model}


@Question
def stale_sessions(imported: bool = True) -> Asked:
    """The sessions with poses in force that their production model did not make, the newest recording first.

    Parameters
    ----------
    imported
        Whether sessions all of whose poses were imported are among them.
    """
    return (
        "select * from dlc.stale_sessions where :imported or not imported "
        "order by recorded_at desc, session desc, project"
    ), {"imported": imported}


@Question
def best_models() -> Asked:
    """The versions of each project's newest comparison by body part, the best first; errors in pixels."""
    return "select * from dlc.best_models order by project, bodypart <> 'all', bodypart, rank, model", {}


@Question
def quarantine(open_only: bool = True, most: int | None = None) -> Asked:
    """What sessions are in quarantine with, a row for each reason, the newest first; without `file`: all of them.

    Parameters
    ----------
    open_only
        Leave out what is over; `released_by` says whether a person or other evidence ended it.
    """
    return _QUARANTINE, {"open_only": open_only, "most": most}


def quarantine_counts(engine: Engine) -> "pd.DataFrame":
    """How many sessions and files are in quarantine by stage, and since when the first of them."""
    return _frame(engine, _QUARANTINE_COUNTS)


def waiting_sessions(engine: Engine, until: datetime, damaged_videos: str) -> int:
    """How many sessions had, at a moment, a file without poses although the inference rules name its camera's project.

    Parameters
    ----------
    damaged_videos
        The rule of lab.yaml; with ``stop``, a damaged video does not wait unless a person released it.
    """
    with engine.connect() as connection:
        query = text(f"select count(distinct session) from ({_WAITING}) w")
        return connection.scalar(query, {"until": until, "damaged_videos": damaged_videos}) or 0


def late_sessions(
    engine: Engine, before: datetime, damaged_videos: str, most: int, untold_to: Sequence[str] | None = None
) -> "pd.DataFrame":
    """The sessions that wait for poses although they could have been tracked before a moment, the oldest first.

    `since` is when the session had arrived, its project had a model and no quarantine held it up; `sessions` counts
    them all, also those beyond `most`. `wait` names this wait among the notifications: with the names of channels in
    `untold_to`, what all of these were told of is left out.
    """
    return _frame(
        engine,
        _LATE_SESSIONS,
        until=datetime.now(UTC),
        before=before,
        damaged_videos=damaged_videos,
        most=most,
        untold_to=None if untold_to is None else list(untold_to),
    )


def require_model_id(engine: Engine, start: str) -> str:
    """The identity of the model version that begins with `start`, which is as much of it as tables show, or all of it.

    Raises
    ------
    PlatformError
        When no version begins so, or several do; these are named.
    """
    query = "select id, project from dlc.model_version where starts_with(id, :written) order by registered_at, id"
    written = start.strip().lower()
    found = _rows(engine, query, written=written) if written else []
    if len(found) == 1:
        return found[0]["id"]
    if not found:
        raise PlatformError(
            f"no model version begins with {start!r}", "Copy its identity from `dlc-platform models HOME`"
        )
    # Enough of each to tell them apart.
    length = next(n for n in range(_SHORT, 65) if len({row["id"][:n] for row in found}) == len(found))
    candidates = ", ".join(f"{row['id'][:length]} of {row['project']}" for row in found[:_CANDIDATES])
    more = f", and {len(found) - _CANDIDATES} more" if len(found) > _CANDIDATES else ""
    raise PlatformError(
        f"{len(found)} model versions begin with {start!r}: {candidates}{more}", "Write more of the one that you mean"
    )


@Question
def notifications(most: int = 1000) -> Asked:
    """What is told, or was, a row for each channel, the newest first; `state` is waiting, sent or given up."""
    return (
        "select kind, subject, channel, title, body, created_at, case when sent_at is not null then 'sent' "
        "when given_up_at is not null then 'given up' else 'waiting' end as state, attempts, next_attempt_at, sent_at, "
        "given_up_at, last_error, message from dlc.notification order by id desc limit :most"
    ), {"most": most}


def _frame(engine: Engine, query: str, **parameters: Any) -> "pd.DataFrame":
    import pandas as pd

    with engine.connect() as connection:
        return pd.read_sql_query(text(query), connection, params=parameters)


def _rows(engine: Engine, query: str, **parameters: Any) -> list[Mapping[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(query), parameters).mappings()]
