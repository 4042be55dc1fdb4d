"""Pose estimates in the catalogue: of which files, by which model, and what made them."""

from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import computed_poses, lineage_table, pose_table
from dlc_platform.catalog.sessions import current_files, register_session
from dlc_platform.catalog.verdicts import record_verdict
from dlc_platform.catalog.wanted import untracked_files
from dlc_platform_tests.catalog.looking import at_once, records, rows
from dlc_platform_tests.catalog.small_lab import ENVIRONMENT, identity, recording, session, track

ONE, TWO = "sub-1_ses-1", "sub-2_ses-1"


def test_one_estimate_for_two_recordings_and_twice_for_one(lab: Engine) -> None:
    other = "sub-3_ses-1"
    register_session(lab, session(other), [(recording(other, "copy", "1"), None)])
    (copy,) = current_files(lab, other)
    track(lab, "9", copy, "b")
    track(lab, "9", copy, "b")
    assert rows(lab, tables.PoseEstimate, "id") == [(identity("8"),), (identity("9"),)]
    found = rows(lab, tables.RecordingPoses, "recording_file_id", "pose_estimate_id")
    assert found[2:] == [(copy.id, identity("9"))] * 2
    assert other not in {session for session, _, _ in untracked_files(lab)}


def test_poses_recorded_by_many_at_once(lab: Engine) -> None:
    (top,) = current_files(lab, "sub-2_ses-1")
    at_once(lab, *[lambda own: track(own, "0", top, "b")] * 4)
    assert (identity("0"),) in rows(lab, tables.PoseEstimate, "id")
    assert len(rows(lab, tables.RecordingPoses, "id")) == 6


def test_poses(lab: Engine) -> None:
    found = pose_table(lab)
    assert list(found) == [
        "session", "recording", "camera", "position", "frames", "frames_lost", "model", "origin", "scorer", "video",
        "pose_estimate", "mean_likelihood", "fraction_confident", "seconds", "run_id", "materialized_at",
    ]  # fmt: skip
    columns = ("session", "recording", "frames", "model", "video", "pose_estimate", "run_id")
    assert records(found, *columns) == [(ONE, "top", 300, identity("b"), identity("1"), identity("9"), "materialise-9")]
    # What nobody judged yet has no figures.
    assert found[["mean_likelihood", "fraction_confident"]].isna().all(axis=None)
    own = {"pose_estimate_id": identity("9"), "individual": "all", "mean_likelihood": 0.75}
    scores = [
        tables.PoseScore(**own, bodypart=bodypart, fraction_confident=confident)
        for bodypart, confident in (("all", 0.5), ("nose", 0.25))
    ]
    verdict = tables.PoseVerdict(
        pose_estimate_id=identity("9"), verdict="pass", basis={}, limits={}, floors={}, findings=[]
    )
    record_verdict(lab, verdict, scores)
    assert records(pose_table(lab), "mean_likelihood", "fraction_confident") == [(0.75, 0.5)]
    assert pose_table(lab, TWO).empty and len(pose_table(lab, ONE)) == 1


def test_computed_poses(lab: Engine) -> None:
    assert records(computed_poses(lab), "session", "camera", "path", "inference_parameters") == [
        (ONE, "top", f"/raw/{ONE}/top.mp4", {})
    ]


def test_poses_of_a_replaced_video_are_no_longer_shown(lab: Engine) -> None:
    register_session(lab, session(ONE), [(recording(ONE, "top", problem="cut short", mtime_ns=2), None)])
    assert pose_table(lab).empty and lineage_table(lab, ONE).empty


def test_lineage(lab: Engine) -> None:
    (row,) = lineage_table(lab, ONE).to_dict("records")
    assert {key: value for key, value in row.items() if not str(key).endswith("_at")} == {
        "session": ONE,
        "recording": "top",
        "camera": "top",
        "position": 0,
        "path": f"/raw/{ONE}/top.mp4",
        "origin": "computed",
        "source": None,
        "host": "gpu1",
        "gpu": None,
        "model_origin": "trained",
        "model_source": None,
        "detector_sha256": None,
        "video": identity("1"),
        "pose_estimate": identity("9"),
        "run_id": "materialise-9",
        "estimated_by_run": "track-9",
        "estimation_environment": ENVIRONMENT,
        "model": identity("b"),
        "project": "maze",
        "scorer": "DLC_b",
        "weights_sha256": identity("f"),
        "recipe": "second",
        "training_run": "train-b",
        "training_environment": ENVIRONMENT,
        "parameter_set": row["parameter_set"],
        "parameters": {"epochs": 5, "net_type": "resnet_50"},
        "dataset": identity("d"),
        "train_images": 2,
        "test_images": 1,
        "labelled_sessions": [ONE, TWO],
        "inference_parameters": None,
        "frames_lost": 0,
        "frames_damaged": 0,
        "damage": None,
        "backend": "openvino",
        "device": "cpu",
        "export": identity("2"),
    }
    assert row["trained_at"] <= row["estimated_at"] <= row["materialized_at"]
    assert lineage_table(lab, TWO).empty
