"""Many GPU runs on few devices, while workers, the daemon and its launcher are killed at random.

Run as ``python -m dlc_platform_tests.benchmarks.launching``. The devices are a test double: listed indices that the
machine needs not have, as nothing computes on them; a run only holds its device for a while. All else is as in a lab:
Postgres, the configuration that `instance.prepare` writes, the daemon, and a process for each run. What is printed
comes from the records that the workers write themselves, never from the launcher.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import typer
import yaml
from dagster import Config, DagsterRunStatus, Definitions, OpExecutionContext, RunsFilter, asset, in_process_executor
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget

from dlc_platform.devices import leases
from dlc_platform.devices.gpus import find_devices
from dlc_platform.devices.locks import DIRECTORY_VARIABLE
from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.launchers.needs import GPU_POOL
from dlc_platform.orchestration.instance import open_instance, prepare
from dlc_platform.postgres import server
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform_tests.launchers.launching_lab import Daemon, Lab

CODE = Path(__file__)
_DEADLINE_SECONDS = 3600
#: A task that is killed again and again is still to be finished.
_RETRIES = 10


class Task(Config):
    folder: str
    task: int
    seconds: float


@asset(pool=GPU_POOL)
def computed(context: OpExecutionContext, config: Task) -> None:
    """Holds a device for a while, and writes down which one, and when."""
    file = Path(config.folder) / f"{context.run_id}.jsonl"

    def record(event: str) -> None:
        told = {
            "event": event,
            "task": config.task,
            "run": context.run_id,
            "device": os.environ["CUDA_VISIBLE_DEVICES"],
            "time": time.time(),
            "pid": os.getpid(),
        }
        with file.open("a") as records:
            records.write(json.dumps(told) + "\n")

    record("begin")
    time.sleep(config.seconds)
    record("end")


defs = Definitions(assets=[computed], executor=in_process_executor)


@dataclass
class Work:
    """What a worker wrote of itself; `ended` is when it ended or was killed, `finished` that it came to its end."""

    task: int
    run: str
    device: str
    pid: int
    begun: float
    ended: float | None = None
    finished: bool = False


def main(devices: int = 8, runs: int = 64, kills: int = 20, seconds: float = 30.0, seed: int = 0) -> None:
    """Launch the runs, kill what there is to kill, and print what became of them."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="launching-benchmark-") as folder:
        os.chmod(folder, 0o755)  # the embedded server may run as another user
        home = Path(folder) / "lab"
        records = home / "records"
        records.mkdir(parents=True)
        settings = {
            "raw_roots": [str(home.parent / "raw")],
            "projects": {"none": {"path": str(home.parent / "project")}},
            "gpus": list(range(devices)),
        }
        (home / LAB_FILE).write_text(yaml.safe_dump(settings))
        os.environ[DIRECTORY_VARIABLE] = str(home / "leases")
        # For the workers, which import this module's code from a file.
        os.environ["PYTHONPATH"] = str(CODE.parents[2])
        environment = prepare(home)
        # By the name that the daemon gives it, or it would not find what it is to retry.
        target = PythonFileTarget(str(CODE), attribute=None, working_directory=str(Path.cwd()), location_name=CODE.name)
        daemon = Daemon(home, CODE)
        try:
            with open_instance(environment) as instance, WorkspaceProcessContext(instance, target) as workspace:
                lab = Lab(instance, workspace, daemon, home)
                started = time.time()
                for task in range(runs):
                    config = {"folder": str(records), "task": task, "seconds": seconds}
                    lab.launch("computed", {MAX_RETRIES_TAG: str(_RETRIES)}, **config)
                submitted = time.time()
                daemon.start()
                killed = _kill(lab, records, chance, kills, runs)
                _wait(lab, records, runs)
                print(f"{runs} runs of {seconds:g} s on {devices} devices: submitted in {submitted - started:.0f} s")
                _report(lab, records, runs, killed)
                daemon.kill()
        finally:
            daemon.kill()
            server.stop(home / "postgres")
            shutil.rmtree(home, ignore_errors=True)


def _kill(lab: Lab, records: Path, chance: random.Random, kills: int, runs: int) -> dict[int, float]:
    """Kill at random moments; when each killed worker was, by its pid."""
    killed: dict[int, float] = {}
    whom = ["worker"] * (kills - 2 * (kills // 5)) + ["daemon", "launcher"] * (kills // 5)
    chance.shuffle(whom)
    for kind in whom:
        time.sleep(chance.uniform(6, 20))
        if kind == "worker":
            while not (at_work := [work for work in _read(records, killed) if work.ended is None]):
                time.sleep(0.1)
            work = chance.choice(at_work)
            with contextlib.suppress(ProcessLookupError):  # It ended meanwhile.
                now = time.time()
                os.kill(work.pid, signal.SIGKILL)
                killed[work.pid] = now
        else:
            if kind == "launcher":
                _wait_for_a_launch(lab)
            lab.daemon.kill()
            lab.daemon.start()
        left = runs - len({work.task for work in _read(records, killed) if work.finished})
        print(f"  {time.strftime('%H:%M:%S')} killed a {kind}; {left} tasks are left", flush=True)
    return killed


def _wait_for_a_launch(lab: Lab) -> None:
    """Return when the launcher is about to start a worker, or has just done so."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if lab.instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTING]), limit=1):
            return
        time.sleep(0.02)


def _wait(lab: Lab, records: Path, runs: int) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    unfinished = [status for status in DagsterRunStatus if status.value not in ("SUCCESS", "FAILURE", "CANCELED")]
    while time.monotonic() < deadline:
        done = {work.task for work in _read(records, {}) if work.finished}
        if len(done) == runs and not lab.instance.get_runs(RunsFilter(statuses=unfinished), limit=1):
            # Slots of runs that ended are freed by the daemon some seconds later.
            time.sleep(15)
            return
        time.sleep(1)


def _read(records: Path, killed: dict[int, float]) -> list[Work]:
    works = []
    for file in sorted(records.glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if line["event"] == "begin":
                began = Work(line["task"], line["run"], line["device"], line["pid"], line["time"])
                began.ended = killed.get(began.pid)
                works.append(began)
            else:
                works[-1].ended, works[-1].finished = line["time"], True
    return works


def _report(lab: Lab, records: Path, runs: int, killed: dict[int, float]) -> None:
    works = sorted(_read(records, killed), key=lambda work: work.begun)
    by_device = {device: [work for work in works if work.device == device] for device in {w.device for w in works}}
    shared = sum(
        (before.ended or after.begun + 1) > after.begun
        for own in by_device.values()
        for before, after in itertools.pairwise(own)
    )
    finished = [work.task for work in works if work.finished]
    # Between the first and the last begin, work waited all the time.
    window = works[-1].begun - works[0].begun
    gaps = [
        after.begun - before.ended
        for own in by_device.values()
        for before, after in itertools.pairwise(own)
        if before.ended is not None
    ]
    freed = {after.run: before.ended for own in by_device.values() for before, after in itertools.pairwise(own)}
    overheads = []
    for work in works:
        launched = lab.instance.get_run_stats(work.run).launch_time
        if launched is not None:
            overheads.append(work.begun - max(launched, freed.get(work.run) or 0))
    workers = [WorkerProcess.from_tags(run.tags) for run in lab.instance.get_runs()]
    slots = lab.instance.event_log_storage.get_concurrency_info(GPU_POOL)
    held = [holder for state in leases.survey(find_devices([int(d) for d in by_device])) for holder in state.holders]
    print(f"a device was shared {shared} times; {len(by_device)} devices were used for {len(works)} pieces of work")
    print(
        f"idle between two pieces of work: median {statistics.median(gaps):.1f} s, most {max(gaps):.1f} s, "
        f"{100 * sum(gaps) / (window * len(by_device)):.0f} % of the devices' time while work waited ({window:.0f} s)"
    )
    print(
        f"from launch (or from a free device, where it waited) to computing: median "
        f"{statistics.median(overheads):.1f} s, most {max(overheads):.1f} s"
    )
    print(f"lost: {runs - len(set(finished))}; finished twice: {len(finished) - len(set(finished))}")
    print(
        f"leaked: {sum(worker is not None and worker.is_alive() for worker in workers)} workers, {len(held)} leases, "
        f"{slots.active_slot_count} slots of the pool, "
        f"{sum(psutil.pid_exists(work.pid) for work in works)} processes"
    )
    print(f"{len(killed)} workers were killed, {len(works) - len(finished)} pieces of work did not come to their end")


if __name__ == "__main__":
    typer.run(main)
