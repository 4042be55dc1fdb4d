"""One fraction of confident keypoints, whoever says it."""

import math

import numpy as np
import pandas as pd
import pytest

from dlc_platform.pose import SINGLE_ANIMAL
from dlc_platform.pose.confidence import count_confident, fraction_confident, is_confident
from dlc_platform.pose.findings import ALL
from dlc_platform.pose.reference import Reference
from dlc_platform.pose.scores import measure

NAN = math.nan


def poses(**likelihoods: list[float]) -> pd.DataFrame:
    """Body parts by name, of `a` where there are two individuals (``a_nose``); NaN is no estimate."""
    tables = []
    for name, values in likelihoods.items():
        individual, _, bodypart = name.rpartition("_")
        place = np.where(np.isnan(values), NAN, np.arange(len(values), dtype=float)).astype(np.float32)
        tables.append(
            pd.DataFrame(
                {
                    "frame": np.arange(len(values), dtype=np.int32),
                    "individual": individual or SINGLE_ANIMAL,
                    "bodypart": bodypart,
                    "x": place,
                    "y": place,
                    "likelihood": np.array(values, np.float32),
                }
            )
        )
    return pd.concat(tables, ignore_index=True).astype({"individual": "category", "bodypart": "category"})


def fraction(table: pd.DataFrame, bodypart: str, individual: str | None = None, lost: int = 0) -> float:
    scores = measure(table, Reference(size_px=50), 0.6, (100, 100), lost=lost)
    own = scores[(scores["bodypart"] == bodypart) & (scores["individual"] == (individual or scores["individual"]))]
    return own["fraction_confident"].item()


@pytest.mark.parametrize(
    ("likelihoods", "lost", "expected"),
    [
        ([0.9, 0.6, 0.5, 1.0], 0, 3 / 4),
        ([0.9, NAN, NAN, 1.0], 0, 2 / 4),  # what is missing is not confident
        ([0.9, 0.5, NAN, NAN], 2, 1 / 2),  # and lost frames do not count
        ([NAN, NAN, NAN, NAN], 0, 0.0),
        ([NAN, NAN, NAN, NAN], 4, NAN),
    ],
)
def test_the_fraction_is_of_the_frames_that_could_be_decoded(
    likelihoods: list[float], lost: int, expected: float
) -> None:
    table = poses(nose=likelihoods)
    assert fraction(table, "nose", lost=lost) == pytest.approx(expected, nan_ok=True)
    assert fraction(table, ALL, lost=lost) == pytest.approx(expected, nan_ok=True)
    columns = (table["x"], table["y"], table["likelihood"])
    counts = count_confident(*columns, 0.6, len(likelihoods) - lost)
    assert float(fraction_confident(*counts)) == pytest.approx(expected, nan_ok=True)


def test_an_individual_that_is_away_counts_as_not_confident() -> None:
    table = poses(a_nose=[0.9, 0.9, 0.9, 0.9], b_nose=[0.9, NAN, NAN, NAN], single_corner=[0.9, 0.9, 0.9, 0.1])
    assert fraction(table, "nose", "a") == 1 and fraction(table, "nose", "b") == 1 / 4
    # Each keypoint counts once, and not each body part.
    assert fraction(table, ALL) == 8 / 12


def test_poses_without_likelihood_are_neither_sure_nor_unsure() -> None:
    table = poses(nose=[0.9, 0.9], tail=[0.9, 0.1])
    assert math.isnan(fraction(table.assign(likelihood=np.float32(NAN)), ALL))
    # Of one body part without likelihood, the others speak.
    one = table.assign(likelihood=table["likelihood"].mask(table["bodypart"] == "nose"))
    assert math.isnan(fraction(one, "nose")) and fraction(one, ALL) == 1 / 2


def test_a_likelihood_at_the_cutoff_is_confident() -> None:
    """Tables keep float32, and the float64 of that 0.9 is less than 0.9."""
    at = np.array([0.9], np.float32)
    assert is_confident(at, at, at, 0.9).tolist() == [True]
    assert is_confident(at, np.array([NAN]), at, 0.9).tolist() == [False]


def test_fractions_of_many_and_of_none() -> None:
    assert fraction_confident(np.array([1, 0]), np.array([2, 0])).tolist()[0] == 0.5
    assert math.isnan(fraction_confident(0, 0))
