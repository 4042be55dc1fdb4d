"""Many sessions as a job array on a real Slurm, while jobs are killed and the daemon is killed and started again.

Run as ``python -m dlc_platform_tests.benchmarks.slurm``. Slurm and its virtual nodes are started for it (see
`launchers.slurm_lab`), Dagster's storage is an embedded Postgres. A session is a run of a computation that takes
`seconds` and does nothing else, so that what is measured is the launching. Each writes down when it begins and ends:
a session is done exactly once if its end was written once and its run succeeded.
"""

import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from dagster import DagsterRunStatus, RunsFilter
from sqlalchemy import create_engine, text

from dlc_platform.launchers.slurm_follower import JOB_TAG
from dlc_platform.postgres import server
from dlc_platform.postgres.connection import dagster_url
from dlc_platform_tests.launchers.slurm_lab import slurm_lab
from dlc_platform_tests.launchers.slurm_service import SlurmService, slurm_service

_DEADLINE_SECONDS = 3600
_URL_VARIABLE = "DLC_PLATFORM_DAGSTER_POSTGRES_URL"


def main() -> None:
    """Print what became of the sessions; its figures are read from the environment, as SESSIONS and KILLS."""
    sessions, kills = int(os.environ.get("SESSIONS", "200")), int(os.environ.get("KILLS", "10"))
    with tempfile.TemporaryDirectory(prefix="slurm-benchmark-") as folder:
        os.chmod(folder, 0o755)  # the embedded server may run as another user
        home, cluster = Path(folder) / "home", Path(folder) / "cluster"
        home.mkdir()
        cluster.mkdir()
        os.environ[_URL_VARIABLE] = dagster_url(server.ensure_running(home / "postgres")).render_as_string(
            hide_password=False
        )
        os.environ["DAGSTER_HOME"] = str(home)
        storage = {"postgres": {"postgres_url": {"env": _URL_VARIABLE}}}
        with slurm_lab(cluster, nodes=3, cpus=2) as lab:
            os.environ.update(lab.environment)
            with slurm_service(home, {"memory": "1000", "collect_seconds": 5.0}, storage=storage) as service:
                _measure(service, sessions, kills)
        server.stop(home / "postgres")


def _measure(service: SlurmService, sessions: int, kills: int) -> None:
    started = time.monotonic()
    service.kill_daemon()  # Launched at once, they are one backlog.
    runs = [service.launch("on_cpu", seconds=1.0) for _ in range(sessions)]
    service.start_daemon()
    print(f"{sessions} sessions asked for after {time.monotonic() - started:.0f} s", flush=True)
    started = time.monotonic()
    killed, at = 0, [random.uniform(0.05, 0.9) * sessions for _ in range(kills)]
    at.sort()
    restarted = False
    while (done := _finished(service)) < sessions:
        if time.monotonic() - started > _DEADLINE_SECONDS:
            break
        if not restarted and done > sessions / 2:
            service.kill_daemon()
            service.start_daemon()
            restarted = True
        if killed < kills and done >= at[killed]:
            killed += _kill_one(service, runs)
        time.sleep(0.2)
    seconds = time.monotonic() - started
    states = Counter(service.run(run).status.value for run in runs)
    ends = Counter(len(service.records(run, "end")) for run in runs)
    begins = sum(len(service.records(run, "begin")) for run in runs)
    jobs = {service.run(run).tags.get(JOB_TAG, "?").split("_")[0] for run in runs}
    print(f"  {seconds:.0f} s from the daemon's start to the last end, {len(jobs)} jobs and arrays")
    print(f"  {killed} workers killed, the daemon killed and started again: {'once' if restarted else 'never'}")
    print(f"  runs: {dict(states)}; begun {begins} times; ended so often: {dict(ends)}")
    engine = create_engine(service.instance.event_log_storage.postgres_url)  # pyright: ignore
    with engine.connect() as connection:
        query = "SELECT count(*), count(DISTINCT run_id) FROM event_logs WHERE dagster_event_type = 'STEP_SUCCESS'"
        print(f"  step successes, and of so many runs: {tuple(connection.execute(text(query)).one())}")
    engine.dispose()
    print(f"  entries left in the spool: {len(list((service.home / 'slurm' / 'runs').glob('*.json')))}", flush=True)


def _finished(service: SlurmService) -> int:
    ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    return service.instance.get_runs_count(filters=RunsFilter(statuses=ended))


def _kill_one(service: SlurmService, runs: list[str]) -> int:
    """Kill the worker of a random session that is being worked on; how many were killed."""
    at_work = [run for run in runs if service.records(run, "begin") and not service.records(run, "end")]
    if not at_work:
        return 0
    run = random.choice(at_work)
    pid = service.records(run, "begin")[-1]["pid"]
    if len(service.records(run, "end")) == 0:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            return 0
        return 1
    return 0


if __name__ == "__main__":
    main()
