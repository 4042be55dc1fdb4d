"""Videos in the catalogue, by their content: figures, damage, accounts of frames, and copies in other sessions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, orm, select, update

from dlc_platform.catalog.asking import frame, rows
from dlc_platform.catalog.tables import Video

if TYPE_CHECKING:
    import pandas as pd


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


def damaged_recordings(engine: Engine) -> "pd.DataFrame":
    """The current files whose video is truncated or damaged, with what is missing from it."""
    return frame(engine, _DAMAGED_RECORDINGS)


def video_figures(engine: Engine, session: str) -> list[Mapping[str, Any]]:
    """The content and the quality of each current file of a session, by column."""
    return rows(engine, _VIDEO_FIGURES, session=session)


def earlier_videos(engine: Engine, camera: str, session: str, most: int) -> list[Mapping[str, Any]]:
    """Size and figures of the newest videos that a camera recorded in other sessions, by column."""
    return rows(engine, _EARLIER_VIDEOS, camera=camera, session=session, most=most)


def repeated_videos(engine: Engine, session: str | None = None, each: bool = False) -> "pd.DataFrame":
    """A row for each video that several files hold: one of these files, another one, and their number.

    Parameters
    ----------
    session
        Give a row for each file of this session whose video another file holds too.
    each
        Give a row for each such file of all sessions; `first` is true for one file of each video.
    """
    return frame(engine, _REPEATED_VIDEOS, session=session, each=each)


def forget_account(engine: Engine, video_id: str) -> None:
    """Have a video read again when its session is next registered, because decoding gave other frames than the known
    ones."""
    with engine.begin() as connection:
        connection.execute(update(Video).where(Video.id == video_id).values(decoder=None))


def registered_video(engine: Engine, video_id: str) -> Video:
    """A registered video."""
    with orm.Session(engine, expire_on_commit=False) as session:
        return session.get_one(Video, video_id)


def unaccounted_videos(engine: Engine) -> set[str]:
    """The videos whose frames must be accounted for: registered before accounts existed, or forgotten since."""
    with engine.connect() as connection:
        return set(connection.scalars(select(Video.id).where(Video.decoder.is_(None))))
