"""One `up` of a lab, from first port to last process: who may be up, on which ports, and what systemd is told.

`services` has the services themselves; `stopping` stops them from another process.
"""

import contextlib
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dlc_platform.errors import PlatformError, command
from dlc_platform.orchestration.clock import forget_the_future
from dlc_platform.orchestration.instance import clean, is_used, open_lock, prepare, where_it_stands
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.services import Services, end_left_over
from dlc_platform.postgres import server
from dlc_platform.postgres.connection import is_external
from dlc_platform.settings.loading import load_lab
from dlc_platform.text.words import counted

_PORT_SECONDS = 10
#: Held by the `up` that is at work, whose process it names.
_UP_LOCK = "up.lock"


@contextlib.contextmanager
def running(
    home: Path, port: int | None, say: Callable[[str], None], read_only_port: int | None = None
) -> Iterator[Services]:
    """The services of a lab, up and answering; everything is stopped at the end.

    Parameters
    ----------
    port
        The port of the webserver on 127.0.0.1; None takes a free one.
    read_only_port
        The port of a second webserver, in which nothing can be started or changed; None starts none.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid, the lab is up already, the port is taken, or a service does not start.
    """
    load_lab(home)
    with only_one(home):
        # A killed process may hold its port for a moment longer.
        patience = _PORT_SECONDS if end_left_over(home) else 0
        port = port or _free_port()
        _require_free(port, patience)
        if read_only_port is not None:
            if read_only_port == port:
                raise PlatformError(
                    f"port {port} is given to both webservers", "Choose another one with --read-only-port"
                )
            _require_free(read_only_port, patience, "--read-only-port")
        embedded = not is_external()
        say("Starting Postgres" if embedded else "Connecting to Postgres")
        services = None
        for sentence in where_it_stands(home):
            say(sentence)
        try:
            services = Services(home, port, prepare(home), say, read_only_port)
            clean(LabResource(home=str(home)))
            if waiting := forget_the_future(services.instance):
                say(f"The clock was set back since the lab was up; go on from now: {', '.join(waiting)}")
            say("Starting the Dagster webserver and daemon")
            services.start()
            services.wait_until_ready()
            _tell_systemd("READY=1")
            yield services
        finally:
            with _undisturbed():
                _tell_systemd("STOPPING=1")
                say("Stopping")
                try:
                    if services is not None and (stopped := services.stop()):
                        say(
                            f"{counted(stopped, 'run was', 'runs were')} under way; "
                            f"{'it goes' if stopped == 1 else 'they go'} on when the lab is started again"
                        )
                finally:
                    if embedded and not is_used(home):
                        server.stop(home / "postgres")


def _tell_systemd(state: str) -> None:
    """Report the state to the systemd that started this unit, if one did (sd_notify(3))."""
    if place := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # A socket whose name begins with @ has no file.
            sender.sendto(state.encode(), place.replace("@", "\0", 1) if place.startswith("@") else place)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Prevent a second Ctrl-C, or a terminal that closes after it, from leaving half of the lab running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def process_of_up(home: Path) -> int | None:
    """The process of the `up` that is at work on a lab; None if there is none."""
    with open_lock(home / _UP_LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            said = lock.read().strip()
            # It is about to write it.
            return int(said) if said.isdigit() else None
        return None


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold a right that only one process may have at a time: to be up, or to end the remains of an earlier one.

    Raises
    ------
    PlatformError
        When another process holds it.
    """
    with open_lock(home / _UP_LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise PlatformError(
                f"the lab {home} is up already, in process {lock.read().strip()}",
                f"Use that one, or stop it with Ctrl-C or {command('stop', home)}",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _require_free(port: int, patience: float, option: str = "--port") -> None:
    deadline = time.monotonic() + patience
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise PlatformError(
                        f"port {port} is taken: {error.strerror}", f"Choose another one with {option}"
                    ) from None
        time.sleep(0.1)
