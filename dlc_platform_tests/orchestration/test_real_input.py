"""The whole graph on real input: the open-field project, and sessions of other animals, cameras and codecs.

One epoch from random weights: what the network sees is not judged, only that everything comes out whole and true.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sqlalchemy import Engine

from dlc_platform.orchestration.materialize import materialize
from dlc_platform.platform import Platform
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform_tests.orchestration.conftest import NOTHING_IS_HOPELESS

BODYPARTS = {"snout", "leftear", "rightear", "tailbase"}
OPENFIELD = "sub-m3v1_ses-20181030"


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("DLC_PLATFORM_TEST_DATA")
    if not folder:
        pytest.skip("DLC_PLATFORM_TEST_DATA does not say where the real test data is")
    return Path(folder).resolve()


def content(*folders: Path) -> dict[str, str]:
    """The hash of every file, by its path."""
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def home(data: Path, engine: Engine, tmp_path: Path) -> Iterator[Path]:
    """A lab on the real data: the sessions are links, so that nothing may be written where they lead."""
    raw = tmp_path / "raw"
    for session in ("sub-m3v1/ses-20181030", "sub-dog01/ses-01", "sub-df3d01/ses-01", "sub-bsoid01/ses-02"):
        link = raw / session
        link.parent.mkdir(parents=True)
        link.symlink_to(data / "sessions" / session)
    recipe = {
        "project": "openfield",
        "net_type": "cspnext_s",
        "epochs": 1,
        "batch_size": 8,
        "test_fraction": 0.1,
        "weights": "random",
    }
    # No rule names the video of the open field (it is long), nor the second and third camera of the fly.
    cameras = ("0", "dog_*", "locomote_*")
    settings = {
        "raw_roots": ["raw"],
        "projects": {"openfield": {"path": str(data / "projects/openfield-Pranav-2018-10-30")}},
        "recipes": {"one-epoch": recipe},
        "inference": [{"camera": camera, "project": "openfield"} for camera in cameras],
        # One epoch is hopeless, and by itself nothing would be tracked with it.
        "promotion": NOTHING_IS_HOPELESS,
    }
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(settings))
    os.environ[POSTGRES_VARIABLE] = engine.url.render_as_string(hide_password=False)
    yield tmp_path


def test_real_labels_and_real_sessions(data: Path, home: Path) -> None:
    theirs = content(data / "projects/openfield-Pranav-2018-10-30", data / "sessions")
    said: list[str] = []
    assert materialize(home, "*", [], said.append), "\n".join(said)
    assert content(data / "projects/openfield-Pranav-2018-10-30", data / "sessions") == theirs
    lab = Platform(home)

    sessions = lab.sessions().set_index(["session", "recording"])
    assert sessions["problem"].isna().all()
    frames = {
        (OPENFIELD, "m3v1mp4"): 2330,
        ("sub-dog01_ses-01", "dog_clip"): 296,
        ("sub-df3d01_ses-01", "camera_0"): 15,
        ("sub-df3d01_ses-01", "camera_1"): 15,
        ("sub-df3d01_ses-01", "camera_2"): 15,
        ("sub-bsoid01_ses-02", "locomote_hstacked"): 117,
    }
    assert sessions["frames"].to_dict() == frames
    tracked = {("sub-dog01_ses-01", "dog_clip"), ("sub-df3d01_ses-01", "camera_0")}
    tracked |= {("sub-bsoid01_ses-02", "locomote_hstacked")}
    assert set(sessions.index[sessions["model"].notna()]) == tracked

    model = lab.models().iloc[0]
    assert model["train_images"] + model["test_images"] == 116
    assert model["production"]
    errors = lab.evaluations()
    assert set(errors["bodypart"]) == BODYPARTS | {"all"}
    print(f"test RMSE after one epoch from random weights: {model['test_rmse_px']:.1f} px")
    print(errors[["side", "bodypart", "keypoints", "rmse_px", "median_px"]].to_string(index=False))
    assert errors["rmse_px"].notna().all()

    for session, recording in tracked:
        poses = lab.poses(session)
        assert set(poses["recording"]) == {recording}
        assert set(poses["bodypart"]) == BODYPARTS
        assert len(poses) == 4 * frames[session, recording]
        assert poses["frame"].max() == frames[session, recording] - 1
        assert poses["likelihood"].between(0, 1).all()
        # After one epoch a keypoint may lie anywhere, outside of the picture too; but it is a number.
        assert np.isfinite(poses[["x", "y"]].to_numpy()).all()
        row = lab.lineage(session).iloc[0]
        assert row["model"] == model["model"] and row["dataset"] == model["dataset"]
        # The labelled frames are of m4s1, whose video is not there: no session is said to have taught the model.
        assert row["labelled_sessions"] is None
        assert row["parameters"]["epochs"] == 1
        (h5,) = (lab.settings.store / "poses" / row["pose_estimate"]).glob(f"{recording}DLC_*.h5")
        wide = pd.read_hdf(h5)
        assert len(wide) == frames[session, recording]
        assert set(wide.columns.get_level_values("bodyparts")) == BODYPARTS

    said.clear()
    assert materialize(home, "session_videos,labeled_frames,pose_estimates", [], said.append)
    assert sum(line.endswith("nothing is missing") for line in said) == 3
