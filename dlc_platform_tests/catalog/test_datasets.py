"""Datasets in the catalogue: which is current, and what becomes known of their images."""

from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.datasets import current_dataset, image_sides, registered_dataset
from dlc_platform_tests.catalog.looking import rows
from dlc_platform_tests.catalog.small_lab import dataset, identity, image, record_dataset

KEY = "sub-1_ses-1"


def test_a_dataset_whose_sessions_become_known(lab: Engine) -> None:
    made = [image("e", "3", None), image("e", "4", None, "test")]
    record_dataset(lab, "first", dataset("e"), made)
    known = [image("e", "3", KEY), image("e", "4", None, "test")]
    record_dataset(lab, "second", dataset("e"), known)
    columns = ("image_id", "session_key", "side")
    found = [row[1:] for row in rows(lab, tables.DatasetImage, "dataset_id", *columns) if row[0] == identity("e")]
    assert sorted(found) == [(identity("3"), KEY, "train"), (identity("4"), None, "test")]
    assert current_dataset(lab, "first") == current_dataset(lab, "second") == identity("e")
    # A session whose video was removed is still the session that taught the model.
    record_dataset(lab, "first", dataset("e"), made)
    found = [row for row in rows(lab, tables.DatasetImage, "dataset_id", "session_key") if row[0] == identity("e")]
    assert (identity("e"), KEY) in found


def test_the_newest_dataset_of_a_recipe_is_current(lab: Engine) -> None:
    record_dataset(lab, "first", dataset("e"), [image("e", "3", None)])
    record_dataset(lab, "first", dataset("d"), [image("d", "3", None)])
    assert current_dataset(lab, "first") == identity("d")
    assert current_dataset(lab, "unknown") is None
    assert len(rows(lab, tables.Dataset, "id")) == 2 and len(rows(lab, tables.DatasetBuild, "id")) == 3


def test_a_dataset_is_of_the_project_that_it_was_last_made_for(lab: Engine) -> None:
    images = [image("e", "3", None), image("e", "4", None, "test")]
    record_dataset(lab, "first", dataset("e", "maze"), images)
    record_dataset(lab, "first", dataset("e", "labyrinth"), images)
    made = registered_dataset(lab, identity("e"))
    assert made is not None and (made.project, made.seed) == ("labyrinth", 42)
    assert image_sides(lab, identity("e")) == {identity("3"): "train", identity("4"): "test"}
    assert registered_dataset(lab, identity("0")) is None
