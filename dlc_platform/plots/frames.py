"""Frames of videos with labels and keypoints on them, side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.plots.canvas import Points, Skeleton, add_legend, add_title, as_jpeg, colours_of, known, new_grid
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    return frames_with_keypoints(
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
    skeleton
        Pairs of body parts to join by a line.
    region
        The region of interest of all these frames, drawn as a rectangle.
    """
    from matplotlib.patches import Rectangle

    skeleton = list(skeleton)
    bodyparts = list(dict.fromkeys(name for _, points, _ in images for name in points))
    colours = colours_of(bodyparts)
    aspect = max((rgb.shape[0] / rgb.shape[1] for rgb, _, _ in images), default=0.75)
    hollow = any(known(point[:2]) and point[2] < cutoff for _, points, _ in images for point in points.values())
    marks = {f"below {cutoff:g}": "o"} if hollow else {}
    titled = any(title for _, _, title in images)
    figure, grid = new_grid(len(images), columns, aspect, 0.3 if titled else 0.08, legend=[*bodyparts, *marks])
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
            elif known((x, y)):
                axes.plot(x, y, "o", mfc="none", mec="white", mew=2.4, markersize=size, zorder=4)
                axes.plot(x, y, "o", mfc="none", mec=colours[name], mew=1.3, markersize=size, zorder=5)
        add_title(axes, title)
    add_legend(figure, colours, marks)
    return as_jpeg(figure)


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


def _pairs(images: Sequence[tuple[np.ndarray, Points, Points, str]], columns: int, marks: Mapping[str, str]) -> bytes:
    """Two sets of points on each frame, joined by lines; `marks` gives the name and the look of each set."""
    bodyparts = list(dict.fromkeys(name for _, crosses, _, _ in images for name in crosses))
    colours = colours_of(bodyparts)
    figure, grid = new_grid(len(images), columns, aspect=0.8, extra=0.55, legend=[*bodyparts, *marks])
    for axes, (rgb, crosses, circles, title) in zip(grid, images, strict=True):
        distances = {
            name: math.dist(crosses[name], circles[name])
            for name in crosses
            if name in circles and known(crosses[name]) and known(circles[name])
        }
        shown = [point for point in (*crosses.values(), *circles.values()) if known(point)]
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
        add_title(axes, title)
    add_legend(figure, colours, marks)
    return as_jpeg(figure)


def _show(axes: "Axes", rgb: np.ndarray, window: tuple[int, int, int, int]) -> None:
    """A window (left, top, right, bottom) of a picture, with the axes in pixels of the full frame."""
    from PIL import Image

    left, top, right, bottom = window
    picture = Image.fromarray(np.ascontiguousarray(rgb[top:bottom, left:right]))
    # A cell has few pixels: a much larger picture is averaged first, or it looks grainy.
    picture.thumbnail((900, 900), Image.Resampling.LANCZOS)
    axes.imshow(np.asarray(picture), extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5))
    axes.set_xlim(left - 0.5, right - 0.5)
    axes.set_ylim(bottom - 0.5, top - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _around(points: Sequence[Sequence[float]], width: int, height: int, aspect: float) -> tuple[int, int, int, int]:
    """A window of the picture that holds all points and some of their surroundings."""
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
