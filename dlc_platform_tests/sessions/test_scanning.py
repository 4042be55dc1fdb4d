"""The scan on real folders and a real catalogue: what it sees, keeps, and says of disks that do not behave."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

from dlc_platform.catalog.sessions import current_files
from dlc_platform.demo.render import write_video
from dlc_platform.identity import sha256_file
from dlc_platform.lab.waiting import waiting
from dlc_platform.sessions import raw_roots, scanning
from dlc_platform.sessions.registration import register, reread_details
from dlc_platform.sessions.sidecars import Sidecars
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.operation import ScanRule

SETTLE = 30.0
KEY = "sub-1_ses-1"


class Disks:
    """Raw roots, and looks at them by a clock that is turned by hand."""

    def __init__(self, engine: Engine, home: Path):
        self.engine = engine
        self.roots: tuple[Path, ...] = (home / "a", home / "b")
        for root in self.roots:
            root.mkdir()
        self.now = datetime(2024, 5, 1, tzinfo=UTC)
        self.rule = ScanRule(root_timeout_seconds=2, tick_seconds=5)
        self.most = 100
        self.last: scanning.Look | None = None

    @property
    def lab(self) -> Lab:
        return Lab.model_validate(
            {
                "raw_roots": self.roots,
                "projects": {"tiny": {"path": "/project"}},
                "settle_seconds": SETTLE,
                "scan": self.rule.model_dump(),
            }
        )

    def write(self, place: str, shade: int = 0, root: int = 0, name: str = "cam-top.mp4") -> Path:
        path = self.roots[root] / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, np.full((3, 48, 64, 3), shade, dtype=np.uint8))
        return path

    def look(self, seconds: float = SETTLE) -> list[str]:
        """The sessions that are ready when so many seconds have gone."""
        self.now += timedelta(seconds=seconds)
        self.last = scanning.look(self.engine, self.lab, self.now, self.most)
        return [candidate.session.key for candidate in self.last.ready]

    @property
    def said(self) -> str:
        assert self.last is not None
        return "\n".join(self.last.left_out)

    def take(self) -> list[str]:
        """Look twice, and register what is ready."""
        self.look()
        keys = self.look()
        assert self.last is not None
        for candidate in self.last.ready:
            register(self.engine, candidate.session)
        return keys

    def forget(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("truncate dlc.scanned_root, dlc.scanned_folder, dlc.sighting, dlc.waiting_session"))

    def missing(self) -> list[str]:
        with self.engine.connect() as connection:
            statement = text("select path from dlc.recording_file where missing_since is not null order by 1")
            return list(connection.scalars(statement))


@pytest.fixture
def disks(engine: Engine, tmp_path: Path) -> Disks:
    return Disks(engine, tmp_path)


def test_a_session_is_ready_once_and_again_when_it_changes(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    assert disks.look() == []
    assert disks.look() == disks.look() == [KEY], "nobody registered it"
    assert disks.take() == [KEY]
    assert disks.look() == []
    disks.write("sub-1/ses-1", shade=9)
    assert disks.look() == []
    assert disks.take() == [KEY]
    path.touch()
    disks.look()
    assert disks.look(SETTLE - 1) == []
    assert disks.look(1) == [KEY]


def test_no_time_of_a_file_fails_a_look(disks: Disks) -> None:
    odd = disks.write("sub-2/ses-1")
    disks.write("sub-1/ses-1")
    for path in (odd, odd.parent, odd.parent.parent):
        try:
            os.utime(path, (15_000_000_000, 15_000_000_000))
        except OverflowError:
            pytest.skip("this system keeps no such time")
    if abs(odd.stat().st_mtime_ns) < 2**63:
        pytest.skip("this file system keeps no such time")
    assert sorted(disks.take()) == [KEY, "sub-2_ses-1"]
    assert disks.look() == disks.look() == [] and disks.said == ""
    os.utime(odd, (1, 1))
    disks.write("sub-2/ses-1", shade=9)
    disks.look()
    assert disks.take() == ["sub-2_ses-1"]


def test_a_path_that_no_index_takes_is_named(disks: Disks) -> None:
    folder = disks.roots[0] / "sub-2/ses-1"
    folder.mkdir(parents=True)
    before = Path.cwd()
    try:
        # Longer than a path may be that is given as a whole.
        os.chdir(folder)
        for number in range(18):
            name = os.urandom(90).hex() + str(number)
            os.mkdir(name)
            os.chdir(name)
        (Path() / "a.mp4").touch()
    finally:
        os.chdir(before)
    disks.write("sub-1/ses-1")
    assert disks.take() == [KEY]
    assert "longer than 1700 bytes, so nothing in it is used; move it up" in disks.said


def test_names_that_are_not_utf8_stop_nothing(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    for folder in (path.parent, disks.roots[0]):
        (Path(os.fsdecode(os.fsencode(folder) + b"/sub-1\xff_sessions.csv"))).write_text("session_id,x\n1,2\n")
        (Path(os.fsdecode(os.fsencode(folder) + b"/\xe4.mp4"))).touch()
    (disks.roots[0] / "subjects.csv").write_text("subject,note\n1,fine\n")
    (path.with_suffix(".json")).write_text('{"a\\u0000b\\ud800": "\\ud800 \\u0000", "c": NaN, "d": [1e999, -Infinity]}')
    disks.look()
    disks.look()
    assert disks.last is not None
    (candidate,) = disks.last.ready
    register(disks.engine, candidate.session, Sidecars(disks.roots))
    assert reread_details(disks.engine, Sidecars(disks.roots)) == 0
    with disks.engine.connect() as connection:
        assert connection.scalar(text("select details -> 'values' ->> 'note' from dlc.subject")) == "fine"
    assert "is not UTF-8; rename it" in disks.said


def test_a_folder_that_the_catalogue_refuses_stops_nothing(disks: Disks) -> None:
    disks.write("sub-1/ses-1")
    disks.write("sub-2/ses-1", name="refused.mp4")
    with disks.engine.begin() as connection:
        connection.execute(text("alter table dlc.sighting add check (name <> 'refused.mp4')"))
    assert disks.take() == [KEY]
    assert disks.last is not None
    disks.write("sub-3/ses-1")
    disks.look()
    news = "\n".join(disks.last.news)
    assert "sub-2/ses-1/: its content cannot be recorded" in news and "rename it" in news
    assert disks.take() == ["sub-3_ses-1"]
    (held,) = [one for one in waiting(disks.engine, disks.lab) if one.session == "sub-2_ses-1"]
    assert held.reason.startswith("its content cannot be recorded (") and not held.passing
    with disks.engine.begin() as connection:
        connection.execute(text("alter table dlc.sighting drop constraint sighting_name_check"))
    assert disks.take() == ["sub-2_ses-1"]
    assert disks.look() == []
    assert "sub-2_ses-1" not in {one.session for one in waiting(disks.engine, disks.lab)}


def disguise(path: Path, content: bytes, by_rename: bool) -> None:
    """Other bytes in the place of a file, with its size and time."""
    status = path.stat()
    place = path.with_suffix(".new") if by_rename else path
    place.write_bytes(content + bytes(status.st_size - len(content)))
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    place.replace(path)


@pytest.mark.parametrize("by_rename", [False, True])
def test_a_replacement_with_the_same_size_and_time_is_noticed(disks: Disks, by_rename: bool) -> None:
    path = disks.write("sub-1/ses-1")
    disks.write("sub-2/ses-1")
    path.write_bytes(path.read_bytes() + bytes(5000))
    disks.take()
    other = disks.write("sub-1/ses-1", root=1, shade=90)
    content = other.read_bytes()
    shutil.rmtree(other.parent.parent)
    disguise(path, content, by_rename)
    disks.look()
    assert disks.take() == [KEY]
    with disks.engine.connect() as connection:
        found = connection.scalars(text("select video_id from dlc.recording_file where replaced_at is null")).all()
    assert sha256_file(path) in found
    assert disks.look() == disks.look() == []
    # Only a touched ctime: the bytes are looked at, and nothing is another one.
    path.chmod(0o600)
    disks.look()
    assert disks.take() == [KEY]
    assert disks.look() == disks.look() == []


def test_a_disk_that_changes_all_its_ctimes_asks_for_nothing(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_OF_THE_DISK", 3)
    paths = [disks.write(f"sub-{number}/ses-1") for number in range(1, 6)]
    assert len(disks.take()) == 5
    for path in paths:
        path.chmod(0o600)
    assert disks.look() == []
    assert disks.last is not None
    (line,) = disks.last.news
    assert "5 files have another ctime or inode at once" in line
    assert disks.look() == disks.look() == []
    paths[0].chmod(0o644)
    disks.look()
    assert disks.look() == [KEY], "a single one is looked at"


def test_a_change_of_ctimes_is_looked_at_in_portions(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_READ_AGAIN", 2)
    paths = [disks.write(f"sub-{number}/ses-1") for number in range(1, 6)]
    disks.take()
    for path in paths:
        path.chmod(0o600)
    disks.look()
    found = set()
    for _ in range(4):
        found |= set(disks.take())
    assert len(found) == 5


def test_a_renamed_camera_is_assigned_by_the_next_look(disks: Disks) -> None:
    """As a catalogue has it in which the name of a camera ended at a hyphen."""
    for side in ("left", "right"):
        disks.write("sub-1/ses-1", name=f"m_cam-top-{side}.mp4", shade=len(side))
    disks.take()
    with disks.engine.begin() as connection:
        connection.execute(text("insert into dlc.camera (name) values ('top')"))
        connection.execute(text("update dlc.recording set camera = 'top'"))
        connection.execute(text("update dlc.scanned_root set layout = 'of an older version'"))
    disks.look()
    assert disks.look() == []
    assert disks.last is not None
    assert sorted(disks.last.news) == [
        f"1 recording of the camera top is of the camera top-{side} now, by their names; their poses stay"
        for side in ("left", "right")
    ]
    with disks.engine.connect() as connection:
        assert connection.scalars(text("select camera from dlc.recording order by 1")).all() == [
            "top-left",
            "top-right",
        ]
    assert disks.look() == [] and disks.last.news == ()


def test_what_the_scan_knows_may_be_lost(disks: Disks) -> None:
    disks.write("sub-1/ses-1")
    disks.write("sub-2/ses-1", root=1)
    assert disks.take() == ["sub-2_ses-1", KEY]
    disks.write("sub-3/ses-1")
    disks.forget()
    assert disks.look() == []
    assert disks.look() == ["sub-3_ses-1"]
    # A look that was killed before it was written down is as one that never was.
    with disks.engine.begin() as connection:
        connection.execute(text("delete from dlc.sighting"))
        connection.execute(text("update dlc.scanned_folder set listed_ns = null"))
    disks.look()
    assert disks.take() == ["sub-3_ses-1"]
    assert disks.look() == disks.look() == []
    with disks.engine.connect() as connection:
        assert connection.scalar(text("select count(*) from dlc.waiting_session")) == 0


def test_a_file_replaced_in_its_place_is_found_by_a_new_listing(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    assert disks.take() == [KEY]
    disks.look()
    before = path.parent.stat()
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    assert path.parent.stat().st_mtime_ns == before.st_mtime_ns, "its folder did not change"
    assert disks.take() == [KEY]


def test_a_file_system_without_times_of_folders_loses_nothing(disks: Disks) -> None:
    disks.write("sub-1/ses-1")
    disks.take()
    disks.look()
    new = disks.write("sub-1/ses-2")
    disks.write("sub-1/ses-1", name="cam-side.mp4", shade=5)
    for folder in (new.parent, new.parent.parent, disks.roots[0], disks.roots[0] / "sub-1/ses-1"):
        os.utime(folder, ns=(0, 0))
    with disks.engine.begin() as connection:
        connection.execute(text("update dlc.scanned_folder set changed_ns = 0, listed_ns = 0"))
    assert sorted(disks.take()) == [KEY, "sub-1_ses-2"]


@pytest.mark.parametrize("skew", [-(10**6), 10**6, 10**9])
def test_clocks_that_differ_and_times_in_the_future_fool_nobody(disks: Disks, skew: int) -> None:
    path = disks.write("sub-1/ses-1")
    when = (disks.now + timedelta(seconds=skew)).timestamp()
    os.utime(path, (when, when))
    os.utime(path.parent, (when, when))
    assert disks.look() == []
    for size in range(2):
        with open(path, "ab") as file:
            file.write(b"\0" * (size + 1))
        os.utime(path, (when, when))
        assert disks.look() == [], "it grows"
    assert disks.look() == [KEY]


def test_a_clock_set_back_costs_only_the_time_to_settle(disks: Disks) -> None:
    disks.write("sub-1/ses-1")
    disks.look()
    assert disks.look(-7200) == []
    assert disks.look() == [KEY]


def test_a_file_that_did_not_open_awaits_no_wrong_clock(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    path.write_bytes(path.read_bytes()[:40])
    disks.look()
    disks.look(86400)
    assert "it does not open" in disks.said
    disks.look(-86400)
    waited = 0.0
    while not disks.look():
        waited += SETTLE
        assert waited <= disks.rule.unopened_seconds + 2 * SETTLE


def test_the_newest_come_first_or_as_lab_yaml_says(disks: Disks) -> None:
    for name, when in (("sub-1", 2000), ("sub-2", 3000), ("sub-3", 1000)):
        path = disks.write(f"{name}/ses-1")
        os.utime(path, (when, when))
    disks.look()
    assert disks.look() == ["sub-2_ses-1", "sub-1_ses-1", "sub-3_ses-1"]
    disks.rule = disks.rule.model_copy(update={"order": "oldest"})
    assert disks.look() == ["sub-3_ses-1", "sub-1_ses-1", "sub-2_ses-1"]
    disks.most = 1
    assert disks.look() == ["sub-3_ses-1"]
    assert disks.last is not None and disks.last.queued == 2
    disks.rule = disks.rule.model_copy(update={"order": "name"})
    assert disks.look() == [KEY]


def test_a_removed_file_is_missing_and_a_returning_one_is_not(disks: Disks, tmp_path: Path) -> None:
    top = disks.write("sub-1/ses-1")
    disks.write("sub-1/ses-1", name="cam-side.mp4", shade=5)
    other = disks.write("sub-2/ses-1", shade=7)
    disks.take()
    ids = {row.path: row.id for row in current_files(disks.engine, KEY)}
    shutil.copy2(top, tmp_path / "copy.mp4")
    top.unlink()
    assert disks.look() == disks.look() == []
    assert disks.missing() == [str(top)]
    shutil.move(str(other.parent), str(tmp_path / "away"))
    assert disks.look() == []
    assert disks.missing() == [str(top), str(other)]
    shutil.move(str(tmp_path / "away"), str(other.parent))
    shutil.copy2(tmp_path / "copy.mp4", top)
    # Its bytes are looked at, because it is another file; the moved one is not.
    assert disks.take() == [KEY]
    assert disks.look() == disks.look() == []
    assert disks.missing() == []
    assert {row.path: row.id for row in current_files(disks.engine, KEY)} == ids


def test_a_root_that_is_emptied_or_away_loses_nothing(disks: Disks) -> None:
    disks.write("sub-1/ses-1")
    disks.write("sub-2/ses-1", root=1)
    disks.take()
    away = disks.roots[0].rename(disks.roots[0].with_name("away"))
    assert disks.look() == []
    assert f"{disks.roots[0]}: the raw root cannot be read: No such file or directory" in disks.said
    # What is left of a disk that is not mounted.
    disks.roots[0].mkdir()
    disks.write("sub-3/ses-1", root=1)
    assert disks.take() == ["sub-3_ses-1"]
    assert f"{disks.roots[0]}: the raw root is empty now and was not before; mount its disk" in disks.said
    assert disks.missing() == []
    disks.roots[0].rmdir()
    away.rename(disks.roots[0])
    assert disks.look() == disks.look() == []
    assert disks.said == ""


@pytest.fixture
def stalled(monkeypatch: pytest.MonkeyPatch, disks: Disks) -> Iterator[Callable[[], int]]:
    """The first root's disk answers no more: a stand-in for a network drive, as nothing here can stall a real one."""
    answers = threading.Event()
    real, asked = os.stat, []

    def stat(path: object, *args: object, **kwargs: object) -> os.stat_result:
        if threading.current_thread().name.startswith("scan of") and str(path).startswith(str(disks.roots[0])):
            asked.append(path)
            answers.wait()
        return real(path, *args, **kwargs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr(os, "stat", stat)
    yield lambda: len(asked)
    answers.set()
    for thread in threading.enumerate():
        if thread.name.startswith("scan of"):
            thread.join()


def test_a_stalled_root_is_said_and_holds_up_no_other(disks: Disks, stalled: Callable[[], int]) -> None:
    disks.write("sub-1/ses-1")
    disks.write("sub-2/ses-1", root=1)
    assert disks.take() == ["sub-2_ses-1"]
    for _ in range(3):
        disks.look()
    assert f"{disks.roots[0]}: the raw root has not answered for" in disks.said
    assert stalled() == 1, "one question, however often it is looked"


def test_a_look_ends_in_time_and_the_next_ones_go_on(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    first = disks.write("sub-01/ses-1")
    for number in range(2, 41):
        path = disks.roots[0] / f"sub-{number:02}/ses-1/cam-top.mp4"
        path.parent.mkdir(parents=True)
        shutil.copy(first, path)
    real = raw_roots.list_folder

    def slow(*args: object) -> object:
        threading.Event().wait(0.02)
        return real(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(raw_roots, "list_folder", slow)
    disks.rule = disks.rule.model_copy(update={"tick_seconds": 1.0})
    unfinished = []
    for _ in range(30):
        disks.look(1)
        assert disks.last is not None
        unfinished.append(disks.last.unfinished)
        if unfinished[-1] == 0 and disks.last.sessions == 40:
            break
    assert unfinished[0] > 0 and unfinished[-1] == 0
    disks.rule = disks.rule.model_copy(update={"tick_seconds": 20.0})
    disks.look()
    assert len(disks.look()) == 40


def test_a_folder_that_is_renamed_keeps_its_session_and_its_row(disks: Disks) -> None:
    disks.write("sub-1/ses-1")
    disks.take()
    (row,) = current_files(disks.engine, KEY)
    (disks.roots[0] / "sub-1").rename(disks.roots[0] / "sub-1_id-mouse")
    assert disks.take() == [KEY]
    (moved,) = current_files(disks.engine, KEY)
    assert moved.id == row.id and "sub-1_id-mouse" in moved.path
    assert disks.missing() == [] and disks.look() == []


def test_a_session_of_two_folders_is_reported_until_one_is_gone(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    twin = disks.write("sub-1/ses-1", root=1)
    disks.look()
    assert disks.look() == disks.look() == []
    assert f"the session key {KEY} is claimed by" in disks.said
    shutil.rmtree(twin.parent)
    disks.write("sub-9/ses-9", root=1)
    assert KEY in disks.take()
    (row,) = current_files(disks.engine, KEY)
    assert row.path == str(path)


def test_a_file_that_does_not_open_is_read_in_the_end(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    disks.look()
    waits = []
    while not (ready := disks.look(10)):
        waits.append("it does not open" in disks.said)
        assert len(waits) < 400
    assert ready == [KEY] and waits[5] and 355 <= len(waits) <= 370
    disks.forget()
    path.write_bytes(whole)
    disks.look()
    assert disks.look() == [KEY]


def test_a_root_in_another_one_is_looked_at_once(disks: Disks) -> None:
    disks.roots = (disks.roots[0], disks.roots[0] / "inner", disks.roots[0])
    disks.write("inner/sub-1/ses-1")
    disks.look()
    assert disks.look() == [KEY]
    assert disks.last is not None and disks.last.sessions == 1 and disks.said == ""


def test_a_folder_that_cannot_be_read_keeps_what_was_known_of_it(
    engine: Engine, make_reachable: Callable[[], AbstractContextManager[Path]]
) -> None:
    with make_reachable() as folder:
        disks = Disks(engine, folder)
        path = disks.write("sub-1/ses-1")
        disks.take()
        path.parent.chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)  # no folder is closed to root
        try:
            assert disks.look() == disks.look() == []
            assert "the folder cannot be read: Permission denied" in disks.said and disks.missing() == []
        finally:
            if is_root:
                os.seteuid(0)
            path.parent.chmod(0o755)
        assert disks.look() == disks.look() == [] and disks.said == ""


def test_a_session_on_the_disk_is_found_with_its_files_of_now(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    assert [s.key for s in scanning.find_sessions(disks.engine, disks.lab, [KEY]).sessions] == [KEY]
    disks.look()
    side = disks.write("sub-1/ses-1", name="cam-side.mp4")
    (session,) = scanning.find_sessions(disks.engine, disks.lab, [KEY]).sessions
    assert {file.path for own in session.recordings for file in own.files} == {path, side}
