"""The demo's lab on disk: raw sessions, a labelled DeepLabCut project, sessions that arrive later, and the truth.

The use of the lab (with `lab.yaml`, Postgres, Dagster) belongs to the story of the demo, the look of its videos to
`dlc_platform.demo.render`.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from dlc_platform.demo import render
from dlc_platform.settings.recipes import Recipe, Transforms

if TYPE_CHECKING:
    import pandas as pd

PROJECT = "arena"
SCORER = "demo"
#: Sessions of the project, and sessions without labels: (subject, session), rendered from the number beside it.
LABELLED = {(f"00{subject}", f"00{session}"): 10 * subject + session for subject in range(1, 5) for session in (1, 2)}
UNSEEN = {("005", "001"): 51, ("005", "002"): 52}
LABELLED_FRAMES = 12  # from each session
LABELLED_LENGTH = 60  # frames of its video

RECIPE = Recipe(
    project=PROJECT,
    net_type="cspnext_s",
    epochs=35,
    batch_size=4,
    learning_rate=7e-4,
    transforms=Transforms(rotation=180, scale=(0.85, 1.2), noise=8, motion_blur=False),
    test_fraction=0.15,
    seed=1,
    weights="random",
)


@dataclass(frozen=True)
class DemoLab:
    """The places of the demo's files: the raw root, the DeepLabCut project, and the true positions outside of both."""

    home: Path
    raw: Path
    project: Path
    truth: Path


@dataclass(frozen=True)
class Drop:
    """A session that arrived: its key, its video, and the table of its true positions (Parquet)."""

    session: str
    video: Path
    truth: Path


def make_lab(home: Path) -> DemoLab:
    """Render the labelled sessions into ``home/raw`` and write the DeepLabCut project with their labels."""
    lab = DemoLab(home, home / "raw", home / f"{PROJECT}-{SCORER}-2026-01-01", home / "truth")
    lab.truth.mkdir(parents=True)
    videos = []
    for name, seed in LABELLED.items():
        rendering = render.render(seed, LABELLED_LENGTH)
        video = _video_path(lab.raw, *name)
        video.parent.mkdir(parents=True)
        render.write_video(video, rendering.frames)
        _write_truth(lab, name, rendering)
        _write_labels(lab.project, video, rendering, seed)
        videos.append(video)
    _write_config(lab.project, videos)
    return lab


def drop_sessions(lab: DemoLab, frames: int = 150, steps: int = 12, pause: float = 0.5) -> list[Drop]:
    """Let the unseen sessions appear in the raw root as from a camera: each file grows in place until it is complete.

    Parameters
    ----------
    frames
        Length of each session.
    steps, pause
        The number of pieces in which each file grows, and the seconds between two pieces.
    """
    drops = []
    for name, seed in UNSEEN.items():
        rendering = render.render(seed, frames)
        video = _video_path(lab.raw, *name)
        with tempfile.TemporaryDirectory() as folder:
            recorded = Path(folder) / video.name
            render.write_video(recorded, rendering.frames)
            content = recorded.read_bytes()
        truth = _write_truth(lab, name, rendering)
        video.parent.mkdir(parents=True)
        _grow(video, content, steps, pause)
        drops.append(Drop(_key(*name), video, truth))
    return drops


def position_errors(poses: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The distance of each pose of a recording from the truth.

    Parameters
    ----------
    poses
        Tidy pose table with columns frame, bodypart, x, y of one recording of one individual.
    truth
        Columns recording, frame, bodypart, x, y.

    Returns
    -------
    The rows of `truth` with a column `error`: pixels, NaN where there is no estimate.
    """
    both = truth.merge(
        poses[["frame", "bodypart", "x", "y"]], on=["frame", "bodypart"], how="left", suffixes=("", "_pose")
    )
    error = np.hypot(both["x_pose"] - both["x"], both["y_pose"] - both["y"])
    return truth.reset_index(drop=True).assign(error=error)


def _key(subject: str, session: str) -> str:
    return f"sub-{subject}_ses-{session}"


def _video_path(raw: Path, subject: str, session: str) -> Path:
    return raw / f"sub-{subject}" / f"ses-{session}" / "behav" / f"{_key(subject, session)}_cam-top.mp4"


def _write_truth(lab: DemoLab, name: tuple[str, str], rendering: render.Rendering) -> Path:
    import pandas as pd

    frames, bodyparts, _ = rendering.keypoints.shape
    table = pd.DataFrame(
        {
            "recording": _video_path(lab.raw, *name).stem,
            "frame": np.repeat(np.arange(frames), bodyparts),
            "bodypart": list(render.BODYPARTS) * frames,
            "x": rendering.keypoints[:, :, 0].ravel(),
            "y": rendering.keypoints[:, :, 1].ravel(),
        }
    )
    path = lab.truth / f"{_key(*name)}.parquet"
    table.to_parquet(path, index=False)
    return path


def _write_labels(project: Path, video: Path, rendering: render.Rendering, seed: int) -> None:
    """Frames and their table, as DeepLabCut's extraction and napari leave them."""
    import pandas as pd
    from PIL import Image

    from dlc_platform.video.opening import open_video

    folder = project / "labeled-data" / video.stem
    folder.mkdir(parents=True)
    # One frame from each stretch of the video, somewhere in it.
    edges = np.linspace(0, len(rendering.frames), LABELLED_FRAMES + 1).astype(int)
    rng = np.random.default_rng(seed)
    chosen = {int(rng.integers(low, high)) for low, high in itertools.pairwise(edges)}
    names = {index: f"img{index:04d}.png" for index in sorted(chosen)}
    with open_video(video) as (container, stream):
        # A person labels the decoded video, with the traces of its compression.
        for index, frame in enumerate(container.decode(stream)):
            if index in names:
                Image.fromarray(frame.to_ndarray(format="rgb24")).save(folder / names[index])
    table = pd.DataFrame(
        rendering.keypoints[list(names)].reshape(len(names), -1).round(2),
        index=pd.MultiIndex.from_tuples([("labeled-data", video.stem, name) for name in names.values()]),
        columns=pd.MultiIndex.from_product(
            [[SCORER], render.BODYPARTS, ["x", "y"]], names=["scorer", "bodyparts", "coords"]
        ),
    )
    table.to_csv(folder / f"CollectedData_{SCORER}.csv")
    table.to_hdf(folder / f"CollectedData_{SCORER}.h5", key="df_with_missing", mode="w")


def _write_config(project: Path, videos: list[Path]) -> None:
    crop = f"0, {render.SIZE}, 0, {render.SIZE}"
    config = {
        "Task": PROJECT,
        "scorer": SCORER,
        "date": "Jan1",
        "multianimalproject": False,
        "identity": None,
        "project_path": str(project.absolute()),
        "engine": "pytorch",
        "video_sets": {str(video.absolute()): {"crop": crop} for video in videos},
        "bodyparts": list(render.BODYPARTS),
        "start": 0,
        "stop": 1,
        "numframes2pick": LABELLED_FRAMES,
        "skeleton": [list(pair) for pair in render.SKELETON],
        "skeleton_color": "black",
        "pcutoff": 0.6,
        "dotsize": 4,
        "alphavalue": 0.7,
        "colormap": "rainbow",
        "TrainingFraction": [0.85],
        "iteration": 0,
        "default_net_type": RECIPE.net_type,
        "default_augmenter": "albumentations",
        "snapshotindex": -1,
        "detector_snapshotindex": -1,
        "batch_size": 8,
        "detector_batch_size": 1,
        "cropping": False,
        "x1": 0,
        "x2": render.SIZE,
        "y1": 0,
        "y2": render.SIZE,
        "corner2move2": [50, 50],
        "move2corner": True,
    }
    (project / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def _grow(path: Path, content: bytes, steps: int, pause: float) -> None:
    piece = -(-len(content) // steps)
    with open(path, "xb") as file:
        for start in range(0, len(content), piece):
            file.write(content[start : start + piece])
            file.flush()
            os.fsync(file.fileno())
            time.sleep(pause)
