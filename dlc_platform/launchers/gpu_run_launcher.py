"""`GpuRunLauncher`: starts, watches and stops the worker processes of runs on this machine.

`gpu_worker` is the worker, which also gets the devices; `needs` says how many it needs.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, Field
from dagster import _check as check

from dlc_platform.devices import gpus
from dlc_platform.devices.gpus import GpuNames
from dlc_platform.devices.needs import UnmetNeed
from dlc_platform.devices.processes import UNSHOWN, WorkerProcess, killed_for_memory
from dlc_platform.dlc.memory import TRIED_WITH_LESS
from dlc_platform.errors import PlatformError
from dlc_platform.launchers.dagster_internals import (
    CheckRunHealthResult,
    ConfigurableClass,
    ConfigurableClassData,
    ExecuteRunArgs,
    LaunchRunContext,
    ResumeRunArgs,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
    serialize_value,
)
from dlc_platform.launchers.for_good import fail_for_good, give_own_retries
from dlc_platform.launchers.lab_file import require_valid_lab
from dlc_platform.launchers.needs import needs_of
from dlc_platform.launchers.run_ends import as_told, connection_names, settled
from dlc_platform.text.words import counted

DEVICE_TAG = "dlc_platform/device"
#: The number of processes that the kernel had killed for lack of memory when the worker started, and its source.
MEMORY_KILLS_TAG = f"{UNSHOWN}memory_kills"
#: Its name in runs that version 0.6.1 or an earlier one started.
EARLIER_MEMORY_KILLS_TAG = "dlc_platform/memory_kills"
ARGUMENTS_VARIABLE = "DLC_PLATFORM_RUN_ARGUMENTS"

_LOG_FOLDER = "run-logs"
_LOG_LINES = 20
_LOG_BYTES = 20_000
#: Messages of programs that could not get memory.
_OUT_OF_MEMORY = re.compile(r".*(?:MemoryError|bad_alloc|[Cc]annot allocate memory|[Oo]ut of memory|OutOfMemory).*")


class GpuRunLauncher(RunLauncher, ConfigurableClass):
    """Runs each run in its own process on this machine; runs that need GPUs get them, and the others get none.

    Configured in ``dagster.yaml``. A run whose tags name no worker was started by another program, and is left alone.

    Parameters
    ----------
    gpus
        ``auto`` (all that NVML finds), or a list of the GPUs that runs may use; see `devices.find_devices`.
    avoid_busy
        Do not use GPUs on which a process computes that no run of a lab has started.
    grace_seconds
        The seconds that a terminated run may tidy up before it is killed with all its processes.
    """

    def __init__(
        self,
        gpus: GpuNames = "auto",
        grace_seconds: float = 15.0,
        inst_data: ConfigurableClassData | None = None,
        avoid_busy: bool = False,
    ):
        super().__init__()
        self.gpus: GpuNames = gpus
        self.avoid_busy = avoid_busy
        self._grace_seconds = grace_seconds
        self._inst_data = inst_data
        # Only for their exit codes, and so that they do not stay as zombies. The run's tags tell where a worker is,
        # and if it is alive.
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """The source of the configuration."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Field]:
        """The keys below ``config`` in ``dagster.yaml``."""
        return {
            # Numbers and UUIDs in one list, for which Dagster has no type.
            "gpus": Field(Any, default_value="auto"),  # pyright: ignore[reportArgumentType]
            "avoid_busy": Field(bool, default_value=False),
            "grace_seconds": Field(float, default_value=15.0),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> "GpuRunLauncher":
        """The launcher that ``dagster.yaml`` describes."""
        gpus = config_value["gpus"]
        listed = isinstance(gpus, list) and all(isinstance(gpu, int | str) for gpu in gpus)
        if gpus != "auto" and not listed:
            raise PlatformError(
                f"run_launcher.config.gpus in dagster.yaml is {gpus!r}",
                "Write `auto` or a list such as [0, 1], or of the UUIDs that `nvidia-smi -L` shows",
            )
        return cls(
            gpus=gpus,
            grace_seconds=config_value["grace_seconds"],
            inst_data=inst_data,
            avoid_busy=config_value["avoid_busy"],
        )

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run's worker, and return at once; the worker itself waits for a device.

        A run with wrong tags fails, and the error names them.
        """
        require_valid_lab()
        run = context.dagster_run
        give_own_retries(self._instance, run)
        origin = check.not_none(run.job_code_origin)
        try:
            self._start(run, ExecuteRunArgs(origin, run.run_id, self._instance.get_ref()))
        except UnmetNeed as error:
            # If raised, it would be tried again, and be hidden behind Dagster's own words.
            fail_for_good(self._instance, run, str(error))

    @property
    def supports_resume_run(self) -> bool:
        """True: if ``run_monitoring.max_resume_run_attempts`` allows it, a run goes on with a second worker."""
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        """Start a second worker for a run whose worker has died: it does the steps that are not finished."""
        run = context.dagster_run
        if (worker := WorkerProcess.from_tags(run.tags)) is not None:
            worker.kill()  # Two workers must never work on one run.
        origin = check.not_none(run.job_code_origin)
        self._start(run, ResumeRunArgs(origin, run.run_id, self._instance.get_ref()))

    def _start(self, run: DagsterRun, arguments: ExecuteRunArgs | ResumeRunArgs) -> None:
        instance = self._instance
        needs = needs_of(instance, run)
        log = self._log(run.run_id)
        log.parent.mkdir(exist_ok=True)
        kills = killed_for_memory()
        with log.open("ab") as output:
            process = subprocess.Popen(
                [check.not_none(run.job_code_origin).executable_path, "-m", "dlc_platform.launchers.gpu_worker"],
                # Not on the command line, which everybody can read: the instance may hold a password.
                env={
                    **os.environ,
                    **gpus.environment(()),
                    **connection_names(run.run_id),
                    ARGUMENTS_VARIABLE: serialize_value(arguments),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = WorkerProcess.of(process.pid)
        # A retried run brings the tags of its predecessor, device included.
        tags = worker.tags() | ({DEVICE_TAG: "none yet"} if needs else {})
        if kills is not None:
            tags[MEMORY_KILLS_TAG] = f"{kills[1]} {kills[0]}"
        try:
            instance.add_run_tags(run.run_id, tags)
        except BaseException:
            process.kill()  # A run must not go on if nobody can find its worker again.
            process.wait()
            raise
        self._children[run.run_id] = process
        threading.Thread(
            target=self._wait_for, args=(instance, run.run_id, process), name=f"wait-{run.run_id}", daemon=True
        ).start()

    def terminate(self, run_id: str) -> bool:
        """Ask the run's worker to stop; if it has not within the grace time, kill it with all its processes.

        Returns at once. False if there is nothing to stop, or nothing that this host can stop.
        """
        instance = self._instance
        run = as_told(instance, run_id)
        if run is None or run.is_finished:
            return False
        worker = WorkerProcess.from_tags(run.tags)
        if worker is None or not (worker.is_alive() or worker.was_started_here()):
            where = "no worker is known" if worker is None else f"its worker is on {worker.host}"
            instance.report_engine_event(f"Cannot terminate this run from here: {where}", run, cls=type(self))
            return False
        if run.status != DagsterRunStatus.CANCELING:
            instance.report_run_canceling(run)
        # Not SIGINT, which a process started in the background of a shell ignores until Dagster listens to it.
        worker.signal(signal.SIGTERM)
        # Not a daemon thread: a run that was asked to stop must have stopped before this process ends.
        threading.Thread(target=self._stop, args=(instance, run_id, worker), name=f"stop-{run_id}").start()
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: Dagster's monitoring asks `check_run_worker_health` about every started run."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Check that the worker of a started run is alive; if not, say why, and kill the processes that it left
        behind."""
        worker = WorkerProcess.from_tags(run.tags)
        if worker is None or worker.is_alive():
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        now = as_told(self._instance, run.run_id)
        if now is not None and not now.is_finished:
            worker.kill()
            now = settled(self._instance, run.run_id)
        if now is None or now.is_finished:
            return CheckRunHealthResult(WorkerStatus.SUCCESS)
        return CheckRunHealthResult(WorkerStatus.FAILED, self._cause_of_death(run, worker))

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """The place of the worker's output, and its last lines."""
        lines = self._last_lines(run.run_id)
        return "\n".join((f"The end of {self._log(run.run_id)}:", *lines)) if lines else None

    def _log(self, run_id: str) -> Path:
        return Path(self._instance.root_directory) / _LOG_FOLDER / f"{run_id}.log"

    def _last_lines(self, run_id: str) -> list[str]:
        try:
            with self._log(run_id).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
                return log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        except FileNotFoundError:
            return []

    def _wait_for(self, instance: DagsterInstance, run_id: str, process: subprocess.Popen[bytes]) -> None:
        """Reap a worker of this process; fail its run if that never started, because monitoring does not check such
        runs."""
        process.wait()
        run = settled(instance, run_id)
        if run is not None and run.status == DagsterRunStatus.STARTED:
            return  # The exit code is needed when monitoring asks.
        if run is not None and run.status == DagsterRunStatus.STARTING:
            cause = self._cause_of_death(run, check.not_none(WorkerProcess.from_tags(run.tags)))
            instance.report_run_failed(run, f"{cause}\n{self.get_run_worker_debug_info(run)}")
        if self._children.get(run_id) is process:
            del self._children[run_id]

    def _stop(self, instance: DagsterInstance, run_id: str, worker: WorkerProcess) -> None:
        deadline = time.monotonic() + self._grace_seconds
        while worker.is_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        killed = worker.is_alive()
        worker.kill()
        run = settled(instance, run_id)
        if run is not None and not run.is_finished:
            how = f"was killed, because it had not stopped after {self._grace_seconds:g} s" if killed else "has stopped"
            instance.report_run_canceled(run, f"The worker ({worker}) {how}.")

    def _cause_of_death(self, run: DagsterRun, worker: WorkerProcess) -> str:
        child = self._children.get(run.run_id)
        if child is None or child.pid != worker.pid:
            how = "is gone; another process had started it, so its exit code is not known"
            return f"The worker ({worker}) {how}{self._memory_ran_out(run)}"
        code = self._children.pop(run.run_id).wait()
        if code >= 0:
            hint = self._memory_ran_out(run, killed=False)
            return f"The worker ({worker}) ended with exit code {code} before its run did{hint}"
        hint = self._memory_ran_out(run, killed=code == -signal.SIGKILL)
        if not hint and code == -signal.SIGKILL:
            hint = ": a person can do that, and so can the kernel when memory runs out (`dmesg` tells)"
            if _killed_at_start(run):
                hint = ", and not by the kernel for want of memory, which it counts: so by a person or a program"
        return f"The worker ({worker}) was killed by {signal.Signals(-code).name}{hint}"

    def _memory_ran_out(self, run: DagsterRun, killed: bool = True) -> str:
        """The signs of a lack of memory, to be added to the worker's end; empty if there are none.

        The kernel's count matters only for a worker that the kernel may have `killed`.
        """
        before, _, place = _killed_at_start(run).partition(" ")
        now = killed_for_memory()
        if killed and now is not None and str(now[0]) == place and now[1] > int(before):
            return (
                f": memory ran out (the kernel has killed {counted(now[1] - int(before), 'process', 'processes')} for "
                "it meanwhile)"
            )
        for line in reversed(self._last_lines(run.run_id)):
            # A batch that was too large and was repeated with a smaller one is not a cause of death.
            if _OUT_OF_MEMORY.match(line) and TRIED_WITH_LESS not in line:
                return f": memory ran out (its output says: {line.strip()[:200]})"
        return ""


def _killed_at_start(run: DagsterRun) -> str:
    """The processes that the kernel had killed for want of memory when the run began, and the place of that count."""
    return run.tags.get(MEMORY_KILLS_TAG) or run.tags.get(EARLIER_MEMORY_KILLS_TAG, "")
