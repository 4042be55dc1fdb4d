"""Tracks are made of detections: the right ones, each once, whatever is seen of the animals.

Named after the issues of DeepLabCut that the same inputs run into there.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc_platform.dlc.stitching import Piece, stitch
from dlc_platform.dlc.tracking import Tracker, track

PARTS = ("nose", "ear", "back", "tail", "paw")
SHAPE = np.array([[0, -14], [5, -6], [1, 0], [-2, 12], [6, 7]], float)


def animals(frames: int, number: int, rng: np.random.Generator, parts: int = len(PARTS)) -> np.ndarray:
    """Animals that walk apart from each other: shape (frames, animals, parts, 4), all keypoints likely."""
    found = np.full((frames, number, parts, 4), -1.0, np.float32)
    for animal in range(number):
        middle = np.array([120 + 250 * animal, 150]) + np.cumsum(rng.normal(0, 1.5, (frames, 2)), axis=0)
        found[:, animal, :, :2] = middle[:, None] + SHAPE[:parts] + rng.normal(0, 0.5, (frames, parts, 2))
        found[:, animal, :, 2] = rng.uniform(0.5, 1, (frames, parts))
    return found


def hide(found: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Leave any number of keypoints of an animal visible, none to all, in this share of its frames."""
    parts = found.shape[2]
    for frame, animal in np.argwhere(rng.random(found.shape[:2]) < share):
        hidden = rng.permutation(parts)[rng.integers(0, parts + 1) :]
        match rng.integers(0, 3):
            case 0:
                found[frame, animal, hidden, :3] = -1
            case 1:
                found[frame, animal, hidden, 2] = 0.01
            case _:
                found[frame, animal, hidden, :3] = np.nan
    return found


def shuffled(found: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The animals of each frame in any order, as a network gives them; and which animal each one is."""
    order = np.argsort(rng.random(found.shape[:2]), axis=1)
    return np.take_along_axis(found, order[..., None, None], axis=1), order


def sources(poses: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Which detection each pose of the tracks is, shape (frames, individuals), -1 for none; fails where it is none."""
    used = np.full(poses.shape[:2], -1)
    visible = np.isfinite(found[..., :3]).all(-1) & (found[..., :3] >= 0).all(-1) & (found[..., 2] >= 0.1)
    for frame, individual in np.argwhere(np.isfinite(poses[..., 0]).any(axis=-1)):
        seen = np.isfinite(poses[frame, individual, :, 0])
        same = [
            number
            for number in range(found.shape[1])
            if (visible[frame, number] == seen).all()
            and (found[frame, number, seen, :3] == poses[frame, individual, seen]).all()
        ]
        assert len(same) == 1, "a pose that is no detection of its frame"
        used[frame, individual] = same[0]
    for row in used:
        own = row[row >= 0]
        assert len(set(own)) == len(own), "one detection in two tracks"
    return used


def count_visible(found: np.ndarray) -> np.ndarray:
    likely = np.isfinite(found[..., :3]).all(-1) & (found[..., :3] >= 0).all(-1) & (found[..., 2] >= 0.1)
    return likely.sum(axis=-1)


@pytest.mark.parametrize("method", ["ellipse", "box"])
@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_3493_no_track_holds_the_pose_of_another_animal(method: str, number: int, share: float):
    for seed in range(3):
        rng = np.random.default_rng((number, seed))
        found, order = shuffled(hide(animals(150, number, rng), rng, share), rng)
        tracks = track(found, tuple("abcd"[:number]), PARTS, 0, Tracker(method=method, iou_threshold=0.2))  # pyright: ignore[reportArgumentType]
        assert tracks.poses.shape == (150, number, len(PARTS), 3)
        used = sources(tracks.poses, found)
        taken = int((used >= 0).sum())
        there = int((count_visible(found) > 0).sum())
        assert taken > (0.8 if share < 0.5 else 0.25) * there
        if taken < there:
            assert f"{there - taken} of {there} poses are in no track" in tracks.note
        else:
            assert "in no track" not in tracks.note
        # Which pieces belong together is an estimate, but no track leaps from one animal to another.
        for individual in range(number):
            own = np.flatnonzero(used[:, individual] >= 0)
            animal = order[own, used[own, individual]]
            changes = (np.diff(animal) != 0) & (np.diff(own) == 1)
            assert changes.sum() <= 0.02 * len(own)


def test_3493_a_barely_visible_animal_does_not_affect_the_others():
    rng = np.random.default_rng(1)
    found = animals(60, 3, rng)
    for frame, seen in ((20, 0), (21, 1), (22, 2), (40, 2)):
        found[frame, 0, seen:, 2] = 0.01
    tracks = track(found, ("a", "b", "c"), PARTS, 0, Tracker())
    used = sources(tracks.poses, found)
    assert all(len(set(own[own >= 0])) == 1 for own in used.T)
    # In frame 23 DeepLabCut's tracker meets the animal anew, and gives its pose from the next frame on.
    for animal, lost in ((0, {20, 21, 22, 23, 40}), (1, set()), (2, set())):
        assert {frame for frame in range(60) if animal not in used[frame]} == lost
    assert tracks.note == (
        "4 of 179 poses are in no track, 3 of them because fewer than 3 keypoints were likely enough"
    )


def test_keypoints_on_a_line_make_no_ellipse_and_no_confusion():
    found = animals(40, 2, np.random.default_rng(2))
    found[10:13, 0, :, 0] = found[10:13, 0, :1, 0]  # one above the other: an ellipse without a width
    found[20, 0, :, :2] = found[20, 0, :1, :2]  # all in one place
    tracks = track(found, ("a", "b"), PARTS, 0, Tracker())
    used = sources(tracks.poses, found)
    assert all(len(set(own[own >= 0])) == 1 for own in used.T)


def test_3064_nothing_anywhere_is_rows_of_nothing_and_a_word():
    for empty in (-1.0, np.nan):
        found = np.full((30, 2, len(PARTS), 4), empty, np.float32)
        tracks = track(found, ("a", "b"), PARTS, 0, Tracker())
        assert tracks.poses.shape == (30, 2, len(PARTS), 3) and np.isnan(tracks.poses).all()
        assert tracks.note == "no individual could be followed through 10 frames, so there is no track"


def test_flickering_animals_that_cannot_be_followed_are_counted():
    found = animals(100, 2, np.random.default_rng(3))
    found[4::5, :, :, :3] = -1
    tracks = track(found, ("a", "b"), PARTS, 0, Tracker())
    assert np.isnan(tracks.poses).all()
    assert tracks.note == (
        "no individual could be followed through 10 frames, so there is no track; 160 of 160 poses are in no track"
    )


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_video_of_a_few_frames_has_tracks(frames: int):
    found = animals(frames, 2, np.random.default_rng(4))
    tracks = track(found, ("a", "b"), PARTS, 0, Tracker())
    assert tracks.note == "" and (sources(tracks.poses, found) >= 0).all()


def test_fewer_animals_than_individuals():
    rng = np.random.default_rng(5)
    found = np.full((80, 3, len(PARTS), 4), -1, np.float32)
    found[:, :1] = animals(80, 1, rng)
    tracks = track(found, ("a", "b", "c"), PARTS, 0, Tracker())
    used = sources(tracks.poses, found)
    assert (used[:, 0] == 0).all() and (used[:, 1:] == -1).all()
    assert tracks.note == "1 of 3 individuals could be followed"
    found[30:45, 0, :, :3] = -1
    tracks = track(found, ("a", "b", "c"), PARTS, 0, Tracker())
    assert (sources(tracks.poses, found) >= 0).sum() == 65
    assert "never more than 1 animal at once: one may bear several names" in tracks.note


def test_one_animal_with_a_part_of_its_own_needs_no_tracker():
    rng = np.random.default_rng(6)
    found = np.full((25, 2, len(PARTS), 4), np.nan, np.float32)
    found[:, :1, :4] = animals(25, 1, rng, parts=4)
    found[:, 1, 4, :3] = (5, 6, 0.9)
    found[::2, 0, :4, :3] = -1  # never two frames in a row
    found[7, 1, 4, :3] = -1
    tracks = track(found, ("a", "single"), PARTS, 1, Tracker())
    np.testing.assert_array_equal(tracks.poses[1::2, 0, :4], found[1::2, 0, :4, :3])
    assert np.isnan(tracks.poses[::2, 0]).all() and tracks.note == ""
    assert np.isnan(tracks.poses[7, 1]).all() and (tracks.poses[8, 1, 4] == np.array((5, 6, 0.9), np.float32)).all()


def test_single_points_are_tracked_by_boxes_around_them():
    rng = np.random.default_rng(7)
    found, order = shuffled(animals(60, 2, rng, parts=1), rng)
    tracks = track(found, ("a", "b"), PARTS[:1], 0, Tracker())
    assert (tracks.suffix, tracks.note) == ("_bx", "")
    used = sources(tracks.poses, found)
    assert all(len(set(np.take_along_axis(order, used, axis=1)[:, own])) == 1 for own in (0, 1))


def test_a_track_has_the_name_that_the_network_gives_it():
    rng = np.random.default_rng(8)
    found = animals(60, 3, rng)
    found[..., 3] = np.array([2, 0, 1])[:, None]
    found[:, 1] = -1  # the one that looks like the first individual is not there
    found[::7, 0, 0, 3] = 0
    tracks = track(found, ("a", "b", "c"), PARTS, 0, Tracker())
    used = sources(tracks.poses, found)
    assert (used[:, 0] == -1).all() and (used[:, 1] == 2).all() and (used[:, 2] == 0).all()


def test_a_keypoint_that_was_not_found_has_no_likelihood():
    found = animals(30, 2, np.random.default_rng(9))
    found[5, 0, 0, :3] = -1
    found[6, 0, 0, 2] = 0.05
    poses = track(found, ("a", "b"), PARTS, 0, Tracker()).poses
    (own,) = {int(individual) for individual in np.flatnonzero((sources(poses, found) == 0).all(axis=0))}
    assert np.isnan(poses[5, own, 0]).all()
    assert np.isnan(poses[6, own, 0, :2]).all() and poses[6, own, 0, 2] == np.float32(0.05)


def test_equal_detections_give_equal_tracks_in_every_process(tmp_path: Path):
    """DeepLabCut falls back to a rule that goes through sets, whose order each process draws anew."""
    rng = np.random.default_rng(10)
    found, _ = shuffled(hide(animals(300, 4, rng), rng, 0.4), rng)
    found[100:140, 2] = -1
    np.save(tmp_path / "found.npy", found)
    script = (
        "import sys, numpy as np; from dlc_platform.dlc.tracking import Piece; "
        "from dlc_platform.dlc.stitching import stitch; "
        f"found = np.load({str(tmp_path / 'found.npy')!r}).astype(float); "
        "found[~(found[..., 2] >= 0.1), :2] = np.nan; "
        "own = [np.flatnonzero(np.isfinite(found[:, number, :, 0]).any(-1)) for number in range(4)]; "
        "pieces = [Piece(frames, np.full(len(frames), number)) for number, frames in enumerate(own)]; "
        "print(stitch(pieces, found, 4).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_an_animal_that_was_away_for_long_has_its_track_again():
    found = animals(400, 2, np.random.default_rng(11))
    found[60:340, 1] = -1
    for gap in range(15, 390, 20):
        found[gap : gap + 4, 0] = -1
    used = sources(track(found, ("a", "b"), PARTS, 0, Tracker()).poses, found)
    assert all(len(set(own[own >= 0])) == 1 for own in used.T)


def test_a_short_piece_goes_to_the_track_that_is_nearest():
    """DeepLabCut 3.0.2 adds it to another track, by its place in a shorter list."""
    frames = np.arange(60)
    poses = np.full((60, 4, 3, 4), np.nan)
    middles = np.array([[50, 50], [200, 50], [400, 50]])
    poses[:, :3, :, :2] = middles[:, None] + np.array([[0, 0], [5, 3], [9, 1]])
    poses[..., 2], poses[..., 3] = 1, -1
    gap = (frames < 30) | (frames > 33)
    pieces = [Piece(frames, np.zeros(60, int))]
    pieces += [Piece(frames[gap], np.full(int(gap.sum()), number)) for number in (1, 2)]
    # In the gap of both others, next to the last one.
    short = Piece(np.array([31, 32]), np.array([2, 2]))
    tracks = stitch([*pieces, short], poses, 3)
    assert (tracks[0] == 0).all() and (tracks[1, 30:34] == -1).all()
    assert tracks[2, 30:34].tolist() == [-1, 2, 2, -1]
