from pathlib import Path

import pytest

from dlc_platform.dlc.matching import match_folders
from dlc_platform.dlc.project import Project
from dlc_platform.identity import sha256_file
from dlc_platform.video.registered import KnownFile


def project(folder: Path, *videos: Path) -> Project:
    return Project(folder, "task", "me", ("nose",), (), videos, None, {})


def known(session: str, name: str, video: str, size_bytes: int, camera: str = "top") -> KnownFile:
    return KnownFile(session, camera, name, video, size_bytes, 640, 480)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's own copy of a video."""
    path = tmp_path / "mouse.mp4"
    path.write_bytes(b"what a camera wrote")
    return path


def test_content_decides_before_the_name(tmp_path: Path, copy: Path) -> None:
    other = known("sub-1_ses-1", "mouse", "f" * 64, copy.stat().st_size)
    same = known("sub-2_ses-1", "renamed", sha256_file(copy), copy.stat().st_size)
    assert match_folders(project(tmp_path, copy), ["mouse"], [other, same]) == {"mouse": same}


def test_the_name_decides_where_it_leaves_no_doubt(tmp_path: Path) -> None:
    mouse, top = known("sub-1_ses-1", "mouse", "f" * 64, 3), known("sub-1_ses-1", "top", "e" * 64, 3)
    twice = [mouse, top, known("sub-2_ses-1", "top", "d" * 64, 3)]
    assert match_folders(project(tmp_path), ["mouse", "top", "other"], twice) == {"mouse": mouse}
    assert match_folders(project(tmp_path), ["top"], [mouse, top]) == {"top": top}


def test_of_two_equal_files_of_one_session_the_first_is_taken(tmp_path: Path, copy: Path) -> None:
    size, content = copy.stat().st_size, sha256_file(copy)
    files = [known("sub-1_ses-1", "a", content, size), known("sub-1_ses-1", "b", content, size, camera="side")]
    assert match_folders(project(tmp_path, copy), ["mouse"], files) == {"mouse": files[0]}


def test_a_video_that_cannot_be_looked_at_lies_elsewhere(tmp_path: Path, copy: Path) -> None:
    # Longer than a path may be: the system refuses to look, as it does in a folder that may not be entered.
    beyond = Path("/", *["folder"] * 1000, "mouse.mp4")
    mouse = known("sub-1_ses-1", "mouse", "f" * 64, 3)
    assert match_folders(project(tmp_path, beyond), ["mouse"], [mouse]) == {"mouse": mouse}
