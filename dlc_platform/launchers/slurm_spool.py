"""The spool: a folder of the shared file system through which the service tells the workers on the nodes what to run.

An entry has everything that a worker needs to know about a run. It may hold passwords, so only its owner can read it,
and it is removed when the run has ended. A batch is submitted to Slurm at once: a job, or an array whose tasks are
runs. `slurm` asks Slurm about jobs; `slurm_follower` submits and watches them.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dlc_platform.errors import PlatformError
from dlc_platform.launchers.slurm import Options

_KEEP_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Entry:
    """One launched run.

    Attributes
    ----------
    instance
        The reference to the Dagster instance, serialised.
    environment
        Variables that the worker gets.
    gpus
        The number of devices that it asks Slurm for.
    batch, task
        The last batch that it was put into, and its number there; None until then.
    """

    run_id: str
    instance: str
    environment: Mapping[str, str]
    options: Options
    gpus: int
    batch: str | None = None
    task: int = 0


class Spool:
    """A spool folder; made when it is first written to."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._runs = folder / "runs"
        self._batches = folder / "batches"

    def put(self, entry: Entry) -> None:
        """Write an entry; it replaces an earlier one of the same run.

        Raises
        ------
        PlatformError
            When the folder cannot be written.
        """
        try:
            for folder in (self.folder, self._runs, self._batches):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self._file(entry.run_id), json.dumps(asdict(entry)))
        except OSError as error:
            raise PlatformError(
                f"the Slurm spool {self.folder} cannot be written: {error.strerror}",
                "Let `spool` in the launcher's config name a folder of the shared file system that this user can write",
            ) from error

    def get(self, run_id: str) -> Entry | None:
        """The entry of a run; None if it was not launched through this spool, or has ended."""
        try:
            told = json.loads(self._file(run_id).read_text())
        except FileNotFoundError:
            return None
        return Entry(**{**told, "options": Options(**told["options"])})

    def entries(self) -> list[Entry]:
        """All entries, the oldest first."""
        files = sorted(self._runs.glob("*.json"), key=_modified)
        return [entry for file in files if (entry := self.get(file.stem)) is not None]

    def remove(self, run_id: str) -> None:
        """Forget a run, and the content of its entry."""
        for suffix in (".json", ".interrupted", ".lock"):
            self._file(run_id).with_suffix(suffix).unlink(missing_ok=True)

    @contextlib.contextmanager
    def interrupting(self, run_id: str) -> Iterator[bool]:
        """Give True if this block should ask a run's worker to stop; that counts as asked unless the block raises.

        Only one block of all processes gets True: a second request would disturb the worker while it tidies up.
        """
        asked = self._file(run_id).with_suffix(".interrupted")
        try:
            asked.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            yield False
            return
        try:
            yield True
        except BaseException:
            asked.unlink(missing_ok=True)
            raise

    def make_batch(self, entries: Sequence[Entry]) -> str:
        """Put entries with equal options into a batch and return its name. The batch exists as soon as its entries name
        it."""
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"
        self.batch_folder(name).mkdir(mode=0o700)
        _write(self.batch_folder(name) / "runs", "\n".join(entry.run_id for entry in entries))
        for task, entry in enumerate(entries):
            self._assign(entry, name, task)
        return name

    def undo_batch(self, batch: str) -> None:
        """Take entries out of a batch that Slurm has not accepted."""
        for entry in self.batch_entries(batch):
            if entry is not None:
                self._assign(entry, None, 0)
        shutil.rmtree(self.batch_folder(batch), ignore_errors=True)

    def _assign(self, entry: Entry, batch: str | None, task: int) -> None:
        # It keeps its age, so that a refused run does not go behind later ones.
        age = _modified(self._file(entry.run_id))
        self.put(replace(entry, batch=batch, task=task))
        os.utime(self._file(entry.run_id), (age, age))

    def batch_folder(self, batch: str) -> Path:
        """The folder of a batch and of the output of its jobs."""
        return self._batches / batch

    def batch_entries(self, batch: str) -> list[Entry | None]:
        """The entries of a batch by task; None for those that have ended or are in a later batch."""
        runs = (self.batch_folder(batch) / "runs").read_text().split()
        entries = [self.get(run_id) for run_id in runs]
        return [entry if entry is not None and entry.batch == batch else None for entry in entries]

    def set_job(self, batch: str, job: str) -> None:
        """Write down the number that Slurm gave a batch."""
        _write(self.batch_folder(batch) / "job", job)

    def job_of(self, entry: Entry) -> str | None:
        """The job of a run, as Slurm writes it; None while it is not known to have been submitted."""
        if entry.batch is None:
            return None
        folder = self.batch_folder(entry.batch)
        try:
            job = (folder / "job").read_text()
            return f"{job}_{entry.task}" if len((folder / "runs").read_text().split()) > 1 else job
        except FileNotFoundError:
            return None

    def output_of(self, entry: Entry) -> Path | None:
        """The file with the output of a run's job; None before it is in a batch."""
        return None if entry.batch is None else self.batch_folder(entry.batch) / f"{entry.task}.out"

    def remove_old_batches(self) -> None:
        """Remove the output of batches without any run left, thirty days after they were made."""
        used = {entry.batch for entry in self.entries()}
        for folder in self._batches.glob("*"):
            if folder.name not in used and time.time() - _modified(folder) > _KEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def claimed(self, run_id: str) -> Iterator[bool]:
        """Give True if this process has the run alone until the end of the block, or of the process.

        It is a lock of the shared file system, because Slurm starts a job again on another node when it does not hear
        from the first node, where the worker may still be at work.

        Raises
        ------
        PlatformError
            When the file system has no such locks.
        """
        with _locked(self._file(run_id).with_suffix(".lock")) as locked:
            yield locked

    def is_claimed(self, run_id: str) -> bool:
        """True if some worker has the run."""
        with self.claimed(run_id) as free:
            return not free

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Give True if only this process submits and watches until the end of the block."""
        if not self.folder.is_dir():
            yield False
            return
        with _locked(self.folder / "follower.lock") as locked:
            yield locked

    def _file(self, run_id: str) -> Path:
        return self._runs / f"{run_id}.json"


def _write(path: Path, content: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                yield False
                return
            raise PlatformError(
                f"{path} cannot be locked: {error.strerror}",
                "Mount the file system of the spool with locks (for Lustre: `-o flock`), or move `spool`",
            ) from error
        yield True
    finally:
        os.close(descriptor)
