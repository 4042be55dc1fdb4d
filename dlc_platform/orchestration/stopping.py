"""Stopping a lab from outside: the `up` that is at work, the remains of a killed one, and the embedded database.

`up` itself ends the services that it started.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from dlc_platform.errors import PlatformError
from dlc_platform.orchestration.instance import environment_of, is_used
from dlc_platform.orchestration.services import Services, end_left_over
from dlc_platform.orchestration.up import only_one, process_of_up
from dlc_platform.postgres import server
from dlc_platform.postgres.connection import is_external
from dlc_platform.settings.loading import load_lab
from dlc_platform.text.words import counted

#: `up` waits for its services and for Postgres, a minute each at most.
_SECONDS = 150


def stop(home: Path, say: Callable[[str], None]) -> None:
    """Stop a lab that is up, as Ctrl-C does, and its embedded Postgres, which commands start and leave running.

    A `dlc-platform run` of the lab goes on, and keeps Postgres.

    Raises
    ------
    PlatformError
        When lab.yaml is not valid, or the process at work does not end in time.
    """
    load_lab(home)
    pid = process_of_up(home)
    if pid is not None:
        say(f"Stopping the lab: its process is {pid}")
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _SECONDS
        while process_of_up(home) == pid:
            if time.monotonic() > deadline:
                raise PlatformError(
                    f"the process {pid} has not ended after {_SECONDS} s", "Read the output in its terminal or journal"
                )
            time.sleep(0.2)
        say("The lab is stopped")
    else:
        with only_one(home):
            if end_left_over(home):
                stopped = Services(home, 0, environment_of(home), say).stop()
                say(f"The remains of a killed `up` are stopped, and {counted(stopped, 'run')} with it")
            else:
                say("The lab was not up")
    if is_external():
        return
    if is_used(home):
        say("A `dlc-platform run` is at work on the lab, so Postgres goes on")
    elif server.stop(home / "postgres"):
        say("Postgres is stopped")
