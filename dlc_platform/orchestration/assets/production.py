"""The asset `production_model`: the version that inference uses, by the rule of lab.yaml or by a person's choice.

`models.promotion` decides; `models.impact` finds what a promotion makes stale.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog.estimates import stale_sessions
from dlc_platform.catalog.promotions import production_model as catalog_production_model
from dlc_platform.errors import command
from dlc_platform.identity import sha256_json
from dlc_platform.orchestration.assets.comparison import model_comparison
from dlc_platform.orchestration.assets.models import OWNERS
from dlc_platform.orchestration.metadata import stale_rows, table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.text.assets import POSE_ESTIMATES
from dlc_platform.text.words import counted

if TYPE_CHECKING:
    from dlc_platform.models.promotion import Decision

#: The key of the reason why nothing was promoted, in the observation of a refused choice and as a tag of its run.
REFUSED = "refused"
REFUSED_TAG = "dlc_platform/nothing_was_promoted"
_TAG_LENGTH = 200
#: A check of `pose_estimates`; it is in `checks`.
STALENESS_CHECK = "made_by_production_models"


class ProductionChoice(dg.Config):
    """A person's choice; if it is empty, the rule of lab.yaml decides for each project.

    `model` is a version's identity, or the beginning of it that tables show.

    `follows` is the number, in `dlc-platform promotions`, of the promotion that was in force when the person chose. If
    another one is in force by now, nothing is promoted. If it is empty, it is the one in force when the run starts.
    """

    model: str = ""
    reason: str = ""
    by: str = ""
    follows: int | None = None
    rollback: bool = False


# A refused choice materialises nothing, and is not a failure of this asset.
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
    from dlc_platform.models.promotion import PersonalChoice, Refused, promote_by_person, promote_by_rule

    settings = lab.settings
    try:
        if config != ProductionChoice():
            choice = PersonalChoice(config.model, config.reason, config.by, config.follows, config.rollback)
            models = settings.model_rules
            decisions = [
                promote_by_person(lab.engine, lab.store, settings.projects, choice, models, context.run_id, context.log)
            ]
        else:
            decisions = promote_by_rule(
                lab.engine,
                lab.store,
                settings.projects,
                settings.promotion,
                settings.pose_rules,
                context.run_id,
                context.log,
            )
    except Refused as refusal:
        sentence = f"Nothing was promoted: {refusal}"
        context.log.error(sentence)
        context.instance.add_run_tags(context.run_id, {REFUSED_TAG: str(refusal)[:_TAG_LENGTH]})
        yield dg.AssetObservation(production_model.key, sentence, metadata={REFUSED: str(refusal), "by": config.by})
        # The check after a promotion is skipped, and the UI would show that instead of its last outcome.
        context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=dg.AssetKey(POSE_ESTIMATES), check_name=STALENESS_CHECK, **staleness(lab))
        )
        return
    in_production = {
        project: catalog_production_model(lab.engine, project) or "" for project in sorted(settings.projects)
    }
    yield dg.MaterializeResult(
        metadata={"production": table([_row(decision) for decision in decisions]), **_impact_metadata(decisions)},
        data_version=dg.DataVersion(sha256_json(in_production)),
    )


def _row(decision: "Decision") -> Mapping[str, Any]:
    return {
        "project": decision.project,
        "model": decision.model,
        "changed": decision.model != decision.before,
        "before": decision.before or "",
        "reason": decision.reason,
        "warning": decision.warning or "",
        "test_rmse_px": decision.test_rmse_px,
        "test_images": decision.test_images,
    }


def staleness(lab: LabResource) -> dict[str, Any]:
    """The outcome, for Dagster, of the check for sessions whose poses another than the production model made."""
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


def _impact_metadata(decisions: "Sequence[Decision]") -> Mapping[str, Any]:
    shown = {}
    for decision in decisions:
        if (impact := decision.impact) is not None:
            shown[f"impact_{decision.project}"] = str(impact)
            if not impact.sessions.empty:
                shown[f"stale_sessions_{decision.project}"] = table(stale_rows(impact.sessions))
    return shown
