"""Inference: the poses of a video under one model, as DeepLabCut's own file and as a Parquet table.

Decoding, fitting and the network work at the same time, with a bounded number of frames between them. What is found is
kept in chunks on disk, from which work that was interrupted goes on, to the same bytes. The rows equal the frames: one
that is in the file and cannot be decoded is a row without an estimate.

A product of kind ``poses`` belongs to a video, a model and the parameters of the inference. It says nothing of sessions
and recordings: the same video in two sessions has the same poses, and whoever reads them adds the names.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread, local
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from dlc_platform.dlc.engine import Engine, load_engine
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.parameters import has_several_animals, inference_parameters
from dlc_platform.errors import PlatformError
from dlc_platform.faults import gone
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.pose.table import POSE_TABLE, tidy_from_dlc, write_dlc_table, write_parquet
from dlc_platform.store import Store, read_manifest, write_atomically
from dlc_platform.text.names import file_name
from dlc_platform.video.account import Decoded, FrameAccount, account_of
from dlc_platform.video.decode import Decoder, Picture, to_bgr
from dlc_platform.video.probe import probe
from dlc_platform.video.region import Region
from dlc_platform.video.times import NO_TIME, Clock

if TYPE_CHECKING:
    from av import VideoFrame

    from dlc_platform.dlc.backends import Precision
    from dlc_platform.dlc.geometry import Geometry

#: Rows to a chunk: what a crash costs at most, on top of what was in work.
CHUNK_FRAMES = 256
#: Batches that wait for the network.
_QUEUED = 2
_SETTINGS = "settings.json"
_CHUNK = "chunk-{:09d}.npz"
_SECONDS_TO_STOP = 0.1
#: Frames that an imported model is compared on.
_COMPARED = 16
_FITTING_THREADS = max(1, min(4, (os.cpu_count() or 1) - 2))


@dataclass(frozen=True)
class Progress:
    """How far the inference of a video is.

    Attributes
    ----------
    done, frames
        Rows that are finished, and how many there are as far as is known.
    per_second
        Frames in a second, in this process.
    seconds_left
        By that speed.
    """

    done: int
    frames: int
    per_second: float
    seconds_left: float

    def __str__(self) -> str:
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left > 90 else f"{self.seconds_left:.0f} s"
        return f"frame {self.done:,} of {self.frames:,}, {self.per_second:.1f} frames/s, {left} left"


@dataclass(frozen=True)
class PoseEstimate:
    """Poses of the store.

    Attributes
    ----------
    frames
        Rows, with those that could not be decoded.
    seconds
        The wall time of the inference, without the loading of the model; of all processes that worked on it.
    account
        What became of the video's frames; None for poses of before that was written down.
    backend, device, export
        See `engine.Engine`; the export by its identity, and the device None where it was not written down.
    note
        What a person has to know of them, such as tracks that could not be made; else empty.
    batch_size
        Frames to a batch, at the end: fewer than at the start where memory ran out. None for poses of before that was
        written down.
    found
        True when they were in the store already, and nothing was computed.
    """

    id: str
    path: Path
    frames: int
    seconds: float
    account: FrameAccount | None
    backend: str
    device: str | None
    export: str | None
    note: str
    batch_size: int | None
    found: bool = False


class OtherFrames(PlatformError):
    """A video gave other frames when it was tracked than when it was registered."""


class PoseEstimator:
    """A model for many videos; it is loaded once, when the first video needs it.

    Parameters
    ----------
    batch_size
        Frames to a batch: speed and memory only. None lets it be found.
    device
        ``cpu``, ``cuda``, ``cuda:0``...; the GPU when there is one, by default.
    precision
        See `backends.Precision`; it is a parameter of the inference.
    """

    def __init__(
        self,
        model_path: Path,
        store: Store,
        batch_size: int | None = None,
        device: str | None = None,
        precision: Precision = "full",
    ):
        self.model_id = model_path.name
        self.scorer: str = read_manifest(model_path)["scorer"]
        self.engine: Engine | None = None
        self._several_animals = has_several_animals(model_path)
        self._model_path = model_path
        self._store = store
        self._batch_size = batch_size
        self._device = device
        self._precision: Precision = precision

    def parameters(self, region: Region | None) -> dict[str, Any]:
        """The parameters of an inference with this model; see `inference_parameters`."""
        return inference_parameters(region, self._precision, self._several_animals)

    def identity(self, video_id: str, region: Region | None = None) -> str:
        """The identity of the poses of a video under this model."""
        return pose_identity(video_id, self.model_id, self.parameters(region))

    def estimate(
        self,
        video_path: Path,
        video_id: str,
        region: Region | None = None,
        whole: bool | None = None,
        frames: int | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> PoseEstimate:
        """Estimate the poses of a video, or find them in the store.

        Of two processes that want the same poses, the second one waits and then finds them.

        Parameters
        ----------
        video_id
            SHA-256 of the video's bytes.
        region
            The network sees this part of each frame; the poses are in pixels of the full frame all the same.
        whole, frames
            What `probe` found: that the video is whole, and its number of rows. None: it is looked at once more.

        Raises
        ------
        PlatformError
            When the video cannot be read, is another one or changes meanwhile.
        OtherFrames
            When it holds other frames than `probe` found.
        """
        identity = self.identity(video_id, region)
        if self._store.has("poses", identity):
            return replace(load_poses(self._store.path("poses", identity)), found=True)
        with self._store.workspace("poses", identity) as workspace:
            if self._store.has("poses", identity):
                return replace(load_poses(self._store.path("poses", identity)), found=True)
            try:
                return self._compute(video_path, video_id, region, whole, frames, on_progress, workspace)
            except OtherFrames:
                # A disk that fails for a moment cuts a video off, or spoils some of it: what is good is kept.
                return self._compute(video_path, video_id, region, whole, frames, on_progress, workspace)

    def _compute(
        self,
        video_path: Path,
        video_id: str,
        region: Region | None,
        whole: bool | None,
        frames: int | None,
        on_progress: Callable[[Progress], None],
        workspace: Path,
    ) -> PoseEstimate:
        before = _state(video_path)
        if sha256_file(video_path) != video_id:
            raise PlatformError(
                f"{video_path} is not the video that was registered: its content has changed",
                "Register its session again, then estimate its poses",
            )
        if whole is None or frames is None:
            video = probe(video_path)
            whole, frames = video.account.whole, video.frames
        try:
            with Decoder(video_path, whole) as decoder:
                work = _Work(self._load(video_path, region), decoder, whole, region, video_path, workspace)
                work.run(frames, on_progress)
                if _state(video_path) != before:
                    shutil.rmtree(workspace, ignore_errors=True)
                    raise PlatformError(
                        f"{video_path} changed while it was tracked",
                        "Register its session again when it is written completely, then estimate its poses",
                    )
                return self._store_poses(work, self.identity(video_id, region), video_id, region, whole, frames)
        except (PlatformError, OSError) as error:
            away = not video_path.exists()
            if not whole and (away or isinstance(error, OtherFrames)):
                # Which frames were lost to the disk, and which are damaged in the file, nobody knows any more.
                for chunk in workspace.glob("chunk-*"):
                    chunk.unlink()
            if away:
                raise gone(video_path) from error
            raise

    def _load(self, video_path: Path, region: Region | None) -> Engine:
        if self.engine is None:
            self.engine = load_engine(
                self._model_path,
                self._store,
                lambda: _first_pictures(video_path, region),
                self._device,
                self._precision,
                self._batch_size,
            )
        return self.engine

    def _store_poses(
        self, work: _Work, identity: str, video_id: str, region: Region | None, whole: bool, frames: int
    ) -> PoseEstimate:
        engine = work.engine
        found, seconds = work.read()
        account, clock = found.account(work.decoder)
        if len(found.pts) != frames or account.whole != whole:
            raise OtherFrames(
                f"{work.video_path} gave {account.decoded} of {len(found.pts)} frames when it was tracked, and "
                f"{'was whole with' if whole else 'damaged, with'} {frames} when it was registered",
                "Check the disk that it lies on, and materialise session_videos for its session again",
            )
        poses, suffix, note = found.poses, "", ""
        if engine.tracks:
            tracks = engine.track(found.poses)
            poses, suffix, note = tracks.poses, tracks.suffix, tracks.note
        if region:
            poses[..., :2] += (region.x, region.y)
        manifest = {
            "video": video_id,
            "model": self.model_id,
            "parameters": self.parameters(region),
            "scorer": self.scorer,
            "frames": len(poses),
            "account": asdict(account),
            "lost_frames": _ranges(found.lost),
            "damaged_frames": _ranges(found.damaged),
            "note": note,
            "seconds": seconds,
            "backend": engine.backend,
            "export": engine.export.id if engine.export and engine.export.accepted else None,
            "device": engine.device,
            "batch_size": work.batch_size,
            "versions": versions(),
        }

        def write(folder: Path) -> None:
            wide = engine.table(poses)
            name = file_name(work.video_path.stem, f"{self.scorer}{suffix}.h5")
            write_dlc_table(wide, folder / name, tracks=engine.tracks)
            times_s = clock.seconds(work.decoder.time_base, work.decoder.frame_rate)
            write_parquet(tidy_from_dlc(wide, times_s), folder / POSE_TABLE)

        return load_poses(self._store.put("poses", identity, manifest, write))


def pose_identity(video_id: str, model_id: str, parameters: dict[str, Any] | None = None) -> str:
    """The identity of the poses of a video under a model: neither device, backend nor batch size enter it."""
    return sha256_json({"video": video_id, "model": model_id} | ({"parameters": parameters} if parameters else {}))


def load_poses(path: Path) -> PoseEstimate:
    """The poses whose product directory is `path`."""
    manifest = read_manifest(path)
    account = manifest.get("account")
    return PoseEstimate(
        path.name,
        path,
        manifest["frames"],
        manifest["seconds"],
        FrameAccount(**account) if account else None,
        manifest.get("backend", "deeplabcut"),
        manifest.get("device"),
        manifest.get("export"),
        manifest.get("note", ""),
        manifest.get("batch_size"),
    )


@dataclass(frozen=True)
class _Rows(Decoded):
    """Consecutive rows of a video: what the network found in them, shape (rows, ...), and what decoding said."""

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


class _Reader:
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
        self._batches: Queue[_Batch | BaseException | None] = Queue(_QUEUED)
        self._stopped = Event()
        self._reformatters = local()

    def read(self, start: int) -> Generator[_Batch, None, None]:
        """The batches from row `start` on; none reaches over the end of a chunk."""
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
                batch = _Batch()
                for picture in self._decoder.pictures(start):
                    self._add(batch, picture, pool)
                    number += 1
                    is_full = self.batch_size is not None and len(batch.pts) >= self.batch_size
                    if is_full or number % CHUNK_FRAMES == 0:
                        self._put(batch)
                        batch = _Batch()
                    if self._stopped.is_set():
                        return
                if batch.pts:
                    self._put(batch)
            self._put(None)
        except BaseException as error:  # for the thread that waits for batches
            self._put(error)

    def _add(self, batch: _Batch, picture: Picture, pool: ThreadPoolExecutor) -> None:
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
        """Bring keypoints to pixels of the region, or of the frame where there is none, in place."""
        if self._fitting is not None:
            self._fitting.back(found)

    def _put(self, batch: _Batch | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._batches.put(batch, timeout=_SECONDS_TO_STOP)
            except Full:
                continue
        return None


@dataclass
class _Batch:
    """Consecutive rows as they were decoded, and the fitted pictures of those that were not lost."""

    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)
    damaged: list[bool] = field(default_factory=list)
    pictures: list[Future[np.ndarray]] = field(default_factory=list)


class _Work:
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
            # Where these are equal, the same computation gives the same digits.
            "versions": {name: text for name, text in versions().items() if name not in ("host", "platform")},
        }

    def run(self, frames: int, on_progress: Callable[[Progress], None]) -> None:
        """Work on the chunks that are not there yet; `frames` is how many rows are expected."""
        begun, batch_size = self._continue()
        reader = _Reader(self.decoder, self.engine, self._region, self.video_path, batch_size)
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
        """What all chunks hold, and the seconds that they took."""
        chunks, seconds, start = [], 0.0, 0
        while (chunk := self._chunk(start)) is not None:
            chunks.append(chunk[0])
            seconds += chunk[1]
            start += CHUNK_FRAMES
        if not chunks:
            raise PlatformError(f"{self.video_path} holds no frames", "Look at it, and register its session again")
        return _joined(chunks), seconds

    def _continue(self) -> tuple[int, int | None]:
        """How many rows are there already, and the batch size of that work.

        Work under other conditions is undone, and so is what cannot be read or is not what was written there.
        """
        settings = self._settings()
        batch_size = settings.pop("batch_size", None)
        start = 0
        if settings == self._conditions:
            while (chunk := self._chunk(start)) is not None and len(chunk[0].pts) == CHUNK_FRAMES:
                # Of a whole video nothing is lost, unless its disk failed for a moment.
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
        """The chunk that begins with a row, and its seconds; None where there is none that can be relied on."""
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

    def _look(self, batch: _Batch, reader: _Reader) -> _Rows:
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


def _first_pictures(video_path: Path, region: Region | None) -> list[np.ndarray]:
    """Frames of a video to compare on, where a model has no test images of its own."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    with Decoder(video_path, whole=False) as decoder:
        rows = islice(decoder.pictures(), _COMPARED)
        pictures = [to_bgr(row.frame, reformatter) for row in rows if row.frame is not None]
    if region is None:
        return pictures
    for picture in pictures:
        region.check(picture.shape[1], picture.shape[0], str(video_path))
    return [region.crop(picture) for picture in pictures]


def _ranges(flags: np.ndarray) -> list[list[int]]:
    """The rows that are flagged, as the first and last of each stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [[int(first), int(end) - 1] for first, end in edges.reshape(-1, 2)]


def _state(video_path: Path) -> tuple[int, int]:
    """Size and time of a file.

    Raises
    ------
    MachineFault
        When it is not there: it, or its disk, is away.
    """
    try:
        status = video_path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise gone(video_path) from error
    return status.st_size, status.st_mtime_ns
