"""Poses along the time of a video, as lines."""

import math
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.plots.canvas import (
    FONT,
    TICKS,
    add_legend,
    add_title,
    as_png,
    bodyparts_of,
    colours_of,
    new_grid,
    plain,
    tidy,
)
from dlc_platform.pose.confidence import count_confident, fraction_confident, is_confident

if TYPE_CHECKING:
    import pandas as pd


def trajectories(table: "pd.DataFrame", cutoff: float, lost: int = 0) -> bytes:
    """The path of each body part in the plane of the picture, without the frames below the cutoff.

    Parameters
    ----------
    table
        A pose table (see `table.py`) of one recording.
    lost
        Frames of it that could not be decoded: the fractions of confident keypoints are those of the others.
    """
    bodyparts = bodyparts_of(table)
    colours = colours_of(bodyparts)
    shown = table[is_confident(table["x"], table["y"], table["likelihood"], cutoff)]
    left, top = (float(shown[axis].min()) if len(shown) else 0.0 for axis in ("x", "y"))
    width, height = (max(1.0, float(np.ptp(shown[axis]))) if len(shown) else 1.0 for axis in ("x", "y"))
    columns = min(4, max(1, math.ceil(math.sqrt(len(bodyparts)))))
    aspect = min(1.6, max(0.4, height / width))
    figure, grid = new_grid(len(bodyparts), columns, aspect, extra=0.3, left=0.65, bottom=0.5)
    for place, (axes, name) in enumerate(zip(grid, bodyparts, strict=True)):
        rows = table[table["bodypart"] == name]
        confident = is_confident(rows["x"], rows["y"], rows["likelihood"], cutoff)
        x = np.where(confident, rows["x"], np.nan)
        y = np.where(confident, rows["y"], np.nan)
        axes.plot(x, y, color=colours[name], linewidth=0.7, alpha=0.75)
        share = _fraction_confident(rows, cutoff, lost)
        add_title(axes, f"{name} ({share:.0%} confident)" if share == share else name)
        axes.set_aspect("equal")
        axes.set_xlim(left - 0.03 * width, left + 1.03 * width)
        axes.set_ylim(top + 1.03 * height, top - 0.03 * height)
        lowest, leftmost = place >= len(bodyparts) - columns, place % columns == 0
        axes.set_xlabel("x (px)" if lowest else "", fontsize=FONT)
        axes.set_ylabel("y (px, downwards)" if leftmost else "", fontsize=FONT)
        axes.tick_params(labelbottom=lowest, labelleft=leftmost)
        tidy(axes)
        axes.locator_params(nbins=TICKS)
    return as_png(figure)


def likelihoods(table: "pd.DataFrame", cutoff: float = 0.6, lost: int = 0) -> bytes:
    """The distribution of the likelihood of each body part; the line is the cutoff, the number the fraction above it.

    Parameters
    ----------
    table, lost
        As `trajectories` takes them.
    """
    bodyparts = bodyparts_of(table)
    colours = colours_of(bodyparts)
    columns = 1 if len(bodyparts) <= 6 else 2
    names = 0.4 + 0.08 * max((len(name) for name in bodyparts), default=0)
    beside = 0.6 + (names if columns > 1 else 0.0)
    figure, grid = new_grid(len(bodyparts), columns, 0.5, extra=0.12, wide=True, between=beside, left=names, bottom=0.5)
    tallest = 0.01
    for place, (axes, name) in enumerate(zip(grid, bodyparts, strict=True)):
        rows = table[table["bodypart"] == name]
        counts, edges = np.histogram(rows["likelihood"].dropna().to_numpy(), bins=40, range=(0, 1))
        share = counts / max(1, _decoded(rows, lost))
        axes.stairs(share, edges, fill=True, color=colours[name])
        axes.axvline(cutoff, color="black", linewidth=1, linestyle=(0, (3, 2)))
        above = _fraction_confident(rows, cutoff, lost)
        axes.set_ylabel(plain(name), rotation=0, ha="right", va="center", fontsize=FONT)
        reached = f"{above:.1%}\n\u2265 {cutoff:g}" if above == above else "no\nlikelihood"
        axes.annotate(reached, (1.015, 0.5), xycoords="axes fraction", va="center", fontsize=FONT - 1)
        tallest = max(tallest, share.max())
        axes.set_xlim(0, 1)
        axes.tick_params(labelbottom=place >= len(bodyparts) - columns)
        tidy(axes)
        axes.grid(False)
    for axes in grid:
        axes.set_ylim(0, tallest)
        axes.set_yticks([0, tallest], ["0", f"{tallest:.0%}"])
    figure.supxlabel("likelihood (bars: share of frames)", fontsize=FONT, y=0.05 / figure.get_figheight())
    return as_png(figure)


def _decoded(rows: "pd.DataFrame", lost: int) -> int:
    """The number of a body part's rows, one for each individual in a frame, whose frame could be decoded."""
    return max(len(rows) - lost * rows["individual"].nunique(), 0)


def _fraction_confident(rows: "pd.DataFrame", cutoff: float, lost: int) -> float:
    counts = count_confident(rows["x"], rows["y"], rows["likelihood"], cutoff, _decoded(rows, lost))
    return float(fraction_confident(*counts))


def quality_plot(course: "pd.DataFrame", lengths: "pd.DataFrame", cutoff: float) -> bytes:
    """Likelihood, jumps and limb lengths over time, and the lengths of the limbs beside those of the labels.

    Parameters
    ----------
    course, lengths
        As `quality.course` and `quality.limb_lengths` give them.
    """
    of_kind = {kind: own for kind, own in course.groupby("kind", sort=False)}
    rows = ["likelihood", "jumps", *(["limb"] if "limb" in of_kind else [])]
    labels = {"likelihood": "likelihood", "jumps": "jumps", "limb": "limb length\n(labels = 1)"}
    colours = colours_of(bodyparts_of(of_kind["likelihood"])) if "likelihood" in of_kind else {}
    # In inches: the names of the limbs, the numbers below a plot, and the limbs below everything.
    names = max(0.8, 0.25 + 0.07 * max(map(len, lengths["bodypart"]), default=0))
    numbers, limbs = 0.5, 0.2 + 0.28 * len(lengths)
    below = numbers + (limbs + numbers if len(lengths) else 0.0)
    figure, grid = new_grid(
        len(rows), 1, 1.5, extra=0.3, wide=True, legend=list(colours), between=0.15, left=names, bottom=below
    )
    for axes, kind in zip(grid, rows, strict=True):
        own = of_kind.get(kind)
        shades = colours_of(list(lengths["bodypart"])) if kind == "limb" else colours
        for name, line in own.groupby("bodypart", sort=False) if own is not None else ():
            if kind == "jumps":
                axes.fill_between(line["frame"], line["value"], step="mid", color="0.25", linewidth=0)
            else:
                axes.plot(line["frame"], line["value"], color=shades.get(str(name), "0.3"), linewidth=0.9)
        if kind == "likelihood":
            axes.axhline(cutoff, color="black", linewidth=1, linestyle=(0, (3, 2)))
            axes.set_ylim(-0.03, 1.03)
        else:
            axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
        axes.set_ylabel(labels[kind], fontsize=FONT)
        axes.set_xlim(0, max(1.0, float(course["frame"].max()) if len(course) else 1.0))
        tidy(axes)
        axes.locator_params(nbins=TICKS)
    grid[-1].set_xlabel("frame", fontsize=FONT)
    if len(lengths):
        plot, height = grid[-1].get_position(), figure.get_figheight()
        axes = figure.add_axes((plot.x0, numbers / height, plot.width, limbs / height))
        shades = colours_of(list(lengths["bodypart"]))
        for place, row in enumerate(lengths.to_dict("records")):
            colour = shades[row["bodypart"]]
            axes.barh(place, row["high_px"] - row["low_px"], 0.7, row["low_px"], color="0.88")
            axes.plot([row["median_px"]] * 2, [place - 0.35, place + 0.35], color="0.45", linewidth=1.5)
            axes.plot([row["q01"], row["q99"]], [place, place], color=colour, linewidth=1.4)
            axes.plot([row["q25"], row["q75"]], [place, place], color=colour, linewidth=5, solid_capstyle="butt")
        axes.set_xlim(0.95 * min(lengths["low_px"].min(), lengths["q01"].min()))
        axes.set_yticks(range(len(lengths)), [plain(name) for name in lengths["bodypart"]], fontsize=FONT)
        axes.invert_yaxis()
        axes.set_xlabel("limb length (px): labels grey; poses from 1 to 99 %, the middle half thick", fontsize=FONT)
        tidy(axes)
    add_legend(figure, colours, {})
    return as_png(figure)
