"""What the sensor costs a lab with an archive, and how that goes on.

Run as ``python -m dlc_platform_tests.benchmarks.scan PART``; ``--help`` lists the parts, and ``PART --help`` their
options. A lab with its own Postgres and tiny video files is made in a temporary folder and removed at the end. CPU is
that of this process, and of Postgres beside it; wall times are those of a machine that does nothing else.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import typer
import yaml
from sqlalchemy import Engine, text

from dlc_platform.catalog.database import open_catalog
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.instance import open_instance, prepare
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.postgres import server
from dlc_platform.postgres.connection import postgres_url
from dlc_platform_tests.benchmarks.videos import draw

_TABLES = ("scanned_root", "scanned_folder", "sighting", "waiting_session")
_MOST_TICKS = 10_000

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


class Lab:
    """A lab whose raw roots hold tiny videos, and its sensor."""

    def __init__(self, home: Path, roots: int, **scan: Any):
        self.home = home
        self.roots = [home / f"disk{number}" for number in range(roots)]
        for root in self.roots:
            root.mkdir(parents=True)
        self.budget = float(scan.setdefault("tick_seconds", 20))
        settings = {
            "raw_roots": [root.name for root in self.roots],
            "projects": {"tiny": {"path": "project"}},
            "inference": [{"project": "tiny"}],
            "settle_seconds": 0,
            "scan": scan,
        }
        (home / "lab.yaml").write_text(yaml.safe_dump(settings))
        self.environment = prepare(home)
        self.engine: Engine = open_catalog(postgres_url(home))
        self.definitions = build_definitions(home)
        self.resource = LabResource(home=str(home))
        self.cursor: str | None = None
        self._video = draw(home / "tiny.mp4", 2, 64, 48).read_bytes()

    def add(self, first: int, videos: int, subjects: int = 1000) -> None:
        """Write sessions of one video each, spread over the roots."""
        for number in range(first, first + videos):
            root = self.roots[number % len(self.roots)]
            folder = root / f"sub-{number % subjects:04}" / f"ses-{number:08}"
            folder.mkdir(parents=True)
            (folder / "cam-top.mp4").write_bytes(self._video)

    def tick(self, instance: dg.DagsterInstance) -> "Cost":
        """Evaluate the sensor as Dagster does, and add the partitions that it asks for."""
        with dg.build_sensor_context(
            instance=instance, cursor=self.cursor, definitions=self.definitions, resources={"lab": self.resource}
        ) as context:
            cost = Cost(self._servers())
            done = self.definitions.resolve_sensor_def("new_session_videos").evaluate_tick(context)
            cost.stop(self._servers())
        for request in done.dynamic_partitions_requests or []:
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        self.cursor, cost.runs, cost.said = done.cursor, len(done.run_requests or []), done.skip_message or ""
        return cost

    def register(self) -> None:
        """Write down every sighting as a registered, labelled and tracked recording, by SQL."""
        with self.engine.begin() as connection:
            for statement in _REGISTER:
                connection.execute(text(statement))
        self.vacuum()

    def vacuum(self) -> None:
        """What Postgres does by itself after a while."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("vacuum analyze"))

    def sizes(self) -> dict[str, int]:
        with self.engine.connect() as connection:
            return {
                table: connection.scalar(text(f"select pg_total_relation_size('dlc.{table}')")) or 0
                for table in _TABLES
            }

    def count(self, query: str) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(text(f"select count(*) from {query}")) or 0

    def _servers(self) -> float:
        """The CPU time of this lab's Postgres, in seconds; of processes that are there."""
        postmaster = int((self.home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        parent = psutil.Process(postmaster)
        # Its own times hold those of the children that have ended.
        spent = sum(parent.cpu_times()[:4])
        for process in parent.children():
            with suppress(psutil.NoSuchProcess):
                spent += sum(process.cpu_times()[:2])
        return spent


class Cost:
    """What a tick took, in seconds."""

    def __init__(self, server: float):
        self._began = time.process_time(), time.perf_counter(), server
        self.cpu = self.wall = self.server = 0.0
        self.runs, self.said = 0, ""

    def stop(self, server: float) -> None:
        cpu, wall, before = self._began
        self.cpu, self.wall = time.process_time() - cpu, time.perf_counter() - wall
        self.server = server - before

    def __str__(self) -> str:
        return f"{self.cpu:.2f} s CPU (Postgres {self.server:.2f} s), {self.wall:.2f} s in all"


_REGISTER = (
    "insert into dlc.subject (key) select distinct split_part(substr(session_key, 5), '_ses-', 1) from dlc.sighting "
    "on conflict do nothing",
    "insert into dlc.session (key, subject, name, folder) select distinct session_key, "
    "split_part(substr(session_key, 5), '_ses-', 1), split_part(session_key, '_ses-', 2), '' from dlc.sighting "
    "on conflict do nothing",
    "insert into dlc.camera (name, project) values ('top', 'tiny') on conflict do nothing",
    "insert into dlc.environment (id, details) values ('e', '{}') on conflict do nothing",
    "insert into dlc.video (id, size_bytes, width, height, frame_rate_numerator, frame_rate_denominator, frames, "
    "duration_s, codec, pixel_format, rotation, decoder) select encode(sha256(session_key::bytea), 'hex'), size_bytes, "
    "64, 48, 25, 1, 2, 0.08, 'h264', 'yuv420p', 0, '' from dlc.sighting on conflict do nothing",
    "insert into dlc.recording (session_key, name, camera) select session_key, 'cam-top', 'top' from dlc.sighting "
    "on conflict do nothing",
    "insert into dlc.recording_file (recording_id, position, path, size_bytes, mtime_ns, video_id) select n.id, 0, "
    "r.path || '/' || f.path || s.name, s.size_bytes, s.mtime_ns, encode(sha256(s.session_key::bytea), 'hex') "
    "from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id join dlc.scanned_root r on r.id = f.root_id "
    "join dlc.recording n on n.session_key = s.session_key "
    "where not exists (select from dlc.recording_file g where g.recording_id = n.id)",
    "insert into dlc.session_labels (session_key, project, images) select key, 'tiny', 0 from dlc.session "
    "on conflict do nothing",
    "insert into dlc.pose_estimate (id, video_id, origin, scorer, frames, source, environment_id) "
    "select id, id, 'imported', 's', 2, '{}', 'e' from dlc.video on conflict do nothing",
    "insert into dlc.recording_poses (recording_file_id, pose_estimate_id) select f.id, f.video_id "
    "from dlc.recording_file f where not exists (select from dlc.recording_poses p where p.recording_file_id = f.id)",
    # Of runs that were asked for and that nobody starts here.
    "delete from dlc.quarantine",
)


@app.command()
def ticks(videos: int = 100_000, roots: int = 4, new: int = 200, rounds: int = 5) -> None:
    """The first scan of an archive, ticks with nothing new, and a tick that finds new sessions among the known ones."""
    with _lab(roots) as lab, open_instance(lab.environment) as instance:
        lab.add(0, videos)
        print(f"{videos} videos over {roots} roots")
        first = list(_until(lambda: lab.tick(instance), lambda _: lab.count("dlc.sighting") >= videos))
        longest = max(cost.wall for cost in first)
        print(
            f"first scan: {sum(cost.wall for cost in first):.0f} s in {len(first)} ticks, the longest {longest:.1f} s "
            f"of {lab.budget:g} s; {sum(cost.cpu for cost in first):.0f} s CPU "
            f"(Postgres {sum(cost.server for cost in first):.0f} s)"
        )
        lab.register()
        lab.cursor = None
        again = list(_until(lambda: lab.tick(instance), lambda _: lab.count("dlc.waiting_session") == 0))
        print(
            f"to know that all of it is registered: {sum(cost.wall for cost in again):.0f} s in {len(again)} ticks, "
            f"the longest {max(cost.wall for cost in again):.1f} s"
        )
        idle = [lab.tick(instance) for _ in range(rounds + 3)][3:]
        assert not any(cost.runs for cost in idle)
        print(f"a tick with nothing new, median of {rounds}: {_median(idle)}")
        lab.vacuum()
        sizes = lab.sizes()
        written = sum(sizes.values()) + len(lab.cursor or "")
        print(f"the scan's tables and the cursor: {written / videos:.0f} bytes a video ({_bytes(sizes)})")
        lab.add(videos, new)
        found = lab.tick(instance)
        asked = lab.tick(instance)
        print(f"the tick that finds {new} new sessions: {found}; the next one asks for {asked.runs} runs: {asked}")


@app.command()
def ui(sessions: int = 100_000, live: int = 10_000, rounds: int = 5) -> None:
    """The UI's queries for an asset's partitions: of `live` sessions, of these with retired ones, and of all live."""
    with _lab(1) as lab, open_instance(lab.environment) as instance:
        assets = ["session_videos", "labeled_frames", "pose_estimates"]
        keys = [f"sub-{number % 1000:04}_ses-{number:08}" for number in range(sessions)]
        for asset in assets:
            instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=_TEMPLATE))
        tables: dict[str, dict[str, float]] = {}
        for name, events, partitions in (
            (f"{live} live", keys[-live:], keys[-live:]),
            (f"{live} live, {sessions - live} retired", keys[:-live], []),
            (f"{sessions} live", [], keys[:-live]),
        ):
            _materialize(instance, assets, events)
            if partitions:
                instance.add_dynamic_partitions("sessions", partitions)
            with _webserver(lab) as url:
                tables[name] = {what: _answer(url, query, rounds) for what, query in _QUERIES.items()}
        few = next(iter(tables.values()))
        for name, answers in tables.items():
            print(f"{name}: " + ", ".join(f"{what} {t:.2f} s ({t / few[what]:.1f}x)" for what, t in answers.items()))


@app.command()
def roots(
    most: int = 80_000, roots: int = 4, milliseconds: float = 1.0, seconds: float = 20.0, rounds: int = 3
) -> None:
    """A tick with nothing new as the archive doubles, and how that goes on to 10 million; and a disk far away."""
    with _lab(roots, tick_seconds=seconds) as lab, open_instance(lab.environment) as instance:
        known, size = 0, most // 8
        costs: dict[int, Cost] = {}
        while size <= most:
            lab.add(known, size - known)
            known = size
            list(_until(lambda: lab.tick(instance), lambda _, all=size: lab.count("dlc.sighting") >= all))
            lab.register()
            lab.cursor = None
            list(_until(lambda: lab.tick(instance), lambda _: lab.count("dlc.waiting_session") == 0))
            costs[size] = _median([lab.tick(instance) for _ in range(rounds + 2)][2:])
            print(f"{size} videos: a tick with nothing new takes {costs[size]}")
            size *= 2
        (few, before), *_, (many, after) = costs.items()
        for part in ("cpu", "server", "wall"):
            each = (getattr(after, part) - getattr(before, part)) / (many - few)
            fixed = getattr(after, part) - each * many
            print(f"{part}: {fixed:.2f} s and {1e6 * each:.1f} us a video; 10 million: {fixed + 1e7 * each:.0f} s")
        print(
            f"tables: {sum(lab.sizes().values()) / many:.0f} bytes a video; 10 million: "
            f"{sum(lab.sizes().values()) / many * 1e7 / 1e9:.1f} GB"
        )
        # What is slow is only the asking: the delay stands for the network.
        real = os.stat

        def far(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            if str(path).startswith(str(lab.roots[0])):
                time.sleep(milliseconds / 1000)
            return real(path, *args, **kwargs)

        os.stat = far
        try:
            slow = [lab.tick(instance) for _ in range(rounds)]
        finally:
            os.stat = real
        folders = lab.count(
            f"dlc.scanned_folder f join dlc.scanned_root r on r.id = f.root_id where r.path = '{lab.roots[0]}'"
        )
        print(
            f"one root of {roots} with {milliseconds:g} ms for each question and {folders} folders: a tick takes "
            f"{max(cost.wall for cost in slow):.1f} s of {seconds:g} s at most"
        )
        per_tick = 0.7 * seconds / (milliseconds / 1000)
        print(
            f"10 million videos over {roots} such roots, each with its own thread: {per_tick:.0f} folders of a root "
            f"in a tick, {1e7 / roots / per_tick:.0f} ticks to go round"
        )


_TEMPLATE = "TEMPLATE-OF-A-PARTITION"
_HEALTH = """
query PartitionHealthQuery($assetKey: AssetKeyInput!) {
  assetNodeOrError(assetKey: $assetKey) {
    ... on AssetNode {
      id
      partitionKeysByDimension { name type partitionKeys }
      assetPartitionStatuses {
        ... on DefaultPartitionStatuses { materializedPartitions materializingPartitions failedPartitions }
      }
    }
  }
}
"""
_STATS = """
query AssetGraphLiveQuery($assetKeys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $assetKeys, loadMaterializations: true) {
    id
    partitionStats { numMaterialized numMaterializing numPartitions numFailed }
    assetMaterializations(limit: 1) { timestamp runId }
  }
}
"""
_KEYS = """
query PartitionKeys($assetKey: AssetKeyInput!) {
  assetNodeOrError(assetKey: $assetKey) { ... on AssetNode { id partitionKeys } }
}
"""
_ASSET = {"path": ["pose_estimates"]}
_QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "status of each partition": (_HEALTH, {"assetKey": _ASSET}),
    "counts in the asset graph": (
        _STATS,
        {"assetKeys": [{"path": [name]} for name in ("session_videos", "labeled_frames", "pose_estimates")]},
    ),
    "keys to choose from": (_KEYS, {"assetKey": _ASSET}),
}


def _materialize(instance: dg.DagsterInstance, assets: list[str], keys: list[str]) -> None:
    """Write an event of each asset and partition, as copies of one that Dagster wrote."""
    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection:
        for asset in assets:
            connection.execute(
                text(
                    "insert into event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, "
                    "partition) select e.run_id, replace(e.event, :template, k.key), e.dagster_event_type, "
                    "e.timestamp, e.step_key, "
                    "e.asset_key, k.key from event_logs e, unnest(cast(:keys as text[])) k (key) "
                    "where e.partition = :template and e.asset_key = :asset"
                ),
                {"template": _TEMPLATE, "keys": keys, "asset": json.dumps([asset])},
            )
    with storage.index_connection() as connection:
        connection.execute(text("analyze"))


@contextmanager
def _webserver(lab: Lab) -> Iterator[str]:
    listening = ["-h", "127.0.0.1", "-p", "34567"]
    command = [sys.executable, "-m", "dagster_webserver", *listening, "-m", "dlc_platform.definitions"]
    process = subprocess.Popen(
        command, env=os.environ | lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = "http://127.0.0.1:34567"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/server_info", timeout=5).read()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answer(url: str, query: tuple[str, dict[str, Any]], rounds: int) -> float:
    """The median time of an answer, in seconds; the first one fills what the server keeps."""
    body = json.dumps({"query": query[0], "variables": query[1]}).encode()
    times = []
    for _ in range(rounds + 1):
        request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as answer:
            content = json.loads(answer.read())
        times.append(time.perf_counter() - began)
        assert "errors" not in content, content["errors"]
    return statistics.median(times[1:])


def _until(work: Callable[[], Cost], done: Callable[[Cost], bool]) -> Iterator[Cost]:
    for _ in range(_MOST_TICKS):
        cost = work()
        yield cost
        if done(cost):
            return
    raise AssertionError(f"not done after {_MOST_TICKS} ticks")


def _median(costs: list[Cost]) -> Cost:
    return sorted(costs, key=lambda cost: cost.cpu)[len(costs) // 2]


def _bytes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{table} {size / 1e6:.1f} MB" for table, size in sizes.items())


@contextmanager
def _lab(roots: int, **scan: Any) -> Iterator[Lab]:
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="scan-benchmark-") as folder:
        home = Path(folder)
        try:
            yield Lab(home, roots, **scan)
        finally:
            server.stop(home / "postgres")
            os.environ.clear()
            os.environ.update(before)


if __name__ == "__main__":
    app()
