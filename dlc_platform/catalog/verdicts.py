"""The scores and verdicts of pose estimates in the catalogue, and lists of poses that do not pass."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.asking import Asked, Question, frame, rows
from dlc_platform.catalog.tables import PoseEstimate, PoseScore, PoseVerdict
from dlc_platform.catalog.writing import every_row, first, overwrite, values_of

if TYPE_CHECKING:
    import pandas as pd


#: The poses in force of a session, with the figures that judging them needs.
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


def poses_to_judge(engine: Engine, session: str) -> "pd.DataFrame":
    """The poses in force of a session, with the figures that judging them needs; `project` is that of the model."""
    return frame(engine, _POSES_TO_JUDGE, session=session)


@Question
def pose_quality(session: str | None = None) -> Asked:
    """One row for each judged file in force, individual and body part or limb; `verdict` is the verdict on the file."""
    return _POSE_QUALITY, {"session": session}


@Question
def poses_that_do_not_pass(most: int) -> Asked:
    """The columns of `pose_quality`, for the newest recordings whose verdict is not pass, over all body parts."""
    return _POSES_THAT_DO_NOT_PASS, {"most": most}


def pose_verdicts(engine: Engine) -> dict[str, int]:
    """The number of recordings with poses in force, by verdict."""
    return {row["verdict"]: row["recordings"] for row in rows(engine, _POSE_VERDICTS)}


def session_verdicts(engine: Engine, sessions: Sequence[str]) -> dict[str, str]:
    """The worst verdict on the poses in force of each of these sessions; sessions without judged poses are left out."""
    return {row["session"]: row["verdict"] for row in rows(engine, _SESSION_VERDICTS, sessions=list(sessions))}


def judged_files(engine: Engine, session: str | None = None) -> dict[str, bool]:
    """The files with poses in force, of one session or of all; true if these were judged by floors."""
    return {row["path"]: row["by_floors"] for row in rows(engine, _JUDGED_FILES, session=session)}


def held_back_poses(engine: Engine, estimates: Sequence[str]) -> "pd.DataFrame":
    """The sessions that are in quarantine for one of these estimates, with the reason."""
    return frame(engine, _HELD_BACK, estimates=list(estimates))


def failing_versions(engine: Engine, project: str) -> "pd.DataFrame":
    """Count the judged estimates of each version of a project, and those that failed."""
    return frame(engine, _FAILING_VERSIONS, project=project)


def record_verdict(engine: Engine, verdict: PoseVerdict, scores: Sequence[PoseScore] | None) -> None:
    """Write down the verdict on an estimate; it replaces the earlier one.

    Parameters
    ----------
    scores
        The new scores; None if the verdict relies on the scores that the catalogue has.
    """
    verdict.judged_at = datetime.now(UTC)
    with engine.begin() as connection:
        # One verdict on an estimate at a time.
        estimate = select(PoseEstimate.id).where(PoseEstimate.id == verdict.pose_estimate_id)
        connection.execute(estimate.with_for_update())
        if scores is not None:
            connection.execute(delete(PoseScore).where(PoseScore.pose_estimate_id == verdict.pose_estimate_id))
            connection.execute(insert(PoseScore), [values_of(score) for score in scores])
        overwrite(connection, [verdict])


def pose_verdict(engine: Engine, pose_estimate_id: str) -> PoseVerdict | None:
    """The verdict on an estimate; None if it was never judged."""
    return first(engine, select(PoseVerdict).where(PoseVerdict.pose_estimate_id == pose_estimate_id))


def pose_scores(engine: Engine, pose_estimate_id: str) -> list[PoseScore]:
    """The scores of an estimate."""
    return every_row(engine, select(PoseScore).where(PoseScore.pose_estimate_id == pose_estimate_id))
