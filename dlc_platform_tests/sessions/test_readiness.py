"""Files that are still being written, by every sign that a name, a neighbour or a container gives."""

import os
import socket
from pathlib import Path

import pytest

from dlc_platform.sessions.listing import list_folder
from dlc_platform.sessions.readiness import final_name, unopened
from dlc_platform.sessions.recordings import scan
from dlc_platform.settings.layout import Layout
from dlc_platform_tests.sessions.test_recordings import place, reasons
from dlc_platform_tests.video.conftest import cut, write_video

TEMPORARY = [
    "video.mp4.part",
    "Video.MP4.PART",
    "video.mp4.tmp",
    "video.mp4.partial",
    "video.mp4.1a2b3c4d.partial",
    "video.mp4.crdownload",
    "video.mp4.filepart",
    "video.mp4.aria2",
    "video.mp4.6eF5b5da",
    "video.mp4_.gstmp",
    "video.mp4.1c3a.ffs_tmp",
    ".video.mp4.AbC123",
    ".video.mp4.~1a2b3c",
    ".video.mp4.part",
    ".syncthing.video.mp4.tmp",
    "~syncthing~video.mp4.tmp",
    ".unison.video.mp4.0f3e.unison.tmp",
    "~$video.mp4",
    "~video.mp4",
    ".~lock.video.mp4#",
    "video.mp4.lock",
]


@pytest.mark.parametrize("name", TEMPORARY)
def test_a_temporary_name_is_no_video_and_its_video_waits(tmp_path: Path, name: str) -> None:
    place(tmp_path, f"sub-1/ses-1/{name}")
    assert scan([tmp_path], Layout()).sessions == ()
    assert "still being written" in reasons(scan([tmp_path], Layout()), tmp_path)[f"sub-1/ses-1/{name}"]
    final = "Video.MP4" if name.startswith("V") else "video.mp4"
    place(tmp_path, f"sub-1/ses-1/{final}", "sub-1/ses-1/other.mp4")
    (session,) = scan([tmp_path], Layout()).sessions
    assert {r.name: r.files[0].waits is not None for r in session.recordings} == {final[:5]: True, "other": False}
    assert session.waits is not None and name in session.waits and final in session.waits


@pytest.mark.parametrize(
    "name",
    ["video.mp4", "part.mp4", "a.tmp.mp4", "video.mp4.csv", "video.mp4.20240131", "notes.part", "video-part", "x.lock"],
)
def test_other_names_are_not_temporary(name: str) -> None:
    assert final_name(name, Layout().extensions) is None


def test_a_lock_without_the_extension_holds_its_video(tmp_path: Path) -> None:
    place(tmp_path, "sub-1/ses-1/a.mp4", "sub-1/ses-1/a.lock", "sub-1/ses-1/b.mp4")
    listing = list_folder(str(tmp_path), "sub-1/ses-1/", Layout())
    assert [video.waits is not None for video in listing.videos] == [True, False]


def test_a_backup_holds_up_nothing(tmp_path: Path) -> None:
    place(tmp_path, "sub-1/ses-1/a.mp4", "sub-1/ses-1/a.mp4~")
    (session,) = scan([tmp_path], Layout()).sessions
    assert session.waits is None
    assert "backup copy" in reasons(scan([tmp_path], Layout()), tmp_path)["sub-1/ses-1/a.mp4~"]


@pytest.mark.parametrize(("marker", "done"), [("{stem}.done", "a.done"), ("{name}.ok", "a.mp4.ok")])
def test_a_marker_beside_each_video_is_all_that_is_waited_for(tmp_path: Path, marker: str, done: str) -> None:
    layout = Layout(marker=marker)
    place(tmp_path, "sub-1/ses-1/a.mp4", "sub-1/ses-1/b.mp4", "sub-1/ses-1/a.mp4.part", f"sub-1/ses-1/{done}")
    (session,) = scan([tmp_path], layout).sessions
    waits = {recording.name: recording.files[0].waits for recording in session.recordings}
    assert waits["a"] is None
    assert waits["b"] is not None and done.replace("a", "b", 1) in waits["b"] and "layout.marker" in waits["b"]


@pytest.mark.parametrize("where", ["", "behav/", "behav/cam/"])
def test_one_marker_may_stand_for_a_session(tmp_path: Path, where: str) -> None:
    layout = Layout(marker="transfer_complete")
    place(tmp_path, "sub-1/ses-1/behav/cam/a.mp4", "sub-2/ses-1/a.mp4", "transfer_complete")
    first, second = scan([tmp_path], layout).sessions
    assert first.waits is not None and second.waits is not None
    assert str(tmp_path / "sub-1/ses-1") in first.waits
    place(tmp_path, f"sub-1/ses-1/{where}transfer_complete")
    first, second = scan([tmp_path], layout).sessions
    assert first.waits is None and second.waits is not None


def test_a_container_that_opens(tmp_path: Path) -> None:
    assert unopened(write_video(tmp_path / "a.mp4")) is None
    assert unopened(write_video(tmp_path / "a.avi", codec="mpeg4", codec_options={})) is None
    fast = write_video(tmp_path / "fast.mp4", container_options={"movflags": "faststart"})
    assert unopened(cut(fast, 0.6)) is None


def test_a_container_that_does_not_open_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no video at all.\n" * 400)
    os.mkfifo(tmp_path / "pipe.mp4")
    said = {
        "empty.mp4": "empty",
        "text.mp4": "not a video",
        "pipe.mp4": "not a file",
        "gone.mp4": "No such file",
        ".": "not a file",
        "cut.mp4": "",
    }
    cut(write_video(tmp_path / "cut.mp4"), 0.6)
    with socket.socket(socket.AF_UNIX) as own:
        # The name of a socket is limited to some hundred bytes.
        before = Path.cwd()
        os.chdir(tmp_path)
        own.bind("s.mp4")
        os.chdir(before)
        said["s.mp4"] = "not a file"
        for name, words in said.items():
            reason = unopened(tmp_path / name)
            assert reason is not None and words in reason and str(tmp_path) not in reason, (name, reason)
