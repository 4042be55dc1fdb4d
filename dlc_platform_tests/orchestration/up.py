"""`dlc-platform up` as a process of its own, and what the tests of it look at from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

import dagster as dg
import psutil
import sqlalchemy

from dlc_platform.orchestration.partitions import RANGE_END, RANGE_START
from dlc_platform.orchestration.web_access import address, authorization
from dlc_platform.postgres import server

COMMAND = str(Path(sys.executable).with_name("dlc-platform"))
_SECONDS = 300

Found = TypeVar("Found")


def plain_environment() -> dict[str, str]:
    """The environment without what other tests have put there for Dagster and the platform."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "DLC_PLATFORM_"))}


def wait_for(look: Callable[[], Found | None]) -> Found:
    """What `look` finds, as soon as it finds anything."""
    deadline = time.monotonic() + _SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing was found within {_SECONDS} s")
        time.sleep(0.3)
    return found


class Up:
    """A lab that is brought up and down; its runs lease devices of their own, so other labs do not hold them up."""

    def __init__(self, home: Path):
        self.home = home
        with socket.socket() as probe, socket.socket() as other:
            probe.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.port, self.read_only_port = probe.getsockname()[1], other.getsockname()[1]
        #: At the next start; it costs memory and seconds.
        self.with_read_only = False
        self.process: subprocess.Popen[bytes] | None = None
        #: Of the command, beside the plain one.
        self.environment = {"DLC_PLATFORM_LEASE_DIR": str(home / "leases")}
        self._log = home / "up.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """What lets a browser in: the URL with the token."""
        return address(self.home, self.port)

    def ask(self, query: str, read_only: bool = False) -> Any:
        """What the web server answers to GraphQL."""
        port = self.read_only_port if read_only else self.port
        headers = authorization(self.home, read_only) | {"Content-Type": "application/json"}
        body = json.dumps({"query": query}).encode()
        with urlopen(Request(f"http://127.0.0.1:{port}/graphql", body, headers)) as response:
            return json.load(response)["data"]

    def command(self) -> subprocess.Popen[bytes]:
        """Start the command, without waiting for anything."""
        read_only = ["--read-only-port", str(self.read_only_port)] if self.with_read_only else []
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                [COMMAND, "up", str(self.home), "--port", str(self.port), *read_only],
                env={**plain_environment(), **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """What the command printed since its last start."""
        return self._log.read_text()

    def ensure(self) -> None:
        """Bring the lab up unless it is, and wait until it says so."""
        if self.process is not None and self.process.poll() is None:
            return
        self.process = process = self.command()
        wait_for(lambda: "The lab is up" in self.said() or process.poll() is not None)
        assert process.poll() is None, self.said()

    def end(self, number: int) -> int:
        """Send the command a signal; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(120)

    def ensure_down(self) -> None:
        """Stop the lab, and whatever a failed test left of it."""
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGTERM)
        for process in self.processes():
            process.kill()

    def processes(self, *words: str) -> list[psutil.Process]:
        """The processes of the lab (its command, services, code servers, workers, Postgres) whose call has `words`."""
        found = []
        for process in psutil.process_iter():
            try:
                call = process.cmdline()
                # Postgres gets an environment without anything of ours.
                ours = any(str(self.home) in part for part in call) or process.environ().get(
                    "DLC_PLATFORM_HOME"
                ) == str(self.home)
                if ours and process.status() != psutil.STATUS_ZOMBIE and all(word in " ".join(call) for word in words):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """What the lab's database answers; it is started if it does not run."""
        engine = sqlalchemy.create_engine(server.ensure_running(self.home / "postgres"), poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(sqlalchemy.text(query), values)]

    def poses(self, session: str) -> list[dict[str, Any]]:
        """Each materialisation of poses for each file that the session ever had, oldest first."""
        return self.rows(
            "select recording_file.size_bytes, replaced_at, pose_estimate_id, frames, recording_poses.run_id "
            "from dlc.recording_poses join dlc.recording_file on recording_file_id = recording_file.id "
            "join dlc.recording on recording_id = recording.id "
            "join dlc.pose_estimate on pose_estimate_id = pose_estimate.id "
            "where session_key = :session order by recording_poses.id",
            session=session,
        )

    def runs(self, asset: str, session: str, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
        """The runs of an asset that begin or end with a session, oldest first."""
        server.ensure_running(self.home / "postgres")
        with dg.DagsterInstance.get() as instance:
            return [
                run
                for run in reversed(instance.get_runs(filters=dg.RunsFilter(statuses=list(statuses))))
                if dg.AssetKey(asset) in (run.asset_selection or ())
                and session in (run.tags.get(RANGE_START), run.tags.get(RANGE_END))
            ]

    def reasons(self, run_id: str) -> str:
        """Everything that a run's log says of failures."""
        with dg.DagsterInstance.get() as instance:
            return "\n".join(
                entry.message + str(entry.dagster_event.event_specific_data)
                for entry in instance.all_logs(run_id)
                if entry.dagster_event is not None
                and entry.dagster_event.event_type
                in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE)
            )
