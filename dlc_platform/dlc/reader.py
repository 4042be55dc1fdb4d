"""The pictures of a video, decoded ahead of the network in separate threads, and fitted to its size."""

from __future__ import annotations

import os
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread, local
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.dlc.engine import Engine
from dlc_platform.video.decode import Decoder, to_bgr
from dlc_platform.video.region import Region
from dlc_platform.video.rows import Picture
from dlc_platform.video.times import NO_TIME

if TYPE_CHECKING:
    from av import VideoFrame

    from dlc_platform.dlc.geometry import Geometry

#: The rows of a chunk: a crash costs at most so many, besides the rows in work.
CHUNK_FRAMES = 256
#: Batches that wait for the network.
_QUEUED = 2
_SECONDS_TO_STOP = 0.1
_FITTING_THREADS = max(1, min(4, (os.cpu_count() or 1) - 2))


class Reader:
    """Reads a video in a thread of its own, and fits its frames to the network in others; a few batches ahead.

    Parameters
    ----------
    batch_size
        None asks the engine, when the size of the frames is known.
    """

    def __init__(self, decoder: Decoder, engine: Engine, region: Region | None, path: Path, batch_size: int | None):
        self.batch_size = batch_size
        self._decoder = decoder
        self._engine = engine
        self._region = region
        self._path = path
        self._fitting: Geometry | None = None
        self._batches: Queue[Batch | BaseException | None] = Queue(_QUEUED)
        self._stopped = Event()
        self._reformatters = local()

    def read(self, start: int) -> Generator[Batch, None, None]:
        """The batches from row `start` on; no batch crosses the end of a chunk."""
        thread = Thread(target=self._fill, args=(start,), name="reader", daemon=True)
        thread.start()
        try:
            while (batch := self._batches.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            self._stopped.set()
            thread.join()

    def _fill(self, start: int) -> None:
        try:
            with ThreadPoolExecutor(_FITTING_THREADS, "fitting") as pool:
                number = start
                batch = Batch()
                for picture in self._decoder.pictures(start):
                    self._add(batch, picture, pool)
                    number += 1
                    is_full = self.batch_size is not None and len(batch.pts) >= self.batch_size
                    if is_full or number % CHUNK_FRAMES == 0:
                        self._put(batch)
                        batch = Batch()
                    if self._stopped.is_set():
                        return
                if batch.pts:
                    self._put(batch)
            self._put(None)
        except BaseException as error:  # for the thread that waits for batches
            self._put(error)

    def _add(self, batch: Batch, picture: Picture, pool: ThreadPoolExecutor) -> None:
        batch.pts.append(NO_TIME if picture.pts is None else picture.pts)
        batch.dts.append(NO_TIME if picture.dts is None else picture.dts)
        batch.lost.append(picture.frame is None)
        batch.damaged.append(picture.damaged)
        if picture.frame is not None:
            batch.pictures.append(pool.submit(self._fit, picture.frame))
            if self.batch_size is None:
                batch.pictures[0].result()
                assert self._fitting is not None
                self.batch_size = min(CHUNK_FRAMES, self._engine.batch_size(*self._fitting.input_size))

    def _fit(self, frame: VideoFrame) -> np.ndarray:
        from av.video.reformatter import VideoReformatter

        if not hasattr(self._reformatters, "own"):
            self._reformatters.own = VideoReformatter()
        picture = to_bgr(frame, self._reformatters.own)
        if self._region is not None:
            self._region.check(picture.shape[1], picture.shape[0], str(self._path))
            picture = self._region.crop(picture)
        if self._fitting is None:
            self._fitting = self._engine.fitting(picture.shape[1], picture.shape[0])
        return self._fitting.fit(picture)

    def back(self, found: np.ndarray) -> None:
        """Convert keypoints to pixels of the region, or of the frame if there is none, in place."""
        if self._fitting is not None:
            self._fitting.back(found)

    def _put(self, batch: Batch | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._batches.put(batch, timeout=_SECONDS_TO_STOP)
            except Full:
                continue
        return None


@dataclass
class Batch:
    """Consecutive rows as they were decoded, and the fitted pictures of those that were not lost."""

    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)
    damaged: list[bool] = field(default_factory=list)
    pictures: list[Future[np.ndarray]] = field(default_factory=list)
