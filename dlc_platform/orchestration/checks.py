"""Asset checks: facts that the UI shows in red or yellow beside an asset, read from the catalogue.

A check reads the catalogue and computes nothing; a person, or a rule of lab.yaml, decides what to do about it.
"""

from typing import TYPE_CHECKING

import dagster as dg

from dlc_platform.catalog.estimates import incomplete_poses, poses_to_time
from dlc_platform.catalog.videos import damaged_recordings
from dlc_platform.errors import in_this_lab
from dlc_platform.estimates.other_rules import OTHER_RULES, poses_of_other_rules
from dlc_platform.orchestration.assets.poses import pose_estimates
from dlc_platform.orchestration.assets.production import STALENESS_CHECK, production_model, staleness
from dlc_platform.orchestration.assets.sessions import session_videos
from dlc_platform.orchestration.metadata import table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.text.words import counted

if TYPE_CHECKING:
    import pandas as pd

#: The most files that a check's sentence names, and that its table lists: event rows stay small.
_NAMED = 5
_LISTED = 100


# After a promotion in the same run, not before it.
@dg.asset_check(asset=pose_estimates, name=STALENESS_CHECK, additional_deps=[production_model])
def made_by_production_models(lab: LabResource) -> dg.AssetCheckResult:
    """The current poses of every session were made by the production model of their camera's project.

    Imported poses were chosen by a person and count as current.
    """
    return dg.AssetCheckResult(**staleness(lab))


@dg.asset_check(asset=session_videos)
def recordings_are_whole(lab: LabResource) -> dg.AssetCheckResult:
    """Every frame of every registered recording can be decoded without errors.

    The rule `damaged_videos` of lab.yaml says what happens to a damaged one.
    """
    damaged = damaged_recordings(lab.engine)
    columns = ["session", "recording", "path", "damage"]
    return _account(damaged, columns, "are truncated or damaged")


@dg.asset_check(asset=pose_estimates)
def every_frame_is_accounted_for(lab: LabResource) -> dg.AssetCheckResult:
    """The current poses have a row for each frame that was recorded, and each of these frames could be decoded."""
    incomplete = incomplete_poses(lab.engine)
    columns = ["session", "recording", "frames", "rows", "frames_lost", "frames_damaged", "damage"]
    return _account(incomplete, columns, "have poses that do not cover every recorded frame")


@dg.asset_check(asset=pose_estimates)
def time_runs_forward(lab: LabResource) -> dg.AssetCheckResult:
    """The times of the current poses never run backwards in their Parquet file.

    For AVI files with B-frames, earlier versions wrote the times of decoding. Poses that are read through the platform
    have them in order.
    """
    from dlc_platform.pose.table import POSE_TABLE, rows_back_in_time

    poses = poses_to_time(lab.engine)
    paths = [lab.store.path("poses", pose) / POSE_TABLE for pose in poses["pose_estimate"]]
    poses = poses.assign(rows_back=[rows_back_in_time(path) if path.is_file() else 0 for path in paths])
    wrong = poses[poses["rows_back"] > 0]
    files = ", ".join(wrong["path"].head(_NAMED)) + (f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")
    return dg.AssetCheckResult(
        passed=wrong.empty,
        severity=dg.AssetCheckSeverity.WARN,
        description=""
        if wrong.empty
        else (
            f"The times in the files of {counted(len(wrong), 'pose table')} run backwards: {files}. An "
            "earlier version wrote them in the order of decoding; keypoints and frame numbers are right. "
            "`Platform.poses`, quality and pictures have the times in order. A program that reads the Parquet file "
            "itself has to sort the times of each body part and give them to its frames in turn"
        ),
        metadata={"files": len(wrong), **({} if wrong.empty else {"recordings": table(wrong.head(_LISTED))})},
    )


@dg.asset_check(asset=pose_estimates)
def made_by_the_rules_of_lab_yaml(lab: LabResource) -> dg.AssetCheckResult:
    """The current poses were made with the region and precision that lab.yaml has for them now.

    A change of these rules does not start a new estimate by itself. Imported poses were chosen by a person.
    """
    other = poses_of_other_rules(lab.engine, lab.store, lab.settings.tracking)
    return dg.AssetCheckResult(
        passed=other.empty,
        severity=dg.AssetCheckSeverity.WARN,
        description=""
        if other.empty
        else in_this_lab(
            OTHER_RULES.format(sessions=counted(other["session"].nunique(), "session has", "sessions have"))
        ),
        metadata={"files": len(other), **({} if other.empty else {"recordings": table(other.head(_LISTED))})},
    )


def _account(found: "pd.DataFrame", columns: list[str], what: str) -> dg.AssetCheckResult:
    """The result of a check that fails if there is any of these files, with the figures of the first ones."""
    figures = "; ".join(
        f"{row['path']}: {row['damage'] or 'its poses have another number of rows'}"
        for row in found.head(_NAMED).to_dict("records")
    )
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return dg.AssetCheckResult(
        passed=found.empty,
        description="" if found.empty else f"{counted(len(found), 'file')} {what}: {figures}{more}",
        metadata={"files": len(found), **({} if found.empty else {"recordings": table(found[columns].head(_LISTED))})},
    )


default_checks = [
    made_by_production_models,
    made_by_the_rules_of_lab_yaml,
    recordings_are_whole,
    every_frame_is_accounted_for,
    time_runs_forward,
]
