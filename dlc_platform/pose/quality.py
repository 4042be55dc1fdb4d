"""How good the poses of a video look, without labels of it: scores, what they are held against, and the verdict.

Everything here takes tables and plain values. Which reference belongs to which poses, what is written down and what a
verdict blocks is decided in `gate`; drawing is `pictures.py`.

Scores of a body part (of an individual), over the frames that could be decoded:

* ``rows``: how many rows it has; there must be one for each frame of the video.
* ``mean_likelihood``; ``fraction_confident``, with a likelihood of at least the cutoff; ``fraction_missing``, without
  an estimate.
* ``jumps``: of the steps from one frame to the next whose both ends are confident, the fraction that is longer than the
  animal; ``unsure_jumps``: the same of the other steps.
* ``swaps``: the fraction of all steps that lead to where the same body part of another individual just was, while that
  one came here or was lost. They are no jumps.
* ``outside``: the fraction of the confident keypoints outside the picture or the arena.
* ``temporal_norm_px``: the mean length of a step in pixels, ``|p[t] - p[t-1]|``, confident or not: the temporal norm of
  Biderman et al. 2024 (Lightning Pose, Nature Methods 21, 1316), which needs no labels.
* ``reprojection_px``: the mean distance in pixels between a keypoint and its place in the pose's projection on the
  principal components of labelled poses: the Pose PCA error of the same paper (see `PoseSpace`).

Score of a limb, a pair of body parts: ``limb_outliers``, the fraction of the frames in which both ends are confident
and lie nearer together or farther apart than the labels say (see `Limb`).

A score over nothing is NaN. Steps go from a frame to the next one: where one of the two lacks the keypoint, there is no
step. No score depends on the order of the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from dlc_platform.pose.table import SINGLE_ANIMAL
from dlc_platform.settings import LESS_IS_WORSE

if TYPE_CHECKING:
    import pandas as pd

#: The scores in the order of tables, without `rows`.
METRICS = (
    "mean_likelihood",
    "fraction_confident",
    "fraction_missing",
    "jumps",
    "unsure_jumps",
    "swaps",
    "limb_outliers",
    "outside",
    "reprojection_px",
    "temporal_norm_px",
)
#: Stands for every individual, and for every body part.
ALL = "all"

#: Fewer labelled limbs say too little of a range.
_LEAST_LIMBS = 10
#: Of the variance of labelled poses, what the components keep; the value of Biderman et al. 2024.
_VARIANCE_KEPT = 0.99
_FRAMES_AT_ONCE = 16_384

Level = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Limb:
    """Two body parts, and the range of the distances between them in pixels that labels leave plausible.

    The range ends at Tukey's outer fences: three interquartile ranges beyond the quartiles of the labelled distances.
    """

    one: str
    other: str
    low_px: float
    high_px: float
    median_px: float

    @property
    def name(self) -> str:
        return f"{self.one} to {self.other}"


@dataclass(frozen=True)
class PoseSpace:
    """The principal components of labelled poses.

    From the images in which every body part is labelled. Other than in Biderman et al. 2024, a pose is taken relative
    to the mean of its keypoints, so that where a freely moving animal is does not count as its pose. As there, as many
    components are kept as explain 99 % of the variance.

    Attributes
    ----------
    mean
        Shape (2 x bodyparts,), the x and y of each body part in turn.
    components
        Orthonormal rows, shape (components, 2 x bodyparts).
    """

    bodyparts: tuple[str, ...]
    mean: np.ndarray
    components: np.ndarray

    def errors(self, poses: np.ndarray) -> np.ndarray:
        """The distance of each keypoint from the projection of its pose, in pixels.

        Parameters
        ----------
        poses
            Shape (frames, bodyparts, 2). A pose that lacks a keypoint has no projection.

        Returns
        -------
        array of shape (frames, bodyparts)
            NaN where a pose is not complete.
        """
        centred = (poses - poses.mean(axis=1, keepdims=True)).reshape(len(poses), -1) - self.mean
        residual = centred - (centred @ self.components.T) @ self.components
        return np.hypot(residual[:, 0::2], residual[:, 1::2])


@dataclass(frozen=True)
class Reference:
    """What labels say of an animal.

    Attributes
    ----------
    size_px
        The animal's size: the diagonal of the box around its body parts, the median over the images in which at least
        half of them are labelled. NaN where no two body parts are.
    limbs
        The lines of the skeleton, or where it has none, of all pairs those whose length varies least and which join
        all body parts (the minimum spanning tree of the relative interquartile ranges).
    space
        None where too few poses are complete, or where the components span every pose.
    """

    size_px: float = np.nan
    limbs: tuple[Limb, ...] = ()
    space: PoseSpace | None = None


@dataclass(frozen=True)
class Limits:
    """From which value on a score is worth a warning, and from which it fails; None for never."""

    warn: float | None = None
    fail: float | None = None


@dataclass(frozen=True)
class Finding:
    """A score beyond a limit."""

    metric: str
    individual: str
    bodypart: str
    value: float
    limit: float
    level: Level

    def __str__(self) -> str:
        whose = self.bodypart if self.individual in (SINGLE_ANIMAL, ALL) else f"{self.individual} {self.bodypart}"
        return f"{self.metric} of {whose} is {self.value:.3g}, limit {self.limit:.3g}"


def reference_from_labels(labels: "pd.DataFrame", skeleton: Iterable[tuple[str, str]] = ()) -> Reference:
    """What labels say of an animal's size, its limbs and its poses.

    Parameters
    ----------
    labels
        Columns image, bodypart, x and y, in pixels; NaN where a body part is not labelled.
    skeleton
        Pairs of body parts; those that are not labelled are passed over.
    """
    import pandas as pd

    bodyparts = list(dict.fromkeys(labels["bodypart"]))
    image = pd.factorize(labels["image"])[0]
    place = pd.Categorical(labels["bodypart"], categories=bodyparts).codes
    points = np.full((image.max(initial=-1) + 1, len(bodyparts), 2), np.nan)
    points[image, place] = labels[["x", "y"]].to_numpy(float)
    return Reference(_size(points), _limbs(points, bodyparts, list(skeleton)), _space(points, bodyparts))


def measure(
    table: "pd.DataFrame",
    reference: Reference,
    cutoff: float,
    picture: tuple[float, float],
    arena: np.ndarray | None = None,
    lost: int = 0,
) -> "pd.DataFrame":
    """The scores of a pose table.

    Parameters
    ----------
    table
        A pose table of one video (see `table.py`), its rows in any order.
    reference
        Where it has no size, that of the poses themselves is taken, as `Reference` defines it for labels.
    cutoff
        Likelihood from which a keypoint counts as confident.
    picture
        Its width and height, in pixels.
    arena
        Corners of a polygon, shape (corners, 2), in pixels of the full picture.
    lost
        Frames of the video that could not be decoded; their rows are empty, and no fault of the model.

    Returns
    -------
    DataFrame
        Columns individual, bodypart, rows and `METRICS`. One row for each individual's body part; then one for each
        limb (bodypart ``one to other``) of an individual that has both ends; the last one, with individual and body
        part ``all``, is over everything.
    """
    import pandas as pd

    poses = _Poses.of(table)
    size = reference.size_px if np.isfinite(reference.size_px) else poses.size(cutoff)
    sums = {keypoint: poses.sums(keypoint, cutoff, size, picture, arena, lost) for keypoint in poses.places}
    for keypoint, errors in poses.reprojection(reference.space).items():
        sums[keypoint]["reprojection_px"] = errors
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
    rows.append({"individual": ALL, "bodypart": ALL, "rows": poses.frames, **_means([*sums.values(), *limbs.values()])})
    return pd.DataFrame(rows).astype({"rows": "Int64"})


def measure_predictions(predictions: "pd.DataFrame", reference: Reference, cutoff: float) -> "pd.DataFrame":
    """The scores that a model has on labelled images that it was not taught: what its poses are held against.

    They are those of `measure`, with two differences. Images do not follow each other, so nothing of steps is known,
    but ``jumps`` is the fraction of the confident keypoints that lie farther from their label than the animal is long.
    ``rows`` counts the images.

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


def default_limits(evaluated: "pd.DataFrame | None", bodypart: str) -> dict[str, Limits]:
    """From which values on a score is worth a warning, where lab.yaml says nothing; nothing fails.

    Parameters
    ----------
    evaluated
        What `measure_predictions` gave for the model; without it the limits are absolute.

    Notes
    -----
    Videos are not test images, so each limit leaves room: 0.2 below the fraction of confident keypoints, 0.05 above the
    fraction of limb outliers, both beyond the interval of a fraction among so few images (two standard errors, after
    Agresti and Coull 1998); twice the reprojection error and a pixel; 0.02 of jumps and twice the fraction of gross
    errors.
    """
    limits = {
        "fraction_confident": Limits(0.5),
        "fraction_missing": Limits(0.5),
        "jumps": Limits(0.02),
        "swaps": Limits(0.01),
        "outside": Limits(0.05),
    }
    own = None if evaluated is None else evaluated[evaluated["bodypart"] == bodypart]
    if own is None or own.empty:
        return limits
    known = own.iloc[0]
    images = int(evaluated["rows"].max()) if evaluated is not None else 0
    for metric, room, sign in (("fraction_confident", 0.2, -1), ("limb_outliers", 0.05, 1)):
        if np.isfinite(known[metric]):
            expected = (known[metric] * images + 2) / (images + 4)
            error = 2 * np.sqrt(expected * (1 - expected) / (images + 4))
            limits[metric] = Limits(float(np.clip(expected + sign * (error + room), 0, 1)))
    if np.isfinite(known["jumps"]):
        limits["jumps"] = Limits(0.02 + 2 * float(known["jumps"]))
    if np.isfinite(known["reprojection_px"]):
        limits["reprojection_px"] = Limits(1 + 2 * float(known["reprojection_px"]))
    return limits


def judge(
    scores: "pd.DataFrame", frames: int, limits: Mapping[str, Limits], evaluated: "pd.DataFrame | None"
) -> list[Finding]:
    """The scores that lie beyond their limits, the failing ones first; nothing but the scores is needed.

    A body part that does not have a row for each frame of the video fails whatever the limits.

    Parameters
    ----------
    scores
        What `measure` gave; what it says of everything at once is not judged.
    frames
        Of the video.
    limits
        Those of lab.yaml, by metric; a limit that is None is the one of `default_limits`.
    evaluated
        What `measure_predictions` gave for the model.
    """
    findings = []
    of_bodypart: dict[str, dict[str, Limits]] = {}
    for row in scores[scores["bodypart"] != ALL].to_dict("records"):
        individual, bodypart = str(row["individual"]), str(row["bodypart"])
        if row["rows"] == row["rows"] and row["rows"] is not None and row["rows"] != frames:
            findings.append(Finding("rows", individual, bodypart, float(row["rows"]), float(frames), "fail"))
        if bodypart not in of_bodypart:
            of_bodypart[bodypart] = _merged(limits, default_limits(evaluated, bodypart))
        for metric, limit in of_bodypart[bodypart].items():
            value, sign = float(row[metric]), -1 if metric in LESS_IS_WORSE else 1
            bounds: tuple[tuple[Level, float | None], ...] = (("fail", limit.fail), ("warn", limit.warn))
            for level, bound in bounds:
                if bound is not None and sign * value > sign * bound:
                    findings.append(Finding(metric, individual, bodypart, value, bound, level))
                    break
    return sorted(findings, key=lambda finding: finding.level != "fail")


def worst(findings: Iterable[Finding]) -> Level:
    """The verdict on poses with these findings."""
    levels = {finding.level for finding in findings}
    return "fail" if "fail" in levels else "warn" if "warn" in levels else "pass"


def course(table: "pd.DataFrame", reference: Reference, cutoff: float, bins: int = 300) -> "pd.DataFrame":
    """The scores over time, in stretches of equal length, for a picture.

    Returns
    -------
    DataFrame
        Columns frame (the middle of the stretch), kind, bodypart and value. Kinds are ``likelihood`` (the mean of a
        body part), ``jumps`` (how many confident steps longer than the animal, of all body parts together; bodypart
        ``all``) and ``limb`` (the median length of a limb, as a multiple of that of the labels). Of several individuals
        together.
    """
    import pandas as pd

    poses = _Poses.of(table)
    size = reference.size_px if np.isfinite(reference.size_px) else poses.size(cutoff)
    stretch = -(-max(poses.length, 1) // bins)
    starts = np.arange(0, poses.length, stretch)
    n = len(starts)
    of_frame = np.arange(poses.length) // stretch
    found: dict[tuple[str, str], np.ndarray] = {}

    for bodypart in poses.bodyparts:
        places = [place for (_, part), place in poses.places.items() if part == bodypart]
        # Of several individuals each known value counts once.
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
    """How long the limbs are, beside what the labels say, for a picture.

    Returns
    -------
    DataFrame
        One row for each limb of each individual, in pixels: bodypart, low_px, median_px and high_px by the labels (see
        `Limb`), and the quantiles q01, q25, q50, q75 and q99 of the poses; NaN where the ends are never confident.
    """
    import pandas as pd

    poses = _Poses.of(table)
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


#: The sum of a score over what it is an average of, and how many that are.
_Sum = tuple[float, int]


@dataclass(frozen=True)
class _Poses:
    """A pose table as arrays of shape (keypoints, frames); NaN where it has no row or no estimate."""

    places: Mapping[tuple[str, str], int]
    rows: Mapping[tuple[str, str], int]
    x: np.ndarray
    y: np.ndarray
    likelihood: np.ndarray
    frames: int

    @classmethod
    def of(cls, table: "pd.DataFrame") -> "_Poses":
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

    @property
    def length(self) -> int:
        return self.x.shape[1]

    @cached_property
    def individuals(self) -> list[str]:
        return list(dict.fromkeys(individual for individual, _ in self.places))

    @cached_property
    def bodyparts(self) -> list[str]:
        return list(dict.fromkeys(bodypart for _, bodypart in self.places))

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
        confident = known & (likelihood >= cutoff)
        decoded = max(self.rows[keypoint] - lost, 0)
        rated = np.isfinite(likelihood)
        steps, jumped, swapped, sure = self.steps(keypoint, cutoff, size)
        stepped = np.isfinite(steps)
        sized = np.isfinite(size)
        inside = within(x[confident], y[confident], picture, arena)
        return {
            "mean_likelihood": (float(likelihood[rated].sum(dtype=float)), int(rated.sum())),
            "fraction_confident": (min(int(confident.sum()), decoded), decoded),
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
        """For each step its length, whether it is a jump, whether it is a swap, and whether both ends are confident."""
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
        """The length of a limb in each frame, NaN where an end is not confident; None where an end is unknown."""
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
            # A few frames at a time: all of them take eight times the memory of the table.
            for first in range(0, self.length, _FRAMES_AT_ONCE):
                part = slice(first, first + _FRAMES_AT_ONCE)
                poses = np.stack([self.x[places, part].T, self.y[places, part].T], axis=-1).astype(float)
                poses = poses[np.isfinite(poses).all(axis=(1, 2))]
                total += space.errors(poses).sum(axis=0)
                complete += len(poses)
            found |= {keypoint: (float(own), complete) for keypoint, own in zip(keypoints, total, strict=True)}
        return found

    def size(self, cutoff: float) -> float:
        """The animals' size by their own confident poses."""
        sizes = []
        for individual in self.individuals:
            places = [place for (own, _), place in self.places.items() if own == individual]
            sure = self.likelihood[places] >= cutoff
            points = np.stack([np.where(sure, axis[places], np.nan).T for axis in (self.x, self.y)], axis=-1)
            sizes.append(_size(points))
        known = [size for size in sizes if np.isfinite(size)]
        return float(np.median(known)) if known else np.nan


def within(x: np.ndarray, y: np.ndarray, picture: tuple[float, float], arena: np.ndarray | None) -> np.ndarray:
    """Whether points lie in a picture of this width and height, and in the polygon of an arena where there is one."""
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


def _merged(limits: Mapping[str, Limits], defaults: Mapping[str, Limits]) -> dict[str, Limits]:
    merged = {}
    for metric in METRICS:
        own, default = limits.get(metric, Limits()), defaults.get(metric, Limits())
        merged[metric] = Limits(default.warn if own.warn is None else own.warn, own.fail)
    return merged


def _size(points: np.ndarray) -> float:
    """The animal's size by points of shape (images, bodyparts, 2): see `Reference`."""
    known = np.isfinite(points).all(axis=2)
    enough = known.sum(axis=1) >= max(2, points.shape[1] / 2)
    if not enough.any():
        return np.nan
    box = [np.nanmax(points[enough, :, axis], axis=1) - np.nanmin(points[enough, :, axis], axis=1) for axis in (0, 1)]
    return float(np.median(np.hypot(*box)))


def _limbs(points: np.ndarray, bodyparts: Sequence[str], skeleton: Sequence[tuple[str, str]]) -> tuple[Limb, ...]:
    found: dict[tuple[str, str], Limb] = {}
    spread: dict[tuple[str, str], float] = {}
    for one, a in enumerate(bodyparts):
        for other, b in list(enumerate(bodyparts))[one + 1 :]:
            lengths = np.hypot(*(points[:, one] - points[:, other]).T)
            lengths = lengths[np.isfinite(lengths)]
            if len(lengths) < _LEAST_LIMBS:
                continue
            low, median, high = np.quantile(lengths, (0.25, 0.5, 0.75))
            if median > 0:
                reach = 3 * (high - low)
                found[a, b] = Limb(a, b, max(0.0, float(low - reach)), float(high + reach), float(median))
                spread[a, b] = (high - low) / median
    wanted = [(a, b) if (a, b) in found else (b, a) for a, b in skeleton]
    own = [pair for pair in dict.fromkeys(wanted) if pair in found]
    if own:
        return tuple(found[pair] for pair in own)
    # Kruskal: the most rigid pair first, and none that joins what is joined already.
    group = {bodypart: bodypart for bodypart in bodyparts}
    tree = []
    for a, b in sorted(found, key=lambda pair: spread[pair]):
        if group[a] != group[b]:
            tree.append(found[a, b])
            joined, into = group[b], group[a]
            group = {bodypart: into if own == joined else own for bodypart, own in group.items()}
    return tuple(tree)


def _space(points: np.ndarray, bodyparts: Sequence[str]) -> PoseSpace | None:
    complete = points[np.isfinite(points).all(axis=(1, 2))]
    coordinates = 2 * len(bodyparts)
    # Two coordinates less than all, because the mean of the keypoints is taken away.
    if len(complete) < 2 * coordinates or coordinates < 4:
        return None
    centred = (complete - complete.mean(axis=1, keepdims=True)).reshape(len(complete), -1)
    mean = centred.mean(axis=0)
    _, singular, components = np.linalg.svd(centred - mean, full_matrices=False)
    explained = np.cumsum(singular**2) / (singular**2).sum()
    kept = int(np.searchsorted(explained, _VARIANCE_KEPT)) + 1
    if kept >= coordinates - 2:
        return None
    return PoseSpace(tuple(bodyparts), mean, components[:kept])
