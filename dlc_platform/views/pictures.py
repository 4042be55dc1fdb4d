"""Small pictures of a session's poses: a typical frame with its keypoints, and a strip of likelihood over time.

They are drawn when somebody first looks at a list, so they are made of few reads and without a plotting library.
"""

import colorsys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.store import Store
from dlc_platform.video.frames import find_frames
from dlc_platform.views.pose_arrays import PoseArrays, pose_arrays

if TYPE_CHECKING:
    from PIL import Image

STILL, STRIP = "still.jpg", "strip.png"
_WIDTH = 480
#: Frames of which the typical one is chosen.
_LOOKED_AT = 64
_BINS = 160


def pictures(store: Store, estimate: str, video: Path, whole: bool, cutoff: float) -> Path:
    """The folder with `STILL` and `STRIP` of a pose estimate, drawn if nobody has looked at them before.

    Parameters
    ----------
    video, whole
        The file, and that all of it can be decoded.
    cutoff
        Keypoints with a lower likelihood are drawn as rings.

    Raises
    ------
    PlatformError
        When the poses or the video cannot be read.
    """

    def draw(folder: Path) -> None:
        arrays = pose_arrays(store, estimate)
        _still(arrays, video, whole, cutoff).save(folder / STILL, quality=80, optimize=True)
        _strip(arrays).save(folder / STRIP)

    return store.view("pictures", f"{estimate}-{cutoff:g}".replace(".", "_"), draw)


def colours(keypoints: tuple[tuple[str, str], ...]) -> list[str]:
    """A colour for each keypoint as #rrggbb: body parts along one scale in their order, the same in each individual."""
    bodyparts = list(dict.fromkeys(bodypart for _, bodypart in keypoints))
    scale = [_scale(number / max(len(bodyparts) - 1, 1)) for number in range(len(bodyparts))]
    return [scale[bodyparts.index(bodypart)] for _, bodypart in keypoints]


def _scale(place: float) -> str:
    # From violet over green to yellow, lighter and lighter: told apart by lightness alone, too.
    hue, lightness = 0.78 - 0.62 * place, 0.45 + 0.2 * place
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.75))
    return f"#{red:02x}{green:02x}{blue:02x}"


def typical_frame(arrays: PoseArrays) -> int:
    """The frame whose mean likelihood is the middle one of some that are spread over the video."""
    numbers = np.unique(np.linspace(0, arrays.frames - 1, min(_LOOKED_AT, arrays.frames)).astype(int))
    with np.errstate(invalid="ignore"):
        likelihood = np.nan_to_num(np.nanmean(arrays.poses[:, numbers, 2], axis=0))
    return int(numbers[np.argsort(likelihood, kind="stable")[len(numbers) // 2]])


def _still(arrays: PoseArrays, video: Path, whole: bool, cutoff: float) -> "Image.Image":
    from PIL import Image, ImageDraw

    number = typical_frame(arrays)
    found = find_frames(video, [number], whole)
    if number not in found:
        raise PlatformError(f"frame {number} of {video} cannot be decoded", "Look at the video's own checks")
    image = Image.fromarray(found[number])
    scale = min(1.0, _WIDTH / image.width)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(image)
    radius = 4
    for (x, y, likelihood), colour in zip(arrays.poses[:, number], colours(arrays.keypoints), strict=True):
        if not np.isfinite(x) or not np.isfinite(y):
            continue
        # The middle of a pixel is where its number is.
        centre_x, centre_y = (x + 0.5) * scale, (y + 0.5) * scale
        box = (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius)
        is_sure = likelihood >= cutoff
        draw.ellipse(box, fill=colour if is_sure else None, outline="#101010" if is_sure else colour)
    return image


def _strip(arrays: PoseArrays) -> "Image.Image":
    from PIL import Image

    step = 16
    likelihood = arrays.extremes(step)[:, :, 2, :].mean(axis=2)
    with np.errstate(invalid="ignore"):
        mean = np.nan_to_num(np.nanmean(likelihood, axis=0)) if likelihood.size else np.zeros(1)
    edges = np.linspace(0, len(mean), min(_BINS, len(mean)) + 1).astype(int)
    values = np.minimum.reduceat(mean, edges[:-1])
    # Dark where it is low.
    low, high = np.array([44, 34, 66]), np.array([214, 226, 240])
    row = (low + values[:, None] * (high - low)).astype(np.uint8)
    return Image.fromarray(np.repeat(row[None], 4, axis=0))
