"""How things are said to people: a number with what it counts, a time in the unit that suits it, a name only once."""

import re
from pathlib import Path


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number and what it counts: "1 session", "2 sessions"; `things` where more than an s makes the plural."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def lasting(hours: float) -> str:
    """A time that is given in hours, in seconds, minutes or hours: "0.7 s", "12 min", "3.4 h"."""
    seconds = hours * 3600
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{hours:.3g} h"


def said_of(what: str | Path, said: str) -> str:
    """A sentence behind the name of what it is about, or by itself where it has that name already."""
    named = re.search(rf"(?<![\w-]){re.escape(str(what))}(?![\w-])", said)
    return said if named else f"{what}: {said}"
