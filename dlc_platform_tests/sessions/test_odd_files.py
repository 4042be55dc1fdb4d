"""Everything odd that can lie on a lab's disk: each ends in a session or in a named reason, and none stops the rest."""

import os
import socket
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import regex
from sqlalchemy import Engine

from dlc_platform.catalog.sessions import current_files
from dlc_platform.lab.plan import plan
from dlc_platform.sessions.layout import LEADS_OUT, Place, place_of, root_of
from dlc_platform.sessions.listing import LINK_OUTSIDE, Skipped, list_folder
from dlc_platform.sessions.raw_roots import why_away
from dlc_platform.sessions.readiness import unopened
from dlc_platform.sessions.recordings import Scan, scan
from dlc_platform.sessions.registration import register
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.recipes import ProjectEntry
from dlc_platform_tests.sessions.test_recordings import place, recordings
from dlc_platform_tests.sessions.test_registration import write_video

GOOD = "sub-good/ses-1/cam-top.mp4"
FOLDER = "sub-1/ses-1"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw root with one good session; whatever else lies there, it must be found."""
    write_video(tmp_path / "raw" / GOOD, 5)
    (tmp_path / "raw" / FOLDER).mkdir(parents=True)
    return tmp_path / "raw"


def look(raw: Path) -> tuple[list[str], dict[str, str]]:
    """The recordings of the odd session, and the reasons for what is left out, by path; the good one is found."""
    found = scan([raw], Layout())
    of = recordings(found)
    assert of.pop("sub-good_ses-1") == [("cam-top", "top")]
    return [name for own in of.values() for name, _ in own], reasons(found, raw)


def reasons(found: Scan, raw: Path) -> dict[str, str]:
    return {str(item.path.relative_to(raw)): item.reason for item in found.skipped}


@contextmanager
def nobody() -> Iterator[None]:
    """Whoever may not read what root may."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_jpeg(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path.with_suffix(".jpg")), np.zeros((48, 64, 3), np.uint8))
    path.with_suffix(".jpg").rename(path)


def write_header_alone(path: Path) -> None:
    write_video(path, 5)
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (Path.touch, "is empty (0 bytes)"),
        (lambda path: path.write_text("This is no video.\n" * 100), "is not a video"),
        (lambda path: path.write_bytes(os.urandom(20_000)), ""),
        (lambda path: path.write_text("ffconcat version 1.0\nfile /etc/passwd\n"), ""),
        (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"), ""),
        (write_jpeg, "not a video but a picture"),
        (write_sound, "holds no video stream"),
        (write_header_alone, ""),
    ],
)
def test_what_is_no_video_is_registered_with_the_reason(
    engine: Engine, raw: Path, write: Callable[[Path], object], words: str
) -> None:
    odd = raw / FOLDER / "odd.mp4"
    write(odd)
    write_video(raw / FOLDER / "whole.mp4", 3)
    reason = unopened(odd)
    assert reason is not None and words.removeprefix("is ") in reason
    for session in scan([raw], Layout()).sessions:
        register(engine, session)
    assert current_files(engine, "sub-good_ses-1")[0].problem is None
    files = {row.recording.name: row.problem for row in current_files(engine, "sub-1_ses-1")}
    assert files["whole"] is None
    problem = files["odd"]
    assert problem is not None and words in problem and str(odd) in problem
    lab = Lab(raw_roots=(raw,), projects={"maze": ProjectEntry(path=Path("/no/matter"))})
    (one,) = (session for session in plan(lab, engine).sessions if session.key == "sub-1_ses-1")
    assert {file.recording: file.reason for file in one.files}["odd"] == problem.rstrip(".")


@pytest.mark.parametrize(
    "name",
    [
        "a b.mp4",
        " a .mp4",
        "a=b.mp4",
        "a&b;c$(d)`e`.mp4",
        "a,b|c.mp4",
        "a...b.mp4",
        "new\nline.mp4",
        "tab\tname.mp4",
        "\x1b[31mred.mp4",
        "'quoted' \"twice\".mp4",
        "back\\slash.mp4",
        "percent%20s.mp4",
        "鼠标🐭.mp4",
        "é.mp4",
        unicodedata.normalize("NFD", "é.mp4"),
        "-rf.mp4",
        "x" * 251 + ".mp4",
        "é" * 125 + "x.mp4",
        "Video.MP4",
        "...mp4",
        "mp4.mp4",
        "con.mp4",
    ],
)
def test_any_name_that_is_text_is_that_of_a_recording(engine: Engine, raw: Path, name: str) -> None:
    video = write_video(raw / FOLDER / "a.mp4", 3).rename(raw / FOLDER / name)
    names, said = look(raw)
    if name == "...mp4":
        # A name that begins with a dot is hidden.
        assert said[f"{FOLDER}/{name}"] == "it is hidden"
        return
    assert names == [unicodedata.normalize("NFC", video.stem)] and said == {}
    assert unopened(video) is None
    for session in scan([raw], Layout()).sessions:
        register(engine, session)
    (row,) = current_files(engine, "sub-1_ses-1")
    assert row.problem is None and row.path == str(video)


@pytest.mark.parametrize(
    "folder", ["sub-a b", "sub-a=b", "sub-a,b", "sub-é", "sub-a\nb", "sub-" + "x" * 251, "sub-...", "sub-"]
)
def test_a_name_of_a_folder_makes_a_key_or_a_reason(raw: Path, folder: str) -> None:
    place(raw, f"{folder}/ses-1/a.mp4")
    names, said = look(raw)
    said = {path: reason for path, reason in said.items() if path.startswith(folder)}
    assert (names == ["a"]) != bool(said)
    own = Layout(pattern=r"(?:sub-)?(?P<subject>[^/]*)/ses-(?P<session>[^/]+)/[^/]+")
    found = scan([raw], own)
    keys = [session.key for session in found.sessions if session.key != "sub-good_ses-1"]
    assert keys == [f"{folder}_ses-1"] or any(folder in path for path in reasons(found, raw))


def test_names_that_are_not_utf_8_are_named_with_their_bytes(raw: Path) -> None:
    (raw / FOLDER / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"video")
    (raw / os.fsdecode(b"sub-\xff")).mkdir()
    place(raw, f"{FOLDER}/b.mp4")
    names, said = look(raw)
    assert names == ["b"]
    assert r"the name caf\xe9.mp4 is not UTF-8" in said[FOLDER] and r"the name sub-\xff is not UTF-8" in said["."]


def test_a_name_in_capitals_is_another_one_and_keys_stay_apart(raw: Path) -> None:
    place(raw, f"{FOLDER}/a.mp4", f"{FOLDER}/A.mp4", f"{FOLDER}/A.MP4")
    names, said = look(raw)
    assert sorted(names) == ["A.MP4", "A.mp4", "a"] and said == {}


def test_what_is_no_file_is_named_and_never_opened(raw: Path) -> None:
    folder = raw / FOLDER
    os.mkfifo(folder / "pipe.mp4")
    (folder / "null.mp4").symlink_to("/dev/null")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "folder.mp4").mkdir()
    place(raw, f"{FOLDER}/folder.mp4/inner.mp4", f"{FOLDER}/a.mp4.download/a.mp4")
    before = Path.cwd()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("socket.mp4")
    os.chdir(before)
    started = time.monotonic()
    names, said = look(raw)
    assert names == [] and time.monotonic() - started < 60
    said = {path.removeprefix(f"{FOLDER}/"): reason for path, reason in said.items()}
    assert said.pop(FOLDER).startswith("the session folder of sub-1_ses-1 holds no video")
    assert said == {
        "pipe.mp4": "it is not a file but a pipe; remove it",
        "null.mp4": "it is not a file but a device; remove it",
        "zero.mp4": "it is not a file but a device; remove it",
        "socket.mp4": "it is not a file but a socket; remove it",
        "folder.mp4": "it is a folder with the name of a video; rename it",
        "a.mp4.download": "it is still being written (or was left unfinished), by its name",
    }


def test_links_in_circles_end(raw: Path) -> None:
    folder = raw / FOLDER
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "there.mp4").symlink_to("back.mp4")
    (folder / "back.mp4").symlink_to("there.mp4")
    (folder / "self").symlink_to("self")
    (folder / "up").symlink_to("../..")
    (raw / "one").mkdir()
    (raw / "two").mkdir()
    (raw / "one" / "two").symlink_to("../two")
    (raw / "two" / "one").symlink_to("../one")
    names, said = look(raw)
    assert names == []
    levels = "it cannot be read: Too many levels of symbolic links; check the link or the disk"
    for name in ("self.mp4", "there.mp4", "back.mp4", "self"):
        assert said[f"{FOLDER}/{name}"] == levels
    for name in (f"{FOLDER}/up", "one/two/one", "two/one/two"):
        assert said[name] == "the link leads back to a folder that holds it"


def test_folders_that_link_to_each_other_are_walked_only_once(raw: Path) -> None:
    names = [f"d{number}" for number in range(8)]
    for name in names:
        (raw / name).mkdir()
        for other in names:
            (raw / name / f"to-{other}").symlink_to(f"../{other}")
    # Each of these can be reached in more ways than could be tried, were every one of them followed: 8! of them.
    _, said = look(raw)
    assert any("the link lies below 3 others" in reason for reason in said.values())
    assert len(said) < 8**5


def test_links_out_of_the_root_are_followed_if_not_dangling(raw: Path, tmp_path: Path) -> None:
    outside = write_video(tmp_path / "outside" / "b.mp4", 3)
    (raw / FOLDER / "file.mp4").symlink_to(outside)
    (raw / FOLDER / "folder").symlink_to(outside.parent)
    (raw / FOLDER / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (raw / FOLDER / "gone").symlink_to(tmp_path / "nowhere")
    names, said = look(raw)
    assert names == ["b", "file"]
    assert said == {
        f"{FOLDER}/gone.mp4": "the link leads nowhere; restore the file it points to, or remove it",
    }


def test_links_out_of_the_root_are_left_out_if_lab_yaml_says_so(raw: Path, tmp_path: Path) -> None:
    outside = write_video(tmp_path / "outside" / "b.mp4", 3)
    inside = write_video(raw / FOLDER / "inside.mp4", 3)
    (raw / FOLDER / "file.mp4").symlink_to(outside)
    (raw / FOLDER / "folder").symlink_to(outside.parent)
    (raw / FOLDER / "above").symlink_to(tmp_path)
    (raw / FOLDER / "notes.txt").symlink_to(tmp_path / "notes.txt")
    (raw / FOLDER / "twice.mp4").symlink_to(raw / FOLDER / "file.mp4")
    (raw / FOLDER / "own.mp4").symlink_to("inside.mp4")
    root = tmp_path / "root"
    root.symlink_to(raw)
    layout = Layout(links_outside="leave_out")
    listing = list_folder(str(root), f"{FOLDER}/", layout)
    assert [Path(video.path).name for video in listing.videos] == ["inside.mp4", "own.mp4"] and listing.folders == ()
    assert {item.path.name: item.reason for item in listing.skipped} == dict.fromkeys(
        ("file.mp4", "folder", "above", "twice.mp4"), LINK_OUTSIDE
    )
    # A link that took the place of a file since it was registered.
    assert why_away(root / FOLDER / "inside.mp4", [root], layout, 60) is None
    inside.unlink()
    inside.symlink_to(outside)
    assert LINK_OUTSIDE in str(why_away(root / FOLDER / "inside.mp4", [root], layout, 60))
    assert why_away(root / FOLDER / "inside.mp4", [root], Layout(), 60) is None


def test_paths_that_lead_out_of_the_root_are_not_looked_at(raw: Path) -> None:
    """No disk gives such a path; a row of somebody's backup may."""
    listing = list_folder(str(raw / "one"), "../sub-1/", Layout())
    assert (listing.videos, listing.folders, [item.reason for item in listing.skipped]) == ((), (), [LEADS_OUT])
    pattern = regex.compile(".*(?P<subject>b)(?P<session>c).mp4")
    assert place_of(pattern, str(raw), "../bc.mp4") == place_of(pattern, str(raw), "/bc.mp4") == LEADS_OUT
    assert isinstance(place_of(pattern, str(raw), "..a/bc.mp4"), Place)
    assert root_of(raw / ".." / "a", [raw]) is None and root_of(raw / "a..b", [raw.parent, raw]) == raw
    assert "below no raw root" in str(why_away(raw.parent / "a.mp4", [raw], Layout(), 60))


def test_what_vanishes_while_it_is_looked_at_is_no_error(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(raw, f"{FOLDER}/a.mp4", f"{FOLDER}/b.mp4", f"{FOLDER}/deep/c.mp4")
    real = os.scandir

    @contextmanager
    def scandir(path: str) -> Iterator[list[os.DirEntry[str]]]:
        with real(path) as entries:
            listed = list(entries)
        for name in ("a.mp4", "deep"):
            if path.endswith(FOLDER):
                target = Path(path) / name
                (target / "c.mp4").unlink() if target.is_dir() else None
                target.rmdir() if target.is_dir() else target.unlink()
        yield listed

    monkeypatch.setattr(os, "scandir", scandir)
    names, said = look(raw)
    assert names == ["b"]
    assert said[f"{FOLDER}/a.mp4"] == "it was removed while its folder was listed"
    assert "cannot be read: No such file" in said[f"{FOLDER}/deep"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody and root again")
def test_what_may_not_be_read_is_named(make_reachable: Callable[[], AbstractContextManager[Path]]) -> None:
    with make_reachable() as raw:
        write_video(raw / GOOD, 3)
        secret = write_video(raw / FOLDER / "secret.mp4", 3)
        secret.chmod(0o000)
        closed = write_video(raw / "sub-2/ses-1/a.mp4", 3).parent
        closed.chmod(0o000)
        # A folder that may be listed, but not entered.
        listed = write_video(raw / "sub-3/ses-1/a.mp4", 3).parent
        listed.chmod(0o644)
        with nobody():
            names, said = look(raw)
            reason = unopened(secret)
        assert names == ["secret"]
        assert reason == "cannot be read: permission denied"
        assert "Permission denied; check its permissions" in said["sub-2/ses-1"]
        assert "Permission denied" in said["sub-3/ses-1/a.mp4"]


def test_a_folder_of_fifty_thousand_files(raw: Path) -> None:
    folder = raw / FOLDER
    for number in range(50_000):
        os.close(os.open(folder / f"frame{number:05}.png", os.O_CREAT))
    place(raw, f"{FOLDER}/a.mp4", f"{FOLDER}/b.mp4", f"{FOLDER}/b.mp4.part")
    listing = list_folder(str(raw), f"{FOLDER}/", Layout())
    assert [(Path(video.path).name, video.waits is None) for video in listing.videos] == [
        ("a.mp4", True),
        ("b.mp4", False),
    ]
    assert listing.skipped == (
        Skipped(folder / "b.mp4.part", "it is still being written (or was left unfinished), by its name", "expected"),
    )
