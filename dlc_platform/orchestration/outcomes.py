"""Sessions that need work by the lab's settings, and the result of that work: the stages `labels` and `poses`.

`catalog.wanted` has the queries, `catalog.quarantine` the quarantine. An asset that ends its run itself reports with
`judge_session`; the sensor reports runs that were ended from outside.
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

#: A function that reports a session of a run: its fault, or that it has none.
Outcome = Callable[[str, PlatformError | None], None]


def wanted_labels(
    lab: LabResource, limit: int | None = None, but: Collection[str] = (), only: Collection[str] | None = None
) -> list[Wanted]:
    """The sessions whose labels must be counted; the arguments are those of `wanted.labels`."""
    return wanted.labels(lab.engine, list(lab.settings.projects), lab.settings.scan.order, limit, but, only)


def wanted_poses(
    lab: LabResource, limit: int | None = None, but: Collection[str] = (), only: Collection[str] | None = None
) -> list[Wanted]:
    """The sessions whose poses must be estimated; the arguments are those of `wanted.poses`.

    Sessions of projects whose production model is hopeless or cannot be judged are left out: see `eligibility`.
    """
    from dlc_platform.estimates.eligibility import find_trackers

    in_production = find_trackers(lab.engine, lab.store, lab.settings.projects, lab.settings.model_rules).projects
    damaged = lab.settings.damaged_videos == "track"
    return wanted.poses(lab.engine, in_production, damaged, lab.settings.scan.order, limit, but, only)


def outcome(lab: LabResource, stage: Literal["labels", "poses"], run_id: str) -> Outcome:
    """The function with which a run at this stage reports each of its sessions."""
    return partial(judge_session, lab, stage, run_id)


def judge_session(
    lab: LabResource, stage: Literal["labels", "poses"], run_id: str, key: str, error: PlatformError | None
) -> None:
    """Put a session in quarantine that failed at a stage; if it did not fail, end its quarantine there."""
    if error is None:
        judge(lab.engine, key, stage, [])
    elif current_files(lab.engine, key):
        asked = {"labels": wanted_labels, "poses": wanted_poses}[stage](lab, only=[key])
        evidence = asked[0].evidence if asked else sha256_json([])
        hold(lab, key, stage, Fault(error.problem, error.remedy, evidence), run_id)


def hold(
    lab: LabResource, key: str, stage: Literal["videos", "labels", "poses"], fault: Fault, run_id: str | None
) -> None:
    """Put a whole session in quarantine, beside entries for single files; not twice on the same evidence."""
    known = faults_of(lab.engine, key, stage)
    if not any(other.path is None and other.evidence == fault.evidence for other in known):
        judge(lab.engine, key, stage, [*(other for other in known if other.path is not None), fault], run_id)
