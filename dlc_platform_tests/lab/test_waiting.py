"""Sessions that wait or are held up, each with since when, why and what to do."""

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine, text

from dlc_platform.catalog.promotions import promote
from dlc_platform.catalog.quarantine import Fault, judge, release
from dlc_platform.catalog.sessions import assign_cameras, record_session_labels, register_session
from dlc_platform.cli import app
from dlc_platform.lab.waiting import Waiting, waiting, waiting_lines
from dlc_platform.sessions import scanning
from dlc_platform.sessions.raw_roots import every_folder
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.loading import load_lab
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.catalog.small_lab import (
    dataset,
    identity,
    image,
    promotion,
    record_dataset,
    recording,
    session,
    train,
    video,
)
from dlc_platform_tests.sessions.test_registration import write_video

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    settings = {
        "raw_roots": ["raw"],
        "projects": {name: {"path": "/no/matter"} for name in ("maze", "other")},
        "inference": [{"camera": "top", "project": "maze"}],
        "settle_seconds": 30,
    }
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def look(engine: Engine, settings: Lab, at: datetime) -> None:
    scanning.look(engine, settings, at, most=10)


def of(engine: Engine, settings: Lab, session: str, at: datetime = NOW) -> Waiting:
    (one,) = [one for one in waiting(engine, settings, at) if one.session == session]
    return one


def test_what_the_sensor_waits_for(engine: Engine, home: Path) -> None:
    raw, settings = home / "raw", load_lab(home)
    broken = raw / "sub-006/ses-003/cam-top.mp4"
    for path in (broken, raw / "sub-1/ses-1/cam-top.mp4"):
        path.parent.mkdir(parents=True)
    broken.write_bytes(b"\0\0\0\x18ftypisom no index")
    write_video(raw / "sub-1/ses-1/cam-top.mp4", 5)
    (raw / "sub-1/ses-1/cam-top.mp4.part").touch()
    look(engine, settings, NOW)
    settling = of(engine, settings, "sub-006_ses-003", NOW + timedelta(seconds=3))
    assert settling.passing and "changed less than 30 s ago" in settling.reason
    later = NOW + timedelta(seconds=31)
    look(engine, settings, later)
    held = of(engine, settings, "sub-006_ses-003", later)
    assert (held.step, held.file, held.since, held.passing) == ("registration", str(broken), later, False)
    assert held.reason.startswith("it does not open (")
    assert f"reads it as it is at {later + timedelta(hours=1):%Y-%m-%d %H:%M} UTC" in held.remedy
    partner = of(engine, settings, "sub-1_ses-1", later)
    assert "cam-top.mp4.part beside it says" in partner.reason and partner.remedy.startswith("Remove that file")

    raw.rename(home / "away")
    look(engine, settings, later)
    away = of(engine, settings, "sub-006_ses-003", later)
    assert f"{raw}: the raw root cannot be read" in away.reason and not away.passing


def test_what_registered_sessions_wait_for(lab: Engine, home: Path) -> None:
    settings = load_lab(home)
    two = of(lab, settings, "sub-2_ses-1")
    assert (two.step, two.file, two.passing) == ("poses", "/raw/sub-2_ses-1/top.mp4", False)
    assert "is not judged" in two.reason and two.remedy.count("by itself") == 2  # its evaluation is in no store
    tables = ("comparison_error", "evaluation_session_error", "evaluation_error", "evaluation")
    with lab.begin() as connection:
        connection.execute(text("update dlc.promotion set evaluation_id = null"))
        connection.execute(text("; ".join(f"delete from dlc.{table}" for table in tables)))
    assert of(lab, settings, "sub-2_ses-1").passing
    other = settings.model_copy(update={"inference": (settings.inference[0].model_copy(update={"project": "other"}),)})
    assert of(lab, other, "sub-2_ses-1").reason == "the project other has no production model"
    with lab.begin() as connection:
        connection.execute(text("update dlc.recording_file set missing_since = now() where path like '%sub-2%'"))
    assert of(lab, settings, "sub-2_ses-1").reason == "its file is gone"
    judge(lab, "sub-2_ses-1", "videos", [Fault("too dark", "Switch the lamp on", identity("a"))])
    quarantine = of(lab, settings, "sub-2_ses-1")
    assert (quarantine.step, quarantine.reason, quarantine.remedy) == ("videos", "too dark", "Switch the lamp on")


@pytest.mark.parametrize("has_model", [True, False])
def test_a_released_file_that_cannot_be_read_is_not_promised(engine: Engine, home: Path, has_model: bool) -> None:
    settings, key = load_lab(home), "sub-5_ses-1"
    said = "/raw/x.mp4 cannot be opened (it has no index). Copy the file again, or rebuild its index."
    register_session(engine, session(key), [(recording(key, "top", problem=said), None)])
    assign_cameras(engine, {"top": "maze"}.get)
    if has_model:
        record_dataset(engine, "first", dataset("d"), [image("d", "3", None)])
        train(engine, "a", "d")
        promote(engine, promotion("a"), expected=None)
    path = f"/raw/{key}/top.mp4"
    judge(engine, key, "videos", [Fault("cannot be opened", "Copy it again", identity("a"), path)])
    release(engine, key, "ada")
    held = of(engine, settings, key)
    assert (held.step, held.file, held.passing) == ("poses", path, False)
    assert f"{held.reason}. {held.remedy}." == said
    # Nor are its labels counted, whether or not its camera is tracked.
    other = settings.model_copy(update={"inference": ()})
    assert (of(engine, other, key).step, of(engine, other, key).remedy) == ("labels", held.remedy)
    record_session_labels(engine, key, {"maze": 0})
    assert waiting(engine, other) == []


def test_a_damaged_file_waits_by_the_rule_of_the_lab(engine: Engine, home: Path) -> None:
    settings, key = load_lab(home), "sub-5_ses-1"
    register_session(engine, session(key), [(recording(key, "top", "1"), video("1", damage="cut off"))])
    assign_cameras(engine, {"top": "maze"}.get)
    assert "it is cut off" in of(engine, settings, key).reason
    assert "track" in of(engine, settings, key).remedy
    track = settings.model_copy(update={"damaged_videos": "track"})
    assert of(engine, track, key).reason == "the project maze has no production model"
    path = f"/raw/{key}/top.mp4"
    judge(engine, key, "videos", [Fault("cut off", "Copy it again", identity("a"), path)])
    release(engine, key, "ada")
    assert of(engine, settings, key).reason == "the project maze has no production model"


def test_all_of_it_is_listed_in_lines_that_a_terminal_holds(
    lab: Engine, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, lab.url.render_as_string(hide_password=False))
    judge(lab, "sub-2_ses-1", "videos", [Fault("too dark", "Switch the lamp on", identity("a"), "/raw/top.mp4")])

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dlc-platform", *arguments])
        with pytest.raises(SystemExit):
            app.main()
        return capsys.readouterr().out

    out = run("sessions", str(home), "--waiting")
    assert "sub-2_ses-1 waits for its videos to be good enough, since 20" in out
    assert "    /raw/top.mp4: too dark\n    Switch the lamp on\n" in out
    assert out.splitlines()[-1].endswith("of them for a person")
    assert "sessions are held up, such as" in run("doctor", str(home))


def test_sessions_that_wait_for_the_same_are_listed_together() -> None:
    release = "Record it again; or release it with `dlc-platform sessions release HOME {} --stage videos`"
    found = [
        Waiting(f"sub-{n:03}_ses-01", "poses", f"/raw/{n}/top.mp4", NOW + timedelta(hours=n), "no model", "Train one")
        for n in range(12)
    ]
    found += [
        Waiting(key, "videos", f"/raw/{key}/top.mp4", NOW, f"/raw/{key}/top.mp4 is too dark", release.format(key))
        for key in ("sub-020_ses-01", "sub-021_ses-01")
    ]
    found.append(Waiting("sub-030_ses-01", "labels", None, None, "its labels are torn", "Mend them"))
    lines = list(waiting_lines(found, 80))
    since = f"the first since {NOW:%Y-%m-%d %H:%M} UTC"
    assert lines[:3] == [f"12 sessions wait for poses, {since}", *_indented("no model", "Train one")]
    listed = "".join(lines[3:]).partition("2 sessions")[0]
    assert [key.strip() for key in listed.split(",")] == [one.session for one in found[:12]]
    assert f"2 sessions wait for their videos to be good enough, {since} " in " ".join(lines)
    second = lines.index("    the file is too dark") - 1
    assert lines[second + 1 :] == [
        *_indented(
            "the file is too dark",
            "Record it again; or release it with",
            "`dlc-platform sessions release HOME KEY --stage videos`",
            "    sub-020_ses-01: /raw/sub-020_ses-01/top.mp4",
            "    sub-021_ses-01: /raw/sub-021_ses-01/top.mp4",
        ),
        "sub-030_ses-01 waits for its labels",
        *_indented("its labels are torn", "Mend them"),
    ]
    assert all(len(line) <= 80 for line in lines)


def _indented(*lines: str) -> list[str]:
    return [f"    {line}" for line in lines]


@pytest.mark.parametrize("command", [("doctor",), ("scan", "--dry-run")])
def test_a_silent_root_is_reported_and_the_rest_goes_on(
    command: tuple[str, ...],
    lab: Engine,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stall: Callable[[Path], None],
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, lab.url.render_as_string(hide_password=False))
    settings = yaml.safe_load((home / "lab.yaml").read_text())
    settings |= {"raw_roots": ["hung", "raw"], "scan": {"root_timeout_seconds": 2}}
    (home / "lab.yaml").write_text(yaml.safe_dump(settings))
    write_video(home / "raw/sub-7/ses-1/cam-top.mp4", 5)
    (home / "hung").mkdir()
    stall(home / "hung")
    monkeypatch.setattr(sys, "argv", ["dlc-platform", command[0], str(home), *command[1:]])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert "the raw root has not answered for" in out and str(home / "hung") in out
    assert "sub-7_ses-1" in out or "sessions: 1 on disk" in out


def test_a_root_that_always_answers_slowly_is_left_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        (tmp_path / f"sub-{number}/ses-1").mkdir(parents=True)
    real = os.scandir

    def slowly(path: str) -> object:
        time.sleep(0.05)
        return real(path)

    monkeypatch.setattr(os, "scandir", slowly)
    left = every_folder(str(tmp_path), Layout(), patience=60, most=0.5)
    assert isinstance(left, str)
    assert left.startswith("the raw root answers so slowly that ") and "each look goes on" in left


def test_folders_with_one_key_on_a_hanging_disk_hold_up_nobody(
    engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are one folder is asked of the disk, and asked again when it answers."""
    raw, patient = home / "raw", load_lab(home)
    settings = patient.model_copy(update={"scan": patient.scan.model_copy(update={"root_timeout_seconds": 2})})
    for folder in ("batch-1/sub-1/ses-1", "batch-2/sub-1/ses-1", "sub-2/ses-1"):
        write_video(raw / folder / "cam-top.mp4", 5)
    answers = threading.Event()
    real = os.path.realpath

    def realpath(path: str) -> str:
        if str(path).startswith(str(raw)):
            answers.wait()
        return real(path)

    monkeypatch.setattr(os.path, "realpath", realpath)
    look(engine, settings, NOW)
    later = NOW + timedelta(seconds=31)
    (ready,) = scanning.look(engine, settings, later, most=10).ready
    assert ready.session.key == "sub-2_ses-1"
    held = of(engine, settings, "sub-1_ses-1", later)
    assert held.reason.startswith("a disk does not answer, so it is not known whether") and not held.passing
    answers.set()
    look(engine, patient, later + timedelta(minutes=15))
    assert "is claimed by" in of(engine, patient, "sub-1_ses-1", later).reason


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch):
    """Lets no listing of a folder end, in whatever thread: a stand-in for a network drive."""
    answers = threading.Event()
    real = os.scandir

    def begin(folder: Path) -> None:
        def scandir(path: str) -> object:
            if str(path).startswith(str(folder)):
                answers.wait()
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)

    yield begin
    answers.set()
    time.sleep(0)
