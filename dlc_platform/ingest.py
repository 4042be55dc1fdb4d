"""Looking at a session's files and writing down what they hold.

Finding sessions on disk is in `sessions`; what a single file holds is in `video`; the rows are in `catalog`.
"""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from dlc_platform.catalog import registry, tables
from dlc_platform.dlc.environment import versions
from dlc_platform.errors import PlatformError
from dlc_platform.sessions import Recording, Session, VideoFile
from dlc_platform.video.decode import COPY_AGAIN
from dlc_platform.video.probe import VideoInfo, probe


@dataclass(frozen=True)
class Look:
    """What a recording's file holds: a video, or a problem; `video` is None too when the file is known already."""

    recording: Recording
    file: VideoFile
    video: VideoInfo | None
    problem: PlatformError | None


def register(engine: Engine, session: Session) -> list[Look]:
    """Look at every file of a session that is new or changed, and write the session down.

    A file whose path, size and time are those of its registered row is not read again, unless it could not be read or
    its frames are not accounted for.
    """
    known = {
        (row.recording.name, row.position): row for row in registry.current_files(engine, session.key, missing=True)
    }
    unaccounted = registry.unaccounted_videos(engine)
    looks, rows = [], []
    for recording in session.recordings:
        for position, file in enumerate(recording.files):
            row = known.get((recording.name, position))
            is_read = row is not None and row.problem is None and row.video_id not in unaccounted
            if row is not None and is_read and is_registered(file, row):
                looks.append(Look(recording, file, None, None))
                # The camera may be called otherwise now.
                row.recording.camera = recording.camera
                rows.append((row, None))
                continue
            look = _look(recording, file)
            looks.append(look)
            rows.append((_file_row(position, look), _video_row(look.video) if look.video else None))
    registry.register_session(
        engine,
        tables.Session(key=session.key, subject=session.subject, name=session.name, folder=str(session.folder)),
        rows,
        versions() if any(look.video for look in looks) else None,
    )
    return looks


def is_registered(file: VideoFile, row: tables.RecordingFile) -> bool:
    """True when a registered row speaks of this very file, as far as its place, size and time can tell."""
    return (row.path, row.size_bytes, row.mtime_ns) == (str(file.path), file.size, file.mtime_ns)


def require_unchanged(row: tables.RecordingFile) -> None:
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


def require_trackable(engine: Engine, row: tables.RecordingFile, damaged_videos: str) -> None:
    """Make sure that poses of a registered file may be made, or imported.

    Parameters
    ----------
    damaged_videos
        The rule of lab.yaml: ``stop`` or ``track``.

    Raises
    ------
    PlatformError
        When its video is truncated or damaged, and the rule is to stop there.
    """
    damage = registry.damaged_videos(engine).get(row.video_id or "")
    if damage is not None and damaged_videos == "stop":
        raise PlatformError(
            f"{row.path} is {damage}",
            f"{COPY_AGAIN}, or write `damaged_videos: track` into lab.yaml to have tracked what can be decoded",
        )


def _look(recording: Recording, file: VideoFile) -> Look:
    try:
        video = probe(file.path)
        status = file.path.stat()
    except PlatformError as problem:
        return Look(recording, file, None, problem)
    except OSError as error:
        problem = PlatformError(f"{file.path} cannot be read: {error.strerror}", "Check the file and its disk")
        return Look(recording, file, None, problem)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        problem = PlatformError(
            f"{file.path} changed while it was being read", "Wait until it is written completely and run again"
        )
        return Look(recording, file, None, problem)
    return Look(recording, file, video, None)


def _file_row(position: int, look: Look) -> tables.RecordingFile:
    return tables.RecordingFile(
        recording=tables.Recording(name=look.recording.name, camera=look.recording.camera),
        position=position,
        path=str(look.file.path),
        size_bytes=look.file.size,
        mtime_ns=look.file.mtime_ns,
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
        frames_declared=video.account.declared,
        frames_lost=video.account.lost,
        frames_damaged=video.account.damaged,
        frames_missing_at_end=video.account.missing_at_end,
        truncated=video.account.truncated,
        duplicated_timestamps=video.account.duplicated_timestamps,
        variable_frame_rate=video.account.variable_frame_rate,
        damage=video.account.damage,
        decoder=video.account.decoder,
        duration_s=video.duration_s,
        codec=video.codec,
        pixel_format=video.pixel_format,
        rotation=video.rotation,
        start_time=video.start_time,
    )
