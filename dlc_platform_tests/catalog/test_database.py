import subprocess
import sys

import pandas as pd
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from dlc_platform.catalog.database import alembic_config, migrate, open_catalog
from dlc_platform.catalog.datasets import current_dataset
from dlc_platform.catalog.estimates import lineage_table
from dlc_platform.catalog.evaluations import evaluation_table
from dlc_platform.catalog.models import best_models, bodyparts_of, model_table, parameter_table
from dlc_platform.catalog.promotions import promote, promotion_table
from dlc_platform.catalog.sessions import current_files, register_session, registered_sessions, session_table
from dlc_platform.catalog.tables import SCHEMA, Base
from dlc_platform.errors import PlatformError
from dlc_platform_tests.catalog.small_lab import (
    dataset,
    evaluate,
    image,
    promotion,
    record_dataset,
    recording,
    session,
    train,
    video,
)

MIGRATE = """
import os
import sys
from dlc_platform.catalog.database import migrate, open_catalog
from sqlalchemy import make_url
engine = open_catalog(make_url(os.environ["CATALOGUE"]))
print("ready", flush=True)
sys.stdin.readline()
migrate(engine)
"""


#: Rows of the first catalogue; letters stand for identities.
FIRST_CATALOGUE = """
insert into dlc.session (key, subject, name, folder) values ('sub-1_ses-1', '1', '1', '/raw/1');
insert into dlc.video (id, size_bytes, width, height, frame_rate_numerator, frame_rate_denominator, frames, duration_s,
                       codec, pixel_format, rotation)
select repeat(v, 64), 10, 64, 48, 25, 1, 10, 0.4, 'h264', 'yuv420p', 0 from unnest(array['a', 'b']) v;
insert into dlc.recording (id, session_key, name, camera, path, size_bytes, mtime_ns, video_id, problem, replaced_at)
values (1, 'sub-1_ses-1', 'top', 'top', '/raw/1/top.mp4', 10, 1, repeat('a', 64), null, now()),
       (2, 'sub-1_ses-1', 'top', 'overhead', '/raw/1/top.mp4', 10, 2, repeat('b', 64), null, null),
       (3, 'sub-1_ses-1', 'side', 'side', '/raw/1/side.mp4', 10, 1, null, 'cut short', null);
insert into dlc.environment values (repeat('0', 64), '{"host" : "old"}');
insert into dlc.parameter_set (id, parameters) values (repeat('0', 64), '{"epochs" : 5, "net_type" : "resnet_50"}');
insert into dlc.dataset (id, project, bodyparts, train_images, test_images, run_id)
values (repeat('c', 64), 'maze', '["nose", "tail"]', 2, 1, 'run');
insert into dlc.model_version (id, project, dataset_id, parameter_set_id, weights_sha256, scorer)
select repeat(m, 64), 'maze', repeat('c', 64), repeat('0', 64), repeat('f', 64), 'DLC_' || m
from unnest(array['d', 'e']) m;
insert into dlc.training_run (recipe, model_id, epochs, seconds, environment_id, run_id)
select 'r', repeat(m, 64), 5, 10, repeat('0', 64), 'run' from unnest(array['d', 'e']) m;
insert into dlc.promotion (project, model_id, reason, run_id)
values ('maze', repeat('d', 64), 'the first evaluated version', 'run'),
       ('maze', repeat('e', 64), 'the tail looks better', 'run'),
       ('maze', repeat('e', 64), 'test RMSE 2.00 px, against 3.00 px before, on the 9 test images they share', 'run');
insert into dlc.pose_estimate (id, video_id, model_id, frames, seconds, environment_id, run_id)
values (repeat('1', 64), repeat('a', 64), repeat('d', 64), 10, 1, repeat('0', 64), 'run'),
       (repeat('2', 64), repeat('b', 64), repeat('e', 64), 10, 1, repeat('0', 64), 'run');
insert into dlc.recording_poses (recording_id, pose_estimate_id, run_id)
values (1, repeat('1', 64), 'run'), (2, repeat('2', 64), 'run');
select setval(pg_get_serial_sequence('dlc.recording', 'id'), 3)
"""


def tables_in(engine: Engine) -> set[str]:
    return set(sqlalchemy.inspect(engine).get_table_names(SCHEMA))


def test_migrations_give_the_tables_of_the_code(engine: Engine) -> None:
    def is_ours(name: str | None, kind: str, _: object) -> bool:
        return kind != "schema" or name == SCHEMA

    with engine.connect() as connection:
        options = {"include_schemas": True, "include_name": is_ours, "version_table_schema": SCHEMA}
        context = MigrationContext.configure(connection, opts=options | {"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    declared = {table.name: table for table in Base.metadata.tables.values()}
    assert tables_in(engine) == {*declared, "alembic_version"}
    # Alembic does not compare check constraints.
    for name, table in declared.items():
        checks = {str(c.name) for c in table.constraints if isinstance(c, sqlalchemy.CheckConstraint)}
        found = sqlalchemy.inspect(engine).get_check_constraints(name, SCHEMA)
        assert {str(check["name"]) for check in found} == checks


def test_the_fourth_catalogue_can_be_left_again(empty_database: URL) -> None:
    engine = open_catalog(empty_database)
    migrate(engine)
    declared = tables_in(engine)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0003")
    assert declared - tables_in(engine) >= {"quarantine", "sighting", "pose_verdict", "notification", "video_quality"}
    migrate(engine)
    assert tables_in(engine) == declared


def test_processes_that_migrate_at_once(empty_database: URL) -> None:
    environment = {"CATALOGUE": empty_database.render_as_string(hide_password=False)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * 6, errors
    engine = open_catalog(empty_database)
    assert "session" in tables_in(engine)
    engine.dispose()


def test_migrating_again_changes_nothing(lab: Engine) -> None:
    before = tables_in(lab)
    migrate(lab)
    migrate(lab)
    assert tables_in(lab) == before
    assert len(registered_sessions(lab)) == 2


def test_tables_of_a_newer_platform_are_not_migrated(lab: Engine) -> None:
    with lab.begin() as connection:
        connection.execute(text("update dlc.alembic_version set version_num = '9999'"))
    with pytest.raises(PlatformError, match="at 9999, which this version of the platform does not know"):
        migrate(lab)


def test_a_migration_that_fails_leaves_nothing(empty_database: URL) -> None:
    engine = open_catalog(empty_database)
    with engine.begin() as connection:
        connection.execute(text("create schema dlc"))
        connection.execute(text("create table dlc.recording_poses (id int)"))
    with pytest.raises(ProgrammingError):
        migrate(engine)
    assert tables_in(engine) == {"recording_poses"}
    with engine.begin() as connection:
        connection.execute(text("drop table dlc.recording_poses"))
    migrate(engine)
    assert "session" in tables_in(engine)
    engine.dispose()


def test_the_engine_survives_a_lost_connection(engine: Engine) -> None:
    with engine.connect() as connection:
        pid = connection.scalar(text("select pg_backend_pid()"))
    other = sqlalchemy.create_engine(engine.url, poolclass=sqlalchemy.NullPool)
    with other.connect() as connection:
        connection.execute(text("select pg_terminate_backend(:pid)"), {"pid": pid})
    assert registered_sessions(engine) == set()


def test_a_recording_holds_either_a_video_or_a_problem(engine: Engine) -> None:
    key = "sub-1_ses-1"
    for wrong, content in (
        (recording(key, "a"), None),
        (recording(key, "a", "1", problem="cut short"), video("1")),
        (recording(key, "a", "1"), None),  # a video that nobody knows
    ):
        with pytest.raises(IntegrityError):
            register_session(engine, session(key), [(wrong, content)])
    assert registered_sessions(engine) == set()


@pytest.mark.parametrize("key", ["frames", "width", "height"])
def test_a_video_has_frames(engine: Engine, key: str) -> None:
    with pytest.raises(IntegrityError, match="has_frames"):
        register_session(engine, session("sub-1_ses-1"), [(recording("sub-1_ses-1", "a", "1"), video("1", **{key: 0}))])


def test_other_rows_that_make_no_sense(lab: Engine) -> None:
    with pytest.raises(IntegrityError, match="ck_dataset_image_side"):
        record_dataset(lab, "first", dataset("e"), [image("e", "3", None, side="both")])
    with pytest.raises(IntegrityError, match="fk_dataset_image_session_key"):
        record_dataset(lab, "first", dataset("e"), [image("e", "3", "sub-9_ses-9")])
    with pytest.raises(IntegrityError, match="fk_model_version_dataset_id"):
        train(lab, "c", dataset="e")
    with pytest.raises(IntegrityError, match="fk_evaluation_model_id"):
        evaluate(lab, "c", model="c", dataset="d", rmse_px=1.0)
    assert current_dataset(lab, "first") == "d" * 64


def test_what_the_first_catalogue_held_is_kept(empty_database: URL) -> None:
    """A lab of before: a replaced and a broken file, poses by two models, promotions without a name."""
    engine = open_catalog(empty_database)
    with engine.begin() as connection:
        connection.execute(text("create schema dlc"))
        command.upgrade(alembic_config(connection), "0001")
        for statement in FIRST_CATALOGUE.split(";"):
            connection.execute(text(statement))
    migrate(engine)
    files = {
        (file.recording.name, file.position): (file.id, file.recording.camera, file.video_id)
        for file in current_files(engine, "sub-1_ses-1")
    }
    assert files == {("top", 0): (2, "overhead", "b" * 64), ("side", 0): (3, "side", None)}
    (row,) = lineage_table(engine, "sub-1_ses-1").to_dict("records")
    assert (row["model"], row["pose_estimate"], row["origin"], row["recipe"]) == ("e" * 64, "2" * 64, "computed", "r")
    assert row["parameters"]["epochs"] == 5 and row["scorer"] == "DLC_e"
    promotions = promotion_table(engine)
    assert list(promotions["kind"]) == ["first", "person", "rule"]
    assert list(promotions["model"]) == ["d" * 64, "e" * 64, "e" * 64]
    (recipe,) = parameter_table(engine).to_dict("records")
    assert (recipe["recipe"], recipe["version"], recipe["project"]) == ("r", 1, "maze")
    assert set(model_table(engine)["net_type"]) == {"resnet_50"}
    assert bodyparts_of(engine, "e" * 64) == ["nose", "tail"]
    assert (row["inference_parameters"], row["frames_lost"], row["frames_damaged"], row["damage"]) == (None, 0, 0, None)
    assert (row["backend"], row["device"], row["export"]) == (None, None, None)
    assert set(session_table(engine)["frames_lost"].dropna()) == {0}
    # What is written next follows what was there.
    register_session(engine, session("sub-2_ses-1"), [(recording("sub-2_ses-1", "a", "4"), video("4"))])
    (new,) = current_files(engine, "sub-2_ses-1")
    assert new.id == 4
    assert promote(engine, promotion("d"), expected="e" * 64)
    engine.dispose()


#: Version `m` of dataset `d`, evaluated on `d` and on the newer `n`, a test image of which it was trained on.
FOURTH_CATALOGUE = """
insert into dlc.environment (id, details) values ('e', '{}');
insert into dlc.skeleton (id) values ('s');
insert into dlc.parameter_set (id, parameters) values ('p', '{}');
insert into dlc.dataset (id, project, skeleton_id, train_images, test_images, run_id)
values ('d', 'maze', 's', 2, 14, 'r'), ('n', 'maze', 's', 9, 15, 'r');
insert into dlc.dataset_image (dataset_id, image_id, folder, file, side)
values ('d', '1', 'v', '1.png', 'train'), ('d', '2', 'v', '2.png', 'test'), ('n', '1b', 'v', '1.png', 'test');
insert into dlc.model_version (id, project, origin, skeleton_id, dataset_id, parameter_set_id, weights_sha256, scorer)
values ('m', 'maze', 'trained', 's', 'd', 'p', 'w', 'c');
insert into dlc.evaluation (id, model_id, dataset_id, likelihood_cutoff, environment_id, run_id)
values ('own', 'm', 'd', 0.6, 'e', 'r'), ('newer', 'm', 'n', 0.6, 'e', 'r');
insert into dlc.evaluation_error (evaluation_id, side, bodypart, keypoints, rmse_px)
values ('own', 'test', 'all', 28, 2.42), ('newer', 'test', 'all', 30, 1.95);
insert into dlc.comparison (id, project, dataset_id, test_images, likelihood_cutoff, run_id)
values ('c', 'maze', 'n', 2, 0.6, 'r');
insert into dlc.comparison_error (comparison_id, model_id, bodypart, evaluation_id, keypoints, rmse_px, rmse_low_px,
rmse_high_px) values ('c', 'm', 'all', 'newer', 4, 2, 2, 2);
insert into dlc.promotion (project, model_id, evaluation_id, kind, promoted_by, reason, previous_id)
values ('maze', 'm', 'own', 'first', 'the rule', 'the first evaluated version', null),
('maze', 'm', 'newer', 'rule', 'the rule', 'test RMSE 2.42 px, against 3.10 px before, on the 14 test images they share
(difference -0.68 px, 95 % interval -0.90 to -0.50 px), and no body part got worse', 1),
('maze', 'm', 'newer', 'person', 'ada', 'better', 2)
"""


def test_errors_that_old_versions_mixed_with_training_images_go(empty_database: URL) -> None:
    engine = open_catalog(empty_database)
    with engine.begin() as connection:
        connection.execute(text("create schema dlc"))
        command.upgrade(alembic_config(connection), "0004")
        for statement in FOURTH_CATALOGUE.split(";"):
            connection.execute(text(statement))
    migrate(engine)
    (row,) = evaluation_table(engine).to_dict("records")
    assert (row["evaluation"], row["test_images"], row["training_known"], row["rmse_px"]) == ("own", 14, True, 2.42)
    promotions = promotion_table(engine).astype(object)
    assert promotions["test_rmse_px"].tolist()[:2] == [2.42, 2.42] and promotions["test_images"].tolist()[:2] == [
        14,
        14,
    ]
    assert promotions["test_rmse_px"].isna().tolist() == [False, False, True]
    (best,) = best_models(engine).to_dict("records")
    assert best["test_images"] == 2 and pd.isna(best["rmse_low_px"]) and pd.isna(best["rmse_high_px"])
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0004")
    migrate(engine)
    engine.dispose()


#: Scores of versions before 0.5: `1` has places and no likelihood, `2` has likelihoods for one of two body parts and
#: lost a frame, and of `3` nothing was estimated.
SIXTH_CATALOGUE = """
insert into dlc.video (id, size_bytes, width, height, frame_rate_numerator, frame_rate_denominator, frames, duration_s,
                       codec, pixel_format, rotation)
values ('v', 10, 64, 48, 25, 1, 11, 0.4, 'h264', 'yuv420p', 0);
insert into dlc.environment (id, details) values ('e', '{}');
insert into dlc.pose_estimate (id, video_id, origin, scorer, frames, frames_lost, source, environment_id)
select i, 'v', 'imported', 's', 11, (i = '2')::int, '{}', 'e' from unnest(array['1', '2', '3']) i;
insert into dlc.pose_summary values ('1', 'nose', null, 0, 0);
insert into dlc.pose_score (pose_estimate_id, individual, bodypart, rows, mean_likelihood, fraction_confident,
                            fraction_missing)
values ('1', 'animal0', 'nose', 11, null, 0, 0), ('1', 'animal0', 'tail', 11, null, 0, 0.5),
       ('1', 'animal0', 'nose to tail', null, null, null, null), ('1', 'all', 'all', 11, null, 0, 0.25),
       ('2', 'animal0', 'nose', 11, 0.9, 0.8, 0), ('2', 'animal0', 'tail', 11, null, 0, 0),
       ('2', 'all', 'all', 11, 0.9, 0.4, 0),
       ('3', 'animal0', 'nose', 11, null, 0, 1), ('3', 'all', 'all', 11, null, 0, 1)
"""


def test_poses_without_likelihood_are_not_zero_sure(empty_database: URL) -> None:
    engine = open_catalog(empty_database)
    with engine.begin() as connection:
        connection.execute(text("create schema dlc"))
        command.upgrade(alembic_config(connection), "0006")
        for statement in SIXTH_CATALOGUE.split(";"):
            connection.execute(text(statement))
    migrate(engine)
    scores = "select pose_estimate_id, bodypart, fraction_confident from dlc.pose_score where rows is not null"
    with engine.connect() as connection:
        found = {(row[0], row[1]): row[2] for row in connection.execute(text(scores))}
    assert found == {
        ("1", "nose"): None,
        ("1", "tail"): None,
        ("1", "all"): None,
        ("2", "nose"): 0.8,
        ("2", "tail"): None,
        ("2", "all"): pytest.approx(0.8),
        ("3", "nose"): 0,
        ("3", "all"): 0,
    }
    assert "pose_summary" not in tables_in(engine)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0006")
    migrate(engine)
    engine.dispose()


def test_no_more_frames_are_lost_than_there_are(engine: Engine) -> None:
    with pytest.raises(IntegrityError, match="ck_video_account"):
        register_session(
            engine, session("sub-1_ses-1"), [(recording("sub-1_ses-1", "a", "1"), video("1", frames_lost=301))]
        )
