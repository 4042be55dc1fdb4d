"""Versions of a project side by side: a trained one, one that is worse, and one that came from elsewhere."""

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import yaml
from sqlalchemy import Engine, text

from dlc_platform.catalog import tables
from dlc_platform.catalog.datasets import record_dataset as catalog_record_dataset
from dlc_platform.catalog.estimates import record_poses, tracked_by_both
from dlc_platform.catalog.evaluations import evaluation_table, evaluations_of
from dlc_platform.catalog.models import best_models
from dlc_platform.catalog.models import record_training as catalog_record_training
from dlc_platform.catalog.sessions import current_files
from dlc_platform.catalog.writing import BodyParts
from dlc_platform.cli import app
from dlc_platform.dlc.dataset import Dataset, make_dataset, side
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.dlc.labels import read_labels
from dlc_platform.dlc.project import read_project
from dlc_platform.dlc.training import TrainedModel
from dlc_platform.errors import PlatformError
from dlc_platform.models.comparison import different_splits, find_disagreement, old_and_new
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.platform import Platform
from dlc_platform.pose.table import POSE_TABLE
from dlc_platform.sessions.recordings import scan
from dlc_platform.sessions.registration import register
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store
from dlc_platform_tests.products import manifest_of

PROJECT = "tiny"
LABELLED, UNLABELLED = "sub-1_ses-1", "sub-1_ses-2"
ENVIRONMENT = {"deeplabcut": "3"}
BODYPARTS = BodyParts(("nose", "tail"), (("nose", "tail"),))


@pytest.fixture
def home(
    tmp_path: Path,
    engine: Engine,
    tiny_store: Store,
    tiny_dataset: Dataset,
    tiny_model: TrainedModel,
    tiny_recipe: Recipe,
    tiny_project: Path,
    tiny_video: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A lab with two sessions, of which one is labelled, and a trained version that nobody has evaluated."""
    home = tmp_path / "lab"
    for session in ("ses-1", "ses-2"):
        folder = tmp_path / "raw" / "sub-1" / session
        folder.mkdir(parents=True)
        shutil.copy(tiny_video, folder / "cam-top.mp4")
    shutil.copytree(tiny_store.root, home / "store")
    settings = {
        "raw_roots": [str(tmp_path / "raw")],
        "projects": {PROJECT: {"path": str(tiny_project)}, "empty": {"path": str(tiny_project)}},
        "recipes": {"quick": tiny_recipe.model_dump(mode="json")},
        "inference": [{"project": PROJECT}],
        # The networks that these tests make are no good, and what is compared is not that.
        "promotion": {"hopeless": {"correct": None, "confident": None, "spread": None}},
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("DLC_PLATFORM_POSTGRES_URL", engine.url.render_as_string(hide_password=False))
    lab = Platform(home).settings
    for session in scan(lab.raw_roots, lab.layout).sessions:
        register(engine, session)
    record_dataset(engine, tiny_dataset)
    record_training(engine, tiny_model.id, tiny_dataset.id)
    return home


def record_dataset(engine: Engine, dataset: Dataset) -> None:
    catalog_record_dataset(
        engine,
        "quick",
        tables.Dataset(
            id=dataset.id, project=PROJECT, train_images=dataset.n_train, test_images=dataset.n_test, run_id="r"
        ),
        BODYPARTS,
        [
            tables.DatasetImage(
                dataset_id=dataset.id,
                image_id=row.image,
                folder=row.folder,
                file=row.file,
                session_key=LABELLED,
                side=row.side,
            )
            for row in dataset.labels().drop_duplicates("image").itertuples()
        ],
        ENVIRONMENT,
    )


def record_training(engine: Engine, model: str, dataset: str) -> None:
    catalog_record_training(
        engine,
        tables.ModelVersion(id=model, project=PROJECT, dataset_id=dataset, weights_sha256="f" * 64, scorer="s"),
        BODYPARTS,
        tables.TrainingRun(recipe="quick", model_id=model, epochs=1, seconds=1.0, run_id="r"),
        {"epochs": 1},
        ENVIRONMENT,
    )


def perturbed(store: Store, model: TrainedModel, name: str, noise: float, dataset: Dataset | None = None) -> str:
    """A version like another one, but for noise in its weights; it has the name, filled up, for an identity."""
    import torch

    manifest = manifest_of(store.path("models", model.id)) | ({"dataset": dataset.id} if dataset else {})

    def write(folder: Path) -> None:
        for file in ("pytorch_config.yaml", "learning_stats.csv"):
            shutil.copy(model.path / file, folder / file)
        snapshot = torch.load(model.path / "snapshot.pt", weights_only=True, map_location="cpu")
        random = torch.Generator().manual_seed(0)
        for key, weights in snapshot["model"].items():
            if key.endswith("weight") and weights.ndim > 1:
                changed = weights + noise * weights.std() * torch.randn(weights.shape, generator=random)
                snapshot["model"][key] = changed
        torch.save(snapshot, folder / "snapshot.pt")

    identity = name.ljust(64, "0")
    store.put("models", identity, manifest, write)
    return identity


def materialise(home: Path, *assets: str) -> dict[str, dict]:
    """Materialise assets; the metadata of each."""
    job = build_definitions(home).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(name) for name in assets])
        return {
            event.asset_key.to_user_string(): dict(event.step_materialization_data.materialization.metadata)
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None
        }


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[object, str]]:
    """Runs a command in this process: its exit code, or what it ends with on stderr, and what it printed."""

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["dlc-platform", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        said = capsys.readouterr()
        return said.err if ended.value.code == 2 else ended.value.code, said.out

    return run


def test_every_version_is_evaluated_compared_and_shown(
    home: Path, engine: Engine, tiny_model: TrainedModel, tiny_dataset: Dataset, command: Callable
) -> None:
    """Trained or imported; what cannot be evaluated or has no counterpart is named, and stops nobody."""
    store = Store(home / "store")
    worse = perturbed(store, tiny_model, "aaa", 0.3)
    record_training(engine, worse, tiny_dataset.id)
    elsewhere = perturbed(store, tiny_model, "bbb", 0.001)
    with engine.begin() as connection:
        connection.execute(
            text(
                "insert into dlc.model_version (id, project, origin, skeleton_id, weights_sha256, scorer, source) "
                "select :elsewhere, project, 'imported', skeleton_id, weights_sha256, 's', '{}' "
                "from dlc.model_version where id = :worse"
            ),
            {"elsewhere": elsewhere, "worse": worse},
        )
    gone = "ccc".ljust(64, "0")
    record_training(engine, gone, tiny_dataset.id)

    with pytest.raises(PlatformError, match="materialise model_comparison to evaluate it"):
        Platform(home).compare(PROJECT)
    made = materialise(home, "model_comparison", "production_model")
    metadata = made["model_comparison"]
    assert "has no training dataset" in metadata["problem_empty"].value
    assert "](data:image/png" in metadata["picture_tiny"].value and len(metadata["picture_tiny"].value) < 150_000
    rows = [record.data for record in metadata["versions_tiny"].records]
    assert [row["model"] for row in rows] == [
        f"quick {tiny_model.id[:12]}",
        f"quick {worse[:12]}",
        f"imported {elsewhere[:12]}",
    ]
    assert all(row["frames_per_second"] > 0 for row in rows)
    assert [record.data["model"] for record in metadata["left_out_tiny"].records] == [gone[:12]]
    assert metadata["test_images_tiny"].value == tiny_dataset.n_test

    compared = Platform(home).compare(PROJECT)
    assert compared.versions["model"].tolist() == [tiny_model.id, worse, elsewhere]
    assert compared.versions["train_images"].tolist()[:2] == [tiny_dataset.n_train] * 2
    by_model = compared.versions.set_index("model")
    assert by_model.loc[worse, "test_rmse_px"] > by_model.loc[tiny_model.id, "test_rmse_px"]
    assert by_model.loc[tiny_model.id, "production"] and not by_model.loc[worse, "production"]
    assert compared.sessions["session"].unique().tolist() == [LABELLED]
    assert compared.left_out["reason"].tolist() == ["its product is not in the store; bring it back"]

    best = best_models(engine)
    recorded = best[best["bodypart"] == "all"].set_index("model")
    for column in ("rmse_px", "rmse_low_px", "rmse_high_px"):
        ours = "test_rmse_px" if column == "rmse_px" else column
        np.testing.assert_allclose(recorded[column].loc[by_model.index], by_model[ours])
    assert set(best["bodypart"]) == {"all", "nose", "tail"}
    with engine.connect() as connection:
        sessions = connection.execute(text("select distinct session_key from dlc.evaluation_session_error")).scalars()
        assert list(sessions) == [LABELLED]
        assert connection.scalar(text("select min(seconds) from dlc.evaluation")) > 0

    before = evaluation_table(engine)
    again = materialise(home, "model_comparison")["model_comparison"]
    assert again["bodyparts_tiny"].value == metadata["bodyparts_tiny"].value
    assert [record.data["production"] for record in again["versions_tiny"].records] == [True, False, False]
    assert len(evaluation_table(engine)) == len(before)
    with engine.connect() as connection:
        assert connection.scalar(text("select count(*) from dlc.comparison")) == 1

    code, printed = command("compare", home, "--project", PROJECT)
    assert code in (0, None)
    assert f"{tiny_dataset.n_test} test images" in printed and worse[:12] in printed and LABELLED in printed
    assert f"Not compared: {gone[:12]}, because its product is not in the store" in printed
    code, printed = command("compare", home, "--json")
    assert "dlc-platform: the project empty has no training dataset" in str(code)
    (record,) = json.loads(printed)
    assert record["project"] == PROJECT and len(record["versions"]) == 3 and record["left_out"][0]["model"] == gone
    rows = list(csv.DictReader(io.StringIO(command("compare", home, "--project", PROJECT, "--csv")[1])))
    tables = ("versions", "bodyparts", "sessions", "left_out")
    assert Counter(row["table"] for row in rows) == {table: len(record[table]) for table in tables if record[table]}
    assert {row["project"] for row in rows} == {PROJECT} and rows[-1]["model"] == gone
    code, _ = command("compare", home, "--project", "maze")
    assert "there is no project 'maze'. Choose among empty, tiny." in str(code)
    assert old_and_new(engine, PROJECT) == (tiny_model.id, gone)
    assert old_and_new(engine, "empty") is None


def test_old_against_new_on_sessions_without_labels(
    home: Path, engine: Engine, tiny_model: TrainedModel, tiny_dataset: Dataset
) -> None:
    store = Store(home / "store")
    worse = perturbed(store, tiny_model, "aaa", 0.3)
    record_training(engine, worse, tiny_dataset.id)
    materialise(home, "model_comparison", "production_model")
    assert old_and_new(engine, PROJECT) == (tiny_model.id, worse)
    metadata = materialise(home, "model_comparison")["model_comparison"]
    assert "no session without labels has poses by both" in metadata["disagreement_tiny"].value

    for model in (tiny_model.id, worse):
        estimator = PoseEstimator(store.path("models", model), store, device="cpu")
        for session in (LABELLED, UNLABELLED):
            (file,) = current_files(engine, session)
            assert file.video_id is not None
            estimate = estimator.estimate(Path(file.path), file.video_id)
            record_poses(
                engine,
                tables.PoseEstimate(
                    id=estimate.id,
                    video_id=file.video_id,
                    model_id=model,
                    origin="computed",
                    scorer="s",
                    frames=estimate.frames,
                    seconds=estimate.seconds,
                    run_id="r",
                ),
                tables.RecordingPoses(recording_file_id=file.id, pose_estimate_id=estimate.id, run_id="r"),
                ENVIRONMENT,
            )
    found = find_disagreement(engine, store, PROJECT, tiny_model.id, worse, limit_px=5.0, cutoff=0.0)
    assert found.table[["session", "bodypart", "frames"]].to_numpy().tolist() == [
        [UNLABELLED, "nose", 20],
        [UNLABELLED, "tail", 20],
    ]
    assert found.problems == []
    # The video is shorter than the time between two moments.
    ((picture, old, new, title),) = found.frames
    assert picture.shape == (96, 96, 3) and title.startswith(f"{UNLABELLED} cam-top\nframe ")
    frame = int(title.split("frame ")[1].split(",")[0])
    poses = Platform(home).poses(UNLABELLED, model=worse)
    nose = poses[(poses["frame"] == frame) & (poses["bodypart"] == "nose")].iloc[0]
    assert new["nose"] == (nose["x"], nose["y"]) and old["nose"] != new["nose"]

    metadata = materialise(home, "model_comparison")["model_comparison"]
    assert {record.data["session"] for record in metadata["disagreement_tiny"].records} == {UNLABELLED}
    assert "](data:image/jpeg" in metadata["picture_disagreement_tiny"].value

    (file,) = current_files(engine, UNLABELLED)
    Path(file.path).unlink()
    found = find_disagreement(engine, store, PROJECT, tiny_model.id, worse, limit_px=5.0, cutoff=0.0)
    assert len(found.table) == 2 and found.frames == [] and "is not there any more" in found.problems[0]
    ((lost, *_),) = tracked_by_both(engine, PROJECT, tiny_model.id, worse, 10)[["new"]].to_numpy()
    (store.path("poses", lost) / POSE_TABLE).unlink()
    found = find_disagreement(engine, store, PROJECT, tiny_model.id, worse, limit_px=5.0, cutoff=0.0)
    assert found.table.empty and f"{lost}/{POSE_TABLE} is missing" in found.problems[0]


def test_a_newer_dataset_is_what_counts(
    home: Path, engine: Engine, tiny_model: TrainedModel, tiny_dataset: Dataset, tiny_project: Path
) -> None:
    """With another seed the old version was trained on most of the new test images, and no figure is made up."""
    store = Store(home / "store")
    materialise(home, "model_comparison")
    assert Platform(home).compare(PROJECT).dataset_id == tiny_dataset.id
    project = read_project(tiny_project)
    newer = make_dataset(project, read_labels(project), 2, 0.25, {}, store)
    record_dataset(engine, newer)
    newest = perturbed(store, tiny_model, "aaa", 0.01, newer)
    record_training(engine, newest, newer.id)
    metadata = materialise(home, "model_comparison")["model_comparison"]
    assert [record.data["model"] for record in metadata["left_out_tiny"].records] == [tiny_model.id[:12]]
    compared = Platform(home).compare(PROJECT)
    assert compared.versions["model"].tolist() == [newest] and compared.dataset_id == newer.id
    (reason,) = compared.left_out["reason"]
    assert (
        f"of the {newer.n_test} test images" in reason
        and "train its recipe again with the project's `split_seed`" in reason
    )
    # It becomes comparable again with the dataset that it was made for.
    record_dataset(engine, tiny_dataset)
    materialise(home, "model_comparison")
    assert best_models(engine)["model"].unique().tolist() == [tiny_model.id]


def test_recipes_of_one_project_that_split_differently_are_told(tiny_dataset: Dataset, tiny_recipe: Recipe) -> None:
    images = tiny_dataset.labels()["image"].unique()

    def lab(split_seed: int | None, *recipes: Recipe) -> Lab:
        return Lab.model_validate(
            {
                "raw_roots": ["/raw"],
                "projects": {PROJECT: {"path": "/project", "split_seed": split_seed}, "other": {"path": "/other"}},
                "recipes": {f"r{number}": recipe.model_dump() for number, recipe in enumerate(recipes)},
            }
        )

    again = tiny_recipe.model_copy(update={"seed": 99})
    elsewhere = again.model_copy(update={"project": "other"})
    assert different_splits(PROJECT, lab(None, tiny_recipe, elsewhere).splits_of(PROJECT), images) is None
    told = different_splits(PROJECT, lab(None, tiny_recipe, again).splits_of(PROJECT), images)
    one, other = (
        {image for image in images if side(image, seed, tiny_recipe.test_fraction) == "test"}
        for seed in (tiny_recipe.seed, 99)
    )
    assert told is not None and f"share {len(one & other)} test images" in told
    assert f"r0 tests on {len(one)} images" in told and f"r1 tests on {len(other)} images (seed 99" in told
    # With a seed for the project, another seed of a recipe repeats a training on the same images.
    project = lab(5, tiny_recipe, again)
    assert different_splits(PROJECT, project.splits_of(PROJECT), images) is None
    assert project.split_of("r0") == project.split_of("r1") == (5, tiny_recipe.test_fraction)


def test_a_version_that_costs_images_is_named_with_what_it_costs(
    home: Path, engine: Engine, tiny_model: TrainedModel, tiny_project: Path, command: Callable
) -> None:
    """A newer dataset of another test fraction has test images that the older version was trained on."""
    store = Store(home / "store")
    project = read_project(tiny_project)
    wider = make_dataset(project, read_labels(project), 1, 0.4, {}, store)
    record_dataset(engine, wider)
    newest = perturbed(store, tiny_model, "aaa", 0.01, wider)
    record_training(engine, newest, wider.id)
    materialise(home, "model_comparison")
    compared = Platform(home).compare(PROJECT)
    (evaluation,) = [row for row in evaluations_of(engine, PROJECT) if row.model_id == tiny_model.id]
    assert (evaluation.test_images, evaluation.taught_images, wider.n_test) == (6, 4, 10)
    assert compared.versions["model"].tolist() == [tiny_model.id, newest]
    assert compared.versions["taught_images"].tolist() == [4, 0] and len(compared.comparison.images) == 6
    (warning,) = compared.warnings
    assert warning.startswith(f"{tiny_model.id[:12]} was trained on 4 of the dataset's 10 test images")
    assert warning.endswith("6 are left; without this version 10 would be left")
    code, printed = command("compare", home, "--project", PROJECT)
    assert code in (0, None) and f"Warning: {warning}." in printed
