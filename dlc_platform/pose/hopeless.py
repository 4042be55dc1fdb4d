"""The definition of a hopeless model version: the floors that its predictions on labelled test images must keep.

This is the only definition of the word. `models.judging` chooses the evaluation of a version, and decides what a
hopeless one must not do.

A version is hopeless when one of these floors is not kept on the labelled keypoints of its test images:

* **correct**: the share of keypoints that are correct. A keypoint is correct when its distance from the label is at
  most ``max(within_animal * size, within_human * human)`` pixels. `size` is the animal's (see `quality.Reference`) and
  `human` the error of a person who labels the same frame again. This is the percentage of correct keypoints, PCK, of
  Yang and Ramanan (Articulated Human Detection with Flexible Mixtures of Parts, PAMI 35, 2013), whose 0.2 of the body
  is the loosest threshold in use; a version that misses it with most of its keypoints does not know where the body
  parts are. The second term is there because a network need not be better than a person.
* **confident**: the share of keypoints that reach the likelihood cutoff. A version that is never sure on labelled
  images is never sure on a session.
* **spread**: the spread of its predictions over the test images, as a fraction of the spread of the labels; both are
  the root of the mean squared distance from a body part's mean place. A network that has learnt nothing predicts the
  same place in every image. It is not judged if the labels themselves stay at one place.

If the lab has not measured the human error, it is taken as 2.3 % of the animal's size: 2.69 px on DeepLabCut's open
field (Mathis et al., Nature Neuroscience 21, 2018), whose mouse is 119 px long by its labels. If no image has two
labelled body parts, the animal has no size; the spread of the labels is used instead.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.pose.confidence import fraction_confident, is_confident
from dlc_platform.pose.findings import ALL, Finding
from dlc_platform.text.words import counted, rounded

if TYPE_CHECKING:
    import pandas as pd

#: The error of a person as a fraction of the animal's size.
HUMAN_ERROR = 2.69 / 118.7
#: Fewer test images can show that a version is hopeless, but not that it is usable: the probability that each of n
#: images is on one side by chance is 2^-n, which is below 5 % only from this number on.
FEWEST_IMAGES = 6

#: `unproven`: there are too few test images to tell; `usable`: it is not hopeless, which does not mean that it is good;
#: `unread`: its results on test images are recorded, but cannot be read now.
Standing = Literal["usable", "unproven", "hopeless", "unread"]


@dataclass(frozen=True)
class Floors:
    """The floors of a model version, see the module; None for a floor that is switched off."""

    correct: float | None
    within_animal: float
    within_human: float
    human_error_px: float | None
    confident: float | None
    spread: float | None


@dataclass(frozen=True)
class ModelJudgement:
    """The judgement of a model version by its test images.

    Attributes
    ----------
    images
        The number of test images with labels.
    median_px
        The median distance between label and prediction, in pixels; NaN if there is none.
    findings
        The floors that are not kept, each in words with the measured value and the floor.
    problem
        The reason why it is `unread`, and the remedy.
    """

    standing: Standing
    images: int
    median_px: float
    findings: tuple[Finding, ...] = ()
    problem: PlatformError | None = None

    @classmethod
    def unread(cls, problem: PlatformError) -> "ModelJudgement":
        """The judgement of a version whose test images, or predictions on them, cannot be read."""
        says = f"the model cannot be judged, because its results on test images cannot be read: {problem.problem}"
        return cls(
            "unread", 0, float("nan"), (Finding("model_unread", ALL, ALL, None, None, "fail", "", says),), problem
        )

    @property
    def tracks_by_itself(self) -> bool:
        """False for a version with which nothing is tracked unless a person asks for it."""
        return self.standing in ("usable", "unproven")

    def __str__(self) -> str:
        if self.standing == "hopeless":
            return "hopeless: " + "; ".join(map(str, self.findings))
        if self.problem is not None:
            return f"not judged, because its results on test images cannot be read: {self.problem.problem}"
        if self.standing == "unproven":
            if not self.images:
                return "unproven: it was never tested on labelled images here, so its error is not known"
            number = counted(self.images, "labelled test image")
            return f"unproven: {number}, and fewer than {FEWEST_IMAGES} cannot show that it is any good"
        return f"usable: a median error of {rounded(self.median_px)} px on {counted(self.images, 'test image')}"


#: The judgement of a version that was never evaluated.
UNTESTED = ModelJudgement("unproven", 0, float("nan"))


def judge_model(predictions: "pd.DataFrame", size_px: float, cutoff: float, floors: Floors) -> ModelJudgement:
    """Judge a model version by its predictions on labelled images that it was not trained on: is it hopeless?

    Parameters
    ----------
    predictions
        Columns image, bodypart, x, y, predicted_x, predicted_y, likelihood, distance_px and missed (see
        `dlc.evaluation`), of test images alone. Keypoints that are not labelled do not count; one that is missed is
        neither correct nor confident.
    size_px
        The animal's size in pixels; NaN if it is not known.
    cutoff
        The likelihood from which a keypoint is confident.
    """
    own = predictions[predictions["distance_px"].notna() | predictions["missed"]]
    images = int(own["image"].nunique())
    if not images:
        return UNTESTED
    distances = own["distance_px"].to_numpy(float)
    spread_px = _spread(own, "x", "y")
    scale_px = size_px if np.isfinite(size_px) else spread_px
    human_px = floors.human_error_px if floors.human_error_px is not None else HUMAN_ERROR * scale_px
    by_animal, by_human = floors.within_animal * scale_px, floors.within_human * human_px
    limit_px = max(by_animal, by_human)
    findings = []

    def hold(metric: str, value: float, floor: float | None, says: str) -> None:
        if floor is not None and value < floor:
            findings.append(Finding(metric, ALL, ALL, value, floor, "fail", f"promotion.hopeless.{metric[6:]}", says))

    whose = "the animal's size" if np.isfinite(size_px) else "the spread of the labels"
    within = (
        f"{floors.within_animal:g} of {whose}, {rounded(scale_px)} px"
        if by_animal >= by_human
        else f"{floors.within_human:g} times the human error, {rounded(human_px)} px"
    )
    correct = float((distances <= limit_px).mean())  # NaN, for a missed one, is not correct
    median_px = float(np.nanmedian(distances)) if np.isfinite(distances).any() else np.nan
    hold(
        "model_correct",
        correct,
        floors.correct,
        f"of the model's {len(own)} labelled test keypoints {correct:.0%} lie within {rounded(limit_px)} px of their "
        f"label ({within}), floor {floors.correct or 0:.0%}, and its median error is {rounded(median_px)} px",
    )
    sure = is_confident(own["predicted_x"], own["predicted_y"], own["likelihood"].to_numpy(float), cutoff)
    confident = float(fraction_confident(int(sure.sum()), len(own)))
    hold(
        "model_confident",
        confident,
        floors.confident,
        f"of the model's {len(own)} labelled test keypoints {confident:.1%} are confident, floor "
        f"{floors.confident or 0:.0%}",
    )
    if spread_px > limit_px and images > 1:
        predicted = _spread(own[own["predicted_x"].notna()], "predicted_x", "predicted_y")
        hold(
            "model_spread",
            predicted / spread_px,
            floors.spread,
            f"the model predicts nearly the same place in all {images} test images: its predictions are spread by "
            f"{rounded(predicted)} px, the labels by {rounded(spread_px)} px, floor {floors.spread or 0:.0%} of that",
        )
    standing: Standing = "hopeless" if findings else "unproven" if images < FEWEST_IMAGES else "usable"
    return ModelJudgement(standing, images, median_px, tuple(findings))


def _spread(table: "pd.DataFrame", x: str, y: str) -> float:
    """The root of the mean squared distance of points from the mean place of their body part, in pixels."""
    centred = table[[x, y]] - table.groupby("bodypart", observed=True)[[x, y]].transform("mean")
    return float(np.sqrt((centred.to_numpy(float) ** 2).sum(axis=1).mean())) if len(table) else 0.0
