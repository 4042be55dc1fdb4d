"""May a file be tracked, and by which model: one answer for the sensor, the plan and the list of what waits.

`catalog.wanted` asks the same question about many files at once, in SQL. `models.judging` judges models,
`sessions.video_checks` videos.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine

from dlc_platform.catalog.promotions import production_model
from dlc_platform.identity import short
from dlc_platform.models.judging import judge_version, what_to_do
from dlc_platform.sessions.video_checks import unreadable
from dlc_platform.settings.promotion import ModelRules
from dlc_platform.store import Store
from dlc_platform.video.opening import COPY_AGAIN


@dataclass(frozen=True)
class Obstacle:
    """The reason why a file is not tracked, and what to do about it, unless that is said elsewhere."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True)
class Trackers:
    """The models that track the files of a lab now.

    Attributes
    ----------
    models
        The production model of each project that has one.
    held
        The projects whose model tracks nothing by itself, with the sentences that say why and what to do.
    """

    models: Mapping[str, str]
    held: Mapping[str, str]

    @property
    def projects(self) -> list[str]:
        """The projects whose files are tracked by themselves."""
        return [project for project in self.models if project not in self.held]

    def obstacle(self, project: str | None) -> Obstacle | None:
        """The reason why the files of cameras that the inference rules give to this project are not tracked; None if
        they are."""
        if project is None:
            return Obstacle("no inference rule matches its camera", "Add one under `inference` in lab.yaml")
        if project not in self.models:
            return Obstacle(f"the project {project} has no production model", "Train or import one, and promote it")
        if project in self.held:
            reason, _, remedy = self.held[project].partition(". ")
            return Obstacle(reason, remedy.rstrip("."))
        return None


def find_trackers(engine: Engine, store: Store, projects: Iterable[str], rules: ModelRules) -> Trackers:
    """The models that track the files of these projects now.

    A model that is hopeless, or that cannot be judged, tracks nothing by itself; a person may still use it.
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
    """The reason why no model may track a registered video; None if one may, or if only the quarantine of the video
    forbids it.

    Parameters
    ----------
    problem
        The reason why it cannot be read, as the catalogue keeps it. A release does not make it readable.
    damage
        The words for its damage.
    is_released
        True if a person released it from quarantine.
    damaged_videos
        The rule of lab.yaml for damaged videos.
    """
    if problem is not None:
        return Obstacle(*unreadable(problem))
    if damage is not None and damaged_videos == "stop" and not is_released:
        return Obstacle(
            f"it is {damage}, and `damaged_videos` in lab.yaml says stop",
            f"{COPY_AGAIN}, or write `damaged_videos: track` into lab.yaml to track what can be decoded",
        )
    return None
