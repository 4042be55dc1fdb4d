"""What somebody else's backup says is not done: rows are taken as values, and what does not belong refuses it."""

import gzip
import hashlib
import io
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
from dagster._core.code_pointer import FileCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from sqlalchemy import URL, Engine, text

from dlc_platform.catalog.foreign_rows import harmful_row
from dlc_platform.errors import PlatformError
from dlc_platform.lab.backup import backup, restore
from dlc_platform.lab.retention import verify
from dlc_platform.orchestration.restored import DAGSTER, make_tables
from dlc_platform.postgres import dump, rows
from dlc_platform.postgres.connection import dagster_url
from dlc_platform.postgres.dump import definitions
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.store import Store
from dlc_platform_tests.catalog.conftest import lab as lab

PARTS = ["manifest.json", "lab.yaml", "store.json.gz", "database.dump"]
#: What another lab's database may hold, with the words that refuse it.
FOREIGN = {
    "create view dlc.files as select * from pg_ls_dir('/')": "the view dlc.files, which is not one of the platform's",
    "create function dlc.run() returns text language sql as $$select 'x'::text$$": "the function dlc.run()",
    "create rule twice as on insert to dlc.camera do also select 1": "the rule dlc.camera twice",
    "create function dlc.fire() returns trigger language plpgsql as 'begin return new; end'": "the function dlc.fire()",
    "create trigger fires before insert on dlc.subject for each row execute function dlc.fire()": "the trigger dlc.sub",
    "create domain dlc.odd as text check (length(pg_read_file(value)) > 0)": "the domain dlc.odd",
    "create type dlc.pair as (a text, b text)": "the type dlc.pair",
    "create operator dlc.=== (leftarg = text, rightarg = text, procedure = texteq)": "the operator dlc.===",
    'create table dlc."a\nCOPY x FROM PROGRAM" (b text)': "the table dlc.a COPY x FROM PROGRAM",
    "create foreign data wrapper other": None,
    "create server far foreign data wrapper other": None,
    "create foreign table dlc.far (a text) server far": "the foreign table dlc.far",
    "alter table dlc.session alter folder set default pg_read_file('/etc/hostname')": (
        "the table dlc.session, which the platform makes without etc, hostname, pg_read_file"
    ),
    "alter table dlc.subject add column size int generated always as (octet_length(key)) stored": (
        "the table dlc.subject, which the platform makes without"
    ),
    "alter table dlc.video add constraint odd check (pg_sleep(0) is not null)": "the table dlc.video, which",
    "create index slow on dlc.dataset (upper(project))": "the index dlc.slow",
    "create unique index uq_camera on dlc.camera ((lower(name)))": "the index dlc.uq_camera",
    "create materialized view dagster.seen as select 1 as one": "the materialized view dagster.seen",
    "create sequence dagster.more": "the sequence dagster.more",
    "create policy own on dlc.subject using (pg_sleep(0) is not null)": "the policy dlc.subject own",
    "create statistics dlc.both (dependencies) on key, name from dlc.session": "the statistics dlc.both",
}


@pytest.fixture
def home(lab: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab in an external database, with Dagster's tables, which the environment names."""
    monkeypatch.setenv(POSTGRES_VARIABLE, lab.url.render_as_string(hide_password=False))
    home = tmp_path / "lab"
    home.mkdir()
    (home / "lab.yaml").write_text("raw_roots: [raw]\nprojects: {maze: {path: project}}\n")
    engine = sqlalchemy.create_engine(dagster_url(lab.url), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        make_tables(connection)
    return home


@pytest.fixture
def restored(home: Path, empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> Callable[..., sqlalchemy.Engine]:
    """A function that restores a file, or the lab as it is now, into a database of its own."""

    def put_back(file: Path | None = None, leave_out: bool = False) -> sqlalchemy.Engine:
        file = file or backup(home, home.with_name("file")).file
        monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
        restore(file, home.with_name("second"), DAGSTER, leave_out)
        return sqlalchemy.create_engine(empty_database, poolclass=sqlalchemy.NullPool)

    return put_back


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def changed(file: Path, **parts: bytes) -> Path:
    """The backup with other parts, and checksums that say nothing against it."""
    with tarfile.open(file) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
    members |= {name.replace("_", "."): content for name, content in parts.items()}
    sums = "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in PARTS)
    members["SHA256SUMS"] = sums.encode()
    made = file.with_name("changed")
    with tarfile.open(made, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made


def part(file: Path, name: str) -> bytes:
    with tarfile.open(file) as tar:
        return tar.extractfile(name).read()  # pyright: ignore


def empty(database: URL) -> bool:
    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return not connection.scalar(text("select count(*) from pg_namespace where nspname in ('dlc', 'dagster')"))


def test_every_kind_of_foreign_object_is_named(home: Path, lab: Engine) -> None:
    schemas = ("dlc", "dagster")
    with lab.connect() as connection:
        ours = definitions(connection, schemas)
        assert rows.foreign(ours, iter(ours.encode().splitlines(keepends=True))) == []
    for statement in FOREIGN:
        execute(lab, statement.replace("%", "%%"))
    with lab.connect() as connection:
        given = definitions(connection, schemas)
    found = rows.foreign(ours, iter(given.encode().splitlines(keepends=True)))
    for words in FOREIGN.values():
        assert words is None or any(one.startswith(words) for one in found), (words, found)


def test_a_foreign_view_refuses_the_backup_or_is_left_out(
    home: Path, lab: Engine, restored: Callable[..., Engine], empty_database: URL
) -> None:
    execute(
        lab,
        "create function dlc.run() returns int language sql as 'select 1'",
        "create view dlc.mine as select dlc.run()",
        "create table dlc.notes (id serial, words text)",
        "insert into dlc.notes (words) values ('one'), ('two')",
    )
    file = backup(home, home.with_name("file")).file
    with pytest.raises(PlatformError, match=r"is refused: its database holds the .* dlc\..* and \d more") as caught:
        restored(file)
    assert "--leave-out" in caught.value.remedy
    assert empty(empty_database) and not home.with_name("second").exists()
    with restored(file, leave_out=True).connect() as connection:
        assert connection.scalar(text("select count(*) from dlc.session")) == 2
        assert connection.scalar(text("select to_regclass('dlc.mine')")) is None
        assert connection.scalar(text("select to_regclass('dlc.notes')")) is None


@pytest.mark.parametrize("old", [b"COPY dlc.session (", b"CREATE VIEW dlc.best_models AS"])
def test_statements_of_a_dump_are_not_run(
    home: Path, restored: Callable[..., Engine], empty_database: URL, tmp_path: Path, old: bytes
) -> None:
    """The texts in a dump are changed in place, as somebody would who makes a trap of it."""
    file = backup(home, tmp_path / "file").file
    content = part(file, "database.dump")
    start = content.index(old)
    # A text is as long as it was, or the file would not be read at all.
    length = content.index(b";\n", start) + 1 - start
    proof = Path("/tmp") / f"proof-{os.getpid()}"
    trap = f"COPY dlc.session FROM PROGRAM 'touch {proof}';".encode().ljust(length)[:length]
    with pytest.raises(PlatformError, match=r"among its data is .COPY dlc.session F|holds the view dlc.best"):
        restored(changed(file, database_dump=content[:start] + trap + content[start + length :]))
    assert not proof.exists() and empty(empty_database)


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (
            ["alter table dlc.video drop constraint ck_video_rotation", "update dlc.video set rotation = 45"],
            "its rows are not rows of dlc.video",
        ),
        (
            [
                "alter table dlc.recording drop constraint fk_recording_session_key",
                "update dlc.recording set session_key = 'nobody' where id = 1",
            ],
            "its rows are not rows of dlc.recording",
        ),
        (["alter table dlc.session alter name drop not null", "update dlc.session set name = null"], "dlc.session"),
        (["update dlc.alembic_version set version_num = '0001'"], "its tables are at 0001"),
    ],
)
def test_rows_that_the_tables_refuse_refuse_the_backup(
    home: Path, lab: Engine, restored: Callable[..., Engine], empty_database: URL, statements: list[str], problem: str
) -> None:
    file = backup(home, home.with_name("first")).file
    execute(lab, *statements)
    other = backup(home, home.with_name("file")).file
    with pytest.raises(PlatformError, match=f"is not a whole backup: .*{problem}"):
        restored(changed(file, database_dump=part(other, "database.dump")))
    assert empty(empty_database)


#: Rows whose values lead to files of others, each a row of the lab with another value.
_LEADING = [
    *((table, "id", "../../../outside") for table in ("dataset", "model_version", "model_export", "pose_estimate")),
    ("model_version", "id", "/etc"),
    ("pose_estimate", "id", ".work-" + "a" * 58),
    ("model_export", "id", "A" * 64),
    ("recording_file", "path", "relative.mp4"),
    ("recording_file", "path", "/raw/../etc/video.mp4"),
    ("session", "folder", "/raw/./x/.."),
    ("scanned_root", "path", ".."),
    ("scanned_folder", "path", "/etc/"),
    ("scanned_folder", "path", "a/../../etc/"),
    ("sighting", "name", "../a.mp4"),
    ("sighting", "name", ".."),
]


def test_every_kind_of_row_that_leads_elsewhere_is_named(lab: Engine) -> None:
    execute(
        lab,
        "insert into dlc.scanned_root (id, path, layout) values (7, '/raw', '')",
        "insert into dlc.scanned_folder (id, root_id, path, changed_ns, seen_at) values (7, 7, 'a..b/.c/', 1, now())",
        "insert into dlc.sighting (folder_id, name, size_bytes, mtime_ns, session_key) values (7, '..a', 1, 1, 'a')",
    )
    with lab.connect() as connection:
        assert harmful_row(connection) is None
        for table, column, value in _LEADING:
            if column == "id":
                other = f"jsonb_populate_record(t, jsonb_build_object('id', '{value}'))"
                statement = f"insert into dlc.{table} select ({other}).* from dlc.{table} t limit 1"
            else:
                statement = f"update dlc.{table} set {column} = '{value}'"
            connection.exec_driver_sql(statement)
            named = rf"the row .* of dlc\.{table} has '{re.escape(value)}' as {column}, which is not .*"
            assert re.fullmatch(named, harmful_row(connection) or "")
            connection.rollback()


#: Values that Postgres takes and Python does not: table, column, value and what is said of it.
_UNREADABLE = [
    ("session", "registered_at", "'infinity'", "is not a time that can be read"),
    ("session", "registered_at", "'0099-01-01 00:00:00+00 BC'", "is not a time that can be read"),
    ("video", "start_time", "'12345-01-01'", "is not a time that can be read"),
    ("environment", "details", """(repeat('{"a": [', 100) || repeat(']}', 100))::jsonb""", "is JSON of more than"),
]


def test_a_value_that_python_cannot_read_is_named(lab: Engine) -> None:
    text_of_brackets = """jsonb_build_object('a', repeat('[{', 500), 'b', jsonb_build_array('"[[', '\\'))"""
    execute(lab, f"update dlc.environment set details = {text_of_brackets}")
    with lab.connect() as connection:
        assert harmful_row(connection) is None
        for table, column, value, otherwise in _UNREADABLE:
            connection.exec_driver_sql(f"update dlc.{table} set {column} = {value}")
            named = rf"the row .* of dlc\.{table} has .* as {column}, which {otherwise}.*"
            assert re.fullmatch(named, harmful_row(connection) or "")
            connection.rollback()


#: Rows of a dump, and what is said of them; nothing of any of them is an error of ours.
_ROWS = {
    "a zero byte": (b"a\0\t{}\n", "0x00"),
    "a zero byte, escaped": (b"a\\000\t{}\n", "0x00"),
    "no UTF-8": (b"a\xff\t{}\n", "0xff"),
    "half a character": (b"a\xed\xa0\x80\t{}\n", "0xed"),
    "few columns": (b"a\n", "missing data for column"),
    "many columns": (b"a\t{}\tb\n", "extra data"),
    "no JSON": (b"a\t{\n", "invalid input syntax for type json"),
    "a large number": (b"a\t" + b"9" * 200_000 + b"\n", "overflows"),
    "deep JSON": (b"a\t" + b"[" * 100_000 + b"]" * 100_000 + b"\n", "stack depth limit exceeded"),
    "a key that fits into no index": (
        bytes(random.Random(0).choices(b"abcdefghij", k=30_000)) + b"\t{}\n",
        "maximum size",
    ),
    "the same key": (b"a\t{}\na\t{}\n", "duplicate key"),
    "no end": (b"a\\.b\t{}\n", "end-of-copy marker"),
}


def test_each_kind_of_wrong_row_is_the_backups_fault(lab: Engine) -> None:
    begin, end = b"COPY dlc.subject (key, details) FROM stdin;\n", b"\\.\n"
    data = {name: (begin + row + end, problem) for name, (row, problem) in _ROWS.items()} | {
        "an unknown encoding": (b"SET client_encoding = 'NOPE';\n", "client_encoding"),
        "a column twice": (b"COPY dlc.subject (key, key) FROM stdin;\na\tb\n\\.\n", "specified more than once"),
        "a sequence too far": (
            b"SELECT pg_catalog.setval('dlc.recording_id_seq', 9999999999, true);\n",
            "out of bounds",
        ),
        "a sequence beyond": (
            b"SELECT pg_catalog.setval('dlc.recording_id_seq', 9999999999999999999, true);\n",
            "range",
        ),
    }
    for name, (lines, problem) in data.items():
        with lab.connect() as connection, pytest.raises(ValueError, match=problem):
            rows.fill(connection, iter(lines.splitlines(keepends=True)), ("dlc", "dagster"))
            pytest.fail(name)


def test_a_lost_connection_is_not_the_backups_fault(lab: Engine) -> None:
    with lab.connect() as connection, lab.connect() as other:
        backend = connection.scalar(text("select pg_backend_pid()"))

        def lines() -> Iterator[bytes]:
            yield b"COPY dlc.subject (key) FROM stdin;\n"
            other.execute(text("select pg_terminate_backend(:backend, 5000)"), {"backend": backend})
            yield from (b"%d\n" % number for number in range(100_000))

        with pytest.raises(rows.Unfilled):
            rows.fill(connection, lines(), ("dlc", "dagster"))


def test_a_row_that_leads_out_of_the_store_refuses_the_backup(
    home: Path, lab: Engine, restored: Callable[..., Engine], empty_database: URL
) -> None:
    (home / "outside").mkdir()
    other = """jsonb_populate_record(t, '{"id": "../../outside"}')"""
    execute(lab, f"insert into dlc.model_version select ({other}).* from dlc.model_version t limit 1")
    with pytest.raises(PlatformError, match=r"the row '.*' of dlc\.model_version has '\.\./\.\./outside' as id"):
        restored()
    assert empty(empty_database)
    # In a catalogue that has such a row all the same, nothing leads out of the store.
    store = Store(home / "store")
    for use in (store.path, store.has, store.claim, store.remove, store.discard):
        with pytest.raises(PlatformError, match=r"'\.\./\.\./outside' is not the identity of a product"):
            use("models", "../../outside")
    store.root.mkdir()
    assert any("'../../outside' is not the identity" in one.problem for one in verify(lab, store))
    assert (home / "outside").is_dir()


def test_a_run_of_another_name_refuses_the_backup(
    home: Path, lab: Engine, restored: Callable[..., Engine], empty_database: URL
) -> None:
    body = '{"__class__": "PipelineRun", "run_id": "../../../outside"}'
    files = []
    for name, of_run in (("good", body), ("../../../outside", body), ("good", "{")):
        execute(lab, "delete from dagster.runs")
        execute(lab, f"insert into dagster.runs (run_id, status, run_body) values ('{name}', 'SUCCESS', '{of_run}')")
        files.append(backup(home, home.with_name(f"file-{len(files)}")).file)
    named = r"the row '.*' of dagster\.runs is of the run '\.\./\.\./\.\./outside', which is not a run"
    for file, problem in zip(files, (named, named, r"a row of dagster\.runs is not one of Dagster's"), strict=True):
        with pytest.raises(PlatformError, match=problem):
            restored(file)
    assert empty(empty_database)


def test_an_index_that_grows_without_measure_is_refused(
    home: Path, restored: Callable[..., Engine], empty_database: URL
) -> None:
    file = backup(home, home.with_name("file")).file
    same = b'["poses", "' + b"a" * 64 + b'", ""], '
    many = "".join(f'["poses", "{number:064x}", ""], ' for number in range(100_000)).encode()
    with pytest.raises(PlatformError, match=r"store\.json\.gz would grow to more than 6 times its size"):
        restored(changed(file, store_json_gz=gzip.compress(b"[" + many)))
    with pytest.raises(PlatformError, match=r"store\.json\.gz lists a product twice"):
        restored(changed(file, store_json_gz=gzip.compress(b"[" + same * 3 + b"]")))
    for wrong in (b" " * 60_000_000, b'[["poses", "../../etc", ""]]', b"[" * 60_000_000, b'{"a": 1}', b"", b"[" + same):
        with pytest.raises(PlatformError, match="does not list products"):
            restored(changed(file, store_json_gz=gzip.compress(wrong, compresslevel=1)))
    assert empty(empty_database)


def test_a_database_that_grows_without_measure_is_refused(
    home: Path, lab: Engine, restored: Callable[..., Engine], empty_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "_MOST_BEFORE", 1 << 20)
    execute(lab, "insert into dagster.kvs (key, value) select i, repeat('x', 1000000) from generate_series(1, 200) i")
    with pytest.raises(PlatformError, match="its database would grow to more than two hundred times its size"):
        restored()
    assert empty(empty_database)


def test_members_that_are_no_plain_files_are_refused(home: Path, tmp_path: Path) -> None:
    file = backup(home, tmp_path / "file").file
    manifest = part(file, "manifest.json")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        with tarfile.open(tmp_path / "odd", "w") as tar:
            member = tarfile.TarInfo("database.dump")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        with pytest.raises(PlatformError, match=r"'database\.dump' does not belong in it"):
            restore(tmp_path / "odd", tmp_path / "second", DAGSTER)
    with tarfile.open(tmp_path / "odd", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("database.dump")
        # A terabyte of nothing in a few bytes.
        member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)}
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(PlatformError, match=r"'database\.dump' does not belong in it"):
        restore(tmp_path / "odd", tmp_path / "second", DAGSTER)
    for contents, problem in (([manifest] * 2, "twice"), ([manifest.ljust(1 << 20)], "longer than 65536 bytes")):
        with tarfile.open(tmp_path / "odd", "w") as tar:
            for content in contents:
                member = tarfile.TarInfo("manifest.json")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        with pytest.raises(PlatformError, match=problem):
            restore(tmp_path / "odd", tmp_path / "second", DAGSTER)
    with tarfile.open(tmp_path / "odd", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a" * 20_000_000))
    with pytest.raises(PlatformError, match="a header in it is longer than 16384 bytes"):
        restore(tmp_path / "odd", tmp_path / "second", DAGSTER)
    # The header before a member: digits and no length.
    with tarfile.open(tmp_path / "odd", "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.type, member.size = tarfile.XHDTYPE, 300_000
        tar.addfile(member, io.BytesIO(b"1" * member.size))
    with pytest.raises(PlatformError, match="longer than 16384 bytes"):
        restore(tmp_path / "odd", tmp_path / "second", DAGSTER)
    os.mkfifo(tmp_path / "pipe")
    for device in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(PlatformError, match="it is not a file but a device or a pipe"):
            restore(device, tmp_path / "second", DAGSTER)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("about", [b"[" * 50_000, b'{"format": 1, "platform": "\\u001b[31m\\n"}', b"[]", b"\xff"])
def test_a_manifest_that_is_none_is_refused(home: Path, tmp_path: Path, about: bytes) -> None:
    file = backup(home, tmp_path / "file").file
    with pytest.raises(PlatformError, match="is not a whole backup") as caught:
        restore(changed(file, manifest_json=about), tmp_path / "second", DAGSTER)
    assert str(caught.value).isprintable()


def test_runs_under_way_end_and_are_made_anew(
    home: Path, lab: Engine, restored: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row of a run names a program and a container; none of a backup's is ever started."""
    program = LoadableTargetOrigin(executable_path="/tmp/evil", python_file="/tmp/evil.py")
    repository = RemoteRepositoryOrigin(InProcessCodeLocationOrigin(program, location_name="here"), "__repository__")
    place = RepositoryPythonOrigin("/tmp/evil", FileCodePointer("/tmp/evil.py", "defs", None))
    settings = "storage: {postgres: {postgres_url: {env: OF_THE_TEST}}}\ntelemetry: {enabled: false}\n"
    (tmp_path / "dagster.yaml").write_text(settings)
    monkeypatch.setenv("OF_THE_TEST", dagster_url(lab.url).render_as_string(hide_password=False))
    statuses = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        for number, status in enumerate([*statuses, dg.DagsterRunStatus.SUCCESS]):
            run = dg.DagsterRun(
                "poses",
                run_id=f"00000000-0000-4000-8000-00000000000{number}",
                status=status,
                tags={"dagster-k8s/config": '{"container_config": {"command": ["evil"]}}', "mine": "kept"},
                remote_job_origin=RemoteJobOrigin(repository, "poses"),
                job_code_origin=JobPythonOrigin("poses", place),
            )
            instance.run_storage.add_run(run)
    engine = restored()
    monkeypatch.setenv("OF_THE_TEST", dagster_url(engine.url).render_as_string(hide_password=False))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        now = {run.run_id[-1]: run for run in instance.get_runs()}
        assert [now[key].status.value for key in "0123"] == ["FAILURE", "FAILURE", "CANCELED", "SUCCESS"]
        assert {tag for tag in now["0"].tags if not tag.startswith(("dagster/", ".dagster/", "dlc_platform/"))} == {
            "mine"
        }
        assert now["0"].is_complete_and_waiting_to_retry and now["1"].is_complete_and_waiting_to_retry


def test_a_full_disk_is_named_by_its_folder(home: Path, tmp_path: Path) -> None:
    import shutil
    import subprocess

    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(PlatformError, match=f"the disk of {disk / 'file'} is full"):
            backup(home, disk / "file")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
