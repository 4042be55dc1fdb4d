"""The group `poses`: what the production models see in the sessions."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import registry, tables
from dlc_platform.errors import PlatformError
from dlc_platform.identity import short
from dlc_platform.orchestration.assets.models import GPU_POOL, record_export
from dlc_platform.orchestration.assets.sessions import session_videos
from dlc_platform.orchestration.metadata import number, picture, table
from dlc_platform.orchestration.outcomes import outcome
from dlc_platform.orchestration.partitions import for_each_session, many_sessions, sessions
from dlc_platform.orchestration.resources import LabResource

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
)
def pose_estimates(context: AssetExecutionContext, lab: LabResource) -> None:
    """The keypoints of every frame of a session's recordings, by the production model that the inference rules name."""
    from dlc_platform.dlc.inference import PoseEstimator

    # Each model is loaded once for all sessions of the run.
    estimators: dict[tuple[Any, ...], PoseEstimator] = {}

    def estimator(camera: str) -> PoseEstimator | None:
        rule = lab.settings.rule_for(camera)
        if rule is None:
            return None
        model_id = registry.production_model(lab.engine, rule.project)
        if model_id is None:
            raise PlatformError(
                f"the project {rule.project} has no production model yet",
                "Train and evaluate one of its recipes and materialise production_model",
            )
        key = (model_id, rule.batch_size, rule.precision)
        if key not in estimators:
            estimators[key] = PoseEstimator(
                lab.store.path("models", model_id), lab.store, rule.batch_size, precision=rule.precision
            )
        return estimators[key]

    for_each_session(
        context,
        lambda key: _estimate_session(context, lab, key, estimator),
        outcome(lab, "poses", context.run_id),
    )


def _estimate_session(
    context: AssetExecutionContext, lab: LabResource, key: str, estimator_of: Callable[[str], Any]
) -> Mapping[str, Any]:
    from dlc_platform.dlc.environment import versions
    from dlc_platform.dlc.inference import OtherFrames
    from dlc_platform.ingest import require_trackable, require_unchanged
    from dlc_platform.pose.table import POSE_TABLE, read_parquet, summarize

    files = registry.current_files(lab.engine, key)
    if not files:
        raise PlatformError(f"session {key} is not registered", "Materialise session_videos for it first")
    estimates = []
    problems = []
    without_rule = []
    for file in files:
        if file.problem is not None or file.video_id is None:
            problems.append(str(file.problem))
            continue
        path = Path(file.path)
        try:
            estimator = estimator_of(file.recording.camera)
            if estimator is None:
                without_rule.append(file)
                continue
            require_unchanged(file)
            require_trackable(lab.engine, file, lab.settings.damaged_videos)
            video = registry.video(lab.engine, file.video_id)
            region = lab.settings.region_for(key, file.recording.camera)
            # Of two runs that want the same poses, the second one waits and then finds them; also on two hosts, which
            # may not know of each other's locks in the store.
            with registry.alone(lab.engine, estimator.identity(video.id, region)):
                estimate = estimator.estimate(
                    path,
                    video.id,
                    region,
                    whole=video.damage is None,
                    frames=video.frames,
                    on_progress=_progress(context, key, path.stem),
                )
        except PlatformError as problem:
            if isinstance(problem, OtherFrames):
                registry.forget_account(lab.engine, file.video_id)
            # The other cameras of the session are none the worse.
            problems.append(str(problem))
            continue
        summary = summarize(read_parquet(estimate.path / POSE_TABLE), lab.settings.likelihood_cutoff)
        registry.record_poses(
            lab.engine,
            tables.PoseEstimate(
                id=estimate.id,
                video_id=file.video_id,
                model_id=estimator.model_id,
                origin="computed",
                scorer=estimator.scorer,
                frames=estimate.frames,
                frames_lost=estimate.account.lost if estimate.account else 0,
                parameters=estimator.parameters(region) or None,
                backend=estimate.backend,
                device=estimate.device,
                export_id=estimate.export,
                seconds=estimate.seconds,
                manifest_sha256=lab.store.claim("poses", estimate.id),
                run_id=context.run_id,
            ),
            registry.pose_summaries(estimate.id, summary.to_dict("records")),
            tables.RecordingPoses(recording_file_id=file.id, pose_estimate_id=estimate.id, run_id=context.run_id),
            versions(),
        )
        if estimator.engine is not None and estimator.engine.export is not None:
            record_export(context, lab, estimator.engine.export)
            if not estimator.engine.export.accepted:
                context.log.warning(f"{path.name}: PyTorch is used, for {estimator.engine.export.reason}")
        if estimate.note:
            context.log.warning(f"{path.name}: {estimate.note}")
        estimates.append((file, estimate, summary, estimator.model_id))
    if problems:
        raise PlatformError(
            f"{len(problems)} of {len(files)} recordings cannot be tracked: "
            + "; ".join(problem.rstrip(".") for problem in problems),
            "Then materialise the session again",
        )
    if not estimates:
        cameras = ", ".join(sorted({file.recording.camera for file in without_rule}))
        raise PlatformError(
            f"no inference rule names the camera(s) {cameras} of session {key}",
            "Add a rule under `inference` in lab.yaml",
        )
    return _metadata(lab, estimates, without_rule)


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


def _metadata(lab: LabResource, estimates: list[Any], without_rule: list[tables.RecordingFile]) -> Mapping[str, Any]:
    from dlc_platform.pose.pictures import frames_with_keypoints, likelihoods, trajectories
    from dlc_platform.pose.table import POSE_TABLE, keypoints_at, read_parquet
    from dlc_platform.video.frames import find_frames

    cutoff = lab.settings.likelihood_cutoff
    # One file's pictures tell the story; what the others need is in the store.
    file, estimate, _, _ = estimates[0]
    name = Path(file.path).stem
    region = lab.settings.region_for(file.recording.session_key, file.recording.camera)
    poses = read_parquet(estimate.path / POSE_TABLE)
    shown = sorted({estimate.frames * step // 7 for step in range(1, 7)})
    whole = file.video_id not in registry.damaged_videos(lab.engine)
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
            [_row(file, frames=estimate.frames, model=short(model_id)) for file, estimate, _, model_id in estimates]
            + [_row(file, frames=0, model="no rule") for file in without_rule]
        ),
        "frames": sum(estimate.frames for _, estimate, _, _ in estimates),
        "seconds": number(sum(estimate.seconds for _, estimate, _, _ in estimates)),
        "frames_lost": sum(estimate.account.lost for _, estimate, _, _ in estimates if estimate.account),
        "backend": ", ".join(sorted({estimate.backend for _, estimate, _, _ in estimates})),
        **_deviation(lab, [estimate.export for _, estimate, _, _ in estimates if estimate.export]),
        "paths": dg.MetadataValue.json(
            {Path(file.path).name: str(estimate.path) for file, estimate, _, _ in estimates}
        ),
    }


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


def _row(file: tables.RecordingFile, frames: int, model: str) -> Mapping[str, Any]:
    return {
        "recording": file.recording.name,
        "file": Path(file.path).name,
        "camera": file.recording.camera,
        "frames": frames,
        "model": model,
    }
