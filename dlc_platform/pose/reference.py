"""The reference from labelled poses: the length of the animal, the lengths of its limbs, and its usual poses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

#: Fewer labelled limbs are not enough for a range.
_LEAST_LIMBS = 10
#: The fraction of the variance of labelled poses that the components keep; the value of Biderman et al. 2024.
_VARIANCE_KEPT = 0.99


@dataclass(frozen=True)
class Limb:
    """Two body parts, and the range of distances between them, in pixels, that labels leave plausible.

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

    They come from the images in which every body part is labelled. Unlike in Biderman et al. 2024, a pose is taken
    relative to the mean of its keypoints, so that the place of a freely moving animal is not part of its pose. As
    there, as many components are kept as explain 99 % of the variance.

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
            NaN if a pose is not complete.
        """
        centred = (poses - poses.mean(axis=1, keepdims=True)).reshape(len(poses), -1) - self.mean
        residual = centred - (centred @ self.components.T) @ self.components
        return np.hypot(residual[:, 0::2], residual[:, 1::2])


@dataclass(frozen=True)
class Reference:
    """The facts about an animal that labels give.

    Attributes
    ----------
    size_px
        The animal's size: the diagonal of the box around its body parts, the median over the images in which at least
        half of them are labelled. NaN if no two body parts are.
    limbs
        The lines of the skeleton. If it has none: those pairs that join all body parts and whose lengths vary least
        (the minimum spanning tree of the relative interquartile ranges).
    space
        None if too few poses are complete, or if the components span every pose.
    ranges_px
        The least and the greatest plausible distance of two body parts, for all pairs with enough labels: `low_px` and
        `high_px` of their `Limb`.
    """

    size_px: float = np.nan
    limbs: tuple[Limb, ...] = ()
    space: PoseSpace | None = None
    ranges_px: Mapping[frozenset[str], tuple[float, float]] = field(default_factory=dict)

    def reach(self, one: str, other: str, size_px: float) -> tuple[float, float]:
        """The least and the greatest distance in pixels of two body parts of an animal of this size.

        Without labels, the greatest distance is the animal's size.
        """
        return self.ranges_px.get(frozenset((one, other)), (0.0, size_px))


def reference_from_labels(labels: "pd.DataFrame", skeleton: Iterable[tuple[str, str]] = ()) -> Reference:
    """Compute an animal's size, its limbs and its poses from labels.

    Parameters
    ----------
    labels
        Columns image, bodypart, x and y, in pixels; NaN if a body part is not labelled.
    skeleton
        Pairs of body parts; pairs that are not labelled are skipped.
    """
    import pandas as pd

    bodyparts = list(dict.fromkeys(labels["bodypart"]))
    image = pd.factorize(labels["image"])[0]
    place = pd.Categorical(labels["bodypart"], categories=bodyparts).codes
    points = np.full((image.max(initial=-1) + 1, len(bodyparts), 2), np.nan)
    points[image, place] = labels[["x", "y"]].to_numpy(float)
    pairs, spread = _pairs(points, bodyparts)
    ranges = {frozenset(pair): (limb.low_px, limb.high_px) for pair, limb in pairs.items()}
    return Reference(
        animal_size(points), _limbs(pairs, spread, bodyparts, list(skeleton)), _space(points, bodyparts), ranges
    )


def animal_size(points: np.ndarray) -> float:
    """The animal's size by points of shape (images, bodyparts, 2): see `Reference`."""
    known = np.isfinite(points).all(axis=2)
    enough = known.sum(axis=1) >= max(2, points.shape[1] / 2)
    if not enough.any():
        return np.nan
    box = [np.nanmax(points[enough, :, axis], axis=1) - np.nanmin(points[enough, :, axis], axis=1) for axis in (0, 1)]
    return float(np.median(np.hypot(*box)))


def _pairs(
    points: np.ndarray, bodyparts: Sequence[str]
) -> tuple[dict[tuple[str, str], Limb], dict[tuple[str, str], float]]:
    """All pairs of body parts with enough labels, and the relative interquartile range of each."""
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
    return found, spread


def _limbs(
    found: Mapping[tuple[str, str], Limb],
    spread: Mapping[tuple[str, str], float],
    bodyparts: Sequence[str],
    skeleton: Sequence[tuple[str, str]],
) -> tuple[Limb, ...]:
    wanted = [(a, b) if (a, b) in found else (b, a) for a, b in skeleton]
    own = [pair for pair in dict.fromkeys(wanted) if pair in found]
    if own:
        return tuple(found[pair] for pair in own)
    if not found:
        return ()
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    # By their ranks, because SciPy takes an edge of length 0 for a missing one, and any of several equal ones.
    ranked = sorted(found, key=lambda pair: spread[pair])
    place = {bodypart: index for index, bodypart in enumerate(bodyparts)}
    ends = ([place[a] for a, _ in ranked], [place[b] for _, b in ranked])
    ranks = np.arange(1, len(ranked) + 1)
    tree = minimum_spanning_tree(coo_array((ranks, ends), shape=(len(bodyparts), len(bodyparts))))
    return tuple(found[ranked[int(rank) - 1]] for rank in sorted(tree.data))


def _space(points: np.ndarray, bodyparts: Sequence[str]) -> PoseSpace | None:
    complete = points[np.isfinite(points).all(axis=(1, 2))]
    coordinates = 2 * len(bodyparts)
    # Two coordinates fewer than all, because the mean of the keypoints is subtracted.
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
