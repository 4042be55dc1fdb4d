"""Phrases for people: a number with what it counts, a time in the unit that suits it, a name only once."""

import re
from collections.abc import Sequence
from pathlib import Path


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number and the things that it counts: "1 session", "2 sessions"; `things` if the plural needs more than an
    s."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names with commas, cut after the first ones if there are many: "a, b and 390 more"."""
    more = len(names) - most
    return f"{', '.join(names[:most])} and {more:,} more" if more > 0 else ", ".join(names)


def rounded(figure: float) -> str:
    """A figure with three digits, or with all digits before the point: "0.123", "12.3", "1,234"."""
    return f"{figure:.3g}" if abs(figure) < 999.5 else f"{figure:,.0f}"


def lasting(hours: float) -> str:
    """A time, given in hours, in seconds, minutes or hours: "0.7 s", "12 min", "3.4 h"."""
    seconds = hours * 3600
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{rounded(hours)} h"


def sized(number: float) -> str:
    """A number of bytes in the unit that suits it: "3 kB", "72 MB", "1.5 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        # A size that would be rounded to 1000 of the smaller unit is 1 of this one.
        if number >= 0.9995 * size:
            return f"{rounded(number / size)} {unit}"
    return f"{number / 1e3:.3g} kB"


def said_of(what: str | Path, said: str) -> str:
    """A sentence after the name of the thing that it is about; alone if the sentence has that name already."""
    named = re.search(rf"(?<![\w-]){re.escape(str(what))}(?![\w-])", said)
    return said if named else f"{what}: {said}"
