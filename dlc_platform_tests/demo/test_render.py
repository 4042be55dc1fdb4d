"""The rendered videos: the same for the same seed, and true to their ground truth."""

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from dlc_platform.demo import render


def test_a_seed_decides_everything() -> None:
    first, again, longer, other = (render.render(seed, frames) for seed, frames in ((3, 4), (3, 4), (3, 6), (4, 4)))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.keypoints, again.keypoints)
    assert np.array_equal(first.frames, longer.frames[:4])
    assert np.array_equal(first.keypoints, longer.keypoints[:4])
    assert not np.allclose(first.keypoints, other.keypoints)


@pytest.mark.parametrize("seed", range(20))
def test_body_parts_stay_inside_and_move_smoothly(seed: int) -> None:
    keypoints = _walked(seed, 250)
    assert keypoints.min() > 5
    assert keypoints.max() < render.SIZE - 6
    steps = np.linalg.norm(np.diff(keypoints, axis=0), axis=2)
    assert steps.max() < 15
    assert np.ptp(keypoints[:, 3], axis=0).max() > 30


def test_left_is_left() -> None:
    snout, left, right, tailbase = _walked(5, 100).transpose(1, 0, 2)
    ahead, across = snout - tailbase, right - left
    # With y down, the right ear is a quarter turn clockwise from where the mouse looks, on the screen.
    assert (ahead[:, 0] * across[:, 1] - ahead[:, 1] * across[:, 0] > 0).all()


def test_ground_truth_is_where_the_picture_says() -> None:
    """A black mouse with white skin, alone: the middle of each ear and of the nose, measured to 0.1 px."""
    scene = render._scene(np.random.default_rng(1))
    scene = replace(scene, coat=np.zeros(3), skin=np.full(3, 255.0))
    motion = render._walk(np.random.default_rng(2), 40)
    y, x = np.mgrid[: render.SIZE, : render.SIZE]
    for index in range(40):
        outline = render._outline(motion, index, scene.size)
        colour, cover = render._paint(scene, outline)
        skin = colour[..., 0].astype(float)
        for truth in outline.keypoints[:3]:
            weight = skin * (np.hypot(x - truth[0], y - truth[1]) < 4.5)
            centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
            assert np.abs(centre - truth).max() < 0.1
        # The tail begins at the tail base: skin up to it, behind the body, and nothing else is covered there.
        tail_base = outline.keypoints[3]
        near = np.hypot(x - tail_base[0], y - tail_base[1])
        assert cover[near < 1].min() > 0.99
        assert near[skin > 100].min() < 4


def test_a_video_holds_every_frame_once(tmp_path: Path) -> None:
    rendering = render.render(7, 30)
    path = tmp_path / "mouse.mp4"
    render.write_video(path, rendering.frames)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == render.FRAME_RATE
        decoded = list(container.decode(stream))
    assert [frame.time for frame in decoded] == pytest.approx([index / render.FRAME_RATE for index in range(30)])
    for image, frame in zip(rendering.frames, decoded, strict=True):
        # Compression takes the noise away, not the mouse: smoothed, the pictures agree.
        pictures = (image, frame.to_ndarray(format="rgb24"))
        smooth, decoded_smooth = (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 2) for picture in pictures)
        assert np.abs(smooth - decoded_smooth).max() < 20


def _walked(seed: int, frames: int) -> np.ndarray:
    """The ground truth alone, without the pictures."""
    rng = np.random.default_rng([seed, 1])
    motion = render._walk(rng, frames)
    return np.array([render._outline(motion, index, 0.96).keypoints for index in range(frames)])
