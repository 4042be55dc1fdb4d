"""Evaluation: the distances between a model's keypoints and the labels of a dataset.

The one definition of a model's test error is here: it is over the images on the test side of a dataset that the model
was not trained on. A dataset that is newer than the model, or of another split, has test images that it was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.dataset import load_dataset, taught_images
from dlc_platform.dlc.engine import load_engine
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.exports import images_to_compare
from dlc_platform.dlc.images import read_image
from dlc_platform.dlc.parameters import has_several_animals
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json
from dlc_platform.manifests import DatasetManifest, EvaluationManifest, ModelManifest
from dlc_platform.pose.confidence import fraction_confident
from dlc_platform.store import Store, opened, require_intact

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
_PREDICTIONS = "predictions.parquet"
_AT_ONCE = 64
_FIGURES = (
    "keypoints",
    "missed",
    "rmse_px",
    "rmse_confident_px",
    "mean_px",
    "median_px",
    "mean_likelihood",
    "fraction_confident",
)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the store.

    Attributes
    ----------
    errors
        The result of `summarise_errors` for `fair_predictions`, with the given cutoff.
    test_images
        SHA-256 of the images on the dataset's test side that the model was not trained on, nor on the same picture
        saved again, nor on a frame that `apart_frames` of either dataset calls too close.
    taught_images
        The number of images on the dataset's test side that it was trained on in that sense.
    bodyparts
        Those of the dataset that the model knows.
    training_known
        False if it is not known what the model was trained on, because it was imported, or the model itself is not in
        the store: then `test_images` are all those of the test side, and it may have been trained on them.
    images
        The number of images that the model ran on, on both sides of the split.
    seconds
        The wall time of the run, without the loading of the model.
    """

    id: str
    path: Path
    model_id: str
    dataset_id: str
    errors: pd.DataFrame
    test_images: frozenset[str]
    taught_images: int
    training_known: bool
    bodyparts: tuple[str, ...]
    images: int
    seconds: float
    _trained_on: frozenset[str] = field(repr=False)

    def predictions(self) -> pd.DataFrame:
        """One row for each image and body part.

        Columns image (SHA-256), folder, file, session, side, bodypart, x, y (the label; NaN where there is none),
        offset_x, offset_y (as in `Dataset.labels`), predicted_x, predicted_y, likelihood (NaN where the model does not
        know the body part), distance_px (NaN without a label or a prediction). Pixels of the full picture.
        """
        return _predictions(self.path)

    def fair_predictions(self) -> pd.DataFrame:
        """The rows of `predictions`, with the sides that the model's own training gives, not the dataset's split.

        The side is ``test`` for the `test_images`, and ``train`` for the images that the model is known to have been
        trained on. Other images are left out. The column `missed` is True for a labelled keypoint of a body part that
        the model knows, and to which it gives no position, as a top-down model does if it sees no animal.
        """
        return _fair(self.predictions(), self.bodyparts, self.test_images, self._trained_on)


def evaluate_model(
    model_path: Path, dataset_path: Path, cutoff: float, store: Store, device: str | None = None
) -> Evaluation:
    """Run a model on every image of a dataset and store the predictions as a product of kind ``evaluations``.

    If the two differ in their body parts, the model is evaluated on those that they share. The identity covers the
    model and the dataset. The cutoff only decides which keypoints `errors` counts as confident, so it belongs neither
    to the identity nor to the product.

    Raises
    ------
    PlatformError
        When the model is for several animals, or the model and the dataset have no body part in common.
    """
    if reason := not_evaluable(model_path):
        raise PlatformError(
            f"the model {model_path.name} cannot be evaluated: {reason}",
            "Evaluate it with DeepLabCut in its own project; the import keeps what DeepLabCut reported there",
        )
    dataset = load_dataset(dataset_path)
    require_intact(dataset_path)
    bodyparts = ModelManifest.read(model_path).bodyparts
    if not set(bodyparts) & set(dataset.bodyparts):
        raise PlatformError(
            f"the model {model_path.name} predicts {', '.join(bodyparts)}, and the dataset {dataset.id} labels "
            f"{', '.join(dataset.bodyparts)}",
            "Evaluate a model on a dataset of its own project",
        )
    identity = sha256_json({"model": model_path.name, "dataset": dataset.id})
    if store.has("evaluations", identity):
        return load_evaluation(store, identity, cutoff)

    import numpy as np
    import pandas as pd

    labels = dataset.labels()
    images = labels.drop_duplicates("image")
    engine = load_engine(model_path, store, lambda: images_to_compare(dataset), device)
    started = time.monotonic()
    # A few at a time: all images of a dataset may not fit into memory.
    files = [dataset.image_path(image, file) for image, file in zip(images["image"], images["file"], strict=True)]
    poses = np.concatenate(
        [
            engine.predict([read_image(file) for file in files[first : first + _AT_ONCE]])
            for first in range(0, len(files), _AT_ONCE)
        ]
    )[:, 0]
    seconds = time.monotonic() - started
    index = pd.MultiIndex.from_product([images["image"], bodyparts], names=["image", "bodypart"])
    columns = pd.Index(["predicted_x", "predicted_y", "likelihood"])
    predicted = pd.DataFrame(poses.reshape(-1, 3), index, columns)
    table = labels.merge(predicted.reset_index(), "left", on=["image", "bodypart"], validate="one_to_one")
    # The network has seen the copies, which may be regions of the full pictures.
    table["predicted_x"] += table["offset_x"]
    table["predicted_y"] += table["offset_y"]
    table["distance_px"] = np.hypot(table["predicted_x"] - table["x"], table["predicted_y"] - table["y"])
    manifest = EvaluationManifest(
        model=model_path.name,
        dataset=dataset.id,
        versions=dict(versions()),
        backend=engine.backend,
        device=engine.device,
        seconds=seconds,
    )

    def write(folder: Path) -> None:
        table.to_parquet(folder / _PREDICTIONS, index=False)

    store.put("evaluations", identity, manifest.said(), write)
    return load_evaluation(store, identity, cutoff)


def not_evaluable(model_path: Path) -> str | None:
    """The reason why a stored model cannot be compared with the labels of a dataset; None if it can."""
    if has_several_animals(model_path):
        return "it is a model of several animals, and the labels of datasets are those of one"
    return None


def _predictions(path: Path) -> pd.DataFrame:
    import pandas as pd

    with opened(path, _PREDICTIONS, whole=True) as file:
        return pd.read_parquet(file)


def load_evaluation(store: Store, identity: str, cutoff: float = 0.6) -> Evaluation:
    """An evaluation of the store, with the images that its model was trained on.

    Raises
    ------
    PlatformError
        When it, its dataset or the dataset that its model was trained on cannot be read: without them its test images
        are not known.
    """
    path = store.path("evaluations", identity)
    manifest = EvaluationManifest.read(path)
    predictions = _predictions(path)
    images = predictions.drop_duplicates("image")
    test = set(images.loc[images["side"] == "test", "image"])
    taught = _taught(manifest.model, manifest.dataset, store)
    seen, trained_on = taught or (set(), set())
    found = predictions[predictions["predicted_x"].notna()]
    model = ModelManifest.read(store.path("models", manifest.model)) if store.has("models", manifest.model) else None
    known = set(found["bodypart"] if model is None else model.bodyparts)
    bodyparts = tuple(part for part in predictions["bodypart"].drop_duplicates() if part in known)
    fair = frozenset(test - seen)
    return Evaluation(
        id=identity,
        path=path,
        model_id=manifest.model,
        dataset_id=manifest.dataset,
        errors=summarise_errors(_fair(predictions, bodyparts, fair, trained_on), cutoff),
        test_images=fair,
        taught_images=len(test & seen),
        training_known=taught is not None,
        bodyparts=bodyparts,
        images=len(images),
        seconds=manifest.seconds,
        _trained_on=frozenset(trained_on),
    )


def _taught(model: str, dataset: str, store: Store) -> tuple[set[str], set[str]] | None:
    """The images of a dataset that a model has seen in training, or near-duplicates of them, and its own; None if
    unknown."""
    own = ModelManifest.read(store.path("models", model)).dataset if store.has("models", model) else None
    if own is None:
        return None
    images, labelled = (load_dataset(store.path("datasets", one)).images() for one in (dataset, own))
    taught = labelled[labelled["side"] == "train"]
    apart_frames = max(DatasetManifest.read(store.path("datasets", one)).apart_frames for one in (own, dataset))
    return taught_images(images, taught, apart_frames), set(taught["image"])


def _fair(
    predictions: pd.DataFrame, bodyparts: Collection[str], test: Collection[str], trained_on: Collection[str]
) -> pd.DataFrame:
    is_test, is_train = predictions["image"].isin(test), predictions["image"].isin(trained_on)
    side = is_test.map({True: "test", False: "train"})
    missed = predictions["x"].notna() & predictions["predicted_x"].isna() & predictions["bodypart"].isin(bodyparts)
    return predictions.assign(side=side, missed=missed)[is_test | is_train]


def summarise_errors(predictions: pd.DataFrame, cutoff: float) -> pd.DataFrame:
    """Errors by side and body part, and for all body parts of a side together (bodypart ``all``).

    Parameters
    ----------
    predictions
        As `Evaluation.fair_predictions` gives them.

    Returns
    -------
    DataFrame
        Columns side, bodypart, keypoints (the number of labelled ones), missed (the number of them without a position
        from the model), rmse_px, rmse_confident_px, mean_px, median_px, mean_likelihood, fraction_confident. Errors and
        likelihoods are those of the keypoints that were not missed, and NaN over none. Confident keypoints have a
        likelihood of `cutoff` or more; a missed one is not confident.

    Notes
    -----
    ``rmse_px`` is the root of the mean of the squared Euclidean distances between label and prediction. What
    DeepLabCut calls RMSE (``deeplabcut.core.metrics``) is ``mean_px``, the plain mean of the distances, which is never
    larger.
    """
    import pandas as pd

    rows = []
    for side in ("train", "test"):
        mine = predictions[predictions["side"] == side]
        rows.append({"side": side, "bodypart": ALL, **_figures(mine, cutoff)})
        for bodypart in predictions["bodypart"].drop_duplicates():
            own = mine[mine["bodypart"] == bodypart]
            rows.append({"side": side, "bodypart": bodypart, **_figures(own, cutoff)})
    return pd.DataFrame(rows)


def summarise_by_session(predictions: pd.DataFrame, cutoff: float) -> pd.DataFrame:
    """Errors by side and session, over all body parts; images whose session is not known are left out.

    Returns
    -------
    DataFrame
        Columns side and session, and those of `summarise_errors` from keypoints on.
    """
    import pandas as pd

    known = predictions[predictions["session"].notna()]
    rows = [
        {"side": side, "session": session, **_figures(own, cutoff)}
        for side in ("train", "test")
        for session, own in known[known["side"] == side].groupby("session", sort=True)
    ]
    return pd.DataFrame(rows, columns=pd.Index(["side", "session", *_FIGURES]))


def _figures(predictions: pd.DataFrame, cutoff: float) -> dict[str, float]:
    found = predictions[predictions["distance_px"].notna()]
    missed = int(predictions["missed"].sum())
    distances, likelihoods = found["distance_px"], found["likelihood"]
    confident = distances[likelihoods >= cutoff]
    keypoints = len(found) + missed
    figures = (
        keypoints,
        missed,
        float((distances**2).mean() ** 0.5),
        float((confident**2).mean() ** 0.5),
        float(distances.mean()),
        float(distances.median()),
        float(likelihoods.mean()),
        float(fraction_confident(len(confident), keypoints)),
    )
    return dict(zip(_FIGURES, figures, strict=True))
