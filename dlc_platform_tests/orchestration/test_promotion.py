"""A version comes in, is compared, promoted by a person, makes sessions stale, and is rolled back."""

import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
from typer.testing import CliRunner

from dlc_platform.catalog.promotions import production_model
from dlc_platform.cli.app import app
from dlc_platform.demo.lab import LABELLED, PROJECT
from dlc_platform.dlc.training import load_model
from dlc_platform.errors import PlatformError
from dlc_platform.estimates.importing import register_model
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.materialize import backfill, materialize, promote
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.sensors import reestimate_stale_sessions
from dlc_platform.platform import Platform
from dlc_platform_tests.dlc.train_folders import lay_out, make_project
from dlc_platform_tests.orchestration.up import COMMAND

FIRST, SECOND = "sub-001_ses-001", "sub-001_ses-002"


@pytest.fixture(scope="module")
def versions(tracked_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The version that the lab trained, in production, and a nudged copy of it that comes from elsewhere."""
    import torch

    lab = LabResource(home=str(tracked_lab))
    trained = production_model(lab.engine, PROJECT)
    assert trained is not None
    model = load_model(lab.store.path("models", trained))
    project = make_project(tmp_path_factory.mktemp("elsewhere") / "arena")
    folder = lay_out(model, project, "snapshot-best-002.pt")
    snapshot = torch.load(folder / "snapshot-best-002.pt", weights_only=True)
    generator = torch.Generator().manual_seed(1)
    for name, weights in snapshot["model"].items():
        if name.startswith("heads") and weights.is_floating_point():
            snapshot["model"][name] = weights + 0.02 * weights.std() * torch.randn(weights.shape, generator=generator)
    torch.save(snapshot, folder / "snapshot-best-002.pt")
    imported, new = register_model(lab.engine, lab.store, lab.settings.projects, PROJECT, folder)
    assert new
    yield trained, imported.id
    # The other tests of the lab find it as it was.
    if production_model(lab.engine, PROJECT) != trained:
        assert promote(tracked_lab, trained, "back to what it was", "the tests", print)
    backfill(tracked_lab, [FIRST], print)


def said_by(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_an_imported_version_is_compared_promoted_rolled_back(tracked_lab: Path, versions: tuple[str, str]) -> None:
    trained, imported = versions
    platform = Platform(tracked_lab)
    said: list[str] = []
    assert materialize(tracked_lab, "model_comparison", [], said.append), said
    best = platform.best_models()
    assert set(best[best["bodypart"] == "all"]["model"]) == {trained, imported}
    assert "origin" in platform.models() and set(platform.models()["origin"]) == {"trained", "imported"}

    # Before: what it would make stale, and what that costs by the speed of the same network.
    impact = platform.impact(imported[:12])
    assert {FIRST, SECOND} <= set(impact.sessions["session"]) and impact.hours is not None and impact.hours > 0
    assert platform.stale_sessions().empty
    assert "sessions become stale" in said_by("impact", tracked_lab, imported[:12])

    assert promote(tracked_lab, imported, "a look at the comparison", "the tester", said.append), said
    last = platform.promotions().iloc[-1]
    assert (last["model"], last["kind"], last["promoted_by"]) == (imported, "person", "the tester")
    assert last["reason"] == "a look at the comparison" and last["evaluation"] is not None
    # The very figure that the comparison shows, with what it is over.
    shown = best[best["bodypart"] == "all"].set_index("model").loc[imported]
    assert (last["test_rmse_px"], last["test_images"]) == (shown["rmse_px"], shown["test_images"])
    assert last["tested_on"] == f"{shown['test_images']} images, perhaps trained on"
    assert "may have been trained on these images" in said_by("best", tracked_lab)
    stale = platform.stale_sessions()
    assert {FIRST, SECOND} <= set(stale["session"]) and set(stale["production_model"]) == {imported}
    assert FIRST in said_by("stale", tracked_lab) and FIRST in said_by("backfill", tracked_lab, "--dry-run")

    # Some of them again; the poses of before stay, and can be had by model.
    before = platform.poses(FIRST)
    said_by("backfill", tracked_lab, "--session", FIRST)
    stale = set(platform.stale_sessions()["session"])
    assert FIRST not in stale and SECOND in stale
    after = platform.poses(FIRST)
    assert not before["x"].equals(after["x"])
    assert platform.poses(FIRST, model=trained).equals(before)
    assert set(platform.model_sessions(imported).query("role == 'tracked'")["session"]) == {FIRST}
    with pytest.raises(PlatformError, match="has no poses by the model"):
        platform.poses(SECOND, model=imported)

    # Back, and what was estimated meanwhile is stale; nothing is computed twice.
    said_by("promote", tracked_lab, "--back", PROJECT, "--reason", "worse on the new arena", "--by", "the tester")
    assert platform.promotions().iloc[-1]["model"] == trained
    assert set(platform.stale_sessions()["session"]) == {FIRST}
    runs = set(platform.lineage(FIRST)["estimated_by_run"])
    said_by("backfill", tracked_lab)
    assert platform.stale_sessions().empty and platform.poses(FIRST).equals(before)
    assert set(platform.lineage(FIRST)["estimated_by_run"]) != runs
    for command in ("best", "promotions", "parameters", "compare"):
        assert PROJECT in said_by(command, tracked_lab)
    assert FIRST in said_by("touched", tracked_lab, trained[:12])
    assert trained[:12] in said_by("lineage", tracked_lab, FIRST)


def test_the_ui_says_that_sessions_are_stale(tracked_lab: Path, versions: tuple[str, str]) -> None:
    trained, imported = versions
    definitions = build_definitions(tracked_lab)
    job = definitions.resolve_job_def("promote_model")
    for model, passes in ((imported, False), (trained, True)):
        choice = {"model": model, "reason": "to see", "by": "the tester"}
        with dg.DagsterInstance.get() as instance:
            result = job.execute_in_process(
                instance=instance, run_config={"ops": {"production_model": {"config": choice}}}
            )
        (check,) = result.get_asset_check_evaluations()
        assert check.passed is passes
        (event,) = result.asset_materializations_for_node("production_model")
        if not passes:
            assert check.metadata["stale_sessions"].value == len(Platform(tracked_lab).stale_sessions())
            assert "sessions become stale" in str(event.metadata[f"impact_{PROJECT}"].value)


def test_the_sensor_asks_once_for_stale_sessions_while_it_is_on(tracked_lab: Path, versions: tuple[str, str]) -> None:
    trained, imported = versions
    lab = LabResource(home=str(tracked_lab))
    assert reestimate_stale_sessions.default_status == dg.DefaultSensorStatus.STOPPED

    def look(cursor: str | None) -> tuple[list[dg.RunRequest], str | None]:
        with dg.DagsterInstance.get() as instance:
            context = dg.build_sensor_context(instance, cursor=cursor, definitions=build_definitions(tracked_lab))
            result = reestimate_stale_sessions(context, lab=lab)
            assert isinstance(result, dg.SensorResult)
            return list(result.run_requests or []), result.cursor

    assert look(None)[0] == []
    assert promote(tracked_lab, imported, "to see", "the tester", print)
    requests, cursor = look(None)
    ours = {f"sub-{subject}_ses-{session}" for subject, session in LABELLED}
    assert requests and {request.tags["dagster/asset_partition_range_start"] for request in requests} & ours
    assert look(cursor)[0] == []
    assert promote(tracked_lab, trained, "to see", "the tester", print)
    assert look(cursor) == ([], "{}")
    # The same promotion again asks again, with keys that Dagster has never seen.
    assert promote(tracked_lab, imported, "to see", "the tester", print)
    again = look("{}")[0]
    assert again and not {request.run_key for request in again} & {request.run_key for request in requests}
    assert promote(tracked_lab, trained, "to see", "the tester", print)


def test_of_two_people_who_promote_at_the_same_time_one_is_told(tracked_lab: Path, versions: tuple[str, str]) -> None:
    trained, imported = versions
    before = len(Platform(tracked_lab).promotions())
    with LabResource(home=str(tracked_lab)).engine.connect() as connection:
        # Both have decided and want to write before either can.
        connection.execute(sqlalchemy.text("lock table dlc.promotion in exclusive mode"))
        people = [
            subprocess.Popen(
                [COMMAND, "promote", tracked_lab, model[:12], "--reason", f"{name} says so", "--by", name],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for name, model in (("alice", imported), ("bob", trained))
        ]
        waiting = "select count(*) from pg_locks where relation = 'dlc.promotion'::regclass and not granted"
        until = time.monotonic() + 300
        while connection.execute(sqlalchemy.text(waiting)).scalar_one() < 2 and time.monotonic() < until:
            time.sleep(0.1)
    said = {name: person.communicate(timeout=300)[0] for name, person in zip(("alice", "bob"), people, strict=True)}
    codes = [person.returncode for person in people]
    assert sorted(codes) == [0, 1], said
    loser, winner = ("alice", "bob") if codes[0] else ("bob", "alice")
    assert f"meanwhile, by {winner}: {winner} says so" in said[loser]
    promotions = Platform(tracked_lab).promotions()
    assert len(promotions) == before + 1 and promotions.iloc[-1]["promoted_by"] == winner
    assert promote(tracked_lab, trained, "to see", "the tester", print)


def test_a_second_roll_back_goes_one_step_further(tracked_lab: Path, versions: tuple[str, str]) -> None:
    trained, imported = versions
    lab = Platform(tracked_lab)
    assert promote(tracked_lab, imported, "to see", "the tester", print)
    assert lab.earlier_model(PROJECT) == trained
    assert promote(tracked_lab, trained, "worse", "the tester", print, rollback=True)
    assert lab.promotions().iloc[-1]["kind"] == "rollback"
    # Not forward again to what was rolled back.
    try:
        assert lab.earlier_model(PROJECT) != trained
    except PlatformError as problem:
        assert "no other version" in str(problem)


CHOICES = {
    "no such model": ({"model": "zzz", "reason": "why not", "by": "me"}, "no model version begins with 'zzz'"),
    "no reason": ({"model": "own", "reason": " ", "by": "me"}, "without a reason"),
    "no name": ({"model": "own", "reason": "why not", "by": ""}, "without a reason, or without a name"),
    "no model": ({"model": " ", "reason": "why not", "by": "me"}, "no model was named"),
    "overtaken": ({"model": "own", "reason": "why not", "by": "me", "follows": 0}, "meanwhile, by"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_refused_choice_is_a_sentence_and_no_failure(tracked_lab: Path, versions: tuple[str, str], name: str) -> None:
    """The asset keeps its last materialisation, the check its outcome, and the run says that it promoted nothing."""
    trained, _ = versions
    choice, why = CHOICES[name]
    if choice["model"] == "own":
        choice = {**choice, "model": trained[:12]}
    job = build_definitions(tracked_lab).resolve_job_def("promote_model")
    before = len(Platform(tracked_lab).promotions())
    check_key = dg.AssetCheckKey(dg.AssetKey("pose_estimates"), "made_by_production_models")
    with dg.DagsterInstance.get() as instance:
        last = instance.get_latest_materialization_event(dg.AssetKey("production_model"))
        result = job.execute_in_process(
            instance=instance, run_config={"ops": {"production_model": {"config": choice}}}, raise_on_error=False
        )
        assert result.success
        assert instance.get_latest_materialization_event(dg.AssetKey("production_model")) == last
        run = instance.get_run_by_id(result.run_id)
        assert run is not None and why in run.tags["dlc_platform/nothing_was_promoted"]
        told = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level >= logging.ERROR]
        checks = instance.event_log_storage.get_latest_asset_check_execution_by_key([check_key])
    assert len(told) == 1 and told[0].startswith("Nothing was promoted: ") and why in told[0]
    assert checks[check_key].status.value == "SUCCEEDED"
    assert len(Platform(tracked_lab).promotions()) == before


def test_the_command_refuses_with_the_sentence(tracked_lab: Path, versions: tuple[str, str]) -> None:
    trained, _ = versions
    said: list[str] = []
    assert not promote(tracked_lab, trained, "", "the tester", said.append)
    assert "without a reason" in "\n".join(said) and said[-1].startswith("production_model: nothing was promoted")
    done = CliRunner().invoke(app, ["promote", str(tracked_lab), trained[:12], "--reason", "to see", "--by", " "])
    assert done.exit_code == 1 and "without a name" in done.output
    with pytest.raises(PlatformError, match="no model version begins with"):
        Platform(tracked_lab).impact("zzz")
