"""A small lab in a catalogue, written by hand: the rows, and how they get there."""

from typing import Any

from sqlalchemy import Engine

from dlc_platform.catalog import tables
from dlc_platform.catalog.datasets import record_dataset as catalog_record_dataset
from dlc_platform.catalog.estimates import record_poses
from dlc_platform.catalog.evaluations import record_evaluation
from dlc_platform.catalog.models import record_export, record_training
from dlc_platform.catalog.writing import BodyParts


def identity(letter: str) -> str:
    return letter * 64


def session(key: str) -> tables.Session:
    subject, name = key.split("_")
    return tables.Session(key=key, subject=subject[4:], name=name[4:], folder=f"/raw/{subject}/{name}")


def video(letter: str, **changes: Any) -> tables.Video:
    values = {
        "id": identity(letter),
        "size_bytes": 1000,
        "width": 640,
        "height": 480,
        "frame_rate_numerator": 30000,
        "frame_rate_denominator": 1001,
        "frames": 300,
        "frames_declared": 600,
        "duration_s": 10.01,
        "codec": "h264",
        "pixel_format": "yuv420p",
        "rotation": 0,
    }
    return tables.Video(**values | changes)


def recording(
    key: str,
    name: str,
    video: str | None = None,
    problem: str | None = None,
    mtime_ns: int = 1,
    position: int = 0,
    camera: str = "top",
) -> tables.RecordingFile:
    """A file of a recording."""
    return tables.RecordingFile(
        recording=tables.Recording(session_key=key, name=name, camera=camera),
        position=position,
        path=f"/raw/{key}/{name}{position or ''}.mp4",
        size_bytes=1000,
        mtime_ns=mtime_ns,
        video_id=identity(video) if video else None,
        problem=problem,
    )


def dataset(letter: str, project: str = "maze") -> tables.Dataset:
    return tables.Dataset(
        id=identity(letter), project=project, train_images=2, test_images=1, seed=42, test_fraction=0.1, run_id="run-d"
    )


BODYPARTS = BodyParts(("nose", "tail"), (("nose", "tail"),))
ENVIRONMENT = {"deeplabcut": "3.0.2", "gpu": None, "host": "gpu1"}


def record_dataset(engine: Engine, recipe: str, made: tables.Dataset, images: list[tables.DatasetImage]) -> None:
    catalog_record_dataset(engine, recipe, made, BODYPARTS, images, ENVIRONMENT)


def image(letter: str, number: str, session_key: str | None, side: str = "train") -> tables.DatasetImage:
    return tables.DatasetImage(
        dataset_id=identity(letter),
        image_id=identity(number),
        folder="video1",
        file=f"img{number}.png",
        session_key=session_key,
        side=side,
    )


def train(engine: Engine, letter: str, dataset: str, recipe: str = "first", project: str = "maze") -> bool:
    return record_training(
        engine,
        tables.ModelVersion(
            id=identity(letter),
            project=project,
            dataset_id=identity(dataset),
            weights_sha256=identity("f"),
            scorer=f"DLC_{letter}",
        ),
        BODYPARTS,
        tables.TrainingRun(recipe=recipe, model_id=identity(letter), epochs=5, seconds=12.5, run_id=f"train-{letter}"),
        {"epochs": 5, "net_type": "resnet_50"},
        ENVIRONMENT,
    )


def export(engine: Engine, letter: str, model: str, accepted: bool = True) -> None:
    made = tables.ModelExport(
        id=identity(letter),
        model_id=identity(model),
        backend="openvino",
        device="cpu",
        precision="full",
        accepted=accepted,
        images=20,
        deviation_px=3e-5,
        deviation_likelihood=1e-6,
        eager_ms_per_frame=71.0,
        ms_per_frame=41.0,
        manifest_sha256=identity("0"),
    )
    record_export(engine, made, ENVIRONMENT)


def evaluate(
    engine: Engine,
    letter: str,
    model: str,
    dataset: str,
    rmse_px: float,
    cutoff: float = 0.6,
    confident: float = 1.0,
) -> None:
    errors = [
        tables.EvaluationError(
            evaluation_id=identity(letter),
            side=side,
            bodypart=bodypart,
            keypoints=3,
            rmse_px=rmse_px + (side == "test"),
            rmse_confident_px=None,
            median_px=rmse_px,
            mean_likelihood=0.9,
            fraction_confident=confident,
        )
        for side in ("test", "train")
        for bodypart in ("all", "tail", "nose")
    ]
    evaluation = tables.Evaluation(
        id=identity(letter),
        model_id=identity(model),
        dataset_id=identity(dataset),
        likelihood_cutoff=cutoff,
        test_images=1,
        taught_images=0,
        training_known=True,
        run_id=f"evaluate-{letter}",
    )
    record_evaluation(engine, evaluation, errors, ENVIRONMENT)


def promotion(
    model: str, project: str = "maze", evaluation: str | None = None, rmse_px: float | None = None
) -> tables.Promotion:
    return tables.Promotion(
        project=project,
        model_id=identity(model),
        evaluation_id=identity(evaluation) if evaluation else None,
        kind="person",
        promoted_by="a person",
        reason=f"{model} it is",
        test_rmse_px=rmse_px,
        test_images=None if rmse_px is None else 1,
        run_id="promote",
    )


def track(
    engine: Engine,
    letter: str,
    file: tables.RecordingFile,
    model: str,
    parameters: dict[str, Any] | None = None,
) -> None:
    estimate = tables.PoseEstimate(
        id=identity(letter),
        video_id=file.video_id,
        model_id=identity(model),
        origin="computed",
        scorer=f"DLC_{model}",
        frames=300,
        parameters=parameters,
        backend="openvino",
        device="cpu",
        export_id=identity("2"),
        seconds=4.5,
        run_id=f"track-{letter}",
    )
    poses = tables.RecordingPoses(
        recording_file_id=file.id, pose_estimate_id=identity(letter), run_id=f"materialise-{letter}"
    )
    record_poses(engine, estimate, poses, ENVIRONMENT)
