"""Training datasets: labelled images, frozen with the side of the split that each belongs to.

A dataset is a product of the store and needs nothing of the project that it came from. How a network sees it is
decided in `training`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlc_platform.dlc.labels import LabelTable
from dlc_platform.dlc.project import Project
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json
from dlc_platform.store import MANIFEST, Store

if TYPE_CHECKING:
    import pandas as pd

Side = Literal["train", "test"]
_LABELS = "labels.parquet"


@dataclass(frozen=True)
class Dataset:
    """A dataset of the store; `sessions` are the keys of the sessions that its images are known to come from."""

    id: str
    path: Path
    n_train: int
    n_test: int
    bodyparts: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]
    sessions: tuple[str, ...]

    def labels(self) -> pd.DataFrame:
        """The labels, sorted by image.

        Columns image (SHA-256 of the file), folder, file, session (null where unknown), side, bodypart, x, y (pixels;
        NaN where not labelled).
        """
        import pandas as pd

        return pd.read_parquet(self.path / _LABELS)

    def image_path(self, image: str, file: str) -> Path:
        """Where the copy of an image lies, from its columns `image` and `file`."""
        return self.path / "images" / f"{image}{Path(file).suffix.lower()}"


def side(image_sha256: str, seed: int, test_fraction: float) -> Side:
    """The side of the split, from the image's content and the seed alone.

    An image keeps its side whatever is labelled later, so two models of a project are compared on the same images.
    """
    digest = hashlib.sha256(f"{seed}:{image_sha256}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") / 2**64 < test_fraction else "train"


def make_dataset(
    project: Project, labels: LabelTable, seed: int, test_fraction: float, sessions: Mapping[str, str], store: Store
) -> Dataset:
    """Freeze labels and images as a product of kind ``datasets``.

    The identity is a hash of the images' bytes, their points and sides, the body parts and the skeleton. Names of
    folders and files, and the sessions, do not enter it.

    Parameters
    ----------
    sessions
        From a folder of ``labeled-data`` to the key of the session that its frames were taken from.

    Raises
    ------
    PlatformError
        When two images are byte for byte the same, or one side of the split is empty.
    """
    images = labels.images.sort_values("sha256", ignore_index=True)
    twice = images[images.duplicated("sha256", keep=False)]
    if len(twice):
        raise PlatformError(
            f"the images {' and '.join(twice['path'].iloc[:2])} are the same image, labelled twice",
            "Remove one of them from labeled-data and from its table",
        )
    images["side"] = [side(sha256, seed, test_fraction) for sha256 in images["sha256"]]
    images["session"] = [sessions.get(folder) for folder in images["folder"]]
    counts = images["side"].value_counts()
    for empty, advice in (("test", "Raise `test_fraction`"), ("train", "Lower `test_fraction`")):
        if empty not in counts:
            raise PlatformError(
                f"none of the {len(images)} labelled images of {project.path} is on the {empty} side of the split "
                f"(seed {seed}, test_fraction {test_fraction:g})",
                f"{advice} of the recipe, choose another seed, or label more frames",
            )
    table = images.merge(labels.points, on=["folder", "file"], validate="one_to_many")
    table = table.rename(columns={"sha256": "image"})
    table["session"] = table["session"].astype("string")
    identity = sha256_json(
        {
            "bodyparts": project.bodyparts,
            "skeleton": project.skeleton,
            "images": [
                [image, rows["side"].iloc[0], [_point(x, y) for x, y in zip(rows["x"], rows["y"], strict=True)]]
                for image, rows in table.groupby("image", sort=True)
            ],
        }
    )
    manifest: dict[str, Any] = {
        "bodyparts": project.bodyparts,
        "skeleton": project.skeleton,
        "task": project.task,
        "scorer": project.scorer,
        "project": project.path.name,
        "seed": seed,
        "test_fraction": test_fraction,
        "n_train": int(counts["train"]),
        "n_test": int(counts["test"]),
        "sessions": sorted(set(images["session"].dropna())),
    }

    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        for image in images.itertuples():
            copy = f"{image.sha256}{Path(str(image.file)).suffix.lower()}"
            shutil.copyfile(str(image.path), folder / "images" / copy)
        columns = ["image", "folder", "file", "session", "side", "bodypart", "x", "y"]
        table[columns].to_parquet(folder / _LABELS, index=False)

    return load_dataset(store.put("datasets", identity, manifest, write))


def load_dataset(path: Path) -> Dataset:
    """The dataset whose product directory is `path`."""
    manifest = json.loads((path / MANIFEST).read_text())
    return Dataset(
        id=path.name,
        path=path,
        n_train=manifest["n_train"],
        n_test=manifest["n_test"],
        bodyparts=tuple(manifest["bodyparts"]),
        skeleton=tuple((a, b) for a, b in manifest["skeleton"]),
        sessions=tuple(manifest["sessions"]),
    )


def _point(x: float, y: float) -> list[float] | None:
    return None if math.isnan(x) else [x, y]
