"""The demo's lab: a project that DeepLabCut accepts, and sessions that arrive as from a camera."""

import re
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dlc_platform.demo import lab as demo
from dlc_platform.demo import render
from dlc_platform.demo.story import write_settings
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import check_with_deeplabcut, read_project
from dlc_platform.lab.new_lab import make_lab
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.loading import load_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoLab:
    return demo.make_lab(tmp_path_factory.mktemp("demo") / "lab")


def test_the_project_is_accepted(lab: demo.DemoLab) -> None:
    project = read_project(lab.project)
    assert project.bodyparts == render.BODYPARTS
    assert project.skeleton == render.SKELETON
    assert sorted(project.video_paths) == sorted(lab.raw.rglob("*.mp4"))
    check_with_deeplabcut(project)


def test_the_demos_lab_yaml_is_explained_as_that_of_init(lab: demo.DemoLab, tmp_path: Path) -> None:
    write_settings(lab)
    written = (lab.home / "lab.yaml").read_text(encoding="utf-8")
    settings = load_lab(lab.home)
    assert settings.recipes == {"arena-cspnext": demo.RECIPE}
    assert settings.split_of("arena-cspnext") == (demo.RECIPE.seed, demo.RECIPE.test_fraction)
    assert (settings.tracking.project_of("top"), settings.tracking.project_of("side"), settings.settle_seconds) == (
        "arena",
        None,
        4,
    )
    own = make_lab(tmp_path / "own", [lab.raw], [lab.project])

    def comments(text: str, home: Path) -> set[str]:
        lines = text.replace(str(home), "HOME").splitlines()
        return {line for line in lines if line.startswith("#") and "of 96 labelled images" not in line}

    explained = comments(own.read_text(encoding="utf-8"), own.parent)
    assert comments(written, lab.home) == explained and len(explained) > 70


def test_labels_are_the_truth_of_their_frames(lab: demo.DemoLab) -> None:
    labels = read_labels(read_project(lab.project))
    assert (labels.unlabelled, labels.outside) == (0, 0)
    assert len(labels.images) == len(demo.LABELLED) * demo.LABELLED_FRAMES
    assert labels.images["sha256"].is_unique
    points = labels.points.assign(frame=labels.points["file"].str.extract(r"img(\d+)\.png", expand=False).astype(int))
    truth = pd.concat(pd.read_parquet(path) for path in lab.truth.glob("*.parquet"))
    both = points.merge(
        truth, left_on=["folder", "frame", "bodypart"], right_on=["recording", "frame", "bodypart"], how="left"
    )
    assert np.abs(both[["x_x", "y_x"]].to_numpy() - both[["x_y", "y_y"]].to_numpy()).max() <= 0.005


def test_labelled_images_are_frames_of_the_video(lab: demo.DemoLab) -> None:
    video = sorted(lab.raw.rglob("*.mp4"))[0]
    images = sorted((lab.project / "labeled-data" / video.stem).glob("*.png"))
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for image in images:
        assert np.array_equal(np.asarray(Image.open(image)), frames[int(image.stem.removeprefix("img"))])


def test_both_label_tables_say_the_same(lab: demo.DemoLab) -> None:
    for table in lab.project.rglob("CollectedData_*.csv"):
        from_csv = pd.read_csv(table, header=[0, 1, 2], index_col=[0, 1, 2])
        from_h5 = pd.read_hdf(table.with_suffix(".h5"))
        assert isinstance(from_h5, pd.DataFrame)
        pd.testing.assert_frame_equal(from_csv, from_h5, check_names=False)


def test_a_dropped_video_grows_and_is_whole_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = demo.DemoLab(tmp_path, tmp_path / "raw", tmp_path / "project", tmp_path / "truth")
    lab.truth.mkdir()
    sizes: dict[str, list[int]] = {}

    def look(seconds: float) -> None:
        for video in lab.raw.rglob("*.mp4"):
            sizes.setdefault(video.stem, []).append(video.stat().st_size)

    monkeypatch.setattr(demo.time, "sleep", look)
    drops = demo.drop_sessions(lab, frames=8, steps=5)
    assert [drop.session for drop in drops] == ["sub-005_ses-001", "sub-005_ses-002"]
    assert not set(demo.UNSEEN) & set(demo.LABELLED)
    for drop in drops:
        grown = sizes[drop.video.stem][:5]
        assert grown == sorted(set(grown))
        assert grown[-1] == drop.video.stat().st_size
        found = re.fullmatch(Layout().pattern, drop.video.relative_to(lab.raw).as_posix())
        assert found is not None
        assert f"sub-{found['subject']}_ses-{found['session']}" == drop.session
        with av.open(str(drop.video)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8
        truth = pd.read_parquet(drop.truth)
        assert list(truth.columns) == ["recording", "frame", "bodypart", "x", "y"]
        assert len(truth) == 8 * len(render.BODYPARTS)
        assert set(truth["recording"]) == {drop.video.stem}
    assert not lab.truth.is_relative_to(lab.raw)


def test_position_errors_are_distances_in_pixels() -> None:
    truth = pd.DataFrame(
        {"recording": "r", "frame": [0, 0, 1], "bodypart": ["snout", "tailbase", "snout"], "x": 10.0, "y": 20.0}
    )
    poses = pd.DataFrame(
        {"recording": "r", "frame": [1, 0], "bodypart": ["snout", "snout"], "x": [13.0, 10.0], "y": [24.0, 20.0]}
    )
    errors = demo.position_errors(poses, truth)
    assert list(errors["bodypart"]) == ["snout", "tailbase", "snout"]
    np.testing.assert_array_equal(errors["error"], [0.0, np.nan, 5.0])
