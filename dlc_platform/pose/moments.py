"""The moments behind the scores: in which frames a body part jumps, a limb is too long, or the network is unsure.

What counts as a jump, an outlier or unsure is what `scores` counts; here it is said where. What is said of a whole
video is in `findings`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlc_platform.pose import SINGLE_ANIMAL
from dlc_platform.pose.reference import Reference
from dlc_platform.pose.scores import Keypoints, within
from dlc_platform.text.words import counted, rounded

Kind = Literal["jump", "swap", "limb", "outside", "unsure"]
#: Stretches that are nearer together than that, in frames, are one moment.
_NEAR = 5
#: The network is unsure for a moment if it is for so many frames.
_UNSURE_FRAMES = 10


@dataclass(frozen=True)
class Moment:
    """A stretch of frames in which something is odd.

    Attributes
    ----------
    first, last
        Frame numbers, both of the stretch.
    weight
        How far it is beyond what is expected: the ones of a kind can be compared by it.
    """

    first: int
    last: int
    kind: Kind
    individual: str
    bodypart: str
    weight: float
    says: str


def moments(
    poses: Keypoints,
    reference: Reference,
    cutoff: float,
    picture: tuple[float, float],
    arena: np.ndarray | None = None,
    most: int = 200,
) -> tuple[list[Moment], int]:
    """The moments that a person should look at, in their order, and how many more there are.

    Of each kind those are given that weigh most.

    Parameters
    ----------
    cutoff
        Keypoints with a lower likelihood are unsure.
    picture
        Width and height in pixels.
    arena
        Corners of the polygon in which the animal is, shape (corners, 2); None if it is not known.
    most
        So many moments at most.
    """
    found: dict[Kind, list[Moment]] = {}
    for moment in _all(poses, reference, cutoff, picture, arena):
        found.setdefault(moment.kind, []).append(moment)
    kept: list[Moment] = []
    # Rare kinds leave what they do not need to the others.
    for done, own in enumerate(sorted(found.values(), key=len)):
        share = (most - len(kept)) // (len(found) - done)
        kept += sorted(own, key=lambda moment: -moment.weight)[:share]
    ordered = sorted(kept, key=lambda moment: (moment.first, moment.kind, moment.individual, moment.bodypart))
    return ordered, sum(map(len, found.values())) - len(kept)


def _all(
    poses: Keypoints, reference: Reference, cutoff: float, picture: tuple[float, float], arena: np.ndarray | None
) -> Iterator[Moment]:
    size = reference.size_px if np.isfinite(reference.size_px) else poses.size(cutoff)
    place_name = "picture" if arena is None else "arena"
    for keypoint, place in poses.places.items():
        x, y, likelihood = poses.x[place], poses.y[place], poses.likelihood[place]
        steps, jumped, swapped, sure = poses.steps(keypoint, cutoff, size)
        # A step leads to the frame after it.
        lengths = np.concatenate([[0.0], np.nan_to_num(steps)])
        yield from _moments(
            "jump",
            keypoint,
            np.append(False, jumped & sure),
            lengths,
            lambda at, _, own=lengths: f"jumps {rounded(own[at])} px",
        )
        yield from _moments(
            "swap", keypoint, np.append(False, swapped), lengths, lambda *_: "is where another individual just was"
        )
        confident = np.isfinite(x) & np.isfinite(y) & (likelihood >= cutoff)
        out = np.zeros(len(x), bool)
        out[confident] = ~within(x[confident], y[confident], picture, arena)
        yield from _moments("outside", keypoint, out, None, lambda _, long: f"is outside the {place_name} for {long}")
        unsure = np.isfinite(likelihood) & (likelihood < cutoff)
        yield from _moments(
            "unsure", keypoint, unsure, None, lambda _, long: f"is unsure for {long}", fewest=_UNSURE_FRAMES
        )
    for limb in reference.limbs:
        for individual in poses.individuals:
            lengths = poses.limb(individual, limb, cutoff)
            if lengths is None:
                continue
            beyond = np.fmax(limb.low_px / np.maximum(lengths, 1e-6), lengths / max(limb.high_px, 1e-6))
            usual = f"labels say {rounded(limb.low_px)} to {rounded(limb.high_px)} px"
            yield from _moments(
                "limb",
                (individual, limb.name),
                beyond > 1,
                beyond,
                lambda at, _, own=lengths, usual=usual: f"is {rounded(own[at])} px, and {usual}",
            )


def _moments(
    kind: Kind,
    whose: tuple[str, str],
    odd: np.ndarray,
    weights: np.ndarray | None,
    words: Callable[[int, str], str],
    fewest: int = 1,
) -> Iterator[Moment]:
    """The stretches of odd frames, each with its heaviest frame in words; without weights the longest weighs most."""
    frames = np.flatnonzero(odd)
    if not len(frames):
        return
    individual, bodypart = whose
    name = bodypart if individual == SINGLE_ANIMAL else f"{individual} {bodypart}"
    for own in np.split(frames, np.flatnonzero(np.diff(frames) > _NEAR) + 1):
        if len(own) < fewest:
            continue
        heaviest = int(own[0] if weights is None else own[np.argmax(weights[own])])
        weight = float(len(own) if weights is None else weights[heaviest])
        says = f"{name} {words(heaviest, counted(len(own), 'frame'))}"
        yield Moment(int(own[0]), int(own[-1]), kind, individual, bodypart, weight, says)
