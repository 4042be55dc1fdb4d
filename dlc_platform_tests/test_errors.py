"""Sentences for people, and commands to paste."""

import subprocess
import sys
from pathlib import Path

import pytest

from dlc_platform.cli import app
from dlc_platform.errors import HOME_VARIABLE, PlatformError, at_home, command, printable, shell_word
from dlc_platform.estimates.quality_gate import release_command
from dlc_platform.sessions.video_checks import release

HOSTILE = [
    "sub-1_ses-$(touch owned)",
    "sub-1_ses-1; touch owned",
    "a b",
    "it's",
    "`touch owned`",
    "\\x41",
    "\x1b[2Jred\x07",
    "two\nlines\tand\rmore",
    "right\u202eleft",
    "ses-1\u200b",
    "ses-1\U000e0041",
    "it's \x1b\\ both",
    "côté",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_word_of_a_command_is_what_it_was_in_the_shell(name: str, tmp_path: Path) -> None:
    word = shell_word(name)
    assert printable(word) == word and "\n" not in word
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode() == name
    assert list(tmp_path.iterdir()) == []


def test_a_command_names_the_lab_of_whoever_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    key = HOSTILE[0]
    assert command("sessions", "release", "HOME", key) == f"`dlc-platform sessions release HOME '{key}'`"
    assert release_command(key) == f"`dlc-platform sessions release HOME '{key}' --stage quality`"
    assert f"release HOME '{key}'`" in release(key)
    said = at_home(f"Read HOME/logs/daemon.log, or {command('up', 'HOME')}; $HOME/logs/ is another one", Path("/a b"))
    assert said == "Read /a b/logs/daemon.log, or `dlc-platform up '/a b'`; $HOME/logs/ is another one"
    problem = PlatformError("none", f"Make one with {command('init', 'HOME')}")
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    assert "init HOME`" in str(problem)
    monkeypatch.setenv(HOME_VARIABLE, "/the lab")
    assert "init '/the lab'`" in str(problem) and "init HOME`" in problem.remedy


def test_what_commands_a_terminal_is_shown_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printable("\x1b]0;owned\x07 \x9b1m \u202e \ud800 côté 犬\n") == (
        "\\x1b]0;owned\\x07 \\x9b1m \\u202e \\ud800 côté 犬\n"
    )
    assert printable("a\u200bb\u2060c\xadd\U000e0041") == "a\\u200bb\\u2060c\\xadd\\U000e0041", "names that look alike"
    assert PlatformError("\x1b[31mred\nok: all is well", "Rename it").problem == "\\x1b[31mred\\nok: all is well"
    monkeypatch.setattr(sys, "argv", ["dlc-platform", "doctor", str(tmp_path / "\x1b[2Jlab")])
    with pytest.raises(SystemExit):
        app.main()
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[2Jlab" in said
