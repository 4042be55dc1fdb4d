import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import yaml

from dlc_platform.catalog import quarantine
from dlc_platform.catalog.estimates import pose_estimate
from dlc_platform.demo.lab import LABELLED, PROJECT
from dlc_platform.demo.render import render, write_video
from dlc_platform.errors import PlatformError
from dlc_platform.estimates import quality_gate
from dlc_platform.estimates.quality_gate import require_good_poses
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.checks import made_by_the_rules_of_lab_yaml
from dlc_platform.orchestration.materialize import _what_came_of, materialize, train
from dlc_platform.orchestration.partitions import sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.platform import Platform
from dlc_platform.pose import table as pose_table
from dlc_platform.store import MANIFEST
from dlc_platform_tests.orchestration.conftest import NO_FLOORS, RECIPE

FIRST = "sub-001_ses-001"


def test_every_asset_is_materialised_with_metadata_for_people(tracked_lab: Path):
    with dg.DagsterInstance.get() as instance:

        def metadata(asset: str) -> dict:
            partitions = (
                [FIRST] if asset in ("session_videos", "labeled_frames", "pose_estimates", "pose_quality") else None
            )
            wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=partitions)
            (record,) = instance.fetch_materializations(wanted, limit=1).records
            assert record.asset_materialization is not None
            return dict(record.asset_materialization.metadata)

        seen = {
            "session_videos": {"recordings", "frames", "picture"},
            "labeled_frames": {"labelled_frames", "picture_arena"},
            "training_dataset": {"dataset", "train_images", "test_images", "picture"}
            | {"rows_without_a_label", "labels_outside_their_image"},
            "trained_model": {"model", "parameters", "loss_curve", "software"},
            "model_evaluation": {"test", "train", "test_rmse_px", "worst_test_frames", "sessions"},
            "model_comparison": {f"{what}_{PROJECT}" for what in ("picture", "versions", "bodyparts", "sessions")},
            "production_model": {"production"},
            "pose_estimates": {"quality", "picture_keypoints", "picture_trajectories", "picture_likelihood"},
            "pose_quality": {"picture", "verdict", "model", "scores", "fraction_confident", "temporal_norm_px"},
        }
        for asset, keys in seen.items():
            found = metadata(asset)
            assert keys <= found.keys(), asset
            for value in found.values():
                if isinstance(value, dg.MarkdownMetadataValue):
                    assert "](data:image/" in value.md_str
                    assert len(value.md_str) < 150_000


def test_the_poses_of_each_session_are_judged_and_checked(tracked_lab: Path):
    table = Platform(tracked_lab).quality(FIRST)
    assert {"snout", "all"} <= set(table["bodypart"]) and any(" to " in part for part in table["bodypart"])
    assert set(table["verdict"]) <= {"pass", "warn"}
    checks = {
        "pose_estimates": {"a_row_for_each_frame", "model", "likelihood", "missing", "movement", "animal", "jumps"}
        | {"limb_lengths", "inside_the_arena", "plausible_poses"},
        "pose_quality": {"good_enough"},
    }
    with dg.DagsterInstance.get() as instance:
        for asset, names in checks.items():
            for name in names:
                key = dg.AssetCheckKey(dg.AssetKey(asset), name)
                records = instance.event_log_storage.get_asset_check_execution_history(key, 1000)
                mine = [r.event.asset_check_evaluation for r in records if r.event and r.event.asset_check_evaluation]
                (first, *_) = [evaluation for evaluation in mine if evaluation.partition == FIRST]
                assert first.passed or first.severity == dg.AssetCheckSeverity.WARN
                if name == "a_row_for_each_frame":
                    assert first.passed and first.metadata["rows"].value == len(Platform(tracked_lab).poses(FIRST)) / 4


def test_bad_poses_hold_up_what_follows_in_their_run(tracked_lab: Path):
    """A lab's own asset after pose_quality, with the limits that the lab has for a moment."""
    file = tracked_lab / "lab.yaml"
    before = file.read_text()
    strict = {"limits": {"temporal_norm_px": {"fail": 1e-6}}, "blocks": ["downstream", "exports"], **NO_FLOORS}

    def run() -> tuple[dg.ExecuteInProcessResult, list[str]]:
        started: list[str] = []

        @dg.asset(partitions_def=sessions, deps=["pose_quality"])
        def time_in_the_corner(context: dg.AssetExecutionContext, lab: LabResource) -> None:
            require_good_poses(lab.engine, context.partition_key)
            started.append(context.partition_key)

        definitions = dg.Definitions.merge(build_definitions(tracked_lab), dg.Definitions([time_in_the_corner]))
        job = definitions.resolve_implicit_global_asset_job_def()
        with dg.DagsterInstance.get() as instance:
            result = job.execute_in_process(
                instance=instance,
                asset_selection=[dg.AssetKey("pose_quality"), dg.AssetKey("time_in_the_corner")],
                partition_key=FIRST,
                raise_on_error=False,
            )
        return result, started

    try:
        file.write_text(yaml.safe_dump(yaml.safe_load(before) | {"pose_quality": strict}))
        result, started = run()
        assert not result.success and started == []
        # The picture of bad poses is there all the same.
        (event,) = result.asset_materializations_for_node("pose_quality")
        assert event.partition == FIRST and event.metadata["verdict"].value == "fail"
        (check,) = result.get_asset_check_evaluations()
        assert check.check_name == "good_enough" and not check.passed and "temporal_norm_px" in str(check.description)
        with pytest.raises(PlatformError, match=f"in quarantine: {FIRST}"):
            Platform(tracked_lab).poses(FIRST)
        # A person lets it out, and it goes on.
        assert quarantine.release(LabResource(home=str(tracked_lab)).engine, FIRST, "the tester", ["quality"]) == 1
        result, started = run()
        assert result.success and started == [FIRST]
    finally:
        file.write_text(before)
    result, started = run()
    assert result.success and started == [FIRST]
    assert len(Platform(tracked_lab).poses(FIRST))


def test_a_second_run_finds_nothing_missing(tracked_lab: Path):
    said: list[str] = []
    materialize(tracked_lab, "session_videos,labeled_frames,group:models,group:poses", [], said.append)
    running = [line for line in said if line.endswith(": running")]
    assert "production_model: running" in running
    # The lab is shared: other tests leave sessions of their own in it, some of which cannot be read.
    ours = {f"sub-{subject}_ses-{session}" for subject, session in LABELLED} | {RECIPE}
    assert not [line for line in running if any(key in line for key in ours)]


def test_poses_are_tidy(tracked_lab: Path):
    poses = Platform(tracked_lab).poses(FIRST)
    columns = ["session", "recording", "frame", "time_s", "individual", "bodypart", "x", "y", "likelihood"]
    assert list(poses.columns) == columns
    (frames,) = Platform(tracked_lab).estimates().set_index("session").loc[[FIRST], "frames"]
    assert len(poses) == frames * 4
    assert set(poses["session"]) == {FIRST}
    one = Platform(tracked_lab).poses(FIRST, ["snout"])
    assert set(one["bodypart"]) == {"snout"}
    assert len(one) == frames


def test_lineage_says_what_made_the_poses(tracked_lab: Path):
    platform = Platform(tracked_lab)
    row = platform.lineage(FIRST).iloc[0]
    # Other tests of this lab may have trained further models.
    assert row["dataset"] == platform.models().set_index("model").loc[row["model"], "dataset"]
    assert row["parameters"]["epochs"] == 2
    assert row["labelled_sessions"] == sorted(f"sub-{subject}_ses-{session}" for subject, session in LABELLED)
    assert row["training_environment"]["deeplabcut"]
    manifest = json.loads((platform.settings.store / "poses" / row["pose_estimate"] / MANIFEST).read_text())
    ran = ["backend", "device", "export"]
    assert [row[name] for name in ran] == [manifest[name] for name in ran]
    with dg.DagsterInstance.get() as instance:
        assert instance.get_run_by_id(row["run_id"]) is not None
        assert instance.get_run_by_id(row["training_run"]) is not None


def test_the_h5_is_what_deeplabcut_tools_read(tracked_lab: Path):
    platform = Platform(tracked_lab)
    estimate = platform.estimates().set_index("session").loc[FIRST]
    (h5,) = (platform.settings.store / "poses" / estimate["pose_estimate"]).glob("*.h5")
    wide = pd.read_hdf(h5)
    tidy = platform.poses(FIRST, ["tailbase"]).set_index("frame")
    tailbase = wide.xs("tailbase", level="bodyparts", axis=1)
    assert (tailbase.to_numpy() == tidy[["x", "y", "likelihood"]].to_numpy()).all()


def test_poses_are_read_and_judged_once_in_a_run(tracked_lab: Path, monkeypatch: pytest.MonkeyPatch):
    session = tracked_lab / "raw" / "sub-once" / "ses-1"
    session.mkdir(parents=True)
    for seed, name in ((81, "cam-a.mp4"), (82, "cam-b.mp4")):
        write_video(session / name, render(seed, 12).frames)
    calls: list[str] = []

    def counted(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def wrapper(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, wrapper)

    said: list[str] = []
    try:
        assert materialize(tracked_lab, "session_videos", ["sub-once_ses-1"], said.append), said
        counted(pose_table, "read_stretches")
        counted(quality_gate, "record_verdict")
        job = build_definitions(tracked_lab).resolve_job_def("estimate_poses")
        with dg.DagsterInstance.get() as instance:
            assert job.execute_in_process(instance=instance, partition_key="sub-once_ses-1").success
        assert Counter(calls) == {"read_stretches": 2, "record_verdict": 2}, "once for each of the two files"
        calls.clear()
        # In a run of its own nothing is measured again: one table is read, for the picture of the worst file.
        assert materialize(tracked_lab, "pose_quality", ["sub-once_ses-1"], said.append), said
        assert Counter(calls) == {"read_stretches": 1, "record_verdict": 2}
    finally:
        shutil.rmtree(session.parent)


def test_a_camera_that_cannot_be_tracked_does_not_stop_others(tracked_lab: Path):
    session = tracked_lab / "raw" / "sub-cameras" / "ses-1"
    session.mkdir(parents=True)
    replaced = session / "cam-a.mp4"
    write_video(replaced, render(71, 12).frames)
    write_video(session / "cam-b.mp4", render(72, 12).frames)
    said: list[str] = []
    try:
        assert materialize(tracked_lab, "session_videos", ["sub-cameras_ses-1"], said.append), said
        write_video(replaced, render(73, 12).frames)
        assert not materialize(tracked_lab, "pose_estimates", ["sub-cameras_ses-1"], said.append)
        assert "1 of 2 recordings cannot be tracked" in "".join(said)
        assert f"{replaced} was replaced since it was registered" in "".join(said)
        assert set(Platform(tracked_lab).poses("sub-cameras_ses-1", ["snout"])["recording"]) == {"cam-b"}
    finally:
        shutil.rmtree(session.parent)


def test_poses_of_an_old_region_are_listed_until_made_anew(tracked_lab: Path):
    session = tracked_lab / "raw" / "sub-region" / "ses-1"
    session.mkdir(parents=True)
    write_video(session / "cam-top.mp4", render(74, 12).frames)
    file = tracked_lab / "lab.yaml"
    before = file.read_text()
    said: list[str] = []

    def run(selection: str) -> None:
        assert materialize(tracked_lab, selection, ["sub-region_ses-1"], said.append), said

    def check() -> dg.AssetCheckResult:
        result = made_by_the_rules_of_lab_yaml(LabResource(home=str(tracked_lab)))
        assert isinstance(result, dg.AssetCheckResult)
        return result

    try:
        run("session_videos,pose_estimates")
        assert check().passed
        region = {"session": "sub-region_*", "x": 16, "y": 16, "width": 128, "height": 96}
        file.write_text(yaml.safe_dump({**yaml.safe_load(before), "regions": [region]}))
        result = check()
        assert not result.passed and result.severity == dg.AssetCheckSeverity.WARN
        assert "1 session has poses" in str(result.description) and result.metadata["files"].value == 1
        run("pose_estimates")
        assert check().passed
        # Without the region, the poses of before are found.
        file.write_text(before)
        assert not check().passed
        run("pose_estimates")
        assert check().passed
    finally:
        file.write_text(before)
        shutil.rmtree(session.parent)


def test_the_store_holds_whole_products_only(tracked_lab: Path):
    store = Platform(tracked_lab).settings.store
    products = [product for kind in store.iterdir() for product in kind.iterdir()]
    assert len(products) >= 3 + len(LABELLED)
    assert all(len(product.name) == 64 and (product / "manifest.json").is_file() for product in products)


def test_what_is_not_there_is_named(tracked_lab: Path):
    with pytest.raises(PlatformError, match="sub-9_ses-9"):
        materialize(tracked_lab, "pose_estimates", ["sub-9_ses-9"], print)
    with pytest.raises(PlatformError, match="quick is no partition of session_videos"):
        materialize(tracked_lab, "session_videos", ["quick"], print)
    with pytest.raises(PlatformError, match="pose_estimates"):
        materialize(tracked_lab, "poses_estimates", [], print)
    with pytest.raises(PlatformError, match="there is no registered session 'sub-9_ses-9'"):
        Platform(tracked_lab).poses("sub-9_ses-9")


def test_no_secret_reaches_dagster(tracked_lab: Path):
    password = (tracked_lab / "postgres" / "password").read_text().strip()
    for file in (tracked_lab / "dagster").rglob("*"):
        if file.is_file():
            assert password.encode() not in file.read_bytes(), file
    assert password in os.environ["DLC_PLATFORM_DAGSTER_POSTGRES_URL"]


def test_upkeep_is_done_when_it_is_asked_for(tracked_lab: Path):
    """Everything was evaluated on the newest labels when it was made, and the store is as it was."""
    said: list[str] = []
    assert materialize(tracked_lab, "production_evaluation,store_verification", [], said.append), "\n".join(said)
    with dg.DagsterInstance.get() as instance:
        metadata = {}
        for asset in ("production_evaluation", "store_verification"):
            event = instance.get_latest_materialization_event(dg.AssetKey(asset))
            assert event is not None and event.asset_materialization is not None
            metadata |= event.asset_materialization.metadata
    (row,) = metadata["projects"].records
    assert (row.data["project"], row.data["evaluated"]) == (PROJECT, False)
    assert metadata["products"].value > 0


def test_poses_that_are_found_say_when_they_were_made(tracked_lab: Path):
    said: list[str] = []
    estimates = Platform(tracked_lab).estimates()
    (identity,) = estimates.loc[estimates["session"] == FIRST, "pose_estimate"]
    before = pose_estimate(LabResource(home=str(tracked_lab)).engine, identity)
    assert before is not None
    assert materialize(tracked_lab, "pose_estimates", [FIRST], said.append), said
    (line,) = [line for line in said if "these poses exist already, made on" in line]
    assert f"in the run {before.run_id}" in line
    (line,) = [line for line in said if "session tracked" in line]
    assert line == f"  1 session tracked, {before.frames:,} frames; 1 session had these poses already"
    with dg.DagsterInstance.get() as instance:
        wanted = dg.AssetRecordsFilter(dg.AssetKey("pose_estimates"), asset_partitions=[FIRST])
        (record,) = instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization is not None
    recordings = record.asset_materialization.metadata["recordings"]
    assert isinstance(recordings, dg.TableMetadataValue)
    assert str(recordings.records[0].data["made"]).startswith("made on 20")


def test_a_training_ends_with_what_a_person_wants_to_know(tracked_lab: Path):
    lab = LabResource(home=str(tracked_lab))
    with dg.DagsterInstance.get() as instance:
        told = "\n".join(_what_came_of(lab, instance, RECIPE))
    (model,) = {row for row in Platform(tracked_lab).models()["model"] if row[:12] in told}
    assert f"The recipe {RECIPE} made the model version {model[:12]} of the project {PROJECT}" in told
    assert " px RMSE on " in told
    assert f"dlc-platform run {tracked_lab} pose_estimates" in told or "It was not promoted: " in told
    with pytest.raises(PlatformError, match=f"there is no recipe 'quik'. Did you mean {RECIPE}"):
        train(tracked_lab, "quik", print)


def test_a_training_ends_at_its_first_failure(tracked_lab: Path):
    settings = yaml.safe_load((tracked_lab / "lab.yaml").read_text())
    settings["projects"]["empty"] = {"path": str(tracked_lab / "no-project")}
    settings["recipes"]["of-nothing"] = {**settings["recipes"][RECIPE], "project": "empty"}
    before = (tracked_lab / "lab.yaml").read_text()
    said: list[str] = []
    try:
        (tracked_lab / "lab.yaml").write_text(yaml.safe_dump(settings))
        assert not train(tracked_lab, "of-nothing", said.append)
    finally:
        (tracked_lab / "lab.yaml").write_text(before)
    assert any(str(tracked_lab / "no-project") in line for line in said), said
    assert [line for line in said if line.endswith("not begun, because of the failure")] == [
        f"{asset}: not begun, because of the failure"
        for asset in ("trained_model", "model_evaluation", "model_comparison")
    ]
