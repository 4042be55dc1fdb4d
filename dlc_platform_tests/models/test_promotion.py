"""Which version is chosen, on evaluations written by hand."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from dlc_platform.catalog.tables import Evaluation, Promotion
from dlc_platform.models.promotion import Choice, choose_best
from dlc_platform.settings.promotion import PromotionRule
from dlc_platform.store import Store
from dlc_platform_tests.dlc.evaluations import write_evaluation

START = datetime(2026, 1, 1, tzinfo=UTC)
CLEARLY_BETTER = PromotionRule()
#: How far off a mediocre version is on 20 test images.
OFF = np.random.default_rng(0).exponential(4, 20) + 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def evaluation(
    store: Store,
    name: str,
    model: str,
    hour: int,
    test: Sequence[float] | np.ndarray,
    images: Sequence[str] | None = None,
    x: float = 10.0,
    **more: Sequence[float] | np.ndarray,
) -> Evaluation:
    """An evaluation with one labelled nose on each test image, `test` pixels off, and `more` body parts."""
    distances = {part: np.asarray(off).tolist() for part, off in {"nose": test, **more}.items()}
    write_evaluation(store, name, model, distances, images, x)
    return Evaluation(id=name, model_id=model, evaluated_at=START + timedelta(hours=hour))


def promotion(model: str, hour: int) -> Promotion:
    return Promotion(project="maze", model_id=model, weighed_until=START + timedelta(hours=hour))


def choose(rows: Sequence[Evaluation], in_force: Promotion | None, store: Store) -> Choice:
    choice = choose_best(rows, in_force, store, CLEARLY_BETTER)
    assert choice is not None
    return choice


def test_nothing_to_choose_from(store: Store) -> None:
    assert choose_best([], None, store, CLEARLY_BETTER) is None


def test_the_first_one_is_promoted(store: Store) -> None:
    choice = choose([evaluation(store, "e1", "a", 1, OFF)], None, store)
    assert (choice.model_id, choice.evaluation_id, choice.reason) == ("a", "e1", "the first evaluated version")
    assert choice.test_rmse_px == pytest.approx(np.sqrt((OFF**2).mean())) and choice.test_images == 20


def test_a_clearly_better_one_replaces_it(store: Store) -> None:
    rows = [evaluation(store, "e1", "a", 1, OFF), evaluation(store, "e2", "b", 3, OFF / 2)]
    choice = choose(rows, promotion("a", 2), store)
    assert (choice.model_id, choice.evaluation_id) == ("b", "e2")
    number = r"[+-]?\d+\.\d\d"
    assert re.fullmatch(
        rf"test RMSE {number} px, against {number} px before, on the 20 test images that they share "
        rf"\(difference -{number} px, 95 % interval -{number} to -{number} px\), and no body part got worse",
        choice.reason,
    )


def test_a_worse_or_equal_one_never_does(store: Store) -> None:
    for number, test in enumerate([OFF, OFF + 1, OFF[::-1], OFF * 3]):
        rows = [evaluation(store, "e1", "a", 1, OFF), evaluation(store, f"w{number}", f"w{number}", 3, test)]
        for in_force in (promotion("a", 2), None):
            assert choose(rows, in_force, store).model_id == "a"


def test_one_that_is_better_by_chance_is_not_promoted(store: Store) -> None:
    """Of versions that are as good as the one in use, half have a lower RMSE, and next to none is promoted."""
    random = np.random.default_rng(5)
    lower = promoted = 0
    for number in range(24):
        ours, theirs = random.exponential(3, (2, 40))
        rows = [
            evaluation(store, f"ours {number}", f"a{number}", 1, ours),
            evaluation(store, f"theirs {number}", f"b{number}", 3, theirs),
        ]
        lower += (theirs**2).mean() < (ours**2).mean()
        choice = choose(rows, promotion(f"a{number}", 2), store)
        promoted += choice.model_id != f"a{number}"
        assert choice.model_id != f"a{number}" or "is not clearly better: test RMSE" in choice.reason
    assert lower > 7 and promoted <= 2


def test_a_few_images_are_never_clear(store: Store) -> None:
    """On five images a version is better on all of them by chance once in 32 times."""
    rows = [evaluation(store, "e1", "a", 1, [9] * 5), evaluation(store, "e2", "b", 3, [1] * 5)]
    choice = choose(rows, promotion("a", 2), store)
    assert choice.model_id == "a" and "version b was tested on fewer than 6 images" in choice.reason
    assert "difference -8.00 px)" in choice.reason and "interval" not in choice.reason
    rows = [evaluation(store, "e3", "a", 1, [9] * 6), evaluation(store, "e4", "b", 3, [1] * 6)]
    assert choose(rows, promotion("a", 2), store).model_id == "b"
    stricter = PromotionRule(confidence=0.99)
    choice = choose_best(rows, promotion("a", 2), store, stricter)
    assert choice is not None and choice.model_id == "a"


def test_a_body_part_that_got_worse_stops_it(store: Store) -> None:
    rows = [
        evaluation(store, "e1", "a", 1, OFF, tail=OFF),
        evaluation(store, "e2", "b", 3, OFF / 4, tail=OFF + 0.5),
    ]
    choice = choose(rows, promotion("a", 2), store)
    assert choice.model_id == "a"
    assert "version b is better over all but not for every body part: test RMSE" in choice.reason
    assert re.search(r", tail \+0\.\d\d px, 95 % interval \+0\.\d\d to \+0\.\d\d px$", choice.reason)
    # On so few images of the tail nothing can be said of it.
    rare = [np.where(np.arange(20) < 3, off, np.nan) for off in (OFF, OFF + 0.5)]
    rows = [
        evaluation(store, "e3", "a", 1, OFF, tail=rare[0]),
        evaluation(store, "e4", "b", 3, OFF / 4, tail=rare[1]),
    ]
    assert choose(rows, promotion("a", 2), store).model_id == "b"


def test_the_best_of_several_whatever_their_order(store: Store) -> None:
    factors = [5.0, 2.0, 3.0, 2.0, 4.0]
    unlabelled = np.full(20, np.nan)
    rows = [evaluation(store, f"e{n}", f"m{n}", n, factor * OFF, tail=unlabelled) for n, factor in enumerate(factors)]
    assert choose(rows, None, store).model_id == "m1"
    choice = choose(rows, promotion("m0", 0), store)
    assert choice.model_id == "m1"
    # The lowest RMSE does not qualify: a body part got worse.
    rows.append(evaluation(store, "e5", "m5", 5, OFF / 10, tail=OFF))
    rows[0] = evaluation(store, "e6", "m0", 0, 5 * OFF, tail=OFF / 10)
    assert choose(rows, promotion("m0", 0), store).model_id == "m1"


def test_only_shared_test_images_count(store: Store) -> None:
    """The newer version is better on what both were tested on, and met a hard image besides."""
    shared = [f"shared {number}" for number in range(20)]
    rows = [
        evaluation(store, "e1", "a", 1, [*OFF, 0], [*shared, "old"]),
        evaluation(store, "e2", "b", 3, [*OFF / 2, 90], [*shared, "hard"]),
    ]
    choice = choose(rows, promotion("a", 2), store)
    assert choice.model_id == "b" and "on the 20 test images that they share" in choice.reason


def test_without_shared_images_nothing_is_better(store: Store) -> None:
    rows = [evaluation(store, "e1", "a", 1, [9], ["1"]), evaluation(store, "e2", "b", 3, [1], ["2"])]
    choice = choose(rows, promotion("a", 2), store)
    assert choice.model_id == "a"
    assert choice.reason.startswith("version b cannot be compared: the versions a, b have no test image in common")


def test_a_corrected_label_is_another_question(store: Store) -> None:
    rows = [evaluation(store, "e1", "a", 1, OFF, x=10.0), evaluation(store, "e2", "b", 3, OFF / 4, x=10.5)]
    assert choose(rows, promotion("a", 2), store).model_id == "a"


def test_a_persons_promotion_holds_until_a_newer_one_is_better(store: Store) -> None:
    rows = [evaluation(store, "e1", "good", 1, OFF), evaluation(store, "e2", "worse", 2, 3 * OFF)]
    by_person = promotion("worse", 3)
    choice = choose(rows, by_person, store)
    assert (choice.model_id, choice.evaluation_id) == ("worse", "e2")
    assert choice.reason == "nothing was evaluated since its promotion"
    # To evaluate the one that was passed over on other images makes nothing new of it.
    rows.append(evaluation(store, "e3", "good", 4, OFF / 2))
    assert choose(rows, by_person, store).model_id == "worse"
    rows.append(evaluation(store, "e4", "no better", 5, 3 * OFF))
    assert choose(rows, by_person, store).model_id == "worse"
    rows.append(evaluation(store, "e5", "better", 6, 2 * OFF))
    assert choose(rows, by_person, store).model_id == "better"


def test_a_barred_version_is_passed_over_and_the_reason_says_so(store: Store) -> None:
    rows = [
        evaluation(store, "e1", "a", 1, OFF),
        evaluation(store, "e2", "b", 3, OFF / 4),
        evaluation(store, "e3", "c", 4, OFF / 2),
    ]
    barred = {"b": "version b was passed over, because its poses fail", "elsewhere": "of no concern"}
    choice = choose_best(rows, promotion("a", 2), store, CLEARLY_BETTER, barred)
    assert choice is not None and choice.model_id == "c" and choice.reason.endswith(f"; {barred['b']}")
    # The version in use stays: only a person takes it back.
    choice = choose_best(rows[:2], promotion("b", 4), store, CLEARLY_BETTER, barred)
    assert choice is not None and choice.model_id == "b" and "passed over" not in choice.reason
    # Nor does it become the first one.
    choice = choose_best(rows[1:], None, store, CLEARLY_BETTER, barred)
    assert choice is not None and choice.model_id == "c"
    assert choose_best(rows[1:2], None, store, CLEARLY_BETTER, barred) is None


def test_of_several_evaluations_of_one_version_the_newest_counts(store: Store) -> None:
    rows = [
        evaluation(store, "e1", "a", 1, 9 * OFF),
        evaluation(store, "e2", "a", 2, OFF),
        evaluation(store, "e3", "b", 4, 5 * OFF),
    ]
    choice = choose(rows, promotion("a", 3), store)
    assert (choice.model_id, choice.evaluation_id) == ("a", "e2")


def test_a_version_in_use_that_was_never_evaluated_is_kept(store: Store) -> None:
    choice = choose([evaluation(store, "e1", "a", 2, OFF)], promotion("unknown", 1), store)
    assert (choice.model_id, choice.evaluation_id) == ("unknown", None)
    assert "never evaluated" in choice.reason
    assert choose([], promotion("unknown", 1), store).model_id == "unknown"


def test_a_lab_can_leave_promotions_to_a_person(store: Store) -> None:
    person = PromotionRule(rule="person")
    rows = [evaluation(store, "e1", "a", 1, OFF)]
    assert choose_best(rows, None, store, person) is None
    rows.append(evaluation(store, "e2", "b", 3, OFF / 4))
    choice = choose_best(rows, promotion("a", 2), store, person)
    assert choice == Choice("a", "e1", "lab.yaml leaves promotions to a person")


def test_the_error_that_a_choice_names_is_the_compared_one(store: Store) -> None:
    """The newer version has easy images besides, that the older one was trained on."""
    shared = [f"shared {number}" for number in range(20)]
    easy = [f"easy {number}" for number in range(20)]
    write_evaluation(store, "e1", "a", {"nose": [*OFF, *OFF]}, [*shared, *easy], trained_on=easy)
    write_evaluation(store, "e2", "b", {"nose": [*OFF / 2, *[0.1] * 20]}, [*shared, *easy])
    rows = [
        Evaluation(id=f"e{n}", model_id=m, evaluated_at=START + timedelta(hours=n)) for n, m in ((1, "a"), (2, "b"))
    ]
    choice = choose(rows, promotion("a", 1), store)
    assert choice.model_id == "b" and choice.test_images == 20
    assert choice.test_rmse_px == pytest.approx(np.sqrt(((OFF / 2) ** 2).mean()))
    assert f"test RMSE {choice.test_rmse_px:.2f} px" in choice.reason


def test_a_version_that_gives_up_on_keypoints_is_not_better(store: Store) -> None:
    write_evaluation(store, "e1", "a", {"nose": OFF.tolist(), "tail": [1] * 20})
    write_evaluation(store, "e2", "b", {"nose": (OFF / 3).tolist(), "tail": [1] * 20}, missed=[("nose", 3)])
    rows = [
        Evaluation(id=f"e{n}", model_id=m, evaluated_at=START + timedelta(hours=n)) for n, m in ((1, "a"), (2, "b"))
    ]
    choice = choose(rows, promotion("a", 1), store)
    assert choice.model_id == "a" and "gives no position for 1 more of the labelled keypoints" in choice.reason
    gone = [("tail", place) for place in range(20)]
    write_evaluation(store, "e3", "c", {"nose": (OFF / 3).tolist(), "tail": [1] * 20}, missed=gone)
    rows[1] = Evaluation(id="e3", model_id="c", evaluated_at=START + timedelta(hours=2))
    choice = choose(rows, promotion("a", 1), store)
    assert choice.model_id == "a" and "gives no position for 20 more" in choice.reason


def test_the_rule_never_promotes_models_that_may_know_the_test(store: Store) -> None:
    write_evaluation(store, "e1", "elsewhere", {"nose": (OFF / 9).tolist()}, trained_on=[])
    write_evaluation(store, "e2", "a", {"nose": OFF.tolist()})
    rows = [
        Evaluation(id=f"e{n}", model_id=m, evaluated_at=START + timedelta(hours=n))
        for n, m in ((1, "elsewhere"), (2, "a"))
    ]
    choice = choose(rows, promotion("a", 0), store)
    assert choice.model_id == "a" and "elsewhere may have been trained on the test images" in choice.reason
    assert choose(rows, None, store).model_id == "a"
    # Where there is nothing else, one has to begin with something.
    choice = choose(rows[:1], None, store)
    assert choice.model_id == "elsewhere" and choice.reason.endswith("may have been trained on its test images")
    # A version that is better than what may have been trained on its test images is better.
    write_evaluation(store, "e3", "b", {"nose": (OFF / 20).tolist()})
    rows.append(Evaluation(id="e3", model_id="b", evaluated_at=START + timedelta(hours=3)))
    assert choose(rows, promotion("elsewhere", 2), store).model_id == "b"


def test_a_version_without_a_fair_test_image_has_no_error(store: Store) -> None:
    images = ["one", "two"]
    write_evaluation(store, "e1", "a", {"nose": [1, 1]}, images, trained_on=images)
    choice = choose([Evaluation(id="e1", model_id="a", evaluated_at=START)], None, store)
    assert (choice.test_rmse_px, choice.test_images) == (None, None)
    assert choice.reason.endswith("which has no test image that it was not trained on")
