"""The missing partitions of each asset: never made, or made from something that has changed since."""

from collections.abc import Callable, Mapping

import dagster as dg

from dlc_platform.catalog.estimates import pose_table
from dlc_platform.errors import PlatformError
from dlc_platform.launchers.dagster_internals import DagsterEventType
from dlc_platform.orchestration.assets.models import (
    recipes_without_dataset,
    recipes_without_evaluation,
    recipes_without_model,
)
from dlc_platform.orchestration.assets.poses import sessions_without_poses
from dlc_platform.orchestration.assets.report import days_without_report
from dlc_platform.orchestration.assets.sessions import sessions_without_labels, unregistered_sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.text.assets import (
    DAILY_REPORT,
    LABELED_FRAMES,
    MODEL_EVALUATION,
    POSE_ESTIMATES,
    POSE_QUALITY,
    SESSION_VIDEOS,
    TRAINED_MODEL,
    TRAINING_DATASET,
)


def missing(lab: LabResource, asset: str, say: Callable[[str], None] = print) -> list[str]:
    """The partitions of an asset that were never made, or whose files, or dataset's recipe, changed since.

    Parameters
    ----------
    say
        Called with a line about things that cannot be known because a disk does not answer.

    Raises
    ------
    PlatformError
        When the asset is not one of the platform's.
    """
    if asset not in _MISSING:
        raise PlatformError(
            f"the missing partitions of {asset} are not known here", f"Choose among {', '.join(_MISSING)}"
        )
    return _MISSING[asset](lab, say)


#: The missing partitions of each asset, as it says itself; those of `pose_quality` are known to Dagster alone.
_MISSING: dict[str, Callable[[LabResource, Callable[[str], None]], list[str]]] = {
    SESSION_VIDEOS: unregistered_sessions,
    LABELED_FRAMES: sessions_without_labels,
    POSE_ESTIMATES: sessions_without_poses,
    TRAINING_DATASET: recipes_without_dataset,
    TRAINED_MODEL: recipes_without_model,
    MODEL_EVALUATION: recipes_without_evaluation,
    DAILY_REPORT: days_without_report,
}


def without_quality(lab: LabResource, instance: dg.DagsterInstance) -> set[str]:
    """The sessions whose poses in force are newer than the last time that the UI showed their quality; only Dagster
    knows."""

    def materialized(asset: str) -> Mapping[str, int]:
        return instance.event_log_storage.get_latest_storage_id_by_partition(
            dg.AssetKey(asset), DagsterEventType.ASSET_MATERIALIZATION
        )

    made, shown = materialized(POSE_ESTIMATES), materialized(POSE_QUALITY)
    with_poses = set(pose_table(lab.engine)["session"])
    return {key for key in with_poses if key not in shown or made.get(key, 0) > shown[key]}
