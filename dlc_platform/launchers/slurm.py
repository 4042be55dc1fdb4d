"""Slurm, through its commands: submit jobs, look at them, signal and cancel them, and read its answers.

It knows neither Dagster nor runs. Clusters wrap these commands and add to their output, and new versions of Slurm have
new words. So the needed facts are searched in the whole output. An unknown answer is never a verdict about a job: it is
`ControllerAway` or `NotNow`, and Slurm is asked again.
"""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

from dlc_platform.errors import PlatformError

#: Longer than Slurm's own patience with its controller, so that Slurm reports the fault first.
_COMMAND_SECONDS = 180
#: The variables that Slurm's commands need. They get no others, because sbatch keeps the variables that it sees with
#: the job, on the controller's disk.
_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "SLURM_CONF")
#: English messages, whatever the language of the machine.
_MESSAGES = {"LC_MESSAGES": "C"}

_AWAY = (
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "connection timed out",
    "connection reset",
    "zero bytes were transmitted",
    "unable to connect",
    "slurm backup controller in standby",
    "controller is in standby mode",
    "failed to fetch config",
    "could not establish a configuration source",
    "transport endpoint is not connected",
    "no route to host",
    "network is unreachable",
    "communication connection failure",
    "message send failure",
    "message receive failure",
    # Mostly a munge that is being restarted on one of the two machines.
    "protocol authentication error",
    "invalid authentication credential",
    "munge encode failed",
    "failed to connect to authentication agent",
)

#: sbatch would ask again for two minutes, during which nobody watches the other jobs.
_RETRYING = "retrying"
#: Refusals of sbatch that may not hit a smaller array.
_TOO_MANY = (
    "job violates accounting/qos policy",
    "invalid job array specification",
    "slurm temporarily unable to accept job",
    "slurm job queue full",
)
#: Complaints about the request itself: it will be refused again. Every other complaint can pass.
_FOR_GOOD = re.compile(
    r"invalid (?!job array|authentication|job credential)[^:]*\bspecif"
    r"|(?:unrecognized|unknown|invalid) option|option .* requires an argument"
    r"|no partition specified|group not permitted to use this partition|nodes not in this partition"
    r"|(?:access|permission) denied|invalid user id|access denied to requested reservation"
    r"|requested node configuration is not available|node count specification invalid"
    r"|more processors requested than permitted|count per node can ?not be satisfied"
    r"|memory (?:specification can ?not be satisfied|required by task is not available)"
    r"|requested time limit is invalid|job size specification needs|requested reservation is invalid"
    r"|(?:distribution|task count) specification invalid|parameter too long"
    r"|batch script (?:is empty|contains)|does not look like a batch script|job script not specified",
    re.IGNORECASE,
)
#: Limits that the job itself breaks, so that it will never be accepted; sbatch names them beside a word for all limits.
_LIMIT_OF_A_JOB = re.compile(r"\b(?:QOS|Assoc)\w*(?:PerJob|PerNode|Min[A-Z])")
#: The number of a job, with the cluster of a federation; or sbatch's sentence, if `--parsable` is lost.
_NUMBER = re.compile(r"^\s*(?:Submitted batch job )?(\d+)(?:;\S*| on cluster \S+)?\s*$", re.MULTILINE)
#: A job, or a task or tasks of an array: `12`, `12_3`, `12_[3-5,7%2]`.
_JOB = re.compile(r"(\d+)(?:_(\d+|\[[\d,:%-]+\]))?(?:[;+]\S*)?")

#: Printed by each start of a job, because a requeued job goes on writing to the same file.
BEGINS = "--- Slurm starts this job ---"

#: States before the processes of a job run (again), and states of a job with running processes.
WAITING = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
    "CONFIGURING",
    "POWER_UP_NODE",
    "POWERING_UP_NODE",
)
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
#: The state of a job that only sacct could tell, when sacct does not answer.
_NOT_TOLD = "NOT_TOLD"

_PENDING = {
    "Resources": "it waits for nodes to become free",
    "Priority": "jobs of a higher priority go first",
    "None": "Slurm has not looked at it yet",
    "BeginTime": "it was put back into the queue, and Slurm lets it wait a moment",
    "Dependency": "it waits for another job",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator of the cluster holds it; ask them",
    "JobArrayTaskLimit": "as many tasks of its array run as may run at once",
    "Licenses": "it waits for a licence",
    "Reservation": "it waits for its reservation",
    "ReqNodeNotAvail": "the nodes it needs are down, drained or reserved; `sinfo` tells which",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": "the nodes it needs "
    "are down, drained or reserved; `sinfo` tells which",
    "BadConstraints": "no node can ever fulfil it; change `constraint`, `gres`, `memory` or `cpus`",
    "PartitionConfig": "it asks for more than the nodes of its partition have; lower `memory`, `cpus` or `gres`, or "
    "choose another `partition`",
    "PartitionDown": "its partition is down; ask the cluster's administrators or choose another `partition`",
    "PartitionInactive": "its partition takes no jobs now; ask the cluster's administrators or choose another one",
    "PartitionNodeLimit": "its partition has too few nodes for it; choose another `partition`",
    "PartitionTimeLimit": "it asks for more time than its partition allows; lower `time` or choose another `partition`",
    "InvalidAccount": "the account is not valid; correct `account`",
    "InvalidQOS": "the quality of service is not valid; correct `qos`",
    "NodeDown": "a node that it needs is down",
}

_ENDED = {
    "COMPLETED": "ended before its run did",
    "FAILED": "failed",
    "BOOT_FAIL": "failed because its node did not boot; the cluster's administrators can tell why",
    "NODE_FAIL": "died with its node; what was written is kept, and the run can go on elsewhere",
    "PREEMPTED": "was stopped for a job of a higher priority, and Slurm does not put it back into the queue; what was "
    "written is kept, and the run can go on",
    "TIMEOUT": "reached its time limit; raise `time` (or the tag dlc_platform/slurm/time) and run it again: inference "
    "goes on from its last chunk",
    "DEADLINE": "reached its deadline; run it again without one",
    "OUT_OF_MEMORY": "ran out of memory; raise `memory` (or the tag dlc_platform/slurm/memory) and run it again",
    "CANCELLED": "was cancelled in Slurm",
    "REVOKED": "was taken over by another cluster",
    "UNKNOWN": "is not known to Slurm any more, and its worker is gone",
}

#: Ends that would come again if the same job were tried again.
FINAL = ("TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "CANCELLED")


class ControllerAway(Exception):
    """Slurm does not answer, or not in known words: the state of a job cannot be told now."""


class NoNumber(ControllerAway):
    """sbatch ended well and printed no job's number: the job may have been submitted, which `find` tells later."""


class NotNow(Exception):
    """Slurm does not accept a job now, for a reason that can pass.

    Attributes
    ----------
    fewer
        True if a smaller array might be accepted.
    """

    def __init__(self, said: str):
        super().__init__(said)
        self.fewer = any(words in said.lower() for words in _TOO_MANY)


@dataclass(frozen=True)
class Options:
    """The options of a Slurm job, in sbatch's own notation; None means the cluster's default.

    Parameters
    ----------
    gres
        The kind of device for runs that need a GPU: `gpu` or `gpu:a100`. The run's needs give the number, unless it
        ends with one. An empty text asks for no device.
    setup
        Lines of shell before the worker starts, such as `module load cuda`.
    python
        The interpreter on the nodes; by default the path of the one that loaded the code.
    extra
        Further arguments of sbatch, separated by blanks.
    """

    partition: str | None = None
    account: str | None = None
    gres: str | None = "gpu"
    time: str | None = None
    memory: str | None = None
    cpus: str | None = None
    constraint: str | None = None
    qos: str | None = None
    setup: str | None = None
    python: str | None = None
    extra: str | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every option's name."""
        return tuple(field.name for field in fields(cls))

    def arguments(self, gpus: int) -> list[str]:
        """The arguments of sbatch for a job that needs so many GPUs."""
        named = {
            "partition": self.partition,
            "account": self.account,
            "time": self.time,
            "mem": self.memory,
            "cpus-per-task": self.cpus,
            "constraint": self.constraint,
            "qos": self.qos,
            "gres": self._devices(gpus),
        }
        return [f"--{name}={value}" for name, value in named.items() if value] + (self.extra or "").split()

    def _devices(self, gpus: int) -> str | None:
        if not gpus or not self.gres:
            return None
        return self.gres if self.gres.rpartition(":")[2].isdecimal() else f"{self.gres}:{gpus}"


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array, as Slurm sees it now.

    Attributes
    ----------
    id
        The id as Slurm writes it: `12`, or `12_3` for a task of an array.
    reason
        The reason why it waits, in Slurm's word; or why its state is not known.
    code, signal
        The exit code and the signal with which its script ended; 0 otherwise.
    name
        The name under which it was submitted; empty if not known.
    """

    id: str
    state: str
    reason: str = "None"
    node: str = ""
    code: int = 0
    signal: int = 0
    name: str = ""

    @property
    def is_waiting(self) -> bool:
        """True if none of its processes run yet, but will."""
        return self.state in WAITING

    @property
    def is_active(self) -> bool:
        """True if Slurm is not done with it, as far as is known."""
        return self.state not in _ENDED

    @property
    def is_unclear(self) -> bool:
        """True if its state is unknown here, or was not reported."""
        return self.is_active and not self.is_waiting and self.state not in _RUNNING

    def killed_for_memory(self) -> Self:
        """The same job, marked as out of memory by its output; Slurm's state does not always tell."""
        return replace(self, state="OUT_OF_MEMORY")

    def sentence(self) -> str:
        """The state of the job and the remedy, for a person; without a full stop."""
        if self.is_waiting:
            reason = self.reason.strip("()")
            told = _PENDING.get(reason.split(",")[0], _of_a_limit(reason))
            return f"Slurm job {self.id} is waiting: {told} ({reason})"
        where = f" on {self.node}" if self.node else ""
        if self.state == _NOT_TOLD:
            return f"Slurm does not tell the state of job {self.id}, and is asked again: {self.reason}"
        if self.is_unclear:
            return f"Slurm job {self.id}{where} is in the state {self.state}, which is not known here"
        if self.is_active:
            return f"Slurm job {self.id} is {self.state.lower()}{where}"
        how = ""
        if self.state == "FAILED":
            how = f", killed by signal {self.signal}" if self.signal else f" with exit code {self.code}"
        return f"Slurm job {self.id}{where} {_ENDED[self.state]}{how}"


def _of_a_limit(reason: str) -> str:
    if reason.startswith(("QOS", "Assoc", "Max")):
        return "a limit of your account or quality of service is reached; it starts when other jobs have ended"
    return "`scontrol show job` tells more"


def submit(script: str, arguments: Sequence[str], name: str, output: Path, tasks: int) -> str:
    """Submit a job, or an array of jobs.

    Parameters
    ----------
    script
        The job's shell script; other people may be able to read it.
    name
        The name by which `find` finds the job if this process ends before it knows the number.
    output
        The file for the job's output; `%a` stands for the task of an array.
    tasks
        More than one makes an array, with tasks numbered from 0.

    Returns
    -------
    str
        The number of the job, or of its array.

    Raises
    ------
    ControllerAway
        When nobody answered; the job may have been submitted nevertheless.
    NoNumber
        When sbatch printed no number; the job may have been submitted nevertheless.
    NotNow
        When Slurm refuses the job for a reason that can pass, or that is not known here.
    PlatformError
        When Slurm refuses the job for good.
    """
    # A `%` in the folder's own name is not a placeholder.
    printed = f"{str(output.parent).replace('%', '%%')}/{output.name}"
    command = ["sbatch", "--parsable", "--requeue", "--open-mode=append", f"--job-name={name}", f"--output={printed}"]
    command += [f"--chdir={output.parent}", *([f"--array=0-{tasks - 1}"] if tasks > 1 else []), *arguments]
    told = _ask(command, script)
    # Wrappers and plugins print before it.
    if numbers := _NUMBER.findall(told):
        return numbers[-1]
    said = " | ".join(told.split("\n"))[:500].strip(" |") or "nothing"
    raise NoNumber(
        f"sbatch printed no job's number, so the job {name} may have been handed in or not; it printed: {said}"
    )


def find(name: str) -> str | None:
    """The number of the job or array that was submitted under a name; None if Slurm knows none.

    Raises
    ------
    ControllerAway
        When nobody answered.
    """
    told = _ask(["squeue", "--noheader", "--me", "--states=all", f"--name={name}", "--format=%F"]).splitlines()
    told = told if any(_NUMBER.match(line) for line in told) else _account([f"--name={name}", "--format=JobID"])
    found = [number[1] for line in told if (number := _JOB.fullmatch(line.strip()))]
    return found[0] if found else None


def jobs(ids: Collection[str]) -> dict[str, Job]:
    """Slurm's knowledge of jobs; jobs that it has forgotten are missing.

    It asks the controller once, for any number of jobs, and the accounting, if there is one, once for jobs that the
    controller has forgotten (`MinJobAge` after their end).

    Raises
    ------
    ControllerAway
        When nobody answered.
    """
    columns = "JobArrayID:|,State:|,exit_code:|,NodeList:|,Name:|,Reason:"
    found: dict[str, Job] = {}
    for line in _ask(["squeue", "--noheader", "--me", "--array", "--states=all", f"--Format={columns}"]).splitlines():
        numbers, (state, status, node, name, reason) = _columns(line, 6)
        # The controller shows the status as wait() does.
        how = int(status) if status.isdecimal() else 0
        found |= {job: Job(job, state, reason, node, how >> 8, how & 127, name) for job in numbers}
    if forgotten := set(ids) - set(found):
        wanted = [f"--jobs={','.join(sorted(forgotten))}", "--format=JobID,State,ExitCode,NodeList,JobName"]
        try:
            told = _account(wanted)
        except ControllerAway as away:
            return {job: found.get(job, Job(job, _NOT_TOLD, str(away))) for job in ids}
        for line in told:
            numbers, (state, status, node, name) = _columns(line, 5)
            how = re.fullmatch(r"(\d+):(\d+)", status)
            code, signal = (int(how[1]), int(how[2])) if how else (0, 0)
            found |= {job: Job(job, state, node=node, code=code, signal=signal, name=name) for job in numbers}
    return {job: found[job] for job in ids if job in found}


def _columns(line: str, number: int) -> tuple[list[str], list[str]]:
    """The jobs of a line (none for any other text), and its other columns, the state first."""
    first, *others = (column.strip() for column in line.split("|", number - 1))
    others += [""] * (number - 1 - len(others))
    job = _JOB.fullmatch(first)
    # "CANCELLED by 1000", "RUNNING+"
    state = re.match(r"[A-Z_]+", others[0])
    if job is None or state is None:
        return [], others
    return _each(job[1], job[2]), [state[0], *others[1:]]


def _each(number: str, tasks: str | None) -> list[str]:
    """The jobs that a word such as `12_[0-6:2,9%4]` stands for."""
    if tasks is None:
        return [number]
    found = []
    for part in tasks.strip("[]").partition("%")[0].split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if bounds is not None:
            last, step = int(bounds[2] or bounds[1]), int(bounds[3] or 1)
            found += [f"{number}_{task}" for task in range(int(bounds[1]), last + 1, max(1, step))]
    return found


def interrupt(job: str) -> None:
    """Ask the processes of a running job to stop (SIGINT, which Slurm itself does not send).

    Raises
    ------
    ControllerAway
        When nobody answered.
    """
    _ask(["scancel", "--signal=INT", "--full", job], gone="")


def cancel(job: str) -> None:
    """End a job: at once if it waits, else with Slurm's own grace time (`KillWait`).

    Raises
    ------
    ControllerAway
        When nobody answered.
    """
    _ask(["scancel", job], gone="")


def array_limit() -> int:
    """The most tasks that an array of this cluster may have.

    Raises
    ------
    ControllerAway
        When nobody answered.
    """
    told = _ask(["scontrol", "show", "config"])
    # The highest index is one less than the size, and 0 forbids arrays.
    limits = re.findall(r"^MaxArraySize\s*=\s*(\d+)|\bmax_array_tasks=(\d+)", told, re.MULTILINE)
    return max(1, min((int(size or tasks) for size, tasks in limits), default=1))


def script(options: Options, command: Sequence[str]) -> str:
    """The script of a job that replaces its shell by a command."""
    # `exec`, so that signals for the script reach the worker.
    return "\n".join(("#!/bin/bash", f"echo '{BEGINS}'", options.setup or "", f"exec {shlex.join(command)}", ""))


def _account(arguments: Sequence[str]) -> list[str]:
    """The lines of sacct; none if the cluster has no accounting.

    Raises
    ------
    ControllerAway
        When it has accounting that does not answer.
    """
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--starttime=now-30days", *arguments]
    try:
        return _ask(command).splitlines()
    except NoCommand:
        return []
    except ControllerAway as away:
        if "accounting storage is disabled" in str(away).lower():
            return []
        raise


def _environment() -> Mapping[str, str]:
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ} | _MESSAGES


def _ask(command: Sequence[str], text: str | None = None, gone: str | None = None) -> str:
    """The output of a Slurm command; `gone`, if given, when it fails although the controller answered."""
    code, printed, said = _execute(command, text)
    said = " ".join(said.split())
    away = any(words in said.lower() for words in _AWAY)
    # Wrappers lose the exit code.
    if code == 0 and not (away and not printed.strip()):
        return printed
    if away:
        raise ControllerAway(said)
    if gone is not None:
        return gone
    said = said.removeprefix(f"{command[0]}: error: ") or f"exit code {code}, and no word"
    if _LIMIT_OF_A_JOB.search(said) or (_FOR_GOOD.search(said) and not any(own in said.lower() for own in _TOO_MANY)):
        raise PlatformError(
            f"{command[0]} refuses: {said}",
            "Correct the launcher's config in dagster.yaml, or the run's tags dlc_platform/slurm/...",
        )
    raise NotNow(said) if command[0] == "sbatch" else ControllerAway(f"{command[0]}: {said}")


class NoCommand(PlatformError):
    """This machine has no such command of Slurm."""


def _execute(command: Sequence[str], text: str | None) -> tuple[int, str, str]:
    """Run a command; give its exit code, its output and its complaints."""
    until = time.monotonic() + _COMMAND_SECONDS
    given = subprocess.DEVNULL if text is None else subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
        )
    except FileNotFoundError as error:
        raise NoCommand(
            f"this machine has no {command[0]}", "Install Slurm's commands, or start the services on a login node"
        ) from error
    told = None if text is None else os.fsencode(text)
    with process:
        while True:
            try:
                printed, said = process.communicate(told, timeout=0.5)
                return process.returncode, printed.decode(errors="replace"), said.decode(errors="replace")
            except subprocess.TimeoutExpired as waiting:
                told = None  # The input is given only once.
                if command[0] == "sbatch" and _RETRYING in bytes(waiting.stderr or b"").decode(errors="replace"):
                    # If the job was accepted nevertheless, its worker finds that its batch was undone.
                    process.kill()
                elif time.monotonic() > until:
                    process.kill()
                    raise ControllerAway(f"{command[0]} did not end within {_COMMAND_SECONDS} s") from waiting
