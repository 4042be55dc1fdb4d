"""Comparison: model versions held against one another on the same test images.

A figure of one version beside a figure of another says nothing when the images behind them differ. Here every version
is judged by the same labelled keypoints, none of which any of them was trained on, and with the uncertainty that so
few images leave. What follows from it for the production model is decided in `selection`.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dlc_platform.dlc.dataset import load_dataset
from dlc_platform.dlc.evaluation import ALL, Evaluation
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json, short
from dlc_platform.store import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_DRAWS = 4000
_SEED = 0
_CONFIDENCE = 0.95
_ENOUGH_IMAGES = 20
_FIGURES = ("keypoints", "rmse_px", "rmse_low_px", "rmse_high_px", "rmse_confident_px", "fraction_confident")
_SAME_SEED = "Give the recipes of one project the same `seed` and `test_fraction`, and train them anew"


class NotComparable(PlatformError):
    """The evaluations have nothing in common that would be fair to compare them on."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Model versions on the test images that they share.

    Attributes
    ----------
    id
        The identity: a hash of the evaluations, the images and the cutoff.
    evaluations
        From each version's identity to that of its evaluation, in the order that they were given in.
    images
        SHA-256 of the shared test images, sorted.
    errors
        For each version one row over all body parts that every version knows (bodypart ``all``), and one for each body
        part that it knows itself. Columns model, bodypart, keypoints, rmse_px, rmse_low_px and rmse_high_px (the ends
        of the 95 % interval), rmse_confident_px, fraction_confident. Confident keypoints have a likelihood of the
        cutoff or more.
    by_session
        The same over all body parts for each session that is known: columns model, session, images, and those of
        `errors` from keypoints on.
    """

    id: str
    evaluations: Mapping[str, str]
    images: tuple[str, ...]
    errors: pd.DataFrame
    by_session: pd.DataFrame
    _bodyparts: tuple[str, ...] = field(repr=False)
    _distances: np.ndarray = field(repr=False)

    def paired(self, one: str, other: str, confidence: float = _CONFIDENCE) -> pd.DataFrame:
        """By how much the RMSE of a version differs from that of another on the same draws of images.

        Returns
        -------
        DataFrame
            One row for all body parts together (bodypart ``all``) and one for each that both versions know. Columns
            bodypart, images (on which it is labelled), keypoints, difference_px (`other` less `one`: negative where
            `other` is better), low_px and high_px (the ends of the interval with that confidence).
        """
        import numpy as np
        import pandas as pd

        models = list(self.evaluations)
        two = [models.index(one), models.index(other)]
        weights = _draw(len(self.images))
        rows = []
        for bodypart, parts in _groups(self._bodyparts, self._distances):
            squares, counts = _sums(self._distances[two][:, :, parts])
            if not counts.sum(axis=1).all():
                continue
            before, after = _rmse(squares, counts)
            images = (counts[0] > 0).sum()
            low, high = _interval(np.diff(_rmse(squares, counts, weights)), images[None], confidence)
            rows.append((bodypart, int(images), int(counts[0].sum()), after - before, low[0], high[0]))
        return pd.DataFrame(
            rows, columns=pd.Index(["bodypart", "images", "keypoints", "difference_px", "low_px", "high_px"])
        )


def compare(
    evaluations: Sequence[Evaluation], store: Store, cutoff: float, sessions: Mapping[str, str] | None = None
) -> Comparison:
    """Compare model versions on the keypoints that are fair to all of them.

    Those are the keypoints of the images that are on the test side in every evaluation and that no version was trained
    on, where every version that knows the body part was held against the same label. What an imported model was trained
    on is not known.

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
    images = _untaught_test_images(tables, store)
    if sessions is not None:
        tables = {model: table.assign(session=table["image"].map(sessions)) for model, table in tables.items()}
    rows = pd.concat([table.assign(model=model) for model, table in tables.items()], ignore_index=True)
    bodyparts = tuple(rows["bodypart"].drop_duplicates())
    known = rows[rows["predicted_x"].notna()].groupby("bodypart")["model"].nunique()
    if not (known == len(tables)).any():
        raise NotComparable(
            f"no body part is known to all of the versions {_named(tables)}", "Compare versions that share a body part"
        )
    rows = rows[rows["image"].isin(images) & rows["distance_px"].notna()]
    by_keypoint = rows.groupby(["image", "bodypart"])
    same = (by_keypoint["x"].transform("nunique") == 1) & (by_keypoint["y"].transform("nunique") == 1)
    rows = rows[same & (by_keypoint["model"].transform("size") == rows["bodypart"].map(known))]
    images = tuple(sorted(rows["image"].unique()))
    place = (
        pd.Index([*tables]).get_indexer(pd.Index(rows["model"])),
        pd.Index(images).get_indexer(pd.Index(rows["image"])),
        pd.Index(bodyparts).get_indexer(pd.Index(rows["bodypart"])),
    )
    distances, likelihoods = (np.full((len(tables), len(images), len(bodyparts)), np.nan) for _ in range(2))
    distances[place], likelihoods[place] = rows["distance_px"], rows["likelihood"]
    overall = next(_groups(bodyparts, distances))[1]
    if not np.isfinite(distances[:, :, overall]).any():
        raise NotComparable(
            f"the versions {_named(tables)} share test images, but were held against other labels on each of them",
            "Evaluate them on the same dataset",
        )

    weights = _draw(len(images))
    errors = [
        {"model": model, "bodypart": bodypart, **figures}
        for bodypart, parts in _groups(bodyparts, distances)
        for model, figures in zip(
            tables, _figures(distances[:, :, parts], likelihoods[:, :, parts], weights, cutoff), strict=True
        )
        if figures["keypoints"]
    ]
    origins = rows.dropna(subset="session").drop_duplicates("image").set_index("image")["session"].reindex(images)
    by_session = []
    for session in sorted(origins.dropna().unique()):
        own = origins.isin([session]).to_numpy()
        figures = _figures(
            distances[:, own][:, :, overall], likelihoods[:, own][:, :, overall], weights[:, own], cutoff
        )
        by_session += [
            {"model": model, "session": session, "images": int(own.sum()), **row}
            for model, row in zip(tables, figures, strict=True)
        ]
    chosen = {evaluation.model_id: evaluation.id for evaluation in evaluations}
    return Comparison(
        id=sha256_json({"evaluations": sorted(chosen.values()), "images": images, "likelihood_cutoff": cutoff}),
        evaluations=chosen,
        images=images,
        errors=pd.DataFrame(errors),
        by_session=pd.DataFrame(by_session, columns=pd.Index(["model", "session", "images", *_FIGURES])),
        _bodyparts=bodyparts,
        _distances=distances,
    )


def comparable(evaluations: Sequence[Evaluation], store: Store) -> tuple[list[Evaluation], dict[str, str]]:
    """Which versions can be compared with one another, without one of them spoiling it for the others.

    A version is left out when it was trained on so many of the test images that too few would be left: fewer than 20
    and fewer than half of them; or when it knows none of the body parts that the others have in common.

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
    images: set[str] | None = None
    bodyparts: set[str] | None = None
    for evaluation in evaluations:
        table = evaluation.predictions()
        test = set(table.loc[table["side"] == "test", "image"])
        images = test if images is None else images
        left = (images & test) - _training_images(evaluation.model_id, store)
        known = set(table.loc[table["predicted_x"].notna(), "bodypart"])
        shared = known if bodyparts is None else bodyparts & known
        if len(left) < min(_ENOUGH_IMAGES, math.ceil(len(images) / 2)) or not left:
            left_out[evaluation.model_id] = (
                f"it was trained on {len(images) - len(left)} of the {len(images)} test images, as one of another "
                "`seed` or `test_fraction` is; train its recipe anew with those of the others"
            )
        elif not shared:
            left_out[evaluation.model_id] = f"it knows none of the body parts {', '.join(sorted(bodyparts or ()))}"
        else:
            kept.append(evaluation)
            images, bodyparts = left, shared
    return kept, left_out


def _untaught_test_images(tables: Mapping[str, pd.DataFrame], store: Store) -> set[str]:
    """The images on the test side of every evaluation that no version's own dataset has on its training side."""
    shared = set.intersection(*(set(table.loc[table["side"] == "test", "image"]) for table in tables.values()))
    if not shared:
        raise NotComparable(f"the versions {_named(tables)} were not tested on any image in common", _SAME_SEED)
    taught = {model: shared & _training_images(model, store) for model in tables}
    left = shared.difference(*taught.values())
    if not left:
        who = " and ".join(f"{short(model)} on {len(images)}" for model, images in taught.items() if images)
        raise NotComparable(
            f"of the {len(shared)} test images that the versions {_named(tables)} share, {who} were trained on, "
            "which leaves none",
            _SAME_SEED,
        )
    return left


def _training_images(model: str, store: Store) -> set[str]:
    dataset = store.manifest("models", model).get("dataset")
    if dataset is None:  # the model was imported
        return set()
    labels = load_dataset(store.path("datasets", dataset)).labels()
    return set(labels.loc[labels["side"] == "train", "image"])


def _groups(bodyparts: Sequence[str], distances: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """`ALL` with the places of the body parts that every version knows, then each body part with its own place."""
    import numpy as np

    yield ALL, np.flatnonzero(np.isfinite(distances).any(axis=1).all(axis=0))
    for place, bodypart in enumerate(bodyparts):
        yield bodypart, np.array([place])


def _figures(
    distances: np.ndarray, likelihoods: np.ndarray, weights: np.ndarray, cutoff: float
) -> list[dict[str, float]]:
    """The figures of each version, from arrays of the shape (versions, images, body parts), NaN where there is none."""
    import numpy as np

    squares, counts = _sums(distances)
    confident_squares, confident_counts = _sums(np.where(likelihoods >= cutoff, distances, np.nan))
    keypoints, confident = counts.sum(axis=1), confident_counts.sum(axis=1)
    low, high = _interval(_rmse(squares, counts, weights), (counts > 0).sum(axis=1), _CONFIDENCE)
    with np.errstate(invalid="ignore"):
        fraction = confident / keypoints
    columns = (keypoints, _rmse(squares, counts), low, high, _rmse(confident_squares, confident_counts), fraction)
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
    """How often each image comes in each draw of as many images with replacement; the same draws every time."""
    import numpy as np

    return np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), _DRAWS).astype(float)


def _interval(draws: np.ndarray, images: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval of each column of the draws, which rests on so many images; NaN where it has none."""
    import warnings

    import numpy as np
    from scipy.stats import norm, t

    with np.errstate(divide="ignore", invalid="ignore"):
        tails = norm.cdf(-np.sqrt(images / (images - 1)) * t.ppf((1 + confidence) / 2, images - 1))
    ends = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered")
        for column, tail in zip(draws.T, np.nan_to_num(tails), strict=True):
            ends.append(np.nanquantile(column, [tail, 1 - tail]))
    low, high = np.transpose(ends)
    return low, high


def _named(models: Mapping[str, object]) -> str:
    return ", ".join(map(short, models))
