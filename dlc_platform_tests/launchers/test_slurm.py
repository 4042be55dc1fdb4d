"""Slurm's words, the spool, and the deployment's dagster.yaml; no Slurm is needed.

Where a test needs one, a test double of sbatch or squeue says what a cluster would that cannot be had here.
"""

import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, job, op
from dagster._core.storage.tags import MAX_RETRIES_TAG, WILL_RETRY_TAG
from dagster._core.test_utils import instance_for_test

from dlc_platform.cli import app
from dlc_platform.errors import PlatformError
from dlc_platform.launchers import slurm
from dlc_platform.launchers.for_good import fail_for_good, give_own_retries
from dlc_platform.launchers.slurm import ControllerAway, Job, NoNumber, NotNow, Options
from dlc_platform.launchers.slurm_follower import SlurmFollower
from dlc_platform.launchers.slurm_run_launcher import SlurmRunLauncher
from dlc_platform.launchers.slurm_spool import Entry, Spool
from dlc_platform.orchestration.instance import wanted_dagster_yaml
from dlc_platform.settings.lab import Lab
from dlc_platform_tests.launchers.slurm_lab import wait

DEPLOYMENT = Path(app.__file__).parents[2] / "deployments" / "slurm"


def _entry(run_id: str) -> Entry:
    return Entry(run_id, "an instance", {"DLC_PLATFORM_POSTGRES_URL": "hush"}, Options(partition="work"), 1)


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (Job("7", "PENDING", "(Resources)"), "Slurm job 7 is waiting: it waits for nodes to become free (Resources)"),
        (Job("7_1", "PENDING", "QOSMaxJobsPerUserLimit"), "limit of your account or quality of service is reached"),
        (Job("7", "PENDING", "(PartitionConfig)"), "its partition have; lower `memory`, `cpus` or `gres`"),
        (Job("7", "RUNNING", node="n1"), "Slurm job 7 is running on n1"),
        (Job("7", "TIMEOUT", node="n1"), "Slurm job 7 on n1 reached its time limit; raise `time`"),
        (Job("7", "PREEMPTED"), "was stopped for a job of a higher priority"),
        (Job("7", "NODE_FAIL"), "died with its node"),
        (Job("7", "FAILED", code=3), "Slurm job 7 failed with exit code 3"),
        (Job("7", "FAILED", signal=9), "Slurm job 7 failed, killed by signal 9"),
        (Job("7", "FAILED", signal=9).killed_for_memory(), "ran out of memory; raise `memory`"),
        (Job("7", "POWER_UP_NODE"), "Slurm job 7 is waiting"),
        (Job("7", "NEW_WORD", node="n1"), "Slurm job 7 on n1 is in the state NEW_WORD, which is not known here"),
    ],
)
def test_each_state_says_what_to_do(job: Job, sentence: str):
    assert sentence in job.sentence()


def test_only_runs_that_need_devices_ask_for_some():
    options = Options(partition="work", memory="2G", extra="--nice=10 --exclusive")
    assert options.arguments(0) == ["--partition=work", "--mem=2G", "--nice=10", "--exclusive"]
    assert "--gres=gpu:2" in options.arguments(2)
    assert "--gres=gpu:a100:1" in replace(options, gres="gpu:a100").arguments(1)
    assert "--gres=gpu:4" in replace(options, gres="gpu:4").arguments(1)
    assert not [word for word in replace(options, gres="").arguments(1) if "gres" in word]


def test_entries_are_private_and_belong_to_their_last_batch(tmp_path: Path):
    spool = Spool(tmp_path / "spool")
    for run in ("a", "b"):
        spool.put(_entry(run))
    assert spool.folder.stat().st_mode & 0o077 == 0
    assert (spool.folder / "runs" / "a.json").stat().st_mode & 0o777 == 0o600
    first = spool.make_batch(spool.entries())
    assert [spool.job_of(entry) for entry in spool.entries()] == [None, None]
    spool.set_job(first, "12")
    assert {spool.job_of(entry) for entry in spool.entries()} == {"12_0", "12_1"}
    # A run that is resumed leaves the batch, and a job of that does not work on it any more.
    entry = spool.get("a")
    assert entry
    spool.put(_entry("a"))
    assert spool.batch_entries(first)[entry.task] is None
    spool.make_batch([_entry("a")])
    assert spool.batch_entries(first)[entry.task] is None
    spool.remove("a")
    assert spool.get("a") is None


def test_one_process_has_a_run(tmp_path: Path):
    spool = Spool(tmp_path)
    spool.put(_entry("a"))
    with spool.claimed("a") as first, spool.claimed("a") as second:
        assert (first, second) == (True, False)
        assert spool.is_claimed("a")
    assert not spool.is_claimed("a")


def test_a_spool_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PlatformError, match=r"the Slurm spool .*file/spool cannot be written.*shared file system"):
        Spool(tmp_path / "file" / "spool").put(_entry("a"))


def test_the_deployment_is_an_instance_that_dagster_can_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lab = Lab.model_validate(
        {"raw_roots": ["raw"], "projects": {"maze": {"path": "maze"}}, "dagster_yaml": DEPLOYMENT / "dagster.yaml"}
    )
    wanted = wanted_dagster_yaml(tmp_path, lab)
    # The one part that needs a server.
    del wanted["storage"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(wanted))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, SlurmRunLauncher)
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_resume_run_attempts == 3
        assert instance.run_monitoring_start_timeout_seconds > 7 * 24 * 3600
        assert instance.run_retries_max_retries == len(lab.runs.retry_minutes)


def test_the_services_say_what_they_lack(commands: Path, tmp_path: Path):
    def said(**told: str) -> str:
        done = subprocess.run(
            [DEPLOYMENT / "services"],
            env={"PATH": os.environ["PATH"], "LAB": str(tmp_path), **told},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        return done.stderr

    assert "DLC_PLATFORM_POSTGRES_URL: a Postgres that the nodes reach" in said()
    # A lab that is not for Slurm would work on the node of the services.
    (tmp_path / "dagster.yaml").write_text("run_launcher: {class: GpuRunLauncher}")
    _command(commands, "dlc-platform", f"echo export DAGSTER_HOME={shlex.quote(str(tmp_path))}")
    assert "name deployments/slurm/dagster.yaml under dagster_yaml" in said(DLC_PLATFORM_POSTGRES_URL="postgresql://")


@op
def _nothing() -> None:
    pass


@job
def _some_job() -> None:
    _nothing()


def _command(folder: Path, name: str, script: str) -> None:
    """A test double of a command."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


_TRIED_WITH_LESS = "training ran out of memory with a batch of 16, and is tried with 8: CUDA out of memory. Tried to"
_OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have been OOM Killed."


@pytest.mark.parametrize(
    ("output", "state"),
    [
        (_TRIED_WITH_LESS, "CANCELLED"),
        ("torch.OutOfMemoryError: CUDA out of memory", "CANCELLED"),
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***", "CANCELLED"),
        (f"{slurm.BEGINS}\n{_OOM}\n{slurm.BEGINS}\nworks", "CANCELLED"),
        (f"{slurm.BEGINS}\nworks\n{_OOM}", "OUT_OF_MEMORY"),
        (
            "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch cgroup. Some of your processes may have "
            "been killed by the cgroup out-of-memory handler.",
            "OUT_OF_MEMORY",
        ),
        (
            "slurmstepd: error: StepId=7.batch exceeded memory limit (700000 > 600000), being killed\n"
            "slurmstepd: error: Exceeded job memory limit\n"
            "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***",
            "OUT_OF_MEMORY",
        ),
        ("srun: error: n1: task 0: Out Of Memory", "OUT_OF_MEMORY"),
    ],
)
def test_only_slurms_lines_of_the_last_start_tell_of_lost_memory(tmp_path: Path, output: str, state: str):
    spool = Spool(tmp_path)
    spool.put(_entry("a"))
    (spool.batch_folder(spool.make_batch(spool.entries())) / "0.out").write_text(output)
    follower = SlurmFollower(spool, 1, 0, 1)
    assert follower.end(spool.entries()[0], Job("7", "CANCELLED", signal=15)).state == state


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Transport endpoint is not connected", ControllerAway),
        ("Protocol authentication error", ControllerAway),
        ("Resource temporarily unavailable", NotNow),
        ("Required partition not available (inactive or drain)", NotNow),
        ("Invalid job array specification", NotNow),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", NotNow),
        # Words that are not known here may pass.
        ("Unspecified error", NotNow),
        ("Der Dienst ist gerade \\347berlastet", NotNow),
        ("Incompatible versions of client and server code", NotNow),
        ("?", NotNow),
        ("Invalid account or account/partition combination specified", PlatformError),
        ("Invalid partition name specified", PlatformError),
        ("Invalid generic resource (gres) specification", PlatformError),
        ("Requested time limit is invalid (missing or exceeds some limit)", PlatformError),
        ("Requested node configuration is not available", PlatformError),
        ("Memory specification can not be satisfied", PlatformError),
    ],
)
def test_a_refusal_that_can_pass_is_told_from_one_for_good(
    commands: Path, tmp_path: Path, said: str, error: type[Exception]
):
    _command(commands, "sbatch", f'printf "sbatch: error: Batch job submission failed: {said}\\n" >&2; exit 1')
    with pytest.raises(error, match=re.escape(said.split("(")[0].split("\\")[0])):
        slurm.submit("", [], "name", tmp_path / "0.out", 1)


@pytest.mark.parametrize(
    ("printed", "number"),
    [
        ("4711", "4711"),
        ("4711;north", "4711"),
        ("[INFO] credentials: initialized\n[INFO] 3 hours are left\n4711", "4711"),
        ("Welcome to year 2026\n2026\n4711;north\n", "4711"),
        ("4711\nHave a nice day", "4711"),
        ("Submitted batch job 4711", "4711"),
        ("Submitted batch job 4711 on cluster north", "4711"),
        ("\\377\\376 budget\n4711", "4711"),
        ("  4711  \r\n", "4711"),
    ],
)
def test_the_number_of_a_job_is_found_in_what_sbatch_prints(commands: Path, tmp_path: Path, printed: str, number: str):
    _command(commands, "sbatch", f"cat > /dev/null; echo 'sbatch: a warning' >&2; printf '{printed}'")
    assert slurm.submit("#!/bin/bash\n# Zürich\n", [], "batch", tmp_path / "0.out", 1) == number


@pytest.mark.parametrize("printed", ["", "Your job will be taken care of\nThank you"])
def test_a_job_without_a_number_may_have_been_handed_in(commands: Path, tmp_path: Path, printed: str):
    _command(commands, "sbatch", f"cat > /dev/null; printf '{printed}'")
    with pytest.raises(NoNumber) as error:
        slurm.submit("", [], "batch", tmp_path / "0.out", 1)
    quoted = " | ".join(printed.split("\n")) or "nothing"
    assert str(error.value) == (
        f"sbatch printed no job's number, so the job batch may have been handed in or not; it printed: {quoted}"
    )


def test_a_job_without_a_number_is_not_submitted_twice(commands: Path, tmp_path: Path):
    asked, shown = tmp_path / "asked", tmp_path / "shown"
    shown.touch()
    _command(commands, "scontrol", 'echo "MaxArraySize = 1001"')
    _command(commands, "sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    _command(commands, "squeue", f"""case "$*" in *Format=*) ;; *) echo 'Welcome'; cat {shown};; esac""")
    _command(commands, "sbatch", f"cat > /dev/null; echo Thanks; echo x >> {asked}")
    with instance_for_test() as instance:
        spool = Spool(tmp_path / "spool")
        (run,) = _runs_in(instance, spool, 1)
        follower = SlurmFollower(spool, 1, 0, 1)
        for _ in range(3):
            follower.look_after(instance)
        (entry,) = spool.entries()
        assert asked.read_text() == "x\n" and spool.job_of(entry) is None
        messages = [record.message for record in instance.all_logs(run.run_id)]
        assert len([text for text in messages if "it printed: Thanks" in text]) == 1
        shown.write_text("4711\n")
        follower._submit(instance, spool.entries(), {run.run_id: run})  # pyright: ignore[reportPrivateUsage]
        assert spool.job_of(entry) == "4711" and asked.read_text() == "x\n"


def test_jobs_are_found_among_whatever_squeue_and_sacct_print(commands: Path):
    _command(
        commands,
        "squeue",
        r"""printf 'NOTICE: maintenance on Monday | be warned\n\n'
printf '11|RUNNING|0|n1|batch-1|None   \n'
printf '12_3|STAGE_OUT |0||batch-2|None\n'
printf '13|SPECIAL_EXIT|256||batch-3|None\n'
printf '14|NEW_STATE|?|n2|batch-4|None\n'
printf '15|COMPLETED|9|n2|batch-5|(a|b)|more\n'
printf '16;north|PENDING|0||batch-6|\n17|\n'
printf 'total \377 7\n'""",
    )
    _command(
        commands,
        "sacct",
        r"""printf 'No budget is left\n'
printf '21|CANCELLED by 0|0:15|n1|batch-7\n22|CANCELLED+|0:0||batch-8|one more\n'
printf '23_[4-8:2,11%%2]|PENDING|||batch-9\n24+0|TIMEOUT|1:0|n1|batch-0\n'""",
    )
    ids = ["11", "12_3", "13", "14", "15", "16", "17", "21", "22", "23_4", "23_6", "23_8", "23_11", "24", "99"]
    found = slurm.jobs(ids)
    states = {job: own.state for job, own in found.items()}
    assert states == {
        "11": "RUNNING",
        "12_3": "STAGE_OUT",
        "13": "SPECIAL_EXIT",
        "14": "NEW_STATE",
        "15": "COMPLETED",
        "16": "PENDING",
        "21": "CANCELLED",
        "22": "CANCELLED",
        **dict.fromkeys(("23_4", "23_6", "23_8", "23_11"), "PENDING"),
        "24": "TIMEOUT",
    }
    ended = {job for job, own in found.items() if not own.is_active}
    assert ended == {"15", "21", "22", "24"}
    assert (found["13"].code, found["15"].signal, found["21"].signal, found["24"].code) == (1, 9, 15, 1)
    assert found["14"].is_unclear and not found["12_3"].is_unclear


@pytest.mark.parametrize(
    ("sacct", "state"),
    [
        ('echo "Slurm accounting storage is disabled" >&2; exit 1', None),
        ("exit 0", None),
        ('echo "sacct: error: Sending PersistInit msg: Connection refused" >&2; exit 1', "NOT_TOLD"),
        ('echo "sacct: error: the moon is full" >&2; exit 1', "NOT_TOLD"),
    ],
)
def test_a_job_of_which_sacct_does_not_tell_is_not_gone(commands: Path, sacct: str, state: str | None):
    _command(commands, "squeue", "exit 0")
    _command(commands, "sacct", sacct)
    job = slurm.jobs(["7"]).get("7")
    assert (job.state if job else None) == state
    if job:
        assert job.is_active and job.is_unclear
        assert job.sentence().startswith("Slurm does not tell the state of job 7, and is asked again: sacct: ")


def test_a_wrapper_without_exit_codes_does_not_empty_the_queue(commands: Path):
    _command(commands, "squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 0')
    with pytest.raises(ControllerAway, match="Unable to contact"):
        slurm.jobs(["7"])
    _command(commands, "squeue", 'echo "squeue: error: something new" >&2; exit 1')
    with pytest.raises(ControllerAway, match="something new"):
        slurm.jobs(["7"])


def test_slurm_answers_in_english(commands: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    _command(commands, "scontrol", 'echo "MaxArraySize = $([ "$LC_MESSAGES" = C ] && echo 12)"')
    assert slurm.array_limit() == 12


def test_a_limit_that_the_job_itself_breaks_is_a_final_refusal(commands: Path, tmp_path: Path):
    told = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or ...)"
    script = f'echo "sbatch: error: $LIMIT" >&2; echo "sbatch: error: {told}" >&2; exit 1'
    for limit, error in {"QOSMaxWallDurationPerJobLimit": PlatformError, "AssocMaxSubmitJobLimit": NotNow}.items():
        _command(commands, "sbatch", f"LIMIT={limit}; {script}")
        with pytest.raises(error, match=limit):
            slurm.submit("", [], "name", tmp_path / "0.out", 1)


def _runs_in(instance: DagsterInstance, spool: Spool, number: int) -> list[DagsterRun]:
    runs = [instance.create_run_for_job(_some_job, status=DagsterRunStatus.STARTING) for _ in range(number)]
    for run in runs:
        spool.put(_entry(run.run_id))
    return runs


def test_a_backlog_beyond_the_submit_limit_is_submitted_in_parts(commands: Path, tmp_path: Path):
    """The double of sbatch takes as many tasks as the file `room` says."""
    room, asked = tmp_path / "room", tmp_path / "asked"
    _command(commands, "scontrol", 'echo "MaxArraySize = 1001"')
    _command(commands, "squeue", 'case "$*" in *Format=*) ;; esac')
    _command(commands, "sacct", "exit 0")
    _command(
        commands,
        "sbatch",
        f"""for word; do case $word in --array=0-*) n=$((${{word#--array=0-}} + 1));; esac; done
n=${{n:-1}}; left=$(cat {room}); echo $n >> {asked}
if [ $n -gt $left ]; then
  echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
  echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)" >&2
  exit 1
fi
echo $((left - n)) > {room}; echo $((1000 + left))""",
    )

    def handed_in() -> list[str]:
        return [entry.run_id for entry in spool.entries() if spool.job_of(entry)]

    with instance_for_test() as instance:
        spool = Spool(tmp_path / "spool")
        runs = [run.run_id for run in _runs_in(instance, spool, 12)]
        follower = SlurmFollower(spool, 1, 0, 1)
        messages: list[str] = []
        # Looked at without telling the runs of their jobs, which this double does not know.
        for space, number in ((5, 5), (0, 5), (3, 8), (100, 12)):
            room.write_text(str(space))
            some = {run.run_id: run for run in instance.get_runs()}
            follower._submit(instance, spool.entries(), some)  # pyright: ignore[reportPrivateUsage]
            assert handed_in() == runs[:number]
            messages = [record.message for record in instance.all_logs(runs[-1])]
        assert all(not run.is_finished for run in instance.get_runs())
        assert len([message for message in messages if "does not take this run now, so it waits" in message]) == 1
        assert "AssocMaxSubmitJobLimit" in "".join(messages)
    assert len(asked.read_text().split()) < 20
    assert len(list((spool.folder / "batches").iterdir())) == len({e.batch for e in spool.entries()})


def test_starting_a_failed_run_again_gives_its_retries_back():
    retries = {"run_retries": {"enabled": True, "max_retries": 2}}

    def follow(parent: DagsterRun) -> DagsterRun:
        # As Dagster does: with the tags of the one before.
        now = instance.get_run_by_id(parent.run_id)
        assert now
        tags = {name: value for name, value in now.tags.items() if name != WILL_RETRY_TAG}
        tags |= {"dagster/parent_run_id": now.run_id, "dagster/root_run_id": now.root_run_id or now.run_id}
        run = instance.create_run_for_job(
            _some_job, tags=tags, parent_run_id=now.run_id, root_run_id=now.root_run_id or now.run_id
        )
        give_own_retries(instance, run)
        return run

    def fails(run: DagsterRun) -> bool:
        """Whether Dagster tries it again."""
        instance.report_run_failed(run, "its worker died")
        return told(run, WILL_RETRY_TAG) == "true"

    def told(run: DagsterRun, tag: str) -> str | None:
        now = instance.get_run_by_id(run.run_id)
        assert now
        return now.tags.get(tag)

    with instance_for_test(overrides=retries) as instance:
        first = instance.create_run_for_job(_some_job)
        fail_for_good(instance, first, "reached its time limit")
        assert told(first, WILL_RETRY_TAG) == "false"
        second = follow(first)
        assert fails(second)
        third = follow(second)
        assert fails(third)
        fourth = follow(third)
        assert not fails(fourth)

        # Whoever wants no retries gets none after that either.
        first = instance.create_run_for_job(_some_job, tags={MAX_RETRIES_TAG: "0"})
        fail_for_good(instance, first, "reached its time limit")
        assert not fails(follow(first))


def test_a_worker_is_asked_to_stop_once(tmp_path: Path):
    spool = Spool(tmp_path)
    spool.put(_entry("a"))
    with pytest.raises(ControllerAway), spool.interrupting("a") as mine:
        assert mine
        raise ControllerAway
    asked: list[bool] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        with Spool(tmp_path).interrupting("a") as mine:
            asked.append(mine)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == [False] * 7 + [True]


def test_paths_may_have_blanks_and_per_cent_signs(commands: Path, tmp_path: Path):
    (tmp_path / "a b").mkdir()
    _command(tmp_path / "a b", "python", 'printf "%s|" "$@"')
    script = slurm.script(Options(), [str(tmp_path / "a b" / "python"), "-m", "it", "the folder"])
    done = subprocess.run(["/bin/bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == f"{slurm.BEGINS}\n-m|it|the folder|"
    _command(commands, "sbatch", f'printf "%s\\n" "$@" > {shlex.quote(str(tmp_path / "asked"))}; echo 7')
    slurm.submit(script, [], "name", Path("/a 50%a/%a.out"), 2)
    assert "--output=/a 50%%a/%a.out" in (tmp_path / "asked").read_text().splitlines()


@pytest.mark.parametrize(("end", "code"), [(lambda process: process.send_signal(signal.SIGTERM), 0), (None, 1)])
def test_a_stop_of_services_is_no_failure_and_an_end_is_one(
    commands: Path, tmp_path: Path, end: Callable[[subprocess.Popen[bytes]], None] | None, code: int
):
    """Dagster's commands are doubles: what is tested is the script."""
    (tmp_path / "dagster.yaml").write_text("run_launcher: {class: SlurmRunLauncher}")
    _command(commands, "dlc-platform", f"echo export DAGSTER_HOME={shlex.quote(str(tmp_path))}")
    # The web server behind the gate.
    _command(commands, "python", f'test "$2" = dlc_platform.web && echo $$ > {tmp_path}/webserver; exec sleep 600')
    _command(commands, "dagster-daemon", f"echo $$ > {tmp_path}/daemon; exec sleep 600")
    told = {"PATH": os.environ["PATH"], "LAB": str(tmp_path)}
    process = subprocess.Popen([DEPLOYMENT / "services"], env={**told, "DLC_PLATFORM_POSTGRES_URL": "postgresql://"})

    def pids() -> list[int]:
        files = [tmp_path / "webserver", tmp_path / "daemon"]
        return [int(text) for file in files if file.exists() and (text := file.read_text().strip())]

    wait("both services", lambda: len(pids()) == 2)
    if end:
        end(process)
    else:
        os.kill(pids()[1], signal.SIGKILL)
    assert process.wait(60) == code
    wait("the end of the webserver", lambda: not Path(f"/proc/{pids()[0]}/cmdline").exists())
