"""The gate of bad poses: which reference poses are held against, what is written down of them, and what they block.

What the scores are and how they are judged is `pose.quality`; limits, and what failing poses block, are the lab's. A
session whose poses fail is in quarantine at the stage ``quality`` until other poses are in force, the limits say
otherwise, or a person releases it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Engine

from dlc_platform.catalog import quarantine, queries, registry, tables
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json, short
from dlc_platform.pose.quality import (
    ALL,
    METRICS,
    Finding,
    Level,
    Limits,
    Reference,
    judge,
    measure,
    measure_predictions,
    reference_from_labels,
    worst,
)
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.settings import Lab
from dlc_platform.store import Store

if TYPE_CHECKING:
    import pandas as pd

#: A version is judged by the poses that it made from so many estimates on.
FEWEST_ESTIMATES = 10

#: How a person lets a session out.
RELEASE = "`dlc-platform sessions release HOME {session} --stage quality`"


@dataclass(frozen=True)
class ModelReference:
    """What the poses of a model version are held against.

    Attributes
    ----------
    labels
        What the labels say of the dataset that taught the model, or else of the one that it was evaluated on.
    evaluated
        Its scores on that dataset's test images that it was not trained on (see `pose.quality.measure_predictions`);
        None without an evaluation.
    """

    labels: Reference = field(default_factory=Reference)
    evaluated: "pd.DataFrame | None" = None
    dataset_id: str | None = None
    evaluation_id: str | None = None


@dataclass(frozen=True)
class Assessment:
    """The scores of the poses of one file, and what is to be said of them."""

    pose_estimate_id: str
    recording: str
    path: str
    frames: int
    reference: ModelReference
    scores: "pd.DataFrame"
    findings: list[Finding]

    @property
    def verdict(self) -> Level:
        return worst(self.findings)


def reference_of(engine: Engine, store: Store, model_id: str | None, cutoff: float) -> ModelReference:
    """What the poses of a model version are held against; nothing for an imported one that was never evaluated."""
    from dlc_platform.dlc.dataset import load_dataset
    from dlc_platform.dlc.evaluation import load_evaluation

    model = None if model_id is None else registry.model_version(engine, model_id)
    if model is None:
        return ModelReference()
    evaluation = registry.evaluation_of(engine, model.id)
    dataset_id = model.dataset_id or (evaluation.dataset_id if evaluation else None)
    if dataset_id is None or not store.has("datasets", dataset_id):
        return ModelReference()
    dataset = load_dataset(store.path("datasets", dataset_id))
    labels = dataset.labels()
    reference = reference_from_labels(labels[labels["side"] == "train"], dataset.skeleton)
    if evaluation is None or not store.has("evaluations", evaluation.id):
        return ModelReference(reference, None, dataset_id)
    predictions = load_evaluation(store, evaluation.id).fair_predictions()
    tested = measure_predictions(predictions[predictions["side"] == "test"], reference, cutoff)
    return ModelReference(reference, tested, dataset_id, evaluation.id)


def assess(
    engine: Engine,
    store: Store,
    lab: Lab,
    session_key: str,
    run_id: str | None = None,
    reference: Callable[[str | None], ModelReference] | None = None,
) -> list[Assessment]:
    """Judge the poses in force of a session by lab.yaml as it is now, and write that down.

    What was measured before is measured again only where the likelihood cut-off, the arena, the animal's size or the
    labels are other ones than then; the limits can change without that. A session that fails is in quarantine
    afterwards, unless a person released it with the same failures, and one that does not is out.

    Parameters
    ----------
    reference
        What gives the reference of a model version, where a caller keeps it for many sessions; see `references`.

    Returns
    -------
    list of Assessment
        One for each file that has poses.
    """
    reference = reference or references(engine, store, lab)
    found = []
    for row in queries.poses_to_judge(engine, session_key).to_dict("records"):
        camera, model = str(row["camera"]), row["model"]
        against = reference(model)
        rule = lab.pose_quality.rule_for(row["project"] or lab.project_of(camera), camera)
        arena = _arena(lab, session_key, camera, rule.arena)
        basis = {
            "cutoff": lab.likelihood_cutoff,
            "arena": None if arena is None else arena.tolist(),
            "animal_px": rule.animal_px,
            "dataset": against.dataset_id,
        }
        limits = _limits(lab, rule.limits.model_dump())
        identity = str(row["pose_estimate"])
        known = registry.pose_verdict(engine, identity)
        measured = None
        if known is not None and known.basis == basis:
            scores = _stored(registry.pose_scores(engine, identity))
        else:
            labels = against.labels
            labels = labels if rule.animal_px is None else replace(labels, size_px=rule.animal_px)
            path = store.path("poses", identity) / POSE_TABLE
            scores = measure(
                read_parquet(path),
                labels,
                lab.likelihood_cutoff,
                (row["width"], row["height"]),
                arena,
                row["frames_lost"],
            )
            measured = _rows(identity, scores)
        findings = judge(scores, row["frames"], limits, against.evaluated)
        verdict = tables.PoseVerdict(
            pose_estimate_id=identity,
            verdict=worst(findings),
            basis=basis,
            limits={metric: asdict(limit) for metric, limit in limits.items() if limit != Limits()},
            findings=[asdict(finding) for finding in findings],
            evaluation_id=against.evaluation_id,
            run_id=run_id,
        )
        registry.record_verdict(engine, verdict, measured)
        found.append(
            Assessment(identity, str(row["recording"]), str(row["path"]), row["frames"], against, scores, findings)
        )
    quarantine.judge(engine, session_key, "quality", _faults(session_key, found), run_id)
    return found


def references(engine: Engine, store: Store, lab: Lab) -> Callable[[str | None], ModelReference]:
    """`reference_of` for many sessions: what was found is kept as long as the function."""
    return cache(lambda model_id: reference_of(engine, store, model_id, lab.likelihood_cutoff))


def require_good_poses(engine: Engine, lab: Lab, session_key: str) -> None:
    """Refuse a session whose poses failed, where lab.yaml says that they block what is downstream.

    Raises
    ------
    PlatformError
        With the reason why the session is in quarantine, and how it comes out.
    """
    faults = quarantine.faults_of(engine, session_key, "quality")
    if faults and "downstream" in lab.pose_quality.blocks:
        raise PlatformError(f"session {session_key} is in quarantine: {faults[0].reason}", faults[0].remedy)


def held_back(engine: Engine, estimates: Sequence[str]) -> dict[str, str]:
    """The sessions that are in quarantine for one of these estimates, with the reason."""
    held = queries.held_back(engine, estimates)
    return dict(zip(held["session"], held["reason"], strict=True))


def barred_versions(engine: Engine, lab: Lab, project: str) -> dict[str, str]:
    """The versions that the rule of promotion may not choose for the poses that they made, with the reason."""
    if "promotion" not in lab.pose_quality.blocks:
        return {}
    return {
        str(row.model): f"version {short(str(row.model))} was passed over, because {row.failed} of the {row.estimates} "
        "poses that it made fail the limits of lab.yaml"
        for row in queries.failing_versions(engine, project).itertuples()
        if row.estimates >= FEWEST_ESTIMATES  # pyright: ignore[reportOperatorIssue]
        and row.failed > lab.pose_quality.promotion_fraction * row.estimates  # pyright: ignore[reportOperatorIssue]
    }


def quality_table(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """The scores of the poses in force by body part, each with the verdict on it and the findings in words."""
    return _in_words(queries.pose_quality(engine, session))


def worst_quality(engine: Engine, most: int) -> "tuple[pd.DataFrame, dict[str, int]]":
    """The newest recordings whose poses do not pass, each in one row over all body parts, and how many pass or not.

    Returns
    -------
    DataFrame
        The columns of `quality_table`; at most `most` rows.
    dict
        The number of recordings by verdict.
    """
    return _in_words(queries.poses_that_do_not_pass(engine, most)), queries.pose_verdicts(engine)


def _in_words(scores: "pd.DataFrame") -> "pd.DataFrame":
    scores = scores.astype(dict.fromkeys(METRICS, "float64"))  # nulls are NaN
    of_row = []
    for individual, bodypart, recorded in zip(
        scores["individual"], scores["bodypart"], scores["findings"], strict=True
    ):
        findings = [Finding(**finding) for finding in recorded]
        of_row.append([f for f in findings if bodypart == ALL or (f.individual, f.bodypart) == (individual, bodypart)])
    scores["verdict"] = [worst(findings) for findings in of_row]
    scores["findings"] = ["; ".join(map(str, findings)) for findings in of_row]
    return scores


def _faults(session: str, assessments: Sequence[Assessment]) -> list[quarantine.Fault]:
    """One for the session, however many of its files fail: a person decides on a session."""
    failed = [
        (assessment, [finding for finding in assessment.findings if finding.level == "fail"])
        for assessment in assessments
        if assessment.verdict == "fail"
    ]
    if not failed:
        return []
    reasons = [
        f"{assessment.recording}: {findings[0]}" + (f", and {len(findings) - 1} more" if len(findings) > 1 else "")
        for assessment, findings in failed
    ]
    # Other limits that the same scores fail are no other evidence; other poses, or another score that fails, are.
    evidence = [
        [assessment.pose_estimate_id, sorted([f.metric, f.individual, f.bodypart] for f in findings)]
        for assessment, findings in failed
    ]
    remedy = (
        "Look at the picture of pose_quality; label frames of this session and train again, correct `pose_quality` in "
        f"lab.yaml, or release it with {RELEASE.format(session=session)}"
    )
    return [quarantine.Fault(f"bad poses: {'; '.join(reasons)}", remedy, sha256_json(evidence))]


def _limits(lab: Lab, own: Mapping[str, Mapping[str, float | None]]) -> dict[str, Limits]:
    """The limits of lab.yaml, those of a rule before those for all."""
    general = lab.pose_quality.limits.model_dump()
    return {
        metric: Limits(**{k: general[metric][k] if v is None else v for k, v in own[metric].items()})
        for metric in METRICS
    }


def _arena(lab: Lab, session_key: str, camera: str, corners: Sequence[tuple[float, float]] | None) -> np.ndarray | None:
    """The corners of a polygon; None for the whole picture."""
    if corners is None:
        region = lab.region_for(session_key, camera)
        if region is None:
            return None
        corners = ((region.x, region.y), (region.x + region.width, region.y + region.height))
    if len(corners) == 2:
        (left, top), (right, bottom) = corners
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return np.array(corners, float)


def _rows(identity: str, scores: "pd.DataFrame") -> list[tables.PoseScore]:
    import pandas as pd

    return [
        tables.PoseScore(
            pose_estimate_id=identity,
            individual=row["individual"],
            bodypart=row["bodypart"],
            rows=None if pd.isna(row["rows"]) else int(row["rows"]),
            **{metric: None if math.isnan(row[metric]) else float(row[metric]) for metric in METRICS},
        )
        for row in scores.to_dict("records")
    ]


def _stored(rows: Sequence[tables.PoseScore]) -> "pd.DataFrame":
    import pandas as pd

    columns = ("individual", "bodypart", "rows", *METRICS)
    records: list[dict[str, Any]] = [{name: getattr(row, name) for name in columns} for row in rows]
    return pd.DataFrame(records, columns=pd.Index(columns)).astype(
        {"rows": "Int64"} | dict.fromkeys(METRICS, "float64")  # pyright: ignore[reportArgumentType]
    )
