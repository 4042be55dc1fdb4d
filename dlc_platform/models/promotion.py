"""Which evaluated model version of a project becomes its production model: the rule of promotion.

Two versions are compared on the test images that both share (see `comparison`), so that a version is not called worse
because the test side grew harder after it was trained. What a person decides is not decided here.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dlc_platform.catalog.tables import Evaluation, Promotion
from dlc_platform.dlc import evaluation as products
from dlc_platform.dlc.comparison import NotComparable, compare, fewest_images
from dlc_platform.dlc.evaluation import ALL, load_evaluation
from dlc_platform.identity import short
from dlc_platform.settings.promotion import PromotionRule
from dlc_platform.store import Store
from dlc_platform.text.words import counted


@dataclass(frozen=True)
class Choice:
    """A model version to use, the evaluation that speaks for it, and why in one sentence.

    Attributes
    ----------
    test_rmse_px, test_images
        The error that was weighed, and the number of images that it is over: those that the version shares with the one
        in use, where it was weighed against that. None without an image that it was not trained on.
    """

    model_id: str
    evaluation_id: str | None
    reason: str
    test_rmse_px: float | None = None
    test_images: int | None = None


def choose_best(
    evaluations: Sequence[Evaluation],
    in_force: Promotion | None,
    store: Store,
    rule: PromotionRule,
    barred: Mapping[str, str] | None = None,
) -> Choice | None:
    """The version in use, or the one that is to replace it by the rule.

    A version replaces another one when it is clearly better: the interval of the difference of their test RMSE over all
    body parts lies wholly below zero, and of no body part wholly above it, and it gives a position for as many labelled
    keypoints. Of several, the one with the largest gain is taken. An imported version, which may have been trained on
    the test images, never replaces another one.

    Parameters
    ----------
    evaluations
        The project's evaluations, oldest first; of several for one version the newest counts.
    in_force
        The promotion of the version in use. Only versions that were first evaluated after what it weighed may replace
        it: the others were passed over then, perhaps by a person. Without one, the version that was evaluated first
        starts as the best: of those whose training images are known, where there are any.
    barred
        Versions that may not be chosen, whatever their error, each with the reason.

    Returns
    -------
    Choice or None
        None when there is neither a version in use nor one that may be promoted.
    """
    newest = {evaluation.model_id: evaluation for evaluation in evaluations}
    barred = {model: reason for model, reason in (barred or {}).items() if model in newest}
    own = cache(lambda model: load_evaluation(store, newest[model].id))
    if in_force is None:
        free = dict.fromkeys(evaluation.model_id for evaluation in evaluations if evaluation.model_id not in barred)
        if not free or rule.rule == "person":
            return None
        best = next((model for model in free if own(model).training_known and own(model).test_images), next(iter(free)))
        rivals = list(newest)
        reason = f"the first evaluated version{_reservation(own(best))}"
    else:
        best = in_force.model_id
        evaluation_id = newest[best].id if best in newest else None
        if rule.rule == "person":
            return Choice(best, evaluation_id, "lab.yaml leaves promotions to a person")
        if evaluation_id is None:
            return Choice(best, None, "it was never evaluated, so nothing can be said to be better")
        first = {evaluation.model_id: evaluation.evaluated_at for evaluation in reversed(evaluations)}
        weighed = in_force.weighed_until
        rivals = [model for model in newest if weighed is None or first[model] > weighed]
        reason = "nothing was evaluated since its promotion"
    passed_over = "".join(f"; {barred[model]}" for model in rivals if model in barred and model != best)
    verdicts = [
        _weigh(own(best), own(model), rule.confidence) for model in rivals if model != best and model not in barred
    ]
    better = [verdict for verdict in verdicts if verdict.clearly_better]
    if better:
        winner = min(better, key=lambda verdict: verdict.difference_px)
        reason = winner.reason + passed_over
        return Choice(winner.model_id, newest[winner.model_id].id, reason, winner.test_rmse_px, winner.test_images)
    if in_force is not None and verdicts:
        reason = min(verdicts, key=lambda verdict: verdict.difference_px).reason
    return Choice(best, newest[best].id, reason + passed_over, *test_error(own(best)))


def test_error(evaluation: products.Evaluation) -> tuple[float | None, int | None]:
    """The test RMSE of a version over all body parts, in pixels, and over how many images; None, None over none."""
    errors = evaluation.errors.set_index(["side", "bodypart"])["rmse_px"]
    rmse = float(errors["test", ALL])
    return (None, None) if math.isnan(rmse) else (rmse, len(evaluation.test_images))


def _reservation(evaluation: products.Evaluation) -> str:
    if not evaluation.test_images:
        return ", which has no test image that it was not trained on"
    return "" if evaluation.training_known else ", which may have been trained on its test images"


@dataclass(frozen=True)
class _Verdict:
    """What is to be said of a version against the one in use; infinitely worse where they cannot be compared."""

    model_id: str
    clearly_better: bool
    difference_px: float
    reason: str
    test_rmse_px: float | None = None
    test_images: int | None = None


def _weigh(before: products.Evaluation, after: products.Evaluation, confidence: float) -> _Verdict:
    model = after.model_id
    if not after.training_known:
        reason = (
            f"version {short(model)} may have been trained on the test images, so that only a person can promote it"
        )
        return _Verdict(model, False, math.inf, reason)
    try:
        comparison = compare([before, after], cutoff=0)  # what counts as confident is not asked here
    except NotComparable as error:
        return _Verdict(model, False, math.inf, f"version {short(model)} cannot be compared: {error.problem}")
    errors = comparison.errors.set_index(["bodypart", "model"])["rmse_px"]
    rmse = float(errors[ALL, model])
    overall, *bodyparts = comparison.paired(before.model_id, model, confidence).to_dict("records")
    enough = fewest_images(confidence)
    worse = [row for row in bodyparts if row["low_px"] > 0]
    images = int(overall["images"])
    figures = (
        f"test RMSE {rmse:.2f} px, against {errors[ALL, before.model_id]:.2f} px before, on the "
        f"{counted(images, 'test image')} that they share (difference {_interval(overall, confidence)})"
    )
    clearly_better = False
    if images < enough:
        reason = f"version {short(model)} was tested on fewer than {enough} images that they share: {figures}"
    elif not overall["high_px"] < 0:
        reason = f"version {short(model)} is not clearly better: {figures}"
    elif worse:
        parts = ", ".join(f"{row['bodypart']} {_interval(row, confidence)}" for row in worse)
        reason = f"version {short(model)} is better over all but not for every body part: {figures}, {parts}"
    elif any(row["more_missed"] > 0 for row in (overall, *bodyparts)):
        more = max(row["more_missed"] for row in (overall, *bodyparts))
        reason = f"version {short(model)} gives no position for {more} more of the labelled keypoints: {figures}"
    else:
        clearly_better, reason = True, f"{figures}, and no body part got worse"
    return _Verdict(model, clearly_better, overall["difference_px"], reason, rmse, images)


def _interval(difference: Mapping[Hashable, Any], confidence: float) -> str:
    low, high = difference["low_px"], difference["high_px"]
    if math.isnan(low):
        return f"{difference['difference_px']:+.2f} px"
    return f"{difference['difference_px']:+.2f} px, {100 * confidence:g} % interval {low:+.2f} to {high:+.2f} px"
