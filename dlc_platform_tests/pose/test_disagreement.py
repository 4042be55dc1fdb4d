"""Where two models disagree, on pose tables of which it is known."""

import numpy as np
import pandas as pd
import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.pose.disagreement import disagreement, largest_disagreements
from dlc_platform.pose.table import tidy_from_dlc

FRAMES = 100


def poses(bodyparts: tuple[str, ...] = ("nose", "tail"), frames: int = FRAMES) -> pd.DataFrame:
    """An animal that stands still, seen ten times a second."""
    columns = pd.MultiIndex.from_product(
        [["s"], bodyparts, ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    values = np.tile([50.0, 60.0, 0.9], (frames, len(bodyparts)))
    return tidy_from_dlc(pd.DataFrame(values, columns=columns), np.arange(frames) / 10)


def moved(table: pd.DataFrame, bodypart: str, frames: list[int], by: float | list[float]) -> pd.DataFrame:
    table = table.copy()
    for frame, distance in zip(frames, np.broadcast_to(by, len(frames)), strict=True):
        table.loc[(table["bodypart"] == bodypart) & (table["frame"] == frame), "x"] += distance
    return table


def test_distances_by_body_part() -> None:
    new = moved(moved(poses(), "tail", list(range(100)), 3.0), "tail", list(range(10)), 4.0)
    rows = disagreement(poses(), new, limit_px=5.0)
    assert rows["bodypart"].tolist() == ["nose", "tail"] and rows["frames"].tolist() == [100, 100]
    assert rows["median_px"].tolist() == [0, 3] and rows["p95_px"].tolist() == [0, 7] and rows["max_px"].max() == 7
    assert rows["fraction_over"].tolist() == [0, 0.1]


def test_frames_without_an_estimate_do_not_count() -> None:
    new = moved(poses(), "nose", list(range(25)), np.nan)
    new = moved(new, "tail", list(range(100)), np.nan)
    rows = disagreement(poses(), new, 5.0).set_index("bodypart")
    assert rows.loc["nose", "frames"] == 75 and rows.loc["tail", "frames"] == 0
    assert np.isnan(rows.loc["tail", "median_px"]) and np.isnan(rows.loc["tail", "fraction_over"])
    assert largest_disagreements(poses(), new, 5, 1.0, 0.6)["bodypart"].eq("nose").all()


def test_only_what_both_know_is_compared() -> None:
    """Nor does it matter that the tables have their body parts in another order, or one frame more."""
    new = moved(poses(("tail", "paw", "nose"), FRAMES + 1), "nose", [4], 2.0)
    rows = disagreement(poses(("nose", "ear", "tail")), new, 5.0)
    assert rows["bodypart"].tolist() == ["nose", "tail"]
    assert rows["frames"].tolist() == [100, 100] and rows["max_px"].tolist() == [2, 0]
    with pytest.raises(PlatformError, match="no body part in common"):
        disagreement(poses(("nose",)), poses(("paw",)), 5.0)


def test_the_largest_are_different_moments() -> None:
    new = moved(poses(), "nose", [20, 21, 22, 60, 90], [8.0, 9.0, 7.0, 4.0, 5.0])
    new = moved(new, "tail", [60], 6.0)
    found = largest_disagreements(poses(), new, most=3, apart_s=1.0, cutoff=0.6)
    assert found["frame"].tolist() == [21, 60, 90]
    assert found["bodypart"].tolist() == ["nose", "tail", "nose"]
    assert found["distance_px"].tolist() == [9, 6, 5] and found["time_s"].tolist() == [2.1, 6.0, 9.0]
    # Frame 22 is near 21 in time, and its turn comes when nearness is allowed.
    assert largest_disagreements(poses(), new, 3, 0.0, 0.6)["frame"].tolist() == [21, 20, 22]
    everywhere = moved(new, "tail", list(range(100)), 0.5)
    times = np.sort(largest_disagreements(poses(), everywhere, 99, 1.0, 0.6)["time_s"])
    assert len(times) > 5 and np.diff(times).min() >= 1.0
    assert largest_disagreements(poses(), poses(), 5, 1.0, 0.6).empty


def test_what_both_models_only_guess_at_is_not_shown() -> None:
    new = moved(poses(), "nose", [20, 70], [50.0, 9.0])
    unsure = [table.assign(likelihood=table["likelihood"].where(table["frame"] != 20, 0.1)) for table in (poses(), new)]
    assert largest_disagreements(*unsure, 1, 1.0, 0.6)["frame"].tolist() == [70]
    assert largest_disagreements(poses(), unsure[1], 1, 1.0, 0.6)["frame"].tolist() == [20]
    assert largest_disagreements(*unsure, 1, 1.0, 0.95).empty
