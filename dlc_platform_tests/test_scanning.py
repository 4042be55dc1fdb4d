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

from dlc_platform import scanning, walking
from dlc_platform.catalog import registry
from dlc_platform.demo.render import write_video
from dlc_platform.ingest import register
from dlc_platform.settings import Lab, ScanRule

SETTLE = 30.0
KEY = "sub-1_ses-1"


class Disks:
    """Raw roots, and looks at them by a clock that is turned by hand."""

    def __init__(self, engine: Engine, home: Path):
        self.engine = engine
        self.roots = (home / "a", home / "b")
        for root in self.roots:
            root.mkdir()
        self.now = datetime(2024, 5, 1, tzinfo=UTC)
        self.rule = ScanRule(root_timeout_seconds=0.5, tick_seconds=5)
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


def test_a_file_that_is_replaced_in_its_place_is_found_by_listing_again(disks: Disks) -> None:
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


def test_a_clock_that_is_set_back_costs_no_more_than_the_time_to_settle(disks: Disks) -> None:
    disks.write("sub-1/ses-1")
    disks.look()
    assert disks.look(-7200) == []
    assert disks.look() == [KEY]


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


def test_a_removed_file_is_missing_and_one_that_comes_back_is_not(disks: Disks, tmp_path: Path) -> None:
    top = disks.write("sub-1/ses-1")
    disks.write("sub-1/ses-1", name="cam-side.mp4", shade=5)
    other = disks.write("sub-2/ses-1", shade=7)
    disks.take()
    ids = {row.path: row.id for row in registry.current_files(disks.engine, KEY)}
    shutil.copy2(top, tmp_path / "copy.mp4")
    top.unlink()
    assert disks.look() == disks.look() == []
    assert disks.missing() == [str(top)]
    shutil.move(str(other.parent), str(tmp_path / "away"))
    assert disks.look() == []
    assert disks.missing() == [str(top), str(other)]
    shutil.move(str(tmp_path / "away"), str(other.parent))
    shutil.copy2(tmp_path / "copy.mp4", top)
    assert disks.look() == disks.look() == []
    assert disks.missing() == []
    assert {row.path: row.id for row in registry.current_files(disks.engine, KEY)} == ids


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
    assert f"{disks.roots[0]}: the raw root is empty, and it was not before; mount its disk" in disks.said
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
    real = walking.list_folder

    def slow(*args: object) -> object:
        threading.Event().wait(0.02)
        return real(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(walking, "list_folder", slow)
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
    (row,) = registry.current_files(disks.engine, KEY)
    (disks.roots[0] / "sub-1").rename(disks.roots[0] / "sub-1_id-mouse")
    assert disks.take() == [KEY]
    (moved,) = registry.current_files(disks.engine, KEY)
    assert moved.id == row.id and "sub-1_id-mouse" in moved.path
    assert disks.missing() == [] and disks.look() == []


def test_a_session_that_two_folders_claim_is_said_until_one_is_gone(disks: Disks) -> None:
    path = disks.write("sub-1/ses-1")
    twin = disks.write("sub-1/ses-1", root=1)
    disks.look()
    assert disks.look() == disks.look() == []
    assert f"the session key {KEY} is claimed by" in disks.said
    shutil.rmtree(twin.parent)
    disks.write("sub-9/ses-9", root=1)
    assert KEY in disks.take()
    (row,) = registry.current_files(disks.engine, KEY)
    assert row.path == str(path)


def test_what_does_not_open_waits_longer_each_time_and_is_read_in_the_end(disks: Disks) -> None:
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
