"""Dagster's services of a lab: the webserver and the daemon, started, watched and stopped together.

`instance` prepares Postgres and dagster.yaml for them; `up` begins and ends them.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

import dagster as dg
import psutil
from sqlalchemy.exc import OperationalError

from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.errors import PlatformError
from dlc_platform.faults import machine_fault
from dlc_platform.launchers.dagster_internals import MAX_RETRIES_TAG, PARTITION_NAME_TAG
from dlc_platform.launchers.run_ends import settled
from dlc_platform.orchestration.clock import TOLERANCE, forget_the_future
from dlc_platform.orchestration.instance import (
    dagster_yaml,
    lab_problem,
    open_instance,
    prepare,
    taken_lab,
    write,
)
from dlc_platform.orchestration.retries import STOPPED_TAG
from dlc_platform.orchestration.web_access import authorization, shown_address
from dlc_platform.postgres import server
from dlc_platform.postgres.connection import is_external, postgres_url
from dlc_platform.settings.environment import (
    LAB_FILE,
    TAKEN_VARIABLE,
    WEB_READ_ONLY_TOKEN_FILE_VARIABLE,
    WEB_TOKEN_FILE_VARIABLE,
)
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab

if TYPE_CHECKING:
    from dagster_graphql import DagsterGraphQLClient

_START_SECONDS = 180
_STOP_SECONDS = 20
#: A service that ends by itself more often than that within that time is not started again.
_MOST_ENDS = 3
_ENDS_MINUTES = 10
#: The bits of a mode that let others than the owner change a file, or connect to a socket.
_NOT_FOR_OTHERS = 0o022
#: The seconds between two looks at a fault of the machine.
_WAIT_SECONDS = 10
#: A larger log is begun anew at the next start, because every look of the sensor writes to it.
_LOG_BYTES = 10_000_000
#: Names the running services, so that they are found when the process that started them was killed.
_RECORD = "services.json"
#: The module that Dagster loads, and the name of the code location.
_MODULE = "dlc_platform.definitions"


class Services:
    """The running webserver and daemon of a lab."""

    def __init__(
        self,
        home: Path,
        port: int,
        environment: dict[str, str],
        say: Callable[[str], None],
        read_only_port: int | None = None,
    ):
        self.home = home
        self.url = f"http://127.0.0.1:{port}"
        #: The read-only webserver, if there is one.
        self.read_only_url = None if read_only_port is None else f"http://127.0.0.1:{read_only_port}"
        #: The same, as people see it.
        self.address = shown_address(home, port)
        self.read_only_address = None if read_only_port is None else shown_address(home, read_only_port, True)
        self._port = port
        self._read_only_port = read_only_port
        self._environment = environment
        self._say = say
        self._logs = home / "logs"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._modules: dict[str, tuple[str, ...]] = {}
        #: When each service ended by itself, on the clock that nobody sets.
        self._ends: dict[str, list[float]] = {}
        #: While a fault of the machine lasts, the time of the next look at it, on the same clock; else 0.
        self._waits_until = 0.0
        #: The web servers, by process, that have loaded the definitions.
        self._loaded: set[int] = set()
        #: The lead of the clock that people set over the one that nobody sets.
        self._clock = time.time() - time.monotonic()
        #: The lab.yaml in force, its state when it was taken, and its state at the last look.
        self._lab = load_lab(home)
        self._loaded_state = self._seen_state = _state_of(home / LAB_FILE)

    def start(self) -> None:
        """Start the webserver and the daemon; `stop` stops them even if this is interrupted."""
        self._logs.mkdir(exist_ok=True)
        # Code servers obey everybody who may write to their sockets, and these lie in the folder for temporary files.
        os.umask(os.umask(_NOT_FOR_OTHERS) | _NOT_FOR_OTHERS)
        self._take(load_lab(self.home), (self.home / LAB_FILE).read_text(encoding="utf-8"))
        workspace = ["-m", _MODULE]
        webserver = ("dlc_platform.web", "-h", "127.0.0.1", "-p")
        self._modules["webserver"] = (*webserver, str(self._port), *workspace)
        if self._read_only_port is not None:
            self._modules["read-only-webserver"] = (*webserver, str(self._read_only_port), "--read-only", *workspace)
        self._modules["daemon"] = ("dagster._daemon", "run", *workspace)
        for name in self._modules:
            self._start(name)

    def _start(self, name: str) -> None:
        # `up` and `ui` print the lab's own token, so its servers accept no other one.
        others = (WEB_TOKEN_FILE_VARIABLE, WEB_READ_ONLY_TOKEN_FILE_VARIABLE)
        inherited = {variable: value for variable, value in os.environ.items() if variable not in others}
        with open(self._logs / f"{name}.log", "ab") as log:
            if log.tell() > _LOG_BYTES:
                log.truncate(0)
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *self._modules[name]],
                env={**inherited, **self._environment, TAKEN_VARIABLE: str(taken_lab(self.home))},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = {name: WorkerProcess.of(process.pid).tags() for name, process in self._processes.items()}
        written = self.home / f"{_RECORD}.part"
        written.write_text(json.dumps(running))
        written.replace(self.home / _RECORD)

    def wait_until_ready(self) -> None:
        """Return when the UI answers and has loaded the lab's definitions.

        Raises
        ------
        PlatformError
            When a service died or did not answer in time; it names the log.
        """
        deadline = time.monotonic() + _START_SECONDS
        for name, url in (("webserver", self.url), ("read-only-webserver", self.read_only_url)):
            while url is not None and not _answers(url):
                self._ensure_postgres()
                for other, process in self._processes.items():
                    if process.poll() is not None:
                        raise self._failure(other, _how_it_ended(process))
                if time.monotonic() > deadline:
                    raise self._failure(name, f"did not answer within {_START_SECONDS} s")
                time.sleep(0.3)
        self._follow_code_servers()

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """The Dagster instance that the services work on."""
        return open_instance(self._environment)

    def launch(self, job: str, partition: str) -> str:
        """Ask the webserver for a run of a job, as a person does in the UI; returns the run's id."""
        return self._client().submit_job_execution(job, tags={PARTITION_NAME_TAG: partition})

    def _client(self) -> "DagsterGraphQLClient":
        from dagster_graphql import DagsterGraphQLClient

        return DagsterGraphQLClient("127.0.0.1", port_number=self._port, headers=authorization(self.home))

    def follow(self, run_id: str, say: Callable[[str], None]) -> None:
        """Return when a run has ended; until then, print the log of its computations.

        Raises
        ------
        PlatformError
            When the run fails, or a service ends by itself again and again.
        """
        cursor = None
        while True:
            records = self.instance.get_records_for_run(run_id, cursor=cursor)
            cursor = records.cursor
            for record in records.records:
                if not record.event_log_entry.is_dagster_event:
                    say(record.event_log_entry.user_message)
            run = self.instance.get_run_by_id(run_id)
            if run is not None and run.is_finished:
                if not run.is_success:
                    raise PlatformError(
                        f"the run {run_id} ended as {run.status.value}", f"Look at {self._page(run_id)}"
                    )
                return
            self.check()
            time.sleep(1)

    def check_runs(self) -> None:
        """
        Raises
        ------
        PlatformError
            When any run of the lab has failed.
        """
        for run in self.instance.get_runs(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=1):
            raise PlatformError(f"the run {run.run_id} failed", f"Look at {self._page(run.run_id)}")

    def _page(self, run_id: str) -> str:
        return f"{self.url}/runs/{run_id}"

    def check(self) -> None:
        """Check that everything is still alive; a service or an embedded Postgres that died is started again.

        The workers of runs go on meanwhile: the new services watch them. A fault of the machine, such as a database
        that does not start while its disk is full, is said once and waited for.

        Raises
        ------
        PlatformError
            When a service ends by itself again and again.
        """
        if time.monotonic() < self._waits_until:
            return
        try:
            self._ensure_postgres()
            self._follow_clock()
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended:
                postgres_url(self.home)  # an external database answers, or does not
            for name in ended:
                self._start_again(name, self._processes[name])
            self._follow_code_servers()
            self._follow_lab()
        except Exception as error:
            if (fault := machine_fault(error)) is None:
                raise
            if not self._waits_until:
                self._say(f"{fault.problem}. {fault.remedy}. The lab waits for it, and goes on by itself then")
            self._waits_until = time.monotonic() + _WAIT_SECONDS
            return
        if self._waits_until:
            self._waits_until = 0.0
            self._say("What the lab waited for is there again, and it goes on")

    def _follow_code_servers(self) -> None:
        """Restart a web server whose code server died: it would show nothing until somebody clicks `Reload`.

        The daemon makes new code servers every minute.
        """
        for name, process in list(self._processes.items()):
            if name == "daemon":
                continue
            if _code_servers(process.pid):
                self._loaded.add(process.pid)
            elif process.pid in self._loaded and process.poll() is None:
                self._say(f"The definitions that Dagster's {name} had loaded are gone; it is started again")
                self._restart(name)

    def _follow_clock(self) -> None:
        """Restart the daemon if the clock was set back: it would do nothing until that time comes again."""
        before, now = self._clock, time.time() - time.monotonic()
        if now - before > -TOLERANCE.total_seconds():
            self._clock = now
            return
        self._say(f"The clock was set back by {before - now:.0f} s; Dagster's daemon is started again for it")
        self._end("daemon")
        forget_the_future(self.instance)
        self._start("daemon")
        self._clock = now

    def _follow_lab(self) -> None:
        """Bring lab.yaml into force when it has changed, and report that; if it is not valid, the last good one
        stays."""
        seen, self._seen_state = self._seen_state, _state_of(self.home / LAB_FILE)
        # An editor may still be writing: a file is taken only if it stayed the same for one look.
        if self._seen_state != seen or seen == self._loaded_state:
            return
        before_that, self._loaded_state = self._loaded_state, seen
        before = dagster_yaml(self.home).read_text()
        try:
            lab, text = load_lab(self.home), (self.home / LAB_FILE).read_text(encoding="utf-8")
            prepare(self.home)
        except Exception as problem:
            if machine_fault(problem) is not None:
                self._loaded_state = before_that  # so that it is taken later
                raise
            # The lab goes on whatever an editor writes.
            told = str(problem) if isinstance(problem, PlatformError) else repr(problem)
            self._say(f"lab.yaml has changed and cannot be used; the last good one stays in force. {told}")
            write(lab_problem(self.home), told)
            return
        told = [
            f"{what}: {', '.join(sorted(names))}"
            for what, names in (
                ("new recipes", lab.recipes.keys() - self._lab.recipes.keys()),
                ("recipes that are gone", self._lab.recipes.keys() - lab.recipes.keys()),
            )
            if names
        ]
        same = dagster_yaml(self.home).read_text() == before and lab.web == self._lab.web
        self._take(lab, text)
        try:
            if same:
                self._reload()
            else:
                # A value has changed that the services read only at their start. The workers of runs go on.
                for name in self._processes:
                    self._restart(name)
                self.wait_until_ready()
        except Exception as error:
            self._say(
                f"lab.yaml has changed, and the UI did not load it: {error}. Click `Reload definitions` under "
                f"Deployment in {self.url}"
            )
        else:
            self._say("; ".join(["lab.yaml has changed and is in force", *told]))

    def _take(self, lab: Lab, text: str) -> None:
        """Let all running processes, and those started from now on, read the present lab.yaml."""
        write(taken_lab(self.home), text)
        lab_problem(self.home).unlink(missing_ok=True)
        self._lab = lab

    def _reload(self) -> None:
        from dagster_graphql import ReloadRepositoryLocationStatus

        done = self._client().reload_repository_location(_MODULE)
        if done.status != ReloadRepositoryLocationStatus.SUCCESS:
            raise PlatformError(f"{done.failure_type}: {done.message}", "See its log")
        if "read-only-webserver" in self._processes:
            # A read-only server cannot load it again either.
            self._restart("read-only-webserver")

    def _restart(self, name: str) -> None:
        self._end(name)
        self._start(name)

    def _end(self, name: str) -> None:
        process = self._processes[name]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        _end_group(process.pid)
        process.wait()

    def _ensure_postgres(self) -> None:
        if not is_external():
            server.ensure_running(self.home / "postgres")

    def _start_again(self, name: str, process: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        ends = [end for end in self._ends.get(name, ()) if now - end < _ENDS_MINUTES * 60]
        how = _how_it_ended(process)
        if len(ends) >= _MOST_ENDS and not self._waits_until:
            raise self._failure(name, f"{how}, for the {_MOST_ENDS + 1}th time within {_ENDS_MINUTES} minutes")
        # A service that ended because the database was away did not end by itself.
        self._ends[name] = ends if self._waits_until else [*ends, now]
        _end_group(process.pid)
        self._say(f"Dagster's {name} {how}; it is started again (its log: {self._logs / f'{name}.log'})")
        self._start(name)

    def _failure(self, name: str, what: str) -> PlatformError:
        log = self._logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-5:]
        return PlatformError(f"Dagster's {name} {what}; its log ends with: {' | '.join(lines)}", f"Read {log}")

    def stop(self) -> int:
        """Stop the services and the workers of runs under way.

        Returns
        -------
        int
            The number of runs that were stopped; they are retried when the lab is started again.
        """
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            _end_group(process.pid)
            process.wait()
        (self.home / _RECORD).unlink(missing_ok=True)
        try:
            return self._stop_workers()
        except OperationalError as error:
            raise PlatformError(
                f"Postgres does not answer, so the workers of runs under way were not found: {error.orig}",
                "They fail by themselves; bring Postgres back before the lab is started again",
            ) from error

    def _stop_workers(self) -> int:
        active = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
        stopped = 0
        for run in self.instance.get_runs(filters=dg.RunsFilter(statuses=active)):
            worker = WorkerProcess.from_tags(run.tags)
            # A run without this origin belongs to a `dlc-platform run`, which goes on.
            if run.remote_job_origin is None or worker is None or not worker.was_started_here():
                continue
            if not worker.works_for(self.home):
                continue
            worker.kill()
            now = settled(self.instance, run.run_id)
            if now is None or now.is_finished:
                continue
            if now.status == dg.DagsterRunStatus.CANCELING:
                self.instance.report_run_canceled(now, "The lab was stopped")
                continue
            # Failed, not cancelled, because only failed runs are retried; and being stopped does not count as a retry.
            most = int(now.tags.get(MAX_RETRIES_TAG, self.instance.run_retries_max_retries))
            self.instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: str(most + 1), STOPPED_TAG: run.run_id})
            self.instance.report_run_failed(now, "The lab was stopped; this run is retried when it is started again")
            stopped += 1
        return stopped


def _code_servers(service: int) -> list[psutil.Process]:
    """The processes in which a service has loaded the definitions."""
    with contextlib.suppress(psutil.Error):
        return [
            child
            for child in psutil.Process(service).children()
            if child.status() != psutil.STATUS_ZOMBIE and "grpc" in child.cmdline()
        ]
    return []


def _state_of(file: Path) -> tuple[int, int, int] | None:
    """A value that changes when a file does; None while the file is missing."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    return f"ended with exit code {process.returncode}"


def _end_group(leader: int) -> None:
    """Kill the remaining processes of a service: code servers are its children and must not outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/server_info", timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


def end_left_over(home: Path) -> bool:
    """End the services of an `up` that was killed. The workers that they started go on: the new services watch them.

    Returns
    -------
    bool
        True if there were any.
    """
    ended = False
    try:
        record = json.loads((home / _RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return ended
    for tags in record.values():
        process = WorkerProcess.from_tags(tags)
        # The record of a lab that was copied names the services of the other one.
        if process is not None and process.is_alive() and process.works_for(home):
            os.killpg(process.pid, signal.SIGKILL)
            while process.is_alive():
                time.sleep(0.05)
            ended = True
    return ended
