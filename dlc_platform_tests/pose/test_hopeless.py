"""When a model version is hopeless, on predictions small enough to count by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dlc_platform.pose.hopeless import FEWEST_IMAGES, Floors, ModelJudgement, judge_model
from dlc_platform.settings.promotion import ModelFloors

FLOORS = Floors(**ModelFloors().model_dump())
NAN = float("nan")
SIZE = 60.0


def predictions(
    off: float | np.ndarray, images: int = 20, likelihood: float = 0.9, spread: float = 200.0, **columns: Any
) -> pd.DataFrame:
    """A nose and a tail on each image, labelled somewhere in a field of `spread` px, predicted `off` px beside it."""
    random = np.random.default_rng(0)
    places = random.uniform(0, spread, (2 * images, 2))
    table = pd.DataFrame(
        {
            "image": np.repeat([f"image {number}" for number in range(images)], 2),
            "bodypart": ["nose", "tail"] * images,
            "x": places[:, 0],
            "y": places[:, 1],
            "likelihood": likelihood,
        }
    )
    table = table.assign(predicted_x=table["x"] + off, predicted_y=table["y"])
    table = table.assign(**columns)
    distance = np.hypot(table["predicted_x"] - table["x"], table["predicted_y"] - table["y"])
    return table.assign(distance_px=distance, missed=np.isnan(distance) & table["x"].notna())


def judged(table: pd.DataFrame, size: float = SIZE, **floors: Any) -> ModelJudgement:
    return judge_model(table, size, 0.6, replace(FLOORS, **floors))


def broken(judgement: ModelJudgement) -> Mapping[str, float | None]:
    return {finding.metric: finding.value for finding in judgement.findings}


def test_a_good_version_is_usable_and_says_its_error() -> None:
    judgement = judged(predictions(3.0))
    assert (judgement.standing, judgement.images, judgement.findings) == ("usable", 20, ())
    assert judgement.median_px == pytest.approx(3) and "a median error of 3 px on 20 test images" in str(judgement)


def test_most_keypoints_must_lie_within_a_fifth_of_the_animal() -> None:
    # 12 px are a fifth of 60 px.
    assert judged(predictions(11.9)).standing == "usable"
    bad = judged(predictions(12.1))
    assert bad.standing == "hopeless" and broken(bad) == {"model_correct": 0.0}
    assert "0% lie within 12 px of their label (0.2 of the animal's size, 60 px), floor 50%" in str(bad)
    # Half of them far off is the edge; gross errors of a few are not what this is about.
    off = np.where(np.arange(40) < 20, 100.0, 1.0)
    assert judged(predictions(off)).standing == "usable"
    assert judged(predictions(np.where(np.arange(40) < 21, 100.0, 1.0))).standing == "hopeless"


def test_nothing_more_is_asked_of_a_network_than_of_a_person() -> None:
    # An animal of 10 px: a fifth of it is less than three times what a person is off.
    table = predictions(5.0)
    assert judged(table, size=10).standing == "hopeless"
    assert judged(table, size=10, human_error_px=2.0).standing == "usable"
    bad = judged(predictions(7.0), size=10, human_error_px=2.0)
    assert "within 6 px of their label (3 times the human error, 2 px)" in str(bad)


def test_without_a_size_the_spread_of_the_labels_is_the_scale() -> None:
    one = predictions(30.0).query("bodypart == 'nose'")
    # The places of the nose lie about 80 px from their mean.
    assert judged(one, size=NAN).standing == "hopeless" and "the spread of the labels" in str(judged(one, size=NAN))
    assert judged(predictions(10.0).query("bodypart == 'nose'"), size=NAN).standing == "usable"


def test_a_version_that_is_never_sure_is_hopeless_even_if_near() -> None:
    bad = judged(predictions(1.0, likelihood=0.3))
    assert bad.standing == "hopeless" and broken(bad) == {"model_confident": 0.0}
    assert "0.0% are confident, floor 5%" in str(bad)


def test_a_version_that_predicts_one_place_is_hopeless() -> None:
    middle = predictions(0.0, predicted_x=100.0, predicted_y=100.0)
    bad = judged(middle, size=1000)
    assert bad.standing == "usable"  # the labels keep to one place, by the animal's size
    bad = judged(middle, size=300)
    assert bad.standing == "hopeless" and set(broken(bad)) == {"model_spread", "model_correct"}
    assert "nearly the same place in all 20 test images" in str(bad)


def test_few_images_can_show_hopelessness_but_not_usability() -> None:
    assert judged(predictions(50.0, images=2)).standing == "hopeless"
    for images in range(1, FEWEST_IMAGES):
        few = judged(predictions(1.0, images=images))
        assert few.standing == "unproven" and f"{images} labelled test image" in str(few)
    assert judged(predictions(1.0, images=FEWEST_IMAGES)).standing == "usable"
    nothing = judged(predictions(NAN, x=NAN))
    assert (nothing.standing, nothing.images) == ("unproven", 0) and "is not known" in str(nothing)


def test_missed_keypoints_are_neither_correct_nor_confident() -> None:
    missed = predictions(np.where(np.arange(40) < 21, NAN, 1.0))
    bad = judged(missed)
    assert bad.standing == "hopeless" and broken(bad) == {"model_correct": 19 / 40}
    assert bad.median_px == 1
    blind = judged(predictions(NAN, likelihood=NAN))
    assert set(broken(blind)) == {"model_correct", "model_confident", "model_spread"} and np.isnan(blind.median_px)


def test_each_floor_can_be_switched_off() -> None:
    table = predictions(90.0, likelihood=0.1, predicted_x=0.0, predicted_y=0.0)
    assert set(broken(judged(table, size=20))) == {"model_correct", "model_confident", "model_spread"}
    assert judged(table, size=20, correct=None, confident=None, spread=None).standing == "usable"
