"""Evaluation: how far a model's keypoints lie from the labels of a dataset, on both sides of the frozen split."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.dataset import load_dataset
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.runner import load_runner
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json
from dlc_platform.store import MANIFEST, Store

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
_PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the store; `errors` is what `summarise_errors` gives for the cutoff that was asked for."""

    id: str
    path: Path
    model_id: str
    dataset_id: str
    errors: pd.DataFrame

    def predictions(self) -> pd.DataFrame:
        """One row for each image and body part.

        Columns image (SHA-256), folder, file, session, side, bodypart, x, y (the label; NaN where there is none),
        predicted_x, predicted_y, likelihood, distance_px (NaN without a label). Pixels of the full image.
        """
        import pandas as pd

        return pd.read_parquet(self.path / _PREDICTIONS)


def evaluate_model(
    model_path: Path, dataset_path: Path, cutoff: float, store: Store, device: str | None = None, batch_size: int = 8
) -> Evaluation:
    """Run a model on every image of a dataset and store the predictions as a product of kind ``evaluations``.

    The identity is that of the model and the dataset. The cutoff only decides what `errors` counts as confident, so it
    belongs to neither the identity nor the product.

    Raises
    ------
    PlatformError
        When the model and the dataset differ in their body parts.
    """
    dataset = load_dataset(dataset_path)
    bodyparts = json.loads((model_path / MANIFEST).read_text())["bodyparts"]
    if tuple(bodyparts) != dataset.bodyparts:
        raise PlatformError(
            f"the model {model_path.name} predicts {', '.join(bodyparts)}, and the dataset {dataset.id} labels "
            f"{', '.join(dataset.bodyparts)}",
            "Evaluate a model on a dataset of its own project",
        )
    identity = sha256_json({"model": model_path.name, "dataset": dataset.id})
    if store.has("evaluations", identity):
        return load_evaluation(store.path("evaluations", identity), cutoff)

    import numpy as np
    import pandas as pd

    started = time.monotonic()
    labels = dataset.labels()
    images = labels.drop_duplicates("image")
    paths = [str(dataset.image_path(i, f)) for i, f in zip(images["image"], images["file"], strict=True)]
    runner, used_device = load_runner(model_path, batch_size, device)
    poses = np.stack([prediction["bodyparts"][0, :, :3] for prediction in runner.inference(paths)])
    index = pd.MultiIndex.from_product([images["image"], dataset.bodyparts], names=["image", "bodypart"])
    columns = pd.Index(["predicted_x", "predicted_y", "likelihood"])
    predicted = pd.DataFrame(poses.reshape(-1, 3), index, columns)
    table = labels.merge(predicted.reset_index(), on=["image", "bodypart"], validate="one_to_one")
    table["distance_px"] = np.hypot(table["predicted_x"] - table["x"], table["predicted_y"] - table["y"])
    manifest = {
        "model": model_path.name,
        "dataset": dataset.id,
        "versions": versions(),
        "device": used_device,
        "seconds": time.monotonic() - started,
    }
    path = store.put(
        "evaluations", identity, manifest, lambda folder: table.to_parquet(folder / _PREDICTIONS, index=False)
    )
    return load_evaluation(path, cutoff)


def load_evaluation(path: Path, cutoff: float = 0.6) -> Evaluation:
    """The evaluation whose product directory is `path`."""
    import pandas as pd

    manifest = json.loads((path / MANIFEST).read_text())
    errors = summarise_errors(pd.read_parquet(path / _PREDICTIONS), cutoff)
    return Evaluation(path.name, path, manifest["model"], manifest["dataset"], errors)


def summarise_errors(predictions: pd.DataFrame, cutoff: float) -> pd.DataFrame:
    """Errors by side and body part, and for all body parts of a side together (bodypart ``all``).

    Returns
    -------
    DataFrame
        Columns side, bodypart, keypoints (how many are labelled), rmse_px, rmse_confident_px, mean_px, median_px,
        mean_likelihood, fraction_confident. Confident keypoints have a likelihood of `cutoff` or more; figures over no
        keypoint are NaN.

    Notes
    -----
    ``rmse_px`` is the root of the mean of the squared Euclidean distances between label and prediction. What
    DeepLabCut calls RMSE (``deeplabcut.core.metrics``) is ``mean_px``, the plain mean of the distances, which is never
    larger.
    """
    import numpy as np
    import pandas as pd

    labelled = predictions[predictions["distance_px"].notna()]
    bodyparts = [ALL, *predictions["bodypart"].drop_duplicates()]
    rows = []
    for side in ("train", "test"):
        for bodypart in bodyparts:
            mine = labelled[(labelled["side"] == side) & ((labelled["bodypart"] == bodypart) | (bodypart == ALL))]
            distances, likelihoods = pd.Series(mine["distance_px"]), pd.Series(mine["likelihood"])
            confident = distances[likelihoods >= cutoff]
            rows.append(
                {
                    "side": side,
                    "bodypart": bodypart,
                    "keypoints": len(mine),
                    "rmse_px": float(np.sqrt((distances**2).mean())),
                    "rmse_confident_px": float(np.sqrt((confident**2).mean())),
                    "mean_px": float(distances.mean()),
                    "median_px": float(distances.median()),
                    "mean_likelihood": float(likelihoods.mean()),
                    "fraction_confident": len(confident) / len(mine) if len(mine) else float("nan"),
                }
            )
    return pd.DataFrame(rows)
