"""Sessions in all kinds of layouts, and everything that can lie about on a lab's disk."""

import os
import unicodedata
from pathlib import Path

import pytest

from dlc_platform.sessions.recordings import Scan, scan
from dlc_platform.settings.layout import Layout


def place(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    return root


def recordings(found: Scan) -> dict[str, list[tuple[str, str]]]:
    return {s.key: [(recording.name, recording.camera) for recording in s.recordings] for s in found.sessions}


def reasons(found: Scan, root: Path) -> dict[str, str]:
    return {item.path.relative_to(root).as_posix(): item.reason for item in found.skipped}


def test_neuroblueprint(tmp_path: Path) -> None:
    place(
        tmp_path,
        "rawdata/sub-002_id-b/ses-01_date-20240101/behav/sub-002_ses-01_cam-top_video.mp4",
        "rawdata/sub-002_id-b/ses-01_date-20240101/behav/sub-002_ses-01_cam-side_video.MP4",
        "rawdata/sub-001_id-a/ses-01/behav/open_field.avi",
        "rawdata/sub-001_id-a/ses-01/behav/timestamps.csv",
    )
    found = scan([tmp_path], Layout())
    assert recordings(found) == {
        "sub-001_ses-01": [("open_field", "open_field")],
        "sub-002_ses-01": [("sub-002_ses-01_cam-side_video", "side"), ("sub-002_ses-01_cam-top_video", "top")],
    }
    assert found.skipped == ()
    session = found.sessions[1]
    assert (session.subject, session.name) == ("002", "01")
    assert session.folder == tmp_path / "rawdata/sub-002_id-b/ses-01_date-20240101"
    stat = session.recordings[0].files[0].path.stat()
    assert (session.recordings[0].files[0].size, session.recordings[0].files[0].mtime_ns) == (5, stat.st_mtime_ns)


def test_a_name_is_never_cut_short(tmp_path: Path) -> None:
    place(tmp_path, "sub-mouse-1/ses-2024-01-31/a.mp4", "sub-mouse-2/ses-2024-02-01_id-x/a.mp4", "sub-a b/ses-1/a.mp4")
    found = scan([tmp_path], Layout())
    assert [(s.subject, s.name) for s in found.sessions] == [("mouse-1", "2024-01-31"), ("mouse-2", "2024-02-01")]
    assert "does not match layout.pattern" in reasons(found, tmp_path)["sub-a b/ses-1/a.mp4"]


@pytest.mark.parametrize(
    ("file", "camera"),
    [
        ("camera_0.mp4", "0"),
        ("cam-top.mp4", "top"),
        ("Cam1.mp4", "1"),
        ("x_camera_front_left.mp4", "front"),
        ("webcam.mp4", "webcam"),
        ("camshaft.mp4", "camshaft"),
        ("cam3d.mp4", "cam3d"),
        ("mouse.mp4", "mouse"),
        ("m_cam-top-left.mp4", "top-left"),
        ("m_cam-top-right_x.mp4", "top-right"),
        ("m_cam-top.left.mp4", "top.left"),
        ("m_cam-top left.mp4", "top left"),
        ("m_cam-coté_x.mp4", "coté"),
        (f"m_cam-{unicodedata.normalize('NFD', 'coté')}.mp4", "coté"),
        ("cam-上面.mp4", "上面"),
        ("cam-हिन्दी_1.mp4", "हिन्दी"),
        ("cam-1-left.mp4", "1-left"),
        ("cam_top left.mp4", "top"),
        ("écam-top.mp4", "écam-top"),
    ],
)
def test_the_camera_is_read_from_the_name(tmp_path: Path, file: str, camera: str) -> None:
    found = scan([place(tmp_path, f"sub-1/ses-1/{file}")], Layout())
    assert found.sessions[0].recordings[0].camera == camera


@pytest.mark.parametrize(
    ("pattern", "file", "key", "folder", "camera"),
    [
        (r"(?P<subject>m\d+)_(?P<session>\d+)\.mp4", "m1_20240101.mp4", "sub-m1_ses-20240101", "", "m1_20240101"),
        (
            r"(?P<camera>\w+)/(?P<session>\d{6})/(?P<subject>\w+)/.*",
            "left/240131/rat7/a/b.mp4",
            "sub-rat7_ses-240131",
            "left/240131/rat7",
            "left",
        ),
        (
            r"(?P<subject>\w+)/(?P<session>[\d-]+)/(?:(?P<camera>c\d)/)?[^/]+",
            "rat7/2024-01-31/v.mp4",
            "sub-rat7_ses-2024-01-31",
            "rat7/2024-01-31",
            "v",
        ),
        (
            r"(?P<subject>\w+)/(?P<session>\d+)-(?P<camera>\w+)\.mp4",
            "rat7/3-top.mp4",
            "sub-rat7_ses-3",
            "rat7",
            "top",
        ),
    ],
)
def test_other_layouts(tmp_path: Path, pattern: str, file: str, key: str, folder: str, camera: str) -> None:
    found = scan([place(tmp_path, file)], Layout(pattern=pattern))
    assert [session.key for session in found.sessions] == [key]
    assert found.sessions[0].folder == tmp_path / folder
    assert found.sessions[0].recordings[0].camera == camera
    assert found.skipped == ()


def test_names_of_recordings_are_unique_in_their_session(tmp_path: Path) -> None:
    place(tmp_path, *(f"sub-1/ses-1/{name}" for name in ("a.mp4", "a.avi", "day1/b.mp4", "day2/b.mp4", "c.mp4")))
    found = scan([tmp_path], Layout())
    assert [recording.name for recording in found.sessions[0].recordings] == [
        "a.avi",
        "a.mp4",
        "c",
        "day1_b.mp4",
        "day2_b.mp4",
    ]


def test_names_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    place(tmp_path, *(f"sub-1/ses-1/{name}" for name in ("a/b_c.mp4", "b_c.mp4", "a_b/c.mp4", "c.mp4")))
    found = scan([tmp_path], Layout())
    assert found.sessions == ()
    assert "a_b_c.mp4" in reasons(found, tmp_path)["sub-1/ses-1"]


def test_a_key_that_two_folders_claim_is_used_for_neither(tmp_path: Path) -> None:
    one, two = tmp_path / "disk1", tmp_path / "disk2"
    place(one, "sub-1/ses-1/a.mp4", "sub-2/ses-1/a.mp4")
    place(two, "sub-1/ses-1/b.mp4", "sub-3_id-x/ses-1/a.mp4", "sub-3_id-y/ses-1/a.mp4")
    found = scan([one, two], Layout())
    assert [session.key for session in found.sessions] == ["sub-2_ses-1"]
    assert set(reasons(found, tmp_path)) == {
        "disk1/sub-1/ses-1",
        "disk2/sub-1/ses-1",
        "disk2/sub-3_id-x/ses-1",
        "disk2/sub-3_id-y/ses-1",
    }
    reason = reasons(found, tmp_path)["disk1/sub-1/ses-1"]
    assert str(one / "sub-1/ses-1") in reason and str(two / "sub-1/ses-1") in reason and "rename" in reason


def test_one_folder_reached_by_two_ways_is_one_session(tmp_path: Path) -> None:
    place(tmp_path, "data/sub-1/ses-1/a.mp4")
    (tmp_path / "data" / "latest").symlink_to("sub-1")
    (tmp_path / "data" / "sub-1_again").symlink_to("sub-1")
    (tmp_path / "mirror").symlink_to("data")
    found = scan([tmp_path / "data", tmp_path / "mirror"], Layout())
    assert recordings(found) == {"sub-1_ses-1": [("a", "a")]}


@pytest.mark.parametrize(
    "roots",
    [("", ""), ("", "data"), ("data", ""), ("", "data/sub-1"), ("", "link"), ("link", "data"), ("link", "link")],
)
def test_a_root_listed_twice_or_inside_another_changes_nothing(tmp_path: Path, roots: tuple[str, ...]) -> None:
    place(tmp_path / "raw/data", "sub-1/ses-1/cam-a.mp4", "sub-1/ses-1/cam-b.mp4", "sub-2/ses-1/cam-a.mp4", "x.mp4")
    (tmp_path / "raw/link").symlink_to("data")
    found = scan([tmp_path / "raw" / root for root in roots], Layout())
    assert recordings(found) == {
        "sub-1_ses-1": [("cam-a", "a"), ("cam-b", "b")],
        "sub-2_ses-1": [("cam-a", "a")],
    }
    assert {item.path.name for item in found.skipped} == {"x.mp4"}


def test_each_root_places_what_the_one_around_it_cannot(tmp_path: Path) -> None:
    place(tmp_path, "m1/d1/a.mp4", "lab2/m2/d1/a.mp4")
    layout = Layout(pattern=r"(?P<subject>[^/]+)/(?P<session>[^/]+)/[^/]+")
    for roots in ([tmp_path, tmp_path / "lab2"], [tmp_path / "lab2", tmp_path]):
        found = scan(roots, layout)
        assert [session.key for session in found.sessions] == ["sub-m1_ses-d1", "sub-m2_ses-d1"]
        assert [item.path.suffix for item in found.skipped] == [""]


def test_a_session_folder_without_videos_is_named(tmp_path: Path) -> None:
    place(tmp_path, "sub-1/ses-1/behav/a.mp4", "sub-1/ses-2/behav/notes.txt", "sub-1/ses-3/a.mp4.part")
    (tmp_path / "sub-1/ses-1/ephys").mkdir()
    (tmp_path / "sub-2/ses-1").mkdir(parents=True)
    found = scan([tmp_path], Layout())
    assert [session.key for session in found.sessions] == ["sub-1_ses-1"]
    assert set(reasons(found, tmp_path)) == {"sub-1/ses-2", "sub-1/ses-3", "sub-1/ses-3/a.mp4.part", "sub-2/ses-1"}
    assert "sub-2_ses-1 holds no video (.mp4, " in reasons(found, tmp_path)["sub-2/ses-1"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".a.mp4", "hidden"),
        ("._a.mp4", "hidden"),
        (".trash/a.mp4", "hidden"),
        ("a.mp4.part", "still being written"),
        ("a.mp4.tmp", "still being written"),
        ("aDLC_Resnet50_openfieldJan1shuffle1_snapshot_200_labeled.mp4", "DeepLabCut drew poses into it, by its name"),
        ("aDLC_resnet50_demoJan1shuffle1_50000filtered_p60_labeled.mp4", "DeepLabCut drew poses into it, by its name"),
        ("b.mp4/frame.txt", "a folder with the name of a video"),
        ("b.MTS", "write `extensions: [.mp4, .avi, .mov, .mkv, .mj2, .m4v, .webm, .mts]` under `layout`"),
        *(
            (f"b{ending}", f".webm, {ending}]` under `layout`")
            for ending in (".h264", ".asf", ".mxf", ".3gp", ".dv", ".ogv", ".vob", ".nut", ".mjpeg")
        ),
    ],
)
def test_what_is_no_recording_is_left_out(tmp_path: Path, name: str, reason: str) -> None:
    found = scan([place(tmp_path, "sub-1/ses-1/a.mp4", f"sub-1/ses-1/{name}")], Layout())
    assert recordings(found) == {"sub-1_ses-1": [("a", "a")]}
    ((path, said),) = reasons(found, tmp_path).items()
    assert path.startswith("sub-1/ses-1/")
    assert reason in said


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("a_labeled.mp4", "aDLC_resnet50_demoJan1shuffle1_50000.h5"),
        ("bDLC_resnet50_p60_labeled.mp4", "bDLC_resnet50_p60.csv"),
        ("b_superanimal_quadruped_hrnet_labeled.mp4", "b_superanimal_quadruped_hrnet.json"),
        ("aDLC_x.mp4", "a.mp4"),
    ],
)
def test_what_deeplabcut_drew_is_known_by_its_data(tmp_path: Path, name: str, beside: str) -> None:
    found = scan([place(tmp_path, "sub-1/ses-1/a.mp4", f"sub-1/ses-1/{name}", f"sub-1/ses-1/{beside}")], Layout())
    assert recordings(found) == {"sub-1_ses-1": [("a", "a")]}
    assert f"as {beside} beside it shows" in reasons(found, tmp_path)[f"sub-1/ses-1/{name}"]


@pytest.mark.parametrize(
    "name", ["DLC_rig_cam-top.mp4", "m1_DLC_2024.mp4", "a_labeled.mp4", "a_full.mp4", "bDLC_resnet50_labeled.mp4"]
)
def test_a_name_that_only_hints_at_deeplabcut_is_a_recording(tmp_path: Path, name: str) -> None:
    found = scan([place(tmp_path, "sub-1/ses-1/a.mp4", f"sub-1/ses-1/{name}", "sub-1/ses-1/aDLC.h5")], Layout())
    assert len(recordings(found)["sub-1_ses-1"]) == 2 and found.skipped == ()


def test_a_video_outside_the_layout_is_named(tmp_path: Path) -> None:
    found = scan([place(tmp_path, "sub-1/a.mp4", "notes.txt")], Layout())
    assert found.sessions == ()
    assert "does not match layout.pattern" in reasons(found, tmp_path)["sub-1/a.mp4"]


@pytest.mark.parametrize("subject", ["a...b", "a|b", "a,b", "a\tb", ""])
def test_keys_that_dagster_refuses_are_left_out(tmp_path: Path, subject: str) -> None:
    layout = Layout(pattern=r"s(?P<subject>[^/]*)/(?P<session>\d+)/[^/]+")
    found = scan([place(tmp_path, f"s{subject}/1/v.mp4", "sgood/1/v.mp4")], layout)
    assert [session.key for session in found.sessions] == ["sub-good_ses-1"]
    assert any("v.mp4" in path for path in reasons(found, tmp_path))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    place(tmp_path, "store/x.mp4", "store/more/y.mp4")
    root = tmp_path / "raw"
    session = root / "sub-1" / "ses-1"
    session.mkdir(parents=True)
    (session / "a.mp4").symlink_to(tmp_path / "store/x.mp4")
    (session / "more").symlink_to(tmp_path / "store/more")
    (session / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (session / "self.mp4").symlink_to(session / "self.mp4")
    (session / "up").symlink_to(root)
    found = scan([root], Layout())
    assert recordings(found) == {"sub-1_ses-1": [("a", "a"), ("y", "y")]}
    said = reasons(found, root)
    assert set(said) == {"sub-1/ses-1/gone.mp4", "sub-1/ses-1/self.mp4", "sub-1/ses-1/up"}
    assert "leads nowhere" in said["sub-1/ses-1/gone.mp4"]
    assert "leads back" in said["sub-1/ses-1/up"]


def test_odd_files_and_names_do_not_stop_a_scan(tmp_path: Path) -> None:
    place(tmp_path, "sub-1/ses-1/a b ü.mp4", "sub-1/ses-1/new\nline.mp4")
    os.mkfifo(tmp_path / "sub-1/ses-1/pipe.mp4")
    (tmp_path / "sub-1/ses-1" / os.fsdecode(b"latin-\xe9.mp4")).write_bytes(b"video")
    found = scan([tmp_path], Layout())
    assert [recording.name for recording in found.sessions[0].recordings] == ["a b ü", "new\nline"]
    said = reasons(found, tmp_path)
    assert "not a file but a pipe" in said["sub-1/ses-1/pipe.mp4"]
    assert r"latin-\xe9.mp4 is not UTF-8" in said["sub-1/ses-1"]


def test_a_raw_root_that_is_missing_or_no_folder_is_named(tmp_path: Path) -> None:
    place(tmp_path, "raw/sub-1/ses-1/a.mp4", "file")
    found = scan([tmp_path / "gone", tmp_path / "raw", tmp_path / "file"], Layout())
    assert [session.key for session in found.sessions] == ["sub-1_ses-1"]
    said = reasons(found, tmp_path)
    assert set(said) == {"gone", "file"}
    assert "raw_roots" in said["gone"] and "cannot be read" in said["file"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, "sub-1/ses-1/a.mp4", "sub-2/ses-1/a.mp4")
    deep = tmp_path / "sub-1/ses-1/deep"
    deep.mkdir()
    real = os.scandir

    # Root may read every folder, so the system's refusal is made here.
    def refuse(path: str) -> object:
        if path == str(deep):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = scan([tmp_path], Layout())
    assert [session.key for session in found.sessions] == ["sub-1_ses-1", "sub-2_ses-1"]
    assert "Permission denied" in reasons(found, tmp_path)["sub-1/ses-1/deep"]


def test_the_result_is_sorted_and_repeatable(tmp_path: Path) -> None:
    place(tmp_path, *(f"sub-{subject}/ses-{session}/v.mp4" for subject in (3, 1, 2) for session in (2, 1)))
    found = scan([tmp_path], Layout())
    assert [session.key for session in found.sessions] == sorted(session.key for session in found.sessions)
    assert found == scan([tmp_path], Layout())
