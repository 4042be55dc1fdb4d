"""One answer to whether a file is tracked: the sensor asks for what the plan promises, and the others wait for that."""

import pytest

from dlc_platform.estimates.eligibility import Trackers, video_obstacle

HELD = "the production model 0123 of maze is bad. So nothing is tracked with it by itself. Train a better one."
TRACKERS = Trackers({"maze": "0123", "open": "4567"}, {"maze": HELD})


def test_only_models_that_track_by_themselves_do() -> None:
    assert TRACKERS.projects == ["open"]
    assert TRACKERS.obstacle("open") is None


@pytest.mark.parametrize(
    ("project", "told"),
    [
        (None, "no inference rule matches its camera. Add one under `inference` in lab.yaml"),
        ("fly", "the project fly has no production model. Train or import one, and promote it"),
        (
            "maze",
            "the production model 0123 of maze is bad. So nothing is tracked with it by itself. Train a better one",
        ),
    ],
)
def test_what_keeps_a_camera_from_being_tracked_is_told(project: str | None, told: str) -> None:
    assert str(TRACKERS.obstacle(project)) == told


@pytest.mark.parametrize(
    ("problem", "damage", "is_released", "damaged_videos", "told"),
    [
        (None, None, False, "stop", None),
        ("it ends early. Copy it again.", None, True, "track", "it ends early. Copy it again"),
        ("it ends early", None, True, "track", "it ends early. Copy the file again from the recording machine"),
        (
            None,
            "cut off",
            False,
            "stop",
            "it is cut off, and `damaged_videos` in lab.yaml says stop. Copy the file again from the recording "
            "machine, or write `damaged_videos: track` into lab.yaml to track what can be decoded",
        ),
        (None, "cut off", True, "stop", None),
        (None, "cut off", False, "track", None),
    ],
)
def test_what_keeps_a_video_from_being_tracked_is_told(
    problem: str | None, damage: str | None, is_released: bool, damaged_videos: str, told: str | None
) -> None:
    obstacle = video_obstacle(problem, damage, is_released, damaged_videos)  # pyright: ignore[reportArgumentType]
    assert (None if obstacle is None else str(obstacle)) == told
