"""Sessions that wait or are held up: since when, why, and what to do. This is the one place for all of them.

Everything is read from the database: the sensor's last look, the quarantine, registered files without poses, and the
runs that Dagster has under way. A file of a camera that no inference rule names does not wait.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from dlc_platform.catalog.waiting import files_without_poses, open_entries, unregistered_sessions, unwritten_files
from dlc_platform.errors import in_a_line
from dlc_platform.lab.runs_under_way import RunUnderWay, Wanted, under_way
from dlc_platform.sessions.listing import UNWRITTEN
from dlc_platform.settings.lab import Lab
from dlc_platform.store import Store
from dlc_platform.text.assets import POSE_ESTIMATES, SESSION_VIDEOS
from dlc_platform.text.screen import wrapped
from dlc_platform.text.words import said_of

if TYPE_CHECKING:
    import pandas as pd

#: The things that a session waits for, in words.
_STEPS = {"videos": "its videos to be good enough", "labels": "its labels", "quality": "a decision on its poses"}
_BY_ITSELF = "Nothing: it goes on by itself"
#: The assets whose runs a session waits for.
_REGISTERS, _TRACKS = SESSION_VIDEOS, POSE_ESTIMATES
#: The run that is under way for an asset and a session.
_Runs = Mapping[Wanted, RunUnderWay]


@dataclass(frozen=True)
class Waiting:
    """A session, or one of its files, that waits or is held up.

    Attributes
    ----------
    step
        The step that it waits for: ``registration``, the stage of its quarantine, or ``poses``.
    passing
        True if nobody needs to do anything.
    """

    session: str
    step: str
    file: str | None
    since: datetime | None
    reason: str
    remedy: str
    passing: bool = False


def waiting(engine: Engine, lab: Lab, now: datetime | None = None) -> list[Waiting]:
    """Every session that waits or is held up, by key."""
    moment = now or datetime.now(UTC)
    unregistered = unregistered_sessions(engine)
    unwritten = unwritten_files(engine, UNWRITTEN)
    quarantine = open_entries(engine)
    without_poses = files_without_poses(engine)
    runs = under_way(engine, (_REGISTERS, _TRACKS), moment)
    found = [_unregistered(row, lab, moment, runs) for row in unregistered]
    for row in unwritten:
        reason, _, remedy = row["reason"].partition("; ")
        found.append(
            Waiting(row["session_key"], "registration", row["path"], row["seen_at"], reason, _sentence(remedy))
        )
    found += [
        Waiting(row["session_key"], row["stage"], row["path"], row["since"], row["reason"], row["remedy"])
        for row in quarantine
    ]
    found += _without_poses(engine, without_poses, lab, runs)
    return sorted(found, key=lambda one: (one.session, one.step, one.file or ""))


def waiting_lines(found: Iterable[Waiting], width: int) -> Iterator[str]:
    """The waiting sessions for a person to read; sessions with the same step, reason and remedy stand together.

    Parameters
    ----------
    width
        The width of the terminal, in characters. A command to paste and a path are never broken.
    """
    groups: dict[tuple[str, str, str], list[Waiting]] = defaultdict(list)
    for one in found:
        groups[one.step, _general(one.reason, one), _general(one.remedy, one)].append(one)
    for (step, reason, remedy), own in groups.items():
        keys = list(dict.fromkeys(one.session for one in own))
        (first, *others) = own
        since = min((one.since for one in own if one.since is not None), default=None)
        when = "" if since is None else f", {'the first ' if others else ''}since {since:%Y-%m-%d %H:%M} UTC"
        what = _STEPS.get(step, step)
        if len(keys) == 1:
            yield from wrapped(f"{keys[0]} waits for {what}{when}", width, 0)
        else:
            yield from wrapped(f"{len(keys)} sessions wait for {what.replace('its ', 'their ')}{when}", width, 0)
        if not others:
            said = said_of(first.file, first.reason) if first.file else first.reason
            yield from wrapped(said, width, 4, whole=[first.file or ""])
            yield from wrapped(first.remedy, width, 4, whole=[first.file or ""])
            continue
        yield from wrapped(reason, width, 4)
        yield from wrapped(remedy, width, 4)
        if step == "poses" or all(one.file is None for one in own):
            yield from wrapped(", ".join(keys), width, 8)
        else:
            yield from (in_a_line(f"        {one.session}{': ' + one.file if one.file else ''}") for one in own)


def _general(text: str, one: Waiting) -> str:
    """A text about a session with "KEY" and "the file" for its own names, so that sessions with the same reason
    match."""
    for own, word in ((one.file, "the file"), (one.session, "KEY")):
        if own:
            text = text.replace(own, word)
    return text


def waiting_table(engine: Engine, lab: Lab) -> "pd.DataFrame":
    """`waiting` as a table: session, step, file, since, reason, remedy, passing."""
    import pandas as pd

    columns = pd.Index(list(Waiting.__dataclass_fields__))
    return pd.DataFrame([asdict(one) for one in waiting(engine, lab)], columns=columns)


def _unregistered(row: Any, lab: Lab, now: datetime, runs: _Runs) -> Waiting:
    file, remedy, passing = None, _BY_ITSELF, True
    since = row["unready_since"] or row["changed_at"]
    if row["root_problem"] is not None:
        reason, _, remedy = row["root_problem"].partition("; ")
        passing = False
    elif (run := runs.get((_REGISTERS, row["session_key"]))) is not None:
        reason = str(run)
    elif row["left_out"]:
        file, told, _ = row["left_out"][0]
        reason, _, remedy = told.partition("; ")
        if told.startswith("it does not open"):
            until = since + timedelta(seconds=lab.scan.unopened_seconds)
            remedy = (
                "If it is broken, replace it; else wait: the lab looks again, and reads it as it is at "
                f"{until:%Y-%m-%d %H:%M} UTC"
            )
        passing = False
    elif now - row["changed_at"] < timedelta(seconds=lab.settle_seconds):
        reason = f"its files changed less than {lab.settle_seconds:g} s ago"
    else:
        reason = "its files have settled, and it is registered when its turn comes"
    return Waiting(row["session_key"], "registration", file, since, reason, _sentence(remedy), passing)


def _without_poses(engine: Engine, rows: Any, lab: Lab, runs: _Runs) -> Iterator[Waiting]:
    if not rows:
        return
    # Importing the code that judges models takes longer than all of this if nothing waits.
    from dlc_platform.estimates.eligibility import find_trackers, video_obstacle

    trackers = find_trackers(engine, Store(lab.store), lab.projects, lab.model_rules)
    for row in rows:
        project = lab.tracking.project_of(row["camera"])
        if row["missing_since"] is not None:
            reason, remedy = "its file is gone", "Bring it back, or leave it: nothing is deleted"
            yield Waiting(row["session_key"], "poses", row["path"], row["missing_since"], reason, remedy)
            continue
        damage, is_released = row["damage"], row["is_released"]
        obstacle = video_obstacle(row["problem"], damage, is_released, lab.damaged_videos)
        if project is None:
            # A file that cannot be read holds up the labels of its session, whatever its camera.
            if row["problem"] is not None and obstacle is not None and not row["is_labelled"]:
                since = row["registered_at"]
                yield Waiting(row["session_key"], "labels", row["path"], since, obstacle.reason, obstacle.remedy)
        elif obstacle is not None:
            yield Waiting(
                row["session_key"], "poses", row["path"], row["registered_at"], obstacle.reason, obstacle.remedy
            )
        elif (obstacle := trackers.obstacle(project)) is not None:
            since = (row["promoted_at"] if project in trackers.models else None) or row["registered_at"]
            yield Waiting(row["session_key"], "poses", row["path"], since, obstacle.reason, obstacle.remedy)
        else:
            since = max(row["registered_at"], row["promoted_at"] or row["registered_at"])
            run = runs.get((_TRACKS, row["session_key"]))
            reason = "it has no poses yet, and is tracked when its turn comes" if run is None else str(run)
            yield Waiting(row["session_key"], "poses", row["path"], since, reason, _BY_ITSELF, passing=True)


def _sentence(remedy: str) -> str:
    return remedy[:1].upper() + remedy[1:] if remedy else "Mend what it says"
