"""Inference: the poses of a video under one model, as DeepLabCut's own file and as a Parquet table.

Decoding, fitting and the network work at the same time, with a limited number of frames between them. The results are
kept in chunks on disk, from which interrupted work goes on, to the same bytes. There is one row for each frame: a frame
that is in the file and cannot be decoded is a row without an estimate.

A product of kind ``poses`` belongs to a video, a model and the parameters of the inference. It does not name sessions
and recordings: the same video in two sessions has the same poses, and the reader adds the names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc_platform.dlc.chunks import Progress, Work
from dlc_platform.dlc.engine import Engine, load_engine
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.parameters import has_several_animals, inference_parameters
from dlc_platform.errors import PlatformError
from dlc_platform.faults import gone
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.manifests import ModelManifest, PosesManifest
from dlc_platform.pose.table import POSE_TABLE, tidy_from_dlc, write_dlc_table, write_parquet
from dlc_platform.store import Store
from dlc_platform.text.names import file_name
from dlc_platform.video.account import FrameAccount
from dlc_platform.video.decode import Decoder, to_bgr
from dlc_platform.video.probe import probe
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    from dlc_platform.dlc.backends import Precision

#: The number of frames on which an imported model is compared.
_COMPARED = 16


@dataclass(frozen=True)
class PoseEstimate:
    """Poses of the store.

    Attributes
    ----------
    frames
        The number of rows, including those that could not be decoded.
    seconds
        The wall time of the inference, without the loading of the model; of all processes that worked on it.
    account
        The account of the video's frames; None for poses that are older than accounts.
    backend, device, export
        See `engine.Engine`; the export by its identity, and the device None if it was not written down.
    note
        A note that a person must know, such as tracks that could not be made; else empty.
    batch_size
        The frames of a batch at the end: fewer than at the start if memory ran out. None for poses that are older than
        this record.
    found
        True if they were in the store already, and nothing was computed.
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
        The frames of a batch; it changes only speed and memory. None has it found.
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
        self.scorer: str = ModelManifest.read(model_path).scorer
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
                work = Work(self._load(video_path, region), decoder, whole, region, video_path, workspace)
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
        self, work: Work, identity: str, video_id: str, region: Region | None, whole: bool, frames: int
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
        manifest = PosesManifest(
            video=video_id,
            model=self.model_id,
            parameters=self.parameters(region),
            scorer=self.scorer,
            frames=len(poses),
            account=account,
            lost_frames=_ranges(found.lost),
            damaged_frames=_ranges(found.damaged),
            note=note,
            seconds=seconds,
            backend=engine.backend,
            export=engine.export.id if engine.export and engine.export.accepted else None,
            device=engine.device,
            batch_size=work.batch_size,
            versions=dict(versions()),
        )

        def write(folder: Path) -> None:
            wide = engine.table(poses)
            name = file_name(work.video_path.stem, f"{self.scorer}{suffix}.h5")
            write_dlc_table(wide, folder / name, tracks=engine.tracks)
            times_s = clock.seconds(work.decoder.time_base, work.decoder.frame_rate)
            write_parquet(tidy_from_dlc(wide, times_s), folder / POSE_TABLE)

        return load_poses(self._store.put("poses", identity, manifest.said(), write))


def pose_identity(video_id: str, model_id: str, parameters: dict[str, Any] | None = None) -> str:
    """The identity of the poses of a video under a model: neither device, backend nor batch size enter it."""
    return sha256_json({"video": video_id, "model": model_id} | ({"parameters": parameters} if parameters else {}))


def load_poses(path: Path) -> PoseEstimate:
    """The poses whose product directory is `path`."""
    manifest = PosesManifest.read(path)
    return PoseEstimate(
        path.name,
        path,
        manifest.frames,
        manifest.seconds,
        manifest.account,
        manifest.backend,
        manifest.device,
        manifest.export,
        manifest.note,
        manifest.batch_size,
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
