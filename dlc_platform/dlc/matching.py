"""The origin of a folder of labelled frames: the file and session that they were taken from.

DeepLabCut names a folder of ``labeled-data`` after the video that its frames were taken from. The videos of a project
are often copies, so content decides first, and the name only if it is unambiguous.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from dlc_platform.dlc.project import Project
from dlc_platform.identity import sha256_file
from dlc_platform.video.registered import KnownFile


def match_folders(project: Project, folders: Collection[str], files: Sequence[KnownFile]) -> dict[str, KnownFile]:
    """The file that the frames of each folder were taken from, if it is known.

    Parameters
    ----------
    files
        The files of all registered sessions.

    Returns
    -------
    dict
        From a folder's name to the file, which is the first of them where a session holds it twice. A folder is left
        out when no file matches, or those of several sessions do.
    """
    matches = {}
    for folder in folders:
        videos = [path for path in project.video_paths if path.stem == folder]
        found = [file for video in videos for file in _same_content(video, files)]
        if not found:
            found = [file for file in files if file.name == folder]
        if len({file.session for file in found}) == 1:
            matches[folder] = found[0]
    return matches


def _same_content(video: Path, files: Sequence[KnownFile]) -> list[KnownFile]:
    try:
        size = video.stat().st_size
        same_size = [file for file in files if file.size_bytes == size]
        if not same_size:
            return []
        identity = sha256_file(video)
    except OSError:
        # It lies on another machine, or in a folder that only the person who labelled may enter.
        return []
    return [file for file in same_size if file.video == identity]
