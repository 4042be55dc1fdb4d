"""The region of interest: the part of a picture that a lab uses, the same for every use of its frames.

lab.yaml gives regions to cameras and sessions. This module imports only errors, so that all can use it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dlc_platform.errors import PlatformError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Region:
    """A rectangle of whole pixels of a picture as it is shown, which is after its rotation.

    Attributes
    ----------
    x, y
        The column and row of its first pixel; the origin is at the top left. A point at (a, b) of the cropped picture
        is at (a + x, b + y) of the full one.
    width, height
        In pixels.
    """

    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height} at ({self.x}, {self.y})"

    def crop(self, picture: np.ndarray) -> np.ndarray:
        """The region of an array of shape (height, width, ...), as a view of it."""
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]

    def check(self, width: int, height: int, what: str) -> None:
        """Refuse a picture that does not contain the whole region.

        Parameters
        ----------
        width, height
            The size of the picture, in pixels.
        what
            The file, for the message.

        Raises
        ------
        PlatformError
            When the region reaches over the picture.
        """
        if min(self.x, self.y) < 0 or self.x + self.width > width or self.y + self.height > height:
            raise PlatformError(
                f"the region {self} reaches over the picture of {what}, which is {width} x {height}",
                "Correct it under `regions` in lab.yaml",
            )

    def as_dict(self) -> dict[str, int]:
        """Its four numbers by name, as they enter an identity."""
        return asdict(self)
