"""Sessions in the catalogue: their recordings, cameras, files, details and labels."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Row, Select, func, literal, or_, orm, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.asking import Asked, Question, frame
from dlc_platform.catalog.tables import (
    Camera,
    Recording,
    RecordingFile,
    RecordingPoses,
    Session,
    SessionLabels,
    Subject,
    Video,
    VideoQuality,
)
from dlc_platform.catalog.writing import environment_of, every_row, insert_new, overwrite, values_of
from dlc_platform.errors import PlatformError
from dlc_platform.video.registered import KnownFile

if TYPE_CHECKING:
    import pandas as pd


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

_FILES_IN_FORCE = """
select r.session_key, r.name, r.camera, f.position, f.path, f.size_bytes, f.mtime_ns, f.problem, v.frames, v.duration_s,
       v.damage, exists (select from dlc.recording_poses p where p.recording_file_id = f.id) as tracked
from dlc.recording_file f
join dlc.recording r on r.id = f.recording_id
left join dlc.video v on v.id = f.video_id
where f.replaced_at is null
order by r.session_key, r.name, f.position
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


@Question
def session_table(session: str | None = None) -> Asked:
    """One row for each current file of each session, with the model that tracked it or the problem it has."""
    return _SESSIONS, {"session": session}


def detail_table(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """One row for each value that the lab's own tables, or a JSON file beside a video, give a session.

    `of` is ``subject``, ``session`` or the name of the video file; `source` is the file that says so.
    """
    return frame(engine, _DETAILS, session=session)


def register_session(
    engine: Engine,
    session: Session,
    files: Iterable[tuple[RecordingFile, Video | None]],
    environment: Mapping[str, Any] | None = None,
    details: tuple[Any, Any] | None = None,
    qualities: Iterable[VideoQuality] = (),
) -> None:
    """Write down a session and what each of its files holds now.

    A file that is unchanged, or only lies elsewhere or was touched, keeps its row and so its poses; a changed one gets
    a new row and the old row is marked as replaced. The row of a file that is gone is marked as missing, and as
    replaced when its content lies elsewhere in the session now. A new row takes over the poses of a row with the same
    content that is replaced or missing, in any session: a video that moved is not tracked again. If a known video was
    read again, the new figures replace the old ones.

    Parameters
    ----------
    files
        Each with its `recording`, which gives its name and camera, and with its video if it was read.
    environment
        The software that read the videos.
    details
        What the lab's own tables say about the subject and about the session; without it, the earlier details stay.
    qualities
        Of the videos that were read.
    """
    files = list(files)
    with engine.begin() as connection:
        insert_new(connection, Subject(key=session.subject))
        insert_new(connection, session)
        if details is not None:
            _set_details(connection, Subject, session.subject, details[0])
            _set_details(connection, Session, session.key, details[1])
        # Its folder may have been renamed, or moved to another root.
        connection.execute(update(Session).where(Session.key == session.key).values(folder=session.folder))
        # One registration of a session at a time.
        connection.execute(select(Session.key).where(Session.key == session.key).with_for_update())
        # In one order, or two sessions with the same videos could wait for each other for ever.
        for camera in sorted({file.recording.camera for file, _ in files}):
            insert_new(connection, Camera(name=camera))
        read_by = environment_of(connection, environment) if environment else None
        videos = sorted((video for _, video in files if video is not None), key=lambda video: video.id)
        for video in videos:
            video.environment_id = read_by
        overwrite(connection, videos)
        measured = sorted(qualities, key=lambda quality: quality.video_id)
        overwrite(connection, measured)
        recordings = {file.recording.name: _recording(connection, session.key, file.recording) for file, _ in files}
        current = {
            (row.recording_id, row.position): row
            for row in connection.execute(
                select(RecordingFile.__table__)
                .join(Recording.__table__)
                .where(Recording.session_key == session.key, RecordingFile.replaced_at.is_(None))
            )
        }
        new: dict[int, RecordingFile] = {}
        for file, _ in files:
            file.recording_id = recordings[file.recording.name]
            old = current.pop((file.recording_id, file.position), None)
            if old is not None:
                if _same_content(old, file):
                    _move(connection, old, file)
                    continue
                _replace(connection, old.id)
            values = insert(RecordingFile).values(**values_of(file)).returning(RecordingFile.id)
            new[connection.execute(values).scalar_one()] = file
        contents = {file.video_id for file, _ in files}
        for old in current.values():
            if old.video_id is None or old.video_id in contents:
                _replace(connection, old.id)
            elif old.missing_since is None:
                gone = update(RecordingFile).where(RecordingFile.id == old.id)
                connection.execute(gone.values(missing_since=func.now()))
        for file_id, file in new.items():
            _take_over_poses(connection, file_id, file)


def name_session(engine: Engine, session: Session) -> None:
    """Write down that a session exists, whatever happens to its files."""
    with engine.begin() as connection:
        insert_new(connection, Subject(key=session.subject))
        insert_new(connection, session)


def update_details(engine: Engine, subjects: Mapping[str, Any], sessions: Mapping[str, Any]) -> int:
    """Write down what the lab's own tables now say about known subjects and sessions, by their keys.

    Returns
    -------
    int
        The rows that changed.
    """
    changed = 0
    with engine.begin() as connection:
        for table, own in ((Subject, subjects), (Session, sessions)):
            before = dict(connection.execute(select(table.key, table.details)).tuples().all())
            # In one order, or two such calls could wait for each other for ever.
            for key in sorted(key for key in own if key in before and before[key] != own[key]):
                changed += _set_details(connection, table, key, own[key])
    return changed


def all_details(engine: Engine) -> tuple[dict[str, Any], dict[str, Any]]:
    """The details that the lab's own tables gave subjects and sessions, by their keys; those without details are left
    out."""
    with engine.connect() as connection:
        subjects, sessions = (
            dict(connection.execute(select(table.key, table.details).where(table.details.is_not(None))).tuples().all())
            for table in (Subject, Session)
        )
    return subjects, sessions


def known_details(engine: Engine, subject: str, session_key: str) -> tuple[Any, Any]:
    """The details that the lab's own tables gave a subject and a session; None if they gave none."""
    with engine.connect() as connection:
        return (
            connection.scalar(select(Subject.details).where(Subject.key == subject)),
            connection.scalar(select(Session.details).where(Session.key == session_key)),
        )


def session_places(engine: Engine) -> list[tuple[str, str, str, str, list[str]]]:
    """The key, subject, name and folder of every session, and the paths of its current files."""
    place = (Session.key, Session.subject, Session.name, Session.folder)
    statement = (
        select(*place, func.array_agg(RecordingFile.path))
        .join(Recording, Recording.session_key == Session.key)
        .join(RecordingFile, RecordingFile.recording_id == Recording.id)
        .where(RecordingFile.replaced_at.is_(None))
        .group_by(*place)
        .order_by(Session.key)
    )
    with engine.connect() as connection:
        return [
            (key, subject, name, folder, sorted(paths))
            for key, subject, name, folder, paths in connection.execute(statement)
        ]


def registered_cameras(engine: Engine) -> dict[str, str | None]:
    """The known cameras, each with the project that tracks it by the rules that were read last."""
    with engine.connect() as connection:
        rows = connection.execute(select(Camera.name, Camera.project).order_by(Camera.name))
        return {name: project for name, project in rows}


def assign_cameras(
    engine: Engine, project_of: Callable[[str], str | None], only: Collection[str] | None = None
) -> None:
    """Write down the project that tracks each known camera, or only each of `only`, by the present inference rules."""
    cameras = select(Camera.name, Camera.project).order_by(Camera.name)
    if only is not None:
        cameras = cameras.where(Camera.name.in_(only))
    with engine.begin() as connection:
        for name, project in connection.execute(cameras).all():
            if project_of(name) != project:
                connection.execute(update(Camera).where(Camera.name == name).values(project=project_of(name)))


def record_session_labels(engine: Engine, session_key: str, images_by_project: Mapping[str, int]) -> None:
    """Write down how many labelled images each project took from a session."""
    with engine.begin() as connection:
        for project, images in images_by_project.items():
            statement = insert(SessionLabels).values(session_key=session_key, project=project, images=images)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["session_key", "project"], set_={"images": images, "counted_at": func.now()}
                )
            )


def session_keys(engine: Engine) -> set[str]:
    """The sessions that were ever registered."""
    with engine.connect() as connection:
        return set(connection.scalars(select(Session.key)))


def current_files(engine: Engine, session_key: str, missing: bool = False) -> list[RecordingFile]:
    """The files of a session as they were last registered, by recording, in the order of recording.

    Parameters
    ----------
    missing
        Include those that are gone.
    """
    statement = _current().where(Recording.session_key == session_key)
    return every_row(engine, statement if missing else statement.where(RecordingFile.missing_since.is_(None)))


def require_files(engine: Engine, session_key: str) -> list[RecordingFile]:
    """The files of a session that are present, as `current_files` gives them.

    Raises
    ------
    PlatformError
        When the session was never registered, or none of its files is present now.
    """
    files = current_files(engine, session_key)
    if files:
        return files
    gone = current_files(engine, session_key, missing=True)
    if not gone:
        raise PlatformError(f"session {session_key} is not registered", "Materialise session_videos for it first")
    since = min(file.missing_since for file in gone if file.missing_since is not None)
    raise PlatformError(
        f"the videos of session {session_key} are gone since {since:%Y-%m-%d %H:%M} UTC, {gone[0].path} first of all",
        "Bring them back, and the session goes on by itself",
    )


def registered_sessions(engine: Engine) -> set[str]:
    """The sessions whose files were registered."""
    with engine.connect() as connection:
        statement = select(Recording.session_key).join(RecordingFile, RecordingFile.recording_id == Recording.id)
        return set(connection.scalars(statement.where(RecordingFile.replaced_at.is_(None)).distinct()))


def unreadable_sessions(engine: Engine) -> set[str]:
    """The sessions with a file that could not be read."""
    with engine.connect() as connection:
        statement = select(Recording.session_key).join(RecordingFile, RecordingFile.recording_id == Recording.id)
        current = (RecordingFile.replaced_at.is_(None), RecordingFile.problem.is_not(None))
        return set(connection.scalars(statement.where(*current).distinct()))


def labelled_sessions(engine: Engine, projects: Collection[str]) -> set[str]:
    """The sessions whose labels have been counted in all of these projects."""
    statement = (
        select(SessionLabels.session_key)
        .where(SessionLabels.project.in_(projects))
        .group_by(SessionLabels.session_key)
        .having(func.count() == len(projects))
    )
    with engine.connect() as connection:
        return set(connection.scalars(statement))


def known_files(engine: Engine) -> list[KnownFile]:
    """Every readable file of every session, in the order of session, recording and position."""
    statement = (
        select(
            Recording.session_key,
            Recording.camera,
            RecordingFile.path,
            Video.id,
            RecordingFile.size_bytes,
            Video.width,
            Video.height,
        )
        .join(Recording, Recording.id == RecordingFile.recording_id)
        .join(Video, Video.id == RecordingFile.video_id)
        .where(RecordingFile.replaced_at.is_(None))
        .order_by(Recording.session_key, Recording.name, RecordingFile.position)
    )
    with engine.connect() as connection:
        return [
            KnownFile(session, camera, PurePath(path).stem, video, size_bytes, width, height)
            for session, camera, path, video, size_bytes, width, height in connection.execute(statement)
        ]


def files_in_force(engine: Engine) -> Sequence[Row]:
    """The registered files of all sessions that no other file has replaced, with what their videos hold.

    `tracked` says that the file has poses, by whatever model.
    """
    with engine.connect() as connection:
        return connection.execute(text(_FILES_IN_FORCE)).all()


def _current() -> Select[RecordingFile]:
    return (
        select(RecordingFile)
        .join(RecordingFile.recording)
        .where(RecordingFile.replaced_at.is_(None))
        .options(orm.contains_eager(RecordingFile.recording))
        .order_by(Recording.session_key, Recording.name, RecordingFile.position)
    )


def _recording(connection: Connection, session_key: str, recording: Recording) -> int:
    statement = insert(Recording).values(session_key=session_key, name=recording.name, camera=recording.camera)
    return connection.execute(
        statement.on_conflict_do_update(
            index_elements=["session_key", "name"], set_={"camera": statement.excluded.camera}
        ).returning(Recording.id)
    ).scalar_one()


def _same_content(old: Any, new: RecordingFile) -> bool:
    return old.video_id == new.video_id and old.problem == new.problem


def _take_over_poses(connection: Connection, file_id: int, file: RecordingFile) -> None:
    """Give a new row the poses of a row with the same content whose file is gone; of its own project's cameras only."""
    project = select(Camera.project).where(Camera.name == file.recording.camera).scalar_subquery()
    poses = (
        select(literal(file_id), RecordingPoses.pose_estimate_id, RecordingPoses.run_id)
        .join(RecordingFile, RecordingFile.id == RecordingPoses.recording_file_id)
        .join(Recording, Recording.id == RecordingFile.recording_id)
        .join(Camera, Camera.name == Recording.camera)
        .where(
            RecordingFile.video_id == file.video_id,
            RecordingFile.id != file_id,
            or_(RecordingFile.replaced_at.is_not(None), RecordingFile.missing_since.is_not(None)),
            or_(Camera.name == file.recording.camera, Camera.project == project),
        )
        .order_by(RecordingPoses.id.desc())
        .limit(1)
    )
    columns = ["recording_file_id", "pose_estimate_id", "run_id"]
    connection.execute(insert(RecordingPoses).from_select(columns, poses))


def _move(connection: Connection, old: Any, new: RecordingFile) -> None:
    """Write into the row of a file where it lies now, and when it was seen there."""
    place = {field: getattr(new, field) for field in ("path", "size_bytes", "mtime_ns")}
    status = {field: getattr(new, field) for field in ("ctime_ns", "inode")}
    if any(getattr(old, field) != value for field, value in status.items()):
        connection.execute(update(RecordingFile).where(RecordingFile.id == old.id).values(**status))
    if old.missing_since is not None or any(getattr(old, field) != value for field, value in place.items()):
        statement = update(RecordingFile).where(RecordingFile.id == old.id)
        connection.execute(statement.values(**place, registered_at=func.now(), missing_since=None))


def _set_details(
    connection: Connection, table: type[Subject] | type[Session], key: str, details: dict[str, Any] | None
) -> int:
    """Write details into a row; return True if they differ from the earlier ones."""
    statement = update(table).where(
        table.key == key, table.details.is_distinct_from(literal(details, table.details.type))
    )
    return connection.execute(statement.values(details=details)).rowcount


def _replace(connection: Connection, file_id: int) -> None:
    connection.execute(update(RecordingFile).where(RecordingFile.id == file_id).values(replaced_at=func.now()))
