"""`SlurmFollower`: submits launched runs to Slurm, and reports the state of their jobs to the runs.

It is a thread of the daemon. All its knowledge lies in the spool and in Slurm, so the follower of a new daemon goes on
where the previous one stopped. Only one follower of a spool works at a time.
"""

import contextlib
import logging
import re
import threading
import time
import weakref
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from dlc_platform.errors import PlatformError
from dlc_platform.launchers import slurm
from dlc_platform.launchers.for_good import fail_for_good
from dlc_platform.launchers.run_ends import settled
from dlc_platform.launchers.slurm import ControllerAway, Job, NoNumber, NotNow
from dlc_platform.launchers.slurm_spool import Entry, Spool

JOB_TAG = "dlc_platform/slurm_job"

_RUNS_AT_ONCE = 500
#: The seconds for which a job that may have been submitted is looked for, before it is submitted again.
_LOOK_FOR_SECONDS = 600
_OUTPUT_LINES = 20
_OUTPUT_BYTES = 20_000
#: The lines that Slurm and the kernel write into a job's output when they kill it for its memory. The worker's own
#: lines about memory do not count: the worker goes on after them.
_KILLED_FOR_MEMORY = re.compile(
    r"^(slurmstepd\S*: (error: )?.*(exceeded (\w+ )?memory limit|oom[-_]kill event)"
    r"|srun: error: .*out of memory"
    r"|.*\bout of memory: kill(ed)? process)",
    re.IGNORECASE | re.MULTILINE,
)

_logger = logging.getLogger(__name__)


class SlurmFollower:
    """Submits and watches the jobs of a spool.

    Parameters
    ----------
    poll_seconds
        The seconds between two looks at Slurm; each is one question, for any number of jobs.
    collect_seconds
        The seconds for which runs are collected, so that a backlog becomes an array.
    grace_seconds
        The seconds that a worker may tidy up after it was asked to stop.
    """

    def __init__(self, spool: Spool, poll_seconds: float, collect_seconds: float, grace_seconds: float):
        self._spool = spool
        self._poll_seconds = poll_seconds
        self._collect_seconds = collect_seconds
        self._grace_seconds = grace_seconds
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._array_limit: int | None = None
        self._taken_at_once: dict[str, int] = {}
        self._told: dict[str, set[str]] = {}
        #: The time at which a batch was submitted for which sbatch gave no number.
        self._without_number: dict[str, float] = {}
        self._ending_since: dict[str, float] = {}
        self._looking = threading.Lock()
        self._seen: dict[str, Job] = {}
        self._seen_of: set[str] = set()
        self._seen_at = -float("inf")

    def start(self, instance: DagsterInstance) -> None:
        """Follow in a thread of this process until `stop`, or until the instance is gone."""
        with self._starting:
            if self._thread is None:
                arguments = (weakref.ref(instance),)
                self._thread = threading.Thread(target=self._follow, args=arguments, name="slurm", daemon=True)
                self._thread.start()
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """End the thread, and wait for its end."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _follow(self, reference: "weakref.ReferenceType[DagsterInstance]") -> None:
        while True:
            woken = self._wake.wait(self._poll_seconds)
            self._wake.clear()
            if woken:
                self._stopped.wait(self._collect_seconds)
            instance = reference()
            if instance is None or self._stopped.is_set():
                return
            try:
                with self._spool.alone() as alone:
                    if alone:
                        self.look_after(instance)
            except Exception:
                # Postgres or the shared file system may be away: the next look tries again.
                _logger.exception("The Slurm jobs of runs could not be looked after")
            del instance

    def look_after(self, instance: DagsterInstance) -> None:
        """Submit the runs that wait in the spool, and report the state of jobs to their runs; once."""
        entries = self._spool.entries()
        runs = _runs(instance, [entry.run_id for entry in entries])
        try:
            self._submit(instance, entries, runs)
            self._tell(instance, runs)
        except ControllerAway as away:
            for entry in self._spool.entries():
                run = runs.get(entry.run_id)
                if run is not None and not run.is_finished and run.status != DagsterRunStatus.STARTED:
                    self._say(instance, run, f"Slurm does not answer, so this run waits: {away}", "away")
            return
        for said in self._told.values():
            said.discard("away")
        self._spool.remove_old_batches()

    def job(self, entry: Entry) -> Job | None:
        """The job of a run as Slurm saw it lately; None if Slurm does not know it, or it was not submitted yet.

        Raises
        ------
        ControllerAway
            When nobody answered.
        """
        number = self._spool.job_of(entry)
        if number is None:
            return None
        with self._looking:
            if number not in self._seen_of or time.monotonic() - self._seen_at > self._poll_seconds / 2:
                numbers = {found for other in self._spool.entries() if (found := self._spool.job_of(other))}
                self._seen_of = numbers | {number}
                self._seen = slurm.jobs(self._seen_of)
                self._seen_at = time.monotonic()
            seen = self._seen.get(number)
        # A controller that died without saving gives numbers twice: then the job is another run's.
        return seen if seen is not None and seen.name in (entry.batch, "") else None

    def end(self, entry: Entry, job: Job | None) -> Job:
        """The end of a job that is not active any more: Slurm's word, completed by the job's output."""
        if job is None:
            return Job(self._spool.job_of(entry) or "?", "UNKNOWN")
        if job.state in ("FAILED", "CANCELLED") and job.signal in (9, 15):
            last_start = tail(self._spool.output_of(entry)).rpartition(slurm.BEGINS)[2]
            if _KILLED_FOR_MEMORY.search(last_start):
                return job.killed_for_memory()
        return job

    def settle(self, instance: DagsterInstance, run: DagsterRun, ended: Job) -> bool:
        """End a run whose job ended in a way that another try would not change; True if it did."""
        if ended.state not in slurm.FINAL:
            return False
        if ended.state == "CANCELLED":
            instance.report_run_canceled(run, ended.sentence())
            return True
        fail_for_good(instance, run, ended.sentence())
        return True

    def _submit(self, instance: DagsterInstance, entries: Sequence[Entry], runs: dict[str, DagsterRun]) -> None:
        new: list[Entry] = []
        unsure: set[str] = set()
        for entry in entries:
            run = runs.get(entry.run_id)
            if run is None or run.is_finished or run.status == DagsterRunStatus.CANCELING:
                continue
            if entry.batch is None:
                new.append(entry)
            elif self._spool.job_of(entry) is None:
                unsure.add(entry.batch)
        for batch in sorted(unsure):
            # The process that submitted it died before it wrote the number down, or got no answer.
            if job := slurm.find(batch):
                self._without_number.pop(batch, None)
                self._handed_in(instance, batch, job)
            elif time.monotonic() - self._without_number.get(batch, -float("inf")) > _LOOK_FOR_SECONDS:
                # If it was refused, its runs are new ones at the next look.
                with contextlib.suppress(NotNow):
                    self._hand_in(instance, batch, runs)
        if new and self._array_limit is None:
            self._array_limit = slurm.array_limit()
        most = self._array_limit or 1

        def kind(entry: Entry) -> str:
            return repr((entry.options, entry.gpus))

        for name, group in groupby(sorted(new, key=kind), key=kind):
            self._submit_alike(instance, name, list(group), runs, most)

    def _submit_alike(
        self, instance: DagsterInstance, kind: str, entries: Sequence[Entry], runs: dict[str, DagsterRun], most: int
    ) -> None:
        """Submit runs with the same options, in arrays as large as Slurm accepts; the rest waits for the next look."""
        # If Slurm accepted nothing, the next look tries one run, and twice as many after each success.
        at_once = self._taken_at_once.pop(kind, most)
        while entries:
            some = entries[:at_once]
            try:
                self._hand_in(instance, self._spool.make_batch(some), runs)
            except NotNow as refusal:
                self._array_limit = None  # It may have been changed.
                at_once = len(some) // 2 if refusal.fewer else 0
                if at_once:
                    continue
                self._taken_at_once[kind] = 1
                for entry in entries:
                    told = f"Slurm does not take this run now, so it waits: {refusal}"
                    self._say(instance, runs[entry.run_id], told, "refused")
                return
            entries = entries[at_once:]
            at_once = min(2 * at_once, most)

    def _hand_in(self, instance: DagsterInstance, batch: str, runs: dict[str, DagsterRun]) -> None:
        """Submit a batch; if it is refused for good, its runs fail, and if Slurm raises `NotNow`, it is undone."""
        entries = self._spool.batch_entries(batch)
        some = next(entry for entry in entries if entry is not None)
        folder = self._spool.batch_folder(batch)
        command = [some.options.python or "python", "-m", "dlc_platform.launchers.slurm_worker", str(folder)]
        output = folder / ("%a.out" if len(entries) > 1 else "0.out")
        script = slurm.script(some.options, command)
        try:
            job = slurm.submit(script, some.options.arguments(some.gpus), batch, output, len(entries))
        except NotNow:
            self._spool.undo_batch(batch)
            raise
        except NoNumber as no_number:
            self._without_number[batch] = time.monotonic()
            for entry in entries:
                if entry is not None and (run := runs.get(entry.run_id)):
                    self._say(instance, run, f"This run waits until Slurm shows its job: {no_number}", "no number")
            return
        except PlatformError as error:
            for entry in entries:
                if entry is not None and (run := runs.get(entry.run_id)):
                    fail_for_good(instance, run, str(error))
                    self._forget(entry)
            return
        self._handed_in(instance, batch, job)

    def _handed_in(self, instance: DagsterInstance, batch: str, job: str) -> None:
        self._spool.set_job(batch, job)
        for entry in self._spool.batch_entries(batch):
            if entry is not None:
                instance.add_run_tags(entry.run_id, {JOB_TAG: self._spool.job_of(entry) or job})

    def _tell(self, instance: DagsterInstance, runs: dict[str, DagsterRun]) -> None:
        for entry in self._spool.entries():
            run = runs.get(entry.run_id)
            if run is None:
                # Launched after the runs were read, or deleted: a question for this run alone tells.
                if instance.get_run_by_id(entry.run_id) is None:
                    self._end(entry)
            elif run.is_finished:
                self._end(entry)
            elif run.status == DagsterRunStatus.CANCELING:
                self._stop(instance, run, entry)
            elif self._spool.job_of(entry) is not None:
                self._watch(instance, run, entry)

    def _watch(self, instance: DagsterInstance, run: DagsterRun, entry: Entry) -> None:
        job = self.job(entry)
        if job is not None and job.is_active:
            if job.is_waiting:
                self._say(instance, run, job.sentence(), job.reason)
            elif job.is_unclear:
                self._say(instance, run, job.sentence(), job.state)
            return
        if run.status == DagsterRunStatus.STARTED:
            return  # Dagster's monitoring asks about it.
        if self._spool.is_claimed(entry.run_id):
            return
        now = settled(instance, run.run_id)
        if now is None or now.status != run.status:
            return
        ended = self.end(entry, job)
        if not self.settle(instance, now, ended):
            instance.report_run_failed(now, "\n".join((ended.sentence(), describe(self._spool.output_of(entry)))))

    def _stop(self, instance: DagsterInstance, run: DagsterRun, entry: Entry) -> None:
        """End a run that somebody terminates, wherever its job is."""
        number = self._spool.job_of(entry)
        job = self.job(entry)
        if job is not None and job.is_waiting:
            slurm.cancel(job.id)
        elif job is not None and job.is_active:
            if self._is_over_due(entry):
                slurm.cancel(job.id)
            else:
                with self._spool.interrupting(entry.run_id) as mine:
                    if mine:
                        slurm.interrupt(job.id)
        elif number is None or not self._spool.is_claimed(entry.run_id):
            now = settled(instance, run.run_id)
            if now is not None and not now.is_finished:
                told = "This run was terminated before it was handed to Slurm"
                instance.report_run_canceled(now, self.end(entry, job).sentence() if number else told)
            self._forget(entry)

    def _end(self, entry: Entry) -> None:
        """Forget a run that has ended, and make sure that its job ends too."""
        job = self.job(entry)
        if job is None or not job.is_active:
            self._forget(entry)
        elif job.is_waiting or self._is_over_due(entry):
            slurm.cancel(job.id)

    def _is_over_due(self, entry: Entry) -> bool:
        since = self._ending_since.setdefault(entry.run_id, time.monotonic())
        return time.monotonic() - since > self._grace_seconds

    def _forget(self, entry: Entry) -> None:
        self._spool.remove(entry.run_id)
        self._told.pop(entry.run_id, None)
        self._ending_since.pop(entry.run_id, None)

    def _say(self, instance: DagsterInstance, run: DagsterRun, sentence: str, about: str) -> None:
        """Report something on a run, but not twice: the reasons for which jobs wait come and go."""
        said = self._told.setdefault(run.run_id, set())
        if about not in said:
            instance.report_engine_event(sentence, run)
            said.add(about)


def tail(output: Path | None) -> str:
    """The last lines of a job's output; empty if there is none."""
    if output is None:
        return ""
    try:
        with output.open("rb") as file:
            file.seek(max(0, output.stat().st_size - _OUTPUT_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-_OUTPUT_LINES:])


def describe(output: Path | None) -> str:
    """The place of a job's output, and its end."""
    return f"The end of {output}:\n{tail(output)}" if output is not None else "Its job has printed nothing"


def _runs(instance: DagsterInstance, run_ids: Sequence[str]) -> dict[str, DagsterRun]:
    found: dict[str, DagsterRun] = {}
    for first in range(0, len(run_ids), _RUNS_AT_ONCE):
        some = list(run_ids[first : first + _RUNS_AT_ONCE])
        found |= {run.run_id: run for run in instance.get_runs(filters=RunsFilter(run_ids=some))}
    return found
