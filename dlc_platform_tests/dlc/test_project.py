import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dlc_platform.dlc.project import check_with_deeplabcut, read_project
from dlc_platform.errors import PlatformError
from dlc_platform.video.region import Region


def test_reads_what_the_platform_needs(tiny_project: Path):
    project = read_project(tiny_project)
    assert (project.task, project.scorer, project.bodyparts) == ("tiny", "tester", ("nose", "tail"))
    assert project.skeleton == (("nose", "tail"),)  # the template's pair of other names is left out
    assert [path.stem for path in project.video_paths] == ["video1"]  # a Windows path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"multianimalproject": True, "bodyparts": "MULTI!"}, "multi-animal"),
        ({"bodyparts": []}, "names no body parts"),
        ({"bodyparts": ["nose", "tail", "nose"]}, "names nose twice"),
        ({"bodyparts": ["nose", "all"]}, "stands for their total"),
        ({"scorer": None}, "no value for `scorer`"),
    ],
)
def test_projects_that_cannot_be_used(tmp_path: Path, make_project: Callable[..., Path], change: dict, says: str):
    file = make_project(tmp_path / "p", 1) / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    with pytest.raises(PlatformError, match=says) as error:
        read_project(file.parent)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [("bodyparts: [nose", "is not YAML"), ("date: 2026-13-45", "is not YAML"), ("just words", "holds no keys")],
)
def test_config_that_is_no_config(tmp_path: Path, text: str, says: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(PlatformError, match=says):
        read_project(tmp_path)


def test_missing_config_names_the_remedy(tmp_path: Path):
    with pytest.raises(PlatformError, match="does not exist") as error:
        read_project(tmp_path)
    assert "lab.yaml" in error.value.remedy


def test_names_mean_what_deeplabcut_reads(tmp_path: Path):
    """config.yaml is YAML 1.2, in which these are text without quotes."""
    text = (
        "Task: on\nscorer: no\nmultianimalproject: off\ncropping: yes\nx1: 16\nx2: 80\ny1: 8\ny2: 72\n"
        "bodyparts: [on, off, no, y, 1:30, 7]\n"
    )
    (tmp_path / "config.yaml").write_text(text)
    project = read_project(tmp_path)
    assert (project.task, project.scorer) == ("on", "no")
    assert project.bodyparts == ("on", "off", "no", "y", "1:30", "7")
    assert project.cropped == Region(16, 8, 64, 64)
    (tmp_path / "config.yaml").write_text(text.replace("cropping: yes", "cropping: no"))
    assert read_project(tmp_path).cropped is None


@pytest.mark.parametrize("part", ["true", "null", "2026-01-31", "[a]"])
def test_a_body_part_that_is_no_name_is_refused(tmp_path: Path, part: str):
    (tmp_path / "config.yaml").write_text(f"Task: x\nscorer: me\nbodyparts: [nose, {part}]\n")
    with pytest.raises(PlatformError, match="does not read as a name") as error:
        read_project(tmp_path)
    assert "in quotes" in error.value.remedy


def test_a_key_that_is_written_twice_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("Task: x\nscorer: me\nbodyparts: [nose]\nscorer: you\n")
    with pytest.raises(PlatformError, match="scorer is written twice, in lines 2 and 4"):
        read_project(tmp_path)


def test_config_never_runs_code(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("Task: !!python/object/apply:os.system ['touch ran']\n")
    with pytest.raises(PlatformError, match="is not YAML"):
        read_project(tmp_path)


def test_deeplabcut_accepts_the_tiny_project(tiny_project: Path):
    check_with_deeplabcut(read_project(tiny_project))


def test_deeplabcut_rejects_unknown_keys_and_wrong_values(tmp_path: Path, make_project: Callable[..., Path]):
    file = make_project(tmp_path / "p", 1) / "config.yaml"
    file.write_text(file.read_text() + "video_sets_original: {}\ndotsize: large\n")
    before = file.read_bytes()
    with pytest.raises(PlatformError) as error:
        check_with_deeplabcut(read_project(file.parent))
    for part in (str(file), "`video_sets_original` is not a key", "`dotsize`"):
        assert part in str(error.value)
    assert file.read_bytes() == before


def test_the_check_imports_little_of_deeplabcut_and_leaves_none(tiny_project: Path):
    code = (
        "import sys; from pathlib import Path;"
        "from dlc_platform.dlc.project import check_with_deeplabcut, read_project;"
        "check_with_deeplabcut(read_project(Path(sys.argv[1])));"
        "assert not {'deeplabcut', 'deeplabcut.core.config', 'torch'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_project)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def shared_projects() -> Path:
    if not (data := os.environ.get("DLC_PLATFORM_TEST_DATA")):
        pytest.skip("DLC_PLATFORM_TEST_DATA is not set: no shared data")
    return Path(data) / "projects"


def test_openfield_with_its_placeholders_is_accepted(shared_projects: Path):
    project = read_project(shared_projects / "openfield-Pranav-2018-10-30")
    assert project.bodyparts == ("snout", "leftear", "rightear", "tailbase")
    check_with_deeplabcut(project)


def test_the_hands_are_two_animals(shared_projects: Path):
    with pytest.raises(PlatformError, match="multi-animal"):
        read_project(shared_projects / "maDLC_MM_hands-Brice-2021-07-08")
