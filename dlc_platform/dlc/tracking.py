"""Tracks of several animals: the network's results in each frame are joined over time.

DeepLabCut's own trackers follow animals from frame to frame, as in `analyze_videos` with ``auto_track``. They only get
animals that they can follow: they miscount others, and then write one animal's pose into the track of another
(DeepLabCut's issue 3493). `stitching` joins the pieces that they make. `runner` runs the networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from dlc_platform.dlc.stitching import LONG, Piece, stitch
from dlc_platform.text.words import counted

_SUFFIXES = {"ellipse": "_el", "box": "_bx"}
#: The fewest keypoints of an ellipse.
_ELLIPSE_POINTS = 3
#: Pixels around a single point that make a box, as in DeepLabCut.
_POINT_SLACK = 40


class Tracker(BaseModel):
    """The way in which tracks are made: DeepLabCut's ``default_track_method`` and ``inference_cfg.yaml``, with its
    defaults.

    `pcutoff` is the likelihood below which a keypoint is left out; `max_age` and `min_hits` are frames;
    `boundingboxslack` is pixels. DeepLabCut's third method, ``skeleton``, is left out: it fills gaps with guesses that
    look like detections.
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
        DeepLabCut's ending for the name of a file with such tracks: ``_el`` or ``_bx``.
    note
        The tracks that could not be made, and the poses that are in none, in words; empty if there are none.
    """

    poses: np.ndarray
    suffix: str
    note: str


def track(
    detections: np.ndarray, individuals: tuple[str, ...], bodyparts: tuple[str, ...], unique: int, tracker: Tracker
) -> Tracks:
    """Join the results of all frames of a video to tracks.

    Each pose of a track is a detection, and no detection is in two tracks; the same detections always give the same
    tracks. A single animal needs no tracker: each pose is its own. All frames are in memory, several times: 16 bytes
    for each keypoint and frame.

    Parameters
    ----------
    detections
        Shape (frames, individuals, bodyparts, 4), as `DeepLabCutRunner.detect` gives it.
    individuals, bodyparts
        Their names; the last `unique` body parts belong to the last individual alone, if there are any.
    """
    animals = len(individuals) - bool(unique)
    multi = len(bodyparts) - unique
    poses = np.full((*detections.shape[:3], 3), np.nan, np.float32)
    if unique:
        poses[:, -1, multi:] = detections[:, -1, multi:, :3]
        poses[(poses == -1).all(axis=-1)] = np.nan
    # DeepLabCut makes this switch for a single point, which has no extent.
    method = "box" if multi == 1 else tracker.method
    found = detections[:, :animals, :multi].astype(np.float64)
    known = np.isfinite(found[..., :3]).all(axis=-1) & (found[..., :3] >= 0).all(axis=-1)
    found[~known, :3] = np.nan
    found[found[..., 2] < tracker.pcutoff, :2] = np.nan
    visible = np.isfinite(found[..., 0]).sum(axis=-1)
    if animals == 1:
        chosen = np.where(visible[:, 0] > 0, 0, -1)[np.newaxis]
    else:
        chosen = stitch(_pieces(found, visible, method, tracker), found, animals)
    for individual, own in enumerate(chosen):
        frames = np.flatnonzero(own >= 0)
        poses[frames, individual, :multi] = found[frames, own[frames], :, :3]
    return Tracks(poses, _SUFFIXES[method], _note(chosen, visible, method))


def _pieces(found: np.ndarray, visible: np.ndarray, method: str, tracker: Tracker) -> list[Piece]:
    """The pieces of tracks: detections that DeepLabCut's tracker takes for the same animal; `visible` counts
    keypoints."""
    from deeplabcut.core.trackingutils import EllipseFitter, SORTBox, SORTEllipse, calc_bboxes_from_keypoints

    fitter = EllipseFitter()
    followed = (SORTBox if method == "box" else SORTEllipse)(tracker.max_age, tracker.min_hits, tracker.iou_threshold)
    # Without an extent, boxes of single points never overlap; DeepLabCut means to do the same.
    slack = max(tracker.boundingboxslack, _POINT_SLACK) if found.shape[2] == 1 else tracker.boundingboxslack
    members: dict[int, list[tuple[int, int]]] = {}
    for frame in np.flatnonzero(visible.any(axis=1)):
        own = np.flatnonzero(visible[frame])
        places = found[frame, own, :, :2]
        if method == "box":
            with np.errstate(divide="ignore", invalid="ignore"):  # boxes without an extent
                rows = followed.track(calc_bboxes_from_keypoints(found[frame, own, :, :3], slack))  # pyright: ignore[reportArgumentType]
        else:
            fits = [fitter.fit(points) is not None for points in places]
            own, places = own[fits], places[fits]
            rows = followed.track(places)
        for piece, number in rows[:, -2:].astype(int):
            members.setdefault(int(piece), []).append((int(frame), int(own[number])))
    return [Piece(*np.array(piece).T) for piece in members.values()]


def _note(chosen: np.ndarray, visible: np.ndarray, method: str) -> str:
    """The note about tracks that a person must know; `chosen` is as `stitch` gives it, `visible` counts keypoints."""
    animals, made = len(chosen), int((chosen >= 0).any(axis=1).sum())
    notes = []
    if not made:
        notes.append(
            f"no individual could be followed through {counted(min(LONG, len(visible)), 'frame')}, so there is no track"
        )
    elif made < animals:
        notes.append(f"{made} of {animals} individuals could be followed")
    most = int((visible > 0).sum(axis=1).max(initial=0))
    if most < made:
        most_animals = counted(most, "animal")
        notes.append(f"there are {made} tracks, and never more than {most_animals} at once: one may bear several names")
    left = visible > 0
    for own in chosen:
        frames = np.flatnonzero(own >= 0)
        left[frames, own[frames]] = False
    if left.any():
        few = int((left & (visible < _ELLIPSE_POINTS)).sum()) if method == "ellipse" else 0
        why = f", {few} of them because fewer than {_ELLIPSE_POINTS} keypoints were likely enough" if few else ""
        notes.append(
            f"{int(left.sum())} of {counted(int((visible > 0).sum()), 'pose')} {'is' if left.sum() == 1 else 'are'} "
            f"in no track{why}"
        )
    return "; ".join(notes)
