"""The effect of starting the lab on the files that lie on its disks now: which sessions would be registered, which
videos would be tracked, and why the others would not.

Nothing is registered, run or written here, and of a video only the header is read. For files that are not registered
yet, a plan relies on names, sizes, times and headers.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, Row

from dlc_platform.catalog.quarantine import holding_reasons, released_files
from dlc_platform.catalog.sessions import files_in_force, labelled_sessions
from dlc_platform.catalog.videos import repeated_videos
from dlc_platform.errors import PlatformError
from dlc_platform.estimates.eligibility import Trackers, find_trackers, video_obstacle
from dlc_platform.sessions.layout import alike
from dlc_platform.sessions.listing import Skipped
from dlc_platform.sessions.raw_roots import Disks
from dlc_platform.sessions.readiness import read_header
from dlc_platform.sessions.recordings import Scan, Session, VideoFile, is_registered, scan
from dlc_platform.sessions.sidecars import Sidecars
from dlc_platform.sessions.video_checks import copy_of
from dlc_platform.settings.lab import Lab
from dlc_platform.store import Store
from dlc_platform.text.words import counted

State = Literal["new", "changed", "moved", "registered", "missing", "unreachable"]
#: The most files whose headers one plan reads: opening every file of an archive on a network disk takes long.
_MOST_HEADERS = 1000
#: The seconds that one plan spends on reading headers, and then on the lab's own tables, if disks are slow.
_READING_SECONDS = 60.0
#: The most changes of a session that its note names.
_CHANGES_SHOWN = 3
_DOES_NOT_OPEN = "does not open: "


@dataclass(frozen=True)
class PlannedFile:
    """A video file of a planned session.

    Attributes
    ----------
    poses
        ``wanted``: `model`, the production model of `project`, would compute them; ``there``: the file has some;
        ``none``: it is not tracked; `reason` says why.
    frames, duration_s
        As counted if the file is registered, else as its header promises; None if neither tells.
    """

    recording: str
    camera: str
    position: int
    path: str
    poses: Literal["wanted", "there", "none"]
    project: str | None
    model: str | None
    reason: str | None
    frames: int | None
    duration_s: float | None


@dataclass(frozen=True)
class PlannedSession:
    """A session on disk, or a registered one that is not on disk any more.

    Attributes
    ----------
    state
        Its state compared with the catalogue. ``moved``: its files have the size and time of files that were at another
        place; ``unreachable``: it is registered, and its raw root cannot be read.
    registers
        True if `session_videos` would run for it.
    labels
        True if `labeled_frames` would run for it.
    note
        The files that are new, changed, moved or not ready, in words; empty if there are none.
    """

    key: str
    folder: str
    state: State
    registers: bool
    labels: bool
    note: str
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Plan:
    """The work that would be done, session by session, sorted by key; and what is left out, sorted by path.

    Attributes
    ----------
    has_catalogue
        False for a lab that was never started: then every session is new.
    headers_left
        The number of new files that were not opened, because there are many or their disk is slow.
    copies
        A line for each registered video that several files hold.
    projects
        A sentence for each project of lab.yaml that cannot be read: nothing is trained or labelled with it.
    copies_of
        By session, a line for each of its files whose video another file holds too.
    """

    sessions: tuple[PlannedSession, ...]
    skipped: tuple[Skipped, ...]
    has_catalogue: bool
    headers_left: int
    copies: tuple[str, ...] = ()
    copies_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    projects: tuple[str, ...] = ()

    @property
    def loses(self) -> bool:
        """True if a recording or a raw root cannot be used before a person mends something."""
        return any(item.kind == "lost" for item in self.skipped)

    def of(self, key: str) -> "Plan":
        """The plan of one session, with the things left out whose reason names it or that lie in its folder."""
        own = tuple(session for session in self.sessions if session.key == key)
        folders = [Path(session.folder) for session in own]
        named = re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])")
        skipped = tuple(
            item
            for item in self.skipped
            if named.search(item.reason) or any(item.path.is_relative_to(folder) for folder in folders)
        )
        return Plan(own, skipped, self.has_catalogue, 0, self.copies_of.get(key, ()), projects=self.projects)

    def to_json(self) -> dict[str, Any]:
        """The plan as values of JSON."""
        return {
            "sessions": [asdict(session) for session in self.sessions],
            "skipped": [{"path": str(item.path), "reason": item.reason, "kind": item.kind} for item in self.skipped],
            "has_catalogue": self.has_catalogue,
            "headers_left": self.headers_left,
            "copies": list(self.copies),
            "projects": list(self.projects),
        }


def plan(lab: Lab, engine: Engine | None) -> Plan:
    """The plan for the files that lie on the disks now.

    Parameters
    ----------
    engine
        The lab's catalogue; None for a lab that has none.
    """
    found = scan(lab.raw_roots, lab.layout, lab.scan.root_timeout_seconds)
    catalogue = _Catalogue(lab, engine)
    disks = Disks(lab.raw_roots, lab.scan.root_timeout_seconds)
    disks.silent |= {item.path: item.reason for item in found.skipped if item.path in lab.raw_roots}
    planner = _Planner(lab, found, catalogue, disks)
    sessions = [*map(planner.on_disk, found.sessions), *planner.missing()]
    skipped = [*found.skipped, *_sidecar_problems(lab, found, disks)]
    # A root may have stopped answering after it was listed.
    skipped += [Skipped(root, reason, "lost") for root, reason in disks.silent.items()]
    skipped += [
        Skipped(session.folder, f"{' and '.join(keys)} are nearly the same key; rename one, if they are one session")
        for keys in alike(session.key for session in found.sessions)
        for session in found.sessions
        if session.key == keys[0]
    ]
    repeated = [] if engine is None else repeated_videos(engine, each=True).to_dict("records")
    return Plan(
        tuple(sorted(sessions, key=lambda session: session.key)),
        tuple(sorted(set(skipped), key=lambda item: (str(item.path), item.reason))),
        engine is not None,
        planner.headers_left,
        tuple(copy_of(row) for row in repeated if row["first"]),
        {key: tuple(map(copy_of, own)) for key, own in groupby(repeated, lambda row: row["session"])},
        broken_projects(lab),
    )


def broken_projects(lab: Lab) -> tuple[str, ...]:
    """A sentence for each project of lab.yaml whose config.yaml or label tables cannot be read.

    No image is looked at, as `doctor` does.
    """
    from dlc_platform.dlc.labels import check_tables
    from dlc_platform.dlc.project import check_with_deeplabcut, read_project

    def problem(path: Path) -> str:
        try:
            project = read_project(path)
            check_with_deeplabcut(project)
            check_tables(project)
        except PlatformError as error:
            return str(error)
        return ""

    disks = Disks([entry.path for entry in lab.projects.values()], _READING_SECONDS)
    said = f"it was not read within {_READING_SECONDS:g} s. Look after its disk or its network."
    problems = {name: disks.ask(one.path, partial(problem, one.path), said) for name, one in lab.projects.items()}
    return tuple(f"The project {name} cannot be used: {problem}" for name, problem in problems.items() if problem)


class _Catalogue:
    """The rows of the catalogue, read once; empty if there is no catalogue."""

    def __init__(self, lab: Lab, engine: Engine | None) -> None:
        self.files: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
        self.held: Mapping[tuple[str, str | None], str] = {}
        #: Files that a person released: only their open quarantine counts.
        self.released: set[tuple[str, str]] = set()
        self.labelled: set[str] = set()
        self.trackers = Trackers({}, {})
        if engine is None:
            return
        for row in files_in_force(engine):
            self.files[row.session_key][row.name, row.position] = row
        self.held = holding_reasons(engine)
        self.released = released_files(engine)
        self.labelled = labelled_sessions(engine, lab.projects)
        self.trackers = find_trackers(engine, Store(lab.store), lab.projects, lab.model_rules)


class _Planner:
    def __init__(self, lab: Lab, found: Scan, catalogue: _Catalogue, disks: Disks) -> None:
        self._lab = lab
        self._disks = disks
        self._now = time.time()
        self._catalogue = catalogue
        self._on_disk = {session.key for session in found.sessions}
        paths = {str(file.path) for s in found.sessions for r in s.recordings for file in r.files}
        #: Registered files that are not at their place any more, by size and time.
        self._gone = {
            (row.size_bytes, row.mtime_ns): row
            for rows in catalogue.files.values()
            for row in rows.values()
            if row.path not in paths
        }
        self._unreachable = [item.path for item in found.skipped if item.path in lab.raw_roots]
        self._moved: dict[str, str] = {}
        self._headers = 0
        self._reading_s = 0.0
        self.headers_left = 0

    def on_disk(self, session: Session) -> PlannedSession:
        known = self._catalogue.files.get(session.key, {})
        files = [
            (recording.name, recording.camera, position, file)
            for recording in session.recordings
            for position, file in enumerate(recording.files)
        ]
        changes = [
            change
            for name, _, position, file in files
            if (change := self._change(session.key, file, known.get((name, position)))) is not None
        ]
        there = {(name, position) for name, _, position, _ in files}
        changes += [f"{Path(row.path).name} is gone" for place, row in known.items() if place not in there]
        state: State
        if not changes:
            state = "registered"
        elif known:
            state = "changed"
        else:
            state = "moved" if all(change.startswith("moved") for change in changes) else "new"
        waits = self._waits(session) if changes else None
        planned = []
        for name, camera, position, file in files:
            row = known.get((name, position))
            is_known = row is not None and is_registered(file, row)
            # A recording that moved with its lab is the same one, by its size and time, and keeps its poses.
            is_same = row is not None and (row.size_bytes, row.mtime_ns) == (file.size, file.mtime_ns)
            keeps = row is not None and is_same and row.tracked
            planned.append(self._file(session.key, name, camera, position, file, row if is_known else None, keeps))
        if changes and waits is None:
            waits = next(
                (
                    f"{file.path.name} {one.reason}"
                    for (*_, file), one in zip(files, planned, strict=True)
                    if _is_closed(one) and self._age_s(file) < self._lab.scan.unopened_seconds
                ),
                None,
            )
        if waits is not None:
            planned = [
                replace(one, poses="none", reason="its session is not ready") if one.poses == "wanted" else one
                for one in planned
            ]
        is_readable = all(row.problem is None for row in known.values())
        changed = "; ".join(changes[:_CHANGES_SHOWN]) + (
            f"; and {len(changes) - _CHANGES_SHOWN} more" if len(changes) > _CHANGES_SHOWN else ""
        )
        return PlannedSession(
            session.key,
            str(session.folder),
            state,
            bool(changes) and waits is None,
            waits is None and session.key not in self._catalogue.labelled and (bool(changes) or is_readable),
            waits if waits is not None else "" if state == "new" else changed,
            tuple(planned),
        )

    def missing(self) -> Iterator[PlannedSession]:
        """The sessions that are registered and not on disk; call it after `on_disk`."""
        for key, known in self._catalogue.files.items():
            if key in self._on_disk:
                continue
            rows = list(known.values())
            place = Path(rows[0].path)
            out_of_sight = next((root for root in self._unreachable if place.is_relative_to(root)), None)
            moved = self._moved.get(key)
            note = (
                f"it seems to be {moved} now"
                if moved
                else f"{out_of_sight} cannot be read"
                if out_of_sight
                else f"{place} and what belongs to it are gone; bring them back, or leave it: nothing is deleted"
            )
            files = tuple(
                PlannedFile(
                    row.name,
                    row.camera,
                    row.position,
                    row.path,
                    "there" if row.tracked else "none",
                    None,
                    None,
                    None if row.tracked else "it is not on disk",
                    row.frames,
                    row.duration_s,
                )
                for row in rows
            )
            state: State = "missing" if moved or not out_of_sight else "unreachable"
            yield PlannedSession(key, str(place.parent), state, False, False, note, files)

    def _change(self, key: str, file: VideoFile, row: Row | None) -> str | None:
        """The difference between a file and the catalogue, in words; None if there is none."""
        if row is not None and is_registered(file, row):
            return None
        before = self._gone.get((file.size, file.mtime_ns))
        if before is not None:
            self._moved[before.session_key] = key
            return f"moved from {before.path}, by its size and time"
        return f"{file.path.name} is new" if row is None else f"{file.path.name} has changed"

    def _waits(self, session: Session) -> str | None:
        if session.waits is not None:
            return session.waits
        for recording in session.recordings:
            for file in recording.files:
                age = self._age_s(file)
                if age < self._lab.settle_seconds:
                    return (
                        f"{file.path.name} was written {age:.0f} s ago, by its time; it is taken when it has not "
                        f"changed for {self._lab.settle_seconds:g} s"
                    )
        return None

    def _age_s(self, file: VideoFile) -> float:
        """The seconds since a file changed, by its time; a time in the future tells nothing."""
        age = self._now - file.mtime_ns / 1e9
        return age if age >= 0 else math.inf

    def _file(
        self,
        key: str,
        recording: str,
        camera: str,
        position: int,
        file: VideoFile,
        row: Row | None,
        keeps_poses: bool,
    ) -> PlannedFile:
        """The plan for a file; `keeps_poses` says that it is a recording with poses, even if it moved."""
        frames, duration_s = (row.frames, row.duration_s) if row is not None else (None, None)
        closed = None
        if row is None and file.waits is None:
            if self._headers < _MOST_HEADERS and self._reading_s < _READING_SECONDS:
                self._headers += 1
                began = time.monotonic()
                header = self._disks.ask(file.path, partial(read_header, file.path), "its raw root gave no answer")
                self._reading_s += time.monotonic() - began
                if isinstance(header, str):
                    closed = f"{_DOES_NOT_OPEN}{header}"
                else:
                    frames, duration_s = header.frames, header.duration_s
            else:
                self.headers_left += 1
        project = self._lab.tracking.project_of(camera)
        model = self._catalogue.trackers.models.get(project) if project is not None else None
        is_tracked = keeps_poses or (row is not None and row.tracked)
        reason = None if is_tracked else closed or self._reason(key, file, row, project)
        return PlannedFile(
            recording,
            camera,
            position,
            str(file.path),
            "there" if is_tracked else "wanted" if reason is None else "none",
            project,
            model,
            reason,
            frames,
            duration_s,
        )

    def _reason(self, key: str, file: VideoFile, row: Row | None, project: str | None) -> str | None:
        """The reason why a file without poses would not be tracked."""
        if row is not None:
            held = self._catalogue.held.get((key, None)) or self._catalogue.held.get((key, str(file.path)))
            if held is not None:
                return f"in quarantine: {held}"
            is_released = (key, str(file.path)) in self._catalogue.released
            obstacle = video_obstacle(row.problem, row.damage, is_released, self._lab.damaged_videos)
            if obstacle is not None:
                return str(obstacle)
        obstacle = self._catalogue.trackers.obstacle(project)
        return None if obstacle is None else str(obstacle)


def _is_closed(file: PlannedFile) -> bool:
    return file.reason is not None and file.reason.startswith(_DOES_NOT_OPEN)


def _sidecar_problems(lab: Lab, found: Scan, disks: Disks) -> list[Skipped]:
    disks.answering()
    sidecars = Sidecars(lab.raw_roots, disks.silent)
    problems = sidecars.strangers({session.subject for session in found.sessions})
    began = time.monotonic()
    for number, session in enumerate(found.sessions):
        if time.monotonic() - began > _READING_SECONDS:
            left = len(found.sessions) - number
            reason = (
                f"what the lab's own tables say of {counted(left, 'more session')} was not read, because its disk is "
                "slow"
            )
            return [*problems, Skipped(session.folder, reason)]
        videos = [file.path for recording in session.recordings for file in recording.files]
        read = partial(sidecars.details, session.folder, session.subject, session.name, videos)
        if (details := disks.ask(session.folder, read, None)) is not None:
            problems += details.problems
    return problems
