"""The platform from a notebook: a lab's catalogue and poses as DataFrames.

Reading only; what computes is started through Dagster or `dlc-platform run`.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from dlc_platform.catalog import queries
from dlc_platform.catalog.database import migrate, open_catalog
from dlc_platform.errors import PlatformError
from dlc_platform.postgres.connection import postgres_url
from dlc_platform.settings import load_lab
from dlc_platform.store import Store

if TYPE_CHECKING:
    import pandas as pd


class Platform:
    """A lab, read.

    Parameters
    ----------
    home
        The folder that holds lab.yaml. Its embedded Postgres is started if it does not run.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid or Postgres cannot be reached.

    Examples
    --------
    >>> lab = Platform("my-lab")  # doctest: +SKIP
    >>> poses = lab.poses("sub-001_ses-01", bodyparts=["snout"])  # doctest: +SKIP
    """

    def __init__(self, home: str | Path):
        self.home = Path(home).expanduser().resolve()
        self.settings = load_lab(self.home)
        self._store = Store(self.settings.store)

    @cached_property
    def _engine(self) -> Engine:
        engine = open_catalog(postgres_url(self.home))
        migrate(engine)
        return engine

    def sessions(self) -> "pd.DataFrame":
        """One row for each current file of each session, with the model that tracked it or the problem it has."""
        return queries.sessions(self._engine)

    def models(self) -> "pd.DataFrame":
        """One row for each training, oldest first, with the RMSE on the frozen test images in pixels."""
        return queries.models(self._engine)

    def evaluations(self) -> "pd.DataFrame":
        """One row for each evaluation, side of the split and body part; distances in pixels."""
        return queries.evaluations(self._engine)

    def estimates(self) -> "pd.DataFrame":
        """One row for each recording that has poses, with the estimate in force and its quality."""
        return queries.poses(self._engine)

    def poses(self, session: str, bodyparts: list[str] | None = None) -> "pd.DataFrame":
        """The poses of a session.

        Returns
        -------
        DataFrame
            Columns session, recording, frame (from 0), time_s (seconds from the recording's first frame), individual,
            bodypart, x, y (pixels, origin at the top left of the full frame; NaN where there is no estimate) and
            likelihood (0 to 1).

        Raises
        ------
        PlatformError
            When the session has no poses, or a body part is unknown.
        """
        import pandas as pd

        from dlc_platform.pose.table import POSE_TABLE, read_parquet

        tables = []
        for row in self._estimates_of(session).to_dict("records"):
            path = self._store.path("poses", row["pose_estimate"]) / POSE_TABLE
            if not path.is_file():
                raise PlatformError(
                    f"{path} is missing, but the catalogue names it",
                    "Bring the store back, or estimate the session again",
                )
            table = read_parquet(path, bodyparts)
            table.insert(0, "session", session)
            table.insert(1, "recording", row["recording"])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def lineage(self, session: str) -> "pd.DataFrame":
        """What made the poses of a session: model version, labels, parameters, software versions and run, a row each.

        Raises
        ------
        PlatformError
            When the session has no poses.
        """
        self._estimates_of(session)
        return queries.lineage(self._engine, session)

    def _estimates_of(self, session: str) -> "pd.DataFrame":
        estimates = queries.poses(self._engine, session)
        if estimates.empty:
            raise PlatformError(
                f"session {session!r} has no poses",
                "Look for it in sessions(), and materialise pose_estimates for it if it is there",
            )
        return estimates
