"""A small lab in a catalogue, written by hand: the rows, and how they get there."""

from typing import Any

from sqlalchemy import Engine

from dlc_platform.catalog import registry, tables


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


def recording(key: str, name: str, video: str | None = None, problem: str | None = None, mtime_ns: int = 1):
    return tables.Recording(
        session_key=key,
        name=name,
        camera="top",
        path=f"/raw/{key}/{name}.mp4",
        size_bytes=1000,
        mtime_ns=mtime_ns,
        video_id=identity(video) if video else None,
        problem=problem,
    )


def dataset(letter: str, project: str = "maze") -> tables.Dataset:
    return tables.Dataset(
        id=identity(letter), project=project, bodyparts=["nose", "tail"], train_images=2, test_images=1, run_id="run-d"
    )


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
    return registry.record_training(
        engine,
        tables.ModelVersion(
            id=identity(letter),
            project=project,
            dataset_id=identity(dataset),
            weights_sha256=identity("f"),
            scorer=f"DLC_{letter}",
        ),
        tables.TrainingRun(recipe=recipe, model_id=identity(letter), epochs=5, seconds=12.5, run_id=f"train-{letter}"),
        {"epochs": 5, "net_type": "resnet_50"},
        {"deeplabcut": "3.0.2", "gpu": None},
    )


def evaluate(engine: Engine, letter: str, model: str, dataset: str, rmse_px: float) -> None:
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
            fraction_confident=1.0,
        )
        for side in ("test", "train")
        for bodypart in ("all", "tail", "nose")
    ]
    evaluation = tables.Evaluation(
        id=identity(letter),
        model_id=identity(model),
        dataset_id=identity(dataset),
        likelihood_cutoff=0.6,
        run_id=f"evaluate-{letter}",
    )
    registry.record_evaluation(engine, evaluation, errors, {"deeplabcut": "3.0.2", "gpu": None})


def promotion(model: str, project: str = "maze", evaluation: str | None = None) -> tables.Promotion:
    return tables.Promotion(
        project=project,
        model_id=identity(model),
        evaluation_id=identity(evaluation) if evaluation else None,
        reason=f"{model} it is",
        run_id="promote",
    )


def track(engine: Engine, letter: str, recording: tables.Recording, model: str) -> None:
    estimate = tables.PoseEstimate(
        id=identity(letter),
        video_id=recording.video_id,
        model_id=identity(model),
        frames=300,
        seconds=4.5,
        run_id=f"track-{letter}",
    )
    summaries = [
        tables.PoseSummary(
            pose_estimate_id=identity(letter),
            bodypart=bodypart,
            mean_likelihood=likelihood,
            fraction_confident=likelihood,
            fraction_missing=0.0,
        )
        for bodypart, likelihood in (("nose", 0.5), ("tail", 1.0))
    ]
    poses = tables.RecordingPoses(
        recording_id=recording.id, pose_estimate_id=identity(letter), run_id=f"materialise-{letter}"
    )
    registry.record_poses(engine, estimate, summaries, poses, {"host": "gpu1"})
