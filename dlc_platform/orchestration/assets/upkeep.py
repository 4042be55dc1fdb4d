"""The group `upkeep`: the work that a lab does for itself from time to time. `dlc_platform.lab.upkeep` does it.

`schedules` says when each is due, and when one counts as late.
"""

from pathlib import Path

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog.datasets import newest_dataset
from dlc_platform.catalog.evaluations import evaluations_of
from dlc_platform.catalog.promotions import production_model
from dlc_platform.errors import PlatformError
from dlc_platform.faults import machine_fault
from dlc_platform.identity import sha256_json, short
from dlc_platform.lab import upkeep
from dlc_platform.orchestration import run_history
from dlc_platform.orchestration.assets.comparison import evaluate_missing
from dlc_platform.orchestration.assets.models import GPU_POOL, OWNERS
from dlc_platform.orchestration.metadata import table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.text.assets import PRODUCTION_MODEL, TRAINING_DATASET
from dlc_platform.text.words import counted

UPKEEP_GROUP = "upkeep"
_ACQUISITION = ["team:acquisition"]


@dg.asset(
    deps=[dg.AssetKey(TRAINING_DATASET), dg.AssetKey(PRODUCTION_MODEL)],
    pool=GPU_POOL,
    kinds={"deeplabcut", "postgres"},
    group_name=UPKEEP_GROUP,
    owners=OWNERS,
    code_version="1",
)
@tried_again
def production_evaluation(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    """The test error of each project's production model on the newest labelled frames.

    Fails if a model could not be evaluated, after the others were: else it would count as made although it is not.
    """
    from dlc_platform.dlc.evaluation import load_evaluation, not_evaluable
    from dlc_platform.models.promotion import test_error

    rows = []
    failed: dict[str, PlatformError] = {}
    for project in lab.settings.projects:
        model = production_model(lab.engine, project)
        if model is None:
            continue
        # A model that can never be evaluated is not a failure.
        reason = not_evaluable(lab.store.path("models", model)) if lab.store.has("models", model) else None
        outcomes = {} if reason else evaluate_missing(context, lab, project, only=model)
        if (problem := outcomes.get(model)) is not None:
            failed[project] = problem
            continue
        newest = newest_dataset(lab.engine, project)
        own = [row for row in evaluations_of(lab.engine, project) if row.model_id == model]
        evaluation = next((row for row in own if row.dataset_id == newest), None)
        rmse_px, test_images = None, 0
        if evaluation is not None:
            try:
                rmse_px, test_images = test_error(load_evaluation(lab.store, evaluation.id))
            except PlatformError as problem:
                if machine_fault(problem) is not None:
                    raise
                failed[project] = problem
                continue
        rows.append(
            {
                "project": project,
                "model": short(model),
                "test_rmse_px": rmse_px,
                "test_images": test_images or 0,  # those that the model was not trained on
                "evaluated": bool(outcomes),
                "cannot_be_evaluated": reason or "",
            }
        )
    if failed:
        told = "; ".join(f"{project}: {problem.problem}" for project, problem in failed.items())
        raise PlatformError(
            f"the production models of {counted(len(failed), 'project')} were not evaluated on the newest labels: "
            f"{told}",
            "; ".join(sorted({problem.remedy for problem in failed.values()})),
        )
    return dg.MaterializeResult(
        metadata={"projects": table(rows), "evaluated": sum(row["evaluated"] for row in rows)},
        data_version=dg.DataVersion(sha256_json(rows)),
    )


@dg.asset(kinds={"postgres"}, group_name=UPKEEP_GROUP, owners=_ACQUISITION, code_version="1")
@tried_again
def store_verification(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    """Every product of the store, read again and compared with its checksums; fails if one differs."""
    verified = upkeep.verify_store(lab.engine, lab.store, context.log.error)
    return dg.MaterializeResult(metadata={"products": verified.products, "unchecked": verified.unchecked})


@dg.asset(kinds={"postgres"}, group_name=UPKEEP_GROUP, owners=_ACQUISITION, code_version="1")
@tried_again
def lab_backup(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    """The database, the index of the store and lab.yaml in one file of the folder that lab.yaml names."""
    done = upkeep.back_up(Path(lab.home))
    for path in done.removed:
        context.log.info(f"removed {path}")
    if done.backup.missing:
        context.log.warning(
            f"the store lacks {counted(len(done.backup.missing), 'product')}, such as {done.backup.missing[0]}"
        )
    return dg.MaterializeResult(
        metadata={
            "file": dg.MetadataValue.path(done.backup.file),
            "megabytes": round(done.backup.size_bytes / 1e6, 1),
            "products": done.backup.products,
            "missing_products": len(done.backup.missing),
            "removed_backups": len(done.removed),
        }
    )


@dg.asset(kinds={"postgres"}, group_name=UPKEEP_GROUP, owners=_ACQUISITION, code_version="1")
@tried_again
def lab_cleaning(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    """The removal of files that crashes left in the store, and of the logs of old runs."""
    cleaned = upkeep.clean_up(lab.engine, lab.store)
    for path in cleaned.removed:
        context.log.info(f"removed {path}")
    days = lab.settings.runs.keep_events_days
    forgotten = run_history.Forgotten(0, 0, False) if days is None else run_history.forget(context.instance, days)
    return dg.MaterializeResult(
        metadata={
            "left_overs_removed": len(cleaned.removed),
            "megabytes_removed": round(cleaned.removed_bytes / 1e6, 1),
            # Only a person removes these, with `dlc-platform gc HOME --delete`.
            "unnamed_products": cleaned.unnamed,
            "unnamed_megabytes": round(cleaned.unnamed_bytes / 1e6, 1),
            "events_removed": forgotten.events,
            "more_events_next_time": forgotten.more,
            "outputs_removed": forgotten.log_folders,
        }
    )


upkeep_assets = [production_evaluation, store_verification, lab_backup, lab_cleaning]
