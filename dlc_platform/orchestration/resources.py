"""The one resource: the lab, with its settings, its store and its catalogue."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from sqlalchemy import Engine

from dlc_platform.catalog.database import open_lab
from dlc_platform.errors import PlatformError
from dlc_platform.sessions.recordings import Scan, scan
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store

if TYPE_CHECKING:
    from dlc_platform.estimates.quality_gate import PoseJudge


class LabResource(dg.ConfigurableResource):
    """A lab's home, opened when it is first used."""

    home: str

    @cached_property
    def settings(self) -> Lab:
        return load_lab(Path(self.home))

    @cached_property
    def store(self) -> Store:
        return Store(self.settings.store)

    @cached_property
    def engine(self) -> Engine:
        return open_lab(Path(self.home))

    @cached_property
    def pose_judge(self) -> "PoseJudge":
        """Judges poses for the run that has this resource."""
        from dlc_platform.estimates.quality_gate import PoseJudge

        return PoseJudge(self.engine, self.store, self.settings.pose_rules)

    @property
    def workspaces(self) -> Path:
        """The folder in which networks are trained; its content is useful only for trainings that can be continued."""
        return Path(self.home) / "work"

    def scan(self) -> Scan:
        return scan(self.settings.raw_roots, self.settings.layout, self.settings.scan.root_timeout_seconds)

    def recipe(self, name: str) -> Recipe:
        """
        Raises
        ------
        PlatformError
            When lab.yaml has no such recipe.
        """
        try:
            return self.settings.recipes[name]
        except KeyError:
            raise PlatformError(
                f"lab.yaml has no recipe {name!r}; it has {', '.join(self.settings.recipes) or 'none'}",
                "Add it under `recipes`, or reload the definitions if it was removed",
            ) from None


def lab_resource(home: Path) -> dg.ResourceDefinition:
    """The lab for the definitions: opened anew for each run and each look, and without configuration.

    A plain `LabResource` would take its home from the configuration of a run, which anybody who starts a run can write.
    """
    return dg.ResourceDefinition(
        lambda _: LabResource(home=str(home)), config_schema={}, description="The lab, as DLC_PLATFORM_HOME names it."
    )
