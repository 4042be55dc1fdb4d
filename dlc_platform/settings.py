"""What a lab tells the platform: the pydantic models of ``HOME/lab.yaml``, and the environment variables.

Only what a person writes belongs here. A setting is read once, at the edge; the layers below get plain values.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import regex
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from dlc_platform.errors import HOME_VARIABLE, PlatformError, command
from dlc_platform.files.yaml import keys_not_text, load_yaml, written_at, yaml_text
from dlc_platform.video.region import Region

POSTGRES_VARIABLE = "DLC_PLATFORM_POSTGRES_URL"
#: How many gigabytes of each of its GPUs a process may use, where it shares them.
GPU_MEMORY_VARIABLE = "DLC_PLATFORM_GPU_MEMORY_GB"
#: A file that holds the URL, as secrets come to containers and services.
POSTGRES_FILE_VARIABLE = "DLC_PLATFORM_POSTGRES_URL_FILE"
#: A file with another URL of the same database, for a role of Dagster's own. There is no such variable for the URL
#: itself: that one is what dagster.yaml names, and it is made.
DAGSTER_POSTGRES_FILE_VARIABLE = "DLC_PLATFORM_DAGSTER_POSTGRES_URL_FILE"
STAGE_VARIABLE = "DLC_PLATFORM_STAGE"
#: Of a web server that does not see the lab's home: the file that holds its token, and the names it answers under.
WEB_TOKEN_FILE_VARIABLE = "DLC_PLATFORM_WEB_TOKEN_FILE"
WEB_READ_ONLY_TOKEN_FILE_VARIABLE = "DLC_PLATFORM_WEB_READ_ONLY_TOKEN_FILE"
WEB_HOSTS_VARIABLE = "DLC_PLATFORM_WEB_HOSTS"
LAB_FILE = "lab.yaml"
#: Names the copy of lab.yaml that `up` last took. All that it starts reads that one, so that an edit comes into force
#: for all of it together, and one that is not valid for none.
TAKEN_VARIABLE = "DLC_PLATFORM_TAKEN_LAB"
#: The folders of a lab's home that the platform writes into, besides those that lab.yaml names.
WRITTEN_FOLDERS = ("postgres", "dagster", "work", "logs")
#: The least width and height of a region, in pixels.
SMALLEST_REGION = 32
#: Larger than any picture, and small enough for the integers of every library and table.
MOST_PIXELS = 1_000_000
#: The longest of the times that lab.yaml may give, in seconds: a longer one has no end that a clock can name.
YEAR_SECONDS = 365 * 24 * 3600

#: Letters of any script with their accents, digits, and ``+-.``: no space, and no other sign of ASCII.
_VALUE = r"[^\x00-*,/:-@\[-`{-\x7f\s]+"
#: ``sub-001_id-x/ses-01_date-y/**/video.mp4``, as NeuroBlueprint lays sessions out. A name ends at an underscore, not
#: at a hyphen: `sub-mouse-1` and `sub-mouse-2` are two subjects, and `ses-2024-01-31` is a day.
NEUROBLUEPRINT = (
    rf"(?:.*/)?sub-(?P<subject>{_VALUE})(?:_[^/]*)?/ses-(?P<session>{_VALUE})(?:_[^/]*)?/(?:.*/)?(?P<file>[^/]+)"
)
#: ``sub-01/ses-01/beh/sub-01_ses-01_task-x_recording-top_split-1_video.mp4``, as BIDS names what it calls behavioural
#: recordings. The file repeats its folders; the camera is the entity `recording`, or else `acq`; files that differ in
#: `split` follow each other, while each `run` is a recording by itself. Of derivatives nothing is taken.
BIDS = (
    rf"(?!(?:.*/)?derivatives/)(?:.*/)?sub-(?P<subject>{_VALUE})/(?:ses-(?P<session>{_VALUE})/)?(?:[^/]+/)*"
    r"sub-(?P=subject)(?(session)_ses-(?P=session))(?=_)(?!_ses-)"
    r"(?:(?:_[^/]*?)?_(?:recording|acq(?![^/]*_recording-))-(?P<camera>[^/_]+))?"
    r"(?:(?:_[^/]*?)?_(?P<part>split-[0-9]+))?(?P<file>_[^/]*)"
)
#: ``subject1/session1/**/video.mp4`` below each of Element DeepLabCut's root directories, which may hold DeepLabCut
#: projects too: their videos are no sessions.
ELEMENT = (
    r"(?![^/]+-\d{4}-\d{2}-\d{2}/(?:videos|labeled-data|dlc-models|evaluation-results|training-datasets)[^/]*/)"
    r"(?P<subject>[^/]+)/(?P<session>[^/]+)/(?:.*/)?(?P<file>[^/]+)"
)
#: For each preset, the pattern, and what a subject's one session is called where its paths name none.
PRESETS = {"neuroblueprint": (NEUROBLUEPRINT, None), "bids": (BIDS, "only"), "element": (ELEMENT, None)}
#: DeepLabCut's networks that find the keypoints of one animal in a whole picture, by its own names.
NET_TYPES = (
    "cspnext_s",
    "cspnext_m",
    "cspnext_x",
    "hrnet_w18",
    "hrnet_w32",
    "hrnet_w48",
    "resnet_50",
    "resnet_101",
)
#: A layout pattern has so many signs at most, so many groups within each other, and means so many with each of its
#: repetitions written out, as the engine does: `a{1000000000}` takes gigabytes before it is held against any path.
_LONGEST_PATTERN, _DEEPEST_PATTERN, _LARGEST_PATTERN = 2000, 30, 100_000
_SIGN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<counts>\d*,?\d*)\}|.", re.S)
PathOrText = TypeVar("PathOrText", Path, str)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _regular_expression(text: str) -> str:
    _require_small(text)
    try:
        regex.compile(text)
    except regex.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    return text


def _require_small(pattern: str) -> None:
    """See that a layout pattern can be compiled in no time and little memory."""
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"is longer than {_LONGEST_PATTERN} characters")
    # Of each group that is open: how much it holds, and how much its last part does, which a repetition repeats.
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


def _without_zero(path: PathOrText) -> PathOrText:
    if "\0" in str(path):
        raise ValueError("holds a zero byte, which no path can")
    return path


def _network(text: str) -> str:
    if text not in NET_TYPES:
        raise ValueError(f"DeepLabCut has no single-animal network `{text}`; {_meant(text, NET_TYPES)}")
    return text


def _weights(text: str) -> str:
    words = ("imagenet", "random")
    if text not in words and get_close_matches(text.lower(), words, cutoff=0.8):
        raise ValueError(f"is neither imagenet nor random; {_meant(text, words)}, or ./{text} for a folder")
    return _without_zero(text)


def _meant(text: str, names: Sequence[str]) -> str:
    """What to write instead of a word that is not known."""
    near = get_close_matches(re.sub(r"\W", "_", text.lower()), names, n=2)
    return f"write {' or '.join(near)}" if near else f"the names are {', '.join(names)}"


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("must be the name of an environment variable, not what it holds")
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


#: The least and the largest number of each field of a cron expression, from minutes to days of the week.
_CRON = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))


def _cron(text: str) -> str:
    fields = text.split()
    for field, (least, most) in zip(fields, _CRON, strict=False):
        for part in field.split(","):
            known = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
            numbers = [int(number) for number in known.groups()[:2] if number] if known else []
            if known is None or numbers != sorted(numbers) or not all(least <= number <= most for number in numbers):
                raise ValueError(
                    f"has {part!r} where numbers from {least} to {most} are written, as in 5, 1-5, 1,15, * or */5"
                )
    if len(fields) != len(_CRON):
        raise ValueError("must be minute, hour, day of the month, month and day of the week, such as '30 2 * * *'")
    return " ".join(fields)


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError("must be two numbers, the smaller one first")
    return ends


Pattern = Annotated[str, AfterValidator(_regular_expression)]
Name = Annotated[str, AfterValidator(_plain_name)]
Folder = Annotated[Path, AfterValidator(_without_zero)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
Address = Annotated[str, AfterValidator(_address)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
GpuNumber = Annotated[int, Field(ge=0, le=1023)]
GpuUuid = Annotated[str, Field(pattern=r"^(GPU|MIG)-[A-Za-z0-9/-]+$")]
Cron = Annotated[str, AfterValidator(_cron)]
#: What an instance of the platform is for.
Stage = Literal["production", "staging", "development"]
STAGES: tuple[Stage, ...] = get_args(Stage)
#: What a lab can be notified of.
Event = Literal["run_failure", "quarantine", "stale", "daily_report"]
EVENTS: tuple[Event, ...] = get_args(Event)
_Scale = Annotated[float, Field(ge=0.01, le=100)]
_GreyLevel = Annotated[float, Field(ge=0, le=255)]
_Variance = Annotated[float, Field(ge=0, le=1_000_000_000)]
_Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
_Coordinate = Annotated[float, Field(ge=-MOST_PIXELS, le=MOST_PIXELS)]
LimitName = Literal[
    "resolution",
    "frame_rate",
    "constant_frame_rate",
    "jitter_ms",
    "exposure",
    "focus",
    "black_seconds",
    "frozen_seconds",
    "dropped_fraction",
]


def leaves(annotation: Any, bounds: Sequence[Any] = ()) -> list[tuple[Any, list[Any]]]:
    """The types of the values that an annotation is made of, each with what limits it."""
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        own = [one for field in own for one in (field.metadata if isinstance(field, FieldInfo) else [field])]
        return leaves(inner, [*bounds, *own])
    parts = () if get_origin(annotation) is Literal else get_args(annotation)
    if not parts:
        return [(annotation, list(bounds))]
    return [leaf for part in parts for leaf in leaves(part, bounds)]


class _Section(BaseModel):
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


class Layout(_Section):
    """How sessions are found below the raw roots."""

    preset: Literal["neuroblueprint", "bids", "element"] | None = Field(
        default=None, description="A layout that has a name, instead of a pattern of your own."
    )
    pattern: Pattern = Field(
        default=NEUROBLUEPRINT,
        description="Regular expression that a video's path below its raw root must match as a whole, with the named "
        "groups `subject` and `session`, and `camera` and `part` where the path says them: files that differ in their "
        "part alone are one recording, in the order of its numbers. NeuroBlueprint's by default.",
    )
    unnamed_session: Name | None = Field(
        default=None,
        description="What the session is called of a subject whose paths name none; they belong nowhere without it. "
        "The preset `bids` says `only`.",
    )
    marker: str | None = Field(
        default=None,
        description="The name of the file that says that a video is complete, instead of any sign of the file itself: "
        "`{stem}.done` or `{name}.done` beside each video, or one name, such as `transfer_complete`, in the folder of "
        "the session or between it and its videos.",
    )
    extensions: tuple[str, ...] = Field(
        default=(".mp4", ".avi", ".mov", ".mkv", ".mj2", ".m4v", ".webm"),
        min_length=1,
        description="Endings of the names of video files, in any case. Other files are left out.",
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
            raise ValueError(f"lacks the named group(s) {', '.join(sorted(missing))}, written (?P<subject>...)")
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


class ProjectEntry(_Section):
    """A DeepLabCut project that the lab labels in. It is only ever read."""

    path: Folder = Field(description="The folder that holds the project's config.yaml.")
    split_seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**32,
        description="Decides with `test_fraction` which labelled images are tested on, for all recipes of the project, "
        "so that their versions can be compared. By default each recipe's own `seed` does.",
    )


class Transforms(_Section):
    """Random changes of the training images; each is drawn anew for every image and epoch."""

    rotation: float = Field(
        default=30.0, ge=0, le=180, description="Largest rotation, in degrees.", json_schema_extra={"unit": "degrees"}
    )
    scale: tuple[_Scale, _Scale] = Field(default=(0.7, 1.3), description="Range of the scaling factor.")
    translation: int = Field(
        default=0, ge=0, le=10_000, description="Largest shift, in pixels.", json_schema_extra={"unit": "pixels"}
    )
    flip: bool = Field(default=False, description="Mirror left and right (only for bodies without sides).")
    noise: float = Field(
        default=12.75,
        ge=0,
        le=255,
        description="Largest standard deviation of Gaussian noise, in grey levels.",
        json_schema_extra={"unit": "grey levels"},
    )
    motion_blur: bool = Field(default=True, description="Blur some of the images as if the animal moved.")

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] <= scale[1]:
            raise ValueError("must be two numbers, the smaller one first")
        return scale


class Recipe(_Section):
    """The parameters of a model. Two recipes with the same values make the same parameter set."""

    project: Name = Field(description="The project whose labels are learned: one of the names under `projects`.")
    net_type: Annotated[str, AfterValidator(_network)] = Field(
        default="resnet_50",
        description="DeepLabCut's name of the network, such as `resnet_50`, `hrnet_w32` or `cspnext_s`; larger ones "
        "take longer to train and to run.",
    )
    epochs: int = Field(
        default=200, ge=1, le=100_000, description="How many times training goes through all training images."
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="Images that one step of training learns from.")
    learning_rate: float = Field(
        default=1e-4,
        ge=1e-9,
        le=10,
        description="The step of AdamW, DeepLabCut's optimizer, at the beginning of training.",
    )
    transforms: Transforms = Field(default=Transforms(), description="Random changes of the training images.")
    test_fraction: float = Field(
        default=0.05, gt=0, lt=1, description="The share of the labelled images that is tested on and never trained on."
    )
    seed: int = Field(
        default=42,
        ge=0,
        lt=2**32,
        description="Of the random numbers of training. Where the project has no `split_seed`, of the split too.",
    )
    apart_frames: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Training images within so many frames of a test image of the same video are left out of training, "
        "so that near-duplicates never lie on both sides of the split.",
    )
    weights: Annotated[str, AfterValidator(_weights)] = Field(
        default="imagenet",
        min_length=1,
        description="`imagenet` (downloaded), `random`, or a folder with config.json and model.safetensors.",
    )
    gpus: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="GPUs to train on at a time, by DeepLabCut's own support for several; each gets its part of every "
        "batch. Where it runs is no parameter of a model.",
    )
    gpu_memory_gb: float | None = Field(
        default=None,
        ge=0.01,
        le=10_000,
        description="Gigabytes of each GPU that it needs; then runs share a GPU. By default each has one for itself.",
    )

    @model_validator(mode="after")
    def _each_gpu_has_work(self) -> "Recipe":
        if self.gpus > self.batch_size:
            raise ValueError(f"gpus is {self.gpus} and batch_size {self.batch_size}: some GPUs would have no image")
        return self


class InferenceRule(_Section):
    """Which project's production model tracks which cameras; the first rule that matches a camera is used."""

    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    project: Name = Field(description="The project whose production model tracks these cameras.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Frames to a batch; found by itself where it is not given. Speed only, never part of an identity.",
    )
    precision: Literal["full", "half"] = Field(
        default="full",
        description="`half` computes in 16 bits: faster on GPUs, at a cost in pixels; on CPUs it is measured.",
    )
    gpu_memory_gb: float | None = Field(
        default=None,
        ge=0.01,
        le=10_000,
        description="Gigabytes of a GPU that it needs; where every rule says so, runs share a GPU. Never part of an "
        "identity.",
    )


class RegionRule(_Section):
    """Which part of the picture counts, for which cameras and sessions; the first rule that matches both is used."""

    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    session: str = Field(default="*", min_length=1, description="A shell pattern that the session's key must match.")
    x: int = Field(
        ge=0,
        le=MOST_PIXELS,
        description="Column of the region's first pixel in the picture as it is shown.",
        json_schema_extra={"unit": "pixels"},
    )
    y: int = Field(
        ge=0,
        le=MOST_PIXELS,
        description="Row of the region's first pixel; the origin is at the top left.",
        json_schema_extra={"unit": "pixels"},
    )
    width: int = Field(
        ge=SMALLEST_REGION,
        le=MOST_PIXELS,
        description="Its width; at least 32, the stride of the networks.",
        json_schema_extra={"unit": "pixels"},
    )
    height: int = Field(
        ge=SMALLEST_REGION, le=MOST_PIXELS, description="Its height; at least 32.", json_schema_extra={"unit": "pixels"}
    )


class VideoLimits(_Section):
    """What a good video of a camera is; the first rule that matches a camera is used.

    What is not written is judged against the camera's own earlier videos, or by the limits given here, and only warns.
    """

    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    resolution: tuple[_Pixels, _Pixels] | None = Field(
        default=None, description="Width and height in pixels, as it is shown.", json_schema_extra={"unit": "pixels"}
    )
    frame_rate: float | None = Field(
        default=None,
        ge=0.001,
        le=1_000_000,
        description="Frames per second, within 1 %.",
        json_schema_extra={"unit": "frames per second"},
    )
    constant_frame_rate: bool = Field(default=False, description="Whether all frames must be equally far apart.")
    jitter_ms: float | None = Field(
        default=None,
        ge=0.000_001,
        le=1_000_000,
        description="The standard deviation of the intervals between frames is at most that.",
    )
    exposure: Annotated[tuple[_GreyLevel, _GreyLevel], AfterValidator(_ordered)] | None = Field(
        default=None,
        description="The range of the mean grey level, from 0 to 255.",
        json_schema_extra={"unit": "grey levels"},
    )
    focus: Annotated[tuple[_Variance, _Variance], AfterValidator(_ordered)] | None = Field(
        default=None, description="The range of the variance of the Laplacian, as the checks show it."
    )
    black_seconds: float = Field(
        default=2.0, ge=0.001, le=YEAR_SECONDS, description="A black stretch is shorter than that."
    )
    frozen_seconds: float = Field(
        default=15.0,
        ge=0.001,
        le=YEAR_SECONDS,
        description="A stretch in which nothing moves is shorter than that. Encoders leave out the noise of a resting "
        "animal from one key frame to the next, which may be 10 s.",
    )
    dropped_fraction: float = Field(default=0.01, ge=0, lt=1, description="Of the frames, at most so many are dropped.")
    only_warn: frozenset[LimitName] = Field(
        default=frozenset(), description="Limits of this rule that warn where they are not kept, and do not fail."
    )
    on_failure: Literal["warn", "quarantine"] = Field(
        default="warn",
        description="`quarantine`: a video that fails a written limit is not tracked until a person releases it.",
    )

    @property
    def failing(self) -> frozenset[str]:
        """The limits that the lab wrote down, and not as warnings."""
        return frozenset(get_args(LimitName)) & self.model_fields_set - self.only_warn


class ModelFloors(_Section):
    """When a model version is hopeless: the rule never promotes it, and nothing is tracked with it by itself.

    `pose.hopeless` says how it is computed and where the defaults come from. null switches a floor off.
    """

    correct: float | None = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Of the labelled keypoints of its test images, at least so many are correct: as near to the label "
        "as `within_animal` or `within_human` says, whichever is more.",
    )
    within_animal: float = Field(
        default=0.2, ge=0.0001, le=1000, description="A keypoint is correct within this fraction of the animal's size."
    )
    within_human: float = Field(
        default=3.0,
        ge=0.0001,
        le=1000,
        description="And within so many times the error of a person who labels the frame again.",
    )
    human_error_px: float | None = Field(
        default=None,
        ge=0.0001,
        le=MOST_PIXELS,
        description="That error in pixels, where the lab has measured it; by default 2.3 % of the animal's size, as on "
        "DeepLabCut's open field.",
    )
    confident: float | None = Field(
        default=0.05, gt=0, le=1, description="Of the labelled keypoints of its test images, so many are confident."
    )
    spread: float | None = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Its predictions on test images are spread over at least this fraction of the width of the labels: "
        "a network that sees nothing predicts one place in all of them.",
    )


class PromotionRule(_Section):
    """When a model version becomes the production model of its project by itself."""

    rule: Literal["clearly_better", "person"] = Field(
        default="clearly_better",
        description="`clearly_better`: the first evaluated version, and later one that is better than the version in "
        "force beyond the confidence interval, while no body part got worse. `person`: only when a person says so.",
    )
    confidence: float = Field(
        default=0.95,
        ge=0.01,
        le=0.9999,
        description="How sure the interval of the difference in test RMSE is, as a fraction.",
    )
    hopeless: ModelFloors = Field(default=ModelFloors(), description="Versions that the rule never promotes.")


class Freshness(_Section):
    """When poses are late."""

    poses_within_hours: float | None = Field(
        default=24.0,
        ge=0.01,
        le=YEAR_SECONDS / 3600,
        description="A session that can be tracked has poses so many hours after it arrived, or the check "
        "`poses_follow_recordings` fails and names it; null switches that off.",
    )
    warn_hours: float | None = Field(
        default=None,
        ge=1 / 60,
        le=YEAR_SECONDS / 3600,
        description="The UI shows `pose_estimates` as yellow when nothing was estimated for so long, whether or not "
        "anything was recorded; off by default.",
    )
    fail_hours: float | None = Field(default=None, ge=1 / 60, le=YEAR_SECONDS / 3600, description="The same in red.")

    @model_validator(mode="after")
    def _in_order(self) -> "Freshness":
        if self.warn_hours is not None and (self.fail_hours is None or self.warn_hours >= self.fail_hours):
            raise ValueError("warn_hours needs fail_hours, and must be less")
        return self


class _Channel(_Section):
    """Somewhere to send notifications to."""

    name: Name = Field(description="What rows and messages call it; under another name it is another channel.")
    send: tuple[Event, ...] = Field(default=EVENTS, min_length=1, description="What it is told of.")


class Webhook(_Channel):
    """A URL that is posted to. The URL is a secret, so lab.yaml only says where it is."""

    url_variable: VariableName | None = Field(default=None, description="The environment variable that holds the URL.")
    url_file: Folder | None = Field(default=None, description="Or the file that holds it, and nothing else.")
    format: Literal["json", "slack"] = Field(
        default="json", description="`slack`: a text, as Slack, Mattermost and their like take it."
    )

    @model_validator(mode="after")
    def _one_place(self) -> "Webhook":
        if (self.url_variable is None) == (self.url_file is None):
            raise ValueError("give either url_variable or url_file, which say where the URL is")
        return self


class Mail(_Channel):
    """E-mail through the lab's SMTP server."""

    host: str = Field(min_length=1, description="The name of the SMTP server.")
    port: int = Field(default=587, ge=1, le=65535, description="Its port: 587 for `starttls`, 465 for `tls`.")
    tls: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="`tls` from the start, as on port 465; `none` never with a password."
    )
    user: str | None = Field(default=None, description="The account at the server; without one, no password is sent.")
    password_variable: VariableName | None = Field(
        default=None, description="The environment variable that holds the password."
    )
    password_file: Folder | None = Field(default=None, description="Or the file that holds it, and nothing else.")
    sender: Address = Field(description="The address that the messages come from.")
    recipients: tuple[Address, ...] = Field(min_length=1, description="The addresses that they go to.")

    @model_validator(mode="after")
    def _one_place(self) -> "Mail":
        given = [place for place in (self.password_variable, self.password_file) if place is not None]
        if len(given) != (self.user is not None):
            raise ValueError(
                "a user needs either password_variable or password_file, and no password is without a user"
            )
        if given and self.tls == "none":
            raise ValueError("a password is not sent without tls")
        return self


class Notify(_Section):
    """Who is told of what."""

    webhooks: tuple[Webhook, ...] = Field(default=(), description="URLs that messages are posted to.")
    mails: tuple[Mail, ...] = Field(default=(), description="Addresses that messages are mailed to.")
    digest_minutes: float = Field(
        default=15.0,
        ge=0,
        le=7 * 24 * 60,
        description="The least time between two messages to one channel: what comes meanwhile travels in one.",
    )

    @property
    def channels(self) -> tuple[Webhook | Mail, ...]:
        return (*self.webhooks, *self.mails)

    @model_validator(mode="after")
    def _names_differ(self) -> "Notify":
        names = [channel.name for channel in self.channels]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several channels are called {', '.join(twice)}")
        return self


class ScoreLimits(_Section):
    """The limits of a score; where `warn` is left out, the model's own evaluation says it."""

    warn: float | None = Field(
        default=None, ge=0, le=MOST_PIXELS, description="From this value on the score is a warning."
    )
    fail: float | None = Field(default=None, ge=0, le=MOST_PIXELS, description="From this value on the poses fail.")


#: Scores of which less is worse.
LESS_IS_WORSE = ("mean_likelihood", "fraction_confident")


class PoseLimits(_Section):
    """From which values on the scores of poses are worth a warning, or fail; `pose.quality` says what they are.

    Of `mean_likelihood` and `fraction_confident` less is worse, of the others more.
    """

    mean_likelihood: ScoreLimits = Field(default=ScoreLimits(), description="The mean likelihood of the keypoints.")
    fraction_confident: ScoreLimits = Field(
        default=ScoreLimits(), description="The fraction of keypoints that reach `likelihood_cutoff`."
    )
    fraction_missing: ScoreLimits = Field(
        default=ScoreLimits(), description="The fraction of keypoints without an estimate."
    )
    jumps: ScoreLimits = Field(
        default=ScoreLimits(),
        description="Of the steps between two frames whose both ends are confident, the fraction that is longer than "
        "the animal.",
    )
    unsure_jumps: ScoreLimits = Field(default=ScoreLimits(), description="The same of the other steps.")
    swaps: ScoreLimits = Field(
        default=ScoreLimits(),
        description="The fraction of steps that lead to where the same body part of another individual just was.",
    )
    limb_outliers: ScoreLimits = Field(
        default=ScoreLimits(),
        description="The fraction of frames in which a limb is longer or shorter than the labels leave plausible.",
    )
    outside: ScoreLimits = Field(
        default=ScoreLimits(), description="The fraction of confident keypoints outside the picture or the arena."
    )
    reprojection_px: ScoreLimits = Field(
        default=ScoreLimits(),
        description="The mean distance of a keypoint from its place in the nearest plausible pose: the Pose PCA error "
        "of Lightning Pose, in pixels.",
    )
    temporal_norm_px: ScoreLimits = Field(
        default=ScoreLimits(),
        description="The mean length of a step from one frame to the next: the temporal norm of Lightning Pose, in "
        "pixels.",
    )

    @model_validator(mode="after")
    def _can_be_met(self) -> "PoseLimits":
        wrong = []
        for name in type(self).model_fields:
            limits: ScoreLimits = getattr(self, name)
            known = [value for value in (limits.warn, limits.fail) if value is not None]
            if not name.endswith("_px") and any(value > 1 for value in known):
                wrong.append(f"{name} must be a fraction from 0 to 1")
            elif known != sorted(known, reverse=name in LESS_IS_WORSE):
                wrong.append(f"{name} must warn before it fails: fail is the worse value of the two")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


#: Floors of scores of which more is better.
_MORE_IS_BETTER = ("confident", "bodypart_confident", "mean_likelihood")


class PoseFloors(_Section):
    """What poses have to keep whatever their model does on its own test images; `pose.quality` says what is measured.

    Each is judged over all body parts together, but for `bodypart_confident` and `background`. What is left out of
    one keeps its default; null switches it off.
    """

    confident: ScoreLimits = Field(
        default=ScoreLimits(fail=0.5),
        description="Of the keypoints, in the frames in which their animal is seen, so many are confident (reach "
        "`likelihood_cutoff`). Where fewer than half do, most of the recording is lost to whoever leaves the others "
        "out. (The International Brain Laboratory fails a session from 20 % lost keypoints of a paw on.)",
    )
    bodypart_confident: ScoreLimits = Field(
        default=ScoreLimits(warn=0.5),
        description="The same of one body part, which may be hidden most of the time for good reasons: so it warns.",
    )
    mean_likelihood: ScoreLimits = Field(
        default=ScoreLimits(fail=0.3),
        description="0.3 is what poses have of which half just reach DeepLabCut's own cutoff of 0.6 and half have "
        "none. It holds whatever `likelihood_cutoff` is.",
    )
    empty_frames: ScoreLimits = Field(
        default=ScoreLimits(warn=0.5, fail=0.9),
        description="Of the frames, so many have no keypoint of any animal.",
    )
    still: ScoreLimits = Field(
        default=ScoreLimits(warn=0.1, fail=0.5),
        description="Of the frames, so many are in stretches in which no keypoint moves although the picture does, as "
        "when a network has locked on a thing, or gives the same pose for every frame. An animal at rest does not "
        "count, and neither does a picture that stands still.",
    )
    no_animal: ScoreLimits = Field(
        default=ScoreLimits(warn=0.2, fail=0.5),
        description="Of the frames, so many show no animal: half of its keypoints are not confident, and lie farther "
        "from confident ones that move than any label does; or nothing confident moves through the whole video, and "
        "most pairs of it are nearer together or farther apart than in any label. In an empty cage a network is often "
        "sure of a thing that looks like an ear; one body part that is hidden all the time does not count.",
    )
    background: ScoreLimits = Field(
        default=ScoreLimits(warn=0.1, fail=0.5),
        description="Of the confident keypoints of one body part, so many are a thing of the background: at one place "
        "of the picture for the whole video, and farther from the rest of the animal than any label.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _keeps_the_rest(cls, given: Any, info: ValidationInfo) -> Any:
        if given is None:
            return ScoreLimits()
        default = cls.model_fields[str(info.field_name)].default
        return {**default.model_dump(), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _can_be_met(self) -> "PoseFloors":
        wrong = []
        for name in type(self).model_fields:
            limits: ScoreLimits = getattr(self, name)
            known = [value for value in (limits.warn, limits.fail) if value is not None]
            if any(value > 1 for value in known):
                wrong.append(f"{name} must be a fraction from 0 to 1")
            elif known != sorted(known, reverse=name in _MORE_IS_BETTER):
                wrong.append(f"{name} must warn before it fails: fail is the worse value of the two")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def changed_by(self, other: "PoseFloors | None") -> "PoseFloors":
        """These floors with those that another section writes itself in their place."""
        if other is None:
            return self
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})


class PoseQualityRule(_Section):
    """Limits, floors and arena of some poses; the first rule that matches project and camera is used."""

    project: str = Field(
        default="*", min_length=1, description="A shell pattern that the name of the project must match."
    )
    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    limits: PoseLimits = Field(default=PoseLimits(), description="In the place of those for all poses.")
    floors: PoseFloors | None = Field(default=None, description="In the place of those for all poses.")
    arena: tuple[tuple[_Coordinate, _Coordinate], ...] | None = Field(
        default=None,
        min_length=2,
        description="The corners [x, y] of a polygon, or two opposite ones of a rectangle, in pixels of the full "
        "picture. By default the camera's region, or else the whole picture.",
        json_schema_extra={"unit": "pixels"},
    )
    animal_px: float | None = Field(
        default=None,
        ge=0.01,
        le=MOST_PIXELS,
        description="The animal's size, in pixels; that of the training labels by default.",
    )


class PoseQuality(_Section):
    """When poses count as bad, and what bad ones block."""

    floors: PoseFloors = Field(
        default=PoseFloors(), description="What poses have to keep whatever their model does on its own test images."
    )
    limits: PoseLimits = Field(
        default=PoseLimits(),
        description="Limits of single scores, in the place of those that follow from the model's own evaluation.",
    )
    rules: tuple[PoseQualityRule, ...] = Field(
        default=(), description="Other limits for some projects and cameras; the first rule that matches is used."
    )
    blocks: tuple[Literal["downstream", "exports", "promotion"], ...] = Field(
        default=(),
        description="What poses that fail hold up: `downstream`, what is computed after them; `exports`, reading them "
        "without saying that they may be bad; `promotion`, of the version that made them, by the rule.",
    )
    promotion_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="`promotion` is blocked where more than so many of a version's poses fail, of at least ten.",
    )

    def rule_for(self, project: str | None, camera: str) -> PoseQualityRule:
        """The first rule whose patterns match; the one that says nothing where none does."""
        matching = (r for r in self.rules if fnmatchcase(project or "", r.project) and fnmatchcase(camera, r.camera))
        return next(matching, PoseQualityRule())


class ScanRule(_Section):
    """How the raw roots are looked through, and how much of what is new is asked for at a time."""

    tick_seconds: float = Field(
        default=20.0, ge=1, le=50, description="The time that one look may take; the next one goes on where it stopped."
    )
    root_timeout_seconds: float = Field(
        default=10.0,
        ge=0.01,
        le=3600,
        description="A raw root that does not answer for so long is said to be stalled and left.",
    )
    order: Literal["newest", "oldest", "name"] = Field(
        default="newest", description="Which sessions come first, by the time of their newest file or by their key."
    )
    queued_sessions: int = Field(
        default=200, ge=1, le=1_000_000, description="Sessions that are under way at a time, at most."
    )
    sessions_per_run: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Sessions of a run, at most: many spare starts of processes and of networks.",
    )
    gigabytes_per_run: float = Field(
        default=4.0,
        ge=0.000_000_001,
        le=1_000_000,
        description="A run with video files of so many gigabytes is full too, so that long recordings soon show their "
        "results, and what is recorded next does not wait for long.",
    )
    live_sessions: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Sessions that the UI lists as partitions; of more, the oldest that are done are taken off the "
        "list until something is wanted of them. The catalogue keeps all.",
    )
    unopened_seconds: float = Field(
        default=3600.0,
        ge=0,
        le=YEAR_SECONDS,
        description="How long a file that does not open may be one that is still being copied; then it is read all the "
        "same, and named with what is wrong with it.",
    )


class Schedules(_Section):
    """When the platform looks after itself, as cron expressions in the lab's time zone; null switches one off."""

    catch_up: Cron | None = Field(
        default="30,40 2 * * *",
        description="Ask for the sessions that the sensor should have asked for and did not. What nobody saw before is "
        "seen by one look and asked for by the next, when it has not changed meanwhile: so there are two.",
    )
    evaluate_new_labels: Cron | None = Field(
        default="0 3 * * 6", description="Evaluate production models again where more frames were labelled."
    )
    verify_store: Cron | None = Field(default="0 4 1 * *", description="Read the whole store again and compare it.")
    back_up: Cron | None = Field(default="0 6 1 * *", description="Write a backup into the folder of `backups`.")
    clean_up: Cron | None = Field(
        default="0 5 * * *", description="Remove what crashes left, and events of runs that are old."
    )


class Backups(_Section):
    """Where the schedule `back_up` writes to."""

    folder: Folder = Field(
        default=Path("backups"), description="Best on another disk than the database's; it is made when it is missing."
    )
    keep: int = Field(default=12, ge=1, le=10_000, description="So many of its own backups stay there, the newest.")


class RunRules(_Section):
    """What becomes of runs that die, hang or are old."""

    retry_minutes: tuple[Annotated[float, Field(ge=0, le=24 * 60)], ...] = Field(
        default=(1.0, 5.0, 25.0),
        max_length=10,
        description="A run whose worker died waits so long before each further try; [] tries nothing again. A "
        "computation that failed is never tried again by itself: it would fail the same way. What a fault of the "
        "machine ended is tried again like one whose worker died.",
    )
    start_minutes: float = Field(
        default=10.0, ge=1, le=7 * 24 * 60, description="A run whose worker has not started for so long has failed."
    )
    cancel_minutes: float = Field(
        default=5.0,
        ge=1,
        le=7 * 24 * 60,
        description="A run that has not stopped so long after it was told to is called cancelled.",
    )
    gpu_runs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="So many runs of the pool `gpu` are started at a time; by default as many as this machine's GPUs "
        "can take. For clusters, where the GPUs are elsewhere.",
    )
    most_hours: float | None = Field(
        default=None,
        ge=0.01,
        le=YEAR_SECONDS / 3600,
        description="A run that takes longer has failed; no limit by default, for trainings.",
    )
    keep_events_days: int | None = Field(
        default=90,
        ge=7,
        le=36_500,
        description="What runs logged is removed after so many days by `clean_up`; that they ran, how they ended and "
        "what they made stays. null keeps all.",
    )


#: A name of the internet's, or an address of it: no wildcards, no port.
_HOST = r"^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])$"


class Web(_Section):
    """Under which names the lab's pages answer."""

    hosts: tuple[Annotated[str, StringConstraints(pattern=_HOST)], ...] = Field(
        default=(),
        description="Besides 127.0.0.1 and localhost, as of a proxy before the UI: lab.example.org, without a port. "
        "Under any other name nothing is answered.",
    )


class Lab(_Section):
    """``lab.yaml``, validated; paths are absolute."""

    name: Name = Field(default="lab", description="What reports, messages and backups call the lab.")
    stage: Stage = Field(
        default="production",
        description="Schedules and sensors are on in production, and off elsewhere until somebody switches them on in "
        "the UI. The environment variable DLC_PLATFORM_STAGE has the last word.",
    )
    raw_roots: tuple[Folder, ...] = Field(
        min_length=1,
        description="The folders below which sessions are recorded. They are only read; relative paths begin at HOME.",
    )
    layout: Layout = Field(default=Layout(), description="How folders and files below the raw roots are named.")
    projects: dict[Name, ProjectEntry] = Field(
        min_length=1, description="The DeepLabCut projects that the lab labels in, each under a name of your choice."
    )
    recipes: dict[Name, Recipe] = Field(
        default={}, description="Named sets of training parameters. `train HOME RECIPE` makes a model version of one."
    )
    inference: tuple[InferenceRule, ...] = Field(
        default=(),
        description="Which project's production model tracks which cameras; the first rule that matches a camera is "
        "used. A camera without a rule is not tracked.",
    )
    regions: tuple[RegionRule, ...] = Field(
        default=(),
        description="Parts of the picture that count, for some cameras and sessions; the first rule that matches is "
        "used. Without one the whole picture counts.",
    )
    video_quality: tuple[VideoLimits, ...] = Field(
        default=(), description="What a good video of a camera is; the first rule that matches a camera is used."
    )
    promotion: PromotionRule = Field(
        default=PromotionRule(), description="When a model version comes into production by itself."
    )
    damaged_videos: Literal["stop", "track"] = Field(
        default="stop",
        description="What becomes of a recording whose video is truncated or damaged. `stop`: it is registered and not "
        "tracked. `track`: what can be decoded of it is tracked. Checks in the UI show it either way.",
    )
    pose_quality: PoseQuality = Field(
        default=PoseQuality(), description="When poses count as bad, and what bad ones hold up."
    )
    store: Folder = Field(
        default=Path("store"),
        description="The folder of datasets, models, evaluations and poses. It belongs to this lab alone.",
    )
    settle_seconds: float = Field(
        default=30.0,
        ge=0,
        le=YEAR_SECONDS,
        description="A video is taken when neither its size nor its time changed for so long.",
    )
    scan_seconds: int = Field(30, ge=1, le=24 * 3600, description="The time between two looks at the raw roots.")
    scan: ScanRule = Field(
        default=ScanRule(), description="How the raw roots are looked through, and how much is asked for at a time."
    )
    gpus: Literal["auto"] | tuple[GpuNumber | GpuUuid, ...] = Field(
        default="auto",
        description="The devices that runs may use: those NVML finds, or the listed ones, by number or by the UUID of "
        "a GPU or a MIG slice.",
    )
    avoid_busy_gpus: bool = Field(
        default=False, description="Leave GPUs alone on which somebody computes without the platform, as NVML sees it."
    )
    dagster_yaml: Folder | None = Field(
        default=None,
        description="A file of the lab's own with parts of dagster.yaml, such as another run_launcher. They go before "
        "those that the platform writes.",
    )
    freshness: Freshness = Field(default=Freshness(), description="When poses are late.")
    notify: Notify = Field(
        default=Notify(), description="Who is told of failures, quarantine, late poses and the day's report."
    )
    schedules: Schedules = Field(default=Schedules(), description="When the lab looks after itself.")
    backups: Backups = Field(
        default=Backups(), description="Where the schedule `back_up` writes to, and how many backups stay."
    )
    runs: RunRules = Field(default=RunRules(), description="What becomes of runs that die, hang or are old.")
    web: Web = Field(default=Web(), description="Under which names the lab's pages answer.")
    time_zone: TimeZone = Field(default="UTC", description="In which the days of reports begin, such as Europe/Berlin.")
    likelihood_cutoff: float = Field(
        default=0.6, ge=0, le=1, description="Keypoints below it are left out where a figure says 'confident'."
    )

    def rule_for(self, camera: str) -> InferenceRule | None:
        """The first inference rule whose pattern the camera's name matches."""
        return next((rule for rule in self.inference if fnmatchcase(camera, rule.camera)), None)

    def split_of(self, recipe: str) -> tuple[int, float]:
        """What decides a recipe's split into training and test images: the seed, and the fraction that is tested on."""
        own = self.recipes[recipe]
        seed = self.projects[own.project].split_seed
        return own.seed if seed is None else seed, own.test_fraction

    def project_of(self, camera: str) -> str | None:
        """The project whose production model tracks a camera, by the inference rules."""
        rule = self.rule_for(camera)
        return rule.project if rule else None

    def region_for(self, session: str, camera: str) -> Region | None:
        """The region of the first rule whose patterns a session's key and a camera's name match; None for all of it."""
        for rule in self.regions:
            if fnmatchcase(camera, rule.camera) and fnmatchcase(session, rule.session):
                return Region(rule.x, rule.y, rule.width, rule.height)
        return None

    def video_limits(self, camera: str) -> VideoLimits:
        """The first rule under `video_quality` whose pattern the camera's name matches; the defaults without one."""
        return next((rule for rule in self.video_quality if fnmatchcase(camera, rule.camera)), VideoLimits())

    @field_validator("gpus", mode="wrap")
    @classmethod
    def _auto_or_devices(cls, gpus: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(gpus)
        except ValidationError:
            raise ValueError("must be auto, or a list of device numbers such as [0, 1], or of UUIDs") from None

    @field_validator("gpus")
    @classmethod
    def _each_device_once(cls, gpus: Any) -> Any:
        names = [str(gpu).lower() for gpu in gpus]
        if gpus != "auto" and (twice := sorted({name for name in names if names.count(name) > 1})):
            raise ValueError(f"lists {', '.join(twice)} more than once")
        return gpus

    @model_validator(mode="after")
    def _each_rule_is_used(self) -> "Lab":
        """The first rule that matches is used, so a general one hides those after it."""
        rules: dict[str, list[tuple[str, ...]]] = {
            "inference": [(rule.camera,) for rule in self.inference],
            "regions": [(rule.camera, rule.session) for rule in self.regions],
            "video_quality": [(rule.camera,) for rule in self.video_quality],
            "pose_quality.rules": [(rule.camera, rule.project) for rule in self.pose_quality.rules],
        }
        wrong = []
        for section, patterns in rules.items():
            for index, later in enumerate(patterns):
                for number, earlier in enumerate(patterns[:index]):
                    if all(_covers(one, other) for one, other in zip(earlier, later, strict=True)):
                        wrong.append(
                            f"{section}.{index} ({', '.join(later)}) is never used, because {section}.{number} "
                            f"({', '.join(earlier)}) comes first and matches all of it; put it before that one, or "
                            "remove it"
                        )
                        break
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _names_resolve(self) -> "Lab":
        users = [(f"recipes.{name}", recipe.project) for name, recipe in self.recipes.items()]
        users += [(f"inference.{index}", rule.project) for index, rule in enumerate(self.inference)]
        users += [
            (f"pose_quality.rules.{index}", rule.project)
            for index, rule in enumerate(self.pose_quality.rules)
            if not any(fnmatchcase(project, rule.project) for project in self.projects)
        ]
        wrong = [
            f"{key}.project is {project!r}, but the projects are {', '.join(self.projects)}"
            for key, project in users
            if project not in self.projects
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def load_lab(home: Path) -> Lab:
    """Read and validate ``HOME/lab.yaml``; relative paths are taken from HOME.

    What `up` started reads the file as `up` last took it.

    Raises
    ------
    PlatformError
        Naming the file, each wrong key with its value, and the remedy.
    """
    taken = Path(os.environ.get(TAKEN_VARIABLE) or home / LAB_FILE)
    is_of_home = taken.is_file() and taken.resolve().is_relative_to(home.resolve())
    file = taken if is_of_home else home / LAB_FILE
    try:
        text = yaml_text(file)
    except FileNotFoundError:
        raise PlatformError(
            f"{file} does not exist",
            f"Make a lab with {command('init', home, '--raw', 'RAW_ROOT', '--project', 'DLC_PROJECT_DIR')}",
        ) from None
    except OSError as error:
        raise PlatformError(f"{file} cannot be read: {error.strerror}", "Check its permissions") from error
    except UnicodeDecodeError as error:
        raise PlatformError(f"{file} is not UTF-8: {error}", "Save it again as UTF-8 text") from error
    content = load_yaml(file, text)
    if not isinstance(content, dict):
        raise PlatformError(f"{file} holds no keys", "Write at least raw_roots and projects")
    if wrong := keys_not_text(text):
        said = "; ".join(
            f"line {line}: {'.'.join(place)}: YAML does not take the name {place[-1]} for text; put it in quotes: "
            f"'{place[-1]}'"
            for place, line in wrong
        )
        raise PlatformError(f"{file} is not valid: {said}", "Mend these names and try again")
    try:
        lab = Lab.model_validate(content)
    except ValidationError as error:
        raise PlatformError(f"{file} is not valid: {_explain(error, text)}", "Mend these keys and try again") from None
    lab = lab.model_copy(
        update={
            "raw_roots": tuple(_absolute(home, root) for root in lab.raw_roots),
            "stage": _stage(lab.stage),
            "store": _absolute(home, lab.store),
            "dagster_yaml": None if lab.dagster_yaml is None else _absolute(home, lab.dagster_yaml),
            "backups": lab.backups.model_copy(update={"folder": _absolute(home, lab.backups.folder)}),
            "projects": {
                name: entry.model_copy(update={"path": _absolute(home, entry.path)})
                for name, entry in lab.projects.items()
            },
            "recipes": {
                name: recipe
                if recipe.weights in ("imagenet", "random")
                else recipe.model_copy(update={"weights": str(_absolute(home, Path(recipe.weights)))})
                for name, recipe in lab.recipes.items()
            },
            "notify": _with_absolute_files(home, lab.notify),
        }
    )
    _require_apart(file, home, lab)
    return lab


def _require_apart(file: Path, home: Path, lab: Lab) -> None:
    """See that nothing is written where it is only read, nothing is read where it is written, and nothing read twice.

    Raises
    ------
    PlatformError
        Naming the two folders.
    """
    for folder in (*lab.raw_roots, *(project.path for project in lab.projects.values())):
        if _lies_in(home, folder):
            raise PlatformError(
                f"{file} is not valid: its own folder lies inside {folder}, where nothing may be written",
                "Move the lab's home out of the raw roots and the projects, or correct them",
            )
        for key, own in (("store", lab.store), ("backups.folder", lab.backups.folder)):
            if _lies_in(own, folder):
                raise PlatformError(
                    f"{file} is not valid: {key} is {own}, which lies inside {folder}, where nothing may be written",
                    "Choose a folder outside the raw roots and the projects",
                )
    written = [lab.store, *(home / name for name in WRITTEN_FOLDERS)]
    read = [("raw_roots", root) for root in lab.raw_roots]
    read += [(f"projects.{name}.path", project.path) for name, project in lab.projects.items()]
    for key, folder in read:
        for own in written:
            if _lies_in(folder, own):
                raise PlatformError(
                    f"{file} is not valid: {key} has {folder}, which lies inside {own}, where the platform writes",
                    "Choose the folder of the recordings or of the project itself",
                )
    for number, root in enumerate(lab.raw_roots):
        for other in lab.raw_roots[:number]:
            # One that is written below the other is known for that: the first that can place a video has it.
            if root != other and (root.is_relative_to(other) or other.is_relative_to(root)):
                continue
            if _lies_in(root, other) or _lies_in(other, root):
                where = "twice" if root == other else f"and {other}: one lies inside the other by another name"
                raise PlatformError(
                    f"{file} is not valid: raw_roots has {root} {where}", "Remove one, or its videos are found twice"
                )


def _lies_in(inner: Path, outer: Path) -> bool:
    """Whether a folder is another or lies below it, by whatever names, links and mounts; it need not be there."""
    own, other = inner.resolve(), outer.resolve()
    if own.is_relative_to(other):
        return True
    try:
        identity = other.stat()
    except OSError:
        return False
    for folder in (own, *own.parents):
        with suppress(OSError):
            if os.path.samestat(folder.stat(), identity):
                return True
    return False


def _covers(general: str, special: str) -> bool:
    """Whether a shell pattern matches every name that another one does; False too where that is hard to say."""
    earlier, later = (re.findall(r"\[[!]?\]?[^]]*\]|.", pattern, re.S) for pattern in (general, special))

    @cache
    def covers(i: int, j: int) -> bool:
        if i == len(earlier):
            return j == len(later)
        if earlier[i] == "*":
            return covers(i + 1, j) or (j < len(later) and covers(i, j + 1))
        if j == len(later) or later[j] == "*":
            return False
        one = earlier[i] in ("?", later[j]) or (
            len(later[j]) == 1 and later[j] != "?" and fnmatchcase(later[j], earlier[i])
        )
        return one and covers(i + 1, j + 1)

    return covers(0, 0)


def _stage(written: Stage) -> Stage:
    given = os.environ.get(STAGE_VARIABLE)
    if not given:
        return written
    for stage in STAGES:
        if given == stage:
            return stage
    raise PlatformError(
        f"the environment variable {STAGE_VARIABLE} is {given!r}", f"Set it to one of {', '.join(STAGES)}, or unset it"
    )


def home_from_environment() -> Path:
    """The lab that ``DLC_PLATFORM_HOME`` names.

    Raises
    ------
    PlatformError
        When the variable is not set.
    """
    value = os.environ.get(HOME_VARIABLE)
    if not value:
        raise PlatformError(
            f"the environment variable {HOME_VARIABLE} is not set, so there is no lab to work on",
            'Run `eval "$(dlc-platform env HOME)"` first, or start the platform with `dlc-platform up HOME`',
        )
    return Path(value).expanduser().resolve()


def as_written(home: Path, path: Path) -> str:
    """A path as lab.yaml is to say it: relative below HOME, so that a lab that is copied or moved names its own."""
    below = path.absolute()
    if not below.is_relative_to(home.absolute()):
        return str(below)
    relative = str(below.relative_to(home.absolute()))
    return f"./{relative}" if relative.startswith("~") else relative


def _absolute(home: Path, path: Path) -> Path:
    return Path(os.path.normpath(home / os.path.expanduser(path)))


def _with_absolute_files(home: Path, notify: Notify) -> Notify:
    webhooks = [
        one.model_copy(update={"url_file": _absolute(home, one.url_file)}) if one.url_file else one
        for one in notify.webhooks
    ]
    mails = [
        one.model_copy(update={"password_file": _absolute(home, one.password_file)}) if one.password_file else one
        for one in notify.mails
    ]
    return notify.model_copy(update={"webhooks": tuple(webhooks), "mails": tuple(mails)})


#: What is to be written, where pydantic speaks of its own types.
_FORMS = {
    **dict.fromkeys(("list_type", "tuple_type", "frozen_set_type"), "must be a list, such as [a, b]"),
    **dict.fromkeys(("model_type", "dict_type"), "must hold keys of its own, such as {key: value}"),
}


def _explain(error: ValidationError, text: str) -> str:
    lines: list[tuple[int, str]] = []
    for problem in error.errors(include_url=False):
        place = problem["loc"]
        # pydantic ends the place of a wrong key with "[key]".
        if place[-1:] == ("[key]",) and problem["type"] != "extra_forbidden":
            place = place[:-1]
        key = ".".join(map(str, place))
        value = problem["input"]
        written = written_at(text, place)
        # Whoever writes a secret into lab.yaml after all need not see it in a log as well.
        shown = "not shown" if problem["loc"][:1] == ("notify",) else _brief(value)
        if problem["type"] == "extra_forbidden":
            near = get_close_matches(str(place[-1]).lower(), _keys_beside(place), n=2, cutoff=0.6)
            meant = f"did you mean {' or '.join(near)}?" if near else "remove it or correct its name"
            said = f"{key} is not a key of lab.yaml (value: {shown}); {meant}"
        elif problem["type"] == "missing":
            said = f"{key} is missing; add it"
        elif value is None:
            said = f"{key} has no value; give it one, or remove it"
        elif problem["type"] in ("string_type", "path_type") and not isinstance(value, (list, dict)):
            letters = "" if written is None or shown == "not shown" else written.value
            quoted = f"quotes: '{letters}'" if letters else "quotes"
            said = f"{key} is {letters or shown}, which YAML does not take for text; put it in {quoted}"
        else:
            reason = _FORMS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
            reason = reason.replace("tuple", "list").replace("Tuple", "List")
            said = f"{key} is {shown}: {reason}" if key else reason
        lines.append((0, said) if written is None else (written.line, f"line {written.line}: {said}"))
    return "; ".join(said for _, said in sorted(lines, key=lambda line: line[0]))


def _keys_beside(place: Sequence[str | int]) -> list[str]:
    """The keys that lab.yaml knows in the section of a key."""
    annotation: Any = Lab
    for part in place[:-1]:
        sections = _sections(annotation)
        if isinstance(annotation, type) and issubclass(annotation, _Section) and part in annotation.model_fields:
            annotation = annotation.model_fields[str(part)].annotation
        else:  # a name or a number, which leads to a section
            annotation = sections[0] if sections else Any
    return [key for section in _sections(annotation) for key in section.model_fields]


def _sections(annotation: Any) -> list[type[_Section]]:
    return [kind for kind, _ in leaves(annotation) if isinstance(kind, type) and issubclass(kind, _Section)]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
