"""Model versions in the catalogue: trainings, exports, and how they are named."""

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import IntegrityError

from dlc_platform.catalog import tables
from dlc_platform.catalog.models import (
    current_model,
    export_table,
    model_table,
    model_version,
    record_imported_model,
    require_model,
)
from dlc_platform.catalog.products import recorded_products
from dlc_platform.catalog.writing import BodyParts
from dlc_platform.errors import PlatformError
from dlc_platform_tests.catalog.looking import records, rows
from dlc_platform_tests.catalog.small_lab import export, identity, train


def test_one_model_trained_twice(lab: Engine) -> None:
    assert train(lab, "c", "d", recipe="third") is True
    assert train(lab, "c", "d", recipe="fourth") is False
    assert [row for row in rows(lab, tables.TrainingRun, "model_id", "recipe") if row[0] == identity("c")] == [
        (identity("c"), "third"),
        (identity("c"), "fourth"),
    ]
    model = current_model(lab, "fourth")
    assert model is not None and (model.id, model.scorer) == (identity("c"), "DLC_c")
    found = model_version(lab, identity("c"))
    assert found is not None and found.parameter_set_id == model.parameter_set_id
    assert model_version(lab, identity("0")) is None and current_model(lab, "unknown") is None
    assert len(rows(lab, tables.ParameterSet, "id")) == 1
    assert rows(lab, tables.ParameterSet, "parameters") == [({"epochs": 5, "net_type": "resnet_50"},)]


def test_the_newest_model_of_a_recipe_is_current(lab: Engine) -> None:
    train(lab, "c", "d", recipe="first")
    train(lab, "a", "d", recipe="first")
    model = current_model(lab, "first")
    assert model is not None and model.id == identity("a")


def test_an_export_is_recorded_once_and_belongs_to_its_model(lab: Engine) -> None:
    export(lab, "3", "a", accepted=False)
    export(lab, "3", "a", accepted=True)  # what was measured first stays
    made = export_table(lab)
    assert list(zip(made["model"], made["accepted"], strict=True)) == [(identity("a"), True), (identity("a"), False)]
    assert recorded_products(lab)["exports", identity("3")] == identity("0")
    with pytest.raises(IntegrityError, match="fk_model_export_model_id"):
        export(lab, "4", "c")


def test_a_model_is_named_by_as_much_as_tables_show(lab: Engine) -> None:
    for middle, project in (("1", "maze"), ("2", "arena")):
        record_imported_model(
            lab,
            tables.ModelVersion(
                id=f"ab{'c' * 12}{middle}".ljust(64, "0"),
                project=project,
                net_type="resnet_50",
                weights_sha256=identity(middle),
                scorer="elsewhere",
                source={},
            ),
            BodyParts(["nose"]),
        )
    assert require_model(lab, "aaa").id == identity("a")
    assert require_model(lab, f" {identity('B')}\n").id == identity("b")
    with pytest.raises(
        PlatformError,
        match=r"2 model versions begin with 'ab': abcccccccccccc1 of maze, abcccccccccccc2 of arena. Write more",
    ):
        require_model(lab, "ab")
    for unknown in ("", " ", "9", "%", "a%", "_" * 64):
        with pytest.raises(PlatformError, match="no model version begins with"):
            require_model(lab, unknown)


def test_models(lab: Engine) -> None:
    train(lab, "c", "d")
    found = model_table(lab)
    assert list(found) == [
        "project", "origin", "recipe", "model", "net_type", "scorer", "train_images", "test_images", "epochs",
        "train_seconds", "test_rmse_px", "tested_on", "production", "made_at", "dataset", "parameter_set", "run_id",
        "source",
    ]  # fmt: skip
    assert records(found, "project", "recipe", "model", "scorer", "test_rmse_px", "production", "run_id") == [
        ("maze", "first", identity("a"), "DLC_a", 5.0, False, "train-a"),
        ("maze", "second", identity("b"), "DLC_b", 3.0, True, "train-b"),
        ("maze", "first", identity("c"), "DLC_c", None, False, "train-c"),
    ]
    assert records(found, "train_images", "test_images", "epochs", "train_seconds", "dataset")[0] == (
        2, 1, 5, 12.5, identity("d"),
    )  # fmt: skip
    assert list(found["tested_on"]) == ["1 image", "1 image", None]


def test_an_error_says_what_it_is_over(lab: Engine) -> None:
    """Of a version from elsewhere, which may have been trained on the images, and of one that was trained on all."""
    with lab.begin() as connection:
        for model, images, known in (("a", 14, False), ("b", 0, True)):
            own = update(tables.Evaluation).where(tables.Evaluation.model_id == identity(model))
            connection.execute(own.values(test_images=images, training_known=known))
    assert list(model_table(lab)["tested_on"]) == [
        "14 images, perhaps trained on",
        "no image that it was not trained on",
    ]
