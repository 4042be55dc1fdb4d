"""The tables that a person sees, of the small lab in conftest.py."""

from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine, update

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import computed_poses, lineage_table, pose_table
from dlc_platform.catalog.evaluations import evaluation_table
from dlc_platform.catalog.models import model_table
from dlc_platform.catalog.sessions import register_session, session_table
from dlc_platform.catalog.videos import repeated_videos
from dlc_platform_tests.catalog.small_lab import ENVIRONMENT, identity, recording, session, train, video

ONE, TWO = "sub-1_ses-1", "sub-2_ses-1"


def records(frame: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """Rows of some columns, None for whatever is missing."""
    wanted = frame[list(columns)].astype(object)
    return list(wanted.where(wanted.notna(), None).itertuples(index=False, name=None))


def test_sessions(lab: Engine) -> None:
    found = session_table(lab)
    assert list(found) == [
        "session", "subject", "recording", "camera", "position", "path", "width", "height", "frame_rate", "frames",
        "frames_lost", "frames_damaged", "duration_s", "start_time", "video", "model", "estimated_at", "damage",
        "frames_left_out", "problem", "missing_since",
    ]  # fmt: skip
    assert records(found, "session", "subject", "recording", "frame_rate", "frames", "video", "model", "problem") == [
        (ONE, "1", "side", None, None, None, None, "cut short"),
        (ONE, "1", "top", 29.97, 300, identity("1"), identity("b"), None),
        (TWO, "2", "top", 29.97, 150, identity("2"), None, None),
    ]
    assert list(session_table(lab, TWO)["session"]) == [TWO]
    assert session_table(lab, "sub-9_ses-9").empty


def test_a_session_without_files_is_still_a_session(lab: Engine) -> None:
    three = "sub-3_ses-1"
    register_session(lab, session(three), [])
    assert records(session_table(lab, three), "session", "recording", "video") == [(three, None, None)]


def test_models(lab: Engine) -> None:
    train(lab, "c", "d")
    found = model_table(lab)
    assert list(found) == [
        "project", "origin", "recipe", "model", "net_type", "scorer", "train_images", "test_images", "epochs",
        "train_seconds", "test_rmse_px", "tested_on", "production", "made_at", "dataset", "parameter_set", "run_id",
        "source",
    ]  # fmt: skip
    assert records(found, "project", "recipe", "model", "scorer", "test_rmse_px", "production", "run_id") == [
        ("maze", "first", identity("a"), "DLC_a", 5.0, False, "train-a"),
        ("maze", "second", identity("b"), "DLC_b", 3.0, True, "train-b"),
        ("maze", "first", identity("c"), "DLC_c", None, False, "train-c"),
    ]
    assert records(found, "train_images", "test_images", "epochs", "train_seconds", "dataset")[0] == (
        2, 1, 5, 12.5, identity("d"),
    )  # fmt: skip
    assert list(found["tested_on"]) == ["1 image", "1 image", None]


def test_an_error_says_what_it_is_over(lab: Engine) -> None:
    """Of a version from elsewhere, which may have been trained on the images, and of one that was trained on all."""
    with lab.begin() as connection:
        for model, images, known in (("a", 14, False), ("b", 0, True)):
            own = update(tables.Evaluation).where(tables.Evaluation.model_id == identity(model))
            connection.execute(own.values(test_images=images, training_known=known))
    assert list(model_table(lab)["tested_on"]) == [
        "14 images, perhaps trained on",
        "no image that it was not trained on",
    ]


def test_evaluations(lab: Engine) -> None:
    found = evaluation_table(lab)
    assert list(found) == [
        "project", "model", "dataset", "side", "bodypart", "test_images", "taught_images", "training_known",
        "keypoints", "missed", "rmse_px", "rmse_confident_px", "mean_px", "median_px", "mean_likelihood",
        "fraction_confident", "likelihood_cutoff", "evaluated_at", "evaluation",
    ]  # fmt: skip
    sides = [(side, bodypart) for side in ("test", "train") for bodypart in ("nose", "tail", "all")]
    assert records(found, "evaluation", "side", "bodypart") == [
        (identity(letter), *side) for letter in "67" for side in sides
    ]
    last = found[(found["model"] == identity("b")) & (found["bodypart"] == "all")]
    assert records(last, "side", "rmse_px", "rmse_confident_px", "likelihood_cutoff") == [
        ("test", 3.0, None, 0.6),
        ("train", 2.0, None, 0.6),
    ]


def test_poses(lab: Engine) -> None:
    found = pose_table(lab)
    assert list(found) == [
        "session", "recording", "camera", "position", "frames", "frames_lost", "model", "origin", "scorer", "video",
        "pose_estimate", "mean_likelihood", "fraction_confident", "seconds", "run_id", "materialized_at",
    ]  # fmt: skip
    columns = ("session", "recording", "frames", "model", "video", "pose_estimate", "mean_likelihood", "run_id")
    assert records(found, *columns) == [
        (ONE, "top", 300, identity("b"), identity("1"), identity("9"), 0.75, "materialise-9")
    ]
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


@pytest.mark.parametrize("query", [session_table, model_table, evaluation_table, pose_table])
def test_a_new_lab_has_empty_tables(engine: Engine, query: Any) -> None:
    found = query(engine)
    assert found.empty and len(found.columns) > 10


def test_one_video_in_two_sessions_is_reported_until_one_is_gone(engine: Engine) -> None:
    for key in (ONE, TWO):
        register_session(engine, session(key), [(recording(key, "top", "1"), video("1"))])
    (pair,) = repeated_videos(engine).to_dict("records")
    assert (pair["session"], pair["other_session"]) == (ONE, TWO)
    (other,) = repeated_videos(engine, TWO).to_dict("records")
    assert (other["path"], other["other_path"]) == (pair["other_path"], pair["path"])
    register_session(engine, session(TWO), [(recording(TWO, "top", "2"), video("2"))])
    assert repeated_videos(engine).empty
