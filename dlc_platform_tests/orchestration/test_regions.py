"""A lab whose lab.yaml names a region: what is made of its labels, and what its pages say."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import dagster as dg
import pytest
import yaml

from dlc_platform.dlc.dataset import load_dataset
from dlc_platform.orchestration.materialize import materialize

REGION = {"x": 25, "y": 18, "width": 48, "height": 64}


@pytest.fixture
def home(
    make_reachable: Callable[[], AbstractContextManager[Path]],
    make_project: Callable[..., Path],
    tiny_video: Path,
) -> Iterator[Path]:
    """A lab of one session, whose video `video1` a project has labelled; nothing is materialised yet."""
    with make_reachable() as folder:
        video = folder / "raw" / "sub-1" / "ses-1" / "video1.mp4"
        video.parent.mkdir(parents=True)
        shutil.copy(tiny_video, video)
        settings = {
            "raw_roots": [str(folder / "raw")],
            "projects": {"tiny": {"path": str(make_project(folder / "tiny-tester-2026-01-01", 24))}},
            "recipes": {"quick": {"project": "tiny", "seed": 1, "test_fraction": 0.25}},
        }
        (folder / "lab").mkdir()
        (folder / "lab" / "lab.yaml").write_text(yaml.safe_dump(settings))
        before = dict(os.environ)
        yield folder / "lab"
        os.environ.clear()
        os.environ.update(before)


def run(home: Path, selection: str, *partitions: str, **settings: object) -> tuple[bool, str]:
    """Materialise with these settings besides the lab's own: whether it succeeded, and what it said."""
    file = home / "lab.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **settings}))
    said: list[str] = []
    return materialize(home, selection, list(partitions), said.append), "\n".join(said)


def metadata(asset: str) -> dict[str, dg.MetadataValue]:
    with dg.DagsterInstance.get() as instance:
        (record,) = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
        assert record.asset_materialization is not None
        return dict(record.asset_materialization.metadata)


def test_the_region_of_a_camera_is_what_is_trained_on(home: Path):
    done, said = run(home, "session_videos,training_dataset")
    assert done, said
    whole = metadata("training_dataset")
    picture = metadata("session_videos")["picture"]

    done, said = run(home, "training_dataset", "quick", regions=[{"camera": "video*", **REGION}])
    assert done, said
    cut = metadata("training_dataset")
    assert cut["dataset"] != whole["dataset"]
    assert (whole["labels_outside_their_region"].value, whole["labels_outside_their_image"].value) == (0, 0)
    labels = load_dataset(home / "store" / "datasets" / str(cut["dataset"].value)).labels()
    assert set(labels["offset_x"]) == {25} and set(labels["offset_y"]) == {18}
    left_out = cut["images_without_a_label_in_their_region"].value
    assert isinstance(left_out, int) and labels["image"].nunique() == 24 - left_out
    assert cut["labels_outside_their_region"].value == 48 - labels["x"].notna().sum() > 0

    done, said = run(home, "session_videos", "sub-1_ses-1")
    assert done, said
    assert metadata("session_videos")["picture"] != picture

    # A rule of another camera changes nothing, and gives the dataset of before.
    done, said = run(home, "training_dataset", "quick", regions=[{"camera": "side", **REGION}])
    assert done, said
    assert metadata("training_dataset")["dataset"] == whole["dataset"]

    done, said = run(home, "training_dataset", "quick", regions=[{**REGION, "x": 60}])
    assert not done
    assert "the region 48 x 64 at (60, 18) reaches over the picture of the video video1 of sub-1_ses-1" in said
