"""Training datasets: labelled images, frozen with the side of the split that each belongs to.

A dataset is a product of the store and needs nothing from the project that it came from. `training` decides how a
network sees it.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dlc_platform.dlc.images import read_image, sha256_pixels
from dlc_platform.dlc.labels import LabelTable
from dlc_platform.dlc.project import Project
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.manifests import DatasetManifest
from dlc_platform.store import Store, intact, opened
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Side = Literal["train", "test"]
_LABELS = "labels.parquet"
#: The columns of the pixels' SHA-256: of the project's file, and of the copy.
_PIXELS = ("pixels_sha256", "copy_pixels_sha256")
#: DeepLabCut names an image of a video by its frame: img0123.png.
_FRAME = re.compile(r"^[A-Za-z_-]*([0-9]+)\.[A-Za-z]+$")


@dataclass(frozen=True)
class Dataset:
    """A dataset of the store.

    Attributes
    ----------
    n_left_out
        The number of labelled images that are not in it, because they are too close to a test image, or the same
        picture.
    sessions
        The keys of the sessions that its images are known to come from.
    """

    id: str
    path: Path
    n_train: int
    n_test: int
    n_left_out: int
    bodyparts: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]
    sessions: tuple[str, ...]

    def labels(self) -> pd.DataFrame:
        """The labels, sorted by image.

        Columns image (SHA-256 of the project's file), folder, file, session (null where unknown), side, bodypart, x, y
        (pixels of the full picture; NaN where not labelled), offset_x, offset_y (where the first pixel of the copy lies
        in the full picture: other than 0 where a region was cropped).
        """
        return _labels(self.path).drop(columns=[*_PIXELS], errors="ignore")

    def images(self) -> pd.DataFrame:
        """One row for each image: image, folder, file, side and pixels.

        `pixels` is a frozenset of the SHA-256 of the picture's pixels, as `images.sha256_pixels` gives it: of the
        project's file and of the copy here, which are two where a region was cropped. Raises as `store.opened` does.
        """
        import pandas as pd

        images = _labels(self.path).drop_duplicates("image")
        if set(_PIXELS) <= set(images):
            pixels = [frozenset(own) for own in images[[*_PIXELS]].itertuples(index=False, name=None)]
        else:  # a dataset that was made before they were written down
            pixels = [frozenset([own]) for own in _pixels_of_copies(self)]
        return images[["image", "folder", "file", "side"]].assign(pixels=pd.Series(pixels, images.index, dtype=object))

    def image_path(self, image: str, file: str) -> Path:
        """The path of the copy of an image, or of its region, from its columns `image` and `file`."""
        # If a table names anything but a hash, its folder is not used.
        copy = self.path / "images" / f"{Path(image).name}{Path(file).suffix.lower()}"
        for path in (copy, copy.with_suffix(".png")):
            if path.is_file():
                return path
        with opened(self.path, f"images/{copy.name}") as path:
            return path

    def picture(self, image: str, file: str) -> np.ndarray:
        """The pixels of such a copy, as `images.read_image` gives them; raises as `store.opened` does."""
        copy = self.image_path(image, file)
        return read_image(intact(self.path, f"images/{copy.name}"))


def side(image_sha256: str, seed: int, test_fraction: float) -> Side:
    """The side of the split, which follows only from the image's content and the seed.

    An image keeps its side when more is labelled later, so two models of a project are compared on the same images.
    """
    digest = hashlib.sha256(f"{seed}:{image_sha256}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") / 2**64 < test_fraction else "train"


def make_dataset(
    project: Project,
    labels: LabelTable,
    seed: int,
    test_fraction: float,
    sessions: Mapping[str, str],
    store: Store,
    apart_frames: int = 0,
) -> Dataset:
    """Freeze labels and images as a product of kind ``datasets``.

    The identity is a hash of the images' bytes, their points, sides and regions, the body parts and the skeleton. Names
    of folders and files, and the sessions, do not enter it. An image with a region is stored cropped to it, one whose
    file says that it is to be turned is stored as it is shown, and their identity and their side stay those of the file
    in the project.

    Parameters
    ----------
    labels
        The labels; if there are regions, as `labels.within_regions` gives them.
    sessions
        The key of the session that the frames of a folder of ``labeled-data`` were taken from, by folder.
    apart_frames
        Training images that are at most so many frames from a test image of the same folder are left out, and so is a
        picture of the test side that was saved again under another name: near-duplicates never lie on both sides. No
        image changes sides for that.

    Raises
    ------
    PlatformError
        When two images are byte for byte the same, one side of the split is empty, or an image changes meanwhile.
    """
    images = labels.images.sort_values("sha256", ignore_index=True)
    twice = images[images.duplicated("sha256", keep=False)]
    if len(twice):
        raise PlatformError(
            f"the images {' and '.join(twice['path'].iloc[:2])} are the same image, labelled twice",
            "See which labels are right, and move the other image out of its folder of labeled-data, together with its "
            "line of the table",
        )
    images["side"] = [side(sha256, seed, test_fraction) for sha256 in images["sha256"]]
    test = images["side"] == "test"
    same = images["pixels_sha256"].isin(images.loc[test, "pixels_sha256"])
    close = ~test & (same | _within_frames(images, images[test], apart_frames))
    n_left_out = int(close.sum())
    images = images[~close].reset_index(drop=True)
    images["session"] = [sessions.get(folder) for folder in images["folder"]]
    counts = images["side"].value_counts()
    for empty, advice in (("test", "Raise `test_fraction`"), ("train", "Lower `test_fraction` or `apart_frames`")):
        if empty not in counts:
            raise PlatformError(
                f"none of the {len(labels.images)} labelled images of {project.path} is on the {empty} side of the "
                f"split (seed {seed}, test_fraction {test_fraction:g}, apart_frames {apart_frames})",
                f"{advice} of the recipe, choose another seed, or label more frames",
            )
    table = images.merge(labels.points, on=["folder", "file"], validate="one_to_many")
    table = table.rename(columns={"sha256": "image"})
    table["session"] = table["session"].astype("string")
    regions = [labels.regions.get(folder) for folder in table["folder"]]
    table["offset_x"] = [region.x if region else 0 for region in regions]
    table["offset_y"] = [region.y if region else 0 for region in regions]
    identity = sha256_json(
        {
            "bodyparts": project.bodyparts,
            "skeleton": project.skeleton,
            "images": [
                [
                    image,
                    rows["side"].iloc[0],
                    [_point(x, y) for x, y in zip(rows["x"], rows["y"], strict=True)],
                    *([region.as_dict()] if (region := labels.regions.get(rows["folder"].iloc[0])) else []),
                    # So that the dataset differs from an older one that did not store images as they are shown.
                    *(["turned"] if rows["is_turned"].iloc[0] else []),
                ]
                for image, rows in table.groupby("image", sort=True)
            ],
        }
    )
    manifest = DatasetManifest(
        bodyparts=list(project.bodyparts),
        skeleton=[list(pair) for pair in project.skeleton],
        task=project.task,
        scorer=project.scorer,
        project=project.path.name,
        seed=seed,
        test_fraction=test_fraction,
        apart_frames=apart_frames,
        n_train=int(counts["train"]),
        n_test=int(counts["test"]),
        n_left_out=n_left_out,
        sessions=sorted(set(images["session"].dropna())),
    )

    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        copies = {}
        for image in images.itertuples():
            path = Path(str(image.path))
            copies[image.sha256] = image.pixels_sha256
            copy = folder / "images" / f"{image.sha256}{path.suffix.lower()}"
            region = labels.regions.get(str(image.folder))
            if region is not None and (image.width, image.height) == (region.width, region.height):
                region = None  # cropped already
            if region is None and not image.is_turned:
                shutil.copyfile(path, copy)
            else:
                copies[image.sha256] = _write_as_shown(path, region, copy.with_suffix(".png"))
            if sha256_file(path if region or image.is_turned else copy) != image.sha256:
                raise PlatformError(f"{path} changed while it was read", "Make the dataset when nobody writes there")
        columns = ["image", "folder", "file", "session", "side", "bodypart", "x", "y", "offset_x", "offset_y", *_PIXELS]
        table.assign(copy_pixels_sha256=table["image"].map(copies))[columns].to_parquet(folder / _LABELS, index=False)

    # The same images may have been frozen before, when other images or none were left out.
    return replace(load_dataset(store.put("datasets", identity, manifest.said(), write)), n_left_out=n_left_out)


def load_dataset(path: Path) -> Dataset:
    """The dataset in the product directory `path`."""
    manifest = DatasetManifest.read(path)
    return Dataset(
        id=path.name,
        path=path,
        n_train=manifest.n_train,
        n_test=manifest.n_test,
        n_left_out=manifest.n_left_out,
        bodyparts=tuple(manifest.bodyparts),
        skeleton=tuple((a, b) for a, b in manifest.skeleton),
        sessions=tuple(manifest.sessions),
    )


def _labels(dataset: Path) -> pd.DataFrame:
    """The columns of `Dataset.labels`, and those of the pixels where they were written down."""
    import pandas as pd

    with opened(dataset, _LABELS, whole=True) as file:
        labels = pd.read_parquet(file)
    if "offset_x" not in labels:  # a dataset that was made before there were regions
        labels[["offset_x", "offset_y"]] = 0
    return labels


@lru_cache(maxsize=16)
def _pixels_of_copies(dataset: Dataset) -> tuple[str, ...]:
    """The SHA-256 of the pixels of each image's copy, in the order of the labels; products never change."""
    images = _labels(dataset.path).drop_duplicates("image")
    with ThreadPoolExecutor() as pool:
        return tuple(
            pool.map(
                lambda image, file: sha256_pixels(dataset.picture(image, file)),
                images["image"],
                images["file"],
            )
        )


def _write_as_shown(image: Path, region: Region | None, copy: Path) -> str:
    """Write an image or a region of it, with exactly the pixels that DeepLabCut reads there, in their order.

    Returns
    -------
    str
        The SHA-256 of these pixels.
    """
    import cv2

    picture = read_image(image)
    picture = region.crop(picture) if region else picture
    copy.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return sha256_pixels(picture)


def taught_images(images: pd.DataFrame, taught: pd.DataFrame, apart_frames: int) -> set[str]:
    """The images that a model has seen in training, or near-duplicates of these.

    Those are the images that it was trained on, those of the same pixels or the same name (an image that was saved
    again has other bytes), and those of the same video that are at most so many frames from one that it was trained on.

    Parameters
    ----------
    images, taught
        As `Dataset.images` gives them: the images in question, and those that the model was trained on.
    """
    pixels = frozenset[str]().union(*taught["pixels"])
    again = _names(images).isin(_names(taught)) | ~images["pixels"].map(pixels.isdisjoint).astype(bool)
    seen = images["image"].isin(taught["image"]) | again | _within_frames(images, taught, apart_frames)
    return set(images.loc[seen, "image"])


def _names(images: pd.DataFrame) -> pd.Series:
    """The name of each image, with its folder and without its ending."""
    return images["folder"] + "/" + images["file"].map(lambda file: Path(str(file)).stem)


def _within_frames(images: pd.DataFrame, others: pd.DataFrame, apart_frames: int) -> pd.Series:
    """True for images that are at most so many frames from one of the others, in the same folder; always false for 0.

    Images whose names do not tell their frame are close to no other.
    """
    import numpy as np
    import pandas as pd

    close = pd.Series(False, index=images.index)
    if apart_frames:
        frames, other_frames = (
            pd.to_numeric(table["file"].astype("string").str.extract(_FRAME, expand=False)).dropna()
            for table in (images, others)
        )
        by_folder = other_frames.groupby(others["folder"])
        for folder, own in frames.groupby(images["folder"]):
            if folder in by_folder.groups:
                distances = np.abs(own.to_numpy()[:, None] - by_folder.get_group(folder).to_numpy())
                close[own.index] = (distances <= apart_frames).any(axis=1)
    return close


def _point(x: float, y: float) -> list[float] | None:
    return None if math.isnan(x) else [x, y]
