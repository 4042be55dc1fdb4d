"""Where the layout of lab.yaml puts a video, by its path below the raw root alone; nothing is read from a disk here."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import regex

from dlc_platform.errors import PlatformError

#: What Dagster refuses in a partition key, and what the platform uses to separate keys.
_INVALID_IN_KEY = re.compile(r"\.\.\.|[\x00-\x1f\x7f|,/]")
#: Patterns take microseconds; one that asks for more has run into its own repetitions, and would go on for years.
_PATTERN_SECONDS = 0.5
#: In bytes: a longer key fits into no index of the catalogue together with a path.
_LONGEST_KEY = 500
#: A letter of any script, an accent that is a character of its own among them.
_LETTER = r"[^\x00-@\[-`{-\x7f]"
#: How cameras number the files of one recording, where layout.pattern has no group `part`.
_PART = re.compile(rf"[-_. ]*(?<!{_LETTER})part[-_. ]?(?P<part>\d+)(?!{_LETTER}|\d)", re.I)
#: Why a video belongs nowhere whose path says nothing to the layout.
LEADS_OUT = "its path leads out of its raw root"
OUTSIDE = "its path does not match layout.pattern of lab.yaml, or its preset; rename it, or correct the layout"
#: A camera's number, or its name: of a NeuroBlueprint's ``cam-top-left`` all up to the next underscore, of any other
#: the next word.
_CAMERA = re.compile(
    rf"(?<!{_LETTER})cam(?:era)?(?:-(?P<value>[^_]+)|(?P<number>\d+)(?!{_LETTER})|[_ ](?P<name>[^_\s]+))",
    re.I,
)


@dataclass(frozen=True)
class Place:
    """Where the layout puts a video: its session, the session's folder, and the camera where the path says it.

    `whole` is its path without what says which part of a recording it is, and `part` what that says, where it does.
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
    """True for a path below a folder that does not stay there. No disk has such a name; a row of a catalogue may."""
    return relative.startswith("/") or (".." in relative and ".." in relative.split("/"))


def root_of(path: Path, roots: Iterable[Path]) -> Path | None:
    """The innermost of several raw roots in which a path lies, by its name; None where it lies in none of them."""
    if leads_out(str(path).lstrip("/")):
        return None
    return max((root for root in roots if path.is_relative_to(root)), key=lambda root: len(root.parts), default=None)


def place_of(pattern: regex.Pattern[str], root: str, relative: str, unnamed_session: str | None = None) -> Place | str:
    """Where a video belongs by its path below the root, or why it belongs nowhere.

    Names are those of Unicode's normal form C, in which people type: a disk that spells an accent in another way, or
    begins to, makes no other session and no other camera.

    Parameters
    ----------
    unnamed_session
        The session of a path that names none; None where it has to.

    Raises
    ------
    PlatformError
        When the pattern does not come to an end with this path.
    """
    if leads_out(relative):
        return LEADS_OUT
    try:
        found = pattern.fullmatch(relative, timeout=_PATTERN_SECONDS)
    except TimeoutError:
        raise PlatformError(
            f"layout.pattern of lab.yaml does not come to an end with the path {relative!r} below {root}",
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
    # The session's folder is the part of the path that has said both names; names in a file's name leave its folder.
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
    """A path without what numbers the files of a recording, and that number."""
    if "part" in found.re.groupindex:
        if not found["part"]:
            return relative, None
        before, after = relative[: found.start("part")], relative[found.end("part") :]
        folder, stem = os.path.split(before)
        stem = stem.rstrip("-_. ")
        if not stem and after.startswith("."):
            # Of 0.avi, 1.avi only their folder has a name.
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
    """The camera that the stem of a file's name speaks of; the whole stem where it speaks of none."""
    found = _CAMERA.search(stem)
    name = found["value"] or found["number"] or found["name"] if found else ""
    # Of line ends and other signs that nobody sees no rule of lab.yaml can speak.
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", name).split()) or stem


def normal(text: str | None) -> str:
    """A name in Unicode's normal form C; empty for none."""
    return unicodedata.normalize("NFC", text or "")


def alike(keys: Iterable[str]) -> list[list[str]]:
    """Session keys that differ in capitals or in how a character is written alone, and so may be one session."""
    same: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        same[unicodedata.normalize("NFKC", key).casefold()].append(key)
    return [sorted(group) for group in same.values() if len(group) > 1]
