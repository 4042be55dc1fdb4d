"""The group `models`: from labels to the model that the lab uses."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import registry, tables
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json, short
from dlc_platform.orchestration.assets.sessions import labeled_frames
from dlc_platform.orchestration.metadata import number, picture, table
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

    @dg.asset(deps=[model_evaluation], kinds={"postgres"}, group_name="models", owners=owners, code_version="1")
    def production_model(
        context: AssetExecutionContext, config: ProductionChoice, lab: LabResource
    ) -> dg.MaterializeResult:
        """The model version that inference uses, for each project: the best on the frozen test images."""
        return _production_model(context, config, lab)

    return [training_dataset, trained_model, model_evaluation, production_model]


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
    dataset = make_dataset(project, labels, recipe.seed, recipe.test_fraction, matches, lab.store)
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
    from dlc_platform.dlc.environment import versions
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
    errors = evaluation.errors
    registry.record_evaluation(
        lab.engine,
        tables.Evaluation(
            id=evaluation.id,
            model_id=model.id,
            dataset_id=model.dataset_id,
            likelihood_cutoff=lab.settings.likelihood_cutoff,
            run_id=context.run_id,
        ),
        [tables.EvaluationError(evaluation_id=evaluation.id, **row) for row in _without_nan(errors)],
        versions(),
    )
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
            "likelihood_cutoff": lab.settings.likelihood_cutoff,
            "model": model.id,
            "path": dg.MetadataValue.path(evaluation.path),
        },
        data_version=dg.DataVersion(evaluation.id),
    )


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
    rows = []
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
            choice = choose_best(evaluations, in_force, lab.store)
            if choice is None:
                continue
            model, evaluation, reason = choice.model_id, choice.evaluation_id, choice.reason
        if model != incumbent:
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
        rows.append(
            {
                "project": project,
                "model": model,
                "changed": model != incumbent,
                "before": incumbent or "",
                "reason": reason,
            }
        )
    if not rows:
        raise PlatformError("no model of any project has been evaluated yet", "Materialise model_evaluation first")
    in_production = {
        project: registry.production_model(lab.engine, project) or "" for project in sorted(lab.settings.projects)
    }
    return dg.MaterializeResult(
        metadata={"production": table(rows)}, data_version=dg.DataVersion(sha256_json(in_production))
    )


def _without_nan(frame: Any) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
