"""Which evaluated model version of a project is the best one.

Two versions are compared on the test images that both evaluations share and where their labels agree, so that a
version is not called worse because the test side grew harder after it was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlc_platform.catalog.tables import Evaluation, Promotion
from dlc_platform.dlc.evaluation import load_evaluation
from dlc_platform.store import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Choice:
    """A model version to use, the evaluation that speaks for it, and why in one sentence."""

    model_id: str
    evaluation_id: str | None
    reason: str


def choose_best(evaluations: Sequence[Evaluation], in_force: Promotion | None, store: Store) -> Choice | None:
    """The version with the lowest test RMSE; it replaces the one in use only when it is strictly better.

    Parameters
    ----------
    evaluations
        The project's evaluations, oldest first; of several for one version the newest counts.
    in_force
        The promotion of the version in use. Only what was evaluated after what it weighed may replace it: the rest was
        passed over then, perhaps by a person. Without one, the oldest version starts as the best.

    Returns
    -------
    Choice or None
        None when there is neither an evaluation nor a version in use.
    """
    newest = {evaluation.model_id: evaluation for evaluation in evaluations}
    if in_force is None:
        if not newest:
            return None
        best, rivals = evaluations[0].model_id, list(newest)
        reason = "the first evaluated version"
    else:
        best = in_force.model_id
        weighed = in_force.weighed_until
        rivals = [model for model, row in newest.items() if weighed is None or row.evaluated_at > weighed]
        reason = "nothing evaluated since its promotion is better on the frozen test images"
        if best not in newest:
            return Choice(
                best,
                None,
                "it was never evaluated, so nothing can be said to be better",
            )
    for model in rivals:
        if model == best:
            continue
        before, after, images = _shared_rmse(store, newest[best].id, newest[model].id)
        if after < before:
            best = model
            reason = f"test RMSE {after:.2f} px, against {before:.2f} px before, on the {images} test images they share"
    return Choice(best, newest[best].id, reason)


def _shared_rmse(store: Store, one: str, other: str) -> tuple[float, float, int]:
    """RMSE in pixels of two evaluations on the labels they share, and on how many images; NaN for none."""
    shared = _test_distances(store, one).join(_test_distances(store, other), lsuffix="_1", rsuffix="_2", how="inner")
    rmse = (shared**2).mean() ** 0.5
    return (
        rmse["distance_px_1"],
        rmse["distance_px_2"],
        shared.index.get_level_values("image").nunique(),
    )


def _test_distances(store: Store, evaluation_id: str) -> "pd.DataFrame":
    # The label is part of the key: a corrected label is another question.
    predictions = load_evaluation(store.path("evaluations", evaluation_id)).predictions()
    test = predictions[predictions["side"] == "test"]
    return test.set_index(["image", "bodypart", "x", "y"])[["distance_px"]].dropna()
