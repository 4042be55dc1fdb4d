"""lab.yaml as people write it, wrong in every way that has a remedy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dlc_platform.errors import HOME_VARIABLE, PlatformError
from dlc_platform.settings.environment import home_from_environment
from dlc_platform.settings.fields import leaves
from dlc_platform.settings.inference import InferenceRule
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.video.region import Region

LAB = """\
raw_roots: [/data/raw]
projects:
  openfield: {path: /data/openfield}
recipes:
  first: {project: openfield}
"""


def load(home: Path, text: str | bytes):
    home.mkdir(exist_ok=True)
    (home / "lab.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_lab(home)


def refusal(home: Path, text: str | bytes) -> PlatformError:
    with pytest.raises(PlatformError) as caught:
        load(home, text)
    assert str(home / "lab.yaml") in caught.value.problem
    assert caught.value.remedy
    return caught.value


def changed(section: str, key: str, value: object) -> str:
    lab = yaml.safe_load(LAB)
    place = lab
    for name in section.split(".") if section else ():
        place = place.setdefault(name, {})
    place[key] = value
    return yaml.safe_dump(lab)


def test_the_shortest_lab_has_defaults(tmp_path: Path) -> None:
    lab = load(tmp_path, LAB)
    assert lab.store == tmp_path / "store"
    assert lab.raw_roots == (Path("/data/raw"),)
    assert lab.recipes["first"].net_type == "resnet_50"
    assert lab.gpus == "auto"
    assert (lab.promotion.rule, lab.promotion.confidence) == ("clearly_better", 0.95)
    assert lab.recipes["first"].apart_frames == 0
    assert ".mp4" in lab.layout.extensions


def test_relative_paths_are_taken_from_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    lab = load(
        tmp_path / "lab",
        """\
raw_roots: [../raw, /data/raw, ~/raw]
store: products/here
projects: {a: {path: ../a}}
recipes:
  local: {project: a, weights: weights/resnet}
  absolute: {project: a, weights: /data/weights}
  named: {project: a, weights: imagenet}
  none: {project: a, weights: random}
""",
    )
    assert lab.raw_roots == (tmp_path / "raw", Path("/data/raw"), Path("/home/someone/raw"))
    assert lab.store == tmp_path / "lab" / "products" / "here"
    assert lab.projects["a"].path == tmp_path / "a"
    assert {name: recipe.weights for name, recipe in lab.recipes.items()} == {
        "local": str(tmp_path / "lab" / "weights" / "resnet"),
        "absolute": "/data/weights",
        "named": "imagenet",
        "none": "random",
    }


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("", "raw_root", "/data", "raw_root is not a key of lab.yaml (value: '/data'); did you mean raw_roots?"),
        ("recipes.first", "epoch", 5, "recipes.first.epoch is not a key of lab.yaml (value: 5)"),
        ("recipes.first.transforms", "rotate", 5, "recipes.first.transforms.rotate is not a key"),
        ("recipes.first", "epochs", "many", "recipes.first.epochs is 'many': Input should be a valid integer"),
        ("recipes.first", "epochs", -3, "recipes.first.epochs is -3: Input should be greater than or equal to 1"),
        ("recipes.first", "epochs", 1.5, "recipes.first.epochs is 1.5: Input should be a valid integer"),
        ("recipes.first", "epochs", None, "recipes.first.epochs has no value; give it one, or remove it"),
        ("recipes.first", "learning_rate", float("inf"), "recipes.first.learning_rate is inf: Input should be a fin"),
        ("recipes.first", "test_fraction", float("nan"), "recipes.first.test_fraction is nan: Input should be"),
        ("recipes.first", "test_fraction", 1, "recipes.first.test_fraction is 1: Input should be less than 1"),
        ("recipes.first", "weights", "", "recipes.first.weights is '': String should have at least 1 character"),
        (
            "recipes.first",
            "weights",
            "ImageNet",
            "is neither imagenet nor random; write imagenet, or ./Im",
        ),
        ("recipes.first", "weights", "randon", "is neither imagenet nor random; write random, or ./randon"),
        ("recipes.first", "net_type", "resnet50", "is 'resnet50': DeepLabCut has no single-animal network `resnet50`"),
        ("recipes.first", "net_type", "resnet50", "; write resnet_50"),
        ("recipes.first", "net_type", "ResNet-101", "; write resnet_101"),
        ("recipes.first", "net_type", "cspnext_l", "; write cspnext_"),
        ("recipes.first", "net_type", "yolo", "; the names are cspnext_s, cspnext_m, cspnext_x, hrnet_w18"),
        ("recipes.first", "net_type", "dlcrnet_ms5", "no single-animal network `dlcrnet_ms5`"),
        ("recipes.first", "project", "maze", "recipes.first.project is 'maze', but the projects are openfield"),
        ("recipes.first.transforms", "scale", [1.3, 0.7], "transforms.scale is [1.3, 0.7]: must be two numbers"),
        ("recipes.first.transforms", "scale", 1.3, "recipes.first.transforms.scale is 1.3: must be a list, such as [a"),
        ("recipes", "my recipe", {"project": "openfield"}, "recipes.my recipe is 'my recipe': must be a name of at"),
        ("recipes", "x" * 101, {"project": "openfield"}, "must be a name of at most 100 letters"),
        ("recipes", "a...b", {"project": "openfield"}, "recipes.a...b is 'a...b': must be a name of at most"),
        ("recipes.first", "seed", 2**32, "recipes.first.seed is 4294967296: Input should be less than 4294967296"),
        ("recipes.first", "apart_frames", -1, "recipes.first.apart_frames is -1: Input should be greater than or equ"),
        ("promotion", "rule", "best", "promotion.rule is 'best': Input should be 'clearly_better' or 'person'"),
        ("promotion", "confidence", 95, "promotion.confidence is 95: Input should be less than or equal to 0.9999"),
        ("", "regions", [{"x": -1, "y": 0, "width": 99, "height": 99}], "regions.0.x is -1: Input should be greater"),
        ("", "regions", [{"x": 0, "y": 0, "width": 31, "height": 99}], "regions.0.width is 31: Input should be gr"),
        ("", "regions", [{"x": 0, "y": 0.5, "width": 32, "height": 32}], "regions.0.y is 0.5: Input should be a va"),
        ("", "regions", [{"x": 0, "y": 0, "width": 32}], "regions.0.height is missing; add it"),
        ("recipes", "broken", 7, "recipes.broken is 7: must hold keys of its own, such"),
        ("", "raw_roots", "/data", "raw_roots is '/data': must be a list, such as [a, b]"),
        ("", "raw_roots", ["/da\0ta"], "raw_roots.0 is '/da\\x00ta': holds a zero byte"),
        ("", "store", "\0", "store is '\\x00': holds a zero byte"),
        ("projects.openfield", "path", "a\0b", "projects.openfield.path is 'a\\x00b': holds a zero byte"),
        ("recipes.first", "weights", "a\0b", "recipes.first.weights is 'a\\x00b': holds a zero byte"),
        ("layout", "extensions", [".mp4", ""], "layout.extensions is ['.mp4', '']: holds an empty extension"),
        ("layout", "extensions", ["."], "layout.extensions is ['.']: holds an empty extension"),
        ("", "raw_roots", [], "raw_roots is []: List should have at least 1 item"),
        ("", "raw_roots", None, "raw_roots has no value"),
        ("", "projects", {}, "projects is {}: Dictionary should have at least 1 item"),
        ("", "name", 2024, "line 1: name is 2024, which is not text in YAML; put it in quotes: '2024'"),
        ("projects.openfield", "scorer", "me", "projects.openfield.scorer is not a key"),
        ("layout", "pattern", "(?P<subject>[", "layout.pattern is '(?P<subject>[': is not a regular expression: unter"),
        ("layout", "pattern", "(?P<subject>.+)/.+", "lacks (?P<session>...)"),
        ("layout", "extensions", [], "layout.extensions is []: List should have at least 1 item"),
        ("", "inference", [{"project": "maze"}], "inference.0.project is 'maze', but the projects are openfield"),
        ("", "inference", [{"camera": "top"}], "inference.0.project is missing; add it"),
        ("", "gpus", "all", "gpus is 'all': must be auto, or a list of device numbers such as [0, 1]"),
        ("", "gpus", [-1], "gpus is [-1]: must be auto, or a list"),
        ("", "settle_seconds", -1, "settle_seconds is -1: Input should be greater than or equal to 0"),
        ("", "scan_seconds", 0, "scan_seconds is 0: Input should be greater than or equal to 1"),
        (
            "",
            "video_quality",
            [{"exposure": [300, 400]}],
            "video_quality.0.exposure.0 is 300: Input should be less than or equal to 255",
        ),
        ("", "video_quality", [{"resolution": [0, 3]}], "video_quality.0.resolution.0 is 0: Input should be greater"),
        ("pose_quality", "limits", {"outside": {"fail": 30}}, "outside must be a fraction from 0 to 1"),
        (
            "pose_quality",
            "limits",
            {"jumps": {"fail": -1}},
            "limits.jumps.fail is -1: Input should be greater than or equal",
        ),
        ("pose_quality", "limits", {"jumps": {"warn": 0.5, "fail": 0.1}}, "jumps must warn before it fails"),
        ("pose_quality", "limits", {"mean_likelihood": {"warn": 0.5, "fail": 0.9}}, "mean_likelihood must warn before"),
        (
            "pose_quality",
            "limits",
            {"temporal_norm_px": {"fail": -1}},
            "temporal_norm_px.fail is -1: Input should be greater",
        ),
        ("pose_quality", "rules", [{"project": "maze"}], "pose_quality.rules.0.project is 'maze', but the projects ar"),
        ("", "scan", 20, "scan is 20: must hold keys of its own, such as {key: value}"),
        (
            "",
            "video_quality",
            [{"only_warn": "focus"}],
            "video_quality.0.only_warn is 'focus': must be a list, such as",
        ),
        ("", "likelihood_cutoff", 60, "likelihood_cutoff is 60: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_key_is_named_with_its_value(tmp_path: Path, section: str, key: str, value: object, said: str) -> None:
    error = refusal(tmp_path, changed(section, key, value))
    assert said in error.problem
    assert error.remedy == "Mend these keys and try again"


def numbers(section: type[BaseModel]) -> Iterator[tuple[str, list[Any]]]:
    """Each number that a section and those below it may hold, with what limits it."""
    for name, field in section.model_fields.items():
        for kind, bounds in leaves(field.annotation, field.metadata):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from ((f"{name}.{below}", own) for below, own in numbers(kind))
            elif kind in (int, float):
                yield name, bounds


@pytest.mark.parametrize(("key", "bounds"), list(numbers(Lab)))
def test_every_number_has_two_limits(key: str, bounds: list[Any]) -> None:
    limits = [name for bound in bounds for name in ("ge", "gt", "le", "lt") if getattr(bound, name, None) is not None]
    assert sorted(name[0] for name in limits) == ["g", "l"], key
    assert all(abs(getattr(bound, name, None) or 0) <= 1e10 for bound in bounds for name in limits), key


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("", "settle_seconds", 1e99, "line 9: settle_seconds is 1e+99: Input should be less than or equal to 31536000"),
        ("scan", "queued_sessions", 10**400, "scan.queued_sessions is 1000"),
        ("runs", "retry_minutes", [1, float("nan")], "runs.retry_minutes.1 is nan: Input should be a finite number"),
        ("recipes.first", "epochs", True, "recipes.first.epochs is True: must be a number, and not true or false"),
        ("runs", "retry_minutes", [True], "runs.retry_minutes is [True]: must be a number, and not true or false"),
        ("", "gpus", [True], "gpus is [True]: must be auto, or a list of device numbers"),
        ("", "gpus", [1024], "gpus is [1024]: must be auto, or a list of device numbers"),
        ("", "gpus", [0, 0, 7], "gpus is [0, 0, 7]: lists 0 more than once"),
        ("", "gpus", ["GPU-1a", "GPU-1A"], "lists gpu-1a more than once"),
        (
            "pose_quality",
            "rules",
            [{"arena": [[0, 0], [1e9, 1]]}],
            "rules.0.arena.1.0 is 1000000000.0: Input should be le",
        ),
        (
            "",
            "inference",
            [{"project": "openfield", "camera": ""}],
            "inference.0.camera is '': String should have at le",
        ),
    ],
)
def test_values_out_of_all_bounds(tmp_path: Path, section: str, key: str, value: object, said: str) -> None:
    assert said in refusal(tmp_path, changed(section, key, value)).problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            LAB.replace("openfield:", "2024:"),
            "line 3: projects.2024: the name 2024 is not text in YAML; put it in",
        ),
        (LAB.replace("openfield:", "true:"), "line 3: projects.true: the name true is not text in YAML"),
        (LAB.replace("openfield:", "2024-01-31:"), "the name 2024-01-31 is not text in YAML; put it in quotes"),
        (
            LAB + "name: 2024-01-31\n",
            "line 6: name is 2024-01-31, which is not text in YAML; put it in quotes: '",
        ),
        (LAB + "name: 0x10\n", "line 6: name is 0x10, which is not text in YAML; put it in quotes: '0x10'"),
        (
            LAB + "inference:\n- {project: openfield, camera: 007}\n",
            "line 7: inference.0.camera is 007, which is not text",
        ),
        (LAB + "name: lab\ntime_zone: 2024-13-45\n", "is not YAML: month must be in 1..12 (line 7: 2024-13-45)"),
        (LAB.replace("openfield:", "2024-13-45:"), "is not YAML: month must be in 1..12 (line 3: 2024-13-45)"),
        (
            LAB + "settle_second: 3\n",
            "line 6: settle_second is not a key of lab.yaml (value: 3); did you mean settle_sec",
        ),
        (
            LAB + "runs: {retry_minute: [3]}\n",
            "line 6: runs.retry_minute is not a key of lab.yaml (value: [3]); did you me",
        ),
        (
            LAB + "pose_quality:\n  rules:\n  - {arenas: 3}\n",
            "line 8: pose_quality.rules.0.arenas is not a key of lab.",
        ),
        (
            LAB + "promotion: {hopeless: {Correct: 1}}\n",
            "promotion.hopeless.Correct is not a key of lab.yaml (value: 1); di",
        ),
        (
            LAB + "  second:\n    project: openfield\n    epochs: 0\n",
            "line 8: recipes.second.epochs is 0: Input should",
        ),
    ],
)
def test_the_line_and_the_remedy_are_said(tmp_path: Path, text: str, said: str) -> None:
    error = refusal(tmp_path, text)
    assert said in error.problem
    assert "did you mean" not in said or "?" in error.problem


def test_names_that_yaml_1_2_takes_for_text(tmp_path: Path) -> None:
    text = "raw_roots: [/data/raw]\nprojects: {on: {path: /a}, no: {path: /b}, '2024': {path: /c}, 1:30: {path: /d}}\n"
    with pytest.raises(PlatformError, match=r"projects\.1:30 is '1:30': must be a name"):
        load(tmp_path, text)
    assert list(load(tmp_path, text.replace("1:30", "y")).projects) == ["on", "no", "2024", "y"]


@pytest.mark.parametrize(
    ("section", "earlier", "later", "hidden"),
    [
        ("inference", {"camera": "*"}, {"camera": "top"}, True),
        ("inference", {}, {"camera": "top*"}, True),
        ("inference", {"camera": "t*"}, {"camera": "top*"}, True),
        ("inference", {"camera": "top"}, {"camera": "top"}, True),
        ("inference", {"camera": "to?"}, {"camera": "top"}, True),
        ("inference", {"camera": "*p*"}, {"camera": "t?p[12]"}, True),
        ("inference", {"camera": "[st]op"}, {"camera": "top"}, True),
        ("inference", {"camera": "[!s]op"}, {"camera": "top"}, True),
        ("inference", {"camera": "top"}, {"camera": "*"}, False),
        ("inference", {"camera": "to?"}, {"camera": "to*"}, False),
        ("inference", {"camera": "[st]op"}, {"camera": "?op"}, False),
        ("inference", {"camera": "Top"}, {"camera": "top"}, False),
        ("regions", {"camera": "top", "session": "*"}, {"camera": "top", "session": "sub-1_*"}, True),
        ("regions", {"camera": "top"}, {"session": "sub-1_*"}, False),
        ("video_quality", {}, {"camera": "top"}, True),
        ("pose_quality.rules", {"camera": "t*"}, {"camera": "top", "project": "openfield"}, True),
        ("pose_quality.rules", {"project": "openfield"}, {"camera": "top"}, False),
    ],
)
def test_a_rule_that_an_earlier_one_hides(
    tmp_path: Path, section: str, earlier: dict[str, str], later: dict[str, str], hidden: bool
) -> None:
    must = {
        "inference": {"project": "openfield"},
        "regions": {"x": 0, "y": 0, "width": 64, "height": 64},
    }.get(section, {})
    above, _, key = section.rpartition(".")
    text = changed(above, key, [{**must, **earlier}, {**must, **later}])
    if hidden:
        assert f"{section}.1 (" in (problem := refusal(tmp_path, text).problem)
        assert f"is never used, because {section}.0 (" in problem
    else:
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("store/raw", "which lies inside {}/store, where the platform writes"),
        ("store", "which lies inside {}/store, where"),
        ("work", "which lies inside {}/work, where"),
        ("postgres/data", "which lies inside {}/postgres, where"),
        ("dagster", "which lies inside {}/dagster, where"),
        (".", "its own folder lies inside {}, where"),
        ("/", "its own folder lies inside /, where"),
        ("link-to-store/x", "which lies inside {}/store, where"),
    ],
)
def test_a_raw_root_where_the_platform_works(tmp_path: Path, root: str, said: str) -> None:
    (tmp_path / "link-to-store").symlink_to("store")
    problem = refusal(tmp_path, changed("", "raw_roots", [root])).problem
    assert said.format(tmp_path) in problem


def test_a_project_where_the_platform_works(tmp_path: Path) -> None:
    problem = refusal(tmp_path, changed("projects.openfield", "path", "store/project")).problem
    assert "projects.openfield.path has " in problem and "where the platform writes" in problem


def test_a_raw_root_under_two_names(tmp_path: Path) -> None:
    (tmp_path / "raw" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("raw")
    (tmp_path / "deep").symlink_to("raw/a")
    for roots in (
        ["raw", "raw"],
        ["raw", "link"],
        ["raw", "deep"],
        ["deep", "raw"],
        ["raw/a", "link"],
        ["gone", "gone"],
    ):
        problem = refusal(tmp_path, changed("", "raw_roots", roots)).problem
        assert f"raw_roots has {tmp_path / roots[1]} " in problem
    # What lies in another root by its own name is found once, by the first that can place it.
    assert len(load(tmp_path, changed("", "raw_roots", ["raw/a", "raw"])).raw_roots) == 2


def test_missing_keys_are_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, "name: lab\n")
    assert "raw_roots is missing; add it; projects is missing; add it" in error.problem


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    error = refusal(tmp_path, LAB + "  second: {project: maze, epochs: 0}\nfoo: 1\n")
    assert "recipes.second.epochs is 0" in error.problem and "foo is not a key" in error.problem
    error = refusal(tmp_path, LAB + "  second: {project: maze}\ninference: [{project: arena}]\n")
    assert "recipes.second.project is 'maze'" in error.problem and "inference.0.project is 'arena'" in error.problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no keys"),
        ("# nothing yet\n", "holds no keys"),
        ("- raw_roots\n", "holds no keys"),
        ("just text", "holds no keys"),
        ("name: lab\nraw_roots: [/data\nprojects: {}\n", "is not YAML: while parsing a flow sequence"),
        ("name: lab\n\traw_roots: []\n", "line 2"),
        ("name: 2024-13-45\n", "is not YAML: month must be in 1..12"),
        (b"name: \xff\xfe\n", "is not UTF-8"),
        ("name: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_lab(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in refusal(tmp_path, text).problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAB + "  first: {project: openfield, epochs: 3}\n", "recipes.first is written twice, in lines 5 and 6"),
        (LAB + "raw_roots: [/other]\n", "raw_roots is written twice, in lines 1 and 6"),
        (LAB + "inference:\n- {project: openfield, camera: a, camera: b}\n", "inference.0.camera is written twice"),
    ],
)
def test_a_key_written_twice_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    error = refusal(tmp_path, text)
    assert said in error.problem
    assert error.remedy == "Rename or remove one of the two"


def test_anchors_are_no_repetition(tmp_path: Path) -> None:
    text = LAB.replace("first: {project: openfield}", "first: &base {project: openfield, epochs: 3}\n")
    lab = load(tmp_path, text + "  second: {<<: *base, epochs: 4}\n  third: *base\n")
    assert [recipe.epochs for recipe in lab.recipes.values()] == [3, 4, 3]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=r"lab\.yaml does not exist") as caught:
        load_lab(tmp_path)
    assert "dlc-platform init" in caught.value.remedy


def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").mkdir()
    with pytest.raises(PlatformError, match=r"lab\.yaml is not a file but a folder"):
        load_lab(tmp_path)


@pytest.mark.parametrize("store", ["../raw/products", "../openfield", "../link/products"])
def test_a_store_among_what_is_only_read_is_refused(tmp_path: Path, store: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "link").symlink_to("raw")
    text = f"raw_roots: [../raw]\nprojects: {{openfield: {{path: ../openfield}}}}\nstore: {store}\n"
    error = refusal(tmp_path / "lab", text)
    assert "store is " in error.problem and "nothing may be written" in error.problem


@pytest.mark.parametrize("roots", ["[..]", "[.]", "[../link]"])
def test_a_home_among_what_is_only_read_is_refused(tmp_path: Path, roots: str) -> None:
    (tmp_path / "link").symlink_to(".")
    text = f"raw_roots: {roots}\nprojects: {{openfield: {{path: /data/openfield}}}}\nstore: /data/store\n"
    error = refusal(tmp_path / "lab", text)
    assert "its own folder lies inside" in error.problem and "nothing may be written" in error.problem


def test_the_first_rule_that_matches_is_used(tmp_path: Path) -> None:
    rules = [("top_left", "openfield"), ("top*", "maze"), ("[ab]", "maze"), ("Side", "maze")]
    content = yaml.safe_load(LAB)
    content["projects"]["maze"] = {"path": "/data/maze"}
    content["inference"] = [{"camera": camera, "project": project} for camera, project in rules]
    lab = load(tmp_path, yaml.safe_dump(content))
    assert lab.tracking.rule_for("top_left") == InferenceRule(camera="top_left", project="openfield")
    assert lab.tracking.rule_for("top_right") == InferenceRule(camera="top*", project="maze")
    assert lab.tracking.rule_for("b") == InferenceRule(camera="[ab]", project="maze")
    assert lab.tracking.rule_for("side") is None
    assert load(tmp_path, LAB).tracking.rule_for("top") is None
    assert load(tmp_path, LAB + "inference: [{project: openfield}]\n").tracking.rule_for("anything") is not None


def test_the_first_matching_region_is_used(tmp_path: Path) -> None:
    regions = [
        {"camera": "top", "session": "sub-1_*", "x": 1, "y": 2, "width": 100, "height": 50},
        {"camera": "top*", "x": 10, "y": 0, "width": 64, "height": 64},
        {"session": "sub-2_ses-1", "x": 0, "y": 0, "width": 32, "height": 32},
    ]
    lab = load(tmp_path, changed("", "regions", regions))
    assert lab.tracking.region_for("sub-1_ses-1", "top") == Region(1, 2, 100, 50)
    assert lab.tracking.region_for("sub-2_ses-1", "top") == Region(10, 0, 64, 64)
    assert lab.tracking.region_for("sub-2_ses-1", "side") == Region(0, 0, 32, 32)
    assert lab.tracking.region_for("sub-2_ses-10", "side") is None
    assert load(tmp_path, LAB).tracking.region_for("sub-1_ses-1", "top") is None


def test_extensions_are_compared_in_lower_case(tmp_path: Path) -> None:
    assert load(tmp_path, LAB + "layout: {extensions: [MP4, .Avi]}\n").layout.extensions == (".mp4", ".avi")


def test_the_home_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, f"{tmp_path}/x/..")
    assert home_from_environment() == tmp_path.resolve()
    monkeypatch.setenv(HOME_VARIABLE, "")
    with pytest.raises(PlatformError, match="DLC_PLATFORM_HOME is not set"):
        home_from_environment()


HOOK = "https://hooks.example.org/services/T0/B0/verysecret"


def test_channels_are_told_of_everything_by_default(tmp_path: Path) -> None:
    notify = {
        "webhooks": [{"name": "room", "url_file": "room.url"}],
        "mails": [
            {
                "name": "us",
                "host": "smtp.example.org",
                "user": "lab",
                "password_variable": "SMTP_PASSWORD",
                "sender": "lab@example.org",
                "recipients": ["ada@example.org"],
            }
        ],
    }
    lab = load(tmp_path, yaml.safe_dump({**yaml.safe_load(LAB), "notify": notify}))
    room, us = lab.notify.channels
    assert room.send == us.send == ("run_failure", "quarantine", "stale", "daily_report")
    assert lab.notify.webhooks[0].url_file == tmp_path / "room.url"


@pytest.mark.parametrize(
    ("notify", "said"),
    [
        ({"webhooks": [{"name": "room", "url": HOOK}]}, "notify.webhooks.0.url is not a key"),
        ({"webhooks": [{"name": "room", "url_variable": HOOK}]}, "the name of an environment variable"),
        ({"webhooks": [{"name": "room"}]}, "either url_variable or url_file"),
        ({"webhooks": [{"name": "room", "url_file": "a", "format": HOOK}]}, "notify.webhooks.0.format"),
        ({"webhooks": [{"name": "room", "url_file": "a"}] * 2}, "several channels are called room"),
        ({"webhooks": HOOK}, "notify.webhooks"),
        (
            {"mails": [{"name": "us", "host": "h", "sender": "a@b", "recipients": ["a@b\nBcc: c@d"]}]},
            "must be an e-mail address",
        ),
        (
            {"mails": [{"name": "us", "host": "h", "sender": "a@b", "recipients": ["c@d"], "password": "verysecret"}]},
            "notify.mails.0.password is not a key",
        ),
        (
            {
                "mails": [
                    {
                        "name": "us",
                        "host": "h",
                        "tls": "none",
                        "user": "u",
                        "password_file": "p",
                        "sender": "a@b",
                        "recipients": ["c@d"],
                    }
                ]
            },
            "a password is not sent without tls",
        ),
    ],
)
def test_a_wrong_channel_is_named_without_what_may_be_secret(tmp_path: Path, notify: object, said: str) -> None:
    problem = refusal(tmp_path, yaml.safe_dump({**yaml.safe_load(LAB), "notify": notify})).problem
    assert said in problem
    assert "verysecret" not in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("", "time_zone", "Mars/Olympus"), "time_zone is 'Mars/Olympus': is not a time zone"),
        (changed("", "time_zone", "../../etc/passwd"), "is not a time zone"),
        (changed("freshness", "warn_hours", 3), "warn_hours needs fail_hours"),
        (changed("freshness", "poses_within_hours", 0), "freshness.poses_within_hours is 0"),
    ],
)
def test_times_that_make_no_sense(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text).problem


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("5 4 * *", "must be minute, hour, day of the month, month and day of the week"),
        ("0 0 4 * * *", "must be minute, hour"),
        ("60 * * * *", "'60' in the place of numbers from 0 to 59"),
        ("0 3 * * sat", "'sat' in the place of numbers from 0 to 6"),
        # Every month has a 28th.
        ("0 3 31 * *", "'31' in the place of numbers from 1 to 28"),
        ("0 9-5 * * *", "'9-5' in the place of numbers from 0 to 23"),
        ("*/0 * * * *", "'*/0'"),
        ("@daily", "'@daily'"),
    ],
)
def test_a_schedule_that_never_comes(tmp_path: Path, cron: str, reason: str) -> None:
    problem = refusal(tmp_path, changed("schedules", "back_up", cron)).problem
    assert "schedules.back_up" in problem and reason in problem


@pytest.mark.parametrize("cron", ["*/5 8-18 * * 1-5", "0,30 2 1,15 */3 *"])
def test_a_schedule_that_comes(tmp_path: Path, cron: str) -> None:
    assert load(tmp_path, changed("schedules", "clean_up", cron)).schedules.clean_up == cron


def test_the_stage_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, LAB).stage == "production"
    assert load(tmp_path, changed("", "stage", "staging")).stage == "staging"
    monkeypatch.setenv("DLC_PLATFORM_STAGE", "development")
    assert load(tmp_path, changed("", "stage", "staging")).stage == "development"


def test_backups_go_beside_the_lab_and_never_into_raw_data(tmp_path: Path) -> None:
    assert load(tmp_path, LAB).backups.folder == tmp_path / "backups"
    problem = refusal(tmp_path, changed("backups", "folder", "/data/raw/backups")).problem
    assert "backups.folder is /data/raw/backups" in problem


@pytest.mark.parametrize(
    ("key", "value"), [("retry_minutes", [-1]), ("retry_minutes", [1] * 11), ("keep_events_days", 1), ("most_hours", 0)]
)
def test_rules_of_runs_that_cannot_be(tmp_path: Path, key: str, value: object) -> None:
    assert f"runs.{key}" in refusal(tmp_path, changed("runs", key, value)).problem


@pytest.mark.parametrize("key", ['"<<": 1', '"<<": ~', '"<<": [1]', '"[key]": 1'])
def test_a_key_that_means_something_to_a_parser_is_a_wrong_key(tmp_path: Path, key: str) -> None:
    assert f"{key.split(chr(34))[1]} is not a key of lab.yaml" in refusal(tmp_path, f"{LAB}\n{key}\n").problem


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?P<subject>a{1000000000})(?P<session>x)", "signs with its repetitions written out"),
        ("(?P<subject>(?:ab?){1000000})(?P<session>x)", "signs with its repetitions written out"),
        (r"(?P<subject>(?:(?:[ab]{100}){,100}\)?){100,})(?P<session>x)", "signs with its repetitions written out"),
        (f"(?P<subject>{'(?:' * 40}a{')' * 40})(?P<session>x)", "groups within each other"),
        (f"(?P<subject>a)(?P<session>{'x' * 3000})", "is longer than 2000 characters"),
    ],
)
def test_a_pattern_that_needs_much_memory_is_refused_uncompiled(tmp_path: Path, pattern: str, reason: str) -> None:
    problem = refusal(tmp_path, changed("layout", "pattern", pattern)).problem
    assert "layout.pattern" in problem and reason in problem


def test_patterns_of_people_are_small(tmp_path: Path) -> None:
    pattern = r"(?P<subject>[(){}A-Z]{2,8}\d{3})/(?P<session>(?:\d{4}-\d{2}-\d{2}_){1,3}\d{6})/[^/]{1,200}"
    assert load(tmp_path, changed("layout", "pattern", pattern)).layout.pattern == pattern
