"""May a file be tracked, and by which model: one answer for the sensor, the plan and the list of what waits.

The same question is asked of many files at once, in SQL, by `catalog.wanted`. How a model is judged is in
`quality_gate`, what is wrong with a video in `sessions.video_checks`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine

from dlc_platform.catalog.promotions import production_model
from dlc_platform.identity import short
from dlc_platform.models.judging import judge_version, what_to_do
from dlc_platform.settings.promotion import ModelRules
from dlc_platform.store import Store


@dataclass(frozen=True)
class Obstacle:
    """Why a file is not tracked, and what to do about it, if that is not said already."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True)
class Trackers:
    """What the files of a lab are tracked with now.

    Attributes
    ----------
    models
        The production model of each project that has one.
    held
        Of these projects, those whose model tracks nothing by itself, with the sentences that say why and what to do.
    """

    models: Mapping[str, str]
    held: Mapping[str, str]

    @property
    def projects(self) -> list[str]:
        """The projects whose files are tracked by themselves."""
        return [project for project in self.models if project not in self.held]

    def obstacle(self, project: str | None) -> Obstacle | None:
        """Why files of a camera are not tracked that the inference rules give to this project; None if they are."""
        if project is None:
            return Obstacle("no inference rule matches its camera", "Add one under `inference` in lab.yaml")
        if project not in self.models:
            return Obstacle(f"the project {project} has no production model", "Train or import one, and promote it")
        if project in self.held:
            reason, _, remedy = self.held[project].partition(". ")
            return Obstacle(reason, remedy.rstrip("."))
        return None


def find_trackers(engine: Engine, store: Store, projects: Iterable[str], rules: ModelRules) -> Trackers:
    """What the files of these projects are tracked with now.

    A model that is hopeless, or cannot be judged, tracks nothing by itself; a person may have it track.
    """
    projects = list(projects)
    found = {project: production_model(engine, project) for project in projects}
    models = {project: model for project, model in found.items() if model is not None}
    held = {}
    for project, model in models.items():
        judgement = judge_version(engine, store, model, rules)
        if not judgement.tracks_by_itself:
            held[project] = (
                f"the production model {short(model)} of {project} is {judgement}. So nothing is tracked with it by "
                f"itself. {what_to_do(judgement)}"
            )
    return Trackers(models, held)


def video_obstacle(
    problem: str | None, damage: str | None, is_released: bool, damaged_videos: Literal["track", "stop"]
) -> Obstacle | None:
    """Why a registered video is not tracked whatever its model; None if it may be, or if only its quarantine says no.

    Parameters
    ----------
    problem
        Why it cannot be read.
    damage
        How it is damaged.
    is_released
        True if a person let it go out of quarantine.
    damaged_videos
        What lab.yaml says of damaged ones.
    """
    if problem is not None:
        return Obstacle(problem, "")
    if damage is not None and damaged_videos == "stop" and not is_released:
        return Obstacle(f"it is {damage}, and `damaged_videos` in lab.yaml says stop", "")
    return None
