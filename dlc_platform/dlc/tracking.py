"""Tracks of several animals: what a network finds in each frame is joined over time by DeepLabCut's own tracker.

It is what `analyze_videos` runs with ``auto_track`` when all frames are predicted, on arrays instead of the pickled
files that DeepLabCut passes from step to step, so nothing is unpickled. Networks are run in `runner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

#: The individual that unique body parts belong to, as DeepLabCut calls it.
UNIQUE = "single"

_SUFFIXES = {"ellipse": "_el", "box": "_bx"}


class Tracker(BaseModel):
    """How tracks are made: DeepLabCut's ``default_track_method`` and its ``inference_cfg.yaml``, with its defaults.

    `pcutoff` is the likelihood below which a keypoint is left out; `max_age` and `min_hits` are frames;
    `boundingboxslack` is pixels. DeepLabCut's third method, ``skeleton``, fails in its first frame.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: Literal["ellipse", "box"] = "ellipse"
    pcutoff: float = 0.1
    max_age: int = 1
    min_hits: int = 1
    iou_threshold: float = 0.6
    boundingboxslack: float = 0


@dataclass(frozen=True)
class Tracks:
    """The poses of a video's individuals.

    Attributes
    ----------
    poses
        float32, shape (frames, individuals, bodyparts, 3): x, y and likelihood. NaN where an individual was not seen,
        or has no such body part; x and y alone are NaN where a keypoint is not likely enough to be tracked.
    suffix
        What DeepLabCut appends to the name of a file of such tracks: ``_el`` or ``_bx``.
    note
        Which tracks could not be made, and why; empty where all were.
    """

    poses: np.ndarray
    suffix: str
    note: str


def track(
    detections: np.ndarray, individuals: tuple[str, ...], bodyparts: tuple[str, ...], unique: int, tracker: Tracker
) -> Tracks:
    """Join what was found in all frames of a video to tracks.

    All frames are held in memory, here and by DeepLabCut: 16 bytes for each keypoint and frame, and some times more.
    Where DeepLabCut cannot tell tracks apart by its rules, it falls back to one whose result may differ between runs.

    Parameters
    ----------
    detections
        Shape (frames, individuals, bodyparts, 4), as `DeepLabCutRunner.detect` gives it.
    individuals, bodyparts
        Their names; the last `unique` body parts belong to the last individual alone, if there are any.
    """
    import numpy as np

    animals = len(individuals) - bool(unique)
    multi = len(bodyparts) - unique
    poses = np.full((*detections.shape[:3], 3), np.nan, np.float32)
    if unique:
        poses[:, -1, multi:] = detections[:, -1, multi:, :3]
        poses[(poses == -1).all(axis=-1)] = np.nan
    # DeepLabCut makes this switch for a single point, which has no extent.
    method = "box" if multi == 1 else tracker.method
    found = detections[:, :animals, :multi].astype(np.float64)
    try:
        tracks = _tracks(found, bodyparts[:multi], method, tracker)
    except _NoTrack as reason:
        return Tracks(poses, _SUFFIXES[method], f"DeepLabCut made no track of the {animals} individuals: {reason}")
    poses[:, :animals, :multi] = tracks.to_numpy(np.float32).reshape(-1, animals, multi, 3)
    made = int(np.isfinite(poses[:, :animals]).any(axis=(0, 2, 3)).sum())
    return Tracks(poses, _SUFFIXES[method], "" if made == animals else f"DeepLabCut made {made} of {animals} tracks")


class _NoTrack(Exception):
    """There is nothing that DeepLabCut could make a track of; it says why."""


def _tracks(found: np.ndarray, bodyparts: tuple[str, ...], method: str, tracker: Tracker) -> pd.DataFrame:
    """DeepLabCut's tracks, as its ``convert_detections2tracklets`` and ``stitch_tracklets`` make them.

    One row for each frame; individual by individual, the x, y and likelihood of its body parts.
    """
    from deeplabcut.pose_estimation_pytorch.apis.tracklets import build_tracklets
    from deeplabcut.refine_training_dataset.stitch import TrackletStitcher

    assemblies = {frame: own[~(own < 0).all(axis=(1, 2))] for frame, own in enumerate(found)}
    tracklets = build_tracklets(
        assemblies_data=assemblies,
        track_method=method,
        inference_cfg=tracker.model_dump() | {"topktoretain": found.shape[1]},
        joints=list(bodyparts),
        scorer="",
        num_frames=len(found),
    )
    try:
        stitcher = TrackletStitcher.from_dict_of_dict(tracklets, n_tracks=found.shape[1])
    except OSError as error:
        raise _NoTrack(error) from error

    def weight(one: Any, other: Any) -> float:
        # Two pieces that look like the same animal belong together; as in `stitch_tracklets`.
        return (0.01 if one.identity == other.identity else 1) * stitcher.calculate_edge_weight(one, other)

    told_apart = any(tracklet.identity != -1 for tracklet in stitcher)  # pyright: ignore[reportGeneralTypeIssues]
    stitcher.build_graph(weight_func=weight if told_apart else None)
    try:
        stitcher.stitch()
    except ValueError as error:
        raise _NoTrack(error) from error
    if stitcher.tracks is None or not len(stitcher.tracks):
        raise _NoTrack("its pieces could not be joined")
    return stitcher.format_df().reindex(range(len(found)))
