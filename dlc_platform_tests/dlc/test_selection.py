"""Which version is chosen, on evaluations written by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from dlc_platform.catalog.tables import Evaluation, Promotion
from dlc_platform.dlc.selection import choose_best
from dlc_platform.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def evaluation(
    store: Store,
    name: str,
    model: str,
    hour: int,
    test: Sequence[float],
    images: Sequence[str] = ("1", "2"),
    x: float = 10.0,
    train: float = 1.0,
) -> Evaluation:
    """An evaluation with one labelled nose on each test image, `test` pixels off, and one training image."""
    rows = [("0", "train", x, train), *((image, "test", x, off) for image, off in zip(images, test, strict=True))]
    table = pd.DataFrame(rows, columns=["image", "side", "x", "distance_px"])
    table = table.assign(bodypart="nose", y=20.0, predicted_x=x, predicted_y=20.0, likelihood=0.9)
    unlabelled = table.assign(bodypart="tail", x=float("nan"), y=float("nan"), distance_px=float("nan"))
    predictions = pd.concat([table, unlabelled])

    def write(folder: Path) -> None:
        predictions.to_parquet(folder / "predictions.parquet", index=False)

    store.put("evaluations", name, {"model": model, "dataset": f"data-{name}"}, write)
    return Evaluation(id=name, model_id=model, evaluated_at=START + timedelta(hours=hour))


def promotion(model: str, hour: int) -> Promotion:
    return Promotion(project="maze", model_id=model, weighed_until=START + timedelta(hours=hour))


def test_nothing_to_choose_from(store: Store) -> None:
    assert choose_best([], None, store) is None


def test_the_first_one_wins(store: Store) -> None:
    choice = choose_best([evaluation(store, "e1", "a", 1, [3, 3])], None, store)
    assert choice is not None
    assert (choice.model_id, choice.evaluation_id, choice.reason) == ("a", "e1", "the first evaluated version")


def test_a_better_one_replaces_it(store: Store) -> None:
    rows = [evaluation(store, "e1", "a", 1, [3, 5]), evaluation(store, "e2", "b", 3, [1, 2])]
    choice = choose_best(rows, promotion("a", 2), store)
    assert choice is not None and (choice.model_id, choice.evaluation_id) == ("b", "e2")
    assert choice.reason == "test RMSE 1.58 px, against 4.12 px before, on the 2 test images they share"


@pytest.mark.parametrize("test", [[3, 5.1], [3, 5], [5, 3], [4.2, 4.2]])
def test_a_worse_or_equal_one_never_does(store: Store, test: list[float]) -> None:
    """The root of the mean square counts: 4.2 and 4.2 are worse than 3 and 5."""
    rows = [evaluation(store, "e1", "a", 1, [3, 5]), evaluation(store, "e2", "b", 3, test, train=0.1)]
    for in_force in (promotion("a", 2), None):
        choice = choose_best(rows, in_force, store)
        assert choice is not None and (choice.model_id, choice.evaluation_id) == ("a", "e1")


def test_the_best_of_several_whatever_their_order(store: Store) -> None:
    rows = [evaluation(store, f"e{n}", f"m{n}", n, [off, off]) for n, off in enumerate([5.0, 2.0, 3.0, 2.0, 4.0])]
    choice = choose_best(rows, None, store)
    assert choice is not None and choice.model_id == "m1"
    choice = choose_best(rows, promotion("m0", 0), store)
    assert choice is not None and choice.model_id == "m1" and "2.00 px, against 5.00 px" in choice.reason


def test_only_shared_test_images_count(store: Store) -> None:
    """The newer version is better on what both were tested on, and met a hard image besides."""
    rows = [
        evaluation(store, "e1", "a", 1, [3, 3, 0], ["1", "2", "old"]),
        evaluation(store, "e2", "b", 3, [2, 2, 90], ["1", "2", "hard"]),
    ]
    choice = choose_best(rows, promotion("a", 2), store)
    assert choice is not None and choice.model_id == "b" and "on the 2 test images they share" in choice.reason


def test_without_shared_images_nothing_is_better(store: Store) -> None:
    rows = [evaluation(store, "e1", "a", 1, [9], ["1"]), evaluation(store, "e2", "b", 3, [1], ["2"])]
    choice = choose_best(rows, promotion("a", 2), store)
    assert choice is not None and choice.model_id == "a"


def test_a_corrected_label_is_another_question(store: Store) -> None:
    rows = [
        evaluation(store, "e1", "a", 1, [9, 9], x=10.0),
        evaluation(store, "e2", "b", 3, [1, 1], x=10.5),
    ]
    choice = choose_best(rows, promotion("a", 2), store)
    assert choice is not None and choice.model_id == "a"


def test_what_a_person_promoted_holds_until_something_newer_is_better(store: Store) -> None:
    rows = [evaluation(store, "e1", "good", 1, [2, 2]), evaluation(store, "e2", "worse", 2, [5, 5])]
    by_person = promotion("worse", 3)
    choice = choose_best(rows, by_person, store)
    assert choice is not None and (choice.model_id, choice.evaluation_id) == ("worse", "e2")
    rows.append(evaluation(store, "e3", "no better", 4, [5, 5]))
    choice = choose_best(rows, by_person, store)
    assert choice is not None and choice.model_id == "worse"
    rows.append(evaluation(store, "e4", "better", 5, [4, 4]))
    choice = choose_best(rows, by_person, store)
    assert choice is not None and choice.model_id == "better"


def test_of_several_evaluations_of_one_version_the_newest_counts(store: Store) -> None:
    rows = [
        evaluation(store, "e1", "a", 1, [9, 9]),
        evaluation(store, "e2", "a", 2, [1, 1]),
        evaluation(store, "e3", "b", 4, [5, 5]),
    ]
    choice = choose_best(rows, promotion("a", 3), store)
    assert choice is not None and (choice.model_id, choice.evaluation_id) == ("a", "e2")


def test_a_version_in_use_that_was_never_evaluated_is_kept(store: Store) -> None:
    choice = choose_best([evaluation(store, "e1", "a", 2, [1, 1])], promotion("unknown", 1), store)
    assert choice is not None and (choice.model_id, choice.evaluation_id) == ("unknown", None)
    assert "never evaluated" in choice.reason
    choice = choose_best([], promotion("unknown", 1), store)
    assert choice is not None and choice.model_id == "unknown"
