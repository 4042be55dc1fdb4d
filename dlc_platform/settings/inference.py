"""The sections `inference` and `regions` of lab.yaml: which model tracks which camera, in which part of the picture."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from dlc_platform.settings.fields import MOST_PIXELS, Name, Section
from dlc_platform.video.region import Region

#: The least width and height of a region, in pixels.
SMALLEST_REGION = 32


class InferenceRule(Section):
    """The project whose production model tracks some cameras; the first rule that matches a camera is used."""

    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    project: Name = Field(description="The project whose production model tracks these cameras.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Frames in one batch; found automatically if it is not given. It changes only the speed and is "
        "never part of an identity.",
    )
    precision: Literal["full", "half"] = Field(
        default="full",
        description="`half` computes in 16 bits: faster on GPUs, at a cost in pixels; on CPUs it is measured.",
    )
    gpu_memory_gb: float | None = Field(
        default=None,
        ge=0.01,
        le=10_000,
        description="Gigabytes of a GPU that it needs; if every rule gives them, runs share a GPU. Never part of an "
        "identity.",
    )


class RegionRule(Section):
    """The part of the picture that counts, for some cameras and sessions; the first rule that matches both is used."""

    camera: str = Field(
        default="*", min_length=1, description="A shell pattern that the camera's name must match, such as `top*`."
    )
    session: str = Field(default="*", min_length=1, description="A shell pattern that the session's key must match.")
    x: int = Field(
        ge=0,
        le=MOST_PIXELS,
        description="The column of the region's first pixel in the picture as it is shown.",
        json_schema_extra={"unit": "pixels"},
    )
    y: int = Field(
        ge=0,
        le=MOST_PIXELS,
        description="The row of the region's first pixel; the origin is at the top left.",
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


@dataclass(frozen=True)
class Tracking:
    """Both sections together: the model that tracks the videos of a camera, and the part of the picture."""

    inference: tuple[InferenceRule, ...] = ()
    regions: tuple[RegionRule, ...] = ()

    def rule_for(self, camera: str) -> InferenceRule | None:
        """The first inference rule whose pattern the camera's name matches."""
        return next((rule for rule in self.inference if fnmatchcase(camera, rule.camera)), None)

    def project_of(self, camera: str) -> str | None:
        """The project whose production model tracks a camera, by the inference rules."""
        rule = self.rule_for(camera)
        return rule.project if rule else None

    def region_for(self, session: str, camera: str) -> Region | None:
        """The region of the first rule whose patterns match the session's key and the camera's name; None for the whole
        picture."""
        for rule in self.regions:
            if fnmatchcase(camera, rule.camera) and fnmatchcase(session, rule.session):
                return Region(rule.x, rule.y, rule.width, rule.height)
        return None
