"""Pictures decode, stay small whatever goes in, and show what they should."""

import io
import re
import sys
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dlc_platform.plots.canvas import LIMIT_BYTES, as_markdown
from dlc_platform.plots.frames import disagreement_frames, frames_with_keypoints, labelled_frames, worst_frames
from dlc_platform.plots.models import comparison_plot, learning_curve
from dlc_platform.plots.poses import likelihoods, trajectories
from dlc_platform.pose.table import keypoints_at, tidy_from_dlc
from dlc_platform.video.region import Region

BODYPARTS = ("snout", "left ear", "_hidden", "$tail$")


def opened(picture: bytes) -> np.ndarray:
    assert len(picture) <= LIMIT_BYTES
    image = Image.open(io.BytesIO(picture))
    image.load()
    assert image.format in ("PNG", "JPEG")
    return np.asarray(image.convert("RGB"))


def has_colour(picture: bytes, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(opened(picture).astype(int) - colour).max(axis=2) < 25).any())


BLUE, ORANGE = (0, 114, 178), (230, 159, 0)


def grey(width: int = 640, height: int = 480) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def points(seed: int, bodyparts: tuple[str, ...] = BODYPARTS) -> dict[str, tuple[float, float]]:
    places = np.random.default_rng(seed).uniform(100, 400, (len(bodyparts), 2))
    return {name: (float(x), float(y)) for name, (x, y) in zip(bodyparts, places, strict=True)}


def poses(frames: int = 300, bodyparts: tuple[str, ...] = BODYPARTS) -> pd.DataFrame:
    random = np.random.default_rng(0)
    columns = pd.MultiIndex.from_product(
        [["s"], bodyparts, ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    values = random.normal(size=(frames, 3 * len(bodyparts))).cumsum(axis=0) + 300
    values[:, 2::3] = random.beta(5, 1, (frames, len(bodyparts)))
    return tidy_from_dlc(pd.DataFrame(values, columns=columns), np.arange(frames) / 30)


def test_labels_are_drawn_where_they_are() -> None:
    picture = labelled_frames([(grey(), {"snout": (40.0, 20.0)})])
    pixels = opened(picture).astype(int)
    # The frame is what is mostly grey; the legend above it has a grey pixel here and there.
    is_grey = np.abs(pixels - 90).max(axis=2) < 10
    top, bottom = np.flatnonzero(is_grey.mean(axis=1) > 0.3)[[0, -1]]
    left, right = np.flatnonzero(is_grey.mean(axis=0) > 0.3)[[0, -1]]
    x = round(left + (40.5 / 640) * (right - left))
    y = round(top + (20.5 / 480) * (bottom - top))
    assert np.abs(pixels[y, x] - BLUE).max() < 25


def test_the_region_is_a_rectangle_around_its_pixels() -> None:
    region = Region(160, 120, 320, 240)
    for draw in (
        lambda region: labelled_frames([(grey(), {})], region=region),
        lambda region: frames_with_keypoints([(grey(), {}, "")], 0.6, region=region),
    ):
        without, with_ = (opened(draw(shown)).astype(int) for shown in (None, region))
        rows, columns = np.nonzero(np.abs(with_ - without).max(axis=2) > 60)
        frame_rows, frame_columns = np.nonzero(np.abs(without - 90).max(axis=2) < 10)
        scale = np.ptp(frame_columns) / 640
        # The line is a few pixels wide.
        assert abs(columns.min() - frame_columns.min() - 160 * scale) < 4
        assert abs(columns.max() - frame_columns.min() - 480 * scale) < 4
        assert abs(rows.min() - frame_rows.min() - 120 * scale) < 4
        assert abs(rows.max() - frame_rows.min() - 360 * scale) < 4


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_number_of_frames(count: int) -> None:
    opened(labelled_frames([(grey(), points(seed)) for seed in range(count)], skeleton=[("snout", "left ear")]))
    opened(
        frames_with_keypoints(
            [(grey(), keypoints_at(poses(20), frame), f"frame {frame}") for frame in range(count)], 0.6
        )
    )
    opened(worst_frames([(grey(), points(seed), points(seed + 9), "a/b.png") for seed in range(count)]))


def test_a_session_without_labels_shows_its_frame() -> None:
    assert opened(labelled_frames([(grey(), {})])).shape[1] == 900


def test_frames_that_cannot_be_compressed_stay_below_the_limit() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), dtype=np.uint8)
    bodyparts = tuple(f"a rather long body part {number}" for number in range(24))
    opened(labelled_frames([(noise, points(seed, bodyparts)) for seed in range(9)]))


def test_small_and_upright_frames() -> None:
    opened(labelled_frames([(grey(64, 128), points(1))] * 2))
    opened(worst_frames([(grey(48, 32), {"snout": (-5.0, 40.0)}, {"snout": (60.0, 10.0)}, "")]))


def test_keypoints_below_the_cutoff_are_hollow() -> None:
    images = [(grey(), {"snout": (300.0, 200.0, 0.5)}, "")]
    sure, unsure = (frames_with_keypoints(images, cutoff) for cutoff in (0.4, 0.6))

    def blue_pixels(picture: bytes) -> int:
        # The legend's mark is filled in both.
        return int((np.abs(opened(picture)[40:].astype(int) - BLUE).max(axis=2) < 40).sum())

    assert blue_pixels(sure) > 1.3 * blue_pixels(unsure) > 0


def test_missing_labels_and_predictions_are_left_out() -> None:
    nothing = (np.nan, np.nan)
    picture = labelled_frames([(grey(), {"snout": nothing, "left ear": (300.0, 200.0)})])
    assert has_colour(picture, ORANGE)
    opened(worst_frames([(grey(), {"snout": nothing}, {"snout": (3.0, 4.0)}, "a")]))
    opened(worst_frames([(grey(), {"snout": nothing}, {"snout": nothing}, "a")]))
    opened(worst_frames([(grey(), {"snout": (3.0, 4.0)}, {}, "a")]))


def test_a_bodypart_has_one_colour_everywhere() -> None:
    both = {"snout": (100.0, 100.0), "left ear": (200.0, 200.0)}
    table = poses(50, ("snout", "left ear"))
    for picture in (
        labelled_frames([(grey(), both)]),
        worst_frames([(grey(), both, both, "a")]),
        frames_with_keypoints([(grey(), keypoints_at(table, 3), "")], 0.0),
        likelihoods(table),
    ):
        assert has_colour(picture, BLUE) and has_colour(picture, ORANGE)


@pytest.mark.parametrize("bodyparts", [BODYPARTS[:1], BODYPARTS, tuple(f"joint {number}" for number in range(9))])
def test_tables_of_any_size(bodyparts: tuple[str, ...]) -> None:
    table = poses(300, bodyparts)
    opened(trajectories(table, 0.6))
    opened(likelihoods(table))


def test_tables_with_nothing_to_show() -> None:
    empty = poses().iloc[:0]
    lost = poses().assign(x=np.nan, y=np.nan, likelihood=np.nan)
    for table in (empty, lost):
        opened(trajectories(table, 0.6))
        opened(likelihoods(table))


def test_learning_curves() -> None:
    epoch = np.arange(1, 51)
    test_loss = np.where(epoch % 10 == 0, 2.0 / epoch, np.nan)
    picture = learning_curve(pd.DataFrame({"epoch": epoch, "train_loss": 1.0 / epoch, "test_loss": test_loss}))
    assert has_colour(picture, BLUE) and has_colour(picture, ORANGE)
    opened(learning_curve(pd.DataFrame({"epoch": [1], "train_loss": [0.0], "test_loss": [np.nan]})))
    opened(learning_curve(pd.DataFrame({"epoch": [], "train_loss": []})))


def errors(models: list[str], bodyparts: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        (model, bodypart, 5.0 + place, 4.0 + place, 7.0 + place)
        for bodypart in ("all", *bodyparts)
        for place, model in enumerate(models)
    ]
    return pd.DataFrame(rows, columns=["model", "bodypart", "rmse_px", "rmse_low_px", "rmse_high_px"])


def test_versions_side_by_side() -> None:
    names = {"a": "first $v1$", "b": "_second v2"}
    table = errors(["a", "b"], BODYPARTS)
    picture = comparison_plot(table, names, "b")
    assert has_colour(picture, BLUE) and has_colour(picture, ORANGE)
    # The one in production looks different.
    assert len({picture, comparison_plot(table, names, "a"), comparison_plot(table, names, None)}) == 3


@pytest.mark.parametrize(("versions", "bodyparts"), [(1, 24), (12, 24), (60, 4)])
def test_any_number_of_versions(versions: int, bodyparts: int) -> None:
    models = [f"m{number}" for number in range(versions)]
    table = errors(models, tuple(f"a body part {number}" for number in range(bodyparts)))
    opened(comparison_plot(table, {model: f"a recipe with a long name {model}" for model in models}, "m0"))


def test_versions_with_figures_missing_or_far_apart() -> None:
    table = errors(["a", "b"], BODYPARTS)
    table.loc[3, ["rmse_px", "rmse_low_px", "rmse_high_px"]] = np.nan
    table.loc[4, ["rmse_px", "rmse_low_px", "rmse_high_px"]] = (0.0, 0.0, 0.0)
    table.loc[5, ["rmse_px", "rmse_low_px", "rmse_high_px"]] = (700.0, np.nan, np.nan)
    opened(comparison_plot(table.drop(index=7), {"a": "a", "b": "b"}, None))


def test_two_models_on_one_frame() -> None:
    images = [(grey(), points(seed), points(seed + 9), "s1\n1.0 s") for seed in range(3)]
    assert has_colour(disagreement_frames(images), BLUE)
    opened(disagreement_frames([(grey(), {"snout": (np.nan, np.nan)}, {"tail": (3.0, 4.0)}, "a")]))


def test_the_same_input_gives_the_same_bytes() -> None:
    assert labelled_frames([(grey(), points(1))]) == labelled_frames([(grey(), points(1))])
    assert trajectories(poses(), 0.6) == trajectories(poses(), 0.6)


def test_the_callers_pyplot_is_left_alone() -> None:
    before = "matplotlib.pyplot" in sys.modules
    opened(likelihoods(poses(20)))
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_markdown_carries_the_picture() -> None:
    for kind, picture in (("png", likelihoods(poses(20))), ("jpeg", labelled_frames([(grey(), {})]))):
        markdown = as_markdown(picture, "Poses of [a]")
        found = re.fullmatch(rf"!\[Poses of \(a\)\]\(data:image/{kind};base64,(.+)\)", markdown)
        assert found and b64decode(found[1]) == picture
