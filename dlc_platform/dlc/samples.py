"""Images of labels and evaluations for a person to look at; `plots` draws them.

If an image has a region of interest, the region is shown, as a network sees it, and points are in pixels of the region.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from dlc_platform.dlc.dataset import Dataset, load_dataset
from dlc_platform.dlc.engine import Engine
from dlc_platform.dlc.evaluation import Evaluation
from dlc_platform.dlc.images import read_image
from dlc_platform.dlc.labels import LabelTable
from dlc_platform.store import Store
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    import numpy as np

Points = dict[str, tuple[float, float]]
Keypoints = dict[str, tuple[float, float, float]]


def labelled_samples(
    labels: LabelTable, most: int, folders: Collection[str] | None = None
) -> "list[tuple[np.ndarray, Points]]":
    """Up to `most` labelled images, spread evenly over the folders (all of them by default), with their points."""
    import numpy as np

    images = labels.images if folders is None else labels.images[labels.images["folder"].isin(folders)]
    if len(images) > most:
        images = images.iloc[np.linspace(0, len(images) - 1, most).round().astype(int)]
    points = labels.points.set_index(["folder", "file"]).sort_index()
    samples = []
    for image in images.itertuples():
        own = points.loc[[(image.folder, image.file)]]
        picture = read_image(Path(str(image.path)))[..., ::-1]
        region = labels.regions.get(str(image.folder)) or Region(0, 0, picture.shape[1], picture.shape[0])
        if picture.shape[:2] != (region.height, region.width):
            picture = region.crop(picture)
        samples.append((picture, _points(own["bodypart"], own["x"] - region.x, own["y"] - region.y)))
    return samples


def first_look(engine: Engine, dataset: Dataset, most: int) -> "list[tuple[np.ndarray, Keypoints, str]]":
    """Up to `most` test images for a first look: the image, keypoints with their likelihoods, and the source of the
    image."""
    import numpy as np

    labels = dataset.labels()
    images = labels[labels["side"] == "test"].drop_duplicates("image")
    images = images.iloc[np.unique(np.linspace(0, len(images) - 1, min(len(images), most)).round().astype(int))]
    pictures = [dataset.picture(i, f) for i, f in zip(images["image"], images["file"], strict=True)]
    poses = engine.predict(pictures)[:, 0]
    return [
        (
            picture[..., ::-1],
            {part: (float(x), float(y), float(p)) for part, (x, y, p) in zip(engine.bodyparts, own, strict=True)},
            f"{folder}/{file}",
        )
        for picture, own, folder, file in zip(pictures, poses, images["folder"], images["file"], strict=True)
    ]


def worst_test_frames(
    evaluation: Evaluation, store: Store, most: int
) -> "list[tuple[np.ndarray, Points, Points, str]]":
    """The test images with the largest mean distance: image, labels, predictions, and where it came from."""
    dataset = load_dataset(store.path("datasets", evaluation.dataset_id))
    files = dataset.labels().drop_duplicates("image").set_index("image")
    predictions = evaluation.fair_predictions()
    test = predictions[predictions["side"] == "test"]
    samples = []
    for image in test.groupby("image")["distance_px"].mean().nlargest(most).index:
        own = test[test["image"] == image]
        row = files.loc[image]
        left, top = row["offset_x"], row["offset_y"]
        samples.append(
            (
                dataset.picture(image, row["file"])[..., ::-1],
                _points(own["bodypart"], own["x"] - left, own["y"] - top),
                _points(own["bodypart"], own["predicted_x"] - left, own["predicted_y"] - top),
                f"{row['folder']}/{row['file']}",
            )
        )
    return samples


def _points(bodyparts, x, y) -> Points:
    return {part: (float(a), float(b)) for part, a, b in zip(bodyparts, x, y, strict=True)}
