"""The one exception that a person is meant to read, the one warning, and how both are written.

Every error that a user can cause or mend is a `PlatformError`. Programming errors stay ordinary exceptions. A command
to paste is written by `command`, whatever stands in names; what names hold that is no text is escaped by `printable`.
"""

import os
import re
import shlex
from pathlib import Path

#: Names the lab of a process of Dagster.
HOME_VARIABLE = "DLC_PLATFORM_HOME"
_HOME = re.compile(r"(`dlc-platform [^`]*?)\bHOME\b")
_HOME_FILE = re.compile(r"(?<![\w$/`])HOME(?=/(?:lab\.yaml|logs/))")
#: What moves the cursor, colours or hides text, turns its direction or is not seen at all, and half characters; not the
#: tab and the line.
_NO_TEXT = re.compile(
    r"[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    """A text with what is no text shown by its number, such as \\x1b: names may hold what commands a terminal."""
    return _NO_TEXT.sub(lambda found: _escaped(found[0]), text)


def in_a_line(text: str) -> str:
    """As `printable`, and in one line: a name with a line break cannot look like another message."""
    return printable(text).replace("\n", "\\n")


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


def shell_word(value: str | Path) -> str:
    """A value as one word of a shell's command; bash takes what is no text by its number."""
    text = str(value)
    if not _NO_TEXT.search(text) and not {"\n", "\t"} & set(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"$'{printable(escaped)}'"


def command(*words: str | Path) -> str:
    """A call of `dlc-platform` to paste, between backticks. HOME as a word stands for the lab of whoever reads."""
    return f"`dlc-platform {' '.join(map(shell_word, words))}`"


def at_home(message: str, home: Path) -> str:
    """A message whose commands can be pasted: where they say HOME, which stands for any lab's, it is this one's."""
    message = _HOME.sub(lambda found: found[1] + shell_word(home), message)
    return _HOME_FILE.sub(lambda _: str(home), message)


def in_this_lab(message: str) -> str:
    """A message as a process of Dagster tells it, which works for one lab: its commands name that lab."""
    home = os.environ.get(HOME_VARIABLE)
    return printable(at_home(message, Path(home)) if home else message)


def one_line(words: str, most: int = 200) -> str:
    """Words of a stranger for a message: on one line, cut, and without characters that a terminal obeys."""
    shown = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(words.split())
    )
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


class PlatformError(Exception):
    """Something that a person can mend.

    Parameters
    ----------
    problem
        One sentence, without its full stop, that names the file, key or value and what is wrong with it.
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

    It says nothing of the data, so it puts no session into quarantine: the work is tried again by itself.
    """


class PlatformWarning(UserWarning):
    """Something that a person should know, although what was asked for is done."""


def sentence_for_people(error: BaseException) -> PlatformError | None:
    """The `PlatformError` nearest to an error, from itself down through what caused it; None if there is none."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        if isinstance(one, PlatformError):
            return one
        seen.add(id(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None
