"""What people are told and shown, on a real Dagster instance and a real webhook; the daemon's part is done by hand."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.storage.tags import MAX_RETRIES_TAG
from sqlalchemy import Engine, text

from dlc_platform.catalog.quarantine import Fault, judge, release
from dlc_platform.catalog.sessions import current_files, register_session
from dlc_platform.orchestration import alerts
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.instance import open_instance, prepare
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.reports.daily import yesterday
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform_tests import receivers
from dlc_platform_tests.catalog.conftest import lab as catalogue
from dlc_platform_tests.catalog.small_lab import identity, recording, session, track, video
from dlc_platform_tests.receivers import Webhook

ONE, TWO = "sub-1_ses-1", "sub-2_ses-1"
ZONE = "Europe/Berlin"
__all__ = ["catalogue"]


@dg.op
def breaks() -> None:
    raise dg.Failure("the disk is full: postgresql://lab:verysecret@db/lab")


@dg.job
def doomed() -> None:
    breaks()


@dg.op(config_schema={str: str})
def fails_for_sessions(context: dg.OpExecutionContext) -> None:
    # As `for_each_session` says it.
    raise dg.Failure("sessions failed", metadata=context.op_config, allow_retries=False)


@dg.job
def doomed_sessions() -> None:
    fails_for_sessions()


class Told:
    """A lab with a webhook, and the daemon's part of the work."""

    def __init__(self, home: Path, engine: Engine, instance: dg.DagsterInstance, hook: Webhook):
        self.home = home
        self.engine = engine
        self.instance = instance
        self.hook = hook
        self.definitions = build_definitions(home)
        self.cursors: dict[str, str | None] = {}
        #: What the UI shows of the last tick.
        self.said = ""

    def look(self, sensor: str) -> dict[str, Any]:
        """One tick: the evaluations that it gives the UI, by check."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(sensor),
            definitions=self.definitions,
            resources={"lab": LabResource(home=str(self.home))},
        ) as context:
            done = self.definitions.resolve_sensor_def(sensor).evaluate_tick(context)
        self.cursors[sensor], self.said = done.cursor, done.skip_message or ""
        for event in done.asset_events:
            self.instance.report_runless_asset_event(event)
        return {event.check_name: event for event in done.asset_events if isinstance(event, dg.AssetCheckEvaluation)}

    def fail(self, **tags: str) -> str:
        """A run that fails by its own fault."""
        return doomed.execute_in_process(instance=self.instance, tags=tags, raise_on_error=False).run_id

    def fail_for(self, **sessions: str) -> str:
        """A run that failed for these sessions, with what is said of each."""
        config = {"ops": {"fails_for_sessions": {"config": sessions}}}
        return doomed_sessions.execute_in_process(
            config, instance=self.instance, tags={MAX_RETRIES_TAG: "0"}, raise_on_error=False
        ).run_id

    def notified(self) -> list[dict[str, Any]]:
        """What the webhook is told by the next tick."""
        before = len(self.hook.got)
        self.look("deliver_notifications")
        return [one for message in self.hook.got[before:] for one in message["notifications"]]


@pytest.fixture
def told(tmp_path: Path, catalogue: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    home = tmp_path / "lab"
    (tmp_path / "raw").mkdir()
    home.mkdir()
    with receivers.webhook() as hook:
        settings = {
            "raw_roots": [str(tmp_path / "raw")],
            "projects": {"maze": {"path": "maze"}},
            "inference": [{"camera": "top", "project": "maze"}],
            "time_zone": ZONE,
            "freshness": {"poses_within_hours": 24, "fail_hours": 72},
            "notify": {"webhooks": [{"name": "room", "url_variable": "LAB_HOOK"}], "digest_minutes": 0},
        }
        (home / "lab.yaml").write_text(yaml.safe_dump(settings))
        monkeypatch.setenv("LAB_HOOK", hook.url)
        monkeypatch.setenv(POSTGRES_VARIABLE, catalogue.url.render_as_string(hide_password=False))
        with catalogue.begin() as connection:
            # Its products are in no store, and a model whose evaluation cannot be read holds up its sessions. So does a
            # file that cannot be read.
            for statement in (
                "delete from dlc.recording_file where problem is not null",
                "update dlc.promotion set evaluation_id = null",
                "delete from dlc.evaluation_error",
                "delete from dlc.evaluation",
            ):
                connection.execute(text(statement))
        with open_instance(prepare(home)) as instance:
            yield Told(home, catalogue, instance, hook)


def arrive_earlier(engine: Engine, hours: float) -> None:
    with engine.begin() as connection:
        for table, column in (("recording_file", "registered_at"), ("promotion", "promoted_at")):
            statement = f"update dlc.{table} set {column} = {column} - cast(:age as interval)"
            connection.execute(text(statement), {"age": f"{hours} hours"})


def test_a_check_is_shown_when_its_outcome_changes(told: Told) -> None:
    first = told.look("watch_sessions")
    assert {name: event.passed for name, event in first.items()} == {
        "no_session_in_quarantine": True,
        "no_session_held_up": True,
        "poses_follow_recordings": True,
    }
    assert told.look("watch_sessions") == {}
    assert told.said == "As before: no session is late, held up or in quarantine"

    judge(told.engine, ONE, "videos", [Fault("too dark", "Switch the lamp on", identity("a"), "/raw/top.mp4")])
    shown = told.look("watch_sessions")
    assert shown["no_session_held_up"].metadata["held_up"].records[0].data["waits_for"] == "videos"
    assert f"dlc-platform sessions {told.home} --waiting" in str(shown["no_session_held_up"].description)
    assert told.said.startswith("New: Sessions are in quarantine: 1 at the stage videos. ")
    event = shown["no_session_in_quarantine"]
    assert (event.check_name, event.passed, event.severity) == (
        "no_session_in_quarantine",
        False,
        dg.AssetCheckSeverity.WARN,
    )
    assert "1 at the stage videos" in (event.description or "")
    (row,) = event.metadata["sessions"].records
    assert (row.data["session"], row.data["reason"]) == (ONE, "too dark")
    assert told.look("watch_sessions") == {}

    # Dagster's storage has it: this is what the UI reads.
    record = told.instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [dg.AssetCheckKey(dg.AssetKey("session_videos"), "no_session_in_quarantine")]
    )
    (execution,) = record.values()
    assert execution.status.value == "FAILED"

    release(told.engine, ONE, "ada")
    assert all(event.passed for event in told.look("watch_sessions").values())


def test_a_check_without_outcome_is_shown_again(told: Told) -> None:
    told.look("watch_sessions")
    told.instance.add_dynamic_partitions("sessions", [ONE])
    job = told.definitions.resolve_job_def("process_sessions")
    # There is no such session on the disk.
    done = job.execute_in_process(
        instance=told.instance,
        asset_selection=[dg.AssetKey("session_videos")],
        partition_key=ONE,
        raise_on_error=False,
        tags={MAX_RETRIES_TAG: "0"},
    )
    assert not done.success
    assert told.look("watch_sessions")["no_session_in_quarantine"].passed
    assert told.look("watch_sessions") == {}


def test_a_session_whose_poses_are_late_is_named_and_told_once(told: Told) -> None:
    told.look("watch_sessions")
    arrive_earlier(told.engine, 25)
    (event,) = told.look("watch_sessions").values()
    assert (event.check_name, event.passed) == ("poses_follow_recordings", False)
    assert TWO in (event.description or "")
    assert event.metadata["late_sessions"].value == 1
    (one,) = told.notified()
    assert (one["kind"], one["title"]) == ("stale", f"{TWO} has waited for poses for more than 24 hours")
    told.look("watch_sessions")
    assert told.notified() == []


def test_a_wait_is_told_once_though_one_of_its_files_was_tracked(told: Told) -> None:
    side = (recording(TWO, "side", "8"), video("8"))
    register_session(told.engine, session(TWO), [(recording(TWO, "top", "2"), video("2")), side])
    arrive_earlier(told.engine, 25)
    told.look("watch_sessions")
    assert [one["kind"] for one in told.notified()] == ["stale"]
    track(told.engine, "9", max(current_files(told.engine, TWO), key=lambda file: file.id), "b")
    told.look("watch_sessions")
    assert told.notified() == []
    # Another file arrives; it is told of when it is late itself.
    files = [(recording(TWO, "top", "2"), None), (recording(TWO, "side", "8"), None)]
    register_session(told.engine, session(TWO), [*files, (recording(TWO, "back", "9"), video("9"))])
    told.look("watch_sessions")
    assert told.notified() == []
    arrive_earlier(told.engine, 25)
    told.look("watch_sessions")
    assert [one["kind"] for one in told.notified()] == ["stale"]


def test_all_late_sessions_are_told_in_the_end(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_LATE", 3)
    for number in range(4):
        key = f"sub-9_ses-{number}"
        register_session(told.engine, session(key), [(recording(key, "top", "2"), video("2"))])
    arrive_earlier(told.engine, 25)
    looks = []
    for _ in range(3):
        told.look("watch_sessions")
        looks.append({one["title"].split()[0] for one in told.notified()})
    assert [len(look) for look in looks] == [3, 2, 0]
    assert set.union(*looks) == {TWO, *(f"sub-9_ses-{number}" for number in range(4))}


def test_both_checks_can_be_run_by_hand(told: Told) -> None:
    arrive_earlier(told.engine, 25)
    names = ("no_session_in_quarantine", "poses_follow_recordings")
    job = told.definitions.resolve_implicit_global_asset_job_def()
    keys = [key for key in told.definitions.resolve_asset_graph().asset_check_keys if key.name in names]
    selected = job.get_subset(asset_check_selection=set(keys), asset_selection=set())
    done = selected.execute_in_process(
        instance=told.instance, resources={"lab": LabResource(home=str(told.home))}, raise_on_error=False
    )
    found = {event.check_name: event.passed for event in done.get_asset_check_evaluations()}
    assert found == {"no_session_in_quarantine": True, "poses_follow_recordings": False}


def test_a_run_that_failed_is_told_once_with_its_reason(told: Told) -> None:
    run_id = told.fail(**{MAX_RETRIES_TAG: "0"})
    (one,) = told.notified()
    assert (one["kind"], one["subject"], one["title"]) == ("run_failure", run_id, "A run of doomed failed")
    assert one["body"] == f"the disk is full: postgresql://db/lab (run {run_id})"
    assert told.notified() == []
    # A cursor that is lost costs a second look, not a second message.
    told.cursors.clear()
    assert told.notified() == []


def test_a_run_that_will_be_retried_is_no_failure_yet(told: Told) -> None:
    run_id = told.fail(**{MAX_RETRIES_TAG: "1", "dagster/retry_on_asset_or_op_failure": "true"})
    run = told.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.tags["dagster/will_retry"] == "true"
    assert told.notified() == []
    # The daemon found that it will not be after all, as of a backfill that was cancelled.
    told.instance.add_run_tags(run_id, {"dagster/will_retry": "false"})
    (one,) = told.notified()
    assert one["subject"] == run_id


def test_a_run_of_which_the_quarantine_says_all_is_told_by_that(told: Told) -> None:
    run_id = told.fail_for(**{ONE: "it failed. Look."})
    judge(told.engine, ONE, "poses", [Fault("it failed", "Look", identity("a"))], run_id)
    (one,) = told.notified()
    assert (one["kind"], one["title"]) == ("quarantine", f"{ONE} is in quarantine (poses)")
    # Held since before, on the same evidence.
    told.fail_for(**{ONE: "it failed. Look."})
    assert told.notified() == []
    # A person let it out, and it fails again: no entry says so.
    release(told.engine, ONE, "ada")
    run_id = told.fail_for(**{ONE: "it failed. Look."})
    judge(told.engine, ONE, "poses", [Fault("it failed", "Look", identity("a"))], run_id)
    assert run_id in [one["subject"] for one in told.notified()]


@pytest.mark.parametrize("sessions", [{}, {ONE: "it failed. Look."}, {ONE: "dark. Look.", TWO: "it failed. Look."}])
def test_a_failure_outside_the_quarantine_is_told_beside_it(told: Told, sessions: dict[str, str]) -> None:
    run_id = told.fail_for(**sessions) if sessions else told.fail(**{MAX_RETRIES_TAG: "0"})
    judge(told.engine, ONE, "videos", [Fault("dark", "Look", identity("a"))], run_id)
    assert sorted(one["kind"] for one in told.notified()) == ["quarantine", "run_failure"]
    assert told.notified() == []


def test_a_channel_without_quarantine_news_is_told_of_the_run(told: Told) -> None:
    settings = yaml.safe_load((told.home / "lab.yaml").read_text())
    settings["notify"]["webhooks"].append({"name": "runs", "url_variable": "LAB_HOOK", "send": ["run_failure"]})
    (told.home / "lab.yaml").write_text(yaml.safe_dump(settings))
    run_id = told.fail_for(**{ONE: "it failed. Look."})
    judge(told.engine, ONE, "poses", [Fault("it failed", "Look", identity("a"))], run_id)
    told.look("deliver_notifications")
    assert [message["counts"] for message in told.hook.got] == [{"quarantine": 1}, {"run_failure": 1}]


def test_many_failures_at_once_are_one_message(told: Told) -> None:
    runs = {told.fail(**{MAX_RETRIES_TAG: "0"}) for _ in range(12)}
    told.look("deliver_notifications")
    (message,) = told.hook.got
    assert message["counts"] == {"run_failure": 12}
    assert {one["subject"] for one in message["notifications"]} < runs


def test_more_failures_than_one_look_takes_are_told_by_the_next(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_RUNS", 2)
    runs = {told.fail(**{MAX_RETRIES_TAG: "0"}) for _ in range(5)}
    looks = [{one["subject"] for one in told.notified()} for _ in range(4)]
    assert [len(look) for look in looks] == [2, 2, 1, 0]
    assert set.union(*looks) == runs


def test_a_full_look_does_not_skip_a_run_that_is_too_young(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_RUNS", 2)
    # Whether they are retried is not said yet.
    young = [told.fail() for _ in range(2)]
    with told.engine.begin() as connection:
        untag = (
            "update dagster.runs set run_body = replace(run_body, 'dagster/will_retry', 'x') where run_id = any(:runs)"
        )
        connection.execute(text(untag), {"runs": young})
    later = [told.fail(**{MAX_RETRIES_TAG: "0"}) for _ in range(2)]
    assert told.notified() == []
    # As if five minutes had gone by.
    with told.engine.begin() as connection:
        earlier = "end_time = end_time - 300, update_timestamp = update_timestamp - interval '5 minutes'"
        connection.execute(text(f"update dagster.runs set {earlier}"))
    cursor = datetime.fromisoformat(str(told.cursors["deliver_notifications"]))
    told.cursors["deliver_notifications"] = (cursor - timedelta(minutes=5)).isoformat()
    looks = [told.notified() for _ in range(3)]
    assert sorted(one["subject"] for look in looks for one in look) == sorted(young + later)


def test_stale_poses_are_told_once_for_each_time(told: Told) -> None:
    def change(state: FreshnessState, at: float) -> None:
        told.instance._report_runless_asset_event(
            FreshnessStateChange(
                key=dg.AssetKey("pose_estimates"),
                previous_state=FreshnessState.PASS,
                new_state=state,
                state_change_timestamp=at,
            )
        )

    change(FreshnessState.FAIL, 1_800_000_000.0)
    for _ in range(2):
        told.look("watch_sessions")
    (one,) = told.notified()
    assert one["title"] == "No poses were estimated for more than 72 hours"
    change(FreshnessState.PASS, 1_800_000_100.0)
    told.look("watch_sessions")
    assert told.notified() == []


def test_the_report_of_yesterday_is_made_shown_and_told_once(told: Told) -> None:
    day = yesterday(ZONE)
    with told.engine.begin() as connection:
        connection.execute(text("update dlc.session set registered_at = registered_at - interval '24 hours'"))
        connection.execute(text("update dlc.lab_beginning set began_at = began_at - interval '5 days'"))
    definitions = build_definitions(told.home)
    job = definitions.resolve_job_def("report_day")
    days = definitions.get_assets_def("daily_report").partitions_def
    assert days is not None
    assert days.get_partition_keys() == [(day - timedelta(days=back)).isoformat() for back in range(4, -1, -1)]

    def report(key: str) -> dict[str, Any]:
        done = job.execute_in_process(
            instance=told.instance, partition_key=key, resources={"lab": LabResource(home=str(told.home))}
        )
        (event,) = done.asset_materializations_for_node("daily_report")
        return {name: value.value for name, value in event.metadata.items()}

    first = report(day.isoformat())
    assert first["sessions_arrived"] == 2
    assert "2 sessions arrived" in first["summary"]
    assert len(first["picture"]) < 150_000
    assert len(first["days"].records) == 30
    assert report(day.isoformat()) == first
    (one,) = told.notified()
    assert (one["kind"], one["subject"]) == ("daily_report", day.isoformat())
    assert "2 sessions arrived" in one["body"]
    # Nobody wants the reports of before in the mail.
    assert report((day - timedelta(days=3)).isoformat())["sessions_arrived"] == 0
    assert told.notified() == []


def test_without_channels_nothing_is_sent_and_checks_are_shown(told: Told) -> None:
    settings = yaml.safe_load((told.home / "lab.yaml").read_text())
    del settings["notify"]
    settings["freshness"] = {"poses_within_hours": None}
    (told.home / "lab.yaml").write_text(yaml.safe_dump(settings))
    arrive_earlier(told.engine, 25)
    told.fail(**{MAX_RETRIES_TAG: "0"})
    assert told.look("watch_sessions")["poses_follow_recordings"].passed
    assert told.notified() == []
    with told.engine.connect() as connection:
        assert connection.scalar(text("select count(*) from dlc.notification")) == 0
