"""Slurm's words, the spool, and the deployment's dagster.yaml; no Slurm is needed."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from dagster import DagsterInstance

from dlc_platform import cli
from dlc_platform.errors import PlatformError
from dlc_platform.launchers.slurm import Job, Options
from dlc_platform.launchers.slurm_run_launcher import SlurmRunLauncher
from dlc_platform.launchers.slurm_spool import Entry, Spool

DEPLOYMENT = Path(cli.__file__).parents[1] / "deployments" / "slurm"


def _entry(run_id: str) -> Entry:
    return Entry(run_id, "an instance", {"DLC_PLATFORM_POSTGRES_URL": "hush"}, Options(partition="work"), 1)


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (Job("7", "PENDING", "(Resources)"), "Slurm job 7 is waiting: it waits for nodes to become free (Resources)"),
        (Job("7_1", "PENDING", "QOSMaxJobsPerUserLimit"), "limit of your account or quality of service is reached"),
        (Job("7", "RUNNING", node="n1"), "Slurm job 7 is running on n1"),
        (Job("7", "TIMEOUT", node="n1"), "Slurm job 7 on n1 reached its time limit; raise `time`"),
        (Job("7", "PREEMPTED"), "was stopped for a job of a higher priority"),
        (Job("7", "NODE_FAIL"), "died with its node"),
        (Job("7", "FAILED", code=3), "Slurm job 7 failed with exit code 3"),
        (Job("7", "FAILED", signal=9), "Slurm job 7 failed, killed by signal 9"),
        (Job("7", "FAILED", signal=9).killed_for_memory(), "ran out of memory; raise `memory`"),
        (Job("7", "NEW_WORD"), "Slurm job 7 ended as NEW_WORD"),
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


def test_entries_are_their_owners_alone_and_belong_to_their_last_batch(tmp_path: Path):
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
    text = (DEPLOYMENT / "dagster.yaml").read_text()
    # The one line that needs a server.
    without = text.replace("storage:\n  postgres:\n    postgres_url: {env: DLC_PLATFORM_DAGSTER_POSTGRES_URL}\n", "")
    assert without != text
    (tmp_path / "dagster.yaml").write_text(without)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, SlurmRunLauncher)
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_resume_run_attempts == 3
        assert instance.run_monitoring_start_timeout_seconds > 7 * 24 * 3600


def test_the_services_say_what_they_lack(tmp_path: Path):
    done = subprocess.run(
        [DEPLOYMENT / "services"],
        env={"PATH": "/usr/bin:/bin", "LAB": str(tmp_path), "FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "DLC_PLATFORM_POSTGRES_URL: a Postgres that the nodes reach" in done.stderr
