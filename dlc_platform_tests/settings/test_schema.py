"""The schema beside lab.yaml takes what the platform takes, and is that of the installed version."""

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import dlc_platform
from dlc_platform.lab.new_lab import make_lab
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.schema import SCHEMA_FILE, SCHEMA_LINE, lab_schema, write_schema

LEAST = {"raw_roots": ["raw"], "projects": {"arena": {"path": "project"}}}
PAGES = Path(dlc_platform.__file__).parent / "docs" / "pages"


def faults(content: dict[str, Any]) -> list[str]:
    """What an editor underlines."""
    return [fault.message for fault in Draft202012Validator(lab_schema()).iter_errors(content)]


def test_init_names_the_schema_and_writes_it_beside(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("Task: arena\nscorer: me\nbodyparts: [nose]\n")
    file = make_lab(tmp_path / "lab", [tmp_path / "raw"], [project])
    assert file.read_text().startswith(SCHEMA_LINE)
    assert json.loads((file.parent / SCHEMA_FILE).read_text()) == lab_schema()
    assert faults(yaml.safe_load(file.read_text())) == []


def test_the_schema_of_another_version_is_replaced(tmp_path: Path) -> None:
    (tmp_path / SCHEMA_FILE).write_text("{}")
    write_schema(tmp_path)
    assert json.loads((tmp_path / SCHEMA_FILE).read_text()) == lab_schema()
    assert [file.name for file in tmp_path.iterdir()] == [SCHEMA_FILE]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"pose_quality": {"floors": {"still": None, "confident": {"fail": 0.4}}}},
        {"gpus": [0, "GPU-7f1c"]},
        {"freshness": {"poses_within_hours": None}, "schedules": {"back_up": None}},
        {"layout": {"preset": "bids"}},
    ],
)
def test_editors_take_what_the_platform_takes(content: dict[str, Any]) -> None:
    Lab.model_validate(LEAST | content)
    assert faults(LEAST | content) == []


@pytest.mark.parametrize(
    "content", [{"gpuss": [0]}, {"scan": {"order": "random"}}, {"likelihood_cutoff": 2}, {"recipes": {"a": {}}}]
)
def test_editors_underline_what_the_platform_refuses(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Lab.model_validate(LEAST | content)
    assert faults(LEAST | content)


def test_the_excerpts_of_lab_yaml_in_the_pages_are_valid() -> None:
    seen = 0
    for page in PAGES.rglob("*.md"):
        for block in re.findall(r"(?:^ {4}[^\n]*\n)+|```yaml\n.*?```", page.read_text(encoding="utf-8"), re.S | re.M):
            text = block.removeprefix("```yaml\n").removesuffix("```") if block[0] == "`" else dedent(block)
            key = re.match(r"(\w+):", text)
            if key is None or key[1] not in Lab.model_fields:
                continue
            content = yaml.safe_load(text)
            assert faults(LEAST | content) == [], f"{page.name}: {text}"
            seen += 1
    assert seen >= 8
