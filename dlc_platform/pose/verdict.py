"""The limits and floors of scores, and the verdict; `scores` says what the scores are."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc_platform.pose import SINGLE_ANIMAL
from dlc_platform.pose.findings import A_FLOOR, ALL, FROM_TEST_IMAGES, IN_LAB_YAML, USUAL, Finding, Level
from dlc_platform.pose.metrics import LESS_IS_WORSE, METRICS
from dlc_platform.text.words import rounded

if TYPE_CHECKING:
    import pandas as pd

#: Scores for which less is worse: those of lab.yaml, and one that only floors have.
_LESS_IS_WORSE = (*LESS_IS_WORSE, "confident_when_seen")
#: The widest limits that a model's own test images can give its poses.
_MOST = {"limb_outliers": 0.5, "jumps": 0.25}


@dataclass(frozen=True)
class Limits:
    """The value from which a score is a warning, and the value from which it fails; None for never."""

    warn: float | None = None
    fail: float | None = None


@dataclass(frozen=True)
class Floors:
    """The floors that poses must keep whatever their model does on its own test images; all but two are over all body
    parts.

    `confident` is the floor of ``confident_when_seen``, `empty_frames` that of ``fraction_empty``, and `still` that of
    ``still_in_motion``. `bodypart_confident` (also of ``confident_when_seen``) and `background` are for each body part.
    """

    confident: Limits = Limits()
    bodypart_confident: Limits = Limits()
    mean_likelihood: Limits = Limits()
    empty_frames: Limits = Limits()
    still: Limits = Limits()
    no_animal: Limits = Limits()
    background: Limits = Limits()


def default_limits(evaluated: "pd.DataFrame | None", bodypart: str) -> dict[str, Limits]:
    """The values from which a score is a warning, if lab.yaml does not say; nothing fails.

    Parameters
    ----------
    evaluated
        The result of `measure_predictions` for the model; without it the limits are absolute.

    Notes
    -----
    Videos are not test images, so each limit leaves room: 0.2 below the fraction of confident keypoints, 0.05 above the
    fraction of limb outliers, both beyond the interval of a fraction among so few images (two standard errors, after
    Agresti and Coull 1998); twice the reprojection error and a pixel; 0.02 of jumps and twice the fraction of gross
    errors. So that a bad model does not allow everything, the limits are at most half of the limbs and a quarter of the
    steps.
    """
    limits = {
        "fraction_confident": Limits(0.5),
        "fraction_missing": Limits(0.5),
        "jumps": Limits(0.02),
        "swaps": Limits(0.01),
        "outside": Limits(0.05),
    }
    own = None if evaluated is None else evaluated[evaluated["bodypart"] == bodypart]
    if own is None or own.empty:
        return limits
    known = own.iloc[0]
    images = int(evaluated["rows"].max()) if evaluated is not None else 0
    for metric, room, sign in (("fraction_confident", 0.2, -1), ("limb_outliers", 0.05, 1)):
        if np.isfinite(known[metric]):
            expected = (known[metric] * images + 2) / (images + 4)
            error = 2 * np.sqrt(expected * (1 - expected) / (images + 4))
            limits[metric] = Limits(float(np.clip(expected + sign * (error + room), 0, _MOST.get(metric, 1.0))))
    if np.isfinite(known["jumps"]):
        limits["jumps"] = Limits(min(0.02 + 2 * float(known["jumps"]), _MOST["jumps"]))
    if np.isfinite(known["reprojection_px"]):
        limits["reprojection_px"] = Limits(1 + 2 * float(known["reprojection_px"]))
    return limits


def judge(
    scores: "pd.DataFrame",
    frames: int,
    limits: Mapping[str, Limits],
    evaluated: "pd.DataFrame | None",
    floors: Floors | None = None,
) -> list[Finding]:
    """The scores that lie beyond their limits, the failing ones first; nothing but the scores is needed.

    A body part that does not have a row for each frame of the video fails whatever the limits. A floor whose score
    could not be measured is not kept: if nothing was estimated, it fails; if something could not be looked at, it warns
    and says what.

    Parameters
    ----------
    scores
        The result of `measure`; its row over everything is compared only with the floors.
    frames
        The number of frames of the video.
    limits
        Those of lab.yaml, by metric; a limit that is None is the one of `default_limits`.
    evaluated
        The result of `measure_predictions` for the model.
    floors
        The floors; None for no floors.
    """
    floors = floors or Floors()
    findings = []
    of_bodypart: dict[str, list[tuple[str, Level, float | None, str]]] = {}
    for row in scores[scores["bodypart"] != ALL].to_dict("records"):
        individual, bodypart = str(row["individual"]), str(row["bodypart"])
        if row["rows"] == row["rows"] and row["rows"] is not None and row["rows"] != frames:
            findings.append(
                Finding("rows", individual, bodypart, float(row["rows"]), float(frames), "fail", "frames of the video")
            )
        if bodypart not in of_bodypart:
            of_bodypart[bodypart] = _bounds(limits, evaluated, bodypart)
        own = _beyond(row, individual, bodypart, of_bodypart[bodypart])
        # A body part has one line about the model's confidence: that of the limit, or else that of the floor.
        if not any(finding.metric == "fraction_confident" and finding.level == "fail" for finding in own):
            floor = _beyond(row, individual, bodypart, _floor("confident_when_seen", floors.bodypart_confident))
            if floor and (floor[0].level == "fail" or not any(one.metric == "fraction_confident" for one in own)):
                own = [one for one in own if one.metric != "fraction_confident"] + [_in_words(one) for one in floor]
        own += [_in_words(one) for one in _beyond(row, individual, bodypart, _floor("background", floors.background))]
        findings += own
    for row in scores[scores["bodypart"] == ALL].to_dict("records"):
        findings += _below_floors(row, floors)
    return sorted(findings, key=lambda finding: (finding.level != "fail", finding.bodypart != ALL))


def _below_floors(row: Mapping[Hashable, Any], floors: Floors) -> list[Finding]:
    """The floors over all body parts that are not kept, by the scores over everything."""
    every = [
        *_floor("confident_when_seen", floors.confident),
        *_floor("mean_likelihood", floors.mean_likelihood),
        *_floor("fraction_empty", floors.empty_frames),
        *_floor("still_in_motion", floors.still),
        *_floor("no_animal", floors.no_animal),
    ]
    if not every:
        return []
    if not float(row["fraction_missing"]) < 1:
        says = "nothing was estimated: no keypoint has a place in any frame that could be decoded"
        return [Finding("fraction_missing", ALL, ALL, 1.0, 1.0, "fail", A_FLOOR, says)]
    findings = _beyond(row, ALL, ALL, every)
    unrated = not float(row["mean_likelihood"]) >= 0
    if unrated and any(metric in ("confident_when_seen", "mean_likelihood") for metric, *_ in every):
        says = "the poses have no likelihood, so it is not known how sure they are"
        findings.append(Finding("mean_likelihood", ALL, ALL, None, floors.mean_likelihood.fail, "warn", A_FLOOR, says))
    still = float(row["still"])
    least = min((bound for bound in (floors.still.warn, floors.still.fail) if bound is not None), default=1.0)
    if still > least and not float(row["still_in_motion"]) >= 0:
        says = (
            f"no keypoint moves in {still:.0%} of the frames, and the video could not be read to see if "
            f"the picture moves, floor {least:.0%}"
        )
        findings.append(Finding("still", ALL, ALL, still, least, "warn", A_FLOOR, says))
    return [_in_words(finding) for finding in findings]


def _in_words(finding: Finding) -> Finding:
    """A score below a floor, in words that need no glossary."""
    if finding.says or finding.value is None or finding.limit is None:
        return finding
    value, floor, share = rounded(finding.value), f"floor {rounded(finding.limit)}", f"{finding.value:.1%}"
    whose = finding.bodypart if finding.individual == SINGLE_ANIMAL else f"{finding.individual} {finding.bodypart}"
    words = {
        "confident_when_seen": f"{share} of all keypoints are confident, floor {finding.limit:.0%}"
        if finding.bodypart == ALL
        else f"{whose} is confident in {share} of its frames, floor {finding.limit:.0%}",
        "mean_likelihood": f"the mean likelihood of all keypoints is {value}, {floor}",
        "fraction_empty": f"{share} of the frames have no keypoint at all, {floor}",
        "still_in_motion": f"no keypoint moves in {share} of the frames although the picture does: the same pose again "
        f"and again, floor {finding.limit:.0%}",
        "no_animal": f"no animal can be seen in {share} of the frames, floor {finding.limit:.0%}: by the distances "
        "in the labels, the confident keypoints there are too few, or are a thing that never moves",
        "background": f"{whose} is a thing of the background in {share} of its confident frames: it stays at one place "
        f"of the picture for the whole video, away from the rest of the animal, floor {finding.limit:.0%}",
    }
    return replace(finding, says=words[finding.metric])


def _beyond(
    row: Mapping[Hashable, Any],
    individual: str,
    bodypart: str,
    bounds: Iterable[tuple[str, Level, float | None, str]],
) -> list[Finding]:
    """The scores of a row beyond bounds, one finding for each metric: the first bound that is not kept."""
    found: dict[str, Finding] = {}
    for metric, level, bound, source in bounds:
        value, sign = float(row[metric]), -1 if metric in _LESS_IS_WORSE else 1
        if metric not in found and bound is not None and sign * value > sign * bound:
            found[metric] = Finding(metric, individual, bodypart, value, bound, level, source)
    return list(found.values())


def _floor(metric: str, limits: Limits) -> list[tuple[str, Level, float | None, str]]:
    bounds: tuple[tuple[Level, float | None], ...] = (("fail", limits.fail), ("warn", limits.warn))
    return [(metric, level, bound, A_FLOOR) for level, bound in bounds if bound is not None]


def _bounds(
    limits: Mapping[str, Limits], evaluated: "pd.DataFrame | None", bodypart: str
) -> list[tuple[str, Level, float | None, str]]:
    """The limits of a body part and their sources, for each metric the failing one first."""
    defaults = default_limits(evaluated, bodypart)
    absolute = default_limits(None, bodypart)
    bounds: list[tuple[str, Level, float | None, str]] = []
    for metric in METRICS:
        own, default = limits.get(metric, Limits()), defaults.get(metric, Limits())
        bounds.append((metric, "fail", own.fail, IN_LAB_YAML))
        if own.warn is not None:
            bounds.append((metric, "warn", own.warn, IN_LAB_YAML))
        else:
            is_usual = default == absolute.get(metric) or default.warn == _MOST.get(metric)
            source = USUAL if is_usual else FROM_TEST_IMAGES
            bounds.append((metric, "warn", default.warn, source))
    return bounds
