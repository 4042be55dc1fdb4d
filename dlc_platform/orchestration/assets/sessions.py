"""The group `sessions`: the recordings, and the labels that came from them."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.catalog.sessions import (
    assign_cameras,
    current_files,
    detail_table,
    known_files,
    labelled_sessions,
    record_session_labels,
    registered_sessions,
    session_table,
    unreadable_sessions,
)
from dlc_platform.catalog.videos import registered_video, repeated_videos, video_figures
from dlc_platform.errors import MachineFault, PlatformError
from dlc_platform.faults import machine_fault
from dlc_platform.launchers.dagster_internals import SCHEDULE_NAME_TAG, SENSOR_NAME_TAG
from dlc_platform.orchestration.metadata import number, picture, table
from dlc_platform.orchestration.outcomes import outcome
from dlc_platform.orchestration.partitions import for_each_session, many_sessions, sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.orchestration.session_checks import for_each_checked_session, session_checks
from dlc_platform.sessions import scanning
from dlc_platform.text.assets import SESSION_VIDEOS
from dlc_platform.text.words import counted, said_of

if TYPE_CHECKING:
    from dlc_platform.sessions.registration import Look
    from dlc_platform.sessions.video_checks import Finding

_CHECKS: dict[str, str] = {
    "videos_can_be_read": "Each file of the session opens and has frames that can be decoded.",
    "every_frame_is_there": "Each frame that a file holds or promises can be decoded without errors, from the first "
    "one on, and the header has the right number of frames.",
    "timestamps_are_regular": "No frame was dropped, each has its own plausible time, and the rate is as expected.",
    "neither_black_nor_frozen": "There are pictures, and something changes in them.",
    "exposure_and_focus": "The pictures are as bright and as sharp as lab.yaml says, or as earlier ones of the camera.",
    "no_file_is_a_copy": "No other file holds the same video.",
    "resolution_as_expected": "The pictures have the size that lab.yaml says, or that of earlier ones of the camera.",
}
#: The columns that each check shows for a session's files.
_FIGURES: dict[str, tuple[str, ...]] = {
    "videos_can_be_read": ("size_bytes", "problem"),
    "every_frame_is_there": ("frames", "frames_declared", "frames_left_out", "damage"),
    "timestamps_are_regular": (
        *("dropped", "repeated", "jitter_ms", "longest_gap_s", "variable_frame_rate"),
        *("times_reordered", "times_estimated", "clock_resets"),
    ),
    "neither_black_nor_frozen": ("black_s", "frozen_s"),
    "exposure_and_focus": ("exposure", "fraction_dark", "fraction_bright", "focus"),
    "no_file_is_a_copy": ("size_bytes",),
    "resolution_as_expected": ("width", "height"),
}
#: The most files that a check lists: event rows stay small.
_LISTED = 20


@dg.asset(
    partitions_def=sessions,
    backfill_policy=many_sessions,
    group_name="sessions",
    kinds={"video"},
    owners=["team:acquisition"],
    code_version="1",
    check_specs=session_checks(SESSION_VIDEOS, _CHECKS),
)
@tried_again
def session_videos(context: AssetExecutionContext, lab: LabResource) -> Iterator[Any]:
    """The video files of a recording session: read to the last frame, identified by content, and registered.

    A truncated or damaged file is registered with an account of its frames, if at least one of them can be decoded. The
    rules of lab.yaml decide which files go into quarantine and so are not tracked.
    """
    from dlc_platform.sessions.raw_roots import Disks, why_away
    from dlc_platform.sessions.registration import judge, register
    from dlc_platform.sessions.scanning import find_sessions
    from dlc_platform.sessions.sidecars import Sidecars
    from dlc_platform.sessions.video_checks import copy_of, left_out

    disks = Disks(lab.settings.raw_roots, lab.settings.scan.root_timeout_seconds)
    disks.answering()
    sidecars = Sidecars(lab.settings.raw_roots, disks.silent)
    # A session that a person names is read again; sensor and schedule ask for changed ones.
    anew = not {SENSOR_NAME_TAG, SCHEDULE_NAME_TAG} & set(context.run_tags)
    found = find_sessions(lab.engine, lab.settings, context.partition_keys)
    for line in found.left_out():
        context.log.warning(f"left out: {line}")
    on_disk = {session.key: session for session in found.sessions}
    assign_cameras(lab.engine, lab.settings.tracking.project_of)
    # New cameras come with their sessions.
    assigned: set[str] = set()

    def refused(key: str) -> bool:
        return any(key in skipped.reason for skipped in found.skipped)

    def work(key: str) -> Callable[[], Mapping[str, Any]]:
        if key not in on_disk:
            reasons = [
                said_of(skipped.path, skipped.reason)
                for skipped in found.skipped
                if key in skipped.reason or skipped.path in lab.settings.raw_roots
            ]
            problem = f"no folder below the raw roots holds videos of session {key}"
            scan = lab.settings.scan
            for root in lab.settings.raw_roots:
                if (away := why_away(root, [root], lab.settings.layout, scan.root_timeout_seconds)) is not None:
                    reasons.append(away)
            problem += "".join(f" ({reason})" for reason in dict.fromkeys(reasons))
            remedy = "Bring the folder back, or correct `layout` in lab.yaml"
            # They were seen when the run was asked for: a raw root is away, or was a moment ago.
            raise PlatformError(problem, remedy) if refused(key) else MachineFault(problem, remedy)
        session = on_disk[key]
        looks = register(lab.engine, session, sidecars, anew)
        for look in looks:
            if look.replaced:
                context.log.warning(f"{look.file.path} holds other bytes than before, with the same size and time")
        faults = judge(lab.engine, lab.settings.video_rules, key, context.run_id)
        cameras = {recording.camera for recording in session.recordings}
        if cameras - assigned:
            assign_cameras(lab.engine, lab.settings.tracking.project_of, cameras - assigned)
            assigned.update(cameras)
        problems = {str(look.file.path): look.problem for look in looks if look.problem is not None}
        for fault in faults:
            # A file that cannot be read is a failure of this session, and reported there.
            if fault.path not in problems:
                context.log.warning(f"{key} is in quarantine: {fault.reason}. {fault.remedy}.")
        for row in repeated_videos(lab.engine, key).to_dict("records"):
            context.log.warning(copy_of(row))
        if problems:
            raise PlatformError(
                "; ".join(problem.problem for problem in problems.values()),
                "; ".join(problem.remedy for problem in problems.values()),
            )
        for file in current_files(lab.engine, key):
            video = registered_video(lab.engine, str(file.video_id))
            if video.duplicated_timestamps is None:
                rate = video.frame_rate_numerator / video.frame_rate_denominator
                context.log.warning(f"{file.path} has no timestamps: times are counted at {rate:g} frames per second")

            if video.frames_left_out:
                context.log.warning(f"{file.path} {left_out(video.frames_left_out)}")

        def tell() -> Mapping[str, Any]:
            metadata = _metadata(lab, key, looks)
            if "damage" in metadata and not faults:
                context.log.warning(f"{key}: {metadata['damage'].value}")
            return metadata

        return tell

    yield from for_each_checked_session(context, work, lambda key: _check(lab, key))


def _check(lab: LabResource, key: str) -> Iterable[dg.AssetCheckResult]:
    """The results of the checks of a session's files, question by question."""
    from dlc_platform.sessions.video_checks import copies, findings, unusual

    figures = video_figures(lab.engine, key)
    if not figures:
        # Nothing else is known of a session that was never registered.
        yield dg.AssetCheckResult(
            check_name="videos_can_be_read", passed=False, description="No file of this session is registered."
        )
        return
    found = [
        *findings(lab.settings.video_rules, key, figures),
        *unusual(lab.engine, lab.settings.video_rules, key, figures),
        *copies(lab.engine, key),
    ]
    for name in _CHECKS:
        yield _result(name, figures, [finding for finding in found if finding.question == name])


def _result(name: str, figures: Sequence[Mapping[str, Any]], found: "Sequence[Finding]") -> dg.AssetCheckResult:
    columns = ("recording", "position", *_FIGURES[name])
    not_measured = sum(row["video"] is not None and not row["measured"] for row in figures)
    said = [f"{finding.problem}. {finding.remedy}." for finding in found[:_LISTED]]
    if len(found) > _LISTED:
        said.append(f"And {len(found) - _LISTED} more.")
    if not_measured:
        said.append(
            f"The figures of {counted(not_measured, 'file')} are unknown: an older version registered them without "
            "measuring."
        )
    return dg.AssetCheckResult(
        check_name=name,
        passed=not found,
        severity=dg.AssetCheckSeverity.ERROR if any(finding.fails for finding in found) else dg.AssetCheckSeverity.WARN,
        description=" ".join(said),
        metadata={"files": table([{column: row[column] for column in columns} for row in figures[:_LISTED]])},
    )


def _metadata(lab: LabResource, key: str, looks: "Sequence[Look]") -> Mapping[str, Any]:
    from dlc_platform.plots.frames import labelled_frames
    from dlc_platform.plots.videos import video_timeline
    from dlc_platform.video.frames import find_frames

    recordings = session_table(lab.engine, key)
    details = detail_table(lab.engine, key)
    recordings = recordings[recordings["path"].map(os.path.exists)]
    first = recordings.iloc[0]
    is_damaged = recordings["damage"].notna()
    middle = int(first["frames"]) // 2
    frame = find_frames(Path(first["path"]), [middle], whole=not is_damaged.iloc[0]).get(middle)
    region = lab.settings.tracking.region_for(key, str(first["camera"]))
    title = f"{first['recording']}, the frame in the middle"
    damaged = recordings[is_damaged]
    damage = "; ".join(f"{path} is {what}" for path, what in zip(damaged["path"], damaged["damage"], strict=True))
    # The timeline of one file that was read now is enough; the checks have the figures of all.
    read = next((look for look in looks if look.video is not None), None)
    columns = ["recording", "position", "camera", "width", "height", "frame_rate", "frames", "duration_s"]
    return {
        **({"damage": dg.MetadataValue.text(damage)} if damage else {}),
        # The middle frame of a damaged video may be lost.
        **({} if frame is None else {"picture": picture(labelled_frames([(frame, {})], region=region), title)}),
        **(
            {
                "picture_timeline": picture(
                    video_timeline(read.video.times_s, read.video.quality.timeline),
                    f"Timeline of {read.file.path.stem}",
                )
            }
            if read is not None and read.video is not None
            else {}
        ),
        "recordings": table(
            recordings[
                [
                    *columns,
                    *(["frames_lost", "frames_damaged"] if damage else []),
                    *(["frames_left_out"] if recordings["frames_left_out"].gt(0).any() else []),
                ]
            ]
        ),
        **({} if details.empty else {"details": table(details[["of", "name", "value", "source"]])}),
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
@tried_again
def labeled_frames(context: AssetExecutionContext, lab: LabResource) -> None:
    """The labelled frames that came from a recording session, in every DeepLabCut project of the lab."""
    from dlc_platform.dlc.labels import read_labels
    from dlc_platform.dlc.matching import match_folders
    from dlc_platform.dlc.project import read_project
    from dlc_platform.dlc.samples import labelled_samples
    from dlc_platform.plots.frames import labelled_frames

    labels = {}
    matches = {}
    problems = {}
    fault: MachineFault | None = None
    for name, entry in lab.settings.projects.items():
        try:
            project = read_project(entry.path)
            labels[name] = read_labels(project)
            for remark in labels[name].remarks:
                context.log.warning(f"the project {name}: {remark.said}. {remark.remedy}.")
        except PlatformError as problem:
            # The labels of the other projects are counted; those of this one when it is mended.
            fault = fault or machine_fault(problem)
            problems[f"problem_{name}"] = str(problem)
            context.log.warning(f"the labels of the project {name} are left out: {problem}")
            continue
        matches[name] = match_folders(project, labels[name].folders(), known_files(lab.engine))
    if not labels and fault is not None:
        raise fault
    if not labels:
        raise dg.Failure("; ".join(problems.values()), allow_retries=False)

    def work(key: str) -> Mapping[str, Any]:
        folders = {name: [f for f, file in own.items() if file.session == key] for name, own in matches.items()}
        counts = {name: int(labels[name].images["folder"].isin(own).sum()) for name, own in folders.items()}
        record_session_labels(lab.engine, key, counts)
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


def unregistered_sessions(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    on_disk = [session for session in lab.scan().sessions if session.waits is None]
    unreadable = unreadable_sessions(lab.engine) & {session.key for session in on_disk}
    return sorted({*scanning.unregistered(lab.engine, on_disk), *unreadable})


def sessions_without_labels(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    return sorted(registered_sessions(lab.engine) - labelled_sessions(lab.engine, lab.settings.projects))


session_assets = [session_videos, labeled_frames]
