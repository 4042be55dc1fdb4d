"""The estimation of a session's poses, file by file, with the production models that the inference rules name."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from logging import Logger
from pathlib import Path

from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.estimates import pose_estimate, record_poses
from dlc_platform.catalog.products import making_alone
from dlc_platform.catalog.promotions import production_model
from dlc_platform.catalog.sessions import require_files
from dlc_platform.catalog.videos import forget_account, registered_video
from dlc_platform.dlc.chunks import Progress
from dlc_platform.dlc.environment import versions
from dlc_platform.dlc.inference import OtherFrames, PoseEstimate, PoseEstimator
from dlc_platform.errors import MachineFault, PlatformError, command
from dlc_platform.faults import machine_fault
from dlc_platform.identity import short
from dlc_platform.models.exports import keep_export
from dlc_platform.models.judging import judge_version
from dlc_platform.sessions.cropping import video_without_region
from dlc_platform.sessions.registration import judge, require_there, require_trackable, require_unchanged
from dlc_platform.settings.inference import Tracking
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.promotion import ModelRules
from dlc_platform.settings.quality import VideoRules
from dlc_platform.settings.recipes import ProjectEntry
from dlc_platform.store import Store
from dlc_platform.text.words import counted

_SECONDS_BETWEEN_LINES = 5
_SECONDS_OF_SILENCE = 60


@dataclass(frozen=True)
class EstimationRules:
    """The parts of lab.yaml that decide whether and how the files of a session are tracked.

    Attributes
    ----------
    root_seconds
        The seconds that a raw root may take to answer.
    """

    raw_roots: Sequence[Path]
    layout: Layout
    root_seconds: float
    projects: Mapping[str, ProjectEntry]
    tracking: Tracking
    videos: VideoRules


@dataclass(frozen=True, eq=False)
class FileEstimate:
    """The poses of one file; `made` says when and by what they were made."""

    file: tables.RecordingFile
    estimate: PoseEstimate
    model_id: str
    made: str


@dataclass(frozen=True)
class HeldFile:
    """A file that is not tracked because it is in quarantine or cannot be read."""

    file: tables.RecordingFile
    reason: str


@dataclass(frozen=True)
class SessionEstimates:
    """The results for the files of a session; files `without_rule` are of cameras that no inference rule names."""

    estimates: list[FileEstimate]
    without_rule: list[tables.RecordingFile]
    held: list[HeldFile]


class Estimators:
    """The production models that lab.yaml names for cameras; each is loaded once for many sessions."""

    def __init__(self, engine: Engine, store: Store, tracking: Tracking, rules: ModelRules, log: Logger):
        self._engine = engine
        self._store = store
        self._tracking = tracking
        self._rules = rules
        self._log = log
        self._loaded: dict[tuple[str, int | None, str], PoseEstimator] = {}

    def for_camera(self, camera: str) -> PoseEstimator | None:
        """The estimator of a camera; None if no inference rule names it.

        Raises
        ------
        PlatformError
            When the project of the rule has no production model.
        """
        rule = self._tracking.rule_for(camera)
        if rule is None:
            return None
        model_id = production_model(self._engine, rule.project)
        if model_id is None:
            raise PlatformError(
                f"the project {rule.project} has no production model yet",
                f"Train one of its recipes with {command('train', 'HOME', 'RECIPE')}",
            )
        key = (model_id, rule.batch_size, rule.precision)
        if key not in self._loaded:
            judgement = judge_version(self._engine, self._store, model_id, self._rules)
            if not judgement.tracks_by_itself:
                self._log.warning(f"the production model {short(model_id)} of {rule.project} is {judgement}")
            self._loaded[key] = PoseEstimator(
                self._store.path("models", model_id), self._store, rule.batch_size, precision=rule.precision
            )
        return self._loaded[key]


def estimate_session(
    engine: Engine,
    store: Store,
    rules: EstimationRules,
    session: str,
    estimators: Estimators,
    run_id: str | None,
    log: Logger,
) -> SessionEstimates:
    """Estimate the poses of each file of a session that may be tracked, and put them in force.

    A file that is in quarantine or cannot be tracked does not hold up the others.

    Raises
    ------
    PlatformError
        When a file outside quarantine cannot be tracked, or no file can; the other files have their poses by then.
    MachineFault
        When a file cannot be tracked because of the machine: the session is tried again.
    """
    files = require_files(engine, session)
    # The limits of lab.yaml may have changed since the session was registered.
    judge(engine, rules.videos, session, run_id, files_only=True)
    estimates: list[FileEstimate] = []
    held: list[HeldFile] = []
    without_rule: list[tables.RecordingFile] = []
    problems: list[str] = []
    faults: list[MachineFault] = []
    for file in files:
        if file.problem is not None or file.video_id is None:
            held.append(HeldFile(file, str(file.problem)))
            continue
        try:
            estimator = estimators.for_camera(file.recording.camera)
            if estimator is None:
                without_rule.append(file)
                continue
            require_there(file, rules.raw_roots, rules.layout, rules.root_seconds)
            require_unchanged(file)
            try:
                require_trackable(engine, file, rules.videos)
            except PlatformError as fault:
                held.append(HeldFile(file, str(fault)))
                continue
            estimate = _estimate(engine, rules, session, file, file.video_id, estimator, log)
        except PlatformError as problem:
            if (fault := machine_fault(problem)) is not None:
                faults.append(fault)
                continue
            if isinstance(problem, OtherFrames):
                forget_account(engine, file.video_id)
            problems.append(str(problem))
            continue
        estimates.append(_keep(engine, store, rules, file, file.video_id, estimator, estimate, run_id, log))
    if faults:
        # The session is tried again; faults of its other files are reported then.
        raise faults[0]
    if not estimates or problems:
        problems += [own.reason for own in held]
    if problems:
        raise PlatformError(
            f"{len(problems)} of {counted(len(files), 'recording')} cannot be tracked: "
            + "; ".join(problem.rstrip(".") for problem in problems),
            "Do what it says for each recording, and materialise the session again",
        )
    if not estimates:
        cameras = sorted({file.recording.camera for file in without_rule})
        raise PlatformError(
            f"no inference rule is for {'the camera' if len(cameras) == 1 else 'one of the cameras'} "
            f"{', '.join(cameras)} of session {session}",
            "Add a rule under `inference` in lab.yaml",
        )
    for own in held:
        log.warning(f"{Path(own.file.path).name} of {session} is left out: {own.reason}")
    return SessionEstimates(estimates, without_rule, held)


def _estimate(
    engine: Engine,
    rules: EstimationRules,
    session: str,
    file: tables.RecordingFile,
    video_id: str,
    estimator: PoseEstimator,
    log: Logger,
) -> PoseEstimate:
    path, camera = Path(file.path), file.recording.camera
    video = registered_video(engine, video_id)
    region = rules.tracking.region_for(session, camera)
    remark = video_without_region(rules.projects, rules.tracking, session, camera, video.width, video.height)
    if remark is not None:
        log.warning(f"{path.name}: {remark.said}. {remark.remedy}.")
    # If two runs want the same poses, the second one waits and then finds them. This also holds for two hosts, which
    # may not know of each other's locks in the store.
    with making_alone(engine, estimator.identity(video.id, region)):
        return estimator.estimate(
            path,
            video.id,
            region,
            whole=video.damage is None,
            frames=video.frames,
            on_progress=_progress(log, session, path.stem),
        )


def _keep(
    engine: Engine,
    store: Store,
    rules: EstimationRules,
    file: tables.RecordingFile,
    video_id: str,
    estimator: PoseEstimator,
    estimate: PoseEstimate,
    run_id: str | None,
    log: Logger,
) -> FileEstimate:
    """Put the poses of a file in force in the catalogue."""
    path, session = Path(file.path), file.recording.session_key
    lost = estimate.account.lost if estimate.account else 0
    made = _made(engine, estimate.id) if estimate.found else "now"
    record_poses(
        engine,
        tables.PoseEstimate(
            id=estimate.id,
            video_id=video_id,
            model_id=estimator.model_id,
            origin="computed",
            scorer=estimator.scorer,
            frames=estimate.frames,
            frames_lost=lost,
            parameters=estimator.parameters(rules.tracking.region_for(session, file.recording.camera)) or None,
            backend=estimate.backend,
            device=estimate.device,
            export_id=estimate.export,
            seconds=estimate.seconds,
            manifest_sha256=store.claim("poses", estimate.id),
            run_id=run_id,
        ),
        tables.RecordingPoses(recording_file_id=file.id, pose_estimate_id=estimate.id, run_id=run_id),
        versions(),
    )
    if estimator.engine is not None and (export := estimator.engine.export) is not None:
        keep_export(engine, store, export, run_id)
        if not export.accepted:
            log.warning(f"{path.name}: PyTorch is used, because {export.reason}")
    if estimate.note:
        log.warning(f"{path.name}: {estimate.note}")
    if estimate.found:
        log.info(f"{session} {path.stem}: these poses exist already, {made}")
    return FileEstimate(file, estimate, estimator.model_id, made)


def _made(engine: Engine, pose_estimate_id: str) -> str:
    """The origin of poses that are found in the store, in words: when and by what they were made."""
    made = pose_estimate(engine, pose_estimate_id)
    if made is None:
        return "made before the catalogue knew of them"
    return f"made on {made.estimated_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC by {short(str(made.model_id))}" + (
        f" in the run {made.run_id}" if made.run_id else ""
    )


def _progress(log: Logger, session: str, recording: str) -> Callable[[Progress], None]:
    """A function that logs the progress of the inference: after the first minute and at each tenth, but not too
    often."""
    reported, last = 0, time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal reported, last
        tenth, now = 10 * progress.done // max(progress.frames, 1), time.monotonic()
        if (tenth > reported and now - last > _SECONDS_BETWEEN_LINES) or now - last > _SECONDS_OF_SILENCE:
            reported, last = tenth, now
            log.info(f"{session} {recording}: {progress}")

    return report
