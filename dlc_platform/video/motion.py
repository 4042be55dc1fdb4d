"""Detection of motion in the pictures of a video, as opposed to noise, compression and changes of the light."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

#: Pictures are compared as means over blocks, of which so many lie along the longer side: a mean over a block has a
#: tenth of the noise of a pixel.
_BLOCKS = 96
#: The least change of a changed block, in grey levels, and as a multiple of the change of most blocks.
_LEVELS, _TIMES = 6.0, 6.0


def moves(pictures: Sequence[np.ndarray], size_px: float) -> bool:
    """True if something as large as half an animal has come, gone or moved between any two pictures.

    Parameters
    ----------
    pictures
        RGB, each of shape (height, width, 3), of one camera.
    size_px
        The animal's size in pixels, as in `pose.reference.Reference`: changes must cover a square with sides of half of
        it. That is less than the area that an animal uncovers when it walks half its length, and more than the digits
        of a clock in the picture.
    """
    if len(pictures) < 2:
        return False
    block = max(1, max(pictures[0].shape[:2]) // _BLOCKS)
    means = [_means(picture, block) for picture in pictures]
    needed = max(2.0, (size_px / 2) ** 2 / block**2)
    for one, other in combinations(means, 2):
        change = other - one
        change = np.abs(change - np.median(change))  # a change of the light over the whole picture is not motion
        if np.count_nonzero(change > max(_LEVELS, _TIMES * float(np.median(change)))) >= needed:
            return True
    return False


def _means(picture: np.ndarray, block: int) -> np.ndarray:
    """The mean grey level of each block of a picture; a rest at the edges is left out."""
    height, width = (side // block * block for side in picture.shape[:2])
    grey = picture[:height, :width].mean(axis=2, dtype=np.float32)
    return grey.reshape(height // block, block, width // block, block).mean(axis=(1, 3))
