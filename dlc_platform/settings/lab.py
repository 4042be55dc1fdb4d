"""The whole ``HOME/lab.yaml`` as one model, and the conditions between its sections.

Only values that a person writes belong here. A setting is read once, at the edge; the layers below get plain values.
"""

import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from dlc_platform.settings.channels import Notify
from dlc_platform.settings.fields import (
    YEAR_SECONDS,
    Folder,
    GpuNumber,
    GpuUuid,
    Name,
    Section,
    TimeZone,
)
from dlc_platform.settings.inference import InferenceRule, RegionRule, Tracking
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.operation import Backups, Freshness, RunRules, ScanRule, Schedules, Web
from dlc_platform.settings.promotion import ModelRules, PromotionRule
from dlc_platform.settings.quality import DamagedVideos, PoseQuality, PoseRules, VideoLimits, VideoRules
from dlc_platform.settings.recipes import ProjectEntry, Recipe, Split

#: The purpose of an instance of the platform.
Stage = Literal["production", "staging", "development"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Lab(Section):
    """``lab.yaml``, validated; paths are absolute."""

    name: Name = Field(default="lab", description="The lab's name in reports, messages and backups.")
    stage: Stage = Field(
        default="production",
        description="Schedules and sensors are on in production, and off elsewhere until somebody switches them on in "
        "the UI. The environment variable DLC_PLATFORM_STAGE has the last word.",
    )
    raw_roots: tuple[Folder, ...] = Field(
        min_length=1,
        description="The folders that hold the recorded sessions. They are only read; relative paths begin at HOME.",
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
        description="The projects whose production models track the cameras; the first rule that matches a camera is "
        "used. A camera without a rule is not tracked.",
    )
    regions: tuple[RegionRule, ...] = Field(
        default=(),
        description="Parts of the picture that count, for some cameras and sessions; the first rule that matches is "
        "used. Without a rule the whole picture counts.",
    )
    video_quality: tuple[VideoLimits, ...] = Field(
        default=(), description="The limits of a good video of a camera; the first rule that matches a camera is used."
    )
    promotion: PromotionRule = Field(
        default=PromotionRule(), description="The rule by which a model version comes into production without a person."
    )
    damaged_videos: DamagedVideos = Field(
        default="stop",
        description="The treatment of a recording whose video is truncated or damaged. `stop`: it is registered and "
        "not tracked. `track`: the part that can be decoded is tracked. Checks in the UI show it in both cases.",
    )
    pose_quality: PoseQuality = Field(
        default=PoseQuality(),
        description="The limits from which poses count as bad, and the work that bad poses block.",
    )
    store: Folder = Field(
        default=Path("store"),
        description="The folder of datasets, models, evaluations and poses. It belongs to this lab alone.",
    )
    settle_seconds: float = Field(
        default=30.0,
        ge=0,
        le=YEAR_SECONDS,
        description="A video is taken after neither its size nor its time has changed for so long.",
    )
    scan_seconds: int = Field(30, ge=1, le=24 * 3600, description="The time between two looks at the raw roots.")
    scan: ScanRule = Field(
        default=ScanRule(),
        description="The pace at which the raw roots are looked through, and the amount of work that is asked for at "
        "a time.",
    )
    gpus: Literal["auto"] | tuple[GpuNumber | GpuUuid, ...] = Field(
        default="auto",
        description="The devices that runs may use: all that NVML finds, or the listed ones, by number or by the UUID "
        "of a GPU or a MIG slice.",
    )
    avoid_busy_gpus: bool = Field(
        default=False, description="Do not use GPUs on which NVML shows a process that does not belong to the platform."
    )
    dagster_yaml: Folder | None = Field(
        default=None,
        description="A file of the lab's own with parts of dagster.yaml, such as another run_launcher. They replace "
        "those that the platform writes.",
    )
    freshness: Freshness = Field(default=Freshness(), description="The hours after which poses are late.")
    notify: Notify = Field(
        default=Notify(), description="Who is told of failures, quarantine, late poses and the day's report."
    )
    schedules: Schedules = Field(default=Schedules(), description="The times at which the lab does its own upkeep.")
    backups: Backups = Field(
        default=Backups(), description="The folder of the schedule `back_up`, and the number of backups that it keeps."
    )
    runs: RunRules = Field(default=RunRules(), description="The treatment of runs that die, hang or are old.")
    web: Web = Field(default=Web(), description="The host names under which the lab's pages answer.")
    time_zone: TimeZone = Field(
        default="UTC", description="The time zone of the days in reports and of the schedules, such as Europe/Berlin."
    )
    likelihood_cutoff: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="The likelihood from which a keypoint is confident; figures about confident keypoints leave out "
        "those below.",
    )

    @property
    def tracking(self) -> Tracking:
        return Tracking(self.inference, self.regions)

    @property
    def video_rules(self) -> VideoRules:
        return VideoRules(self.video_quality, self.damaged_videos)

    @property
    def model_rules(self) -> ModelRules:
        return ModelRules(self.likelihood_cutoff, self.promotion.hopeless)

    @property
    def pose_rules(self) -> PoseRules:
        return PoseRules(self.pose_quality, self.tracking, self.model_rules)

    def split_of(self, recipe: str) -> Split:
        """The split of a recipe: its way to divide the labelled images of its project."""
        own = self.recipes[recipe]
        seed = self.projects[own.project].split_seed
        return Split(own.seed if seed is None else seed, own.test_fraction)

    def splits_of(self, project: str) -> dict[str, Split]:
        """The split of each recipe of a project, by the name of the recipe."""
        return {name: self.split_of(name) for name, recipe in self.recipes.items() if recipe.project == project}

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
        """Refuse a rule that is never used, because the first rule that matches is used and a general one comes before
        it."""
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


def _covers(general: str, special: str) -> bool:
    """True if a shell pattern matches every name that another one matches; false too if that is hard to tell."""
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
