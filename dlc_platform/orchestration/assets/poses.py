"""The group `poses`: what the production models see in the sessions, and how good that looks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import quarantine, tables
from dlc_platform.catalog.estimates import pose_estimate, pose_summaries, record_poses
from dlc_platform.catalog.products import making_alone
from dlc_platform.catalog.promotions import production_model
from dlc_platform.catalog.sessions import require_files
from dlc_platform.catalog.videos import damaged_videos, forget_account, registered_video
from dlc_platform.errors import MachineFault, PlatformError, command
from dlc_platform.faults import machine_fault
from dlc_platform.identity import short
from dlc_platform.orchestration.assets.models import GPU_POOL, record_export
from dlc_platform.orchestration.assets.sessions import session_videos
from dlc_platform.orchestration.metadata import gpu_memory, number, picture, table
from dlc_platform.orchestration.outcomes import outcome
from dlc_platform.orchestration.partitions import many_sessions, sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.orchestration.session_checks import for_each_checked_session, session_checks
from dlc_platform.text.words import counted

#: The checks of a session's poses: what each says, and the scores that it looks at.
_CHECKS: Mapping[str, tuple[str, Sequence[str]]] = {
    "a_row_for_each_frame": ("Whether every body part has a row for each frame of its video.", ["rows"]),
    "model": (
        "The model that made the poses can be judged by its own test images, and is not hopeless.",
        ["model_correct", "model_confident", "model_spread", "model_unread"],
    ),
    "likelihood": (
        "The model is sure of most keypoints, and as sure of each body part as it was on its test images.",
        ["mean_likelihood", "fraction_confident", "confident_when_seen"],
    ),
    "missing": ("Each body part has an estimate in most frames.", ["fraction_missing", "fraction_empty"]),
    "movement": (
        "Poses move where the picture does, and no body part is a thing of the background.",
        ["still", "still_in_motion", "background"],
    ),
    "animal": (
        "The frames show an animal: most of its keypoints are confident, or beside confident ones.",
        ["no_animal"],
    ),
    "jumps": (
        "Whether body parts stay within the animal's size from one frame to the next, and individuals where they are.",
        ["jumps", "unsure_jumps", "swaps"],
    ),
    "limb_lengths": ("Whether limbs are as long as the labels say.", ["limb_outliers"]),
    "inside_the_arena": ("Whether body parts are inside the arena, or the picture.", ["outside"]),
    "plausible_poses": (
        "Whether poses look like labelled ones: their reprojection on principal components, and the temporal norm.",
        ["reprojection_px", "temporal_norm_px"],
    ),
}

#: Event rows stay small; `dlc-platform quality` lists them all.
_MOST_SCORES = 100
_SECONDS_BETWEEN_LINES = 5
_SECONDS_OF_SILENCE = 60


@dg.asset(
    partitions_def=sessions,
    deps=[session_videos, dg.AssetKey("production_model")],
    backfill_policy=many_sessions,
    pool=GPU_POOL,
    group_name="poses",
    kinds={"deeplabcut", "parquet"},
    owners=["team:pose-estimation"],
    code_version="1",
    check_specs=session_checks("pose_estimates", {name: text for name, (text, _) in _CHECKS.items()}),
)
@tried_again
def pose_estimates(context: AssetExecutionContext, lab: LabResource) -> Iterator[Any]:
    """The keypoints of every frame of a session's recordings, by the production model that the inference rules name.

    They are judged at once by the limits of lab.yaml, each session by itself.
    """
    from dlc_platform.dlc.inference import PoseEstimator
    from dlc_platform.estimates.quality_gate import Assessment, assess, references
    from dlc_platform.models.judging import judge_version

    # Each model is loaded once for all sessions of the run.
    estimators: dict[tuple[Any, ...], PoseEstimator] = {}

    def estimator(camera: str) -> PoseEstimator | None:
        rule = lab.settings.tracking.rule_for(camera)
        if rule is None:
            return None
        model_id = production_model(lab.engine, rule.project)
        if model_id is None:
            raise PlatformError(
                f"the project {rule.project} has no production model yet",
                f"Train one of its recipes with {command('train', lab.home, 'RECIPE')}",
            )
        key = (model_id, rule.batch_size, rule.precision)
        if key not in estimators:
            judgement = judge_version(lab.engine, lab.store, model_id, lab.settings.model_rules)
            if not judgement.tracks_by_itself:
                context.log.warning(f"the production model {short(model_id)} of {rule.project} is {judgement}")
            estimators[key] = PoseEstimator(
                lab.store.path("models", model_id), lab.store, rule.batch_size, precision=rule.precision
            )
        return estimators[key]

    judged: dict[str, list[Assessment]] = {}
    reference = references(lab.engine, lab.store, lab.settings.model_rules)

    def judge(key: str) -> None:
        judged[key] = assess(lab.engine, lab.store, lab.settings.pose_rules, key, context.run_id, reference)

    def work(key: str) -> Callable[[], Mapping[str, Any]]:
        try:
            metadata = _estimate_session(context, lab, key, estimator)
        except Exception:
            # The poses of its other files may be in force, and are judged like any.
            try:
                judge(key)
            except PlatformError as problem:
                context.log.error(f"{key}: {problem}")
            raise
        judge(key)
        return metadata

    yield from for_each_checked_session(
        context,
        work,
        lambda key: _check_results(judged.get(key, [])),
        outcome=outcome(lab, "poses", context.run_id),
    )


def _estimate_session(
    context: AssetExecutionContext, lab: LabResource, key: str, estimator_of: Callable[[str], Any]
) -> Callable[[], Mapping[str, Any]]:
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.inference import OtherFrames
    from dlc_platform.lab.cropping import video_without_region
    from dlc_platform.pose.table import POSE_TABLE, read_parquet, summarize
    from dlc_platform.sessions.registration import judge, require_there, require_trackable, require_unchanged

    files = require_files(lab.engine, key)
    # The limits of lab.yaml may be others than when the session was registered.
    judge(lab.engine, lab.settings.video_rules, key, context.run_id, files_only=True)
    estimates = []
    #: When the poses of each estimate were made, and by what.
    made: dict[str, str] = {}
    problems = []
    faults: list[MachineFault] = []
    # What is in quarantine holds up no other file of the session.
    held: list[tuple[tables.RecordingFile, str]] = []
    without_rule = []
    for file in files:
        if file.problem is not None or file.video_id is None:
            held.append((file, str(file.problem)))
            continue
        path = Path(file.path)
        try:
            estimator = estimator_of(file.recording.camera)
            if estimator is None:
                without_rule.append(file)
                continue
            require_there(file, lab.settings)
            require_unchanged(file)
            try:
                require_trackable(lab.engine, file, lab.settings.video_rules)
            except PlatformError as fault:
                held.append((file, str(fault)))
                continue
            video = registered_video(lab.engine, file.video_id)
            region = lab.settings.tracking.region_for(key, file.recording.camera)
            remark = video_without_region(
                lab.settings.projects, lab.settings.tracking, key, file.recording.camera, video.width, video.height
            )
            if remark is not None:
                context.log.warning(f"{path.name}: {remark.said}. {remark.remedy}.")
            # Of two runs that want the same poses, the second one waits and then finds them; also on two hosts, which
            # may not know of each other's locks in the store.
            with making_alone(lab.engine, estimator.identity(video.id, region)):
                estimate = estimator.estimate(
                    path,
                    video.id,
                    region,
                    whole=video.damage is None,
                    frames=video.frames,
                    on_progress=_progress(context, key, path.stem),
                )
        except PlatformError as problem:
            if (fault := machine_fault(problem)) is not None:
                faults.append(fault)
                continue
            if isinstance(problem, OtherFrames):
                forget_account(lab.engine, file.video_id)
            # The other cameras of the session are none the worse.
            problems.append(str(problem))
            continue
        lost = estimate.account.lost if estimate.account else 0
        summary = summarize(read_parquet(estimate.path / POSE_TABLE), lab.settings.likelihood_cutoff, lost)
        made[estimate.id] = _made(lab, estimate.id) if estimate.found else "now"
        record_poses(
            lab.engine,
            tables.PoseEstimate(
                id=estimate.id,
                video_id=file.video_id,
                model_id=estimator.model_id,
                origin="computed",
                scorer=estimator.scorer,
                frames=estimate.frames,
                frames_lost=lost,
                parameters=estimator.parameters(region) or None,
                backend=estimate.backend,
                device=estimate.device,
                export_id=estimate.export,
                seconds=estimate.seconds,
                manifest_sha256=lab.store.claim("poses", estimate.id),
                run_id=context.run_id,
            ),
            pose_summaries(estimate.id, summary.to_dict("records")),
            tables.RecordingPoses(recording_file_id=file.id, pose_estimate_id=estimate.id, run_id=context.run_id),
            versions(),
        )
        if estimator.engine is not None and estimator.engine.export is not None:
            record_export(context, lab, estimator.engine.export)
            if not estimator.engine.export.accepted:
                context.log.warning(f"{path.name}: PyTorch is used, for {estimator.engine.export.reason}")
        if estimate.note:
            context.log.warning(f"{path.name}: {estimate.note}")
        if estimate.found:
            context.log.info(f"{key} {path.stem}: these poses were there already, {made[estimate.id]}")
        estimates.append((file, estimate, summary, estimator.model_id))
    if faults:
        # The session is tried again; what is wrong with its other files is said then.
        raise faults[0]
    if not estimates or problems:
        problems += [reason for _, reason in held]
    if problems:
        raise PlatformError(
            f"{len(problems)} of {counted(len(files), 'recording')} cannot be tracked: "
            + "; ".join(problem.rstrip(".") for problem in problems),
            "Then materialise the session again",
        )
    if not estimates:
        cameras = sorted({file.recording.camera for file in without_rule})
        raise PlatformError(
            f"no inference rule is for {'the camera' if len(cameras) == 1 else 'one of the cameras'} "
            f"{', '.join(cameras)} of session {key}",
            "Add a rule under `inference` in lab.yaml",
        )
    for file, reason in held:
        context.log.warning(f"{Path(file.path).name} of {key} is left out: {reason}")
    return partial(_metadata, lab, estimates, made, without_rule, held)


def _progress(context: AssetExecutionContext, key: str, recording: str) -> Callable[[Any], None]:
    """Logs how far the inference is: after the first minute and each tenth, but not more often than it can be read."""
    reported, last = 0, time.monotonic()

    def report(progress: Any) -> None:
        nonlocal reported, last
        tenth, now = 10 * progress.done // max(progress.frames, 1), time.monotonic()
        if (tenth > reported and now - last > _SECONDS_BETWEEN_LINES) or now - last > _SECONDS_OF_SILENCE:
            reported, last = tenth, now
            context.log.info(f"{key} {recording}: {progress}")

    return report


def _metadata(
    lab: LabResource,
    estimates: list[Any],
    made: Mapping[str, str],
    without_rule: list[tables.RecordingFile],
    held: Sequence[tuple[tables.RecordingFile, str]],
) -> Mapping[str, Any]:
    from dlc_platform.dlc.memory import gpu_peak_gb
    from dlc_platform.plots.frames import frames_with_keypoints
    from dlc_platform.plots.poses import likelihoods, trajectories
    from dlc_platform.pose.table import POSE_TABLE, keypoints_at, read_parquet
    from dlc_platform.video.frames import find_frames

    cutoff = lab.settings.likelihood_cutoff
    # One file's pictures tell the story; what the others need is in the store.
    file, estimate, _, _ = estimates[0]
    name = Path(file.path).stem
    region = lab.settings.tracking.region_for(file.recording.session_key, file.recording.camera)
    poses = read_parquet(estimate.path / POSE_TABLE)
    shown = sorted({estimate.frames * step // 7 for step in range(1, 7)})
    whole = file.video_id not in damaged_videos(lab.engine)
    images = [
        (frame, keypoints_at(poses, index), f"frame {index}")
        for index, frame in find_frames(Path(file.path), shown, whole).items()
    ]
    return {
        # Of a damaged video all of these frames may be lost.
        **(
            {"picture_keypoints": picture(frames_with_keypoints(images, cutoff, region=region), f"Keypoints of {name}")}
            if images
            else {}
        ),
        "picture_trajectories": picture(trajectories(poses, cutoff), f"Trajectories of {name}"),
        "picture_likelihood": picture(likelihoods(poses, cutoff), f"Likelihood of {name}"),
        "quality": table(
            [
                {**row, "file": Path(file.path).name}
                for file, _, summary, _ in estimates
                for row in summary.to_dict("records")
            ]
        ),
        "recordings": table(
            [
                _row(file, estimate.frames, short(model_id), made[estimate.id])
                for file, estimate, _, model_id in estimates
            ]
            + [_row(file, 0, "no rule", "") for file in without_rule]
            + [_row(file, 0, "in quarantine", "") for file, _ in held]
        ),
        **(
            {"left_out": table([{"file": Path(file.path).name, "reason": reason} for file, reason in held])}
            if held
            else {}
        ),
        "frames": sum(estimate.frames for _, estimate, _, _ in estimates),
        "seconds": number(sum(estimate.seconds for _, estimate, _, _ in estimates)),
        "frames_lost": sum(estimate.account.lost for _, estimate, _, _ in estimates if estimate.account),
        "backend": ", ".join(sorted({estimate.backend for _, estimate, _, _ in estimates})),
        "batch_size": ", ".join(sorted({str(own.batch_size) for _, own, _, _ in estimates if own.batch_size})),
        **gpu_memory(_declared_gb(lab, estimates), gpu_peak_gb()),
        **_deviation(lab, [estimate.export for _, estimate, _, _ in estimates if estimate.export]),
        "paths": dg.MetadataValue.json(
            {Path(file.path).name: str(estimate.path) for file, estimate, _, _ in estimates}
        ),
    }


def _declared_gb(lab: LabResource, estimates: list[Any]) -> float | None:
    """What the inference rules of some files say that they need of a GPU's memory: the most of them."""
    rules = [lab.settings.tracking.rule_for(file.recording.camera) for file, _, _, _ in estimates]
    return max((rule.gpu_memory_gb for rule in rules if rule and rule.gpu_memory_gb is not None), default=None)


def _deviation(lab: LabResource, exports: list[str]) -> Mapping[str, Any]:
    """How far the exported networks lie from DeepLabCut, by their proofs: in half precision that is what it costs."""
    from dlc_platform.dlc.exports import load_export

    proved = [
        deviation
        for export in exports
        if lab.store.has("exports", export)
        and (deviation := load_export(lab.store.path("exports", export)).deviation_px) is not None
    ]
    return {"backend_deviation_px": number(max(proved))} if proved else {}


def _made(lab: LabResource, pose_estimate_id: str) -> str:
    """When poses that are found in the store were made, and by what."""
    made = pose_estimate(lab.engine, pose_estimate_id)
    if made is None:
        return "made before the catalogue knew of them"
    return f"made on {made.estimated_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC by {short(str(made.model_id))}" + (
        f" in the run {made.run_id}" if made.run_id else ""
    )


def _row(file: tables.RecordingFile, frames: int, model: str, made: str) -> Mapping[str, Any]:
    return {
        "recording": file.recording.name,
        "file": Path(file.path).name,
        "camera": file.recording.camera,
        "frames": frames,
        "model": model,
        "made": made,
    }


@dg.asset(
    partitions_def=sessions,
    deps=[pose_estimates],
    backfill_policy=many_sessions,
    group_name="poses",
    kinds={"postgres"},
    owners=["team:pose-estimation"],
    code_version="1",
    check_specs=session_checks(
        "pose_quality", {"good_enough": "Whether the session is out of quarantine for the quality of its poses."}
    ),
)
@tried_again
def pose_quality(context: AssetExecutionContext, lab: LabResource) -> Iterator[Any]:
    """How good the poses in force of a session look: judged again by lab.yaml as it is now, and shown.

    Where lab.yaml says that bad poses block what is downstream, what depends on this asset does not start in a run that
    has a session in quarantine.
    """
    from dlc_platform.estimates.quality_gate import assess, references

    reference = references(lab.engine, lab.store, lab.settings.model_rules)
    blocking = "downstream" in lab.settings.pose_quality.blocks

    def work(key: str) -> Mapping[str, Any]:
        assessments = assess(lab.engine, lab.store, lab.settings.pose_rules, key, context.run_id, reference)
        if not assessments:
            raise PlatformError(f"session {key} has no poses", "Materialise pose_estimates for it first")
        return _quality_metadata(lab, key, assessments)

    def good_enough(key: str) -> list[dg.AssetCheckResult]:
        faults = quarantine.faults_of(lab.engine, key, "quality")
        description = "; ".join(f"{fault.reason}. {fault.remedy}" for fault in faults)
        return [dg.AssetCheckResult(passed=not faults, check_name="good_enough", description=description)]

    yield from for_each_checked_session(context, work, good_enough, blocking)


def _quality_metadata(lab: LabResource, key: str, assessments: Sequence[Any]) -> Mapping[str, Any]:
    from dlc_platform.estimates.quality_gate import quality_table
    from dlc_platform.plots.poses import quality_plot
    from dlc_platform.pose.scores import course, limb_lengths
    from dlc_platform.pose.table import POSE_TABLE, read_parquet

    cutoff = lab.settings.likelihood_cutoff
    # The worst file's picture tells most.
    shown = max(assessments, key=lambda own: ("pass", "warn", "fail").index(own.verdict))
    poses = read_parquet(lab.store.path("poses", shown.pose_estimate_id) / POSE_TABLE)
    reference = shown.reference.labels
    plot = quality_plot(course(poses, reference, cutoff), limb_lengths(poses, reference, cutoff), cutoff)
    scores = quality_table(lab.engine, key)
    everything = scores[scores["bodypart"] == "all"].set_index("pose_estimate").loc[shown.pose_estimate_id]
    return {
        "picture": picture(plot, f"Quality of {Path(shown.path).stem}"),
        "verdict": max((own.verdict for own in assessments), key=("pass", "warn", "fail").index),
        "model": "; ".join(
            dict.fromkeys(
                str(own.reference.judgement or "unknown: these poses were imported without their model")
                for own in assessments
            )
        ),
        **({"findings": table(findings)} if (findings := _findings(assessments)[:_MOST_SCORES]) else {}),
        "scores": table(
            scores.drop(columns=["session", "model", "pose_estimate", "judged_at", "camera", "by_floors"]).head(
                _MOST_SCORES
            )
        ),
        **{
            name: number(everything[name])
            for name in (
                "fraction_confident",
                "mean_likelihood",
                "jumps",
                "limb_outliers",
                "outside",
                "temporal_norm_px",
            )
            if everything[name] == everything[name]
        },
    }


def _findings(assessments: Sequence[Any], metrics: Sequence[str] | None = None) -> list[Mapping[str, Any]]:
    """The scores beyond their limits, each with what was measured, its limit and where that comes from."""
    return [
        {
            "file": Path(own.path).name,
            "individual": finding.individual,
            "bodypart": finding.bodypart,
            "score": finding.metric,
            "value": finding.value,
            "limit": finding.limit,
            "limit_from": finding.source,
            "level": finding.level,
            "finding": str(finding),
        }
        for own in assessments
        for finding in own.findings
        if metrics is None or finding.metric in metrics
    ]


def _check_results(assessments: Sequence[Any]) -> list[dg.AssetCheckResult]:
    """The checks of one session, over all of its files; of a session without poses there is nothing to check."""
    results = []
    for name, (_, metrics) in _CHECKS.items() if assessments else ():
        own = [(a, finding) for a in assessments for finding in a.findings if finding.metric in metrics]
        failed = any(finding.level == "fail" for _, finding in own)
        rows = _findings(assessments, metrics)
        everything = [a.scores.iloc[-1] for a in assessments]
        values = {
            metric: [row[metric] for row in everything if metric in row and row[metric] == row[metric]]
            for metric in metrics
        }
        results.append(
            dg.AssetCheckResult(
                passed=not own,
                check_name=name,
                severity=dg.AssetCheckSeverity.ERROR if failed else dg.AssetCheckSeverity.WARN,
                description="; ".join(f"{Path(a.path).name}: {finding}" for a, finding in own),
                metadata={
                    **{metric: number(float(sum(own) / len(own))) for metric, own in values.items() if own},
                    **({"findings": table(rows)} if rows else {}),
                },
            )
        )
    return results


pose_assets = [pose_estimates, pose_quality]
