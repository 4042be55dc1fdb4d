"""The daily report: the figures of a day, read from the catalogue.

Everything is counted by the time when it was written down, so a finished day keeps its figures. Work that took hours
belongs to the day on which it ended. The present lab.yaml says which cameras are tracked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, text

from dlc_platform.catalog.asking import Asked, Question
from dlc_platform.catalog.wanted import waiting_sessions
from dlc_platform.errors import PlatformError
from dlc_platform.text.words import counted, lasting

if TYPE_CHECKING:
    import pandas as pd

#: The number of days that the plot and the table of days show, including the report's own.
DAYS_SHOWN = 30

_BEGAN = """
select least((select began_at from dlc.lab_beginning), (select min(registered_at) from dlc.session))
"""

#: True if a GPU ran the network: by the device of the estimate, or, if that was not written down, by its machine.
_HAS_GPU = "coalesce(n.details ->> 'gpu', 'none') <> 'none'"
_ON_GPU = f"coalesce(e.device <> 'cpu', {_HAS_GPU})"

#: Poses that a session got on these days and did not have before; poses put in force again are not new.
_ESTIMATED = """
    from dlc.recording_poses m
    join dlc.pose_estimate e on e.id = m.pose_estimate_id and e.origin = 'computed'
    join dlc.recording_file f on f.id = m.recording_file_id
    join dlc.recording r on r.id = f.recording_id
    left join dlc.pose_verdict q on q.pose_estimate_id = e.id
    where m.materialized_at >= :since and m.materialized_at < :until
    and not exists (
        select from dlc.recording_poses o
        join dlc.recording_file g on g.id = o.recording_file_id
        join dlc.recording s on s.id = g.recording_id
        where o.pose_estimate_id = m.pose_estimate_id and o.id < m.id and s.session_key = r.session_key
    )
"""
#: New files of recordings on these days, of videos that the lab already had in another recording.
_COPIES = """
    from dlc.recording_file f
    join dlc.recording r on r.id = f.recording_id
    where r.registered_at >= :since and r.registered_at < :until and exists (
        select from dlc.recording_file g
        join dlc.recording s on s.id = g.recording_id
        where g.video_id = f.video_id and g.id < f.id and s.id <> r.id
        and (g.replaced_at is null or g.replaced_at > r.registered_at)
        and (g.missing_since is null or g.missing_since > r.registered_at)
    )
"""

_DAYS = f"""
with days as (
    select generate_series(cast(:first as date), cast(:last as date), interval '1 day')::date as day
), arrived as (
    select (registered_at at time zone :zone)::date as day, count(*) as sessions
    from dlc.session where registered_at >= :since and registered_at < :until group by 1
), videos as (
    select (registered_at at time zone :zone)::date as day, sum(duration_s) / 3600 as hours
    from dlc.video where registered_at >= :since and registered_at < :until group by 1
), estimated as (
    select (m.materialized_at at time zone :zone)::date as day, count(distinct r.session_key) as sessions,
           count(distinct r.session_key) filter (where q.verdict = 'fail') as failing
    {_ESTIMATED} group by 1
), copies as (
    select (r.registered_at at time zone :zone)::date as day, count(*) as files
    {_COPIES} group by 1
), inference as (
    select (e.estimated_at at time zone :zone)::date as day, sum(v.duration_s) / 3600 as hours,
           sum(e.seconds) filter (where {_ON_GPU}) / 3600 as gpu_hours,
           sum(e.seconds) filter (where not {_ON_GPU}) / 3600 as cpu_hours
    from dlc.pose_estimate e
    join dlc.video v on v.id = e.video_id
    join dlc.environment n on n.id = e.environment_id
    where e.origin = 'computed' and e.estimated_at >= :since and e.estimated_at < :until
    group by 1
), training as (
    select (t.trained_at at time zone :zone)::date as day, count(*) as models,
           sum(t.seconds) filter (where {_HAS_GPU}) / 3600 as gpu_hours,
           sum(t.seconds) filter (where not {_HAS_GPU}) / 3600 as cpu_hours
    from dlc.training_run t
    join dlc.environment n on n.id = t.environment_id
    where t.trained_at >= :since and t.trained_at < :until
    group by 1
), quarantined as (
    select (since at time zone :zone)::date as day, count(distinct session_key) as sessions
    from dlc.quarantine where since >= :since and since < :until group by 1
)
select d.day, coalesce(a.sessions, 0) as sessions_arrived, coalesce(p.sessions, 0) as sessions_estimated,
       coalesce(p.failing, 0) as sessions_with_bad_poses, coalesce(q.sessions, 0) as sessions_quarantined,
       coalesce(v.hours, 0) as video_hours_arrived,
       coalesce(c.files, 0) as copies_arrived,
       coalesce(i.hours, 0) as video_hours_estimated, coalesce(i.gpu_hours, 0) as inference_gpu_hours,
       coalesce(i.cpu_hours, 0) as inference_cpu_hours, coalesce(t.models, 0) as models_trained,
       coalesce(t.gpu_hours, 0) as training_gpu_hours, coalesce(t.cpu_hours, 0) as training_cpu_hours
from days d
left join arrived a using (day)
left join videos v using (day)
left join estimated p using (day)
left join copies c using (day)
left join inference i using (day)
left join training t using (day)
left join quarantined q using (day)
order by d.day
"""

#: A video, and what it cost, counts once, for the camera that it was first registered with; sessions count for theirs.
_CAMERAS = f"""
with first_camera as (
    select v.id as video, v.duration_s, v.registered_at >= :since and v.registered_at < :until as is_new, x.*
    from dlc.video v
    join lateral (
        select r.camera
        from dlc.recording_file f
        join dlc.recording r on r.id = f.recording_id
        where f.video_id = v.id order by f.id limit 1
    ) x on true
    where v.registered_at >= :since and v.registered_at < :until
    or exists (
        select from dlc.pose_estimate e where e.video_id = v.id and e.estimated_at >= :since and e.estimated_at < :until
    )
), estimates as (
    select e.video_id as video, sum(e.frames) as frames, count(*) as estimates,
           sum(e.seconds) filter (where {_ON_GPU}) / 3600 as gpu_hours,
           sum(e.seconds) filter (where not {_ON_GPU}) / 3600 as cpu_hours
    from dlc.pose_estimate e
    join dlc.environment n on n.id = e.environment_id
    where e.origin = 'computed' and e.estimated_at >= :since and e.estimated_at < :until
    group by 1
), videos as (
    select c.camera, count(*) filter (where c.is_new) as files,
           sum(c.duration_s) filter (where c.is_new) / 3600 as hours, sum(e.frames) as frames,
           sum(c.duration_s * e.estimates) / 3600 as hours_estimated, sum(e.gpu_hours) as gpu_hours,
           sum(e.cpu_hours) as cpu_hours
    from first_camera c
    left join estimates e on e.video = c.video
    group by c.camera
    having bool_or(c.is_new) or count(e.video) > 0
), estimated as (
    select r.camera, count(distinct r.session_key) as sessions {_ESTIMATED} group by 1
), copies as (
    select r.camera, count(*) as files {_COPIES} group by 1
)
select camera, k.project, coalesce(v.files, 0) as files_arrived, coalesce(c.files, 0) as copies_arrived,
       coalesce(v.hours, 0) as video_hours_arrived, coalesce(p.sessions, 0) as sessions_estimated,
       coalesce(v.frames, 0)::bigint as frames_estimated, coalesce(v.hours_estimated, 0) as video_hours_estimated,
       coalesce(v.gpu_hours, 0) as inference_gpu_hours, coalesce(v.cpu_hours, 0) as inference_cpu_hours
from videos v
full join estimated p using (camera)
full join copies c using (camera)
join dlc.camera k on k.name = camera
order by camera
"""

_CAMERA_COLUMNS = ["camera", "project", "files_arrived", "copies_arrived", "video_hours_arrived", "sessions_estimated"]
_CAMERA_COLUMNS += ["frames_estimated", "video_hours_estimated", "inference_gpu_hours", "inference_cpu_hours"]

_IN_QUARANTINE = """
select count(distinct session_key) from dlc.quarantine
where since < :until and (released_at is null or released_at >= :until)
"""


@dataclass(frozen=True)
class DailyReport:
    """A day of the lab.

    Attributes
    ----------
    sessions_arrived, sessions_estimated, sessions_quarantined
        The sessions that were registered, that got new poses, and that were put in quarantine on that day.
    sessions_with_bad_poses
        Those of the sessions estimated on that day whose poses fail by their present verdict.
    sessions_waiting, sessions_in_quarantine
        At the end of the day: sessions with a video that has no poses although its camera is tracked, and sessions in
        quarantine.
    video_hours_arrived, video_hours_estimated
        Hours of video that were new to the lab, and hours for which poses were computed. A copy adds to neither.
    copies_arrived
        Files of videos that the lab already had in another recording.
    inference_gpu_hours, inference_cpu_hours, training_gpu_hours, training_cpu_hours
        The hours that networks ran, by the kind of device.
    by_camera, by_day
        The rows of the tables `cameras` and `days`, by column.
    """

    day: date
    time_zone: str
    sessions_arrived: int
    sessions_estimated: int
    sessions_with_bad_poses: int
    sessions_quarantined: int
    sessions_waiting: int
    sessions_in_quarantine: int
    video_hours_arrived: float
    copies_arrived: int
    video_hours_estimated: float
    models_trained: int
    inference_gpu_hours: float
    inference_cpu_hours: float
    training_gpu_hours: float
    training_cpu_hours: float
    by_camera: Sequence[Mapping[str, Any]]
    by_day: Sequence[Mapping[str, Any]]

    @property
    def cameras(self) -> "pd.DataFrame":
        """One row for each camera with something new.

        Columns: camera, project, files, copies and hours that arrived; sessions, frames and hours that were estimated;
        hours of GPU and CPU.
        """
        import pandas as pd

        return pd.DataFrame(self.by_camera, columns=pd.Index(_CAMERA_COLUMNS))

    @property
    def days(self) -> "pd.DataFrame":
        """One row for each of the last 30 days, this one last, with the figures that belong to a day."""
        import pandas as pd

        return pd.DataFrame(self.by_day)

    def figures(self) -> dict[str, Any]:
        """The figures of the day by name, without the tables."""
        names = [field.name for field in fields(self) if field.name not in ("by_camera", "by_day")]
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        without = counted(self.copies_arrived, "file that is a copy", "files that are copies")
        copies = f", without {without}" if self.copies_arrived else ""
        return (
            f"{counted(self.sessions_arrived, 'session')} arrived ({lasting(self.video_hours_arrived)} of "
            f"video{copies}), "
            f"{counted(self.sessions_estimated, 'was', 'were')} estimated ({lasting(self.video_hours_estimated)}), "
            f"{self.sessions_with_bad_poses} of them with poses that fail, "
            f"{self.sessions_quarantined} put in quarantine. At the end of the day {self.sessions_waiting} waited and "
            f"{counted(self.sessions_in_quarantine, 'was', 'were')} in quarantine. "
            f"Inference: {lasting(self.inference_gpu_hours)} of GPU, {lasting(self.inference_cpu_hours)} of CPU; "
            f"training of {counted(self.models_trained, 'model')}: {lasting(self.training_gpu_hours)} of GPU, "
            f"{lasting(self.training_cpu_hours)} of CPU."
        )


def yesterday(time_zone: str) -> date:
    """The last finished day in a time zone."""
    return datetime.now(ZoneInfo(time_zone)).date() - timedelta(days=1)


def first_day(engine: Engine, time_zone: str) -> date:
    """The day on which the lab began: its catalogue was made, or its first session registered."""
    with engine.connect() as connection:
        began: datetime = connection.execute(text(_BEGAN)).scalar_one()
    return began.astimezone(ZoneInfo(time_zone)).date()


def require_reported(engine: Engine, day: date, time_zone: str) -> None:
    """
    Raises
    ------
    PlatformError
        When a day can have no report: it has not begun, or is before the lab's first day.
    """
    first, today = first_day(engine, time_zone), yesterday(time_zone) + timedelta(days=1)
    if day > today:
        raise PlatformError(f"{day} has not begun in {time_zone}", f"Choose a day until {today}")
    if day < first:
        raise PlatformError(f"{day} is before the lab began, on {first}", f"Choose a day from {first} on")


def daily_report(engine: Engine, day: date, time_zone: str, damaged_videos: str) -> DailyReport:
    """The report of a day, from midnight to midnight in a time zone, even if that is 23 or 25 hours.

    Parameters
    ----------
    damaged_videos
        The rule of lab.yaml, which decides if a damaged video waits for poses.
    """
    first = day - timedelta(days=DAYS_SHOWN - 1)
    until = _midnight(day + timedelta(days=1), time_zone)
    span = {"first": first, "last": day, "zone": time_zone, "since": _midnight(first, time_zone), "until": until}
    by_day = _figures.rows(engine, _DAYS, span)
    by_camera = _figures.rows(engine, _CAMERAS, {"since": _midnight(day, time_zone), "until": until})
    with engine.connect() as connection:
        in_quarantine = connection.scalar(text(_IN_QUARANTINE), {"until": until})
    own = {name: value for name, value in by_day[-1].items() if name != "day"}
    return DailyReport(
        day=day,
        time_zone=time_zone,
        sessions_waiting=waiting_sessions(engine, until, damaged_videos),
        sessions_in_quarantine=in_quarantine or 0,
        by_camera=by_camera,
        by_day=by_day,
        **own,
    )


@Question
def _figures(query: str, span: dict[str, Any]) -> Asked:
    return query, span


def _midnight(day: date, time_zone: str) -> datetime:
    return datetime.combine(day, time_of_day(), ZoneInfo(time_zone))
