"""A lab to look at: videos that carry the number of each frame in their pixels, with poses that are known exactly."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import uvicorn
from sqlalchemy import Engine
from starlette.types import ASGIApp

from dlc_platform.catalog import tables
from dlc_platform.catalog.sessions import current_files, register_session
from dlc_platform.pose.table import POSE_TABLE, tidy_from_dlc, write_parquet
from dlc_platform.store import Store
from dlc_platform.video.probe import probe
from dlc_platform_tests.catalog.small_lab import dataset, identity, image, record_dataset, session, track, train

SIZE = (320, 240)
BODYPARTS = ("nose", "ear", "tail")
_BITS, _LEFT, _TOP, _SIDE = 12, 8, 8, 24


def drawn(number: int) -> np.ndarray:
    """The picture of a frame, RGB: its number as squares that are black or white, and nothing coloured."""
    picture = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    for bit in range(_BITS):
        left = _LEFT + bit * _SIDE
        picture[_TOP : _TOP + _SIDE, left : left + _SIDE] = 255 if number >> bit & 1 else 0
    return picture


def number_in(picture: np.ndarray) -> int:
    """The number that a picture carries, whatever size it is shown in; RGB."""
    across, down = picture.shape[1] / SIZE[0], picture.shape[0] / SIZE[1]
    row = picture[int((_TOP + _SIDE / 2) * down)]
    return sum(1 << bit for bit in range(_BITS) if row[int((_LEFT + (bit + 0.5) * _SIDE) * across)].mean() > 128)


def write_video(path: Path, ticks: np.ndarray, time_base: Fraction, codec: str = "libx264", **options: str) -> None:
    """A video whose frame n is shown at ``ticks[n]``, in units of the time base."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        stream.options = options
        for number, tick in enumerate(ticks.tolist()):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def poses_of(frames: int) -> np.ndarray:
    """Where the body parts are, shape (frames, bodyparts, 2), in pixels: somewhere else in each frame."""
    random = np.random.default_rng(frames)
    return random.uniform((20, 50), (SIZE[0] - 20, SIZE[1] - 20), (frames, len(BODYPARTS), 2)).astype(np.float32)


def add_session(engine: Engine, store: Store, key: str, letter: str, path: Path) -> np.ndarray:
    """Register a video as a session with poses; returns where its body parts are."""
    info = probe(path)
    video = tables.Video(
        id=identity(letter),
        size_bytes=info.size_bytes,
        width=info.width,
        height=info.height,
        frame_rate_numerator=info.frame_rate.numerator,
        frame_rate_denominator=info.frame_rate.denominator,
        frames=info.frames,
        duration_s=info.duration_s,
        codec=info.codec,
        pixel_format=info.pixel_format,
        rotation=info.rotation,
    )
    state = path.stat()
    file = tables.RecordingFile(
        recording=tables.Recording(session_key=key, name="top", camera="top"),
        position=0,
        path=str(path),
        size_bytes=state.st_size,
        mtime_ns=state.st_mtime_ns,
        video_id=identity(letter),
    )
    register_session(engine, session(key), [(file, video)])
    (own,) = current_files(engine, key)
    track(engine, letter, own, "a")
    points = poses_of(info.frames)
    columns = pd.MultiIndex.from_product(
        [["scorer"], BODYPARTS, ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    wide = np.concatenate([points, np.full((*points.shape[:2], 1), 0.9, np.float32)], axis=2)
    table = tidy_from_dlc(pd.DataFrame(wide.reshape(info.frames, -1), columns=columns), info.times_s)
    store.put("poses", identity(letter), {}, lambda folder: write_parquet(table, folder / POSE_TABLE))
    return points


def add_model(engine: Engine) -> None:
    """The model that made the poses."""
    record_dataset(engine, "first", dataset("d"), [image("d", "5", None, "test")])
    train(engine, "a", "d")


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """An application on a port of its own; its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
