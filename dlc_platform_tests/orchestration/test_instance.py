"""What a lab says of itself when it, or its database, lies elsewhere than before."""

import shutil
from pathlib import Path

import pytest
import yaml
from sqlalchemy import URL

from dlc_platform.errors import PlatformError
from dlc_platform.lab.doctor import examine
from dlc_platform.orchestration.instance import dagster_yaml, prepare, wanted_dagster_yaml, where_it_stands, write
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.settings.loading import load_lab


@pytest.fixture
def started(tmp_path: Path, tiny_project: Path) -> Path:
    """A lab that was started once, as far as its files go; of its two raw roots one is named by its whole path."""
    home = tmp_path / "lab"
    (home / "raw").mkdir(parents=True)
    settings = {
        "raw_roots": ["raw", str(home / "archive")],
        "projects": {"tiny": {"path": str(tiny_project)}, "own": {"path": str(home / "project")}},
        "inference": [{"project": "tiny"}],
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(settings))
    write(dagster_yaml(home), yaml.safe_dump(wanted_dagster_yaml(home, load_lab(home))))
    return home


def test_a_lab_that_stays_says_nothing_of_its_place(started: Path, tmp_path: Path):
    assert list(where_it_stands(started)) == []
    other = tmp_path / "link"
    other.symlink_to(started)
    assert list(where_it_stands(other)) == []


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_moved_lab_names_paths_that_lead_to_its_old_place(started: Path, tmp_path: Path, how: str):
    new = tmp_path / "new"
    shutil.copytree(started, new)
    if how == "moved":
        shutil.rmtree(started)
    where, *still = where_it_stands(new)
    assert where == (
        f"This lab was {how} from {started}. Relative paths in lab.yaml now begin at {new}. Registered "
        "files are found there by themselves, after the sensor's next look"
    )
    assert still == [
        f"lab.yaml still names {started / name} ({what}), in the lab's old place. Write {name} instead, if this lab "
        "is to use its own"
        for name, what in (("archive", f"raw_roots ({started / 'archive'})"), ("project", "the project own"))
    ]


def test_a_lab_that_was_never_started_says_nothing_of_its_place(started: Path):
    for content in ("", "local_artifact_storage: 3", "[1, 2]", "a: [", None):
        if content is None:
            dagster_yaml(started).unlink()
        else:
            dagster_yaml(started).write_text(content)
        assert list(where_it_stands(started)) == []


def test_products_without_their_catalogue_begin_no_new_one(
    started: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch
):
    """As when the disk of the database is not mounted: nothing may track all sessions once more."""
    (started / "store" / "models" / ("a" * 64)).mkdir(parents=True)
    monkeypatch.delenv(POSTGRES_VARIABLE, raising=False)
    with pytest.raises(PlatformError, match=r"1 product in .*store, and no catalogue that knows of it in .*postgres"):
        prepare(started)
    assert not (started / "postgres").exists()
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    with pytest.raises(PlatformError, match="in the database that the environment names") as refused:
        prepare(started)
    assert "is mounted" in refused.value.remedy
    (found,) = [finding for finding in examine(started) if finding.what == "Postgres"]
    assert (found.found, found.remedy) == (refused.value.problem, refused.value.remedy)

    shutil.rmtree(started / "store")
    prepare(started)
    (started / "store" / "models" / ("a" * 64)).mkdir(parents=True)
    prepare(started)
