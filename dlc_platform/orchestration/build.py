"""The code location of a lab, put together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from dlc_platform.orchestration.alerts import alert_checks, alert_sensors, freshness_policy
from dlc_platform.orchestration.assets.comparison import model_comparison
from dlc_platform.orchestration.assets.models import model_assets
from dlc_platform.orchestration.assets.poses import pose_assets, pose_estimates
from dlc_platform.orchestration.assets.production import production_model
from dlc_platform.orchestration.assets.report import days, report_asset
from dlc_platform.orchestration.assets.sessions import session_assets
from dlc_platform.orchestration.assets.upkeep import upkeep_assets
from dlc_platform.orchestration.checks import default_checks
from dlc_platform.orchestration.jobs import default_jobs
from dlc_platform.orchestration.resources import lab_resource
from dlc_platform.orchestration.retries import start_waiting_retries
from dlc_platform.orchestration.schedules import morning_report, upkeep_freshness, upkeep_schedules
from dlc_platform.orchestration.sensors import reestimate_stale_sessions, session_sensor
from dlc_platform.settings.loading import load_lab


def build_definitions(home: Path, resources: dict[str, Any] | None = None) -> dg.Definitions:
    """All definitions of the lab at `home`.

    Parameters
    ----------
    resources
        Resources that replace the usual ones.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid.
    """
    lab = load_lab(home)
    recipes = dg.StaticPartitionsDefinition(sorted(lab.recipes))
    report_days = days(home, lab.time_zone)
    report_job, report_schedule = morning_report(lab)
    late = upkeep_freshness(lab)
    if (policy := freshness_policy(lab.freshness)) is not None:
        late[pose_estimates.key.to_user_string()] = policy
    status = dg.DefaultSensorStatus.RUNNING if lab.stage == "production" else dg.DefaultSensorStatus.STOPPED
    return dg.Definitions(
        assets=[
            *session_assets,
            *model_assets(recipes),
            model_comparison,
            production_model,
            *_with_freshness(pose_assets, late),
            report_asset(report_days, lab.time_zone),
            *_with_freshness(upkeep_assets, late),
        ],
        asset_checks=[*default_checks, *alert_checks],
        jobs=[*default_jobs, report_job],
        schedules=[report_schedule, *upkeep_schedules(lab)],
        sensors=[
            session_sensor(lab.scan_seconds, status),
            reestimate_stale_sessions,
            *alert_sensors(status),
            start_waiting_retries,
        ],
        resources={"lab": lab_resource(home), **(resources or {})},
        executor=dg.in_process_executor,
    )


def _with_freshness(
    assets: Sequence[dg.AssetsDefinition], policies: Mapping[str, dg.FreshnessPolicy]
) -> list[dg.AssetsDefinition]:
    def mapped(spec: dg.AssetSpec) -> dg.AssetSpec:
        policy = policies.get(spec.key.to_user_string())
        return spec if policy is None else spec.replace_attributes(freshness_policy=policy)

    return [asset.map_asset_specs(mapped) for asset in assets]
