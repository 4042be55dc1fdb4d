"""What a lab does for itself, on a real Dagster instance and catalogue; the daemon's part is done by hand."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

import dagster as dg
import numpy as np
import pytest
import yaml
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.loader import LoadingContextForTest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.tags import RETRY_NUMBER_TAG, RUN_KEY_TAG, SCHEDULE_NAME_TAG
from dagster._core.test_utils import freeze_time
from dagster._daemon.freshness import FreshnessDaemon
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.tags import TagConcurrencyLimitsCounter
from dagster_shared.error import SerializableErrorInfo
from pydantic import BaseModel
from sqlalchemy import Engine, text

from dlc_platform.catalog import tables
from dlc_platform.catalog.evaluations import evaluations_of
from dlc_platform.catalog.models import record_imported_model
from dlc_platform.catalog.promotions import promote
from dlc_platform.catalog.writing import BodyParts
from dlc_platform.cli.plan_lines import plan_lines
from dlc_platform.demo.render import write_video
from dlc_platform.dlc.evaluation import load_evaluation
from dlc_platform.errors import PlatformError
from dlc_platform.identity import short
from dlc_platform.lab import upkeep
from dlc_platform.lab.doctor import Finding
from dlc_platform.lab.waiting import waiting
from dlc_platform.orchestration import inspection, retries, run_history
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.clock import forget_the_future
from dlc_platform.orchestration.instance import environment_of, open_instance, prepare, wanted_dagster_yaml
from dlc_platform.orchestration.partitions import RANGE_START
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import STOPPED_TAG, UNTIL_TAG
from dlc_platform.orchestration.schedules import late
from dlc_platform.orchestration.under_way import Asked, Cursor, caught_up
from dlc_platform.platform import Platform
from dlc_platform.postgres.connection import DAGSTER_SCHEMA
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.settings.fields import YEAR_SECONDS, leaves
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store
from dlc_platform_tests import keeping, receivers
from dlc_platform_tests.catalog.conftest import lab as catalogue
from dlc_platform_tests.products import manifest_of
from dlc_platform_tests.receivers import Webhook

if TYPE_CHECKING:
    from dlc_platform.dlc.dataset import Dataset
    from dlc_platform.dlc.training import TrainedModel

NEW = "sub-7_ses-1"
WRITE = """
import signal, sys
from pathlib import Path
from dlc_platform.store import Store

def write(folder):
    (folder / "weights").write_bytes(bytes(2_000_000))
    print(folder, flush=True)
    signal.pause()

Store(Path(sys.argv[1])).put("models", sys.argv[2], {}, write)
"""
#: As a run has that the daemon or the UI submits.
ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("lab"), "__repository__"), "clean_up")
__all__ = ["catalogue"]


class Kept:
    """A lab that looks after itself."""

    def __init__(self, home: Path, engine: Engine, instance: dg.DagsterInstance, hook: Webhook):
        self.home = home
        self.engine = engine
        self.instance = instance
        self.hook = hook
        self.lab = LabResource(home=str(home))
        self.definitions = build_definitions(home)

    def run(self, job: str) -> tuple[bool, dict[str, Any]]:
        """Execute a job that makes one asset: whether it went well, and the metadata."""
        done = self.definitions.resolve_job_def(job).execute_in_process(instance=self.instance, raise_on_error=False)
        made = [event for event in done.all_events if event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION]
        metadata = made[0].materialization.metadata if made else {}
        return done.success, {name: value.value for name, value in metadata.items()}

    def tick(self, schedule: str) -> list[dg.RunRequest]:
        """What a schedule asks for now."""
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=datetime.now(UTC),
            resources={"lab": self.lab},
            repository_def=self.definitions.get_repository_def(),
        ) as context:
            found = self.definitions.resolve_schedule_def(schedule).evaluate_tick(context)
        return list(found.run_requests or [])

    def look(self, sensor: str) -> list[dg.RunRequest]:
        """What a sensor asks for now."""
        with dg.build_sensor_context(
            instance=self.instance, definitions=self.definitions, resources={"lab": self.lab}
        ) as context:
            return list(self.definitions.resolve_sensor_def(sensor).evaluate_tick(context).run_requests or [])

    def events(self, run_id: str) -> set[str]:
        """The kinds of events that Dagster has of a run."""
        query = text(f"select dagster_event_type from {DAGSTER_SCHEMA}.event_logs where run_id = :run")
        with self.engine.connect() as connection:
            return {kind or "log" for kind in connection.scalars(query, {"run": run_id})}

    def submit(self, **tags: str) -> dg.DagsterRun:
        """A run that is tried again, in the queue."""
        run = self.instance.create_run_for_job(
            self.definitions.resolve_job_def("clean_up"),
            tags={RETRY_NUMBER_TAG: "1", **tags},
            remote_job_origin=ORIGIN,
        )
        # Only Dagster's own checks of an origin need a workspace.
        self.instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=None))  # pyright: ignore
        return self.run_of(run.run_id)

    def run_of(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def may_start(self, run: dg.DagsterRun) -> bool:
        """Whether the daemon would start a queued run, by the limits of dagster.yaml."""
        queue = self.instance.get_concurrency_config().run_queue_config
        assert queue is not None
        return not TagConcurrencyLimitsCounter(queue.tag_concurrency_limits, []).is_blocked(self.run_of(run.run_id))


@contextmanager
def keep(home: Path, engine: Engine, **settings: Any) -> Iterator[Kept]:
    """Open a lab at `home`, with other settings where they are given."""
    raw = home.parent / "raw"
    raw.mkdir()
    home.mkdir(exist_ok=True)
    usual = {
        "name": "maze-lab",
        "raw_roots": [str(raw)],
        "projects": {"maze": {"path": "maze"}},
        "recipes": {"first": {"project": "maze", "weights": "random"}},
        "inference": [{"camera": "top", "project": "maze"}],
        "settle_seconds": 0,
        "gpus": [],
        "backups": {"folder": "safe", "keep": 2},
        "runs": {"retry_minutes": [2, 10], "keep_events_days": 30, "most_hours": 12},
        "notify": {"webhooks": [{"name": "room", "url_variable": "LAB_HOOK"}], "digest_minutes": 0},
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(usual | settings))
    with receivers.webhook() as hook:
        os.environ |= {"LAB_HOOK": hook.url, POSTGRES_VARIABLE: engine.url.render_as_string(hide_password=False)}
        with open_instance(prepare(home)) as instance:
            yield Kept(home, engine, instance, hook)


@pytest.fixture
def kept(tmp_path: Path, catalogue: Engine) -> Iterator[Kept]:
    with keep(tmp_path / "lab", catalogue) as kept:
        yield kept


@pytest.fixture
def labelling(
    tmp_path: Path,
    engine: Engine,
    tiny_store: Store,
    tiny_dataset: "Dataset",
    tiny_model: "TrainedModel",
    tiny_recipe: Recipe,
    tiny_project: Path,
) -> Iterator[Kept]:
    """A lab with a trained network in production, and with a copy of its project to label more frames in."""
    home, project = tmp_path / "lab", tmp_path / "project"
    shutil.copytree(tiny_store.root, home / "store")
    shutil.copytree(tiny_project, project)
    recipe = tiny_recipe.model_dump(mode="json")
    projects = {"tiny": {"path": str(project)}}
    with keep(home, engine, projects=projects, recipes={"quick": recipe}, inference=[{"project": "tiny"}]) as kept:
        put_in_production(kept, "tiny", tiny_model.id, tiny_model)
        yield kept


def put_in_production(kept: Kept, project: str, identity: str, model: "TrainedModel") -> None:
    """Let a network of the store be the production model of a project."""
    version = tables.ModelVersion(
        id=identity,
        project=project,
        net_type="cspnext_s",
        weights_sha256=model.weights_sha256,
        scorer=model.scorer,
        manifest_sha256=kept.lab.store.claim("models", identity),
        source={"snapshot": "snapshot.pt"},
    )
    record_imported_model(kept.engine, version, BodyParts(model.bodyparts, model.skeleton))
    promotion = tables.Promotion(
        project=project, model_id=identity, kind="person", promoted_by="ada", reason="the only one"
    )
    assert promote(kept.engine, promotion, expected=None)


def test_a_backup_takes_the_place_of_the_oldest(kept: Kept) -> None:
    folder = kept.home / "safe"
    for month in (1, 2):
        upkeep.back_up(kept.home, datetime(2026, month, 1, tzinfo=UTC))
    (folder / "maze-lab-by-hand.tar").write_text("a person's own")
    succeeded, metadata = kept.run("back_up")
    assert succeeded and metadata["removed_backups"] == 1
    assert Path(metadata["file"]).parent == folder
    assert {path.name for path in folder.iterdir()} == {
        "maze-lab-20260201T000000Z.tar",
        "maze-lab-by-hand.tar",
        Path(metadata["file"]).name,
    }
    assert folder.stat().st_mode & 0o077 == 0


def test_a_store_that_is_not_as_it_was_fails_the_run(kept: Kept) -> None:
    store = kept.lab.store
    keeping.fill(kept.engine, store)
    succeeded, metadata = kept.run("verify_store")
    assert succeeded and metadata["products"] > 0 and metadata["unchecked"] == 0
    kind, identity = store.products()[0]
    (store.path(kind, identity) / "sub" / "file").write_text("!")
    done = kept.definitions.resolve_job_def("verify_store").execute_in_process(
        instance=kept.instance, raise_on_error=False
    )
    (failure,) = [event.step_failure_data.error for event in done.all_events if event.is_step_failure]
    while failure is not None and failure.cause is not None:
        failure = failure.cause
    assert failure is not None
    assert "1 difference between the store and the catalogue" in failure.message
    assert str(store.path(kind, identity)) in failure.message and "dlc-platform verify" in failure.message


def crash(store: Store, identity: str) -> Path:
    """The folder that a process leaves which is killed while it writes a product of 2 MB."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(store.root), identity], stdout=subprocess.PIPE, start_new_session=True
    )
    assert writer.stdout is not None
    folder = Path(writer.stdout.readline().decode().strip())
    writer.kill()
    writer.wait()
    return folder


def test_only_what_crashes_left_is_removed_by_itself(kept: Kept) -> None:
    """After a restore, products of no row are found again by what makes them: they are a person's to remove."""
    store = kept.lab.store
    keeping.fill(kept.engine, store)
    unnamed = store.put("models", "e" * 64, {}, lambda folder: None)
    left, lately, interrupted = crash(store, "d" * 64), crash(store, "d" * 64), store.root / "models" / ".work-1"
    assert left.parent == lately.parent == store.root / "models" and (left / "weights").stat().st_size == 2_000_000
    # Training that was interrupted waits for its continuation for longer.
    interrupted.mkdir()
    for folder in (unnamed, left, interrupted):
        keeping.make_old(folder)
    before = set(store.products())
    succeeded, metadata = kept.run("clean_up")
    assert succeeded
    assert not left.exists() and lately.is_dir() and interrupted.is_dir()
    assert (metadata["left_overs_removed"], metadata["megabytes_removed"]) == (1, 2.0)
    assert metadata["unnamed_products"] == 1
    assert set(store.products()) == before


def edge(section: type[BaseModel], largest: bool) -> dict[str, Any]:
    """The settings of a section with every number as large, or as small, as it may be."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kinds = leaves(field.annotation, field.metadata)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found[name] = edge(field.annotation, largest)
        elif all(kind in (int, float, type(None), ...) for kind, _ in kinds):
            (bounds,) = [bounds for kind, bounds in kinds if kind in (int, float)]
            signs = ("ge", "le", "lt")
            known = {sign: getattr(bound, sign) for bound in bounds for sign in signs if hasattr(bound, sign)}
            end = (known.get("le") or known.get("lt", 0) - 1e-9) if largest else known.get("ge", 1e-9)
            found[name] = [end] if get_origin(field.annotation) is tuple else end
    return found


@pytest.mark.parametrize("largest", [False, True])
def test_the_ends_of_all_limits_work(tmp_path: Path, catalogue: Engine, largest: bool) -> None:
    """The sensor, the checks, the schedules, doctor and the plan take the smallest and the largest numbers."""
    settings = edge(Lab, largest)
    del settings["freshness"]["warn_hours"], settings["pose_quality"]
    settings["notify"]["webhooks"] = [{"name": "room", "url_variable": "LAB_HOOK"}]
    assert settings["settle_seconds"] == (YEAR_SECONDS if largest else 0)
    with keep(tmp_path / "lab", catalogue, **settings) as kept:
        video = tmp_path / "raw" / "sub-1" / "ses-1" / "cam-top.mp4"
        video.parent.mkdir(parents=True)
        video.write_bytes(b"not a video")
        for sensor in ("new_session_videos", "watch_sessions", "deliver_notifications", "new_session_videos"):
            kept.look(sensor)
        assert isinstance(kept.tick("catch_up"), list)
        assert kept.run("clean_up")[0] and kept.run("back_up")[0]
        assert not [
            one for said in found(kept).values() for one in said if one.what in ("definitions", "runs") and one.remedy
        ]
        assert waiting(catalogue, kept.lab.settings) is not None
        assert list(plan_lines(Platform(kept.home).plan(), True))


def test_old_runs_forget_what_they_logged_and_not_what_they_made(kept: Kept) -> None:
    runs = []
    for _ in range(2):
        done = kept.definitions.resolve_job_def("clean_up").execute_in_process(instance=kept.instance)
        runs.append(done.run_id)
    old, new = runs
    output = Path(kept.instance.root_directory) / "compute-logs" / old
    output.mkdir(parents=True, exist_ok=True)
    long_ago = datetime.now(UTC) - timedelta(days=31)
    # The one folder of what sensors print keeps its time while files come and go below it.
    ticks = output.parent / "__repository__" / "sensor"
    ticks.mkdir(parents=True)
    for folder in (output, ticks.parent):
        os.utime(folder, (long_ago.timestamp(), long_ago.timestamp()))
    with kept.engine.begin() as connection:
        connection.execute(
            text(
                f"update {DAGSTER_SCHEMA}.event_logs set timestamp = timestamp - interval '31 days' where run_id = :run"
            ),
            {"run": old},
        )
    assert {"STEP_START", "STEP_SUCCESS"} <= kept.events(old)
    untouched = kept.events(new)
    # Bounded: the rest is for the next time.
    first = run_history.forget(kept.instance, 30, most_events=3)
    assert (first.events, first.more, first.log_folders) == (3, True, 1)
    assert ticks.is_dir()
    succeeded, metadata = kept.run("clean_up")
    assert succeeded and metadata["events_removed"] > 0 and not metadata["more_events_next_time"]
    assert kept.events(old) == {
        "ASSET_MATERIALIZATION",
        "ASSET_MATERIALIZATION_PLANNED",
        "PIPELINE_START",
        "PIPELINE_SUCCESS",
    }
    assert kept.events(new) == untouched
    assert kept.run_of(old).is_success
    assert not output.exists()
    assert run_history.forget(kept.instance, 30).events == 0


def test_what_the_sensor_missed_is_asked_for_at_night(kept: Kept) -> None:
    """The sensor is off, and a session was recorded: the first look of the night sees it, the second asks for it."""
    video = kept.lab.settings.raw_roots[0] / "sub-7" / "ses-1" / "cam-top.mp4"
    video.parent.mkdir(parents=True)
    write_video(video, np.zeros((25, 48, 64, 3), dtype=np.uint8))
    asked = kept.tick("catch_up") or kept.tick("catch_up")
    (request,) = asked
    assert request.tags[RANGE_START] == NEW
    assert dg.AssetKey("session_videos") in (request.asset_selection or ())
    assert request.tags["dagster/priority"] == "10"
    assert NEW in kept.instance.get_dynamic_partitions("sessions")

    # While that run is under way, the schedule does not ask again, and neither does the sensor.
    run = kept.instance.create_run_for_job(
        kept.definitions.resolve_job_def("process_sessions"),
        asset_selection=frozenset(request.asset_selection or ()),
        tags={**request.tags, SCHEDULE_NAME_TAG: "catch_up", RUN_KEY_TAG: str(request.run_key)},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert caught_up(kept.instance) == {NEW}
    assert kept.tick("catch_up") == []
    assert kept.look("new_session_videos") == []
    # It came to nothing, and is asked for again, by another key: Dagster would not hear the same one a second time.
    kept.instance.report_run_failed(run)
    (again,) = kept.tick("catch_up")
    assert again.tags[RANGE_START] == NEW


def test_each_production_model_is_evaluated_on_new_labels(kept: Kept) -> None:
    (request,) = kept.tick("evaluate_new_labels")
    assert request.partition_key == "first" and str(request.run_key).startswith("maze-")


def evaluate_new_labels(kept: Kept, number: int = 0) -> tuple[dg.ExecuteInProcessResult, dict[str, Any]]:
    """One of the runs that the schedule asks for, and the metadata of production_evaluation where it was made."""
    request = kept.tick("evaluate_new_labels")[number]
    done = kept.definitions.resolve_job_def("evaluate_new_labels").execute_in_process(
        instance=kept.instance, partition_key=request.partition_key, raise_on_error=False
    )
    made = done.asset_materializations_for_node("production_evaluation") if done.success else []
    return done, dict(made[0].metadata) if made else {}


def test_the_production_model_is_evaluated_on_new_labels(
    labelling: Kept, make_project: Callable[..., Path], tiny_model: "TrainedModel"
) -> None:
    _, first = evaluate_new_labels(labelling)
    (row,) = first["projects"].records
    assert row.data["evaluated"] and row.data["model"] == short(tiny_model.id)
    # Nothing was labelled since.
    _, again = evaluate_new_labels(labelling)
    assert again["evaluated"].value == 0

    frames = make_project(labelling.home.parent / "more", 12, seed=7, folder="video2")
    project = labelling.lab.settings.projects["tiny"].path
    shutil.copytree(frames / "labeled-data" / "video2", project / "labeled-data" / "video2")
    _, later = evaluate_new_labels(labelling)
    (new,) = later["projects"].records
    assert new.data["evaluated"] and new.data["test_images"] > row.data["test_images"]
    evaluations = evaluations_of(labelling.engine, "tiny")
    assert len(evaluations) == 2 and {one.model_id for one in evaluations} == {tiny_model.id}
    with labelling.engine.connect() as connection:
        query = "select evaluation_id, keypoints from dlc.evaluation_error where side = 'test' and bodypart = 'all'"
        keypoints = {evaluation: count for evaluation, count in connection.execute(text(query))}
    assert sorted(keypoints.values()) == [2 * row.data["test_images"], 2 * new.data["test_images"]]
    # The network found the nose and the tail of animals that it has never seen.
    newest = load_evaluation(labelling.lab.store, max(keypoints, key=keypoints.__getitem__))
    unseen = newest.predictions().query("folder == 'video2'")
    assert unseen["image"].nunique() == 12 and unseen["distance_px"].median() < 24


def rename_body_parts(project: Path) -> None:
    """Label others than the network knows."""
    labels = project / "labeled-data" / "video1" / "CollectedData_tester.csv"
    for file in (project / "config.yaml", labels):
        file.write_text(file.read_text().replace("nose", "snout").replace("tail", "rump"))


def test_an_evaluation_that_failed_does_not_count_as_made(labelling: Kept) -> None:
    rename_body_parts(labelling.lab.settings.projects["tiny"].path)
    done, _ = evaluate_new_labels(labelling)
    (failure,) = [event.step_failure_data.error for event in done.all_events if event.is_step_failure]
    while failure is not None and failure.cause is not None:
        failure = failure.cause
    assert failure is not None and "the production models of 1 project were not evaluated" in failure.message
    assert "predicts nose, tail" in failure.message and "labels snout, rump" in failure.message
    assert labelling.instance.get_latest_materialization_event(dg.AssetKey("production_evaluation")) is None


def test_a_model_that_cannot_be_evaluated_does_not_stop_others(
    labelling: Kept, tiny_model: "TrainedModel", tiny_recipe: Recipe
) -> None:
    file, store = labelling.home / "lab.yaml", labelling.lab.store
    settings = yaml.safe_load(file.read_text())
    other = labelling.home.parent / "other"
    shutil.copytree(settings["projects"]["tiny"]["path"], other)
    rename_body_parts(other)
    settings["projects"] = {"other": {"path": str(other)}, **settings["projects"]}
    settings["recipes"]["second"] = tiny_recipe.model_dump(mode="json") | {"project": "other"}
    file.write_text(yaml.safe_dump(settings))

    def write(folder: Path) -> None:
        left_out = shutil.ignore_patterns("manifest.json")
        shutil.copytree(tiny_model.path, folder, ignore=left_out, dirs_exist_ok=True)

    copy = store.put("models", "b" * 64, manifest_of(store.path("models", tiny_model.id)), write)
    two = Kept(labelling.home, labelling.engine, labelling.instance, labelling.hook)
    put_in_production(two, "other", copy.name, tiny_model)
    # The first run gathers the labels of the other project, the second those of the one that is well.
    done = [evaluate_new_labels(two, number)[0].success for number in range(2)]
    assert done == [False, False]
    assert [one.model_id for one in evaluations_of(two.engine, "tiny")] == [tiny_model.id]
    assert evaluations_of(two.engine, "other") == []


def test_a_model_that_can_never_be_evaluated_is_no_failure(labelling: Kept, tiny_model: "TrainedModel") -> None:
    """Labels of datasets are those of one animal; a model of several may have been imported."""
    file = labelling.lab.store.path("models", tiny_model.id) / "pytorch_config.yaml"
    configuration = yaml.safe_load(file.read_text())
    configuration["metadata"]["individuals"] = ["ann", "bob"]
    file.write_text(yaml.safe_dump(configuration))
    # As if it had been made so, before products had checksums.
    manifest = file.with_name("manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": []}))
    done, metadata = evaluate_new_labels(labelling)
    (row,) = metadata["projects"].records
    assert done.success and not row.data["evaluated"]
    assert "model of several animals" in row.data["cannot_be_evaluated"]


def test_what_a_schedule_did_not_make_is_told(kept: Kept) -> None:
    change = FreshnessStateChange(
        key=dg.AssetKey("lab_backup"),
        new_state=FreshnessState.FAIL,
        previous_state=FreshnessState.PASS,
        state_change_timestamp=datetime.now(UTC).timestamp(),
    )
    kept.instance._report_runless_asset_event(change)
    for _ in range(2):
        kept.look("watch_sessions")
        kept.look("deliver_notifications")
    told = [one["title"] for message in kept.hook.got for one in message["notifications"]]
    assert told.count("lab_backup is late") == 1


def test_what_has_no_schedule_any_more_is_not_late(kept: Kept) -> None:
    change = FreshnessStateChange(
        key=dg.AssetKey("lab_backup"),
        new_state=FreshnessState.FAIL,
        previous_state=FreshnessState.PASS,
        state_change_timestamp=datetime.now(UTC).timestamp(),
    )
    kept.instance._report_runless_asset_event(change)
    assert [one.schedule for one in late(kept.lab.settings, kept.instance)] == ["back_up"]
    without = kept.lab.settings.schedules.model_copy(update={"back_up": None})
    for update in ({"schedules": without}, {"stage": "staging"}):
        assert not list(late(kept.lab.settings.model_copy(update=update), kept.instance))


def test_what_a_schedule_never_made_is_told(kept: Kept) -> None:
    """Dagster's daemon says of such an asset only that it does not know, since it first saw the policy."""
    graph = kept.definitions.resolve_asset_graph()
    for days, asset in ((47, "lab_backup"), (40, "store_verification")):
        with freeze_time(datetime.now(UTC) - timedelta(days=days)):
            context = LoadingContextForTest(kept.instance)
            evaluated = FreshnessDaemon()._evaluate_asset(context, graph.get(dg.AssetKey(asset)))
            assert asyncio.run(evaluated), "the state has changed"
    for _ in range(2):
        kept.look("watch_sessions")
        kept.look("deliver_notifications")
    told = [one["title"] for message in kept.hook.got for one in message["notifications"]]
    assert told == ["lab_backup is late"]
    assert "and never did" in str(kept.hook.got)
    (told,) = found(kept)["schedule back_up"]
    assert told.warning and told.found == "lab_backup is late, and was never made"

    # It was made: nothing is late from now on.
    assert kept.run("back_up")[0]
    context = LoadingContextForTest(kept.instance)
    assert asyncio.run(FreshnessDaemon()._evaluate_asset(context, graph.get(dg.AssetKey("lab_backup"))))
    assert [one.asset for one in late(kept.lab.settings, kept.instance)] == []


def test_a_run_that_is_tried_again_waits_first(kept: Kept) -> None:
    first = kept.submit()
    assert first.status == dg.DagsterRunStatus.QUEUED
    assert not kept.may_start(first)
    kept.look("start_waiting_retries")
    assert not kept.may_start(first)
    until = datetime.fromisoformat(first.tags["dlc_platform/waits_until"])
    assert timedelta(minutes=1) < until - datetime.now(UTC) <= timedelta(minutes=2)
    kept.instance.add_run_tags(first.run_id, {"dlc_platform/waits_until": datetime.now(UTC).isoformat()})
    kept.look("start_waiting_retries")
    assert kept.may_start(first)

    # It has the tags of the one before, and waits for longer; further ones for as long as the last number says.
    later = kept.submit(**{**kept.run_of(first.run_id).tags, RETRY_NUMBER_TAG: "5"})
    until = datetime.fromisoformat(later.tags["dlc_platform/waits_until"])
    assert until - datetime.now(UTC) > timedelta(minutes=9)
    assert not kept.may_start(later)


@pytest.mark.parametrize(("minutes", "waits"), [(5, True), (60 * 24, False), (-1, False)])
def test_a_retry_does_not_wait_for_a_clock_that_was_wrong(kept: Kept, minutes: float, waits: bool) -> None:
    run = kept.submit()
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    kept.instance.add_run_tags(run.run_id, {UNTIL_TAG: until.isoformat(timespec="seconds")})
    kept.look("start_waiting_retries")
    assert kept.may_start(run) is not waits


def test_what_was_done_by_a_wrong_clock_holds_up_nothing(kept: Kept) -> None:
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("lab"), "__repository__")
    ahead = (datetime.now(UTC) + timedelta(days=1)).timestamp()
    kept_cursor = Cursor(rules="those of before").write()
    data = {
        "new_session_videos": SensorInstigatorData(
            last_tick_timestamp=ahead,
            last_tick_start_timestamp=ahead,
            cursor=kept_cursor,
            sensor_type=SensorType.STANDARD,
        ),
        "back_up": ScheduleInstigatorData("0 4 1 * *", last_iteration_timestamp=ahead),
        "verify_store": ScheduleInstigatorData("0 4 1 * *", last_iteration_timestamp=ahead - 2 * 86400),
    }
    for name, own in data.items():
        kind = InstigatorType.SENSOR if isinstance(own, SensorInstigatorData) else InstigatorType.SCHEDULE
        origin = RemoteInstigatorOrigin(repository, name)
        state = InstigatorState(origin, kind, InstigatorStatus.DECLARED_IN_CODE, own)
        kept.instance.add_instigator_state(state)
        if name != "verify_store":
            tick = TickData(origin.get_id(), name, kind, TickStatus.SKIPPED, ahead, selector_id=state.selector_id)
            kept.instance.create_tick(tick)
    (told,) = found(kept)["sensor new_session_videos"]
    assert told.warning and "by a clock that was set back since" in told.found
    now = datetime.now(UTC)
    assert forget_the_future(kept.instance, now) == ["back_up", "new_session_videos"]
    assert forget_the_future(kept.instance, now) == []
    states = {state.name: state for state in kept.instance.all_instigator_state()}
    sensor = states["new_session_videos"].instigator_data
    assert isinstance(sensor, SensorInstigatorData) and sensor.cursor == kept_cursor
    assert sensor.last_tick_timestamp == sensor.last_tick_start_timestamp == now.timestamp()
    for name in ("new_session_videos", "back_up"):
        (tick,) = kept.instance.get_ticks(states[name].instigator_origin_id, states[name].selector_id)
        assert tick.timestamp == pytest.approx(now.timestamp())
    assert states["verify_store"].instigator_data == data["verify_store"]


def test_a_run_that_was_stopped_with_the_lab_goes_on_at_once(kept: Kept) -> None:
    stopped = kept.submit()
    again = kept.instance.create_run_for_job(
        kept.definitions.resolve_job_def("clean_up"),
        parent_run_id=stopped.run_id,
        root_run_id=stopped.run_id,
        tags={**stopped.tags, STOPPED_TAG: stopped.run_id},
        remote_job_origin=ORIGIN,
    )
    kept.instance.run_coordinator.submit_run(SubmitRunContext(again, workspace=None))  # pyright: ignore
    assert kept.may_start(again)


def test_hygiene_is_written_into_dagster_yaml(kept: Kept) -> None:
    written = yaml.safe_load((kept.home / "dagster" / "dagster.yaml").read_text())
    assert written["run_retries"] == {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
    assert written["run_monitoring"] == {
        "enabled": True,
        "poll_interval_seconds": 5,
        "free_slots_after_run_end_seconds": 5,
        "start_timeout_seconds": 600,
        "cancel_timeout_seconds": 300,
        "max_runtime_seconds": 43200,
    }
    limits = {pool.name: pool.limit for pool in kept.instance.event_log_storage.get_pool_limits()}
    pools = {
        pool
        for key in kept.definitions.resolve_asset_graph().get_all_asset_keys()
        for pool in kept.definitions.resolve_asset_graph().get(key).pools or ()
    }
    assert pools == set(limits)


def test_dagster_tells_nobody_what_a_lab_does(kept: Kept) -> None:
    assert not kept.instance.telemetry_enabled
    assert environment_of(kept.home)["DAGSTER_DISABLE_TELEMETRY"] == "true"
    deployments = Path(upkeep.__file__).parents[2] / "deployments"
    settings = yaml.safe_load((kept.home / "lab.yaml").read_text())
    own = {**settings, "dagster_yaml": str(deployments / "slurm" / "dagster.yaml")}
    (kept.home / "lab.yaml").write_text(yaml.safe_dump(own))
    assert wanted_dagster_yaml(kept.home, load_lab(kept.home))["telemetry"] == {"enabled": False}
    # The chart writes it into the one of Kubernetes, and its image turns it off for every command.
    values = yaml.safe_load((deployments / "kubernetes" / "values.yaml").read_text())
    assert values["telemetry"] == {"enabled": False}
    assert "DAGSTER_DISABLE_TELEMETRY=true" in (deployments / "Dockerfile").read_text()


#: What a file of a few hundred bytes may not cost, and what is no file.
BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
    "an alias of itself": "run_launcher: &a [*a]\n",
    "lists in lists": "a: " + 2000 * "[" + 2000 * "]",
    "mappings in mappings": "\n".join(" " * i + "a:" for i in range(2000)),
    "an object of Python": "run_launcher: !!python/object/apply:os.system ['true']\n",
    "a key twice": "run_launcher: {}\nrun_launcher: {}\n",
    "a date that is none": "telemetry: 2024-99-99\n",
    "a large file": "# " + 5_000_000 * "x",
}


@pytest.mark.parametrize("bomb", [*BOMBS, "a pipe", "other letters"])
def test_own_parts_of_dagster_yaml_are_read_like_lab_yaml(tmp_path: Path, bomb: str) -> None:
    own = tmp_path / "own.yaml"
    if bomb == "a pipe":
        os.mkfifo(own)
    elif bomb == "other letters":
        own.write_bytes("name: Zoë".encode("latin-1"))
    else:
        own.write_text(BOMBS[bomb])
    lab = Lab.model_validate({"raw_roots": ["raw"], "projects": {"a": {"path": "a"}}, "dagster_yaml": own})
    with pytest.raises(PlatformError, match=r"own\.yaml"):
        wanted_dagster_yaml(tmp_path, lab)


def test_own_parts_of_dagster_yaml_replace_the_written_ones(kept: Kept) -> None:
    own = kept.home / "own.yaml"
    settings = yaml.safe_load((kept.home / "lab.yaml").read_text())
    (kept.home / "lab.yaml").write_text(yaml.safe_dump({**settings, "dagster_yaml": "own.yaml"}))
    with pytest.raises(PlatformError, match=r"own\.yaml cannot be read"):
        prepare(kept.home)
    own.write_text("run_launcher: [")
    with pytest.raises(PlatformError, match=r"own\.yaml is not YAML"):
        prepare(kept.home)
    own.write_text("- run_launcher")
    with pytest.raises(PlatformError, match=r"own\.yaml holds no keys"):
        prepare(kept.home)

    launcher = {
        "module": "dlc_platform.launchers.slurm_run_launcher",
        "class": "SlurmRunLauncher",
        "config": {"partition": "gpu"},
    }
    parts = {
        "run_launcher": launcher,
        "run_monitoring": {"max_resume_run_attempts": 3},
        "concurrency": {"runs": {"max_concurrent_runs": 500}},
    }
    own.write_text(yaml.safe_dump(parts))
    (runs,) = found(kept)["runs"]
    assert "not what lab.yaml asks for: concurrency, run_launcher, run_monitoring" in runs.found and runs.warning
    prepare(kept.home)
    written = yaml.safe_load((kept.home / "dagster" / "dagster.yaml").read_text())
    assert written["run_launcher"] == launcher
    assert written["run_monitoring"]["max_resume_run_attempts"] == 3
    assert written["run_monitoring"]["max_runtime_seconds"] == 43200
    assert written["concurrency"]["runs"]["max_concurrent_runs"] == 500
    assert written["concurrency"]["runs"]["tag_concurrency_limits"]
    assert written["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}
    (runs,) = found(kept)["runs"]
    assert not runs.remedy, runs


ROUTER = {"module": "dlc_platform.launchers.routing_run_launcher", "class": "RoutingRunLauncher"}
TO_SLURM = {"module": "dlc_platform.launchers.slurm_run_launcher", "class": "SlurmRunLauncher"}


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"run_launcher": {**ROUTER, "class": "RoutinRunLauncher"}}, "RoutinRunLauncher"),
        ({"run_launcher": {**ROUTER, "config": {"routes": [{"name": "a", "pool": "gpu", "launcher": TO_SLURM}]}}},
         "no last route that takes every run"),
        ({"run_launcher": {**ROUTER, "config": {"routes": [
            {"name": "a", "launcher": {**TO_SLURM, "config": {"partitio": "gpu"}}}]}}}, "partitio"),
        ({"run_monitoring": {"poll_interval_seconds": "often"}}, "poll_interval_seconds"),
        ({"run_luncher": {}}, "run_luncher"),
    ],
)  # fmt: skip
def test_own_parts_that_dagster_cannot_use_never_come_into_force(
    kept: Kept, parts: dict[str, Any], problem: str
) -> None:
    before = (kept.home / "dagster" / "dagster.yaml").read_text()
    settings = yaml.safe_load((kept.home / "lab.yaml").read_text())
    (kept.home / "lab.yaml").write_text(yaml.safe_dump({**settings, "dagster_yaml": "own.yaml"}))
    (kept.home / "own.yaml").write_text(yaml.safe_dump(parts))
    with pytest.raises(PlatformError, match=rf"own\.yaml.*{problem}"):
        prepare(kept.home)
    assert (kept.home / "dagster" / "dagster.yaml").read_text() == before
    (said,) = found(kept)["dagster_yaml"]
    assert "own.yaml" in said.found and problem in said.found and not said.warning


def test_doctor_knows_the_tables_of_a_newer_platform(kept: Kept) -> None:
    with kept.engine.begin() as connection:
        connection.execute(text("update dlc.alembic_version set version_num = '9999'"))
    (said,) = found(kept)["tables"]
    assert "at 9999, which this version of the platform does not know" in said.found and not said.warning
    with pytest.raises(PlatformError, match="at 9999, which this version"):
        prepare(kept.home)


def found(kept: Kept) -> dict[str, list[Finding]]:
    """What doctor says of Dagster, by what it is said of."""
    said: dict[str, list[Finding]] = {}
    for finding in inspection.inspect(kept.home):
        said.setdefault(finding.what, []).append(finding)
    return said


def test_doctor_looks_at_the_instance(kept: Kept) -> None:
    said = found(kept)
    (daemon,) = said["daemon"]
    assert daemon.warning and "does not run" in daemon.found
    for what in ("definitions", "home", "backups", "pools", "runs", "queue", "schedules and sensors"):
        assert [finding.remedy for finding in said[what]] == [""], what
    assert (
        said["pools"][0].found.startswith("gpu lets 1 run at a time") and "tried again 2 times" in said["runs"][0].found
    )

    now = datetime.now(UTC).timestamp()
    for part in kept.instance.get_required_daemon_types():
        kept.instance.add_daemon_heartbeat(DaemonHeartbeat(now, part, "me", errors=[]))
    kept.instance.event_log_storage.set_concurrency_slots("gpu", 7)
    stuck = kept.submit()
    kept.instance.add_run_tags(stuck.run_id, {"dlc_platform/waits": "no"})
    kept.submit()
    with kept.engine.begin() as connection:
        query = f"update {DAGSTER_SCHEMA}.runs set create_timestamp = create_timestamp - interval '2 hours'"
        connection.execute(text(query))
    said = found(kept)
    assert said["daemon"][0].remedy == "" and "live" in said["daemon"][0].found
    assert "gpu lets 7 runs at a time" in said["pools"][0].found and not said["pools"][0].warning
    assert "1 run waits and 0 are at work; 1 is to be tried again later" in said["queue"][0].found
    assert said["queue"][0].remedy

    written = kept.home / "dagster" / "dagster.yaml"
    content = yaml.safe_load(written.read_text())
    content["run_monitoring"]["free_slots_after_run_end_seconds"] = 0
    content["run_retries"]["enabled"] = False
    written.write_text(yaml.safe_dump(content))
    (runs,) = found(kept)["runs"]
    assert "freeing slots of ended runs, retries of dead runs" in runs.found and not runs.warning


def test_doctor_compares_what_is_under_way_with_runs(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(["session_videos"], {NEW: "a", "sub-8_ses-1": "b"})
    origin = RemoteInstigatorOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("lab"), "__repository__"), "new_session_videos"
    )
    data = SensorInstigatorData(cursor=Cursor({"key": asked}).write(), sensor_type=SensorType.STANDARD)
    kept.instance.add_instigator_state(
        InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, data)
    )
    (lost,) = found(kept)["under way"]
    assert lost.found == f"2 sessions without a run, such as {NEW}"
    assert lost.warning and lost.remedy == "Start the lab, which sets them going"

    job = kept.definitions.resolve_job_def("process_sessions")
    run = kept.instance.create_run_for_job(job, tags={RUN_KEY_TAG: "key"})
    (good,) = found(kept)["under way"]
    assert good.found == "2 sessions are under way, with a run each" and good.remedy == ""

    # It ended, and the lab was stopped before the sensor's next look.
    kept.instance.report_run_canceled(run)
    (ended,) = found(kept)["under way"]
    assert ended.found == "no session is under way"
    kept.instance.delete_run(run.run_id)
    run = kept.instance.create_run_for_job(job, tags={RUN_KEY_TAG: "key"})

    # Dagster was cut off before it queued it.
    monkeypatch.setattr(retries, "_FORGOTTEN", timedelta(0))
    now = datetime.now(UTC).timestamp()
    for part in kept.instance.get_required_daemon_types():
        kept.instance.add_daemon_heartbeat(DaemonHeartbeat(now, part, "me", errors=[]))
    (lost,) = found(kept)["under way"]
    assert lost.found == (f"1 run that nothing starts, such as {run.run_id}; 2 sessions without a run, such as {NEW}")
    assert lost.remedy == "Nothing: the daemon sets them going within minutes"


def test_doctor_says_what_of_schedules_is_off_or_failed(kept: Kept) -> None:
    origins = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("lab"), "__repository__")
    for name, status in (("back_up", InstigatorStatus.STOPPED), ("verify_store", InstigatorStatus.DECLARED_IN_CODE)):
        origin = RemoteInstigatorOrigin(origins, name)
        state = InstigatorState(origin, InstigatorType.SCHEDULE, status, ScheduleInstigatorData("0 4 1 * *"))
        kept.instance.add_instigator_state(state)
        if status == InstigatorStatus.DECLARED_IN_CODE:
            error = SerializableErrorInfo("Exception: no room\n", [], "Exception")
            kept.instance.create_tick(
                TickData(
                    origin.get_id(), name, InstigatorType.SCHEDULE, TickStatus.FAILURE,
                    datetime.now(UTC).timestamp(), error=error, selector_id=state.selector_id,
                )
            )  # fmt: skip
    said = found(kept)
    assert [finding.found for finding in said["schedule back_up"]] == ["it was switched off"]
    (failed,) = said["schedule verify_store"]
    assert failed.warning and "no room" in failed.found
