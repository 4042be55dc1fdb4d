"""Comparison: model versions compared with one another on the same test images.

The figures of two versions cannot be compared if the images behind them differ. Here every version is judged by the
same labelled keypoints, none of which any of them was trained on, and with the uncertainty that so few images leave.
`models.promotion` decides what follows for the production model.

Notes
-----
The intervals are percentile intervals of the bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13), which are too narrow on few images and are therefore expanded as Student's t is wider than the normal
distribution (Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015). Whole
images are drawn with replacement, never single keypoints, because the keypoints of one image succeed and fail together
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). All versions are judged on the same
draws, so that an image that is hard for all of them does not blur their difference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

from dlc_platform.dlc.cautions import FEWEST_IMAGES
from dlc_platform.dlc.evaluation import ALL, Evaluation
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json, short
from dlc_platform.pose.confidence import fraction_confident

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_DRAWS = 4000
_SEED = 0
_CONFIDENCE = 0.95
_ENOUGH_IMAGES = 20
_FIGURES = (
    "images",
    "keypoints",
    "missed",
    "rmse_px",
    "rmse_low_px",
    "rmse_high_px",
    "rmse_confident_px",
    "fraction_confident",
)
_SAME_SPLIT = "Give the project one `split_seed` and its recipes one `test_fraction`, and train them again"


class NotComparable(PlatformError):
    """The evaluations have nothing in common on which a comparison would be fair."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Model versions on the test images that they share.

    Attributes
    ----------
    id
        The identity: a hash of the evaluations, the images and the cutoff.
    evaluations
        The identity of each version's evaluation, by the version's identity, in the given order.
    images
        SHA-256 of the shared test images, sorted.
    errors
        For each version one row over all body parts that every version knows (bodypart ``all``), and one for each body
        part that it knows itself. Columns model, bodypart, images (on which it is labelled), keypoints, missed,
        rmse_px, rmse_low_px and rmse_high_px (the ends of the 95 % interval; NaN on fewer than `FEWEST_IMAGES`),
        rmse_confident_px, fraction_confident. A version misses a keypoint to which it gives no position. Such a
        keypoint counts for no version, so that no version gains by giving up on it; the errors are over the others.
        Confident keypoints have a likelihood of the cutoff or more.
    by_session
        The same over all body parts for each session that is known: columns model, session, and those of `errors` from
        images on.
    """

    id: str
    evaluations: Mapping[str, str]
    images: tuple[str, ...]
    errors: pd.DataFrame
    by_session: pd.DataFrame
    _bodyparts: tuple[str, ...] = field(repr=False)
    _distances: np.ndarray = field(repr=False)
    _missed: np.ndarray = field(repr=False)

    def paired(self, one: str, other: str, confidence: float = _CONFIDENCE) -> pd.DataFrame:
        """The differences of the RMSE of two versions on the same draws of images.

        Returns
        -------
        DataFrame
            One row for all body parts together (bodypart ``all``) and one for each that both versions know. Columns
            bodypart, images (on which it is labelled), keypoints, difference_px (`other` less `one`: negative where
            `other` is better), low_px and high_px (the ends of the interval with that confidence; NaN on fewer images
            than `fewest_images`), more_missed (how many keypoints `other` misses more than `one`).
        """
        import numpy as np
        import pandas as pd

        models = list(self.evaluations)
        two = [models.index(one), models.index(other)]
        weights = _draw(len(self.images))
        rows = []
        for bodypart, parts in _groups(self._bodyparts, self._distances):
            squares, counts = _sums(self._distances[two][:, :, parts])
            missed = self._missed[two][:, :, parts]
            if not (counts.sum(axis=1).all() or missed.any()):
                continue
            before, after = _rmse(squares, counts)
            images = (counts[0] > 0).sum()
            low, high = _interval(np.diff(_rmse(squares, counts, weights)), images[None], confidence)
            before_missed, after_missed = missed.sum(axis=(1, 2)).tolist()
            difference = after - before, low[0], high[0], after_missed - before_missed
            rows.append((bodypart, int(images), int(counts[0].sum()), *difference))
        columns = ["bodypart", "images", "keypoints", "difference_px", "low_px", "high_px", "more_missed"]
        return pd.DataFrame(rows, columns=pd.Index(columns))


def fewest_images(confidence: float) -> int:
    """The fewest images for which an interval with that confidence means something.

    The probability that chance alone favours one side on each of n images is 2^-n; below this number of images that is
    more than the interval leaves to chance.
    """
    return max(FEWEST_IMAGES, math.ceil(math.log2(2 / (1 - confidence))))


def compare(evaluations: Sequence[Evaluation], cutoff: float, sessions: Mapping[str, str] | None = None) -> Comparison:
    """Compare model versions on the keypoints that are fair to all of them.

    Those are the keypoints of the images that are test images of every evaluation (see `Evaluation.test_images`), where
    every version that knows the body part was held against the same label. What an imported model was trained on is not
    known: it may have been trained on these images.

    Parameters
    ----------
    evaluations
        One for each version, on whatever datasets.
    sessions
        From an image's SHA-256 to the session that it came from; by default what the datasets say, which is what was
        known when they were made.

    Raises
    ------
    NotComparable
        When there is no such keypoint, or no body part that every version knows.
    """
    import numpy as np
    import pandas as pd

    tables = {evaluation.model_id: evaluation.predictions() for evaluation in evaluations}
    images = _fair_images(evaluations)
    if sessions is not None:
        tables = {model: table.assign(session=table["image"].map(sessions)) for model, table in tables.items()}
    known_to = Counter(part for evaluation in evaluations for part in evaluation.bodyparts)
    if len(tables) not in known_to.values():
        raise NotComparable(
            f"no body part is known to all of the versions {_named(tables)}", "Compare versions that share a body part"
        )
    rows = pd.concat(
        [
            tables[evaluation.model_id][tables[evaluation.model_id]["bodypart"].isin(evaluation.bodyparts)].assign(
                model=evaluation.model_id
            )
            for evaluation in evaluations
        ],
        ignore_index=True,
    )
    bodyparts = tuple(rows["bodypart"].drop_duplicates())
    rows = rows[rows["image"].isin(images) & rows["x"].notna()]
    by_keypoint = rows.groupby(["image", "bodypart"])
    same = (by_keypoint["x"].transform("nunique") == 1) & (by_keypoint["y"].transform("nunique") == 1)
    rows = rows[same & (by_keypoint["model"].transform("size") == rows["bodypart"].map(known_to))]
    images = tuple(sorted(rows["image"].unique()))
    place = (
        pd.Index([*tables]).get_indexer(pd.Index(rows["model"])),
        pd.Index(images).get_indexer(pd.Index(rows["image"])),
        pd.Index(bodyparts).get_indexer(pd.Index(rows["bodypart"])),
    )
    shape = (len(tables), len(images), len(bodyparts))
    distances, likelihoods, missed = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, bool)
    distances[place], likelihoods[place] = rows["distance_px"], rows["likelihood"]
    missed[place] = rows["distance_px"].isna()
    distances[:, missed.any(axis=0)] = np.nan
    overall = next(_groups(bodyparts, distances))[1]
    if not np.isfinite(distances[:, :, overall]).any():
        if missed.any():
            raise NotComparable(
                f"one or more of the versions {_named(tables)} give no position for the labelled keypoints that all "
                "were held against",
                "Look at what they see in test images, and compare the others",
            )
        raise NotComparable(
            f"the versions {_named(tables)} share test images, but were held against other labels on each of them",
            "Evaluate them on the same dataset",
        )

    weights = _draw(len(images))
    errors = [
        {"model": model, "bodypart": bodypart, **figures}
        for bodypart, parts in _groups(bodyparts, distances)
        for model, figures in zip(
            tables,
            _figures(distances[:, :, parts], likelihoods[:, :, parts], missed[:, :, parts], weights, cutoff),
            strict=True,
        )
        if figures["keypoints"] or figures["missed"]
    ]
    origins = rows.dropna(subset="session").drop_duplicates("image").set_index("image")["session"].reindex(images)
    by_session = []
    for session in sorted(origins.dropna().unique()):
        own = origins.isin([session]).to_numpy()
        place = np.ix_(np.arange(len(tables)), np.flatnonzero(own), overall)
        figures = _figures(distances[place], likelihoods[place], missed[place], weights[:, own], cutoff)
        by_session += [{"model": model, "session": session, **row} for model, row in zip(tables, figures, strict=True)]
    chosen = {evaluation.model_id: evaluation.id for evaluation in evaluations}
    return Comparison(
        id=sha256_json({"evaluations": sorted(chosen.values()), "images": images, "likelihood_cutoff": cutoff}),
        evaluations=chosen,
        images=images,
        errors=pd.DataFrame(errors),
        by_session=pd.DataFrame(by_session, columns=pd.Index(["model", "session", *_FIGURES])),
        _bodyparts=bodyparts,
        _distances=distances,
        _missed=missed,
    )


def comparable(evaluations: Sequence[Evaluation]) -> tuple[list[Evaluation], dict[str, str]]:
    """The versions that can be compared with one another without one of them spoiling it for the others.

    A version is left out when it was trained on so many of the test images that too few would be left: fewer than 20
    and fewer than half of all, or fewer than `FEWEST_IMAGES` where there are more without it. Further when it knows
    none of the body parts that the others have in common, or gives no position for half of the labelled keypoints.

    Parameters
    ----------
    evaluations
        One for each version on the same dataset, the most wanted ones first.

    Returns
    -------
    list of Evaluation
        Those to compare, in the same order.
    dict
        From the identity of each version that is left out to the reason, without its full stop.
    """
    kept: list[Evaluation] = []
    left_out: dict[str, str] = {}
    images: frozenset[str] | None = None
    bodyparts: set[str] | None = None
    for evaluation in evaluations:
        everything = len(evaluation.test_images) + evaluation.taught_images
        before = everything if images is None else len(images)
        left = evaluation.test_images if images is None else images & evaluation.test_images
        known = set(evaluation.bodyparts)
        shared = known if bodyparts is None else bodyparts & known
        test = evaluation.errors[(evaluation.errors["side"] == "test") & (evaluation.errors["bodypart"] == ALL)].iloc[0]
        enough = max(min(_ENOUGH_IMAGES, math.ceil(everything / 2)), min(FEWEST_IMAGES, before))
        if len(left) < enough or not left:
            left_out[evaluation.model_id] = (
                f"it was trained on {evaluation.taught_images} of the {everything} test images, as a version of "
                f"another split is: with it, {len(left)} would be left of the {before} that there are without it. To "
                "compare it, train its recipe again with the project's `split_seed` and the others' `test_fraction`"
            )
        elif not shared:
            left_out[evaluation.model_id] = f"it knows none of the body parts {', '.join(sorted(bodyparts or ()))}"
        elif 2 * test["missed"] >= test["keypoints"]:
            left_out[evaluation.model_id] = (
                f"it gives no position for {test['missed']} of the {test['keypoints']} labelled keypoints"
            )
        else:
            kept.append(evaluation)
            images, bodyparts = left, shared
    return kept, left_out


def _fair_images(evaluations: Sequence[Evaluation]) -> frozenset[str]:
    """The images that are test images of every evaluation, none of which any version was trained on."""
    names = ", ".join(short(evaluation.model_id) for evaluation in evaluations)
    left = frozenset[str].intersection(*(evaluation.test_images for evaluation in evaluations))
    if not left:
        taught = [
            f"{short(evaluation.model_id)} was trained on {evaluation.taught_images} of its "
            f"{len(evaluation.test_images) + evaluation.taught_images}"
            for evaluation in evaluations
            if evaluation.taught_images
        ]
        raise NotComparable(
            f"the versions {names} have no test image in common that none of them was trained on"
            + (f": {' and '.join(taught)}" if taught else ""),
            _SAME_SPLIT,
        )
    return left


def _groups(bodyparts: Sequence[str], distances: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """`ALL` with the places of the body parts that every version knows, then each body part with its own place."""
    import numpy as np

    yield ALL, np.flatnonzero(np.isfinite(distances).any(axis=1).all(axis=0))
    for place, bodypart in enumerate(bodyparts):
        yield bodypart, np.array([place])


def _figures(
    distances: np.ndarray, likelihoods: np.ndarray, missed: np.ndarray, weights: np.ndarray, cutoff: float
) -> list[dict[str, float]]:
    """The figures of each version, from arrays of the shape (versions, images, body parts), NaN where there is none."""
    import numpy as np

    squares, counts = _sums(distances)
    confident_squares, confident_counts = _sums(np.where(likelihoods >= cutoff, distances, np.nan))
    keypoints, confident = counts.sum(axis=1), confident_counts.sum(axis=1)
    images = (counts > 0).sum(axis=1)
    low, high = _interval(_rmse(squares, counts, weights), images, _CONFIDENCE)
    fraction = fraction_confident(confident, keypoints)
    errors = _rmse(squares, counts), low, high, _rmse(confident_squares, confident_counts)
    columns = (images, keypoints, missed.sum(axis=(1, 2)), *errors, fraction)
    return [dict(zip(_FIGURES, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _sums(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each version and image the sum of the squared distances of its keypoints, and how many they are."""
    import numpy as np

    return np.nansum(distances**2, axis=2), np.isfinite(distances).sum(axis=2)


def _rmse(squares: np.ndarray, counts: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """RMSE of each version, shape (versions,), or in each draw, shape (draws, versions); NaN over no keypoint."""
    import numpy as np

    if weights is None:
        weights = np.ones(squares.shape[1])
    with np.errstate(invalid="ignore"):
        return np.sqrt((weights @ squares.T) / (weights @ counts.T))


def _draw(images: int) -> np.ndarray:
    """The count of each image in each draw of as many images with replacement; the same draws every time."""
    import numpy as np

    return np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), _DRAWS).astype(float)


def _interval(draws: np.ndarray, images: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval of each column of the draws, which rests on so many images; NaN on too few."""
    import warnings

    import numpy as np

    ends = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered")
        for column, own in zip(draws.T, images.tolist(), strict=True):
            tail = expanded_tail(own, confidence) if own > 1 else 0.0
            ends.append(np.nanquantile(column, [tail, 1 - tail]))
    low, high = np.where(images < fewest_images(confidence), np.nan, np.transpose(ends))
    return low, high


@cache
def expanded_tail(images: int, confidence: float) -> float:
    """The fraction of the draws beyond each end of the expanded percentile interval of a mean of so many images.

    It is that of the normal distribution beyond the quantile of Student's t, which is a little farther out. The sums
    for whole degrees of freedom (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4) are
    exact, and `scipy.special` takes as long to import as all else here takes.
    """
    freedom = images - 1
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    quantile = math.sqrt(freedom) * math.tan(middle)
    return NormalDist().cdf(-math.sqrt(images / freedom) * quantile)


def _within(angle: float, freedom: int) -> float:
    """The probability that Student's t is within +- sqrt(freedom) tan(angle)."""
    square = math.cos(angle) ** 2
    if freedom == 1:
        return 2 * angle / math.pi
    if freedom % 2:
        term = math.cos(angle)
        terms = angle / math.sin(angle) + term
        for number in range(3, freedom - 1, 2):
            term *= square * (number - 1) / number
            terms += term
        return 2 / math.pi * math.sin(angle) * terms
    term = terms = 1.0
    for number in range(2, freedom - 1, 2):
        term *= square * (number - 1) / number
        terms += term
    return math.sin(angle) * terms


def _named(models: Mapping[str, object]) -> str:
    return ", ".join(map(short, models))
