import errno
import io
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlc_platform.dlc.dataset import Dataset, make_dataset
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import read_project
from dlc_platform.dlc.training import TrainedModel, _pose_config, dataset_loader, load_model, train_model
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.identity import sha256_file, short
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store
from dlc_platform_tests.dlc.test_dataset import on_their_side
from dlc_platform_tests.products import manifest_of


@pytest.fixture(scope="module")
def short_recipe(tiny_recipe: Recipe) -> Recipe:
    return tiny_recipe.model_copy(update={"epochs": 2})


def test_the_network_learns(tiny_model: TrainedModel, tiny_recipe: Recipe):
    curve = tiny_model.learning_curve
    assert list(curve.columns) == ["epoch", "train_loss", "test_loss"]
    assert list(curve["epoch"]) == list(range(1, tiny_recipe.epochs + 1))
    assert curve["train_loss"].iloc[-1] < 0.6 * curve["train_loss"].iloc[0]
    assert curve["test_loss"].notna().all()


def test_a_model_says_how_it_was_made(
    tiny_model: TrainedModel, tiny_dataset: Dataset, tiny_recipe: Recipe, tiny_store: Store
):
    manifest = manifest_of(tiny_store.path("models", tiny_model.id))
    assert manifest["dataset"] == tiny_dataset.id
    assert Recipe.model_validate(manifest["recipe"]) == tiny_recipe
    assert manifest["bodyparts"] == ["nose", "tail"]
    assert manifest["versions"] == versions()
    assert manifest["device"] == "cpu"
    assert tiny_model.scorer == f"DLC_CspnextS_tiny_{short(tiny_model.id)}"
    assert tiny_model.weights_sha256 == sha256_file(tiny_model.path / "snapshot.pt")
    assert {path.name for path in tiny_model.path.iterdir()} == {
        "manifest.json",
        "pytorch_config.yaml",
        "snapshot.pt",
        "learning_stats.csv",
    }


def test_the_configuration_is_the_recipes_and_names_no_path(tiny_model: TrainedModel, tiny_store: Store):
    text = (tiny_model.path / "pytorch_config.yaml").read_text()
    assert str(tiny_store.root.parent) not in text
    config = yaml.safe_load(text)
    assert config["train_settings"] | {"epochs": 12, "batch_size": 8, "seed": 1} == config["train_settings"]
    assert config["runner"]["optimizer"]["params"] == {"lr": 1e-3}
    assert config["runner"]["scheduler"]["params"] == {"milestones": [10], "lr_list": [[1e-4]]}
    train = config["data"]["train"]
    assert train["affine"] == {"p": 0.5, "rotation": 30.0, "scaling": [0.7, 1.3], "translation": 0}
    assert (train["crop_sampling"]["width"], train["crop_sampling"]["height"]) == (96, 96)
    assert (train["hflip"], train["gaussian_noise"], train["motion_blur"]) == (False, 12.75, True)


def test_a_snapshot_holds_no_code(tiny_model: TrainedModel):
    import torch

    snapshot = torch.load(tiny_model.path / "snapshot.pt", weights_only=True)
    assert snapshot["metadata"]["epoch"] == 12 and "optimizer" not in snapshot


def test_loading_a_model_gives_the_same(tiny_model: TrainedModel):
    again = load_model(tiny_model.path)
    assert again.learning_curve.equals(tiny_model.learning_curve)
    assert (again.id, again.scorer, again.seconds) == (tiny_model.id, tiny_model.scorer, tiny_model.seconds)


def test_deeplabcut_sees_the_frozen_split(tiny_model: TrainedModel, tiny_dataset: Dataset):
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig

    config = PoseConfig.from_yaml(tiny_model.path / "pytorch_config.yaml")
    config.metadata.pose_config_path = tiny_model.path / "pytorch_config.yaml"
    loader = dataset_loader(tiny_dataset, config)
    labels = tiny_dataset.labels().set_index(["image", "bodypart"])
    for side, images in (("train", tiny_dataset.n_train), ("test", tiny_dataset.n_test)):
        truth = loader.ground_truth_keypoints(side)
        assert len(truth) == images
        for path, points in truth.items():
            image = Path(path).stem
            assert labels.loc[(image, "nose"), "side"] == side
            for row, part in enumerate(("nose", "tail")):
                assert list(points[0, row]) == [*labels.loc[(image, part), ["x", "y"]], 2.0]


def test_the_same_recipe_and_dataset_make_the_same_model(tiny_dataset: Dataset, short_recipe: Recipe, tmp_path: Path):
    seen = []
    models = [
        train_model(
            tiny_dataset.path,
            short_recipe,
            Store(tmp_path / f"store{attempt}"),
            tmp_path / "workspace",
            device="cpu",
            on_progress=lambda *progress: seen.append(progress),
        )
        for attempt in range(2)
    ]
    assert models[0].id == models[1].id
    assert models[0].learning_curve.equals(models[1].learning_curve)
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(1, 2), (2, 2)] * 2
    assert [loss for _, _, loss in seen[:2]] == list(models[0].learning_curve["train_loss"])
    other = short_recipe.model_copy(update={"seed": 2})
    assert train_model(tiny_dataset.path, other, Store(tmp_path), tmp_path / "w", device="cpu").id != models[0].id
    assert list((tmp_path / "workspace").iterdir()) == []


def test_an_interrupted_training_leaves_no_traces(tiny_dataset: Dataset, short_recipe: Recipe, tmp_path: Path):
    root = logging.getLogger()
    mine = logging.NullHandler()
    root.addHandler(mine)
    handlers, level = root.handlers[:], root.level
    store = Store(tmp_path / "store")

    def stop(epoch: int, epochs: int, loss: float) -> None:
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            train_model(tiny_dataset.path, short_recipe, store, tmp_path / "workspace", device="cpu", on_progress=stop)
        assert root.handlers == handlers and root.level == level
    finally:
        root.removeHandler(mine)
    assert not store.root.exists() and list((tmp_path / "workspace").iterdir()) == []


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_dataset: Dataset, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, TrainedModel]:
    """A recipe of four epochs, and what a training makes of it that nothing interrupts."""
    recipe, folder = tiny_recipe.model_copy(update={"epochs": 4}), tmp_path_factory.mktemp("uninterrupted")
    return recipe, train_model(tiny_dataset.path, recipe, Store(folder), folder / "work", device="cpu")


@pytest.mark.parametrize("ends", ["killed", "full disk", "not stored"])
def test_an_interrupted_training_goes_on_to_the_same_model(
    ends: str,
    tiny_dataset: Dataset,
    uninterrupted: tuple[Recipe, TrainedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recipe, whole = uninterrupted
    workspace, store = tmp_path / "work", Store(tmp_path / "store")
    seen: list[int] = []

    def stop(epoch: int, epochs: int, loss: float) -> None:
        seen.append(epoch)
        if epoch == 3 and ends == "killed":
            raise KeyboardInterrupt
        if epoch == 3 and ends == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if ends == "not stored":
        monkeypatch.setattr(store, "put", full)
    error = KeyboardInterrupt if ends == "killed" else MachineFault
    with pytest.raises(error, match=None if ends == "killed" else "no space left on the disk"):
        train_model(tiny_dataset.path, recipe, store, workspace, device="cpu", on_progress=stop)
    (folder,) = workspace.iterdir()
    # What was being written when the process died is passed over.
    newest = max(folder.glob("*/snapshot-*.pt"))
    if ends == "killed":
        newest.write_bytes(newest.read_bytes()[:1000])
    monkeypatch.undo()
    seen.clear()
    model = train_model(tiny_dataset.path, recipe, store, workspace, device="cpu", on_progress=watch(seen))
    assert seen == {"killed": [2, 3, 4], "full disk": [3, 4], "not stored": []}[ends]
    continued = {"killed": [1], "full disk": [2]}
    assert manifest_of(model.path).get("continued_after") == continued.get(ends)
    assert list(workspace.iterdir()) == []
    assert whole.id == model.id and "continued_after" not in manifest_of(whole.path)
    assert whole.learning_curve.equals(model.learning_curve)


def watch(seen: list[int]) -> Callable[[int, int, float], None]:
    return lambda epoch, epochs, loss: seen.append(epoch)


@pytest.mark.usefixtures("tiny_model")
def test_training_leaves_the_labs_project_as_it_was(
    tiny_project: Path, make_project: Callable[..., Path], tmp_path: Path
):
    def files(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert files(tiny_project) == files(make_project(tmp_path / "untouched", 24))


def test_a_training_opens_no_connection(
    tiny_dataset: Dataset, short_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """That of the tests would fail if DeepLabCut asked for any; this one asks. What the platform says goes out."""
    told = []

    def tell(epoch: int, epochs: int, loss: float) -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 9))
        told.append(epoch)

    def ask(*, loader: Any, logger_config: dict[str, Any], **_: Any) -> None:
        logger_config["type"]().log({"losses/train.total_loss": 1.0}, step=1)
        socket.create_connection(("127.0.0.1", 9))

    monkeypatch.setattr("deeplabcut.pose_estimation_pytorch.apis.training.train", ask)
    with pytest.raises(PlatformError, match=f"training of {short_recipe.net_type} asks for would be fetched from"):
        train_model(
            tiny_dataset.path, short_recipe, Store(tmp_path / "store"), tmp_path, device="cpu", on_progress=tell
        )
    assert told == [1]


def test_an_unknown_network_is_refused_at_once(tiny_dataset: Dataset, tiny_recipe: Recipe, tmp_path: Path):
    recipe = tiny_recipe.model_copy(update={"net_type": "dlcrnet_ms5"})
    with pytest.raises(PlatformError, match="no single-animal network `dlcrnet_ms5`") as error:
        train_model(tiny_dataset.path, recipe, Store(tmp_path / "store"), tmp_path / "workspace")
    assert "resnet_50" in error.value.remedy
    assert not (tmp_path / "workspace").exists()


def test_versions_say_what_computes():
    known = versions()
    assert known["deeplabcut"].startswith("3.") and known["gpu"]
    expected = {"python", "torch", "numpy", "opencv-python-headless", "av", "dlc_platform", "platform", "host"}
    assert expected <= set(known)
    assert all(known.values())


def test_no_training_starts_on_a_damaged_or_turned_image(
    tiny_dataset: Dataset, short_recipe: Recipe, tiny_store: Store, tmp_path: Path
):
    from PIL import Image

    copy = Path(shutil.copytree(tiny_dataset.path, tmp_path / "dataset"))
    image = sorted((copy / "images").iterdir())[3]
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PlatformError, match=f"{image.name} is damaged: its content has changed since it was made"):
        train_model(copy, short_recipe, tiny_store, tmp_path / "work", device="cpu")
    # A dataset that is older than checksums.
    manifest = copy / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": []}))
    with pytest.raises(PlatformError, match=f"{image.name} is a damaged image"):
        train_model(copy, short_recipe, tiny_store, tmp_path / "work", device="cpu")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(whole)) as picture:
        picture.save(image, exif=exif)
    with pytest.raises(PlatformError, match=f"{image.name} on its side") as error:
        train_model(copy, short_recipe, tiny_store, tmp_path / "work", device="cpu")
    assert "training_dataset" in error.value.remedy
    assert not (tmp_path / "work").exists()


def test_deeplabcut_trains_on_every_label_of_turned_photographs(
    tmp_path: Path, make_project: Callable[..., Path], short_recipe: Recipe
):
    from deeplabcut.pose_estimation_pytorch.data.image import load_image

    project = on_their_side(make_project(tmp_path / "p", 12))
    labels = read_labels(read_project(project))
    dataset = make_dataset(read_project(project), labels, 1, 0.25, {}, Store(tmp_path / "store"))
    data = dataset_loader(dataset, _pose_config(dataset, short_recipe, tmp_path)).load_data("train")
    for image in data["images"]:
        assert (image["height"], image["width"]) == load_image(image["file_name"]).shape[:2] == (96, 64)
    visible = sum(int((own["keypoints"][:, 2] > 0).sum()) for own in data["annotations"])
    train = dataset.labels()[lambda own: own["side"] == "train"]
    assert visible == train["x"].notna().sum() > 8
