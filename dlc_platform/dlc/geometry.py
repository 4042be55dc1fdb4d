"""From a picture to the size that a network takes, and back, by the model's ``data.inference``.

Resizing and padding are those of DeepLabCut's transforms (albumentations 1.4.3), done with the same OpenCV calls, so
that a network sees the same bytes. `network` changes the pixels' values afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: The changes of a picture that are reproduced here; all others are left to DeepLabCut itself.
_SIZES = {"resize", "longest_max_size", "auto_padding"}
_VALUES = {"normalize_images", "scale_to_unit_range"}


@dataclass(frozen=True)
class Geometry:
    """The fitting of pictures of one size to a network.

    Attributes
    ----------
    width, height
        The size of the picture, in pixels.
    resized
        The width and height to which it is scaled, before padding.
    left, right, top, bottom
        The pixels that are added at each side.
    border
        OpenCV's number for the way in which they are filled.
    value
        The colour of a constant border: blue, green, red.
    """

    width: int
    height: int
    resized: tuple[int, int]
    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    border: int = 0
    value: tuple[float, ...] = (0, 0, 0)

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the network's input, in pixels."""
        return self.resized[0] + self.left + self.right, self.resized[1] + self.top + self.bottom

    @property
    def is_identity(self) -> bool:
        """True when the network takes the picture as it is."""
        return self.input_size == (self.width, self.height) == self.resized

    def fit(self, picture: np.ndarray) -> np.ndarray:
        """A uint8 picture of shape (height, width, 3) as the network takes it."""
        import cv2

        if self.resized != (self.width, self.height):
            picture = cv2.resize(np.ascontiguousarray(picture), self.resized, interpolation=cv2.INTER_LINEAR)
        if self.input_size != self.resized:
            picture = cv2.copyMakeBorder(
                picture, self.top, self.bottom, self.left, self.right, self.border, value=self.value
            )
        return picture

    def back(self, poses: np.ndarray) -> None:
        """Bring x and y of float32 poses, shape (..., 3), from the network's pixels to the picture's, in place."""
        if self.is_identity:
            return
        scale = np.array([self.width / self.resized[0], self.height / self.resized[1]])
        poses[..., :2] = (poses[..., :2] - (self.left, self.top)) * scale


def geometry(inference: Mapping[str, Any], width: int, height: int) -> Geometry:
    """The fitting of pictures of a size to a network whose configuration holds `inference` as ``data.inference``.

    Notes
    -----
    DeepLabCut pads to a multiple of 32 (which HRNets need) at a side that it draws anew for each frame, unless the
    configuration names the side. Here the picture is put in the middle instead, so that the same frame has the same
    pose.
    """
    import cv2

    resized = (width, height)
    padding = (0, 0, 0, 0)
    border, value = cv2.BORDER_CONSTANT, (0, 0, 0)
    if resize := inference.get("resize"):
        target = (resize["width"], resize["height"])
        if resize.get("keep_ratio", True):
            scale = min(target[1] / height, target[0] / width)
            resized = (int(width * scale), int(height * scale))
            padding = (0, max(0, target[0] - resized[0]), 0, max(0, target[1] - resized[1]))
        else:
            resized = target
    elif longest := inference.get("longest_max_size"):
        scale = longest / max(width, height)
        resized = (round(width * scale), round(height * scale))
    elif auto := inference.get("auto_padding"):
        border = {"constant": cv2.BORDER_CONSTANT, "reflect_101": cv2.BORDER_REFLECT_101}[
            auto.get("border_mode") or "reflect_101"
        ]
        value = _blue_first(auto.get("border_value"))
        position = auto.get("position") or "random"
        padding = (
            *_sides(width, auto.get("min_width"), auto.get("pad_width_divisor", 1), "left" in position, position),
            *_sides(height, auto.get("min_height"), auto.get("pad_height_divisor", 1), "top" in position, position),
        )
    return Geometry(width, height, resized, *padding, border=border, value=value)


def reproduces(inference: Mapping[str, Any]) -> bool:
    """True if a model's ``data.inference`` has at most one change of size and one of the pixels' values."""
    used = {key for key, value in inference.items() if value not in (None, False)}
    return (
        used <= {*_SIZES, *_VALUES}
        and len(used & _SIZES) <= 1
        and len(used & _VALUES) <= 1
        and isinstance(inference.get("longest_max_size") or 0, int)
    )


def _blue_first(value: float | Sequence[float] | None) -> tuple[float, ...]:
    """The colour of a border in the order that DeepLabCut gives OpenCV for its pictures, which have red first."""
    if value is None:
        return 0, 0, 0
    if isinstance(value, Sequence):
        return tuple(value[::-1])
    return 0, 0, value  # OpenCV applies a single number only to the first channel


def _sides(length: int, least: int | None, divisor: int | None, first: bool, position: str) -> tuple[int, int]:
    """The pixels to add before and after; `first` is true if the picture comes first."""
    lacking = max(0, least - length) if least is not None else -length % (divisor or 1)
    if position in ("center", "random"):
        return lacking // 2, lacking - lacking // 2
    return (0, lacking) if first else (lacking, 0)
