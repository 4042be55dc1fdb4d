from pathlib import Path

import pytest

from dlc_platform.dlc.matching import match_folders
from dlc_platform.dlc.project import Project
from dlc_platform.identity import sha256_file


def project(folder: Path, *videos: Path) -> Project:
    return Project(folder, "task", "me", ("nose",), (), videos, {})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project's own copy of a video."""
    path = tmp_path / "mouse.mp4"
    path.write_bytes(b"what a camera wrote")
    return path


def test_content_decides_before_the_name(tmp_path: Path, copy: Path) -> None:
    recordings = [
        ("sub-1_ses-1", "mouse", "f" * 64, copy.stat().st_size),
        ("sub-2_ses-1", "renamed", sha256_file(copy), copy.stat().st_size),
    ]
    assert match_folders(project(tmp_path, copy), ["mouse"], recordings) == {"mouse": "sub-2_ses-1"}


def test_the_name_decides_where_it_leaves_no_doubt(tmp_path: Path) -> None:
    recordings = [("sub-1_ses-1", "mouse", "f" * 64, 3), ("sub-1_ses-1", "top", "e" * 64, 3)]
    twice = [*recordings, ("sub-2_ses-1", "top", "d" * 64, 3)]
    assert match_folders(project(tmp_path), ["mouse", "top", "other"], twice) == {"mouse": "sub-1_ses-1"}
    assert match_folders(project(tmp_path), ["top"], recordings) == {"top": "sub-1_ses-1"}


def test_a_video_that_cannot_be_looked_at_lies_elsewhere(tmp_path: Path, copy: Path) -> None:
    # Longer than a path may be: the system refuses to look, as it does in a folder that may not be entered.
    beyond = Path("/", *["folder"] * 1000, "mouse.mp4")
    recordings = [("sub-1_ses-1", "mouse", "f" * 64, 3)]
    assert match_folders(project(tmp_path, beyond), ["mouse"], recordings) == {"mouse": "sub-1_ses-1"}
