"""A Slurm of its own: Debian's munged, slurmctld and one slurmd for each of several virtual nodes on this machine.

Everything lies in one folder, with ports of its own, beside any other Slurm. The nodes are real to Slurm: jobs are
queued, placed, killed and requeued as on a cluster. Their GPUs are a test double: plain files, which Slurm counts and
hands out as generic resources.
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

#: Generous: a busy machine starts daemons slowly.
DEADLINE_SECONDS = 300
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")

_CONFIGURATION = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MessageTimeout=4
SlurmdTimeout=6
SlurmctldTimeout=3
KillWait=5
MinJobAge=7200
ReturnToService=2
OverTimeLimit=0
GresTypes=gpu
{nodes}
PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


class SlurmLab:
    """The running Slurm."""

    def __init__(self, folder: Path, nodes: int, cpus: int, without_gpu: int):
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._write(cpus, self.nodes[: nodes - without_gpu])

    def _write(self, cpus: int, with_gpu: Sequence[str]) -> None:
        ports = _free_ports(len(self.nodes) + 1)
        lines, gres = [], ["AutoDetect=off"]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            line = f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
            line += "RealMemory=4000 State=UNKNOWN"
            if node in with_gpu:
                device = self.folder / f"gpu-{node}"
                device.touch()
                line += " Gres=gpu:1"
                gres.append(f"NodeName={node} Name=gpu File={device}")
            lines.append(line)
        for name in ("state", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "gres.conf").write_text("\n".join(gres) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        configuration = _CONFIGURATION.format(
            host=socket.gethostname(),
            user=pwd.getpwuid(os.getuid()).pw_name,
            controller_port=ports[0],
            folder=self.folder,
            nodes="\n".join(lines),
        )
        (self.folder / "slurm.conf").write_text(configuration)

    def start(self) -> None:
        """Return when every node is idle."""
        munge = self.folder / "munge"
        key = munge / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._start(
            "munged",
            "--foreground",
            "--force",
            f"--socket={munge / 'socket'}",
            f"--key-file={key}",
            f"--pid-file={munge / 'pid'}",
            f"--log-file={munge / 'log'}",
            f"--seed-file={munge / 'seed'}",
        )
        wait("munged", (munge / "socket").exists)
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        wait("idle nodes", lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split().count("idle") >= len(self.nodes))

    def start_controller(self) -> None:
        """Start slurmctld, on the state that the one before left."""
        self._start("slurmctld", "-D")
        wait("slurmctld", lambda: self.ask("scontrol", "ping").count("UP"))

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs go on."""
        # Not killed: it would forget its newest jobs and give their numbers again, and Slurm drains nodes for that.
        process = self._processes.pop("slurmctld")
        process.terminate()
        process.wait(DEADLINE_SECONDS)

    @contextmanager
    def configured(self, settings: str) -> Iterator[None]:
        """A controller with further lines in its slurm.conf, until the end of the block."""
        file = self.folder / "slurm.conf"
        configuration = file.read_text()
        try:
            file.write_text(f"{configuration}{settings}\n")
            self._restart_controller()
            yield
        finally:
            file.write_text(configuration)
            self._restart_controller()

    def _restart_controller(self) -> None:
        self.stop_controller()
        self.start_controller()

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._start(f"slurmd {node}", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill the slurmd of a node with everything that it started, as a power cut does."""
        self._kill_jobs(node)
        self._kill(f"slurmd {node}")

    def kill_slurmd(self, node: str) -> None:
        """Kill the slurmd of a node alone, as when its network is cut: its jobs go on, and Slurm does not know."""
        self._kill(f"slurmd {node}")

    def _kill_jobs(self, node: str) -> None:
        for process in self._processes_of(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _processes_of(self, node: str) -> list[psutil.Process]:
        """Its step daemons and their jobs: no children of the slurmd, so they are found by their node's name."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURMD_NODENAME") == node and self._is_ours(process):
                    found.append(process)
                    # A step daemon has another environment than its job.
                    found += [parent for parent in process.parents() if parent.name() == "slurmstepd"]
            except psutil.Error:
                continue
        return list(set(found))

    def _is_ours(self, process: psutil.Process) -> bool:
        return process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]

    def job_processes(self, job: str) -> list[psutil.Process]:
        """The processes of a job that runs, without Slurm's own."""
        array, _, task = job.partition("_")
        found = []
        for process in psutil.process_iter():
            try:
                told = process.environ()
                ours = told.get("SLURM_ARRAY_JOB_ID", told.get("SLURM_JOB_ID")) == array and self._is_ours(process)
                if ours and told.get("SLURM_ARRAY_TASK_ID", "") == task:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def ask(self, *command: str) -> str:
        """What a Slurm command prints; nothing where it fails."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def _start(self, name: str, *arguments: str) -> None:
        program = shutil.which(name.split()[0])
        assert program
        with (self.folder / f"{name.replace(' ', '-')}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [program, *arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Cancel every job and end the daemons."""
        self.ask("scancel", "--signal=KILL", "--user", pwd.getpwuid(os.getuid()).pw_name)
        for node in self.nodes:
            self._kill_jobs(node)
        for name in reversed(list(self._processes)):
            self._kill(name)


def wait(what: str, condition: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
    """Return what a condition gives once it holds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.2)
    return value


def missing() -> list[str]:
    """The programs of Slurm that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def slurm_lab(folder: Path, nodes: int = 3, cpus: int = 2, without_gpu: int = 0) -> Iterator[SlurmLab]:
    """A Slurm of virtual nodes, all but the last few with one GPU each, stopped at the end."""
    lab = SlurmLab(folder, nodes, cpus, without_gpu)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
