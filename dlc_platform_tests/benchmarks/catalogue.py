"""What the catalogue's questions and the reading of poses cost in a lab that has worked for years.

Run as ``python -m dlc_platform_tests.benchmarks.catalogue``. It makes 10,000 sessions, 20 model versions and 50,000
pose estimates in a Postgres of its own, and poses of 50 sessions of 10,000 frames as files and as blobs; all of it is
removed at the end. Times of queries are those of ``EXPLAIN ANALYZE``, the median of several; what is compared takes
turns.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Engine, text

from dlc_platform.catalog.database import migrate, open_catalog
from dlc_platform.platform import Platform
from dlc_platform.pose.table import POSE_TABLE, tidy_from_dlc, write_parquet
from dlc_platform.postgres import server
from dlc_platform.store import Store

if TYPE_CHECKING:
    import pandas as pd

SESSIONS, MODELS, ESTIMATES_PER_SESSION = 10_000, 20, 5
READ_SESSIONS, FRAMES = 50, 10_000
BODYPARTS = ("nose", "left_ear", "right_ear", "neck", "centre", "left_hip", "right_hip", "tail")
_REPEATS = 9
_TURNS = 31

_HASH = "encode(sha256(convert_to('{kind}' || {number}, 'UTF8')), 'hex')"


def _id(kind: str, number: str = "i") -> str:
    return _HASH.format(kind=kind, number=f"({number})::text")


_FILL = f"""
insert into dlc.environment select {_id("environment", "1")}, '{{"host": "gpu1", "gpu": "H100", "torch": "2"}}';
insert into dlc.subject (key) select 'mouse' || i from generate_series(0, 199) i;
insert into dlc.camera values ('top', 'maze');
insert into dlc.session (key, subject, name, folder, registered_at)
select 'sub-' || i % 200 || '_ses-' || i, 'mouse' || i % 200, i::text, '/raw/' || i, now() - i * interval '1 hour'
from generate_series(1, {SESSIONS}) i;
insert into dlc.video (id, size_bytes, width, height, frame_rate_numerator, frame_rate_denominator, frames, duration_s,
                       codec, pixel_format, rotation, start_time)
select {_id("video")}, 1000000, 640, 480, 30000, 1001, {FRAMES}, {FRAMES} * 1001.0 / 30000, 'h264', 'yuv420p', 0,
       now() - i * interval '1 hour'
from generate_series(1, {SESSIONS}) i;
insert into dlc.recording (id, session_key, name, camera)
select i, 'sub-' || i % 200 || '_ses-' || i, 'top', 'top' from generate_series(1, {SESSIONS}) i;
insert into dlc.recording_file (id, recording_id, position, path, size_bytes, mtime_ns, video_id)
select i, i, 0, '/raw/' || i || '/top.mp4', 1000000, i, {_id("video")} from generate_series(1, {SESSIONS}) i;
insert into dlc.skeleton values ({_id("skeleton", "1")});
insert into dlc.bodypart select {_id("skeleton", "1")}, b, n - 1
from unnest(array{list(BODYPARTS)}) with ordinality as x (b, n);
insert into dlc.parameter_set (id, parameters)
select {_id("parameters")}, jsonb_build_object('epochs', i, 'net_type', 'resnet_50')
from generate_series(1, {MODELS}) i;
insert into dlc.dataset (id, project, skeleton_id, train_images, test_images, seed, test_fraction, run_id)
select {_id("dataset")}, 'maze', {_id("skeleton", "1")}, 950, 50, 42, 0.05, 'run' from generate_series(1, {MODELS}) i;
insert into dlc.dataset_image (dataset_id, image_id, folder, file, session_key, side)
select {_id("dataset")}, {_id("image", "j")}, 'folder' || j, 'img.png',
       'sub-' || (j * 7) % {SESSIONS} % 200 || '_ses-' || 1 + (j * 7) % {SESSIONS} - 1,
       case when j % 20 = 0 then 'test' else 'train' end
from generate_series(1, {MODELS}) i, generate_series(1, 1000) j;
insert into dlc.model_version (id, project, origin, skeleton_id, net_type, dataset_id, parameter_set_id, weights_sha256,
                               scorer)
select {_id("model")}, 'maze', 'trained', {_id("skeleton", "1")}, 'resnet_50', {_id("dataset")}, {_id("parameters")},
       {_id("weights")}, 'DLC' || i
from generate_series(1, {MODELS}) i;
insert into dlc.training_run (recipe, model_id, epochs, seconds, environment_id, run_id)
select 'recipe', {_id("model")}, 200, 3600, {_id("environment", "1")}, 'run' from generate_series(1, {MODELS}) i;
insert into dlc.evaluation (id, model_id, dataset_id, likelihood_cutoff, environment_id, run_id)
select {_id("evaluation")}, {_id("model")}, {_id("dataset")}, 0.6, {_id("environment", "1")}, 'run'
from generate_series(1, {MODELS}) i;
insert into dlc.comparison (id, project, dataset_id, test_images, likelihood_cutoff, run_id)
select {_id("comparison")}, 'maze', {_id("dataset", "1")}, 50, 0.6, 'run' from generate_series(1, {MODELS}) i;
insert into dlc.comparison_error (comparison_id, model_id, bodypart, evaluation_id, keypoints, rmse_px, rmse_low_px,
                                  rmse_high_px)
select {_id("comparison")}, {_id("model", "j")}, b, {_id("evaluation", "j")}, 50,
       2 + j * 0.1, 1.8 + j * 0.1, 2.2 + j * 0.1
from generate_series(1, {MODELS}) i, generate_series(1, {MODELS}) j,
     unnest(array{["all", *BODYPARTS]}) b;
insert into dlc.promotion (id, project, model_id, kind, promoted_by, reason, previous_id)
select i, 'maze', {_id("model")}, 'person', 'a person', 'better', nullif(i - 1, 0) from generate_series(1, {MODELS}) i;
insert into dlc.pose_estimate (id, video_id, model_id, origin, scorer, frames, seconds, environment_id, run_id)
select {_id("pose", "i * 100 + j")}, {_id("video")}, {_id("model", "1 + (i + j) % 20")}, 'computed', 'DLC', {FRAMES},
       100, {_id("environment", "1")}, 'run'
from generate_series(1, {SESSIONS}) i, generate_series(1, {ESTIMATES_PER_SESSION}) j;
insert into dlc.pose_score (pose_estimate_id, individual, bodypart, mean_likelihood, fraction_confident,
                            fraction_missing)
select {_id("pose", "i * 100 + j")}, case b when 'all' then b else 'animal0' end, b, 0.9, 0.9, 0
from generate_series(1, {SESSIONS}) i, generate_series(1, {ESTIMATES_PER_SESSION}) j,
     unnest(array{["all", *BODYPARTS]}) b;
insert into dlc.recording_poses (recording_file_id, pose_estimate_id, run_id)
select i, {_id("pose", "i * 100 + j")}, 'run'
from generate_series(1, {ESTIMATES_PER_SESSION}) j, generate_series(1, {SESSIONS}) i;
create table public.blob (session text, bodypart text, frame bytea, time_s bytea, x bytea, y bytea, likelihood bytea,
                          primary key (session, bodypart));
"""

#: Each question of the lab as it is asked of the database.
QUESTIONS = {
    "what made the poses of a session": "select * from dlc.pose_lineage where session = 'sub-77_ses-4277'",
    "which sessions a model touched": f"select * from dlc.model_sessions where model = {_id('model', '7')}",
    "which sessions are stale": "select * from dlc.stale_sessions order by recorded_at desc",
    "which model is best, by body part": "select * from dlc.best_models order by project, bodypart, rank",
}


def fill(engine: Engine) -> None:
    """Make the lab's rows."""
    with engine.begin() as connection:
        for statement in _FILL.split(";\n"):
            if statement.strip():
                connection.execute(text(statement))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))


def milliseconds(engine: Engine, query: str) -> float:
    """The median of what EXPLAIN ANALYZE says of planning and execution together."""
    times = []
    with engine.connect() as connection:
        for _ in range(_REPEATS):
            (plan,) = connection.execute(text(f"explain (analyze, format json) {query}")).scalar_one()
            times.append(plan["Planning Time"] + plan["Execution Time"])
    return statistics.median(times)


def random_walk(seed: int) -> "pd.DataFrame":
    """Poses as DeepLabCut writes them: float32, smooth, with a likelihood near one."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    columns = pd.MultiIndex.from_product(
        [["DLC"], BODYPARTS, ["x", "y", "likelihood"]], names=["scorer", "bodyparts", "coords"]
    )
    values = np.empty((FRAMES, len(columns)), np.float32)
    steps = rng.normal(0, 1, (FRAMES, 2 * len(BODYPARTS))).cumsum(0) + 300
    values[:, 0::3], values[:, 1::3] = steps[:, ::2], steps[:, 1::2]
    values[:, 2::3] = 1 / (1 + np.exp(-rng.normal(5, 2, (FRAMES, len(BODYPARTS)))))
    return pd.DataFrame(values, columns=columns)


def write_poses(engine: Engine, store: Store, folder: Path) -> tuple[list[str], list[Path]]:
    """Poses of some sessions in the store, as files of DeepLabCut and as blobs; the sessions and the files."""
    rows = []
    with engine.connect() as connection:
        found = connection.execute(
            text("select session, pose_estimate from dlc.poses_in_force order by session limit :most"),
            {"most": READ_SESSIONS},
        ).all()
    files = []
    times = np.arange(FRAMES) * 1001 / 30000
    for number, (session, identity) in enumerate(found):
        wide = random_walk(number)
        tidy = tidy_from_dlc(wide, times)
        store.put("poses", identity, {}, lambda path, tidy=tidy: write_parquet(tidy, path / POSE_TABLE))
        files.append(folder / f"{session}.h5")
        wide.to_hdf(files[-1], key="df_with_missing", format="table", mode="w")
        for bodypart in BODYPARTS:
            own = tidy[tidy["bodypart"] == bodypart]
            columns = ("frame", "time_s", "x", "y", "likelihood")
            rows.append({"s": session, "b": bodypart} | {name: own[name].to_numpy().tobytes() for name in columns})
    with engine.begin() as connection:
        connection.execute(text("insert into blob values (:s, :b, :frame, :time_s, :x, :y, :likelihood)"), rows)
    return [session for session, _ in found], files


def from_blobs(engine: Engine, sessions: list[str]) -> dict[str, np.ndarray]:
    """One query of the same arrays, joined."""
    kinds = {"frame": np.int32, "time_s": np.float64, "x": np.float32, "y": np.float32, "likelihood": np.float32}
    with engine.connect() as connection:
        rows = connection.execute(
            text("select frame, time_s, x, y, likelihood from blob where bodypart = 'nose' and session = any(:s)"),
            {"s": sessions},
        ).all()
    return {
        name: np.concatenate([np.frombuffer(row[place], kind) for row in rows])
        for place, (name, kind) in enumerate(kinds.items())
    }


def from_h5(files: list[Path]) -> "pd.DataFrame":
    """One body part out of DeepLabCut's files, with pandas."""
    import pandas as pd

    return pd.concat([pd.read_hdf(file)["DLC"]["nose"].assign(session=file.stem) for file in files], ignore_index=True)


def seconds(**ways: Callable[[], object]) -> dict[str, float]:
    """The median time of each way, run in turns after one run that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_TURNS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(own) for name, own in times.items()}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="dlc-catalogue-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "raw").mkdir()
        (home / "project").mkdir()
        (home / "lab.yaml").write_text(json.dumps({"raw_roots": ["raw"], "projects": {"maze": {"path": "project"}}}))
        engine = open_catalog(server.ensure_running(home / "postgres"))
        try:
            migrate(engine)
            fill(engine)
            print(f"{SESSIONS} sessions, {MODELS} model versions, {SESSIONS * ESTIMATES_PER_SESSION} pose estimates:")
            for question, query in QUESTIONS.items():
                print(f"  {question}: {milliseconds(engine, query):.1f} ms")
            sessions, files = write_poses(engine, Store(home / "store"), home)
            lab = Platform(home)
            assert len(lab.poses(sessions, ["nose"])) == READ_SESSIONS * FRAMES
            times = seconds(
                poses=lambda: lab.poses(sessions, ["nose"]),
                h5=lambda: from_h5(files),
                blobs=lambda: from_blobs(engine, sessions),
            )
            print(f"one body part of {READ_SESSIONS} sessions of {FRAMES} frames, from warm files:")
            print(f"  Platform.poses {times['poses']:.3f} s, pandas on .h5 {times['h5']:.3f} s, ", end="")
            print(f"one query of the arrays as blobs {times['blobs']:.3f} s")
            print(f"  .h5 / Platform.poses: {times['h5'] / times['poses']:.1f}", end="")
            print(f", blobs / Platform.poses: {times['blobs'] / times['poses']:.2f}")
        finally:
            engine.dispose()
            server.stop(home / "postgres")


if __name__ == "__main__":
    main()
