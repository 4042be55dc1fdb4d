"""Estimates the poses of a video in a process of its own: `python -m ... STORE MODEL VIDEO`, a line for each batch.

What it prints at the end says which packages that take long to import were imported on the way.
"""

import sys
from pathlib import Path

from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.identity import sha256_file
from dlc_platform.store import Store


def main(store: Path, model: Path, video: Path) -> None:
    estimator = PoseEstimator(model, Store(store), device="cpu")
    poses = estimator.estimate(
        video, sha256_file(video), on_progress=lambda progress: print(progress.done, progress, flush=True)
    )
    imported = [name for name in ("deeplabcut", "torch", "openvino_telemetry", "sqlalchemy") if sys.modules.get(name)]
    print("poses", poses.id, *imported, flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
