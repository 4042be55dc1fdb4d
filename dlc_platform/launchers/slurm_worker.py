"""The process of one run on a node: ``python -m dlc_platform.launchers.slurm_worker BATCH_FOLDER``, the end of a job.

It is Dagster's own run worker, which also resumes a run that an earlier job began: Slurm starts the same job again
after a preemption or the death of a node. If Slurm has several jobs for one run, only one works.

SIGINT comes from `SlurmRunLauncher.terminate`: Dagster tidies up and the run ends cancelled. SIGTERM comes from Slurm,
for a preemption, a time limit or a person's ``scancel``: the worker dies silently, because only Slurm knows the reason,
and if the run goes on.
"""

import os
import sys
import time
from pathlib import Path

from dagster import DagsterEvent, DagsterInstance, DagsterRunStatus

from dlc_platform.launchers.dagster_internals import (
    InstanceRef,
    deserialize_value,
    execute_run_command_body,
    interrupts,
    resume_run_command_body,
)
from dlc_platform.launchers.run_ends import connection_names, settled
from dlc_platform.launchers.slurm_follower import JOB_TAG
from dlc_platform.launchers.slurm_spool import Entry, Spool

_POLL_SECONDS = 1.0


def main() -> int:
    """Work on the run that the batch has for this job; the exit code tells if it succeeded."""
    folder = Path(sys.argv[1])
    spool = Spool(folder.parents[1])
    task = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    entry = spool.batch_entries(folder.name)[task]
    if entry is None:
        return 0  # The run of this job has ended, or goes on in another job.
    os.environ.update(entry.environment)
    os.environ.update(connection_names(entry.run_id))
    if not entry.gpus:
        # If a cluster does not confine jobs to their devices, those of other jobs would be visible.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    # Dagster gives SIGTERM the meaning of SIGINT; here it keeps its own.
    interrupts.setup_interrupt_handlers = lambda: None
    with (
        interrupts.capture_interrupts(),
        DagsterInstance.from_ref(deserialize_value(entry.instance, InstanceRef)) as it,
    ):
        return _work(spool, entry, it)


def _work(spool: Spool, entry: Entry, instance: DagsterInstance) -> int:
    job = _job()
    waits = False
    while True:
        with spool.claimed(entry.run_id) as claimed:
            if claimed:
                return _execute(spool, entry, instance, job)
        run = instance.get_run_by_id(entry.run_id)
        if run is None or run.is_finished or spool.get(entry.run_id) != entry:
            return 0
        if not waits:
            instance.report_engine_event(f"Slurm job {job} waits: an earlier job of this run is still at work", run)
            waits = True
        time.sleep(_POLL_SECONDS)


def _execute(spool: Spool, entry: Entry, instance: DagsterInstance, job: str) -> int:
    # An earlier job of this run is dead by now, and may have finished the run.
    run = settled(instance, entry.run_id)
    if run is None or run.is_finished or spool.get(entry.run_id) != entry:
        return 0
    if run.status == DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, "This run was terminated before its worker had begun")
        return 0
    instance.add_run_tags(run.run_id, {JOB_TAG: job})
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    again = f", started for the {restarts + 1}. time" if restarts else ""
    devices = f", CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}" if entry.gpus else ""
    where = os.environ.get("SLURMD_NODENAME", "an unnamed node")
    instance.report_engine_event(f"This run works in Slurm job {job} on {where}{devices}{again}", run)
    body = resume_run_command_body if run.status == DagsterRunStatus.STARTED else execute_run_command_body
    return body(entry.run_id, instance, _ignore, set_exit_code_on_failure=True)


def _job() -> str:
    """The id of this job, as in `slurm.Job`."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _ignore(event: DagsterEvent) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
