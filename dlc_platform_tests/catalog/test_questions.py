"""The questions that a lab asks for years, on the small lab in conftest.py: each is a view of the database."""

import pytest
from sqlalchemy import Engine, text, update

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import lineage_table, stale_sessions
from dlc_platform.catalog.models import best_models, model_sessions, parameter_table, record_recipe
from dlc_platform.catalog.promotions import promote, promotion_table
from dlc_platform.catalog.sessions import assign_cameras, current_files, register_session
from dlc_platform.catalog.writing import values_of
from dlc_platform.models.impact import impact_of
from dlc_platform_tests.catalog.small_lab import (
    ENVIRONMENT,
    evaluate,
    identity,
    promotion,
    recording,
    session,
    track,
    train,
    video,
)

ONE, TWO, THREE = "sub-1_ses-1", "sub-2_ses-1", "sub-3_ses-1"


def compare(engine: Engine, letter: str, rmse_px: dict[str, float]) -> None:
    """A comparison of versions, each with the same error for every body part."""
    with engine.begin() as connection:
        values = tables.Comparison(
            id=identity(letter),
            project="maze",
            dataset_id=identity("d"),
            test_images=1,
            likelihood_cutoff=0.6,
            run_id="compare",
        )
        connection.execute(tables.Comparison.__table__.insert().values(**values_of(values)))
        for model, evaluation in (("a", "6"), ("b", "7")):
            for bodypart in ("all", "nose"):
                connection.execute(
                    tables.ComparisonError.__table__.insert().values(
                        comparison_id=identity(letter),
                        model_id=identity(model),
                        bodypart=bodypart,
                        evaluation_id=identity(evaluation),
                        keypoints=3,
                        rmse_px=rmse_px[model],
                        rmse_low_px=rmse_px[model] - 1,
                        rmse_high_px=rmse_px[model] + 1,
                    )
                )


def test_every_view_says_what_it_answers(engine: Engine) -> None:
    with engine.connect() as connection:
        views = dict(
            connection.execute(
                text(
                    "select viewname, obj_description(format('dlc.%I', viewname)::regclass) from pg_views "
                    "where schemaname = 'dlc'"
                )
            ).all()
        )
    assert {"pose_lineage", "model_sessions", "stale_sessions", "best_models"} <= views.keys()
    assert all(views.values())


def test_what_made_these_poses_and_where(lab: Engine) -> None:
    (row,) = lineage_table(lab, ONE).to_dict("records")
    assert (row["model"], row["recipe"], row["host"], row["origin"]) == (identity("b"), "second", "gpu1", "computed")


def test_which_sessions_a_model_touched(lab: Engine) -> None:
    found = model_sessions(lab, identity("b"))
    assert list(found[["session", "role", "images"]].itertuples(index=False, name=None))[:2] == [
        (ONE, "taught", 1),
        (TWO, "taught", 1),
    ]
    tracked = found[found["role"] == "tracked"]
    assert list(tracked["session"]) == [ONE] and list(tracked["frames"]) == [300]
    # A model that no longer tracks the session touched it all the same.
    assert "tracked" in set(model_sessions(lab, identity("a"))["role"])


def test_poses_that_are_estimated_twice_count_once(lab: Engine) -> None:
    _, top = current_files(lab, ONE)
    track(lab, "9", top, "b")
    tracked = model_sessions(lab, identity("b")).query("role == 'tracked'")
    assert list(tracked["frames"]) == [300]


def test_a_promotion_makes_sessions_stale_and_says_so_before(lab: Engine) -> None:
    assert stale_sessions(lab).empty and stale_sessions(lab, imported=False).empty
    train(lab, "c", "d", recipe="third")
    impact = impact_of(lab, identity("c"))
    assert list(impact.sessions["session"]) == [ONE] and impact.frames == 300
    # Frames per second of versions with the same network are not known here, nor its own.
    assert impact.frames_per_second is None and impact.hours is None and "the time is not known" in str(impact)
    assert promote(lab, promotion("c"), expected=identity("b"))
    (row,) = stale_sessions(lab).to_dict("records")
    assert (row["session"], row["project"], row["production_model"]) == (ONE, "maze", identity("c"))
    assert (row["models"], row["frames"], row["imported"]) == ([identity("b")], 300, False)
    # Back to the version before: nothing is stale any more.
    assert promote(lab, promotion("b"), expected=identity("c"))
    assert stale_sessions(lab).empty


def test_the_cost_of_a_promotion_goes_by_measured_speed(lab: Engine) -> None:
    impact = impact_of(lab, identity("a"))
    assert impact.frames_per_second == pytest.approx(300 / 4.5) and "its own estimates" in impact.basis
    assert impact.hours == pytest.approx(4.5 / 3600)
    assert "1 session becomes stale, 300 frames" in str(impact)
    assert "no session becomes stale" in str(impact_of(lab, identity("b")))


def test_a_camera_that_no_rule_names_makes_nothing_stale(lab: Engine) -> None:
    train(lab, "c", "d", recipe="third")
    assert promote(lab, promotion("c"), expected=identity("b"))
    assign_cameras(lab, lambda camera: None)
    assert stale_sessions(lab).empty
    assign_cameras(lab, lambda camera: "another")
    assert stale_sessions(lab).empty
    assign_cameras(lab, lambda camera: "maze", only=["side"])
    assert stale_sessions(lab).empty
    assign_cameras(lab, lambda camera: "maze", only=["top"])
    assert len(stale_sessions(lab)) == 1


def test_the_newest_stale_session_comes_first(lab: Engine) -> None:
    from datetime import UTC, datetime

    old = video("3", start_time=datetime(2020, 1, 1, tzinfo=UTC))
    register_session(lab, session(THREE), [(recording(THREE, "top", "3"), old)])
    (file,) = current_files(lab, THREE)
    track(lab, "e", file, "a")
    assert promote(lab, promotion("a"), expected=identity("b"))
    train(lab, "c", "d", recipe="third")
    assert promote(lab, promotion("c"), expected=identity("a"))
    assert list(stale_sessions(lab)["session"]) == [ONE, THREE]


def test_the_best_model_by_body_part(lab: Engine) -> None:
    compare(lab, "1", {"a": 3.0, "b": 2.0})
    compare(lab, "2", {"a": 1.0, "b": 2.0})
    found = best_models(lab)
    assert list(found[["bodypart", "rank", "model"]].itertuples(index=False, name=None)) == [
        ("all", 1, identity("a")),
        ("all", 2, identity("b")),
        ("nose", 1, identity("a")),
        ("nose", 2, identity("b")),
    ]
    assert list(found["production"]) == [False, True] * 2


def test_one_parameter_set_under_two_names_is_found(engine: Engine) -> None:
    assert record_recipe(engine, "first", "maze", {"epochs": 5, "net_type": "resnet_50"}) == []
    assert record_recipe(engine, "second", "arena", {"net_type": "resnet_50", "epochs": 5}) == ["first"]
    assert record_recipe(engine, "first", "maze", {"epochs": 6, "net_type": "resnet_50"}) == []
    assert record_recipe(engine, "first", "maze", {"epochs": 5, "net_type": "resnet_50"}) == ["second"]
    found = parameter_table(engine)
    # The newest version of a recipe is what it says now, also when it says what it said before.
    assert list(found[["recipe", "version"]].itertuples(index=False, name=None)) == [
        ("first", 1),
        ("first", 2),
        ("first", 3),
        ("second", 1),
    ]
    assert list(found["also_called"]) == [["second"], None, ["second"], ["first"]]
    record_recipe(engine, "second", "arena", {"epochs": 5, "net_type": "resnet_50"})
    assert len(parameter_table(engine)) == 4


def test_promotions_keep_who_and_why(lab: Engine) -> None:
    found = promotion_table(lab)
    assert list(found["promoted_by"]) == ["a person"] * 2 and list(found["reason"]) == ["a it is", "b it is"]
    # What was weighed then, whatever the evaluation says over all of its images.
    assert list(found["test_rmse_px"]) == [4.5, 3.0] and list(found["tested_on"]) == ["1 image"] * 2


def test_an_evaluation_gives_the_speed_of_an_unmeasured_version(lab: Engine) -> None:
    train(lab, "c", "d", recipe="third")
    evaluate(lab, "0", "c", "d", 2.0)
    with lab.begin() as connection:
        connection.execute(text("update dlc.evaluation set seconds = 1.5 where model_id = :m"), {"m": identity("c")})
    impact = impact_of(lab, identity("c"))
    assert impact.frames_per_second == pytest.approx(2.0) and "evaluation" in impact.basis


def test_the_environment_of_every_computation_is_kept(lab: Engine) -> None:
    with lab.connect() as connection:
        for table in ("dataset", "training_run", "evaluation", "pose_estimate"):
            details = connection.scalars(
                text(f"select e.details from dlc.{table} t join dlc.environment e on e.id = t.environment_id")
            ).all()
            assert details and all(own == ENVIRONMENT for own in details), table


def test_a_speed_is_that_of_the_device_that_computed_last(lab: Engine) -> None:
    files = current_files(lab, ONE)
    (file,) = [file for file in files if file.video_id is not None]
    track(lab, "e", file, "b", parameters={"precision": "half"})
    assert impact_of(lab, identity("b")).frames_per_second == pytest.approx(300 / 4.5)
    with lab.begin() as connection:
        own = update(tables.PoseEstimate).where(tables.PoseEstimate.id == identity("e"))
        connection.execute(own.values(device="NVIDIA H200", seconds=0.5))
    assert impact_of(lab, identity("b")).frames_per_second == pytest.approx(600)
