"""A lab that is lost comes back out of one file, whole or not at all."""

import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy
from alembic import command
from sqlalchemy import URL, Engine, text

from dlc_platform.catalog.database import alembic_config, catalog_revision, open_catalog
from dlc_platform.errors import PlatformError
from dlc_platform.lab.backup import Restored, backup
from dlc_platform.lab.backup import restore as restore_with
from dlc_platform.lab.retention import verify
from dlc_platform.orchestration.restored import DAGSTER, make_tables
from dlc_platform.platform import Platform
from dlc_platform.postgres import dump, server
from dlc_platform.postgres.connection import dagster_url
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.store import Store
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.catalog.small_lab import dataset as dataset_row
from dlc_platform_tests.catalog.small_lab import image, record_dataset
from dlc_platform_tests.keeping import fill

PARTS = ["SHA256SUMS", "manifest.json", "lab.yaml", "store.json.gz", "database.dump"]
RESTORE = """
import sys
from pathlib import Path
from dlc_platform.lab.backup import restore
from dlc_platform.orchestration.restored import DAGSTER

restore(Path(sys.argv[1]), Path(sys.argv[2]), DAGSTER)
"""
LAB_YAML = "# the lab of the tests\nraw_roots: [raw]\nprojects: {maze: {path: project}}\n"


@pytest.fixture
def outside(lab: Engine, monkeypatch: pytest.MonkeyPatch) -> URL:
    """The external database of the lab `home`."""
    monkeypatch.setenv(POSTGRES_VARIABLE, lab.url.render_as_string(hide_password=False))
    return lab.url


@pytest.fixture
def home(lab: Engine, tmp_path: Path) -> Path:
    """A lab whose database is external, with a row of Dagster's, and whose store is as the catalogue knows it."""
    home = tmp_path / "lab"
    home.mkdir()
    (home / "lab.yaml").write_text(LAB_YAML)
    fill(lab, Store(home / "store"))
    engine = sqlalchemy.create_engine(dagster_url(lab.url), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        make_tables(connection)
        connection.execute(text("insert into kvs (key, value) values ('first', 'tab\there')"))
    return home


@pytest.fixture
def file(home: Path, outside: URL, tmp_path: Path) -> Path:
    """A backup of `home`."""
    return backup(home, tmp_path / "lab.backup").file


@pytest.fixture
def reachable(make_reachable: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    with make_reachable() as folder:
        yield folder


def restore(file: Path, home: Path) -> Restored:
    return restore_with(file, home, DAGSTER)


def execute(url: URL, *statements: str) -> list[tuple]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        results = [connection.execute(text(statement)) for statement in statements]
        return [tuple(row) for row in results[-1]] if results[-1].returns_rows else []


def tables(home: Path) -> list[pd.DataFrame]:
    """Everything that `Platform` shows of a lab."""
    lab = Platform(home)
    sessions = lab.sessions()
    shown = [sessions, lab.models(), lab.evaluations(), lab.estimates(), lab.lineage("sub-1_ses-1")]
    lab._engine.dispose()
    return shown


def schemas(url: URL) -> list[str]:
    names = execute(url, "select nspname from pg_namespace where nspname in ('dlc', 'dagster') order by 1")
    return [name for (name,) in names]


def parts(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore


def write(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def test_a_lost_lab_comes_back(
    reachable: Path, home: Path, outside: URL, lab: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From an external database into an embedded one, and from there into a folder where the store lies already."""
    before = tables(home)
    made = backup(home, tmp_path / "first")
    assert (made.products, made.missing, made.size_bytes) == (8, [], (tmp_path / "first").stat().st_size)
    monkeypatch.delenv(POSTGRES_VARIABLE)

    second = reachable / "new" / "second"
    restored = restore(tmp_path / "first", second)
    assert (second / "lab.yaml").read_text() == LAB_YAML
    assert restored.unusable is None and restored.store == second / "store"
    assert len(restored.missing) == 8 and all(path.is_relative_to(second / "store") for path in restored.missing)
    for one, other in zip(before, tables(second), strict=True):
        pd.testing.assert_frame_equal(one, other)
    url = server.ensure_running(second / "postgres")
    assert execute(dagster_url(url), "select key, value from kvs") == [("first", "tab\there")]
    engine = open_catalog(url)
    assert len(list(verify(engine, Store(second / "store")))) == 1
    shutil.copytree(home / "store", second / "store")
    assert list(verify(engine, Store(second / "store"))) == []

    # What belongs together goes on: keys follow on those that were there.
    record_dataset(engine, "first", dataset_row("e"), [image("e", "3", None)])
    engine.dispose()
    made = backup(second, tmp_path / "second")
    assert (made.products, [path.name[:1] for path in made.missing]) == (8, ["e"])
    server.discard(second / "postgres")
    shutil.copytree(second / "store", reachable / "third" / "store")
    (reachable / "third" / "store" / "poses" / ("0" * 64)).mkdir()
    (reachable / "third" / "store" / "poses" / ("8" * 64) / "manifest.json").write_text("{}")
    shutil.rmtree(reachable / "third" / "store" / "models" / ("a" * 64))
    restored = restore(tmp_path / "second", reachable / "third")
    names = [[path.name[0] for path in paths] for paths in (restored.missing, restored.changed, restored.unknown)]
    assert names == [["a"], ["8"], ["0"]]
    assert len(tables(reachable / "third")[1]) == len(before[1])


def test_into_an_external_database(
    file: Path, home: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tables(home)
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    second = home.with_name("second")
    restore(file, second)
    assert not (second / "postgres").exists()
    assert [path.name for path in second.iterdir()] == ["lab.yaml"]
    for one, other in zip(before, tables(second), strict=True):
        pd.testing.assert_frame_equal(one, other)
    with pytest.raises(PlatformError, match="has a schema dlc already"):
        restore(file, home.with_name("third"))
    assert not home.with_name("third").exists()
    assert tables(second)


def test_what_is_in_the_file(file: Path, home: Path, outside: URL) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []
    members = parts(file)
    assert list(members) == PARTS
    assert members["lab.yaml"].decode() == LAB_YAML
    manifest = json.loads(members["manifest.json"])
    assert (manifest["format"], manifest["products"], manifest["store"]) == (1, 8, str(home / "store"))
    store = Store(home / "store")
    for kind, identity, sha256 in json.loads(gzip.decompress(members["store.json.gz"])):
        assert store.claim(kind, identity) == sha256
    folder = file.with_name("opened")
    subprocess.run(["tar", "--one-top-level=opened", "-xf", file], cwd=file.parent, check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    program = server.installed_programs() / "pg_restore"
    script = subprocess.run([program, "-f", "-", folder / "database.dump"], check=True, capture_output=True).stdout
    assert b"CREATE SCHEMA dagster" in script and b"CREATE SCHEMA dlc" in script
    assert outside.password is not None
    assert outside.password.encode() not in script + b"".join(members.values()) + file.read_bytes()


def test_a_backup_never_replaces_a_file(file: Path, home: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(PlatformError, match="exists already"):
        backup(home, file)
    assert file.read_bytes() == before
    link = file.with_name("link")
    link.symlink_to("nowhere")
    with pytest.raises(PlatformError, match="exists already"):
        backup(home, link)


def test_where_a_backup_cannot_be_written(home: Path, outside: URL) -> None:
    missing = home / "nowhere"
    with pytest.raises(PlatformError, match=f"there is no folder {missing}\\. Make it"):
        backup(home, missing / "file")


def test_no_password_is_an_argument(home: Path, outside: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    run = subprocess.run

    def listen(arguments: list[str], **others: object) -> object:
        calls.append(arguments)
        return run(arguments, **others)  # pyright: ignore

    monkeypatch.setattr(subprocess, "run", listen)
    backup(home, tmp_path / "file")
    assert any("pg_dump" in arguments[0] for arguments in calls)
    assert outside.password is not None
    assert not any(outside.password in str(argument) for arguments in calls for argument in arguments)


def test_a_backup_while_rows_are_written_is_consistent(
    home: Path, lab: Engine, outside: URL, empty_database: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the restored database names, the index knows: rows follow their products, and never lead."""
    store, stop, written = Store(home / "store"), threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            number = f"{len(written):064x}"
            store.put("datasets", number, {}, lambda folder: (folder / "file").touch())
            row = dataset_row("e")
            row.id = number
            images = [image("e", "3", None)]
            images[0].dataset_id = number
            record_dataset(lab, "first", row, images)
            written.append(number)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while len(written) < 5:
            assert worker.is_alive()
        backup(home, tmp_path / "file")
        during = len(written)
    finally:
        stop.set()
        worker.join()
    assert during > 5
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    restore(tmp_path / "file", tmp_path / "second")
    index = {identity for kind, identity, _ in json.loads(gzip.decompress(parts(tmp_path / "file")["store.json.gz"]))}
    named = {identity for (identity,) in execute(empty_database, "select id from dlc.dataset")}
    assert {"d" * 64, *written[:5]} <= named <= index
    assert execute(empty_database, "select count(*) from dlc.dataset_build") == [(len(named),)]


@pytest.mark.parametrize("kept", [0, 100, 5_000, -30_000, -11_000])
def test_a_truncated_backup_is_refused(
    file: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PlatformError, match="is not a whole backup"):
        restore(file, file.with_name("second"))
    assert not file.with_name("second").exists()
    assert schemas(empty_database) == []


@pytest.mark.parametrize("name", PARTS)
def test_a_changed_backup_is_refused(
    file: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    members = parts(file)
    middle = len(members[name]) // 2
    members[name] = members[name][:middle] + bytes([members[name][middle] ^ 1]) + members[name][middle + 1 :]
    with pytest.raises(PlatformError, match=r"is not a whole backup: .* has changed since it was made"):
        restore(write(file.with_name("changed"), members), file.with_name("second"))
    del members[name]
    with pytest.raises(PlatformError, match=f"is not a whole backup: {name} is missing"):
        restore(write(file.with_name("lacking"), members), file.with_name("second"))
    assert not file.with_name("second").exists()
    assert schemas(empty_database) == []


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "store/escaped", "./lab.yaml"])
def test_nothing_but_the_known_parts_is_taken_out(file: Path, name: str) -> None:
    members = parts(file)
    second = file.parent / "deep" / "second"
    with pytest.raises(PlatformError, match="does not belong in it"):
        restore(write(file.with_name("changed"), {name: b"escaped", **members}), second)
    with tarfile.open(file.with_name("linked"), "w") as tar:
        member = tarfile.TarInfo("SHA256SUMS")
        member.type, member.linkname = tarfile.SYMTYPE, "/tmp/escaped"
        tar.addfile(member)
    with pytest.raises(PlatformError, match="does not belong in it"):
        restore(file.with_name("linked"), second)
    assert not second.exists()
    assert not list(file.parent.rglob("escaped")) and not Path("/tmp/escaped").exists()


def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text" * 1000)
    for name, problem in (("text", "is not a whole backup"), ("nowhere", "No such file"), (".", "Is a directory")):
        with pytest.raises(PlatformError, match=problem):
            restore(tmp_path / name, tmp_path / "second")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("there", ["lab.yaml", "postgres", "notes"])
def test_a_home_that_is_not_empty_is_left_alone(file: Path, tmp_path: Path, there: str) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / there).write_text("precious")
    with pytest.raises(PlatformError, match="is not empty"):
        restore(file, second)
    assert [(path.name, path.read_text()) for path in second.iterdir()] == [(there, "precious")]


def rewritten(file: Path, **changes: object) -> Path:
    """The same backup with something else in its manifest, and checksums that say nothing against it."""
    from hashlib import sha256

    members = parts(file)
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changes).encode()
    members["SHA256SUMS"] = b"".join(
        f"{sha256(members[name]).hexdigest()}  {name}\n".encode() for name in PARTS if name != "SHA256SUMS"
    )
    return write(file.with_name("rewritten"), members)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2, "platform": "9.0"}, "made by a newer platform, 9.0"),
        ({"revision": "9999", "platform": "9.0"}, "made by a newer platform, 9.0, whose tables"),
        (
            {"postgres": 99},
            "taken from a server of Postgres 99, newer than the pg_restore that comes with the platform",
        ),
        ({"made_at": "yesterday"}, "is not a whole backup"),
    ],
)
def test_a_backup_of_another_version_is_refused(
    file: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], problem: str
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    with pytest.raises(PlatformError, match=problem):
        restore(rewritten(file, **changes), file.with_name("second"))
    assert not file.with_name("second").exists()
    assert schemas(empty_database) == []


def test_a_restore_updates_older_tables_and_a_backup_does_not(
    empty_database: URL, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup before an upgrade is what goes back to the version before it."""
    home = reachable / "first"
    home.mkdir()
    (home / "lab.yaml").write_text(LAB_YAML)
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    engine = sqlalchemy.create_engine(empty_database, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(text("create schema dlc"))
        command.upgrade(alembic_config(connection), "0001")
        row = "insert into dlc.session (key, subject, name, folder) values ('sub-1_ses-1', '1', '1', '/raw')"
        connection.execute(text(row))
    made = backup(home, reachable / "file")
    assert made.missing == []
    assert json.loads(parts(reachable / "file")["manifest.json"])["revision"] == "0001"
    with engine.connect() as connection:
        assert catalog_revision(connection) == "0001"
    monkeypatch.delenv(POSTGRES_VARIABLE)
    restore(reachable / "file", reachable / "second")
    lab = Platform(reachable / "second")
    assert list(lab.sessions()["session"]) == ["sub-1_ses-1"]
    with lab._engine.connect() as connection:
        assert connection.scalar(text("select key from dlc.subject")) == "1"
    lab._engine.dispose()


def test_an_older_platform_does_not_back_up_newer_tables(home: Path, outside: URL, tmp_path: Path) -> None:
    execute(outside, "update dlc.alembic_version set version_num = '9999'")
    with pytest.raises(PlatformError, match="at 9999, which this version of the platform does not know"):
        backup(home, tmp_path / "newer")
    assert not (tmp_path / "newer").exists()


def test_a_restored_lab_reports_missing_parts_of_dagster_yaml(
    home: Path, outside: URL, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "lab.yaml").write_text(LAB_YAML + "dagster_yaml: own.yaml\n")
    (home / "own.yaml").write_text("run_monitoring: {}\n")
    backup(home, reachable / "file")
    monkeypatch.delenv(POSTGRES_VARIABLE)
    assert restore(reachable / "file", reachable / "second").lacking == reachable / "second" / "own.yaml"


def test_a_lab_without_tables_can_be_backed_up(
    empty_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab.yaml").write_text(LAB_YAML)
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    assert backup(tmp_path, tmp_path / "file").products == 0
    assert schemas(empty_database) == [], "nothing is made for it"
    restore(tmp_path / "file", tmp_path / "second")
    assert Platform(tmp_path / "second").sessions().empty


def fail(*_: object) -> None:
    raise PlatformError("the migration failed", "Mend it")


def test_a_restore_that_fails_leaves_no_lab(
    file: Path, reachable: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlc_platform.lab.backup.migrate", fail)
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    with pytest.raises(PlatformError, match="the migration failed"):
        restore(file, reachable / "second")
    assert schemas(empty_database) == [] and not (reachable / "second").exists()
    monkeypatch.delenv(POSTGRES_VARIABLE)
    (reachable / "second" / "store").mkdir(parents=True)
    with pytest.raises(PlatformError, match="the migration failed"):
        restore(file, reachable / "second")
    assert [path.name for path in (reachable / "second").iterdir()] == ["store"]


def test_a_restore_that_is_killed_leaves_no_lab(file: Path, reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POSTGRES_VARIABLE)
    home = reachable / "second"
    process = subprocess.Popen([sys.executable, "-c", RESTORE, file, home])
    while not (home / "postgres" / "port").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    with pytest.raises(PlatformError, match=r"lab.yaml does not exist"):
        Platform(home)
    with pytest.raises(PlatformError, match="is not empty"):
        restore(file, home)


def test_a_dump_that_cannot_be_restored_leaves_nothing(
    file: Path, home: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    execute(
        empty_database,
        "create function refuse() returns event_trigger language plpgsql as $$begin raise 'refused'; end$$",
        "create event trigger refuse on ddl_command_end when tag in ('CREATE INDEX') execute function refuse()",
    )
    with pytest.raises(PlatformError, match=r"the database cannot be filled: refused"):
        restore(file, home.with_name("second"))
    assert schemas(empty_database) == [] and not home.with_name("second").exists()


def test_a_server_newer_than_the_program(
    home: Path, outside: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The platform's programs are played by a script of an older version, those on the PATH by the real ones."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.1'\n")
    (old / "pg_dump").chmod(0o755)
    real = str(server.installed_programs())
    monkeypatch.setattr(dump, "installed_programs", lambda: old)
    monkeypatch.setenv("PATH", f"{old}:{os.environ['PATH']}")
    with pytest.raises(PlatformError, match="is Postgres 18, newer than the pg_dump") as caught:
        backup(home, tmp_path / "file")
    assert "client programs of Postgres 18 or newer" in caught.value.remedy
    assert not (tmp_path / "file").exists()
    monkeypatch.setenv("PATH", f"{real}:{os.environ['PATH']}")
    assert backup(home, tmp_path / "file").products == 8


def test_a_lab_yaml_that_is_invalid_now_is_restored_unchanged(
    home: Path, outside: URL, empty_database: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A later platform may ask for other keys; the data must come back all the same."""
    file = backup(home, tmp_path / "file").file
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    monkeypatch.setattr("dlc_platform.lab.backup.load_lab", fail)
    restored = restore(file, tmp_path / "second")
    assert restored.store is None and "the migration failed" in str(restored.unusable)
    assert (tmp_path / "second" / "lab.yaml").read_text() == LAB_YAML
    assert schemas(empty_database) == ["dagster", "dlc"]
