"""A project that says `cropping: true`, in labs with and without a region for it."""

from pathlib import Path

import pytest

from dlc_platform.dlc.project import read_project
from dlc_platform.sessions.cropping import crop_without_region, video_without_region
from dlc_platform.settings.lab import Lab
from dlc_platform.video.registered import KnownFile

CONFIG = "Task: x\nscorer: me\nbodyparts: [nose]\ncropping: true\nx1: 16\nx2: 80\ny1: 8\ny2: 72\n"
RULE = "{camera: '*', session: '*', x: 16, y: 8, width: 64, height: 64}"
WHOLE = {"camera": "top", "x": 0, "y": 0, "width": 96, "height": 96}


def lab(folder: Path, *regions: dict) -> Lab:
    return Lab.model_validate(
        {
            "raw_roots": [folder / "raw"],
            "projects": {"maze": {"path": folder}},
            "inference": [{"project": "maze"}],
            "regions": regions,
        }
    )


def file(camera: str = "top", width: int = 96, height: int = 96) -> KnownFile:
    return KnownFile("sub-1_ses-1", camera, f"{camera}1", "0" * 64, 1, width, height)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("files", [[], [file()], [file("side"), file()]])
def test_a_crop_without_a_region_is_said_with_the_rule(project: Path, files: list[KnownFile]) -> None:
    remark = crop_without_region("maze", read_project(project), lab(project).tracking, files)
    assert remark is not None and "64 x 64 at (16, 8)" in remark.said and RULE in remark.remedy
    assert (f"for {len(files)} of {len(files)} registered videos" in remark.said) == bool(files)


@pytest.mark.parametrize(
    ("files", "regions"),
    [
        ([file()], [WHOLE]),  # somebody has decided
        ([], [WHOLE]),
    ],
)
def test_a_lab_with_a_region_for_it_hears_nothing(project: Path, files: list[KnownFile], regions: list[dict]) -> None:
    assert crop_without_region("maze", read_project(project), lab(project, *regions).tracking, files) is None


def test_a_crop_that_is_the_whole_picture_is_none(project: Path) -> None:
    text = CONFIG.replace("x1: 16", "x1: 0").replace("y1: 8", "y1: 0").replace("x2: 80", "x2: 96")
    (project / "config.yaml").write_text(text.replace("y2: 72", "y2: 96"))
    assert crop_without_region("maze", read_project(project), lab(project).tracking, [file()]) is None
    assert video_without_region(lab(project).projects, lab(project).tracking, "sub-1_ses-1", "top", 96, 96) is None
    assert video_without_region(lab(project).projects, lab(project).tracking, "sub-1_ses-1", "top", 128, 96) is not None


def test_videos_that_are_cropped_differently_are_said(project: Path) -> None:
    videos = "video_sets:\n  a.mp4: {crop: '0, 64, 0, 64'}\n  b.mp4: {crop: '16, 80, 8, 72'}\n"
    (project / "config.yaml").write_text(CONFIG + videos)
    remark = crop_without_region("maze", read_project(project), lab(project).tracking, [])
    assert remark is not None and "0, 64, 0, 64; 16, 80, 8, 72" in remark.said


def test_a_video_that_is_tracked_whole_is_said(project: Path) -> None:
    settings = lab(project)
    remark = video_without_region(settings.projects, settings.tracking, "sub-1_ses-1", "top", 96, 96)
    assert remark is not None and RULE in remark.remedy
    assert video_without_region(settings.projects, lab(project, WHOLE).tracking, "sub-1_ses-1", "top", 96, 96) is None
    (project / "config.yaml").unlink()
    assert video_without_region(lab(project).projects, lab(project).tracking, "sub-1_ses-1", "top", 96, 96) is None
