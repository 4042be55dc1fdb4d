"""A short form of the benchmark `disorder`: a lab whose machine breaks ends where an undisturbed one does."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlc_platform.catalog.database import open_lab
from dlc_platform.catalog.promotions import production_model
from dlc_platform.demo.lab import PROJECT
from dlc_platform.dlc.inference import PoseEstimator
from dlc_platform.identity import sha256_file
from dlc_platform.postgres import server
from dlc_platform.store import Store
from dlc_platform_tests.benchmarks.disorder import (
    Arrival,
    Machine,
    arrive,
    break_it,
    hashes,
    is_over,
    judge,
    judge_what_is_left,
    render_sessions,
)
from dlc_platform_tests.orchestration.up import Up

SEED = 15
_RUNS = "select status, create_timestamp, update_timestamp, run_body from dagster.runs order by id desc limit 10"


@pytest.fixture
def machine(tracked_lab: Path) -> Iterator[Machine]:
    lab = Up(tracked_lab)
    yield Machine(lab, random.Random(SEED), print, shortest=True)
    lab.ensure_down()
    server.ensure_running(tracked_lab / "postgres")


def undisturbed(home: Path, arrivals: list[Arrival], folder: Path) -> dict[str, str]:
    """What the poses of sessions are where nothing breaks, by the lab's own model; by estimate."""
    engine = open_lab(home)
    model = production_model(engine, PROJECT)
    engine.dispose()
    assert model is not None
    for kind in ("models", "exports"):
        shutil.copytree(home / "store" / kind, folder / kind)
    store = Store(folder)
    estimator = PoseEstimator(store.path("models", model), store)
    for video in (source for arrival in arrivals for source in arrival.files):
        estimator.estimate(video, sha256_file(video))
    return hashes(folder)


@pytest.mark.timeout(1500)
def test_faults_of_the_machine_lose_repeat_and_hold_up_nothing(machine: Machine, tmp_path: Path):
    home = machine.home
    arrivals = render_sessions(tmp_path / "videos", 2, 20, 40)
    known = hashes(home / "store")
    expected = undisturbed(home, arrivals, tmp_path / "store")
    machine.up.ensure()
    done = []
    faults = (("kill-worker", "end-connections"), ("kill-postmaster", "kill-daemon"))
    for arrival, kinds in zip(arrivals, faults, strict=True):
        arrive(machine, [arrival], 0)
        done += [break_it(machine, kind) for kind in kinds]
    assert [f"{one.kind}: {one.note}" for one in done if " " in one.note] == []
    # A run that Dagster was killed over before it had queued it is given up after three minutes, and its session asked
    # for again half a minute later; and a session that is registered so can meet that again when it is to be tracked.
    assert machine.until(lambda: is_over(machine, arrivals), 700) is not None, machine.rows(_RUNS)
    outcome = judge(machine, arrivals, known | expected)
    judge_what_is_left(machine, outcome)
    assert outcome.is_clean, outcome
    assert outcome.files == 3
