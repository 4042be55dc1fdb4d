"""The faults that DataJoint's Element DeepLabCut is known for, each as a test that this platform passes.

Others that it is known for have their tests beside the code that they are about: the order of snapshots, `best` ones,
evaluations and the model prefix in `dlc/test_snapshots.py`; videos that DeepLabCut drew in
`sessions/test_recordings.py`.
"""

import ast
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from sqlalchemy import Engine, text

import dlc_platform
from dlc_platform.catalog import tables
from dlc_platform.catalog.database import open_catalog
from dlc_platform.catalog.estimates import record_poses
from dlc_platform.catalog.products import making_alone
from dlc_platform.catalog.sessions import current_files, register_session, session_table
from dlc_platform.dlc.chunks import Progress
from dlc_platform.dlc.dataset import Dataset
from dlc_platform.dlc.inference import PoseEstimator, pose_identity
from dlc_platform.dlc.training import TrainedModel, parameters_of, train_model
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file, sha256_json
from dlc_platform.platform import Platform
from dlc_platform.pose.table import POSE_TABLE, read_parquet
from dlc_platform.sessions.recordings import scan
from dlc_platform.sessions.registration import register, require_unchanged
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.settings.layout import Layout
from dlc_platform.settings.recipes import Recipe
from dlc_platform.store import Store
from dlc_platform.video.probe import probe
from dlc_platform_tests.catalog import small_lab
from dlc_platform_tests.products import manifest_of

KEY = "sub-1_ses-1"


def write_video(path: Path, frames: int, rate: Fraction, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            picture = np.full((32, 32, 3), (shade + number) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def mirrored(video: Path, to: Path) -> Path:
    """The video with left and right exchanged, in its place."""
    with av.open(str(video)) as source, av.open(str(to), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for frame in source.decode(video=0):
            picture = np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:, ::-1])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return to


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def estimator(tiny_model: TrainedModel, store: Store) -> PoseEstimator:
    return PoseEstimator(tiny_model.path, store, device="cpu")


def test_a_frame_rate_stays_rational(engine: Engine, tmp_path: Path) -> None:
    """29.97 frames per second were kept as 29: after 3,000 frames the clock was three seconds wrong."""
    video = write_video(tmp_path / "raw/sub-1/ses-1/cam-top.mp4", 3000, Fraction(30000, 1001))
    register(engine, scan([tmp_path / "raw"], Layout()).sessions[0])
    with engine.connect() as connection:
        (row,) = connection.execute(text("select * from dlc.video")).mappings()
    assert (row["frame_rate_numerator"], row["frame_rate_denominator"]) == (30000, 1001)
    assert row["frames"] == 3000 and row["duration_s"] == pytest.approx(100.1, abs=1e-6)
    assert probe(video).times_s[-1] == pytest.approx(2999 * 1001 / 30000, abs=1e-6)


def test_a_frame_rate_of_zero_cannot_be_stored(engine: Engine) -> None:
    video = small_lab.video("1", frame_rate_numerator=0)
    with pytest.raises(Exception, match="ck_video_has_time"):
        register_session(engine, small_lab.session(KEY), [(small_lab.recording(KEY, "a", "1"), video)])


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 5000], ids=["empty", "text", "zeros"])
def test_a_file_that_does_not_open_is_an_error_not_a_recording(engine: Engine, tmp_path: Path, content: bytes) -> None:
    """A file of 0 bytes was stored as a success: -1 frames, -1 pixels, one second long."""
    file = tmp_path / "raw/sub-1/ses-1/cam-top.mp4"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    (look,) = register(engine, scan([tmp_path / "raw"], Layout()).sessions[0])
    assert look.problem is not None and str(file) in look.problem.problem and look.problem.remedy
    (row,) = session_table(engine).to_dict("records")
    assert row["problem"] == str(look.problem) and row["frames"] is None and row["video"] is None
    with engine.connect() as connection:
        assert connection.scalar(text("select count(*) from dlc.video")) == 0


def test_a_query_for_poses_honours_its_session_and_body_parts(
    engine: Engine, estimator: PoseEstimator, tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two sessions in the table, the trajectory of one gave those of both."""
    home = tmp_path
    for key, content in (("1", tiny_video), ("2", mirrored(tiny_video, tmp_path / "mirrored.mp4"))):
        folder = home / f"raw/sub-{key}/ses-1"
        folder.mkdir(parents=True)
        shutil.copy(content, folder / "cam-top.mp4")
    (home / "project").mkdir()
    (home / "lab.yaml").write_text("{raw_roots: [raw], projects: {maze: {path: project}}}")
    monkeypatch.setenv(POSTGRES_VARIABLE, engine.url.render_as_string(hide_password=False))
    lab = Platform(home)
    small_lab.record_dataset(engine, "first", small_lab.dataset("d"), [small_lab.image("d", "3", None)])
    small_lab.train(engine, "a", "d")
    for session in scan([home / "raw"], Layout()).sessions:
        register(engine, session)
        (file,) = current_files(engine, session.key)
        made = estimator.estimate(Path(file.path), str(file.video_id))
        record_poses(
            engine,
            tables.PoseEstimate(
                id=made.id,
                video_id=file.video_id,
                model_id=small_lab.identity("a"),
                origin="computed",
                scorer="DLC",
                frames=made.frames,
                seconds=made.seconds,
                run_id="run",
            ),
            tables.RecordingPoses(recording_file_id=file.id, pose_estimate_id=made.id, run_id="run"),
            {},
        )
    one, two = lab.poses("sub-1_ses-1"), lab.poses("sub-2_ses-1", ["tail"])
    assert set(one["session"]) == {"sub-1_ses-1"} and set(one["bodypart"]) == {"nose", "tail"} and len(one) == 40
    assert set(two["session"]) == {"sub-2_ses-1"} and set(two["bodypart"]) == {"tail"} and len(two) == 20
    both = lab.poses(["sub-1_ses-1", "sub-2_ses-1"], bodyparts=["tail"])
    assert len(both) == 40
    assert both[both["session"] == "sub-2_ses-1"]["x"].to_numpy().tobytes() == two["x"].to_numpy().tobytes()
    with pytest.raises(PlatformError, match="sub-9_ses-1"):
        lab.poses(["sub-1_ses-1", "sub-9_ses-1"])


def test_parameters_do_not_collide_by_type_or_delimiter() -> None:
    same = Recipe.model_validate({"project": "maze", "epochs": "5", "seed": 1, "learning_rate": 1})
    assert parameters_of(same) == parameters_of(
        Recipe.model_validate({"learning_rate": "1.0", "seed": "1", "epochs": 5, "project": "another"})
    )
    assert sha256_json({"a": 1}) == sha256_json({"a": 1})
    assert len({sha256_json(value) for value in (["a", "bc"], ["ab", "c"], ["a,bc"], ["a", "b", "c"], [1], ["1"])}) == 6
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    # What only decides how fast something runs is no parameter of a recipe at all.
    assert not {"device", "gpu"} & set(parameters_of(same))
    assert pose_identity("a", "bc") != pose_identity("ab", "c")


def test_files_of_a_recording_are_in_recorded_order_not_by_name(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "raw/sub-1/ses-1"
    for part in (1, 2, 9, 10, 11):
        write_video(folder / f"cam-top_part-{part}.mp4", 3, Fraction(25), shade=part)
    session = scan([tmp_path / "raw"], Layout()).sessions[0]
    register(engine, session)
    files = current_files(engine, KEY)
    assert {file.recording.name for file in files} == {"cam-top"} and [file.position for file in files] == list(
        range(5)
    )
    assert [Path(file.path).stem.rpartition("-")[2] for file in files] == ["1", "2", "9", "10", "11"]


def test_two_trainings_of_one_dataset_do_not_affect_each_other(
    tiny_dataset: Dataset, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Two training tasks shared one folder: two rows, one set of snapshots."""
    store = Store(tmp_path / "store")
    script = (
        "import sys; from pathlib import Path; from dlc_platform.settings.recipes import Recipe; "
        "from dlc_platform.store import Store; from dlc_platform.dlc.training import train_model; "
        "train_model(Path(sys.argv[1]), Recipe.model_validate_json(sys.argv[2]), Store(Path(sys.argv[3])), "
        "Path(sys.argv[4]), device='cpu', on_progress=lambda *_: input())"
    )
    first, second = (tiny_recipe.model_copy(update={"epochs": 2, "seed": seed}) for seed in (1, 2))
    with subprocess.Popen(
        [sys.executable, "-c", script, tiny_dataset.path, first.model_dump_json(), store.root, tmp_path / "work"],
        stdin=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        while not list(tmp_path.glob("work/*/*/*")):
            assert other.poll() is None
            time.sleep(0.1)
        # The other one stands between its epochs, or comes there, while this one begins and ends.
        train_model(tiny_dataset.path, second, store, tmp_path / "work", device="cpu")
        other.communicate("\n" * 2, timeout=600)
    assert other.returncode == 0
    made = sorted((store.root / "models").iterdir())
    assert len(made) == 2 and len({sha256_file(model / "snapshot.pt") for model in made}) == 2
    assert sorted(manifest_of(store.path("models", model.name))["recipe"]["seed"] for model in made) == [1, 2]
    assert list((tmp_path / "work").iterdir()) == []
    # Each is what it would have been alone.
    alone = train_model(tiny_dataset.path, second, Store(tmp_path / "alone"), tmp_path / "work", device="cpu")
    assert alone.path.name in {model.name for model in made}


def test_nothing_is_unpickled() -> None:
    """Everything named .pickle was loaded, and could run code."""
    package = Path(dlc_platform.__file__).parent
    found = []
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = called.split(".")[-1] in ("Unpickler", "read_pickle", "read_hdf", "joblib") or (
                called in ("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "dill.load")
                or (called == "torch.load" and keywords.get("weights_only") != "True")
                or (called == "yaml.load")
                or (called in ("np.load", "numpy.load") and keywords.get("allow_pickle") == "True")
            )
            if unsafe:
                found.append(f"{file.name}:{node.lineno} {called}")
    assert found == []


def test_a_mirrored_video_does_not_give_back_the_old_poses(
    engine: Engine, estimator: PoseEstimator, tiny_video: Path, tmp_path: Path
) -> None:
    """The video was replaced by its mirror image: the old poses were reported as a success."""
    file = tmp_path / "raw/sub-1/ses-1/cam-top.mp4"
    file.parent.mkdir(parents=True)
    shutil.copy(tiny_video, file)
    register(engine, scan([tmp_path / "raw"], Layout()).sessions[0])
    (before,) = current_files(engine, KEY)
    old = estimator.estimate(file, str(before.video_id))
    mirrored(tiny_video, file)
    with pytest.raises(PlatformError, match="was replaced"):
        require_unchanged(before)
    register(engine, scan([tmp_path / "raw"], Layout()).sessions[0])
    (after,) = current_files(engine, KEY)
    assert after.video_id != before.video_id
    new = estimator.estimate(file, str(after.video_id))
    tables_ = [read_parquet(poses.path / POSE_TABLE, ["nose"]) for poses in (old, new)]
    sure = (tables_[0]["likelihood"] > 0.5) & (tables_[1]["likelihood"] > 0.5)
    # How many there are depends on the machine that trained the network.
    assert sure.sum() > 2
    # The network sees the mirror image: x is measured from the other side.
    assert np.median(np.abs(95 - tables_[0]["x"][sure] - tables_[1]["x"][sure])) < 10
    assert np.median(np.abs(tables_[0]["x"][sure] - tables_[1]["x"][sure])) > 10


def test_two_workers_asked_for_the_same_two_videos_do_each_once(
    engine: Engine, tiny_model: TrainedModel, tiny_video: Path, store: Store, tmp_path: Path
) -> None:
    videos = [tiny_video, mirrored(tiny_video, tmp_path / "mirrored.mp4")]
    barrier = threading.Barrier(2)
    begun: list[str] = []

    def work(number: int) -> list[str]:
        own, network = open_catalog(engine.url), PoseEstimator(tiny_model.path, store, device="cpu")
        made = []
        barrier.wait(300)
        for video in videos[:: 1 if number == 0 else -1] * 2:
            identity = sha256_file(video)

            def begin(progress: Progress, video: Path = video) -> None:
                if progress.done == 20:
                    begun.append(video.name)

            with making_alone(own, pose_identity(identity, network.model_id)):
                made.append(network.estimate(video, identity, on_progress=begin).id)
        own.dispose()
        return made

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert set(first) == set(second) and len(set(first)) == 2
    assert sorted(begun) == sorted(video.name for video in videos)


def test_a_failed_export_leaves_no_file_that_looks_like_success(
    estimator: PoseEstimator, tiny_video: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that could not be written left a file of 800 bytes, which the next call reported as a success."""
    import dlc_platform.dlc.inference as inference

    real = inference.write_parquet

    def break_off(table: object, path: Path) -> None:
        path.write_bytes(os.urandom(800))
        raise OSError("the disk is gone")

    monkeypatch.setattr(inference, "write_parquet", break_off)
    with pytest.raises(OSError, match="the disk is gone"):
        estimator.estimate(tiny_video, sha256_file(tiny_video))
    visible = [path for path in (store.root / "poses").rglob("*") if ".work-" not in str(path)]
    assert visible == [], "what was found so far is kept out of sight"
    assert not store.has("poses", pose_identity(sha256_file(tiny_video), estimator.model_id))
    monkeypatch.setattr(inference, "write_parquet", real)
    poses = estimator.estimate(tiny_video, sha256_file(tiny_video))
    assert len(read_parquet(poses.path / POSE_TABLE)) == 40
