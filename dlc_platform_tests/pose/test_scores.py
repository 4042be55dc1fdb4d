"""Scores of poses, against tables small enough to count by hand."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dlc_platform.interop.dlc_poses import read_poses
from dlc_platform.plots.canvas import LIMIT_BYTES
from dlc_platform.plots.poses import quality_plot
from dlc_platform.pose.findings import A_FLOOR, ALL, FROM_TEST_IMAGES, IN_LAB_YAML, USUAL, Finding, worst
from dlc_platform.pose.metrics import METRICS
from dlc_platform.pose.reference import Limb, Reference, reference_from_labels
from dlc_platform.pose.scores import Stretch, course, limb_lengths, measure, measure_predictions, within
from dlc_platform.pose.table import SINGLE_ANIMAL, tidy_from_dlc
from dlc_platform.pose.verdict import Floors, Limits, default_limits, judge
from dlc_platform.settings.quality import PoseFloors

NAN = float("nan")
PICTURE = (100.0, 80.0)


def table(**bodyparts: Sequence[tuple[float, float, float]]) -> pd.DataFrame:
    """One animal: for each body part its x, y and likelihood in each frame."""
    return animals({SINGLE_ANIMAL: bodyparts})


def animals(each: dict[str, dict[str, Sequence[tuple[float, float, float]]]]) -> pd.DataFrame:
    parts = list(dict.fromkeys(part for own in each.values() for part in own))
    rows = [
        (frame, frame / 25, individual, part, *point)
        for part in parts
        for individual, own in each.items()
        for frame, point in enumerate(own.get(part, ()))
    ]
    frame = pd.DataFrame(rows, columns=["frame", "time_s", "individual", "bodypart", "x", "y", "likelihood"])
    return frame.astype(
        {"individual": pd.CategoricalDtype(list(each)), "bodypart": pd.CategoricalDtype(parts), "frame": "int32"}
        | dict.fromkeys(("x", "y", "likelihood"), "float32")
    )


def score(scores: pd.DataFrame, metric: str, bodypart: str, individual: str = SINGLE_ANIMAL) -> float:
    own = scores[(scores["individual"] == individual) & (scores["bodypart"] == bodypart)]
    assert len(own) == 1
    return own[metric].iloc[0]


def some_poses(frames: int = 500, individuals: Sequence[str] = (SINGLE_ANIMAL,), seed: int = 0) -> pd.DataFrame:
    """Animals of four body parts on random walks, with gaps."""
    random = np.random.default_rng(seed)
    shape = {"snout": (20, 0), "left": (0, 10), "right": (0, -10), "tail": (-30, 0)}
    each = {}
    for individual in individuals:
        centre = 300 + np.cumsum(random.normal(0, 2, (frames, 2)), axis=0)
        angle = np.cumsum(random.normal(0, 0.1, frames))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        each[individual] = {}
        for name, offset in shape.items():
            points = centre + np.einsum("i,ijf->fj", np.array(offset, float), turn) + random.normal(0, 0.5, (frames, 2))
            points[random.random(frames) < 0.02] = NAN
            each[individual][name] = np.column_stack([points, np.where(np.isnan(points[:, 0]), NAN, 0.9)]).tolist()
    return animals(each)


def as_labels(poses: pd.DataFrame) -> pd.DataFrame:
    return poses.rename(columns={"frame": "image"})[["image", "bodypart", "x", "y"]]


def test_likelihood_and_missing_by_hand() -> None:
    poses = table(nose=[(1, 1, 0.9), (1, 1, 0.5), (NAN, NAN, NAN), (1, 1, 1.0)], tail=[(5, 5, 1.0)] * 4)
    scores = measure(poses, Reference(), 0.6, PICTURE)
    assert score(scores, "rows", "nose") == 4
    assert score(scores, "mean_likelihood", "nose") == pytest.approx(0.8)
    assert score(scores, "fraction_confident", "nose") == 0.5
    assert score(scores, "fraction_missing", "nose") == 0.25
    # Over everything: eight keypoints.
    assert score(scores, "fraction_confident", ALL, ALL) == 6 / 8
    assert score(scores, "fraction_missing", ALL, ALL) == 1 / 8
    assert score(scores, "rows", ALL, ALL) == 4
    # The third frame could not be decoded, which is no fault of the model.
    scores = measure(poses.where(poses["frame"] != 2, poses.assign(x=NAN, y=NAN)), Reference(), 0.6, PICTURE, lost=1)
    assert score(scores, "fraction_missing", "nose") == 0 and score(scores, "fraction_confident", "tail") == 1


def test_jumps_are_longer_than_the_animal_and_unsure_ones_apart() -> None:
    walk = [(0, 0, 0.9), (3, 4, 0.9), (63, 84, 0.9), (63, 84, 0.1), (0, 0, 0.9), (NAN, NAN, NAN), (90, 0, 0.9)]
    scores = measure(table(nose=walk), Reference(size_px=20), 0.6, (1000, 1000))
    # Sure steps: 5 px and 100 px. Unsure: 0 px and 105 px. None to or from the missing one.
    assert score(scores, "jumps", "nose") == 1 / 2
    assert score(scores, "unsure_jumps", "nose") == 1 / 2
    assert score(scores, "temporal_norm_px", "nose") == pytest.approx((5 + 100 + 0 + 105) / 4)
    assert np.isnan(score(scores, "swaps", "nose"))


def test_frames_that_are_not_in_the_table_make_no_step_and_fail() -> None:
    poses = table(nose=[(0, 0, 0.9), (1, 0, 0.9), (99, 0, 0.9), (99, 0, 0.9)])
    poses = poses[poses["frame"] != 1]
    scores = measure(poses, Reference(size_px=20), 0.6, PICTURE)
    assert score(scores, "jumps", "nose") == 0 and score(scores, "temporal_norm_px", "nose") == 0
    (finding,) = judge(scores, 4, {}, None)
    assert (finding.metric, finding.value, finding.limit, finding.level) == ("rows", 3, 4, "fail")
    assert judge(measure(poses.iloc[[0, 1, 2, 2]], Reference(), 0.6, PICTURE), 3, {}, None)[0].value == 4


def test_one_body_part_without_reference_has_no_size_or_jumps() -> None:
    scores = measure(table(nose=[(0, 0, 0.9), (90, 0, 0.9)]), Reference(), 0.6, PICTURE)
    assert np.isnan(score(scores, "jumps", "nose")) and judge(scores, 2, {}, None) == []
    labels = pd.DataFrame({"image": range(30), "bodypart": "nose", "x": 1.0, "y": 2.0})
    reference = reference_from_labels(labels, [("nose", "tail")])
    assert np.isnan(reference.size_px) and reference.limbs == () and reference.space is None


def test_without_labels_the_poses_size_is_their_own() -> None:
    poses = table(nose=[(0, 0, 0.9)] * 8 + [(50, 0, 0.9)], tail=[(10, 0, 0.9)] * 8 + [(60, 0, 0.9)])
    assert score(measure(poses, Reference(), 0.6, PICTURE), "jumps", "nose") == 1 / 8


def test_swapped_animals_are_swaps_and_no_jumps() -> None:
    left, right = [(10.0, 10.0, 0.9)] * 4, [(90.0, 10.0, 0.9)] * 4
    for swap in (2, 3):
        left[swap], right[swap] = right[swap], left[swap]
    left.append((40.0, 70.0, 0.9))  # and one real jump, to where nobody was
    right.append(right[-1])
    scores = measure(animals({"a": {"nose": left}, "b": {"nose": right}}), Reference(size_px=20), 0.6, PICTURE)
    assert score(scores, "swaps", "nose", "a") == 1 / 4 and score(scores, "jumps", "nose", "a") == 1 / 4
    assert score(scores, "swaps", "nose", "b") == 1 / 4 and score(scores, "jumps", "nose", "b") == 0
    # On another animal that stays where it is, it is a jump: one of the two is lost.
    scores = measure(
        animals({"a": {"nose": [(10, 10, 0.9), (90, 10, 0.9)]}, "b": {"nose": [(90, 10, 0.9)] * 2}}),
        Reference(size_px=20),
        0.6,
        PICTURE,
    )
    assert score(scores, "jumps", "nose", "a") == 1 and score(scores, "swaps", "nose", "a") == 0


def test_individuals_that_lack_body_parts() -> None:
    poses = animals(
        {"a": {"nose": [(1, 1, 0.9)] * 3, "tail": [(9, 1, 0.9)] * 3}, "single": {"feeder": [(5, 5, 1)] * 3}}
    )
    reference = Reference(size_px=8, limbs=(Limb("nose", "tail", 7, 9, 8),))
    scores = measure(poses, reference, 0.6, PICTURE)
    assert list(zip(scores["individual"], scores["bodypart"], strict=True)) == [
        ("a", "nose"),
        ("a", "tail"),
        ("single", "feeder"),
        ("a", "nose to tail"),
        (ALL, ALL),
    ]
    assert judge(scores, 3, {}, None) == []


def test_limbs_outside_the_range_of_the_labels() -> None:
    labels = pd.DataFrame(
        [
            (image, part, x, 0.0)
            for image, length in enumerate(range(40, 60))
            for part, x in (("nose", 0.0), ("tail", float(length)))
        ],
        columns=["image", "bodypart", "x", "y"],
    )
    (limb,) = reference_from_labels(labels).limbs
    # Quartiles 44.75 and 54.25, and three times 9.5 beyond them.
    assert (limb.low_px, limb.median_px, limb.high_px) == (16.25, 49.5, 82.75)
    ends = [(50, 0, 0.9), (16, 0, 0.9), (83, 0, 0.9), (99, 0, 0.2)]
    scores = measure(table(nose=[(0, 0, 0.9)] * 4, tail=ends), Reference(50, (limb,)), 0.6, PICTURE)
    assert score(scores, "limb_outliers", "nose to tail") == 2 / 3
    assert scores[scores["bodypart"] == "nose to tail"]["rows"].isna().all()


def test_the_lines_of_the_skeleton_or_else_the_most_rigid_pairs() -> None:
    labels = as_labels(some_poses(60))
    by_skeleton = reference_from_labels(labels, [("tail", "snout"), ("tail", "unknown")]).limbs
    assert [(limb.one, limb.other) for limb in by_skeleton] == [("snout", "tail")]
    without = reference_from_labels(labels).limbs
    assert len(without) == 3
    assert {part for limb in without for part in (limb.one, limb.other)} == {"snout", "left", "right", "tail"}


def test_a_pair_at_a_constant_distance_is_the_first_limb() -> None:
    # On a line: the ears keep their distance to the last digit, and so do nose and tail, which move beside them.
    labels = pd.DataFrame(
        [
            (image, part, x, 0.0)
            for image in range(20)
            for part, x in (("nose", float(image)), ("left", 100.0), ("right", 108.0), ("tail", image + 40.0))
        ],
        columns=["image", "bodypart", "x", "y"],
    )
    limbs = reference_from_labels(labels).limbs
    assert [(limb.one, limb.other) for limb in limbs] == [("nose", "tail"), ("left", "right"), ("nose", "right")]


def test_outside_the_picture_counts_and_outside_an_arena_too() -> None:
    points = [(50, 40, 0.9), (-1, 40, 0.9), (50, 90, 0.9), (5, 5, 0.9), (-5, -5, 0.1)]
    poses = table(nose=points)
    assert score(measure(poses, Reference(), 0.6, PICTURE), "outside", "nose") == 2 / 4
    triangle = np.array([(0, 90), (50, 0), (100, 90)], float)
    assert score(measure(poses, Reference(), 0.6, PICTURE, triangle), "outside", "nose") == 3 / 4
    # A corner that points inwards.
    arrow = np.array([(0, 0), (10, 0), (10, 10), (5, 3), (0, 10)], float)
    x, y = np.array([5.0, 5.0, 1.0]), np.array([1.0, 8.0, 6.0])
    assert within(x, y, PICTURE, arrow).tolist() == [True, False, True]


def test_reprojection_of_poses_that_no_label_has() -> None:
    labels = as_labels(some_poses(200, seed=1))
    space = reference_from_labels(labels).space
    assert space is not None and space.components.shape == (2, 8)
    np.testing.assert_allclose(space.components @ space.components.T, np.eye(2), atol=1e-12)
    poses = some_poses(200, seed=2)
    good = measure(poses, Reference(space=space), 0.6, (1000, 1000))
    stretched = poses.assign(x=np.where(poses["bodypart"] == "snout", poses["x"] + 40, poses["x"]))
    bad = measure(stretched, Reference(space=space), 0.6, (1000, 1000))
    for part in ("snout", "tail"):
        assert score(good, "reprojection_px", part) < 1 < score(bad, "reprojection_px", part)
    # By hand: a pose that the components give has no error, wherever it is; one that is moved off them has it all.
    pose = (space.mean + 7 * space.components[0]).reshape(1, 4, 2)
    assert space.errors(pose + np.array([300, 20])) == pytest.approx(np.zeros((1, 4)), abs=1e-9)
    off = np.linalg.svd(space.components)[2][-1]
    off -= np.tile(off.reshape(4, 2).mean(axis=0), 4)
    off -= space.components.T @ (space.components @ off)
    moved = space.errors(pose + off.reshape(1, 4, 2))
    assert moved == pytest.approx(np.hypot(*off.reshape(4, 2).T)[None])
    # A pose that lacks a keypoint has no projection.
    assert np.isnan(space.errors(np.where(np.arange(4)[:, None] == 1, NAN, pose))).all()


def test_components_that_span_every_pose_say_nothing() -> None:
    labels = as_labels(some_poses(60))
    assert reference_from_labels(labels[labels["bodypart"].isin(["snout", "tail"])]).space is None
    assert reference_from_labels(labels[labels["image"] < 10]).space is None


@pytest.mark.parametrize("individuals", [(SINGLE_ANIMAL,), ("a", "b", "c")])
def test_scores_do_not_depend_on_order_or_chunks(individuals: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    poses = some_poses(700, individuals)
    reference = reference_from_labels(as_labels(some_poses(80, seed=3)))
    expected = measure(poses, reference, 0.6, (600, 600))
    assert not expected[list(METRICS[:3])].iloc[-1].isna().any()
    shuffled = measure(poses.sample(frac=1, random_state=1), reference, 0.6, (600, 600))
    pd.testing.assert_frame_equal(shuffled, expected)
    monkeypatch.setattr("dlc_platform.pose.scores._FRAMES_AT_ONCE", 13)
    pd.testing.assert_frame_equal(measure(poses, reference, 0.6, (600, 600)), expected)


@pytest.mark.parametrize("frames", [0, 1])
def test_a_table_of_next_to_nothing(frames: int) -> None:
    poses = some_poses(5)
    poses = poses[poses["frame"] < frames]
    reference = reference_from_labels(as_labels(some_poses(80)))
    scores = measure(poses, reference, 0.6, (600, 600))
    assert scores["jumps"].isna().all()
    quality_plot(course(poses, reference, 0.6), limb_lengths(poses, reference, 0.6), 0.6)


def evaluated(images: int = 30, far: int = 0, sure: int = 30) -> tuple[pd.DataFrame, Reference]:
    labels = as_labels(some_poses(images, seed=4)).dropna()
    reference = reference_from_labels(as_labels(some_poses(100)))
    likelihood = np.where(labels["image"] < sure, 0.9, 0.1)
    distance = np.where(labels["image"] < far, 500.0, 1.0)
    predictions = labels.rename(columns={"x": "predicted_x", "y": "predicted_y"})
    return measure_predictions(
        predictions.assign(likelihood=likelihood, distance_px=distance), reference, 0.6
    ), reference


def test_default_limits_follow_the_models_own_evaluation() -> None:
    good, _ = evaluated()
    assert np.isnan(good["temporal_norm_px"]).all() and set(good["jumps"].dropna()) == {0.0}
    limits = default_limits(good, "snout")
    assert 0.6 < limits["fraction_confident"].warn < 0.8 and limits["jumps"].warn == pytest.approx(0.02)  # pyright: ignore
    assert all(limit.fail is None for limit in limits.values())
    assert 0.05 < default_limits(good, "snout to tail").get("limb_outliers", Limits(0.1)).warn < 0.3  # pyright: ignore
    poor, _ = evaluated(far=6, sure=15)
    of_poor = default_limits(poor, "snout")
    assert of_poor["fraction_confident"].warn < limits["fraction_confident"].warn  # pyright: ignore
    assert of_poor["jumps"].warn == 0.25
    # A test side of few images says little, so it leaves more room.
    few, _ = evaluated(images=5, sure=5)
    assert default_limits(few, "snout")["fraction_confident"].warn < limits["fraction_confident"].warn  # pyright: ignore
    assert default_limits(None, "snout")["fraction_confident"] == Limits(0.5)
    assert "reprojection_px" not in default_limits(None, "snout")


def test_the_labs_limits_come_before_the_defaults() -> None:
    known, reference = evaluated()
    poses = some_poses(300, seed=5)
    scores = measure(poses, reference, 0.6, (600, 600))
    assert judge(scores, 300, {}, known) == []
    found = judge(scores, 300, {"fraction_confident": Limits(0.999, None), "temporal_norm_px": Limits(None, 1)}, known)
    assert {(finding.metric, finding.level) for finding in found} == {
        ("fraction_confident", "warn"),
        ("temporal_norm_px", "fail"),
    }
    assert found[0].level == "fail" and worst(found) == "fail" and worst([]) == "pass"
    assert "temporal_norm_px of snout is" in str(found[0])
    # Limits that no score can reach.
    unsure = poses.assign(likelihood=poses["likelihood"] / 2)
    bad = measure(unsure, reference, 0.6, (600, 600))
    assert worst(judge(bad, 300, {}, known)) == "warn"
    assert judge(bad, 300, {"fraction_confident": Limits(0)}, known) == []


#: Those that lab.yaml has where nobody writes others.
FLOORS = Floors(**{name: Limits(**own) for name, own in PoseFloors().model_dump().items()})


def below(scores: pd.DataFrame, frames: int, floors: Floors = FLOORS) -> list[Finding]:
    return judge(scores, frames, {}, None, floors)


def test_unsure_poses_fail_by_floors_whatever_their_model_does() -> None:
    known, reference = evaluated(sure=0)
    unsure = some_poses(300, seed=5).assign(likelihood=lambda poses: poses["likelihood"] / 10)
    scores = measure(unsure, reference, 0.6, (600, 600))
    assert judge(scores, 300, {}, known) == []
    found = judge(scores, 300, {}, known, FLOORS)
    assert worst(found) == "fail" and all(finding.source == A_FLOOR for finding in found)
    failing = [str(finding) for finding in found if finding.level == "fail"]
    assert failing == [
        "0.0% of all keypoints are confident, floor 50%",
        "the mean likelihood of all keypoints is 0.09, floor 0.3",
    ]
    assert "snout is confident in 0.0% of its frames, floor 50%" in [str(finding) for finding in found]
    # A cutoff that everything reaches does not help.
    assert worst(below(measure(unsure, reference, 0, (600, 600)), 300)) == "fail"


def test_an_often_hidden_body_part_warns_and_never_just_passes() -> None:
    known, reference = evaluated(sure=15)
    poses = some_poses(400, seed=5)
    hidden = (poses["bodypart"] == "tail").to_numpy() & (poses["frame"] % 4 != 0).to_numpy()
    scores = measure(poses.assign(likelihood=poses["likelihood"].mask(hidden, 0.05)), reference, 0.6, (600, 600))
    assert score(scores, "confident_when_seen", "tail") == pytest.approx(0.25, abs=0.02)
    (finding,) = judge(scores, 400, {}, known, FLOORS)
    assert (finding.bodypart, finding.level) == ("tail", "warn")
    # Where the limit of the model's own test images is not kept either, there is one line and not two.
    (finding,) = [one for one in judge(scores, 400, {}, evaluated()[0], FLOORS) if one.bodypart == "tail"]
    assert (finding.metric, finding.level, finding.source) == ("fraction_confident", "warn", FROM_TEST_IMAGES)


def test_an_animal_that_is_away_is_no_fault_of_the_poses() -> None:
    here, away = some_poses(200, ("a", "b"), seed=6), some_poses(200, ("a", "b"), seed=6)["individual"] == "b"
    gone = away & (here["frame"] >= 20)
    poses = here.assign(**{name: here[name].mask(gone) for name in ("x", "y", "likelihood")})
    scores = measure(poses, Reference(size_px=50), 0.6, (600, 600))
    assert score(scores, "fraction_confident", ALL, ALL) < 0.6
    assert score(scores, "confident_when_seen", ALL, ALL) > 0.95
    assert worst(below(scores, 200)) == "warn"
    assert not [one for one in below(scores, 200) if one.metric == "confident_when_seen"]


def test_poses_without_any_estimate_fail_and_are_not_unmeasured() -> None:
    nothing = some_poses(100).assign(x=NAN, y=NAN, likelihood=NAN)
    found = below(measure(nothing, Reference(size_px=50), 0.6, (600, 600)), 100)
    assert found[0].level == "fail" and "nothing was estimated" in str(found[0])
    # Two frames of a hundred are next to nothing, and not a matter of any one body part.
    few = nothing.where(nothing["frame"] >= 2, some_poses(100))
    found = below(measure(few, Reference(size_px=50), 0.6, (600, 600)), 100)
    assert found[0].level == "fail" and str(found[0]) == "98.0% of the frames have no keypoint at all, floor 0.9"
    # A video of which no frame can be decoded has no poses either.
    assert worst(below(measure(nothing, Reference(size_px=50), 0.6, (600, 600), lost=100), 100)) == "fail"


def test_poses_without_any_likelihood_are_said_to_be_unjudged() -> None:
    bare = some_poses(100).assign(likelihood=NAN)
    scores = measure(bare, Reference(size_px=50), 0.6, (600, 600))
    assert np.isnan(score(scores, "fraction_confident", "snout"))
    (finding,) = below(scores, 100)
    assert finding.level == "warn" and finding.value is None and "no likelihood" in str(finding)
    # Corrected by hand, as other programs write them: for certain.
    assert below(measure(bare.assign(likelihood=1.0), Reference(size_px=50), 0.6, (600, 600)), 100) == []


def frozen(frames: int, jitter: float = 0.3) -> pd.DataFrame:
    """Four body parts for certain, in the same place in every frame but for the network's jitter."""
    random = np.random.default_rng(7)
    parts = {"snout": (20, 0), "left": (0, 10), "right": (0, -10), "tail": (-30, 0)}
    return table(
        **{
            name: [(300 + x + dx, 300 + y + dy, 0.95) for dx, dy in random.normal(0, jitter, (frames, 2))]
            for name, (x, y) in parts.items()
        }
    )


@pytest.mark.parametrize(("moves", "level", "still"), [(True, "fail", 1), (False, "pass", 0), (None, "warn", NAN)])
def test_the_same_pose_in_every_frame_fails_if_the_picture_moves(moves: bool | None, level: str, still: float) -> None:
    asked: list[Stretch] = []

    def picture(stretches: Sequence[Stretch]) -> list[bool | None]:
        asked.extend(stretches)
        return [moves] * len(stretches)

    scores = measure(frozen(1000), Reference(size_px=50), 0.6, (600, 600), picture_moves=picture)
    assert asked == [(start, start + 125) for start in range(0, 1000, 125)]
    assert score(scores, "still", ALL, ALL) == 1
    assert score(scores, "still_in_motion", ALL, ALL) == pytest.approx(still, nan_ok=True)
    found = below(scores, 1000)
    assert worst(found) == level
    assert not found or "no keypoint moves in 100" in str(found[0])


def test_one_moving_keypoint_or_a_short_stretch_is_not_stillness() -> None:
    def always(stretches: Sequence[Stretch]) -> list[bool | None]:
        return [True] * len(stretches)

    walking, still = some_poses(800, seed=8), frozen(800)
    reference = Reference(size_px=50)
    one = pd.concat([still[still["bodypart"] != "snout"], walking[walking["bodypart"] == "snout"]])
    one["bodypart"] = pd.Categorical(one["bodypart"])
    scores = measure(one, reference, 0.6, (600, 600), picture_moves=always)
    assert score(scores, "still", ALL, ALL) == 0
    half = pd.concat([walking[walking["frame"] < 400], still[still["frame"] >= 400]])
    half["bodypart"] = pd.Categorical(half["bodypart"])
    scores = measure(half, reference, 0.6, (600, 600), picture_moves=always)
    assert score(scores, "still_in_motion", ALL, ALL) == 0.5
    assert worst(below(scores, 800)) == "warn"
    # A single frame cannot stand still.
    assert score(measure(frozen(1), reference, 0.6, (600, 600)), "still", ALL, ALL) == 0


def changed(poses: pd.DataFrame, part: str, points: np.ndarray, likelihood: float | np.ndarray) -> pd.DataFrame:
    """Poses of one animal with other places, shape (frames, 2), and likelihoods of a body part."""
    poses = poses.sort_values(["bodypart", "frame"], ignore_index=True)
    own = (poses["bodypart"] == part).to_numpy()
    poses.loc[own, ["x", "y"]] = np.broadcast_to(points, (int(own.sum()), 2)).astype(np.float32)
    poses.loc[own, "likelihood"] = np.broadcast_to(likelihood, int(own.sum())).astype(np.float32)
    return poses


def in_the_cage(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 600, (frames, 2))


BY_LABELS = reference_from_labels(as_labels(some_poses(80, seed=3)))


def failing(poses: pd.DataFrame, reference: Reference = BY_LABELS) -> list[str]:
    frames = int(poses["frame"].max()) + 1
    found = below(measure(poses, reference, 0.6, (600, 600)), frames)
    return [str(finding) for finding in found if finding.level == "fail"]


@pytest.mark.parametrize("reference", [BY_LABELS, Reference(size_px=50)])
def test_ears_of_an_empty_cage_do_not_pass_for_an_animal(reference: Reference) -> None:
    """Two things that look like ears are always confident; the rest is now and then, wherever it is."""
    poses = frozen(400)
    for seed, part in enumerate(("snout", "tail")):
        poses = changed(poses, part, in_the_cage(400, seed), np.where(np.arange(400) % 10 < 3, 0.9, 0.2))
    scores = measure(poses, reference, 0.6, (600, 600))
    assert score(scores, "fraction_confident", ALL, ALL) == pytest.approx(0.65)
    assert score(scores, "no_animal", ALL, ALL) == pytest.approx(0.7)
    assert failing(poses, reference) == [
        "no animal can be seen in 70.0% of the frames, floor 50%: by the distances in the labels, the "
        "confident keypoints there are too few, or are a thing that never moves"
    ]
    # Nor does it help where the others are guessed right beside them, every time.
    for part, x in (("snout", 320), ("tail", 270)):
        poses = changed(poses, part, np.array([x, 300]), np.where(np.arange(400) % 10 < 3, 0.9, 0.2))
    assert "no animal can be seen in 70.0% of the frames" in failing(poses, reference)[0]


def test_body_parts_on_one_heap_are_no_animal() -> None:
    """As a network sees them that finds a single thing in an empty cage: all of them in one place, for certain."""
    heap = frozen(400)
    for number, part in enumerate(("left", "right")):
        heap = changed(heap, part, np.array([319, 299 + number]), 0.8)
    lost = changed(heap, "tail", in_the_cage(400), 0.1)
    assert score(measure(lost, BY_LABELS, 0.6, (600, 600)), "fraction_confident", ALL, ALL) == 0.75
    assert "no animal can be seen in 100.0% of the frames" in failing(lost)[0]


@pytest.mark.parametrize("hidden", ["snout", "left", "tail"])
def test_a_body_part_that_is_always_hidden_is_no_empty_cage(hidden: str) -> None:
    unseen = changed(some_poses(400, seed=5), hidden, in_the_cage(400), 0.1)
    assert failing(unseen) == []
    # Nor is an animal that sleeps through the whole video, with a body part hidden.
    assert failing(changed(frozen(400), hidden, in_the_cage(400), 0.1)) == []
    # Guesses beside what is confident are those of a network that is not sure, and not of an empty cage.
    walking = some_poses(400, seed=5)
    unsure = (
        (walking["bodypart"] == "left") | (walking["bodypart"] == "right") & (walking["frame"] % 5 > 0)
    ).to_numpy()
    assert failing(walking.assign(likelihood=walking["likelihood"].mask(unsure, 0.3))) == []
    few = (
        walking[walking["bodypart"].isin(["snout", "tail"])].astype({"bodypart": str}).astype({"bodypart": "category"})
    )
    assert failing(changed(few, "tail", in_the_cage(400), np.where(np.arange(400) % 10, 0.1, 0.9))) == []


def test_an_animal_that_leaves_is_missed_as_long_as_it_is_away() -> None:
    poses = changed(some_poses(400, seed=5), "left", np.array([40.0, 40.0]), 0.9)
    away = (poses["frame"] >= 280).to_numpy()
    away &= (poses["bodypart"] != "left").to_numpy()  # a thing that looks like an ear, and is sure all the time
    random = np.random.default_rng(1).uniform(0, 600, (2, len(poses)))
    poses = poses.assign(
        x=np.where(away, random[0], poses["x"]),
        y=np.where(away, random[1], poses["y"]),
        likelihood=np.where(away, 0.2, poses["likelihood"]),
    )
    scores = measure(poses.astype({"x": "float32", "y": "float32"}), BY_LABELS, 0.6, (600, 600))
    assert score(scores, "no_animal", ALL, ALL) == pytest.approx(0.3, abs=0.01)
    (finding,) = [one for one in below(scores, 400) if one.metric == "no_animal"]
    assert finding.level == "warn" and "floor 20%" in str(finding)
    # Frames in which nothing is confident are a matter of the floor `confident`.
    nothing = measure(some_poses(400, seed=5).assign(likelihood=0.2), BY_LABELS, 0.6, (600, 600))
    assert score(nothing, "no_animal", ALL, ALL) == 0
    # Of several animals one is enough; things that belong to none are no animal.
    two = some_poses(200, ("a", "b"), seed=6)
    lost = two["individual"] == "b"
    lost &= two["bodypart"] != "snout"
    two = two.assign(likelihood=two["likelihood"].mask(lost, 0.1), x=two["x"].where(~lost, 600 - two["x"] * 3 % 600))
    assert score(measure(two, BY_LABELS, 0.6, (600, 600)), "no_animal", ALL, ALL) == 0
    things = two.assign(individual=two["individual"].cat.rename_categories({"a": "single"}))
    assert score(measure(things, BY_LABELS, 0.6, (600, 600)), "no_animal", ALL, ALL) > 0.5


def test_a_body_part_in_the_background_fails_by_name() -> None:
    bolt = np.array([40.0, 40.0]) + np.random.default_rng(2).normal(0, 0.3, (400, 2))
    poses = changed(some_poses(400, seed=5), "left", bolt, 0.95)
    (said,) = failing(poses)
    assert said == (
        "left is a thing of the background in 100.0% of its confident frames: it stays at one place of the picture for "
        "the whole video, away from the rest of the animal, floor 50%"
    )
    # Two bolts side by side do not vouch for each other.
    both = changed(poses, "right", bolt + 15, 0.95)
    assert [said.split(" ")[0] for said in failing(both)] == ["left", "right"]
    # One in whose place the camera was nearer is longer everywhere, and moves.
    nearer = some_poses(400, seed=5)
    assert failing(nearer.assign(x=nearer["x"] * 3, y=nearer["y"] * 3)) == []
    # A feeder that is labelled where it always is, far from the animal, belongs there.
    labels = as_labels(changed(some_poses(80, seed=3), "left", np.array([40.0, 40.0]), 0.9))
    assert failing(poses, reference_from_labels(labels)) == []
    # In a short video nothing shows what stays.
    assert failing(poses[poses["frame"] < 40]) == []


def test_each_finding_says_where_its_limit_comes_from() -> None:
    known, reference = evaluated()
    unsure = some_poses(300, seed=5).assign(likelihood=0.5)
    scores = measure(unsure, reference, 0.6, (600, 600))
    by_source = {
        IN_LAB_YAML: judge(scores, 300, {"fraction_confident": Limits(0.9)}, known),
        FROM_TEST_IMAGES: judge(scores, 300, {}, known),
        USUAL: judge(scores, 300, {}, None),
    }
    for source, found in by_source.items():
        (own,) = [one for one in found if (one.metric, one.bodypart) == ("fraction_confident", "snout")]
        assert own.source == source and own.value == 0 and source in str(own) and f"limit {own.limit:.3g}" in str(own)
    # Verdicts from before say none, and stay readable.
    old = {
        "metric": "jumps",
        "individual": "animal0",
        "bodypart": "snout",
        "value": 0.5,
        "limit": 0.02,
        "level": "warn",
    }
    assert str(Finding(**old)) == "jumps of snout is 0.5, limit 0.02"


def test_a_model_that_is_bad_on_test_images_cannot_allow_all() -> None:
    bad, _ = evaluated(far=30)
    assert default_limits(bad, "snout")["jumps"] == Limits(0.25)
    bad.loc[bad["bodypart"] == "snout to tail", "limb_outliers"] = 1.0
    bad.loc[bad["bodypart"] == "snout", "limb_outliers"] = 1.0
    assert default_limits(bad, "snout")["limb_outliers"] == Limits(0.5)


def test_a_picture_of_it_is_small() -> None:
    individuals = ("a", "b", "c")
    poses = some_poses(3000, individuals)
    reference = reference_from_labels(as_labels(some_poses(80)))
    found = course(poses, reference, 0.6)
    assert (
        set(found["kind"]) == {"likelihood", "jumps", "limb"}
        and found.groupby(["kind", "bodypart"]).size().max() == 300
    )
    np.testing.assert_allclose(found[found["kind"] == "likelihood"]["value"].dropna(), 0.9, rtol=1e-6)
    assert found[found["kind"] == "limb"]["value"].median() == pytest.approx(1, abs=0.05)
    picture = quality_plot(found, limb_lengths(poses, reference, 0.6), 0.6)
    assert len(picture) <= LIMIT_BYTES
    nothing = Reference()
    assert len(quality_plot(course(poses, nothing, 0.6), limb_lengths(poses, nothing, 0.6), 0.6)) <= LIMIT_BYTES


def _real(name: str) -> Path:
    folder = os.environ.get("DLC_PLATFORM_TEST_DATA")
    if not folder:
        pytest.skip("DLC_PLATFORM_TEST_DATA names no folder of test data")
    return Path(folder) / name


def real_poses(name: str) -> pd.DataFrame:
    poses = read_poses(_real(f"predictions/{name}")).poses
    return tidy_from_dlc(poses, np.arange(len(poses)) / 30)


def test_real_poses_pass_by_their_labels_and_damaged_ones_do_not() -> None:
    from dlc_platform.dlc.labels import read_labels
    from dlc_platform.dlc.project import read_project

    labels = read_labels(read_project(_real("projects/openfield-Pranav-2018-10-30"))).points
    reference = reference_from_labels(labels.assign(image=labels["folder"] + "/" + labels["file"]))
    # What a good model says of test images: the labels themselves, for certain.
    predictions = labels.rename(columns={"file": "image", "x": "predicted_x", "y": "predicted_y"})
    known = measure_predictions(predictions.assign(likelihood=0.99, distance_px=2.0), reference, 0.6)
    poses = real_poses("dlc_single/m3v1mp4DLC_resnet50_openfieldAug20shuffle1_30000.h5")
    frames = int(poses["frame"].max()) + 1

    def findings(table: pd.DataFrame) -> set[str]:
        return {finding.metric for finding in judge(measure(table, reference, 0.6, (640, 480)), frames, {}, known)}

    assert findings(poses) == set() == {one.metric for one in below(measure(poses, reference, 0.6, (640, 480)), frames)}
    random = np.random.default_rng(0)
    wild = (random.random(len(poses)) < 0.1) & (poses["bodypart"] == "snout").to_numpy()
    assert {"jumps", "reprojection_px"} <= findings(poses.assign(x=np.where(wild, 600 - poses["x"], poses["x"])))
    assert {"limb_outliers", "reprojection_px"} <= findings(poses.assign(x=poses["x"] * 2, y=poses["y"] * 2))
    assert "outside" in findings(poses.assign(x=poses["x"] - 400))
    assert findings(poses.assign(likelihood=poses["likelihood"] / 2)) == {"fraction_confident"}
    ears = poses["bodypart"].map({"leftear": "tailbase", "tailbase": "leftear"}).fillna(poses["bodypart"].astype(str))
    assert "reprojection_px" in findings(poses.assign(bodypart=pd.Categorical(ears)))


@pytest.mark.parametrize(
    ("name", "unsure"),
    [
        ("dlc_single/raw_clip1DLC_resnet50_OpenFieldHighResApr8shuffle1_1030000.h5", set()),
        ("dlc_single/cropped_video.csv", set()),
        # The one thing that is not a bird is seldom seen.
        ("dlc_multi/montblanc_tracks.h5", {("single", "fraction_confident"), ("single", "fraction_missing")}),
    ],
)
def test_real_poses_of_unknown_models(name: str, unsure: set[tuple[str, str]]) -> None:
    poses = real_poses(name)
    found = judge(measure(poses, Reference(), 0.6, (5000, 5000)), int(poses["frame"].max()) + 1, {}, None)
    assert {(finding.individual, finding.metric) for finding in found if finding.metric != "jumps"} == unsure
    assert worst(found) != "fail"
