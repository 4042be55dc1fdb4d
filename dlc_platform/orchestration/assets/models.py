"""The group `models`: from labels to evaluated model versions.

`comparison` compares versions, `production` chooses the one that is used.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import tables
from dlc_platform.catalog.database import outlasting
from dlc_platform.catalog.datasets import (
    current_dataset,
    image_sessions,
    image_sides,
    record_dataset,
    registered_dataset,
)
from dlc_platform.catalog.evaluations import evaluated_models
from dlc_platform.catalog.evaluations import record_evaluation as catalog_record_evaluation
from dlc_platform.catalog.models import current_model, record_recipe, record_training
from dlc_platform.catalog.sessions import known_files
from dlc_platform.catalog.writing import BodyParts
from dlc_platform.errors import PlatformError
from dlc_platform.orchestration.assets.sessions import labeled_frames
from dlc_platform.orchestration.metadata import gpu_memory, number, picture, table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again

GPU_POOL = "gpu"
OWNERS = ["team:pose-estimation"]


def model_assets(recipes: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The assets that have a partition for each recipe of the lab's settings."""

    @dg.asset(
        partitions_def=recipes,
        deps=[dg.AssetDep(labeled_frames, partition_mapping=dg.AllPartitionMapping())],
        kinds={"deeplabcut", "parquet"},
        group_name="models",
        owners=OWNERS,
        code_version="1",
    )
    @tried_again
    def training_dataset(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """All labelled frames of a recipe's project, each on one fixed side of the train/test split."""
        return _training_dataset(context, lab)

    @dg.asset(
        partitions_def=recipes,
        deps=[training_dataset],
        pool=GPU_POOL,
        kinds={"deeplabcut", "pytorch"},
        group_name="models",
        owners=OWNERS,
        code_version="1",
    )
    @tried_again
    def trained_model(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """A network trained on a recipe's dataset: each materialisation is one immutable model version."""
        return _trained_model(context, lab)

    @dg.asset(
        partitions_def=recipes,
        deps=[trained_model],
        pool=GPU_POOL,
        kinds={"deeplabcut", "parquet"},
        group_name="models",
        owners=OWNERS,
        code_version="1",
    )
    @tried_again
    def model_evaluation(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """The distance between labels and predictions on every image of the model's dataset, in pixels."""
        return _model_evaluation(context, lab)

    return [training_dataset, trained_model, model_evaluation]


def _training_dataset(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
    from dlc_platform.dlc.dataset import make_dataset
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.labels import read_labels, within_regions
    from dlc_platform.dlc.matching import match_folders
    from dlc_platform.dlc.project import check_with_deeplabcut, read_project
    from dlc_platform.dlc.samples import labelled_samples
    from dlc_platform.models.comparison import ONE_SPLIT, different_splits
    from dlc_platform.plots.frames import labelled_frames
    from dlc_platform.sessions.cropping import crop_without_region

    name = context.partition_key
    recipe = lab.recipe(name)
    project = read_project(lab.settings.projects[recipe.project].path)
    check_with_deeplabcut(project)
    labels = read_labels(project)
    folders = labels.folders()
    known = known_files(lab.engine)
    files = match_folders(project, folders, known)
    crop = crop_without_region(recipe.project, project, lab.settings.tracking, known)
    remarks = [*labels.remarks, *([crop] if crop else [])]
    for remark in remarks:
        context.log.warning(f"{remark.said}. {remark.remedy}.")
    matches = {folder: file.session for folder, file in files.items()}
    unmatched = sorted(folder for folder in folders if folder not in matches)
    if unmatched and lab.settings.regions:
        context.log.warning(f"{', '.join(unmatched)}: no session is known, and so no region; trained on whole pictures")
    labels = within_regions(labels, files, lab.settings.tracking.region_for)
    seed, test_fraction = lab.settings.split_of(name)
    dataset = make_dataset(project, labels, seed, test_fraction, matches, lab.store, apart_frames=recipe.apart_frames)
    if splits := different_splits(recipe.project, lab.settings.splits_of(recipe.project), labels.images["sha256"]):
        context.log.warning(f"{splits}. {ONE_SPLIT}.")
    # Before the dataset is written down: nothing that can fail comes after that.
    drawn = picture(
        labelled_frames(labelled_samples(labels, most=9), skeleton=dataset.skeleton),
        f"Labelled frames of {recipe.project}",
    )
    record_dataset(
        lab.engine,
        name,
        tables.Dataset(
            id=dataset.id,
            project=recipe.project,
            train_images=dataset.n_train,
            test_images=dataset.n_test,
            seed=seed,
            test_fraction=test_fraction,
            manifest_sha256=lab.store.claim("datasets", dataset.id),
            run_id=context.run_id,
        ),
        BodyParts(dataset.bodyparts, dataset.skeleton),
        _image_rows(dataset, matches),
        versions(),
    )
    return dg.MaterializeResult(
        metadata={
            "picture": drawn,
            "project": recipe.project,
            "train_images": dataset.n_train,
            "test_images": dataset.n_test,
            "left_out_images": dataset.n_left_out,
            "split_seed": seed,
            "test_fraction": test_fraction,
            **({"different_splits": splits} if splits else {}),
            "rows_without_a_label": labels.unlabelled,
            "remarks": table([{"remark": remark.said, "what_to_do": remark.remedy} for remark in remarks]),
            "labels_outside_their_image": labels.outside,
            "labels_outside_their_region": labels.outside_region,
            "images_without_a_label_in_their_region": labels.without_region_label,
            "bodyparts": ", ".join(dataset.bodyparts),
            "sessions": table([{"session": s} for s in sorted(set(matches.values()))]),
            "folders_without_a_session": ", ".join(unmatched) or "none",
            "dataset": dataset.id,
            "path": dg.MetadataValue.path(dataset.path),
        },
        data_version=dg.DataVersion(dataset.id),
    )


def dataset_problem(lab: LabResource, name: str) -> str | None:
    """The reason why the current dataset of a recipe must not be trained on; None if it may."""
    from dlc_platform.dlc.dataset import side

    recipe = lab.recipe(name)
    dataset_id = current_dataset(lab.engine, name)
    dataset = registered_dataset(lab.engine, dataset_id) if dataset_id else None
    if dataset is None:
        return "it has no training dataset yet"
    if dataset.project != recipe.project:
        return f"its training dataset belongs to the project {dataset.project}, and lab.yaml now says {recipe.project}"
    # The sides are compared, because two seeds may split a few images alike, and then the dataset is the same.
    sides = image_sides(lab.engine, dataset.id)
    seed, test_fraction = lab.settings.split_of(name)
    if any(side(image, seed, test_fraction) != given for image, given in sides.items()):
        return (
            "its training dataset was not split by the present seed and test_fraction of lab.yaml "
            f"({seed}, {test_fraction:g})"
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
    from dlc_platform.dlc.dataset import load_dataset
    from dlc_platform.dlc.engine import load_engine
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.memory import gpu_peak_gb
    from dlc_platform.dlc.samples import first_look
    from dlc_platform.dlc.training import parameters_of, train_model
    from dlc_platform.models.exports import keep_export
    from dlc_platform.plots.frames import frames_with_keypoints
    from dlc_platform.plots.models import learning_curve

    name = context.partition_key
    recipe = lab.recipe(name)
    problem = dataset_problem(lab, name)
    dataset_id = current_dataset(lab.engine, name)
    if problem is not None or dataset_id is None:
        raise PlatformError(f"the recipe {name} cannot be trained: {problem}", "Materialise training_dataset first")

    parameters = parameters_of(recipe)
    same = record_recipe(lab.engine, name, recipe.project, parameters)
    if same:
        context.log.warning(f"the recipe {name} has the very same parameters as {', '.join(same)}")

    def on_progress(epoch: int, epochs: int, loss: float) -> None:
        if epoch in (1, epochs) or epoch % max(1, epochs // 20) == 0:
            context.log.info(f"epoch {epoch} of {epochs}: loss {loss:.5f}")

    model = train_model(
        lab.store.path("datasets", dataset_id),
        recipe,
        lab.store,
        lab.workspaces,
        on_progress=on_progress,
        warn=context.log.warning,
    )
    peak_gb = gpu_peak_gb()
    environment = versions()
    manifest_sha256 = lab.store.claim("models", model.id)
    new = outlasting(
        lambda: record_training(
            lab.engine,
            tables.ModelVersion(
                id=model.id,
                project=recipe.project,
                dataset_id=dataset_id,
                net_type=recipe.net_type,
                weights_sha256=model.weights_sha256,
                scorer=model.scorer,
                manifest_sha256=manifest_sha256,
            ),
            BodyParts(model.bodyparts, model.skeleton),
            tables.TrainingRun(
                recipe=name, model_id=model.id, epochs=model.epochs, seconds=model.seconds, run_id=context.run_id
            ),
            parameters,
            environment,
        )
    )
    # Here deeplabcut is imported already, so that later runs of the model need not import it. After the training is
    # written down, so that nothing that happens here can lose it.
    engine = load_engine(model.path, lab.store)
    if engine.export is not None:
        keep_export(lab.engine, lab.store, engine.export, context.run_id)
    seen = first_look(engine, load_dataset(lab.store.path("datasets", dataset_id)), most=6)
    return dg.MaterializeResult(
        metadata={
            "first_look": picture(
                frames_with_keypoints(seen, lab.settings.likelihood_cutoff), "What the network sees in test images"
            ),
            **(_export_metadata(engine.export) if engine.export else {}),
            "loss_curve": picture(learning_curve(model.learning_curve), f"Loss of {name}"),
            "epochs": model.epochs,
            "train_seconds": number(model.seconds),
            "batch_size": model.batch_size,
            **gpu_memory(recipe.gpu_memory_gb, peak_gb),
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
    from dlc_platform.plots.frames import worst_frames

    name = context.partition_key
    model = current_model(lab.engine, name)
    if model is None or model.dataset_id is None:
        raise PlatformError(f"the recipe {name} has no trained model yet", "Materialise trained_model first")
    evaluation = evaluate_model(
        lab.store.path("models", model.id),
        lab.store.path("datasets", model.dataset_id),
        lab.settings.likelihood_cutoff,
        lab.store,
    )
    by_session = record_evaluation(context, lab, evaluation)
    errors = evaluation.errors
    overall = errors[errors["bodypart"] == "all"].set_index("side")["rmse_px"]
    return dg.MaterializeResult(
        metadata={
            **{
                f"{side}_rmse_px": number(rmse) for side, rmse in overall.items() if rmse == rmse
            },  # NaN where the model gives no position at all
            "test_images": len(evaluation.test_images),
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


def _export_metadata(export: Any) -> Mapping[str, Any]:
    """The figures of an export for the UI."""
    return {
        "backend": export.backend if export.accepted else f"pytorch ({export.backend}: {export.reason})",
        "backend_images": export.images,
        "pytorch_ms_per_frame": number(export.eager_ms_per_frame),
        **{
            f"backend_{name}": number(value)
            for name in ("deviation_px", "deviation_likelihood", "ms_per_frame")
            if (value := getattr(export, name)) is not None
        },
    }


def record_evaluation(context: AssetExecutionContext, lab: LabResource, evaluation: Any) -> Any:
    """Write an evaluation down; return its errors by side and session."""
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.evaluation import summarise_by_session
    from dlc_platform.dlc.exports import find_export
    from dlc_platform.models.exports import keep_export

    export = find_export(lab.store.path("models", evaluation.model_id), lab.store)
    if export is not None:
        keep_export(lab.engine, lab.store, export, context.run_id)
    cutoff = lab.settings.likelihood_cutoff
    predictions = evaluation.fair_predictions()
    # The catalogue knows sessions that were registered after the dataset was made.
    predictions["session"] = predictions["image"].map(image_sessions(lab.engine, evaluation.dataset_id))
    by_session = summarise_by_session(predictions, cutoff)
    catalog_record_evaluation(
        lab.engine,
        tables.Evaluation(
            id=evaluation.id,
            model_id=evaluation.model_id,
            dataset_id=evaluation.dataset_id,
            likelihood_cutoff=cutoff,
            test_images=len(evaluation.test_images),
            taught_images=evaluation.taught_images,
            training_known=evaluation.training_known,
            seconds=evaluation.seconds,
            manifest_sha256=lab.store.claim("evaluations", evaluation.id),
            run_id=context.run_id,
        ),
        [tables.EvaluationError(evaluation_id=evaluation.id, **row) for row in without_nan(evaluation.errors)],
        versions(),
        [
            tables.EvaluationSessionError(evaluation_id=evaluation.id, **row)
            for row in without_nan(by_session.rename(columns={"session": "session_key"}))
        ],
    )
    return by_session


def without_nan(frame: Any) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def recipes_without_dataset(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    return [name for name in sorted(lab.settings.recipes) if dataset_problem(lab, name)]


def recipes_without_model(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    return [name for name in sorted(lab.settings.recipes) if current_model(lab.engine, name) is None]


def recipes_without_evaluation(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    models = {name: current_model(lab.engine, name) for name in sorted(lab.settings.recipes)}
    evaluated = evaluated_models(lab.engine)
    return [name for name, model in models.items() if model is None or model.id not in evaluated]
