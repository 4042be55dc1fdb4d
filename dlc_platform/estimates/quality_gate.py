"""The gate for bad poses: it compares poses with their reference, writes down the verdict, and blocks what fails.

`pose.scores` computes and judges the scores, `pose.hopeless` judges models. Limits, floors, and the work that failing
poses block are the lab's. A session whose poses fail is in quarantine at the stage ``quality`` until other poses are in
force, the limits change, or a person releases it.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Engine

from dlc_platform.catalog import quarantine, tables
from dlc_platform.catalog.evaluations import evaluation_of
from dlc_platform.catalog.models import model_version
from dlc_platform.catalog.verdicts import (
    held_back_poses,
    judged_files,
    pose_quality,
    pose_scores,
    pose_verdict,
    poses_to_judge,
    record_verdict,
)
from dlc_platform.errors import PlatformError, command
from dlc_platform.estimates.verdicts import in_words
from dlc_platform.faults import machine_fault
from dlc_platform.identity import sha256_json
from dlc_platform.models.judging import (
    UNREAD,
    labels_say,
    model_floors,
    predictions_on_test_images,
    unread,
)
from dlc_platform.pose.findings import LEVELS, Finding, Level, worst
from dlc_platform.pose.hopeless import UNTESTED, ModelJudgement, judge_model
from dlc_platform.pose.metrics import METRICS
from dlc_platform.pose.reference import Reference
from dlc_platform.pose.scores import Stretch, course, limb_lengths, measure, measure_predictions
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.pose.verdict import Floors, Limits, judge
from dlc_platform.settings.promotion import ModelRules
from dlc_platform.settings.quality import PoseFloors, PoseLimits, PoseRules
from dlc_platform.store import Store
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    import pandas as pd

#: Poses that were measured with fewer scores are measured again.
_SCORES_VERSION = 3
#: The number of pictures to look at in each stretch in which poses stand still.
_LOOKS = 3
#: The animal's size if nothing else gives it, as a fraction of the picture's diagonal.
_SIZE_OF_PICTURE = 0.1


def release_command(session: str) -> str:
    """The command with which a person releases a session that is held up for its poses."""
    return command("sessions", "release", "HOME", session, "--stage", "quality")


@dataclass(frozen=True)
class ModelReference:
    """The reference for the poses of a model version.

    Attributes
    ----------
    labels
        The reference from the labels of the dataset that taught the model, or else of the one it was evaluated on.
    evaluated
        Its scores on that dataset's test images that it was not trained on (see `pose.scores.measure_predictions`);
        None if there is no evaluation.
    judgement
        The judgement by these images (is it hopeless?); None if the model is not known.
    dataset_id, evaluation_id
        The sources of `labels` and `evaluated`; None if nothing was read from them.
    """

    labels: Reference = field(default_factory=Reference)
    evaluated: "pd.DataFrame | None" = None
    judgement: ModelJudgement | None = None
    dataset_id: str | None = None
    evaluation_id: str | None = None


@dataclass(frozen=True, eq=False)
class Course:
    """The tables for a picture of quality: those of `pose.scores.course` and `pose.scores.limb_lengths`."""

    scores: "pd.DataFrame"
    limb_lengths: "pd.DataFrame"


@dataclass(frozen=True)
class Assessment:
    """The scores of the poses of one file, and the findings about them.

    `course` is that of the worst file of its session, if its poses were read for the scores.
    """

    pose_estimate_id: str
    recording: str
    path: str
    frames: int
    reference: ModelReference
    scores: "pd.DataFrame"
    findings: list[Finding]
    course: Course | None = None

    @property
    def verdict(self) -> Level:
        return worst(self.findings)

    @property
    def is_complete(self) -> bool:
        """False if something that it depends on could not be read: a second look may find more."""
        judgement = self.reference.judgement
        return not ((judgement is not None and judgement.standing == "unread") or _was_not_looked_at(self.scores))


class PoseJudge:
    """Judges the poses of sessions for one run, so that its steps read and judge the poses of a session once.

    Steps that are processes of their own have a judge each, and judge again.

    Parameters
    ----------
    rules
        Those of lab.yaml when the run began.
    """

    def __init__(self, engine: Engine, store: Store, rules: PoseRules):
        self._engine = engine
        self._store = store
        self._rules = rules
        self._reference = references(engine, store, rules.models)
        self._judged: dict[str, list[Assessment]] = {}

    def judge(
        self, session: str, run_id: str | None, at_hand: Mapping[str, "pd.DataFrame"] | None = None
    ) -> list[Assessment]:
        """Judge the poses in force of a session; see `assess`."""
        found = assess(self._engine, self._store, self._rules, session, run_id, self._reference, at_hand, True)
        self._judged[session] = found
        return found

    def judged(self, session: str, run_id: str | None) -> list[Assessment]:
        """The assessments that this judge made in this run of the poses in force.

        The poses are judged if it has not seen them, if something could not be read then, or if somebody else has
        judged them since.
        """
        known = self._judged.get(session, [])
        if not all(own.is_complete for own in known):
            self._reference = references(self._engine, self._store, self._rules.models)
            return self.judge(session, run_id)
        in_force = [str(identity) for identity in poses_to_judge(self._engine, session)["pose_estimate"]]
        if known and in_force == [own.pose_estimate_id for own in known]:
            verdicts = [pose_verdict(self._engine, identity) for identity in in_force]
            if all(verdict is not None and verdict.run_id == run_id for verdict in verdicts):
                return known
        return self.judge(session, run_id)

    def course(self, assessment: Assessment) -> Course:
        """The tables for a picture of these poses, which are read if they were not before."""
        if assessment.course is not None:
            return assessment.course
        table = read_parquet(self._store.path("poses", assessment.pose_estimate_id) / POSE_TABLE)
        return _course(table, assessment.reference.labels, self._rules.models.cutoff)


def worst_of(assessments: Sequence[Assessment]) -> Assessment:
    """The file of a session with the worst verdict, whose picture tells most; the first of several."""
    return max(assessments, key=lambda own: LEVELS.index(own.verdict))


def reference_of(engine: Engine, store: Store, model_id: str | None, rules: ModelRules) -> ModelReference:
    """The reference for the poses of a model version; an empty one for an imported version that was never evaluated.

    If recorded files cannot be read, the judgement says so, and poses that are compared with it fail.

    Raises
    ------
    MachineFault
        When they cannot be read because of the disk of the store.
    """
    model = None if model_id is None else model_version(engine, model_id)
    if model is None:
        return ModelReference()
    evaluation = evaluation_of(engine, model.id)
    dataset_id = model.dataset_id or (evaluation.dataset_id if evaluation else None)
    if dataset_id is None:
        return ModelReference(judgement=UNTESTED)
    known = ModelReference(judgement=UNTESTED)
    try:
        reference = labels_say(store, dataset_id)
        known = ModelReference(reference, None, UNTESTED, dataset_id)
        if evaluation is None:
            return known
        predictions = predictions_on_test_images(store, evaluation.id)
        tested = measure_predictions(predictions, reference, rules.cutoff)
        judgement = judge_model(predictions, reference.size_px, rules.cutoff, model_floors(rules.hopeless))
        return ModelReference(reference, tested, judgement, dataset_id, evaluation.id)
    except UNREAD as error:
        if (fault := machine_fault(error)) is not None:
            raise fault from error
        return replace(known, judgement=unread(error, store))


def assess(
    engine: Engine,
    store: Store,
    rules: PoseRules,
    session_key: str,
    run_id: str | None = None,
    reference: Callable[[str | None], ModelReference] | None = None,
    at_hand: Mapping[str, "pd.DataFrame"] | None = None,
    with_course: bool = False,
) -> list[Assessment]:
    """Judge the poses in force of a session by the present lab.yaml, and write the verdicts down.

    Scores are measured again only if the likelihood cut-off, the arena, the animal's size or the labels have changed,
    or a video could not be looked at; changed limits and floors need no new scores. A session that fails is in
    quarantine afterwards, unless a person released it with the same failures; a session that does not fail is out of
    it.

    Parameters
    ----------
    reference
        The function that gives the reference of a model version, if a caller keeps one for many sessions; see
        `references`.
    at_hand
        Pose tables of the store that the caller has read, by the identity of their estimate.
    with_course
        True to keep the tables for a picture of the worst file, if its poses are read.

    Returns
    -------
    list of Assessment
        One for each file that has poses.
    """
    reference = reference or references(engine, store, rules.models)
    found: list[Assessment] = []
    for row in poses_to_judge(engine, session_key).to_dict("records"):
        camera, model = str(row["camera"]), row["model"]
        against = reference(model)
        rule = rules.quality.rule_for(row["project"] or rules.tracking.project_of(camera), camera)
        labels, arena = what_labels_and_rules_say(rules, session_key, row, against)
        basis = {
            "cutoff": rules.models.cutoff,
            "arena": None if arena is None else arena.tolist(),
            "animal_px": rule.animal_px,
            "dataset": against.dataset_id,
            "scores": _SCORES_VERSION,
        }
        limits = _limits(rules.quality.limits, rule.limits)
        floors = rules.quality.floors.changed_by(rule.floors)
        identity = str(row["pose_estimate"])
        known = pose_verdict(engine, identity)
        measured = table = scores = None
        if known is not None and known.basis == basis:
            scores = _stored(pose_scores(engine, identity))
        if scores is None or _was_not_looked_at(scores):
            table = (at_hand or {}).get(identity)
            if table is None:
                table = read_parquet(store.path("poses", identity) / POSE_TABLE)
            scores = measure(
                table,
                labels,
                rules.models.cutoff,
                (row["width"], row["height"]),
                arena,
                row["frames_lost"],
                lambda stretches, row=row, arena=arena, size=labels.size_px: _picture_moves(
                    row, arena, size, stretches
                ),
            )
            measured = _rows(identity, scores)
        findings = [
            *(against.judgement.findings if against.judgement else ()),
            *judge(scores, row["frames"], limits, against.evaluated, _pose_floors(floors)),
        ]
        verdict = tables.PoseVerdict(
            pose_estimate_id=identity,
            verdict=worst(findings),
            basis=basis,
            limits={metric: asdict(limit) for metric, limit in limits.items() if limit != Limits()},
            floors=floors.model_dump(),
            findings=[asdict(finding) for finding in findings],
            evaluation_id=against.evaluation_id,
            run_id=run_id,
        )
        record_verdict(engine, verdict, measured)
        own = Assessment(identity, str(row["recording"]), str(row["path"]), row["frames"], against, scores, findings)
        if with_course and worst_of([*found, own]) is own:
            found = [replace(other, course=None) for other in found]
            if table is not None:
                own = replace(own, course=_course(table, against.labels, rules.models.cutoff))
        found.append(own)
    quarantine.judge(engine, session_key, "quality", _faults(session_key, found), run_id)
    return found


def what_labels_and_rules_say(
    rules: PoseRules, session_key: str, row: Mapping[Hashable, Any], against: ModelReference
) -> tuple[Reference, np.ndarray | None]:
    """The reference that the poses of a file are held against, with the animal's size of lab.yaml, and the arena.

    Parameters
    ----------
    row
        The file's row of `poses_to_judge`.

    Returns
    -------
    Reference
        With the size that lab.yaml gives the animal, if it does.
    array or None
        The corners of the arena in pixels, shape (corners, 2); None for the whole picture.
    """
    camera = str(row["camera"])
    rule = rules.quality.rule_for(row["project"] or rules.tracking.project_of(camera), camera)
    labels = against.labels if rule.animal_px is None else replace(against.labels, size_px=rule.animal_px)
    return labels, _arena(rules.tracking.region_for(session_key, camera), rule.arena)


def references(engine: Engine, store: Store, rules: ModelRules) -> Callable[[str | None], ModelReference]:
    """`reference_of` for many sessions: the returned function keeps what it found."""
    return cache(lambda model_id: reference_of(engine, store, model_id, rules))


def require_good_poses(engine: Engine, session_key: str) -> None:
    """Refuse a session with poses that failed, unless a person released it, or with poses that were not judged.

    The answer does not depend on `blocks` in lab.yaml, which says what the platform itself holds up.

    Raises
    ------
    PlatformError
        When the session is in quarantine, with the reason and the remedy; or when it has no poses.
    """
    faults = quarantine.faults_of(engine, session_key, "quality")
    if faults:
        raise PlatformError(f"session {session_key} is in quarantine: {faults[0].reason}", faults[0].remedy)
    judged = judged_files(engine, session_key)
    if not judged:
        raise PlatformError(f"session {session_key} has no poses", "Materialise pose_estimates for it first")
    if not all(by_floors for by_floors in judged.values()):
        path = next(path for path, by_floors in judged.items() if not by_floors)
        raise PlatformError(
            f"the poses of {path} were not judged by the floors of lab.yaml yet",
            f"Judge them with {command('quality', 'HOME', session_key, '--judge')}",
        )


def held_back(engine: Engine, estimates: Sequence[str]) -> dict[str, str]:
    """The sessions that are in quarantine because of one of these estimates, with the reason."""
    held = held_back_poses(engine, estimates)
    return dict(zip(held["session"], held["reason"], strict=True))


def quality_table(engine: Engine, session: str | None = None) -> "pd.DataFrame":
    """The scores of the poses in force by body part, each with its verdict and the findings in words."""
    scores = pose_quality(engine, session).astype(dict.fromkeys(METRICS, "float64"))  # nulls are NaN
    rows = [in_words(row) for row in scores.to_dict("records")]
    return scores.assign(verdict=[row["verdict"] for row in rows], findings=[row["findings"] for row in rows])


def _faults(session: str, assessments: Sequence[Assessment]) -> list[quarantine.Fault]:
    """The fault of the session, at most one however many files fail: a person decides about a session."""
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
    # The same scores against changed limits are the same evidence; other poses, or another failing score, are new
    # evidence.
    evidence = [
        [assessment.pose_estimate_id, sorted([f.metric, f.individual, f.bodypart] for f in findings)]
        for assessment, findings in failed
    ]
    unread = [a.reference.judgement.problem for a, _ in failed if a.reference.judgement is not None]
    problem = next((own for own in unread if own is not None), None)
    hopeless_model = any(finding.metric.startswith("model_") for _, findings in failed for finding in findings)
    first = (
        f"{problem.remedy}; then judge the poses again with {command('quality', 'HOME', session, '--judge')}"
        if problem is not None
        else "Label more frames, train longer, promote that version and estimate the session again"
        if hopeless_model
        else "Look at the picture of pose_quality; label frames of this session and train again, or correct "
        "`pose_quality` in lab.yaml"
    )
    remedy = f"{first}; if the poses are good nevertheless, release it with {release_command(session)}"
    return [quarantine.Fault(f"bad poses: {'; '.join(reasons)}", remedy, sha256_json(evidence))]


def _picture_moves(
    row: Mapping[Hashable, Any], arena: np.ndarray | None, size_px: float, stretches: Sequence[Stretch]
) -> list[bool | None]:
    """A function that tells for stretches of a video if the picture moves in them; it gives None if it cannot look."""
    from dlc_platform.video.frames import find_frames
    from dlc_platform.video.motion import moves

    path = Path(row["path"])
    looks = [np.linspace(start, end - 1, _LOOKS).astype(int).tolist() for start, end in stretches]
    try:
        if path.stat().st_size != row["size_bytes"]:
            return [None] * len(stretches)
        pictures = find_frames(path, sorted({frame for own in looks for frame in own}), bool(row["whole"]))
    except (PlatformError, OSError):
        return [None] * len(stretches)
    left, top, right, bottom = 0, 0, int(row["width"]), int(row["height"])
    if arena is not None:
        (left, top), (right, bottom) = np.maximum(arena.min(axis=0), 0).astype(int), np.ceil(arena.max(axis=0))
    if not np.isfinite(size_px):
        size_px = _SIZE_OF_PICTURE * math.hypot(row["width"], row["height"])
    found: list[bool | None] = []
    for own in looks:
        seen = [
            pictures[frame][top : int(bottom), left : int(right)] for frame in dict.fromkeys(own) if frame in pictures
        ]
        found.append(moves(seen, size_px) if len(seen) > 1 and seen[0].size else None)
    return found


def _course(table: "pd.DataFrame", reference: Reference, cutoff: float) -> Course:
    return Course(course(table, reference, cutoff), limb_lengths(table, reference, cutoff))


def _was_not_looked_at(scores: "pd.DataFrame") -> bool:
    """True if poses stand still and the video was away when they were judged: it may be back now."""
    return bool(((scores["still"] > 0) & scores["still_in_motion"].isna()).any())


def _pose_floors(floors: PoseFloors) -> Floors:
    return Floors(**{name: Limits(**own) for name, own in floors.model_dump().items()})


def _limits(limits: PoseLimits, of_rule: PoseLimits) -> dict[str, Limits]:
    """The limits of lab.yaml; those of a rule come before those for all."""
    general, own = limits.model_dump(), of_rule.model_dump()
    return {
        metric: Limits(**{k: general[metric][k] if v is None else v for k, v in own[metric].items()})
        for metric in general
    }


def _arena(region: Region | None, corners: Sequence[tuple[float, float]] | None) -> np.ndarray | None:
    """The corners of a polygon; None for the whole picture."""
    if corners is None:
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
