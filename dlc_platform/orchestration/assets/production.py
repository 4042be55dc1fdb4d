"""The asset `production_model`: the version that inference uses, by the rule of lab.yaml or by a person's choice.

The rule is in `dlc.selection`, what a promotion makes stale in `catalog.impact`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import stale_sessions
from dlc_platform.catalog.evaluations import evaluations_of
from dlc_platform.catalog.models import require_model
from dlc_platform.catalog.promotions import production_model as catalog_production_model
from dlc_platform.catalog.promotions import promote, promotion_in_force
from dlc_platform.errors import PlatformError, command
from dlc_platform.faults import machine_fault
from dlc_platform.identity import sha256_json, short
from dlc_platform.models.impact import Impact, impact_of
from dlc_platform.orchestration.assets.comparison import model_comparison
from dlc_platform.orchestration.assets.models import OWNERS
from dlc_platform.orchestration.metadata import stale_rows, table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.text.words import counted

#: Of the observation of a refused choice, and the tag of its run: why nothing was promoted.
REFUSED = "refused"
REFUSED_TAG = "dlc_platform/nothing_was_promoted"
_TAG_LENGTH = 200
#: Of `pose_estimates`; it is in `checks`.
STALENESS_CHECK = "made_by_production_models"


class Refused(PlatformError):
    """A choice, a person's or the rule's, that does not come into force. What is in force stays in force."""


class ProductionChoice(dg.Config):
    """A person's choice; left empty, the rule of lab.yaml decides for each project.

    `model` is a version's identity, or as much of it as tables show.

    `follows` is the promotion that the choice was made against, by its number in `dlc-platform promotions`: when
    another one is in force by then, nothing is promoted. Left empty, it is the one in force when the run starts.
    """

    model: str = ""
    reason: str = ""
    by: str = ""
    follows: int | None = None
    rollback: bool = False


# A refused choice materialises nothing, and is no failure of this asset.
@dg.asset(
    deps=[model_comparison],
    kinds={"postgres"},
    group_name="models",
    owners=OWNERS,
    code_version="1",
    output_required=False,
)
@tried_again
def production_model(context: AssetExecutionContext, config: ProductionChoice, lab: LabResource) -> Iterator[Any]:
    """The model version that inference uses, for each project: by the rule in lab.yaml, or a person's choice.

    A choice that cannot come into force is refused: the run says why, promotes nothing and materialises nothing.
    """
    try:
        promoted = _promote(context, config, lab)
    except Refused as refusal:
        sentence = f"Nothing was promoted: {refusal}"
        context.log.error(sentence)
        context.instance.add_run_tags(context.run_id, {REFUSED_TAG: str(refusal)[:_TAG_LENGTH]})
        yield dg.AssetObservation(production_model.key, sentence, metadata={REFUSED: str(refusal), "by": config.by})
        # The check after a promotion is skipped, and the UI would show that in the place of its last outcome.
        context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("pose_estimates"), check_name=STALENESS_CHECK, **staleness(lab)
            )
        )
        return
    yield promoted


def _promote(context: AssetExecutionContext, config: ProductionChoice, lab: LabResource) -> dg.MaterializeResult:
    from dlc_platform.estimates.quality_gate import barred_versions, judge_version, versions_that_may_not_start
    from dlc_platform.models.comparison import weighed_by_a_person
    from dlc_platform.models.promotion import choose_best

    chosen_by_person = _chosen(config, lab) if config != ProductionChoice() else None
    rows = []
    rule = lab.settings.promotion
    passed_over: list[str] = []
    # Said where something else is promoted or kept; else the refusal says it.
    passed_over_with_remedies: list[str] = []
    remedies = ["Label more frames or train longer; or promote a version yourself with `dlc-platform promote`"]
    stale: dict[str, Impact] = {}
    for project in lab.settings.projects:
        in_force = promotion_in_force(lab.engine, project)
        incumbent = in_force.model_id if in_force else None
        evaluations = evaluations_of(lab.engine, project)
        if chosen_by_person is not None:
            if chosen_by_person.project != project:
                continue
            if config.follows is not None and (in_force is None or in_force.id != config.follows):
                raise _overtaken(project, in_force)
            model, reason = chosen_by_person.id, config.reason
            evaluation, *error = weighed_by_a_person(lab.engine, lab.store, project, model)
        else:
            barred = barred_versions(lab.engine, lab.settings.pose_quality, project) | versions_that_may_not_start(
                lab.engine, lab.store, project, lab.settings.model_rules
            )
            try:
                choice = choose_best(evaluations, in_force, lab.store, rule, barred)
            except PlatformError as problem:
                if (fault := machine_fault(problem)) is not None:
                    raise fault from problem
                # What is in production stays, and the other projects have their rule.
                told = f"{project}: the rule decides nothing, because an evaluation cannot be read: {problem.problem}"
                passed_over.append(told)
                passed_over_with_remedies.append(f"{told}. {problem.remedy}")
                remedies.append(problem.remedy)
                continue
            if choice is None:
                own = [f"{project}: {reason}" for reason in barred.values()]
                passed_over += own
                passed_over_with_remedies += own
                continue
            model, evaluation, reason = choice.model_id, choice.evaluation_id, choice.reason
            error = choice.test_rmse_px, choice.test_images
        test_error = dict(zip(("test_rmse_px", "test_images"), error, strict=True))
        judgement = judge_version(lab.engine, lab.store, model, lab.settings.model_rules)
        warning = None if judgement.standing == "usable" else str(judgement)
        # A person who keeps the model has decided too: what was weighed then is not weighed again.
        if model != incumbent or chosen_by_person is not None:
            promotion = tables.Promotion(
                project=project,
                model_id=model,
                evaluation_id=evaluation,
                kind=_kind(config, incumbent),
                promoted_by=config.by if chosen_by_person is not None else "the rule of lab.yaml",
                reason=reason,
                weighed_until=evaluations[-1].evaluated_at if evaluations else None,
                **test_error,
                warning=warning,
                run_id=context.run_id,
            )
            if not promote(lab.engine, promotion, expected=incumbent):
                overtaken = _overtaken(project, promotion_in_force(lab.engine, project))
                if chosen_by_person is not None:
                    raise overtaken
                context.log.warning(f"{project}: nothing was promoted: {overtaken}")
                kept = promotion_in_force(lab.engine, project)
                if kept is not None:
                    rows.append(_row(project, kept.model_id, kept.model_id, kept.reason, kept.warning))
                continue
            context.log.info(f"{project}: {short(model)} is the production model now: {reason}")
            if warning is not None:
                context.log.warning(f"{project}: mind that {short(model)} is {warning}")
            stale[project] = impact_of(lab.engine, model)
            context.log.info(f"{project}: {stale[project]}")
        rows.append(_row(project, model, incumbent, reason, warning) | test_error)
    if rows:
        for told in passed_over_with_remedies:
            context.log.warning(told)
    elif rule.rule != "person":
        if passed_over:
            raise Refused(
                f"no version may be promoted by the rule of lab.yaml: {'; '.join(passed_over)}",
                "; ".join(dict.fromkeys(reversed(remedies))),
            )
        raise PlatformError("no model of any project has been evaluated yet", "Materialise model_evaluation first")
    in_production = {
        project: catalog_production_model(lab.engine, project) or "" for project in sorted(lab.settings.projects)
    }
    return dg.MaterializeResult(
        metadata={"production": table(rows), **_impact_metadata(stale)},
        data_version=dg.DataVersion(sha256_json(in_production)),
    )


def _chosen(config: ProductionChoice, lab: LabResource) -> tables.ModelVersion:
    """The version that a person chose.

    Raises
    ------
    Refused
        When there is none, it cannot be used, or it is not said who promotes it and why.
    """
    from dlc_platform.dlc.runner import unusable

    if not config.model.strip():
        raise Refused(
            "no model was named, and yet something else of a choice",
            "Name the model, or leave all of it out: then the rule of lab.yaml decides",
        )
    try:
        model = require_model(lab.engine, config.model)
    except PlatformError as problem:
        raise Refused(problem.problem, problem.remedy) from problem
    if not (config.reason.strip() and config.by.strip()):
        raise Refused(
            "a model was named without a reason, or without a name",
            "Say why in `reason` and who you are in `by`: the promotion keeps both",
        )
    if not lab.store.has("models", model.id):
        raise Refused(
            f"the model {short(model.id)} is not in the store {lab.store.root}",
            f"Bring {lab.store.path('models', model.id)} back from a copy of the store, or promote another version",
        )
    if reason := unusable(lab.store.path("models", model.id)):
        raise Refused(
            f"the model {short(model.id)} cannot be promoted, because it cannot estimate poses here: {reason}",
            "Promote another version",
        )
    if model.project not in lab.settings.projects:
        raise Refused(
            f"the model {short(model.id)} is a version of the project {model.project}, which is not in lab.yaml",
            "Add the project again, or promote another version",
        )
    return model


def _row(project: str, model: str, before: str | None, reason: str, warning: str | None) -> dict[str, Any]:
    return {
        "project": project,
        "model": model,
        "changed": model != before,
        "before": before or "",
        "reason": reason,
        "warning": warning or "",
    }


def staleness(lab: LabResource) -> dict[str, Any]:
    """The outcome of the check that finds sessions whose poses the production model did not make, for Dagster."""
    stale = stale_sessions(lab.engine, imported=False)
    sentence = (
        f"{counted(stale['session'].nunique(), 'session is', 'sessions are')} stale, "
        f"{counted(int(stale['frames'].sum()), 'frame')}: estimate again with "
        f"{command('backfill', lab.home)}, or switch the sensor reestimate_stale_sessions on"
    )
    return {
        "passed": stale.empty,
        "severity": dg.AssetCheckSeverity.WARN,
        "description": "" if stale.empty else sentence,
        "metadata": {"stale_sessions": len(stale), **({} if stale.empty else {"sessions": table(stale_rows(stale))})},
    }


def _kind(config: ProductionChoice, incumbent: str | None) -> str:
    if config.model:
        return "rollback" if config.rollback else "person"
    return "rule" if incumbent else "first"


def _overtaken(project: str, in_force: tables.Promotion | None) -> Refused:
    by = f", by {in_force.promoted_by}: {in_force.reason}" if in_force else ""
    model = short(in_force.model_id) if in_force else "none"
    return Refused(
        f"{model} became the production model of {project} meanwhile{by}",
        "Look at `dlc-platform promotions HOME`, and try again if it is still what you want",
    )


def _impact_metadata(stale: Mapping[str, Impact]) -> dict[str, Any]:
    shown = {}
    for project, impact in stale.items():
        shown[f"impact_{project}"] = str(impact)
        if not impact.sessions.empty:
            shown[f"stale_sessions_{project}"] = table(stale_rows(impact.sessions))
    return shown
