"""Pose estimates in the catalogue: their files, their models, and the estimates that another model would change.

How good they are is in `verdicts`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.asking import Asked, Question, frame
from dlc_platform.catalog.tables import PoseEstimate, RecordingFile, RecordingPoses
from dlc_platform.catalog.writing import environment_of, first, insert_product, values_of

if TYPE_CHECKING:
    import pandas as pd


_POSES = """
select p.session, p.recording, p.camera, p.position, p.frames, p.frames_lost, p.model, p.origin, p.scorer, p.video,
       p.pose_estimate, s.mean_likelihood, s.fraction_confident, p.seconds, p.run_id, p.materialized_at
from dlc.poses_in_force p
left join dlc.pose_score s on s.pose_estimate_id = p.pose_estimate and s.individual = 'all' and s.bodypart = 'all'
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

_INCOMPLETE_POSES = """
select p.session, p.recording, p.position, p.path, v.frames, p.frames as rows, p.frames_lost, p.frames_damaged,
       p.damage, p.pose_estimate
from dlc.poses_in_force p
join dlc.video v on v.id = p.video
where p.damage is not null or p.frames_lost > 0 or p.frames <> v.frames
order by p.session, p.recording, p.position
"""

#: Poses in force whose video stores its times in another order, or may do so.
_POSES_TO_TIME = """
select p.session, p.recording, p.position, p.path, p.pose_estimate
from dlc.poses_in_force p
join dlc.video v on v.id = p.video
where v.times_reordered is null or v.times_reordered > 0
order by p.session, p.recording, p.position
"""

_COMPUTED_POSES = """
select session, camera, recording, position, path, model,
       coalesce(inference_parameters, '{}') as inference_parameters
from dlc.poses_in_force
where origin = 'computed'
order by session, recording, position
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


@Question
def pose_table(session: str | None = None) -> Asked:
    """One row for each file of a recording that has poses, with the estimate that is in force.

    `mean_likelihood` and `fraction_confident` are those of the verdict over all body parts; null for poses that nobody
    judged yet.
    """
    return _POSES, {"session": session}


def estimate_table(engine: Engine, sessions: Sequence[str], model: str | None = None) -> "pd.DataFrame":
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
    return frame(engine, _ESTIMATES, sessions=list(sessions), model=model)


def incomplete_poses(engine: Engine) -> "pd.DataFrame":
    """The poses in force that do not stand for every frame that was recorded.

    `frames` are the rows of the video and `rows` those of the poses, of which `frames_lost` are empty.
    """
    return frame(engine, _INCOMPLETE_POSES)


def poses_to_time(engine: Engine) -> "pd.DataFrame":
    """The poses in force whose times may run backwards in their file."""
    return frame(engine, _POSES_TO_TIME)


@Question
def computed_poses() -> Asked:
    """The poses in force that were computed here, with the parameters of their inference; {} for the usual
    parameters."""
    return _COMPUTED_POSES, {}


def tracked_by_both(engine: Engine, project: str, old: str, new: str, most: int) -> "pd.DataFrame":
    """Files that two models tracked, of sessions that no label of the project came from; the newest recordings."""
    return frame(engine, _TRACKED_BY_BOTH, project=project, old=old, new=new, most=most)


@Question
def stale_under(model: str) -> Asked:
    """The sessions with poses in force of cameras that this version may track, and that another version made."""
    return _STALE_UNDER, {"model": model}


@Question
def lineage_table(session: str) -> Asked:
    """The model, labels, parameters and software behind the poses in force of a session, one row for each file."""
    query = "select * from dlc.pose_lineage where session = :session order by recording, position"
    return query, {"session": session}


@Question
def stale_sessions(imported: bool = True) -> Asked:
    """The sessions with poses in force that their production model did not make, the newest recording first.

    Parameters
    ----------
    imported
        True to include sessions all of whose poses were imported.
    """
    return (
        "select * from dlc.stale_sessions where :imported or not imported "
        "order by recorded_at desc, session desc, project"
    ), {"imported": imported}


def record_poses(
    engine: Engine,
    estimate: PoseEstimate,
    materialization: RecordingPoses,
    environment: Mapping[str, Any],
) -> None:
    """Write down an estimate (once) and that it holds the poses of a recording's file from now on."""
    with engine.begin() as connection:
        estimate.environment_id = environment_of(connection, environment)
        insert_product(connection, estimate)
        connection.execute(insert(RecordingPoses).values(**values_of(materialization)))


def pose_estimate(engine: Engine, pose_estimate_id: str) -> PoseEstimate | None:
    """Poses by their identity, with when and by which run they were first made."""
    return first(engine, select(PoseEstimate).where(PoseEstimate.id == pose_estimate_id))


def record_imported_poses(
    engine: Engine,
    estimate: PoseEstimate,
    file_id: int,
    environment: Mapping[str, Any],
    use: bool,
) -> bool:
    """Write down, once, an estimate that was made elsewhere; `source` says where.

    It is in force from now on if the recording's file has no poses yet.

    Parameters
    ----------
    environment
        That of the import.
    use
        Put it in force even if the file has other poses.

    Returns
    -------
    bool
        True if it is in force now.
    """
    with engine.begin() as connection:
        estimate.origin = "imported"
        estimate.environment_id = environment_of(connection, environment)
        insert_product(connection, estimate)
        # One import for a file at a time.
        connection.execute(select(RecordingFile.id).where(RecordingFile.id == file_id).with_for_update())
        in_force = connection.scalar(
            select(RecordingPoses.pose_estimate_id)
            .where(RecordingPoses.recording_file_id == file_id)
            .order_by(RecordingPoses.id.desc())
            .limit(1)
        )
        if in_force is not None and (in_force == estimate.id or not use):
            return in_force == estimate.id
        connection.execute(insert(RecordingPoses).values(recording_file_id=file_id, pose_estimate_id=estimate.id))
    return True
