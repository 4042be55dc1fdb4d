"""A lab's plan as lines for a person: counts, the first of everything, and reasons that several things share."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from dlc_platform.identity import short
from dlc_platform.lab.plan import Plan, PlannedFile, PlannedSession
from dlc_platform.text.words import counted, lasting, listed

#: Sessions, files and reasons that a summary names.
_SHOWN = 10
_FILES_SHOWN = 3


def plan_lines(plan: Plan, everything: bool = False) -> Iterator[str]:
    """The plan for a person to read: counts, and the first of everything, or all of it."""
    shown = sys.maxsize if everything else _SHOWN
    on_disk = [session for session in plan.sessions if session.state not in ("missing", "unreachable")]
    left_out = [item for item in plan.skipped if everything or item.kind != "expected"]
    if lost := [item for item in left_out if item.kind == "lost"]:
        yield f"{len(lost)} LOST until mended"
        yield from _grouped(((item.reason, str(item.path)) for item in lost), shown, everything)
        yield ""
    yield from plan.projects
    states = [f"{number} {state}" for state, number in Counter(session.state for session in on_disk).items()]
    yield f"{counted(len(on_disk), 'session')} on disk{': ' if states else ''}{', '.join(states)}"
    if not plan.has_catalogue:
        yield "The lab has no catalogue yet, so all of them are new"
    registers = [session for session in on_disk if session.registers]
    files = [file for session in registers for file in session.files]
    yield f"\nsession_videos would run for {counted(len(registers), 'session')}, {_amount(files)}"
    for session in registers[:shown]:
        yield f"  {session.key}: {session.note or session.state}, {_amount(session.files)}"
    yield from _rest(len(registers) - shown, "sessions")
    labels = sum(session.labels for session in on_disk)
    yield f"\nlabeled_frames would run for {counted(labels, 'session')}"
    yield from _poses_lines(plan.sessions, shown, everything)
    for title, chosen in (
        ("not ready", [s for s in on_disk if s.state != "registered" and not s.registers]),
        ("missing: registered, and no longer on disk", [s for s in plan.sessions if s.state == "missing"]),
        ("out of sight: their raw root cannot be read", [s for s in plan.sessions if s.state == "unreachable"]),
    ):
        if chosen:
            yield f"\n{counted(len(chosen), 'session is', 'sessions are')} {title}"
            for session in chosen[:shown]:
                yield f"  {session.key}: {session.note}"
            yield from _rest(len(chosen) - shown, "sessions")
    if plan.copies:
        yield f"\n{counted(len(plan.copies), 'video lies', 'videos lie')} there more than once"
        yield from (f"  {line}" for line in plan.copies[:shown])
        yield from _rest(len(plan.copies) - shown, "videos")
    for kind, title in (("odd", "left out"), ("expected", "left out as usual")):
        own = [item for item in left_out if item.kind == kind]
        if own:
            yield f"\n{len(own)} {title}"
            yield from _grouped(((item.reason, str(item.path)) for item in own), shown, everything)
    usual = len(plan.skipped) - len(left_out)
    if usual:
        yield (
            f"\n{counted(usual, 'more is', 'more are')} left out in every lab (under way, hidden, made by "
            "DeepLabCut); --all names them"
        )
    if plan.headers_left:
        yield (f"\nThe headers of {counted(plan.headers_left, 'new file')} were not read, because that takes too long")


def _poses_lines(sessions: Iterable[PlannedSession], shown: int, everything: bool) -> Iterator[str]:
    wanted: dict[tuple[str | None, str | None], list[PlannedFile]] = defaultdict(list)
    none: list[tuple[str, str]] = []
    there = 0
    for session in sessions:
        for file in session.files:
            if file.poses == "wanted":
                wanted[file.project, file.model].append(file)
            elif file.poses == "there":
                there += 1
            elif session.state != "missing" and (session.registers or session.state == "registered"):
                none.append((file.reason or "", f"{session.key}: {file.recording}, camera {file.camera}"))
    files = [file for own in wanted.values() for file in own]
    yield f"\npose_estimates would run for {_amount(files)}; {counted(there, 'file has', 'files have')} poses"
    for (project, model), own in wanted.items():
        cameras = listed(sorted({file.camera for file in own}), shown)
        yield f"  by {project}'s production model {short(model or '')} ({cameras}): {_amount(own)}"
    if none:
        yield f"\n{counted(len(none), 'file')} would not be tracked"
        yield from _grouped(none, shown, everything)


def _amount(files: Iterable[PlannedFile]) -> str:
    """The number of files, their length and their frames, as far as known, in words."""
    files = list(files)
    text = counted(len(files), "file")
    known = [file.duration_s for file in files if file.duration_s is not None]
    if known:
        seconds = sum(known)
        frames = sum(file.frames or 0 for file in files)
        unknown = f", {len(files) - len(known)} of them of unknown length" if len(known) < len(files) else ""
        text += f" ({lasting(seconds / 3600)}, {counted(frames, 'frame')}{unknown})"
    return text


def _rest(number: int, what: str) -> Iterator[str]:
    if number > 0:
        yield f"  and {number} more {what}; --all names them"


def _grouped(items: Iterable[tuple[str, str]], shown: int, everything: bool) -> Iterator[str]:
    """The lines of items grouped by their reason, the most common reason first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for reason, name in items:
        groups[reason].append(name)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    for reason, names in ordered[:shown]:
        if everything:
            yield f"  {reason}"
            yield from (f"    {name}" for name in names)
        else:
            more = [f"and {len(names) - _FILES_SHOWN} more"] if len(names) > _FILES_SHOWN else []
            yield f"  {len(names)}: {reason} ({'; '.join([*names[:_FILES_SHOWN], *more])})"
    yield from _rest(len(ordered) - shown, "reasons")
