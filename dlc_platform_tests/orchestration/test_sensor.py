"""The sensor on a real Dagster instance, a real catalogue and real, tiny videos.

What the daemon does with a tick (add the partitions, launch the runs, keep the cursor) is done here by hand, so that a
test can look at each step; the runs are executed in this process.
"""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import yaml
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.execution.plan.objects import ErrorSource, StepFailureData, UserFailureData
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    MAX_RETRIES_TAG,
    RUN_KEY_TAG,
    SENSOR_NAME_TAG,
    WILL_RETRY_TAG,
)
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy import Engine, text

from dlc_platform.catalog.promotions import promote as catalog_promote
from dlc_platform.catalog.quarantine import Stage, faults_of, release
from dlc_platform.catalog.sessions import current_files, detail_table, known_files, registered_sessions
from dlc_platform.catalog.wanted import untracked_files
from dlc_platform.demo.render import write_video
from dlc_platform.errors import PlatformError
from dlc_platform.lab.runs_under_way import daemon_lives
from dlc_platform.lab.waiting import waiting
from dlc_platform.launchers.gpu_run_launcher import DEVICE_TAG
from dlc_platform.orchestration import ended_runs, following, materialize, requests, retries, sensors
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.failures import OF_THE_MACHINE, is_of_the_machine
from dlc_platform.orchestration.inspection import inspect
from dlc_platform.orchestration.instance import open_instance, prepare
from dlc_platform.orchestration.missing_partitions import missing
from dlc_platform.orchestration.news import keep_news, kept_news
from dlc_platform.orchestration.partitions import RANGE_END, RANGE_START, SESSIONS_TAG, neighbours, sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import UNTIL_TAG, WAITS, WAITS_TAG, not_started
from dlc_platform.postgres.connection import DAGSTER_SCHEMA
from dlc_platform.sessions import registration
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.settings.loading import load_lab
from dlc_platform_tests.catalog import small_lab
from dlc_platform_tests.video.conftest import spoil

SETTLE = 30
#: How a new session is asked for; one that is labelled already, or moved, is only registered.
NEW = "session_videos+labeled_frames"
#: Poses are judged in the run that makes them.
POSES = "pose_estimates+pose_quality"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.monotonic, self.sleep = time.monotonic, time.sleep

    def time(self) -> float:
        return self.now


class Watched:
    """A lab with its sensor, and the daemon's part of the work."""

    def __init__(self, home: Path, engine: Engine, instance: dg.DagsterInstance, clock: Clock):
        self.home = home
        self.raw = home / "raw"
        self.engine = engine
        self.instance = instance
        self.clock = clock
        self.cursor: str | None = None
        self.summary = ""
        self.told: list[Any] = []
        self.run_keys: list[str] = []
        self.launched: dict[tuple[str, str, str], dg.DagsterRun] = {}
        self.checks: dict[str, dg.AssetCheckEvaluation] = {}
        self.definitions = build_definitions(home)

    def video(self, session: str, name: str = "cam-top.mp4", shade: int = 0) -> Path:
        subject, number = session.split("_")
        path = self.raw / subject / number / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, np.full((25, 48, 64, 3), shade, dtype=np.uint8))
        return path

    def settle(self) -> dict[str, list[tuple[str, str]]]:
        """Two ticks, with time enough between them for the files to have settled: what the second one asks for."""
        self.look()
        self.clock.now += SETTLE
        return self.look()

    def settle_and_run(self) -> dict[str, list[tuple[str, str]]]:
        """Settle, and do what both ticks ask for, except for inference."""
        asked = self.look()
        self.clock.now += SETTLE
        asked |= self.look()
        for assets, asks in asked.items():
            for first, last in asks:
                if assets != POSES:
                    self.run(assets, first, last)
        return asked

    def run(self, assets: str, first: str, last: str) -> bool:
        """Execute what was asked for last of these assets and sessions."""
        job = self.definitions.resolve_job_def("process_sessions")
        asked = self.launched[assets, first, last]
        self.instance.delete_run(asked.run_id)
        selection = [dg.AssetKey(asset) for asset in assets.split("+")]
        done = job.execute_in_process(
            instance=self.instance, asset_selection=selection, tags=asked.tags, raise_on_error=False
        )
        self.launched[assets, first, last] = done.dagster_run
        self.checks = {check.check_name: check for check in done.get_asset_check_evaluations()}
        return done.success

    def cancel(self, assets: str, first: str, last: str) -> None:
        self.instance.report_run_canceled(self.launched[assets, first, last])

    def fail(self, assets: str, session: str, why: str) -> None:
        """Let a run fail so that Dagster does not start it again."""
        run = self.launched[assets, session, session]
        self.instance.report_run_failed(run, why)
        self.instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false"})

    def scan(self, **rules: object) -> None:
        self.change(scan={"unopened_seconds": 0, **rules})

    def held(self, session: str, stage: Stage) -> list[str]:
        return [fault.reason for fault in faults_of(self.engine, session, stage)]

    def look(self) -> dict[str, list[tuple[str, str]]]:
        """One tick: the ranges of sessions that it asks for, by asset."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=self.definitions,
            resources={"lab": LabResource(home=str(self.home))},
        ) as context:
            done = self.definitions.resolve_sensor_def("new_session_videos").evaluate_tick(context)
        for request in done.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        self.cursor, self.summary = done.cursor, done.skip_message or ""
        self.told = list(done.asset_events or ())
        asked: dict[str, list[tuple[str, str]]] = {}
        for request in done.run_requests or []:
            assets = "+".join(asset.to_user_string() for asset in request.asset_selection or [])
            assert request.run_key
            # The daemon launches a run key once, for ever.
            assert request.run_key not in self.run_keys
            self.run_keys.append(request.run_key)
            stretch = (request.tags[RANGE_START], request.tags[RANGE_END])
            assert request.tags[SESSIONS_TAG].split(",")[0] == stretch[0]
            asked.setdefault(assets, []).append(stretch)
            self.launched[assets, *stretch] = self.instance.create_run_for_job(
                self.definitions.resolve_job_def("process_sessions"),
                status=dg.DagsterRunStatus.STARTED,
                tags={**request.tags, RUN_KEY_TAG: request.run_key, SENSOR_NAME_TAG: "new_session_videos"},
                asset_selection=frozenset(request.asset_selection or []),
            )
        return asked

    def registered(self) -> list[str]:
        return sorted(registered_sessions(self.engine))

    def promote(self) -> None:
        """Give the project a production model, in the catalogue only."""
        small_lab.record_dataset(self.engine, "r", small_lab.dataset("d", "tiny"), [small_lab.image("d", "3", None)])
        small_lab.train(self.engine, "a", "d", "r", "tiny")
        assert catalog_promote(self.engine, small_lab.promotion("a", "tiny"), expected=None)

    def change(self, **changes: object) -> None:
        settings = yaml.safe_load((self.home / "lab.yaml").read_text()) | changes
        (self.home / "lab.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture
def lab(
    engine: Engine, tmp_path: Path, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    os.environ[POSTGRES_VARIABLE] = engine.url.render_as_string(hide_password=False)
    (tmp_path / "raw").mkdir()
    settings = {
        "raw_roots": ["raw"],
        "projects": {"tiny": {"path": str(make_project(tmp_path / "project", 2))}},
        "inference": [{"camera": "*", "project": "tiny"}],
        "settle_seconds": SETTLE,
        # What does not open is not waited for.
        "scan": {"unopened_seconds": 0},
    }
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(settings))
    clock = Clock()
    for module in (sensors, requests, ended_runs, following):
        monkeypatch.setattr(module, "time", clock)
    with open_instance(prepare(tmp_path)) as instance:
        yield Watched(tmp_path, engine, instance, clock)


def one(session: str) -> list[tuple[str, str]]:
    return [(session, session)]


def test_a_growing_file_waits_until_it_has_settled(lab: Watched) -> None:
    whole = lab.video("sub-1_ses-1").read_bytes()
    path = lab.raw / "sub-1/ses-1/cam-top.mp4"
    for part in (1, 2, 3):
        path.write_bytes(whole[: len(whole) * part // 3])
        assert lab.look() == {}
        assert "1 new or changed ones still settling" in lab.summary
        lab.clock.now += SETTLE - 1
    assert lab.look() == {}
    lab.clock.now += 1
    assert lab.look() == {NEW: one("sub-1_ses-1")}
    assert lab.instance.get_dynamic_partitions("sessions") == ["sub-1_ses-1"]


def test_a_session_goes_its_way_once(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    for _ in range(3):
        lab.clock.now += SETTLE
        assert lab.look() == {}, "it is under way"
    assert lab.run(NEW, "sub-1_ses-1", "sub-1_ses-1")
    assert lab.look() == {}
    assert json.loads(lab.cursor or "")["runs"] == {}


def test_a_changed_table_is_followed_without_a_run(lab: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.video("sub-1_ses-1")
    lab.settle_and_run()

    def said() -> list[str]:
        return sorted(detail_table(lab.engine, "sub-1_ses-1")["value"])

    (lab.raw / "subjects.csv").write_text("subject,sex\n1,F\n")
    assert lab.look() == {} and said() == ["1", "F"]
    (lab.raw / "subjects.csv").write_text("subject,sex\n1,male\n")
    with monkeypatch.context() as broken:
        broken.setattr("dlc_platform.sessions.registration.session_places", lambda engine: 1 / 0)
        assert lab.look() == {} and said() == ["1", "F"]
    # A cursor of before knows nothing of tables.
    cursor = json.loads(lab.cursor or "")
    del cursor["tables"]
    lab.cursor = json.dumps(cursor)
    assert lab.look() == {} and said() == ["1", "male"]
    away = lab.raw.rename(lab.home / "away")
    assert lab.look() == {} and said() == ["1", "male"]
    away.rename(lab.raw)
    assert lab.look() == {} and said() == ["1", "male"]


def test_tables_on_a_disk_that_does_not_answer_hold_up_no_look(lab: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.video("sub-1_ses-1")
    lab.settle_and_run()
    (lab.raw / "subjects.csv").write_text("subject,sex\n1,F\n")
    answers, asked, real = threading.Event(), [], registration.reread_details

    def slow(*args: Any) -> int:
        """A stand-in for a network drive, as nothing here can stall a real one."""
        asked.append(args)
        answers.wait()
        return real(*args)

    with monkeypatch.context() as stalled:
        stalled.setattr(following, "_FOLLOWING_SECONDS", 0.2)
        stalled.setattr(registration, "reread_details", slow)
        try:
            assert lab.look() == {} and lab.look() == {} and len(asked) == 1
        finally:
            answers.set()
    assert lab.look() == {}
    assert sorted(detail_table(lab.engine, "sub-1_ses-1")["value"]) == ["1", "F"]
    assert lab.look() == {} and len(asked) == 1


def test_large_recordings_travel_in_more_runs(lab: Watched) -> None:
    size = lab.video("sub-1_ses-1").stat().st_size
    lab.video("sub-1_ses-2")
    lab.video("sub-1_ses-3")
    lab.scan(order="name", gigabytes_per_run=2.5e-9 * size)
    assert lab.settle() == {NEW: [("sub-1_ses-1", "sub-1_ses-2"), ("sub-1_ses-3", "sub-1_ses-3")]}


def test_sessions_are_gathered_while_a_run_for_poses_waits(lab: Watched) -> None:
    lab.promote()
    lab.video("sub-1_ses-1")
    lab.settle_and_run()
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    first = lab.launched[POSES, "sub-1_ses-1", "sub-1_ses-1"]

    def now(status: dg.DagsterRunStatus) -> None:
        lab.instance.delete_run(first.run_id)
        lab.instance.add_run(first.with_status(status))

    now(dg.DagsterRunStatus.NOT_STARTED)
    for number in (2, 3):
        lab.video(f"sub-1_ses-{number}")
        assert list(lab.settle_and_run()) == [NEW]
    assert lab.look() == {}
    now(dg.DagsterRunStatus.STARTED)
    assert lab.look() == {POSES: [("sub-1_ses-2", "sub-1_ses-3")]}


def test_nothing_waits_behind_a_run_that_waits_for_its_next_try(lab: Watched) -> None:
    lab.promote()
    lab.video("sub-1_ses-1")
    lab.settle_and_run()
    lab.look()
    again = lab.launched[POSES, "sub-1_ses-1", "sub-1_ses-1"]
    lab.instance.add_run_tags(again.run_id, {"dlc_platform/waits": "yes"})
    lab.video("sub-1_ses-2")
    lab.settle_and_run()
    assert lab.look() == {POSES: one("sub-1_ses-2")}


def test_a_lost_cursor_repeats_nothing_that_is_done(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    lab.settle_and_run()
    lab.settle_and_run()
    lab.cursor = None
    assert lab.settle() == {}
    assert lab.settle() == {}


def test_neighbours_travel_together(lab: Watched) -> None:
    lab.scan(order="name", sessions_per_run=25)
    first = lab.video("sub-01_ses-1")
    for number in range(28, 1, -1):
        copy = lab.raw / f"sub-{number:02}/ses-1/cam-top.mp4"
        copy.parent.mkdir(parents=True)
        shutil.copy(first, copy)
    assert lab.settle() == {NEW: [("sub-01_ses-1", "sub-25_ses-1"), ("sub-26_ses-1", "sub-28_ses-1")]}
    # What comes later lies behind, whatever its name: these two lie side by side.
    lab.video("sub-0_ses-1")
    lab.video("sub-99_ses-1")
    assert lab.settle() == {NEW: [("sub-0_ses-1", "sub-99_ses-1")]}


def test_sessions_that_lie_apart_travel_alone(lab: Watched) -> None:
    lab.scan(order="name")
    for number in (1, 2, 3, 4):
        lab.video(f"sub-{number}_ses-1", shade=10 * number)
    assert lab.settle_and_run() == {NEW: [("sub-1_ses-1", "sub-4_ses-1")]}
    for number in (1, 2, 4):
        lab.video(f"sub-{number}_ses-1", shade=100 + number)
    assert lab.settle()["session_videos"] == [("sub-1_ses-1", "sub-2_ses-1"), ("sub-4_ses-1", "sub-4_ses-1")]


def test_neighbours_are_those_of_the_order() -> None:
    assert neighbours(["c", "a", "b", "e"], ["a", "b", "c", "d", "e"], most=2) == [["a", "b"], ["c"], ["e"]]
    assert neighbours([], ["a"], most=2) == []
    sizes = {"a": 1, "b": 2, "c": 9, "d": 1, "e": 1}
    assert neighbours("abcde", "abcde", 3, sizes, 3) == [["a", "b"], ["c"], ["d", "e"]]


def test_a_replaced_file_is_asked_for_and_so_is_the_restored_one(lab: Watched) -> None:
    path = lab.video("sub-1_ses-1")
    lab.promote()
    shutil.copy2(path, lab.home / "first.mp4")
    for number in range(3):
        if number == 1:
            lab.video("sub-1_ses-1", shade=200)
        elif number == 2:
            shutil.copy2(lab.home / "first.mp4", path)  # with its old time
        assert lab.settle_and_run()["session_videos" if number else NEW] == one("sub-1_ses-1")
        (row,) = current_files(lab.engine, "sub-1_ses-1")
        if number == 2:
            assert lab.settle() == {}, "it keeps the poses that it had"
            assert untracked_files(lab.engine) == []
            break
        assert lab.look()[POSES] == one("sub-1_ses-1")
        small_lab.track(lab.engine, "78"[number % 2], row, "a")
    videos = [file.session for file in known_files(lab.engine)]
    assert videos == ["sub-1_ses-1"]
    assert lab.settle() == {}


def test_a_file_that_cannot_be_read_waits_until_it_changes(lab: Watched) -> None:
    path = lab.video("sub-1_ses-1")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    lab.promote()
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    assert not lab.run(NEW, "sub-1_ses-1", "sub-1_ses-1")
    (row,) = current_files(lab.engine, "sub-1_ses-1")
    assert row.problem and str(path) in row.problem
    assert lab.settle() == lab.settle() == {}
    path.write_bytes(whole)
    assert lab.settle_and_run() == {NEW: one("sub-1_ses-1")}
    assert lab.look() == {POSES: one("sub-1_ses-1")}


def test_a_damaged_recording_is_registered_and_awaits_the_rule(lab: Watched) -> None:
    side = spoil(lab.video("sub-1_ses-1", "cam-side.mp4", shade=9), [10, 11])
    lab.promote()
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    assert lab.run(NEW, "sub-1_ses-1", "sub-1_ses-1")
    check = lab.checks["recordings_are_whole"]
    assert not check.passed and check.description
    assert f"{side}: damaged: " in check.description and "of 25 frames can be decoded" in check.description
    (row,) = current_files(lab.engine, "sub-1_ses-1")
    assert row.video_id and not row.problem
    # Its labels count; its poses are not asked for, now or after the cursor was lost.
    assert lab.look() == {}
    lab.cursor = None
    assert lab.settle() == lab.settle() == {}
    lab.change(damaged_videos="track")
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    assert lab.settle() == {}, "it is under way"
    small_lab.track(lab.engine, "7", row, "a")
    assert lab.settle() == {}
    # The whole file is put in its place.
    lab.video("sub-1_ses-1", "cam-side.mp4", shade=9)
    assert lab.settle_and_run()["session_videos"] == one("sub-1_ses-1")
    assert lab.checks["recordings_are_whole"].passed


def test_a_damaged_recording_does_not_keep_the_other_one_back(lab: Watched) -> None:
    lab.video("sub-1_ses-1", "cam-top.mp4")
    spoil(lab.video("sub-1_ses-1", "cam-side.mp4", shade=9), [10])
    lab.promote()
    lab.settle_and_run()
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    rows = {row.recording.camera: row for row in current_files(lab.engine, "sub-1_ses-1")}
    small_lab.track(lab.engine, "7", rows["top"], "a")
    lab.cursor = None
    assert lab.settle() == lab.settle() == {}


def test_one_broken_file_of_two_does_not_keep_the_other_one_back(lab: Watched) -> None:
    lab.video("sub-1_ses-1", "cam-top.mp4")
    side = lab.raw / "sub-1/ses-1/cam-side.mp4"
    side.write_bytes(b"nothing that plays" * 50)
    lab.promote()
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    assert not lab.run(NEW, "sub-1_ses-1", "sub-1_ses-1")
    rows = {row.recording.camera: row for row in current_files(lab.engine, "sub-1_ses-1")}
    assert rows["top"].video_id and not rows["top"].problem
    assert rows["side"].problem and str(side) in rows["side"].problem
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    assert lab.settle() == {}
    small_lab.track(lab.engine, "7", rows["top"], "a")
    assert lab.settle() == {}
    lab.cursor = None
    assert lab.settle() == lab.settle() == {}, "what can be tracked has poses"
    lab.video("sub-1_ses-1", "cam-side.mp4", shade=7)
    assert lab.settle_and_run() == {NEW: one("sub-1_ses-1")}
    assert lab.look()[POSES] == one("sub-1_ses-1")


def test_a_project_without_a_model_does_not_stop_other_cameras(lab: Watched) -> None:
    lab.change(
        projects={name: {"path": str(lab.home / "project")} for name in ("tiny", "other")},
        inference=[{"camera": "side", "project": "other"}, {"camera": "*", "project": "tiny"}],
    )
    for camera, shade in (("top", 1), ("bottom", 2), ("side", 3)):
        lab.video("sub-1_ses-1", f"cam-{camera}.mp4", shade)
    lab.settle_and_run()
    lab.settle_and_run()
    lab.promote()
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    rows = {row.recording.camera: row for row in current_files(lab.engine, "sub-1_ses-1")}
    for letter, camera in (("6", "top"), ("7", "bottom")):
        assert lab.settle() == {}, "it is under way"
        small_lab.track(lab.engine, letter, rows[camera], "a")
    lab.cursor = None
    assert lab.settle() == lab.settle() == {}
    small_lab.record_dataset(lab.engine, "s", small_lab.dataset("e", "other"), [small_lab.image("e", "3", None)])
    small_lab.train(lab.engine, "b", "e", "s", "other")
    assert catalog_promote(lab.engine, small_lab.promotion("b", "other"), expected=None)
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    assert lab.look() == {}
    small_lab.track(lab.engine, "8", rows["side"], "b")
    assert lab.settle() == {}


def test_poses_are_asked_for_once_there_is_a_production_model(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    lab.video("sub-2_ses-1", "cam-side.mp4", shade=9)
    lab.change(inference=[{"camera": "top", "project": "tiny"}])
    lab.scan(order="name")
    assert lab.settle_and_run() == {NEW: [("sub-1_ses-1", "sub-2_ses-1")]}
    lab.promote()
    assert lab.look()[POSES] == one("sub-1_ses-1"), "no rule names the camera of the other"
    assert lab.look() == {}
    (row,) = current_files(lab.engine, "sub-1_ses-1")
    small_lab.track(lab.engine, "7", row, "a")
    lab.cursor = None
    assert lab.settle().get(POSES) is None
    # Another production model makes poses stale; it does not start anything by itself.
    small_lab.train(lab.engine, "b", "d", "r", "tiny")
    assert catalog_promote(lab.engine, small_lab.promotion("b", "tiny"), expected=small_lab.identity("a"))
    assert lab.settle().get(POSES) is None


def test_a_cancelled_run_waits_for_a_person_or_another_file(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    assert lab.settle() == lab.settle() == {}
    lab.cancel(NEW, "sub-1_ses-1", "sub-1_ses-1")
    assert lab.settle() == lab.settle() == {}
    assert lab.held("sub-1_ses-1", "videos") == ["the run that was to register its videos was cancelled"]
    lab.cursor = None
    assert lab.settle() == lab.settle() == {}
    release(lab.engine, "sub-1_ses-1", "anna")
    assert lab.look() == {NEW: one("sub-1_ses-1")}
    # One that is not there may never have been whole: it is asked for once more.
    lab.instance.delete_run(lab.launched[NEW, "sub-1_ses-1", "sub-1_ses-1"].run_id)
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    assert lab.held("sub-1_ses-1", "videos") == []
    lab.instance.delete_run(lab.launched[NEW, "sub-1_ses-1", "sub-1_ses-1"].run_id)
    assert lab.settle() == lab.settle() == {}
    assert lab.held("sub-1_ses-1", "videos") == ["the run that was to register its videos was deleted"]
    lab.video("sub-1_ses-1", shade=7)
    assert lab.settle() == {NEW: one("sub-1_ses-1")}


def test_failed_runs_block_no_queue_and_are_not_asked_for_again(lab: Watched) -> None:
    lab.scan(order="name", queued_sessions=2, sessions_per_run=1)
    for number in (1, 2, 3, 4, 5):
        lab.video(f"sub-{number}_ses-1", shade=10 * number)
    assert lab.settle() == {NEW: [*one("sub-1_ses-1"), *one("sub-2_ses-1")]}
    assert lab.look() == {}
    assert "3 waiting for their turn behind 2 under way" in lab.summary
    asked = []
    for number in (1, 3):
        for session in (f"sub-{number}_ses-1", f"sub-{number + 1}_ses-1"):
            lab.fail(NEW, session, "the disk is full")
        asked += lab.look()[NEW]
    assert asked == [*one("sub-3_ses-1"), *one("sub-4_ses-1"), *one("sub-5_ses-1")]
    assert lab.run(NEW, "sub-5_ses-1", "sub-5_ses-1")
    assert lab.settle() == lab.settle() == {}
    assert lab.held("sub-1_ses-1", "videos") == ["the run that was to register its videos failed: the disk is full"]
    lab.video("sub-2_ses-1", shade=99)
    release(lab.engine, "sub-4_ses-1", "anna")
    lab.look()
    lab.clock.now += SETTLE
    assert lab.look()[NEW] == one("sub-2_ses-1")


def test_a_run_that_dagster_starts_again_is_still_under_way(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    run = lab.launched[NEW, "sub-1_ses-1", "sub-1_ses-1"]
    lab.instance.report_run_failed(run, "its worker died")
    lab.instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    assert lab.settle() == {} and lab.held("sub-1_ses-1", "videos") == []
    assert lab.run(NEW, "sub-1_ses-1", "sub-1_ses-1")
    assert lab.settle() == {} and json.loads(lab.cursor or "")["runs"] == {}


def test_what_is_under_way_is_known_without_the_cursor(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    lab.cursor = None
    lab.video("sub-2_ses-1", shade=3)
    assert lab.settle() == {NEW: one("sub-2_ses-1")}
    assert lab.settle() == {}


def test_a_session_whose_model_is_lost_waits_for_its_release(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    lab.promote()
    lab.settle_and_run()
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    # The model is in the catalogue alone, and not in the store, whose disk is there.
    (lab.home / "store" / "models").mkdir(parents=True)
    assert not lab.run(POSES, "sub-1_ses-1", "sub-1_ses-1")
    assert lab.settle() == lab.settle() == {}
    (reason,) = lab.held("sub-1_ses-1", "poses")
    assert "failed" not in reason, "what was wrong, not that something was"
    release(lab.engine, "sub-1_ses-1", "anna")
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    assert not lab.run(POSES, "sub-1_ses-1", "sub-1_ses-1")
    assert lab.settle() == lab.settle() == {}, "released once, tried once"
    lab.video("sub-1_ses-1", shade=8)
    lab.settle_and_run()
    assert lab.look() == {POSES: one("sub-1_ses-1")}


def test_old_sessions_leave_the_partitions_and_come_back(lab: Watched) -> None:
    lab.scan(order="name", live_sessions=2)
    for number in (1, 2, 3, 4):
        lab.video(f"sub-{number}_ses-1", shade=10 * number)
    lab.settle_and_run()
    assert lab.look() == {}
    assert lab.instance.get_dynamic_partitions("sessions") == ["sub-3_ses-1", "sub-4_ses-1"]
    assert len(lab.registered()) == 4
    lab.video("sub-1_ses-1", shade=99)
    assert lab.settle_and_run() == {"session_videos": one("sub-1_ses-1")}
    assert lab.look() == {}
    assert lab.instance.get_dynamic_partitions("sessions") == ["sub-4_ses-1", "sub-1_ses-1"]
    lab.promote()
    assert lab.look() == {POSES: [("sub-4_ses-1", "sub-3_ses-1")]}
    assert lab.instance.get_dynamic_partitions("sessions") == [f"sub-{number}_ses-1" for number in (4, 1, 2, 3)]


def test_a_missing_raw_root_stops_nothing_and_is_said(lab: Watched) -> None:
    lab.change(raw_roots=["raw", "disk"])
    path = lab.video("sub-1_ses-1")
    other = lab.home / "disk/sub-2/ses-1/cam-top.mp4"
    other.parent.mkdir(parents=True)
    shutil.copy(path, other)
    assert lab.settle() == {NEW: [("sub-2_ses-1", "sub-1_ses-1")]}
    (lab.home / "disk").rename(lab.home / "away")
    lab.video("sub-3_ses-1")
    assert lab.settle() == {NEW: one("sub-3_ses-1")}
    assert lab.look() == {}
    assert f"{lab.home}/disk: the raw root cannot be read: No such file or directory; mount it" in lab.summary
    (lab.home / "away").rename(lab.home / "disk")
    assert lab.settle() == lab.settle() == {}, "what is out of sight for a moment is still under way"


@pytest.mark.parametrize("how", ["renamed", "not mounted"])
def test_sessions_go_on_by_themselves_after_a_root_was_away(lab: Watched, how: str) -> None:
    lab.video("sub-1_ses-1")
    assert lab.settle() == {NEW: one("sub-1_ses-1")}
    lab.raw.rename(lab.home / "away")
    if how == "not mounted":
        lab.raw.mkdir()
    assert not lab.run(NEW, "sub-1_ses-1", "sub-1_ses-1")
    if how == "not mounted":
        lab.raw.rmdir()
    (lab.home / "away").rename(lab.raw)
    assert lab.look() == {}, "not at once"
    assert lab.held("sub-1_ses-1", "videos") == []
    lab.clock.now += SETTLE
    assert lab.look() == {NEW: one("sub-1_ses-1")}
    assert lab.run(NEW, "sub-1_ses-1", "sub-1_ses-1")
    assert lab.settle() == {} and json.loads(lab.cursor or "")["again"] == {}


def test_poses_go_on_by_themselves_when_their_video_was_away(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    lab.promote()
    lab.settle_and_run()
    assert lab.look() == {POSES: one("sub-1_ses-1")}
    run = lab.launched[POSES, "sub-1_ses-1", "sub-1_ses-1"]
    # What a run says whose raw root went away. Its model is in the catalogue alone, so it is not executed here.
    failure = dg.Failure("1 of 1 sessions could not be worked on", metadata={OF_THE_MACHINE: '{"sub-1_ses-1": "away"}'})
    assert is_of_the_machine([step_failure(run, failure)], "sub-1_ses-1")
    assert not is_of_the_machine([step_failure(run, failure)], "sub-2_ses-1")


def step_failure(run: dg.DagsterRun, failure: dg.Failure) -> dg.DagsterEvent:
    told = UserFailureData(label="intentional-failure", description=failure.description, metadata=failure.metadata)
    return dg.DagsterEvent(
        event_type_value=dg.DagsterEventType.STEP_FAILURE.value,
        job_name=run.job_name,
        step_key="pose_estimates",
        event_specific_data=StepFailureData(None, told, error_source=ErrorSource.USER_CODE_ERROR),
    )


def test_a_run_that_nobody_starts_is_asked_for_again(lab: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.scan(sessions_per_run=1)
    for number in (1, 2, 3):
        lab.video(f"sub-{number}_ses-1", shade=10 * number)
    asked = lab.settle()[NEW]
    assert len(asked) == 3
    made, failed, refused = (lab.launched[NEW, *stretch] for stretch in asked)
    # Dagster was cut off when it had made a run; before it made the next try of one; and while it did so.
    lab.instance.delete_run(made.run_id)
    lab.instance.add_run(made.with_status(dg.DagsterRunStatus.NOT_STARTED))
    for run in (failed, refused):
        lab.instance.report_run_failed(run, "its worker died")
        lab.instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    half = lab.instance.create_run_for_job(lab.definitions.resolve_job_def("process_sessions"))
    lab.instance.add_run_tags(refused.run_id, {AUTO_RETRY_RUN_ID_TAG: half.run_id})
    assert lab.look() == {}, "Dagster has some time to start them"
    monkeypatch.setattr(retries, "_FORGOTTEN", timedelta(0))
    assert {run.run_id for run in not_started(lab.instance)} >= {made.run_id, failed.run_id, refused.run_id}
    assert lab.look() == {}
    lab.clock.now += SETTLE
    assert sorted(lab.look()[NEW]) == sorted(asked)
    assert not_started(lab.instance) == []
    assert [lab.held(session, "videos") for session, _ in asked] == [[], [], []]


def test_a_failure_that_dagster_has_not_fully_told_is_awaited(lab: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a run is tried again is written a moment after its failure, or never where the daemon was killed."""
    lab.video("sub-1_ses-1")
    (stretch,) = lab.settle()[NEW]
    run = lab.launched[NEW, *stretch]
    lab.instance.report_run_failed(run, "its worker died")
    with lab.engine.begin() as connection:
        query = f"delete from {DAGSTER_SCHEMA}.run_tags where run_id = :run and key = :tag"
        connection.execute(text(query), {"run": run.run_id, "tag": WILL_RETRY_TAG})
    assert lab.look() == {} and lab.held("sub-1_ses-1", "videos") == []
    monkeypatch.setattr(retries, "_FORGOTTEN", timedelta(0))
    assert {one.run_id for one in not_started(lab.instance)} == {run.run_id}
    assert lab.look() == {}
    lab.clock.now += SETTLE
    assert lab.look()[NEW] == [stretch]
    assert lab.held("sub-1_ses-1", "videos") == []


def test_a_run_that_ends_during_a_look_has_done_its_work(lab: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.video("sub-1_ses-1")
    (stretch,) = lab.settle()[NEW]
    real = ended_runs.wanted_labels

    def ends_meanwhile(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        monkeypatch.setattr(ended_runs, "wanted_labels", real)
        assert lab.run(NEW, *stretch)
        return found

    monkeypatch.setattr(ended_runs, "wanted_labels", ends_meanwhile)
    lab.look()
    assert [lab.held("sub-1_ses-1", stage) for stage in ("videos", "labels")] == [[], []]
    assert lab.settle() == {} and [lab.held("sub-1_ses-1", stage) for stage in ("videos", "labels")] == [[], []]


def test_a_run_that_did_not_start_in_time_blames_no_session(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    (stretch,) = lab.settle()[NEW]
    run = lab.launched[NEW, *stretch]
    lab.instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: "0"})
    why = JobFailureData(error=None, failure_reason=RunFailureReason.START_TIMEOUT)
    lab.instance.report_run_failed(run, "Run timed out due to taking longer than 600 seconds to start.", why)
    assert lab.look() == {} and lab.held("sub-1_ses-1", "videos") == []
    lab.clock.now += SETTLE
    assert lab.look()[NEW] == [stretch]


def test_a_run_that_a_person_asked_for_is_set_going(lab: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster was cut off when it had made it; its own retries take over when it is told that it failed."""
    monkeypatch.setattr(retries, "_FORGOTTEN", timedelta(0))
    job = lab.definitions.resolve_job_def("process_sessions")
    made = lab.instance.create_run_for_job(job)
    taken_back = lab.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    lab.instance.report_run_failed(taken_back, "its worker died")
    lab.instance.add_run_tags(taken_back.run_id, {WILL_RETRY_TAG: "false"})
    for_good = lab.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={MAX_RETRIES_TAG: "0"})
    lab.instance.report_run_failed(for_good, "no device")
    assert {run.run_id for run in not_started(lab.instance)} == {made.run_id, taken_back.run_id}
    with dg.build_sensor_context(instance=lab.instance) as context:
        done = retries.start_waiting_retries.evaluate_tick(context)
    assert "2 that nobody had started are set going" in (done.skip_message or "")
    runs = [lab.instance.get_run_by_id(run.run_id) for run in (made, taken_back, for_good)]
    assert [run.is_complete_and_waiting_to_retry for run in runs if run is not None] == [True, True, False]


def test_two_sessions_with_one_key_are_said_and_the_others_go_on(lab: Watched) -> None:
    path = lab.video("sub-1_ses-1")
    twin = lab.raw / "copy/sub-1/ses-1/cam-top.mp4"
    twin.parent.mkdir(parents=True)
    shutil.copy(path, twin)
    (lab.raw / "sub-3/ses-1").mkdir(parents=True)
    for number in range(9):
        (lab.raw / f".hidden{number}.mp4").touch()
    lab.video("sub-2_ses-1")
    assert lab.settle() == {NEW: one("sub-2_ses-1")}
    assert lab.look() == {}
    assert f"sub-1_ses-1 is claimed by {twin.parent} and {path.parent}" in lab.summary
    assert "the session folder of sub-3_ses-1 holds no video" in lab.summary
    assert "and 8 more: it is hidden" in lab.summary
    shutil.rmtree(lab.raw / "copy")
    assert lab.settle() == {NEW: one("sub-1_ses-1")}


def test_many_reasons_do_not_flood_the_summary(lab: Watched) -> None:
    for number in range(50):
        (lab.raw / f"sub-{number}/ses-1").mkdir(parents=True)
    assert lab.look() == {}
    assert lab.summary.endswith("; and 45 more, which the tick's log names")
    assert len(lab.summary) < 2000


def test_a_renamed_folder(lab: Watched) -> None:
    path = lab.video("sub-1_ses-1")
    lab.promote()
    lab.settle_and_run()
    assert lab.settle_and_run()[POSES] == one("sub-1_ses-1")
    (row,) = current_files(lab.engine, "sub-1_ses-1")
    small_lab.track(lab.engine, "7", row, "a")
    # Only what the key leaves out: the session moves, and its poses with it.
    (lab.raw / "sub-1").rename(lab.raw / "sub-1_id-mouse7")
    assert lab.settle_and_run() == {"session_videos": one("sub-1_ses-1")}
    (moved,) = current_files(lab.engine, "sub-1_ses-1")
    assert moved.video_id == row.video_id and moved.path == str(lab.raw / "sub-1_id-mouse7/ses-1" / path.name)
    assert moved.id == row.id and lab.look() == {}
    # To and fro: each move is registered, and nothing is tracked again.
    for old, new in (("sub-1_id-mouse7", "sub-1"), ("sub-1", "sub-1_id-mouse7")) * 2:
        (lab.raw / old).rename(lab.raw / new)
        assert lab.settle_and_run() == {"session_videos": one("sub-1_ses-1")}
        assert lab.look() == {}
    # The name itself: a new session; the catalogue keeps the old one.
    (lab.raw / "sub-1_id-mouse7").rename(lab.raw / "sub-2")
    assert lab.settle_and_run() == {NEW: one("sub-2_ses-1")}
    (renamed,) = current_files(lab.engine, "sub-2_ses-1")
    assert renamed.video_id == row.video_id and untracked_files(lab.engine) == [], "it keeps its poses"
    assert lab.settle() == {}
    assert current_files(lab.engine, "sub-1_ses-1") == []
    assert lab.registered() == ["sub-1_ses-1", "sub-2_ses-1"]


def test_a_removed_session_is_left_in_peace(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    lab.video("sub-2_ses-1")
    lab.settle_and_run()
    lab.settle_and_run()
    shutil.rmtree(lab.raw / "sub-1")
    assert lab.settle() == lab.settle() == {}
    assert lab.summary == "1 session on disk, 0 new or changed ones still settling"
    assert lab.registered() == ["sub-1_ses-1", "sub-2_ses-1"]


def test_an_invalid_lab_yaml_is_named(lab: Watched) -> None:
    lab.change(settle_secs=3)
    with pytest.raises(PlatformError, match=r"lab\.yaml is not valid: line \d+: settle_secs is not a key of lab\.yaml"):
        lab.look()


def test_what_runs_of_others_use_stays_a_partition(lab: Watched) -> None:
    lab.scan(order="name", live_sessions=1)
    for number in range(1, 8):
        lab.video(f"sub-{number}_ses-1", shade=10 * number)
    lab.settle_and_run()
    job = lab.definitions.resolve_job_def("estimate_poses")

    def started(status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
        named = {f"dagster/{name}": key for name, key in tags.items()}
        return lab.instance.create_run_for_job(job, status=status, tags=named)

    of_range = {"asset_partition_range_start": "sub-1_ses-1", "asset_partition_range_end": "sub-3_ses-1"}
    runs = [
        started(dg.DagsterRunStatus.NOT_STARTED, **of_range),
        started(dg.DagsterRunStatus.STARTING, partition="sub-5_ses-1"),
        # The daemon is about to start it again.
        started(dg.DagsterRunStatus.FAILURE, partition="sub-6_ses-1", will_retry="true"),
    ]
    assert lab.look() == {}
    kept = ["sub-1_ses-1", "sub-2_ses-1", "sub-3_ses-1", "sub-5_ses-1", "sub-6_ses-1"]
    assert lab.instance.get_dynamic_partitions("sessions") == kept

    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id="b",
        asset_graph=lab.definitions.resolve_asset_graph(),
        partition_names=["sub-2_ses-1"],
        asset_selection=[dg.AssetKey("pose_estimates")],
        backfill_timestamp=lab.clock.now,
        tags={},
        dynamic_partitions_store=lab.instance,
        all_partitions=False,
        title=None,
        description=None,
        run_config=None,
    )
    lab.instance.add_backfill(backfill)
    for run in runs:
        lab.instance.delete_run(run.run_id)
    assert lab.look() == {}
    assert lab.instance.get_dynamic_partitions("sessions") == ["sub-2_ses-1"]


def test_a_partition_without_a_session_is_taken_off_with_a_word(lab: Watched) -> None:
    lab.video("sub-1_ses-1")
    lab.settle_and_run()
    lab.instance.add_dynamic_partitions("sessions", ["sub-099_ses-001", "sub-98_ses-1"])
    job = lab.definitions.resolve_job_def("process_sessions")
    run = lab.instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": "sub-98_ses-1"}
    )
    lab.look()
    assert "sub-099_ses-001" in lab.instance.get_dynamic_partitions("sessions"), "a person may be about to use it"
    lab.look()
    assert lab.instance.get_dynamic_partitions("sessions") == ["sub-1_ses-1", "sub-98_ses-1"]
    (told,) = lab.told
    assert told.partition == "sub-099_ses-001" and "no folder below the raw roots" in str(told.description)
    assert f"dlc-platform scan {lab.home} --dry-run" in str(told.description)
    assert "there is no such session: sub-099_ses-001" in lab.summary
    # It is on a disk that is away for a while, or is being registered.
    lab.instance.delete_run(run.run_id)
    lab.change(raw_roots=["raw", "disk"])
    lab.look()
    lab.look()
    assert "sub-98_ses-1" in lab.instance.get_dynamic_partitions("sessions")
    lab.change(raw_roots=["raw"])
    lab.look()
    lab.video("sub-98_ses-1")
    lab.look()
    lab.look()
    assert "sub-98_ses-1" in lab.instance.get_dynamic_partitions("sessions")


def test_an_asset_of_the_labs_own_is_asked_for_by_its_partitions(lab: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without a look at the raw roots, which only what registers sessions takes."""
    lab.change(recipes={"quick": {"project": "tiny", "weights": "random"}})
    lab.video("sub-1_ses-1")
    lab.settle_and_run()
    lab.instance.delete_dynamic_partition("sessions", "sub-1_ses-1")
    made: list[str] = []

    @dg.asset(partitions_def=sessions)
    def own(context: dg.AssetExecutionContext) -> None:
        made.append(context.partition_key)

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["left", "right"]))
    def sides() -> None: ...

    merged = dg.Definitions.merge(build_definitions(lab.home), dg.Definitions([own, sides]))
    monkeypatch.setattr(materialize, "build_definitions", lambda home: merged)
    monkeypatch.setattr(LabResource, "scan", lambda self: pytest.fail("the raw roots were looked through"))
    said: list[str] = []
    assert materialize.materialize(lab.home, "own", [], said.append), said
    assert made == ["sub-1_ses-1"] and lab.instance.get_dynamic_partitions("sessions") == made
    assert materialize.materialize(lab.home, "own", [], said.append) and "own: nothing is missing" in said
    assert materialize.materialize(lab.home, "own", ["sub-1_ses-1"], said.append) and len(made) == 2
    with pytest.raises(PlatformError, match="partitions of sides are neither sessions nor recipes nor days"):
        materialize.materialize(lab.home, "sides", [], said.append)
    with pytest.raises(PlatformError, match="the missing partitions of own are not known"):
        missing(LabResource(home=str(lab.home)), "own")
    # For want of a model nobody is put into quarantine: there is no run.
    assert materialize.materialize(lab.home, "pose_estimates", [], said.append)
    told = "\n".join(said)
    assert "left out: 1 session (sub-1_ses-1), because the project " in told and "has no production model yet" in told
    assert "pose_estimates: nothing else can be made now" in told
    assert faults_of(lab.engine, "sub-1_ses-1", "poses") == []
    # Neither does a promotion look, nor poses of sessions that are registered; of those each file is asked for.
    lab.promote()
    assert missing(LabResource(home=str(lab.home)), "pose_estimates") == ["sub-1_ses-1"]
    assert not materialize.promote(lab.home, "b" * 64, "why not", "ada", said.append)
    (lab.raw / "sub-1/ses-1/cam-top.mp4").unlink()
    assert missing(LabResource(home=str(lab.home)), "pose_estimates") == []


def test_what_waits_names_the_run_under_way_for_it(lab: Watched) -> None:
    """Dagster's tables are read by SQL, so this holds them against what Dagster itself writes there."""

    def said() -> set[str]:
        found = waiting(lab.engine, load_lab(lab.home))
        assert {one.session for one in found} == {"sub-1_ses-1", "sub-2_ses-1"}
        return {re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "TIME", one.reason) for one in found}

    def again(status: dg.DagsterRunStatus, **tags: str) -> None:
        run = lab.launched[POSES, *stretch]
        if lab.instance.has_run(run.run_id):
            lab.instance.delete_run(run.run_id)
        lab.instance.add_run(run.with_status(status).with_tags({**run.tags, **tags}))

    for number in (1, 2):
        lab.video(f"sub-{number}_ses-1", shade=number)
    ((asked, ((first, last),)),) = lab.settle().items()
    assert said() == {"its run is starting, since TIME"}
    lab.run(asked, first, last)
    lab.promote()
    (stretch,) = lab.look()[POSES]
    lab.instance.delete_run(lab.launched[POSES, *stretch].run_id)
    assert said() == {"it has no poses yet, and is tracked when its turn comes"}
    assert dg.DagsterRunStatus.QUEUED.value == "QUEUED"  # A run that is written down so needs more than there is here.
    again(dg.DagsterRunStatus.NOT_STARTED)
    assert said() == {"its run is queued, since TIME"}
    until = datetime.now(UTC) + timedelta(minutes=5)
    again(dg.DagsterRunStatus.NOT_STARTED, **{WAITS_TAG: WAITS, UNTIL_TAG: until.isoformat(timespec="seconds")})
    assert said() == {"its run failed, and is tried again at TIME"}
    again(dg.DagsterRunStatus.STARTING, **{DEVICE_TAG: "none yet"})
    assert said() == {"its run waits for a device, since TIME"}
    again(dg.DagsterRunStatus.STARTING)
    run_id = lab.launched[POSES, *stretch].run_id
    lab.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", "process_sessions"), run_id)
    assert said() == {"its run is at work, since TIME"}
    again(dg.DagsterRunStatus.FAILURE, **{WILL_RETRY_TAG: "true"})
    assert said() == {"its run failed, and is tried again in a moment"}
    assert daemon_lives(lab.engine) is False
    heartbeat = DaemonHeartbeat(datetime.now(UTC).timestamp(), "SENSOR", "one", [])
    lab.instance.add_daemon_heartbeat(heartbeat)
    assert daemon_lives(lab.engine) is True


def test_changes_that_a_look_found_are_told_once(lab: Watched) -> None:
    lab.video("sub-1_ses-1", "m_cam-top-left.mp4")
    lab.settle_and_run()
    with lab.engine.begin() as connection:
        connection.execute(text("insert into dlc.camera (name) values ('old')"))
        connection.execute(text("update dlc.recording set camera = 'old'"))
        connection.execute(text("update dlc.scanned_root set layout = 'of an older version'"))
    said = "1 recording of the camera old is of the camera top-left now, by their names"
    lab.settle()
    keep_news(lab.instance, [f"{said}; their poses stay"])
    ((_, line),) = kept_news(lab.instance)
    assert line == f"{said}; their poses stay"
    (found,) = [finding for finding in inspect(lab.home) if finding.what == "looks"]
    assert found.found.endswith(said) and found.warning and found.remedy == "Their poses stay"
    assert kept_news(lab.instance, datetime.now(UTC) + timedelta(days=8)) == []
