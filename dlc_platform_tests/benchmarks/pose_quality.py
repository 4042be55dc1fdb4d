"""What the scores of a long video cost: time as a multiple of reading its table, and memory beyond the table.

uv run python -m dlc_platform_tests.benchmarks.pose_quality [FRAMES]
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from dlc_platform.pose.reference import Reference, reference_from_labels
from dlc_platform.pose.scores import measure
from dlc_platform.pose.table import SINGLE_ANIMAL, read_parquet, write_parquet

BODYPARTS = [f"part {number}" for number in range(20)]
ROUNDS = 5


def write(path: Path, frames: int) -> None:
    """An animal on a random walk, and at its side labels of 200 of the frames."""
    random = np.random.default_rng(0)
    centre = np.cumsum(random.normal(0, 1, (frames, 2)), axis=0)[:, None]
    points = (centre + random.normal(0, 20, (1, 20, 2)) + random.normal(0, 1, (frames, 20, 2))).astype(np.float32)
    table = pd.DataFrame(
        {
            "frame": np.tile(np.arange(frames, dtype=np.int32), 20),
            "time_s": np.tile(np.arange(frames) / 30, 20),
            "individual": pd.Categorical([SINGLE_ANIMAL] * 20 * frames),
            "bodypart": pd.Categorical.from_codes(np.repeat(np.arange(20), frames), BODYPARTS),  # pyright: ignore
            "x": points[:, :, 0].T.ravel(),
            "y": points[:, :, 1].T.ravel(),
            "likelihood": np.full(20 * frames, 0.9, np.float32),
        }
    )
    write_parquet(table, path)
    table[table["frame"] % (frames // 200) == 0].to_parquet(path.with_suffix(".labels"))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def score(path: Path) -> None:
    labels = pd.read_parquet(path.with_suffix(".labels")).rename(columns={"frame": "image"})
    reference = reference_from_labels(labels)
    assert reference.space is not None and len(reference.limbs) == 19
    measure(read_parquet(path).head(1000), Reference(), 0.6, (1e9, 1e9))  # what is loaded once
    ratios = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        table = read_parquet(path)
        read, before = time.perf_counter() - start, peak_mb()
        start = time.perf_counter()
        measure(table, reference, 0.6, (1e9, 1e9))
        ratios.append((time.perf_counter() - start) / read)
        if number == 0:
            print(f"{len(table)} rows; the peak grows by {peak_mb() - before:.0f} MB while they are scored")
    print(f"{min(ratios):.1f} to {max(ratios):.1f} times as long as reading the table, of {ROUNDS} rounds")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        score(Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            poses = Path(folder) / "poses.parquet"
            write(poses, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
            # In a process of its own, whose peak is not that of writing.
            subprocess.run([sys.executable, "-m", __spec__.name, "score", str(poses)], check=True)
