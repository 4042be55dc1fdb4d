"""The section `promotion` of lab.yaml: the versions that may become production models, and those that are hopeless."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from dlc_platform.settings.fields import MOST_PIXELS, Section


class ModelFloors(Section):
    """The floors below which a model version is hopeless: the rule never promotes it, and it tracks nothing by itself.

    `pose.hopeless` computes the figures and gives the sources of the defaults. null switches a floor off.
    """

    correct: float | None = Field(
        default=0.5,
        gt=0,
        le=1,
        description="The least fraction of the labelled keypoints of its test images that are correct: as near to the "
        "label as `within_animal` or `within_human` says, whichever is more.",
    )
    within_animal: float = Field(
        default=0.2, ge=0.0001, le=1000, description="A keypoint is correct within this fraction of the animal's size."
    )
    within_human: float = Field(
        default=3.0,
        ge=0.0001,
        le=1000,
        description="A keypoint is also correct within so many times the error of a person who labels the frame again.",
    )
    human_error_px: float | None = Field(
        default=None,
        ge=0.0001,
        le=MOST_PIXELS,
        description="That error in pixels, if the lab has measured it; by default 2.3 % of the animal's size, as on "
        "DeepLabCut's open field.",
    )
    confident: float | None = Field(
        default=0.05,
        gt=0,
        le=1,
        description="The least fraction of the labelled keypoints of its test images that are confident.",
    )
    spread: float | None = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="The least spread of its predictions on test images, as a fraction of the spread of the labels: "
        "a network that sees nothing predicts the same place in all images.",
    )


class PromotionRule(Section):
    """The rule by which a model version becomes the production model of its project without a person."""

    rule: Literal["clearly_better", "person"] = Field(
        default="clearly_better",
        description="`clearly_better`: the first evaluated version, and later a version that is better than the one in "
        "force beyond the confidence interval, while no body part got worse. `person`: only when a person says so.",
    )
    confidence: float = Field(
        default=0.95,
        ge=0.01,
        le=0.9999,
        description="The confidence of the interval of the difference in test RMSE, as a fraction.",
    )
    hopeless: ModelFloors = Field(default=ModelFloors(), description="Versions that the rule never promotes.")


@dataclass(frozen=True)
class ModelRules:
    """The rules by which a model version is judged on its own test images.

    Attributes
    ----------
    cutoff
        The likelihood from which a keypoint is confident.
    hopeless
        The floors below which the version is hopeless.
    """

    cutoff: float
    hopeless: ModelFloors
