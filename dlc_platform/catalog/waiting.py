"""The waiting sessions and files in the tables: sessions to be registered, and files without poses.

A listing command asks for it, so the tables are not imported as classes. Why each waits, in words, is in `lab.waiting`.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from dlc_platform.catalog.asking import rows

_UNREGISTERED = """
select w.session_key, w.changed_at, w.unready_since, w.left_out,
       (select min(r.path || ': ' || r.problem) from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id
        join dlc.scanned_root r on r.id = f.root_id
        where s.session_key = w.session_key and r.problem is not null) as root_problem
from dlc.waiting_session w
where not exists (select from dlc.quarantine q where q.session_key = w.session_key and q.stage = 'videos'
                  and q.path is null and q.evidence = w.held and q.released_at is null)
order by w.session_key
"""
_UNWRITTEN = """
select distinct on (e ->> 3) e ->> 3 as session_key, e ->> 0 as path, e ->> 1 as reason, f.seen_at
from dlc.scanned_folder f, jsonb_array_elements(f.left_out) e
where starts_with(e ->> 1, :unwritten) and e ->> 3 is not null
order by e ->> 3, e ->> 0
"""
_QUARANTINE = """
select session_key, stage, path, reason, remedy, since from dlc.quarantine where released_at is null
order by session_key, id
"""
_WITHOUT_POSES = """
select r.session_key, r.camera, f.path, f.registered_at, f.missing_since, p.promoted_at, c.project, f.problem, v.damage,
       exists (select from dlc.quarantine q where q.session_key = r.session_key and q.stage = 'videos'
               and q.path = f.path and q.released_by <> 'other evidence') as is_released,
       exists (select from dlc.session_labels l where l.session_key = r.session_key) as is_labelled
from dlc.recording_file f
left join dlc.video v on v.id = f.video_id
join dlc.recording r on r.id = f.recording_id
join dlc.camera c on c.name = r.camera
left join lateral (select min(promoted_at) as promoted_at from dlc.promotion where project = c.project) p on true
where f.replaced_at is null
and not exists (select from dlc.recording_poses m where m.recording_file_id = f.id)
and not exists (select from dlc.quarantine q where q.session_key = r.session_key and q.released_at is null
                and q.stage in ('videos', 'poses') and (q.path is null or q.path = f.path))
and not exists (select from dlc.waiting_session w where w.session_key = r.session_key)
order by r.session_key, f.id
"""


def unregistered_sessions(engine: Engine) -> list[Mapping[str, Any]]:
    """The sessions that wait to be registered, without those that are in quarantine as they are.

    session_key, changed_at, unready_since, left_out (as the scan wrote it), and root_problem, what is wrong with a raw
    root that a file of the session lies in.
    """
    return rows(engine, _UNREGISTERED)


def unwritten_files(engine: Engine, begins: str) -> list[Mapping[str, Any]]:
    """The first file of each session that is left out for a reason which begins so.

    session_key, path, reason, and seen_at, when its folder was listed.
    """
    return rows(engine, _UNWRITTEN, unwritten=begins)


def open_entries(engine: Engine) -> list[Mapping[str, Any]]:
    """Everything that is in quarantine: session_key, stage, path, reason, remedy, since."""
    return rows(engine, _QUARANTINE)


def files_without_poses(engine: Engine) -> list[Mapping[str, Any]]:
    """The files without poses of registered sessions that are not to be looked at, without files in quarantine.

    session_key, camera, path, registered_at, missing_since, project of the camera, and promoted_at, when that project
    had its first model; problem and damage of the video, is_released, if a person let it out of quarantine, and
    is_labelled, if the labels of its session are counted.
    """
    return rows(engine, _WITHOUT_POSES)
