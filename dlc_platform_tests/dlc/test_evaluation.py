import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from dlc_platform.dlc.dataset import Dataset, load_dataset, make_dataset, taught_images
from dlc_platform.dlc.evaluation import (
    Evaluation,
    evaluate_model,
    load_evaluation,
    summarise_by_session,
    summarise_errors,
)
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import read_project
from dlc_platform.dlc.training import TrainedModel, dataset_loader
from dlc_platform.docs.reference import column_types
from dlc_platform.errors import PlatformError
from dlc_platform.store import Store
from dlc_platform_tests.dlc.evaluations import write_evaluation


@pytest.fixture(scope="module")
def evaluation(tiny_model: TrainedModel, tiny_dataset: Dataset, tiny_store: Store) -> Evaluation:
    return evaluate_model(tiny_model.path, tiny_dataset.path, 0.3, tiny_store, device="cpu")


def test_predictions_have_the_columns_of_the_reference(evaluation: Evaluation) -> None:
    written = pq.read_schema(evaluation.path / "predictions.parquet")
    described = column_types("labels.parquet") | column_types("predictions.parquet")
    described = {name: kind for name, kind in described.items() if "pixels" not in name}
    assert {name: str(written.field(name).type) for name in written.names} == described


def test_errors_by_hand():
    predictions = pd.DataFrame(
        {
            "side": ["train", "train", "test", "test"],
            "bodypart": ["nose", "tail", "nose", "tail"],
            "distance_px": [3.0, 4.0, 6.0, np.nan],
            "likelihood": [0.9, 0.2, 0.6, 1.0],
            "missed": False,
        }
    )
    errors = summarise_errors(predictions, cutoff=0.6).set_index(["side", "bodypart"])
    assert errors.loc[("train", "all")].to_dict() == {
        "keypoints": 2,
        "missed": 0,
        "rmse_px": pytest.approx(np.sqrt(12.5)),
        "rmse_confident_px": 3.0,
        "mean_px": 3.5,
        "median_px": 3.5,
        "mean_likelihood": pytest.approx(0.55),
        "fraction_confident": 0.5,
    }
    assert errors.loc[("test", "all"), "keypoints"] == 1 and errors.loc[("test", "nose"), "fraction_confident"] == 1
    assert errors.loc[("test", "tail"), "keypoints"] == 0 and np.isnan(errors.loc[("test", "tail"), "rmse_px"])


def test_a_keypoint_without_a_position_counts_as_missed():
    """A model that gives up on what is hard has no lower error for it without a word."""
    predictions = pd.DataFrame(
        {
            "side": "test",
            "bodypart": ["nose", "nose", "tail"],
            "distance_px": [3.0, np.nan, np.nan],
            "likelihood": [0.9, np.nan, np.nan],
            "missed": [False, True, True],
        }
    )
    errors = summarise_errors(predictions, cutoff=0.6).set_index(["side", "bodypart"])
    columns = ["keypoints", "missed", "rmse_px", "fraction_confident"]
    assert errors.loc[("test", "all"), columns].tolist() == [3, 2, 3.0, pytest.approx(1 / 3)]
    assert errors.loc[("test", "nose"), columns].tolist() == [2, 1, 3.0, 0.5]
    assert errors.loc[("test", "tail"), columns].isna().tolist() == [False, False, True, False]
    assert errors.loc[("test", "tail"), "missed"] == 1


def test_a_test_image_that_the_model_was_trained_on_is_none(tmp_path: Path):
    """Of a newer dataset: the image itself, and a frame close by where datasets say so."""
    store = Store(tmp_path)
    images = ["img010", "img020", "img030", "img040"]
    write_evaluation(store, "e", "m", {"nose": [100, 1, 1, 1]}, images, trained_on=["img010", "img032", "other"])
    evaluation = load_evaluation(store, "e")
    assert evaluation.test_images == {"img020", "img030", "img040"} and evaluation.taught_images == 1
    assert evaluation.errors.set_index(["side", "bodypart"]).loc[("test", "all"), "rmse_px"] == 1
    assert evaluation.errors.set_index(["side", "bodypart"]).loc[("train", "all"), "rmse_px"] == 100

    write_evaluation(store, "f", "close", {"nose": [1] * 4}, images, trained_on=["img032"], apart_frames=2)
    assert load_evaluation(store, "f").test_images == {"img010", "img020", "img040"}

    write_evaluation(store, "g", "elsewhere", {"nose": [1] * 4}, images, trained_on=[])
    imported = load_evaluation(store, "g")
    assert not imported.training_known and imported.test_images == set(images)
    assert imported.errors.set_index(["side", "bodypart"]).loc[("train", "all"), "keypoints"] == 0

    write_evaluation(store, "h", "taught all", {"nose": [1] * 4}, images, trained_on=images)
    nothing = load_evaluation(store, "h")
    assert not nothing.test_images and nothing.taught_images == 4
    assert np.isnan(nothing.errors.set_index(["side", "bodypart"]).loc[("test", "all"), "rmse_px"])


def test_the_same_picture_saved_again_is_no_test_image(tmp_path: Path):
    images = pd.DataFrame({"image": ["x", "y"], "folder": ["v", "v"], "file": ["img01.png", "img02.png"]})
    images["pixels"] = [frozenset({"1"}), frozenset({"2", "cropped 2"})]
    taught = pd.DataFrame({"image": ["z"], "folder": ["v"], "file": ["img01.jpg"], "pixels": [frozenset({"3"})]})
    assert taught_images(images, taught, 0) == {"x"}
    assert taught_images(images, taught.assign(folder="w"), 5) == set()
    assert taught_images(images, taught, 1) == {"x", "y"}
    elsewhere = taught.assign(folder="w", pixels=[frozenset({"cropped 2"})])
    assert taught_images(images, elsewhere, 0) == {"y"}


@pytest.mark.parametrize("written_down", [True, False])
def test_a_renamed_copy_of_a_training_image_is_found_by_pixels(
    tmp_path: Path, make_project: Callable[..., Path], written_down: bool
):
    """Also in datasets from before pixels were written down: their copies are read."""
    project = make_project(tmp_path / "project", 6)
    folder = project / "labeled-data" / "video1"
    store = Store(tmp_path / "store")
    first = make_dataset(read_project(project), read_labels(read_project(project)), 1, 0.3, {}, store)
    # The labelled images are copied into another folder under other names, and one of them is another picture.
    copied = project / "labeled-data" / "video2"
    copied.mkdir()
    lines = (folder / "CollectedData_tester.csv").read_text().replace("video1", "video2")
    for image in sorted(folder.glob("*.png")):
        picture = cv2.imread(str(image))
        if image.stem == "img005":
            picture[0, 0] ^= 1
        name = f"frame{9 - int(image.stem[3:])}00.png"
        cv2.imwrite(str(copied / name), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        lines = lines.replace(image.name, name)
    (copied / "CollectedData_tester.csv").write_text(lines)
    shutil.rmtree(folder)
    config = (project / "config.yaml").read_text().replace("video1", "video2")
    (project / "config.yaml").write_text(config)
    again = make_dataset(read_project(project), read_labels(read_project(project)), 1, 0.3, {}, store)
    if not written_down:
        for dataset in (first, again):
            labels = pd.read_parquet(dataset.path / "labels.parquet").drop(
                columns=["pixels_sha256", "copy_pixels_sha256"]
            )
            path = tmp_path / dataset.id
            shutil.copytree(dataset.path, path)
            labels.to_parquet(path / "labels.parquet", index=False)
            manifest = json.loads((path / "manifest.json").read_text())
            manifest["files"] = [own for own in manifest["files"] if own["path"] != "labels.parquet"]
            (path / "manifest.json").write_text(json.dumps(manifest))
        first, again = (load_dataset(tmp_path / dataset.id) for dataset in (first, again))
    taught, images = first.images(), again.images()
    assert not set(taught["image"]) & set(images["image"]) and len(images) == 6
    by_file = images.set_index("image")["file"]
    assert {by_file[image] for image in taught_images(images, taught, 0)} == {f"frame{9 - n}00.png" for n in range(5)}


def test_predictions_of_every_image(evaluation: Evaluation, tiny_dataset: Dataset):
    predictions = evaluation.predictions()
    labels = tiny_dataset.labels()
    pd.testing.assert_frame_equal(predictions[list(labels.columns)], labels)
    expected = np.hypot(predictions["predicted_x"] - predictions["x"], predictions["predicted_y"] - predictions["y"])
    np.testing.assert_allclose(predictions["distance_px"], expected)
    assert predictions["likelihood"].between(0, 1).all()
    assert (evaluation.errors["bodypart"] == "all").sum() == 2
    # Half of the keypoints at least are found; chance would be tens of pixels.
    assert evaluation.errors.set_index(["side", "bodypart"]).loc[("train", "all"), "median_px"] < 15


def test_figures_relate_to_those_of_deeplabcut(evaluation: Evaluation, tiny_model: TrainedModel, tiny_dataset: Dataset):
    """DeepLabCut's "rmse" is the mean of the distances, ours the root of the mean of their squares."""
    from deeplabcut.pose_estimation_pytorch.apis.evaluation import evaluate
    from deeplabcut.pose_estimation_pytorch.apis.utils import get_pose_inference_runner
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig

    config = PoseConfig.from_yaml(tiny_model.path / "pytorch_config.yaml")
    config.metadata.pose_config_path = tiny_model.path / "pytorch_config.yaml"
    runner = get_pose_inference_runner(config, tiny_model.path / "snapshot.pt", batch_size=8, device="cpu")
    ours = evaluation.predictions()
    for side in ("train", "test"):
        theirs, _ = evaluate(runner, dataset_loader(tiny_dataset, config), side, pcutoff=0.3)
        distances = ours.loc[ours["side"] == side, "distance_px"]
        confident = ours.loc[(ours["side"] == side) & (ours["likelihood"] >= 0.3), "distance_px"]
        assert theirs["rmse"] == pytest.approx(distances.mean(), rel=1e-5)
        assert theirs["rmse_pcutoff"] == pytest.approx(confident.mean(), rel=1e-5, nan_ok=True)
        rmse = evaluation.errors.set_index(["side", "bodypart"]).loc[(side, "all"), "rmse_px"]
        assert rmse == pytest.approx(np.sqrt((distances**2).mean())) and rmse >= theirs["rmse"]


def test_an_evaluation_is_made_once_whatever_the_cutoff(
    evaluation: Evaluation, tiny_model: TrainedModel, tiny_dataset: Dataset, tiny_store: Store
):
    written = (evaluation.path / "predictions.parquet").stat().st_mtime_ns
    again = evaluate_model(tiny_model.path, tiny_dataset.path, 0.99, tiny_store, device="cpu")
    assert again.id == evaluation.id and (again.path / "predictions.parquet").stat().st_mtime_ns == written
    assert list(again.errors["rmse_px"]) == list(evaluation.errors["rmse_px"])
    assert again.errors["fraction_confident"].sum() < evaluation.errors["fraction_confident"].sum()
    loaded = load_evaluation(tiny_store, evaluation.id, 0.3)
    assert (loaded.model_id, loaded.dataset_id) == (tiny_model.id, tiny_dataset.id)
    pd.testing.assert_frame_equal(loaded.errors, evaluation.errors)


def test_a_model_is_evaluated_on_the_body_parts_that_it_shares(
    tiny_model: TrainedModel, tmp_path: Path, make_project: Callable[..., Path], tiny_store: Store
):
    def renamed(folder: Path, **names: str) -> Dataset:
        path = make_project(folder, 12)
        for file in (path / "config.yaml", path / "labeled-data" / "video1" / "CollectedData_tester.csv"):
            for name, other in names.items():
                file.write_text(file.read_text().replace(name, other))
        project = read_project(path)
        return make_dataset(project, read_labels(project), 1, 0.25, {}, tiny_store)

    other = renamed(tmp_path / "p", nose="paw")  # so that what is shared stands at another place
    evaluation = evaluate_model(tiny_model.path, other.path, 0.3, tiny_store, device="cpu")
    predictions = evaluation.predictions()
    pd.testing.assert_frame_equal(predictions[list(other.labels().columns)], other.labels())
    columns = ["predicted_x", "predicted_y", "likelihood", "distance_px"]
    assert predictions.loc[predictions["bodypart"] == "paw", columns].isna().all(axis=None)
    errors = evaluation.errors.set_index(["side", "bodypart"])
    assert errors.loc[("train", "paw"), "keypoints"] == 0
    assert errors.loc[("train", "all"), "keypoints"] == errors.loc[("train", "tail"), "keypoints"] > 0
    assert errors.loc[("train", "tail"), "median_px"] < 15  # the images are those that the model was trained on
    strange = renamed(tmp_path / "q", nose="paw", tail="ear")
    with pytest.raises(PlatformError, match=r"predicts nose, tail, and the dataset .* labels paw, ear"):
        evaluate_model(tiny_model.path, strange.path, 0.6, tiny_store)


def test_errors_by_session():
    predictions = pd.DataFrame(
        {
            "side": ["train", "train", "test", "test", "test"],
            "session": ["a", "a", "b", "a", None],
            "bodypart": ["nose", "tail", "nose", "nose", "nose"],
            "distance_px": [3.0, 4.0, np.nan, 2.0, 90.0],
            "likelihood": [0.9, 0.2, 0.6, 1.0, 0.9],
            "missed": False,
        }
    )
    by_session = summarise_by_session(predictions, cutoff=0.6).set_index(["side", "session"])
    assert by_session.index.tolist() == [("train", "a"), ("test", "a"), ("test", "b")]
    assert by_session.loc[("train", "a"), "rmse_px"] == pytest.approx(np.sqrt(12.5))
    assert by_session.loc[("train", "a"), ["keypoints", "rmse_confident_px", "fraction_confident"]].tolist() == [
        2,
        3.0,
        0.5,
    ]
    assert by_session.loc[("test", "a"), "mean_px"] == 2 and by_session.loc[("test", "b"), "keypoints"] == 0
    overall = summarise_errors(predictions, 0.6)
    assert list(by_session.columns) == list(overall.columns[2:])
    assert summarise_by_session(predictions.assign(session=None), 0.6).empty


def test_manifest(evaluation: Evaluation, tiny_model: TrainedModel, tiny_dataset: Dataset):
    manifest = json.loads((evaluation.path / "manifest.json").read_text())
    assert (manifest["model"], manifest["dataset"]) == (tiny_model.id, tiny_dataset.id)
    assert manifest["device"] == "cpu" and manifest["seconds"] > 0
    assert (evaluation.images, evaluation.seconds) == (24, manifest["seconds"])
