"""The inference of one video as a process of its own, which says how far it is: for `inference` to time and to kill.

Its argument is a JSON object with `model`, `store`, `video`, `video_id`, and, where the video was looked at before,
`frames`. It prints JSON objects, one in a line: what happened, and when by the clock that all processes share.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.store import Store


def say(event: str, **figures: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **figures}), flush=True)


def main() -> None:
    job = json.loads(sys.argv[1])
    has_poses = False

    def look(progress: object) -> None:
        nonlocal has_poses
        if not has_poses:
            has_poses = True
            say("first poses")

    say("begun")
    poses = PoseEstimator(Path(job["model"]), Store(Path(job["store"])), device="cpu").estimate(
        Path(job["video"]),
        job["video_id"],
        whole=True if "frames" in job else None,
        frames=job.get("frames"),
        on_progress=look,
    )
    say("done", poses=str(poses.path), peak_mb=_peak_mb())


def _peak_mb() -> float:
    # VmHWM, because ru_maxrss of a child begins with the memory of its parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
