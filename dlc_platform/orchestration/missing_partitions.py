"""The missing partitions of each asset: never made, or made from something that has changed since."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import dagster as dg

from dlc_platform.catalog.estimates import pose_table
from dlc_platform.catalog.evaluations import evaluated_models
from dlc_platform.catalog.models import current_model
from dlc_platform.catalog.sessions import labelled_sessions, registered_sessions, unreadable_sessions
from dlc_platform.catalog.wanted import untracked_files
from dlc_platform.errors import PlatformError
from dlc_platform.launchers.dagster_internals import DagsterEventType
from dlc_platform.orchestration.assets.models import dataset_problem
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.reports.daily import first_day, yesterday
from dlc_platform.sessions import scanning
from dlc_platform.sessions.layout import root_of
from dlc_platform.sessions.raw_roots import Disks
from dlc_platform.text.words import said_of


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


def _missing_days(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    """The last finished day: reading it again is quick."""
    day = yesterday(lab.settings.time_zone)
    return [day.isoformat()] if day >= first_day(lab.engine, lab.settings.time_zone) else []


def _unregistered(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    on_disk = [session for session in lab.scan().sessions if session.waits is None]
    unreadable = unreadable_sessions(lab.engine) & {session.key for session in on_disk}
    return sorted({*scanning.unregistered(lab.engine, on_disk), *unreadable})


def _without_labels(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    return sorted(registered_sessions(lab.engine) - labelled_sessions(lab.engine, lab.settings.projects))


def _untracked(lab: LabResource, say: Callable[[str], None]) -> list[str]:
    """The sessions with a file that lacks poses and is there; each such file is asked for on its disk."""
    disks = Disks(lab.settings.raw_roots, lab.settings.scan.root_timeout_seconds)
    found = set()
    for key, camera, path in untracked_files(lab.engine):
        tracked = lab.settings.tracking.rule_for(camera) is not None
        if key in found or not tracked or root_of(Path(path), lab.settings.raw_roots) is None:
            continue
        if disks.ask(path, partial(os.path.exists, path), False):
            found.add(key)
    for root, reason in disks.silent.items():
        say(f"  left out: {said_of(root, reason)}")
    return sorted(found)


def _without_dataset(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    return [name for name in sorted(lab.settings.recipes) if dataset_problem(lab, name)]


def _untrained(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    return [name for name in sorted(lab.settings.recipes) if current_model(lab.engine, name) is None]


def _unevaluated(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    models = {name: current_model(lab.engine, name) for name in sorted(lab.settings.recipes)}
    evaluated = evaluated_models(lab.engine)
    return [name for name, model in models.items() if model is None or model.id not in evaluated]


#: The missing partitions of each asset; those of `pose_quality` are known to Dagster alone.
_MISSING: dict[str, Callable[[LabResource, Callable[[str], None]], list[str]]] = {
    "session_videos": _unregistered,
    "labeled_frames": _without_labels,
    "pose_estimates": _untracked,
    "training_dataset": _without_dataset,
    "trained_model": _untrained,
    "model_evaluation": _unevaluated,
    "daily_report": _missing_days,
}


def without_quality(lab: LabResource, instance: dg.DagsterInstance) -> set[str]:
    """The sessions whose poses in force are newer than the last time that the UI showed their quality; only Dagster
    knows."""

    def materialized(asset: str) -> Mapping[str, int]:
        return instance.event_log_storage.get_latest_storage_id_by_partition(
            dg.AssetKey(asset), DagsterEventType.ASSET_MATERIALIZATION
        )

    made, shown = materialized("pose_estimates"), materialized("pose_quality")
    with_poses = set(pose_table(lab.engine)["session"])
    return {key for key in with_poses if key not in shown or made.get(key, 0) > shown[key]}
