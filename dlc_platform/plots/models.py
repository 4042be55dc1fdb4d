"""Training and comparison of models, as lines and intervals."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.plots.canvas import (
    COLOURS,
    FONT,
    add_legend,
    as_png,
    bodyparts_of,
    colours_of,
    new_figure,
    plain,
    tidy,
)

if TYPE_CHECKING:
    import pandas as pd


def comparison_plot(errors: "pd.DataFrame", names: Mapping[str, str], production: str | None) -> bytes:
    """The RMSE of every model version side by side, by body part, with its 95 % interval if there is one.

    Parameters
    ----------
    errors
        Columns model, bodypart, rmse_px, rmse_low_px and rmse_high_px, as `dlc.comparison` gives them.
    names
        The name of each model in the picture, in the order of the picture.
    production
        The model in use, drawn as a diamond.
    """
    bodyparts = bodyparts_of(errors)
    colours = colours_of(list(names))
    figures = {
        (model, bodypart): ends
        for model, bodypart, *ends in zip(
            *(errors[name] for name in ("model", "bodypart", "rmse_px", "rmse_low_px", "rmse_high_px")), strict=True
        )
    }
    # Each body part is a band as wide as its versions need; bands that do not fit beside each other go below.
    columns = max(1, min(len(bodyparts), 40 // (len(names) + 1)))
    rows = max(1, math.ceil(len(bodyparts) / columns))
    figure = new_figure(1.0 + 2.6 * rows if rows > 1 else 4.2)
    grid = figure.subplots(rows, 1, sharey=True, squeeze=False)[:, 0]
    offsets = np.linspace(-0.5, 0.5, len(names) + 2)[1:-1]
    for row, axes in enumerate(grid):
        shown = bodyparts[row * columns : (row + 1) * columns]
        for place, bodypart in enumerate(shown):
            axes.axvline(place + 0.5, color="0.75", linewidth=0.8, zorder=0)
            for offset, model in zip(offsets, names, strict=True):
                if (model, bodypart) not in figures:
                    continue
                rmse, low, high = figures[model, bodypart]
                mark = {"fmt": "D", "markersize": 7} if model == production else {"fmt": "o", "markersize": 5.5}
                axes.errorbar(
                    place + offset,
                    rmse,
                    None if math.isnan(low) else [[max(0.0, rmse - low)], [max(0.0, high - rmse)]],
                    color=colours[model],
                    mec="black" if model == production else colours[model],
                    elinewidth=1.6,
                    capsize=2.5,
                    **mark,
                )
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_xticks(range(len(shown)), [plain(name) for name in shown], fontsize=FONT)
        axes.set_ylabel("test RMSE (px)", fontsize=FONT)
        tidy(axes)
        axes.grid(False, axis="x")
        axes.tick_params(axis="x", length=0, labelsize=FONT)
    known = errors["rmse_px"][errors["rmse_px"] > 0]
    if len(known) and known.max() > 20 * known.min():
        grid[0].set_yscale("log")
        for axes in grid:
            axes.yaxis.set_major_formatter("{x:g}")
    else:
        grid[0].set_ylim(bottom=0)
    labels = {name: colours[model] for model, name in names.items()}
    add_legend(figure, labels, {"in production": "D"} if production in names else {})
    return as_png(figure)


def learning_curve(curve: "pd.DataFrame") -> bytes:
    """Loss over epochs.

    Parameters
    ----------
    curve
        Column ``epoch`` and one column for each loss, such as ``train_loss`` and ``test_loss``; NaN if an epoch was not
        evaluated.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.6)
    axes = figure.subplots()
    losses = [name for name in curve.columns if name != "epoch"]
    positive = True
    for number, name in enumerate(losses):
        known = curve[["epoch", name]].dropna()
        positive &= bool((known[name] > 0).all())
        axes.plot(
            known["epoch"],
            known[name],
            color=COLOURS[number % len(COLOURS)],
            marker="o" if len(known) <= 60 else None,
            markersize=3.5,
            linewidth=1.6,
            label=f" {plain(name.replace('_', ' '))}",
        )
    if positive and len(curve):
        axes.set_yscale("log")
    axes.set_xlabel("epoch", fontsize=FONT)
    axes.set_ylabel("loss", fontsize=FONT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)
    if losses:
        figure.legend(loc="outside upper center", ncols=len(losses), frameon=False, fontsize=FONT)
    return as_png(figure)
