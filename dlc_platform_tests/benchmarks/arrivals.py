"""Many short sessions that arrive at once: what the platform adds to decoding them and running the network.

Run as ``python -m dlc_platform_tests.benchmarks.arrivals``. A lab of its own is brought up with its daemon, the videos
are put below its raw root, and the clock runs until the last session has poses. Before, a single process decodes the
same videos once and runs the same network on them: what is beyond that is the overhead. The network is DeepLabCut's
smallest, with random weights; everything that is written is removed at the end.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml

from dlc_platform.catalog import tables
from dlc_platform.catalog.database import open_lab
from dlc_platform.catalog.promotions import promote
from dlc_platform.demo import lab as material
from dlc_platform.dlc.engine import load_engine
from dlc_platform.estimates.importing import register_model
from dlc_platform.orchestration.up import running
from dlc_platform.platform import Platform
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store
from dlc_platform.video.decode import Decoder, to_bgr
from dlc_platform_tests.benchmarks.inference import export_once
from dlc_platform_tests.benchmarks.networks import random_model
from dlc_platform_tests.benchmarks.videos import draw

_DEADLINE_SECONDS = 3600


def main(
    sessions: int = 200,
    frames: int = 50,
    size: int = 192,
    scan_seconds: int = 2,
    keep: Annotated[Path | None, typer.Option(help="Where the lab goes, to be looked at afterwards.")] = None,
) -> None:
    """Let sessions arrive at once, and print how long it took beyond the bare work."""
    with tempfile.TemporaryDirectory(prefix="arrivals-benchmark-") as folder:
        os.chmod(folder, 0o755)  # the embedded server may run as another user
        home = keep or Path(folder) / "lab"
        lab = material.make_lab(home)
        raw = home / "arrivals"
        raw.mkdir()
        settings = {
            "raw_roots": [str(raw)],
            "projects": {material.PROJECT: {"path": str(lab.project)}},
            "inference": [{"project": material.PROJECT}],
            "settle_seconds": 0,
            "scan_seconds": scan_seconds,
        }
        (home / LAB_FILE).write_text(yaml.safe_dump(settings))
        model = _put_a_model_in_production(home)
        waiting = home / "waiting"
        for number in range(sessions):
            video = waiting / f"sub-{number // 20:03}" / f"ses-{number % 20:03}" / "top.mp4"
            video.parent.mkdir(parents=True)
            draw(video, frames, size, size, seed=number)
        bare = _decode_and_run(model, Store(load_lab(home).store), sorted(waiting.rglob("*.mp4")))
        print(f"{sessions} sessions of {frames} frames of {size}x{size}, cspnext_s, {os.cpu_count()} cores")
        print(f"  decoding once and the network, one process: {bare:.1f} s")
        with running(home, None, print) as services:
            platform = Platform(home)
            started = time.monotonic()
            for subject in sorted(waiting.iterdir()):
                shutil.move(subject, raw)
            first = None
            while (tracked := len(platform.estimates())) < sessions:
                services.check()
                services.check_runs()
                first = first or (time.monotonic() - started if tracked else None)
                if time.monotonic() > started + _DEADLINE_SECONDS:
                    raise SystemExit(f"only {tracked} sessions have poses after {_DEADLINE_SECONDS} s: {services.url}")
                time.sleep(1)
            seconds = time.monotonic() - started
            runs = services.instance.get_runs_count()
        print(
            f"  from arrival to the last poses: {seconds:.1f} s, the first after {first or seconds:.1f} s, {runs} runs"
        )
        print(f"  overhead: {(seconds - bare) / sessions:.2f} s a session")


def _put_a_model_in_production(home: Path) -> Path:
    """Give the lab a network of random weights, with its export for this machine's CPU; its product directory."""
    lab = load_lab(home)
    store = Store(lab.store)
    folder = home / "train"
    path = random_model("cspnext_s", folder, store)
    export_once(path, store, draw(home / "some.mp4", 8, 192, 192))
    engine = open_lab(home)
    model, _ = register_model(engine, store, lab.projects, material.PROJECT, folder)
    promotion = tables.Promotion(
        project=material.PROJECT, model_id=model.id, kind="person", promoted_by="benchmark", reason="the only one"
    )
    promote(engine, promotion, expected=None)
    engine.dispose()
    return path


def _decode_and_run(model: Path, store: Store, videos: list[Path]) -> float:
    """The seconds that one process needs to decode videos once and to run the network on every frame."""
    from av.video.reformatter import VideoReformatter

    engine = load_engine(model, store, device="cpu")
    reformatter = VideoReformatter()

    def run(video: Path) -> None:
        with Decoder(video, whole=True) as decoder:
            pictures = [to_bgr(row.frame, reformatter) for row in decoder.pictures() if row.frame is not None]
        fitting = engine.fitting(pictures[0].shape[1], pictures[0].shape[0])
        size = engine.batch_size(*fitting.input_size)
        for first in range(0, len(pictures), size):
            engine.detect(np.stack([fitting.fit(picture) for picture in pictures[first : first + size]]))

    run(videos[0])  # compiles the network for the size
    started = time.perf_counter()
    for video in videos:
        run(video)
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
