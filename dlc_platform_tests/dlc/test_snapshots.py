from pathlib import Path

import pytest
import yaml

from dlc_platform.dlc.snapshots import (
    ReportedErrors,
    choose_snapshot,
    find_train_folder,
    list_snapshots,
    read_train_folder,
    reported_errors,
)
from dlc_platform.errors import PlatformError
from dlc_platform_tests.dlc.train_folders import make_project, shuffle_folder, write_evaluation


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).touch()
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "tiny")


def train(project: Path, *names: str, **place: object) -> Path:
    return folder_of(shuffle_folder(project, **place) / "train", *names)  # pyright: ignore


def test_snapshots_are_ordered_by_number(tmp_path: Path):
    names = ("snapshot-200.pt", "snapshot-1000.pt", "snapshot-050.pt", "snapshot-detector-300.pt", "snapshot-50.txt")
    folder = folder_of(tmp_path, *names, "snapshot-.pt", "my-snapshot-7.pt", "snapshot-200.pt.part")
    assert [snapshot.epoch for snapshot in list_snapshots(folder)] == [50, 200, 1000]
    assert [snapshot.path.name for snapshot in list_snapshots(folder, detector=True)] == ["snapshot-detector-300.pt"]
    assert choose_snapshot(folder).path.name == "snapshot-1000.pt"


def test_the_best_is_taken_when_there_is_one(tmp_path: Path):
    names = ("snapshot-200.pt", "snapshot-best-190.pt", "snapshot-50.pt")
    detectors = ("snapshot-detector-best-100.pt", "snapshot-detector-250.pt")
    folder = folder_of(tmp_path, *names, *detectors)
    chosen = choose_snapshot(folder)
    assert (chosen.path.name, chosen.epoch, chosen.best) == ("snapshot-best-190.pt", 190, True)
    assert choose_snapshot(folder, detector=True).path.name == "snapshot-detector-best-100.pt"
    for name in ("snapshot-50.pt", "snapshot-50"):
        assert choose_snapshot(folder, name).epoch == 50


def test_what_there_is_is_named(tmp_path: Path):
    folder = folder_of(tmp_path, "snapshot-200.pt", "snapshot-50.pt")
    with pytest.raises(PlatformError, match=r"no snapshot snapshot-7\. Choose among snapshot-50.pt, snapshot-200.pt"):
        choose_snapshot(folder, "snapshot-7")
    with pytest.raises(PlatformError, match=r"holds no snapshot-detector-\*\.pt"):
        choose_snapshot(folder, detector=True)


def test_a_train_folder_is_found_by_iteration_shuffle_trainset(project: Path):
    wanted = train(project, shuffle=3)
    train(project, shuffle=13)
    train(project, shuffle=4, trainset=50)
    train(project, shuffle=4, trainset=95)
    older = train(project, iteration=0, shuffle=3)
    found = find_train_folder(project, shuffle=3)
    assert found.path == wanted
    assert (found.project, found.name, found.model_prefix) == (project, "tinyJan1", "")
    assert (found.iteration, found.shuffle, found.trainset) == (2, 3, 95)
    assert find_train_folder(project, iteration=0, shuffle=3).path == older
    assert find_train_folder(project, shuffle=4, trainset=50).trainset == 50
    with pytest.raises(PlatformError, match="trainset50shuffle4, tinyJan1-trainset95shuffle4"):
        find_train_folder(project, shuffle=4)
    with pytest.raises(PlatformError, match=r"holds no shuffle 5\. The project holds dlc-models-pytorch/iteration-0/"):
        find_train_folder(project, shuffle=5)


def test_the_model_prefix_is_kept(project: Path):
    train(project)
    wanted = train(project, prefix="resnets/deep")
    found = find_train_folder(project, model_prefix="resnets/deep")
    assert (found.path, found.model_prefix, found.project) == (wanted, "resnets/deep", project)
    assert read_train_folder(wanted) == found
    assert find_train_folder(project).model_prefix == ""


def test_a_folder_out_of_a_project_says_nothing(tmp_path: Path):
    for path in (tmp_path / "train", shuffle_folder(tmp_path / "none") / "train"):
        found = read_train_folder(folder_of(path))
        assert found.path == path and found.project is None and found.shuffle is None


def test_tensorflow_is_named(project: Path):
    folder_of(project / "dlc-models" / "iteration-2" / "tinyJan1-trainset95shuffle1" / "train")
    with pytest.raises(PlatformError, match="was trained with TensorFlow"):
        find_train_folder(project)


ROWS = [
    "0.95,1,50,-1,0.6,9.0,8.0,,,9.5,8.5,,",
    "0.95,1,190,-1,0.4,3.11,2.51,99.0,99.5,4.21,3.91,90.0,91.0",
    "0.95,1,190,-1,0.6,3.11,2.31,99.0,99.5,4.21,,90.0,91.0",
    "0.95,1,190,100,0.6,7.0,7.0,99.0,99.5,7.0,7.0,90.0,91.0",
    '0.95,2,190,-1,"0.6, 0.4",1.0,1.0,,,1.0,1.0,,',
    "0.5,1,190,-1,0.6,2.0,2.0,,,2.0,2.0,,",
]


def test_deeplabcuts_own_errors_are_read(project: Path):
    write_evaluation(project, "", ROWS)
    place = read_train_folder(train(project))
    assert reported_errors(place, 190) == (
        ReportedErrors(0.4, 3.11, 2.51, 4.21, 3.91),
        ReportedErrors(0.6, 3.11, 2.31, 4.21, None),
    )
    assert reported_errors(place, 190, detector_epoch=100) == (ReportedErrors(0.6, 7.0, 7.0, 7.0, 7.0),)
    assert reported_errors(place, 200) == ()
    assert reported_errors(read_train_folder(train(project, shuffle=2)), 190)[0].pcutoff == "0.6, 0.4"
    assert reported_errors(read_train_folder(train(project, trainset=50)), 190)[0].test_rmse_px == 2.0
    prefixed = read_train_folder(train(project, prefix="other"))
    assert reported_errors(prefixed, 190) == ()
    write_evaluation(project, "other", ROWS[:1])
    assert reported_errors(prefixed, 50)[0].test_rmse_px == 9.5


def test_the_table_is_the_one_that_deeplabcut_writes(project: Path):
    import pandas as pd
    from deeplabcut.core.engine import Engine
    from deeplabcut.pose_estimation_pytorch.apis.evaluation import save_evaluation_results
    from deeplabcut.utils.auxiliaryfunctions import get_evaluation_folder, get_model_folder

    config = yaml.safe_load((project / "config.yaml").read_text())
    scores = {
        "%Training dataset": 0.95,
        "Shuffle number": 1,
        "Training epochs": 190,
        "Detector epochs (TD only)": -1,
        "pcutoff": 0.6,
        "train rmse": 3.11,
        "train rmse_pcutoff": 2.31,
        "test rmse": 4.21,
        "test rmse_pcutoff": float("nan"),
    }
    folder = project / get_evaluation_folder(0.95, 1, config, engine=Engine.PYTORCH, modelprefix="p")
    folder.mkdir(parents=True)
    for epoch in (190, 200):
        frame = pd.DataFrame([scores | {"Training epochs": epoch}]).set_index(list(scores)[:5])
        save_evaluation_results(frame, folder / "scorer-results.csv", False, 0.6)
    train_folder = project / get_model_folder(0.95, 1, config, modelprefix="p", engine=Engine.PYTORCH) / "train"
    train_folder.mkdir(parents=True)
    found = find_train_folder(project, model_prefix="p")
    assert found.path == train_folder
    assert reported_errors(found, 190) == (ReportedErrors(0.6, 3.11, 2.31, 4.21, None),)


def test_a_table_of_tensorflow_is_named(project: Path):
    file = write_evaluation(project, "", [])
    file.write_text("Training iterations:,%Training dataset,Shuffle number, Train error(px)\n1030000,95,1,2.1\n")
    with pytest.raises(
        PlatformError, match="not a table of DeepLabCut's PyTorch evaluation: it has no column Training epochs"
    ):
        reported_errors(read_train_folder(train(project)), 190)
