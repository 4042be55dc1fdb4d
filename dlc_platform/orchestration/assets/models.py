"""The group `models`: from labels to the model that the lab uses."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import registry, tables
from dlc_platform.catalog.impact import Impact, impact_of
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json, short
from dlc_platform.orchestration.assets.sessions import labeled_frames
from dlc_platform.orchestration.metadata import number, picture, stale_rows, table
from dlc_platform.orchestration.resources import LabResource

GPU_POOL = "gpu"


class ProductionChoice(dg.Config):
    """A person's choice; left empty, the best evaluated model version of each project is taken."""

    model: str = ""
    reason: str = ""
    by: str = ""


def model_assets(recipes: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The assets of the group; the recipes are those of the lab's settings."""
    owners = ["team:pose-estimation"]

    @dg.asset(
        partitions_def=recipes,
        deps=[dg.AssetDep(labeled_frames, partition_mapping=dg.AllPartitionMapping())],
        kinds={"deeplabcut", "parquet"},
        group_name="models",
        owners=owners,
        code_version="1",
    )
    def training_dataset(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """All labelled frames of a recipe's project, each for ever on one side of the train/test split."""
        return _training_dataset(context, lab)

    @dg.asset(
        partitions_def=recipes,
        deps=[training_dataset],
        pool=GPU_POOL,
        kinds={"deeplabcut", "pytorch"},
        group_name="models",
        owners=owners,
        code_version="1",
    )
    def trained_model(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """A network trained on a recipe's dataset: each materialisation is one immutable model version."""
        return _trained_model(context, lab)

    @dg.asset(
        partitions_def=recipes,
        deps=[trained_model],
        pool=GPU_POOL,
        kinds={"deeplabcut", "parquet"},
        group_name="models",
        owners=owners,
        code_version="1",
    )
    def model_evaluation(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """The distance between labels and predictions on every image of the model's dataset, in pixels."""
        return _model_evaluation(context, lab)

    @dg.asset(
        deps=[model_evaluation],
        pool=GPU_POOL,
        kinds={"deeplabcut", "postgres"},
        group_name="models",
        owners=owners,
        code_version="1",
    )
    def model_comparison(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """Every version of each project side by side on the same test images, and old against new without labels."""
        return _model_comparison(context, lab)

    @dg.asset(deps=[model_comparison], kinds={"postgres"}, group_name="models", owners=owners, code_version="1")
    def production_model(
        context: AssetExecutionContext, config: ProductionChoice, lab: LabResource
    ) -> dg.MaterializeResult:
        """The model version that inference uses, for each project: by the rule in lab.yaml, or a person's choice."""
        return _production_model(context, config, lab)

    return [training_dataset, trained_model, model_evaluation, model_comparison, production_model]


def _training_dataset(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    from dlc_platform.dlc.dataset import make_dataset
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.labels import read_labels
    from dlc_platform.dlc.matching import match_folders
    from dlc_platform.dlc.project import check_with_deeplabcut, read_project
    from dlc_platform.dlc.samples import labelled_samples
    from dlc_platform.pose.pictures import labelled_frames

    name = context.partition_key
    recipe = lab.recipe(name)
    project = read_project(lab.settings.projects[recipe.project].path)
    check_with_deeplabcut(project)
    labels = read_labels(project)
    folders = labels.folders()
    matches = match_folders(project, folders, registry.known_files(lab.engine))
    dataset = make_dataset(
        project, labels, recipe.seed, recipe.test_fraction, matches, lab.store, apart_frames=recipe.apart_frames
    )
    registry.record_dataset(
        lab.engine,
        name,
        tables.Dataset(
            id=dataset.id,
            project=recipe.project,
            train_images=dataset.n_train,
            test_images=dataset.n_test,
            seed=recipe.seed,
            test_fraction=recipe.test_fraction,
            manifest_sha256=lab.store.claim("datasets", dataset.id),
            run_id=context.run_id,
        ),
        registry.BodyParts(dataset.bodyparts, dataset.skeleton),
        _image_rows(dataset, matches),
        versions(),
    )
    unmatched = sorted(folder for folder in folders if folder not in matches)
    return dg.MaterializeResult(
        metadata={
            "picture": picture(
                labelled_frames(labelled_samples(labels, most=9), skeleton=dataset.skeleton),
                f"Labelled frames of {recipe.project}",
            ),
            "project": recipe.project,
            "train_images": dataset.n_train,
            "test_images": dataset.n_test,
            "left_out_images": dataset.n_left_out,
            "rows_without_a_label": labels.unlabelled,
            "labels_outside_their_image": labels.outside,
            "bodyparts": ", ".join(dataset.bodyparts),
            "sessions": table([{"session": s} for s in sorted(set(matches.values()))]),
            "folders_without_a_session": ", ".join(unmatched) or "none",
            "dataset": dataset.id,
            "path": dg.MetadataValue.path(dataset.path),
        },
        data_version=dg.DataVersion(dataset.id),
    )


def dataset_problem(lab: LabResource, name: str) -> str | None:
    """Why the current dataset of a recipe is not one to train it on; None when it is."""
    from dlc_platform.dlc.dataset import side

    recipe = lab.recipe(name)
    dataset_id = registry.current_dataset(lab.engine, name)
    dataset = registry.dataset(lab.engine, dataset_id) if dataset_id else None
    if dataset is None:
        return "it has no training dataset yet"
    if dataset.project != recipe.project:
        return f"its training dataset is of the project {dataset.project}, and lab.yaml says {recipe.project} now"
    # The sides themselves, because two seeds may split a few images alike, which makes one dataset of both.
    sides = registry.image_sides(lab.engine, dataset.id)
    if any(side(image, recipe.seed, recipe.test_fraction) != given for image, given in sides.items()):
        return (
            "its training dataset was not split by the seed and test_fraction that lab.yaml says now "
            f"({recipe.seed}, {recipe.test_fraction:g})"
        )
    return None


def _image_rows(dataset: Any, sessions: Mapping[str, str]) -> list[tables.DatasetImage]:
    images = dataset.labels().drop_duplicates("image")
    return [
        tables.DatasetImage(
            dataset_id=dataset.id,
            image_id=row.image,
            folder=row.folder,
            file=row.file,
            session_key=sessions.get(row.folder),
            side=row.side,
        )
        for row in images.itertuples()
    ]


def _trained_model(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.training import parameters_of, train_model
    from dlc_platform.pose.pictures import learning_curve

    name = context.partition_key
    recipe = lab.recipe(name)
    problem = dataset_problem(lab, name)
    dataset_id = registry.current_dataset(lab.engine, name)
    if problem is not None or dataset_id is None:
        raise PlatformError(f"the recipe {name} cannot be trained: {problem}", "Materialise training_dataset first")

    parameters = parameters_of(recipe)
    same = registry.record_recipe(lab.engine, name, recipe.project, parameters)
    if same:
        context.log.warning(f"the recipe {name} has the very same parameters as {', '.join(same)}")

    def on_progress(epoch: int, epochs: int, loss: float) -> None:
        if epoch in (1, epochs) or epoch % max(1, epochs // 20) == 0:
            context.log.info(f"epoch {epoch} of {epochs}: loss {loss:.5f}")

    model = train_model(
        lab.store.path("datasets", dataset_id),
        recipe,
        lab.store,
        lab.workspaces / context.run_id,
        on_progress=on_progress,
    )
    environment = versions()
    new = registry.record_training(
        lab.engine,
        tables.ModelVersion(
            id=model.id,
            project=recipe.project,
            dataset_id=dataset_id,
            net_type=recipe.net_type,
            weights_sha256=model.weights_sha256,
            scorer=model.scorer,
            manifest_sha256=lab.store.claim("models", model.id),
        ),
        registry.BodyParts(model.bodyparts, model.skeleton),
        tables.TrainingRun(
            recipe=name, model_id=model.id, epochs=model.epochs, seconds=model.seconds, run_id=context.run_id
        ),
        parameters,
        environment,
    )
    return dg.MaterializeResult(
        metadata={
            "loss_curve": picture(learning_curve(model.learning_curve), f"Loss of {name}"),
            "epochs": model.epochs,
            "train_seconds": number(model.seconds),
            "new_version": new,
            "model": model.id,
            "dataset": dataset_id,
            "scorer": model.scorer,
            "parameters": dg.MetadataValue.json(parameters),
            "same_parameters_as": ", ".join(same) or "none",
            "software": dg.MetadataValue.json(environment),
            "path": dg.MetadataValue.path(model.path),
        },
        data_version=dg.DataVersion(model.id),
    )


def _model_evaluation(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    from dlc_platform.dlc.evaluation import evaluate_model
    from dlc_platform.dlc.samples import worst_test_frames
    from dlc_platform.pose.pictures import worst_frames

    name = context.partition_key
    recipe = lab.recipe(name)
    model = registry.current_model(lab.engine, name)
    if model is None or model.dataset_id is None:
        raise PlatformError(f"the recipe {name} has no trained model yet", "Materialise trained_model first")
    evaluation = evaluate_model(
        lab.store.path("models", model.id),
        lab.store.path("datasets", model.dataset_id),
        lab.settings.likelihood_cutoff,
        lab.store,
        batch_size=recipe.batch_size,
    )
    by_session = _record_evaluation(context, lab, evaluation)
    errors = evaluation.errors
    overall = errors[errors["bodypart"] == "all"].set_index("side")["rmse_px"]
    return dg.MaterializeResult(
        metadata={
            "test_rmse_px": number(overall["test"]),
            "train_rmse_px": number(overall["train"]),
            "worst_test_frames": picture(
                worst_frames(worst_test_frames(evaluation, lab.store, most=6)),
                "The worst test frames: labels + and predictions o",
            ),
            "test": table(errors[errors["side"] == "test"].drop(columns="side")),
            "train": table(errors[errors["side"] == "train"].drop(columns="side")),
            "sessions": table(by_session),
            "likelihood_cutoff": lab.settings.likelihood_cutoff,
            "model": model.id,
            "path": dg.MetadataValue.path(evaluation.path),
        },
        data_version=dg.DataVersion(evaluation.id),
    )


def _record_evaluation(context: AssetExecutionContext, lab: LabResource, evaluation: Any) -> Any:
    """Write an evaluation down; its errors by side and session."""
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.evaluation import summarise_by_session

    cutoff = lab.settings.likelihood_cutoff
    predictions = evaluation.predictions()
    # The catalogue knows of sessions that were registered after the dataset was made.
    predictions["session"] = predictions["image"].map(registry.image_sessions(lab.engine, evaluation.dataset_id))
    by_session = summarise_by_session(predictions, cutoff)
    registry.record_evaluation(
        lab.engine,
        tables.Evaluation(
            id=evaluation.id,
            model_id=evaluation.model_id,
            dataset_id=evaluation.dataset_id,
            likelihood_cutoff=cutoff,
            seconds=evaluation.seconds,
            manifest_sha256=lab.store.claim("evaluations", evaluation.id),
            run_id=context.run_id,
        ),
        [tables.EvaluationError(evaluation_id=evaluation.id, **row) for row in _without_nan(evaluation.errors)],
        versions(),
        [
            tables.EvaluationSessionError(evaluation_id=evaluation.id, **row)
            for row in _without_nan(by_session.rename(columns={"session": "session_key"}))
        ],
    )
    return by_session


def _model_comparison(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    from dlc_platform.comparisons import compare_project

    metadata: dict[str, Any] = {}
    compared = {}
    for project in lab.settings.projects:
        _evaluate_all(context, lab, project)
        try:
            comparison = compare_project(lab.engine, lab.store, project, lab.settings.likelihood_cutoff)
        except PlatformError as problem:
            # The other projects are none the worse.
            metadata[f"problem_{project}"] = str(problem)
            context.log.warning(str(problem))
            continue
        _record_comparison(context, lab, comparison)
        compared[project] = comparison.comparison.id
        metadata |= _comparison_metadata(lab, comparison) | _disagreement_metadata(context, lab, comparison)
    if not compared:
        raise PlatformError(
            "; ".join(problem.rstrip(".") for problem in metadata.values()),
            "Materialise model_comparison again when that is done",
        )
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(sha256_json(compared)))


def _evaluate_all(context: AssetExecutionContext, lab: LabResource, project: str) -> None:
    """Evaluate every version of a project on its newest dataset, where that can be done and has not been."""
    from dlc_platform.dlc.evaluation import evaluate_model

    dataset_id = registry.newest_dataset(lab.engine, project)
    if dataset_id is None:
        return
    done = {row.model_id for row in registry.evaluations_of(lab.engine, project) if row.dataset_id == dataset_id}
    for model in registry.models_of(lab.engine, project):
        if model.id in done or not lab.store.has("models", model.id):
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
            context.log.warning(f"{short(model.id)} cannot be evaluated: {problem}")
            continue
        _record_evaluation(context, lab, evaluation)


def _record_comparison(context: AssetExecutionContext, lab: LabResource, compared: Any) -> None:
    comparison = compared.comparison
    registry.record_comparison(
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
            for row in _without_nan(comparison.errors.rename(columns={"model": "model_id"}))
        ],
    )


def _comparison_metadata(lab: LabResource, compared: Any) -> dict[str, Any]:
    from dlc_platform.pose.pictures import comparison_plot

    project, names = compared.project, compared.names
    plot = comparison_plot(compared.bodyparts, names, registry.production_model(lab.engine, project))
    return {
        f"picture_{project}": picture(plot, f"Test RMSE of the versions of {project}, with 95 % intervals"),
        f"test_images_{project}": len(compared.comparison.images),
        f"versions_{project}": table(_named(compared.versions.drop(columns="recipe"), names)),
        f"left_out_{project}": table(_named(compared.left_out, names)),
        f"bodyparts_{project}": table(_named(compared.bodyparts, names)),
        f"sessions_{project}": table(_named(compared.sessions, names)),
    }


def _disagreement_metadata(context: AssetExecutionContext, lab: LabResource, compared: Any) -> dict[str, Any]:
    from dlc_platform.comparisons import find_disagreement, old_and_new
    from dlc_platform.pose.pictures import disagreement_frames

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
    """A table of models as a person reads it."""
    return frame.assign(model=[names.get(model) or short(model) for model in frame["model"]])


def _production_model(
    context: AssetExecutionContext, config: ProductionChoice, lab: LabResource
) -> dg.MaterializeResult:
    from dlc_platform.dlc.selection import choose_best

    chosen_by_person = registry.model_version(lab.engine, config.model) if config.model else None
    if config.model and chosen_by_person is None:
        raise PlatformError(
            f"there is no model version {config.model!r}", "Copy its identity from `dlc-platform models`"
        )
    if chosen_by_person is not None and not (config.reason and config.by):
        raise PlatformError(
            "a model was named without a reason, or without a name",
            "Say why in `reason` and who you are in `by`: the promotion keeps both",
        )
    if chosen_by_person is not None and (unusable := (chosen_by_person.source or {}).get("unusable")):
        raise PlatformError(
            f"the model {chosen_by_person.id} cannot be promoted, because it cannot estimate poses here: {unusable}",
            "Promote another version",
        )
    rows = []
    stale: dict[str, Impact] = {}
    for project in lab.settings.projects:
        in_force = registry.promotion_in_force(lab.engine, project)
        incumbent = in_force.model_id if in_force else None
        evaluations = registry.evaluations_of(lab.engine, project)
        if chosen_by_person is not None:
            if chosen_by_person.project != project:
                continue
            evaluated = [evaluation.id for evaluation in evaluations if evaluation.model_id == chosen_by_person.id]
            model, evaluation, reason = chosen_by_person.id, next(iter(evaluated[-1:]), None), config.reason
        else:
            choice = choose_best(evaluations, in_force, lab.store, lab.settings.promotion)
            if choice is None:
                continue
            model, evaluation, reason = choice.model_id, choice.evaluation_id, choice.reason
        # A person who keeps the model has decided too: what was weighed then is not weighed again.
        if model != incumbent or chosen_by_person is not None:
            promotion = tables.Promotion(
                project=project,
                model_id=model,
                evaluation_id=evaluation,
                kind="person" if chosen_by_person is not None else "rule" if incumbent else "first",
                promoted_by=config.by if chosen_by_person is not None else "the rule of lab.yaml",
                reason=reason,
                weighed_until=evaluations[-1].evaluated_at if evaluations else None,
                run_id=context.run_id,
            )
            if not registry.promote(lab.engine, promotion, expected=incumbent):
                raise PlatformError(
                    f"another model of {project} was promoted at the same moment",
                    "Look at production_model and try again if it is still what you want",
                )
            context.log.info(f"{project}: {short(model)} is the production model now: {reason}")
            stale[project] = impact_of(lab.engine, model)
            context.log.info(f"{project}: {stale[project]}")
        rows.append(
            {
                "project": project,
                "model": model,
                "changed": model != incumbent,
                "before": incumbent or "",
                "reason": reason,
            }
        )
    if not rows and lab.settings.promotion.rule != "person":
        raise PlatformError("no model of any project has been evaluated yet", "Materialise model_evaluation first")
    in_production = {
        project: registry.production_model(lab.engine, project) or "" for project in sorted(lab.settings.projects)
    }
    return dg.MaterializeResult(
        metadata={"production": table(rows), **_impact_metadata(stale)},
        data_version=dg.DataVersion(sha256_json(in_production)),
    )


def _impact_metadata(stale: Mapping[str, Impact]) -> dict[str, Any]:
    shown = {}
    for project, impact in stale.items():
        shown[f"impact_{project}"] = str(impact)
        if not impact.sessions.empty:
            shown[f"stale_sessions_{project}"] = table(stale_rows(impact.sessions))
    return shown


def _without_nan(frame: Any) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
