"""Showing imported poses in the UI, marked as imported, beside those that runs of this lab made."""

from pathlib import Path

import dagster as dg

from dlc_platform.estimates.importing import RegisteredPoses
from dlc_platform.identity import short
from dlc_platform.orchestration.instance import open_instance, prepare, used
from dlc_platform.text.assets import POSE_ESTIMATES


def show_imported_poses(home: Path, session: str, done: RegisteredPoses, by: str) -> None:
    """Write an import into Dagster's log of `pose_estimates`: a materialisation if the poses are in force.

    If they are not in force, it is an observation: the UI goes on showing the poses in force.
    """
    poses = done.poses
    model = f"by the model {short(poses.model_id)}" if poses.model_id else "by a model that was not named"
    description = f"Imported by {by} from {poses.file}, {model}; no run of this lab made them"
    metadata = {
        "imported_by": by,
        "file": poses.file,
        "file_sha256": poses.file_sha256,
        "video": done.video.name,
        "model": poses.model_id or "not named",
        "scorer": poses.scorer,
        "frames": poses.frames,
        "in_force": done.in_force,
        **({"note": poses.note} if poses.note else {}),
    }
    event = dg.AssetMaterialization if done.in_force else dg.AssetObservation
    with used(home), open_instance(prepare(home, migrates=False)) as instance:
        if done.in_force and session not in instance.get_dynamic_partitions("sessions"):
            instance.add_dynamic_partitions("sessions", [session])
        instance.report_runless_asset_event(
            event(POSE_ESTIMATES, partition=session, description=description, metadata=metadata)
        )
