"""The limits of lab.yaml for videos and poses, beyond which a session is warned of or fails."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dlc_platform.pose.metrics import LESS_IS_WORSE
from dlc_platform.settings.fields import MOST_PIXELS, YEAR_SECONDS, Coordinate, Pixels, Section, ordered
from dlc_platform.settings.inference import Tracking
from dlc_platform.settings.promotion import ModelRules

#: What becomes of a recording whose video is truncated or damaged.
DamagedVideos = Literal["stop", "track"]
_GreyLevel = Annotated[float, Field(ge=0, le=255)]
_Variance = Annotated[float, Field(ge=0, le=1_000_000_000)]
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
#: Floors of scores of which more is better.
_MORE_IS_BETTER = ("confident", "bodypart_confident", "mean_likelihood")


class VideoLimits(Section):
    """What a good video of a camera is; the first rule that matches a camera is used.

    What is not written is judged against the camera's own earlier videos, or by the limits given here, and only warns.
    """

    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    resolution: tuple[Pixels, Pixels] | None = Field(
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
    exposure: Annotated[tuple[_GreyLevel, _GreyLevel], AfterValidator(ordered)] | None = Field(
        default=None,
        description="The range of the mean grey level, from 0 to 255.",
        json_schema_extra={"unit": "grey levels"},
    )
    focus: Annotated[tuple[_Variance, _Variance], AfterValidator(ordered)] | None = Field(
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


@dataclass(frozen=True)
class VideoRules:
    """When something is wrong with a video: the sections `video_quality` and `damaged_videos` together."""

    limits: tuple[VideoLimits, ...] = ()
    damaged: DamagedVideos = "stop"

    def limits_for(self, camera: str) -> VideoLimits:
        """The first rule whose pattern the camera's name matches; the defaults without one."""
        return next((rule for rule in self.limits if fnmatchcase(camera, rule.camera)), VideoLimits())


class ScoreLimits(Section):
    """The limits of a score; where `warn` is left out, the model's own evaluation says it."""

    warn: float | None = Field(
        default=None, ge=0, le=MOST_PIXELS, description="From this value on the score is a warning."
    )
    fail: float | None = Field(default=None, ge=0, le=MOST_PIXELS, description="From this value on the poses fail.")


class PoseLimits(Section):
    """From which values on the scores of poses are worth a warning, or fail; `pose.scores` says what they are.

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


def _may_be_null(schema: dict[str, Any]) -> None:
    """Say in a section's schema that null switches each of its keys off, as its validators take it."""
    for entry in schema["properties"].values():
        entry["anyOf"] = [{"$ref": entry.pop("$ref")}, {"type": "null"}]


class PoseFloors(Section):
    """What poses have to keep whatever their model does on its own test images; `pose.scores` says what is measured.

    Each is judged over all body parts together, but for `bodypart_confident` and `background`. What is left out of
    one keeps its default; null switches it off.
    """

    model_config = ConfigDict(json_schema_extra=_may_be_null)

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


class PoseQualityRule(Section):
    """Limits, floors and arena of some poses; the first rule that matches project and camera is used."""

    project: str = Field(
        default="*", min_length=1, description="A shell pattern that the name of the project must match."
    )
    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    limits: PoseLimits = Field(default=PoseLimits(), description="In the place of those for all poses.")
    floors: PoseFloors | None = Field(default=None, description="In the place of those for all poses.")
    arena: tuple[tuple[Coordinate, Coordinate], ...] | None = Field(
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


class PoseQuality(Section):
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


@dataclass(frozen=True)
class PoseRules:
    """By what the poses of a session are judged: `pose_quality`, and what else of lab.yaml decides with it."""

    quality: PoseQuality
    tracking: Tracking
    models: ModelRules
