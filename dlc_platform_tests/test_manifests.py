"""Manifests are read in one place, written as they always were, and say what is wrong with them.

`manifests` holds some that version 0.6.1 wrote.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from dlc_platform.dlc.dataset import load_dataset
from dlc_platform.dlc.inference import load_poses
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.interop.dlc_poses import load_imported_poses
from dlc_platform.manifests import (
    DatasetManifest,
    EvaluationManifest,
    ExportManifest,
    ImportedModelManifest,
    ImportedPosesManifest,
    ModelManifest,
    PosesManifest,
    TrainedModelManifest,
)
from dlc_platform.store import MANIFEST, Manifest, Store
from dlc_platform.video.account import FrameAccount

WRITTEN = Path(__file__).parent / "manifests"
KINDS: dict[str, type[Manifest]] = {
    "dataset": DatasetManifest,
    "evaluation": EvaluationManifest,
    "export": ExportManifest,
    "refused_export": ExportManifest,
    "imported_model": ImportedModelManifest,
    "imported_poses": ImportedPosesManifest,
    "poses": PosesManifest,
    "trained_model": TrainedModelManifest,
}
IDENTITY = "a" * 64


def test_each_kind_has_one_that_an_earlier_version_wrote() -> None:
    assert {path.stem for path in WRITTEN.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_values_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    """The catalogue knows the hash of a manifest's bytes."""
    before = (WRITTEN / f"{name}.json").read_text()
    values = json.loads(before)
    listed = values.pop("files")
    given = KINDS[name](**values)
    written = Store(tmp_path).put("poses", IDENTITY, given.said(), lambda folder: None) / MANIFEST
    assert written.read_text() == json.dumps({**values, "files": []}, indent=2, sort_keys=True)
    assert json.dumps({**given.said(), "files": listed}, indent=2, sort_keys=True) == before
    # What is read is what was written, whatever came later.
    assert KINDS[name].parse(before).said() == {**given.said(), "files": listed}


def product(tmp_path: Path, name: str, kind: str, **changes: Any) -> Path:
    """A product with such a manifest, and with these keys changed, or without those that are None."""
    values = json.loads((WRITTEN / f"{name}.json").read_text()) | {"files": []} | changes
    folder = tmp_path / kind / IDENTITY
    folder.mkdir(parents=True)
    said = {key: value for key, value in values.items() if value != "left out"}
    (folder / MANIFEST).write_text(json.dumps(said))
    return folder


def test_poses_from_before_the_frame_account_are_read(tmp_path: Path) -> None:
    late = (
        "account",
        "backend",
        "export",
        "note",
        "batch_size",
        "parameters",
        "lost_frames",
        "damaged_frames",
        "files",
    )
    poses = load_poses(product(tmp_path, "poses", "poses", **dict.fromkeys(late, "left out")))
    assert (poses.account, poses.backend, poses.export, poses.note, poses.batch_size) == (
        None,
        "deeplabcut",
        None,
        "",
        None,
    )


def test_an_account_from_before_some_counts_is_read(tmp_path: Path) -> None:
    account = json.loads((WRITTEN / "poses.json").read_text())["account"]
    early = {key: value for key, value in account.items() if key not in ("left_out", "times_reordered", "clock_resets")}
    found = load_poses(product(tmp_path, "poses", "poses", account=early)).account
    assert isinstance(found, FrameAccount) and found.left_out is None and found.decoded == account["decoded"]


def test_keys_of_other_versions_are_left_alone(tmp_path: Path) -> None:
    """An early one said of an imported model whether it was of use, and a later one may say more."""
    model = product(tmp_path, "imported_model", "models", unusable=None, confidence={"of": "tomorrow"})
    assert ImportedModelManifest.read(model).net_type == "resnet_50" and ModelManifest.read(model).origin == "imported"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"frames": "left out"}, "it does not say `frames`"),
        ({"frames": "60"}, "`frames`: input should be a valid integer"),
        ({"frames": True}, "`frames`: input should be a valid integer"),
        ({"frames": float("nan")}, "`frames`: input should be a valid integer"),
        ({"account": {"declared": 3}}, "`account`: it does not say `decoded`"),
        ({"account": 7}, "`account`"),
        ({"files": 7}, "`files`: input should be a valid list"),
        ({"files": [7]}, "`files.0`: input should be"),
        ({"files": [{"path": "poses.parquet"}]}, "it does not say `files.0.size_bytes`"),
    ],
)
def test_a_manifest_that_says_something_else_is_named(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    poses = product(tmp_path, "poses", "poses", **changes)
    with pytest.raises(PlatformError) as caught:
        load_poses(poses)
    assert caught.value.problem.startswith(f"{poses / MANIFEST} is damaged: ") and problem in caught.value.problem
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)
    assert f"Bring {poses} back from a copy" in caught.value.remedy


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", "null", "[" * 100_000, "\ud800", '{"n_train": ' + "9" * 5000 + "}"]
)
def test_content_that_is_no_manifest_is_named(content: str, tmp_path: Path) -> None:
    dataset = product(tmp_path, "dataset", "datasets")
    (dataset / MANIFEST).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(PlatformError, match=r"manifest\.json is damaged: ") as caught:
        load_dataset(dataset)
    assert not isinstance(caught.value, MachineFault) and len(str(caught.value)) < 1000


def test_poses_of_this_lab_are_no_imported_ones(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=r"it does not say `rows_in_file`; it does not say `file_sha256`"):
        load_imported_poses(product(tmp_path, "poses", "poses"))
