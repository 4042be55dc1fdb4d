"""The effect of using another model: the sessions whose poses become stale, and the time to estimate them again.

Nothing is decided or promoted here. `catalog.estimates.stale_sessions` lists what is stale under the models in
production.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from dlc_platform.catalog.estimates import stale_under
from dlc_platform.catalog.models import measured_speed
from dlc_platform.text.words import counted, lasting, rounded

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Impact:
    """The poses that become stale when a model version is used for its project.

    Attributes
    ----------
    rows
        One for each session, the newest recording first: session, project, models (that made its poses), imported (true
        if all of them were), files, frames, recorded_at.
    frames_per_second
        The expected speed of the version; None if nothing was measured yet. `basis` says how it is known.
    """

    rows: list[dict[str, Any]]
    frames_per_second: float | None
    basis: str

    @property
    def sessions(self) -> "pd.DataFrame":
        """The rows as a table."""
        import pandas as pd

        columns = ("session", "project", "models", "imported", "files", "frames", "recorded_at")
        return pd.DataFrame(self.rows, columns=pd.Index(columns))

    @property
    def frames(self) -> int:
        """The number of frames to estimate again."""
        return sum(row["frames"] for row in self.rows)

    @property
    def hours(self) -> float | None:
        """The hours that one device would take; None if no speed was measured."""
        return self.frames / self.frames_per_second / 3600 if self.frames_per_second else None

    def __str__(self) -> str:
        if not self.rows:
            return "no session becomes stale"
        cost = (
            f"about {lasting(self.hours)} of one device at {rounded(self.frames_per_second)} frames/s, {self.basis}"
            if self.hours is not None and self.frames_per_second is not None
            else "the time is not known, because nothing was measured"
        )
        sessions = counted(len(self.rows), "session becomes", "sessions become")
        return f"{sessions} stale, {counted(self.frames, 'frame')}: {cost}"


def impact_of(engine: Engine, model_id: str) -> Impact:
    """The effect of promoting this model version."""
    rows = stale_under.rows(engine, model_id)
    speed, basis = measured_speed(engine, model_id)
    return Impact(rows, speed, basis)
