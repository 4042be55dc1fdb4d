"""Sessions in the catalogue: what registering writes, once, again and by two at the same moment, and what is read."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog import tables
from dlc_platform.catalog.sessions import (
    current_files,
    known_details,
    known_files,
    labelled_sessions,
    record_session_labels,
    register_session,
    require_files,
    session_table,
)
from dlc_platform.errors import PlatformError
from dlc_platform.video.registered import KnownFile
from dlc_platform_tests.catalog.looking import at_once, records, rows
from dlc_platform_tests.catalog.small_lab import identity, recording, session, video

KEY = "sub-1_ses-1"
ONE, TWO = "sub-1_ses-1", "sub-2_ses-1"


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
