"""What would be done with real, small videos, beside what the catalogue knows."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine, text

from dlc_platform.catalog import quarantine
from dlc_platform.catalog.promotions import promote
from dlc_platform.catalog.sessions import current_files, record_session_labels, session_places
from dlc_platform.cli import app
from dlc_platform.cli.plan_lines import plan_lines
from dlc_platform.lab.plan import Plan, PlannedFile, PlannedSession, plan
from dlc_platform.platform import Platform
from dlc_platform.sessions.recordings import scan
from dlc_platform.sessions.registration import judge, register
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform_tests.catalog.small_lab import dataset, identity, image, promotion, record_dataset, track, train
from dlc_platform_tests.sessions.test_recordings import place
from dlc_platform_tests.sessions.test_registration import write_video
from dlc_platform_tests.video.conftest import spoil

AN_HOUR_AGO = time.time() - 4000


def age(root: Path) -> None:
    """Let all files have settled long ago."""
    for path in root.rglob("*"):
        os.utime(path, (AN_HOUR_AGO, AN_HOUR_AGO))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    write_video(raw / "sub-1/ses-1/cam-top.mp4", 10)
    write_video(raw / "sub-1/ses-1/cam-side.mp4", 12, shade=50)
    write_video(raw / "sub-2/ses-1/cam-top.mp4", 25, shade=100)
    age(raw)
    return raw


@pytest.fixture
def home(tmp_path: Path, raw: Path) -> Path:
    home = tmp_path / "lab"
    home.mkdir()
    settings = {
        "raw_roots": [str(raw)],
        "projects": {"maze": {"path": "/no/matter"}, "other": {"path": "/no/matter"}},
        "inference": [{"camera": "top*", "project": "maze"}],
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(settings))
    return home


@pytest.fixture
def lab(home: Path) -> Lab:
    return load_lab(home)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["dlc-platform", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        said = capsys.readouterr()
        return said.err if ended.value.code == 2 else ended.value.code, said.out

    return run


def register_all(engine: Engine, lab: Lab) -> None:
    for session in scan(lab.raw_roots, lab.layout).sessions:
        register(engine, session)


def put_into_production(engine: Engine) -> None:
    record_dataset(engine, "first", dataset("d"), [image("d", "3", None)])
    train(engine, "a", "d")
    promote(engine, promotion("a"), expected=None)


def session(made: Plan, key: str) -> PlannedSession:
    (found,) = (one for one in made.sessions if one.key == key)
    return found


def file(made: Plan, key: str, recording: str) -> PlannedFile:
    (found,) = (one for one in session(made, key).files if one.recording == recording)
    return found


def test_a_lab_that_was_never_started_has_a_plan_and_stays_so(
    home: Path, raw: Path, command: Callable[..., tuple[object, str]]
) -> None:
    made = Platform(home).plan()
    assert not made.has_catalogue and not made.loses
    assert [(one.key, one.state, one.registers) for one in made.sessions] == [
        ("sub-1_ses-1", "new", True),
        ("sub-2_ses-1", "new", True),
    ]
    top, side = file(made, "sub-1_ses-1", "cam-top"), file(made, "sub-1_ses-1", "cam-side")
    assert (top.frames, top.duration_s, top.poses) == (10, pytest.approx(0.4), "none")
    assert "the project maze has no production model" in (top.reason or "")
    assert "no inference rule matches its camera" in (side.reason or "")
    code, out = command("scan", home, "--dry-run")
    assert code == 0 and "session_videos would run for 2 sessions, 3 files (1.9 s, 47 frames)" in out
    assert sorted(path.name for path in home.iterdir()) == ["lab.yaml"]


def test_what_is_registered_is_tracked_by_the_production_model(engine: Engine, lab: Lab, raw: Path) -> None:
    register_all(engine, lab)
    put_into_production(engine)
    (top,) = current_files(engine, "sub-2_ses-1")
    track(engine, "9", top, "a")
    made = plan(lab, engine)
    assert [(one.state, one.registers, one.labels, one.note) for one in made.sessions] == [
        ("registered", False, True, "")
    ] * 2
    wanted = file(made, "sub-1_ses-1", "cam-top")
    assert (wanted.poses, wanted.project, wanted.model, wanted.frames) == ("wanted", "maze", identity("a"), 10)
    assert file(made, "sub-2_ses-1", "cam-top").poses == "there"
    for key in ("sub-1_ses-1", "sub-2_ses-1"):
        record_session_labels(engine, key, dict.fromkeys(lab.projects, 0))
    assert [one.labels for one in plan(lab, engine).sessions] == [False, False]


def test_a_project_that_cannot_be_read_is_named(
    engine: Engine, lab: Lab, raw: Path, make_project: Callable[..., Path], tmp_path: Path
) -> None:
    good, torn, bad = (make_project(tmp_path / name, 2) for name in ("good", "torn", "bad"))
    (bad / "config.yaml").write_text("bodyparts: [")
    (table,) = torn.glob("labeled-data/*/CollectedData_*.csv")
    table.write_text(table.read_text().replace("bodyparts", "nothing"))
    for data in torn.glob("labeled-data/*/*.h5"):
        data.unlink()
    projects = {name: {"path": path} for name, path in (("good", good), ("torn", torn), ("bad", bad))}
    made = plan(Lab.model_validate({"raw_roots": lab.raw_roots, "projects": projects}), engine)
    said = [line for line in plan_lines(made) if "cannot be used" in line]
    assert [line.split(":")[0] for line in said] == [
        "The project torn cannot be used",
        "The project bad cannot be used",
    ]
    assert str(bad / "config.yaml") in said[1] and list(made.to_json()["projects"]) == said


def test_a_copy_is_shown_for_each_session_that_holds_one(engine: Engine, lab: Lab, raw: Path) -> None:
    for number in (3, 4, 5):
        folder = raw / f"sub-{number}/ses-1"
        folder.mkdir(parents=True)
        shutil.copy(raw / "sub-2/ses-1/cam-top.mp4", folder)
    age(raw)
    register_all(engine, lab)
    made = plan(lab, engine)
    (line,) = made.copies
    assert line.startswith(f"{raw}/sub-2/ses-1/cam-top.mp4 of sub-2_ses-1 is the very video of ")
    for number in (2, 3, 4, 5):
        (own,) = made.of(f"sub-{number}_ses-1").copies
        assert own.startswith(f"{raw}/sub-{number}/ses-1/cam-top.mp4 of sub-{number}_ses-1 is the very video of ")
        assert "and of 2 more files" in own
    assert made.of("sub-1_ses-1").copies == ()


def test_replaced_added_and_removed_files_change_their_session(engine: Engine, lab: Lab, raw: Path) -> None:
    register_all(engine, lab)
    write_video(raw / "sub-1/ses-1/cam-top.mp4", 14)
    (raw / "sub-1/ses-1/cam-side.mp4").unlink()
    write_video(raw / "sub-1/ses-1/cam-topmost.mp4", 3)
    age(raw)
    changed = session(plan(lab, engine), "sub-1_ses-1")
    assert (changed.state, changed.registers) == ("changed", True)
    assert changed.note == "cam-top.mp4 has changed; cam-topmost.mp4 is new; cam-side.mp4 is gone"


def test_a_session_that_was_renamed_is_taken_for_what_it_was(engine: Engine, lab: Lab, raw: Path) -> None:
    register_all(engine, lab)
    (raw / "sub-2").rename(raw / "sub-3")
    made = plan(lab, engine)
    moved, gone = session(made, "sub-3_ses-1"), session(made, "sub-2_ses-1")
    assert (moved.state, moved.registers) == ("moved", True)
    assert moved.note == f"moved from {raw}/sub-2/ses-1/cam-top.mp4, by its size and time"
    assert (gone.state, gone.note) == ("missing", "it seems to be sub-3_ses-1 now")


def test_recordings_that_moved_with_their_lab_keep_their_poses(engine: Engine, lab: Lab, raw: Path) -> None:
    register_all(engine, lab)
    put_into_production(engine)
    (top,) = current_files(engine, "sub-2_ses-1")
    track(engine, "9", top, "a")
    there = raw.rename(raw.with_name("elsewhere"))
    moved = lab.model_copy(update={"raw_roots": (there,)})
    assert session(plan(moved, engine), "sub-2_ses-1").note.startswith("moved from")
    assert file(plan(moved, engine), "sub-2_ses-1", "cam-top").poses == "there"
    register_all(engine, moved)
    assert file(plan(moved, engine), "sub-2_ses-1", "cam-top").poses == "there"


def test_missing_and_unreachable_sessions_are_distinguished(engine: Engine, lab: Lab, raw: Path) -> None:
    register_all(engine, lab)
    (raw / "sub-2/ses-1/cam-top.mp4").unlink()
    missing = session(plan(lab, engine), "sub-2_ses-1")
    assert missing.state == "missing" and "nothing is deleted" in missing.note and not missing.registers
    raw.rename(raw.with_name("unmounted"))
    made = plan(lab, engine)
    assert made.loses
    assert {(one.state, one.note) for one in made.sessions} == {("unreachable", f"{raw} cannot be read")}
    assert next(plan_lines(made)) == "1 LOST until mended"


def test_a_session_that_is_not_ready_waits_and_counts_untracked(engine: Engine, lab: Lab, raw: Path) -> None:
    put_into_production(engine)
    place(raw, "sub-1/ses-1/cam-side.mp4.part")
    os.utime(raw / "sub-2/ses-1/cam-top.mp4")
    made = plan(lab, engine)
    first, second = made.sessions
    assert "cam-side.mp4.part beside it says that it is still being written" in first.note
    assert "cam-top.mp4 was written" in second.note and "has not changed for 30 s" in second.note
    assert not (first.registers or second.registers or first.labels)
    assert {one.poses for one in (*first.files, *second.files)} == {"none"}
    assert "2 sessions are not ready" in "\n".join(plan_lines(made))
    # A clock that is ahead of ours holds up nothing.
    os.utime(raw / "sub-2/ses-1/cam-top.mp4", (AN_HOUR_AGO, time.time() + 9000))
    assert session(plan(lab, engine), "sub-2_ses-1").registers


def test_a_container_that_does_not_open_waits_for_an_hour(engine: Engine, lab: Lab, raw: Path) -> None:
    put_into_production(engine)
    (raw / "sub-2/ses-1/cam-top.mp4").write_text("This is no video.")
    long_ago = time.time() - 100
    os.utime(raw / "sub-2/ses-1/cam-top.mp4", (long_ago, long_ago))
    waits = session(plan(lab, engine), "sub-2_ses-1")
    assert not waits.registers and "cam-top.mp4 does not open: is not a video" in waits.note
    age(raw)
    made = plan(lab, engine)
    assert session(made, "sub-2_ses-1").registers
    assert "does not open" in (file(made, "sub-2_ses-1", "cam-top").reason or "")


def test_what_is_damaged_unreadable_or_in_quarantine_says_so(engine: Engine, lab: Lab, raw: Path) -> None:
    write_video(raw / "sub-3/ses-1/cam-top.mp4", 5, shade=30).write_text("no video")
    spoil(raw / "sub-1/ses-1/cam-top.mp4", [3])
    age(raw)
    register_all(engine, lab)
    put_into_production(engine)
    fault = quarantine.Fault("it is too dark", "light the arena", identity("e"), str(raw / "sub-2/ses-1/cam-top.mp4"))
    quarantine.judge(engine, "sub-2_ses-1", "videos", [fault])
    made = plan(lab, engine)
    said = [file(made, f"sub-{number}_ses-1", "cam-top") for number in (1, 2, 3)]
    assert [one.poses for one in said] == ["none"] * 3
    assert "it is damaged" in (said[0].reason or "") and "`damaged_videos` in lab.yaml says stop" in (
        said[0].reason or ""
    )
    assert said[1].reason == "in quarantine: it is too dark; light the arena"
    assert "is not a video" in (said[2].reason or "")
    assert not session(made, "sub-3_ses-1").labels
    track_all = lab.model_copy(update={"damaged_videos": "track"})
    assert file(plan(track_all, engine), "sub-1_ses-1", "cam-top").poses == "wanted"


def test_a_damaged_video_that_a_person_let_go_is_tracked(engine: Engine, lab: Lab, raw: Path) -> None:
    spoil(raw / "sub-1/ses-1/cam-top.mp4", [3])
    age(raw)
    register_all(engine, lab)
    put_into_production(engine)
    key = "sub-1_ses-1"
    judge(engine, lab.video_rules, key)
    assert "in quarantine" in (file(plan(lab, engine), key, "cam-top").reason or "")
    quarantine.release(engine, key, "ada")
    judge(engine, lab.video_rules, key)
    assert file(plan(lab, engine), key, "cam-top").poses == "wanted"


def test_a_plan_writes_nothing(engine: Engine, home: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))

    def rows() -> dict[str, int]:
        with engine.connect() as connection:
            names = connection.scalars(text("select tablename from pg_tables where schemaname = 'dlc'")).all()
            return {name: connection.scalar(text(f"select count(*) from dlc.{name}")) or 0 for name in names}

    before = rows()
    assert Platform(home).plan().has_catalogue
    assert rows() == before


def test_a_database_with_no_catalogue_or_one_of_another_version(
    empty_database: object,
    engine: Engine,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[object, str]],
) -> None:
    url = empty_database.render_as_string(hide_password=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", url)
    assert not Platform(home).plan().has_catalogue
    with engine.begin() as connection:
        connection.execute(text("update dlc.alembic_version set version_num = '0003'"))
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))
    assert "older version of the platform" in str(command("scan", home, "--dry-run")[0])


def test_a_summary_of_many_stays_short_and_all_of_it_can_be_had(
    home: Path, raw: Path, command: Callable[..., tuple[object, str]]
) -> None:
    content = (raw / "sub-1/ses-1/cam-top.mp4").read_bytes()
    for number in range(400):
        folder = raw / f"sub-n{number}/ses-1"
        folder.mkdir(parents=True)
        (folder / f"cam-c{number}.mp4").write_bytes(content)
        (raw / f"stray{number}.mp4").touch()
        (folder / f"cam-c{number}DLC_x.mp4").touch()
    age(raw)
    code, out = command("scan", home, "--dry-run")
    assert code == 0 and len(out.splitlines()) < 40, out
    assert "402 sessions on disk: 402 new" in out and "and 392 more sessions; --all names them" in out
    assert "400: its path does not match" in out and "401: no inference rule" in out
    assert "400 more are left out in every lab" in out
    code, out = command("scan", home, "--dry-run", "--all")
    assert "stray399.mp4" in out and "sub-n399_ses-1: new" in out and "cam-c399DLC_x.mp4" in out


def test_the_plan_of_one_session_and_as_json(home: Path, raw: Path, command: Callable[..., tuple[object, str]]) -> None:
    place(raw, "sub-1/ses-10/x.mp4", "copy/sub-1/ses-10/y.mp4", "sub-1/ses-1/.a.mp4")
    code, out = command("scan", home, "--dry-run", "--session", "sub-1_ses-1")
    assert code == 0 and "1 session on disk" in out and ".a.mp4" in out and "ses-10" not in out
    code, out = command("scan", home, "--dry-run", "--session", "sub-1_ses-10")
    assert code == 1 and "LOST until mended" in out and f"{raw}/copy/sub-1/ses-10" in out
    code, out = command("scan", home, "--dry-run", "--json")
    said = json.loads(out)
    assert code == 1 and [one["key"] for one in said["sessions"]] == ["sub-1_ses-1", "sub-2_ses-1"]
    assert said["sessions"][0]["files"][0]["camera"] == "side" and said["skipped"][0]["kind"] == "lost"
    assert "there is no session 'sub-9_ses-9'" in str(command("scan", home, "--dry-run", "--session", "sub-9_ses-9")[0])
    assert "go with --dry-run" in str(command("scan", home, "--json")[0])


def test_what_is_wrong_with_the_labs_tables_is_in_the_plan(engine: Engine, lab: Lab, raw: Path) -> None:
    (raw / "subjects.csv").write_text("subject,sex\n1,F\n1,M\n7,F\n")
    reasons = [item.reason for item in plan(lab, engine).skipped]
    assert reasons == [
        "it names 7, who have no session on disk",
        "its lines 2 and 3 are of one subject, and the first is used; remove one",
    ]


def test_without_dry_run_what_is_ready_is_registered(
    engine: Engine,
    home: Path,
    raw: Path,
    command: Callable[..., tuple[object, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))
    place(raw, "sub-2/ses-1/cam-top.mp4.part")
    code, out = command("scan", home)
    assert code == 0 and f"as `dlc-platform run {home} session_videos` does" in out, out
    assert [key for key, *_ in session_places(engine)] == ["sub-1_ses-1"]
    (raw / "sub-2/ses-1/cam-top.mp4.part").unlink()
    (raw / "subjects.csv").write_text("subject,sex\n1,F\n2,M\n")
    code, out = command("scan", home)
    assert code == 0 and "say something new of 1 subject or session" in out, out
    table = Platform(home).sessions(details=True).set_index("recording")
    assert dict(zip(table["session"], table["subject.sex"], strict=True)) == {"sub-1_ses-1": "F", "sub-2_ses-1": "M"}
    assert len(Platform(home).details()) == 4
    write_video(raw / "sub-3/ses-1/cam-top.mp4", 5).write_text("no video")
    age(raw)
    (raw / "subjects.csv").write_text("subject,sex\n1,F\n2,F\n")
    (home / "lab.yaml").write_text((home / "lab.yaml").read_text() + "scan: {unopened_seconds: 0}\n")
    code, out = command("scan", home)
    assert code == 1 and "say something new of 1 subject or session" in out, out
