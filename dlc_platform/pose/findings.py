"""Faults of poses in words, and the verdict that follows from them. `scores` measures."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from dlc_platform.pose import SINGLE_ANIMAL
from dlc_platform.text.words import rounded

Level = Literal["pass", "warn", "fail"]
#: From good to bad.
LEVELS: tuple[Level, ...] = get_args(Level)
#: Stands for every individual, and for every body part.
ALL = "all"

#: The sources of limits, in the words of tables.
IN_LAB_YAML, FROM_TEST_IMAGES, USUAL, A_FLOOR = "lab.yaml", "the model's test images", "usual", "floor"


@dataclass(frozen=True)
class Finding:
    """A score beyond a limit.

    Attributes
    ----------
    value
        The measured value; None if nothing could be measured.
    source
        The source of the limit; empty in verdicts that are older than the floors.
    says
        The whole finding in words, if the names and the numbers alone do not tell it.
    """

    metric: str
    individual: str
    bodypart: str
    value: float | None
    limit: float | None
    level: Level
    source: str = ""
    says: str = ""

    def __str__(self) -> str:
        """The finding in words, without a semicolon, because semicolons separate findings."""
        if self.says:
            return self.says
        whose = self.bodypart if self.individual in (SINGLE_ANIMAL, ALL) else f"{self.individual} {self.bodypart}"
        limit = "floor" if self.source == A_FLOOR else "limit"
        source = f" ({self.source})" if self.source not in ("", A_FLOOR) else ""
        value, bound = ("unknown" if figure is None else rounded(figure) for figure in (self.value, self.limit))
        return f"{self.metric} of {whose} is {value}, {limit} {bound}{source}"


def worst(findings: Iterable[Finding]) -> Level:
    """The verdict on poses with these findings."""
    levels: list[Level] = ["pass", *(finding.level for finding in findings)]
    return max(levels, key=LEVELS.index)
