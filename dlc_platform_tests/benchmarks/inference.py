"""What inference costs, held against DeepLabCut's `analyze_videos`; how far it is from what the machine can do; and
that it keeps its promises of memory and of interruptions.

Run as ``python -m dlc_platform_tests.benchmarks.inference PART``; ``--help`` lists the parts, and ``PART --help`` their
options. The real video is the open-field one of the test data, from DLC_PLATFORM_TEST_DATA, or ``--video``. Networks
have random weights, or are the model of a store that ``--model`` names. What is compared takes turns; everything that
is written is removed at the end.
"""

import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dlc_platform.dlc.backends import Precision, PyTorch
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.exports import TOLERANCE_LIKELIHOOD, TOLERANCE_PX
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.dlc.network import CONFIG_FILE, SNAPSHOT_FILE
from dlc_platform.dlc.reader import CHUNK_FRAMES
from dlc_platform.identity import sha256_file
from dlc_platform.pose.table import POSE_TABLE
from dlc_platform.store import Store
from dlc_platform.video.decode import Decoder, to_bgr
from dlc_platform.video.probe import probe
from dlc_platform_tests.benchmarks.networks import lay_out_project, random_model
from dlc_platform_tests.benchmarks.videos import cut, draw

_REAL_VIDEO = "sessions/sub-m3v1/ses-20181030/m3v1mp4.mp4"
_HALF_TOLERANCE_PX = 0.05
_ANALYZE = """
import sys
import deeplabcut
deeplabcut.analyze_videos(sys.argv[1], [sys.argv[2]], shuffle=1, device="cpu", destfolder=sys.argv[3])
"""

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Video = Annotated[Path | None, typer.Option(help="In place of the open-field video.")]
Model = Annotated[Path | None, typer.Option(help="A model of a store, in place of random weights.")]


@app.command("cspnext_s")
def cspnext_s(
    frames: int = 2000,
    pieces: int = 11,
    rounds: int = 1,
    batch_size: int = 8,
    video: Video = None,
    model: Model = None,
) -> None:
    """DeepLabCut's smallest network on the CPU, networks loaded on both sides; eleven key frames have 182 frames."""
    _on_cpu("cspnext_s", frames, pieces, rounds, batch_size, video, model)


@app.command("resnet_50")
def resnet_50(
    frames: int = 60,
    pieces: int = 3,
    rounds: int = 3,
    batch_size: int = 8,
    video: Video = None,
    model: Model = None,
) -> None:
    """The same with a ResNet."""
    _on_cpu("resnet_50", frames, pieces, rounds, batch_size, video, model)


@app.command()
def gpu(
    frames: int = 20_000,
    pieces: int = 10,
    rounds: int = 1,
    batch_size: int | None = None,
    net_type: str = "resnet_50",
    video: Video = None,
    model: Model = None,
) -> None:
    """The same on a GPU, in full and in half precision, with the limits; the batch is the one that we find."""
    import torch

    if not torch.cuda.is_available():
        print(f"no CUDA device on this machine ({_hardware()}): nothing was measured")
        return
    with _workplace() as home:
        store = Store(home / "store")
        network = model or random_model(net_type, home / "train", store)
        files = cut(_real(video), frames, pieces, home / "pieces")
        start = cut(_real(video), 16, 1, home / "start")[0]
        precisions: tuple[Precision, ...] = ("full", "half")
        for precision in precisions:
            estimator = PoseEstimator(network, store, batch_size, "cuda", precision)
            print(f"{net_type}, {precision} precision:")
            compare(network, estimator, files, start, rounds, batch_size)
            _print_limits(estimator, files[0], rounds, [])


@app.command()
def session(frames: int = 300, rounds: int = 2, batch_size: int = 8, video: Video = None, model: Model = None) -> None:
    """One session from the start of the process to its end, imports and all; our export is there already."""
    with _workplace() as home:
        store = Store(home / "store")
        network = model or random_model("cspnext_s", home / "train", store)
        file = cut(_real(video), frames, 1, home / "piece")[0]
        export_once(network, store, file)
        project = lay_out_project(network, file, batch_size, home / "project")
        job = _job(network, store, file) | {"frames": probe(file).frames}
        seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
        firsts = []

        def theirs() -> None:
            out = home / "out"
            out.mkdir()
            started = time.monotonic()
            command = [sys.executable, "-c", _ANALYZE, str(project), str(file), str(out)]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            seconds["theirs"].append(time.monotonic() - started)
            assert list(out.glob("*.h5"))
            shutil.rmtree(out)

        def ours() -> None:
            started = time.monotonic()
            events = _finish(_start(job))
            seconds["ours"].append(time.monotonic() - started)
            firsts.append(events["first poses"]["at"] - started)
            shutil.rmtree(events["done"]["poses"])

        _in_turn(theirs, ours, rounds)
        print(f"one session of {frames} frames of {_size(file)}, cspnext_s, from the start of the process to its end")
        print(f"  {_hardware()}")
        print(f"  analyze_videos {_list(seconds['theirs'])} s, estimate {_list(seconds['ours'])} s")
        print(f"  ratio {sum(seconds['theirs']) / sum(seconds['ours']):.2f}; first poses after {_list(firsts)} s")


@app.command()
def limits(
    frames: int = 360,
    rounds: int = 2,
    net_type: str = "cspnext_s",
    batch_size: int = 8,
    video: Video = None,
    model: Model = None,
) -> None:
    """Decoding alone, the network alone, and the pipeline of both, on the CPU."""
    with _workplace() as home:
        store = Store(home / "store")
        network = model or random_model(net_type, home / "train", store)
        file = cut(_real(video), frames, 1, home / "piece")[0]
        estimator = PoseEstimator(network, store, batch_size, "cpu")
        run(estimator, cut(_real(video), 16, 1, home / "start")[0])
        print(f"{net_type}, {frames} frames of {_size(file)}, {rounds} rounds")
        print(f"  {_hardware()}")
        _print_limits(estimator, file, rounds, [PyTorch(network, "cpu", batch_size=batch_size)])


@app.command()
def memory(frames: Annotated[list[int] | None, typer.Option()] = None, size: int = 64) -> None:
    """The peak memory of estimating short and long videos, 10,000 and 100,000 frames, each in a fresh process.

    The video is a drawn one of few pixels, so that the frames are many and not the hours; its network is cspnext_s.
    """
    with _workplace() as home:
        store = Store(home / "store")
        network = random_model("cspnext_s", home / "train", store)
        export_once(network, store, draw(home / "short.mp4", CHUNK_FRAMES, size, size))
        peaks = {}
        for number in frames or [10_000, 100_000]:
            file = draw(home / f"{number}.mp4", number, size, size)
            started = time.monotonic()
            peaks[number] = _finish(_start(_job(network, store, file)))["done"]["peak_mb"]
            print(f"{number} frames of {_size(file)}: {peaks[number]:.1f} MB peak, {time.monotonic() - started:.0f} s")
        print(f"growth {peaks[max(peaks)] - peaks[min(peaks)]:.1f} MB, cspnext_s, 4 body parts; {_hardware()}")


@app.command()
def kills(kills: int = 20, frames: int = 1500, size: int = 128, seed: int = 0) -> None:
    """Kill the process at a random moment, run it again to its end, and compare the files with undisturbed ones."""
    with _workplace() as home:
        store = Store(home / "store")
        network = random_model("cspnext_s", home / "train", store)
        file = draw(home / "video.mp4", frames, size, size)
        export_once(network, store, draw(home / "short.mp4", CHUNK_FRAMES, size, size))
        job = _job(network, store, file)
        events = _finish(_start(job))
        seconds = events["done"]["at"] - events["begun"]["at"]
        undisturbed = _contents(events)
        moments = random.Random(seed)
        same, chunks, differing = 0, [], set()
        while len(chunks) < kills:
            shutil.rmtree(store.root / "poses")
            process = _start(job)
            _read_event(process)
            time.sleep(moments.uniform(0, seconds))
            process.kill()
            process.communicate()
            if process.returncode != -signal.SIGKILL:
                continue  # it had come to its end before
            chunks.append(len(list(store.root.glob("poses/.work-*/chunk-*.npz"))))
            contents = _contents(_finish(_start(job)))
            same += contents == undisturbed
            differing |= {name for name in undisturbed if contents.get(name) != undisturbed[name]}
        print(f"{same} of {kills} byte-identical after a kill and a continuation; {frames} frames of {_size(file)},")
        print(f"  chunks of {CHUNK_FRAMES} frames that were there when it was killed: {sorted(chunks)}")
        if differing:
            print(f"  files that differ: {', '.join(sorted(differing))}")


@dataclass
class Sides:
    """Seconds and keypoints of both sides, in the order of the pieces."""

    theirs_s: list[float] = field(default_factory=list)
    ours_s: list[float] = field(default_factory=list)
    theirs: list[np.ndarray] = field(default_factory=list)
    ours: list[np.ndarray] = field(default_factory=list)


def compare(
    model: Path, estimator: PoseEstimator, pieces: Sequence[Path], start: Path, rounds: int, batch_size: int | None
) -> Sides:
    """Have DeepLabCut and the platform work on the same pieces in turn, and print how they compare.

    DeepLabCut's side is what `analyze_videos` spends in its `video_inference`, with a network that is loaded; what it
    writes afterwards is left out. Ours is `estimate` with a network that is loaded, from the opening of the file to the
    product, of a video that was registered before.

    Parameters
    ----------
    start
        A short video on which both warm up.
    batch_size
        Of both sides; None for the one that ours finds.
    """
    from deeplabcut.pose_estimation_pytorch.apis.utils import get_pose_inference_runner
    from deeplabcut.pose_estimation_pytorch.apis.videos import video_inference

    run(estimator, start)
    engine = estimator.engine
    assert engine is not None
    info = probe(start)
    own_batch_size = engine.batch_size(info.width, info.height)
    batch_size = batch_size or own_batch_size
    runner = get_pose_inference_runner(
        model / CONFIG_FILE, model / SNAPSHOT_FILE, batch_size=batch_size, device=engine.device, max_individuals=1
    )

    def analyze(file: Path) -> tuple[float, np.ndarray]:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            started = time.perf_counter()
            found = video_inference(file, runner)
            seconds = time.perf_counter() - started
        return seconds, np.stack([one["bodyparts"][0, :, :3] for one in found])

    analyze(start)
    sides = Sides()
    for turn, file in enumerate([*pieces] * rounds):

        def theirs(file: Path = file) -> None:
            seconds, keypoints = analyze(file)
            sides.theirs_s.append(seconds)
            sides.theirs.append(keypoints)

        def ours(file: Path = file) -> None:
            seconds, keypoints = run(estimator, file)
            sides.ours_s.append(seconds)
            sides.ours.append(keypoints)

        for work in (theirs, ours) if turn % 2 == 0 else (ours, theirs):
            work()
    frames = sum(map(len, sides.ours))
    ratios = [theirs / ours for theirs, ours in zip(sides.theirs_s, sides.ours_s, strict=True)]
    print(f"  {frames} frames of {_size(start)}, {len(pieces)} pieces in {rounds} rounds; {_hardware()}")
    print(f"  video_inference of analyze_videos, batches of {batch_size}: {_speed(frames, sides.theirs_s)}")
    print(f"  estimate with {engine.backend}, batches of {own_batch_size}: {_speed(frames, sides.ours_s)}")
    print(f"  ratio {sum(sides.theirs_s) / sum(sides.ours_s):.2f}", end="")
    print(f"; of the pieces {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}")
    _print_deviation(np.concatenate(sides.theirs), np.concatenate(sides.ours))
    return sides


def run(estimator: PoseEstimator, file: Path) -> tuple[float, np.ndarray]:
    """Estimate the poses of a video of one animal, and remove them again.

    Returns
    -------
    tuple
        The seconds, and the keypoints of the product: float32, shape (frames, bodyparts, 3).
    """
    import pandas as pd

    info = probe(file)
    identity = sha256_file(file)
    started = time.perf_counter()
    poses = estimator.estimate(file, identity, whole=info.account.whole, frames=info.frames)
    seconds = time.perf_counter() - started
    (h5,) = poses.path.glob("*.h5")
    wide = pd.read_hdf(h5)
    shutil.rmtree(poses.path)
    return seconds, wide.to_numpy().reshape(len(wide), -1, 3)


def export_once(model: Path, store: Store, file: Path) -> None:
    """Make the export of a model for this machine's CPU, as its first run would."""
    estimator = PoseEstimator(model, store, device="cpu")
    run(estimator, file)
    assert estimator.engine is not None
    if estimator.engine.backend != "openvino":
        print(f"there is no export in use: {estimator.engine.export and estimator.engine.export.reason}")


def _on_cpu(
    net_type: str, frames: int, pieces: int, rounds: int, batch_size: int, video: Path | None, model: Path | None
) -> None:
    with _workplace() as home:
        store = Store(home / "store")
        network = model or random_model(net_type, home / "train", store)
        files = cut(_real(video), frames, pieces, home / "pieces")
        start = cut(_real(video), 16, 1, home / "start")[0]
        print(f"{net_type}, networks loaded before:")
        compare(network, PoseEstimator(network, store, batch_size, "cpu"), files, start, rounds, batch_size)


def _print_limits(estimator: PoseEstimator, file: Path, rounds: int, others: Sequence[PyTorch]) -> None:
    """Print the speeds of the pipeline, of which the engine is loaded, and of its parts, each by itself."""
    from av.video.reformatter import VideoReformatter

    engine = estimator.engine
    assert engine is not None
    frames = probe(file).frames
    with Decoder(file, whole=True) as decoder:
        some = [row.frame for row in islice(decoder.pictures(), 32) if row.frame is not None]
    fitting = engine.fitting(some[0].width, some[0].height)
    pictures = np.stack([fitting.fit(to_bgr(frame, VideoReformatter())) for frame in some])

    def decode(convert: Callable[[Any], object]) -> Callable[[], int]:
        def work() -> int:
            with Decoder(file, whole=True) as decoder:
                for row in decoder.pictures():
                    convert(row.frame)
            return frames

        return work

    def forward(network: Callable[[np.ndarray], object], size: int) -> Callable[[], int]:
        batch = np.concatenate([pictures] * -(-size // len(pictures)))[:size]
        network(batch)

        def work() -> int:
            for _ in range(-(-frames // size)):
                network(batch)
            return -(-frames // size) * size

        return work

    reformatter = VideoReformatter()
    own, registration, pipeline = f"forward, {engine.backend}", "registration of the video", "pipeline, to the file"
    decoding, colours = "decoding", "decoding and colours, one thread"
    works: dict[str, Callable[[], int]] = {
        registration: lambda: probe(file).frames,
        decoding: decode(lambda frame: frame),
        colours: decode(lambda frame: fitting.fit(to_bgr(frame, reformatter))),
        own: forward(engine.detect, engine.batch_size(*fitting.input_size)),
        **{f"forward, {one.name}": forward(one, one.batch_size(*fitting.input_size)) for one in others},
    }
    seconds, done = dict.fromkeys([*works, pipeline], 0.0), dict.fromkeys([*works, pipeline], 0)
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            done[name] += work()
            seconds[name] += time.perf_counter() - started
        seconds[pipeline] += run(estimator, file)[0]
        done[pipeline] += frames
    speeds = {name: done[name] / seconds[name] for name in seconds}
    for name, speed in speeds.items():
        print(f"  {name}: {speed:.1f} frames/s")
    slower = min(speeds[decoding], speeds[own])
    print(f"  the pipeline has {speeds[pipeline] / slower:.0%} of the slower one", end="")
    if engine.device == "cpu":
        both = 1 / (1 / speeds[decoding] + 1 / speeds[own])
        print(f", and {speeds[pipeline] / both:.0%} of what both in turn would have, as they share the cores", end="")
    print()


def _print_deviation(theirs: np.ndarray, ours: np.ndarray) -> None:
    """Print how far keypoints, shape (frames, bodyparts, 3), are from each other."""
    difference = np.abs(theirs - ours)
    pixels, likelihood = difference[..., :2].max(axis=-1), difference[..., 2]
    print(f"  keypoints differ by up to {pixels.max():.2g} px, likelihoods by up to {likelihood.max():.2g};", end="")
    within = (pixels <= TOLERANCE_PX) & (likelihood <= TOLERANCE_LIKELIHOOD)
    print(f" {within.mean():.2%} within {TOLERANCE_PX} px and {TOLERANCE_LIKELIHOOD}", end="")
    print(f", {(pixels <= _HALF_TOLERANCE_PX).mean():.2%} within {_HALF_TOLERANCE_PX} px")


def _in_turn(first: Callable[[], None], second: Callable[[], None], rounds: int) -> None:
    for turn in range(rounds):
        for work in (first, second) if turn % 2 == 0 else (second, first):
            work()


def _job(model: Path, store: Store, file: Path) -> dict[str, Any]:
    return {"model": str(model), "store": str(store.root), "video": str(file), "video_id": sha256_file(file)}


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dlc_platform_tests.benchmarks.one_estimate", json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def _read_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def _finish(process: subprocess.Popen[str]) -> dict[str, dict[str, Any]]:
    """What a process of `one_estimate` said, by event."""
    out, _ = process.communicate()
    assert process.returncode == 0
    return {event["event"]: event for event in map(json.loads, out.splitlines())}


def _contents(events: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    """The pose files that a process has left, without the manifest, which tells the time."""
    folder = Path(events["done"]["poses"])
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name == POSE_TABLE or path.suffix == ".h5"
    }


@contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="inference-benchmark-") as folder:
        yield Path(folder)


def _real(video: Path | None) -> Path:
    return video or Path(os.environ.get("DLC_PLATFORM_TEST_DATA", ""), _REAL_VIDEO)


def _size(file: Path) -> str:
    info = probe(file)
    return f"{info.width}x{info.height}"


def _hardware() -> str:
    found = versions()
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {found[name]}" for name in ("deeplabcut", "torch", "openvino"))
    return f"{found['cpu']}, {cores} cores, GPU {found['gpu']}; {packages}"


def _speed(frames: int, seconds: Sequence[float]) -> str:
    return f"{frames / sum(seconds):.1f} frames/s, {sum(seconds):.1f} s"


def _list(seconds: Sequence[float]) -> str:
    return ", ".join(f"{one:.1f}" for one in seconds)


if __name__ == "__main__":
    app()
