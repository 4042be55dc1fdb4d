"""Registration of a session: read its files, write down their content, and hold up those that should not be tracked.

`recordings` finds sessions on disk; `video` reads a single file; `catalog` has the rows.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from dlc_platform.catalog import quarantine, tables
from dlc_platform.catalog.sessions import (
    all_details,
    current_files,
    known_details,
    register_session,
    session_places,
    update_details,
)
from dlc_platform.catalog.videos import unaccounted_videos, video_figures
from dlc_platform.dlc.environment import versions
from dlc_platform.errors import MachineFault, PlatformError, command
from dlc_platform.faults import gone, machine_fault
from dlc_platform.identity import sha256_file
from dlc_platform.sessions.listing import time_ns
from dlc_platform.sessions.raw_roots import why_away
from dlc_platform.sessions.recordings import Recording, Session, VideoFile, is_registered, is_touched
from dlc_platform.sessions.sidecars import Sidecars, kept
from dlc_platform.sessions.video_checks import findings
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.quality import VideoRules
from dlc_platform.text.assets import SESSION_VIDEOS
from dlc_platform.text.words import counted
from dlc_platform.video.probe import VideoInfo, probe

#: The largest value of an integer column.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Look:
    """The content of a recording's file: a video, or a problem. `video` is None too if the file is known already.

    `replaced` is true if its content differs from the registered one although size and time are the same.
    """

    recording: Recording
    file: VideoFile
    video: VideoInfo | None
    problem: PlatformError | None
    replaced: bool = False


def register(engine: Engine, session: Session, sidecars: Sidecars | None = None, anew: bool = False) -> list[Look]:
    """Read every new or changed file of a session, and write the session down.

    A file with the path, size and time of its registered row is not decoded again, unless it could not be read, its
    frames are not accounted for, or its bytes changed. Its bytes are compared if its ctime or its inode changed.

    Parameters
    ----------
    sidecars
        The lab's own tables; without them, the earlier details stay.
    anew
        Compare the bytes of every file.
    """
    known = {(row.recording.name, row.position): row for row in current_files(engine, session.key, missing=True)}
    unaccounted = unaccounted_videos(engine)
    looks, rows = [], []
    for recording in session.recordings:
        for position, file in enumerate(recording.files):
            row = known.get((recording.name, position))
            is_read = row is not None and row.problem is None and row.video_id not in unaccounted
            is_same_place = row is not None and is_read and is_registered(file, row)
            if row is not None and is_same_place and (not (anew or is_touched(file, row)) or _has_content(file, row)):
                looks.append(Look(recording, file, None, None))
                # The camera may have another name now.
                row.recording.camera = recording.camera
                row.ctime_ns, row.inode = file.ctime_ns, file.inode
                rows.append((row, None))
                continue
            look = _look(recording, file)
            if is_same_place:
                look = replace(look, replaced=True)
            looks.append(look)
            rows.append((_file_row(position, look), _video_row(look.video) if look.video else None))
    details = None
    if sidecars is not None:
        paths = [look.file.path for look in looks]
        now = sidecars.details(session.folder, session.subject, session.name, paths)
        before = known_details(engine, session.subject, session.key)
        details = (kept(before[0], now.subject, now.unread), kept(before[1], now.session, now.unread))
    register_session(
        engine,
        tables.Session(key=session.key, subject=session.subject, name=session.name, folder=str(session.folder)),
        rows,
        versions() if any(look.video for look in looks) else None,
        details,
        [_quality_row(look.video) for look in looks if look.video],
    )
    return looks


def reread_details(engine: Engine, sidecars: Sidecars) -> int:
    """Write down what the lab's own tables now say about registered sessions; no video is read.

    If a table cannot be read or used now, its earlier details stay. If the folder of a session cannot be read, all of
    the session's details stay.

    Returns
    -------
    int
        The number of subjects and sessions whose details changed.
    """
    subjects: dict[str, Any] = {}
    sessions: dict[str, Any] = {}
    unread: dict[str, set[str]] = defaultdict(set)
    before_subjects, before_sessions = all_details(engine)
    for key, subject, name, folder, paths in session_places(engine):
        details = sidecars.details(Path(folder), subject, name, map(Path, paths))
        unread[subject] |= details.unread
        if folder not in details.unread:
            subjects[subject] = details.subject or subjects.get(subject)
            sessions[key] = kept(before_sessions.get(key), details.session, details.unread)
    subjects = {key: kept(before_subjects.get(key), said, unread[key]) for key, said in subjects.items()}
    return update_details(engine, subjects, sessions)


def _has_content(file: VideoFile, row: tables.RecordingFile) -> bool:
    try:
        return sha256_file(file.path) == row.video_id
    except OSError as error:
        if (fault := machine_fault(error)) is not None:
            raise fault from error
        # The code that reads it says why it cannot be read.
        return False


def require_there(row: tables.RecordingFile, roots: Iterable[Path], layout: Layout, seconds: float) -> None:
    """Make sure that a registered file and its raw root can be read.

    Parameters
    ----------
    seconds
        The seconds that a root may take to answer.

    Raises
    ------
    MachineFault
        When the root is away or does not answer; or when only the file is gone, which the next look will report.
    """
    away = why_away(Path(row.path), roots, layout, seconds)
    if away is not None:
        raise MachineFault(away, "The session goes on by itself when it is back")


def require_unchanged(row: tables.RecordingFile) -> None:
    """Make sure that a registered file has not changed.

    Raises
    ------
    PlatformError
        When the file was replaced since it was registered, or cannot be read.
    MachineFault
        When it is gone.
    """
    again = command("run", "HOME", SESSION_VIDEOS, "--partition", row.recording.session_key)
    try:
        status = Path(row.path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise gone(Path(row.path)) from error
    except OSError as error:
        raise PlatformError(f"{row.path} cannot be read: {error.strerror}", f"Bring it back, then {again}") from error
    if (status.st_size, time_ns(status.st_mtime_ns)) != (row.size_bytes, row.mtime_ns):
        raise PlatformError(f"{row.path} was replaced since it was registered", f"Have it read again first: {again}")


def judge(
    engine: Engine, rules: VideoRules, session_key: str, run_id: str | None = None, *, files_only: bool = False
) -> list[quarantine.Fault]:
    """Put files of a session in quarantine if the present lab.yaml holds them up, and let the others out.

    Parameters
    ----------
    files_only
        The session was not registered just now, so an entry for the whole session stays.

    Returns
    -------
    list of quarantine.Fault
        The faults that hold up a file or the session, without those that a person released.
    """
    faults = _faults(engine, rules, session_key)
    return quarantine.judge(engine, session_key, "videos", faults, run_id, files_only=files_only)


def _faults(engine: Engine, rules: VideoRules, session_key: str) -> list[quarantine.Fault]:
    found = findings(rules, session_key, video_figures(engine, session_key))
    return [finding.fault for finding in found if finding.holds]


def require_trackable(engine: Engine, row: tables.RecordingFile, rules: VideoRules) -> None:
    """Make sure that the present lab.yaml allows poses of a registered file to be made or imported.

    Raises
    ------
    PlatformError
        When the file, or its whole session, must go into quarantine for its videos. `judge` puts it there.
    """
    key = row.recording.session_key
    for fault in quarantine.still_held(engine, key, "videos", _faults(engine, rules, key), files_only=True):
        if fault.path in (None, row.path):
            raise PlatformError(fault.reason, fault.remedy)


def _look(recording: Recording, file: VideoFile) -> Look:
    try:
        video = probe(file.path)
        status = file.path.stat()
        if not video.account.whole and sha256_file(file.path) != video.sha256:
            status = None
    except (PlatformError, OSError) as error:
        if (fault := machine_fault(error)) is not None:
            raise fault from error
        # A disk that disappeared while the file was read cuts the file off.
        if not file.path.exists():
            raise gone(file.path) from error
        if isinstance(error, PlatformError):
            return Look(recording, file, None, error)
        problem = PlatformError(f"{file.path} cannot be read: {error.strerror}", "Check the file and its disk")
        return Look(recording, file, None, problem)
    if status is None or (status.st_size, time_ns(status.st_mtime_ns)) != (file.size, file.mtime_ns):
        problem = PlatformError(
            f"{file.path} changed while it was being read", "Wait until it is written completely and run again"
        )
        return Look(recording, file, None, problem)
    problem = _impossible(file.path, video)
    return Look(recording, file, None if problem else video, problem)


def _impossible(path: Path, video: VideoInfo) -> PlatformError | None:
    """The error for a file whose header makes impossible claims that the catalogue does not accept; None if there are
    none."""
    sizes = (video.width, video.height, video.frames)
    if not (math.isfinite(video.duration_s) and video.duration_s > 0 and video.frame_rate > 0):
        said = f"a length of {video.duration_s:g} s at {float(video.frame_rate):g} frames per second"
    elif max(sizes) > _MOST:
        said = f"{counted(video.frames, 'frame')} of {video.width} x {video.height} pixels"
    else:
        return None
    return PlatformError(
        f"{path} claims {said}, which cannot be",
        "Write it again with a rate of your own, for example `ffmpeg -r 30 -i OLD -c copy NEW`",
    )


def _file_row(position: int, look: Look) -> tables.RecordingFile:
    return tables.RecordingFile(
        recording=tables.Recording(name=look.recording.name, camera=look.recording.camera),
        position=position,
        path=str(look.file.path),
        size_bytes=look.file.size,
        mtime_ns=look.file.mtime_ns,
        ctime_ns=look.file.ctime_ns,
        inode=look.file.inode,
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
        video_streams=video.video_streams,
        frames_left_out=video.account.left_out,
        times_reordered=video.account.times_reordered,
        times_estimated=video.account.times_estimated,
        clock_resets=video.account.clock_resets,
    )


def _quality_row(video: VideoInfo) -> tables.VideoQuality:
    quality = video.quality
    return tables.VideoQuality(
        video_id=video.sha256,
        exposure=quality.exposure,
        fraction_dark=quality.fraction_dark,
        fraction_bright=quality.fraction_bright,
        focus=quality.focus,
        black=[list(stretch) for stretch in quality.black],
        frozen=[list(stretch) for stretch in quality.frozen],
        black_s=quality.black_s,
        frozen_s=quality.frozen_s,
        dropped=quality.dropped,
        longest_gap_s=quality.longest_gap_s,
        jitter_ms=quality.jitter_ms,
    )
