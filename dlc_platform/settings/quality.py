"""The limits of lab.yaml for videos and poses, beyond which a session gets a warning or fails."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dlc_platform.pose.metrics import LESS_IS_WORSE
from dlc_platform.settings.fields import MOST_PIXELS, YEAR_SECONDS, Coordinate, Pixels, Section, ordered
from dlc_platform.settings.inference import Tracking
from dlc_platform.settings.promotion import ModelRules

#: The treatment of a recording whose video is truncated or damaged.
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
#: Floors of scores for which more is better.
_MORE_IS_BETTER = ("confident", "bodypart_confident", "mean_likelihood")


class VideoLimits(Section):
    """The limits of a good video of a camera; the first rule that matches a camera is used.

    Limits that a lab does not write follow from the camera's own earlier videos, or are the defaults here, and only
    warn.
    """

    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    resolution: tuple[Pixels, Pixels] | None = Field(
        default=None,
        description="Width and height of the picture in pixels, as it is shown.",
        json_schema_extra={"unit": "pixels"},
    )
    frame_rate: float | None = Field(
        default=None,
        ge=0.001,
        le=1_000_000,
        description="Frames per second, within 1 %.",
        json_schema_extra={"unit": "frames per second"},
    )
    constant_frame_rate: bool = Field(
        default=False, description="true if all frames must be equally far apart in time."
    )
    jitter_ms: float | None = Field(
        default=None,
        ge=0.000_001,
        le=1_000_000,
        description="The largest standard deviation of the intervals between frames.",
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
        default=2.0, ge=0.001, le=YEAR_SECONDS, description="Black stretches must be shorter than this."
    )
    frozen_seconds: float = Field(
        default=15.0,
        ge=0.001,
        le=YEAR_SECONDS,
        description="Stretches in which nothing moves must be shorter than this. Encoders leave out the noise of a "
        "resting animal from one key frame to the next, which may be 10 s.",
    )
    dropped_fraction: float = Field(default=0.01, ge=0, lt=1, description="The largest fraction of dropped frames.")
    only_warn: frozenset[LimitName] = Field(
        default=frozenset(), description="Limits of this rule that only warn and do not fail."
    )
    on_failure: Literal["warn", "quarantine"] = Field(
        default="warn",
        description="`quarantine`: a video that fails a written limit is not tracked until a person releases it.",
    )

    @property
    def failing(self) -> frozenset[str]:
        """The limits that the lab wrote down and that do not only warn."""
        return frozenset(get_args(LimitName)) & self.model_fields_set - self.only_warn


@dataclass(frozen=True)
class VideoRules:
    """The rules for videos: the sections `video_quality` and `damaged_videos` together."""

    limits: tuple[VideoLimits, ...] = ()
    damaged: DamagedVideos = "stop"

    def limits_for(self, camera: str) -> VideoLimits:
        """The first rule whose pattern matches the camera's name; the defaults if none does."""
        return next((rule for rule in self.limits if fnmatchcase(camera, rule.camera)), VideoLimits())


class ScoreLimits(Section):
    """The limits of a score; if `warn` is left out, it follows from the model's own evaluation."""

    warn: float | None = Field(
        default=None, ge=0, le=MOST_PIXELS, description="The value from which the score is a warning."
    )
    fail: float | None = Field(default=None, ge=0, le=MOST_PIXELS, description="The value from which the poses fail.")


class PoseLimits(Section):
    """The values from which scores of poses are a warning, or fail; `pose.scores` says what the scores are.

    For `mean_likelihood` and `fraction_confident` less is worse, for the others more.
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
        description="The fraction of steps longer than the animal, among the steps between two frames with both ends "
        "confident.",
    )
    unsure_jumps: ScoreLimits = Field(default=ScoreLimits(), description="The same for the other steps.")
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
        description="The mean distance in pixels of a keypoint from its place in the nearest plausible pose: the Pose "
        "PCA error of Lightning Pose.",
    )
    temporal_norm_px: ScoreLimits = Field(
        default=ScoreLimits(),
        description="The mean length in pixels of a step from one frame to the next: the temporal norm of Lightning "
        "Pose.",
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
                wrong.append(f"{name} must warn before it fails: fail must be the worse of the two values")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def _may_be_null(schema: dict[str, Any]) -> None:
    """Say in a section's schema that null switches each of its keys off, as its validators take it."""
    for entry in schema["properties"].values():
        entry["anyOf"] = [{"$ref": entry.pop("$ref")}, {"type": "null"}]


class PoseFloors(Section):
    """The floors that poses must keep whatever their model does on its own test images; see `pose.scores`.

    Each is judged over all body parts together, except `bodypart_confident` and `background`. A limit that is left out
    keeps its default; null switches it off.
    """

    model_config = ConfigDict(json_schema_extra=_may_be_null)

    confident: ScoreLimits = Field(
        default=ScoreLimits(fail=0.5),
        description="The fraction of keypoints that are confident (reach `likelihood_cutoff`), in the frames in which "
        "their animal is seen. If fewer than half are, an analysis that leaves the others out loses most of the "
        "recording. (The International Brain Laboratory fails a session with 20 % lost keypoints of a paw.)",
    )
    bodypart_confident: ScoreLimits = Field(
        default=ScoreLimits(warn=0.5),
        description="The same for one body part, which may be hidden most of the time for good reasons: so it only "
        "warns.",
    )
    mean_likelihood: ScoreLimits = Field(
        default=ScoreLimits(fail=0.3),
        description="The mean likelihood of the keypoints. Poses have 0.3 if half of them just reach DeepLabCut's own "
        "cutoff of 0.6 and half have none. It does not depend on `likelihood_cutoff`.",
    )
    empty_frames: ScoreLimits = Field(
        default=ScoreLimits(warn=0.5, fail=0.9),
        description="The fraction of frames that have no keypoint of any animal.",
    )
    still: ScoreLimits = Field(
        default=ScoreLimits(warn=0.1, fail=0.5),
        description="The fraction of frames in stretches in which no keypoint moves although the picture does, as "
        "when a network has locked on a thing, or gives the same pose for every frame. An animal at rest does not "
        "count, and neither does a picture that stands still.",
    )
    no_animal: ScoreLimits = Field(
        default=ScoreLimits(warn=0.2, fail=0.5),
        description="The fraction of frames that show no animal: half of its keypoints are not confident, and lie "
        "farther from confident ones that move than in any label; or no confident keypoint moves in the whole video, "
        "and most pairs of them are nearer together or farther apart than in any label. In an empty cage a network is "
        "often sure of a thing that looks like an ear; one body part that is hidden all the time does not count.",
    )
    background: ScoreLimits = Field(
        default=ScoreLimits(warn=0.1, fail=0.5),
        description="The fraction of the confident keypoints of one body part that are a thing of the background: at "
        "one place of the picture for the whole video, and farther from the rest of the animal than in any label.",
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
                wrong.append(f"{name} must warn before it fails: fail must be the worse of the two values")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def changed_by(self, other: "PoseFloors | None") -> "PoseFloors":
        """These floors, replaced by those that another section writes itself."""
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
    limits: PoseLimits = Field(default=PoseLimits(), description="They replace the limits for all poses.")
    floors: PoseFloors | None = Field(default=None, description="They replace the floors for all poses.")
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
        description="The animal's size in pixels; by default that of the training labels.",
    )


class PoseQuality(Section):
    """The limits from which poses count as bad, and the work that bad poses block."""

    floors: PoseFloors = Field(
        default=PoseFloors(),
        description="The limits that poses must keep whatever their model does on its own test images.",
    )
    limits: PoseLimits = Field(
        default=PoseLimits(),
        description="Limits of single scores; they replace those that follow from the model's own evaluation.",
    )
    rules: tuple[PoseQualityRule, ...] = Field(
        default=(), description="Other limits for some projects and cameras; the first rule that matches is used."
    )
    blocks: tuple[Literal["downstream", "exports", "promotion"], ...] = Field(
        default=(),
        description="The work that failing poses block. `downstream`: computations from them. `exports`: reading them "
        "without the option that allows bad poses. `promotion`: the promotion of their version by the rule.",
    )
    promotion_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="`promotion` is blocked if more than this fraction of a version's poses fail, of at least ten.",
    )

    def rule_for(self, project: str | None, camera: str) -> PoseQualityRule:
        """The first rule whose patterns match; an empty rule if none does."""
        matching = (r for r in self.rules if fnmatchcase(project or "", r.project) and fnmatchcase(camera, r.camera))
        return next(matching, PoseQualityRule())


@dataclass(frozen=True)
class PoseRules:
    """The rules by which the poses of a session are judged: `pose_quality`, and the other keys of lab.yaml that
    matter."""

    quality: PoseQuality
    tracking: Tracking
    models: ModelRules
