"""What is wanted of sessions by the lab's settings, and what became of it: the stages `labels` and `poses`.

How that is asked of the database is in `catalog.wanted`, what quarantine is in `catalog.quarantine`. A run that an
asset ends itself says so with `judge_session`; of one that was ended from outside the sensor speaks.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Literal

from dlc_platform.catalog import wanted
from dlc_platform.catalog.quarantine import Fault, faults_of, judge
from dlc_platform.catalog.sessions import current_files
from dlc_platform.catalog.wanted import Wanted
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json
from dlc_platform.orchestration.resources import LabResource

#: What becomes of a session in a run: nothing wrong, or what is.
Outcome = Callable[[str, PlatformError | None], None]


def wanted_labels(
    lab: LabResource, limit: int | None = None, but: Collection[str] = (), only: Collection[str] | None = None
) -> list[Wanted]:
    """The sessions whose labels are to be counted; the arguments are those of `wanted.labels`."""
    return wanted.labels(lab.engine, list(lab.settings.projects), lab.settings.scan.order, limit, but, only)


def wanted_poses(
    lab: LabResource, limit: int | None = None, but: Collection[str] = (), only: Collection[str] | None = None
) -> list[Wanted]:
    """The sessions whose poses are to be estimated; the arguments are those of `wanted.poses`.

    Of projects whose production model is hopeless or cannot be judged, none are: see `eligibility`.
    """
    from dlc_platform.estimates.eligibility import find_trackers

    in_production = find_trackers(lab.engine, lab.store, lab.settings.projects, lab.settings.model_rules).projects
    damaged = lab.settings.damaged_videos == "track"
    return wanted.poses(lab.engine, in_production, damaged, lab.settings.scan.order, limit, but, only)


def outcome(lab: LabResource, stage: Literal["labels", "poses"], run_id: str) -> Outcome:
    """What a run at this stage tells of each of its sessions."""
    return partial(judge_session, lab, stage, run_id)


def judge_session(
    lab: LabResource, stage: Literal["labels", "poses"], run_id: str, key: str, error: PlatformError | None
) -> None:
    """Put a session in quarantine that failed at a stage, or end what held it there."""
    if error is None:
        judge(lab.engine, key, stage, [])
    elif current_files(lab.engine, key):
        asked = {"labels": wanted_labels, "poses": wanted_poses}[stage](lab, only=[key])
        evidence = asked[0].evidence if asked else sha256_json([])
        hold(lab, key, stage, Fault(error.problem, error.remedy, evidence), run_id)


def hold(
    lab: LabResource, key: str, stage: Literal["videos", "labels", "poses"], fault: Fault, run_id: str | None
) -> None:
    """Put a whole session in quarantine, beside what holds up single files of it; not twice on the same evidence."""
    known = faults_of(lab.engine, key, stage)
    if not any(other.path is None and other.evidence == fault.evidence for other in known):
        judge(lab.engine, key, stage, [*(other for other in known if other.path is not None), fault], run_id)
