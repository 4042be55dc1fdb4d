"""The effect of using another model: the sessions whose poses become stale, and the time to estimate them again.

Nothing is decided or promoted here. `catalog.estimates.stale_sessions` lists what is stale under the models in
production.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, text

from dlc_platform.catalog.estimates import stale_under
from dlc_platform.text.words import counted, lasting, rounded

if TYPE_CHECKING:
    import pandas as pd

#: Queries for measured frames per second, the one closest to this model first; each with its name. All are about the
#: device that computed last, because a mean over GPUs and CPUs is the speed of neither.
_SPEEDS = (
    (
        "measured on its own estimates",
        "select sum(frames) / nullif(sum(seconds), 0) from dlc.pose_estimate "
        "where model_id = :model and origin = 'computed' group by device order by max(estimated_at) desc limit 1",
    ),
    (
        "measured on other versions of the same network",
        "select sum(e.frames) / nullif(sum(e.seconds), 0) from dlc.model_version m "
        "join dlc.model_version o on o.net_type = m.net_type join dlc.pose_estimate e on e.model_id = o.id "
        "where m.id = :model and e.origin = 'computed' group by e.device order by max(e.estimated_at) desc limit 1",
    ),
    (
        "measured on its evaluation",
        "select sum(d.train_images + d.test_images) / nullif(sum(e.seconds), 0) from dlc.evaluation e "
        "join dlc.dataset d on d.id = e.dataset_id where e.model_id = :model and e.seconds is not null",
    ),
)


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
    with engine.connect() as connection:
        for basis, query in _SPEEDS:
            if measured := connection.scalar(text(query), {"model": model_id}):
                return Impact(rows, float(measured), basis)
    return Impact(rows, None, "")
