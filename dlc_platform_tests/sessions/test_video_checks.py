"""What lab.yaml and earlier videos find wrong with a session's files, what that holds up, and until when."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog import quarantine, wanted
from dlc_platform.catalog.sessions import assign_cameras, current_files, session_table
from dlc_platform.catalog.videos import video_figures
from dlc_platform.errors import PlatformError
from dlc_platform.sessions import scanning
from dlc_platform.sessions.registration import judge, register, require_trackable
from dlc_platform.sessions.video_checks import FEWEST_EARLIER, Finding, findings, unusual
from dlc_platform.settings.lab import Lab
from dlc_platform_tests.sessions.test_registration import lab, session, top, write_video
from dlc_platform_tests.video.conftest import spoil
from dlc_platform_tests.video.numbered import remux, write_numbered
from dlc_platform_tests.video.test_odd_videos import overwrite
from dlc_platform_tests.video.test_quality import retimed

SESSION = "sub-1_ses-1"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_video(tmp_path / "raw/sub-1/ses-1/cam-top.mp4", 30, shade=100)
    write_video(tmp_path / "raw/sub-1/ses-1/cam-side.mp4", 30, shade=100)
    return tmp_path / "raw"


def found(engine: Engine, settings: Lab) -> list[Finding]:
    return findings(settings.video_rules, SESSION, video_figures(engine, SESSION))


def held(engine: Engine) -> list[str]:
    return [str(fault.path) for fault in quarantine.faults_of(engine, SESSION, "videos")]


@pytest.mark.parametrize(
    ("limits", "question", "said"),
    [
        ({"resolution": [640, 480]}, "resolution_as_expected", "is 64 x 48 pixels, and 640 x 480 is expected"),
        ({"frame_rate": 30}, "timestamps_are_regular", "has 25 frames per second, and 30 are expected"),
        ({"exposure": [150, 200]}, "exposure_and_focus", "has a mean grey level of 11"),
        ({"focus": [1000, 2000]}, "exposure_and_focus", "has a focus of"),
    ],
)
def test_a_written_limit_fails_and_a_limit_that_is_kept_does_not(
    engine: Engine, raw: Path, limits: Mapping[str, Any], question: str, said: str
) -> None:
    register(engine, session(raw))
    assert found(engine, lab()) == []
    (finding,) = found(engine, lab(video_quality=[{"camera": "top", **limits}, {"camera": "*"}]))
    assert (finding.question, finding.path, finding.fails, finding.holds) == (question, str(top(raw)), True, False)
    assert said in finding.problem and f"change `{next(iter(limits))}` under `video_quality`" in finding.remedy
    (name,) = limits
    (finding,) = found(engine, lab(video_quality=[{"camera": "top", **limits, "only_warn": [name]}]))
    assert not finding.fails
    assert found(engine, lab(video_quality=[{"camera": "top"}, {"camera": "*", "resolution": [64, 48]}])) == []


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"constant_frame_rate": True}, "has a variable frame rate"),
        ({"jitter_ms": 5}, "ms, and at most 5 ms are expected"),
    ],
)
def test_frames_that_come_unevenly_fail_where_lab_yaml_says_so(
    engine: Engine, raw: Path, limits: Mapping[str, Any], said: str
) -> None:
    times = [40 * number + (20 if number % 4 == 2 else 0) for number in range(30)]
    retimed(top(raw), times).replace(top(raw))
    register(engine, session(raw))
    assert found(engine, lab()) == []
    (finding,) = found(engine, lab(video_quality=[limits]))
    assert finding.question == "timestamps_are_regular" and finding.path == str(top(raw)) and finding.fails
    assert said in finding.problem


def test_quarantine_release_and_replacement(engine: Engine, raw: Path) -> None:
    rule = {"camera": "top", "resolution": [640, 480], "on_failure": "quarantine"}
    settings = lab(video_quality=[rule])
    register(engine, session(raw))
    judge(engine, settings.video_rules, SESSION, "run")
    assert held(engine) == [str(top(raw))]
    rows = {row.recording.camera: row for row in current_files(engine, SESSION)}
    with pytest.raises(PlatformError, match=r"640 x 480 is expected.*sessions release .* sub-1_ses-1"):
        require_trackable(engine, rows["top"], settings.video_rules)
    require_trackable(engine, rows["side"], settings.video_rules)

    assert quarantine.release(engine, SESSION, "a person") == 1
    require_trackable(engine, rows["top"], settings.video_rules)
    assert judge(engine, settings.video_rules, SESSION) == [] and held(engine) == []

    # Another video in its place is judged anew, and so is the same one by another limit.
    write_video(top(raw), 31, shade=90)
    register(engine, session(raw))
    assert len(judge(engine, settings.video_rules, SESSION)) == 1
    quarantine.release(engine, SESSION, "a person")
    assert len(judge(engine, lab(video_quality=[{**rule, "resolution": [320, 240]}]).video_rules, SESSION)) == 1
    # A limit that is taken back lets it out.
    assert judge(engine, lab().video_rules, SESSION) == [] and held(engine) == []


def test_a_damaged_file_is_tracked_once_a_person_releases_it(engine: Engine, raw: Path) -> None:
    whole = top(raw).read_bytes()
    spoil(top(raw), [3, 4])
    register(engine, session(raw))
    row = next(row for row in current_files(engine, SESSION) if row.recording.camera == "top")
    with pytest.raises(PlatformError, match="damaged_videos: track"):
        require_trackable(engine, row, lab().video_rules)
    assert held(engine) == [], "who only asks writes nothing"
    judge(engine, lab().video_rules, SESSION)
    assert held(engine) == [str(top(raw))]
    require_trackable(engine, row, lab(damaged_videos="track").video_rules)
    assert held(engine) == [str(top(raw))]
    quarantine.release(engine, SESSION, "a person")
    require_trackable(engine, row, lab().video_rules)
    (finding,) = found(engine, lab())
    assert finding.question == "every_frame_is_there" and finding.fails, "the check still says so"
    top(raw).write_bytes(whole)
    register(engine, session(raw))
    assert judge(engine, lab().video_rules, SESSION) == [] and found(engine, lab()) == []


def test_a_released_damaged_file_is_asked_for_and_tracked(engine: Engine, raw: Path) -> None:
    settings = lab(raw_roots=[raw], inference=[{"camera": "top", "project": "maze"}])
    spoil(top(raw), [3, 4])
    scanning.look(engine, settings, datetime(2024, 5, 1, tzinfo=UTC), 10)
    register(engine, session(raw))
    with engine.begin() as connection:
        connection.execute(text("truncate dlc.waiting_session"))
    assign_cameras(engine, settings.tracking.project_of)
    row = next(row for row in current_files(engine, SESSION) if row.recording.camera == "top")

    def asked_for() -> list[str]:
        return [session.session_key for session in wanted.poses(engine, ["maze"], damaged=False)]

    judge(engine, settings.video_rules, SESSION, "run")
    assert asked_for() == [] and held(engine) == [str(top(raw))]
    quarantine.release(engine, SESSION, "a person")
    # What is asked for is made, and that does not take the person's word back.
    for _ in range(2):
        assert asked_for() == [SESSION]
        require_trackable(engine, row, settings.video_rules)
        assert held(engine) == []
    track_elsewhere = lab(raw_roots=[raw], damaged_videos="track")
    require_trackable(engine, row, track_elsewhere.video_rules)
    require_trackable(engine, row, settings.video_rules)
    assert asked_for() == [SESSION]
    # Another damaged video in its place is another matter.
    write_video(top(raw), 31, shade=90)
    spoil(top(raw), [5])
    register(engine, session(raw))
    assert len(judge(engine, settings.video_rules, SESSION)) == 1 and asked_for() == []


def test_an_entry_for_a_whole_session_stays_until_registration(engine: Engine, raw: Path) -> None:
    whole = quarantine.Fault("its run ended", "Look at the run", "evidence")
    spoil(top(raw), [3, 4])
    register(engine, session(raw))
    quarantine.judge(engine, SESSION, "videos", [whole], "run")
    for row in [*current_files(engine, SESSION)] * 2:
        with pytest.raises(PlatformError, match="its run ended"):
            require_trackable(engine, row, lab().video_rules)
    assert quarantine.faults_of(engine, SESSION, "videos") == [whole]
    assert len(judge(engine, lab().video_rules, SESSION, files_only=True)) == len(held(engine)) == 2
    # A file that is mended meanwhile is let out by itself.
    require = {row.recording.camera: row for row in current_files(engine, SESSION)}["side"]
    with pytest.raises(PlatformError, match="its run ended"):
        require_trackable(engine, require, lab(damaged_videos="track").video_rules)
    judge(engine, lab(damaged_videos="track").video_rules, SESSION, files_only=True)
    assert held(engine) == ["None"]
    assert judge(engine, lab(damaged_videos="track").video_rules, SESSION, "another run") == []
    require_trackable(engine, require, lab().video_rules)
    # A person's word ends it too.
    quarantine.judge(engine, SESSION, "videos", [whole], "run")
    quarantine.release(engine, SESSION, "a person")
    require_trackable(engine, require, lab().video_rules)


def test_an_unreadable_file_stays_so_whatever_is_released(engine: Engine, raw: Path) -> None:
    content = top(raw).read_bytes()
    top(raw).write_bytes(b"")
    register(engine, session(raw))
    (fault,) = judge(engine, lab().video_rules, SESSION)
    assert fault.path == str(top(raw)) and "is empty (0 bytes)" in fault.reason
    assert "Copy the file again" in fault.remedy and "does not make it readable" in fault.remedy
    quarantine.release(engine, SESSION, "a person")
    register(engine, session(raw))
    assert judge(engine, lab().video_rules, SESSION) == []
    assert found(engine, lab())[0].question == "videos_can_be_read"
    top(raw).write_bytes(content)
    register(engine, session(raw))
    assert found(engine, lab()) == []


def test_a_video_is_compared_with_the_earlier_ones_of_its_camera(engine: Engine, raw: Path, tmp_path: Path) -> None:
    register(engine, session(raw))
    figures = video_figures(engine, SESSION)
    assert unusual(engine, lab().video_rules, SESSION, figures) == []
    with engine.begin() as connection:
        connection.execute(text("insert into dlc.subject (key) values ('9')"))
        for number in range(FEWEST_EARLIER):
            values = {"n": number, "key": f"s{number}", "id": f"{number:064}", "exposure": 180.0 + number % 3}
            for statement in (
                "insert into dlc.session (key, subject, name, folder) values (:key, '9', :key, '/raw')",
                "insert into dlc.video (id, size_bytes, width, height, frame_rate_numerator, frame_rate_denominator, "
                "frames, duration_s, codec, pixel_format, rotation) "
                "values (:id, 1, 128, 96, 25, 1, 10, 0.4, 'h264', 'yuv420p', 0)",
                "insert into dlc.video_quality (video_id, exposure, focus, black, frozen, black_s, frozen_s) "
                "values (:id, :exposure, 50, '[]', '[]', 0, 0)",
                "insert into dlc.recording (session_key, name, camera) values (:key, 'top', 'top')",
                "insert into dlc.recording_file (recording_id, position, path, size_bytes, mtime_ns, video_id) "
                "select id, 0, '/raw/' || :key, 1, 1, :id from dlc.recording where session_key = :key",
            ):
                connection.execute(text(statement), values)
    seen = unusual(engine, lab().video_rules, SESSION, figures)
    assert [(finding.question, finding.fails, finding.holds) for finding in seen] == [
        ("resolution_as_expected", False, False),
        ("exposure_and_focus", False, False),
    ]
    assert all(finding.path == str(top(raw)) for finding in seen)
    assert "earlier videos of top are 128 x 96" in seen[0].problem
    # What the lab wrote down is what counts.
    written = lab(video_quality=[{"resolution": [64, 48], "exposure": [50, 200]}])
    assert unusual(engine, written.video_rules, SESSION, figures) == [] == found(engine, written)


def test_a_video_that_was_never_measured_keeps_every_limit(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    with engine.begin() as connection:
        connection.execute(text("delete from dlc.video_quality"))
    settings = lab(video_quality=[{"exposure": [150, 200], "focus": [1000, 2000], "black_seconds": 0.1}])
    assert found(engine, settings) == []
    assert all(not row["measured"] for row in video_figures(engine, SESSION))


def test_a_recording_that_begins_without_its_key_frame_says_so(engine: Engine, raw: Path) -> None:
    """Its frame 0 is not that of the camera's first trigger."""
    whole = write_numbered(top(raw).with_suffix(".mkv"), ticks=40, options={"bf": "0", "g": "30"})
    remux(whole, top(raw), lambda number, packet: number >= 25, "matroska")
    whole.unlink()
    (look,) = [look for look in register(engine, session(raw)) if look.recording.name == "cam-top"]
    assert look.video is not None and (look.video.frames, look.video.account.left_out) == (10, 5)
    (finding,) = found(engine, lab())
    assert (finding.question, finding.fails, finding.holds) == ("every_frame_is_there", False, False)
    assert "begins with 5 frames that build on data that is not in the file" in finding.problem
    assert session_table(engine, SESSION).set_index("recording")["frames_left_out"].to_dict() == {
        "cam-side": 0,
        "cam-top": 5,
    }


def test_times_that_are_guesses_are_told(engine: Engine, raw: Path) -> None:
    one = write_numbered(top(raw).with_suffix(".ts"), options={"bf": "0", "g": "12"}).read_bytes()
    top(raw).with_suffix(".ts").unlink()
    top(raw).write_bytes(one * 2)
    register(engine, session(raw))
    (finding,) = [finding for finding in found(engine, lab()) if finding.question == "timestamps_are_regular"]
    assert not finding.fails
    assert "has a clock that begins again in 1 place" in finding.problem


def test_times_that_were_only_put_in_order_need_no_word(engine: Engine, raw: Path) -> None:
    write_numbered(top(raw), format="avi")
    register(engine, session(raw))
    assert found(engine, lab()) == []
    figures = {row["recording"]: row for row in video_figures(engine, SESSION)}["cam-top"]
    assert figures["times_reordered"] > 20 and (figures["dropped"], figures["jitter_ms"]) == (0, 0)


def test_times_that_were_put_in_order_beside_damage_are_told(engine: Engine, raw: Path) -> None:
    """An AVI file with B-frames stores no order: around a lost frame nobody knows which time is whose."""
    write_numbered(top(raw), format="avi")
    overwrite(top(raw), [33], b"\x00" * 12, 8)
    register(engine, session(raw))
    (finding,) = [finding for finding in found(engine, lab()) if finding.question == "timestamps_are_regular"]
    assert not finding.fails and "they may be some frames early or late" in finding.problem
