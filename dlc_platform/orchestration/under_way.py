"""The runs that were asked for and have not ended, with their sessions: the sensor's cursor, and its recovery."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import dagster as dg

from dlc_platform.launchers.dagster_internals import FINISHED_STATUSES, RUN_KEY_TAG, SCHEDULE_NAME_TAG, SENSOR_NAME_TAG
from dlc_platform.orchestration.partitions import RANGE_END, RANGE_START
from dlc_platform.orchestration.retries import CATCH_UP, SESSION_SENSOR
from dlc_platform.text.assets import LABELED_FRAMES, POSE_ESTIMATES, SESSION_VIDEOS

STAGES: dict[str, Literal["videos", "labels", "poses"]] = {
    SESSION_VIDEOS: "videos",
    LABELED_FRAMES: "labels",
    POSE_ESTIMATES: "poses",
}
#: The first and the longest wait of a session that the machine kept from being worked on, and the time for which such
#: waits are counted.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _DAY_SECONDS = 30.0, 600.0, 86400.0


@dataclass
class Asked:
    """A run that was asked for: its assets and its sessions, each with a hash of the input of the work."""

    assets: list[str]
    sessions: dict[str, str]


@dataclass
class Cursor:
    """The sensor's memory between two looks.

    Attributes
    ----------
    runs
        The requests that are not finished, by run key.
    rules
        A hash of the rules that gave the cameras in the catalogue their projects and judged its videos.
    tables
        A hash of the lab's own tables in the raw roots when the catalogue last followed them.
    strays
        Partitions for which the last look found no session.
    again
        Sessions that the machine kept from being worked on: how often, and the time from which they are asked for
        again.
    """

    runs: dict[str, Asked] = field(default_factory=dict)
    rules: str = ""
    tables: str = ""
    strays: list[str] = field(default_factory=list)
    again: dict[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> "Cursor | None":
        """The cursor; None if it is missing or was written by another version."""
        content = json.loads(text) if text else {}
        if "runs" not in content:
            return None
        return cls(
            {key: Asked(**asked) for key, asked in content["runs"].items()},
            content["rules"],
            content.get("tables", ""),
            content.get("strays", []),
            {key: (tries, until) for key, (tries, until) in content.get("again", {}).items()},
        )

    def write(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def postpone(self, key: str, now: float) -> None:
        """Let a session wait before it is asked for again, the longer the more often it has waited."""
        self.again = {key: (tries, until) for key, (tries, until) in self.again.items() if now - until < _DAY_SECONDS}
        tries = self.again.get(key, (0, now))[0] + 1
        self.again[key] = tries, now + min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2 ** (tries - 1))

    def postponed(self, now: float) -> set[str]:
        """The sessions that must not be asked for yet."""
        # A clock that was set back must not let them wait for as long.
        return {key for key, (_, until) in self.again.items() if 0 < until - now <= _LONGEST_PAUSE_SECONDS}

    def under_way(self, *assets: str) -> set[str]:
        """The sessions under way for any of these assets, or for any asset."""
        runs = [run for run in self.runs.values() if not assets or set(assets) & set(run.assets)]
        return {key for run in runs for key in run.sessions}


def caught_up(instance: dg.DagsterInstance) -> set[str]:
    """The sessions for which runs of the schedule `catch_up` are under way."""
    return _under_way(instance, {SCHEDULE_NAME_TAG: CATCH_UP}).under_way()


def recover(instance: dg.DagsterInstance) -> Cursor:
    """The work under way by Dagster's own records, if the cursor is lost."""
    return _under_way(instance, {SENSOR_NAME_TAG: SESSION_SENSOR})


def _under_way(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> Cursor:
    unfinished = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
    runs = instance.get_runs(dg.RunsFilter(tags=dict(tags), statuses=unfinished))
    order = instance.get_dynamic_partitions("sessions") if runs else []
    place = {key: index for index, key in enumerate(order)}
    cursor = Cursor()
    for run in runs:
        first, last = place.get(run.tags.get(RANGE_START, "")), place.get(run.tags.get(RANGE_END, ""))
        if RUN_KEY_TAG in run.tags and run.asset_selection and first is not None and last is not None:
            assets = [asset for asset in STAGES if dg.AssetKey(asset) in run.asset_selection]
            cursor.runs[run.tags[RUN_KEY_TAG]] = Asked(assets, dict.fromkeys(order[first : last + 1], ""))
    return cursor
