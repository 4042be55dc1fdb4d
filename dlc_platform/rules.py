"""Poses in force that a change of lab.yaml left behind: made with another region or precision than its rules say now.

Which poses the production model did not make is another question, which the database answers by itself.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from dlc_platform.catalog import queries
from dlc_platform.settings import Lab
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    import pandas as pd

#: What a person is told of them, and what to do.
OTHER_RULES = (
    "{sessions} sessions have poses of another region or precision than lab.yaml says now: estimate each again with "
    "`dlc-platform run HOME --select pose_estimates --partition KEY`, or all of them with a backfill in the UI"
)


def poses_of_other_rules(engine: Engine, settings: Lab) -> "pd.DataFrame":
    """The poses in force that were computed otherwise than lab.yaml says now, a row for each file.

    Imported poses are not among them, nor those of a camera that no inference rule names any more: they would not be
    estimated again.

    Returns
    -------
    DataFrame
        Columns session, camera, recording, position, path, made_with and lab_yaml; the last two in words.
    """
    from dlc_platform.dlc.inference import inference_parameters

    poses = queries.computed_poses(engine)
    made = list(poses.pop("inference_parameters"))
    now = []
    for session, camera, parameters in zip(poses["session"], poses["camera"], made, strict=True):
        rule = settings.rule_for(camera)
        region = settings.region_for(session, camera)
        now.append(inference_parameters(region, rule.precision) if rule else parameters)
    poses["made_with"] = [_in_words(parameters) for parameters in made]
    poses["lab_yaml"] = [_in_words(parameters) for parameters in now]
    other = [index for index, parameters in enumerate(made) if parameters != now[index]]
    return poses.iloc[other].reset_index(drop=True)


def _in_words(parameters: Mapping[str, Any]) -> str:
    picture = f"region {Region(**parameters['region'])}" if "region" in parameters else "whole picture"
    return f"{picture}, {parameters.get('precision', 'full')} precision"
