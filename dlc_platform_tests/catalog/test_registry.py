"""What is written down, once, again, and by two at the same moment."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError

from dlc_platform.catalog import tables
from dlc_platform.catalog.database import open_catalog
from dlc_platform.catalog.datasets import current_dataset, image_sides, registered_dataset
from dlc_platform.catalog.estimates import pose_summaries, record_poses
from dlc_platform.catalog.evaluations import evaluated_models, evaluations_of, record_evaluation
from dlc_platform.catalog.models import current_model, export_table, model_version, record_imported_model, require_model
from dlc_platform.catalog.products import making_alone, recorded_products
from dlc_platform.catalog.promotions import production_model, promote, promotion_in_force
from dlc_platform.catalog.sessions import (
    current_files,
    known_details,
    known_files,
    labelled_sessions,
    record_session_labels,
    register_session,
    require_files,
    session_keys,
    session_table,
)
from dlc_platform.catalog.videos import forget_account, unaccounted_videos
from dlc_platform.catalog.wanted import tracked_files
from dlc_platform.catalog.writing import BodyParts
from dlc_platform.errors import PlatformError
from dlc_platform.video.registered import KnownFile
from dlc_platform_tests.catalog.small_lab import (
    dataset,
    evaluate,
    export,
    identity,
    image,
    promotion,
    record_dataset,
    recording,
    session,
    track,
    train,
    video,
)

KEY = "sub-1_ses-1"


def rows(engine: Engine, table: type[tables.Base], *columns: str) -> list[tuple]:
    """Given columns of a whole table, in the order of writing."""
    with engine.connect() as connection:
        wanted = [table.__table__.c[column] for column in columns]
        order = next(iter(table.__table__.primary_key))
        return [tuple(row) for row in connection.execute(select(*wanted).order_by(order))]


def at_once(engine: Engine, *tasks: Callable[[Engine], object]) -> list[object]:
    """What the tasks return, each run by a thread with a connection of its own at the same moment."""
    barrier = Barrier(len(tasks))
    engines = [open_catalog(engine.url) for _ in tasks]

    def run(task: Callable[[Engine], object], own: Engine) -> object:
        own.connect().close()
        barrier.wait(60)
        return task(own)

    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(run, tasks, engines))
    finally:
        for own in engines:
            own.dispose()


def register(engine: Engine, *files: tuple[tables.RecordingFile, tables.Video | None]) -> None:
    register_session(engine, session(KEY), files)


def current(engine: Engine) -> list[tuple[int, str, str | None]]:
    return [(row.id, row.recording.name, row.video_id) for row in current_files(engine, KEY)]


def test_what_json_cannot_say_is_left_out_of_details(engine: Engine) -> None:
    hostile = {"values": {"a\0b": "x\0\ud800", "n": float("nan")}, "sources": {"i": [float("inf"), -1e400, (1, None)]}}
    file = recording("sub-1_ses-1", "top", problem="says \0\udcff nothing")
    for _ in range(2):
        register_session(engine, session("sub-1_ses-1"), [(file, None)], details=(hostile, None))
    said, _ = known_details(engine, "1", "sub-1_ses-1")
    assert said == {"values": {"ab": "x?", "n": None}, "sources": {"i": [None, None, [1, None]]}}
    (row,) = current_files(engine, "sub-1_ses-1")
    assert row.problem == "says ? nothing"


def test_files_that_are_gone_are_no_session_that_never_was(engine: Engine) -> None:
    with pytest.raises(PlatformError, match="session sub-1_ses-1 is not registered"):
        require_files(engine, "sub-1_ses-1")
    register_session(engine, session("sub-1_ses-1"), [(recording("sub-1_ses-1", "top", "1"), video("1"))])
    assert len(require_files(engine, "sub-1_ses-1")) == 1
    with engine.begin() as connection:
        connection.execute(text("update dlc.recording_file set missing_since = '2026-03-01 12:00+00'"))
    with pytest.raises(PlatformError, match=r"are gone since 2026-03-01 12:00 UTC, /raw/.*Bring them back"):
        require_files(engine, "sub-1_ses-1")
    assert str(session_table(engine)["missing_since"][0]).startswith("2026-03-01 12:00")


def test_an_unchanged_file_keeps_its_row(engine: Engine) -> None:
    register(engine, (recording(KEY, "b", "2"), video("2")), (recording(KEY, "a", "1"), video("1")))
    before = current(engine)
    assert [name for _, name, _ in before] == ["a", "b"]
    register(engine, (recording(KEY, "a", "1"), None), (recording(KEY, "b", "2"), video("2")))
    assert current(engine) == before
    assert len(rows(engine, tables.RecordingFile, "id")) == 2


def test_a_new_reading_of_a_known_video_replaces_the_old_figures(engine: Engine) -> None:
    register(engine, (recording(KEY, "a", "1"), video("1")))
    before = current(engine)
    assert unaccounted_videos(engine) == {identity("1")}
    account = {
        "frames": 298,
        "frames_declared": 301,
        "frames_lost": 2,
        "frames_damaged": 1,
        "frames_missing_at_end": 3,
        "truncated": True,
        "duplicated_timestamps": 4,
        "variable_frame_rate": True,
        "damage": "truncated",
        "decoder": "another FFmpeg",
    }
    files = [(recording(KEY, "a", "1"), video("1", **account))]
    register_session(engine, session(KEY), files, {"av": "another"})
    ((*values, environment),) = rows(engine, tables.Video, *account, "environment_id")
    assert dict(zip(account, values, strict=True)) == account and environment
    assert current(engine) == before and not unaccounted_videos(engine)
    # A file that was not read says nothing of its video.
    register(engine, (recording(KEY, "a", "1"), None))
    assert rows(engine, tables.Video, "frames", "decoder") == [(298, "another FFmpeg")]
    forget_account(engine, identity("1"))
    assert unaccounted_videos(engine) == {identity("1")}


def test_a_replaced_file_is_a_new_row(engine: Engine) -> None:
    register(engine, (recording(KEY, "a", "1"), video("1")))
    ((old, _, _),) = current(engine)
    register(engine, (recording(KEY, "a", "2", mtime_ns=2), video("2")))
    ((new, _, content),) = current(engine)
    assert new != old and content == identity("2")
    (first, second) = rows(engine, tables.RecordingFile, "id", "video_id", "replaced_at")
    assert first[:2] == (old, identity("1")) and first[2] is not None
    assert second == (new, identity("2"), None)
    # The old content comes back: a third row, of the video that is known already.
    register(engine, (recording(KEY, "a", "1", mtime_ns=3), video("1")))
    assert len(rows(engine, tables.RecordingFile, "id")) == 3 and len(rows(engine, tables.Video, "id")) == 2


def test_a_removed_file_is_marked(engine: Engine) -> None:
    register(engine, (recording(KEY, "a", "1"), video("1")), (recording(KEY, "b", "2"), video("2")))
    register(engine, (recording(KEY, "a", "1"), None))
    assert [name for _, name, _ in current(engine)] == ["a"]
    register(engine)
    assert current(engine) == []
    missing = current_files(engine, KEY, missing=True)
    assert [row.recording.name for row in missing] == ["a", "b"] and all(row.missing_since for row in missing)
    register(engine, (recording(KEY, "a", "1"), None))
    assert [row.id for row in current_files(engine, KEY)] == [missing[0].id], "it is back"
    assert len(rows(engine, tables.RecordingFile, "id")) == 2


def test_problems_come_and_go(engine: Engine) -> None:
    register(engine, (recording(KEY, "a", problem="cut short"), None))
    before = current(engine)
    register(engine, (recording(KEY, "a", problem="cut short"), None))
    assert current(engine) == before
    assert known_files(engine) == []
    register(engine, (recording(KEY, "a", problem="not a video"), None))
    register(engine, (recording(KEY, "a", "1"), video("1")))
    assert known_files(engine) == [KnownFile(KEY, "top", "a", identity("1"), 1000, 640, 480)]
    problems = rows(engine, tables.RecordingFile, "problem")
    assert problems == [("cut short",), ("not a video",), (None,)]


def test_one_video_in_two_sessions(engine: Engine) -> None:
    for key in (KEY, "sub-2_ses-1"):
        register_session(engine, session(key), [(recording(key, "a", "1"), video("1"))])
    assert known_files(engine) == [
        KnownFile(key, "top", "a", identity("1"), 1000, 640, 480) for key in (KEY, "sub-2_ses-1")
    ]
    assert rows(engine, tables.Video, "id") == [(identity("1"),)]


def test_one_session_registered_by_many_at_once(engine: Engine) -> None:
    def task(own: Engine) -> None:
        register(own, (recording(KEY, "a", "1"), video("1")), (recording(KEY, "b", problem="cut short"), None))

    at_once(engine, *[task] * 5)
    assert [row[1:] for row in current(engine)] == [("a", identity("1")), ("b", None)]
    assert len(rows(engine, tables.RecordingFile, "id")) == 2


def test_sessions_with_the_same_videos_do_not_block_each_other(engine: Engine) -> None:
    letters = "123456789abc"
    for attempt in range(5):

        def task(key: str, order: str, attempt: int = attempt) -> Callable[[Engine], None]:
            files = [
                (recording(key, letter, None, problem="x"), video("0", id=f"{letter}{attempt}".ljust(64, "0")))
                for letter in order
            ]
            return lambda own: register_session(own, session(key), files)

        at_once(engine, task(f"sub-1_ses-{attempt}", letters), task(f"sub-2_ses-{attempt}", letters[::-1]))
    assert len(rows(engine, tables.Video, "id")) == 5 * len(letters)


def test_labels_are_counted_again(lab: Engine) -> None:
    record_session_labels(lab, KEY, {"maze": 3, "arena": 0})
    record_session_labels(lab, KEY, {"maze": 5})
    counted = rows(lab, tables.SessionLabels, "project", "images")
    assert sorted(counted) == [("arena", 0), ("maze", 5)]
    assert labelled_sessions(lab, ["maze", "arena"]) == labelled_sessions(lab, ["maze"]) == {KEY}
    assert labelled_sessions(lab, ["maze", "a new one"]) == set()


def test_a_dataset_whose_sessions_become_known(lab: Engine) -> None:
    made = [image("e", "3", None), image("e", "4", None, "test")]
    record_dataset(lab, "first", dataset("e"), made)
    known = [image("e", "3", KEY), image("e", "4", None, "test")]
    record_dataset(lab, "second", dataset("e"), known)
    columns = ("image_id", "session_key", "side")
    found = [row[1:] for row in rows(lab, tables.DatasetImage, "dataset_id", *columns) if row[0] == identity("e")]
    assert sorted(found) == [(identity("3"), KEY, "train"), (identity("4"), None, "test")]
    assert current_dataset(lab, "first") == current_dataset(lab, "second") == identity("e")
    # A session whose video was removed is still the session that taught the model.
    record_dataset(lab, "first", dataset("e"), made)
    found = [row for row in rows(lab, tables.DatasetImage, "dataset_id", "session_key") if row[0] == identity("e")]
    assert (identity("e"), KEY) in found


def test_the_newest_dataset_of_a_recipe_is_current(lab: Engine) -> None:
    record_dataset(lab, "first", dataset("e"), [image("e", "3", None)])
    record_dataset(lab, "first", dataset("d"), [image("d", "3", None)])
    assert current_dataset(lab, "first") == identity("d")
    assert current_dataset(lab, "unknown") is None
    assert len(rows(lab, tables.Dataset, "id")) == 2 and len(rows(lab, tables.DatasetBuild, "id")) == 3


def test_a_dataset_is_of_the_project_that_it_was_last_made_for(lab: Engine) -> None:
    images = [image("e", "3", None), image("e", "4", None, "test")]
    record_dataset(lab, "first", dataset("e", "maze"), images)
    record_dataset(lab, "first", dataset("e", "labyrinth"), images)
    made = registered_dataset(lab, identity("e"))
    assert made is not None and (made.project, made.seed) == ("labyrinth", 42)
    assert image_sides(lab, identity("e")) == {identity("3"): "train", identity("4"): "test"}
    assert registered_dataset(lab, identity("0")) is None


def test_one_model_trained_twice(lab: Engine) -> None:
    assert train(lab, "c", "d", recipe="third") is True
    assert train(lab, "c", "d", recipe="fourth") is False
    assert [row for row in rows(lab, tables.TrainingRun, "model_id", "recipe") if row[0] == identity("c")] == [
        (identity("c"), "third"),
        (identity("c"), "fourth"),
    ]
    model = current_model(lab, "fourth")
    assert model is not None and (model.id, model.scorer) == (identity("c"), "DLC_c")
    found = model_version(lab, identity("c"))
    assert found is not None and found.parameter_set_id == model.parameter_set_id
    assert model_version(lab, identity("0")) is None and current_model(lab, "unknown") is None
    assert len(rows(lab, tables.ParameterSet, "id")) == 1
    assert rows(lab, tables.ParameterSet, "parameters") == [({"epochs": 5, "net_type": "resnet_50"},)]


def test_the_newest_model_of_a_recipe_is_current(lab: Engine) -> None:
    train(lab, "c", "d", recipe="first")
    train(lab, "a", "d", recipe="first")
    model = current_model(lab, "first")
    assert model is not None and model.id == identity("a")


def test_one_evaluation_twice(lab: Engine) -> None:
    evaluate(lab, "6", "a", "d", 99.0)
    errors = rows(lab, tables.EvaluationError, "evaluation_id", "rmse_px")
    assert len(errors) == 12 and max(rmse for _, rmse in errors) == 5.0
    assert [row.id for row in evaluations_of(lab, "maze")] == [identity("6"), identity("7")]
    assert evaluations_of(lab, "arena") == []
    assert evaluated_models(lab) == {identity("a"), identity("b")}


def test_a_promotion_against_what_is_no_longer_so(lab: Engine) -> None:
    assert production_model(lab, "maze") == identity("b")
    assert production_model(lab, "arena") is None
    assert not promote(lab, promotion("a"), expected=identity("a"))
    assert not promote(lab, promotion("a"), expected=None)
    assert promote(lab, promotion("a"), expected=identity("b"))
    in_force = promotion_in_force(lab, "maze")
    assert in_force is not None and (in_force.model_id, in_force.reason) == (identity("a"), "a it is")
    assert in_force.evaluation_id is None


@pytest.mark.parametrize("expected", [None, "a"])
def test_of_promotions_at_once_one_wins(lab: Engine, expected: str | None) -> None:
    train(lab, "c", "d", project="arena")
    if expected:
        assert promote(lab, promotion(expected, "arena"), expected=None)
    against = identity(expected) if expected else None
    tasks = [
        lambda own, model=model: promote(own, promotion(model, "arena"), expected=against)
        for model in ("b", "c", "b", "c", "b", "c")
    ]
    won = at_once(lab, *tasks)
    assert sorted(map(str, won)) == ["False"] * 5 + ["True"]
    assert production_model(lab, "arena") == identity("bcbcbc"[won.index(True)])
    assert production_model(lab, "maze") == identity("b")


def test_promotions_of_two_projects_do_not_meet(lab: Engine) -> None:
    won = at_once(
        lab,
        lambda own: promote(own, promotion("a", "arena"), expected=None),
        lambda own: promote(own, promotion("a", "maze"), expected=identity("b")),
    )
    assert won == [True, True]


def test_one_estimate_for_two_recordings_and_twice_for_one(lab: Engine) -> None:
    other = "sub-3_ses-1"
    register_session(lab, session(other), [(recording(other, "copy", "1"), None)])
    (copy,) = current_files(lab, other)
    track(lab, "9", copy, "b")
    track(lab, "9", copy, "b")
    assert rows(lab, tables.PoseEstimate, "id") == [(identity("8"),), (identity("9"),)]
    assert len(rows(lab, tables.PoseSummary, "bodypart")) == 4
    found = rows(lab, tables.RecordingPoses, "recording_file_id", "pose_estimate_id")
    assert found[2:] == [(copy.id, identity("9"))] * 2
    assert copy.id in tracked_files(lab)


def test_poses_recorded_by_many_at_once(lab: Engine) -> None:
    (top,) = current_files(lab, "sub-2_ses-1")
    at_once(lab, *[lambda own: track(own, "0", top, "b")] * 4)
    assert (identity("0"),) in rows(lab, tables.PoseEstimate, "id")
    assert len(rows(lab, tables.RecordingPoses, "id")) == 6


def test_a_recording_of_several_files(engine: Engine) -> None:
    files = [
        (recording(KEY, "top", "1", position=0), video("1")),
        (recording(KEY, "top", "2", position=1), video("2")),
        (recording(KEY, "side", "3", camera="side"), video("3")),
    ]
    register(engine, *files)
    found = [(file.recording.name, file.position, file.video_id) for file in current_files(engine, KEY)]
    assert found == [("side", 0, identity("3")), ("top", 0, identity("1")), ("top", 1, identity("2"))]
    assert len(rows(engine, tables.Recording, "id")) == 2
    # The second file is gone: the recording is its first one.
    register(engine, files[0], files[2])
    assert [file.position for file in current_files(engine, KEY)] == [0, 0]
    assert len(rows(engine, tables.RecordingFile, "id")) == 3


def test_a_camera_that_is_called_otherwise(engine: Engine) -> None:
    register(engine, (recording(KEY, "a", "1", camera="top"), video("1")))
    ((before, _, _),) = current(engine)
    register(engine, (recording(KEY, "a", "1", camera="overhead"), None))
    (file,) = current_files(engine, KEY)
    assert (file.id, file.recording.camera) == (before, "overhead")


def test_of_two_that_make_one_product_the_second_waits(engine: Engine) -> None:
    order: list[str] = []

    def task(own: Engine) -> None:
        with making_alone(own, identity("1")):
            order.append("begins")
            time.sleep(0.2)
            order.append("ends")

    at_once(engine, *[task] * 3)
    assert order == ["begins", "ends"] * 3


def test_a_lost_product_that_is_made_again_has_a_new_manifest(lab: Engine) -> None:
    _, top = current_files(lab, KEY)
    for number in ("1", "2"):
        estimate = tables.PoseEstimate(
            id=identity("9"),
            video_id=top.video_id,
            model_id=identity("b"),
            origin="computed",
            scorer="DLC_b",
            frames=300,
            seconds=1.0,
            manifest_sha256=identity(number),
            run_id="again",
        )
        made = tables.RecordingPoses(recording_file_id=top.id, pose_estimate_id=identity("9"), run_id="again")
        record_poses(lab, estimate, pose_summaries(identity("9"), []), made, {})
        assert recorded_products(lab)["poses", identity("9")] == identity(number)


def test_sessions_that_become_known_after_an_evaluation(lab: Engine) -> None:
    def count() -> int:
        return len(rows(lab, tables.EvaluationSessionError, "session_key"))

    assert count() == 0
    evaluation = tables.Evaluation(
        id=identity("7"), model_id=identity("b"), dataset_id=identity("d"), likelihood_cutoff=0.6, run_id="again"
    )
    error = tables.EvaluationSessionError(
        evaluation_id=identity("7"), side="train", session_key=KEY, keypoints=3, rmse_px=1.0
    )
    record_evaluation(lab, evaluation, [], {}, [error])
    assert count() == 1


def test_an_export_is_recorded_once_and_belongs_to_its_model(lab: Engine) -> None:
    export(lab, "3", "a", accepted=False)
    export(lab, "3", "a", accepted=True)  # what was measured first stays
    made = export_table(lab)
    assert list(zip(made["model"], made["accepted"], strict=True)) == [(identity("a"), True), (identity("a"), False)]
    assert recorded_products(lab)["exports", identity("3")] == identity("0")
    with pytest.raises(IntegrityError, match="fk_model_export_model_id"):
        export(lab, "4", "c")


def test_a_product_is_free_again_when_its_maker_fails(engine: Engine) -> None:
    with pytest.raises(ValueError), making_alone(engine, identity("1")):
        raise ValueError("the network failed")
    other = open_catalog(engine.url)
    with making_alone(other, identity("1")):
        pass
    other.dispose()


@pytest.mark.parametrize("work_fails", [False, True])
def test_work_outlives_the_connection_that_holds_its_lock(engine: Engine, work_fails: bool) -> None:
    def work() -> str:
        with making_alone(engine, identity("1")):
            with open_catalog(engine.url).connect() as other:
                lock = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
                assert other.scalars(text(lock)).all() == [True]
            if work_fails:
                raise ValueError("the network failed")
            return "all frames"

    if work_fails:
        with pytest.raises(ValueError, match="the network failed"):
            work()
    else:
        assert work() == "all frames"
    with making_alone(engine, identity("1")):
        assert session_keys(engine) == set()


def test_counts_by_a_new_cutoff_replace_the_earlier_ones(lab: Engine) -> None:
    _, top = current_files(lab, KEY)
    track(lab, "9", top, "b", confident=0.25)
    columns = ("pose_estimate_id", "bodypart", "fraction_confident")
    found = {row[1:] for row in rows(lab, tables.PoseSummary, *columns) if row[0] == identity("9")}
    assert found == {("nose", 0.25), ("tail", 0.25)}
    evaluate(lab, "7", "b", "d", 2.0, cutoff=0.9, confident=0.5)
    columns = ("evaluation_id", "side", "fraction_confident")
    found = {row[1:] for row in rows(lab, tables.EvaluationError, *columns) if row[0] == identity("7")}
    assert found == {("test", 0.5), ("train", 0.5)}
    assert dict(rows(lab, tables.Evaluation, "id", "likelihood_cutoff")) == {identity("6"): 0.6, identity("7"): 0.9}


def test_a_model_is_named_by_as_much_as_tables_show(lab: Engine) -> None:
    for middle, project in (("1", "maze"), ("2", "arena")):
        record_imported_model(
            lab,
            tables.ModelVersion(
                id=f"ab{'c' * 12}{middle}".ljust(64, "0"),
                project=project,
                net_type="resnet_50",
                weights_sha256=identity(middle),
                scorer="elsewhere",
                source={},
            ),
            BodyParts(["nose"]),
        )
    assert require_model(lab, "aaa").id == identity("a")
    assert require_model(lab, f" {identity('B')}\n").id == identity("b")
    with pytest.raises(
        PlatformError,
        match=r"2 model versions begin with 'ab': abcccccccccccc1 of maze, abcccccccccccc2 of arena. Write more",
    ):
        require_model(lab, "ab")
    for unknown in ("", " ", "9", "%", "a%", "_" * 64):
        with pytest.raises(PlatformError, match="no model version begins with"):
            require_model(lab, unknown)
