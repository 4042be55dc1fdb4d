import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dlc_platform.dlc.dataset import side
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import read_project
from dlc_platform.errors import PlatformError
from dlc_platform.lab.new_lab import make_lab
from dlc_platform.models.comparison import too_few_test_images
from dlc_platform.settings.loading import load_lab


def project(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    content = {"Task": "openfield", "scorer": "me", "bodyparts": ["nose"], **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def test_the_file_loads(tmp_path: Path, raw: Path) -> None:
    home = tmp_path / "new" / "lab"
    file = make_lab(home, [raw], [project(tmp_path / "project", default_net_type="hrnet_w32")])
    assert file == home / "lab.yaml"
    lab = load_lab(home)
    assert (lab.name, lab.raw_roots, lab.store) == ("lab", (raw,), home / "store")
    assert lab.projects["openfield"].path == tmp_path / "project"
    assert list(lab.recipes) == ["openfield-hrnetw32"]
    recipe = lab.recipes["openfield-hrnetw32"]
    assert (recipe.project, recipe.net_type, recipe.weights) == ("openfield", "hrnet_w32", "imagenet")
    rule = lab.tracking.rule_for("any camera")
    assert rule is not None and rule.project == "openfield"
    assert (lab.promotion.rule, lab.promotion.confidence) == ("clearly_better", 0.95)
    assert "dlc-platform doctor" in file.read_text() and "layout:" in file.read_text()


def test_a_lab_that_is_copied_uses_what_lies_in_it(tmp_path: Path) -> None:
    home = tmp_path / "lab"
    project(home / "project")
    (home / "raw").mkdir()
    (home / "~odd").mkdir()
    (tmp_path / "elsewhere").mkdir()
    make_lab(home, [home / "raw", home / "~odd", tmp_path / "elsewhere"], [home / "project"])
    shutil.copytree(home, tmp_path / "copy")
    for place in (home, tmp_path / "copy"):
        lab = load_lab(place)
        assert lab.raw_roots[:2] == (place / "raw", place / "~odd")
        assert lab.projects["openfield"].path == place / "project"


def test_several_raw_roots_and_projects(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "more raw: #2").mkdir()
    projects = [
        project(tmp_path / "a", default_net_type="resnet_50"),
        project(tmp_path / "b"),
        project(tmp_path / "c", Task="rotarod test (été)", default_net_type="efficientnet-b0/x"),
        project(tmp_path / "d", Task="日本"),
        project(tmp_path / "e", Task="openfield"),
        project(tmp_path / "f", Task="x" * 300),
    ]
    make_lab(tmp_path / "lab", [raw, tmp_path / "more raw: #2", raw], [*projects, projects[0]])
    lab = load_lab(tmp_path / "lab")
    assert lab.raw_roots == (raw, tmp_path / "more raw: #2")
    assert {name: entry.path.name for name, entry in lab.projects.items()} == {
        "openfield": "a",
        "openfield-2": "b",
        "rotarod-test-t": "c",
        "project": "d",
        "openfield-3": "e",
        "x" * 45: "f",
    }
    assert [recipe.project for recipe in lab.recipes.values()] == list(lab.projects)
    assert {entry.split_seed for entry in lab.projects.values()} == {42}
    # No network of DeepLabCut's PyTorch engine.
    assert lab.recipes["rotarod-test-t-resnet50"].net_type == "resnet_50"


@pytest.mark.parametrize(
    ("folder", "name"),
    [("2024", "2024"), ("true", "true"), ("2024-01-31", "2024-01-31"), ("mein Labor", "mein-Labor"), ("日本", "lab")],
)
def test_the_labs_name_is_its_folders(tmp_path: Path, raw: Path, folder: str, name: str) -> None:
    make_lab(tmp_path / folder, [raw], [project(tmp_path / "project")])
    assert load_lab(tmp_path / folder).name == name


def test_relative_folders_are_those_of_the_caller(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    make_lab(Path("lab"), [Path("raw")], [Path("project")])
    lab = load_lab(tmp_path / "lab")
    assert lab.raw_roots == (raw,)
    assert lab.projects["openfield"].path == tmp_path / "project"


def test_a_lab_is_never_overwritten(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "lab.yaml").write_text("mine")
    with pytest.raises(PlatformError, match=r"lab\.yaml exists already"):
        make_lab(tmp_path, [raw], [project(tmp_path / "project")])
    assert (tmp_path / "lab.yaml").read_text() == "mine"


@pytest.mark.parametrize(("home", "what"), [("raw/lab", "raw root"), ("raw", "raw root"), ("project/lab", "project")])
def test_nothing_is_written_among_raw_data_or_labels(tmp_path: Path, raw: Path, home: str, what: str) -> None:
    made = project(tmp_path / "project")
    (tmp_path / "link").mkdir()
    for name in ("raw", "project"):
        (tmp_path / "link" / name).symlink_to(tmp_path / name)
    for place in (tmp_path, tmp_path / "link"):
        with pytest.raises(PlatformError, match=f"HOME .* lies inside the {what}"):
            make_lab(place / home, [raw], [made])
    assert list(raw.iterdir()) == [] and [file.name for file in made.iterdir()] == ["config.yaml"]


def test_what_is_missing_is_named(tmp_path: Path, raw: Path) -> None:
    made = project(tmp_path / "project")
    with pytest.raises(PlatformError, match=f"the raw root {tmp_path / 'gone'} is not a folder"):
        make_lab(tmp_path / "lab", [raw, tmp_path / "gone"], [made])
    with pytest.raises(PlatformError, match=r"gone/config\.yaml does not exist"):
        make_lab(tmp_path / "lab", [raw], [made, tmp_path / "gone"])
    for raw_roots, projects in (([], [made]), ([raw], [])):
        with pytest.raises(PlatformError, match="needs raw data and labels"):
            make_lab(tmp_path / "lab", raw_roots, projects)
    assert not (tmp_path / "lab").exists()


def test_a_home_that_cannot_be_made(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match=r"lab\.yaml cannot be written: Not a directory"):
        make_lab(tmp_path / "file" / "lab", [raw], [project(tmp_path / "project")])


@pytest.mark.parametrize(
    "task", ["on", "no", "1e3", "0o10", "1:30", "null", "2026-01-31", "a...b", "-x", "a: #b 'c'", "12"]
)
def test_a_task_of_any_name_makes_a_lab_that_loads(tmp_path: Path, raw: Path, task: str) -> None:
    folder = tmp_path / "p 'q' \"r\": #s"
    make_lab(tmp_path / "lab", [raw], [project(folder, Task=task)])
    lab = load_lab(tmp_path / "lab")
    assert [entry.path for entry in lab.projects.values()] == [folder]
    assert [recipe.project for recipe in lab.recipes.values()] == list(lab.projects)


def test_nothing_is_left_of_a_lab_that_cannot_be(tmp_path: Path, raw: Path) -> None:
    folder = project(tmp_path / "project")
    with pytest.raises(PlatformError, match="is not a folder"):
        make_lab(tmp_path / "one", [raw / "missing"], [folder])
    (folder / "config.yaml").write_text("Task: x\nscorer: me\nscorer: you\nbodyparts: [nose]\n")
    with pytest.raises(PlatformError, match="scorer is written twice, in lines 2 and 3"):
        make_lab(tmp_path / "two", [raw], [folder])
    assert not (tmp_path / "one").exists() and not (tmp_path / "two").exists()


def cropped(folder: Path, size: tuple[int, int], **config: object) -> Path:
    from PIL import Image

    path = project(folder, cropping=True, x1=16, x2=80, y1=8, y2=72, **config)
    (path / "labeled-data" / "vid1").mkdir(parents=True)
    Image.new("RGB", size).save(path / "labeled-data" / "vid1" / "img000.png")
    return path


def test_what_deeplabcut_crops_becomes_a_region(tmp_path: Path, raw: Path) -> None:
    make_lab(tmp_path / "lab", [raw], [cropped(tmp_path / "p", (64, 64))])
    (rule,) = load_lab(tmp_path / "lab").regions
    assert (rule.camera, rule.session, rule.x, rule.y, rule.width, rule.height) == ("*", "*", 16, 8, 64, 64)


@pytest.mark.parametrize(
    ("size", "projects", "small"), [((96, 96), 1, False), ((64, 64), 2, False), ((24, 64), 1, True)]
)
def test_a_crop_that_may_not_be_meant_is_a_comment(
    tmp_path: Path, raw: Path, size: tuple[int, int], projects: int, small: bool
) -> None:
    config = {"x2": 40} if small else {}
    first = cropped(tmp_path / "p", size)
    if small:
        file = first / "config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **config}))
    others = [project(tmp_path / "other", Task="other")] if projects == 2 else []
    file = make_lab(tmp_path / "lab", [raw], [first, *others])
    assert load_lab(tmp_path / "lab").regions == ()
    width = 24 if small else 64
    assert f"#   - {{camera: '*', session: '*', x: 16, y: 8, width: {width}, height: 64}}" in file.read_text()
    assert "`cropping: true`" in file.read_text()


@pytest.mark.parametrize(("frames", "enough"), [(4, False), (24, True), (150, True)])
def test_a_small_project_is_tested_on_enough_images_if_possible(
    frames: int, enough: bool, tmp_path: Path, raw: Path, make_project: Callable[..., Path]
) -> None:
    file = make_lab(tmp_path / "lab", [raw], [make_project(tmp_path / "project", frames)])
    lab = load_lab(tmp_path / "lab")
    ((name, recipe),) = lab.recipes.items()
    images = list(read_labels(read_project(tmp_path / "project")).images["sha256"])
    tested = sum(side(image, *lab.split_of(name)) == "test" for image in images)
    assert (tested >= 6) == enough
    assert f"# {name}: {tested} of {frames} labelled images" in file.read_text()
    assert ("too few: label more" in file.read_text()) != enough
    said = too_few_test_images(lab.split_of(name), images)
    assert (said is None) == enough
    if frames == 150:
        assert recipe.test_fraction == 0.1  # a tenth is enough
        few = too_few_test_images(lab.split_of(name), images[:20])
        assert few is not None and "its test_fraction of 0.1 leaves " in few and " of 20: with fewer than 6" in few


def test_a_folder_that_is_no_project_is_told(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(
        PlatformError, match=r"/config\.yaml does not exist\. Give the folder of a DeepLabCut project"
    ) as told:
        make_lab(tmp_path / "lab", [raw], [tmp_path])
    assert "lab.yaml" not in str(told.value)
