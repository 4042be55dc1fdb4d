"""A lab that is up: what arrives is tracked, whatever is stopped, killed or broken meanwhile."""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import uuid4

import dagster as dg
import psutil
import pytest
import yaml
from dagster_graphql import DagsterGraphQLClient

from dlc_platform.demo import render
from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.errors import HOME_VARIABLE, PlatformError
from dlc_platform.orchestration.up import running
from dlc_platform.orchestration.web_access import authorization
from dlc_platform.postgres import server
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform_tests.orchestration.up import COMMAND, Up, plain_environment, wait_for

FRAMES = 12
DONE = dg.DagsterRunStatus.SUCCESS
FAILED = dg.DagsterRunStatus.FAILURE
STARTED = dg.DagsterRunStatus.STARTED


@pytest.fixture(scope="module")
def lab(tracked_lab: Path) -> Iterator[Up]:
    up = Up(tracked_lab)
    up.with_read_only = True
    settings = (tracked_lab / "lab.yaml").read_text()
    yield up
    up.ensure_down()
    (tracked_lab / "lab.yaml").write_text(settings)
    server.ensure_running(tracked_lab / "postgres")


@pytest.fixture
def subject() -> str:
    """A subject that no other test has."""
    return uuid4().hex[:8]


def video_of(lab: Up, subject: str, session: int = 1) -> tuple[str, Path]:
    folder = lab.home / "raw" / f"sub-{subject}" / f"ses-{session}"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sub-{subject}_ses-{session}", folder / "recorded_cam-top.mp4"


def record(path: Path, seed: int, frames: int = FRAMES) -> None:
    """A video that is there at once, as one that is moved into the raw root."""
    with TemporaryDirectory(dir=path.parents[3]) as folder:
        video = Path(folder) / path.name
        render.write_video(video, render.render(seed, frames).frames)
        video.replace(path)


@contextlib.contextmanager
def worker_held(lab: Up, subject: str, seed: int) -> Iterator[tuple[str, dg.DagsterRun, WorkerProcess]]:
    """A session, the run that estimates its poses, and the worker, which stands still until the end of the block.

    No run is so quick that it ends before what a test does to it: one that did is left, and another session comes. Its
    video is another one, too, as one that has poses already is not tracked again.
    """
    for number in count(1):
        session, path = video_of(lab, subject, number)
        record(path, seed=100 * number + seed)
        run, worker = wait_for(lambda session=session: _worker_of(lab, session))
        worker.signal(signal.SIGSTOP)
        try:
            if worker.is_alive() and not _has_done_a_step(run.run_id):
                yield session, run, worker
                return
        finally:
            worker.signal(signal.SIGCONT)


def _worker_of(lab: Up, session: str) -> tuple[dg.DagsterRun, WorkerProcess] | None:
    for run in lab.runs("pose_estimates", session, STARTED, DONE):
        worker = WorkerProcess.from_tags(run.tags)
        if worker is not None:
            return run, worker
    return None


def _has_done_a_step(run_id: str) -> bool:
    with dg.DagsterInstance.get() as instance:
        return bool(instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_SUCCESS}))


def service_of(lab: Up, name: str) -> int:
    """The process of a service."""
    tags = json.loads((lab.home / "services.json").read_text())[name]
    process = WorkerProcess.from_tags(tags)
    assert process is not None
    return process.pid


def is_answering(url: str) -> bool:
    try:
        with urlopen(f"{url}/server_info") as response:
            return response.status == 200
    except OSError:  # it is not there, or ends just now
        return False


def test_a_lab_goes_up_once(lab: Up):
    lab.ensure()
    # No terminal reads this, and a journal keeps it: it tells how to get the token, and not the token.
    how = f"`dlc-platform ui {lab.home} --port {lab.port}` prints the address that lets a browser in"
    assert f"The lab is up: {lab.url}/ ({how})" in lab.said()
    told = subprocess.run(
        [COMMAND, *shlex.split(how.split("`")[1])[1:]],
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{lab.address}\n"
    token = lab.address.partition("token=")[2]
    kept = [file for file in (lab.home / "up.log", *(lab.home / "logs").iterdir()) if token in file.read_text()]
    assert kept == []
    with pytest.raises(HTTPError, match="401"), urlopen(lab.url):
        pass
    with urlopen(f"{lab.url}/server_info") as response:
        assert response.status == 200
    second = subprocess.run(
        [COMMAND, "up", str(lab.home)], env=plain_environment(), capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"the lab {lab.home} is up already" in second.stderr
    assert lab.process is not None and str(lab.process.pid) in second.stderr


def test_who_only_looks_has_a_port_of_their_own(lab: Up):
    """Nothing can be started, stopped or changed there."""
    lab.ensure()
    how = f"`dlc-platform ui {lab.home} --port {lab.read_only_port} --read-only`"
    assert f"To look only: http://127.0.0.1:{lab.read_only_port}/ ({how} prints" in lab.said()
    allowed = {}
    for read_only in (False, True):
        permissions = lab.ask("{permissions {permission value}}", read_only)["permissions"]
        allowed[read_only] = {one["permission"] for one in permissions if one["value"]}
    assert "launch_pipeline_execution" in allowed[False]
    assert not allowed[True]
    # Later starts need it no more.
    lab.with_read_only = False


def test_lab_yaml_is_followed_while_the_lab_is_up(lab: Up):
    """A valid edit is in force everywhere; with a broken one all goes on with the last good one, and it is said."""
    lab.ensure()
    file = lab.home / "lab.yaml"
    before = file.read_text()
    daemon = lab.home / "logs" / "daemon.log"

    def recipes() -> list[str]:
        query = '{assetNodeOrError(assetKey: {path: ["trained_model"]}) {... on AssetNode {partitionKeys}}}'
        return lab.ask(query)["assetNodeOrError"]["partitionKeys"]

    def doctor() -> str:
        done = subprocess.run([COMMAND, "doctor", lab.home], env=plain_environment(), capture_output=True, text=True)
        return done.stdout

    def looks() -> str:
        """What the sensor says in the UI."""
        query = (
            '{sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: '
            '"dlc_platform.definitions", sensorName: "new_session_videos"}) '
            "{... on Sensor {sensorState {ticks(limit: 1) {skipReason}}}}}"
        )
        return str(lab.ask(query))

    try:
        settings = yaml.safe_load(before)
        (known,) = settings["recipes"]
        settings["recipes"]["another"] = settings["recipes"][known]
        # This Dagster reads at its start alone, so the services are started again; for recipes they are not.
        settings["runs"] = {"retry_minutes": [0.05, 0.1]}
        file.write_text(yaml.safe_dump(settings))
        wait_for(lambda: "lab.yaml has changed and is in force; new recipes: another" in lab.said())
        assert recipes() == ["another", known]
        assert "WRONG" not in (said := doctor()), said
        assert "tried again 2 times" in said

        begun = daemon.stat().st_size
        # What no reader of it expects.
        file.write_text(before + '\n"<<": 1\n')
        wait_for(lambda: "<< is not a key of lab.yaml" in lab.said())
        file.write_text(before + "\nraw_rots: [raw]\n")
        sentence = "raw_rots is not a key of lab.yaml (value: ['raw']); did you mean raw_roots?"
        wait_for(lambda: sentence in lab.said())
        assert "the last good one stays in force" in lab.said() and sentence in doctor()
        wait_for(lambda: sentence.replace("'", "") in looks().replace("\\", "").replace("'", ""))
        run_id = DagsterGraphQLClient(
            "127.0.0.1", port_number=lab.port, headers=authorization(lab.home)
        ).submit_job_execution("clean_up")
        with dg.DagsterInstance.get() as instance:
            wait_for(lambda: (run := instance.get_run_by_id(run_id)) is not None and run.is_finished)
            run = instance.get_run_by_id(run_id)
            assert run is not None and run.status == DONE
        assert recipes() == ["another", known]
    finally:
        del settings["recipes"]["another"]
        file.write_text(yaml.safe_dump(settings))
        wait_for(lambda: lab.said().rstrip().endswith("recipes that are gone: another"))
    assert recipes() == [known]
    wait_for(lambda: "skipReason" in looks() and "not in force" not in looks())
    assert "Traceback" not in daemon.read_bytes()[begun:].decode()


def test_a_web_server_whose_code_server_died_shows_the_lab_again(lab: Up):
    lab.ensure()
    webserver = psutil.Process(service_of(lab, "webserver"))
    killed = 0.0

    def is_noticed() -> bool:
        nonlocal killed
        # Nobody misses one that an edit of lab.yaml was about to replace.
        if time.monotonic() - killed > 30 and webserver.is_running():
            for server in [one for one in webserver.children() if "grpc" in one.cmdline()]:
                server.kill()
                killed = time.monotonic()
        return "had loaded are gone; it is started again" in lab.said()

    wait_for(is_noticed)
    wait_for(lambda: is_answering(lab.url))
    query = "{repositoriesOrError {... on RepositoryConnection {nodes {location {name}}}}}"
    wait_for(lambda: [one["location"]["name"] for one in lab.ask(query)["repositoriesOrError"]["nodes"]])


def test_two_webservers_need_two_ports(tracked_lab: Path, tmp_path: Path):
    (tmp_path / "lab.yaml").write_text((tracked_lab / "lab.yaml").read_text())
    with (
        pytest.raises(PlatformError, match=r"port 3999 is given to both webservers.*--read-only-port"),
        running(tmp_path, 3999, print, read_only_port=3999),
    ):
        pass


def test_a_port_that_is_taken_is_named(tracked_lab: Path, tmp_path: Path):
    (tmp_path / "lab.yaml").write_text((tracked_lab / "lab.yaml").read_text())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PlatformError, match=rf"port {port} is taken.*--port"), running(tmp_path, port, print):
            pass
    assert not (tmp_path / "postgres").exists()


def test_a_port_that_a_killed_up_still_holds_is_waited_for(
    tracked_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "lab.yaml").write_text((tracked_lab / "lab.yaml").read_text())
    # What comes after the port fails at once.
    monkeypatch.setenv(POSTGRES_VARIABLE, "postgresql://me:secret@127.0.0.1:1/nothing")
    with (
        socket.socket() as held,
        subprocess.Popen(
            ["sleep", "1000"], env={**os.environ, HOME_VARIABLE: str(tmp_path)}, start_new_session=True
        ) as left_over,
    ):
        held.bind(("127.0.0.1", 0))
        held.listen()
        record = {"webserver": WorkerProcess.of(left_over.pid).tags()}
        (tmp_path / "services.json").write_text(json.dumps(record))
        release = threading.Timer(2, held.close)
        release.start()
        try:
            with pytest.raises(PlatformError, match=r"127\.0\.0\.1:1"), running(tmp_path, held.getsockname()[1], print):
                pass
        finally:
            left_over.kill()
            release.join()
        assert left_over.wait() == -signal.SIGKILL


def test_a_lab_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(PlatformError, match=r"lab.yaml does not exist.*init"), running(tmp_path / "no", None, print):
        pass


def test_a_session_is_tracked_when_whole_and_again_when_replaced(lab: Up, subject: str):
    lab.ensure()
    session, path = video_of(lab, subject, 1)
    broken, broken_path = video_of(lab, subject, 2)
    record(path, seed=1)
    content = path.read_bytes()
    path.unlink()
    with open(path, "wb") as file:
        for start in range(0, len(content), len(content) // 24):
            file.write(content[start : start + len(content) // 24])
            file.flush()
            time.sleep(0.2)
    broken_path.write_bytes(content[: len(content) // 3])

    wait_for(lambda: lab.poses(session))
    (poses,) = lab.poses(session)
    assert (poses["size_bytes"], poses["frames"]) == (len(content), FRAMES)
    assert len(lab.rows("select 1 from dlc.recording where session_key = :key", key=session)) == 1

    # The broken one arrived beside it: its run names it, and it has held up nobody.
    (failed,) = wait_for(lambda: lab.runs("session_videos", broken, FAILED))
    assert str(broken_path) in lab.reasons(failed.run_id)
    assert str(path) not in lab.reasons(failed.run_id)
    assert not lab.poses(broken)

    record(path, seed=4, frames=FRAMES + 3)
    wait_for(lambda: len(lab.poses(session)) > 1)
    old, new = lab.poses(session)
    assert (old["frames"], new["frames"]) == (FRAMES, FRAMES + 3)
    assert old["pose_estimate_id"] != new["pose_estimate_id"]
    assert old["replaced_at"] is not None
    assert new["replaced_at"] is None
    for poses in (old, new):
        assert (lab.home / "store" / "poses" / poses["pose_estimate_id"] / "manifest.json").is_file()


def test_a_killed_workers_run_fails_with_a_reason_and_is_retried(lab: Up, subject: str):
    lab.ensure()
    with worker_held(lab, subject, seed=5) as (session, run, worker):
        os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: lab.runs("pose_estimates", session, FAILED))
    assert "was killed by SIGKILL" in lab.reasons(run.run_id)
    wait_for(lambda: lab.runs("pose_estimates", session, DONE))
    (poses,) = lab.poses(session)
    assert poses["run_id"] != run.run_id
    first, second = lab.runs("pose_estimates", session)
    assert second.parent_run_id == first.run_id


def test_postgres_that_dies_is_started_again(lab: Up, subject: str):
    lab.ensure()
    (server_process,) = lab.processes("postgres", "-D")
    configuration = lab.home / "postgres" / "data" / "postgresql.conf"
    before = configuration.read_text()
    # As on a full disk, it does not start for a while, and the daemon's ends are not counted meanwhile.
    configuration.write_text(f"{before}\nno_such_word = 1\n")
    server_process.kill()
    wait_for(lambda: "The lab waits for it" in lab.said())
    assert lab.process is not None and lab.process.poll() is None
    os.kill(service_of(lab, "daemon"), signal.SIGKILL)
    configuration.write_text(before)
    wait_for(lambda: [one for one in lab.processes("postgres", "-D") if one.pid != server_process.pid])
    wait_for(lambda: "What the lab waited for is there again" in lab.said())
    assert "Dagster's daemon ended with exit code -9; it is started again" in lab.said()
    session, path = video_of(lab, subject)
    path.write_bytes(b"no video")
    wait_for(lambda: lab.runs("session_videos", session, FAILED))
    assert lab.process is not None
    assert lab.process.poll() is None


def held(lab: Up, session: str) -> list[dict[str, Any]]:
    return lab.rows("select stage, reason from dlc.quarantine where session_key = :session", session=session)


def test_a_run_outlives_the_database(lab: Up, subject: str):
    lab.ensure()
    with worker_held(lab, subject, seed=15) as (session, run, _):
        (server_process,) = lab.processes("postgres", "-D")
        server_process.kill()
    (done,) = wait_for(lambda: lab.runs("pose_estimates", session, DONE))
    assert done.run_id == run.run_id
    assert len(lab.poses(session)) == 1 and held(lab, session) == []


def test_sessions_go_on_when_their_raw_root_is_back(lab: Up, subject: str):
    lab.ensure()
    raw, away = lab.home / "raw", lab.home / "raw.away"
    with worker_held(lab, subject, seed=16) as (session, _, _):
        raw.rename(away)
    try:
        failed, *_ = wait_for(lambda: lab.runs("pose_estimates", session, FAILED))
    finally:
        away.rename(raw)
    said = lab.reasons(failed.run_id)
    assert f"{raw}: the raw root cannot be read" in said or "is not there any more" in said
    assert "changed while it was tracked" not in said
    wait_for(lambda: lab.runs("pose_estimates", session, DONE))
    assert len(lab.poses(session)) == 1 and held(lab, session) == []


def test_what_a_stop_interrupts_goes_on_at_the_next_start(lab: Up, subject: str):
    lab.ensure()
    workspaces = lab.home / "work"
    with worker_held(lab, subject, seed=7) as (session, run, worker):
        (workspaces / run.run_id).mkdir(parents=True, exist_ok=True)
        assert lab.end(signal.SIGTERM) == 0
        assert not worker.is_alive()
    assert " under way; " in lab.said()  # its labels may be counted at the same time
    assert lab.processes() == []
    assert "The lab was stopped" in lab.reasons(wait_for(lambda: lab.runs("pose_estimates", session, FAILED))[0].run_id)

    lab.ensure()
    assert not (workspaces / run.run_id).exists()
    (done,) = wait_for(lambda: lab.runs("pose_estimates", session, DONE))
    # The stopped run may have come as far as its poses: they are found, or only judged, and not made again.
    poses = lab.poses(session)
    assert poses[-1]["run_id"] in (run.run_id, done.run_id)
    assert len({row["pose_estimate_id"] for row in poses}) == 1


def test_a_lab_is_stopped_from_another_terminal(lab: Up):
    def stopped() -> list[str]:
        done = subprocess.run([COMMAND, "stop", str(lab.home)], env=plain_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    lab.ensure()
    assert lab.process is not None
    assert stopped() == [f"Stopping the lab: its process is {lab.process.pid}", "The lab is stopped"]
    assert lab.process.wait(10) == 0 and lab.processes() == []
    assert stopped() == ["The lab was not up"]
    # As any command that reads leaves it.
    server.ensure_running(lab.home / "postgres")
    assert stopped() == ["The lab was not up", "Postgres is stopped"] and lab.processes() == []

    lab.ensure()
    lab.process.kill()
    lab.process.wait()
    assert stopped() == ["The remains of a killed `up` are stopped, and 0 runs with it", "Postgres is stopped"]
    assert lab.processes() == []


def test_a_closed_terminal_stops_everything(lab: Up):
    if lab.process is not None and lab.process.poll() is None:
        lab.end(signal.SIGTERM)

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which the command respects

    terminal, inner = os.openpty()
    with subprocess.Popen(
        [COMMAND, "up", str(lab.home), "--port", str(lab.port)],
        env=plain_environment(),
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as command:
        os.close(inner)
        try:
            said = b""
            while b"Ctrl-C stops the lab" not in said:
                said += os.read(terminal, 1000)
            assert f"The lab is up: {lab.address}" in "".join(said.decode().split("\r\n"))
            os.close(terminal)
            assert command.wait(120) == 0
        finally:
            command.terminate()
    assert lab.processes() == []


def test_killed_services_are_started_again_and_the_work_goes_on(lab: Up, subject: str):
    lab.ensure()
    assert lab.process is not None
    # The worker is still at work when the new daemon looks.
    with worker_held(lab, subject, seed=8) as (session, run, worker):
        killed = service_of(lab, "daemon"), service_of(lab, "webserver")
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        for name in ("daemon", "webserver"):
            wait_for(lambda name=name: f"Dagster's {name} ended with exit code -9; it is started again" in lab.said())
        wait_for(lambda: is_answering(lab.url))
    assert service_of(lab, "daemon") not in killed
    (done,) = wait_for(lambda: lab.runs("pose_estimates", session, DONE))
    assert (done.run_id, WorkerProcess.from_tags(done.tags)) == (run.run_id, worker)
    assert len(lab.runs("pose_estimates", session)) == 1
    assert lab.process.poll() is None
    # The code servers of those that were killed are gone with them.
    groups = {service_of(lab, name) for name in json.loads((lab.home / "services.json").read_text())}
    assert {os.getpgid(process.pid) for process in lab.processes("grpc")} <= groups

    # What is started next is watched by the new daemon.
    session, path = video_of(lab, f"{subject}next")
    record(path, seed=9)
    wait_for(lambda: lab.poses(session))


def test_a_daemon_killed_again_and_again_ends_the_lab_safely(lab: Up, subject: str):
    lab.ensure()
    session, path = video_of(lab, subject)
    record(path, seed=10)
    wait_for(lambda: _worker_of(lab, session))
    process = lab.process
    assert process is not None
    killed: set[int] = set()

    def kill_the_next() -> bool:
        with contextlib.suppress(FileNotFoundError):  # The lab ends.
            if (daemon := service_of(lab, "daemon")) not in killed:
                os.kill(daemon, signal.SIGKILL)
                killed.add(daemon)
        return process.poll() is not None

    wait_for(kill_the_next)
    assert process.wait() == 1
    assert "Dagster's daemon ended with exit code -9, for the 4th time within 10 minutes" in lab.said()
    assert lab.processes() == []

    lab.ensure()
    wait_for(lambda: lab.poses(session))
    assert len(lab.poses(session)) == 1
