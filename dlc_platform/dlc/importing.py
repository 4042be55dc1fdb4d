"""A model that was trained elsewhere becomes a product of kind ``models``, used like those that `training` makes.

It is checked before it is kept: it must be a network of DeepLabCut's PyTorch engine, the weights must fit its
configuration, and its snapshot must hold only weights. Paths and the device of the machine that it comes from are
removed from the configuration.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.network import SNAPSHOT_FILE
from dlc_platform.dlc.offline import require_local, without_network
from dlc_platform.dlc.parameters import CONFIG_FILE
from dlc_platform.dlc.project import CONFIG_FILE as PROJECT_FILE
from dlc_platform.dlc.project import read_config, read_skeleton
from dlc_platform.dlc.runner import DETECTOR_FILE, unusable
from dlc_platform.dlc.snapshots import (
    Snapshot,
    TrainFolder,
    choose_snapshot,
    list_snapshots,
    read_train_folder,
    reported_errors,
)
from dlc_platform.dlc.tracking import Tracker
from dlc_platform.dlc.training import scorer_name
from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import open_plain
from dlc_platform.files.yaml import dump_yaml, load_yaml, yaml_text
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.manifests import ImportedModelManifest, ModelManifest
from dlc_platform.store import Store

if TYPE_CHECKING:
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from torch.nn import Module

_CONFIG_TENSORFLOW = "pose_cfg.yaml"


@dataclass(frozen=True)
class ImportedModel:
    """An imported model of the store.

    Attributes
    ----------
    scorer
        The name that DeepLabCut's files carry for poses of this model here; it holds the first digits of its id.
    skeleton
        The skeleton of the project, if the train folder lies in one; else empty.
    unusable
        The reason why it cannot estimate poses here, None if it can; see `runner.unusable`.
    source
        Its origin: path, model_prefix, iteration, shuffle, trainset (null outside a project), snapshot,
        detector_snapshot, and evaluation, which has DeepLabCut's own figures (see `ReportedErrors`).
    """

    id: str
    path: Path
    scorer: str
    net_type: str
    bodyparts: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]
    weights_sha256: str
    detector_sha256: str | None
    unusable: str | None
    source: dict[str, Any]


def import_model(
    folder: Path, store: Store, snapshot: str | None = None, detector_snapshot: str | None = None
) -> ImportedModel:
    """Put one snapshot of a train folder into the store.

    The identity covers the weights, the detector's weights, and the configuration without paths and device; for a model
    of several animals also the tracking settings of its project that differ from DeepLabCut's defaults.

    Parameters
    ----------
    folder
        Holds pytorch_config.yaml and the snapshots; in a project or out of it.
    snapshot, detector_snapshot
        File names; see `choose_snapshot` for the defaults. A detector is looked for only if the configuration is that
        of a top-down model.

    Raises
    ------
    PlatformError
        When it is not a model of DeepLabCut's PyTorch engine, the snapshot holds more than weights or does not fit the
        configuration, or the model was trained here. Faults that the files show by themselves are reported before
        deeplabcut is imported, which takes half a minute.
    """
    place = read_train_folder(folder)
    written = _look_at_configuration(folder)
    pose = choose_snapshot(folder, snapshot)
    detector = None
    if written.get("detector") is not None and (detector_snapshot or list_snapshots(folder, detector=True)):
        detector = choose_snapshot(folder, detector_snapshot, detector=True)
    elif detector_snapshot:
        raise PlatformError(f"{folder / CONFIG_FILE} is of a model without a detector", "Leave out its snapshot")
    for file in filter(None, (pose, detector)):
        _look_at_snapshot(file.path)
    tracker = _tracker(place, written["metadata"])
    config = _read_configuration(folder / CONFIG_FILE)

    files = {SNAPSHOT_FILE: pose.path} | ({DETECTOR_FILE: detector.path} if detector else {})
    hashes = {name: sha256_file(path) for name, path in files.items()}
    _check_weights(pose.path, _build(folder, config))
    if detector:
        _check_weights(detector.path, _build_detector(folder, config))

    normalised = config.to_dict(normalize=True)
    detector_sha256 = hashes.get(DETECTOR_FILE)
    parts = {"weights": hashes[SNAPSHOT_FILE], "configuration": normalised}
    identity = sha256_json(
        parts | ({"detector": detector_sha256} if detector else {}) | ({"tracker": tracker} if tracker else {})
    )
    bodyparts = [*config.metadata.bodyparts, *config.metadata.unique_bodyparts]
    net_type = normalised["net_type"]
    manifest = ImportedModelManifest(
        scorer=scorer_name(net_type, place.name or folder.absolute().name, identity),
        net_type=net_type,
        bodyparts=bodyparts,
        skeleton=[list(pair) for pair in _skeleton(place, bodyparts)],
        weights_sha256=hashes[SNAPSHOT_FILE],
        detector_sha256=detector_sha256,
        origin="imported",
        tracker=tracker,
        source=_source(place, pose, detector),
        versions=dict(versions()),
    )

    def write(product: Path) -> None:
        (product / CONFIG_FILE).write_text(dump_yaml(normalised))
        for name, path in files.items():
            shutil.copyfile(path, product / name)
            if sha256_file(product / name) != hashes[name]:
                raise PlatformError(f"{path} changed while it was imported", "Import it when its training is over")

    return load_imported_model(store.put("models", identity, manifest.said(), write))


def load_imported_model(path: Path) -> ImportedModel:
    """The imported model in the product directory `path`.

    Raises
    ------
    PlatformError
        When the model was trained here.
    """
    if ModelManifest.read(path).origin != "imported":
        raise PlatformError(f"the model {path.name} was trained here", "Use it as it is: it needs no import")
    manifest = ImportedModelManifest.read(path)
    return ImportedModel(
        id=path.name,
        path=path,
        scorer=manifest.scorer,
        net_type=manifest.net_type,
        bodyparts=tuple(manifest.bodyparts),
        skeleton=tuple((first, second) for first, second in manifest.skeleton),
        weights_sha256=manifest.weights_sha256,
        detector_sha256=manifest.detector_sha256,
        unusable=unusable(path),
        source=manifest.source,
    )


def _look_at_configuration(folder: Path) -> dict[str, Any]:
    """The configuration of a train folder as it is written, if it seems to be a network of DeepLabCut's."""
    file = folder / CONFIG_FILE
    if not file.exists():
        raise _no_model(folder)
    try:
        written = load_yaml(file, yaml_text(file))
    except (OSError, ValueError) as error:
        raise _not_read(file, error) from error
    except PlatformError as error:
        if not error.problem.startswith(f"{file} is not YAML: "):
            raise
        raise _not_read(file, error.problem.removeprefix(f"{file} is not YAML: ")) from error
    if not isinstance(written, dict) or not isinstance(metadata := written.get("metadata"), dict):
        raise _not_read(file, "it has no `metadata`, which says what the network finds")
    bodyparts = [*(metadata.get("bodyparts") or ()), *(metadata.get("unique_bodyparts") or ())]
    if not bodyparts or not isinstance(written.get("model"), dict):
        raise _not_read(file, "it describes no network" if bodyparts else "it names no body parts")
    if "all" in bodyparts:
        raise PlatformError(
            f"{file} names a body part `all`, which stands for their total in tables", "Rename it there"
        )
    for section in ("model", "detector"):
        require_local(file, section, (written.get(section) or {}))
    return written


def _no_model(folder: Path) -> PlatformError:
    """The error for a folder that is not a train folder: it names what the folder is, as far as can be seen."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        return PlatformError(f"{folder} cannot be read: {error.strerror}", "Correct the folder")
    if _CONFIG_TENSORFLOW in names:
        return PlatformError(
            f"{folder} holds a TensorFlow model, which cannot be used here",
            "Train it anew with DeepLabCut's PyTorch engine",
        )
    remedy = "Give the folder of the DeepLabCut project that the model was trained in, or the model's `train` folder"
    if (folder / "train" / CONFIG_FILE).is_file():
        remedy = f"Give {folder / 'train'}"
    return PlatformError(f"{folder} holds no {CONFIG_FILE}", remedy)


def _not_read(file: Path, why: object) -> PlatformError:
    return PlatformError(
        f"DeepLabCut cannot read {file}: {' '.join(str(why).split())[:300]}",
        "See that it is the file that DeepLabCut wrote when it trained the model",
    )


def _look_at_snapshot(file: Path) -> None:
    """Check that a snapshot is a complete archive, or a file of torch's older kind, which is one pickle."""
    try:
        with open_plain(file) as opened:
            begins = opened.read(2)
        whole = begins[:1] == b"\x80" or zipfile.is_zipfile(file)
    except OSError as error:
        raise PlatformError(f"{file} cannot be read: {error.strerror}", "Mend its permissions") from error
    if not whole:
        why = "it is empty" if not begins else "its end is missing" if begins == b"PK" else "torch wrote no such file"
        raise PlatformError(f"{file} is not a snapshot that can be read: {why}", "Copy the file again")


def _read_configuration(file: Path) -> PoseConfig:
    """The configuration of a train folder, without values that belong to a machine or switch off safe loading."""
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from pydantic import ValidationError
    from ruamel.yaml.error import YAMLError

    try:
        config = PoseConfig.from_yaml(file)
    except (OSError, YAMLError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise _not_read(file, error) from error
    config.metadata.project_path = None
    config.metadata.pose_config_path = None
    for network in filter(None, (config, config.detector)):
        network.device = "auto"
        network.resume_training_from = None
        if network.runner is not None:
            network.runner.load_weights_only = True
    return config


def _build(folder: Path, config: PoseConfig) -> Module:
    from deeplabcut.pose_estimation_pytorch.models import PoseModel

    try:
        with without_network(f"the network of {folder / CONFIG_FILE}"):
            return PoseModel.build(config.model.to_dict(), pretrained_backbone=False)
    except Exception as error:  # any part of DeepLabCut and timm, each with its own errors
        raise _does_not_build(folder, error) from error


def _build_detector(folder: Path, config: PoseConfig) -> Module:
    from deeplabcut.pose_estimation_pytorch.models import DETECTORS

    assert config.detector is not None
    try:
        with without_network(f"the detector of {folder / CONFIG_FILE}"):
            return DETECTORS.build(config.detector.to_dict()["model"], pretrained=False)
    except Exception as error:  # as above
        raise _does_not_build(folder, error) from error


def _does_not_build(folder: Path, error: Exception) -> PlatformError:
    return PlatformError(
        f"DeepLabCut cannot build the network of {folder / CONFIG_FILE}: {' '.join(str(error).split())[:300]}",
        "See that it is the file that DeepLabCut wrote when it trained the model",
    )


def _check_weights(file: Path, network: Module) -> None:
    import torch

    try:
        snapshot = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PlatformError(
            f"{file} holds more than weights, and loading that could run code: it was not loaded "
            f"({str(error).strip().splitlines()[0]})",
            "Ask whoever trained it for a snapshot of the weights alone, as DeepLabCut 3 writes them",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise PlatformError(
            f"{file} is not a snapshot that can be read: {' '.join(str(error).split())[:300]}", "Copy the file again"
        ) from error
    if not isinstance(snapshot, dict) or "model" not in snapshot:
        raise PlatformError(f"{file} is not a snapshot of DeepLabCut: it has no `model`", "Choose another snapshot")
    try:
        network.load_state_dict(snapshot["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise PlatformError(
            f"the weights in {file} do not fit the network of {CONFIG_FILE} beside it: "
            f"{' '.join(str(error).split())[:300]}",
            "Import the snapshot with the configuration that it was trained with",
        ) from error


def _tracker(place: TrainFolder, metadata: dict[str, Any]) -> dict[str, Any]:
    """The tracking settings of a project with several animals, as far as they differ from DeepLabCut's defaults.

    They come from ``default_track_method`` in its config.yaml, and ``test/inference_cfg.yaml`` beside the train folder.
    """
    from pydantic import ValidationError

    if len(metadata.get("individuals") or ("animal",)) == 1 and not metadata.get("unique_bodyparts"):
        return {}
    file = place.path.parent / "test" / "inference_cfg.yaml"
    said = read_config(file) if file.is_file() else {}
    # There it names a method that assembles animals, such as `m1`, not one that tracks them.
    said = {key: value for key, value in said.items() if key != "method"}
    method = read_config(place.project / PROJECT_FILE).get("default_track_method") if place.project else None
    try:
        tracker = Tracker.model_validate(said | ({"method": method} if method else {}))
    except ValidationError as error:
        wrong = error.errors()[0]
        key = wrong["loc"][0]
        where = f"`default_track_method` in {place.project}/{PROJECT_FILE}" if key == "method" else f"`{key}` in {file}"
        raise PlatformError(
            f"{where} is {wrong['input']!r}, which DeepLabCut cannot track with: {wrong['msg']}",
            "Track with ellipse or box, and with numbers such as DeepLabCut wrote there",
        ) from error
    return tracker.model_dump(exclude_defaults=True)


def _skeleton(place: TrainFolder, bodyparts: list[str]) -> tuple[tuple[str, str], ...]:
    return read_skeleton(read_config(place.project / PROJECT_FILE), bodyparts) if place.project else ()


def _source(place: TrainFolder, pose: Snapshot, detector: Snapshot | None) -> dict[str, Any]:
    reported = reported_errors(place, pose.epoch, detector.epoch if detector else None)
    return {
        "path": str(place.path),
        "model_prefix": place.model_prefix,
        "iteration": place.iteration,
        "shuffle": place.shuffle,
        "trainset": place.trainset,
        "snapshot": pose.path.name,
        "detector_snapshot": detector.path.name if detector else None,
        "evaluation": [asdict(errors) for errors in reported],
    }
