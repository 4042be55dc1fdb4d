"""The code location of a lab, put together."""

from pathlib import Path
from typing import Any

import dagster as dg

from dlc_platform.orchestration.alerts import alert_checks, alert_sensors, freshness_policy
from dlc_platform.orchestration.assets.comparison import model_comparison
from dlc_platform.orchestration.assets.models import model_assets
from dlc_platform.orchestration.assets.poses import pose_assets, pose_estimates
from dlc_platform.orchestration.assets.production import production_model
from dlc_platform.orchestration.assets.report import report_asset
from dlc_platform.orchestration.assets.sessions import session_assets
from dlc_platform.orchestration.checks import default_checks
from dlc_platform.orchestration.jobs import default_jobs
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.schedules import morning_report
from dlc_platform.orchestration.sensors import reestimate_stale_sessions, session_sensor
from dlc_platform.settings import load_lab


def build_definitions(home: Path, resources: dict[str, Any] | None = None) -> dg.Definitions:
    """All definitions of the lab at `home`.

    Parameters
    ----------
    resources
        Resources that take the place of the usual ones.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid.
    """
    lab = load_lab(home)
    recipes = dg.StaticPartitionsDefinition(sorted(lab.recipes))
    report_job, report_schedule = morning_report(lab.time_zone)
    policy = freshness_policy(lab.freshness)
    poses = [
        asset.map_asset_specs(
            lambda spec: spec.replace_attributes(freshness_policy=policy) if spec.key == pose_estimates.key else spec
        )
        for asset in pose_assets
    ]
    return dg.Definitions(
        assets=[
            *session_assets,
            *model_assets(recipes),
            model_comparison,
            production_model,
            *poses,
            report_asset(lab.time_zone),
        ],
        asset_checks=[*default_checks, *alert_checks],
        jobs=[*default_jobs, report_job],
        schedules=[report_schedule],
        sensors=[session_sensor(lab.scan_seconds), reestimate_stale_sessions, *alert_sensors],
        resources={"lab": LabResource(home=str(home)), **(resources or {})},
        executor=dg.in_process_executor,
    )
