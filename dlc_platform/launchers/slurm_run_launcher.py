"""`SlurmRunLauncher`: runs become jobs of a Slurm cluster.

It puts runs into the spool and takes them back; `slurm_follower` (service) and `slurm_worker` (node) do the work
between.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, Field, Noneable
from dagster import _check as check

from dlc_platform.errors import PlatformError
from dlc_platform.launchers import slurm
from dlc_platform.launchers.dagster_internals import (
    CheckRunHealthResult,
    ConfigurableClass,
    ConfigurableClassData,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
    serialize_value,
)
from dlc_platform.launchers.for_good import fail_for_good, give_own_retries
from dlc_platform.launchers.lab_file import require_valid_lab
from dlc_platform.launchers.needs import needs_of
from dlc_platform.launchers.run_ends import as_told, settled
from dlc_platform.launchers.slurm_follower import SlurmFollower, describe
from dlc_platform.launchers.slurm_spool import Entry, Spool

#: Tags with this beginning give the options of a run's job, instead of dagster.yaml.
TAG_PREFIX = "dlc_platform/slurm/"
#: A person who may launch a run in the UI must not be able to write the shell script of its job.
_NOT_BY_TAG = ("setup", "python", "extra")
#: The beginnings of variables of the service that every worker gets.
_PASSED_ON = ("DLC_PLATFORM_", "DAGSTER_")


class SlurmRunLauncher(RunLauncher, ConfigurableClass):
    """Runs each run as a Slurm job; large backlogs become job arrays.

    Configured in ``dagster.yaml``: every field of `slurm.Options`, and

    Parameters
    ----------
    spool
        A folder of the file system that the service shares with the nodes; by default ``slurm`` in the folder of
        Dagster's local artifacts.
    environment
        Names of variables of the service that workers get, besides those that begin with ``DLC_PLATFORM_`` or
        ``DAGSTER_``. Their values travel in the spool, readable by their owner only.
    poll_seconds, collect_seconds, grace_seconds
        See `SlurmFollower`.
    """

    def __init__(
        self,
        options: slurm.Options,
        spool: str | None = None,
        environment: tuple[str, ...] = (),
        poll_seconds: float = 10.0,
        collect_seconds: float = 1.0,
        grace_seconds: float = 30.0,
        inst_data: ConfigurableClassData | None = None,
    ):
        super().__init__()
        self._options = options
        self._folder = spool
        self._environment = environment
        self._seconds = (poll_seconds, collect_seconds, grace_seconds)
        self._inst_data = inst_data

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """The source of the configuration."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Field]:
        """The keys below ``config`` in ``dagster.yaml``."""
        defaults = slurm.Options()
        options = {
            name: Field(Noneable(str), is_required=False, default_value=getattr(defaults, name))
            for name in slurm.Options.names()
        }
        return {
            **options,
            "spool": Field(Noneable(str), is_required=False, default_value=None),
            "environment": Field([str], default_value=[]),
            "poll_seconds": Field(float, default_value=10.0),
            "collect_seconds": Field(float, default_value=1.0),
            "grace_seconds": Field(float, default_value=30.0),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> "SlurmRunLauncher":
        """The launcher that ``dagster.yaml`` describes."""
        options = slurm.Options(**{name: config_value[name] for name in slurm.Options.names()})
        other = {key: value for key, value in config_value.items() if key not in slurm.Options.names()}
        return cls(options, **{**other, "environment": tuple(other["environment"])}, inst_data=inst_data)

    @cached_property
    def _spool(self) -> Spool:
        return Spool(Path(self._folder) if self._folder else Path(self._instance.root_directory) / "slurm")

    @cached_property
    def _follower(self) -> SlurmFollower:
        return SlurmFollower(self._spool, *self._seconds)

    def register_instance(self, instance: DagsterInstance) -> None:
        """Belong to an instance; in the daemon, continue the work of the previous daemon."""
        super().register_instance(instance)
        # A new daemon has no other reason to call this launcher if runs only wait in Slurm's queue.
        if _is_daemon():
            self._follower.start(instance)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Put the run into the spool, and return at once; a run with wrong tags fails, and the error names them."""
        require_valid_lab()
        run = context.dagster_run
        give_own_retries(self._instance, run)
        try:
            self._put(run)
        except PlatformError as error:
            # If raised, it would be hidden behind Dagster's own words.
            fail_for_good(self._instance, run, str(error))

    @property
    def supports_resume_run(self) -> bool:
        """True: with ``run_monitoring.max_resume_run_attempts`` a run whose job died goes on in another one."""
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        """Put the run into the spool once more; its worker goes on where the previous one was stopped."""
        self._put(context.dagster_run)

    def _put(self, run: DagsterRun) -> None:
        options = self._options_of(run)
        python = options.python or check.not_none(run.job_code_origin).executable_path
        needs = needs_of(self._instance, run)
        passed_on = [name for name in os.environ if name.startswith(_PASSED_ON)]
        entry = Entry(
            run_id=run.run_id,
            instance=serialize_value(self._instance.get_ref()),
            environment={name: os.environ[name] for name in (*passed_on, *self._environment) if name in os.environ},
            options=replace(options, python=python),
            gpus=needs.gpus if needs else 0,
        )
        self._spool.put(entry)
        self._follower.start(self._instance)

    def _options_of(self, run: DagsterRun) -> slurm.Options:
        told = {tag[len(TAG_PREFIX) :]: value for tag, value in run.tags.items() if tag.startswith(TAG_PREFIX)}
        may = [name for name in slurm.Options.names() if name not in _NOT_BY_TAG]
        if refused := sorted(set(told) - set(may)):
            why = "is not allowed by tag" if refused[0] in _NOT_BY_TAG else "says nothing to Slurm"
            raise PlatformError(
                f"the run {run.run_id} has the tag {TAG_PREFIX}{refused[0]}, which {why}",
                f"Use {TAG_PREFIX} with one of {', '.join(may)}",
            )
        return replace(self._options, **told)

    def terminate(self, run_id: str) -> bool:
        """Ask the run's worker to stop, or take its job from the queue; after the grace time its job is cancelled.

        Returns at once, and works from any process that sees the spool.
        """
        instance = self._instance
        run = as_told(instance, run_id)
        if run is None or run.is_finished:
            return False
        entry = self._spool.get(run_id)
        if entry is None:
            message = f"Cannot terminate this run from here: the Slurm spool {self._spool.folder} does not know it"
            instance.report_engine_event(message, run, cls=type(self))
            return False
        if run.status != DagsterRunStatus.CANCELING:
            instance.report_run_canceling(run)
        number = self._spool.job_of(entry)
        if number is None:
            return True  # The follower does not hand it in any more.
        try:
            job = slurm.jobs([number]).get(number)
            if job is not None and job.name != entry.batch:
                job = None  # Another run's; the follower brings this one to its end.
            if job is not None and job.is_waiting:
                slurm.cancel(number)
            elif job is not None and job.is_active:
                with self._spool.interrupting(run_id) as mine:
                    if mine:
                        slurm.interrupt(number)
        except slurm.ControllerAway as away:
            instance.report_engine_event(f"Slurm does not answer, so this run stops later: {away}", run)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: Dagster's monitoring asks `check_run_worker_health` about every started run."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Check that the job of a started run is running or will run; if not, say why.

        While Slurm does not answer, a run counts as running.
        """
        entry = self._spool.get(run.run_id)
        if entry is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not launched through this Slurm spool")
        try:
            job = self._follower.job(entry)
        except slurm.ControllerAway as away:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"Slurm does not answer: {away}")
        if self._spool.job_of(entry) is None or (job is not None and job.is_active):
            return CheckRunHealthResult(WorkerStatus.RUNNING, job.sentence() if job else "about to be handed to Slurm")
        if self._spool.is_claimed(run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING, "Slurm knows no job, but its worker is at work")
        now = settled(self._instance, run.run_id)
        if now is None or now.status != DagsterRunStatus.STARTED:
            return CheckRunHealthResult(WorkerStatus.SUCCESS)
        ended = self._follower.end(entry, job)
        self._follower.settle(self._instance, now, ended)
        return CheckRunHealthResult(WorkerStatus.FAILED, ended.sentence())

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """The place of the output of the run's job, and its last lines."""
        entry = self._spool.get(run.run_id)
        return describe(self._spool.output_of(entry)) if entry is not None else None

    def dispose(self) -> None:
        """End the follower of this process."""
        if "_follower" in self.__dict__:
            self._follower.stop(seconds=30)


def _is_daemon() -> bool:
    """True if this process is ``dagster-daemon run`` or ``python -m dagster._daemon run``."""
    return any(Path(word).name in ("dagster-daemon", "dagster._daemon") for word in sys.orig_argv[:4])
