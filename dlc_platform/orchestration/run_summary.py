"""The summary at the end of `dlc-platform run`: the work that was done, its time, the rest, and where to look."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import dagster as dg

from dlc_platform.errors import command
from dlc_platform.lab.waiting import waiting
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.text.assets import (
    LABELED_FRAMES,
    MODEL_EVALUATION,
    POSE_ESTIMATES,
    SESSION_VIDEOS,
    TRAINED_MODEL,
    TRAINING_DATASET,
)
from dlc_platform.text.words import counted, lasting, listed

#: The words for the work on a session or a recipe when an asset of it is materialised.
_DONE = {
    SESSION_VIDEOS: "registered",
    LABELED_FRAMES: "searched for labels",
    POSE_ESTIMATES: "tracked",
    TRAINING_DATASET: "given a dataset",
    TRAINED_MODEL: "trained",
    MODEL_EVALUATION: "evaluated",
}


@dataclass
class _Work:
    """The requests for one asset, and their results; `frames` is None if none are counted."""

    asked: list[str] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    frames: int | None = None
    found: int = 0


class RunSummary:
    """Counts the sessions and recipes that the runs of one command make."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._work: dict[str, _Work] = {}

    def add(self, asset: dg.AssetKey, keys: Sequence[str], events: Iterable[dg.DagsterEvent]) -> None:
        """Count a run of one asset for some sessions or recipes; runs of other assets are not counted.

        Parameters
        ----------
        keys
            The partitions of the run; empty for an asset without partitions.
        events
            The events of the run.
        """
        name = asset.to_user_string()
        if not keys or name not in _DONE:
            return
        work = self._work.setdefault(name, _Work())
        work.asked += keys
        for event in events:
            if not event.is_step_materialization or event.asset_key != asset or event.partition is None:
                continue
            work.made.add(event.partition)
            metadata = event.materialization.metadata
            if isinstance(frames := metadata.get("frames"), dg.IntMetadataValue):
                work.frames = (work.frames or 0) + (frames.value or 0)
            recordings = metadata.get("recordings")
            if name == POSE_ESTIMATES and isinstance(recordings, dg.TableMetadataValue):
                # Nothing was made for files that were left out.
                made = {str(row.data["made"]) for row in recordings.records if row.data["made"]}
                work.found += "now" not in made

    def lines(self) -> Iterator[str]:
        """The work that was done and the work that was not, a line each; no lines if there was no work."""
        if not self._work:
            return
        yield f"That took {lasting((time.monotonic() - self._began) / 3600)}:"
        undone: dict[str, None] = {}
        for name, work in self._work.items():
            things = "recipe" if name in (TRAINING_DATASET, TRAINED_MODEL, MODEL_EVALUATION) else "session"
            number = f"{len(work.made)} of {counted(len(work.asked), things)}"
            if len(work.made) == len(work.asked):
                number = counted(len(work.made), things)
            frames = "" if work.frames is None else f", {work.frames:,} {'frame' if work.frames == 1 else 'frames'}"
            found = f"; {counted(work.found, 'session')} had these poses already" if work.found else ""
            yield f"  {number} {_DONE[name]}{frames}{found}"
            undone |= dict.fromkeys(key for key in work.asked if key not in work.made)
        if undone:
            yield f"  NOT done: {listed(list(undone))}. The reasons stand above"

    def where_to_look(self, lab: LabResource) -> Iterator[str]:
        """The commands that say more about the work, and about sessions that wait for a person."""
        held = {one.session for one in waiting(lab.engine, lab.settings) if not one.passing} if self._work else ()
        if held:
            yield (
                f"{counted(len(held), 'session waits', 'sessions wait')} for a person: "
                f"{command('sessions', lab.home, '--waiting')} says why and what to do"
            )
        if SESSION_VIDEOS in self._work:
            yield f"{command('scan', lab.home, '--dry-run')} says what else lies below the raw roots"
        if POSE_ESTIMATES in self._work:
            yield f"{command('poses', lab.home)} lists the recordings that have poses"
        elif SESSION_VIDEOS in self._work:
            yield f"{command('sessions', lab.home)} lists what is registered"
