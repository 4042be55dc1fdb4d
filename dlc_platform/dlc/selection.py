"""Which evaluated model version of a project becomes its production model: the rule of promotion.

Two versions are compared on the test images that both share (see `comparison`), so that a version is not called worse
because the test side grew harder after it was trained. What a person decides is not decided here.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlc_platform.catalog.tables import Evaluation, Promotion
from dlc_platform.dlc.comparison import NotComparable, compare
from dlc_platform.dlc.evaluation import ALL, load_evaluation
from dlc_platform.identity import short
from dlc_platform.settings import PromotionRule
from dlc_platform.store import Store


@dataclass(frozen=True)
class Choice:
    """A model version to use, the evaluation that speaks for it, and why in one sentence."""

    model_id: str
    evaluation_id: str | None
    reason: str


def choose_best(
    evaluations: Sequence[Evaluation],
    in_force: Promotion | None,
    store: Store,
    rule: PromotionRule,
    barred: Mapping[str, str] | None = None,
) -> Choice | None:
    """The version in use, or the one that is to replace it by the rule.

    A version replaces another one when it is clearly better: the interval of the difference of their test RMSE over all
    body parts lies wholly below zero, and of no body part wholly above it. Of several, the one with the largest gain is
    taken.

    Parameters
    ----------
    evaluations
        The project's evaluations, oldest first; of several for one version the newest counts.
    in_force
        The promotion of the version in use. Only versions that were first evaluated after what it weighed may replace
        it: the others were passed over then, perhaps by a person. Without one, the oldest version starts as the best.
    barred
        Versions that may not be chosen, whatever their error, each with the reason.

    Returns
    -------
    Choice or None
        None when there is neither a version in use nor one that may be promoted.
    """
    newest = {evaluation.model_id: evaluation for evaluation in evaluations}
    barred = {model: reason for model, reason in (barred or {}).items() if model in newest}
    if in_force is None:
        free = [evaluation.model_id for evaluation in evaluations if evaluation.model_id not in barred]
        if not free or rule.rule == "person":
            return None
        best, rivals = free[0], list(newest)
        reason = "the first evaluated version"
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
        _weigh(newest[best], newest[model], store, rule.confidence)
        for model in rivals
        if model != best and model not in barred
    ]
    better = [verdict for verdict in verdicts if verdict.clearly_better]
    if better:
        winner = min(better, key=lambda verdict: verdict.difference_px)
        return Choice(winner.model_id, newest[winner.model_id].id, winner.reason + passed_over)
    if in_force is not None and verdicts:
        reason = min(verdicts, key=lambda verdict: verdict.difference_px).reason
    return Choice(best, newest[best].id, reason + passed_over)


@dataclass(frozen=True)
class _Verdict:
    """What is to be said of a version against the one in use; infinitely worse where they cannot be compared."""

    model_id: str
    clearly_better: bool
    difference_px: float
    reason: str


def _weigh(before: Evaluation, after: Evaluation, store: Store, confidence: float) -> _Verdict:
    model = after.model_id
    products = [load_evaluation(store, evaluation.id) for evaluation in (before, after)]
    try:
        comparison = compare(products, store, cutoff=0)  # what counts as confident is not asked here
    except NotComparable as error:
        return _Verdict(model, False, math.inf, f"version {short(model)} cannot be compared: {error.problem}")
    rmse = comparison.errors.set_index(["bodypart", "model"])["rmse_px"]
    overall, *bodyparts = comparison.paired(before.model_id, model, confidence).to_dict("records")
    # However good it is: that chance alone favours one side on each of n images has the probability 2^-n, and below
    # this number of images that is more than the interval leaves to chance.
    enough = math.ceil(math.log2(2 / (1 - confidence)))
    worse = [row for row in bodyparts if row["low_px"] > 0 and row["images"] >= enough]
    figures = (
        f"test RMSE {rmse[ALL, model]:.2f} px, against {rmse[ALL, before.model_id]:.2f} px before, on the "
        f"{overall['images']} test images they share (difference {_interval(overall, confidence)})"
    )
    clearly_better = False
    if overall["images"] < enough:
        reason = f"version {short(model)} was tested on fewer than {enough} images that they share: {figures}"
    elif not overall["high_px"] < 0:
        reason = f"version {short(model)} is not clearly better: {figures}"
    elif worse:
        parts = ", ".join(f"{row['bodypart']} {_interval(row, confidence)}" for row in worse)
        reason = f"version {short(model)} is better over all but not for every body part: {figures}, {parts}"
    else:
        clearly_better, reason = True, f"{figures}, and no body part got worse"
    return _Verdict(model, clearly_better, overall["difference_px"], reason)


def _interval(difference: Mapping[Hashable, Any], confidence: float) -> str:
    low, high = difference["low_px"], difference["high_px"]
    return f"{difference['difference_px']:+.2f} px, {100 * confidence:g} % interval {low:+.2f} to {high:+.2f} px"
