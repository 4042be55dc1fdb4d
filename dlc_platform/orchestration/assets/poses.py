"""The group `poses`: what the production models see in the sessions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import registry, tables
from dlc_platform.errors import PlatformError
from dlc_platform.identity import short
from dlc_platform.orchestration.assets.models import GPU_POOL
from dlc_platform.orchestration.assets.sessions import session_videos
from dlc_platform.orchestration.metadata import number, picture, table
from dlc_platform.orchestration.partitions import for_each_session, many_sessions, sessions
from dlc_platform.orchestration.resources import LabResource


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

    estimators: dict[tuple[str, int], PoseEstimator] = {}

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
        key = (model_id, rule.batch_size)
        if key not in estimators:
            estimators[key] = PoseEstimator(lab.store.path("models", model_id), batch_size=rule.batch_size)
        return estimators[key]

    for_each_session(context, lambda key: _estimate_session(context, lab, key, estimator))


def _estimate_session(context: AssetExecutionContext, lab: LabResource, key: str, estimator: Any) -> Mapping[str, Any]:
    from dlc_platform.dlc.environment import versions
    from dlc_platform.ingest import require_unchanged
    from dlc_platform.pose.table import POSE_TABLE, read_parquet, summarize

    recordings = registry.current_recordings(lab.engine, key)
    if not recordings:
        raise PlatformError(f"session {key} is not registered", "Materialise session_videos for it first")
    estimates = []
    problems = []
    without_rule = []
    for recording in recordings:
        if recording.problem is not None or recording.video_id is None:
            problems.append(str(recording.problem))
            continue
        network = estimator(recording.camera)
        if network is None:
            without_rule.append(recording)
            continue
        try:
            require_unchanged(recording)
            estimate = network.estimate(
                Path(recording.path), recording.video_id, lab.store, on_progress=_progress(context, key, recording.name)
            )
        except PlatformError as problem:
            # The other cameras of the session are none the worse.
            problems.append(str(problem))
            continue
        summary = summarize(read_parquet(estimate.path / POSE_TABLE), lab.settings.likelihood_cutoff)
        registry.record_poses(
            lab.engine,
            tables.PoseEstimate(
                id=estimate.id,
                video_id=recording.video_id,
                model_id=network.model_id,
                frames=estimate.frames,
                seconds=estimate.seconds,
                run_id=context.run_id,
            ),
            [
                tables.PoseSummary(
                    pose_estimate_id=estimate.id,
                    bodypart=row["bodypart"],
                    mean_likelihood=row["mean_likelihood"]
                    if row["mean_likelihood"] == row["mean_likelihood"]
                    else None,
                    fraction_confident=row["fraction_confident"],
                    fraction_missing=row["fraction_missing"],
                )
                for row in summary.to_dict("records")
            ],
            tables.RecordingPoses(recording_id=recording.id, pose_estimate_id=estimate.id, run_id=context.run_id),
            versions(),
        )
        estimates.append((recording, estimate, summary, network.model_id))
    if problems:
        raise PlatformError(
            f"{len(problems)} of {len(recordings)} recordings cannot be tracked: "
            + "; ".join(problem.rstrip(".") for problem in problems),
            "Then materialise the session again",
        )
    if not estimates:
        cameras = ", ".join(sorted({recording.camera for recording in without_rule}))
        raise PlatformError(
            f"no inference rule names the camera(s) {cameras} of session {key}",
            "Add a rule under `inference` in lab.yaml",
        )
    return _metadata(lab, estimates, without_rule)


def _progress(context: AssetExecutionContext, key: str, recording: str):
    reported = 0

    def report(frame: int, frames: int) -> None:
        nonlocal reported
        tenth = 10 * frame // max(frames, 1)
        if tenth > reported:
            reported = tenth
            context.log.info(f"{key} {recording}: frame {frame} of {frames}")

    return report


def _metadata(lab: LabResource, estimates: list[Any], without_rule: list[tables.Recording]) -> Mapping[str, Any]:
    from dlc_platform.pose.pictures import frames_with_keypoints, likelihoods, trajectories
    from dlc_platform.pose.table import POSE_TABLE, keypoints_at, read_parquet
    from dlc_platform.video.frames import read_frames

    cutoff = lab.settings.likelihood_cutoff
    # One recording's pictures tell the story; what the others need is in the store.
    recording, estimate, _, _ = estimates[0]
    poses = read_parquet(estimate.path / POSE_TABLE)
    shown = sorted({estimate.frames * step // 7 for step in range(1, 7)})
    images = [
        (frame, keypoints_at(poses, index), f"frame {index}")
        for index, frame in zip(shown, read_frames(Path(recording.path), shown), strict=True)
    ]
    return {
        "picture_keypoints": picture(frames_with_keypoints(images, cutoff), f"Keypoints of {recording.name}"),
        "picture_trajectories": picture(trajectories(poses, cutoff), f"Trajectories of {recording.name}"),
        "picture_likelihood": picture(likelihoods(poses, cutoff), f"Likelihood of {recording.name}"),
        "quality": table(
            [
                {**row, "recording": recording.name}
                for recording, _, summary, _ in estimates
                for row in summary.to_dict("records")
            ]
        ),
        "recordings": table(
            [
                {
                    "recording": recording.name,
                    "camera": recording.camera,
                    "frames": estimate.frames,
                    "model": short(model_id),
                }
                for recording, estimate, _, model_id in estimates
            ]
            + [
                {"recording": recording.name, "camera": recording.camera, "frames": 0, "model": "no rule"}
                for recording in without_rule
            ]
        ),
        "frames": sum(estimate.frames for _, estimate, _, _ in estimates),
        "seconds": number(sum(estimate.seconds for _, estimate, _, _ in estimates)),
        "paths": dg.MetadataValue.json({recording.name: str(estimate.path) for recording, estimate, _, _ in estimates}),
    }
