"""Sessions of real, small videos: new, unchanged, replaced, broken, and still growing."""

import os
import threading
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.error import FFmpegError
from av.video.stream import VideoStream
from sqlalchemy import Engine, text

from dlc_platform.catalog import tables
from dlc_platform.catalog.sessions import current_files, session_table
from dlc_platform.catalog.videos import damaged_recordings, registered_video, video_figures
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.sessions.recordings import Session, scan
from dlc_platform.sessions.registration import Look, is_registered, register, require_trackable, require_unchanged
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.layout import Layout
from dlc_platform_tests.video.conftest import spoil


def write_video(path: Path, frames: int, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), shade + number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_video(tmp_path / "raw/sub-1/ses-1/cam-top.mp4", 10)
    write_video(tmp_path / "raw/sub-1/ses-1/cam-side.mp4", 12, shade=100)
    return tmp_path / "raw"


def session(raw: Path) -> Session:
    (found,) = scan([raw], Layout()).sessions
    return found


def lab(**settings: Any) -> Lab:
    return Lab.model_validate({"raw_roots": ["/raw"], "projects": {"maze": {"path": "/maze"}}, **settings})


def top(raw: Path) -> Path:
    return raw / "sub-1/ses-1/cam-top.mp4"


def rows(engine: Engine) -> dict[str, tables.RecordingFile]:
    return {row.recording.camera: row for row in current_files(engine, "sub-1_ses-1")}


def by_camera(looks: list[Look]) -> dict[str, Look]:
    return {look.recording.camera: look for look in looks}


def test_a_new_session(engine: Engine, raw: Path) -> None:
    looks = by_camera(register(engine, session(raw)))
    video = looks["top"].video
    assert video is not None and looks["top"].problem is None
    assert (video.frames, video.width, video.height, video.sha256) == (10, 64, 48, sha256_file(top(raw)))
    row = rows(engine)["top"]
    status = top(raw).stat()
    assert (row.video_id, row.size_bytes, row.mtime_ns) == (video.sha256, status.st_size, status.st_mtime_ns)
    assert row.path == str(top(raw)) and row.problem is None
    table = session_table(engine).set_index("camera")
    assert table.loc["side", "frames"] == 12 and table.loc["top", "frame_rate"] == 25
    assert table.loc["top", "duration_s"] == pytest.approx(0.4)
    with engine.connect() as connection:
        read_by = connection.scalars(
            text("select e.details ->> 'av' from dlc.video v join dlc.environment e on e.id = v.environment_id")
        ).all()
    assert read_by == [av.__version__] * 2


def test_an_unchanged_file_is_not_read_again(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    before = {camera: row.id for camera, row in rows(engine).items()}
    for anew in (False, True):
        top(raw).chmod(0o600)
        looks = register(engine, session(raw), anew=anew)
        assert [(look.video, look.problem) for look in looks] == [(None, None)] * 2
        assert {camera: row.id for camera, row in rows(engine).items()} == before
    assert rows(engine)["top"].ctime_ns == top(raw).stat().st_ctime_ns
    require_unchanged(rows(engine)["top"])


def disguised(path: Path, content: bytes) -> None:
    """Other bytes in the place of a file, with its size and time."""
    status = path.stat()
    assert len(content) <= status.st_size
    path.write_bytes(content + bytes(status.st_size - len(content)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_replacement_of_the_same_size_and_time_is_a_new_video(engine: Engine, raw: Path) -> None:
    write_video(top(raw), 15, shade=50)
    other = write_video(raw.parent / "other.mp4", 9).read_bytes()
    register(engine, session(raw))
    before = rows(engine)
    disguised(top(raw), other)
    looks = by_camera(register(engine, session(raw)))
    assert looks["top"].replaced and looks["side"].video is None and not looks["side"].replaced
    after = rows(engine)
    assert after["top"].id != before["top"].id and after["top"].video_id == sha256_file(top(raw))
    assert after["side"].id == before["side"].id
    # Where ctime and inode tell nothing, a person has it read anew.
    for column, value in (("ctime_ns", top(raw).stat().st_ctime_ns), ("inode", top(raw).stat().st_ino)):
        with engine.begin() as connection:
            connection.execute(text(f"update dlc.recording_file set {column} = :value"), {"value": value})
    disguised(top(raw), write_video(raw.parent / "third.mp4", 8).read_bytes())
    with engine.begin() as connection:
        connection.execute(
            text("update dlc.recording_file set ctime_ns = :value where path = :path"),
            {"value": top(raw).stat().st_ctime_ns, "path": str(top(raw))},
        )
    assert not by_camera(register(engine, session(raw)))["top"].replaced
    assert by_camera(register(engine, session(raw), anew=True))["top"].replaced
    assert rows(engine)["top"].video_id == sha256_file(top(raw))


@pytest.mark.parametrize(
    "times_ms",
    [[*range(0, 400, 40), 10**15], [*range(0, 400, 40), 2**62], [-(2**62), *range(0, 360, 40), 2**62], [10**14] * 2],
    ids=["gap", "gap beyond seconds", "beyond 64 bits", "same"],
)
def test_no_time_in_a_file_fails_its_session(engine: Engine, raw: Path, times_ms: list[int]) -> None:
    odd = top(raw).with_name("cam-odd.mkv")
    with av.open(str(odd), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for shade, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            with suppress(FFmpegError):
                container.mux(stream.encode(frame))
    register(engine, session(raw))
    looks = by_camera(register(engine, session(raw)))
    figures = {row["camera"]: row for row in video_figures(engine, "sub-1_ses-1")}
    assert figures["top"]["frames"] == 10
    assert (figures["odd"]["frames"] or 0) > 0 or str(odd) in figures["odd"]["problem"]
    assert looks["top"].problem is None and len(session_table(engine)) == 3


def test_a_file_whose_frames_are_not_accounted_for_is_read_again(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    before = rows(engine)["top"]
    with engine.begin() as connection:
        # As a catalogue has it that was written before there were accounts.
        connection.execute(
            text("update dlc.video set frames = 20, frames_lost = 5, decoder = null where id = :id"),
            {"id": before.video_id},
        )
    looks = by_camera(register(engine, session(raw)))
    assert looks["top"].video is not None and looks["side"].video is None
    assert rows(engine)["top"].id == before.id
    video = registered_video(engine, str(before.video_id))
    assert (video.frames, video.frames_lost, video.decoder) == (10, 0, looks["top"].video.account.decoder)
    assert by_camera(register(engine, session(raw)))["top"].video is None


def test_a_replaced_file_is_a_new_video(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    before = rows(engine)
    write_video(top(raw), 15, shade=50)
    recording = next(recording for recording in session(raw).recordings if recording.camera == "top")
    assert not is_registered(recording.files[0], before["top"])
    looks = by_camera(register(engine, session(raw)))
    after = rows(engine)
    assert looks["side"].video is None and after["side"].id == before["side"].id
    assert after["top"].id != before["top"].id and after["top"].video_id == sha256_file(top(raw))
    assert after["top"].video_id != before["top"].video_id
    assert is_registered(recording.files[0], after["top"])


def test_a_touched_file_is_the_same_video(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    before = rows(engine)["top"]
    os.utime(top(raw), (1, 1))
    register(engine, session(raw))
    after = rows(engine)["top"]
    # The same row, and so the poses that hang on it.
    assert after.id == before.id and after.video_id == before.video_id and after.mtime_ns == 10**9
    assert after.registered_at > before.registered_at


def test_a_raw_root_that_moved_keeps_its_videos(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    before = {camera: row.id for camera, row in rows(engine).items()}
    moved = raw.rename(raw.with_name("moved"))
    register(engine, session(moved))
    assert {camera: row.id for camera, row in rows(engine).items()} == before
    assert rows(engine)["top"].path == str(top(moved))


def test_a_broken_file_does_not_stop_the_others(engine: Engine, raw: Path) -> None:
    whole = top(raw).read_bytes()
    top(raw).write_bytes(whole[: len(whole) // 2])
    (raw / "sub-1/ses-1/cam-empty.mp4").touch()
    looks = by_camera(register(engine, session(raw)))
    assert looks["side"].video is not None and looks["top"].video is None
    problem = looks["top"].problem
    assert problem is not None and str(top(raw)) in problem.problem and problem.remedy
    found = rows(engine)
    assert found["top"].video_id is None and found["top"].problem == str(problem)
    assert "is empty (0 bytes)" in str(found["empty"].problem)
    # It is looked at again each time, and its row stays until it is mended.
    assert by_camera(register(engine, session(raw)))["top"].problem is not None
    assert rows(engine)["top"].id == found["top"].id
    top(raw).write_bytes(whole)
    register(engine, session(raw))
    assert rows(engine)["top"].video_id == sha256_file(top(raw)) and rows(engine)["top"].problem is None


def test_a_damaged_file_is_registered_with_what_is_missing(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    found = session_table(engine).set_index("camera")
    assert found["damage"].isna().all() and damaged_recordings(engine).empty
    spoil(top(raw), [1, 2])
    assert by_camera(register(engine, session(raw)))["top"].problem is None
    (row,) = damaged_recordings(engine).to_dict("records")
    assert row["path"] == str(top(raw)) and row["video"] == sha256_file(top(raw))
    assert row["frames"] == found["frames"]["top"] and row["frames_lost"] + row["frames_damaged"] > 0
    assert row["damage"].startswith("damaged: ")
    file = rows(engine)["top"]
    with pytest.raises(PlatformError, match=r"frames can be decoded.*damaged_videos: track"):
        require_trackable(engine, file, lab().video_rules)
    require_trackable(engine, file, lab(damaged_videos="track").video_rules)
    require_trackable(engine, rows(engine)["side"], lab().video_rules)


def test_a_file_that_vanished_after_it_was_found(engine: Engine, raw: Path) -> None:
    found = session(raw)
    top(raw).unlink()
    # Its disk may be away: that is written down of no file.
    with pytest.raises(MachineFault, match="is not there any more"):
        register(engine, found)
    assert rows(engine) == {}
    register(engine, session(raw))
    assert list(rows(engine)) == ["side"]


def test_a_file_that_changes_while_it_is_read(engine: Engine, raw: Path) -> None:
    """Growing files: one before it is read, one from another thread all the time."""
    found = session(raw)
    write_video(top(raw), 20)  # found at its old size, written on before it is read
    side = raw / "sub-1/ses-1/cam-side.mp4"
    done = threading.Event()
    grows = threading.Event()

    def grow() -> None:
        with open(side, "ab") as file:
            while not done.is_set():
                file.write(b"\0" * 16)
                file.flush()
                grows.set()
                done.wait(0.001)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        assert grows.wait(60)
        looks = by_camera(register(engine, found))
    finally:
        done.set()
        writer.join()
    for camera in ("top", "side"):
        problem = looks[camera].problem
        assert looks[camera].video is None and problem is not None and "changed while" in problem.problem
    assert all(row.video_id is None for row in rows(engine).values())
    register(engine, session(raw))
    assert rows(engine)["top"].video_id == sha256_file(top(raw))


def test_a_registered_file_must_be_what_it_was(engine: Engine, raw: Path) -> None:
    register(engine, session(raw))
    row = rows(engine)["top"]
    require_unchanged(row)
    write_video(top(raw), 11)
    with pytest.raises(PlatformError, match=r"cam-top\.mp4 was replaced since it was registered"):
        require_unchanged(row)
    top(raw).unlink()
    with pytest.raises(MachineFault, match=r"cam-top\.mp4 is not there any more") as caught:
        require_unchanged(row)
    assert "Bring it back" in caught.value.remedy
