"""The choice of a project's production model: by the rule of promotion, or by a person.

The rule compares two versions on the test images that both share (see `comparison`), so that a version is not called
worse because the test side grew harder after it was trained. All decisions about promotions belong here.
"""

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from logging import Logger
from typing import Any

from sqlalchemy import Engine

from dlc_platform.catalog.evaluations import evaluations_of
from dlc_platform.catalog.models import best_models, require_model
from dlc_platform.catalog.promotions import promote, promotion_in_force, promotions_of
from dlc_platform.catalog.tables import Evaluation, ModelVersion, Promotion
from dlc_platform.catalog.verdicts import failing_versions
from dlc_platform.dlc import evaluation as products
from dlc_platform.dlc.comparison import NotComparable, compare, fewest_images
from dlc_platform.dlc.evaluation import ALL, load_evaluation
from dlc_platform.dlc.runner import unusable
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.faults import machine_fault
from dlc_platform.identity import short
from dlc_platform.models.impact import Impact, impact_of
from dlc_platform.models.judging import judge_version
from dlc_platform.settings.promotion import ModelRules, PromotionRule
from dlc_platform.settings.quality import PoseQuality, PoseRules
from dlc_platform.store import Store
from dlc_platform.text.words import counted

#: The fewest estimates by which a version is judged.
FEWEST_ESTIMATES = 10
#: The remedy if the rule promotes no version.
_ANOTHER_VERSION = "Label more frames or train longer; or promote a version yourself with `dlc-platform promote`"


class Refused(PlatformError):
    """A choice of a person or of the rule that does not come into force; the version in force stays. What is in force
    stays in force."""


@dataclass(frozen=True)
class PersonalChoice:
    """The version that a person wants in production.

    Attributes
    ----------
    model
        Its identity, or the beginning of it that tables show.
    by
        The name of the person.
    follows
        The number of the promotion that was in force when the person chose. If another one is in force by now, nothing
        is promoted. None means the one in force when the choice is handled.
    rollback
        True to go back to a version that was in production before.
    """

    model: str
    reason: str
    by: str
    follows: int | None = None
    rollback: bool = False


@dataclass(frozen=True)
class Decision:
    """The production model of a project after the decision of the rule or of a person.

    Attributes
    ----------
    before
        The version that was in production before; None if there was none.
    warning
        The reason why its own test images do not speak for it; None if they do.
    test_rmse_px, test_images
        As in `Choice`.
    impact
        The poses that its promotion made stale; None if nothing was promoted.
    """

    project: str
    model: str
    before: str | None
    reason: str
    warning: str | None
    test_rmse_px: float | None = None
    test_images: int | None = None
    impact: Impact | None = None


@dataclass(frozen=True)
class Choice:
    """A model version to use, the evaluation that speaks for it, and why in one sentence.

    Attributes
    ----------
    test_rmse_px, test_images
        The error that was compared, in pixels, and the number of its images: those that the version shares with the one
        in use, if it was compared with that. None if there is no image that it was not trained on.
    """

    model_id: str
    evaluation_id: str | None
    reason: str
    test_rmse_px: float | None = None
    test_images: int | None = None


def promote_by_rule(
    engine: Engine,
    store: Store,
    projects: Iterable[str],
    rule: PromotionRule,
    judging: PoseRules,
    run_id: str | None,
    log: Logger,
) -> list[Decision]:
    """Let the rule of lab.yaml decide for each project, and put its choice in force.

    Returns
    -------
    list of Decision
        One for each project that has a production model now, except those whose evaluations cannot be read.

    Raises
    ------
    Refused
        When the rule may promote no version of any project.
    PlatformError
        When no version of any project was evaluated yet.
    MachineFault
        When evaluations cannot be read because of the disk of the store.
    """
    decisions: list[Decision] = []
    # Logged if another version is promoted or kept; else the refusal says it.
    passed_over: list[tuple[str, str]] = []
    for project in projects:
        in_force = promotion_in_force(engine, project)
        before = in_force.model_id if in_force else None
        evaluations = evaluations_of(engine, project)
        barred = barred_versions(engine, judging.quality, project)
        barred |= versions_that_may_not_start(engine, store, project, judging.models)
        try:
            choice = choose_best(evaluations, in_force, store, rule, barred)
        except PlatformError as problem:
            if (fault := machine_fault(problem)) is not None:
                raise fault from problem
            # The version in production stays, and the rule goes on with the other projects.
            told = f"{project}: the rule decides nothing, because an evaluation cannot be read: {problem.problem}"
            passed_over.append((told, problem.remedy))
            continue
        if choice is None:
            passed_over += [(f"{project}: {reason}", "") for reason in barred.values()]
            continue
        warning = _warning(engine, store, choice.model_id, judging.models)
        if choice.model_id == before:
            error = choice.test_rmse_px, choice.test_images
            decisions.append(Decision(project, choice.model_id, before, choice.reason, warning, *error))
            continue
        promotion = _promotion(project, choice, "rule" if before else "first", "the rule of lab.yaml", evaluations)
        promotion.warning, promotion.run_id = warning, run_id
        try:
            decisions.append(_put_in_force(engine, promotion, before, log))
        except Refused as overtaken:
            log.warning(f"{project}: nothing was promoted: {overtaken}")
            if (kept := promotion_in_force(engine, project)) is not None:
                decisions.append(Decision(project, kept.model_id, kept.model_id, kept.reason, kept.warning))
    if decisions:
        for said, remedy in passed_over:
            log.warning(f"{said}. {remedy}" if remedy else said)
    elif rule.rule != "person":
        if passed_over:
            remedies = [_ANOTHER_VERSION, *(remedy for _, remedy in passed_over if remedy)]
            raise Refused(
                f"no version may be promoted by the rule of lab.yaml: {'; '.join(said for said, _ in passed_over)}",
                "; ".join(dict.fromkeys(reversed(remedies))),
            )
        raise PlatformError("no model of any project has been evaluated yet", "Materialise model_evaluation first")
    return decisions


def promote_by_person(
    engine: Engine,
    store: Store,
    projects: Collection[str],
    choice: PersonalChoice,
    rules: ModelRules,
    run_id: str | None,
    log: Logger,
) -> Decision:
    """Put the version that a person chose in force. A person may choose a hopeless one, or the one already in force.

    Raises
    ------
    Refused
        When there is no such version, it cannot be used, the person or the reason is missing, or another version was
        promoted meanwhile.
    """
    model = _require_choosable(engine, store, projects, choice)
    in_force = promotion_in_force(engine, model.project)
    if choice.follows is not None and (in_force is None or in_force.id != choice.follows):
        raise _overtaken(model.project, in_force)
    # Evaluations that exist now are not considered again, even if the person keeps the version in force. Evaluations
    # that are recorded while this choice is handled still will be.
    evaluations = evaluations_of(engine, model.project)
    weighed = _weighed_by_a_person(engine, store, model, choice.reason)
    kind = "rollback" if choice.rollback else "person"
    promotion = _promotion(model.project, weighed, kind, choice.by, evaluations)
    promotion.warning, promotion.run_id = _warning(engine, store, model.id, rules), run_id
    return _put_in_force(engine, promotion, in_force.model_id if in_force else None, log)


def version_before(engine: Engine, project: str) -> str:
    """The version that a rollback of a project goes to: the one before the one in production.

    Versions that were rolled back are passed over, so a second rollback goes one step further.

    Raises
    ------
    PlatformError
        When no other version was in production before.
    """
    line: list[str] = []
    for promotion in promotions_of(engine, project):
        if promotion.kind == "rollback" and promotion.model_id in line:
            while line[-1] != promotion.model_id:
                line.pop()
        elif not line or line[-1] != promotion.model_id:
            line.append(promotion.model_id)
    if len(line) < 2:
        raise PlatformError(
            f"no other version of {project!r} was in production before", "Look at `dlc-platform promotions HOME`"
        )
    return line[-2]


def choose_best(
    evaluations: Sequence[Evaluation],
    in_force: Promotion | None,
    store: Store,
    rule: PromotionRule,
    barred: Mapping[str, str] | None = None,
) -> Choice | None:
    """The version in use, or the version that the rule puts in its place.

    A version replaces another one when it is clearly better: the interval of the difference of their test RMSE over all
    body parts lies wholly below zero, and of no body part wholly above it, and it gives a position for as many labelled
    keypoints. If several are, the one with the largest gain is taken. An imported version may have been trained on the
    test images, so it never replaces another one.

    Parameters
    ----------
    evaluations
        The project's evaluations, oldest first; if a version has several, the newest counts.
    in_force
        The promotion of the version in use. Only versions whose first evaluation is newer than its `weighed_until` may
        replace it: the others were passed over then, perhaps by a person. Without a promotion, the version that was
        evaluated first starts as the best; if the training images of some versions are known, only these can start.
    barred
        The versions that may not be chosen, whatever their error, each with the reason.

    Returns
    -------
    Choice or None
        None if there is neither a version in use nor one that may be promoted.
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
    """The test RMSE of a version over all body parts, in pixels, and its number of images; (None, None) without
    images."""
    errors = evaluation.errors.set_index(["side", "bodypart"])["rmse_px"]
    rmse = float(errors["test", ALL])
    return (None, None) if math.isnan(rmse) else (rmse, len(evaluation.test_images))


def _reservation(evaluation: products.Evaluation) -> str:
    if not evaluation.test_images:
        return ", which has no test image that it was not trained on"
    return "" if evaluation.training_known else ", which may have been trained on its test images"


@dataclass(frozen=True)
class _Verdict:
    """The comparison of a version with the one in use; the difference is infinite if they cannot be compared."""

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
        comparison = compare([before, after], cutoff=0)  # the confident keypoints are not used here
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


def versions_that_may_not_start(engine: Engine, store: Store, project: str, rules: ModelRules) -> dict[str, str]:
    """The evaluated versions that the rule never promotes because of their own test images, with the reason.

    These are the hopeless ones, and those that have no labelled test image, or none that can be read.

    Raises
    ------
    MachineFault
        When they cannot be read because of the disk of the store.
    """
    barred = {}
    for model_id in {evaluation.model_id for evaluation in evaluations_of(engine, project)}:
        judgement = judge_version(engine, store, model_id, rules)
        if isinstance(judgement.problem, MachineFault):
            raise judgement.problem
        if judgement.standing == "hopeless" or not judgement.images:
            barred[model_id] = f"version {short(model_id)} was passed over, because it is {judgement}"
    return barred


def barred_versions(engine: Engine, quality: PoseQuality, project: str) -> dict[str, str]:
    """The versions that the rule may not promote because of the poses that they made, with the reason."""
    if "promotion" not in quality.blocks:
        return {}
    return {
        str(row.model): f"version {short(str(row.model))} was passed over, because {row.failed} of the {row.estimates} "
        "poses that it made fail the limits of lab.yaml"
        for row in failing_versions(engine, project).itertuples()
        if row.estimates >= FEWEST_ESTIMATES  # pyright: ignore[reportOperatorIssue]
        and row.failed > quality.promotion_fraction * row.estimates  # pyright: ignore[reportOperatorIssue]
    }


def _weighed_by_a_person(engine: Engine, store: Store, model: ModelVersion, reason: str) -> Choice:
    """A version that a person wants, with its error as far as it is known.

    That is its error in the newest comparison, as `best_models` shows it. If the version is not in it, it is the error
    of its newest evaluation, or None if that cannot be read.
    """
    best = best_models(engine)
    own = best[(best["project"] == model.project) & (best["model"] == model.id) & (best["bodypart"] == ALL)]
    for row in own.itertuples():
        return Choice(model.id, str(row.evaluation), reason, float(str(row.rmse_px)), int(str(row.test_images)))
    known = [evaluation.id for evaluation in evaluations_of(engine, model.project) if evaluation.model_id == model.id]
    if not known:
        return Choice(model.id, None, reason)
    try:
        return Choice(model.id, known[-1], reason, *test_error(load_evaluation(store, known[-1])))
    except PlatformError:  # the judgement of the version says so
        return Choice(model.id, known[-1], reason)


def _require_choosable(engine: Engine, store: Store, projects: Collection[str], choice: PersonalChoice) -> ModelVersion:
    if not choice.model.strip():
        raise Refused(
            "no model was named, but other parts of a choice were",
            "Name the model, or leave all of it out: then the rule of lab.yaml decides",
        )
    try:
        model = require_model(engine, choice.model)
    except PlatformError as problem:
        raise Refused(problem.problem, problem.remedy) from problem
    if not (choice.reason.strip() and choice.by.strip()):
        raise Refused(
            "a model was named without a reason, or without a name",
            "Say why in `reason` and who you are in `by`: the promotion keeps both",
        )
    if not store.has("models", model.id):
        raise Refused(
            f"the model {short(model.id)} is not in the store {store.root}",
            f"Bring {store.path('models', model.id)} back from a copy of the store, or promote another version",
        )
    if reason := unusable(store.path("models", model.id)):
        raise Refused(
            f"the model {short(model.id)} cannot be promoted, because it cannot estimate poses here: {reason}",
            "Promote another version",
        )
    if model.project not in projects:
        raise Refused(
            f"the model {short(model.id)} is a version of the project {model.project}, which is not in lab.yaml",
            "Add the project again, or promote another version",
        )
    return model


def _promotion(project: str, choice: Choice, kind: str, by: str, evaluations: Sequence[Evaluation]) -> Promotion:
    return Promotion(
        project=project,
        model_id=choice.model_id,
        evaluation_id=choice.evaluation_id,
        kind=kind,
        promoted_by=by,
        reason=choice.reason,
        weighed_until=evaluations[-1].evaluated_at if evaluations else None,
        test_rmse_px=choice.test_rmse_px,
        test_images=choice.test_images,
    )


def _put_in_force(engine: Engine, promotion: Promotion, before: str | None, log: Logger) -> Decision:
    project, model = promotion.project, promotion.model_id
    if not promote(engine, promotion, expected=before):
        raise _overtaken(project, promotion_in_force(engine, project))
    log.info(f"{project}: {short(model)} is the production model now: {promotion.reason}")
    if promotion.warning is not None:
        log.warning(f"{project}: mind that {short(model)} is {promotion.warning}")
    impact = impact_of(engine, model)
    log.info(f"{project}: {impact}")
    error = promotion.test_rmse_px, promotion.test_images
    return Decision(project, model, before, promotion.reason, promotion.warning, *error, impact)


def _overtaken(project: str, in_force: Promotion | None) -> Refused:
    by = f", by {in_force.promoted_by}: {in_force.reason}" if in_force else ""
    model = short(in_force.model_id) if in_force else "none"
    return Refused(
        f"{model} became the production model of {project} meanwhile{by}",
        "Look at `dlc-platform promotions HOME`, and try again if it is still what you want",
    )


def _warning(engine: Engine, store: Store, model: str, rules: ModelRules) -> str | None:
    """The reason why a version's own test images do not speak for it; None if they do."""
    judgement = judge_version(engine, store, model, rules)
    return None if judgement.standing == "usable" else str(judgement)
