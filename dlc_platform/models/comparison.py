"""The versions of a project side by side: the choice of those that are compared, from the catalogue and the store.

No network is run here, and nothing is written. `dlc.comparison` computes a comparison, `pose.disagreement` the places
where two models disagree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from dlc_platform.catalog.datasets import image_sessions, newest_dataset
from dlc_platform.catalog.estimates import tracked_by_both
from dlc_platform.catalog.evaluations import evaluations_of
from dlc_platform.catalog.models import model_table, models_of
from dlc_platform.catalog.promotions import production_model, promotions_of
from dlc_platform.catalog.sessions import current_files
from dlc_platform.dlc.cautions import FEWEST_IMAGES, too_few, unknown
from dlc_platform.dlc.comparison import Comparison, comparable, compare
from dlc_platform.dlc.dataset import side
from dlc_platform.dlc.evaluation import ALL, Evaluation, load_evaluation, not_evaluable
from dlc_platform.errors import PlatformError
from dlc_platform.faults import machine_fault
from dlc_platform.identity import short
from dlc_platform.pose.disagreement import disagreement, largest_disagreements
from dlc_platform.pose.table import POSE_TABLE, keypoints_at, read_parquet
from dlc_platform.settings.recipes import Split
from dlc_platform.store import Store
from dlc_platform.text.words import counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_MOST_FILES = 10
_APART_S = 5.0

#: The remedy for `different_splits`.
ONE_SPLIT = "Give the project one `split_seed`, and its recipes one `test_fraction`, to have all versions compared"

Points = dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class ProjectComparison:
    """The versions of a project, compared on the test images of its newest dataset.

    Attributes
    ----------
    versions
        One row for each version that is compared, oldest first: recipe, model, origin, train_images, taught_images (the
        number of the dataset's test images that it was trained on; None if unknown, as for an imported version),
        test_rmse_px, rmse_low_px and rmse_high_px (the ends of the 95 % interval), rmse_confident_px,
        fraction_confident, missed (labelled keypoints to which it gives no position), frames_per_second (of its
        evaluation), production, made_at.
    left_out
        The versions that are not compared: model and reason; the reason says what to do.
    warnings
        Sentences that a reader of the figures must know: too few images, versions that cost images, versions that may
        have been trained on them.
    comparison
        The comparison itself, with the images, and the errors by body part and by session.
    """

    project: str
    dataset_id: str
    versions: "pd.DataFrame"
    left_out: "pd.DataFrame"
    warnings: list[str]
    comparison: Comparison

    @property
    def bodyparts(self) -> "pd.DataFrame":
        """The errors of each version by body part; ``all`` is over the body parts that every version knows."""
        return self.comparison.errors

    @property
    def sessions(self) -> "pd.DataFrame":
        """The errors of each version by session, over all body parts."""
        return self.comparison.by_session

    @property
    def names(self) -> dict[str, str]:
        """The name of each version in tables and pictures: its recipe and the first digits of its identity."""
        return {
            model: f"{recipe if isinstance(recipe, str) else origin} {short(model)}"
            for model, recipe, origin in zip(
                self.versions["model"], self.versions["recipe"], self.versions["origin"], strict=True
            )
        }

    @property
    def limit_px(self) -> float:
        """The distance in pixels from which two versions are said to disagree: twice the lowest test RMSE."""
        return 2 * float(self.versions["test_rmse_px"].min())


def different_splits(project: str, splits: Mapping[str, Split], images: Iterable[str]) -> str | None:
    """A sentence about recipes of a project that split its labelled images differently; None if all split them alike.

    Parameters
    ----------
    splits
        The split of each recipe, by its name.
    images
        SHA-256 of the labelled images.
    """
    if len(set(splits.values())) < 2:
        return None
    images = list(images)
    sides = {split: {image for image in images if side(image, *split) == "test"} for split in splits.values()}
    seeds = len({split.seed for split in splits.values()}) > 1
    each = "; ".join(
        f"{name} tests on {counted(len(sides[split]), 'image')} (seed {split.seed}, "
        f"test_fraction {split.test_fraction:g})"
        for name, split in splits.items()
    )
    return (
        f"they have different {'seeds' if seeds else 'test fractions'}, so that versions of the project {project} "
        f"share {counted(len(set.intersection(*sides.values())), 'test image')}: {each}"
    )


def too_few_test_images(split: Split, images: Iterable[str]) -> str | None:
    """A sentence about a recipe whose split leaves too few test images; None if it leaves enough.

    Parameters
    ----------
    images
        SHA-256 of the labelled images of the recipe's project.
    """
    images = list(images)
    tested = sum(side(image, *split) == "test" for image in images)
    if tested >= FEWEST_IMAGES:
        return None
    return (
        f"its test_fraction of {split.test_fraction:g} leaves {counted(tested, 'test image')} of {len(images)}: with "
        f"fewer than {FEWEST_IMAGES} no interval of the error is shown, and no version counts as clearly better"
    )


def compare_project(engine: Engine, store: Store, project: str, cutoff: float) -> ProjectComparison:
    """Compare the versions of a project that are evaluated on its newest dataset.

    The version in production is taken first, then the newer ones before the older. A version that would spoil the
    comparison for those already taken is left out.

    Raises
    ------
    PlatformError
        When the project has no dataset, or no version is evaluated on the newest one.
    """
    import pandas as pd

    dataset_id = newest_dataset(engine, project)
    if dataset_id is None:
        raise PlatformError(
            f"the project {project} has no training dataset, so there is nothing to compare its models on",
            "Train one of its recipes: `dlc-platform train HOME RECIPE`",
        )
    models = [model.id for model in models_of(engine, project)]
    known = {row.model_id: row.id for row in evaluations_of(engine, project) if row.dataset_id == dataset_id}
    evaluations: dict[str, Evaluation] = {}
    unread: dict[str, str] = {}
    for model in models:
        if model in known:
            try:
                evaluations[model] = load_evaluation(store, known[model], cutoff)
            except PlatformError as problem:
                if (fault := machine_fault(problem)) is not None:
                    raise fault from problem
                unread[model] = f"its evaluation cannot be read: {problem.problem}. {problem.remedy}"
    production = production_model(engine, project)
    wanted = sorted(evaluations, key=lambda model: (model == production, models.index(model)), reverse=True)
    kept, spoiling = comparable([evaluations[model] for model in wanted])
    left_out = [
        (model, spoiling.get(model) or unread.get(model) or _why_not_evaluated(store, model, project, dataset_id))
        for model in models
        if model not in {evaluation.model_id for evaluation in kept}
    ]
    if not kept:
        raise PlatformError(
            f"no version of the project {project} can be compared: "
            + ("; ".join(f"{short(model)}: {reason}" for model, reason in left_out) or "it has none"),
            "Train one of its recipes and materialise model_comparison",
        )
    compared = sorted(kept, key=lambda evaluation: models.index(evaluation.model_id))
    comparison = compare(compared, cutoff, image_sessions(engine, dataset_id))
    described = model_table(engine).drop_duplicates("model", keep="last").set_index("model")
    overall = comparison.errors[comparison.errors["bodypart"] == ALL].set_index("model")
    versions = pd.DataFrame(
        [
            {
                "recipe": described.loc[model, "recipe"],
                "model": model,
                "origin": described.loc[model, "origin"],
                "train_images": described.loc[model, "train_images"],
                "taught_images": evaluations[model].taught_images if evaluations[model].training_known else None,
                "test_rmse_px": overall.loc[model, "rmse_px"],
                "rmse_low_px": overall.loc[model, "rmse_low_px"],
                "rmse_high_px": overall.loc[model, "rmse_high_px"],
                "rmse_confident_px": overall.loc[model, "rmse_confident_px"],
                "fraction_confident": overall.loc[model, "fraction_confident"],
                "missed": overall.loc[model, "missed"],
                "frames_per_second": evaluations[model].images / evaluations[model].seconds,
                "production": model == production,
                "made_at": described.loc[model, "made_at"],
            }
            for model in comparison.evaluations
        ]
    )
    for column in ("train_images", "taught_images"):
        counts = versions[column].astype(object)  # None for an imported version, and so not all floats
        versions[column] = counts.map(int, na_action="ignore").where(counts.notna(), None)
    return ProjectComparison(
        project,
        dataset_id,
        versions,
        pd.DataFrame(left_out, columns=pd.Index(["model", "reason"])),
        _warnings(compared, comparison),
        comparison,
    )


def _warnings(compared: Sequence[Evaluation], comparison: Comparison) -> list[str]:
    """The sentences that a reader of a comparison must know."""
    warnings = []
    images = len(comparison.images)
    if images < FEWEST_IMAGES:
        warnings.append(too_few(images))
    fair = [evaluation.test_images for evaluation in compared]
    shared = frozenset[str].intersection(*fair)
    everything = len(compared[0].test_images) + compared[0].taught_images
    for place, evaluation in enumerate(compared):
        if evaluation.taught_images:
            others = fair[:place] + fair[place + 1 :]
            without = len(frozenset[str].intersection(*others)) if others else everything
            warnings.append(
                f"{short(evaluation.model_id)} was trained on {evaluation.taught_images} of the dataset's {everything} "
                f"test images, which count for no version: {counted(len(shared), 'is', 'are')} left; without this "
                "version "
                f"{without} would be left"
            )
    for evaluation in compared:
        if not evaluation.training_known:
            warnings.append(unknown(evaluation.model_id))
    for model, missed in comparison.errors.groupby("model", sort=False)["missed"]:
        # The first row is over all body parts that every version knows; the others are one for each body part.
        if total := int(missed.iloc[1:].sum()):
            warnings.append(
                f"{short(str(model))} gives no position for {counted(total, 'labelled keypoint')}, which "
                f"{'counts' if total == 1 else 'count'} for "
                "no version"
            )
    return warnings


def _why_not_evaluated(store: Store, model: str, project: str, dataset_id: str) -> str:
    if not store.has("models", model):
        return "its product is not in the store; bring it back"
    # What runs networks and reads videos is not imported to compare figures.
    from dlc_platform.dlc.runner import unusable

    path = store.path("models", model)
    if reason := unusable(path) or not_evaluable(path):
        return reason
    return (
        f"it is not evaluated on the newest dataset of {project} ({short(dataset_id)}); materialise model_comparison "
        "to evaluate it"
    )


@dataclass(frozen=True, eq=False)
class Disagreement:
    """Places where an old and a new model see unlabelled sessions differently.

    Attributes
    ----------
    table
        One row for each file and body part: session, recording, position, and the figures of `pose.disagreement`.
    frames
        The frames in which they are farthest apart, for pictures: the frame, the keypoints of the old and of the new
        model, and a title.
    problems
        The reasons why a file, or frames of it, are not shown.
    """

    table: "pd.DataFrame"
    frames: "list[tuple[np.ndarray, Points, Points, str]]"
    problems: list[str]


def old_and_new(engine: Engine, project: str) -> tuple[str, str] | None:
    """The version in production and the newest one; if the newest is in production, the version before it and the
    newest.

    None if there are no two such versions.
    """
    promoted = [promotion.model_id for promotion in promotions_of(engine, project)]
    models = models_of(engine, project)
    if not promoted:
        return None
    if models[-1].id != promoted[-1]:
        return promoted[-1], models[-1].id
    before = [model for model in promoted if model != promoted[-1]]
    return (before[-1], promoted[-1]) if before else None


def find_disagreement(
    engine: Engine, store: Store, project: str, old: str, new: str, limit_px: float, cutoff: float, most: int = 6
) -> Disagreement:
    """Compare the poses of two models in sessions where no label told either of them what is right.

    These are the newest recordings that both models tracked, of sessions that no label of the project came from.

    Parameters
    ----------
    limit_px
        The distance in pixels above which a frame counts as a disagreement.
    cutoff
        Only frames are shown in which one model gives the keypoint at least this likelihood.
    most
        The number of frames to show.
    """
    import pandas as pd

    summaries, moments, problems = [], [], []
    for row in tracked_by_both(engine, project, old, new, _MOST_FILES).to_dict("records"):
        try:
            before, after = (read_parquet(store.path("poses", row[which]) / POSE_TABLE) for which in ("old", "new"))
        except PlatformError as problem:
            problems.append(str(problem))
            continue
        place = {column: row[column] for column in ("session", "recording", "position")}
        summary = disagreement(before, after, limit_px)
        summaries.append(summary.assign(**place)[[*place, *summary.columns]])
        for moment in largest_disagreements(before, after, most, _APART_S, cutoff).to_dict("records"):
            points = _points(before, moment["frame"]), _points(after, moment["frame"])
            moments.append((moment | row, points))
    moments.sort(key=lambda found: found[0]["distance_px"], reverse=True)
    frames = []
    for moment, points in moments[:most]:
        try:
            picture = _frame(engine, moment["session"], moment["recording_file"], moment["frame"])
        except PlatformError as problem:
            problems.append(str(problem))
            continue
        title = f"{moment['session']} {moment['recording']}\nframe {moment['frame']}, {moment['time_s']:.1f} s"
        frames.append((picture, *points, title))
    table = pd.concat(summaries, ignore_index=True) if summaries else pd.DataFrame()
    return Disagreement(table, frames, problems)


def _points(table: "pd.DataFrame", frame: int) -> Points:
    return {part: (x, y) for part, (x, y, _) in keypoints_at(table, frame).items()}


def _frame(engine: Engine, session: str, recording_file: int, frame: int) -> "np.ndarray":
    from dlc_platform.catalog.videos import registered_video
    from dlc_platform.sessions.registration import require_unchanged
    from dlc_platform.video.frames import read_frames

    (file,) = [file for file in current_files(engine, session) if file.id == recording_file]
    require_unchanged(file)
    return read_frames(Path(file.path), [frame], registered_video(engine, str(file.video_id)).damage is None)[0]
