"""Evaluations written by hand: products of the store with the distances that a test wants."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dlc_platform.dlc.evaluation import Evaluation, load_evaluation
from dlc_platform.store import Store


def write_evaluation(
    store: Store,
    name: str,
    model: str,
    distances: Mapping[str, Sequence[float]],
    images: Sequence[str] | None = None,
    x: float = 10.0,
    unknown: Sequence[str] = (),
    likelihood: float | Sequence[float] = 0.9,
    sessions: Sequence[str | None] | None = None,
    trained_on: Sequence[str] = ("taught",),
    apart_frames: int = 0,
    missed: Sequence[tuple[str, int]] = (),
) -> Evaluation:
    """An evaluation of a model on test images and one training image, in the store.

    Each image is the file of its name in the folder ``video``.

    Parameters
    ----------
    distances
        For each body part how far off it is on each test image; NaN where it is not labelled.
    images
        The test images; numbered by default.
    x
        Where every label lies.
    unknown
        Body parts that the dataset labels, too, and the model does not know.
    trained_on
        The images on the training side of the model's own dataset; none make it an imported model.
    apart_frames
        That of the model's own dataset.
    missed
        Keypoints to which the model gives no position: body parts, and places among the test images.
    """
    count = len(next(iter(distances.values())))
    test = pd.DataFrame(
        {
            "image": list(images or [f"image {number}" for number in range(count)]),
            "side": "test",
            "session": pd.Series(list(sessions or [None] * count), dtype="string"),
            "likelihood": likelihood,
        }
    )
    taught = test.iloc[:1].assign(image="taught", side="train")
    tables = []
    for bodypart, off in distances.items():
        far = np.asarray(off, float)
        for rows, own in ((test, far), (taught, np.array([1.0]))):
            label = np.where(np.isnan(own), np.nan, x)
            place = rows.assign(bodypart=bodypart, x=label, y=label * 2, predicted_x=x + own, predicted_y=2 * x)
            # A network predicts every body part, labelled or not.
            tables.append(place.assign(predicted_x=place["predicted_x"].fillna(0.0), distance_px=own))
    nothing = {"predicted_x": np.nan, "predicted_y": np.nan, "likelihood": np.nan, "distance_px": np.nan}
    tables += [test.assign(bodypart=bodypart, x=x, y=2 * x, **nothing) for bodypart in unknown]
    predictions = pd.concat(tables, ignore_index=True).assign(folder="video")
    predictions["file"] = predictions["image"] + ".png"
    for bodypart, place in missed:
        here = (predictions["bodypart"] == bodypart) & (predictions["image"] == test["image"].iloc[place])
        predictions.loc[here, list(nothing)] = np.nan

    def put_dataset(identity: str, labels: pd.DataFrame, apart_frames: int = 0) -> None:
        labels = labels.assign(pixels_sha256=labels["image"], copy_pixels_sha256=labels["image"])
        counts = labels["side"].value_counts()
        manifest = {f"n_{side}": int(counts.get(side, 0)) for side in ("train", "test")}
        manifest |= {
            "bodyparts": [*distances],
            "skeleton": [],
            "task": "t",
            "sessions": [],
            "apart_frames": apart_frames,
        }
        store.put(
            "datasets", identity, manifest, lambda folder: labels.to_parquet(folder / "labels.parquet", index=False)
        )

    dataset = None
    if trained_on:
        dataset = f"trained {model}"
        labels = pd.DataFrame({"image": list(trained_on), "side": "train", "folder": "video"})
        put_dataset(dataset, labels.assign(file=labels["image"] + ".png"), apart_frames)
    put_dataset(f"tested {name}", predictions.drop_duplicates("image")[["image", "side", "folder", "file"]])
    said = {"dataset": dataset, "bodyparts": [*distances], "scorer": "s"}
    store.put("models", model, said, lambda folder: None)

    def write(folder: Path) -> None:
        predictions.to_parquet(folder / "predictions.parquet", index=False)

    manifest = {"model": model, "dataset": f"tested {name}", "seconds": 1.0}
    store.put("evaluations", name, manifest, write)
    return load_evaluation(store, name)
