"""Looking at a session's files and writing down what they hold.

Finding sessions on disk is in `sessions`; what a single file holds is in `video`; the rows are in `catalog`.
"""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from dlc_platform.catalog import registry, tables
from dlc_platform.errors import PlatformError
from dlc_platform.sessions import Recording, Session
from dlc_platform.video.probe import VideoInfo, probe


@dataclass(frozen=True)
class Look:
    """What a recording's file holds: a video, or a problem; `video` is None too when the file is known already."""

    recording: Recording
    video: VideoInfo | None
    problem: PlatformError | None


def register(engine: Engine, session: Session) -> list[Look]:
    """Look at every file of a session that is new or changed, and write the session down.

    A file whose path, size and time are those of its registered row is not read again, unless it could not be read.
    """
    known = {row.name: row for row in registry.current_recordings(engine, session.key)}
    looks, rows = [], []
    for recording in session.recordings:
        row = known.get(recording.name)
        if row is not None and row.problem is None and is_registered(recording, row):
            looks.append(Look(recording, None, None))
            rows.append((row, None))
            continue
        look = _look(recording)
        looks.append(look)
        rows.append((_recording_row(session.key, look), _video_row(look.video) if look.video else None))
    registry.register_session(
        engine,
        tables.Session(key=session.key, subject=session.subject, name=session.name, folder=str(session.folder)),
        rows,
    )
    return looks


def is_registered(recording: Recording, row: tables.Recording) -> bool:
    """True when a registered row speaks of this very file, as far as its place, size and time can tell."""
    return (row.path, row.size_bytes, row.mtime_ns) == (str(recording.path), recording.size, recording.mtime_ns)


def require_unchanged(row: tables.Recording) -> None:
    """Make sure that a registered file is still what it was.

    Raises
    ------
    PlatformError
        When the file is gone or was replaced since it was registered.
    """
    try:
        status = Path(row.path).stat()
    except OSError as error:
        raise PlatformError(
            f"{row.path} cannot be read: {error.strerror}", "Bring it back and materialise session_videos again"
        ) from error
    if (status.st_size, status.st_mtime_ns) != (row.size_bytes, row.mtime_ns):
        raise PlatformError(
            f"{row.path} was replaced since it was registered", "Materialise session_videos for its session first"
        )


def _look(recording: Recording) -> Look:
    try:
        video = probe(recording.path)
        status = recording.path.stat()
    except PlatformError as problem:
        return Look(recording, None, problem)
    except OSError as error:
        problem = PlatformError(f"{recording.path} cannot be read: {error.strerror}", "Check the file and its disk")
        return Look(recording, None, problem)
    if (status.st_size, status.st_mtime_ns) != (recording.size, recording.mtime_ns):
        problem = PlatformError(
            f"{recording.path} changed while it was being read", "Wait until it is written completely and run again"
        )
        return Look(recording, None, problem)
    return Look(recording, video, None)


def _recording_row(session_key: str, look: Look) -> tables.Recording:
    return tables.Recording(
        session_key=session_key,
        name=look.recording.name,
        camera=look.recording.camera,
        path=str(look.recording.path),
        size_bytes=look.recording.size,
        mtime_ns=look.recording.mtime_ns,
        video_id=look.video.sha256 if look.video else None,
        problem=str(look.problem) if look.problem else None,
    )


def _video_row(video: VideoInfo) -> tables.Video:
    return tables.Video(
        id=video.sha256,
        size_bytes=video.size_bytes,
        width=video.width,
        height=video.height,
        frame_rate_numerator=video.frame_rate.numerator,
        frame_rate_denominator=video.frame_rate.denominator,
        frames=video.frames,
        frames_declared=video.frames_declared,
        duration_s=video.duration_s,
        codec=video.codec,
        pixel_format=video.pixel_format,
        rotation=video.rotation,
    )
