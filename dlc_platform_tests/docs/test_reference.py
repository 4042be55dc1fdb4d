"""The reference is what the code says, and nothing in it is without a word."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import Engine

import dlc_platform
from dlc_platform import Platform
from dlc_platform.dlc.dataset import Dataset
from dlc_platform.docs import reference
from dlc_platform.settings.lab import Lab

PACKAGE = Path(dlc_platform.__file__).parent


def test_the_committed_pages_are_what_the_code_says(engine: Engine) -> None:
    for name, content in reference.pages(engine).items():
        written = (reference.PAGES / name).read_text(encoding="utf-8")
        assert written == content, f"{name} is out of date: run `uv run {reference.COMMAND}`"


def test_every_key_of_lab_yaml_is_described() -> None:
    schema = Lab.model_json_schema()
    sections: dict[str, dict[str, Any]] = {"": schema, **schema["$defs"]}
    keys = {(name, key): entry for name, section in sections.items() for key, entry in section["properties"].items()}
    assert not [key for key, entry in keys.items() if not entry.get("description") and "$ref" not in entry]
    assert not [name for name, section in sections.items() if not section.get("description")]


def test_every_command_and_option_is_described() -> None:
    known = list(reference.commands())
    assert len(known) > 30
    silent = [" ".join(path) for path, command, _ in known if not command.help]
    silent += [
        f"{' '.join(path)} {parameter.opts[0]}"
        for path, command, _ in known
        for parameter in command.params
        if not parameter.help
    ]
    assert not silent


def test_every_question_of_platform_is_described() -> None:
    methods = reference.public_methods(Platform)
    assert {"sessions", "poses", "lineage"} <= {name for name, _ in methods}
    assert not [name for name, method in methods if not method.__doc__]


def test_every_column_of_a_view_has_a_meaning(engine: Engine) -> None:
    columns = {column for _, _, own in reference.views(engine) for column, _ in own}
    assert columns == set(reference.VIEW_COLUMNS)
    assert all(comment for _, comment, _ in reference.views(engine))


def test_every_environment_variable_is_described() -> None:
    known = {
        name
        for file in PACKAGE.rglob("*.py")
        for name in re.findall(r"\"(DLC_PLATFORM_[A-Z_]*[A-Z])\"", file.read_text(encoding="utf-8"))
    }
    page = (reference.PAGES / "environment.md").read_text(encoding="utf-8")
    assert {name for name in known if f"`{name}`" not in page} == set()


def test_the_columns_of_labels_are_those_described(tiny_dataset: Dataset) -> None:
    written = pq.read_schema(tiny_dataset.path / "labels.parquet")
    assert {name: str(written.field(name).type) for name in written.names} == reference.column_types("labels.parquet")
