"""Videos in the catalogue: what was read of them, and which lie in two sessions."""

from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.sessions import current_files, register_session
from dlc_platform.catalog.videos import forget_account, repeated_videos, unaccounted_videos
from dlc_platform_tests.catalog.looking import rows
from dlc_platform_tests.catalog.small_lab import identity, recording, session, video

KEY = "sub-1_ses-1"
ONE, TWO = "sub-1_ses-1", "sub-2_ses-1"


def register(engine: Engine, *files: tuple[tables.RecordingFile, tables.Video | None]) -> None:
    register_session(engine, session(KEY), files)


def current(engine: Engine) -> list[tuple[int, str, str | None]]:
    return [(row.id, row.recording.name, row.video_id) for row in current_files(engine, KEY)]


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


def test_one_video_in_two_sessions_is_reported_until_one_is_gone(engine: Engine) -> None:
    for key in (ONE, TWO):
        register_session(engine, session(key), [(recording(key, "top", "1"), video("1"))])
    (pair,) = repeated_videos(engine).to_dict("records")
    assert (pair["session"], pair["other_session"]) == (ONE, TWO)
    (other,) = repeated_videos(engine, TWO).to_dict("records")
    assert (other["path"], other["other_path"]) == (pair["other_path"], pair["path"])
    register_session(engine, session(TWO), [(recording(TWO, "top", "2"), video("2"))])
    assert repeated_videos(engine).empty
