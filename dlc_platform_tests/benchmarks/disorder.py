"""A lab that is up while its machine breaks, and what is left of that in its poses.

Run as ``python -m dlc_platform_tests.benchmarks.disorder``. Sessions arrive over time, a second model is trained and
promoted meanwhile, and at random moments one fault after another is done to the machine; `--seed` says which, and
when. What comes out is held against a lab in which nothing of that happened. It ends with 1 when a session is lost,
repeated, held up or other than there, or when anything is left over.

As root, the store and the database lie on small disks of their own, so that these can be full, and the raw root on a
mount that can hang. Where that is not permitted, these faults are left out, and the table says why.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import sqlalchemy
import typer
import yaml
from dagster_graphql import DagsterGraphQLClient
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from dlc_platform.demo import lab as material
from dlc_platform.demo import render
from dlc_platform.devices.locks import DIRECTORY_VARIABLE
from dlc_platform.faults import is_lost_database
from dlc_platform.orchestration.web_access import authorization
from dlc_platform.postgres import server
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.store import Store
from dlc_platform_tests.benchmarks import mounted
from dlc_platform_tests.keeping import make_old
from dlc_platform_tests.orchestration.conftest import NO_FLOORS, NOTHING_IS_HOPELESS
from dlc_platform_tests.orchestration.up import COMMAND, Up, plain_environment

FIRST, SECOND = "first", "second"
_DATABASE_MB, _STORE_MB = 700, 700
#: What may pass after the last fault and the last arrival until everything is in order.
_PATIENCE_SECONDS = 2400
_SETTLE_SECONDS = 3
_ADVISORY = (
    "select pid from pg_locks where locktype = 'advisory' and granted and database = "
    "(select oid from pg_database where datname = current_database())"
)
_BACKENDS = "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"


#: For processes that see another time than the machine's: by how many seconds is in a file.
_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile int64_t *ahead;
static void __attribute__((constructor)) begin(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    void *place = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (place != MAP_FAILED) ahead = place;
    if (file >= 0) close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = syscall(SYS_clock_gettime, clock, now);
    if (!done && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *ahead;
    return done;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *told) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (told) *told = exact.tv_sec;
    return exact.tv_sec;
}
"""


class NotHere(Exception):
    """This fault cannot be done on this machine, or not now; the reason is for the table."""


@dataclass
class Fault:
    """One fault that was done to the machine: for how long it lasted, and after how long what it hit was there again.

    All times are in seconds; `begun` is on the clock of `time.monotonic`.
    """

    kind: str
    begun: float
    lasted: float = 0.0
    back: float | None = None
    skipped: str | None = None
    note: str = ""


@dataclass
class Arrival:
    """A session that is to arrive: its files, in the order in which they are copied; and how."""

    key: str
    files: Mapping[Path, Path]
    half_copied: bool = False
    is_data: bool = False


@dataclass
class Clock:
    """The time that the lab's processes see, other than those of Postgres, which stay at the machine's."""

    ahead: Path
    environment: Mapping[str, str]

    @classmethod
    def made(cls, folder: Path, say: Callable[[str], None]) -> "Clock | None":
        """None where there is no C compiler."""
        source, library, ahead = (folder / f"clock.{end}" for end in ("c", "so", "ahead"))
        source.write_text(_CLOCK)
        ahead.write_bytes(bytes(8))
        try:
            subprocess.run(["cc", "-shared", "-fPIC", "-O", "-o", str(library), str(source)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            say(f"no clock can be set: {error}")
            return None
        return cls(ahead, {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(ahead)})

    def set(self, seconds: int) -> None:
        """Set the clock to so much before the time of the machine."""
        with open(self.ahead, "r+b") as file:
            file.write(struct.pack("q", seconds))


@dataclass
class Mount:
    """The raw root as a mount that shows a folder outside of the lab."""

    source: Path
    at: Path
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def broken(self) -> Path:
        """While this file is there, the mount answers with errors."""
        return self.source.with_name("mount-is-broken")

    def mount(self) -> None:
        """Mount it.

        Raises
        ------
        NotHere
            When that cannot be done here.
        """
        names = {mounted.SOURCE: self.source, mounted.MOUNT: self.at, mounted.BROKEN: self.broken}
        self.process = subprocess.Popen(
            [sys.executable, "-m", mounted.__name__],
            env={**plain_environment(), **{name: str(value) for name, value in names.items()}},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for _ in range(100):
            if os.path.ismount(self.at):
                return
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                raise NotHere(f"no mount: {self.process.stderr.read().decode().strip().splitlines()[-1:]}")
            time.sleep(0.1)
        raise NotHere("no mount: it did not come within 10 s")

    def unmount(self) -> None:
        """Let an empty folder be in its place, also where the mount does not answer any more."""
        subprocess.run(["umount", "--lazy", str(self.at)], check=False, capture_output=True)


@contextlib.contextmanager
def mounted_raw_root(home: Path, say: Callable[[str], None]) -> Iterator[Mount | None]:
    """Move the raw root of a lab out of it, and mount it in its place, if that can be done here."""
    mount = Mount(home.with_name(f"{home.name}-raw"), home / "raw")
    shutil.rmtree(mount.source, ignore_errors=True)
    mount.at.rename(mount.source)
    mount.at.mkdir()
    try:
        mount.mount()
    except NotHere as reason:
        say(str(reason))
        mount.at.rmdir()
        mount.source.rename(mount.at)
        yield None
        return
    try:
        yield mount
    finally:
        mount.unmount()
        mount.process.kill()
        mount.process.wait()


@dataclass
class Machine:
    """A lab that is up, watched over as systemd does, and what can be done to it."""

    up: Up
    chance: random.Random
    say: Callable[[str], None]
    disks: Mapping[str, Path] = field(default_factory=dict)
    mount: "Mount | None" = None
    clock: "Clock | None" = None
    #: Nobody copies anything while the raw root is away.
    raw: Any = field(default_factory=threading.Lock)
    #: Nothing lasts longer than it must.
    shortest: bool = False
    starts: int = 0
    #: What a person had to do for things to go on.
    helped: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The lab's folder."""
        return self.up.home

    @property
    def recorded(self) -> Path:
        """Where the machines that record write to: the raw root, or what its mount shows."""
        return self.home / "raw" if self.mount is None else self.mount.source

    def seconds(self, least: float, most: float) -> float:
        """How long something lasts."""
        return least if self.shortest else self.chance.uniform(least, most)

    def require_mount(self) -> "Mount":
        """The mount of the raw root, if that is one."""
        if self.mount is None:
            raise NotHere("the raw root is no mount: none could be made")
        return self.mount

    def watch(self) -> None:
        """Start the command again that ended, as a service would be; Postgres is left to it."""
        process = self.up.process
        if process is not None and process.poll() is None:
            return
        if process is not None:
            self.say(f"`up` has ended with {process.returncode}: {self.up.said().strip().splitlines()[-1:]}")
        self.up.process = self.up.command()
        self.starts += 1

    def url(self) -> URL | None:
        """Of the database as it is now; nothing is started."""
        with contextlib.suppress(OSError, ValueError):
            place = self.home / "postgres"
            return URL.create(
                *("postgresql+psycopg2", "dlc_platform", (place / "password").read_text(), "127.0.0.1"),
                port=int((place / "port").read_text()),
                database=server.DATABASE,
            )
        return None

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]] | None:
        """What the database answers; None while it does not."""
        url = self.url()
        if url is None:
            return None
        engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.NullPool,
            connect_args={"connect_timeout": 5, "options": "-c statement_timeout=20000"},
        )
        try:
            with engine.begin() as connection:
                return [dict(row._mapping) for row in connection.execute(sqlalchemy.text(query), values)]
        except DBAPIError as error:
            if not is_lost_database(error):
                raise
            return None

    def told(self, query: str) -> list[dict[str, Any]]:
        """What the database answers, as soon as it does."""
        while (rows := self.rows(query)) is None:
            self.watch()
            time.sleep(0.5)
        return rows

    def service(self, name: str) -> psutil.Process | None:
        """The process of one of Dagster's services, if it lives."""
        words = {"daemon": ("dagster._daemon",), "webserver": ("dlc_platform.web",)}[name]
        return next(iter(self.up.processes("-m", *words, "dlc_platform.definitions")), None)

    def workers(self) -> list[psutil.Process]:
        """The processes that work on runs."""
        return self.up.processes("dlc_platform.launchers.gpu_worker")

    def postmaster(self) -> psutil.Process | None:
        """The database's first process."""
        return next(iter(self.up.processes("postgres", "-D")), None)

    def until(self, look: Callable[[], Any], seconds: float = 240.0) -> float | None:
        """After how many seconds something was there; None when it was not within `seconds`."""
        begun = time.monotonic()
        while not look():
            self.watch()
            if time.monotonic() - begun > seconds:
                return None
            time.sleep(0.25)
        return time.monotonic() - begun

    def answers(self) -> bool:
        """True while the web server and the database answer, and the daemon lives."""
        if self.service("daemon") is None or self.rows("select 1") is None:
            return False
        with contextlib.suppress(Exception):
            self.up.ask("{version}")
            return True
        return False


def _kill(machine: Machine, fault: Fault, process: psutil.Process | None, again: Callable[[], Any]) -> None:
    if process is None:
        raise NotHere("there was none at that moment")
    fault.note = str(process.pid)
    with contextlib.suppress(psutil.Error):
        process.kill()
    fault.back = machine.until(lambda: (one := again()) is not None and one.pid != process.pid)


def kill_daemon(machine: Machine, fault: Fault) -> None:
    """The daemon dies, and with it what watches runs and starts them."""
    _kill(machine, fault, machine.service("daemon"), lambda: machine.service("daemon"))


def kill_web_server(machine: Machine, fault: Fault) -> None:
    """The web server dies."""
    _kill(machine, fault, machine.service("webserver"), lambda: machine.service("webserver"))
    fault.back = _sum(fault.back, machine.until(machine.answers))


def kill_code_server(machine: Machine, fault: Fault) -> None:
    """One of the processes dies in which the definitions are loaded and the sensors look."""
    servers = machine.up.processes("dagster", "grpc")
    if not servers:
        raise NotHere("there was none at that moment")
    killed = machine.chance.choice(servers)
    before = {process.pid for process in servers}
    killed.kill()
    fault.back = machine.until(lambda: any(one.pid not in before for one in machine.up.processes("dagster", "grpc")))


def kill_worker(machine: Machine, fault: Fault) -> None:
    """The worker of a run dies."""
    if machine.until(machine.workers, 60) is None:
        raise NotHere("no run was under way for a minute")
    time.sleep(machine.seconds(0, 12))
    workers = machine.workers()
    if not workers:
        raise NotHere("the run was quicker")
    machine.chance.choice(workers).kill()


def kill_up(machine: Machine, fault: Fault) -> None:
    """The command dies, and its services go on without it until it is started again."""
    assert machine.up.process is not None
    machine.up.process.kill()
    machine.up.process.wait()
    time.sleep(machine.seconds(0, 8))
    machine.watch()
    fault.back = machine.until(lambda: "The lab is up" in machine.up.said())


def kill_postmaster(machine: Machine, fault: Fault) -> None:
    """Postgres dies, with all connections."""
    _kill(machine, fault, machine.postmaster(), lambda: machine.postmaster() if machine.rows("select 1") else None)


def kill_lock_holder(machine: Machine, fault: Fault) -> None:
    """The backend that holds an advisory lock dies, and Postgres with it starts all others anew."""
    machine.until(lambda: machine.rows(_ADVISORY), 40)
    held = machine.rows(_ADVISORY)
    if not held:
        raise NotHere("nobody held a lock for 40 s")
    os.kill(held[0]["pid"], signal.SIGKILL)
    fault.back = machine.until(lambda: machine.rows("select 1"))


def end_lock_connection(machine: Machine, fault: Fault) -> None:
    """The connection with an advisory lock is lost, and no other."""
    machine.until(lambda: machine.rows(_ADVISORY), 40)
    if not machine.rows(f"select pg_terminate_backend(pid) from ({_ADVISORY}) as held"):
        raise NotHere("nobody held a lock for 40 s")


def end_connections(machine: Machine, fault: Fault) -> None:
    """Some connections are lost, and others not."""
    for _ in range(round(machine.seconds(3, 12))):
        machine.rows(f"select pg_terminate_backend(pid) from ({_BACKENDS} order by random() limit 2) as chosen")
        time.sleep(machine.seconds(0.05, 1))


def stop_postgres(machine: Machine, fault: Fault) -> None:
    """Somebody stops Postgres the orderly way."""
    before = machine.postmaster()
    server.stop(machine.home / "postgres")
    fault.back = machine.until(lambda: machine.rows("select 1"))
    fault.note = "" if before is None else str(before.pid)


def stop_and_start(machine: Machine, fault: Fault) -> None:
    """`up` is stopped with Ctrl-C, and started again after a while."""
    assert machine.up.process is not None
    machine.up.process.send_signal(signal.SIGINT)
    try:
        machine.up.process.wait(180)
    except subprocess.TimeoutExpired:
        fault.note = "it did not stop"
        machine.up.process.kill()
    time.sleep(machine.seconds(0, 10))
    machine.watch()
    fault.back = machine.until(lambda: "The lab is up" in machine.up.said())


def second_up(machine: Machine, fault: Fault) -> None:
    """Somebody starts the lab once more."""
    second = subprocess.run(
        [COMMAND, "up", str(machine.home), "--port", str(machine.up.port + 1)],
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if second.returncode != 1 or "is up already" not in second.stderr:
        fault.note = f"it was not refused: {second.returncode} {second.stderr[-200:]}"


def _fill(machine: Machine, fault: Fault, which: str) -> None:
    if (disk := machine.disks.get(which)) is None:
        raise NotHere("no small disk could be mounted")
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 24, 1 << 20, 1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    _wait(machine, 15, 60)
    filler.unlink()


def full_store(machine: Machine, fault: Fault) -> None:
    """The disk of the store is full for a while."""
    _fill(machine, fault, "store")


def full_database(machine: Machine, fault: Fault) -> None:
    """The disk of the database is full for a while."""
    _fill(machine, fault, "postgres")
    fault.back = machine.until(lambda: machine.rows("select 1"))


def raw_root_away(machine: Machine, fault: Fault) -> None:
    """The raw root is not there for a while."""
    source = machine.recorded
    with machine.raw:
        away = source.with_name(f"{source.name}.away")
        source.rename(away)
        try:
            _wait(machine, 4, 45)
        finally:
            away.rename(source)


def raw_root_hangs(machine: Machine, fault: Fault) -> None:
    """Who reads in the raw root waits, for as long as its mount does not answer."""
    mount = machine.require_mount()
    with machine.raw:
        mount.process.send_signal(signal.SIGSTOP)
        try:
            _wait(machine, 10, 60)
        finally:
            mount.process.send_signal(signal.SIGCONT)


def raw_root_broken(machine: Machine, fault: Fault) -> None:
    """Who reads in the raw root gets errors of a disk."""
    mount = machine.require_mount()
    with machine.raw:
        mount.broken.touch()
        try:
            _wait(machine, 4, 45)
        finally:
            mount.broken.unlink()


def raw_root_unmounted(machine: Machine, fault: Fault) -> None:
    """The mount of the raw root dies, and is an empty folder for a while."""
    mount = machine.require_mount()
    with machine.raw:
        mount.process.kill()
        mount.process.wait()
        _wait(machine, 1, 15)
        mount.unmount()
        _wait(machine, 4, 30)
        mount.mount()


def _another_time(machine: Machine, least: int, most: int) -> None:
    if machine.clock is None:
        raise NotHere("no clock can be set here")
    machine.clock.set(machine.chance.randint(least, most))
    try:
        _wait(machine, 10, 90)
    finally:
        machine.clock.set(0)


def clock_forward(machine: Machine, fault: Fault) -> None:
    """The clock is set forward, by up to a day, and back again."""
    _another_time(machine, 60, 86400)


def clock_back(machine: Machine, fault: Fault) -> None:
    """The clock is set back, by up to an hour, and forward again."""
    _another_time(machine, -3600, -60)


def _wait(machine: Machine, least: float, most: float) -> None:
    until = time.monotonic() + machine.seconds(least, most)
    while time.monotonic() < until:
        machine.watch()
        time.sleep(0.5)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


FAULTS: dict[str, Callable[[Machine, Fault], None]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        *(kill_daemon, kill_web_server, kill_code_server, kill_worker, kill_up, kill_postmaster, kill_lock_holder),
        *(end_lock_connection, end_connections, stop_postgres, stop_and_start, second_up),
        *(full_store, full_database, raw_root_away, raw_root_hangs, raw_root_broken, raw_root_unmounted),
        *(clock_forward, clock_back),
    )
}


def break_it(machine: Machine, kind: str) -> Fault:
    """Do one fault to the machine, and mend it again; what is left to be mended is the lab's business."""
    fault = Fault(kind, time.monotonic())
    try:
        FAULTS[kind](machine, fault)
    except NotHere as reason:
        fault.skipped = str(reason)
    except (psutil.NoSuchProcess, ProcessLookupError):
        fault.skipped = "it had just ended"
    fault.lasted = time.monotonic() - fault.begun
    return fault


def render_sessions(folder: Path, sessions: int, frames: int, long_frames: int) -> list[Arrival]:
    """Videos of sessions of one and of two cameras, one of them long, and two that are none; in `folder`."""
    arrivals = []
    chance = random.Random(sessions)
    for number in range(sessions):
        subject, session = f"d{number // 10:02}", f"{number % 10:02}"
        key = f"sub-{subject}_ses-{session}"
        cameras = ("top", "side") if number % 3 == 1 else ("top",)
        files = {}
        for index, camera in enumerate(cameras):
            video = folder / f"sub-{subject}" / f"ses-{session}" / f"recorded_cam-{camera}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            length = long_frames if number == sessions // 3 and index == 0 else frames + chance.randint(0, frames // 2)
            if not video.exists():
                render.write_video(video, render.render(1000 + 10 * number + index, length).frames)
            files[video] = video.relative_to(folder)
        arrival = Arrival(key, files, half_copied=number % 5 == 3)
        if number in (sessions // 2, sessions - 2) and sessions > 4:
            arrival.is_data, arrival.half_copied = True, False
            for video in files:
                video.write_bytes(f"no video of {key}".encode())
        arrivals.append(arrival)
    return arrivals


def arrive(machine: Machine, arrivals: list[Arrival], seconds: float) -> None:
    """Copy sessions into the raw root over some time, each file in pieces, some of them with a long pause halfway."""
    begun = time.monotonic()
    moments = sorted(machine.chance.uniform(0, seconds) for _ in arrivals)
    for moment, arrival in zip(moments, arrivals, strict=True):
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        for source, place in arrival.files.items():
            content = source.read_bytes()
            pieces = 6
            with machine.raw:
                target = machine.recorded / place
                target.parent.mkdir(parents=True, exist_ok=True)
            for piece in range(pieces):
                size = -(-len(content) // pieces)
                with machine.raw, open(target, "ab") as file:
                    file.write(content[piece * size : (piece + 1) * size])
                time.sleep(0.2)
                if arrival.half_copied and piece == pieces // 2:
                    # Longer than the lab waits for a file that has stopped growing.
                    time.sleep(4 * _SETTLE_SECONDS)
        machine.say(f"{arrival.key} has arrived")


def settings_of(raw: str, workers_wait: list[float]) -> dict[str, Any]:
    """What lab.yaml says."""
    recipe = {**material.RECIPE.model_dump(mode="json"), "epochs": 2}
    return {
        "raw_roots": [raw],
        "projects": {material.PROJECT: {"path": f"{material.PROJECT}-{material.SCORER}-2026-01-01"}},
        "recipes": {FIRST: recipe, SECOND: {**recipe, "epochs": 4}},
        "inference": [{"camera": "*", "project": material.PROJECT}],
        "settle_seconds": _SETTLE_SECONDS,
        "scan_seconds": 5,
        "scan": {"unopened_seconds": 5, "sessions_per_run": 4},
        "promotion": {"rule": "person", **NOTHING_IS_HOPELESS},
        "pose_quality": NO_FLOORS,
        "runs": {"retry_minutes": workers_wait},
    }


def make_base(base: Path, say: Callable[[str], None]) -> str:
    """A lab with a labelled project and one model in production, which is down; the model's id."""
    if not (base / "model").exists():
        shutil.rmtree(base, ignore_errors=True)
        material.make_lab(base)
        base.chmod(0o755)
        (base / LAB_FILE).write_text(yaml.safe_dump(settings_of("raw", [0.1, 0.5, 1, 2, 5])))
        _command(say, "run", base, "session_videos,labeled_frames")
        _command(say, "train", base, FIRST)
        _promote(say, base, FIRST)
        (base / "model").write_text(_models(base)[FIRST])
    return (base / "model").read_text()


def make_reference(base: Path, home: Path, arrivals: list[Arrival], say: Callable[[str], None]) -> dict[str, Any]:
    """What the poses of each video are by each model where nothing breaks: a hash of its files, by estimate."""
    kept = home / "poses.json"
    if not kept.exists():
        shutil.rmtree(home, ignore_errors=True)
        copy_lab(base, home)
        for arrival in arrivals:
            for source, place in arrival.files.items():
                target = home / "raw" / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        _command(say, "run", home, "session_videos", fails=True)
        _command(say, "run", home, "pose_estimates,pose_quality", fails=True)
        _command(say, "train", home, SECOND)
        _promote(say, home, SECOND)
        _command(say, "backfill", home)
        models = _models(home)
        kept.write_text(json.dumps({"model": models[SECOND], "poses": hashes(home / "store")}))
    return json.loads(kept.read_text())


def hashes(store: Path) -> dict[str, str]:
    """Of each estimate in a store: a hash of the bytes of its poses, in both formats, and of its account of frames."""
    found = {}
    for product in sorted((store / "poses").glob("*")):
        if not (product / "manifest.json").exists():
            continue
        digest = hashlib.sha256()
        for file in sorted(product.iterdir()):
            if file.suffix in (".parquet", ".h5"):
                digest.update(file.suffix.encode() + file.read_bytes())
        found[product.name] = digest.hexdigest()
    return found


def copy_lab(base: Path, home: Path) -> None:
    """Copy a lab that is down."""
    subprocess.run(["cp", "-a", str(base), str(home)], check=True)


def _command(say: Callable[[str], None], name: str, home: Path, *arguments: str, fails: bool = False) -> str:
    environment = plain_environment() | {DIRECTORY_VARIABLE: str(home / "leases")}
    say(f"dlc-platform {name} {home} {' '.join(arguments)}")
    done = subprocess.run(
        [COMMAND, name, str(home), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and not fails:
        raise SystemExit(f"dlc-platform {name} failed: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def _models(home: Path) -> dict[str, str]:
    url = server.ensure_running(home / "postgres")
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text("select model_id, recipe from dlc.training_run order by id"))
        found = {str(row.recipe): str(row.model_id) for row in rows}
    server.stop(home / "postgres")
    return found


def _promote(say: Callable[[str], None], home: Path, recipe: str) -> None:
    _command(say, "promote", home, _models(home)[recipe], "--reason", "it is the newest")


@contextlib.contextmanager
def small_disks(home: Path, say: Callable[[str], None]) -> Iterator[dict[str, Path]]:
    """Move the store and the database of a lab onto small disks of their own, as far as that is permitted here."""
    mounted: dict[str, Path] = {}
    image = home.with_name("database.ext4")
    kinds = {"postgres": _DATABASE_MB, "store": _STORE_MB}
    try:
        for name, size in kinds.items():
            folder, aside = home / name, home / f"{name}.aside"
            folder.rename(aside)
            folder.mkdir()
            folder.chmod(aside.stat().st_mode)
            if name == "postgres":
                with open(image, "wb") as file:
                    file.truncate(size << 20)
                made = [["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(folder)]]
            else:
                made = [["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)]]
            try:
                for command in made:
                    subprocess.run(command, check=True, capture_output=True, text=True)
            except (subprocess.CalledProcessError, OSError) as error:
                say(f"no small disk for {name}: {getattr(error, 'stderr', '') or error}".strip())
                folder.rmdir()
                aside.rename(folder)
                continue
            mounted[name] = folder
            folder.chmod(aside.stat().st_mode)
            shutil.chown(folder, aside.stat().st_uid, aside.stat().st_gid)
            for entry in aside.iterdir():
                subprocess.run(["cp", "-a", str(entry), str(folder)], check=True)
            shutil.rmtree(aside)
        yield mounted
    finally:
        for folder in mounted.values():
            for _ in range(20):
                if subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode == 0:
                    break
                time.sleep(0.5)


@dataclass
class Training:
    """The second model: trained by a run that a person starts in the UI, and promoted by a person."""

    machine: Machine
    stage: str = "trains"
    run: str | None = None
    promoted: float | None = None

    def go_on(self) -> None:
        """Do the next thing that a person would."""
        found = self.machine.rows(
            "select t.model_id, p.model_id = t.model_id as in_force from dlc.training_run t "
            "left join lateral (select model_id from dlc.promotion order by id desc limit 1) p on true "
            "where t.recipe = :recipe",
            recipe=SECOND,
        )
        if found is None or self.stage == "done":
            return
        if any(row["in_force"] for row in found):
            self.stage, self.promoted = "done", time.monotonic()
            self.machine.say("the second model is in production")
            return
        if self.run is not None and not self._has_ended(self.run):
            return
        try:
            client = DagsterGraphQLClient(
                "127.0.0.1", port_number=self.machine.up.port, headers=authorization(self.machine.home)
            )
            if not found:
                if self.run is not None:
                    self.machine.say(f"the training {self.run} has ended without a model: a person starts it again")
                    self.machine.helped.append("the training")
                self.run = client.submit_job_execution("train_recipe", tags={"dagster/partition": SECOND})
            elif self.stage != "promotes" or self.run is None or self._has_ended(self.run):
                choice = {"model": str(found[0]["model_id"]), "reason": "it is the newest", "by": "a person"}
                self.run = client.submit_job_execution(
                    "promote_model", run_config={"ops": {"production_model": {"config": choice}}}
                )
                self.stage = "promotes"
        except Exception as error:  # a person tries again
            self.machine.say(f"the UI did not take it: {type(error).__name__}: {str(error)[:200]}")

    def _has_ended(self, run_id: str) -> bool:
        """True when a run has ended, and no other takes its place."""
        rows = self.machine.rows(
            "select status, (select value from dagster.run_tags t where t.run_id = r.run_id and "
            "key = 'dagster/will_retry') as retried, (select n.run_id from dagster.run_tags n where "
            "n.key = 'dagster/parent_run_id' and n.value = r.run_id limit 1) as next from dagster.runs r "
            "where run_id = :run",
            run=run_id,
        )
        if not rows:
            return False
        (row,) = rows
        if row["next"] is not None:
            return self._has_ended(str(row["next"]))
        # Dagster says a moment after a failure whether another run takes the place of this one.
        return row["status"] in ("SUCCESS", "CANCELED") or (row["status"] == "FAILURE" and row["retried"] == "false")


#: Each file in force with what was made of it.
_POSES = """
select r.session_key, f.path, f.missing_since, count(m.id) as times, count(distinct m.pose_estimate_id) as estimates,
       max(m.pose_estimate_id) as estimate
from dlc.recording_file f join dlc.recording r on r.id = f.recording_id
left join dlc.recording_poses m on m.recording_file_id = f.id
where f.replaced_at is null group by r.session_key, f.path, f.missing_since
"""
_UNFINISHED = (
    "select run_id, status from dagster.runs where status in ('NOT_STARTED', 'QUEUED', 'STARTING', 'STARTED', "
    "'CANCELING') or (status = 'FAILURE' and exists (select from dagster.run_tags t where t.run_id = runs.run_id and "
    "key = 'dagster/will_retry' and value = 'true') and not exists (select from dagster.run_tags t where "
    "t.key = 'dagster/parent_run_id' and t.value = runs.run_id))"
)


def is_over(machine: Machine, arrivals: list[Arrival]) -> bool:
    """True when every session that can have poses has some, and nothing is under way any more."""
    poses = machine.rows(_POSES)
    if poses is None:
        return False
    with_poses = {Path(row["path"]).relative_to(machine.home / "raw") for row in poses if row["times"]}
    wanted = {place for one in arrivals if not one.is_data for place in one.files.values()}
    data = {one.key for one in arrivals if one.is_data}
    held = machine.rows("select distinct session_key from dlc.quarantine where stage = 'videos'") or []
    if data - {row["session_key"] for row in held}:
        return False
    if wanted - with_poses:
        return False
    return machine.rows(_UNFINISHED) == []


@dataclass
class Outcome:
    """What is left of the faults; each list names what is wrong."""

    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    held_up: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    recorded_again: int = 0
    half_written: int = 0
    files: int = 0

    @property
    def is_clean(self) -> bool:
        """True when nothing is wrong."""
        return not (self.lost or self.repeated or self.other or self.held_up or self.left_over)


def judge(machine: Machine, arrivals: list[Arrival], reference: Mapping[str, str]) -> Outcome:
    """Hold the sessions of a lab that is still up against those of the one in which nothing broke."""
    outcome = Outcome(held_up=[f"{one} waited for a person" for one in machine.helped])
    own = {one.key: one for one in arrivals}
    poses = [row for row in machine.told(_POSES) if row["session_key"] in own]
    made = hashes(machine.home / "store")
    known = {Path(row["path"]).relative_to(machine.home / "raw") for row in poses}
    for arrival in arrivals:
        outcome.lost += [f"{place} is not registered" for place in arrival.files.values() if place not in known]
    for row in poses:
        if own[row["session_key"]].is_data:
            continue
        outcome.files += 1
        outcome.recorded_again += row["times"] > 1
        if row["missing_since"] is not None:
            outcome.held_up.append(f"{row['path']} is taken for missing")
        if not row["times"]:
            outcome.lost.append(f"{row['path']} has no poses")
        elif row["estimates"] > 1:
            outcome.repeated.append(f"{row['path']} was tracked {row['estimates']} times")
        elif made.get(row["estimate"]) is None or made[row["estimate"]] != reference.get(row["estimate"]):
            outcome.other.append(f"{row['path']}: {row['estimate']} is other than undisturbed")
    for row in machine.told("select session_key, stage, reason from dlc.quarantine where released_at is null"):
        if row["session_key"] in own and not own[row["session_key"]].is_data:
            outcome.held_up.append(f"{row['session_key']} ({row['stage']}): {row['reason']}")
    held = {row["session_key"] for row in machine.told("select session_key from dlc.quarantine")}
    outcome.held_up += [f"{one.key} is not in quarantine" for one in arrivals if one.is_data and one.key not in held]
    outcome.left_over += [f"run {row['run_id']} is {row['status']}" for row in machine.told(_UNFINISHED)]
    outcome.left_over += [f"lock of backend {row['pid']}" for row in machine.told(_ADVISORY)]
    return outcome


def judge_what_is_left(machine: Machine, outcome: Outcome) -> None:
    """Stop the lab, and add what it has left over."""
    home = machine.home
    if (code := machine.up.end(signal.SIGTERM)) != 0:
        outcome.left_over.append(f"`up` ended with {code}: {machine.up.said()[-300:]}")
    outcome.left_over += [f"process {process.pid} {process.cmdline()}" for process in machine.up.processes()]
    # What a kill left half-written is removed when nobody has written to it for a day.
    half_written = list((home / "store").glob("*/.*"))
    for path in half_written:
        make_old(path)
    outcome.half_written = len(half_written)
    Store(home / "store").remove_partials()
    for pattern in ("store/*/.*", "store/.*", "*.part", "work/*"):
        outcome.left_over += [f"file {path.relative_to(home)}" for path in home.glob(pattern)]
    for lease in (home / "leases").glob("*"):
        if subprocess.run(["flock", "-n", str(lease), "true"], check=False).returncode:
            outcome.left_over.append(f"lease {lease.name}")
    verified = subprocess.run(
        [COMMAND, "verify", str(home)], env=plain_environment(), capture_output=True, text=True, check=False
    )
    server.stop(home / "postgres")
    if verified.returncode:
        outcome.left_over.append(f"verify: {verified.stdout[-500:]}{verified.stderr[-500:]}")


def main(
    sessions: int = 60,
    minutes: float = 20,
    seed: int = 0,
    kinds: Annotated[str, typer.Option(help="Faults, separated by commas; all of them by default.")] = "",
    faults: Annotated[int, typer.Option(help="How many; as many as fit into the time by default.")] = 1000,
    frames: int = 60,
    long_frames: int = 2500,
    folder: Annotated[Path | None, typer.Option(help="Where the labs go, to be looked at and used again.")] = None,
) -> None:
    """Let sessions arrive in a lab whose machine breaks, and print what became of them."""
    chosen = kinds.split(",") if kinds else list(FAULTS)
    if unknown := set(chosen) - FAULTS.keys():
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="disorder-benchmark-") as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o755)  # the embedded server may run as another user
        make_base(place / "base", say)
        arrivals = render_sessions(place / f"videos-{sessions}-{frames}", sessions, frames, long_frames)
        home = place / f"lab-{seed}"
        shutil.rmtree(home, ignore_errors=True)
        copy_lab(place / "base", home)
        with small_disks(home, say) as disks, mounted_raw_root(home, say) as mount:
            clock = Clock.made(place, say)
            lab = Up(home)
            lab.environment |= clock.environment if clock is not None else {}
            machine = Machine(lab, random.Random(seed), say, disks, mount, clock)
            try:
                done, everything, forgotten = disorder(machine, arrivals, chosen, minutes * 60, faults)
                reference = make_reference(place / "base", place / f"reference-{sessions}-{frames}", arrivals, say)
                outcome = judge(machine, everything, reference["poses"])
                models = [row["model_id"] for row in machine.told("select model_id from dlc.training_run order by id")]
                if models[1:] != [reference["model"]]:
                    outcome.other.append(f"the second model is {models[1:]}, undisturbed {reference['model']}")
                judge_what_is_left(machine, outcome)
            finally:
                lab.ensure_down()
        print_report(done, outcome, forgotten, machine)
    if not outcome.is_clean:
        raise SystemExit(1)


def disorder(
    machine: Machine,
    arrivals: list[Arrival],
    kinds: list[str],
    seconds: float,
    most: int,
) -> tuple[list[Fault], list[Arrival], float | None]:
    """Do faults to a lab while sessions arrive.

    Returns
    -------
    tuple
        The faults, all sessions of the lab, and after how many seconds the last fault was forgotten; None if it was
        not.
    """
    there = [
        Arrival(video.name.removesuffix("_cam-top.mp4"), {video: video.relative_to(machine.recorded)})
        for video in sorted(machine.recorded.rglob("*.mp4"))
    ]
    everything = [*there, *arrivals]
    machine.up.ensure()
    copier = threading.Thread(target=arrive, args=(machine, arrivals, seconds * 0.9), daemon=True)
    copier.start()
    training = Training(machine)
    end = time.monotonic() + seconds
    pause = max(4.0, seconds / max(1, min(most, int(seconds / 40))) - 15)
    order: list[str] = []
    done: list[Fault] = []
    while time.monotonic() < end and len(done) < most:
        until = time.monotonic() + machine.chance.uniform(0.3, 1.0) * pause
        while time.monotonic() < min(until, end):
            machine.watch()
            if time.monotonic() > end - 0.7 * seconds:
                training.go_on()
            time.sleep(1)
        if not order:
            order = machine.chance.sample(kinds, len(kinds))
        kind = order.pop()
        machine.say(f"now {kind}")
        fault = break_it(machine, kind)
        done.append(fault)
        machine.say(f"    {fault.skipped or 'done'}: {fault.lasted:.1f} s, back after {fault.back} {fault.note}")
    last = time.monotonic()
    copier.join()
    machine.say("the last fault is over")
    forgotten = machine.until(
        lambda: (
            (training.go_on() or True)
            and training.stage == "done"
            and is_over(machine, everything)
            and not time.sleep(5)
            and is_over(machine, everything)
        ),
        _PATIENCE_SECONDS,
    )
    forgotten = None if forgotten is None else time.monotonic() - last
    machine.say(f"the last fault is forgotten after {forgotten} s")
    return done, everything, forgotten


def print_report(done: list[Fault], outcome: Outcome, forgotten: float | None, machine: Machine) -> None:
    """Print the table of the faults, and what became of the sessions."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in done:
        by_kind[fault.kind].append(fault)
    print(f"\n{'fault':22} {'done':>4} {'not':>4} {'lasted s':>9} {'back after s, median and most':>30}")
    for kind, own in sorted(by_kind.items()):
        real = [one for one in own if one.skipped is None]
        back = [one.back for one in real if one.back is not None]
        lasted = f"{statistics.median(one.lasted for one in real):.1f}" if real else ""
        shown = f"{statistics.median(back):.1f} {max(back):.1f}" if back else ""
        print(f"{kind:22} {len(real):4} {len(own) - len(real):4} {lasted:>9} {shown:>30}")
        for reason in sorted(
            {one.skipped for one in own if one.skipped} | {one.note for one in own if " " in one.note}
        ):
            print(f"    {reason}")
    print(
        f"\n{sum(one.skipped is None for one in done)} faults; {outcome.files} files to track: {len(outcome.lost)} "
        f"lost, {len(outcome.repeated)} repeated, {len(outcome.other)} other than undisturbed, "
        f"{len(outcome.held_up)} held up, "
        f"{outcome.recorded_again} found again by a later run; left over: {len(outcome.left_over)}, and "
        f"{outcome.half_written} half-written products, which are removed a day later; `up` started again "
        f"{machine.starts} times; the last fault was forgotten after "
        f"{'never' if forgotten is None else f'{forgotten / 60:.1f} minutes'}"
    )
    for line in (*outcome.lost, *outcome.repeated, *outcome.other, *outcome.held_up, *outcome.left_over):
        print(f"  {line}")


if __name__ == "__main__":
    typer.run(main)
