"""Confident keypoints, and their fraction: the one definition of both, for videos and for labelled images.

How sure poses have to be is in `verdict`.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

Number = TypeVar("Number", float, np.ndarray)


def is_confident(x: ArrayLike, y: ArrayLike, likelihood: ArrayLike, cutoff: float) -> np.ndarray:
    """Which keypoints are confident: they have a place, and a likelihood of at least the cutoff.

    Parameters
    ----------
    x, y, likelihood
        Of one shape; NaN where there is no estimate.
    """
    # In its own precision: as a float64, a likelihood of 0.9 that was kept as float32 is less than 0.9.
    return _has_place(x, y) & (np.asarray(likelihood) >= cutoff)


def fraction_confident(confident: Number, keypoints: Number) -> Number:
    """The fraction of keypoints that are confident: ``confident / keypoints``; NaN of none.

    Parameters
    ----------
    confident
        How many are; see `is_confident`.
    keypoints
        How many there are to find, found or not. In a video that is one for each body part of each individual in each
        frame that could be decoded: a body part without an estimate is not confident, nor is one of an individual that
        is away (``confident_when_seen`` leaves such frames out), and lost frames do not count. In labelled images it is
        one for each label that is asked about. It is 0 for poses without any likelihood (see `says_how_sure`).
    """
    with np.errstate(invalid="ignore"):
        return np.divide(confident, keypoints)  # pyright: ignore[reportReturnType] (a float of floats)


def count_confident(x: ArrayLike, y: ArrayLike, likelihood: ArrayLike, cutoff: float, decoded: int) -> tuple[int, int]:
    """The two counts of `fraction_confident` for a body part in a video: the confident keypoints, and all.

    Parameters
    ----------
    x, y, likelihood
        The estimates of the body part.
    decoded
        The rows of the body part whose frame could be decoded.
    """
    keypoints = decoded if says_how_sure(x, y, likelihood) else 0
    return min(int(is_confident(x, y, likelihood, cutoff).sum()), keypoints), keypoints


def says_how_sure(x: ArrayLike, y: ArrayLike, likelihood: ArrayLike) -> bool:
    """False for estimates that have places and no likelihood at all: they are neither sure nor unsure."""
    return bool(np.isfinite(likelihood).any()) or not _has_place(x, y).any()


def _has_place(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    return np.isfinite(x) & np.isfinite(y)
