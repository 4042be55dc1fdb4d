"""A Postgres server as `deployments/` describes it: Debian's, with TLS, roles and rules of access."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url

from dlc_platform.cli import app

DEPLOYMENTS = Path(app.__file__).parents[2] / "deployments"
_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """The server, and the folder of its secrets as `make-secrets` made it."""

    port: int
    secrets: Path
    _socket: Path
    roles: Path

    def url(self, role: str) -> URL:
        """How a role connects, by the password in its file; for SQLAlchemy with psycopg2."""
        password = (self.secrets / f"{role}_password").read_text().strip()
        query = {"sslmode": "verify-full", "sslrootcert": str(self.secrets / "postgres_ca")}
        return URL.create("postgresql+psycopg2", role, password, "localhost", self.port, "dlc_platform", query)

    def empty(self) -> None:
        """Make the database anew, with its roles and without any tables."""
        self.ask("drop database if exists dlc_platform with (force)", "postgres")
        self.ask("create database dlc_platform", "postgres")
        self.initialise()

    def initialise(self) -> None:
        """Make the roles, as the container does when its data directory is new."""
        done = subprocess.run(
            [self.roles.with_name("initialise.sh")],
            env=self.administration | {"SECRETS": str(self.secrets), "ROLES": str(self.roles)},
            user="postgres",
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def ask(self, statement: str, database: str = "dlc_platform") -> str:
        """What the superuser is answered."""
        return subprocess.run(
            ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--dbname", database, "--command", statement],
            env=self.administration,
            user="postgres",
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    @property
    def administration(self) -> dict[str, str]:
        """The environment of the superuser's programs, which come in by the socket."""
        return {"PATH": os.environ["PATH"], "PGHOST": str(self._socket), "PGPORT": str(self.port), "LC_ALL": "C"}


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def serve(folder: Path, programs: Path, tls: bool = True) -> Iterator[Server]:
    """A server that only the roles reach, over the network; the database has no tables yet.

    Without TLS where the programs can do none: then the rules of access are the same but for that.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can start it as `postgres`, the account that the rules of access name")
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("the system has no account `postgres`: install the package postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    described = shutil.copytree(DEPLOYMENTS / "postgres", folder / "postgres")
    secrets = folder / "secrets"
    subprocess.run(
        [DEPLOYMENTS / "workstation" / "make-secrets", secrets],
        env={
            "PATH": os.environ["PATH"],
            "POSTGRES_HOST": "localhost",
            "POSTGRES_PORT": str(port),
            "POSTGRES_CA": str(secrets / "postgres_ca"),
            "POSTGRES_UID": str(account.pw_uid),
            "PLATFORM_UID": str(os.getuid()),
        },
        check=True,
        capture_output=True,
    )
    own = folder / "server"
    own.mkdir()
    os.chown(own, account.pw_uid, account.pw_gid)
    as_postgres: dict[str, Any] = {"user": "postgres", "group": account.pw_gid, "cwd": own}
    subprocess.run(
        [
            *(programs / "initdb", "--pgdata", own / "data", "--username", "postgres"),
            *("--auth-local", "peer", "--auth-host", "scram-sha-256", "--no-sync", "--locale", "C.UTF-8"),
        ],
        env={"PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        **as_postgres,
    )
    settings = {
        "config_file": described / "postgresql.conf",
        "hba_file": described / "pg_hba.conf",
        "ssl_cert_file": secrets / "postgres_certificate",
        "ssl_key_file": secrets / "postgres_key",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": own,
        "port": port,
        "fsync": "off",
    }
    if not tls:
        of_server = described / "postgresql.conf"
        of_server.write_text(of_server.read_text().replace("ssl = on", "ssl = off"))
        rules = described / "pg_hba.conf"
        rules.write_text(rules.read_text().replace("hostssl", "host   "))
        for role in ("dagster", "platform"):
            file = secrets / f"{role}_url"
            file.write_text(file.read_text().partition("?")[0] + "?sslmode=disable\n")
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    log = (own / "log").open("w+b")
    process = subprocess.Popen(
        [programs / "postgres", "-D", own / "data", *options], stdout=log, stderr=log, **as_postgres
    )
    made = Server(port, secrets, own, described / "roles.sql")
    try:
        _wait(made, process, own / "log")
        made.empty()
        yield made
    finally:
        process.terminate()
        process.wait(_SECONDS)


@pytest.fixture(scope="session")
def server(make_reachable: Callable[[], AbstractContextManager[Path]]) -> Iterator[Server]:
    """Debian's server, with TLS."""
    programs = _programs()
    if programs is None or shutil.which("psql") is None:
        pytest.skip("the system has no Postgres: install the package postgresql")
    with make_reachable() as folder, serve(folder, programs) as made:
        yield made


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            server.ask("select 1", "postgres")
            return
        except subprocess.CalledProcessError as error:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, error.stderr
        time.sleep(0.1)


def url_in(file: Path) -> URL:
    """The URL in a file of the folder of secrets."""
    return make_url(file.read_text().strip()).set(drivername="postgresql+psycopg2")
