"""The moments of a session that a person should look at, by the rules that its poses were judged by.

What a moment is, is said in `pose.moments`. Nothing is written down here: moments are looked for when somebody looks.
"""

from collections.abc import Callable

from sqlalchemy import Engine

from dlc_platform.catalog.verdicts import poses_to_judge
from dlc_platform.errors import PlatformError
from dlc_platform.estimates.quality_gate import ModelReference, what_labels_and_rules_say
from dlc_platform.pose.moments import Moment, moments
from dlc_platform.pose.scores import Keypoints
from dlc_platform.settings.quality import PoseRules


def moments_of(
    engine: Engine,
    rules: PoseRules,
    session: str,
    estimate: str,
    poses: Keypoints,
    reference: Callable[[str | None], ModelReference],
    most: int,
) -> tuple[list[Moment], int]:
    """The moments of one file of a session whose poses are in force, and how many more there are.

    Parameters
    ----------
    poses
        Those of the estimate.
    reference
        What gives the reference of a model version; see `quality_gate.references`.

    Raises
    ------
    PlatformError
        When the estimate is no longer in force.
    """
    rows = [row for row in poses_to_judge(engine, session).to_dict("records") if row["pose_estimate"] == estimate]
    if not rows:
        raise PlatformError("these poses are no longer in force", "Load the page again")
    row = rows[0]
    labels, arena = what_labels_and_rules_say(rules, session, row, reference(row["model"]))
    return moments(poses, labels, rules.models.cutoff, (row["width"], row["height"]), arena, most)
