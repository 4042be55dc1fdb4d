"""Dagster's services of a lab: the webserver and the daemon, started, watched and stopped together.

What they run on (Postgres, dagster.yaml) is prepared in `instance`.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

from dlc_platform.errors import PlatformError
from dlc_platform.launchers.processes import WorkerProcess
from dlc_platform.orchestration.instance import open_instance, prepare
from dlc_platform.postgres import server
from dlc_platform.settings import POSTGRES_VARIABLE

_START_SECONDS = 180
_STOP_SECONDS = 20


class Services:
    """The running webserver and daemon of a lab."""

    def __init__(self, home: Path, port: int, environment: dict[str, str]):
        self.home = home
        self.url = f"http://127.0.0.1:{port}"
        self._environment = environment
        self._logs = home / "logs"
        self._logs.mkdir(exist_ok=True)
        workspace = ["-m", "dlc_platform.definitions"]
        self._processes = {
            "webserver": self._start("webserver", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), *workspace),
            "daemon": self._start("daemon", "dagster._daemon", "run", *workspace),
        }

    def _start(self, name: str, *module: str) -> subprocess.Popen[bytes]:
        with open(self._logs / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *module],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when the UI answers and has loaded the lab's definitions.

        Raises
        ------
        PlatformError
            When a service died or did not answer in time, with the place of its log.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            self.check()
            if time.monotonic() > deadline:
                raise self._failure("webserver", f"did not answer within {_START_SECONDS} s")
            time.sleep(0.3)

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """The Dagster instance that the services work on."""
        return open_instance(self._environment)

    def launch(self, job: str, partition: str) -> str:
        """Ask the webserver for a run of a job, as a person does in the UI; returns the run's id."""
        from dagster_graphql import DagsterGraphQLClient

        client = DagsterGraphQLClient("127.0.0.1", port_number=int(self.url.rsplit(":", 1)[1]))
        return client.submit_job_execution(job, tags={PARTITION_NAME_TAG: partition})

    def run_url(self, run_id: str) -> str:
        """The page of a run in the UI."""
        return f"{self.url}/runs/{run_id}"

    def check(self) -> None:
        """
        Raises
        ------
        PlatformError
            When a service has ended by itself.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._failure(name, f"ended with exit code {process.returncode}")

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/server_info", timeout=5) as response:
                return response.status == 200
        except (URLError, OSError):
            return False

    def _failure(self, name: str, what: str) -> PlatformError:
        log = self._logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-5:]
        return PlatformError(f"Dagster's {name} {what}; its log ends with: {' | '.join(lines)}", f"Read {log}")

    def stop(self) -> int:
        """Stop the services and the workers of runs under way.

        Returns
        -------
        int
            How many runs were stopped; their runs are retried when the lab is started again.
        """
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            # Code servers are children of the services and must not outlive them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return self._stop_workers()

    def _stop_workers(self) -> int:
        active = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
        stopped = 0
        for run in self.instance.get_runs(filters=dg.RunsFilter(statuses=active)):
            worker = WorkerProcess.from_tags(run.tags)
            if worker is not None and worker.was_started_here() and worker.is_alive():
                # Killed, not asked: a run that ends as cancelled is over, one whose worker died is retried.
                worker.kill()
                stopped += 1
        return stopped


@contextlib.contextmanager
def running(home: Path, port: int | None, say: Callable[[str], None]) -> Iterator[Services]:
    """The services of a lab, up and answering; everything is stopped at the end.

    Parameters
    ----------
    port
        Of the webserver on 127.0.0.1; None takes a free one.

    Raises
    ------
    PlatformError
        When the lab is up already, the port is taken, or a service does not start.
    """
    with _only_one(home):
        port = port or _free_port()
        _require_free(port)
        embedded = POSTGRES_VARIABLE not in os.environ
        say("Starting Postgres" if embedded else "Connecting to Postgres")
        try:
            environment = prepare(home)
            say("Starting the Dagster webserver and daemon")
            services = Services(home, port, environment)
            try:
                services.wait_until_ready()
                yield services
            finally:
                say("Stopping")
                stopped = services.stop()
                if stopped:
                    say(f"{stopped} run(s) were under way; they go on when the lab is started again")
        finally:
            if embedded:
                server.stop(home / "postgres")


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    with open(home / "up.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise PlatformError(
                f"the lab {home} is up already, in process {lock.read().strip()}",
                "Use that one, or stop it with Ctrl-C",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PlatformError(f"port {port} is taken: {error.strerror}", "Choose another one with --port") from None
