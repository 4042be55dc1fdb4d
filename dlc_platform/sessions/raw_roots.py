"""Walking through a raw root, in a thread that a disk may block for ever.

This module does not know the database: earlier knowledge is passed in, and findings are taken from a queue. It checks
the time between two questions to the disk; a question itself takes as long as the disk takes.
"""

import bisect
import heapq
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import regex

from dlc_platform.catalog.sightings import KnownFolder
from dlc_platform.sessions.layout import Place, place_of, root_of
from dlc_platform.sessions.listing import LINK_OUTSIDE, FoundVideo, Listing, Skipped, list_folder, may_follow, time_ns
from dlc_platform.settings.layout import Layout

#: The number of folders that a look lists whatever their times say.
_LISTED_AGAIN = 250
#: The folders whose times are asked for in one turn, and the seconds after which a turn no longer blocks others.
_ASKED_TOGETHER, _PATIENCE_SECONDS = 1000, 0.1
#: The number of listings that are written down together.
TOGETHER = 500
#: The seconds that a caller waits for one raw root to be walked through at once.
LONGEST_SECONDS = 300.0


@dataclass
class Root:
    id: int
    path: str
    checked: str
    listed: str
    holds_videos: bool
    problem: str | None = None


@dataclass(frozen=True)
class Listed:
    """A folder that was listed, and its time before. If reading it `failed`, the earlier knowledge of it stays."""

    path: str
    mtime_ns: int
    listing: Listing
    failed: bool


@dataclass
class Walk:
    """One look at a raw root. It runs in a thread that a disk may block for ever, and so shares nothing else.

    `pending` are the folders that were seen and not listed, the newest first.

    `checked` and `listed` are the folders at which the next look goes on; they are empty if this one reached the end.
    """

    root: Root
    known: dict[str, KnownFolder]
    urgent: list[str]
    layout: Layout
    until: float
    found: "queue.Queue[Listed]" = field(default_factory=lambda: queue.Queue(maxsize=TOGETHER))
    gone: list[str] = field(default_factory=list)
    problem: str | None = None
    checked: str = ""
    listed: str = ""
    done: bool = False
    answered: float = field(default_factory=time.monotonic)
    pending: list[tuple[int, str]] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def run(self) -> None:
        try:
            self.problem = self._look()
        except Exception as error:  # a thread has nobody else to tell
            self.problem = f"the raw root cannot be walked through: {type(error).__name__}: {error}"
        self.done = True

    def _look(self) -> str | None:
        began = time.monotonic()
        device = self._device()
        if isinstance(device, str):
            return device
        self.pending = [
            (-changed_ns, path) for path, changed_ns, listed_ns, _ in self.known.values() if listed_ns is None
        ]
        heapq.heapify(self.pending)
        for path in self.urgent:
            self._list(path)
        # Half of the time at most, or new folders would wait for the old ones of a slow disk.
        self._check(began + (self.until - began) / 2 if self.pending else self.until)
        self._list_new()
        if not self.checked:
            self._list_again()
            self._list_new()
        if self.gone and self._device() != device:
            self.gone.clear()
            return "the raw root disappeared while it was read; check its disk"
        return None

    def _device(self) -> tuple[int, int] | str:
        return root_state(self.root.path, self.root.holds_videos, self.layout)

    def _check(self, until: float) -> None:
        """Ask the known folders for their times, and list those that changed."""
        start = f"{self.root.path}/"
        paths = _beginning_at(self.root.checked, ["", *self.known])
        for first in range(0, len(paths), _ASKED_TOGETHER):
            with _turns.take():
                for path in paths[first : first + _ASKED_TOGETHER]:
                    if self._over(until):
                        self.checked = path
                        return
                    if not path:
                        self._list(path)
                        continue
                    listed_ns = self.known[path][2]
                    if listed_ns is not None:
                        try:
                            changed = time_ns(os.stat(start + path).st_mtime_ns) != listed_ns
                        except OSError:
                            changed = True
                        if changed:
                            self._list(path)

    def _list_new(self) -> None:
        while self.pending and not self._over(self.until):
            self._list(heapq.heappop(self.pending)[1])

    def _list_again(self) -> None:
        rest = (path for path in self.known if path >= self.root.listed)
        paths = heapq.nsmallest(_LISTED_AGAIN + 1, rest)
        for path in paths[:_LISTED_AGAIN]:
            if self._over(self.until):
                self.listed = path
                return
            self._list(path)
        self.listed = paths[_LISTED_AGAIN] if len(paths) > _LISTED_AGAIN else ""

    def _list(self, path: str) -> None:
        if path in self._seen:
            return
        self._seen.add(path)
        folder = f"{self.root.path}/{path}"
        try:
            mtime_ns = time_ns(os.stat(folder).st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            self.gone.append(path)
            return
        except OSError:
            mtime_ns = 0
        listing = list_folder(self.root.path, path, self.layout)
        for below in listing.folders:
            if below not in self.known:
                with suppress(OSError):
                    newest = time_ns(os.stat(f"{self.root.path}/{below}").st_mtime_ns)
                    heapq.heappush(self.pending, (-newest, below))
        nothing = not listing.videos and not listing.folders
        failed = nothing and any(os.path.normpath(folder) == str(item.path) for item in listing.skipped)
        self._put(Listed(path, mtime_ns, listing, failed))

    def _put(self, found: Listed) -> None:
        while True:
            try:
                self.found.put(found, timeout=1)
            except queue.Full:
                # Nobody takes results any more.
                if time.monotonic() > self.until + 10:
                    raise
            else:
                self.answered = time.monotonic()
                return

    def _over(self, until: float) -> bool:
        self.answered = time.monotonic()
        return self.answered > until


def root_state(path: str, holds_videos: bool, layout: Layout) -> tuple[int, int] | str:
    """The device and inode of a raw root, or the reason why it cannot be used; a disk may never answer this.

    Parameters
    ----------
    holds_videos
        True if videos were seen in it before; if it is empty now, its disk is not mounted.
    """
    try:
        status = os.stat(path)
        with os.scandir(path) as entries:
            is_empty = next(entries, None) is None
    except OSError:
        return list_folder(path, "", layout).skipped[0].reason
    if is_empty and holds_videos:
        return "the raw root is empty now and was not before; mount its disk, or remove it from raw_roots in lab.yaml"
    return status.st_dev, status.st_ino


def why_away(path: Path, roots: Iterable[Path], layout: Layout, seconds: float) -> str | None:
    """The reason why a file or folder below a raw root that held videos cannot be read now; None if it is there.

    The reason is that of the root if the root cannot be used; else only the file is gone.
    """
    root = root_of(path, roots)
    if root is None:
        return f"{path} lies below no raw root of lab.yaml, so it is not read; add its root if it is the lab's"
    disks = Disks([root], seconds)
    there = disks.ask(path, partial(os.path.exists, path), None)
    if there is None:
        return "; ".join(f"{silent}: {reason}" for silent, reason in disks.silent.items())
    if isinstance(state := root_state(str(root), True, layout), str):
        return f"{root}: {state}"
    if not there:
        return f"{path} is not there any more"
    return None if may_follow(str(root), str(path), layout) else f"{path}: {LINK_OUTSIDE}"


def _beginning_at(start: str, paths: list[str]) -> list[str]:
    """All paths, sorted so that the walk can begin in the middle of them."""
    if not start:
        return paths
    ordered = sorted(paths)
    middle = bisect.bisect_left(ordered, start)
    return ordered[middle:] + ordered[:middle]


class _Turns:
    """One thread at a time while its disk is quick, because several would wait for each other at each question."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        lock = self._lock
        if not lock.acquire(timeout=_PATIENCE_SECONDS):
            # The thread that has the turn waits for a disk.
            self._lock = lock = threading.Lock()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


_turns = _Turns()


class Threads:
    """Threads that ask disks: at most one for each name, however long its disk does not answer."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[threading.Thread, float]] = {}

    def start(self, name: str, work: Callable[[], None]) -> float | None:
        """Start a thread; if the previous one has not returned, give the seconds since its start instead."""
        before = self._started.get(name)
        if before is not None and before[0].is_alive():
            return time.monotonic() - before[1]
        thread = threading.Thread(target=work, name=f"scan of {name}", daemon=True)
        self._started[name] = (thread, time.monotonic())
        thread.start()
        return None


Answer = TypeVar("Answer")


def stalled(seconds: float) -> str:
    """The reason for a raw root that does not answer."""
    return (
        f"the raw root has not answered for {seconds:.0f} s and is skipped until it does; check its disk or "
        "its network, or remove it from raw_roots in lab.yaml"
    )


def slow(seconds: float, folders: int) -> str:
    """The reason for a raw root that answers so slowly that it would take too long."""
    return (
        f"the raw root answers so slowly that {seconds:.0f} s were enough for only {folders} of its folders, so it is "
        "left out here; check its disk or its network. While the lab is up, each look goes on where the previous one "
        "stopped, so its files are found in the end"
    )


class Disks:
    """Questions about files below raw roots; each waits for its answer only some seconds.

    A root that did not answer once is not asked again. `silent` gives the reason for each such root.
    """

    def __init__(self, roots: Iterable[Path], seconds: float) -> None:
        self._roots = sorted(roots, key=lambda root: -len(root.parts))
        self._seconds = seconds
        self.silent: dict[Path, str] = {}

    def ask(self, path: str | Path, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        """The answer to a question about a file, or `otherwise` if its disk gives none in time."""
        root = next((root for root in self._roots if Path(path).is_relative_to(root)), Path(path))
        if root in self.silent:
            return otherwise
        answers: list[Answer] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                answers.append(question())
            except Exception as error:  # a thread has nobody else to tell
                errors.append(error)

        thread = threading.Thread(target=work, name=f"question to {root}", daemon=True)
        thread.start()
        thread.join(self._seconds)
        if errors:
            raise errors[0]
        if not answers:
            self.silent[root] = stalled(self._seconds)
            return otherwise
        return answers[0]

    def answering(self) -> list[Path]:
        """The roots that answer now, or that do not exist."""
        for root in self._roots:
            self.ask(root, partial(os.path.isdir, root), False)
        return [root for root in self._roots if root not in self.silent]


def every_folder(root: str, layout: Layout, patience: float, most: float = LONGEST_SECONDS) -> list[Listing] | str:
    """The listings of all folders below a raw root, or the reason why it is given up.

    It is given up if it does not answer for `patience` seconds, or if the walk takes longer than `most` seconds.
    """
    found: list[Listing] = []
    errors: list[Exception] = []
    began = answered = time.monotonic()
    is_over = False

    def work() -> None:
        nonlocal answered
        todo = [""]
        try:
            while todo and not is_over:
                listing = list_folder(root, todo.pop(), layout)
                answered = time.monotonic()
                found.append(listing)
                todo += listing.folders
        except Exception as error:  # a thread has nobody else to tell
            errors.append(error)

    thread = threading.Thread(target=work, name=f"look at {root}", daemon=True)
    thread.start()
    while thread.is_alive():
        now = time.monotonic()
        thread.join(max(0.01, min(patience - (now - answered), most - (now - began))))
        silent, took = time.monotonic() - answered, time.monotonic() - began
        if thread.is_alive() and (silent >= patience or took >= most):
            is_over = True
            return stalled(silent) if silent >= patience else slow(took, len(found))
    if errors:
        raise errors[0]
    return found


def taken(found: "queue.Queue[Listed]") -> list[Listed]:
    batch: list[Listed] = []
    with suppress(queue.Empty):
        while len(batch) < TOGETHER:
            batch.append(found.get_nowait())
    return batch


class NestedRoots:
    """The choice of a root for each video if raw roots lie in each other: the first root that can place the video."""

    def __init__(self, roots: list[str], layout: Layout):
        self._pattern, self._layout = regex.compile(layout.pattern), layout
        self._others = {
            root: [other for other in roots if other != root and (lies_below(root, other) or lies_below(other, root))]
            for root in roots
        }
        self._before = {root: [o for o in self._others[root] if roots.index(o) < roots.index(root)] for root in roots}

    def videos(self, root: str, found: Sequence[FoundVideo]) -> Sequence[FoundVideo]:
        """The videos that no root before this one has."""
        before = self._before[root]
        return [v for v in found if not any(self._has(other, v.path) for other in before)] if before else found

    def left_out(self, root: str, skipped: Sequence[Skipped]) -> Sequence[Skipped]:
        """The skipped files that no other root has as videos."""
        others = self._others[root]
        return [i for i in skipped if not any(self._has(other, str(i.path)) for other in others)] if others else skipped

    def _has(self, root: str, path: str) -> bool:
        relative = path[len(root.rstrip("/")) + 1 :]
        if not lies_below(path, root) or not path.lower().endswith(self._layout.extensions) or "/." in f"/{relative}":
            return False
        return isinstance(place_of(self._pattern, root, relative, self._layout.unnamed_session), Place)


def lies_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")
