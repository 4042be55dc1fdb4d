"""The files that a training with DeepLabCut leaves in a project: the train folder, its snapshots, and their evaluation.

Only folders and tables are read here, without importing deeplabcut; `importing` reads the snapshots.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from dlc_platform.dlc.project import CONFIG_FILE, read_config
from dlc_platform.errors import PlatformError
from dlc_platform.files.plain import read_plain

# deeplabcut.core.engine.Engine, which takes half a minute to import.
_MODELS = "dlc-models-pytorch"
_MODELS_TENSORFLOW = "dlc-models"
_EVALUATIONS = "evaluation-results-pytorch"

_SNAPSHOT = re.compile(r"snapshot(?P<detector>-detector)?(?P<best>-best)?-(?P<epoch>\d+)\.pt")
_SHUFFLE = re.compile(r"(?P<name>.*)-trainset(?P<trainset>\d+)shuffle(?P<shuffle>\d+)")
_KEYS = ("%Training dataset", "Shuffle number", "Training epochs", "Detector epochs (TD only)")
_ERRORS = ("train rmse", "train rmse_pcutoff", "test rmse", "test rmse_pcutoff")
_MOST_BYTES = 32 << 20
_ITERATION = re.compile(r"iteration-(\d+)")


@dataclass(frozen=True, order=True)
class Snapshot:
    """Weights as DeepLabCut saved them; ordered by epoch, as numbers.

    Attributes
    ----------
    best
        True if DeepLabCut found it the best of its training by the error on the test images.
    detector
        True if it belongs to the detector of a top-down model.
    """

    epoch: int
    best: bool
    detector: bool
    path: Path


@dataclass(frozen=True)
class TrainFolder:
    """A ``train`` folder; if it does not lie in a project as DeepLabCut lays it out, all but `path` is None.

    Attributes
    ----------
    project
        The folder that holds config.yaml.
    name
        The project's task and date, as in the folder's name.
    model_prefix
        The folder below the project in which this set of models and evaluations lies; empty as a rule.
    trainset
        The percentage of the images that were trained on.
    """

    path: Path
    project: Path | None = None
    name: str | None = None
    model_prefix: str | None = None
    iteration: int | None = None
    shuffle: int | None = None
    trainset: int | None = None


@dataclass(frozen=True)
class ReportedErrors:
    """The errors of a snapshot that DeepLabCut's ``evaluate_network`` reported, in pixels.

    Its RMSE is the plain mean of the distances between labels and predictions (see `evaluation.summarise_errors`);
    "confident" are predictions above `pcutoff`, which is text if it differs between body parts.
    """

    pcutoff: float | str
    train_rmse_px: float | None
    train_rmse_confident_px: float | None
    test_rmse_px: float | None
    test_rmse_confident_px: float | None


def list_snapshots(folder: Path, detector: bool = False) -> list[Snapshot]:
    """The snapshots of the pose network in a train folder, or of its detector, by epoch: 50 before 200."""
    found = []
    for path in folder.iterdir():
        match = _SNAPSHOT.fullmatch(path.name)
        if match and bool(match["detector"]) == detector:
            found.append(Snapshot(int(match["epoch"]), bool(match["best"]), detector, path))
    return sorted(found)


def choose_snapshot(folder: Path, name: str | None = None, detector: bool = False) -> Snapshot:
    """The snapshot of that file name; without one, the best if DeepLabCut kept it, else that of the last epoch.

    Raises
    ------
    PlatformError
        When there is none, or none of that name; it names the existing ones.
    """
    found = list_snapshots(folder, detector)
    if not found:
        kind = "snapshot-detector-*.pt" if detector else "snapshot-*.pt"
        raise PlatformError(f"{folder} holds no {kind}", "Train the network with DeepLabCut, or give another folder")
    if name is None:
        return max(found, key=lambda snapshot: (snapshot.best, snapshot.epoch))
    for snapshot in found:
        if name in (snapshot.path.name, snapshot.path.stem):
            return snapshot
    raise PlatformError(
        f"{folder} holds no snapshot {name}", f"Choose among {', '.join(snapshot.path.name for snapshot in found)}"
    )


def find_train_folder(
    project: Path,
    iteration: int | None = None,
    shuffle: int = 1,
    trainset: int | None = None,
    model_prefix: str = "",
) -> TrainFolder:
    """The train folder of one shuffle of a project, as DeepLabCut's ``get_model_folder`` lays it out.

    Parameters
    ----------
    iteration
        By default, that of config.yaml.
    trainset
        The percentage of the images that were trained on; it can be left out if there is only one.
    model_prefix
        DeepLabCut's ``modelprefix``.

    Raises
    ------
    PlatformError
        When there is none or more than one; it names the existing ones; or when it is a model of TensorFlow.
    """
    if iteration is None:
        iteration = read_config(project / CONFIG_FILE).get("iteration", 0)
    root = project / model_prefix / _MODELS / f"iteration-{iteration}"
    folders = {
        path.name: path / "train"
        for path in sorted(root.glob("*/"))
        if (match := _SHUFFLE.fullmatch(path.name))
        and int(match["shuffle"]) == shuffle
        and trainset in (None, int(match["trainset"]))
    }
    if len(folders) == 1:
        return read_train_folder(next(iter(folders.values())))
    if folders:
        raise PlatformError(f"{root} holds {', '.join(folders)}", "Say which with the percentage that was trained on")
    wanted = f"shuffle {shuffle}" + ("" if trainset is None else f" of trainset {trainset}")
    if any((project / model_prefix / _MODELS_TENSORFLOW / root.name).glob(f"*-trainset*shuffle{shuffle}/")):
        raise PlatformError(
            f"{wanted} of {project} was trained with TensorFlow, whose models cannot be used here",
            "Train it anew with DeepLabCut's PyTorch engine",
        )
    models = [path.parent for path in sorted(project.glob(f"**/{_MODELS}/iteration-*/*/train"))]
    there = ", ".join(str(path.relative_to(project)) for path in models)
    raise PlatformError(
        f"{root} holds no {wanted}",
        f"The project holds {there}" if there else "The project holds no model of DeepLabCut's PyTorch engine",
    )


def read_train_folder(path: Path) -> TrainFolder:
    """The facts that the path of a train folder tells."""
    path = path.absolute()
    shuffle, iteration = _SHUFFLE.fullmatch(path.parent.name), _ITERATION.fullmatch(path.parent.parent.name)
    models = path.parent.parent.parent
    project = next((folder for folder in models.parents if (folder / CONFIG_FILE).is_file()), None)
    if shuffle is None or iteration is None or models.name != _MODELS or project is None:
        return TrainFolder(path)
    prefix = models.parent.relative_to(project)
    return TrainFolder(
        path=path,
        project=project,
        name=shuffle["name"],
        model_prefix="" if prefix == Path() else prefix.as_posix(),
        iteration=int(iteration[1]),
        shuffle=int(shuffle["shuffle"]),
        trainset=int(shuffle["trainset"]),
    )


def reported_errors(folder: TrainFolder, epoch: int, detector_epoch: int | None = None) -> tuple[ReportedErrors, ...]:
    """The errors that DeepLabCut reported for the snapshots of these epochs, once for each cutoff; empty if there are
    none.

    They are read from ``evaluation-results-pytorch/iteration-N/CombinedEvaluation-results.csv``. DeepLabCut keeps its
    rows when a shuffle is trained again, and no row says which weights it is about.

    Raises
    ------
    PlatformError
        When the table is not one of DeepLabCut's PyTorch engine.
    """
    if folder.project is None:
        return ()
    file = (
        folder.project
        / (folder.model_prefix or "")
        / _EVALUATIONS
        / f"iteration-{folder.iteration}"
        / "CombinedEvaluation-results.csv"
    )
    if not file.exists():
        return ()
    wanted = (folder.trainset, folder.shuffle, epoch, -1 if detector_epoch is None else detector_epoch)
    found = []
    try:
        with io.StringIO(read_plain(file, _MOST_BYTES).decode("utf-8"), newline="") as lines:
            table = csv.DictReader(lines)
            if missing := [
                column for column in (*_KEYS, "pcutoff", *_ERRORS) if column not in (table.fieldnames or ())
            ]:
                raise ValueError(f"it has no column {', '.join(missing)}")
            for row in table:
                fraction, number, epochs, detector_epochs = (float(row[column]) for column in _KEYS)
                # The column holds the fraction; the folder's name has DeepLabCut's int(fraction * 100).
                if (int(fraction * 100), number, epochs, detector_epochs) == wanted:
                    errors = [float(row[column]) if row[column] else None for column in _ERRORS]
                    pcutoff = row["pcutoff"]
                    found.append(ReportedErrors(pcutoff if "," in pcutoff else float(pcutoff), *errors))
    except (OSError, csv.Error, ValueError, TypeError) as error:
        raise PlatformError(
            f"{file} is not a table of DeepLabCut's PyTorch evaluation: {error}",
            "Evaluate the network again with DeepLabCut, or move this table away",
        ) from error
    return tuple(found)
