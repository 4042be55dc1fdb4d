"""The group `sessions`: what was recorded, and what of it was labelled."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog import queries, registry
from dlc_platform.errors import PlatformError
from dlc_platform.orchestration.metadata import number, picture, table
from dlc_platform.orchestration.outcomes import outcome
from dlc_platform.orchestration.partitions import for_each_session, many_sessions, sessions
from dlc_platform.orchestration.resources import LabResource


@dg.asset(
    partitions_def=sessions,
    backfill_policy=many_sessions,
    group_name="sessions",
    kinds={"video"},
    owners=["team:acquisition"],
    code_version="1",
)
def session_videos(context: AssetExecutionContext, lab: LabResource) -> None:
    """The video files of a recording session: read to the last frame, identified by content, and registered.

    A truncated or damaged one is registered with an account of its frames, as long as one of them can be decoded.
    """
    from dlc_platform.ingest import register
    from dlc_platform.scanning import find_sessions

    found = find_sessions(lab.engine, lab.settings, context.partition_keys)
    for line in found.left_out():
        context.log.warning(f"left out: {line}")
    on_disk = {session.key: session for session in found.sessions}

    def work(key: str) -> Mapping[str, Any]:
        if key not in on_disk:
            reasons = [f"{skipped.path}: {skipped.reason}" for skipped in found.skipped if key in skipped.reason]
            raise PlatformError(
                f"no folder below the raw roots holds videos of session {key}" + "".join(f" ({r})" for r in reasons),
                "Bring the folder back, or correct `layout` in lab.yaml",
            )
        session = on_disk[key]
        looks = register(lab.engine, session)
        registry.assign_cameras(lab.engine, lab.settings.project_of)
        for row in queries.repeated_videos(lab.engine, key).to_dict("records"):
            context.log.warning(
                f"{row['path']} is the very video that {row['other_path']} of {row['other_session']} is; its poses are "
                "estimated once and count for both"
            )
        problems = [look.problem for look in looks if look.problem is not None]
        if problems:
            raise PlatformError(
                "; ".join(problem.problem for problem in problems), "; ".join(problem.remedy for problem in problems)
            )
        for file in registry.current_files(lab.engine, key):
            video = registry.video(lab.engine, str(file.video_id))
            if video.duplicated_timestamps is None:
                rate = video.frame_rate_numerator / video.frame_rate_denominator
                context.log.warning(f"{file.path} has no timestamps: times are counted at {rate:g} frames per second")
        metadata = _metadata(lab, key)
        if "damage" in metadata:
            context.log.warning(f"{key}: {metadata['damage'].value}")
        return metadata

    for_each_session(context, work)


def _metadata(lab: LabResource, key: str) -> Mapping[str, Any]:
    from dlc_platform.pose.pictures import labelled_frames
    from dlc_platform.video.frames import find_frames

    recordings = queries.sessions(lab.engine, key)
    recordings = recordings[recordings["path"].map(os.path.exists)]
    first = recordings.iloc[0]
    is_damaged = recordings["damage"].notna()
    middle = int(first["frames"]) // 2
    frame = find_frames(Path(first["path"]), [middle], whole=not is_damaged.iloc[0]).get(middle)
    region = lab.settings.region_for(key, str(first["camera"]))
    title = f"{first['recording']}, the frame in the middle"
    damaged = recordings[is_damaged]
    damage = "; ".join(f"{path} is {what}" for path, what in zip(damaged["path"], damaged["damage"], strict=True))
    columns = ["recording", "position", "camera", "width", "height", "frame_rate", "frames", "duration_s"]
    return {
        **({"damage": dg.MetadataValue.text(damage)} if damage else {}),
        # Of a damaged video the middle frame may be lost.
        **({} if frame is None else {"picture": picture(labelled_frames([(frame, {})], region=region), title)}),
        "recordings": table(recordings[columns + (["frames_lost", "frames_damaged"] if damage else [])]),
        "frames": int(recordings["frames"].sum()),
        "duration_s": number(recordings["duration_s"].sum()),
        "paths": dg.MetadataValue.json({str(name): list(own) for name, own in recordings.groupby("recording")["path"]}),
    }


@dg.asset(
    partitions_def=sessions,
    deps=[session_videos],
    backfill_policy=many_sessions,
    group_name="sessions",
    kinds={"deeplabcut"},
    owners=["team:acquisition"],
    code_version="1",
)
def labeled_frames(context: AssetExecutionContext, lab: LabResource) -> None:
    """The labelled frames that came from a recording session, in every DeepLabCut project of the lab."""
    from dlc_platform.dlc.labels import read_labels
    from dlc_platform.dlc.matching import match_folders
    from dlc_platform.dlc.project import read_project
    from dlc_platform.dlc.samples import labelled_samples
    from dlc_platform.pose.pictures import labelled_frames

    labels = {}
    matches = {}
    problems = {}
    for name, entry in lab.settings.projects.items():
        try:
            project = read_project(entry.path)
            labels[name] = read_labels(project)
        except PlatformError as problem:
            # The labels of the other projects are none the worse; this one's are counted when it is mended.
            problems[f"problem_{name}"] = str(problem)
            context.log.warning(f"the labels of the project {name} are left out: {problem}")
            continue
        matches[name] = match_folders(project, labels[name].folders(), registry.known_files(lab.engine))
    if not labels:
        raise dg.Failure("; ".join(problems.values()), allow_retries=False)

    def work(key: str) -> Mapping[str, Any]:
        folders = {name: [f for f, file in own.items() if file.session == key] for name, own in matches.items()}
        counts = {name: int(labels[name].images["folder"].isin(own).sum()) for name, own in folders.items()}
        registry.record_session_labels(lab.engine, key, counts)
        pictures = {
            f"picture_{name}": picture(
                labelled_frames(labelled_samples(labels[name], 6, own)),
                f"Labelled frames of {key} in the project {name}",
            )
            for name, own in folders.items()
            if own
        }
        return {
            **problems,
            **pictures,
            "labelled_frames": sum(counts.values()),
            "projects": table([{"project": name, "images": count} for name, count in counts.items()]),
        }

    for_each_session(context, work, outcome(lab, "labels", context.run_id))


session_assets = [session_videos, labeled_frames]
