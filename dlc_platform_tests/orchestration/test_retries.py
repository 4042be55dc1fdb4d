"""Runs that a fault of the machine ended: each is tried again, whatever it makes and whoever started it."""

from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import RETRY_ON_ASSET_OR_OP_FAILURE_TAG, SCHEDULE_NAME_TAG, SENSOR_NAME_TAG

from dlc_platform.orchestration.build import build_definitions
from dlc_platform.settings.environment import POSTGRES_VARIABLE

SESSION, RECIPE, DAY = "sub-1_ses-1", "quick", "2026-01-02"
ASSETS = [
    *("session_videos", "labeled_frames", "training_dataset", "trained_model", "model_evaluation", "model_comparison"),
    *("production_model", "pose_estimates", "pose_quality", "daily_report", "production_evaluation"),
    *("store_verification", "lab_backup", "lab_cleaning"),
]


@pytest.fixture
def broken(tmp_path: Path, tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """The definitions of a lab whose database does not answer."""
    (tmp_path / "raw").mkdir()
    settings = {
        "raw_roots": ["raw"],
        "projects": {"tiny": {"path": str(tiny_project)}},
        "recipes": {RECIPE: {"project": "tiny", "net_type": "cspnext_s", "epochs": 1, "weights": "random"}},
        "inference": [{"project": "tiny"}],
        "stage": "production",
    }
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv(POSTGRES_VARIABLE, "postgresql://me:secret@127.0.0.1:1/nothing")
    return build_definitions(tmp_path)


def is_tried_again(definitions: dg.Definitions, asset: str, tags: dict[str, str]) -> bool:
    key = dg.AssetKey(asset)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("sessions", [SESSION])
        partitions = definitions.resolve_asset_graph().get(key).partitions_def
        keys = partitions.get_partition_keys(dynamic_partitions_store=instance) if partitions else [None]
        done = (
            definitions.resolve_implicit_global_asset_job_def()
            .get_subset(asset_selection={key})
            .execute_in_process(
                instance=instance,
                partition_key=keys[-1],
                tags=tags,
                raise_on_error=False,
            )
        )
        assert not done.success
        run = instance.get_run_by_id(done.run_id)
        assert run is not None
        return run.tags.get(RETRY_ON_ASSET_OR_OP_FAILURE_TAG) == "true"


def test_every_asset_is_known_here(broken: dg.Definitions):
    assert {key.to_user_string() for key in broken.resolve_asset_graph().executable_asset_keys} == set(ASSETS)


@pytest.mark.parametrize("asset", ASSETS)
def test_a_lost_database_fails_no_run_for_good(broken: dg.Definitions, asset: str):
    assert is_tried_again(broken, asset, {})


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({SENSOR_NAME_TAG: "new_session_videos"}, False),
        ({SCHEDULE_NAME_TAG: "catch_up"}, False),
        ({SENSOR_NAME_TAG: "reestimate_stale_sessions"}, True),
        ({SCHEDULE_NAME_TAG: "evaluate_new_labels"}, True),
    ],
)
def test_what_the_sensor_asks_for_again_is_not_tried_twice(
    broken: dg.Definitions, tags: dict[str, str], expected: bool
):
    assert is_tried_again(broken, "pose_estimates", tags) is expected
