"""Training: a dataset and a recipe become a model, an immutable product of the store.

DeepLabCut's own training function is called on DeepLabCut's own loader interface, so that neither a project on disk nor
pickled intermediate files are needed. `backbone` decides with which weights training starts.
"""

from __future__ import annotations

import csv
import fcntl
import json
import logging
import math
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dlc_platform.dlc.backbone import IMAGENET, LOCAL_WEIGHTS, RANDOM, check_weights, write_first_snapshot
from dlc_platform.dlc.dataset import Dataset, load_dataset
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.images import examine_images
from dlc_platform.dlc.memory import keep_to_share, with_smaller_batches
from dlc_platform.dlc.network import SNAPSHOT_FILE
from dlc_platform.dlc.offline import with_network, without_network
from dlc_platform.dlc.parameters import CONFIG_FILE
from dlc_platform.dlc.recipe import Recipe
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.faults import FULL, machine_fault
from dlc_platform.files.yaml import dump_yaml
from dlc_platform.identity import sha256_file, sha256_json, short
from dlc_platform.manifests import DatasetManifest, TrainedModelManifest, TrainedRecipe
from dlc_platform.store import Store, disk_is_full, opened, require_intact

if TYPE_CHECKING:
    import pandas as pd
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from deeplabcut.pose_estimation_pytorch.data import Loader

_STATS_FILE = "learning_stats.csv"
#: The record of a continued training: its seconds, and the epochs after which it was continued.
_PAST_FILE = "past.json"
#: The beginning of the names of folders of trainings that can be continued.
_UNFINISHED = "training-"
_LOCK = "lock"
_LARGEST_CROP = 448
#: The number of evaluations in a training, and the number of snapshots for its continuation.
_EVALUATIONS, _SNAPSHOTS = 20, 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A model of the store.

    Attributes
    ----------
    scorer
        The name that DeepLabCut's files carry for poses of this model; it holds the first digits of the model's id.
    learning_curve
        Columns epoch, train_loss, test_loss (NaN in epochs without evaluation). Losses of DeepLabCut's criterion,
        not pixels.
    seconds
        The training's wall time.
    batch_size
        The batch size of the training: that of the recipe, or a smaller one that fitted into memory.
    """

    id: str
    path: Path
    scorer: str
    weights_sha256: str
    bodyparts: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]
    learning_curve: pd.DataFrame
    seconds: float
    epochs: int
    batch_size: int


def train_model(
    dataset_path: Path,
    recipe: Recipe,
    store: Store,
    workspace: Path,
    device: str | None = None,
    on_progress: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
    warn: Callable[[str], None] = _logger.warning,
) -> TrainedModel:
    """Train a network and store it as a product of kind ``models``.

    The weights of the last epoch are kept, never those of the best test error: choosing an epoch by the frozen test
    images would make the error on those images too good, and they are what models are compared on. The learning rate is
    the recipe's for the first four fifths of the epochs and a tenth of it for the rest, whatever the weights started
    from. Training images are cropped at random to at most 448 x 448 pixels, DeepLabCut's size, or padded to the largest
    image if all are smaller. On the CPU the same recipe and dataset give the same model, bit for bit, on the same
    machine.

    If the recipe's batches do not fit into memory, training begins anew with half of them, and so on; the learning rate
    stays the recipe's. The model's own configuration and `TrainedModel` have the batch size that made it. If the recipe
    asks for several GPUs, DeepLabCut splits each batch among them.

    A training that was interrupted, or ended by a fault of the machine, is continued from its last snapshot when the
    same recipe is trained on the same dataset again; one that only had to be stored is stored. The manifest lists the
    epochs after which it was continued. On the CPU the model is that of an uninterrupted training.

    Parameters
    ----------
    workspace
        An existing or new folder in which a private one is made. It is removed unless there is something to continue.
    device
        ``cpu``, ``cuda``, ``cuda:0``...; the GPU when there is one, by default.
    on_progress
        Called after each epoch with the epoch (from 1), the number of epochs and the training loss.
    warn
        Called with a sentence if the training differs from the recipe.

    Raises
    ------
    PlatformError
        When the first weights are not available, an image of the dataset is damaged, or not even one fits into memory.
    MachineFault
        When a disk is full, or the machine failed otherwise.
    """
    check_weights(recipe.weights, recipe.net_type)
    dataset = load_dataset(dataset_path)
    require_intact(dataset_path)
    _check_images(dataset)
    with _private(workspace, dataset, recipe) as private:

        def attempt(batch_size: int) -> tuple[str, float]:
            folder = private / f"{batch_size}"
            folder.mkdir(exist_ok=True)
            began = time.monotonic()
            try:
                used_device = _train(dataset, _with_batches(recipe, batch_size), folder, device, on_progress, warn)
            finally:
                past = _past(folder)
                past["seconds"] += time.monotonic() - began
                (folder / _PAST_FILE).write_text(json.dumps(past))
            return used_device, past["seconds"]

        with _root_logger_kept():
            (used_device, seconds), batch_size = with_smaller_batches(attempt, recipe.batch_size, warn, "training")
        return _store_model(dataset, recipe, batch_size, private / f"{batch_size}", used_device, seconds, store)


@contextmanager
def _private(workspace: Path, dataset: Dataset, recipe: Recipe) -> Iterator[Path]:
    """The folder of one training, the same for each try; it stays if there is something to continue."""
    what = {"dataset": dataset.id, "parameters": parameters_of(recipe), "versions": versions()}
    folder = workspace / f"{_UNFINISHED}{short(sha256_json(what))}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder)
    if lock is None:
        # Another process trains the same now. Both make the same model, each in its own folder.
        folder = Path(tempfile.mkdtemp(prefix="same-training-", dir=workspace))
        lock = _locked(folder)
    stays = False
    try:
        yield folder
    except Exception as error:
        full = (isinstance(error, OSError) and error.errno in FULL) or disk_is_full(folder)
        stays = full or machine_fault(error) is not None
        if full and not isinstance(error, MachineFault):
            raise MachineFault(
                f"no space left on the disk of {workspace}, where networks are trained",
                "Free some space, and train again: the training goes on after its last snapshot",
            ) from error
        raise
    except BaseException:  # an interrupted training may be continued
        stays = True
        raise
    finally:
        if not stays or not any(folder.glob("*/snapshot-*.pt")):
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.close()


def _locked(folder: Path) -> BinaryIO | None:
    """The lock of a training's folder, which the kernel releases when the process ends; None while another one has
    it."""
    lock = open(folder / _LOCK, "wb")  # noqa: SIM115 (kept open over the whole training)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def remove_unfinished(workspace: Path, older_than: timedelta) -> None:
    """Remove the folders of trainings that nobody works in, and those that can be continued once they are old."""
    for folder in workspace.glob("*"):
        try:
            changed = max(path.stat().st_mtime for path in (folder, *folder.glob("*/*")))
            lock = _locked(folder)
        except OSError:  # another user's, no folder, or gone
            continue
        if lock is None:
            continue
        with lock:
            if not folder.name.startswith(_UNFINISHED) or time.time() - changed > older_than.total_seconds():
                shutil.rmtree(folder, ignore_errors=True)


def parameters_of(recipe: Recipe) -> dict[str, Any]:
    """The training parameters of a recipe, as they enter the identity of a parameter set.

    The project is not part of them, so that many projects can share a set; the needs for GPUs are not part of them
    either. Weights in a folder count by their content.
    """
    parameters = recipe.model_dump(mode="json", exclude={"project", "gpus", "gpu_memory_gb"})
    if recipe.weights not in (IMAGENET, RANDOM):
        check_weights(recipe.weights, recipe.net_type)
        parameters["weights"] = f"sha256:{sha256_file(Path(recipe.weights) / LOCAL_WEIGHTS)}"
    return parameters


def load_model(path: Path) -> TrainedModel:
    """The model in the product directory `path`."""
    import pandas as pd

    manifest = TrainedModelManifest.read(path)
    with opened(path, _STATS_FILE) as file:
        stats = pd.read_csv(file, float_precision="round_trip")
    test_loss = stats.get("losses/eval.total_loss", pd.Series(math.nan, index=stats.index))
    return TrainedModel(
        id=path.name,
        path=path,
        scorer=manifest.scorer,
        weights_sha256=manifest.weights_sha256,
        bodyparts=tuple(manifest.bodyparts),
        skeleton=tuple((a, b) for a, b in manifest.skeleton),
        learning_curve=pd.DataFrame(
            {"epoch": stats["step"], "train_loss": stats["losses/train.total_loss"], "test_loss": test_loss}
        ),
        seconds=manifest.seconds,
        epochs=manifest.recipe.epochs,
        batch_size=manifest.recipe.batch_size if manifest.batch_size is None else manifest.batch_size,
    )


def scorer_name(net_type: str, task: str, identity: str) -> str:
    """The name of a model in DeepLabCut's files, made in DeepLabCut's manner; it ends in the first digits of its id."""
    network = "".join(part.capitalize() for part in net_type.split("_"))
    return f"DLC_{network}_{re.sub(r'[^A-Za-z0-9.-]+', '-', task)}_{short(identity)}"


def dataset_loader(dataset: Dataset, config: PoseConfig) -> Loader:
    """DeepLabCut's view of a dataset: its `Loader`, with the frozen split as modes ``train`` and ``test``."""
    import pandas as pd
    from deeplabcut.pose_estimation_pytorch.data import DLCLoader, Loader
    from deeplabcut.pose_estimation_pytorch.data.dataset import PoseDatasetParameters

    labels = dataset.labels()
    # In pixels of the copies: the network sees no more than they hold.
    labels["x"] -= labels["offset_x"]
    labels["y"] -= labels["offset_y"]
    labels["path"] = [
        str(dataset.image_path(image, file)) for image, file in zip(labels["image"], labels["file"], strict=True)
    ]

    class DatasetLoader(Loader):
        def get_dataset_parameters(self) -> PoseDatasetParameters:
            metadata = self.model_cfg.metadata
            return PoseDatasetParameters(bodyparts=metadata.bodyparts, unique_bpts=[], individuals=metadata.individuals)

        def load_data(self, mode: str = "train") -> dict[str, Any]:
            points = labels[labels["side"] == mode].pivot(index="path", columns="bodypart", values=["x", "y"])
            points = points.swaplevel(axis=1)[[(part, axis) for part in dataset.bodyparts for axis in ("x", "y")]]
            points.columns.names = ["bodyparts", "coords"]
            # Absolute paths win over the root that they are joined to.
            data = DLCLoader.to_coco("/", pd.DataFrame(points), self.get_dataset_parameters())
            data["annotations"] = self._compute_bboxes(data["images"], data["annotations"], method="keypoints")
            return data

    return DatasetLoader(dataset.path, dataset.path / "images", config)


def _with_batches(recipe: Recipe, batch_size: int) -> Recipe:
    return recipe.model_copy(update={"batch_size": batch_size, "gpus": min(recipe.gpus, batch_size)})


def _train(
    dataset: Dataset,
    recipe: Recipe,
    folder: Path,
    device: str | None,
    on_progress: Callable[[int, int, float], None],
    warn: Callable[[str], None],
) -> str:
    """Train in `folder`, which then holds the configuration, the last snapshot and the statistics; the device."""
    from deeplabcut.pose_estimation_pytorch.apis.training import train
    from deeplabcut.pose_estimation_pytorch.runners.logger import BaseLogger
    from deeplabcut.pose_estimation_pytorch.task import Task
    from deeplabcut.pose_estimation_pytorch.utils import fix_seeds, resolve_device

    class Progress(BaseLogger):
        def __init__(self) -> None: ...  # DeepLabCut passes what the signature names

        def log_config(self, config: dict | None = None) -> None: ...

        def save(self) -> None: ...

        def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
            loss = metrics.get("losses/train.total_loss")
            if step is not None:
                fix_seeds(_seed(recipe, step))
            if step is not None and loss is not None:
                with with_network():
                    on_progress(step, recipe.epochs, float(loss))

    config = _pose_config(dataset, recipe, folder)
    device = device or resolve_device(config)
    if device.startswith("cuda"):
        keep_to_share()
    if gpus := _several_gpus(recipe, device, warn):
        # In the numbers of this process, which sees only its leased devices.
        config.set_nested("runner.gpus", gpus)
        device = "cuda"
    done, snapshot = _last_snapshot(folder)
    if done == recipe.epochs:
        return device
    fix_seeds(recipe.seed)
    if snapshot is None:
        snapshot = folder / "first.pt"
        write_first_snapshot(config, recipe.weights, recipe.net_type, snapshot)
    else:
        warn(f"the training is continued after epoch {done} of {recipe.epochs}, where it was interrupted")
        _continue_after(folder, done)
    config.set_nested("train_settings.epochs", recipe.epochs - done)
    config.set_nested("runner.snapshots.save_epochs", max(1, recipe.epochs // _SNAPSHOTS))
    # A snapshot that is being written when the process dies cannot be used.
    config.set_nested("runner.snapshots.max_snapshots", 2)
    config.set_nested("runner.snapshots.save_optimizer_state", True)
    loader = dataset_loader(dataset, config)
    create_dataset = loader.create_dataset

    def create_seeded(*arguments: Any, **named: Any) -> Any:
        made = create_dataset(*arguments, **named)
        # DeepLabCut's last call before the first epoch, whatever random numbers it drew before.
        fix_seeds(_seed(recipe, done))
        return made

    loader.create_dataset = create_seeded
    # The first weights are there: nothing else is fetched.
    with without_network(f"what the training of {recipe.net_type} asks for"):
        train(
            loader=loader,
            run_config=config,  # pyright: ignore[reportArgumentType] (a PoseConfig reads like a dictionary)
            task=Task(config.method),
            device=device,
            logger_config={"type": Progress},
            snapshot_path=snapshot,
        )
    return device


def _seed(recipe: Recipe, epoch: int) -> int:
    """The seed of an epoch: it depends on the recipe and the number of earlier epochs, not on where the training
    began."""
    return random.Random(f"{recipe.seed} {epoch}").getrandbits(32)


def _last_snapshot(folder: Path) -> tuple[int, Path | None]:
    """The finished epochs of a training, and its newest readable snapshot."""
    import torch

    for path in sorted(folder.glob("snapshot-*.pt"), key=lambda path: int(path.stem.partition("-")[2]), reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # cut off when the process died or the disk was full
            path.unlink()
        else:
            return int(path.stem.partition("-")[2]), path
    return 0, None


def _past(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _PAST_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {"seconds": 0.0, "continued_after": []}


def _continue_after(folder: Path, epoch: int) -> None:
    """Record that a training is continued, and remove the records of epochs that are trained again."""
    past = _past(folder)
    past["continued_after"].append(epoch)
    (folder / _PAST_FILE).write_text(json.dumps(past))
    stats = folder / _STATS_FILE
    try:
        with open(stats, newline="") as file:
            header, *rows = csv.reader(file)
        rows = [row for row in rows if int(row[header.index("step")]) <= epoch]
    except (OSError, ValueError):  # lost, and the curve with it
        stats.unlink(missing_ok=True)
        return
    with open(stats, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _several_gpus(recipe: Recipe, device: str, warn: Callable[[str], None]) -> list[int]:
    """The GPUs to train on, if the recipe asks for more than one and they exist."""
    if recipe.gpus == 1:
        return []
    import torch

    seen = torch.cuda.device_count() if device.startswith("cuda") else 0
    if seen < recipe.gpus:
        warn(f"the recipe asks for {recipe.gpus} GPUs and this process sees {seen}: it is trained on {device} alone")
        return []
    return list(range(recipe.gpus))


def _pose_config(dataset: Dataset, recipe: Recipe, folder: Path) -> PoseConfig:
    """DeepLabCut's configuration of the network and its training."""
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig

    project = {"Task": "dataset", "bodyparts": list(dataset.bodyparts), "project_path": str(folder)}
    config = PoseConfig.build(project, folder / CONFIG_FILE, top_down=False, net_type=recipe.net_type)
    transforms = recipe.transforms
    width, height = _crop_size(dataset)
    augmentation: dict[str, Any] = {
        "affine": {
            "p": 0.5,
            "rotation": transforms.rotation,
            "scaling": list(transforms.scale),
            "translation": transforms.translation,
        },
        "crop_sampling": {"width": width, "height": height, "max_shift": 0.1, "method": "hybrid"},
        "hflip": transforms.flip,
        "gaussian_noise": transforms.noise or False,
        "motion_blur": transforms.motion_blur,
    }
    for key, value in augmentation.items():
        config.set_nested(f"data.train.{key}", value)
    last_fifth = math.ceil(recipe.epochs * 0.8)
    updates = {
        "train_settings.epochs": recipe.epochs,
        "train_settings.batch_size": recipe.batch_size,
        "train_settings.seed": recipe.seed,
        "runner.optimizer.params": {"lr": recipe.learning_rate},
        "runner.scheduler.params": {"milestones": [last_fifth], "lr_list": [[recipe.learning_rate / 10]]},
        "runner.eval_interval": max(1, recipe.epochs // _EVALUATIONS),
        "runner.key_metric": "none",  # so that DeepLabCut keeps no best snapshot
        "runner.snapshots.max_snapshots": 1,
        "runner.snapshots.save_epochs": recipe.epochs,
        "runner.load_weights_only": True,
    }
    for key, value in updates.items():
        config.set_nested(key, value)
    return config


def _crop_size(dataset: Dataset) -> tuple[int, int]:
    """Width and height of the network's input in training, in pixels: multiples of 32, the networks' stride."""
    from PIL import Image

    sizes = []
    for path in (dataset.path / "images").iterdir():
        with Image.open(path) as image:
            sizes.append(image.size)
    width, height = (min(_LARGEST_CROP, 32 * math.ceil(max(lengths) / 32)) for lengths in zip(*sizes, strict=True))
    return width, height


def _check_images(dataset: Dataset) -> None:
    """Decode every image of a dataset.

    Raises
    ------
    PlatformError
        When one is damaged, or its pixels are not in the order that they are shown in: DeepLabCut takes the sizes of
        images from their headers and would lose labels.
    """
    paths = sorted((dataset.path / "images").iterdir())
    for path, image in zip(paths, examine_images(paths), strict=True):
        if image.is_turned:
            raise PlatformError(
                f"the dataset {short(dataset.id)} holds {path.name} on its side, as earlier versions stored it",
                "Materialise training_dataset again, and then train",
            )


def _store_model(
    dataset: Dataset, recipe: Recipe, batch_size: int, folder: Path, device: str, seconds: float, store: Store
) -> TrainedModel:
    # Written anew, because DeepLabCut changes the one that it trains with, and the place of training is not part of a
    # model.
    config = _pose_config(dataset, _with_batches(recipe, batch_size), folder).to_dict(normalize=True)
    config["metadata"] |= {"project_path": None, "pose_config_path": None}
    snapshot = _without_optimizer(folder / f"snapshot-{recipe.epochs:03}.pt", folder / SNAPSHOT_FILE)
    weights_sha256 = sha256_file(snapshot)
    identity = sha256_json({"weights": weights_sha256, "configuration": config})
    continued = _past(folder)["continued_after"]
    manifest = TrainedModelManifest(
        scorer=scorer_name(recipe.net_type, DatasetManifest.read(dataset.path).task, identity),
        dataset=dataset.id,
        bodyparts=list(dataset.bodyparts),
        skeleton=[list(pair) for pair in dataset.skeleton],
        recipe=TrainedRecipe(**recipe.model_dump(mode="json")),
        batch_size=batch_size,
        weights_sha256=weights_sha256,
        versions=dict(versions()),
        device=device,
        seconds=seconds,
        **({"continued_after": continued} if continued else {}),
    )

    def write(product: Path) -> None:
        (product / CONFIG_FILE).write_text(dump_yaml(config))
        shutil.copyfile(snapshot, product / SNAPSHOT_FILE)
        shutil.copyfile(folder / _STATS_FILE, product / _STATS_FILE)

    return load_model(store.put("models", identity, manifest.said(), write))


def _without_optimizer(snapshot: Path, into: Path) -> Path:
    """A snapshot without the optimizer, which only a continuation needs and which is twice as large as the network."""
    import torch

    content: Mapping[str, Any] = torch.load(snapshot, map_location="cpu", weights_only=True)
    torch.save({key: value for key, value in content.items() if key != "optimizer"}, into)
    return into


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what DeepLabCut does to the root logger: others (Dagster) have their handlers there."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
