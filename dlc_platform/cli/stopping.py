"""The end of a command that works for a while: at Ctrl-C, at a signal, or with an exit code of its runs."""

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

from dlc_platform.cli.printing import complaint

stop = threading.Event()


@contextmanager
def stoppable():
    """Let SIGTERM, SIGINT and a closed terminal (SIGHUP) end the command the orderly way, wherever it is."""

    def interrupt(number: int, frame: object) -> None:
        if not stop.is_set():
            stop.set()
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What `nohup` started outlives its terminal.
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:
            signal.signal(number, interrupt)
    with suppress(KeyboardInterrupt):
        yield


def end_with(runs: Callable[[], bool]) -> None:
    """Materialise in this process; the exit code is 1 when a run failed or was interrupted."""
    succeeded = None
    with stoppable():
        succeeded = runs()
    if succeeded is None:
        sys.exit(complaint("interrupted. What was done is kept; run the same again to complete the rest"))
    if not succeeded:
        sys.exit(1)


def wait() -> None:
    with suppress(KeyboardInterrupt):
        stop.wait()
