"""A picture is fitted to a network as DeepLabCut's transforms fit it, byte for byte, and its keypoints come back."""

from typing import Any

import numpy as np
import pytest

from dlc_platform.dlc.geometry import geometry, reproduces

SIZES = [(640, 480), (639, 477), (97, 61), (333, 500), (224, 224), (31, 500)]
DIVISORS = {"pad_width_divisor": 64, "pad_height_divisor": 32}


@pytest.mark.parametrize(
    "inference",
    [
        {},
        {"resize": {"width": 320, "height": 256}},
        {"resize": {"width": 1000, "height": 901}},
        {"resize": {"width": 320, "height": 256, "keep_ratio": False}},
        {"longest_max_size": 200},
        {"longest_max_size": 701},
        {"auto_padding": DIVISORS | {"position": "center"}},
        {"auto_padding": DIVISORS | {"position": "top_left", "border_mode": "constant"}},
        {"auto_padding": DIVISORS | {"position": "bottom_right", "border_mode": "constant", "border_value": 114}},
        {"auto_padding": DIVISORS | {"position": "top_right", "border_mode": "constant", "border_value": [1, 20, 99]}},
        {"auto_padding": {"min_width": 500, "pad_width_divisor": None, "pad_height_divisor": 7, "position": "center"}},
        {
            "auto_padding": {
                "min_width": 501,
                "min_height": 100,
                "pad_width_divisor": None,
                "pad_height_divisor": None,
                "position": "bottom_left",
            }
        },
    ],
)
def test_pictures_are_fitted_as_deeplabcut_fits_them(inference: dict[str, Any]):
    from deeplabcut.pose_estimation_pytorch.data.preprocessor import AugmentImage
    from deeplabcut.pose_estimation_pytorch.data.transforms import build_transforms

    assert reproduces(inference)
    random = np.random.default_rng(3)
    theirs = AugmentImage(build_transforms(inference))
    for width, height in SIZES:
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        fitting = geometry(inference, width, height)
        expected, context = theirs(picture[..., ::-1].copy(), {})
        fitted = fitting.fit(picture)
        np.testing.assert_array_equal(fitted, expected[..., ::-1])
        assert fitting.input_size == (fitted.shape[1], fitted.shape[0])
        keypoints = random.uniform(0, 100, (2, 3, 3)).astype(np.float32)
        back = keypoints.copy()
        fitting.back(back)
        np.testing.assert_allclose(
            back[..., :2], keypoints[..., :2] * context["scales"] + context["offsets"], rtol=0, atol=1e-4
        )
        np.testing.assert_array_equal(back[..., 2], keypoints[..., 2])


def test_deeplabcut_puts_an_odd_picture_somewhere_else_each_time():
    """What `analyze_videos` does with HRNets by default; here the picture is put in the middle."""
    from deeplabcut.pose_estimation_pytorch.data.preprocessor import AugmentImage
    from deeplabcut.pose_estimation_pytorch.data.transforms import build_transforms

    inference = {"auto_padding": {"pad_width_divisor": 32, "pad_height_divisor": 32}}
    picture = np.random.default_rng(3).integers(0, 256, (61, 97, 3), np.uint8)
    theirs = AugmentImage(build_transforms(inference))
    assert len({theirs(picture, {})[1]["offsets"] for _ in range(20)}) > 1
    fitting = geometry(inference, 97, 61)
    assert (fitting.left, fitting.right, fitting.top, fitting.bottom) == (15, 16, 1, 2)
    assert geometry(inference, 96, 64).is_identity


@pytest.mark.parametrize(
    "inference",
    [
        {"resize": {"width": 320, "height": 256}, "longest_max_size": 200},
        {"longest_max_size": {"max_size": 200}},
        {"normalize_images": True, "scale_to_unit_range": True},
        {"hist_eq": True},
        {"grayscale": {"alpha": 1}},
    ],
)
def test_other_changes_are_left_to_deeplabcut(inference: dict[str, Any]):
    assert not reproduces(inference)
