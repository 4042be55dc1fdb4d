"""The results of an inference in chunks on disk, from which interrupted work goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dlc_platform.dlc.engine import Engine
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.reader import CHUNK_FRAMES, Batch, Reader
from dlc_platform.errors import PlatformError
from dlc_platform.store import write_atomically
from dlc_platform.video.account import Decoded, FrameAccount, account_of
from dlc_platform.video.decode import Decoder
from dlc_platform.video.region import Region
from dlc_platform.video.times import Clock

_SETTINGS = "settings.json"
_CHUNK = "chunk-{:09d}.npz"


@dataclass(frozen=True)
class Progress:
    """The progress of the inference of a video.

    Attributes
    ----------
    done, frames
        The finished rows, and all rows as far as known.
    per_second
        The frames per second of this process.
    seconds_left
        The remaining seconds at that speed.
    """

    done: int
    frames: int
    per_second: float
    seconds_left: float

    def __str__(self) -> str:
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left > 90 else f"{self.seconds_left:.0f} s"
        return f"frame {self.done:,} of {self.frames:,}, {self.per_second:.1f} frames/s, {left} left"


@dataclass(frozen=True)
class _Rows(Decoded):
    """Consecutive rows of a video: the network's result for them, shape (rows, ...), and that of decoding."""

    poses: np.ndarray

    def account(self, decoder: Decoder) -> tuple[FrameAccount, Clock]:
        return account_of(
            self,
            declared=decoder.frames_declared,
            indexed=decoder.frames_indexed,
            truncated=decoder.is_truncated,
            holes=decoder.holes,
            left_out=decoder.frames_left_out,
            keeps_presentation_times=decoder.keeps_presentation_times,
            decoder=decoder.decoder,
        )


def _joined(parts: list[_Rows]) -> _Rows:
    """Consecutive rows, one after the other."""
    return _Rows(**{own.name: np.concatenate([getattr(part, own.name) for part in parts]) for own in fields(_Rows)})


class Work:
    """The inference of one video, in a workspace that may hold the chunks of an earlier, interrupted one."""

    def __init__(
        self,
        engine: Engine,
        decoder: Decoder,
        whole: bool,
        region: Region | None,
        video_path: Path,
        workspace: Path,
    ):
        self.engine = engine
        self.decoder = decoder
        self.video_path = video_path
        self.workspace = workspace
        self.batch_size: int | None = None
        self._region = region
        # DeepLabCut's tracker takes a fourth number.
        self._shape = (len(engine.individuals), len(engine.bodyparts), 4 if engine.tracks else 3)
        self._conditions: dict[str, Any] = {
            "workspace": workspace.name,
            "backend": engine.backend,
            "device": engine.device,
            "chunk_frames": CHUNK_FRAMES,
            "decoder": decoder.decoder,
            "whole": whole,
            # If these are equal, the same computation gives the same digits.
            "versions": {name: text for name, text in versions().items() if name not in ("host", "platform")},
        }

    def run(self, frames: int, on_progress: Callable[[Progress], None]) -> None:
        """Work on the chunks that do not exist yet; `frames` is the expected number of rows."""
        begun, batch_size = self._continue()
        reader = Reader(self.decoder, self.engine, self._region, self.video_path, batch_size)
        started = kept = time.monotonic()
        done = begun
        rows: list[_Rows] = []
        with closing(reader.read(begun)) as batches:
            for batch in batches:
                rows.append(self._look(batch, reader))
                done += len(batch.pts)
                now = time.monotonic()
                if done % CHUNK_FRAMES == 0:
                    self._keep(rows, done, now - kept, reader.batch_size)
                    rows, kept = [], now
                speed = (done - begun) / (now - started)
                on_progress(Progress(done, frames, speed, max(0, frames - done) / speed))
        if rows:
            self._keep(rows, done, time.monotonic() - kept, reader.batch_size)
        self.batch_size = reader.batch_size

    def read(self) -> tuple[_Rows, float]:
        """The rows of all chunks, and the seconds that they took."""
        chunks, seconds, start = [], 0.0, 0
        while (chunk := self._chunk(start)) is not None:
            chunks.append(chunk[0])
            seconds += chunk[1]
            start += CHUNK_FRAMES
        if not chunks:
            raise PlatformError(f"{self.video_path} holds no frames", "Look at it, and register its session again")
        return _joined(chunks), seconds

    def _continue(self) -> tuple[int, int | None]:
        """The number of rows that exist already, and the batch size of that work.

        Work under other conditions is removed, and so are chunks that cannot be read or have changed.
        """
        settings = self._settings()
        batch_size = settings.pop("batch_size", None)
        start = 0
        if settings == self._conditions:
            while (chunk := self._chunk(start)) is not None and len(chunk[0].pts) == CHUNK_FRAMES:
                # A whole video loses nothing, unless its disk failed for a moment.
                if self._conditions["whole"] and (chunk[0].lost.any() or chunk[0].damaged.any()):
                    break
                start += CHUNK_FRAMES
        for path in self.workspace.iterdir():
            is_kept = start and (path.name == _SETTINGS or path.name < _CHUNK.format(start))
            if path.name.startswith("chunk-") or path.name == _SETTINGS:
                if path.is_dir():
                    shutil.rmtree(path)
                elif not is_kept:
                    path.unlink()
        return start, batch_size if start else None

    def _settings(self) -> dict[str, Any]:
        try:
            settings = json.loads((self.workspace / _SETTINGS).read_bytes())
        except (OSError, ValueError):
            return {}
        return settings if isinstance(settings, dict) else {}

    def _chunk(self, start: int) -> tuple[_Rows, float] | None:
        """The chunk that begins with a row, and its seconds; None if there is none that can be relied on."""
        try:
            with np.load(self.workspace / _CHUNK.format(start)) as arrays:
                rows = _Rows(**{own.name: arrays[own.name] for own in fields(_Rows)})
                begins, seconds = int(arrays["start"]), float(arrays["seconds"])
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None
        return (rows, seconds) if begins == start and rows.poses.shape[1:] == self._shape else None

    def _keep(self, rows: list[_Rows], done: int, seconds: float, batch_size: int | None) -> None:
        """Write a chunk of finished rows, which end before row `done`."""
        if not (self.workspace / _SETTINGS).is_file():
            text = json.dumps(self._conditions | {"batch_size": batch_size})
            write_atomically(self.workspace / _SETTINGS, lambda file: file.write(text.encode()))
        chunk = _joined(rows)
        start = done - len(chunk.pts)
        write_atomically(
            self.workspace / _CHUNK.format(start),
            lambda file: np.savez(file, allow_pickle=False, start=start, seconds=seconds, **vars(chunk)),
        )

    def _look(self, batch: Batch, reader: Reader) -> _Rows:
        """Run the network on a batch."""
        engine = self.engine
        lost = np.array(batch.lost)
        # DeepLabCut's tracker takes -1 for an animal that was not found.
        poses = np.full((len(lost), *self._shape), -1 if engine.tracks else np.nan, np.float32)
        if batch.pictures:
            found = engine.detect(np.stack([picture.result() for picture in batch.pictures]))
            if engine.largest_batch is not None and reader.batch_size is not None:
                reader.batch_size = min(reader.batch_size, engine.largest_batch)
            reader.back(found)
            poses[~lost] = found
        return _Rows(
            poses=poses,
            pts=np.array(batch.pts, np.int64),
            dts=np.array(batch.dts, np.int64),
            lost=lost,
            damaged=np.array(batch.damaged),
        )
