"""The scores: the quality of a video's poses, without labels of the video.

Everything here takes tables and plain values. `verdict` compares scores with limits; `reference` has the facts about
the animal that labels give.

Scores of a body part (of an individual), over the frames that could be decoded:

* ``rows``: the number of its rows; there must be one for each frame of the video.
* ``mean_likelihood``; ``fraction_confident``, as `confidence` defines it; ``fraction_missing``, without an estimate.
  If poses come without any likelihood, the first two are over nothing.
* ``confident_when_seen``: the fraction of confident keypoints in the frames in which the individual is seen, that is,
  in which any keypoint of it has an estimate. For a single animal it is nearly always ``fraction_confident``; for
  several animals, the absence of one does not count against the poses.
* ``jumps``: the fraction of steps longer than the animal, among the steps from one frame to the next with both ends
  confident; ``unsure_jumps``: the same for the other steps.
* ``swaps``: the fraction of all steps that lead to where the same body part of another individual just was, while that
  one came here or was lost. They are not jumps.
* ``outside``: the fraction of the confident keypoints outside the picture or the arena.
* ``background``: the fraction of its confident keypoints that are a thing of the background: all of them stay at one
  place of the picture for the whole video, and every other confident keypoint of the individual that moves is farther
  away than in any label (see `Reference.reach`).
* ``temporal_norm_px``: the mean length of a step in pixels, ``|p[t] - p[t-1]|``, confident or not: the temporal norm of
  Biderman et al. 2024 (Lightning Pose, Nature Methods 21, 1316), which needs no labels.
* ``reprojection_px``: the mean distance in pixels between a keypoint and its place in the pose's projection on the
  principal components of labelled poses: the Pose PCA error of the same paper (see `PoseSpace`).

Score of a limb, a pair of body parts: ``limb_outliers``, the fraction of the frames in which both ends are confident
and lie nearer together or farther apart than the labels leave plausible (see `Limb`).

Scores of everything together:

* ``fraction_empty``: the fraction of the decoded frames without any estimate.
* ``no_animal``: the fraction, among the frames with an estimate, of those in which something is confident and yet no
  individual is believed. An individual is not believed if half of its keypoints, and at least two, are lost: neither
  confident, nor within reach of a confident one that moves in the video. A thing that looks like an ear, and stays
  where it is, proves nothing. An individual is not believed either if none of its confident keypoints moves in the
  whole video, and most pairs of them lie nearer together or farther apart than in any label.
* ``still``: the fraction of the frames in stretches in which no keypoint moves (see `still_stretches`).
* ``still_in_motion``: the fraction of the frames in those of these stretches in which the picture does move; NaN if the
  pictures could not be looked at.

A score over nothing is NaN. A step goes from a frame to the next one: if one of the two lacks the keypoint, there is no
step. No score depends on the order of the rows.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.pose import SINGLE_ANIMAL
from dlc_platform.pose.confidence import count_confident, is_confident, says_how_sure
from dlc_platform.pose.findings import ALL
from dlc_platform.pose.metrics import METRICS
from dlc_platform.pose.reference import (
    Limb,
    PoseSpace,
    Reference,
    animal_size,
)
from dlc_platform.pose.table import UNIQUE

if TYPE_CHECKING:
    import pandas as pd


_FRAMES_AT_ONCE = 16_384
#: The most stretches of a video in which stillness is looked for, and the fewest frames of each.
_STRETCHES, _SHORTEST_STRETCH = 8, 50
#: A keypoint stands still if it stays, except in a tenth of the frames, within this fraction of the animal's size: a
#: walking animal is farther within a second, and networks jitter by a few hundredths of it.
_STILL = 0.05
#: The same in pixels, if the animal has no size.
_STILL_PX = 2.0
#: The fewest lost keypoints of an individual in a frame that does not show it: in a project of three body parts, one
#: may be hidden.
_FEWEST_LOST = 2

#: The first frame of a stretch, and the frame after its last.
Stretch = tuple[int, int]


def measure(
    table: "pd.DataFrame",
    reference: Reference,
    cutoff: float,
    picture: tuple[float, float],
    arena: np.ndarray | None = None,
    lost: int = 0,
    picture_moves: Callable[[Sequence[Stretch]], Sequence[bool | None]] | None = None,
) -> "pd.DataFrame":
    """The scores of a pose table.

    Parameters
    ----------
    table
        A pose table of one video (see `table.py`), its rows in any order.
    reference
        If it has no size, that of the poses themselves is used, as `Reference` defines it for labels.
    cutoff
        The likelihood from which a keypoint is confident.
    picture
        The width and height of the picture, in pixels.
    arena
        Corners of a polygon, shape (corners, 2), in pixels of the full picture.
    lost
        The number of frames that could not be decoded; their rows are empty, which is not a fault of the model.
    picture_moves
        Tells for stretches of frames if the picture moves in them, None if that is not known. It is asked only for
        stretches in which the poses stand still.

    Returns
    -------
    DataFrame
        Columns individual, bodypart, rows and `METRICS`. One row for each individual's body part; then one for each
        limb (bodypart ``one to other``) of an individual that has both ends; the last one, with individual and body
        part ``all``, is over everything.
    """
    import pandas as pd

    poses = Keypoints.of(table)
    size = reference.size_px if np.isfinite(reference.size_px) else poses.size(cutoff)
    sums = {keypoint: poses.sums(keypoint, cutoff, size, picture, arena, lost) for keypoint in poses.places}
    for keypoint, errors in poses.reprojection(reference.space).items():
        sums[keypoint]["reprojection_px"] = errors
    seen, believed, doubted = np.zeros((3, poses.length), bool)
    for individual in poses.individuals:
        sight = None if individual == UNIQUE else poses.sight(individual, reference, cutoff, size)
        if sight is None:
            continue
        seen |= sight.believed | sight.doubted | sight.unsure
        believed |= sight.believed
        doubted |= sight.doubted
        for keypoint, own in sight.background.items():
            sums[keypoint]["background"] = own
    limbs = {
        (individual, limb.name): {"limb_outliers": outliers}
        for limb in reference.limbs
        for individual in poses.individuals
        if (outliers := poses.limb_outliers(individual, limb, cutoff)) is not None
    }
    rows = [
        {
            "individual": individual,
            "bodypart": bodypart,
            "rows": poses.rows.get((individual, bodypart)),
            **_means([own]),
        }
        for (individual, bodypart), own in (sums | limbs).items()
    ]
    over_all = _means([*sums.values(), *limbs.values(), {"fraction_empty": poses.empty(lost)}])
    still, in_motion = _stillness(poses.still_stretches(size), poses.length, picture_moves)
    over_all |= {"still": still, "still_in_motion": in_motion}
    over_all["no_animal"] = float((doubted & ~believed).sum() / seen.sum()) if seen.any() else np.nan
    rows.append({"individual": ALL, "bodypart": ALL, "rows": poses.frames, **over_all})
    return pd.DataFrame(rows).astype({"rows": "Int64"})


def measure_predictions(predictions: "pd.DataFrame", reference: Reference, cutoff: float) -> "pd.DataFrame":
    """The scores of a model on labelled images that it was not trained on, with which its poses are compared.

    They are those of `measure`, with two differences. Images do not follow each other, so there are no steps; ``jumps``
    is the fraction of the confident keypoints that lie farther from their label than the animal's length. ``rows``
    counts the images.

    Parameters
    ----------
    predictions
        Columns image, bodypart, predicted_x, predicted_y, likelihood, distance_px (see `dlc.evaluation`). Keypoints
        that are not labelled count as well: a body part that is often hidden is seldom confident in videos, too.
    """
    import pandas as pd

    known = predictions[predictions["likelihood"].notna()]
    bodyparts = list(dict.fromkeys(known["bodypart"]))
    table = pd.DataFrame(
        {
            # Every other frame, so that there are no steps between them.
            "frame": 2 * pd.factorize(known["image"])[0],
            "individual": pd.Categorical([SINGLE_ANIMAL] * len(known)),
            "bodypart": pd.Categorical(known["bodypart"], categories=bodyparts),
            "x": known["predicted_x"],
            "y": known["predicted_y"],
            "likelihood": known["likelihood"],
        }
    )
    scores = measure(table, reference, cutoff, (np.inf, np.inf))
    sure = known[(known["likelihood"] >= cutoff) & known["distance_px"].notna()]
    far = (sure["distance_px"] > reference.size_px).groupby(sure["bodypart"].astype(str)).mean()
    scores["jumps"] = scores["bodypart"].map(far).astype(float)
    return scores


def course(table: "pd.DataFrame", reference: Reference, cutoff: float, bins: int = 300) -> "pd.DataFrame":
    """The scores over time, in stretches of equal length, for a picture.

    Returns
    -------
    DataFrame
        Columns frame (the middle of the stretch), kind, bodypart and value. Kinds are ``likelihood`` (the mean of a
        body part), ``jumps`` (the number of confident steps longer than the animal, over all body parts; bodypart
        ``all``) and ``limb`` (the median length of a limb, as a multiple of that of the labels). All individuals are
        taken together.
    """
    import pandas as pd

    poses = Keypoints.of(table)
    size = reference.size_px if np.isfinite(reference.size_px) else poses.size(cutoff)
    stretch = -(-max(poses.length, 1) // bins)
    starts = np.arange(0, poses.length, stretch)
    n = len(starts)
    of_frame = np.arange(poses.length) // stretch
    found: dict[tuple[str, str], np.ndarray] = {}

    for bodypart in poses.bodyparts:
        places = [place for (_, part), place in poses.places.items() if part == bodypart]
        # With several individuals, each known value counts once.
        rated = np.isfinite(poses.likelihood[places])
        total, counts = np.where(rated, poses.likelihood[places], 0).sum(axis=0), rated.sum(axis=0)
        with np.errstate(invalid="ignore"):
            found["likelihood", bodypart] = np.bincount(of_frame, total, n) / np.bincount(of_frame, counts, n)
    jumps = np.zeros(poses.length)
    for keypoint in poses.places:
        _, jumped, _, sure = poses.steps(keypoint, cutoff, size)
        jumps[1:] += jumped & sure
    found["jumps", ALL] = np.bincount(of_frame, jumps, n)
    for limb in reference.limbs:
        for individual in poses.individuals:
            lengths = poses.limb(individual, limb, cutoff)
            if lengths is not None:
                middle = pd.Series(lengths).groupby(of_frame).median().to_numpy() / limb.median_px
                found["limb", limb.name if individual == SINGLE_ANIMAL else f"{individual} {limb.name}"] = middle
    return pd.DataFrame(
        {
            "frame": np.tile(starts + stretch / 2, len(found)),
            "kind": np.repeat([kind for kind, _ in found], n),
            "bodypart": np.repeat([bodypart for _, bodypart in found], n),
            "value": np.concatenate(list(found.values())) if found else np.empty(0),
        }
    )


def limb_lengths(table: "pd.DataFrame", reference: Reference, cutoff: float) -> "pd.DataFrame":
    """The lengths of the limbs, beside those of the labels, for a picture.

    Returns
    -------
    DataFrame
        One row for each limb of each individual, in pixels: bodypart, low_px, median_px and high_px by the labels (see
        `Limb`), and the quantiles q01, q25, q50, q75 and q99 of the poses; NaN where the ends are never confident.
    """
    import pandas as pd

    poses = Keypoints.of(table)
    rows = []
    for limb in reference.limbs:
        for individual in poses.individuals:
            lengths = poses.limb(individual, limb, cutoff)
            if lengths is None:
                continue
            lengths = lengths[np.isfinite(lengths)]
            quantiles = np.quantile(lengths, (0.01, 0.25, 0.5, 0.75, 0.99)) if len(lengths) else np.full(5, np.nan)
            name = limb.name if individual == SINGLE_ANIMAL else f"{individual} {limb.name}"
            rows.append((name, limb.low_px, limb.median_px, limb.high_px, *quantiles))
    columns = ("bodypart", "low_px", "median_px", "high_px", "q01", "q25", "q50", "q75", "q99")
    return pd.DataFrame(rows, columns=pd.Index(columns))


#: The sum of a score over the values that it averages, and their number.
_Sum = tuple[float, int]


@dataclass(frozen=True)
class _Sight:
    """The visibility of an individual in frames with estimates for two or more of its keypoints, shape (frames,) each.

    A frame is `unsure` if none of them is confident, and else `believed` or `doubted`. `background` has the sum of that
    score for each of its keypoints.
    """

    unsure: np.ndarray
    believed: np.ndarray
    doubted: np.ndarray
    background: Mapping[tuple[str, str], _Sum]


@dataclass(frozen=True)
class Keypoints:
    """A pose table as arrays of shape (keypoints, frames); NaN without a row or an estimate."""

    places: Mapping[tuple[str, str], int]
    rows: Mapping[tuple[str, str], int]
    x: np.ndarray
    y: np.ndarray
    likelihood: np.ndarray
    frames: int

    @classmethod
    def of(cls, table: "pd.DataFrame") -> "Keypoints":
        bodypart, individual = table["bodypart"].cat, table["individual"].cat
        parts, individuals = list(bodypart.categories), list(individual.categories)
        code = individual.codes.to_numpy().astype(np.int64) * len(parts) + bodypart.codes.to_numpy()
        counts = np.bincount(code, minlength=len(parts) * len(individuals))
        present = np.flatnonzero(counts)
        frame = table["frame"].to_numpy()
        length = int(frame.max(initial=-1)) + 1
        place = np.zeros(len(counts), np.int64)
        place[present] = np.arange(len(present))
        index = place[code] * length + frame
        seen = np.zeros(length, bool)
        seen[frame] = True

        def filled(name: str) -> np.ndarray:
            values = np.full(len(present) * length, np.nan, np.float32)
            values[index] = table[name].to_numpy()
            return values.reshape(len(present), length)

        keypoints = [(str(individuals[one // len(parts)]), str(parts[one % len(parts)])) for one in present]
        return cls(
            places={keypoint: number for number, keypoint in enumerate(keypoints)},
            rows={keypoint: int(counts[one]) for keypoint, one in zip(keypoints, present, strict=True)},
            x=filled("x"),
            y=filled("y"),
            likelihood=filled("likelihood"),
            frames=int(seen.sum()),
        )

    @classmethod
    def of_arrays(cls, keypoints: Sequence[tuple[str, str]], poses: np.ndarray) -> "Keypoints":
        """Of x, y and likelihood, shape (keypoints, frames, 3), with individual and body part of each keypoint."""
        frames = poses.shape[1]
        return cls(
            places={keypoint: number for number, keypoint in enumerate(keypoints)},
            rows={keypoint: frames for keypoint in keypoints},
            x=poses[..., 0],
            y=poses[..., 1],
            likelihood=poses[..., 2],
            frames=frames,
        )

    @property
    def length(self) -> int:
        return self.x.shape[1]

    @cached_property
    def individuals(self) -> list[str]:
        return list(dict.fromkeys(individual for individual, _ in self.places))

    @cached_property
    def bodyparts(self) -> list[str]:
        return list(dict.fromkeys(bodypart for _, bodypart in self.places))

    @cached_property
    def seen(self) -> dict[str, np.ndarray]:
        """For each individual the frames in which any keypoint of it has an estimate, shape (frames,)."""
        known = np.isfinite(self.x) & np.isfinite(self.y)
        return {
            individual: np.logical_or.reduce(
                known[[place for (own, _), place in self.places.items() if own == individual]]
            )
            for individual in self.individuals
        }

    def empty(self, lost: int) -> _Sum:
        """`fraction_empty`, as a sum: the number of decoded frames without any estimate."""
        decoded = max(self.frames - lost, 0)
        seen = np.logical_or.reduce([*self.seen.values()]) if self.seen else np.zeros(0, bool)
        return max(decoded - int(seen.sum()), 0), decoded

    def still_stretches(self, size: float) -> list[Stretch]:
        """The stretches of the video in which no keypoint moves, out of at most eight of equal length.

        A keypoint stands still if the middle nine tenths of its x, and of its y, lie within 5 % of the animal's size.
        Keypoints with fewer than two estimates in a stretch do not count; a stretch with only such keypoints is not
        still.
        """
        count = int(np.clip(self.length // _SHORTEST_STRETCH, 1, _STRETCHES))
        edges = np.linspace(0, self.length, count + 1).astype(int)
        near = _STILL * size if np.isfinite(size) else _STILL_PX
        found = []
        for start, end in itertools.pairwise(edges.tolist()):
            x, y = self.x[:, start:end], self.y[:, start:end]
            enough = (np.isfinite(x) & np.isfinite(y)).sum(axis=1) >= 2
            if not enough.any():
                continue
            ranges = [np.diff(np.nanquantile(axis[enough], (0.05, 0.95), axis=1), axis=0)[0] for axis in (x, y)]
            if bool((np.hypot(*ranges) <= near).all()):
                found.append((start, end))
        return found

    def sight(self, individual: str, reference: Reference, cutoff: float, size: float) -> _Sight | None:
        """The frames that show an individual, and its keypoints in the background; None if that cannot be told.

        It cannot be told for a single body part, and for poses without likelihoods or without any size.
        """
        keypoints = [keypoint for keypoint in self.places if keypoint[0] == individual]
        places = [self.places[keypoint] for keypoint in keypoints]
        x, y, likelihood = self.x[places], self.y[places], self.likelihood[places]
        if len(places) < 2 or not np.isfinite(likelihood).any() or not np.isfinite(size):
            return None
        known = np.isfinite(x) & np.isfinite(y)
        confident = known & (likelihood >= cutoff)
        fixed = [self._is_fixed(x[place, own], y[place, own], size) for place, own in enumerate(confident)]
        near = np.zeros_like(confident)
        beside = np.zeros_like(confident)  # any other confident keypoint that moves
        surplus = np.zeros(self.length, int)  # among pairs of confident keypoints: those as in labels minus the others
        for (one, (_, a)), (other, (_, b)) in itertools.combinations(enumerate(keypoints), 2):
            nearest, farthest = reference.reach(a, b, size)
            with np.errstate(invalid="ignore"):
                distance = np.hypot(x[one] - x[other], y[one] - y[other])
                close = distance <= farthest
                surplus += np.where(
                    confident[one] & confident[other], np.where(close & (distance >= nearest), 1, -1), 0
                )
            for mine, anchor in ((one, other), (other, one)):
                if not fixed[anchor]:
                    near[mine] |= close & confident[anchor]
                    beside[mine] |= confident[anchor]
        count = known.sum(axis=0)
        lost = (known & ~confident & ~near).sum(axis=0) >= np.maximum(_FEWEST_LOST, count / 2)
        moves = (confident & ~np.array(fixed)[:, None]).any(axis=0)
        lost |= ~moves & (surplus < 0)
        enough, sure = count >= _FEWEST_LOST, confident.any(axis=0)
        apart = (confident & beside & ~near).sum(axis=1)
        return _Sight(
            enough & ~sure,
            enough & sure & ~lost,
            enough & sure & lost,
            {
                keypoint: (int(apart[place]) if fixed[place] else 0, int(confident[place].sum()))
                for place, keypoint in enumerate(keypoints)
            },
        )

    def _is_fixed(self, x: np.ndarray, y: np.ndarray, size: float) -> bool:
        """True if a keypoint stays at one place, except in a tenth of the frames, in a video that is not short."""
        if self.length < _SHORTEST_STRETCH or len(x) < 2:
            return False
        ranges = [float(np.diff(np.quantile(axis, (0.05, 0.95)))[0]) for axis in (x, y)]
        return math.hypot(*ranges) <= _STILL * size

    def sums(
        self,
        keypoint: tuple[str, str],
        cutoff: float,
        size: float,
        picture: tuple[float, float],
        arena: np.ndarray | None,
        lost: int,
    ) -> dict[str, _Sum]:
        """The scores of a keypoint by itself."""
        x, y, likelihood = (values[self.places[keypoint]] for values in (self.x, self.y, self.likelihood))
        known = np.isfinite(x) & np.isfinite(y)
        confident = is_confident(x, y, likelihood, cutoff)
        decoded = max(self.rows[keypoint] - lost, 0)
        rated = np.isfinite(likelihood)
        seen = int(self.seen[keypoint[0]].sum()) if says_how_sure(x, y, likelihood) else 0
        steps, jumped, swapped, sure = self.steps(keypoint, cutoff, size)
        stepped = np.isfinite(steps)
        sized = np.isfinite(size)
        inside = within(x[confident], y[confident], picture, arena)
        return {
            "mean_likelihood": (float(likelihood[rated].sum(dtype=float)), int(rated.sum())),
            "fraction_confident": count_confident(x, y, likelihood, cutoff, decoded),
            "confident_when_seen": (int(confident.sum()), seen),
            "fraction_missing": (max(decoded - int(known.sum()), 0), decoded),
            "jumps": (int((jumped & sure).sum()), int((stepped & sure).sum()) if sized else 0),
            "unsure_jumps": (int((jumped & ~sure).sum()), int((stepped & ~sure).sum()) if sized else 0),
            "swaps": (int(swapped.sum()), int(stepped.sum()) if sized and len(self.individuals) > 1 else 0),
            "outside": (int((~inside).sum()), len(inside)),
            "temporal_norm_px": (float(steps[stepped].sum(dtype=float)), int(stepped.sum())),
        }

    def steps(
        self, keypoint: tuple[str, str], cutoff: float, size: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For each step: its length, and true or false for jump, for swap, and for both ends confident."""
        individual, bodypart = keypoint
        place = self.places[keypoint]
        x, y, likelihood = self.x[place], self.y[place], self.likelihood[place]
        lengths = np.hypot(np.diff(x), np.diff(y))
        sure = (likelihood[1:] >= cutoff) & (likelihood[:-1] >= cutoff)
        jumped = lengths > size
        swapped = np.zeros_like(jumped)
        moments = np.flatnonzero(jumped)
        for another in self.individuals if len(moments) else ():
            other = self.places.get((another, bodypart))
            if other is None or another == individual:
                continue
            here, there = np.stack([x, y]), np.stack([self.x[other], self.y[other]])
            taken = np.hypot(*(here[:, moments + 1] - there[:, moments])) < size / 2
            given = ~(np.hypot(*(there[:, moments + 1] - here[:, moments])) >= size / 2)  # or lost
            swapped[moments] |= taken & given
        return lengths, jumped & ~swapped, swapped, sure

    def limb(self, individual: str, limb: Limb, cutoff: float) -> np.ndarray | None:
        """The length of a limb in each frame, NaN if an end is not confident; None if an end is unknown."""
        one, other = (self.places.get((individual, bodypart)) for bodypart in (limb.one, limb.other))
        if one is None or other is None:
            return None
        sure = (self.likelihood[one] >= cutoff) & (self.likelihood[other] >= cutoff)
        return np.where(sure, np.hypot(self.x[one] - self.x[other], self.y[one] - self.y[other]), np.nan)

    def limb_outliers(self, individual: str, limb: Limb, cutoff: float) -> _Sum | None:
        lengths = self.limb(individual, limb, cutoff)
        if lengths is None:
            return None
        lengths = lengths[np.isfinite(lengths)]
        return int(((lengths < limb.low_px) | (lengths > limb.high_px)).sum()), len(lengths)

    def reprojection(self, space: PoseSpace | None) -> dict[tuple[str, str], _Sum]:
        """The errors of each individual that has all body parts of the space."""
        found: dict[tuple[str, str], _Sum] = {}
        for individual in self.individuals if space is not None else ():
            assert space is not None
            keypoints = [(individual, bodypart) for bodypart in space.bodyparts]
            if not all(keypoint in self.places for keypoint in keypoints):
                continue
            places = [self.places[keypoint] for keypoint in keypoints]
            total, complete = np.zeros(len(places)), 0
            # A few frames at a time: all at once would take eight times the memory of the table.
            for first in range(0, self.length, _FRAMES_AT_ONCE):
                part = slice(first, first + _FRAMES_AT_ONCE)
                poses = np.stack([self.x[places, part].T, self.y[places, part].T], axis=-1).astype(float)
                poses = poses[np.isfinite(poses).all(axis=(1, 2))]
                total += space.errors(poses).sum(axis=0)
                complete += len(poses)
            found |= {keypoint: (float(own), complete) for keypoint, own in zip(keypoints, total, strict=True)}
        return found

    def size(self, cutoff: float) -> float:
        """The animals' size, by their own confident poses."""
        sizes = []
        for individual in self.individuals:
            places = [place for (own, _), place in self.places.items() if own == individual]
            sure = self.likelihood[places] >= cutoff
            points = np.stack([np.where(sure, axis[places], np.nan).T for axis in (self.x, self.y)], axis=-1)
            sizes.append(animal_size(points))
        known = [size for size in sizes if np.isfinite(size)]
        return float(np.median(known)) if known else np.nan


def within(x: np.ndarray, y: np.ndarray, picture: tuple[float, float], arena: np.ndarray | None) -> np.ndarray:
    """True for points that lie in a picture of this width and height, and in the polygon of an arena if there is
    one."""
    inside = (x >= 0) & (y >= 0) & (x <= picture[0]) & (y <= picture[1])
    if arena is None:
        return inside
    # A ray to the right crosses the sides of a polygon an odd number of times if it begins inside.
    odd = np.zeros(len(x), bool)
    for (x1, y1), (x2, y2) in zip(arena, np.roll(arena, -1, axis=0), strict=True):
        if y1 != y2:
            odd ^= ((y1 > y) != (y2 > y)) & (x < x1 + (x2 - x1) * (y - y1) / (y2 - y1))
    return inside & odd


def _means(sums: Sequence[Mapping[str, _Sum]]) -> dict[str, float]:
    means = {}
    for metric in METRICS:
        own = [one[metric] for one in sums if metric in one]
        count = sum(count for _, count in own)
        means[metric] = sum(total for total, _ in own) / count if count else np.nan
    return means


def _stillness(
    stretches: Sequence[Stretch],
    length: int,
    picture_moves: Callable[[Sequence[Stretch]], Sequence[bool | None]] | None,
) -> tuple[float, float]:
    """`still` and `still_in_motion`; the latter is NaN if the picture is not known in one of the stretches."""
    if not length:
        return np.nan, np.nan
    frames = [end - start for start, end in stretches]
    still = sum(frames) / length
    if not stretches:
        return still, 0.0
    moves = [None] * len(stretches) if picture_moves is None else list(picture_moves(stretches))
    if None in moves:
        return still, np.nan
    return still, sum(own for own, moved in zip(frames, moves, strict=True) if moved) / length
