import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dlc_platform.dlc.dataset import Dataset, load_dataset, make_dataset, side
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import read_project
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.store import Store

OFFSETS = ["offset_x", "offset_y"]


def make(
    path: Path, store: Path, seed: int = 1, fraction: float = 0.25, sessions: dict | None = None, apart: int = 0
) -> Dataset:
    project = read_project(path)
    return make_dataset(project, read_labels(project), seed, fraction, sessions or {}, Store(store), apart)


def sides(dataset: Dataset) -> dict[str, str]:
    images = dataset.labels().drop_duplicates("image")
    return dict(zip(images["image"], images["side"], strict=True))


def test_the_split_follows_from_content_seed_and_fraction():
    images = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    first = [side(image, 7, 0.2) for image in images]
    assert first == [side(image, 7, 0.2) for image in images]
    assert first != [side(image, 8, 0.2) for image in images]
    assert first.count("test") / 2000 == pytest.approx(0.2, abs=0.03)
    # A larger fraction only moves images to the test side.
    larger = [side(image, 7, 0.4) for image in images]
    assert all(b == "test" for a, b in zip(first, larger, strict=True) if a == "test")


def test_an_image_never_changes_side_as_the_project_grows(tmp_path: Path, make_project: Callable[..., Path]):
    small = make(make_project(tmp_path / "small", 12), tmp_path / "store")
    # The same seed draws the same first frames.
    large = make(make_project(tmp_path / "large", 20), tmp_path / "store")
    assert len(sides(small)) == 12 and len(sides(large)) == 20
    assert sides(small).items() <= sides(large).items()
    assert small.id != large.id


def frames(dataset: Dataset) -> dict[int, str]:
    """The side of each image by the number in its name."""
    images = dataset.labels().drop_duplicates("image")
    return {int(file[3:6]): side for file, side in zip(images["file"], images["side"], strict=True)}


def test_frames_beside_a_test_frame_are_not_trained_on(tmp_path: Path, make_project: Callable[..., Path]):
    project = make_project(tmp_path / "p", 30)
    everything = frames(make(project, tmp_path / "store"))
    test = {number for number, side in everything.items() if side == "test"}
    apart = make(project, tmp_path / "store", apart=2)
    kept = frames(apart)
    close = {
        number for number, side in everything.items() if side == "train" and min(abs(number - t) for t in test) <= 2
    }
    assert close and set(kept) == set(everything) - close
    assert kept.items() <= everything.items()
    assert apart.n_left_out == len(close) and apart.n_train + apart.n_test == 30 - len(close)
    assert load_dataset(apart.path) == apart
    assert json.loads((apart.path / "manifest.json").read_text())["apart_frames"] == 2
    assert {path.stem for path in (apart.path / "images").iterdir()} == set(sides(apart))


def test_added_labels_move_no_image_if_neighbours_are_left_out(tmp_path: Path, make_project: Callable[..., Path]):
    """A training image may be left out when a neighbour is labelled that is a test image; it never becomes one."""
    small = sides(make(make_project(tmp_path / "small", 20), tmp_path / "store", apart=1))
    large = sides(make(make_project(tmp_path / "large", 40), tmp_path / "store", apart=1))
    assert all(large.get(image, "train") == side for image, side in small.items())
    assert {image for image, side in small.items() if side == "test"} <= set(large)


def test_only_frames_of_one_video_are_neighbours(tmp_path: Path, make_project: Callable[..., Path]):
    project = make_project(tmp_path / "p", 20)
    make_project(tmp_path / "other", 20, seed=5, folder="video2")
    (tmp_path / "other" / "labeled-data" / "video2").rename(project / "labeled-data" / "video2")
    images = make(project, tmp_path / "store").labels().drop_duplicates("image")
    close = 0
    for _, own in images.groupby("folder"):
        numbers = own["file"].str[3:6].astype(int)
        test = set(numbers[own["side"] == "test"])
        close += sum(bool({number - 1, number + 1} & test) for number in numbers[own["side"] == "train"])
    assert make(project, tmp_path / "store", apart=1).n_left_out == close > 0


def test_images_without_a_frame_in_their_name_are_never_left_out(tmp_path: Path, make_project: Callable[..., Path]):
    project = make_project(tmp_path / "p", 12)
    folder = project / "labeled-data" / "video1"
    table = (folder / "CollectedData_tester.csv").read_text()
    for image in sorted(folder.glob("*.png")):
        name = f"frame-{image.stem[3:]}-cropped.png"
        table = table.replace(image.name, name)
        image.rename(folder / name)
    (folder / "CollectedData_tester.csv").write_text(table)
    dataset = make(project, tmp_path / "store", apart=1000)
    assert dataset.n_left_out == 0 and dataset.n_train + dataset.n_test == 12


def test_nothing_to_train_on_is_left(tmp_path: Path, make_project: Callable[..., Path]):
    with pytest.raises(PlatformError, match=r"on the train side .* apart_frames 1000") as error:
        make(make_project(tmp_path / "p", 12), tmp_path / "store", apart=1000)
    assert "Lower `test_fraction` or `apart_frames`" in error.value.remedy


def test_identity_is_content_not_names(tmp_path: Path, make_project: Callable[..., Path]):
    first = make(make_project(tmp_path / "first", 12), tmp_path / "store1")
    second = make(
        make_project(tmp_path / "second", 12, folder="renamed"), tmp_path / "store2", sessions={"renamed": "s"}
    )
    assert first.id == second.id
    table = tmp_path / "first" / "labeled-data" / "video1" / "CollectedData_tester.csv"
    lines = table.read_text().splitlines()
    cells = lines[3].split(",")
    table.write_text("\n".join([*lines[:3], ",".join([cells[0], "40.5", *cells[2:]]), *lines[4:]]))
    assert make(tmp_path / "first", tmp_path / "store1").id != first.id  # one label moved
    assert make(tmp_path / "second", tmp_path / "store2", seed=2).id != first.id  # another split


def test_a_dataset_needs_nothing_of_its_project(tiny_dataset: Dataset, tiny_project: Path):
    labels = tiny_dataset.labels()
    assert list(labels.columns) == ["image", "folder", "file", "session", "side", "bodypart", "x", "y", *OFFSETS]
    assert tiny_dataset.n_train + tiny_dataset.n_test == 24 and len(labels) == 48 and tiny_dataset.n_left_out == 0
    assert tiny_dataset.sessions == ("sub-1_ses-1",) and set(labels["session"]) == {"sub-1_ses-1"}
    assert tiny_dataset.bodyparts == ("nose", "tail") and tiny_dataset.skeleton == (("nose", "tail"),)
    for row in labels.drop_duplicates("image").itertuples():
        assert sha256_file(tiny_dataset.image_path(str(row.image), str(row.file))) == row.image
    assert load_dataset(tiny_dataset.path) == tiny_dataset
    manifest = json.loads((tiny_dataset.path / "manifest.json").read_text())
    assert (manifest["task"], manifest["scorer"], manifest["project"]) == ("tiny", "tester", tiny_project.name)
    assert str(tiny_project) not in (tiny_dataset.path / "manifest.json").read_text()


def test_a_folder_without_a_session_has_null(tmp_path: Path, make_project: Callable[..., Path]):
    dataset = make(make_project(tmp_path / "p", 12), tmp_path / "store")
    assert dataset.sessions == () and dataset.labels()["session"].isna().all()


def test_the_same_image_twice(tmp_path: Path, make_project: Callable[..., Path]):
    project = make_project(tmp_path / "p", 12)
    shutil.copytree(project / "labeled-data" / "video1", project / "labeled-data" / "copy")
    with pytest.raises(PlatformError, match="labelled twice"):
        make(project, tmp_path / "store")
    table = project / "labeled-data" / "copy" / "CollectedData_tester.csv"
    table.write_text(table.read_text().replace("video1", "copy"))
    with pytest.raises(PlatformError, match="are the same image, labelled twice"):
        make(project, tmp_path / "store")


def test_a_picture_that_was_saved_again_lies_on_one_side(tmp_path: Path, make_project: Callable[..., Path]):
    """The same frame in a second folder, compressed otherwise: other bytes, the same pixels."""
    project = make_project(tmp_path / "p", 16)
    before = sides(make(project, tmp_path / "store"))
    first, second = (project / "labeled-data" / name for name in ("video1", "copy"))
    shutil.copytree(first, second)
    for file in second.glob("*.png"):
        cv2.imwrite(str(file), cv2.imread(str(file)), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    table = second / "CollectedData_tester.csv"
    table.write_text(table.read_text().replace("video1", "copy"))
    dataset = make(project, tmp_path / "store")
    images = dataset.labels().drop_duplicates("image")
    pictures = {
        side: {dataset.picture(image, file).tobytes() for image, file in zip(own["image"], own["file"], strict=True)}
        for side, own in images.groupby("side")
    }
    assert pictures["train"] and pictures["test"] and not pictures["train"] & pictures["test"]
    # Both copies of a training picture stay.
    assert dataset.n_left_out == 32 - len(images) > 0
    assert {image for image, side in before.items() if side == "test"} <= set(images["image"])


def test_a_damaged_image_of_a_dataset_must_be_brought_back(tmp_path: Path, make_project: Callable[..., Path]):
    dataset = make(make_project(tmp_path / "p", 12), tmp_path / "store")
    row = dataset.labels().iloc[0]
    path = dataset.image_path(row["image"], row["file"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(PlatformError, match="is damaged: its content has changed since it was made") as caught:
        dataset.picture(row["image"], row["file"])
    assert str(dataset.path) in (caught.value.remedy or "")


def on_their_side(project: Path) -> Path:
    """The images of a project as portraits, stored on their side, as telephones do."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    for file in (project / "labeled-data" / "video1").glob("*.png"):
        with Image.open(file) as image:
            portrait = image.crop((0, 0, 64, 96))
        portrait.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    return project


def test_images_on_their_side_are_stored_as_they_are_shown(tmp_path: Path, make_project: Callable[..., Path]):
    from PIL import Image

    from dlc_platform.dlc.images import read_image

    project = make_project(tmp_path / "p", 12)
    upright = read_image(project / "labeled-data" / "video1" / "img003.png")[:, :64]
    labels = read_labels(read_project(on_their_side(project)))
    assert set(zip(labels.images["width"], labels.images["height"], strict=True)) == {(64, 96)}
    dataset = make(project, tmp_path / "store")
    for image, file in set(dataset.labels()[["image", "file"]].itertuples(index=False, name=None)):
        copy = dataset.image_path(image, file)
        # What DeepLabCut takes for its size, and what it reads.
        assert Image.open(copy).size == (64, 96) == cv2.imread(str(copy)).shape[1::-1]
        if file == "img003.png":
            np.testing.assert_array_equal(read_image(copy), upright)


@pytest.mark.parametrize(("fraction", "empty", "advice"), [(1e-9, "test", "Raise"), (1 - 1e-9, "train", "Lower")])
def test_an_empty_side(tmp_path: Path, make_project: Callable[..., Path], fraction: float, empty: str, advice: str):
    with pytest.raises(PlatformError, match=f"on the {empty} side") as error:
        make(make_project(tmp_path / "p", 4), tmp_path / "store", fraction=fraction)
    assert advice in error.value.remedy
    assert not (tmp_path / "store").exists()


def tree_hash(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


def test_openfield(tmp_path: Path):
    if not (data := os.environ.get("DLC_PLATFORM_TEST_DATA")):
        pytest.skip("DLC_PLATFORM_TEST_DATA is not set: no shared data")
    path = Path(data) / "projects" / "openfield-Pranav-2018-10-30"
    before = tree_hash(path)
    project = read_project(path)
    labels = read_labels(project)
    assert len(labels.images) == 116 and labels.unlabelled == 0
    dataset = make_dataset(project, labels, 42, 0.1, {"m4s1": "sub-m4_ses-1"}, Store(tmp_path))
    assert dataset.n_train + dataset.n_test == 116 and dataset.sessions == ("sub-m4_ses-1",)
    first = dataset.labels().set_index(["file", "bodypart"]).loc[("img0000.png", "snout")]
    assert (first["x"], first["y"]) == (21.521, 265.428)
    fewer = labels.images["file"] < "img0050.png"
    kept = labels.points["file"] < "img0050.png"
    half = type(labels)(labels.images[fewer], labels.points[kept], 0, 0)
    smaller = make_dataset(project, half, 42, 0.1, {}, Store(tmp_path))
    assert sides(smaller).items() <= sides(dataset).items()
    assert tree_hash(path) == before
    frozen = pd.read_parquet(dataset.path / "labels.parquet")
    assert frozen[[*dataset.labels().columns]].equals(dataset.labels())
