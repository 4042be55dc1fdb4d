"""The days of a lab as bars."""

from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.plots.canvas import COLOURS, FONT, as_png, new_figure, tidy

if TYPE_CHECKING:
    import pandas as pd


def days_plot(days: "pd.DataFrame") -> bytes:
    """The days of a lab: sessions and hours of video above, hours of computing below.

    Parameters
    ----------
    days
        The table `reports.DailyReport.days`, with the column day.
    """
    figure = new_figure(5.2)
    above, middle, below = figure.subplots(3, 1, sharex=True)
    places = np.arange(len(days))
    panels = (
        (
            above,
            "sessions",
            {
                "arrived": ["sessions_arrived"],
                "estimated": ["sessions_estimated"],
                "put in quarantine": ["sessions_quarantined"],
            },
        ),
        (middle, "hours of video", {"arrived": ["video_hours_arrived"], "estimated": ["video_hours_estimated"]}),
        (
            below,
            "hours of device",
            {
                "GPU": ["inference_gpu_hours", "training_gpu_hours"],
                "CPU": ["inference_cpu_hours", "training_cpu_hours"],
            },
        ),
    )
    for axes, title, bars in panels:
        width = 0.84 / len(bars)
        for number, (label, columns) in enumerate(bars.items()):
            offset = (number - (len(bars) - 1) / 2) * width
            colour = COLOURS[3] if "quarantine" in label else COLOURS[number]
            axes.bar(places + offset, days[columns].sum(axis=1), width, label=label, color=colour)
        axes.set_ylabel(title, fontsize=FONT)
        axes.legend(fontsize=FONT - 1, loc="upper left", ncols=len(bars), frameon=False)
        axes.set_ylim(0, max(1e-9, axes.get_ylim()[1] * 1.25))
        tidy(axes)
        axes.grid(False, axis="x")
    below.set_xlim(-0.6, len(days) - 0.4)
    shown = places[::-7][::-1]
    below.set_xticks(shown, [f"{days['day'].iloc[place]:%d %b}" for place in shown], fontsize=FONT)
    return as_png(figure)
