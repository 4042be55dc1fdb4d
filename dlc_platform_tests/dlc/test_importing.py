"""A model trained elsewhere is used like one of our own, and cannot do what it must not."""

import io
import json
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pandas as pd
import pytest
import yaml

from dlc_platform.dlc.dataset import Dataset
from dlc_platform.dlc.evaluation import evaluate_model
from dlc_platform.dlc.importing import import_model, load_imported_model
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.dlc.network import CONFIG_FILE, SNAPSHOT_FILE
from dlc_platform.dlc.offline import without_network
from dlc_platform.dlc.runner import DETECTOR_FILE
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.store import Store
from dlc_platform_tests.dlc.train_folders import lay_out, make_project, write_evaluation


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "elsewhere" / "tiny-tester-2026-01-01")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_an_imported_model_gives_the_same_poses_to_the_last_bit(
    tiny_model: TrainedModel, tiny_store: Store, tiny_video: Path, project: Path, store: Store
):
    write_evaluation(project, "", ["0.95,1,12,-1,0.6,3.1,2.3,,,4.2,3.2,,"])
    imported = import_model(lay_out(tiny_model, project, "snapshot-012.pt"), store)
    assert imported.unusable is None
    assert imported.bodyparts == ("nose", "tail") and imported.skeleton == (("nose", "tail"),)
    assert imported.weights_sha256 == tiny_model.weights_sha256 and imported.detector_sha256 is None
    assert imported.scorer == f"DLC_CspnextS_tinyJan1_{imported.id[:12]}"
    assert imported.source["evaluation"][0]["test_rmse_px"] == 4.2
    video_id = sha256_file(tiny_video)
    theirs = PoseEstimator(tiny_model.path, tiny_store, device="cpu").estimate(tiny_video, video_id)
    mine = PoseEstimator(imported.path, store, device="cpu").estimate(tiny_video, video_id)
    pd.testing.assert_frame_equal(
        read_parquet(mine.path / POSE_TABLE), read_parquet(theirs.path / POSE_TABLE), check_exact=True
    )


def test_an_imported_model_is_evaluated_like_another(
    tiny_model: TrainedModel, tiny_dataset: Dataset, tiny_store: Store, project: Path, store: Store
):
    imported = import_model(lay_out(tiny_model, project, "snapshot-012.pt"), store)
    mine = evaluate_model(imported.path, tiny_dataset.path, 0.6, store, device="cpu")
    theirs = evaluate_model(tiny_model.path, tiny_dataset.path, 0.6, tiny_store, device="cpu")
    assert mine.model_id == imported.id
    # Which images it was trained on is only known of a model that was trained here.
    on_test = [errors[errors["side"] == "test"].reset_index(drop=True) for errors in (mine.errors, theirs.errors)]
    pd.testing.assert_frame_equal(*on_test)


def test_nothing_from_the_source_machine_enters_the_identity(tiny_model: TrainedModel, tmp_path: Path, store: Store):
    one = lay_out(tiny_model, make_project(tmp_path / "one"), "snapshot-012.pt")
    change = {"device": "cuda:1", "runner.load_weights_only": False, "metadata.project_path": "/elsewhere"}
    other = lay_out(tiny_model, make_project(tmp_path / "other"), "snapshot-best-010.pt", change=change, shuffle=3)
    first = import_model(one, store)
    assert import_model(other, store) == first == load_imported_model(first.path)
    config = yaml.safe_load((first.path / CONFIG_FILE).read_text())
    assert config["runner"]["load_weights_only"] is True and config["device"] == "auto"
    assert "/home/somebody" not in (first.path / CONFIG_FILE).read_text()


def test_what_was_trained_here_is_known(tiny_model: TrainedModel, tiny_store: Store, project: Path):
    with pytest.raises(PlatformError, match=f"the model {tiny_model.id} was trained here"):
        import_model(lay_out(tiny_model, project, "snapshot-012.pt"), tiny_store)


def test_where_it_came_from_is_kept_with_the_model_prefix(tiny_model: TrainedModel, project: Path, store: Store):
    folder = lay_out(tiny_model, project, "snapshot-012.pt", prefix="cspnext", shuffle=7)
    write_evaluation(project, "", ["0.95,7,12,-1,0.6,1,1,,,1,1,,"])
    write_evaluation(project, "cspnext", ["0.95,7,12,-1,0.6,2,2,,,2,2,,"])
    imported = import_model(folder, store)
    assert imported.source == {
        "path": str(folder),
        "model_prefix": "cspnext",
        "iteration": 2,
        "shuffle": 7,
        "trainset": 95,
        "snapshot": "snapshot-012.pt",
        "detector_snapshot": None,
        "evaluation": [
            {
                "pcutoff": 0.6,
                "train_rmse_px": 2.0,
                "train_rmse_confident_px": 2.0,
                "test_rmse_px": 2.0,
                "test_rmse_confident_px": 2.0,
            }
        ],
    }
    assert json.loads((imported.path / "manifest.json").read_text())["origin"] == "imported"


def change_weights(file: Path, by: float) -> None:
    import torch

    snapshot = torch.load(file, weights_only=True)
    name = next(name for name, tensor in snapshot["model"].items() if tensor.is_floating_point())
    snapshot["model"][name] += by
    torch.save(snapshot, file)


def test_a_snapshot_is_chosen_by_name_or_best_or_number(tiny_model: TrainedModel, project: Path, store: Store):
    names = ("snapshot-050.pt", "snapshot-200.pt", "snapshot-best-190.pt")
    folder = lay_out(tiny_model, project, *names)
    for number, name in enumerate(names):
        change_weights(folder / name, float(number + 1))
    hashes = {name: sha256_file(folder / name) for name in names}
    assert len(set(hashes.values())) == 3
    assert import_model(folder, store).weights_sha256 == hashes["snapshot-best-190.pt"]
    (folder / "snapshot-best-190.pt").unlink()
    last = import_model(folder, store)
    assert (last.weights_sha256, last.source["snapshot"]) == (hashes["snapshot-200.pt"], "snapshot-200.pt")
    named = import_model(folder, store, snapshot="snapshot-050.pt")
    assert named.weights_sha256 == hashes["snapshot-050.pt"] and named.id != last.id
    assert sha256_file(named.path / SNAPSHOT_FILE) == hashes["snapshot-050.pt"]


def test_a_folder_out_of_a_project_can_be_imported(tiny_model: TrainedModel, tmp_path: Path, store: Store):
    folder = tmp_path / "sent by mail"
    folder.mkdir()
    shutil.copy(tiny_model.path / CONFIG_FILE, folder)
    shutil.copy(tiny_model.path / SNAPSHOT_FILE, folder / "snapshot-012.pt")
    imported = import_model(folder, store)
    assert imported.scorer == f"DLC_CspnextS_sent-by-mail_{imported.id[:12]}"
    assert imported.skeleton == () and imported.source["model_prefix"] is None


def test_a_snapshot_that_would_run_code_is_refused(tiny_model: TrainedModel, project: Path, store: Store):
    harmed = project / "harmed"

    class Harm:
        def __reduce__(self):
            return (open, (str(harmed), "w"))

    def as_pickle(file: Path) -> None:
        file.write_bytes(pickle.dumps({"model": Harm()}))

    def as_torch_saves(file: Path) -> None:
        import torch

        torch.save({"model": {}, "metadata": Harm()}, file)

    folder = lay_out(tiny_model, project, change={"runner.load_weights_only": False})
    writers: list[Callable[[Path], None]] = [as_pickle, as_torch_saves]
    for write in writers:
        write(folder / "snapshot-012.pt")
        with pytest.raises(PlatformError, match=r"snapshot-012\.pt holds more than weights.*was not loaded"):
            import_model(folder, store)
        assert not harmed.exists() and not store.root.exists()


def refused(folder: Path, store: Store, match: str) -> None:
    with pytest.raises(PlatformError, match=match) as error:
        import_model(folder, store)
    assert str(folder) in str(error.value)
    assert not store.root.exists()


def test_what_does_not_fit_is_refused(tiny_model: TrainedModel, project: Path, store: Store):
    import torch

    folder = lay_out(tiny_model, project, "snapshot-012.pt")
    snapshot = torch.load(folder / "snapshot-012.pt", weights_only=True)
    snapshot["model"].pop(next(iter(snapshot["model"])))
    torch.save(snapshot, folder / "snapshot-012.pt")
    refused(folder, store, "do not fit the network of pytorch_config.yaml")
    torch.save({"weights": {}}, folder / "snapshot-012.pt")
    refused(folder, store, "has no `model`")
    (folder / "snapshot-012.pt").write_bytes((tiny_model.path / SNAPSHOT_FILE).read_bytes()[:5000])
    refused(folder, store, "is not a snapshot that can be read: its end is missing")
    shutil.copyfile(tiny_model.path / SNAPSHOT_FILE, folder / "snapshot-012.pt")
    config = yaml.safe_load((folder / CONFIG_FILE).read_text())
    config["model"]["backbone"]["type"] = "NoSuchBackbone"
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(config))
    refused(folder, store, "cannot (build|read)")
    (folder / CONFIG_FILE).write_text("net_type: [")
    refused(folder, store, "DeepLabCut cannot read")
    (folder / CONFIG_FILE).unlink()
    refused(folder, store, "holds no pytorch_config.yaml")
    (folder / "pose_cfg.yaml").touch()
    refused(folder, store, "holds a TensorFlow model")


_LOOKS = """
import sys
from pathlib import Path
from dlc_platform.estimates import importing as imports
from dlc_platform.dlc.importing import import_model
from dlc_platform.errors import PlatformError
from dlc_platform.store import Store
for folder in map(Path, sys.argv[1:]):
    try:
        import_model(folder, Store(Path("store")))
    except PlatformError as error:
        print(str(error).replace(str(folder), "F"))
assert not {"deeplabcut", "torch"} & set(sys.modules)
"""


def test_a_wrong_folder_is_refused_before_deeplabcut_is_imported(tmp_path: Path):
    config = "net_type: resnet_50\nmodel: {}\nmetadata: {bodyparts: [nose], individuals: [a, b]}\n"

    def folder(name: str, config: str | bytes | None = config, snapshot: bytes | None = None) -> Path:
        made = tmp_path / name / "train"
        made.mkdir(parents=True)
        if config is not None:
            (made / CONFIG_FILE).write_bytes(config if isinstance(config, bytes) else config.encode())
        if snapshot is not None:
            (made / "snapshot-001.pt").write_bytes(snapshot)
        return made

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("archive/data.pkl", b"x" * 500)
    tracker = folder("tracker", snapshot=archive.getvalue())
    (tracker.parent / "test").mkdir()
    (tracker.parent / "test" / "inference_cfg.yaml").write_text("method: m1\nmax_age: young\n")
    tensorflow = folder("tensorflow", None)
    (tensorflow / "pose_cfg.yaml").touch()
    said = {
        tmp_path / "gone": "F cannot be read: No such file or directory. Correct the folder",
        folder("empty", None): "F holds no pytorch_config.yaml. Give the folder of the DeepLabCut project that the "
        "model was trained in, or the model's `train` folder",
        folder("above").parent: "F holds no pytorch_config.yaml. Give F/train",
        tensorflow: "F holds a TensorFlow model, which cannot be used here",
        folder("no yaml", "net_type: ["): "DeepLabCut cannot read F/pytorch_config.yaml: while parsing",
        folder("binary", b"\xff\xfe\0"): "DeepLabCut cannot read F/pytorch_config.yaml: 'utf-8' codec",
        folder("a list", "- 1"): "DeepLabCut cannot read F/pytorch_config.yaml: it has no `metadata`",
        folder("no parts", "metadata: {}\nmodel: {}"): "it names no body parts",
        folder("no network", "metadata: {bodyparts: [nose]}"): "it describes no network",
        folder("all", config.replace("nose", "all")): "names a body part `all`",
        folder("no snapshot"): "F holds no snapshot-*.pt",
        folder("nothing in it", snapshot=b""): "F/snapshot-001.pt is not a snapshot that can be read: it is empty",
        folder("cut", snapshot=archive.getvalue()[:300]): "can be read: its end is missing. Copy the file again",
        folder("text", snapshot=b"version https://git-lfs"): "can be read: torch wrote no such file",
        tracker: "`max_age` in",
    }
    command = [sys.executable, "-c", _LOOKS, *map(str, said)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == len(said)
    for line, expected in zip(lines, said.values(), strict=True):
        assert expected in line


def network(folder: Path, top_down: bool, **project: object) -> None:
    """A network of random weights in a train folder, with its detector where it has one."""
    import torch
    from deeplabcut.pose_estimation_pytorch.config import PoseConfig
    from deeplabcut.pose_estimation_pytorch.models import DETECTORS, PoseModel

    folder.mkdir()
    base = {"Task": "tiny", "scorer": "tester", "date": "Jan1", "project_path": str(folder)}
    config = PoseConfig.build(
        base | project,  # pyright: ignore
        folder / CONFIG_FILE,
        top_down=top_down,
        net_type="cspnext_s" if top_down else "resnet_50",
        save=True,
    )
    model = PoseModel.build(config.model.to_dict(), pretrained_backbone=False)
    torch.save({"model": model.state_dict()}, folder / "snapshot-050.pt")
    if top_down:
        assert config.detector is not None
        detector = DETECTORS.build(config.detector.to_dict()["model"], pretrained=False)
        torch.save({"model": detector.state_dict()}, folder / "snapshot-detector-040.pt")


def test_a_top_down_model_needs_its_detector(tmp_path: Path, store: Store):
    folder = tmp_path / "train"
    network(folder, True, bodyparts=["nose", "tail"])
    imported = import_model(folder, store)
    detector = sha256_file(folder / "snapshot-detector-040.pt")
    assert imported.detector_sha256 == detector == sha256_file(imported.path / DETECTOR_FILE)
    assert imported.source["detector_snapshot"] == "snapshot-detector-040.pt"
    assert imported.unusable is None
    (folder / "snapshot-detector-040.pt").unlink()
    without = import_model(folder, store)
    assert without.id != imported.id
    assert without.unusable == "it is a top-down model that was imported without the snapshot of its detector"
    with pytest.raises(PlatformError, match=r"holds no snapshot-detector-\*\.pt"):
        import_model(folder, store, detector_snapshot="snapshot-detector-040.pt")


def test_a_model_of_several_animals_can_be_used(tmp_path: Path, store: Store):
    folder = tmp_path / "train"
    network(
        folder,
        False,
        multianimalproject=True,
        bodyparts="MULTI!",
        individuals=["a", "b"],
        multianimalbodyparts=["nose", "tail"],
        uniquebodyparts=["feeder"],
        skeleton=[["nose", "tail"]],
    )
    imported = import_model(folder, store)
    assert imported.bodyparts == ("nose", "tail", "feeder") and imported.unusable is None


@pytest.mark.parametrize("name", ["hf-hub:somebody/network", "local-dir:/etc", "hf_hub:somebody/network"])
def test_a_network_that_lies_elsewhere_is_not_fetched(name: str, tiny_model: TrainedModel, project: Path, store: Store):
    backbone = {"type": "ResNet", "model_name": name, "output_stride": 32}
    folder = lay_out(tiny_model, project, "snapshot-012.pt", change={"model.backbone": backbone})
    with pytest.raises(PlatformError, match=rf"model\.backbone\.model_name: {name}.*nothing is fetched") as error:
        import_model(folder, store)
    assert str(folder / CONFIG_FILE) in error.value.problem


def test_no_connection_is_opened_while_a_network_is_built():
    with without_network("the network"):
        for ask in (
            lambda: socket.create_connection(("127.0.0.1", 9)),
            lambda: socket.getaddrinfo("localhost", 80),
            lambda: urlopen("https://localhost:9/"),
        ):
            with pytest.raises(PlatformError, match="the network would be fetched"):
                ask()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 9))


_OFFLINE = """
import socket
import sys
from pathlib import Path

asked = []

def listen(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and arguments[0].family != socket.AF_UNIX):
        asked.append((event, arguments))

# Of everything that is imported, too: some libraries look for a newer version of theirs.
sys.addaudithook(listen)
from dlc_platform.dlc.importing import import_model
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.identity import sha256_file
from dlc_platform.store import Store

folder, place, video = map(Path, sys.argv[1:])
store = Store(place)
imported = import_model(folder, store)
poses = PoseEstimator(imported.path, store, device="cpu").estimate(video, sha256_file(video))
assert not asked, asked
print(imported.id, poses.id, sep=chr(10))
"""


def test_import_and_inference_work_without_any_network(
    tiny_model: TrainedModel, tiny_video: Path, project: Path, store: Store
):
    namespace = ["unshare", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("this account may make no namespace of the network")
    folder = lay_out(tiny_model, project, "snapshot-012.pt")
    command = [*namespace, sys.executable, "-c", _OFFLINE, str(folder), str(store.root), str(tiny_video)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model, poses = done.stdout.splitlines()[-2:]
    assert (store.path("models", model) / SNAPSHOT_FILE).is_file() and (
        store.path("poses", poses) / POSE_TABLE
    ).is_file()
