"""Pictures of labels, poses and training, small enough to lie in a page's metadata.

Every function returns an encoded PNG or JPEG of at most `LIMIT_BYTES`, the same bytes for the same input. Coordinates
are pixels of the full frame, origin at the top left, y downwards. A body part has one colour in all pictures of a
project, by its place in the project's order. Tables are computed elsewhere; here they are only drawn.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc_platform.video.region import Region

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dlc_platform.video.quality import Timeline

LIMIT_BYTES = 100_000

#: Okabe and Ito's colours, distinct for the colour-blind; the palest last.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
_WIDTH = 9.0
_DPI = 100
_FONT = 9.0
#: Intervals between the numbers of an axis in pictures of many: each number takes as long as a line.
_TICKS = 4
#: Stretches of a video's time that a plot can show side by side.
_STRETCHES = 600

Points = Mapping[str, tuple[float, float]]
Skeleton = Iterable[tuple[str, str]]


def labelled_frames(
    images: Sequence[tuple[np.ndarray, Points]],
    columns: int = 3,
    skeleton: Skeleton = (),
    region: Region | None = None,
) -> bytes:
    """Frames with their labels.

    Parameters
    ----------
    images
        For each frame its RGB picture (uint8, height x width x 3) and its labels: body part to (x, y), NaN where a
        body part is not visible.
    skeleton
        Pairs of body parts to join by a line.
    region
        The region of interest of all these frames, drawn as a rectangle.
    """
    return _mosaic(
        [(rgb, {name: (*point, 1.0) for name, point in points.items()}, "") for rgb, points in images],
        cutoff=0.0,
        columns=columns,
        skeleton=skeleton,
        region=region,
    )


def frames_with_keypoints(
    images: Sequence[tuple[np.ndarray, Mapping[str, tuple[float, float, float]], str]],
    cutoff: float,
    columns: int = 3,
    skeleton: Skeleton = (),
    region: Region | None = None,
) -> bytes:
    """Frames with estimated keypoints; those below the cutoff are hollow.

    Parameters
    ----------
    images
        For each frame its RGB picture, its keypoints (body part to (x, y, likelihood), see `table.keypoints_at`), and
        its title.
    region
        The region of interest of all these frames, drawn as a rectangle.
    """
    return _mosaic(images, cutoff, columns, skeleton, region)


def worst_frames(images: Sequence[tuple[np.ndarray, Points, Points, str]], columns: int = 3) -> bytes:
    """Label (+) against prediction (o), cut out around the animal.

    Parameters
    ----------
    images
        For each frame its RGB picture, its labels, its predictions and its title, to which the largest distance of a
        label from its prediction is added.
    """
    return _pairs(images, columns, {"label": "+", "prediction": "o"})


def disagreement_frames(images: Sequence[tuple[np.ndarray, Points, Points, str]], columns: int = 3) -> bytes:
    """The keypoints of an old model (+) against those of a new one (o), cut out around the animal.

    Parameters
    ----------
    images
        For each frame its RGB picture, its keypoints by the old model, those by the new one (see
        `disagreement.largest_disagreements` for which frames) and its title, to which the largest distance is added.
    """
    return _pairs(images, columns, {"old model": "+", "new model": "o"})


def comparison_plot(errors: "pd.DataFrame", names: Mapping[str, str], production: str | None) -> bytes:
    """The RMSE of every model version side by side, by body part, with its 95 % interval where there is one.

    Parameters
    ----------
    errors
        Columns model, bodypart, rmse_px, rmse_low_px and rmse_high_px, as `dlc.comparison` gives them.
    names
        What each model is called in the picture, in the order of the picture.
    production
        The model in use, drawn as a diamond.
    """
    bodyparts = _bodyparts(errors)
    colours = _colours(list(names))
    figures = {
        (model, bodypart): ends
        for model, bodypart, *ends in zip(
            *(errors[name] for name in ("model", "bodypart", "rmse_px", "rmse_low_px", "rmse_high_px")), strict=True
        )
    }
    # Each body part is a band as wide as its versions need; what does not fit beside goes below.
    columns = max(1, min(len(bodyparts), 40 // (len(names) + 1)))
    rows = max(1, math.ceil(len(bodyparts) / columns))
    figure = _figure(1.0 + 2.6 * rows if rows > 1 else 4.2)
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
        axes.set_xticks(range(len(shown)), [_text(name) for name in shown], fontsize=_FONT)
        axes.set_ylabel("test RMSE (px)", fontsize=_FONT)
        _tidy(axes)
        axes.grid(False, axis="x")
        axes.tick_params(axis="x", length=0, labelsize=_FONT)
    known = errors["rmse_px"][errors["rmse_px"] > 0]
    if len(known) and known.max() > 20 * known.min():
        grid[0].set_yscale("log")
        for axes in grid:
            axes.yaxis.set_major_formatter("{x:g}")
    else:
        grid[0].set_ylim(bottom=0)
    labels = {name: colours[model] for model, name in names.items()}
    _legend(figure, labels, {"in production": "D"} if production in names else {})
    return _png(figure)


def learning_curve(curve: "pd.DataFrame") -> bytes:
    """Loss over epochs.

    Parameters
    ----------
    curve
        Column ``epoch`` and one column for each loss, such as ``train_loss`` and ``test_loss``; NaN where an epoch was
        not evaluated.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(3.6)
    axes = figure.subplots()
    losses = [name for name in curve.columns if name != "epoch"]
    positive = True
    for number, name in enumerate(losses):
        known = curve[["epoch", name]].dropna()
        positive &= bool((known[name] > 0).all())
        axes.plot(
            known["epoch"],
            known[name],
            color=_COLOURS[number % len(_COLOURS)],
            marker="o" if len(known) <= 60 else None,
            markersize=3.5,
            linewidth=1.6,
            label=f" {_text(name.replace('_', ' '))}",
        )
    if positive and len(curve):
        axes.set_yscale("log")
    axes.set_xlabel("epoch", fontsize=_FONT)
    axes.set_ylabel("loss", fontsize=_FONT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    if losses:
        figure.legend(loc="outside upper center", ncols=len(losses), frameon=False, fontsize=_FONT)
    return _png(figure)


def video_timeline(times_s: np.ndarray, timeline: "Timeline") -> bytes:
    """A video's exposure, focus, change from row to row, and the intervals between its timestamps, over its time.

    Parameters
    ----------
    times_s
        When each row is shown, in seconds from the first, shape (frames,).
    timeline
        As `video.quality` measures it.
    """
    figure, grid = _grid(4, 1, 1.05, extra=0.15, wide=True, left=0.75, bottom=0.45)
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
        axes.plot(times, shown, color=_COLOURS[number], linewidth=1, marker="o" if len(shown) < 3 else None)
        axes.set_ylabel(name, fontsize=_FONT - 1)
        axes.yaxis.set_label_coords(-0.055, 0.5)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.tick_params(labelbottom=number == len(rows) - 1)
        _tidy(axes)
        axes.locator_params(nbins=_TICKS)
    grid[0].set_ylim(0, 255)
    for axes in grid[1:]:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    grid[-1].set_xlabel("time (s)", fontsize=_FONT)
    return _png(figure)


def _extremes(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of many points the smallest and the largest of each stretch, so that no single frame is lost in a long video."""
    stretch = -(-len(values) // _STRETCHES)
    if stretch <= 2:
        return times, values
    whole = len(values) // stretch * stretch
    folded = values[:whole].reshape(-1, stretch)
    ends = np.stack([folded.min(axis=1), folded.max(axis=1)], axis=1).ravel()
    return np.append(np.repeat(times[:whole:stretch], 2), times[whole:]), np.append(ends, values[whole:])


def trajectories(table: "pd.DataFrame", cutoff: float) -> bytes:
    """The path of each body part in the plane of the picture, without the frames below the cutoff.

    Parameters
    ----------
    table
        A pose table (see `table.py`) of one recording.
    """
    bodyparts = _bodyparts(table)
    colours = _colours(bodyparts)
    shown = table[(table["likelihood"] >= cutoff) & table["x"].notna()]
    left, top = (float(shown[axis].min()) if len(shown) else 0.0 for axis in ("x", "y"))
    width, height = (max(1.0, float(np.ptp(shown[axis]))) if len(shown) else 1.0 for axis in ("x", "y"))
    columns = min(4, max(1, math.ceil(math.sqrt(len(bodyparts)))))
    aspect = min(1.6, max(0.4, height / width))
    figure, grid = _grid(len(bodyparts), columns, aspect, extra=0.3, left=0.65, bottom=0.5)
    for place, (axes, name) in enumerate(zip(grid, bodyparts, strict=True)):
        rows = table[table["bodypart"] == name]
        confident = (rows["likelihood"] >= cutoff).to_numpy()
        x = np.where(confident, rows["x"], np.nan)
        y = np.where(confident, rows["y"], np.nan)
        axes.plot(x, y, color=colours[name], linewidth=0.7, alpha=0.75)
        share = float(np.isfinite(x).mean()) if len(x) else 0.0
        _title(axes, f"{name} ({share:.0%} confident)")
        axes.set_aspect("equal")
        axes.set_xlim(left - 0.03 * width, left + 1.03 * width)
        axes.set_ylim(top + 1.03 * height, top - 0.03 * height)
        lowest, leftmost = place >= len(bodyparts) - columns, place % columns == 0
        axes.set_xlabel("x (px)" if lowest else "", fontsize=_FONT)
        axes.set_ylabel("y (px, downwards)" if leftmost else "", fontsize=_FONT)
        axes.tick_params(labelbottom=lowest, labelleft=leftmost)
        _tidy(axes)
        axes.locator_params(nbins=_TICKS)
    return _png(figure)


def likelihoods(table: "pd.DataFrame", cutoff: float = 0.6) -> bytes:
    """How the likelihood of each body part is distributed; the line is the cutoff.

    Parameters
    ----------
    table
        A pose table (see `table.py`).
    """
    bodyparts = _bodyparts(table)
    colours = _colours(bodyparts)
    columns = 1 if len(bodyparts) <= 6 else 2
    names = 0.4 + 0.08 * max((len(name) for name in bodyparts), default=0)
    beside = 0.6 + (names if columns > 1 else 0.0)
    figure, grid = _grid(len(bodyparts), columns, 0.5, extra=0.12, wide=True, between=beside, left=names, bottom=0.5)
    tallest = 0.01
    for place, (axes, name) in enumerate(zip(grid, bodyparts, strict=True)):
        values = table.loc[table["bodypart"] == name, "likelihood"].dropna().to_numpy()
        counts, edges = np.histogram(values, bins=40, range=(0, 1))
        share = counts / max(1, len(values))
        axes.stairs(share, edges, fill=True, color=colours[name])
        axes.axvline(cutoff, color="black", linewidth=1, linestyle=(0, (3, 2)))
        above = float((values >= cutoff).mean()) if len(values) else 0.0
        axes.set_ylabel(_text(name), rotation=0, ha="right", va="center", fontsize=_FONT)
        axes.annotate(
            f"{above:.1%}\n\u2265 {cutoff:g}", (1.015, 0.5), xycoords="axes fraction", va="center", fontsize=_FONT - 1
        )
        tallest = max(tallest, share.max())
        axes.set_xlim(0, 1)
        axes.tick_params(labelbottom=place >= len(bodyparts) - columns)
        _tidy(axes)
        axes.grid(False)
    for axes in grid:
        axes.set_ylim(0, tallest)
        axes.set_yticks([0, tallest], ["0", f"{tallest:.0%}"])
    figure.supxlabel("likelihood (bars: share of frames)", fontsize=_FONT, y=0.05 / figure.get_figheight())
    return _png(figure)


def days_plot(days: "pd.DataFrame") -> bytes:
    """What each day brought: sessions and hours of video above, hours of computing below.

    Parameters
    ----------
    days
        Columns day and those of `reports.DailyReport.days`.
    """
    figure = _figure(5.2)
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
            colour = _COLOURS[3] if "quarantine" in label else _COLOURS[number]
            axes.bar(places + offset, days[columns].sum(axis=1), width, label=label, color=colour)
        axes.set_ylabel(title, fontsize=_FONT)
        axes.legend(fontsize=_FONT - 1, loc="upper left", ncols=len(bars), frameon=False)
        axes.set_ylim(0, max(1e-9, axes.get_ylim()[1] * 1.25))
        _tidy(axes)
        axes.grid(False, axis="x")
    below.set_xlim(-0.6, len(days) - 0.4)
    shown = places[::-7][::-1]
    below.set_xticks(shown, [f"{days['day'].iloc[place]:%d %b}" for place in shown], fontsize=_FONT)
    return _png(figure)


def quality_plot(course: "pd.DataFrame", lengths: "pd.DataFrame", cutoff: float) -> bytes:
    """Likelihood, jumps and limb lengths over time, and how long the limbs are beside what the labels say.

    Parameters
    ----------
    course, lengths
        As `quality.course` and `quality.limb_lengths` give them.
    """
    of_kind = {kind: own for kind, own in course.groupby("kind", sort=False)}
    rows = ["likelihood", "jumps", *(["limb"] if "limb" in of_kind else [])]
    labels = {"likelihood": "likelihood", "jumps": "jumps", "limb": "limb length\n(labels = 1)"}
    colours = _colours(_bodyparts(of_kind["likelihood"])) if "likelihood" in of_kind else {}
    # In inches: the names of the limbs, the numbers below a plot, and the limbs below everything.
    names = max(0.8, 0.25 + 0.07 * max(map(len, lengths["bodypart"]), default=0))
    numbers, limbs = 0.5, 0.2 + 0.28 * len(lengths)
    below = numbers + (limbs + numbers if len(lengths) else 0.0)
    figure, grid = _grid(
        len(rows), 1, 1.5, extra=0.3, wide=True, legend=list(colours), between=0.15, left=names, bottom=below
    )
    for axes, kind in zip(grid, rows, strict=True):
        own = of_kind.get(kind)
        shades = _colours(list(lengths["bodypart"])) if kind == "limb" else colours
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
        axes.set_ylabel(labels[kind], fontsize=_FONT)
        axes.set_xlim(0, max(1.0, float(course["frame"].max()) if len(course) else 1.0))
        _tidy(axes)
        axes.locator_params(nbins=_TICKS)
    grid[-1].set_xlabel("frame", fontsize=_FONT)
    if len(lengths):
        plot, height = grid[-1].get_position(), figure.get_figheight()
        axes = figure.add_axes((plot.x0, numbers / height, plot.width, limbs / height))
        shades = _colours(list(lengths["bodypart"]))
        for place, row in enumerate(lengths.to_dict("records")):
            colour = shades[row["bodypart"]]
            axes.barh(place, row["high_px"] - row["low_px"], 0.7, row["low_px"], color="0.88")
            axes.plot([row["median_px"]] * 2, [place - 0.35, place + 0.35], color="0.45", linewidth=1.5)
            axes.plot([row["q01"], row["q99"]], [place, place], color=colour, linewidth=1.4)
            axes.plot([row["q25"], row["q75"]], [place, place], color=colour, linewidth=5, solid_capstyle="butt")
        axes.set_xlim(0.95 * min(lengths["low_px"].min(), lengths["q01"].min()))
        axes.set_yticks(range(len(lengths)), [_text(name) for name in lengths["bodypart"]], fontsize=_FONT)
        axes.invert_yaxis()
        axes.set_xlabel("limb length (px): labels grey; poses from 1 to 99 %, the middle half thick", fontsize=_FONT)
        _tidy(axes)
    _legend(figure, colours, {})
    return _png(figure)


def as_markdown(picture: bytes, alt: str) -> str:
    """A picture as a Markdown image that carries its own bytes."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    alt = alt.replace("[", "(").replace("]", ")")
    return f"![{alt}](data:image/{kind};base64,{base64.b64encode(picture).decode()})"


def _mosaic(
    images: Sequence[tuple[np.ndarray, Mapping[str, tuple[float, float, float]], str]],
    cutoff: float,
    columns: int,
    skeleton: Skeleton,
    region: Region | None,
) -> bytes:
    from matplotlib.patches import Rectangle

    skeleton = list(skeleton)
    bodyparts = list(dict.fromkeys(name for _, points, _ in images for name in points))
    colours = _colours(bodyparts)
    aspect = max((rgb.shape[0] / rgb.shape[1] for rgb, _, _ in images), default=0.75)
    hollow = any(_known(point[:2]) and point[2] < cutoff for _, points, _ in images for point in points.values())
    marks = {f"below {cutoff:g}": "o"} if hollow else {}
    titled = any(title for _, _, title in images)
    figure, grid = _grid(len(images), columns, aspect, 0.3 if titled else 0.08, legend=[*bodyparts, *marks])
    for axes, (rgb, points, title) in zip(grid, images, strict=True):
        _show(axes, rgb, (0, 0, rgb.shape[1], rgb.shape[0]))
        if region is not None:
            corner = (region.x - 0.5, region.y - 0.5)
            for colour, width, style in (("black", 3.0, "-"), ("white", 1.4, (0, (4, 3)))):
                axes.add_patch(
                    Rectangle(
                        corner, region.width, region.height, fill=False, ec=colour, lw=width, ls=style, zorder=1.5
                    )
                )
        size = 6.5 if len(points) <= 12 else 4.5
        for one, other in skeleton:
            if one in points and other in points and min(points[one][2], points[other][2]) >= cutoff:
                x, y = zip(points[one][:2], points[other][:2], strict=True)
                axes.plot(x, y, color="black", linewidth=2.2, alpha=0.5, zorder=2)
                axes.plot(x, y, color="white", linewidth=1.1, alpha=0.9, zorder=3)
        for name, (x, y, likelihood) in points.items():
            if likelihood >= cutoff:
                axes.plot(x, y, "o", color=colours[name], mec="white", mew=0.9, markersize=size, zorder=4)
            elif _known((x, y)):
                axes.plot(x, y, "o", mfc="none", mec="white", mew=2.4, markersize=size, zorder=4)
                axes.plot(x, y, "o", mfc="none", mec=colours[name], mew=1.3, markersize=size, zorder=5)
        _title(axes, title)
    _legend(figure, colours, marks)
    return _jpeg(figure)


def _pairs(images: Sequence[tuple[np.ndarray, Points, Points, str]], columns: int, marks: Mapping[str, str]) -> bytes:
    """Two sets of points on each frame, joined by lines; `marks` are what the two are called and how they look."""
    bodyparts = list(dict.fromkeys(name for _, crosses, _, _ in images for name in crosses))
    colours = _colours(bodyparts)
    figure, grid = _grid(len(images), columns, aspect=0.8, extra=0.55, legend=[*bodyparts, *marks])
    for axes, (rgb, crosses, circles, title) in zip(grid, images, strict=True):
        distances = {
            name: math.dist(crosses[name], circles[name])
            for name in crosses
            if name in circles and _known(crosses[name]) and _known(circles[name])
        }
        shown = [point for point in (*crosses.values(), *circles.values()) if _known(point)]
        _show(axes, rgb, _around(shown, rgb.shape[1], rgb.shape[0], aspect=0.8))
        for name in distances:
            (x0, y0), (x1, y1) = crosses[name], circles[name]
            axes.plot([x0, x1], [y0, y1], color="white", linewidth=2.6, alpha=0.7, zorder=2)
            axes.plot([x0, x1], [y0, y1], color=colours[name], linewidth=1.3, zorder=3)
        for name, point in crosses.items():
            axes.plot(*point, "+", color="white", markersize=12, markeredgewidth=3.6, zorder=4)
            axes.plot(*point, "+", color=colours[name], markersize=11, markeredgewidth=2, zorder=5)
        for name, point in circles.items():
            if name in colours:
                axes.plot(*point, "o", mfc="none", mec="white", markersize=8, markeredgewidth=3.2, zorder=4)
                axes.plot(*point, "o", mfc="none", mec=colours[name], markersize=8, markeredgewidth=1.7, zorder=5)
        if distances:
            worst = max(distances, key=lambda name: distances[name])
            title = f"{title}\n{worst}: {distances[worst]:.1f} px"
        _title(axes, title)
    _legend(figure, colours, marks)
    return _jpeg(figure)


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")


def _grid(
    count: int,
    columns: int,
    aspect: float,
    extra: float,
    *,
    wide: bool = False,
    legend: Sequence[str] = (),
    between: float = 0.08,
    left: float = 0.05,
    bottom: float = 0.05,
) -> tuple["Figure", "list[Axes]"]:
    """A figure with a cell for each of so many pictures, laid out by hand: matplotlib takes as long for it as to draw.

    Parameters
    ----------
    aspect
        Height by width of a cell's picture.
    wide
        Cells fill the page, and `aspect` is their height in inches.
    extra, between, left, bottom
        In inches: the height of a cell's title, the space beside each column, and that for the outer labels of axes.
    legend
        What the legend above everything will name.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    width = (_WIDTH - left - between * columns) / columns
    if not wide:
        # One or two pictures to a row would fill the page.
        width = min(width, 4.5)
    high = aspect if wide else width * aspect
    top = 0.05 + (0.1 + 0.2 * math.ceil(len(legend) / _legend_columns(legend)) if legend else 0.0)
    height = top + rows * (high + extra) + bottom
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    start = left + (_WIDTH - left - columns * (width + between)) / 2
    cells = []
    for number in range(count):
        row, column = divmod(number, columns)
        x, y = start + column * (width + between), bottom + (rows - 1 - row) * (high + extra)
        cells.append(figure.add_axes((x / _WIDTH, y / height, width / _WIDTH, high / height)))
    return figure, cells


def _show(axes: "Axes", rgb: np.ndarray, window: tuple[int, int, int, int]) -> None:
    """A window (left, top, right, bottom) of a picture, with the axes in pixels of the full frame."""
    from PIL import Image

    left, top, right, bottom = window
    picture = Image.fromarray(np.ascontiguousarray(rgb[top:bottom, left:right]))
    # Few pixels to a cell: a picture far larger is averaged first, or it looks grainy.
    picture.thumbnail((900, 900), Image.Resampling.LANCZOS)
    axes.imshow(np.asarray(picture), extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5))
    axes.set_xlim(left - 0.5, right - 0.5)
    axes.set_ylim(bottom - 0.5, top - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _around(points: Sequence[Sequence[float]], width: int, height: int, aspect: float) -> tuple[int, int, int, int]:
    """A window of the picture that holds all points and some of what surrounds them."""
    if not points:
        return 0, 0, width, height
    array = np.clip(np.asarray(points, float), 0, (width - 1, height - 1))
    (left, top), (right, bottom) = array.min(axis=0), array.max(axis=0)
    wide = max(right - left, (bottom - top) / aspect, 40) * 1.5
    wide = min(wide, width, height / aspect)
    # A body longer than such a window is shown whole, in a window of another shape.
    wide, high = max(wide, min(right - left + 20, width)), max(wide * aspect, min(bottom - top + 20, height))
    x = min(max((left + right - wide) / 2, 0), width - wide)
    y = min(max((top + bottom - high) / 2, 0), height - high)
    return int(x), int(y), min(width, math.ceil(x + wide)), min(height, math.ceil(y + high))


def _title(axes: "Axes", title: str) -> None:
    lines = [line if len(line) <= 46 else f"...{line[-43:]}" for line in title.splitlines()]
    axes.set_title(_text("\n".join(lines)), fontsize=_FONT - 1, pad=3)


def _legend(figure: "Figure", colours: Mapping[str, str], marks: Mapping[str, str]) -> None:
    """The body parts' colours and what the marks mean, above everything."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", linestyle="", color=colour, markersize=7) for colour in colours.values()]
    handles += [
        Line2D([], [], marker=mark, linestyle="", color="0.2", mfc="none", markersize=8, mew=1.6)
        for mark in marks.values()
    ]
    names = [*colours, *marks]
    if names:
        # The space in front keeps matplotlib from hiding names that begin with an underscore.
        labels = [f" {_text(name)}" for name in names]
        figure.legend(
            handles,
            labels,
            loc="outside upper center" if figure.get_layout_engine() else "upper center",
            ncols=_legend_columns(names),
            frameon=False,
            fontsize=_FONT,
            handletextpad=0.1,
            columnspacing=1.2,
        )


def _legend_columns(names: Sequence[str]) -> int:
    longest = max(len(name) for name in names)
    return max(1, min(len(names), int(_WIDTH * _DPI * 0.95 / (longest * 7.2 + 34))))


def _tidy(axes: "Axes") -> None:
    axes.tick_params(labelsize=_FONT - 1, color="0.6")
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")


def _bodyparts(table: "pd.DataFrame") -> list[str]:
    return list(dict.fromkeys(table["bodypart"]))


def _colours(bodyparts: Sequence[str]) -> dict[str, str]:
    if len(bodyparts) <= len(_COLOURS):
        return dict(zip(bodyparts, _COLOURS, strict=False))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = colormaps["viridis"](np.linspace(0, 0.92, len(bodyparts)))
    return {name: to_hex(shade) for name, shade in zip(bodyparts, shades, strict=True)}


def _known(point: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in point)


def _text(text: str) -> str:
    """Text as it is: matplotlib reads dollar signs as formulas."""
    return text.replace("$", r"\$")


def _pixels(figure: "Figure") -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image, ImageChops

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
    # Pictures of a fixed shape never fill their figure: the white margin above and below is cut off.
    drawn = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    if not drawn:
        return image
    return image.crop((0, max(0, drawn[1] - 8), image.width, min(image.height, drawn[3] + 8)))


def _jpeg(figure: "Figure") -> bytes:
    return _smallest_that_fits(_pixels(figure), "JPEG")


def _png(figure: "Figure") -> bytes:
    return _smallest_that_fits(_pixels(figure), "PNG")


def _smallest_that_fits(image: Any, kind: str) -> bytes:
    """Encode as well as the limit allows: quality goes first, then size."""
    while True:
        if kind == "PNG":
            encoded = _encode(image.quantize(64, method=2), "PNG")
            if len(encoded) <= LIMIT_BYTES:
                return encoded
        for quality in (88, 80, 70):
            encoded = _encode(image, "JPEG", quality=quality, optimize=True)
            if len(encoded) <= LIMIT_BYTES:
                return encoded
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5))


def _encode(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
