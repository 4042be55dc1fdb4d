"""Who may do what in the database of a server deployment, tried on a server that is set up by its files."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, OperationalError

from dlc_platform.catalog.database import migrate, open_catalog
from dlc_platform.lab.backup import backup
from dlc_platform.postgres.server import installed_programs
from dlc_platform.settings.environment import DAGSTER_POSTGRES_FILE_VARIABLE, POSTGRES_FILE_VARIABLE, POSTGRES_VARIABLE
from dlc_platform_tests.deployments.conftest import DEPLOYMENTS, Server, serve, url_in
from dlc_platform_tests.orchestration.up import plain_environment


def ask(url: URL, *statements: str) -> list[Any]:
    """The first column of what the last statement answers, after all of them in one session."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = None
        for statement in statements:
            result = connection.execute(text(statement))
        return list(result.scalars()) if result is not None and result.returns_rows else []


def refused(url: URL, *statements: str) -> str:
    """What the server says, for it must refuse the last statement."""
    with pytest.raises(DBAPIError) as caught:
        ask(url, *statements)
    return str(caught.value.orig)


@pytest.fixture(scope="module")
def tables(server: Server) -> Server:
    """The server with the tables of both owners, made by them."""
    server.empty()
    engine = open_catalog(server.url("platform"))
    migrate(engine)
    engine.dispose()
    ask(server.url("dagster"), "create table if not exists runs (id serial primary key, run_id text)")
    return server


def test_only_the_roles_come_in_and_with_tls_alone(server: Server, tmp_path: Path):
    ask_ssl = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
    for role in ("dagster", "platform", "analyst"):
        assert ask(server.url(role), ask_ssl) == [True]
        bare = server.url(role).set(query={"sslmode": "disable"})
        with pytest.raises(OperationalError, match=r"pg_hba.conf rejects connection"):
            ask(bare, "select 1")
        with pytest.raises(OperationalError, match="password authentication failed"):
            ask(server.url(role).set(password="guessed"), "select 1")
        with pytest.raises(OperationalError, match=r"pg_hba.conf rejects connection"):
            ask(server.url(role).set(database="postgres"), "select 1")
    with pytest.raises(OperationalError, match=r"pg_hba.conf rejects connection"):
        ask(server.url("postgres"), "select 1")
    # Somebody else's server has a certificate of another authority.
    make_secrets = [DEPLOYMENTS / "workstation" / "make-secrets", tmp_path / "other"]
    subprocess.run(make_secrets, check=True, capture_output=True)
    other = server.url("platform").update_query_dict({"sslrootcert": str(tmp_path / "other" / "postgres_ca")})
    with pytest.raises(OperationalError, match="certificate verify failed"):
        ask(other, "select 1")


def test_the_urls_of_make_secrets_are_those_of_the_roles(server: Server):
    for role in ("dagster", "platform"):
        assert url_in(server.secrets / f"{role}_url") == server.url(role)
    assert ask(url_in(server.secrets / "dagster_url"), "show search_path") == ["dagster"]
    for file in server.secrets.iterdir():
        public = file.name in ("postgres_ca", "postgres_certificate")
        assert stat.S_IMODE(file.stat().st_mode) == (0o644 if public else 0o600), file.name


def test_an_analyst_reads_the_catalogue_and_changes_nothing(tables: Server):
    analyst = tables.url("analyst")
    relations = ask(
        analyst,
        "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = 'dlc' and c.relkind in ('r', 'v') order by 1",
    )
    assert len(relations) > 20
    ask(analyst, *(f"select * from {relation} limit 1" for relation in relations))
    # The role's settings are no protection: it can change them.
    writable = "set default_transaction_read_only = off"
    for statement in (
        *(f"insert into {relation} default values" for relation in relations),
        *(f"delete from {relation}" for relation in relations),
        "create table dlc.mine (x int)",
        "create table public.mine (x int)",
        "create temporary table mine (x int)",
        "create schema mine",
        "create role mine",
        "set role platform",
        "select * from dagster.runs",
        "copy dlc.session to program 'cat'",
    ):
        said = refused(analyst, writable, statement)
        assert "permission denied" in said or "must be" in said or "cannot" in said, (statement, said)
    assert "read-only transaction" in refused(analyst, "delete from dlc.session")


def test_each_owner_keeps_to_its_own(tables: Server):
    platform, dagster = tables.url("platform"), tables.url("dagster")
    for statement in ("select * from dlc.session", "insert into dlc.session default values", "create table dlc.x ()"):
        assert "permission denied for schema dlc" in refused(dagster, statement)
    assert ask(platform, "select count(*) from dagster.runs") == [0]
    for statement in ("insert into dagster.runs default values", "drop table dagster.runs", "create table dagster.x()"):
        said = refused(platform, statement)
        assert "permission denied" in said or "must be owner" in said
    for role in (platform, dagster):
        assert "permission denied" in refused(role, "create schema another")
        assert "permission denied" in refused(role, "create temporary table t (x int)")


def test_what_somebody_else_restored_belongs_to_the_roles_again(tables: Server):
    owners = (
        "select relnamespace::regnamespace, relname, relowner::regrole from pg_class "
        "where relnamespace in ('dlc'::regnamespace, 'dagster'::regnamespace) order by 1, 2"
    )
    before = tables.ask(owners)
    tables.ask("reassign owned by platform to postgres")
    tables.ask("reassign owned by dagster to postgres")
    assert "permission denied" in refused(tables.url("platform"), "alter table dlc.session add column x int")
    tables.initialise()
    assert tables.ask(owners) == before
    assert {line.split("|")[2] for line in before.splitlines()} == {"platform", "dagster"}
    ask(tables.url("dagster"), "insert into runs (run_id) values ('a')", "delete from runs")


@pytest.fixture
def lab(
    make_reachable: Callable[[], AbstractContextManager[Path]], make_project: Callable[..., Path]
) -> Iterator[Path]:
    with make_reachable() as folder:
        (folder / "raw").mkdir()
        project = make_project(folder / "tiny-tester-2026-01-01", 4)
        (folder / "lab").mkdir()
        settings = {"raw_roots": [str(folder / "raw")], "projects": {"tiny": {"path": str(project)}}}
        (folder / "lab" / "lab.yaml").write_text(yaml.safe_dump(settings))
        yield folder / "lab"


def test_a_backup_needs_no_more_than_the_platforms_role(
    tables: Server, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the client programs of the system: those of the platform's own wheel can do no TLS."""
    monkeypatch.delenv(POSTGRES_VARIABLE, raising=False)
    monkeypatch.setenv(POSTGRES_FILE_VARIABLE, str(tables.secrets / "platform_url"))
    monkeypatch.setenv(DAGSTER_POSTGRES_FILE_VARIABLE, str(tables.secrets / "dagster_url"))
    made = backup(lab, tmp_path / "kept.dlc")
    assert made.size_bytes > 10_000
    content = made.file.read_bytes()
    for role in ("platform", "dagster", "postgres", "analyst"):
        assert (tables.secrets / f"{role}_password").read_bytes().strip() not in content


#: A double of docker: the commands of containers are run here, those of Postgres's by its account.
DOCKER = """#!/bin/sh
set -eu
echo "$*" >> "$CALLS"
case "$*" in
    "compose exec -T --user postgres postgres "*) shift 6; exec setpriv --reuid postgres --clear-groups "$@" ;;
    "compose run --rm --no-deps migrate "*) shift 5; exec "$ENTRYPOINT" "$@" ;;
    "compose stop "*) ;;
    *) echo "nobody answers docker $*" >&2; exit 1 ;;
esac
"""


def going_back() -> str:
    """The commands of the README."""
    text = (DEPLOYMENTS / "README.md").read_text().partition("**Going back**")[2]
    block = text.partition("\n\n    ")[2].partition("\n\n")[0]
    return "\n".join(line.removeprefix("    ") for line in block.splitlines())


def test_readme_commands_go_back_before_a_change_of_tables(
    make_reachable: Callable[[], AbstractContextManager[Path]], lab: Path, tmp_path: Path
):
    """On the platform's own Postgres, which is new enough to restore; it can do no TLS."""
    with make_reachable() as folder, serve(folder, installed_programs(), tls=False) as server:
        programs = tmp_path / "bin"
        programs.mkdir()
        for name, text in (("docker", DOCKER), ("sudo", "#!/bin/sh\nexec true\n")):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        environment = plain_environment() | {
            **server.administration,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "ENTRYPOINT": str(DEPLOYMENTS / "entrypoint"),
            "SECRETS": str(server.secrets),
            "ROLES": str(server.roles),
            "DLC_PLATFORM_HOME": str(lab),
            "DLC_PLATFORM_POSTGRES_URL_FILE": str(server.secrets / "platform_url"),
            "DLC_PLATFORM_DAGSTER_POSTGRES_URL_FILE": str(server.secrets / "dagster_url"),
        }

        def step(*arguments: object) -> subprocess.CompletedProcess[str]:
            command = [DEPLOYMENTS / "entrypoint", *arguments]
            return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)

        def check(done: subprocess.CompletedProcess[str]) -> None:
            assert done.returncode == 0, done.stdout + done.stderr

        owners = (
            "select relnamespace::regnamespace::text, relname, relkind, relowner::regrole from pg_class "
            "where relnamespace in ('dlc'::regnamespace, 'dagster'::regnamespace) order by 1, 2, 3"
        )
        check(step("migrate"))
        before = server.ask(owners)
        check(step("dlc-platform", "backup", lab, tmp_path / "before-v2.dlc"))
        # A later version has been here.
        server.ask("update dlc.alembic_version set version_num = 'later'; alter table dlc.session add column later int")
        assert step("migrate", "--check").returncode == 1
        # What the commands name lies elsewhere here.
        script = going_back()
        for there, here in (
            ("/opt/dlc-platform/production/current", tmp_path),
            ("/var/backups/dlc-platform", tmp_path),
            ("/backups/", f"{tmp_path}/"),
            ("/tmp/restored", f"{tmp_path}/restored"),
            ("/docker-entrypoint-initdb.d/initialise.sh", server.roles.with_name("initialise.sh")),
        ):
            assert there in script
            script = script.replace(there, str(here))
        plain = {"drivername": "postgresql+psycopg2", "query": {"sslmode": "disable"}}
        forgotten = sqlalchemy.create_engine(server.url("analyst").set(**plain), poolclass=sqlalchemy.NullPool)
        with forgotten.connect():
            check(subprocess.run(["sh", "-euc", script], env=environment, check=False, capture_output=True, text=True))

        calls = (tmp_path / "calls").read_text().splitlines()
        known = yaml.safe_load((DEPLOYMENTS / "workstation" / "compose.yaml").read_text())["services"]
        (stopped,) = [call.split()[2:] for call in calls if call.startswith("compose stop ")]
        assert known.keys() - {*stopped} == {"postgres", "sign-on", "migrate", "validate", "tokens"}
        check(step("migrate", "--check"))
        assert server.ask(owners) == before
        check(step("dlc-platform", "backup", lab, tmp_path / "again.dlc"))
        for role in ("platform", "dagster"):
            assert "permission denied" in refused(server.url(role).set(**plain), "create schema another")
        assert ask(server.url("dagster").set(**plain), "show search_path") == ["dagster"]
        assert ask(server.url("analyst").set(**plain), "select count(*) from session") == [0]
        assert server.ask("select version_num from dlc.alembic_version", "dlc_platform_left") == "later"
