"""The section `layout` of lab.yaml: the places of subjects, sessions, cameras and parts in the paths of videos."""

import re
from typing import Any, Literal

import regex
from pydantic import Field, field_validator, model_validator

from dlc_platform.settings.fields import Name, Pattern, Section

#: Letters of any script with their accents, digits, and ``+-.``: no space, and no other sign of ASCII.
_VALUE = r"[^\x00-*,/:-@\[-`{-\x7f\s]+"
#: ``sub-001_id-x/ses-01_date-y/**/video.mp4``, as NeuroBlueprint lays sessions out. A name ends at an underscore, not
#: at a hyphen: `sub-mouse-1` and `sub-mouse-2` are two subjects, and `ses-2024-01-31` is a day.
NEUROBLUEPRINT = (
    rf"(?:.*/)?sub-(?P<subject>{_VALUE})(?:_[^/]*)?/ses-(?P<session>{_VALUE})(?:_[^/]*)?/(?:.*/)?(?P<file>[^/]+)"
)
#: ``sub-01/ses-01/beh/sub-01_ses-01_task-x_recording-top_split-1_video.mp4``, as BIDS names behavioural recordings. The
#: file repeats its folders; the camera is the entity `recording`, or else `acq`; files that differ in `split` follow
#: each other, while each `run` is a recording by itself. Nothing is taken from derivatives.
BIDS = (
    rf"(?!(?:.*/)?derivatives/)(?:.*/)?sub-(?P<subject>{_VALUE})/(?:ses-(?P<session>{_VALUE})/)?(?:[^/]+/)*"
    r"sub-(?P=subject)(?(session)_ses-(?P=session))(?=_)(?!_ses-)"
    r"(?:(?:_[^/]*?)?_(?:recording|acq(?![^/]*_recording-))-(?P<camera>[^/_]+))?"
    r"(?:(?:_[^/]*?)?_(?P<part>split-[0-9]+))?(?P<file>_[^/]*)"
)
#: ``subject1/session1/**/video.mp4`` below each of Element DeepLabCut's root directories, which may hold DeepLabCut
#: projects too: their videos are not sessions.
ELEMENT = (
    r"(?![^/]+-\d{4}-\d{2}-\d{2}/(?:videos|labeled-data|dlc-models|evaluation-results|training-datasets)[^/]*/)"
    r"(?P<subject>[^/]+)/(?P<session>[^/]+)/(?:.*/)?(?P<file>[^/]+)"
)
#: For each preset, the pattern, and the name of a subject's one session if its paths name none.
PRESETS = {"neuroblueprint": (NEUROBLUEPRINT, None), "bids": (BIDS, "only"), "element": (ELEMENT, None)}


class Layout(Section):
    """The rules by which sessions are found below the raw roots."""

    preset: Literal["neuroblueprint", "bids", "element"] | None = Field(
        default=None, description="A layout that has a name, instead of a pattern of your own."
    )
    pattern: Pattern = Field(
        default=NEUROBLUEPRINT,
        description="A regular expression that the whole path of a video below its raw root must match, with the named "
        "groups `subject` and `session`, and `camera` and `part` if the path holds them. Files that differ only in "
        "their part are one recording, in the order of the parts' numbers. NeuroBlueprint's by default.",
    )
    unnamed_session: Name | None = Field(
        default=None,
        description="The name of the session if the paths of a subject name none; without it such videos are left out. "
        "The preset `bids` uses `only`.",
    )
    marker: str | None = Field(
        default=None,
        description="The name of the file that marks a video as complete; then no other sign counts: "
        "`{stem}.done` or `{name}.done` beside each video, or one name, such as `transfer_complete`, in the folder of "
        "the session or between it and its videos.",
    )
    extensions: tuple[str, ...] = Field(
        default=(".mp4", ".avi", ".mov", ".mkv", ".mj2", ".m4v", ".webm"),
        min_length=1,
        description="The extensions of video files, in capital or small letters. Other files are left out.",
    )
    links_outside: Literal["follow", "leave_out"] = Field(
        default="follow",
        description="Links to videos and folders that lead out of their raw root: followed, or left out. Links within "
        "a root are always followed.",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_or_pattern(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, dict) else None
        if preset is None or preset not in PRESETS:
            return values
        if "pattern" in values:
            raise ValueError("has both a preset and a pattern; remove one of them")
        pattern, unnamed_session = PRESETS[preset]
        return {"unnamed_session": unnamed_session, **values, "pattern": pattern}

    @field_validator("pattern")
    @classmethod
    def _names_the_session(cls, pattern: str) -> str:
        missing = {"subject", "session"} - set(regex.compile(pattern).groupindex)
        if missing:
            raise ValueError(f"lacks {' and '.join(f'(?P<{name}>...)' for name in sorted(missing))}")
        return pattern

    @field_validator("marker")
    @classmethod
    def _a_file_name(cls, marker: str | None) -> str | None:
        if marker is not None:
            plain = marker.replace("{stem}", "").replace("{name}", "")
            if not plain.strip(". ") or re.search(r"[/\0{}]", plain):
                raise ValueError("must be the name of a file, such as {stem}.done or transfer_complete")
        return marker

    @field_validator("extensions")
    @classmethod
    def _lower_case(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        if not all(extension.strip(". ") for extension in extensions):
            # Every file's name ends with nothing.
            raise ValueError("holds an empty extension; write them like .mp4")
        return tuple(("." + extension.lstrip(".")).lower() for extension in extensions)
