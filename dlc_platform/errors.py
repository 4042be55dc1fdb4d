"""The one exception that a person is meant to read, and the one warning.

Every error that a user can cause or mend is a `PlatformError`. Programming errors stay ordinary exceptions.
"""

import re
import shlex
from pathlib import Path

_HOME = re.compile(r"(`dlc-platform [^`]*?)\bHOME\b")


def at_home(message: str, home: Path) -> str:
    """A message whose commands can be pasted: where they say HOME, which stands for any lab's, it is this one's."""
    return _HOME.sub(lambda found: found[1] + shlex.quote(str(home)), message)


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
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}."


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
