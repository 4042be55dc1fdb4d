"""The presets, patterns of all kinds, and the order of the files of a recording."""

import unicodedata
from pathlib import Path

import pytest
from pydantic import ValidationError

from dlc_platform.errors import PlatformError
from dlc_platform.sessions.layout import alike
from dlc_platform.sessions.recordings import scan
from dlc_platform.settings.layout import NEUROBLUEPRINT, Layout
from dlc_platform_tests.sessions.test_recordings import place, reasons, recordings


def files(root: Path, layout: Layout) -> dict[tuple[str, str], list[str]]:
    """The names of the files of each recording, in the order of recording."""
    return {
        (session.key, recording.camera): [file.path.relative_to(root).as_posix() for file in recording.files]
        for session in scan([root], layout).sessions
        for recording in session.recordings
    }


def test_the_default_is_neuroblueprint() -> None:
    assert Layout().pattern == Layout.model_validate({"preset": "neuroblueprint"}).pattern == NEUROBLUEPRINT


def test_a_preset_and_a_pattern_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="both a preset and a pattern"):
        Layout.model_validate({"preset": "bids", "pattern": "(?P<subject>.)/(?P<session>.)/.*"})
    with pytest.raises(ValidationError, match="'neuroblueprint', 'bids' or 'element'"):
        Layout.model_validate({"preset": "nwb"})


@pytest.mark.parametrize("marker", ["", ".", "a/b", "{day}.done", "{stem}", "x\0y"])
def test_a_marker_is_the_name_of_a_file(marker: str) -> None:
    with pytest.raises(ValidationError, match="must be the name of a file"):
        Layout(marker=marker)


def test_bids(tmp_path: Path) -> None:
    beh = "study/sub-01/ses-pre/beh/sub-01_ses-pre_task-maze"
    place(
        tmp_path,
        f"{beh}_acq-fast_recording-top_split-2_video.mp4",
        f"{beh}_acq-fast_recording-top_split-10_video.mp4",
        f"{beh}_acq-fast_recording-top_split-1_video.mp4",
        f"{beh}_acq-side_run-1_video.mp4",
        f"{beh}_acq-side_run-2_video.mp4",
        "study/sub-02/beh/sub-02_task-maze_video.mp4",
        "study/sub-03/ses-1/beh/sub-03_ses-2_video.mp4",
        "study/sub-03/ses-1/beh/sub-04_ses-1_video.mp4",
        "study/sub-03/beh/sub-03_ses-1_video.mp4",
        "study/sub-03/ses-1/beh/maze.mp4",
        "study/derivatives/x/sub-05/ses-1/beh/sub-05_ses-1_video.mp4",
        "study/sub-01/ses-pre/beh/sub-01_ses-pre_task-maze_events.tsv",
    )
    layout = Layout.model_validate({"preset": "bids"})
    found = scan([tmp_path], layout)
    assert recordings(found) == {
        "sub-01_ses-pre": [
            ("sub-01_ses-pre_task-maze_acq-fast_recording-top_video", "top"),
            ("sub-01_ses-pre_task-maze_acq-side_run-1_video", "side"),
            ("sub-01_ses-pre_task-maze_acq-side_run-2_video", "side"),
        ],
        "sub-02_ses-only": [("sub-02_task-maze_video", "sub-02_task-maze_video")],
    }
    top = found.sessions[0].recordings[0].files
    assert [file.path.name.split("_")[-2] for file in top] == ["split-1", "split-2", "split-10"]
    assert found.sessions[0].folder == tmp_path / "study/sub-01/ses-pre"
    assert found.sessions[1].folder == tmp_path / "study/sub-02"
    assert len(reasons(found, tmp_path)) == 5
    assert all("does not match layout.pattern" in reason for reason in reasons(found, tmp_path).values())


def test_a_value_ends_at_an_underscore_alone(tmp_path: Path) -> None:
    place(tmp_path / "bids", "sub-René-1/ses-1/beh/sub-René-1_ses-1_recording-top-left_split-1_video.mp4")
    place(tmp_path / "bids", "sub-René-1/ses-1/beh/sub-René-1_ses-1_acq-côté_video.mp4")
    (session,) = scan([tmp_path / "bids"], Layout.model_validate({"preset": "bids"})).sessions
    assert session.key == "sub-René-1_ses-1"
    assert {recording.camera for recording in session.recordings} == {"top-left", "côté"}
    apart = unicodedata.normalize("NFD", "Zoé")
    place(tmp_path / "nb", f"sub-{apart}_id-x/ses-été-1/a.mp4", "sub-动物/ses-1/a.mp4", "sub-1/ses-1 (copy)/a.mp4")
    found = scan([tmp_path / "nb"], Layout())
    assert [session.key for session in found.sessions] == ["sub-Zoé_ses-été-1", "sub-动物_ses-1"]
    assert list(reasons(found, tmp_path)) == ["nb/sub-1/ses-1 (copy)/a.mp4"]


def test_a_word_that_ends_in_part_numbers_nothing(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        root = tmp_path / form
        place(root, *(f"sub-1/ses-1/{unicodedata.normalize(form, 'épart')}-{number}.mp4" for number in (1, 2)))
        (session,) = scan([root], Layout()).sessions
        assert [len(recording.files) for recording in session.recordings] == [1, 1]


def test_the_root_directories_of_element_deeplabcut(tmp_path: Path) -> None:
    place(
        tmp_path / "inbox",
        "subject6/session1/m3v1mp4.mp4",
        "subject6/session1/raw/side view.avi",
        "openfield-Pranav-2018-10-30/videos/m3v1mp4.mp4",
        "openfield-Pranav-2018-10-30/labeled-data/x/y.mp4",
        "loose.mp4",
    )
    place(tmp_path / "outbox", "subject5/2021-06-02_14-04-22/a.mp4")
    found = scan([tmp_path / "inbox", tmp_path / "outbox"], Layout.model_validate({"preset": "element"}))
    assert recordings(found) == {
        "sub-subject5_ses-2021-06-02_14-04-22": [("a", "a")],
        "sub-subject6_ses-session1": [("m3v1mp4", "m3v1mp4"), ("side view", "side view")],
    }
    assert len(reasons(found, tmp_path)) == 3


def test_a_subject_of_one_session_may_leave_it_out(tmp_path: Path) -> None:
    place(tmp_path, "m1/a.mp4", "m2/s2/a.mp4")
    pattern = r"(?P<subject>[^/]+)/(?:(?P<session>[^/]+)/)?[^/]+"
    assert [s.key for s in scan([tmp_path], Layout(pattern=pattern)).sessions] == ["sub-m2_ses-s2"]
    found = scan([tmp_path], Layout(pattern=pattern, unnamed_session="single"))
    assert [s.key for s in found.sessions] == ["sub-m1_ses-single", "sub-m2_ses-s2"]


@pytest.mark.parametrize(
    ("pattern", "names", "recording"),
    [
        (r"video(?P<part>\d+)\.avi", ["video0.avi", "video1.avi", "video2.avi", "video10.avi"], "video"),
        (r"\w+/(?P<part>\d+)\.avi", ["Miniscope/0.avi", "Miniscope/2.avi", "Miniscope/11.avi"], "Miniscope"),
        (
            r"(?P<camera>cam\d)_(?P<part>[\dT_-]+)\.avi",
            ["cam1_2025-12-31T23_59_59.avi", "cam1_2026-01-31T9_00_00.avi", "cam1_2026-01-31T12_00_00.avi"],
            "cam1",
        ),
        (r"(?P<part>\d+)_top\.mp4", ["1_top.mp4", "2_top.mp4", "12_top.mp4"], "top"),
        (r"(?P<part>\d+)/top\.mp4", ["1/top.mp4", "2/top.mp4", "12/top.mp4"], "top"),
        (r"top(?:-(?P<part>[a-z]))?\.mp4", ["top-a.mp4", "top-b.mp4"], "top"),
    ],
)
def test_files_follow_each_other_as_they_were_recorded(
    tmp_path: Path, pattern: str, names: list[str], recording: str
) -> None:
    place(tmp_path, *(f"rat/day/{name}" for name in reversed(names)))
    layout = Layout(pattern=rf"(?P<subject>\w+)/(?P<session>\w+)/{pattern}")
    (session,) = scan([tmp_path], layout).sessions
    assert [made.name for made in session.recordings] == [recording]
    assert files(tmp_path, layout) == {(session.key, recording): [f"rat/day/{name}" for name in names]}


def test_a_name_is_the_same_however_its_accents_are_written(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD"))
    assert composed != apart
    layout = Layout(pattern=r"(?P<subject>[^/]+)/(?P<session>\w+)/(?P<camera>[^/]+)\.mp4")
    place(tmp_path / "one", f"{apart}/1/cam {apart}.mp4")
    (session,) = scan([tmp_path / "one"], layout).sessions
    assert (session.key, session.subject) == (f"sub-{composed}_ses-1", composed)
    assert (session.recordings[0].name, session.recordings[0].camera) == (f"cam {composed}", f"cam {composed}")
    # Two folders that look the same claim the same key, and it is said.
    place(tmp_path / "two", f"{apart}/1/a.mp4", f"{composed}/1/a.mp4", "x/1/a.mp4")
    found = scan([tmp_path / "two"], layout)
    assert [session.key for session in found.sessions] == ["sub-x_ses-1"]
    assert [item.kind for item in found.skipped] == ["lost"] * 2


def test_names_that_differ_only_in_accents_never_mix(tmp_path: Path) -> None:
    place(tmp_path, *(f"sub-1/ses-1/{unicodedata.normalize(form, 'é')}.mp4" for form in ("NFC", "NFD")))
    found = scan([tmp_path], Layout())
    assert found.sessions == ()
    assert "would both be called" in reasons(found, tmp_path)["sub-1/ses-1"]


def test_keys_that_look_alike_are_named(tmp_path: Path) -> None:
    place(tmp_path, "sub-M1/ses-1/a.mp4", "sub-m1/ses-1/a.mp4", "sub-m2/ses-1/A.mp4", "sub-m2/ses-1/a.mp4")
    found = scan([tmp_path], Layout())
    assert recordings(found)["sub-m2_ses-1"] == [("A", "A"), ("a", "a")]
    assert alike(session.key for session in found.sessions) == [["sub-M1_ses-1", "sub-m1_ses-1"]]


def deep_file(root: Path) -> None:
    file = root / ("a0" * 60) / "s" / f"{'a0' * 60}.mp4"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?P<subject>([a-z0-9]+)+)/(?P<session>s)[!?]\.mp4",
        r"(?P<subject>(\w+\W*)+)/(?P<session>s)[!?]\.mp4",
        r"(?P<subject>.*.*.*.*.*.*.*.*.*.*)/(?P<session>.*.*.*.*.*.*.*.*)[!?]\.mp4",
    ],
)
def test_repetitions_inside_repetitions_hold_up_no_look(tmp_path: Path, pattern: str) -> None:
    deep_file(tmp_path)
    assert not scan([tmp_path], Layout(pattern=pattern)).sessions


def test_a_pattern_that_does_not_come_to_an_end_is_told(tmp_path: Path) -> None:
    deep_file(tmp_path)
    layout = Layout(pattern=r"(?P<subject>(a|a|a0|0a|[a0])*)/(?P<session>s)[!?]\.mp4")
    with pytest.raises(PlatformError, match=r"matching layout\.pattern of lab\.yaml takes too long for the path 'a0a0"):
        scan([tmp_path], layout)
