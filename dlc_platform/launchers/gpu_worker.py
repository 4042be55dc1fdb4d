"""The process of one run: ``python -m dlc_platform.launchers.gpu_worker``, started by `GpuRunLauncher`.

It is Dagster's own run worker with one addition: a run in the ``gpu`` pool waits for a device before its first step.
It waits after the run has started, and not before, because Dagster watches over the workers of started runs only,
and fails a run that takes long to start.
"""

import os
import sys
import time

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun
from dagster import _check as check
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import deserialize_value
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

from dlc_platform.launchers import devices, leases
from dlc_platform.launchers.gpu_run_launcher import ARGUMENTS_VARIABLE, DEVICE_TAG, GpuRunLauncher, needs_device


class _Interrupted(Exception):
    pass


def main() -> int:
    """Execute the run that the environment names; the exit code tells whether it succeeded."""
    arguments = deserialize_value(os.environ.pop(ARGUMENTS_VARIABLE), ExecuteRunArgs)
    with capture_interrupts(), DagsterInstance.from_ref(check.not_none(arguments.instance_ref)) as instance:

        def on_event(event: DagsterEvent) -> None:
            if event.event_type == DagsterEventType.RUN_START:
                run = check.not_none(instance.get_run_by_id(arguments.run_id))
                if needs_device(run):
                    try:
                        _take_device(instance, run)
                    except Exception as error:
                        # Dagster ends the process at an error raised here, but does not tell the run.
                        instance.report_run_failed(run, f"No device for this run: {error}")
                        raise

        return _execute_run_command_body(arguments.run_id, instance, on_event, set_exit_code_on_failure=True)


def _take_device(instance: DagsterInstance, run: DagsterRun) -> None:
    """Lease a device until the process ends, and let this process and its children see that one only."""
    gpus = devices.gpu_indices(check.inst(instance.run_launcher, GpuRunLauncher).gpus)

    def announce(message: str) -> None:
        instance.report_engine_event(message, run)

    try:
        lease = leases.acquire(gpus, f"run {run.run_id}", announce, _pause)
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
