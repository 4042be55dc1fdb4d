"""The times at which the rows of a video are shown: one clock for poses, figures and pictures, that never runs
backwards.

Most containers store the time at which a picture is shown. Some, such as AVI, store the order in which pictures are
decoded; damage spoils timestamps; and joined files begin to count again. A row always keeps its place: only its time is
mended here, and `Clock` counts how often that was needed.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

#: Stands for the timestamp of a row that has none.
NO_TIME = int(np.iinfo(np.int64).min)

#: Decoders reorder 16 pictures at most: a timestamp farther from its place is wrong.
_MOST_REORDERED = 16
#: The rows on each side that distinguish a clock that begins again from a few wrong timestamps, and the fewest.
_WINDOW, _FEWEST = 32, 8
#: The fraction of the rows that must have a timestamp, so that the times of the others can be estimated.
_FEWEST_TIMED = 0.05
#: The most wrong timestamps among the rows of a window.
_WRONG_IN_WINDOW = 2


@dataclass(frozen=True)
class Clock:
    """The times at which the rows of a video are shown.

    Attributes
    ----------
    ticks
        int64, shape (frames,), in units of the time base, never decreasing; all 0 without timestamps.
    known
        True if the file has timestamps. Without them rows follow each other at the frame rate.
    reordered
        Rows that have the timestamp of another row, because the file stores them in another order.
    estimated
        Rows whose own timestamp is missing or wrong: their times lie in equal steps between those of other rows.
    resets
        Places where the file's clock begins again. The time that passed there is unknown; one interval is assumed.
    """

    ticks: np.ndarray
    known: bool
    reordered: int = 0
    estimated: int = 0
    resets: int = 0

    def seconds(self, time_base: Fraction | None, frame_rate: Fraction) -> np.ndarray:
        """The time at which each row is shown, in seconds from the first, shape (frames,) and float64."""
        if self.known and time_base is not None and len(self.ticks):
            return (self.ticks - self.ticks[0]) * float(time_base)
        return np.arange(len(self.ticks)) / float(frame_rate)


def clock_of(pts: np.ndarray, dts: np.ndarray, intact: bool, keeps_presentation_times: bool = True) -> Clock:
    """The clock of a video.

    Parameters
    ----------
    pts
        The timestamp of each row, int64, shape (frames,), or `NO_TIME`.
    dts
        The time of decoding of the packet with which each row came out of the decoder, or `NO_TIME`.
    intact
        True if nothing in the file is lost or damaged.
    keeps_presentation_times
        As in the `Decoder`.
    """
    timed = pts != NO_TIME
    if np.count_nonzero(timed) <= _FEWEST_TIMED * len(pts):
        return Clock(np.zeros(len(pts), np.int64), False)
    is_forward = bool(timed.all() and (np.diff(pts) >= 0).all())
    if is_forward and (keeps_presentation_times or not intact):
        return Clock(pts, True)
    places = np.flatnonzero(timed)
    own = pts[places]
    step = _usual_interval(own)
    edges = [0, *_resets(own), len(own)]
    kept_places: list[np.ndarray] = []
    kept_ticks: list[np.ndarray] = []
    for start, end in pairwise(edges):
        kept = start + _near_their_place(own[start:end])
        ticks = np.sort(own[kept])
        if intact and len(edges) == 2 and len(kept) == len(pts):
            ticks = _by_decoding(ticks, dts, step)
        if kept_ticks:
            rows_between = places[kept[0]] - kept_places[-1][-1]
            ticks = ticks - ticks[0] + kept_ticks[-1][-1] + step * rows_between
        kept_places.append(places[kept])
        kept_ticks.append(ticks)
    kept_rows = np.concatenate(kept_places)
    ticks = _filled(kept_rows, np.concatenate(kept_ticks), len(pts), step)
    reordered = 0 if is_forward else sum(_moved(pts[rows], ticks[rows]) for rows in kept_places)
    return Clock(ticks, True, reordered, len(pts) - len(kept_rows), len(edges) - 2)


def _usual_interval(pts: np.ndarray) -> int:
    intervals = np.diff(np.sort(pts))
    intervals = intervals[intervals > 0]
    return max(1, round(float(np.median(intervals)))) if len(intervals) else 1


def _resets(pts: np.ndarray) -> list[int]:
    """The rows at which the clock begins again: from there on, rows stay behind those before for longer than reordering
    and a few wrong timestamps explain."""
    found: list[int] = []
    depth = 0
    for row in np.flatnonzero(np.diff(pts) < 0) + 1:
        width = min(_WINDOW, row, len(pts) - row)
        if width < _FEWEST:
            continue
        before = np.partition(pts[row - width : row], width - 1 - _WRONG_IN_WINDOW)[width - 1 - _WRONG_IN_WINDOW]
        behind = int(np.count_nonzero(pts[row : row + width] < before))
        if behind < min(width, _MOST_REORDERED + 1):
            continue
        drop = int(pts[row - 1] - pts[row])
        if found and row - found[-1] < _WINDOW:
            if drop > depth:
                found[-1], depth = int(row), drop
            continue
        found.append(int(row))
        depth = drop
    return found


def _near_their_place(pts: np.ndarray) -> np.ndarray:
    """The rows whose timestamps are in their place among the others, except for reordering."""
    kept = np.arange(len(pts))
    while True:
        order = np.argsort(pts[kept], kind="stable")
        distance = np.empty(len(kept), np.int64)
        distance[order] = np.abs(order - np.arange(len(kept)))
        farthest = int(distance.max(initial=0))
        if farthest > _MOST_REORDERED:
            # A wrong timestamp moves each of the others by only one place.
            kept = kept[distance <= max(_MOST_REORDERED, farthest // 2)]
        elif (alone := _far_from_all(pts[kept[order]])) is not None and distance[order[alone]]:
            kept = np.delete(kept, order[alone])
        else:
            return kept


def _far_from_all(ordered: np.ndarray) -> int | None:
    """The place of the first or last timestamp, if it is farther from its neighbour than the range of all others."""
    if len(ordered) > 2 and ordered[1] - ordered[0] > ordered[-1] - ordered[1]:
        return 0
    if len(ordered) > 2 and ordered[-1] - ordered[-2] > ordered[-2] - ordered[0]:
        return len(ordered) - 1
    return None


def _by_decoding(ticks: np.ndarray, dts: np.ndarray, step: int) -> np.ndarray:
    """Times of decoding instead of sorted timestamps, if a file stores nothing else.

    An encoder gives the times of its pictures in their order, some pictures later. So the time with which a row comes
    out of the decoder is its own, and gaps lie in their place.
    """
    known = dts != NO_TIME
    timed = int(np.count_nonzero(known))
    tail = len(dts) - timed
    if not timed or tail > _MOST_REORDERED or not known[:timed].all() or (np.diff(dts[:timed]) <= 0).any():
        return ticks
    rest = dts[timed - 1] + step * np.arange(1, tail + 1)
    return np.concatenate([dts[:timed], rest])


def _filled(places: np.ndarray, ticks: np.ndarray, rows: int, step: int) -> np.ndarray:
    """The times of all rows, if only those of some are known: equal steps between two known rows."""
    every = np.arange(rows)
    # From the first, so that no precision is lost.
    filled = np.rint(np.interp(every, places, (ticks - ticks[0]).astype(np.float64))).astype(np.int64) + ticks[0]
    filled[every < places[0]] = ticks[0] - step * (places[0] - every[every < places[0]])
    filled[every > places[-1]] = ticks[-1] + step * (every[every > places[-1]] - places[-1])
    return filled


def _moved(pts: np.ndarray, ticks: np.ndarray) -> int:
    """The number of rows whose time, compared with the others, differs from their own timestamps."""
    _, counts = np.unique(pts - ticks, return_counts=True)
    return len(pts) - int(counts.max(initial=0))
