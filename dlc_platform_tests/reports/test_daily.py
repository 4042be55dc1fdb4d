"""The daily report, on days that are written into the small lab by hand."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog.quarantine import Fault, judge, release
from dlc_platform.catalog.sessions import current_files, register_session
from dlc_platform.catalog.videos import repeated_videos
from dlc_platform.catalog.wanted import late_sessions
from dlc_platform.errors import PlatformError
from dlc_platform.plots.canvas import LIMIT_BYTES
from dlc_platform.plots.days import days_plot
from dlc_platform.reports.daily import DailyReport, daily_report, first_day, require_reported, yesterday
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.catalog.small_lab import identity, recording, session, track, video

ONE, TWO, THREE = "sub-1_ses-1", "sub-2_ses-1", "sub-3_ses-1"
DAY = date(2026, 3, 4)
EMPTY = date(2025, 7, 1)


def write(engine: Engine, *statements: str, **values: Any) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


@pytest.fixture
def days(lab: Engine) -> Engine:
    """Session 1 was recorded and tracked by two models on the 4th of March 2026; session 2 came a day later."""
    write(
        lab,
        "update dlc.session set registered_at = '2026-03-04 10:00+00'",
        "update dlc.session set registered_at = '2026-03-05 10:00+00' where key = 'sub-2_ses-1'",
        "update dlc.video set registered_at = '2026-03-04 10:00+00'",
        "update dlc.video set registered_at = '2026-03-05 10:00+00', duration_s = 7200 where id = repeat('2', 64)",
        "update dlc.recording_file set registered_at = '2026-03-04 10:00+00'",
        "update dlc.pose_estimate set estimated_at = '2026-03-04 11:00+00', seconds = 1800",
        "update dlc.pose_estimate set device = 'NVIDIA H100' where id = repeat('9', 64)",
        "update dlc.recording_poses set materialized_at = '2026-03-04 11:00+00'",
        "update dlc.training_run set trained_at = '2026-03-04 09:00+00', seconds = 3600",
        "update dlc.promotion set promoted_at = '2026-03-01 09:00+00'",
    )
    return lab


def report(engine: Engine, day: date, zone: str = "UTC") -> DailyReport:
    return daily_report(engine, day, zone, "stop")


def test_a_day_is_counted(days: Engine) -> None:
    found = report(days, DAY)
    assert found.sessions_arrived == 1
    assert found.video_hours_arrived == pytest.approx(10.01 / 3600)
    assert found.sessions_estimated == 1
    # Each of the two models went through all of it, one on a GPU and one on a CPU.
    assert found.video_hours_estimated == pytest.approx(2 * 10.01 / 3600)
    assert (found.inference_gpu_hours, found.inference_cpu_hours) == (0.5, 0.5)
    assert (found.models_trained, found.training_gpu_hours, found.training_cpu_hours) == (2, 0, 2)
    assert (found.sessions_waiting, found.sessions_in_quarantine) == (0, 0)
    write(days, """update dlc.environment set details = details || '{"gpu": "none"}'""")
    assert report(days, DAY).training_cpu_hours == 2
    write(days, """update dlc.environment set details = details || '{"gpu": "NVIDIA H100"}'""")
    assert report(days, DAY).training_gpu_hours == 2
    # What ran the network knows better than its machine.
    assert report(days, DAY).inference_cpu_hours == 0.5
    (top,) = found.cameras.to_dict("records")
    assert (top["camera"], top["project"], top["files_arrived"]) == ("top", "maze", 1)
    assert (top["frames_estimated"], top["sessions_estimated"], top["inference_gpu_hours"]) == (600, 1, 0.5)
    assert len(found.days) == 30
    assert list(found.days["sessions_arrived"][-2:]) == [0, 1]

    after = report(days, DAY + timedelta(days=1))
    assert (after.sessions_arrived, after.sessions_estimated, after.sessions_waiting) == (1, 0, 1)
    assert after.video_hours_arrived == pytest.approx(2)
    assert list(after.days["sessions_arrived"][-3:]) == [0, 1, 1]


def test_a_copied_video_counts_once(days: Engine) -> None:
    """Thirteen copies of the video of session 1 arrive on the same day, and get its poses."""
    before = report(days, DAY)
    for number in range(10, 23):
        key = f"sub-{number}_ses-1"
        register_session(days, session(key), [(recording(key, "side", "1", camera="side"), video("1"))])
        (copy,) = current_files(days, key)
        track(days, "9", copy, "b")
    write(
        days,
        "update dlc.session set registered_at = '2026-03-04 12:00+00' where key ~ '^sub-(1|2)[0-9]'",
        "update dlc.recording set registered_at = '2026-03-04 12:00+00' where session_key ~ '^sub-(1|2)[0-9]'",
        "update dlc.video set registered_at = '2026-03-04 10:00+00' where id = repeat('1', 64)",
        "update dlc.recording_poses set materialized_at = '2026-03-04 12:00+00'",
    )
    found = report(days, DAY)
    assert (found.sessions_arrived, found.sessions_estimated, found.copies_arrived) == (14, 14, 13)
    assert found.video_hours_arrived == before.video_hours_arrived
    assert found.video_hours_estimated == before.video_hours_estimated
    assert "14 sessions arrived (10 s of video, without 13 files that are copies)" in str(found)
    cameras = found.cameras.set_index("camera")
    assert cameras["sessions_estimated"].to_dict() == {"side": 13, "top": 1}
    assert cameras["files_arrived"].to_dict() == {"side": 0, "top": 1}
    assert cameras["copies_arrived"].to_dict() == {"side": 13, "top": 0}
    assert cameras["video_hours_arrived"].sum() == pytest.approx(found.video_hours_arrived)
    assert cameras["video_hours_estimated"].sum() == pytest.approx(found.video_hours_estimated)
    repeated = repeated_videos(days)
    assert list(repeated["files"]) == [14] and len(repeated_videos(days, "sub-12_ses-1")) == 1


def test_a_day_without_anything(days: Engine) -> None:
    found = report(days, EMPTY)
    assert not any(value for name, value in found.figures().items() if name not in ("day", "time_zone"))
    assert found.cameras.empty
    assert "0 sessions arrived" in str(found)
    assert 0 < len(days_plot(found.days)) <= LIMIT_BYTES


def test_a_day_that_is_over_keeps_its_figures(days: Engine) -> None:
    before = [report(days, day) for day in (DAY, DAY + timedelta(days=1))]
    _, top = current_files(days, ONE)
    (waiting,) = current_files(days, TWO)
    # Poses that come later, the same ones put in force again, a new session, a replaced file, a quarantine.
    track(days, "9", top, "b")
    track(days, "a", waiting, "b")
    register_session(days, session(THREE), [(recording(THREE, "top", "3"), video("3"))])
    register_session(days, session(TWO), [(recording(TWO, "top", "4", mtime_ns=2), video("4"))])
    judge(days, ONE, "videos", [Fault("too dark", "light", identity("a"))])
    for old in before:
        new = report(days, old.day)
        assert new.figures() == old.figures()
        assert new.cameras.equals(old.cameras)
        assert new.days.equals(old.days)


def test_midnight_is_that_of_the_lab(days: Engine) -> None:
    write(days, "update dlc.session set registered_at = '2026-03-04 23:30+00' where key = 'sub-1_ses-1'")
    assert report(days, DAY).sessions_arrived == 1
    assert report(days, DAY, "Europe/Berlin").sessions_arrived == 0
    assert report(days, DAY + timedelta(days=1), "Europe/Berlin").sessions_arrived == 2
    # The clocks go forward on the 29th of March: that day has 23 hours, and the one after begins at 22:00 UTC.
    write(days, "update dlc.session set registered_at = '2026-03-29 21:59+00' where key = 'sub-1_ses-1'")
    write(days, "update dlc.session set registered_at = '2026-03-29 22:00+00' where key = 'sub-2_ses-1'")
    spring = report(days, date(2026, 3, 30), "Europe/Berlin")
    assert list(spring.days["sessions_arrived"][-2:]) == [1, 1]
    assert [report(days, date(2026, 3, day), "Europe/Berlin").sessions_arrived for day in (28, 29, 30, 31)] == [
        0,
        1,
        1,
        0,
    ]


def test_what_is_in_quarantine_does_not_wait(days: Engine) -> None:
    (waiting,) = current_files(days, TWO)
    judge(days, TWO, "videos", [Fault("too dark", "light", identity("a"), waiting.path)])
    today = datetime.now(UTC).date()
    now = report(days, today)
    assert (now.sessions_waiting, now.sessions_quarantined, now.sessions_in_quarantine) == (0, 1, 1)
    release(days, TWO, "ada")
    now = report(days, today)
    assert (now.sessions_waiting, now.sessions_quarantined, now.sessions_in_quarantine) == (1, 1, 0)
    # Bad poses hold up nothing that is estimated.
    judge(days, TWO, "quality", [Fault("jumps", "look", identity("a"))])
    assert report(days, today).sessions_waiting == 1


def late(engine: Engine, hours: float, damaged_videos: str = "stop") -> list[str]:
    before = datetime.now(UTC) - timedelta(hours=hours)
    return list(late_sessions(engine, before, damaged_videos, 100)["session"])


def test_late_is_what_could_have_been_tracked_for_so_long(days: Engine) -> None:
    assert late(days, 1) == [TWO]
    found = late_sessions(days, datetime.now(UTC), "stop", 100).iloc[0]
    assert (found["project"], found["files"], found["sessions"]) == ("maze", 1, 1)

    # Only when a model came, or a person released it, could it be tracked.
    write(days, "update dlc.promotion set promoted_at = now() - interval '2 hours'")
    assert (late(days, 1), late(days, 3)) == ([TWO], [])
    judge(days, TWO, "poses", [Fault("failed", "try again", identity("a"))])
    assert late(days, 1) == []
    release(days, TWO, "ada")
    assert (late(days, 1), late(days, 0)) == ([], [TWO])
    write(days, "update dlc.promotion set project = 'another'")
    assert late(days, 0) == []


def test_a_damaged_video_is_late_where_it_may_be_tracked(days: Engine) -> None:
    write(days, "update dlc.video set damage = 'truncated' where id = repeat('2', 64)")
    assert (late(days, 1, "stop"), late(days, 1, "track")) == ([], [TWO])


def test_the_late_are_counted_beyond_those_that_are_listed(days: Engine) -> None:
    for number in range(5):
        key = f"sub-9_ses-{number}"
        register_session(days, session(key), [(recording(key, "top", "2"), video("2"))])
    found = late_sessions(days, datetime.now(UTC), "stop", 3)
    assert len(found) == 3
    assert set(found["sessions"]) == {6}
    assert found.iloc[0]["session"] == TWO


def test_the_first_day_is_that_of_the_lab_in_its_zone(days: Engine) -> None:
    write(days, "update dlc.lab_beginning set began_at = '2026-03-02 23:30+00'")
    assert first_day(days, "UTC") == date(2026, 3, 2)
    assert first_day(days, "Europe/Berlin") == date(2026, 3, 3)
    write(days, "update dlc.lab_beginning set began_at = now()")
    assert first_day(days, "UTC") == DAY  # of a catalogue that sessions were brought into


def test_a_day_without_a_report_is_refused(days: Engine) -> None:
    require_reported(days, DAY, "UTC")
    today = yesterday("UTC") + timedelta(days=1)
    require_reported(days, today, "UTC")
    with pytest.raises(PlatformError, match=f"has not begun in UTC. Choose a day until {today}"):
        require_reported(days, today + timedelta(days=1), "UTC")
    with pytest.raises(PlatformError, match="2026-03-03 is before the lab began, on 2026-03-04"):
        require_reported(days, DAY - timedelta(days=1), "UTC")
