"""`GpuRunLauncher`: starts, watches and stops the worker processes of runs on this machine.

What a worker does, and how it gets its GPU, is in `gpu_worker`.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, Field, ScalarUnion
from dagster import _check as check
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value

from dlc_platform.errors import PlatformError
from dlc_platform.launchers import devices
from dlc_platform.launchers.processes import WorkerProcess

GPU_POOL = "gpu"
DEVICE_TAG = "dlc_platform/device"
ARGUMENTS_VARIABLE = "DLC_PLATFORM_RUN_ARGUMENTS"

_LOG_FOLDER = "run-logs"
_LOG_LINES = 20


def needs_device(run: DagsterRun) -> bool:
    """Whether one of the run's steps is in the ``gpu`` pool."""
    concurrency = run.run_op_concurrency
    return concurrency is not None and GPU_POOL in (concurrency.all_pools or ())


class GpuRunLauncher(RunLauncher, ConfigurableClass):
    """Runs each run in a process of its own on this machine; those in the ``gpu`` pool get one GPU each.

    Configured in ``dagster.yaml``. A run whose tags name no worker was started by something else, and is left alone.

    Parameters
    ----------
    gpus
        ``auto`` (those NVML finds) or the indices of the GPUs that runs may use.
    grace_seconds
        How long a terminated run may tidy up before it is killed with all its processes.
    """

    def __init__(
        self,
        gpus: Literal["auto"] | Sequence[int] = "auto",
        grace_seconds: float = 15.0,
        inst_data: ConfigurableClassData | None = None,
    ):
        super().__init__()
        self.gpus: Literal["auto"] | Sequence[int] = gpus
        self._grace_seconds = grace_seconds
        self._inst_data = inst_data
        # Only for their exit codes, and so that they do not stay behind as zombies: whether a worker is alive, and
        # where, is read from the run's tags.
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Where the configuration came from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Field]:
        """The keys below ``config`` in ``dagster.yaml``."""
        return {
            "gpus": Field(ScalarUnion(scalar_type=str, non_scalar_schema=[int]), default_value="auto"),
            "grace_seconds": Field(float, default_value=15.0),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> "GpuRunLauncher":
        """The launcher that ``dagster.yaml`` describes."""
        gpus = config_value["gpus"]
        if isinstance(gpus, str) and gpus != "auto":
            raise PlatformError(
                f"run_launcher.config.gpus in dagster.yaml is {gpus!r}", "Write `auto` or a list such as [0, 1]"
            )
        return cls(gpus=gpus, grace_seconds=config_value["grace_seconds"], inst_data=inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run's worker, and come back at once: it is the worker that waits for a device."""
        run = context.dagster_run
        origin = check.not_none(run.job_code_origin)
        instance = self._instance
        arguments = ExecuteRunArgs(job_origin=origin, run_id=run.run_id, instance_ref=instance.get_ref())
        log = self._log(run.run_id)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [origin.executable_path, "-m", "dlc_platform.launchers.gpu_worker"],
                # Not on the command line, which everybody can read: the instance may hold a password.
                env={**os.environ, **devices.environment(None), ARGUMENTS_VARIABLE: serialize_value(arguments)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = WorkerProcess.of(process.pid)
        # A retried run brings the tags of its predecessor, device included.
        tags = worker.tags() | ({DEVICE_TAG: "none yet"} if needs_device(run) else {})
        try:
            instance.add_run_tags(run.run_id, tags)
        except BaseException:
            process.kill()  # A run whose worker nobody can find again must not go on.
            process.wait()
            raise
        self._children[run.run_id] = process
        threading.Thread(
            target=self._wait_for, args=(instance, run.run_id, process), name=f"wait-{run.run_id}", daemon=True
        ).start()

    def terminate(self, run_id: str) -> bool:
        """Ask the run's worker to stop; if it has not within the grace time, kill it with all its processes.

        Comes back at once. False if there is nothing to stop, or not from this host.
        """
        instance = self._instance
        run = instance.get_run_by_id(run_id)
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
        # Not a daemon thread: what has been asked to stop has to be stopped before this process ends.
        threading.Thread(target=self._stop, args=(instance, run_id, worker), name=f"stop-{run_id}").start()
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: Dagster's monitoring asks `check_run_worker_health` about every started run."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the worker of a started run is alive; if it is not, why, and what it left behind is killed."""
        worker = WorkerProcess.from_tags(run.tags)
        if worker is None or worker.is_alive():
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if check.not_none(self._instance.get_run_by_id(run.run_id)).is_finished:
            return CheckRunHealthResult(WorkerStatus.SUCCESS)
        worker.kill()
        return CheckRunHealthResult(WorkerStatus.FAILED, self._cause_of_death(run.run_id, worker))

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """Where the worker's output is, and its last lines."""
        log = self._log(run.run_id)
        try:
            lines = log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return None
        return "\n".join((f"The end of {log}:", *lines[-_LOG_LINES:]))

    def _log(self, run_id: str) -> Path:
        return Path(self._instance.root_directory) / _LOG_FOLDER / f"{run_id}.log"

    def _wait_for(self, instance: DagsterInstance, run_id: str, process: subprocess.Popen[bytes]) -> None:
        """Reap a worker of this process; fail its run if that never started, which monitoring does not look into."""
        process.wait()
        run = instance.get_run_by_id(run_id)
        if run is None or run.status == DagsterRunStatus.STARTED:
            return  # The exit code is needed when monitoring asks.
        if run.status == DagsterRunStatus.STARTING:
            cause = self._cause_of_death(run_id, check.not_none(WorkerProcess.from_tags(run.tags)))
            instance.report_run_failed(run, f"{cause}\n{self.get_run_worker_debug_info(run)}")
        self._children.pop(run_id, None)

    def _stop(self, instance: DagsterInstance, run_id: str, worker: WorkerProcess) -> None:
        deadline = time.monotonic() + self._grace_seconds
        while worker.is_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        killed = worker.is_alive()
        worker.kill()
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            how = f"was killed, because it had not stopped after {self._grace_seconds:g} s" if killed else "has stopped"
            instance.report_run_canceled(run, f"The worker ({worker}) {how}.")

    def _cause_of_death(self, run_id: str, worker: WorkerProcess) -> str:
        child = self._children.pop(run_id, None)
        if child is None:
            return f"The worker ({worker}) is gone; another process had started it, so its exit code is not known"
        code = child.wait()
        if code >= 0:
            return f"The worker ({worker}) ended with exit code {code} before its run did"
        name = signal.Signals(-code).name
        hint = ": the kernel does that when memory runs out (`dmesg` tells), and so can a person" if code == -9 else ""
        return f"The worker ({worker}) was killed by {name}{hint}"
