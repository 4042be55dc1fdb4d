"""Types of the values in lab.yaml, each with its limits, and the base of all sections."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import regex
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

#: Larger than any picture, and small enough for the integers of every library and table.
MOST_PIXELS = 1_000_000
#: The longest time that lab.yaml may give, in seconds: a longer one ends later than a clock can tell.
YEAR_SECONDS = 365 * 24 * 3600
#: The most signs of a layout pattern, the most groups within each other, and the most signs with all repetitions
#: written out, as the engine does: `a{1000000000}` takes gigabytes before it is compared with any path.
_LONGEST_PATTERN, _DEEPEST_PATTERN, _LARGEST_PATTERN = 2000, 30, 100_000
_SIGN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<counts>\d*,?\d*)\}|.", re.S)
PathOrText = TypeVar("PathOrText", Path, str)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
#: The least and the largest number of each field of a cron expression, from minutes to days of the week.
_CRON = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))


def _regular_expression(text: str) -> str:
    _require_small(text)
    try:
        regex.compile(text)
    except regex.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    return text


def _require_small(pattern: str) -> None:
    """Check that a layout pattern compiles quickly and in little memory."""
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"is longer than {_LONGEST_PATTERN} characters")
    # For each open group: its signs, and the signs of its last part, which a repetition repeats.
    groups = [[0, 0]]
    for sign in _SIGN.finditer(pattern):
        if sign["counts"]:
            whole, last = groups[-1]
            times = max([1, *(int(count) for count in sign["counts"].split(",") if count)])
            groups[-1] = [whole + last * (times - 1), last * times]
        elif sign[0] == "(":
            groups.append([0, 0])
        else:
            part = groups.pop()[0] + 1 if sign[0] == ")" and len(groups) > 1 else 1
            groups[-1] = [groups[-1][0] + part, part]
        if len(groups) > _DEEPEST_PATTERN:
            raise ValueError(f"has more than {_DEEPEST_PATTERN} groups within each other")
        if groups[-1][0] > _LARGEST_PATTERN:
            raise ValueError(f"has more than {_LARGEST_PATTERN:,} signs with its repetitions written out")


def _plain_name(text: str) -> str:
    if not _NAME.fullmatch(text) or "..." in text:
        raise ValueError(
            "must be a name of at most 100 letters, digits, dots (not three in a row), hyphens and underscores, a "
            "letter or digit first"
        )
    return text


def without_zero(path: PathOrText) -> PathOrText:
    if "\0" in str(path):
        raise ValueError("holds a zero byte, which no path can")
    return path


def meant(text: str, names: Sequence[str]) -> str:
    """The advice for an unknown word: the known words that come near, or all of them."""
    near = get_close_matches(re.sub(r"\W", "_", text.lower()), names, n=2)
    return f"write {' or '.join(near)}" if near else f"the names are {', '.join(names)}"


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("must be the name of an environment variable, not its value")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"[^@\s<>,;]+@[^@\s<>,;]+", text):
        raise ValueError("must be an e-mail address, without the name of its owner")
    return text


def _time_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError("is not a time zone; write it like Europe/Berlin, or UTC") from None
    return text


def _cron(text: str) -> str:
    fields = text.split()
    for field, (least, most) in zip(fields, _CRON, strict=False):
        for part in field.split(","):
            known = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
            numbers = [int(number) for number in known.groups()[:2] if number] if known else []
            if known is None or numbers != sorted(numbers) or not all(least <= number <= most for number in numbers):
                raise ValueError(
                    f"has {part!r} in the place of numbers from {least} to {most}, as in 5, 1-5, 1,15, * or */5"
                )
    if len(fields) != len(_CRON):
        raise ValueError("must be minute, hour, day of the month, month and day of the week, such as '30 2 * * *'")
    return " ".join(fields)


def ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError("must be two numbers, the smaller one first")
    return ends


Pattern = Annotated[str, AfterValidator(_regular_expression)]
Name = Annotated[str, AfterValidator(_plain_name)]
Folder = Annotated[Path, AfterValidator(without_zero)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
Address = Annotated[str, AfterValidator(_address)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
GpuNumber = Annotated[int, Field(ge=0, le=1023)]
GpuUuid = Annotated[str, Field(pattern=r"^(GPU|MIG)-[A-Za-z0-9/-]+$")]
Cron = Annotated[str, AfterValidator(_cron)]
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Coordinate = Annotated[float, Field(ge=-MOST_PIXELS, le=MOST_PIXELS)]


def leaves(annotation: Any, bounds: Sequence[Any] = ()) -> list[tuple[Any, list[Any]]]:
    """The types of the values in an annotation, each with its limits."""
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        own = [one for field in own for one in (field.metadata if isinstance(field, FieldInfo) else [field])]
        return leaves(inner, [*bounds, *own])
    parts = () if get_origin(annotation) is Literal else get_args(annotation)
    if not parts:
        return [(annotation, list(bounds))]
    return [leaf for part in parts for leaf in leaves(part, bounds)]


class Section(BaseModel):
    # Infinities and NaN have no canonical JSON, so they cannot be part of an identity.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, given: Any, info: ValidationInfo) -> Any:
        kinds = {kind for kind, _ in leaves(cls.model_fields[str(info.field_name)].annotation)}
        if kinds & {int, float} and any(
            isinstance(one, bool) for one in (given if isinstance(given, list) else [given])
        ):
            raise ValueError("must be a number, and not true or false")
        return given
