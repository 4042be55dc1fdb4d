"""The common parts of all pictures: size, colours, letters, and encoding.

Every function that draws returns an encoded PNG or JPEG of at most `LIMIT_BYTES`, the same bytes for the same input.
Coordinates are pixels of the full frame, origin at the top left, y downwards. A body part has one colour in all
pictures of a project, by its place in the project's order.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LIMIT_BYTES = 100_000

#: Okabe and Ito's colours, which the colour-blind can distinguish; the palest last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
_WIDTH = 9.0
_DPI = 100
FONT = 9.0
#: The most intervals on an axis in pictures with many plots: a number takes as long to draw as a line.
TICKS = 4

Points = Mapping[str, tuple[float, float]]
Skeleton = Iterable[tuple[str, str]]


def as_markdown(picture: bytes, alt: str) -> str:
    """A picture as a Markdown image that carries its own bytes."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    alt = alt.replace("[", "(").replace("]", ")")
    return f"![{alt}](data:image/{kind};base64,{base64.b64encode(picture).decode()})"


def new_figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")


def new_grid(
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
    """A figure with a cell for each of so many pictures, laid out by hand, because matplotlib's layout takes as long as
    the drawing.

    Parameters
    ----------
    aspect
        Height by width of a cell's picture.
    wide
        True if cells fill the page; then `aspect` is their height in inches.
    extra, between, left, bottom
        In inches: the height of a cell's title, the space beside each column, and the space for the outer labels of
        axes.
    legend
        The names in the legend above everything.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    width = (_WIDTH - left - between * columns) / columns
    if not wide:
        # One or two pictures in a row would fill the page.
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


def add_title(axes: "Axes", title: str) -> None:
    lines = [line if len(line) <= 46 else f"...{line[-43:]}" for line in title.splitlines()]
    axes.set_title(plain("\n".join(lines)), fontsize=FONT - 1, pad=3)


def add_legend(figure: "Figure", colours: Mapping[str, str], marks: Mapping[str, str]) -> None:
    """Draw the legend above everything: the colours of body parts, and the meaning of the marks."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", linestyle="", color=colour, markersize=7) for colour in colours.values()]
    handles += [
        Line2D([], [], marker=mark, linestyle="", color="0.2", mfc="none", markersize=8, mew=1.6)
        for mark in marks.values()
    ]
    names = [*colours, *marks]
    if names:
        # The space in front keeps matplotlib from hiding names that begin with an underscore.
        labels = [f" {plain(name)}" for name in names]
        figure.legend(
            handles,
            labels,
            loc="outside upper center" if figure.get_layout_engine() else "upper center",
            ncols=_legend_columns(names),
            frameon=False,
            fontsize=FONT,
            handletextpad=0.1,
            columnspacing=1.2,
        )


def _legend_columns(names: Sequence[str]) -> int:
    longest = max(len(name) for name in names)
    return max(1, min(len(names), int(_WIDTH * _DPI * 0.95 / (longest * 7.2 + 34))))


def tidy(axes: "Axes") -> None:
    axes.tick_params(labelsize=FONT - 1, color="0.6")
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")


def bodyparts_of(table: "pd.DataFrame") -> list[str]:
    return list(dict.fromkeys(table["bodypart"]))


def colours_of(bodyparts: Sequence[str]) -> dict[str, str]:
    if len(bodyparts) <= len(COLOURS):
        return dict(zip(bodyparts, COLOURS, strict=False))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = colormaps["viridis"](np.linspace(0, 0.92, len(bodyparts)))
    return {name: to_hex(shade) for name, shade in zip(bodyparts, shades, strict=True)}


def known(point: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in point)


def plain(text: str) -> str:
    """A text without formulas: matplotlib reads dollar signs as formulas."""
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


def as_jpeg(figure: "Figure") -> bytes:
    return _smallest_that_fits(_pixels(figure), "JPEG")


def as_png(figure: "Figure") -> bytes:
    return _smallest_that_fits(_pixels(figure), "PNG")


def _smallest_that_fits(image: Any, kind: str) -> bytes:
    """Encode as well as the limit allows: first the quality is reduced, then the size."""
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
