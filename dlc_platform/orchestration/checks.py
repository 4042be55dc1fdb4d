"""Asset checks: what the UI shows in red or yellow beside an asset, read from the catalogue.

A check looks at what is there and computes nothing; what to do about it is for a person, or for a rule of lab.yaml.
"""

import dagster as dg

from dlc_platform.catalog import queries
from dlc_platform.orchestration.assets.poses import pose_estimates
from dlc_platform.orchestration.assets.production import production_model
from dlc_platform.orchestration.metadata import stale_rows, table
from dlc_platform.orchestration.resources import LabResource


# After a promotion in the same run, not before it.
@dg.asset_check(asset=pose_estimates, additional_deps=[production_model])
def made_by_production_models(lab: LabResource) -> dg.AssetCheckResult:
    """Whether the poses in force of every session were made by the production model of their camera's project.

    Imported poses were chosen by a person and count as current.
    """
    stale = queries.stale_sessions(lab.engine, imported=False)
    return dg.AssetCheckResult(
        passed=stale.empty,
        severity=dg.AssetCheckSeverity.WARN,
        description=""
        if stale.empty
        else f"{stale['session'].nunique()} sessions are stale, {stale['frames'].sum()} "
        "frames: estimate them again with `dlc-platform backfill --stale`, or switch the sensor "
        "reestimate_stale_sessions on",
        metadata={"stale_sessions": len(stale), **({} if stale.empty else {"sessions": table(stale_rows(stale))})},
    )


default_checks = [made_by_production_models]
