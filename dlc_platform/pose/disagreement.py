"""Differences between the poses of two models for the same video, keypoint by keypoint.

Without labels nobody knows which of the two is right, so a difference is not an error. The caller chooses the
recordings; drawing belongs to `plots`.
"""

from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.errors import PlatformError

if TYPE_CHECKING:
    import pandas as pd


def disagreement(old: "pd.DataFrame", new: "pd.DataFrame", limit_px: float) -> "pd.DataFrame":
    """The distances between two models' places of each body part that both know.

    Parameters
    ----------
    old, new
        Pose tables of one video (see `table.py`).
    limit_px
        The distance in pixels above which a frame counts.

    Returns
    -------
    DataFrame
        One row for each body part, in the order of `old`: bodypart, frames (in which both have an estimate), median_px,
        p95_px, max_px, fraction_over (of those frames). Figures over no frame are NaN.

    Raises
    ------
    PlatformError
        When the two have no body part in common.
    """
    import pandas as pd

    both = _both(old, new)
    grouped = both.groupby("bodypart", observed=False, sort=False)["distance_px"]
    figures = grouped.agg(
        frames="count",
        median_px="median",
        p95_px=lambda distances: distances.quantile(0.95),
        max_px="max",
        fraction_over=lambda distances: (distances.dropna() > limit_px).mean(),
    )
    return pd.DataFrame(figures).reset_index()


def largest_disagreements(
    old: "pd.DataFrame", new: "pd.DataFrame", most: int, apart_s: float, cutoff: float
) -> "pd.DataFrame":
    """The frames in which two models are farthest apart, each another moment of the video.

    Parameters
    ----------
    old, new
        Pose tables of one video (see `table.py`).
    most
        The most frames to return.
    apart_s
        The least time between two of them, in seconds.
    cutoff
        Keypoints count if one of the models gives at least this likelihood: two guesses tell little.

    Returns
    -------
    DataFrame
        Columns frame, time_s, bodypart (the one that is farthest apart) and distance_px; the largest first.

    Raises
    ------
    PlatformError
        When the two have no body part in common.
    """
    both = _both(old, new)
    sure = both[(both["likelihood"] >= cutoff) & (both["distance_px"] > 0)]
    frames = sure.sort_values(["distance_px", "frame"], ascending=[False, True]).drop_duplicates("frame")
    times = frames["time_s"].to_numpy()
    chosen: list[int] = []
    free = np.ones(len(frames), bool)
    while free.any() and len(chosen) < most:
        chosen.append(int(free.argmax()))  # the first free one has the largest distance
        free &= np.abs(times - times[chosen[-1]]) >= max(apart_s, np.finfo(float).tiny)
    return frames.iloc[chosen][["frame", "time_s", "bodypart", "distance_px"]].reset_index(drop=True)


def _both(old: "pd.DataFrame", new: "pd.DataFrame") -> "pd.DataFrame":
    """The keypoints in both tables: frame, time_s, bodypart, distance_px and the larger likelihood."""
    import pandas as pd

    known = [part for part in old["bodypart"].drop_duplicates() if part in set(new["bodypart"])]
    if not known:
        raise PlatformError(
            "the two models have no body part in common", "Compare models of projects that label the same body parts"
        )
    # Keys of the same categories merge as numbers, not as text.
    types = {"bodypart": pd.CategoricalDtype(known), "individual": pd.CategoricalDtype(old["individual"].unique())}
    one, other = (table[table["bodypart"].isin(known)].astype(types) for table in (old, new))
    both = one.merge(other.drop(columns="time_s"), on=["frame", "individual", "bodypart"], suffixes=("_old", "_new"))
    return pd.DataFrame(
        {
            "frame": both["frame"],
            "time_s": both["time_s"],
            "bodypart": both["bodypart"],
            "distance_px": np.hypot(both["x_new"] - both["x_old"], both["y_new"] - both["y_old"]),
            "likelihood": both[["likelihood_old", "likelihood_new"]].max(axis=1),
        }
    )
