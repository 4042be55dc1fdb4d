"""The place of a video in the layout of lab.yaml, by its path below the raw root alone; nothing is read from a disk."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import regex

from dlc_platform.errors import PlatformError

#: Signs that Dagster refuses in a partition key, and those with which the platform separates keys.
_INVALID_IN_KEY = re.compile(r"\.\.\.|[\x00-\x1f\x7f|,/]")
#: Patterns take microseconds; one that takes longer is caught in its own repetitions, and could go on for years.
_PATTERN_SECONDS = 0.5
#: In bytes: a longer key together with a path does not fit into an index of the catalogue.
_LONGEST_KEY = 500
#: A letter of any script, or an accent that is a character of its own.
_LETTER = r"[^\x00-@\[-`{-\x7f]"
#: The numbers that cameras give the files of one recording, if layout.pattern has no group `part`.
_PART = re.compile(rf"[-_. ]*(?<!{_LETTER})part[-_. ]?(?P<part>\d+)(?!{_LETTER}|\d)", re.I)
#: The reasons why a video belongs to no session.
LEADS_OUT = "its path leads out of its raw root"
OUTSIDE = "its path does not match layout.pattern of lab.yaml, or its preset; rename it, or correct the layout"
#: A camera's number, or its name: in a NeuroBlueprint's ``cam-top-left`` everything up to the next underscore, in any
#: other name the next word.
_CAMERA = re.compile(
    rf"(?<!{_LETTER})cam(?:era)?(?:-(?P<value>[^_]+)|(?P<number>\d+)(?!{_LETTER})|[_ ](?P<name>[^_\s]+))",
    re.I,
)


@dataclass(frozen=True)
class Place:
    """The place of a video in the layout: its session, the session's folder, and the camera if the path names it.

    `part` is the part of the recording that the path names, if it does, and `whole` is the path without it.
    """

    key: str
    subject: str
    name: str
    folder: str
    in_folder_names: bool
    camera: str | None
    whole: str
    part: str | None


def leads_out(relative: str) -> bool:
    """True for a path that leaves the folder that it begins in. No disk has such a name; a row of a catalogue may."""
    return relative.startswith("/") or (".." in relative and ".." in relative.split("/"))


def root_of(path: Path, roots: Iterable[Path]) -> Path | None:
    """The innermost of several raw roots in which a path lies, by its name; None if it lies in none of them."""
    if leads_out(str(path).lstrip("/")):
        return None
    return max((root for root in roots if path.is_relative_to(root)), key=lambda root: len(root.parts), default=None)


def place_of(pattern: regex.Pattern[str], root: str, relative: str, unnamed_session: str | None = None) -> Place | str:
    """The place of a video by its path below the root; or the reason why it has none.

    Names are in Unicode's normal form C, in which people type: if a disk spells an accent in another way, or begins to,
    the session and the camera stay the same.

    Parameters
    ----------
    unnamed_session
        The session of a path that names none; None if a path must name one.

    Raises
    ------
    PlatformError
        When matching the pattern against this path takes too long.
    """
    if leads_out(relative):
        return LEADS_OUT
    try:
        found = pattern.fullmatch(relative, timeout=_PATTERN_SECONDS)
    except TimeoutError:
        raise PlatformError(
            f"matching layout.pattern of lab.yaml takes too long for the path {relative!r} below {root}",
            "Write it without a repetition inside a repetition, such as ([^/]+)+ or (.*)*",
        ) from None
    if not found:
        return OUTSIDE
    subject, name = normal(found["subject"]), normal(found["session"]) or unnamed_session
    if not subject or not name:
        return (
            "layout.pattern of lab.yaml finds no subject or no session in its path; rename it, or correct the pattern"
        )
    key = f"sub-{subject}_ses-{name}"
    if _INVALID_IN_KEY.search(key):
        return f"its session key {key!r} holds '...', '|', ',', '/' or a control character; rename its folders"
    if len(key.encode()) > _LONGEST_KEY:
        return f"its session key is longer than {_LONGEST_KEY} bytes; shorten the names of its folders"
    # The session's folder is the part of the path that names both; if the file's name does, it is the file's folder.
    named_at = max(found.end("subject"), found.end("session"))
    end = relative.find("/", named_at)
    in_folder_names = end >= 0
    if not in_folder_names:
        end = max(relative.rfind("/"), 0)
    camera = normal(found["camera"]) if "camera" in pattern.groupindex else None
    whole, part = _without_part(found, relative)
    return Place(
        key, subject, name, os.path.join(root, relative[:end]), in_folder_names, camera, os.path.join(root, whole), part
    )


def _without_part(found: regex.Match[str], relative: str) -> tuple[str, str | None]:
    """A path without the number of a file in its recording, and that number."""
    if "part" in found.re.groupindex:
        if not found["part"]:
            return relative, None
        before, after = relative[: found.start("part")], relative[found.end("part") :]
        folder, stem = os.path.split(before)
        stem = stem.rstrip("-_. ")
        if not stem and after.startswith("."):
            # Files such as 0.avi and 1.avi have no name besides the number; only their folder has one.
            stem = os.path.basename(folder)
        name = stem + after if stem else after.lstrip("-_. /")
        return os.path.join(folder, name), found["part"]
    folder, name = os.path.split(relative)
    stem, suffix = os.path.splitext(name)
    numbered = list(_PART.finditer(stem))
    if not numbered:
        return relative, None
    last = numbered[-1]
    rest = (stem[: last.start()] + stem[last.end() :]).strip("-_. ")
    return os.path.join(folder, (rest or stem) + suffix), last["part"]


def camera_of(stem: str) -> str:
    """The camera that the stem of a file's name contains; the whole stem if it contains none."""
    found = _CAMERA.search(stem)
    name = found["value"] or found["number"] or found["name"] if found else ""
    # A rule of lab.yaml cannot name line ends and other invisible signs.
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", name).split()) or stem


def normal(text: str | None) -> str:
    """A name in Unicode's normal form C; an empty text for None."""
    return unicodedata.normalize("NFC", text or "")


def alike(keys: Iterable[str]) -> list[list[str]]:
    """Groups of session keys that differ only in capitals or in the spelling of a character, and so may be one
    session."""
    same: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        same[unicodedata.normalize("NFKC", key).casefold()].append(key)
    return [sorted(group) for group in same.values() if len(group) > 1]
