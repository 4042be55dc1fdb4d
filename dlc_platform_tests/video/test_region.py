import numpy as np
import pytest

from dlc_platform.errors import PlatformError
from dlc_platform.video.region import Region


def test_a_region_is_cropped_exactly_and_without_a_copy():
    picture = np.arange(48 * 64 * 3).reshape(48, 64, 3)
    cropped = Region(5, 7, 40, 32).crop(picture)
    assert cropped.shape == (32, 40, 3) and np.shares_memory(cropped, picture)
    assert (cropped[0, 0] == picture[7, 5]).all() and (cropped[-1, -1] == picture[38, 44]).all()
    assert Region(5, 7, 40, 32).crop(picture[..., 0]).shape == (32, 40)


def test_a_region_must_lie_inside_of_the_picture():
    Region(24, 16, 40, 32).check(64, 48, "a.mp4")
    for region in (Region(25, 16, 40, 32), Region(24, 17, 40, 32), Region(-1, 0, 40, 32), Region(0, -1, 40, 32)):
        with pytest.raises(PlatformError, match=r"reaches over the picture of a.mp4, which is 64 x 48. .*lab.yaml"):
            region.check(64, 48, "a.mp4")
