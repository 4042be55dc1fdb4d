from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from dlc_platform.errors import PlatformError
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.materialize import _selected
from dlc_platform.orchestration.partitions import sessions
from dlc_platform.orchestration.schedules import interval
from dlc_platform.text import assets as names

EVERY_SESSION = "sessions (one run for many)"
EVERY_RECIPE = "recipes big, small"

ASSETS = {
    "session_videos": {
        "deps": [],
        "partitions": EVERY_SESSION,
        "group": "sessions",
        "owners": ["team:acquisition"],
        "kinds": ["video"],
        "pool": None,
    },
    "labeled_frames": {
        "deps": ["session_videos"],
        "partitions": EVERY_SESSION,
        "group": "sessions",
        "owners": ["team:acquisition"],
        "kinds": ["deeplabcut"],
        "pool": None,
    },
    "training_dataset": {
        "deps": ["labeled_frames"],
        "partitions": EVERY_RECIPE,
        "group": "models",
        "owners": ["team:pose-estimation"],
        "kinds": ["deeplabcut", "parquet"],
        "pool": None,
    },
    "trained_model": {
        "deps": ["training_dataset"],
        "partitions": EVERY_RECIPE,
        "group": "models",
        "owners": ["team:pose-estimation"],
        "kinds": ["deeplabcut", "pytorch"],
        "pool": "gpu",
    },
    "model_evaluation": {
        "deps": ["trained_model"],
        "partitions": EVERY_RECIPE,
        "group": "models",
        "owners": ["team:pose-estimation"],
        "kinds": ["deeplabcut", "parquet"],
        "pool": "gpu",
    },
    "model_comparison": {
        "deps": ["model_evaluation"],
        "partitions": None,
        "group": "models",
        "owners": ["team:pose-estimation"],
        "kinds": ["deeplabcut", "postgres"],
        "pool": "gpu",
    },
    "production_model": {
        "deps": ["model_comparison"],
        "partitions": None,
        "group": "models",
        "owners": ["team:pose-estimation"],
        "kinds": ["postgres"],
        "pool": None,
    },
    "pose_estimates": {
        "deps": ["production_model", "session_videos"],
        "partitions": EVERY_SESSION,
        "group": "poses",
        "owners": ["team:pose-estimation"],
        "kinds": ["deeplabcut", "parquet"],
        "pool": "gpu",
    },
    "production_evaluation": {
        "deps": ["production_model", "training_dataset"],
        "partitions": None,
        "group": "upkeep",
        "owners": ["team:pose-estimation"],
        "kinds": ["deeplabcut", "postgres"],
        "pool": "gpu",
    },
    **{
        asset: {
            "deps": [],
            "partitions": None,
            "group": "upkeep",
            "owners": ["team:acquisition"],
            "kinds": ["postgres"],
            "pool": None,
        }
        for asset in ("store_verification", "lab_backup", "lab_cleaning")
    },
    "daily_report": {
        "deps": [],
        "partitions": "days in Europe/Berlin",
        "group": "reports",
        "owners": ["team:acquisition"],
        "kinds": ["postgres"],
        "pool": None,
    },
    "pose_quality": {
        "deps": ["pose_estimates"],
        "partitions": EVERY_SESSION,
        "group": "poses",
        "owners": ["team:pose-estimation"],
        "kinds": ["postgres"],
        "pool": None,
    },
}

JOBS = {
    "back_up": ["lab_backup"],
    "clean_up": ["lab_cleaning"],
    "evaluate_new_labels": ["production_evaluation", "training_dataset"],
    "verify_store": ["store_verification"],
    "estimate_poses": ["pose_estimates", "pose_quality"],
    "process_sessions": ["labeled_frames", "pose_estimates", "pose_quality", "session_videos"],
    "promote_model": ["production_model"],
    "report_day": ["daily_report"],
    "train_recipe": ["model_comparison", "model_evaluation", "production_model", "trained_model", "training_dataset"],
}

SENSORS = {
    "new_session_videos": {"job": "process_sessions", "seconds": 7, "status": "RUNNING"},
    "reestimate_stale_sessions": {"job": "estimate_poses", "seconds": 60, "status": "STOPPED"},
    "watch_sessions": {"job": None, "seconds": 120, "status": "RUNNING"},
    "deliver_notifications": {"job": None, "seconds": 30, "status": "RUNNING"},
    "start_waiting_retries": {"job": None, "seconds": 10, "status": "RUNNING"},
}

SCHEDULES = {
    "morning_report": {"job": "report_day", "cron": "0 7 * * *"},
    "catch_up": {"job": "process_sessions", "cron": "30,40 2 * * *"},
    "evaluate_new_labels": {"job": "evaluate_new_labels", "cron": "0 3 * * 6"},
    "verify_store": {"job": "verify_store", "cron": "0 4 1 * *"},
    "back_up": {"job": "back_up", "cron": "0 6 1 * *"},
    "clean_up": {"job": "clean_up", "cron": "0 5 * * *"},
}


def defined(home: Path, **others: Any) -> dg.Definitions:
    recipe = {"project": "maze", "weights": "random"}
    settings = {
        "raw_roots": ["raw"],
        "projects": {"maze": {"path": "maze"}},
        "recipes": {"small": recipe, "big": recipe},
        "scan_seconds": 7,
        "time_zone": "Europe/Berlin",
        "freshness": {"warn_hours": 24, "fail_hours": 48},
        **others,
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(settings))
    return build_definitions(home)


@pytest.fixture
def definitions(tmp_path: Path) -> dg.Definitions:
    return defined(tmp_path)


def test_the_names_of_assets_stand_in_one_place() -> None:
    assert {value for name, value in vars(names).items() if name.isupper()} == set(ASSETS)


def test_the_asset_graph(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()

    def described(key: dg.AssetKey) -> dict[str, Any]:
        node = graph.get(key)
        return {
            "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
            "partitions": partitions(node),
            "group": node.group_name,
            "owners": list(node.owners),
            "kinds": sorted(node.kinds),
            "pool": next(iter(node.pools or ()), None),
        }

    def partitions(node: Any) -> str | None:
        if node.partitions_def is None:
            return None
        if node.partitions_def == sessions:
            many = node.backfill_policy == dg.BackfillPolicy.single_run()
            return EVERY_SESSION if many else "sessions"
        if isinstance(node.partitions_def, dg.DailyPartitionsDefinition):
            return f"days in {node.partitions_def.timezone}"
        return f"recipes {', '.join(node.partitions_def.get_partition_keys())}"

    assert {key.to_user_string(): described(key) for key in graph.get_all_asset_keys()} == ASSETS
    assert all(graph.get(key).description for key in graph.get_all_asset_keys())
    assert all(graph.get(key).code_version for key in graph.get_all_asset_keys())


def test_jobs_and_sensors(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    found = {
        job.name: sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys)
        for job in repository.get_all_jobs()
        if not job.name.startswith("__")
    }
    assert found == JOBS
    assert {
        sensor.name: {
            "job": sensor.job.name if sensor.has_jobs else None,
            "seconds": sensor.minimum_interval_seconds,
            "status": sensor.default_status.value,
        }
        for sensor in repository.sensor_defs
    } == SENSORS
    assert {
        schedule.name: {"job": schedule.job.name, "cron": schedule.cron_schedule}
        for schedule in repository.schedule_defs
    } == SCHEDULES
    described = {one.name: one.description for one in [*repository.sensor_defs, *repository.schedule_defs]}
    assert not [name for name, text in described.items() if not text], "the UI shows what each is for"
    assert {schedule.execution_timezone for schedule in repository.schedule_defs} == {"Europe/Berlin"}
    assert {schedule.default_status.value for schedule in repository.schedule_defs} == {"RUNNING"}


def test_out_of_production_nothing_starts_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting; and the environment, which CI sets, has the last word."""
    for stage, variable in (("staging", None), ("production", "development")):
        if variable:
            monkeypatch.setenv("DLC_PLATFORM_STAGE", variable)
        repository = defined(tmp_path, stage=stage).get_repository_def()
        assert {schedule.default_status.value for schedule in repository.schedule_defs} == {"STOPPED"}
        on = {sensor.name for sensor in repository.sensor_defs if sensor.default_status.value == "RUNNING"}
        assert on == {"start_waiting_retries"}
        assert policies(repository.asset_graph) == {"pose_estimates": timedelta(hours=48)}
    monkeypatch.setenv("DLC_PLATFORM_STAGE", "live")
    with pytest.raises(PlatformError, match=r"DLC_PLATFORM_STAGE is 'live'.*production, staging, development"):
        build_definitions(tmp_path)


def test_a_schedule_that_has_no_time_is_not_there(tmp_path: Path) -> None:
    times = {"catch_up": None, "evaluate_new_labels": None, "verify_store": "0 1 * * 0", "back_up": "0 1 1 1 *"}
    definitions = defined(tmp_path, schedules=times)
    found = {one.name: one.cron_schedule for one in definitions.get_repository_def().schedule_defs}
    assert found == {
        "morning_report": "0 7 * * *",
        "verify_store": "0 1 * * 0",
        "back_up": "0 1 1 1 *",
        "clean_up": "0 5 * * *",
    }


def test_upkeep_is_not_missing_when_everything_else_is_asked_for(definitions: dg.Definitions) -> None:
    names = [key.to_user_string() for key in _selected(definitions, "*")]
    assert set(names) == {asset for asset, described in ASSETS.items() if described["group"] != "upkeep"}
    for selection in ("lab_backup", "group:upkeep", "*, lab_backup"):
        assert dg.AssetKey("lab_backup") in _selected(definitions, selection)


def policies(graph: Any) -> dict[str, timedelta]:
    """How old each asset may be that has a limit."""
    return {
        key.to_user_string(): policy.fail_window.to_timedelta()
        for key in graph.get_all_asset_keys()
        if (policy := graph.get(key).freshness_policy) is not None
    }


def test_an_asset_is_late_half_an_interval_after_it_was_due(definitions: dg.Definitions) -> None:
    assert policies(definitions.resolve_asset_graph()) == {
        "pose_estimates": timedelta(hours=48),
        "production_evaluation": pytest.approx(timedelta(days=10.5), abs=timedelta(hours=2)),
        "store_verification": pytest.approx(timedelta(days=46.5), abs=timedelta(hours=2)),
        "lab_backup": pytest.approx(timedelta(days=46.5), abs=timedelta(hours=2)),
        "lab_cleaning": pytest.approx(timedelta(days=1.5), abs=timedelta(hours=2)),
    }


@pytest.mark.parametrize(
    ("cron", "longest"),
    [
        ("0 5 * * *", timedelta(days=1)),
        ("* * * * *", timedelta(minutes=1)),
        ("*/5 8-9 * * *", timedelta(hours=22, minutes=5)),
        ("0 */6 * * 1-5", timedelta(days=2, hours=6)),
        ("*/5 8-9 1 * *", timedelta(days=30, hours=22, minutes=5)),
        ("0 12 31 * *", timedelta(days=61)),
        ("*/10 * * 1 *", timedelta(days=334, minutes=10)),
        ("0 1 1 1 *", timedelta(days=366)),
        ("0 0 29 2 *", timedelta(days=4 * 365 + 1)),
    ],
)
def test_the_longest_time_between_two_ticks_is_found(cron: str, longest: timedelta) -> None:
    """Whatever time it is: many ticks lie close together in an hour of the day, or in a month of the year."""
    for now in (datetime(2026, 11, 28, 8, 3, tzinfo=UTC), datetime(2027, 1, 1, 9, 1, tzinfo=UTC)):
        assert interval(cron, "Europe/Berlin", now) == pytest.approx(longest, abs=timedelta(hours=1))
        assert interval(cron, "UTC", now) == longest


def test_poses_are_fresh_as_long_as_the_lab_says(definitions: dg.Definitions) -> None:
    policy = definitions.resolve_asset_graph().get(dg.AssetKey("pose_estimates")).freshness_policy
    assert isinstance(policy, TimeWindowFreshnessPolicy)
    assert policy.fail_window.to_timedelta() == timedelta(hours=48)
    assert policy.warn_window is not None
    assert policy.warn_window.to_timedelta() == timedelta(hours=24)


def test_no_configuration_of_a_run_names_another_lab(definitions: dg.Definitions, tmp_path: Path) -> None:
    """Whoever may start a run writes its configuration."""
    job = definitions.resolve_implicit_global_asset_job_def()
    for other in ({"home": str(tmp_path)}, {"home": {"env": "HOME"}}):
        with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "home"'):
            dg.validate_run_config(job, {"resources": {"lab": {"config": other}}})
    assert dg.validate_run_config(job, {})["resources"]["lab"] == {"config": {}}
