"""Runs through a real Slurm, with a real daemon and real workers on virtual nodes (see `slurm_lab`).

Devices are a test double: plain files that Slurm hands out. The storage is SQLite, for speed.
"""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from dlc_platform.launchers.slurm import array_limit
from dlc_platform.launchers.slurm_follower import JOB_TAG
from dlc_platform.launchers.slurm_spool import Spool
from dlc_platform_tests.launchers.slurm_lab import SlurmLab, wait
from dlc_platform_tests.launchers.slurm_service import SlurmService, slurm_service

SECRET = "hush-1234"


@pytest.fixture(scope="module")
def service(slurm: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmService]:
    home = tmp_path_factory.mktemp("service")
    launcher = {"partition": "work", "memory": "600", "setup": "export SLURM_TEST_SETUP=done"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in slurm.environment.items():
            environment.setenv(name, value)
        environment.setenv("DAGSTER_HOME", str(home))
        environment.setenv("DLC_PLATFORM_TEST_SECRET", SECRET)
        with slurm_service(home, launcher) as lab:
            yield lab


def _job(service: SlurmService, run: str) -> str:
    return wait(f"a job of {run}", lambda: service.run(run).tags.get(JOB_TAG))


def _is_over(slurm: SlurmLab, job: str) -> bool:
    return slurm.ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() == ""


def _launch_together(service: SlurmService, number: int, asset: str = "on_cpu") -> list[str]:
    """Launch runs that are handed to Slurm at the same look."""
    spool = Spool(service.home / "slurm")
    spool.folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        # The follower looks at nothing until all are there, however long that takes.
        wait("the follower's lock", lambda: stack.enter_context(spool.alone()))
        runs = [service.launch(asset) for _ in range(number)]
        wait("their entries", lambda: all(spool.get(run) for run in runs))
    return runs


def _submit_urgent(slurm: SlurmLab, node: str) -> str:
    """A job that wants a whole node and goes before those of the partition `work`."""
    command = ["sbatch", "--parsable", "--partition=urgent", "--exclusive", f"--nodelist={node}", "--output=/dev/null"]
    done = subprocess.run([*command, "--wrap=sleep 5"], capture_output=True, text=True, check=True, cwd=slurm.folder)
    return done.stdout.strip()


def _finish(service: SlurmService, *runs: str) -> None:
    for run in runs:
        service.let_go(run)
    assert [service.ends(run) for run in runs] == ["SUCCESS"] * len(runs)
    for run in runs:
        assert len(service.records(run, "end")) == 1
        wait("no entry is left", lambda run=run: not (service.home / "slurm" / "runs" / f"{run}.json").exists())


def _show(slurm: SlurmLab) -> str:
    lines = slurm.ask("scontrol", "show", "job", "-o", "-dd")
    scripts = [slurm.ask("scontrol", "write", "batch_script", job, "-") for job in re.findall(r"JobId=(\d+)", lines)]
    return "\n".join([lines, *scripts])


def test_runs_become_jobs_with_devices_and_secrets_stay_hidden(slurm: SlurmLab, service: SlurmService):
    gpu, cpu = service.launch("on_gpu"), service.launch("on_cpu", {"dlc_platform/slurm/memory": "500"})
    on_gpu, on_cpu = service.begins(gpu), service.begins(cpu)
    assert on_gpu["SLURM_GPUS_ON_NODE"] == "1"
    assert "SLURM_GPUS_ON_NODE" not in on_cpu
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert (on_gpu["SLURM_MEM_PER_NODE"], on_cpu["SLURM_MEM_PER_NODE"]) == ("600", "500")
    assert on_gpu["SLURM_TEST_SETUP"] == "done"
    assert f"works in Slurm job {service.run(gpu).tags[JOB_TAG]} on {on_gpu['SLURMD_NODENAME']}" in service.messages(
        gpu
    )

    # The worker has the secret from its entry; Slurm was not told.
    assert on_cpu["secret"] == SECRET
    assert "DLC_PLATFORM_TEST_SECRET" not in psutil.Process(on_cpu["pid"]).environ()
    entry = service.home / "slurm" / "runs" / f"{cpu}.json"
    assert SECRET in entry.read_text()
    assert entry.stat().st_mode & 0o077 == 0
    assert SECRET not in _show(slurm)
    for process in psutil.process_iter(["cmdline"]):
        assert SECRET not in " ".join(process.info["cmdline"] or ())
    for file in (slurm.folder / "state").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
    assert SECRET not in str(service.run(cpu).tags) + service.messages(cpu)
    _finish(service, gpu, cpu)


def test_a_backlog_is_an_array_and_what_waits_says_why(slurm: SlurmLab, service: SlurmService):
    runs = _launch_together(service, 5, "on_gpu")
    jobs = [_job(service, run) for run in runs]
    assert len({job.split("_")[0] for job in jobs}) == 1
    wait("three that work", lambda: sum(bool(service.records(run, "begin")) for run in runs) == 3)
    waiting = [run for run in runs if not service.records(run, "begin")]
    for run in waiting:
        wait("a reason", lambda run=run: "is waiting: " in service.messages(run))
    assert "(Resources)" in "".join(service.messages(run) for run in waiting)
    # What waits in the queue is taken out of it.
    service.terminate(waiting[0])
    assert service.ends(waiting[0]) == "CANCELED"
    job = service.run(waiting[0]).tags[JOB_TAG]
    wait("the end of its job", lambda: job not in slurm.ask("squeue", "-h", "--array", "--format=%i").split())
    assert not service.records(waiting[0], "begin")
    _finish(service, *(run for run in runs if run != waiting[0]))


def test_a_killed_worker_is_followed_by_a_new_job_of_its_run(slurm: SlurmLab, service: SlurmService):
    run = service.launch("on_cpu")
    first = service.begins(run)
    job = service.run(run).tags[JOB_TAG]
    os.kill(first["pid"], 9)
    service.begins(run, times=2)
    assert service.run(run).tags[JOB_TAG] != job
    assert "killed by signal 9" in service.messages(run)
    _finish(service, run)


def test_a_requeued_job_goes_on_and_says_so(slurm: SlurmLab, service: SlurmService):
    run = service.launch("on_cpu")
    service.begins(run)
    job = service.run(run).tags[JOB_TAG]
    slurm.ask("scontrol", "requeue", job)
    service.says(run, "was put back into the queue")
    service.begins(run, times=2)
    assert service.run(run).tags[JOB_TAG] == job
    assert "started for the 2. time" in service.messages(run)
    _finish(service, run)


def test_a_job_gives_way_to_urgent_ones_and_comes_back(slurm: SlurmLab, service: SlurmService):
    run = service.launch("on_gpu", {"dlc_platform/slurm/cpus": "2"})
    node = service.begins(run)["SLURMD_NODENAME"]
    urgent = _submit_urgent(slurm, node)
    service.begins(run, times=2)
    assert _is_over(slurm, urgent) or "RUNNING" in slurm.ask("squeue", "-h", f"--jobs={urgent}", "--format=%T")
    _finish(service, run)


def test_a_job_that_an_urgent_one_ended_is_followed_by_another(slurm: SlurmLab, service: SlurmService):
    with slurm.configured("PreemptMode=CANCEL"):
        run = service.launch("on_gpu", {"dlc_platform/slurm/cpus": "2"})
        node = service.begins(run)["SLURMD_NODENAME"]
        job = service.run(run).tags[JOB_TAG]
        _submit_urgent(slurm, node)
        service.begins(run, times=2)
    assert service.run(run).tags[JOB_TAG] != job
    assert "was stopped for a job of a higher priority, and Slurm does not put it back" in service.messages(run)
    _finish(service, run)


def test_a_dead_node_loses_no_run_and_doubles_no_worker(slurm: SlurmLab, service: SlurmService):
    """Both at once, because Slurm lets time pass before it takes a node for dead and starts its jobs elsewhere."""
    dies, cut_off = (service.launch("on_cpu", {"dlc_platform/slurm/cpus": "2"}) for _ in range(2))
    dead, alive = service.begins(dies), service.begins(cut_off)
    nodes = {dead["SLURMD_NODENAME"], alive["SLURMD_NODENAME"]}
    assert len(nodes) == 2  # Each takes a whole node.
    slurm.kill_node(dead["SLURMD_NODENAME"])
    slurm.kill_slurmd(alive["SLURMD_NODENAME"])
    try:
        assert service.begins(dies, times=2)["SLURMD_NODENAME"] not in nodes
        service.says(cut_off, "an earlier job of this run is still at work")
        assert len(service.records(cut_off, "begin")) == 1
        _finish(service, dies, cut_off)
        assert len(service.records(cut_off, "begin")) == 1
        assert service.records(cut_off, "end")[0]["pid"] == alive["pid"]
    finally:
        for node in sorted(nodes):
            slurm.start_node(node)


def test_a_terminated_run_is_interrupted_and_ends_canceled(slurm: SlurmLab, service: SlurmService):
    run = service.launch("on_cpu")
    report = service.begins(run)
    service.terminate(run)
    assert service.ends(run) == "CANCELED"
    wait("the end of the worker", lambda: not psutil.pid_exists(report["pid"]))


def test_a_job_cancelled_in_slurm_cancels_its_run(slurm: SlurmLab, service: SlurmService):
    run = service.launch("on_cpu")
    service.begins(run)
    slurm.ask("scancel", service.run(run).tags[JOB_TAG])
    assert service.ends(run) == "CANCELED"
    assert "was cancelled in Slurm" in service.messages(run)


def test_a_job_beyond_time_or_memory_says_so_and_is_not_retried(slurm: SlurmLab, service: SlurmService):
    long, large = service.launch("on_cpu", {"dlc_platform/slurm/time": "10"}), service.launch("on_cpu", megabytes=2000)
    service.begins(long)
    # Slurm's shortest limit is a minute; its end can be brought forward.
    slurm.ask("scontrol", "update", f"JobId={service.run(long).tags[JOB_TAG]}", "EndTime=now+1seconds")
    for run, said in {large: "ran out of memory; raise `memory`", long: "reached its time limit; raise `time`"}.items():
        assert service.ends(run) == "FAILURE"
        assert said in service.messages(run)
        assert len(service.records(run, "begin")) == 1


def test_what_slurm_refuses_fails_with_its_words(slurm: SlurmLab, service: SlurmService):
    run = service.launch("on_cpu", {"dlc_platform/slurm/partition": "nowhere"})
    assert service.ends(run) == "FAILURE"
    assert "invalid partition" in service.messages(run).lower()
    run = service.launch("on_cpu", {"dlc_platform/slurm/setup": "rm -r ~"})
    assert service.ends(run) == "FAILURE"
    assert "dlc_platform/slurm/setup, which is not allowed by tag" in service.messages(run)
    run = service.launch("on_cpu", {"dlc_platform/slurm/colour": "red"})
    assert service.ends(run) == "FAILURE"
    assert "dlc_platform/slurm/colour, which says nothing to Slurm" in service.messages(run)


def test_runs_wait_while_their_partition_takes_no_jobs(slurm: SlurmLab, service: SlurmService):
    slurm.ask("scontrol", "update", "PartitionName=work", "State=INACTIVE")
    try:
        run = service.launch("on_cpu")
        service.says(run, "Slurm does not take this run now, so it waits")
        assert not service.run(run).is_finished
    finally:
        slurm.ask("scontrol", "update", "PartitionName=work", "State=UP")
    service.begins(run)
    _finish(service, run)


def test_arrays_keep_slurms_limit_even_when_it_changes(slurm: SlurmLab, service: SlurmService):
    def hand_in(number: int) -> Counter[str]:
        """How many runs each job or array has; none of them begins."""
        slurm.ask("scontrol", "update", "PartitionName=work", "State=DOWN")
        runs = _launch_together(service, number)
        arrays = Counter(_job(service, run).split("_")[0] for run in runs)
        for run in runs:
            service.terminate(run)
            assert service.ends(run) == "CANCELED"
        return arrays

    try:
        assert list(hand_in(3).values()) == [3]  # The daemon knows the limit by now.
        for limit in ("MaxArraySize=2", "SchedulerParameters=max_array_tasks=2,batch_sched_delay=0,bf_interval=1"):
            with slurm.configured(limit):
                assert array_limit() == 2
                assert sorted(hand_in(3).values()) in ([1, 2], [1, 1, 1])
    finally:
        slurm.ask("scontrol", "update", "PartitionName=work", "State=UP")


def test_runs_wait_while_slurms_table_of_jobs_is_full(slurm: SlurmLab, service: SlurmService):
    known = len(slurm.ask("squeue", "--noheader", "--array", "--states=all").splitlines())
    # With one that Slurm keeps free, two more: three where a record of an array was counted that a restart drops.
    with slurm.configured(f"MaxJobCount={known + 3}"):
        runs = _launch_together(service, 4)
        service.says(runs[-1], "Slurm does not take this run now, so it waits: Slurm temporarily unable to accept job")
        taken = [bool(service.run(run).tags.get(JOB_TAG)) for run in runs]
        assert taken == sorted(taken, reverse=True) and 2 <= sum(taken) <= 3, taken
        assert not any(service.run(run).is_finished for run in runs)
    _finish(service, *runs)


def test_without_a_controller_runs_go_on_and_new_ones_wait(slurm: SlurmLab, service: SlurmService):
    at_work = service.launch("on_cpu")
    service.begins(at_work)
    slurm.stop_controller()
    try:
        new = service.launch("on_cpu")
        service.says(new, "Slurm does not answer, so this run waits")
        assert not service.run(at_work).is_finished
        service.let_go(at_work)
        assert service.ends(at_work) == "SUCCESS"
    finally:
        slurm.start_controller()
    service.begins(new)
    _finish(service, new)


def test_a_job_with_the_number_of_a_lost_one_is_left_alone(slurm: SlurmLab, service: SlurmService):
    """A controller that forgot its newest jobs gives their numbers again."""
    spool = Spool(service.home / "slurm")
    at_work = service.launch("on_cpu", {"dlc_platform/slurm/partition": "urgent"})
    service.begins(at_work)
    slurm.ask("scontrol", "update", "PartitionName=work", "State=DOWN")
    try:
        lost = service.launch("on_cpu")
        job = _job(service, lost)
        entry = spool.get(lost)
        assert entry and entry.batch
        with ExitStack() as stack:
            wait("the follower's lock", lambda: stack.enter_context(spool.alone()))
            slurm.ask("scancel", job)
            spool.set_job(entry.batch, service.run(at_work).tags[JOB_TAG])
            assert service.instance.run_launcher.terminate(lost)
    finally:
        slurm.ask("scontrol", "update", "PartitionName=work", "State=UP")
    assert service.ends(lost) == "CANCELED"
    _finish(service, at_work)
    assert len(service.records(at_work, "begin")) == 1


def test_a_new_daemon_goes_on_where_the_one_before_was_killed(slurm: SlurmLab, service: SlurmService):
    spool = Spool(service.home / "slurm")
    goes_on, dies = service.launch("on_gpu"), service.launch("on_gpu")
    service.begins(goes_on)
    worker = service.begins(dies)
    queued = [service.launch("on_gpu") for _ in range(2)]
    wait("one that works", lambda: any(service.records(run, "begin") for run in queued))
    (gone,) = [run for run in queued if not service.records(run, "begin")]
    job = _job(service, gone)
    service.kill_daemon()
    slurm.ask("scancel", job)
    os.kill(worker["pid"], 9)
    # As if it had been killed between handing in a job and writing down its number.
    entry = spool.get(goes_on)
    assert entry and entry.batch
    number = spool.batch_folder(entry.batch) / "job"
    written = number.read_text()
    number.unlink()
    service.start_daemon()
    # Nothing but the follower of the new daemon notices that a run which never began has no job any more.
    assert service.ends(gone) == "CANCELED", service.messages(gone)
    service.begins(dies, times=2)
    wait("the number", number.exists)
    assert number.read_text() == written
    _finish(service, goes_on, dies, *(run for run in queued if run != gone))
