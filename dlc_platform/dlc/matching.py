"""Which session a folder of labelled frames came from.

DeepLabCut names a folder of ``labeled-data`` after the video that its frames were taken from. The videos of a project
are often copies, so content decides first and the name only where it leaves no doubt.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from dlc_platform.dlc.project import Project
from dlc_platform.identity import sha256_file


def match_folders(
    project: Project,
    folders: Collection[str],
    recordings: Sequence[tuple[str, str, str, int]],
) -> dict[str, str]:
    """The session of each folder of labelled frames, where it is known.

    Parameters
    ----------
    recordings
        Session key, recording name, video identity and size in bytes of every registered recording.

    Returns
    -------
    dict
        From a folder's name to a session's key. A folder is left out when no video matches, or several sessions do.
    """
    matches = {}
    for folder in folders:
        videos = [path for path in project.video_paths if path.stem == folder]
        sessions = {session for video in videos for session in _same_content(video, recordings)}
        if not sessions:
            sessions = {session for session, name, _, _ in recordings if name == folder}
        if len(sessions) == 1:
            matches[folder] = sessions.pop()
    return matches


def _same_content(video: Path, recordings: Sequence[tuple[str, str, str, int]]) -> set[str]:
    try:
        size = video.stat().st_size
        same_size = [(session, identity) for session, _, identity, bytes_ in recordings if bytes_ == size]
        if not same_size:
            return set()
        identity = sha256_file(video)
    except OSError:
        # It lies on another machine, or in a folder that only the person who labelled may enter.
        return set()
    return {session for session, other in same_size if other == identity}
