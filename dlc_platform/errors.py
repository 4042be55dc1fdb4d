"""The exception and the warning that people read, and the way in which both are written.

Every error that a user can cause or mend is a `PlatformError`. Programming errors stay ordinary exceptions. `command`
writes a command to paste, whatever names hold; `printable` escapes the parts of names that are not text.
"""

import os
import re
import shlex
from pathlib import Path

#: The environment variable that names the lab of a Dagster process.
HOME_VARIABLE = "DLC_PLATFORM_HOME"
_HOME = re.compile(r"(`dlc-platform [^`]*?)\bHOME\b")
_HOME_FILE = re.compile(r"(?<![\w$/`])HOME(?=/(?:lab\.yaml|logs/))")
#: Characters that move the cursor, colour or hide text, turn its direction or are invisible, and half characters; not
#: the tab and the line end.
_NO_TEXT = re.compile(
    r"[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    """A text in which characters that are not text appear as numbers, such as \\x1b: names may hold commands for a
    terminal."""
    return _NO_TEXT.sub(lambda found: _escaped(found[0]), text)


def in_a_line(text: str) -> str:
    """As `printable`, and in one line, so that a name with a line break cannot look like another message."""
    return printable(text).replace("\n", "\\n")


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def shell_word(value: str | Path) -> str:
    """A value as one word of a shell command; characters that are not text appear as numbers, for bash."""
    text = str(value)
    if not _NO_TEXT.search(text) and not {"\n", "\t"} & set(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"$'{printable(escaped)}'"


def command(*words: str | Path) -> str:
    """A `dlc-platform` command to paste, between backticks. The word HOME stands for the reader's lab."""
    return f"`dlc-platform {' '.join(map(shell_word, words))}`"


def at_home(message: str, home: Path) -> str:
    """A message whose commands can be pasted: HOME, which stands for any lab, becomes this lab."""
    message = _HOME.sub(lambda found: found[1] + shell_word(home), message)
    return _HOME_FILE.sub(lambda _: str(home), message)


def in_this_lab(message: str) -> str:
    """A message for a Dagster process, which works for one lab: its commands name that lab."""
    home = os.environ.get(HOME_VARIABLE)
    return printable(at_home(message, Path(home)) if home else message)


def one_line(words: str, most: int = 200) -> str:
    """Foreign words for a message: in one line, cut, and without characters that a terminal obeys."""
    shown = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(words.split())
    )
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


class PlatformError(Exception):
    """Something that a person can mend.

    Parameters
    ----------
    problem
        One sentence, without its full stop, that names the file, key or value and its fault.
    remedy
        One sentence, without its full stop, that says what to do.
    """

    def __init__(self, problem: str, remedy: str):
        super().__init__(problem, remedy)
        self.problem = in_a_line(problem)
        self.remedy = in_a_line(remedy)

    def __str__(self) -> str:
        return in_this_lab(f"{self.problem}. {self.remedy}.")


class MachineFault(PlatformError):
    """A fault of the machine, or something that is away: the database, a disk, a mount, the network.

    It says nothing about the data, so it puts no session into quarantine: the work is tried again by itself.
    """


class PlatformWarning(UserWarning):
    """A fact that a person should know, although the request is done."""


def sentence_for_people(error: BaseException) -> PlatformError | None:
    """The `PlatformError` nearest to an error, among the error and its causes; None if there is none."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        if isinstance(one, PlatformError):
            return one
        seen.add(id(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None
