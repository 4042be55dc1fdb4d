"""The group `poses`: the keypoints that the production models find in the sessions, and their quality."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import quarantine, tables
from dlc_platform.catalog.promotions import production_model
from dlc_platform.catalog.videos import registered_video
from dlc_platform.catalog.wanted import untracked_files
from dlc_platform.errors import PlatformError, command
from dlc_platform.identity import short
from dlc_platform.orchestration.assets.models import GPU_POOL
from dlc_platform.orchestration.assets.sessions import session_videos
from dlc_platform.orchestration.metadata import gpu_memory, number, picture, table
from dlc_platform.orchestration.outcomes import outcome
from dlc_platform.orchestration.partitions import many_sessions, sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.orchestration.session_checks import for_each_checked_session, session_checks
from dlc_platform.pose.findings import ALL
from dlc_platform.sessions.layout import root_of
from dlc_platform.sessions.raw_roots import Disks
from dlc_platform.text.assets import POSE_ESTIMATES, POSE_QUALITY, PRODUCTION_MODEL
from dlc_platform.text.words import counted, listed, said_of

if TYPE_CHECKING:
    import pandas as pd

    from dlc_platform.estimates.estimation import SessionEstimates
    from dlc_platform.estimates.quality_gate import Assessment

#: The checks of a session's poses: the statement of each, and the scores that it uses.
_CHECKS: Mapping[str, tuple[str, Sequence[str]]] = {
    "a_row_for_each_frame": ("Every body part has one row for each frame of the video.", ["rows"]),
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
        "From one frame to the next no body part moves farther than the length of the animal, and no individuals swap.",
        ["jumps", "unsure_jumps", "swaps"],
    ),
    "limb_lengths": ("The lengths of limbs are those of the labels.", ["limb_outliers"]),
    "inside_the_arena": ("Body parts are inside the arena, or the picture.", ["outside"]),
    "plausible_poses": (
        "Poses look like labelled ones, by their reprojection on principal components and the temporal norm.",
        ["reprojection_px", "temporal_norm_px"],
    ),
}

#: Event rows stay small; `dlc-platform quality` lists them all.
_MOST_SCORES = 100


@dg.asset(
    partitions_def=sessions,
    deps=[session_videos, dg.AssetKey(PRODUCTION_MODEL)],
    backfill_policy=many_sessions,
    pool=GPU_POOL,
    group_name="poses",
    kinds={"deeplabcut", "parquet"},
    owners=["team:pose-estimation"],
    code_version="1",
    check_specs=session_checks(POSE_ESTIMATES, {name: text for name, (text, _) in _CHECKS.items()}),
)
@tried_again
def pose_estimates(context: AssetExecutionContext, lab: LabResource) -> Iterator[Any]:
    """The keypoints of every frame of a session's recordings, by the production model that the inference rules name.

    They are judged at once by the limits of lab.yaml, each session by itself.
    """
    from dlc_platform.estimates.estimation import EstimationRules, Estimators, estimate_session
    from dlc_platform.pose.table import POSE_TABLE, read_parquet

    settings = lab.settings
    rules = EstimationRules(
        settings.raw_roots,
        settings.layout,
        settings.scan.root_timeout_seconds,
        settings.projects,
        settings.tracking,
        settings.video_rules,
    )
    estimators = Estimators(lab.engine, lab.store, settings.tracking, settings.model_rules, context.log)
    judged: dict[str, list[Assessment]] = {}

    def work(key: str) -> Callable[[], Mapping[str, Any]]:
        try:
            done = estimate_session(lab.engine, lab.store, rules, key, estimators, context.run_id, context.log)
        except Exception:
            # The poses of its other files may be in force, and are judged too.
            try:
                judged[key] = lab.pose_judge.judge(key, context.run_id)
            except PlatformError as problem:
                context.log.error(f"{key}: {problem}")
            raise
        # Of the file whose pictures are shown, read once for both.
        shown = done.estimates[0].estimate
        poses = read_parquet(shown.path / POSE_TABLE)
        judged[key] = lab.pose_judge.judge(key, context.run_id, {shown.id: poses})
        return partial(_metadata, lab, done, poses, judged[key])

    yield from for_each_checked_session(
        context,
        work,
        lambda key: _check_results(judged.get(key, [])),
        outcome=outcome(lab, "poses", context.run_id),
    )


def _metadata(
    lab: LabResource, done: "SessionEstimates", poses: "pd.DataFrame", assessments: "Sequence[Assessment]"
) -> Mapping[str, Any]:
    """The metadata of a session's poses for the UI; `poses` are those of its first file."""
    from dlc_platform.dlc.memory import gpu_peak_gb
    from dlc_platform.plots.frames import frames_with_keypoints
    from dlc_platform.plots.poses import likelihoods, trajectories
    from dlc_platform.pose.table import keypoints_at
    from dlc_platform.video.frames import find_frames

    cutoff = lab.settings.likelihood_cutoff
    estimates = [own.estimate for own in done.estimates]
    # The pictures of one file are enough; those of the others can be made from the store.
    file, estimate = done.estimates[0].file, done.estimates[0].estimate
    name = Path(file.path).stem
    region = lab.settings.tracking.region_for(file.recording.session_key, file.recording.camera)
    lost = estimate.account.lost if estimate.account else 0
    shown = sorted({estimate.frames * step // 7 for step in range(1, 7)})
    whole = registered_video(lab.engine, str(file.video_id)).damage is None
    images = [
        (frame, keypoints_at(poses, index), f"frame {index}")
        for index, frame in find_frames(Path(file.path), shown, whole).items()
    ]
    return {
        # All of these frames of a damaged video may be lost.
        **(
            {"picture_keypoints": picture(frames_with_keypoints(images, cutoff, region=region), f"Keypoints of {name}")}
            if images
            else {}
        ),
        "picture_trajectories": picture(trajectories(poses, cutoff, lost), f"Trajectories of {name}"),
        "picture_likelihood": picture(likelihoods(poses, cutoff, lost), f"Likelihood of {name}"),
        "quality": table(_scores_of_bodyparts(assessments)[:_MOST_SCORES]),
        "recordings": table(
            [_row(own.file, own.estimate.frames, short(own.model_id), own.made) for own in done.estimates]
            + [_row(file, 0, "no rule", "") for file in done.without_rule]
            + [_row(own.file, 0, "in quarantine", "") for own in done.held]
        ),
        **(
            {"left_out": table([{"file": Path(own.file.path).name, "reason": own.reason} for own in done.held])}
            if done.held
            else {}
        ),
        "frames": sum(estimate.frames for estimate in estimates),
        "seconds": number(sum(estimate.seconds for estimate in estimates)),
        "frames_lost": sum(estimate.account.lost for estimate in estimates if estimate.account),
        "backend": ", ".join(sorted({estimate.backend for estimate in estimates})),
        "batch_size": ", ".join(sorted({str(estimate.batch_size) for estimate in estimates if estimate.batch_size})),
        **gpu_memory(_declared_gb(lab, done), gpu_peak_gb()),
        **_deviation(lab, [estimate.export for estimate in estimates if estimate.export]),
        "paths": dg.MetadataValue.json({Path(own.file.path).name: str(own.estimate.path) for own in done.estimates}),
    }


def _scores_of_bodyparts(assessments: "Sequence[Assessment]") -> list[Mapping[str, Any]]:
    """The scores of confidence: a row for each file, individual and body part."""
    columns = ("individual", "bodypart", "rows", "mean_likelihood", "fraction_confident", "fraction_missing")
    return [
        {"file": Path(own.path).name, **{name: row[name] for name in columns}}
        for own in assessments
        for row in own.scores[own.scores["rows"].notna() & (own.scores["bodypart"] != ALL)].to_dict("records")
    ]


def _declared_gb(lab: LabResource, done: "SessionEstimates") -> float | None:
    """The GPU memory in gigabytes that the inference rules of some files ask for: the largest figure."""
    rules = [lab.settings.tracking.rule_for(own.file.recording.camera) for own in done.estimates]
    return max((rule.gpu_memory_gb for rule in rules if rule and rule.gpu_memory_gb is not None), default=None)


def _deviation(lab: LabResource, exports: list[str]) -> Mapping[str, Any]:
    """The largest measured distance of the exported networks from DeepLabCut; in half precision that is its cost."""
    from dlc_platform.dlc.exports import load_export

    proved = [
        deviation
        for export in exports
        if lab.store.has("exports", export)
        and (deviation := load_export(lab.store.path("exports", export)).deviation_px) is not None
    ]
    return {"backend_deviation_px": number(max(proved))} if proved else {}


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
        POSE_QUALITY, {"good_enough": "The session is not in quarantine for the quality of its poses."}
    ),
)
@tried_again
def pose_quality(context: AssetExecutionContext, lab: LabResource) -> Iterator[Any]:
    """The quality of a session's poses in force, judged by the present lab.yaml, with pictures and figures.

    Poses that the same run has made are not judged again. If lab.yaml says that bad poses block `downstream`, assets
    that depend on this one do not start in a run that has a session in quarantine.
    """
    blocking = "downstream" in lab.settings.pose_quality.blocks

    def work(key: str) -> Mapping[str, Any]:
        assessments = lab.pose_judge.judged(key, context.run_id)
        if not assessments:
            raise PlatformError(f"session {key} has no poses", "Materialise pose_estimates for it first")
        return _quality_metadata(lab, key, assessments)

    def good_enough(key: str) -> list[dg.AssetCheckResult]:
        faults = quarantine.faults_of(lab.engine, key, "quality")
        description = "; ".join(f"{fault.reason}. {fault.remedy}" for fault in faults)
        return [dg.AssetCheckResult(passed=not faults, check_name="good_enough", description=description)]

    yield from for_each_checked_session(context, work, good_enough, blocking)


def _quality_metadata(lab: LabResource, key: str, assessments: "Sequence[Assessment]") -> Mapping[str, Any]:
    from dlc_platform.estimates.quality_gate import quality_table, worst_of
    from dlc_platform.plots.poses import quality_plot

    shown = worst_of(assessments)
    course = lab.pose_judge.course(shown)
    plot = quality_plot(course.scores, course.limb_lengths, lab.settings.likelihood_cutoff)
    scores = quality_table(lab.engine, key)
    over_all = (scores["bodypart"] == ALL) & (scores["pose_estimate"] == shown.pose_estimate_id)
    everything = scores[over_all].to_dict("records")[0]  # of one video in two files there are two, which are equal
    return {
        "picture": picture(plot, f"Quality of {Path(shown.path).stem}"),
        "verdict": shown.verdict,
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


def _findings(assessments: "Sequence[Assessment]", metrics: Sequence[str] | None = None) -> list[Mapping[str, Any]]:
    """The scores beyond their limits, each with its value, its limit and the source of the limit."""
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


def _check_results(assessments: "Sequence[Assessment]") -> list[dg.AssetCheckResult]:
    """The checks of one session, over all of its files; a session without poses has none."""
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


def sessions_without_poses(lab: LabResource, say: Callable[[str], None]) -> list[str]:
    """The sessions with a file that lacks poses, that a model may track, and that is there, as its disk is asked.

    For want of a production model a session is left out, and all of a project together are told: it is no fault of
    theirs, and they are tracked once there is one.
    """
    disks = Disks(lab.settings.raw_roots, lab.settings.scan.root_timeout_seconds)
    found: set[str] = set()
    waiting: dict[str, set[str]] = {}
    has_model = cache(lambda project: production_model(lab.engine, project) is not None)
    for key, camera, path in untracked_files(lab.engine):
        rule = lab.settings.tracking.rule_for(camera)
        if key in found or rule is None or root_of(Path(path), lab.settings.raw_roots) is None:
            continue
        if not has_model(rule.project):
            waiting.setdefault(rule.project, set()).add(key)
        elif disks.ask(path, partial(os.path.exists, path), False):
            found.add(key)
    for project, keys in waiting.items():
        say(
            f"  left out: {counted(len(keys), 'session')} ({listed(sorted(keys), 3)}), because the project {project} "
            f"has no production model yet. {command('train', lab.home, 'RECIPE')} makes one"
        )
    for root, reason in disks.silent.items():
        say(f"  left out: {said_of(root, reason)}")
    return sorted(found)


pose_assets = [pose_estimates, pose_quality]
