"""The judgement of a model version by its own test images (is it hopeless?), and what to do about a bad one.

`pose.hopeless` computes the judgement, by the floors of lab.yaml. `estimates.quality_gate` judges a version's poses of
sessions.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from dlc_platform.catalog.evaluations import evaluation_of
from dlc_platform.catalog.models import model_version
from dlc_platform.errors import PlatformError
from dlc_platform.faults import machine_fault
from dlc_platform.pose import hopeless
from dlc_platform.pose.hopeless import UNTESTED, ModelJudgement, judge_model
from dlc_platform.pose.reference import Reference, reference_from_labels
from dlc_platform.settings.promotion import ModelFloors, ModelRules
from dlc_platform.store import Store

if TYPE_CHECKING:
    import pandas as pd

#: The errors that reading a product of the store may raise.
UNREAD = (PlatformError, OSError, ValueError, KeyError)
#: The remedy for a hopeless version in production.
BETTER_MODEL = (
    "Label more frames, train longer and promote that version; or estimate single sessions with this one: "
    "`dlc-platform run HOME pose_estimates --partition SESSION`"
)


def judge_version(engine: Engine, store: Store, model_id: str, rules: ModelRules) -> ModelJudgement:
    """Judge a version by its test images, as `reference_of` does; nothing is read a second time.

    Files that cannot be read now, for whatever reason, stop neither the sensor nor other projects: the judgement says
    so.
    """
    model = model_version(engine, model_id)
    evaluation = None if model is None else evaluation_of(engine, model.id)
    if model is None or evaluation is None:
        return UNTESTED
    dataset_id = model.dataset_id or evaluation.dataset_id
    try:
        return _judge_evaluation(store.root, dataset_id, evaluation.id, rules.cutoff, model_floors(rules.hopeless))
    except UNREAD as error:
        return unread(machine_fault(error) or error, store)


def what_to_do(judgement: ModelJudgement) -> str:
    """The remedy if the production model does not track sessions by itself: the way to have them tracked again."""
    if judgement.problem is None:
        return BETTER_MODEL
    remedy = judgement.problem.remedy
    return remedy if "goes on by itself" in remedy else f"{remedy}; then it goes on by itself"


def unread(error: Exception, store: Store) -> ModelJudgement:
    """The judgement of a version whose evaluation cannot be read because of `error`."""
    if not isinstance(error, PlatformError):
        told = " ".join(str(error).split()) or type(error).__name__
        error = PlatformError(f"the store {store.root} cannot be read: {told}", "Look with `dlc-platform verify HOME`")
    return ModelJudgement.unread(error)


@lru_cache(maxsize=256)
def _judge_evaluation(
    root: Path, dataset_id: str, evaluation_id: str, cutoff: float, floors: hopeless.Floors
) -> ModelJudgement:
    """Judge one evaluation. Products never change, so each is read only once."""
    store = Store(root)
    size_px = labels_say(store, dataset_id).size_px
    return judge_model(predictions_on_test_images(store, evaluation_id), size_px, cutoff, floors)


def labels_say(store: Store, dataset_id: str) -> Reference:
    """The reference that the training labels of a dataset give for poses."""
    from dlc_platform.dlc.dataset import load_dataset

    dataset = load_dataset(store.path("datasets", dataset_id))
    labels = dataset.labels()
    return reference_from_labels(labels[labels["side"] == "train"], dataset.skeleton)


def predictions_on_test_images(store: Store, evaluation_id: str) -> "pd.DataFrame":
    """The predictions of an evaluation on the test images that its model was not trained on."""
    from dlc_platform.dlc.evaluation import load_evaluation

    predictions = load_evaluation(store, evaluation_id).fair_predictions()
    return predictions[predictions["side"] == "test"]


def model_floors(floors: ModelFloors) -> hopeless.Floors:
    """The floors of lab.yaml, as `pose.hopeless` takes them."""
    return hopeless.Floors(**floors.model_dump())
