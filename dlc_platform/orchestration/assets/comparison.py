"""The asset `model_comparison`: every version of each project side by side.

`models.comparison` compares. This module runs networks for missing evaluations, writes the result down and shows it.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import tables
from dlc_platform.catalog.datasets import newest_dataset
from dlc_platform.catalog.evaluations import evaluations_of, record_comparison
from dlc_platform.catalog.models import models_of
from dlc_platform.catalog.promotions import production_model
from dlc_platform.errors import PlatformError
from dlc_platform.faults import machine_fault
from dlc_platform.identity import sha256_json, short
from dlc_platform.orchestration.assets.models import GPU_POOL, OWNERS, record_evaluation, without_nan
from dlc_platform.orchestration.metadata import picture, table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.text.assets import MODEL_EVALUATION


@dg.asset(
    deps=[dg.AssetKey(MODEL_EVALUATION)],
    pool=GPU_POOL,
    kinds={"deeplabcut", "postgres"},
    group_name="models",
    owners=OWNERS,
    code_version="1",
)
@tried_again
def model_comparison(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    """Every version of each project side by side on the same test images, and old against new without labels."""
    from dlc_platform.models.comparison import compare_project

    metadata: dict[str, Any] = {}
    compared = {}
    for project in lab.settings.projects:
        evaluate_missing(context, lab, project)
        try:
            comparison = compare_project(lab.engine, lab.store, project, lab.settings.likelihood_cutoff)
        except PlatformError as problem:
            if machine_fault(problem) is not None:
                raise
            # The other projects go on.
            metadata[f"problem_{project}"] = str(problem)
            context.log.warning(str(problem))
            continue
        for warning in comparison.warnings:
            context.log.warning(f"{project}: {warning}")
        _record_comparison(context, lab, comparison)
        compared[project] = comparison.comparison.id
        metadata |= _comparison_metadata(lab, comparison) | _disagreement_metadata(context, lab, comparison)
    if not compared:
        raise PlatformError(
            "; ".join(problem.rstrip(".") for problem in metadata.values()),
            "Do what it says for each project, and materialise model_comparison again",
        )
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(sha256_json(compared)))


def evaluate_missing(
    context: AssetExecutionContext, lab: LabResource, project: str, only: str | None = None
) -> dict[str, PlatformError | None]:
    """Evaluate the versions of a project, or `only` one, that have no evaluation on its newest dataset.

    Returns
    -------
    dict
        The versions that needed an evaluation, each with the obstacle; None if there was no obstacle.
    """
    from dlc_platform.dlc.evaluation import evaluate_model, load_evaluation

    dataset_id = newest_dataset(lab.engine, project)
    if dataset_id is None:
        return {}
    outcomes: dict[str, PlatformError | None] = {}
    evaluations = evaluations_of(lab.engine, project)
    # An evaluation that the store has lost is made again.
    kept = [row for row in evaluations if lab.store.has("evaluations", row.id)]
    done = {row.model_id for row in kept if row.dataset_id == dataset_id}
    for row in kept:
        # An older platform took images that the version was trained on for test images.
        try:
            evaluation = load_evaluation(lab.store, row.id, lab.settings.likelihood_cutoff)
        except PlatformError as problem:
            context.log.warning(f"the evaluation of {short(row.model_id)} cannot be read: {problem}")
            continue
        if (row.test_images, row.taught_images) != (len(evaluation.test_images), evaluation.taught_images):
            record_evaluation(context, lab, evaluation)
    for model in models_of(lab.engine, project):
        if model.id in done or only not in (None, model.id) or not lab.store.has("models", model.id):
            continue
        context.log.info(f"evaluating {short(model.id)} on the newest dataset of {project}")
        try:
            evaluation = evaluate_model(
                lab.store.path("models", model.id),
                lab.store.path("datasets", dataset_id),
                lab.settings.likelihood_cutoff,
                lab.store,
            )
        except PlatformError as problem:
            if machine_fault(problem) is not None:
                raise
            context.log.warning(f"{short(model.id)} cannot be evaluated: {problem}")
            outcomes[model.id] = problem
            continue
        record_evaluation(context, lab, evaluation)
        outcomes[model.id] = None
    return outcomes


def _record_comparison(context: AssetExecutionContext, lab: LabResource, compared: Any) -> None:
    comparison = compared.comparison
    record_comparison(
        lab.engine,
        tables.Comparison(
            id=comparison.id,
            project=compared.project,
            dataset_id=compared.dataset_id,
            test_images=len(comparison.images),
            likelihood_cutoff=lab.settings.likelihood_cutoff,
            run_id=context.run_id,
        ),
        [
            tables.ComparisonError(
                comparison_id=comparison.id, evaluation_id=comparison.evaluations[row["model_id"]], **row
            )
            for row in without_nan(comparison.errors.rename(columns={"model": "model_id"}))
        ],
    )


def _comparison_metadata(lab: LabResource, compared: Any) -> dict[str, Any]:
    from dlc_platform.plots.models import comparison_plot

    project, names = compared.project, compared.names
    plot = comparison_plot(compared.bodyparts, names, production_model(lab.engine, project))
    return {
        f"picture_{project}": picture(plot, f"Test RMSE of the versions of {project}, with 95 % intervals"),
        f"test_images_{project}": len(compared.comparison.images),
        **({f"warnings_{project}": "; ".join(compared.warnings)} if compared.warnings else {}),
        f"versions_{project}": table(_named(compared.versions.drop(columns="recipe"), names)),
        f"left_out_{project}": table(_named(compared.left_out, names)),
        f"bodyparts_{project}": table(_named(compared.bodyparts, names)),
        f"sessions_{project}": table(_named(compared.sessions, names)),
    }


def _disagreement_metadata(context: AssetExecutionContext, lab: LabResource, compared: Any) -> dict[str, Any]:
    from dlc_platform.models.comparison import find_disagreement, old_and_new
    from dlc_platform.plots.frames import disagreement_frames

    project = compared.project
    pair = old_and_new(lab.engine, project)
    if pair is None:
        return {}
    old, new = pair
    found = find_disagreement(
        lab.engine, lab.store, project, old, new, compared.limit_px, lab.settings.likelihood_cutoff
    )
    title = f"{short(old)} (old) against {short(new)} (new)"
    if found.table.empty:
        return {f"disagreement_{project}": f"{title}: no session without labels has poses by both"}
    for problem in found.problems:
        context.log.warning(problem)
    shown = (
        {f"picture_disagreement_{project}": picture(disagreement_frames(found.frames), title)} if found.frames else {}
    )
    return {**shown, f"disagreement_{project}": table(found.table)}


def _named(frame: Any, names: Mapping[str, str]) -> Any:
    """A table of models for a person to read: names instead of identities."""
    return frame.assign(model=[names.get(model) or short(model) for model in frame["model"]])
