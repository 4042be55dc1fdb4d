"""What `--help` shows, and what is said of a call that is not understood."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dlc_platform.cli import app, printing
from dlc_platform.docs.reference import commands
from dlc_platform.errors import HOME_VARIABLE
from dlc_platform.settings.loading import load_lab
from dlc_platform_tests.orchestration.up import COMMAND, plain_environment


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls a command that is not understood: what it says on stderr."""
    # A lab that other tests share may have set it, and HOME would be that lab's.
    monkeypatch.delenv(HOME_VARIABLE, raising=False)

    def call(*arguments: object) -> str:
        monkeypatch.setattr(printing, "labs", [])
        monkeypatch.setattr(sys, "argv", ["dlc-platform", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        said = capsys.readouterr()
        assert said.out == ""
        assert ended.value.code == 2 or not said.err, "a call that is not understood ends with 2"
        return said.err or str(ended.value.code)

    return call


def helps(*words: str) -> str:
    done = CliRunner().invoke(app.app, [*words, "--help"], env={"COLUMNS": "80"}, prog_name="dlc-platform")
    assert done.exit_code == 0, done.output
    return done.output


def test_help_is_whole_and_in_the_words_of_people() -> None:
    assert len(list(commands())) > 30
    for path, command, _ in commands():
        said = helps(*path)
        for parameter in command.params:
            assert parameter.opts[0] in said or (parameter.metavar or parameter.name.upper()) in said, path
        assert not re.search(r"\.\.\.\n|<\w|\[required\]|\{[A-Z]", said), said
        assert all(len(line) <= 80 for line in said.splitlines())
    whole = " ".join(helps().split())
    for _, command, _ in commands():
        if command.name not in ("list", "import", "release", "test"):
            assert " ".join(command.help.split("\n\n")[0].split()) in whole


@pytest.mark.parametrize("group", ["sessions", "models", "poses"])
def test_the_help_of_a_list_has_its_options_and_other_commands(group: str) -> None:
    said = helps(group)
    assert said.startswith(f"Usage: dlc-platform {group} HOME [OPTIONS]\n   or: dlc-platform {group} ")
    assert "--csv" in said and "--wide" in said and "\nCommands:\n" in said
    assert helps(group, "HOME").startswith(f"Usage: dlc-platform {group} HOME [OPTIONS]\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("seesions", "lab"), "there is no command seesions. Did you mean sessions? `dlc-platform --help` lists"),
        (("sessions", "releas", "lab", "s"), "there is no command releas. Did you mean release?"),
        (("sessions", "lab", "--jsno"), "`dlc-platform sessions` has no option --jsno. Did you mean --json?"),
        (("notify", "lab"), "needs a command before lab. Write `dlc-platform notify test HOME`"),
        (("lineage", "sub-1"), "SESSION is missing, and sub-1 is no lab: HOME is the folder that holds lab.yaml"),
        (("touched",), "HOME is missing: the folder that holds lab.yaml. Write `dlc-platform touched HOME MODEL`"),
        (
            ("run", "lab"),
            "lab is no lab: HOME is the folder that holds lab.yaml. Write `dlc-platform run HOME ASSETS...`",
        ),
        (("run", "lab", "--select", "x"), "ASSETS is written without it: `dlc-platform run HOME ASSETS...`"),
        (("poses", "import", "lab", "f", "--session", "s"), "SESSION is written without it"),
        (("models", "import", "lab", "--from-project", "p"), "FOLDER is written without it"),
        (("up", "lab", "--port", "70000"), "--port: input should be less than or equal to 65535"),
        (("report", "lab", "--day"), "--day needs a value. See `dlc-platform report --help`"),
        (("models", "lab", "more"), "`dlc-platform models` has no place for more"),
        (("sessions", "release", "lab", "s", "--stage", "x"), "--stage: 'x' is not one of 'videos', 'labels'"),
        (("sessions", "lab", "--json", "--csv"), "--json, --csv and --wide are forms of one answer"),
        (("quality", "lab", "--csv", "--json"), "--json, --csv and --wide are forms of one answer"),
        (("models", "lab", "--wide", "--csv"), "--json, --csv and --wide are forms of one answer"),
        (("sessions", "lab", "--waiting", "--wide"), "Leave out --wide"),
        (("quality", "lab", "--wide"), "Name one: `dlc-platform quality lab SESSION`"),
        (("scan", "lab", "--all"), "--session, --all and --json go with --dry-run"),
        (("promote", "lab"), "MODEL is missing"),
        (("promote", "lab", "m", "--back", "p"), "Give one of them"),
        (("promote", "lab", "m", "--reason", " "), "the promotion has no reason"),
        (("report", "lab", "--day", "friday"), "--day: 'friday' is not a day"),
        (("backfill", "lab", "--most", "x"), "--most: this is not a whole number. See `dlc-platform backfill --help`"),
        (("sessions", "lab", "--waiting", "--quarantined"), "Ask for one of them"),
        (("init", "new"), "RAW_ROOT is missing. Write `dlc-platform init new RAW_ROOT DLC_PROJECT`"),
        (("init", "new", "raw"), "DLC_PROJECT is missing"),
    ],
)
def test_a_call_that_is_not_understood_is_told_how(
    arguments: tuple[str, ...], said: str, told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = told(*arguments)
    assert answer.startswith("dlc-platform: ") and said in answer
    assert answer.strip().count("\n") == 0


def test_a_lab_that_comes_near_is_named(
    told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my lab").mkdir()
    (tmp_path / "my lab" / "lab.yaml").touch()
    assert f"Did you mean '{tmp_path}/my lab'?" in told("sessions", tmp_path / "my-lab")
    monkeypatch.chdir(tmp_path / "my lab")
    assert "This folder is a lab, so write . for HOME: `dlc-platform ... . sub-1`" in told("quality", "sub-1")
    assert "Did you mean" not in told("sessions", tmp_path / "elsewhere")


def test_messages_keep_to_the_screen_and_paths_stay_whole(
    told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    backup = tmp_path / "a folder of the lab" / "the backup of Monday"
    lines = told("restore", backup, tmp_path / "new").splitlines()
    assert len(lines) > 2 and all(len(line) <= 60 for line in lines if str(tmp_path) not in line)
    assert any(f"{tmp_path}/a folder of the lab/the" in line for line in lines)
    assert "`dlc-platform run HOME ASSETS...`" in " ".join(told("run", "lab", "--select", "x").split("\n  "))


def test_init_asks_in_a_terminal_for_what_is_not_given(tmp_path: Path, make_project: Callable[..., Path]) -> None:
    project, raw = make_project(tmp_path / "tiny-tester-2026-01-01", 2), tmp_path / "my raw"
    raw.mkdir()
    controller, terminal = pty.openpty()
    try:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
        asking = subprocess.Popen([COMMAND, "init", str(tmp_path / "lab")], env=plain_environment(), **streams)
        os.write(controller, f"{raw}\n{project}\n".encode())
        assert asking.wait() == 0
    finally:
        os.close(controller)
        os.close(terminal)
    settings = load_lab(tmp_path / "lab")
    assert settings.raw_roots == (raw,) and [one.path for one in settings.projects.values()] == [project]
