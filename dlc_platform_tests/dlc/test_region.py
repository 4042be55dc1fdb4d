"""A region of interest from labelled images to what a network is trained on, what it is judged by and what is shown."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dlc_platform.dlc.dataset import Dataset, load_dataset, make_dataset
from dlc_platform.dlc.evaluation import evaluate_model
from dlc_platform.dlc.labels import LabelTable, read_labels, within_regions
from dlc_platform.dlc.project import read_project
from dlc_platform.dlc.samples import labelled_samples, worst_test_frames
from dlc_platform.dlc.training import TrainedModel, dataset_loader
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json
from dlc_platform.store import MANIFEST, Store
from dlc_platform.video.region import Region
from dlc_platform.video.registered import KnownFile

FRAMES = 24
#: Higher than wide, and smaller than the pictures of 96 x 96 pixels.
REGION = Region(25, 18, 48, 64)
VIDEO = KnownFile("sub-1_ses-1", "top", "video1", "f" * 64, 3, 96, 96)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """A project whose labels lie on both sides of the edges of `REGION`."""
    return make_project(tmp_path_factory.mktemp("region") / "p", FRAMES)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("region_store"))


def freeze(path: Path, store: Store, labels: LabelTable) -> Dataset:
    return make_dataset(read_project(path), labels, 1, 0.25, {"video1": VIDEO.session}, store)


def cut(path: Path, region: Region = REGION) -> LabelTable:
    return within_regions(read_labels(read_project(path)), {"video1": VIDEO}, lambda session, camera: region)


@pytest.fixture(scope="module")
def whole(project: Path, store: Store) -> Dataset:
    return freeze(project, store, read_labels(read_project(project)))


@pytest.fixture(scope="module")
def cropped(project: Path, store: Store) -> Dataset:
    return freeze(project, store, cut(project))


def crop_at_extraction(path: Path, region: Region = REGION) -> None:
    """Make a project what it were, had DeepLabCut cropped the frames when it took them from the video."""
    folder = path / "labeled-data" / "video1"
    for image in folder.glob("*.png"):
        cv2.imwrite(str(image), region.crop(cv2.imread(str(image))))
    table = folder / "CollectedData_tester.csv"
    with open(table, newline="") as file:
        rows = list(csv.reader(file))
    for row in rows[3:]:
        row[1:] = [str(float(cell) - (region.x, region.y)[place % 2]) for place, cell in enumerate(row[1:])]
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_labels_outside_of_the_region_are_no_labels(project: Path):
    before, after = read_labels(read_project(project)), cut(project)
    inside = (
        (before.points["x"] > REGION.x)
        & (before.points["x"] < REGION.x + REGION.width)
        & (before.points["y"] > REGION.y)
        & (before.points["y"] < REGION.y + REGION.height)
    )
    assert (
        0 < inside.sum() < len(inside) and after.outside_region == (~inside).sum() and after.outside == before.outside
    )
    expected = before.points.assign(x=before.points["x"].where(inside), y=before.points["y"].where(inside))
    left = expected.groupby("file")["x"].transform("count") > 0
    pd.testing.assert_frame_equal(after.points, expected[left].reset_index(drop=True))
    assert after.without_region_label == FRAMES - len(after.images) == (~left).sum() / 2


def test_an_image_without_a_label_in_the_region_is_left_out(project: Path):
    corner = Region(0, 0, 32, 48)
    after = cut(project, corner)
    assert 0 < after.without_region_label < FRAMES and len(after.images) == FRAMES - after.without_region_label
    assert set(after.points["file"]) == set(after.images["file"])
    assert after.points.groupby("file")["x"].count().min() >= 1
    with pytest.raises(PlatformError, match=r"none of the labels of the 24 labelled images lies in its region"):
        cut(project, Region(0, 0, 32, 1))


def test_where_no_region_is_known_nothing_changes(project: Path, whole: Dataset, store: Store):
    labels = read_labels(read_project(project))
    for files, region in (({}, REGION), ({"video1": VIDEO}, None)):
        after = within_regions(labels, files, lambda session, camera, region=region: region)
        pd.testing.assert_frame_equal(after.points, labels.points)
        pd.testing.assert_frame_equal(after.images, labels.images)
        assert (after.outside_region, after.without_region_label) == (0, 0)
        assert freeze(project, store, after).id == whole.id
    assert (whole.labels()[["offset_x", "offset_y"]] == 0).all(axis=None)
    # The identity of before there were regions, so that what was made then is found again.
    assert whole.id == sha256_json(
        {
            "bodyparts": whole.bodyparts,
            "skeleton": whole.skeleton,
            "images": [
                [image, rows["side"].iloc[0], rows[["x", "y"]].to_numpy().tolist()]
                for image, rows in whole.labels().groupby("image", sort=True)
            ],
        }
    )


def test_the_region_is_that_of_the_session_and_camera(project: Path):
    asked = []
    within_regions(read_labels(read_project(project)), {"video1": VIDEO}, lambda *names: asked.append(names))
    assert asked == [("sub-1_ses-1", "top")]


def test_no_image_changes_its_name_or_side_for_a_region(whole: Dataset, cropped: Dataset):
    sides = [dict(zip(own["image"], own["side"], strict=True)) for own in (whole.labels(), cropped.labels())]
    assert sides[1].items() <= sides[0].items()
    assert cropped.id != whole.id


def test_copies_hold_the_region_and_labels_keep_full_pixels(project: Path, cropped: Dataset):
    labels = cropped.labels()
    assert (labels["offset_x"] == REGION.x).all() and (labels["offset_y"] == REGION.y).all()
    original = read_labels(read_project(project)).points.set_index(["file", "bodypart"])
    known = labels[labels["x"].notna()].set_index(["file", "bodypart"])
    pd.testing.assert_frame_equal(known[["x", "y"]], original.loc[known.index, ["x", "y"]])
    for row in labels.drop_duplicates("image").itertuples():
        full = cv2.imread(str(project / "labeled-data" / "video1" / str(row.file)))
        copy = cv2.imread(str(cropped.image_path(str(row.image), str(row.file))))
        assert copy.shape == (64, 48, 3) and (copy == REGION.crop(full)).all()


def test_a_region_of_an_image_that_is_no_png_loses_nothing(tmp_path: Path, make_project: Callable[..., Path]):
    path = make_project(tmp_path / "p", FRAMES)
    folder = path / "labeled-data" / "video1"
    for image in folder.glob("*.png"):
        cv2.imwrite(str(image.with_suffix(".JPG")), cv2.imread(str(image)))
        image.unlink()
    table = folder / "CollectedData_tester.csv"
    table.write_text(table.read_text().replace(".png", ".JPG"))
    dataset = freeze(path, Store(tmp_path / "store"), cut(path))
    row = dataset.labels().iloc[0]
    copy = dataset.image_path(row["image"], row["file"])
    assert copy.suffix == ".png" and row["file"].endswith(".JPG")
    assert (cv2.imread(str(copy)) == REGION.crop(cv2.imread(str(folder / row["file"])))).all()


def test_images_that_deeplabcut_cropped_are_taken_as_they_are(
    tmp_path: Path, make_project: Callable[..., Path], cropped: Dataset
):
    path = make_project(tmp_path / "p", FRAMES)
    crop_at_extraction(path)
    labels = cut(path)
    # Labels outside are outside of the image itself there.
    assert labels.outside > 0 and labels.outside_region == 0 and labels.without_region_label == 0
    dataset = freeze(path, Store(tmp_path / "store"), labels)
    for row in dataset.labels().drop_duplicates("image").itertuples():
        original = path / "labeled-data" / "video1" / str(row.file)
        assert dataset.image_path(str(row.image), str(row.file)).read_bytes() == original.read_bytes()
    columns = ["x", "y", "offset_x", "offset_y"]
    ours, theirs = (own.labels().set_index(["file", "bodypart"])[columns].sort_index() for own in (cropped, dataset))
    pd.testing.assert_frame_equal(ours, theirs, atol=1e-9)


def test_an_image_of_another_size_is_refused(tmp_path: Path, make_project: Callable[..., Path]):
    path = make_project(tmp_path / "p", FRAMES)
    crop_at_extraction(path, Region(10, 10, 80, 80))
    with pytest.raises(PlatformError) as error:
        cut(path)
    for part in ("img000.png is 80 x 80", "video1 of sub-1_ses-1 (96 x 96)", "48 x 64 at (25, 18)", "lab.yaml"):
        assert part in str(error.value)


def test_a_region_beyond_the_video_is_refused(project: Path):
    with pytest.raises(
        PlatformError, match=r"48 x 64 at \(50, 18\) reaches over the picture of the video video1 of sub"
    ):
        cut(project, Region(50, 18, 48, 64))


def test_deeplabcut_sees_the_region(cropped: Dataset, tiny_model: TrainedModel):
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig

    config = PoseConfig.from_yaml(tiny_model.path / "pytorch_config.yaml")
    config.metadata.pose_config_path = tiny_model.path / "pytorch_config.yaml"
    labels = cropped.labels().set_index(["image", "bodypart"])
    seen = 0
    for side in ("train", "test"):
        loader = dataset_loader(cropped, config)
        assert {(image["width"], image["height"]) for image in loader.load_data(side)["images"]} == {(48, 64)}
        for path, points in loader.ground_truth_keypoints(side).items():
            for row, part in enumerate(("nose", "tail")):
                x, y = labels.loc[(Path(path).stem, part), ["x", "y"]]
                if np.isnan(x):
                    assert points[0, row, 2] == 0
                else:
                    assert list(points[0, row]) == [x - REGION.x, y - REGION.y, 2.0]
                    seen += 1
    assert seen == labels["x"].notna().sum()


def test_errors_are_those_in_the_full_picture(
    cropped: Dataset, tiny_model: TrainedModel, store: Store, tmp_path: Path, make_project: Callable[..., Path]
):
    """Pictures that were cropped by somebody give the same, but for where they lie in the full picture."""
    evaluation = evaluate_model(tiny_model.path, cropped.path, 0.3, store, device="cpu")
    predictions = evaluation.predictions()
    labels = cropped.labels()
    pd.testing.assert_frame_equal(predictions[list(labels.columns)], labels)

    path = make_project(tmp_path / "p", FRAMES)
    crop_at_extraction(path)
    small = freeze(path, store, read_labels(read_project(path)))
    own = evaluate_model(tiny_model.path, small.path, 0.3, store, device="cpu").predictions()
    own["predicted_x"] += REGION.x
    own["predicted_y"] += REGION.y
    columns = ["predicted_x", "predicted_y", "likelihood", "distance_px"]
    ours, theirs = (table.set_index(["file", "bodypart"])[columns].sort_index() for table in (predictions, own))
    # Images of another content are in another order, and so in other batches.
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, atol=1e-3)

    for picture, points, predicted, title in worst_test_frames(evaluation, store, 3):
        assert picture.shape == (64, 48, 3)
        own = predictions[predictions["file"] == title.split("/")[1]].set_index("bodypart")
        for part in ("nose", "tail"):
            np.testing.assert_allclose(np.add(points[part], (REGION.x, REGION.y)), own.loc[part, ["x", "y"]].tolist())
            expected = own.loc[part, ["predicted_x", "predicted_y"]].tolist()
            np.testing.assert_allclose(np.add(predicted[part], (REGION.x, REGION.y)), expected)


def test_pictures_of_labels_show_the_region(project: Path, tmp_path: Path, make_project: Callable[..., Path]):
    already = make_project(tmp_path / "p", FRAMES)
    crop_at_extraction(already)
    ours, theirs = (labelled_samples(cut(path), 30) for path in (project, already))
    assert len(ours) > 0
    for (picture, points), (other, same) in zip(ours, theirs, strict=True):
        assert picture.shape == (64, 48, 3) and (picture == other).all()
        for part, point in points.items():
            np.testing.assert_allclose(point, same[part])
            if not np.isnan(point[0]):
                # Nose and tail are drawn light and red on a grey floor.
                x, y = int(point[0]), int(point[1])
                assert picture[y, x].max() > 200


def test_datasets_of_before_there_were_regions_can_be_read(whole: Dataset, tmp_path: Path):
    old = Store(tmp_path)
    labels = whole.labels().drop(columns=["offset_x", "offset_y"])
    manifest = json.loads((whole.path / MANIFEST).read_text())
    path = old.put(
        "datasets", "old", manifest, lambda folder: labels.to_parquet(folder / "labels.parquet", index=False)
    )
    pd.testing.assert_frame_equal(load_dataset(path).labels(), whole.labels())


def test_deeplabcut_truncates_the_edges_of_its_own_crop(tmp_path: Path):
    """`analyze_videos(cropping=[x1, x2, y1, y2])` keeps fractions of the picture; a region keeps pixels."""
    import av
    from deeplabcut.utils.auxfun_videos import VideoReader

    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="bgr24")))
        container.mux(stream.encode())

    reader = VideoReader(str(path))
    columns, rows = {}, {}
    for edge in range(640):
        reader.set_bbox(edge, 640, 0, 480)
        columns[edge] = reader.get_bbox()[0]
    for edge in range(480):
        reader.set_bbox(0, 640, edge, 480)
        rows[edge] = reader.get_bbox()[2]
    assert {edge: got for edge, got in columns.items() if got != edge} == {}
    assert {edge: got for edge, got in rows.items() if got != edge} == {123: 122, 245: 244, 246: 245, 247: 246}

    whole = reader.read_frame()
    for top in (122, 123):
        again = VideoReader(str(path))
        again.set_bbox(33, 433, top, top + 200)
        theirs, ours = again.read_frame(crop=True), Region(33, top, 400, 200).crop(whole)
        again.close()
        assert ours.shape == (200, 400, 3)
        if top == 122:
            assert (theirs == ours).all()
        else:  # a row more, and so every y a pixel off
            assert theirs.shape == (201, 400, 3) and (theirs[1:] == ours).all()
    reader.close()
