"""Whether a picture moves, on pictures drawn by hand."""

import numpy as np
import pytest

from dlc_platform.video.motion import moves

SIZE = 100.0


def picture(
    x: int | None = None, noise: float = 4.0, light: float = 0.0, seed: int = 0, clock: bool = False
) -> np.ndarray:
    """A dark animal of 100 x 40 px at `x` on a light, textured floor of 640 x 480; none without `x`."""
    floor = 150 + 30 * np.sin(np.arange(640) / 9)[None, :] + np.zeros((480, 1))
    if x is not None:
        floor[220:260, x : x + 100] = 40
    random = np.random.default_rng(seed)
    if clock:
        floor[10:26, 20:80] = random.integers(0, 256, (16, 60))
    grey = floor + light + random.normal(0, noise, floor.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("noise", [0, 4, 12])
def test_a_walking_animal_moves_the_picture_a_resting_one_not(noise: float) -> None:
    assert moves([picture(100, noise, seed=1), picture(200, noise, seed=2)], SIZE)
    assert moves([picture(100, noise, seed=1), picture(150, noise, seed=2)], SIZE)
    assert not moves([picture(100, noise, seed=seed) for seed in range(3)], SIZE)
    # It breathes, and turns its head.
    assert not moves([picture(100, noise, seed=1), picture(103, noise, seed=2)], SIZE)


def test_one_that_comes_or_goes_between_any_two_of_them_moves_it() -> None:
    assert moves([picture(seed=1), picture(seed=2), picture(300, seed=3)], SIZE)
    assert moves([picture(100, seed=1), picture(400, seed=2), picture(100, seed=3)], SIZE)


def test_light_a_clock_and_a_still_picture_are_not_motion() -> None:
    assert not moves([picture(100, seed=1), picture(100, light=25, seed=2)], SIZE)
    assert not moves([picture(100, seed=1, clock=True), picture(100, seed=2, clock=True)], SIZE)
    assert not moves([picture(100, seed=1)] * 3, SIZE)
    assert not moves([picture(100)], SIZE)


def test_small_pictures_are_looked_at_too() -> None:
    small = [picture(x)[200:280:2, ::8] for x in (100, 400)]
    assert moves(small, SIZE / 8)
    assert not moves([small[0], small[0]], SIZE / 8)
