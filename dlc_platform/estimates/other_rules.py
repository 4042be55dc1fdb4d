"""Poses in force that would be computed differently now: by the region and precision of lab.yaml, or with other tracks.

Poses that another model made are another question; the database alone answers it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from dlc_platform.catalog.estimates import computed_poses
from dlc_platform.catalog.sessions import registered_cameras
from dlc_platform.settings.inference import Tracking
from dlc_platform.store import Store
from dlc_platform.video.region import Region

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("session", "camera", "recording", "position", "path", "made_with", "lab_yaml")
#: The most cameras that a sentence names.
_NAMED = 5
#: The sentence for a person about them, and the remedy.
OTHER_RULES = (
    "{sessions} poses of another region or precision than lab.yaml says now, or of several animals that "
    "an earlier version tracked differently: estimate each again with `dlc-platform run HOME pose_estimates "
    "--partition KEY`, or all of them with a backfill in the UI"
)


def poses_of_other_rules(engine: Engine, store: Store, now: Tracking) -> "pd.DataFrame":
    """The poses in force that would be computed differently now, a row for each file.

    Imported poses and those of a camera that no inference rule names any more are left out: they would not be estimated
    again.

    Returns
    -------
    DataFrame
        Columns session, camera, recording, position, path, made_with and lab_yaml; the last two in words.
    """
    import pandas as pd

    return pd.DataFrame(made_by_other_rules(engine, store, now), columns=pd.Index(_COLUMNS))


def made_by_other_rules(engine: Engine, store: Store, now: Tracking) -> list[dict[str, Any]]:
    """As `poses_of_other_rules`, as rows."""
    poses = computed_poses.rows(engine)
    if not poses:
        return []
    from dlc_platform.dlc.parameters import has_several_animals, inference_parameters

    kept = {model for model in {row["model"] for row in poses} if store.has("models", model)}
    several = {model: has_several_animals(store.path("models", model)) for model in kept}
    other = []
    for row in poses:
        made = row["inference_parameters"]
        tracks = several.get(row["model"], "tracking" in made)
        rule = now.rule_for(row["camera"])
        region = now.region_for(row["session"], row["camera"])
        asked = inference_parameters(region, rule.precision, tracks) if rule else made
        if made != asked:
            words = {"made_with": _in_words(made, tracks), "lab_yaml": _in_words(asked, tracks)}
            other.append({name: (row | words)[name] for name in _COLUMNS})
    return other


def unread_rules(engine: Engine, now: Tracking) -> str | None:
    """The changes in lab.yaml's inference rules since the catalogue last followed them; None if there are none.

    The database lists stale poses and waiting sessions by the rules that were last written into it.
    """

    changed = [
        f"{name} ({project or 'no project'} before, {now.project_of(name) or 'no project'} now)"
        for name, project in registered_cameras(engine).items()
        if now.project_of(name) != project
    ]
    if not changed:
        return None
    cameras = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else "")
    return (
        f"the inference rules of lab.yaml have changed for the cameras {cameras}, and this answer follows the old "
        "ones. The lab follows the new ones from its next look at the raw roots, or its next start: ask again then"
    )


def _in_words(parameters: Mapping[str, Any], several_animals: bool) -> str:
    picture = f"region {Region(**parameters['region'])}" if "region" in parameters else "whole picture"
    tracking = f", tracking {parameters.get('tracking', 1)}" if several_animals else ""
    return f"{picture}, {parameters.get('precision', 'full')} precision{tracking}"
