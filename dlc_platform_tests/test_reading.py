"""Reading never changes anything: each command and each question of a notebook, on a lab as it is."""

import hashlib
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import typer.main
import yaml
from alembic import command as alembic
from sqlalchemy import Engine, text

from dlc_platform.catalog.database import alembic_config, migrate, open_lab, open_where_there
from dlc_platform.catalog.quarantine import Fault, judge
from dlc_platform.cli import app
from dlc_platform.errors import PlatformError, at_home
from dlc_platform.orchestration.instance import prepare
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.platform import Platform
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.version import __version__
from dlc_platform_tests.catalog.conftest import lab as lab
from dlc_platform_tests.catalog.small_lab import identity

SESSION = "sub-1_ses-1"
#: Commands that read, with what they are asked; HOME comes after the name.
READING: dict[str, tuple[str, ...]] = {
    "doctor": (),
    "env": (),
    "migrate": ("--check",),
    "gpus": (),
    "scan": ("--dry-run",),
    "sessions": (),
    "sessions list": ("--waiting",),
    "report": (),
    "notifications": (),
    "models": (),
    "models list": ("--json",),
    "poses": (),
    "poses list": ("--json",),
    "compare": (),
    "quality": (SESSION,),
    "lineage": (SESSION,),
    "touched": (identity("a"),),
    "stale": (),
    "best": (),
    "parameters": (),
    "promotions": (),
    "impact": (identity("a"),),
    "backfill": ("--dry-run",),
    "verify": (),
    "gc": (),
}
#: Commands that start or change something, or make another lab or a file out of one; `ui` and `serve` make a token.
WRITING = {
    *("demo", "init", "up", "stop", "ui", "serve", "run", "train", "notify", "promote", "restore", "backup"),
    *("sessions release", "models import", "poses import", "notify test"),
}
#: Of a notebook.
QUESTIONS: dict[str, tuple[Any, ...]] = {
    "sessions": (True,),
    "plan": (),
    "details": (),
    "quarantine": (),
    "waiting": (),
    "report": (),
    "notifications": (),
    "models": (),
    "evaluations": (),
    "estimates": (),
    "quality": (),
    "worst_quality": (),
    "require_good_poses": (SESSION,),
    "promotions": (),
    "exports": (),
    "parameters": (),
    "model_sessions": (identity("a"),),
    "stale_sessions": (),
    "poses_of_other_rules": (),
    "not_judged_by_floors": (),
    "impact": (identity("a"),),
    "best_models": (),
    "compare": ("maze",),
    "model_id": (identity("a"),),
    "project_of": (identity("a"),),
    "require_project": ("maze",),
    "require_sessions": ([SESSION],),
    "earlier_model": ("maze",),
    "poses": (SESSION,),
    "lineage": (SESSION,),
}


@pytest.fixture
def home(
    lab: Engine, tmp_path: Path, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A lab that was started, with rows, whose lab.yaml has another inference rule by now."""
    monkeypatch.setenv(POSTGRES_VARIABLE, lab.url.render_as_string(hide_password=False))
    (tmp_path / "raw" / "sub-7" / "ses-1").mkdir(parents=True)
    (tmp_path / "raw" / "sub-7" / "ses-1" / "cam-top.mp4").write_bytes(b"no video")
    settings = {
        "raw_roots": ["raw"],
        "projects": {name: {"path": str(make_project(tmp_path / name, 4))} for name in ("maze", "other")},
        "inference": [{"camera": "*", "project": "maze"}],
    }
    home = tmp_path / "the lab"
    home.mkdir()
    file = home / "lab.yaml"
    settings["raw_roots"] = [str(tmp_path / "raw")]
    file.write_text(yaml.safe_dump(settings))
    prepare(home)
    judge(lab, SESSION, "poses", [Fault("failed", "Look at the run", identity("b"))])
    file.write_text(yaml.safe_dump(settings | {"inference": [{"camera": "*", "project": "other"}]}))
    yield home


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in this process: all that it says, the error that it ends with too."""

    def run(name: str, home: Path, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dlc-platform", *name.split(), str(home), *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
        told = capsys.readouterr()
        return f"{told.out}{told.err}{ended.value.code}"

    return run


def rows(engine: Engine) -> dict[str, str]:
    """A hash of the rows of every table of the database, and of the sequences."""
    tables = text(
        "select format('%I.%I', schemaname, tablename) from pg_tables "
        "where schemaname not in ('pg_catalog', 'information_schema')"
    )
    with engine.connect() as connection:
        found = {
            name: connection.scalar(text(f"select md5(string_agg(t::text, '|' order by t::text)) from {name} t")) or ""
            for name in connection.scalars(tables).all()
        }
        found["sequences"] = str(connection.execute(text("select sequencename, last_value from pg_sequences")).all())
    return found


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """The time and a hash of everything in a folder."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def commands() -> set[str]:
    """The names of all commands, those of groups too."""
    found = set()
    for name, one in typer.main.get_command(app.app).commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        below = getattr(one, "commands", {})
        found |= {name, *(f"{name} {other}" for other in below)} if below else {name}
    return found


def test_each_command_and_question_is_known_to_read_or_to_write() -> None:
    assert commands() == READING.keys() | WRITING | {"docs"}  # which is of no lab
    asked = {name for name, value in vars(Platform).items() if callable(value) and not name.startswith("_")}
    assert asked == QUESTIONS.keys()


def test_commands_that_read_change_nothing(lab: Engine, home: Path, command: Callable[..., str]) -> None:
    for name, arguments in READING.items():
        before = rows(lab), files(home.parent)
        said = command(name, home, *arguments)
        assert "Traceback" not in said
        assert (rows(lab), files(home.parent)) == before, (name, said)


def test_questions_change_nothing(lab: Engine, home: Path) -> None:
    before = rows(lab), files(home.parent)
    platform = Platform(home)
    for name, arguments in QUESTIONS.items():
        try:
            getattr(platform, name)(*arguments)
        except PlatformError as error:
            assert name in ("poses", "compare", "require_good_poses"), error
    assert (rows(lab), files(home.parent)) == before


def test_nothing_is_made_for_a_lab_that_was_never_started(
    make_reachable: Callable[[], AbstractContextManager[Path]],
    home: Path,
    command: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(POSTGRES_VARIABLE)
    with make_reachable() as folder:
        new = folder / "new"
        new.mkdir()
        (new / "lab.yaml").write_bytes((home / "lab.yaml").read_bytes())
        for name, arguments in READING.items():
            said = command(name, new, *arguments)
            assert list(new.iterdir()) == [new / "lab.yaml"], name
            if name not in ("doctor", "migrate", "gpus", "scan"):
                assert f"the lab {new} has no catalogue yet" in said, name
                assert f"`dlc-platform migrate {new}`" in said or f"`dlc-platform up {new}`" in said
        writing = {
            "promote": (identity("a"), "--reason", "good"),
            "sessions release": (SESSION,),
        }
        for name, arguments in writing.items():
            assert "has no catalogue yet" in command(name, new, *arguments), name
        assert "is written" in command("backup", new, str(folder / "file"))
        assert not (new / "postgres").exists() and not (new / "dagster").exists()


def leave_the_newest(engine: Engine) -> None:
    with engine.begin() as connection:
        alembic.downgrade(alembic_config(connection), "0004")


def test_older_tables_are_left_and_the_remedy_is_told(lab: Engine, home: Path, command: Callable[..., str]) -> None:
    leave_the_newest(lab)
    before = rows(lab)
    helps = f"`dlc-platform migrate {shlex.quote(str(home))}`"
    writing = {
        "promote": (identity("a"), "--reason", "good"),
        "backfill": (),
        "scan": (),
        "sessions release": (SESSION,),
        "quality": ("--judge",),
        "gc": ("--delete",),
    }
    for name, arguments in [*READING.items(), *writing.items()]:
        said = command(name, home, *arguments)
        assert rows(lab) == before, name
        if name not in ("gpus", "migrate"):
            assert helps in said, (name, said)
    for question, arguments in QUESTIONS.items():
        if question == "require_project":  # which lab.yaml answers
            continue
        with pytest.raises(PlatformError, match="0004, where this version has 0007") as caught:
            getattr(Platform(home), question)(*arguments)
        assert helps in caught.value.remedy
    with pytest.raises(PlatformError, match="older version of the platform"):
        _ = LabResource(home=str(home)).engine
    assert rows(lab) == before
    migrate(lab)
    assert not Platform(home).sessions().empty


def test_newer_tables_name_the_version_that_made_them(lab: Engine, home: Path) -> None:
    with lab.begin() as connection:
        connection.execute(text("update dlc.alembic_version set version_num = '9999'"))
    with pytest.raises(PlatformError, match=r"a newer one has changed them, and this is .*Install that version"):
        open_lab(home)
    with lab.begin() as connection:
        assert connection.scalar(text("select platform from dlc.migration")) == __version__
        connection.execute(text("insert into dlc.migration values ('9999', '7.1', now())"))
    with pytest.raises(PlatformError, match=r"version 7\.1 has changed them.*Install version 7\.1 or a newer one"):
        Platform(home).sessions()
    with lab.begin() as connection:
        connection.execute(text("alter table dlc.migration rename platform to who"))
    with pytest.raises(PlatformError, match="a newer one has changed them"):
        open_where_there(home)


def test_a_role_that_may_only_select_reads(lab: Engine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.begin() as connection:
        for statement in (
            "create role looker login password 'looks'",
            "grant usage on schema dlc to looker",
            "grant select on all tables in schema dlc to looker",
        ):
            connection.execute(text(statement))
    try:
        role = lab.url.set(username="looker", password="looks")
        monkeypatch.setenv(POSTGRES_VARIABLE, role.render_as_string(hide_password=False))
        platform = Platform(home)
        for name, arguments in QUESTIONS.items():
            try:
                getattr(platform, name)(*arguments)
            except PlatformError as error:
                assert name in ("poses", "compare", "require_good_poses"), error
        platform._engine.dispose()
    finally:
        with sqlalchemy.create_engine(lab.url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("drop owned by looker"))
            connection.execute(text("drop role looker"))


def test_a_command_that_is_advised_can_be_pasted(home: Path, command: Callable[..., str]) -> None:
    lab = shlex.quote(str(home))
    assert f"`dlc-platform sessions {lab}`" in command("lineage", home, "sub-9_ses-9")
    assert f"`dlc-platform models {lab}`" in command("touched", home, "abc")
    assert f"`dlc-platform up {lab}`" in command("doctor", home)
    assert at_home("Look at `models`, HOME and `dlc-platform gc HOME --delete`", Path("/a b")) == (
        "Look at `models`, HOME and `dlc-platform gc '/a b' --delete`"
    )
