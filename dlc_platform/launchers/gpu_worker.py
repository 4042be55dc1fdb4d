"""The process of one run: ``python -m dlc_platform.launchers.gpu_worker``, started by `GpuRunLauncher`.

It is Dagster's own run worker with one addition: a run that needs GPUs waits for them before its first step. It waits
after the run has started, not before, because Dagster watches only the workers of started runs, and fails a run that
takes long to start.
"""

import os
import sys
import time

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun
from dagster import _check as check

from dlc_platform.devices import gpus, leases
from dlc_platform.devices.needs import Needs, UnmetNeed
from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.launchers.connections import kept_connections
from dlc_platform.launchers.dagster_internals import (
    ExecuteRunArgs,
    ResumeRunArgs,
    capture_interrupts,
    check_captured_interrupt,
    deserialize_value,
    execute_run_command_body,
    resume_run_command_body,
)
from dlc_platform.launchers.for_good import fail_for_good
from dlc_platform.launchers.gpu_run_launcher import ARGUMENTS_VARIABLE, DEVICE_TAG, GpuRunLauncher
from dlc_platform.launchers.needs import needs_of
from dlc_platform.launchers.routing_run_launcher import launcher_of


class _Interrupted(Exception):
    pass


def main() -> int:
    """Execute or resume the run that the environment names; the exit code tells if it succeeded."""
    arguments = deserialize_value(os.environ.pop(ARGUMENTS_VARIABLE), (ExecuteRunArgs, ResumeRunArgs))
    with (
        capture_interrupts(),
        DagsterInstance.from_ref(check.not_none(arguments.instance_ref)) as instance,
        kept_connections(instance, waits=True),
    ):
        # Its launcher does the same, but may have been killed before it could.
        instance.add_run_tags(arguments.run_id, WorkerProcess.current().tags())

        def on_event(event: DagsterEvent) -> None:
            if event.event_type == DagsterEventType.RUN_START:
                _prepare(instance, arguments.run_id)

        if isinstance(arguments, ExecuteRunArgs):
            return execute_run_command_body(arguments.run_id, instance, on_event, set_exit_code_on_failure=True)
        _prepare(instance, arguments.run_id)
        return resume_run_command_body(arguments.run_id, instance, on_event, set_exit_code_on_failure=True)


def _prepare(instance: DagsterInstance, run_id: str) -> None:
    run = check.not_none(instance.get_run_by_id(run_id))
    try:
        if (needs := needs_of(instance, run)) is not None:
            _take_devices(instance, run, needs)
    except Exception as error:
        # Dagster ends the process at an error raised here, but does not tell the run.
        told = f"No device for this run: {error}"
        if isinstance(error, UnmetNeed):
            fail_for_good(instance, run, told)
        else:
            instance.report_run_failed(run, told)
        raise


def _take_devices(instance: DagsterInstance, run: DagsterRun, needs: Needs) -> None:
    """Lease devices until the process ends, and hide all others from this process and its children."""
    launcher = check.inst(launcher_of(instance, run), GpuRunLauncher)

    def announce(message: str) -> None:
        instance.report_engine_event(message, run)

    try:
        lease = leases.acquire(
            gpus.find_devices(launcher.gpus), f"run {run.run_id}", announce, _pause, needs, launcher.avoid_busy
        )
    except _Interrupted:
        return  # Dagster raises the interrupt itself, before the first step.
    os.environ.update(lease.environment())
    instance.add_run_tags(run.run_id, {DEVICE_TAG: str(lease)})
    instance.report_engine_event(f"This run computes on {lease}", run)


def _pause(seconds: float) -> None:
    if check_captured_interrupt():
        raise _Interrupted
    time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main())
