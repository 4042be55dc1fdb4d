"""The brightness, sharpness and changes of a video along its time."""

from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.plots.canvas import COLOURS, FONT, TICKS, as_png, new_grid, tidy

if TYPE_CHECKING:
    from dlc_platform.video.quality import Timeline

#: The number of stretches of a video's time that a plot can show side by side.
_STRETCHES = 600


def video_timeline(times_s: np.ndarray, timeline: "Timeline") -> bytes:
    """A video's exposure, focus, change from row to row, and the intervals between its timestamps, over its time.

    Parameters
    ----------
    times_s
        The time at which each row is shown, in seconds from the first, shape (frames,).
    timeline
        The figures of `video.quality`.
    """
    figure, grid = new_grid(4, 1, 1.05, extra=0.15, wide=True, left=0.75, bottom=0.45)
    intervals = np.append(np.nan, np.diff(times_s) * 1000)
    last = max(float(times_s.max(initial=0)), 1e-3)
    rows = (
        ("grey level", timeline.exposure),
        ("focus", timeline.focus),
        ("change\n(grey levels)", timeline.change),
        ("interval\n(ms)", intervals),
    )
    for number, (axes, (name, values)) in enumerate(zip(grid, rows, strict=True)):
        known = np.isfinite(values)
        times, shown = _extremes(times_s[known], values[known])
        axes.plot(times, shown, color=COLOURS[number], linewidth=1, marker="o" if len(shown) < 3 else None)
        axes.set_ylabel(name, fontsize=FONT - 1)
        axes.yaxis.set_label_coords(-0.055, 0.5)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.tick_params(labelbottom=number == len(rows) - 1)
        tidy(axes)
        axes.locator_params(nbins=TICKS)
    grid[0].set_ylim(0, 255)
    for axes in grid[1:]:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    grid[-1].set_xlabel("time (s)", fontsize=FONT)
    return as_png(figure)


def _extremes(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest point of each stretch, so that no single frame is lost in a long video."""
    stretch = -(-len(values) // _STRETCHES)
    if stretch <= 2:
        return times, values
    whole = len(values) // stretch * stretch
    folded = values[:whole].reshape(-1, stretch)
    ends = np.stack([folded.min(axis=1), folded.max(axis=1)], axis=1).ravel()
    return np.append(np.repeat(times[:whole:stretch], 2), times[whole:]), np.append(ends, values[whole:])
