"""The spool: a folder of the shared file system in which the service tells the workers on the nodes what to run.

An entry is all that a worker needs to know of a run. It may hold passwords, so it is readable by its owner only, and is
removed when the run has ended. A batch is what is handed to Slurm at once: a job, or an array whose tasks are runs.
What Slurm knows of jobs is in `slurm`; who submits and watches is `slurm_follower`.
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
        How many devices it asks Slurm for.
    batch, task
        The batch it was last put into and its place there; None until then.
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
        """Write an entry, in the place of any earlier one of its run.

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
        """The entry of a run; None where it was not launched through this spool, or has ended."""
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
        """Forget a run, and what its entry held."""
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
        """Put entries of equal options into a batch; its name. It counts from the moment its entries name it."""
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"
        self.batch_folder(name).mkdir(mode=0o700)
        _write(self.batch_folder(name) / "runs", "\n".join(entry.run_id for entry in entries))
        for task, entry in enumerate(entries):
            self._assign(entry, name, task)
        return name

    def undo_batch(self, batch: str) -> None:
        """Take the entries of a batch, which Slurm has not taken, out of it again."""
        for entry in self.batch_entries(batch):
            if entry is not None:
                self._assign(entry, None, 0)
        shutil.rmtree(self.batch_folder(batch), ignore_errors=True)

    def _assign(self, entry: Entry, batch: str | None, task: int) -> None:
        # It keeps its age, so that a run which was refused does not go behind those after it.
        age = _modified(self._file(entry.run_id))
        self.put(replace(entry, batch=batch, task=task))
        os.utime(self._file(entry.run_id), (age, age))

    def batch_folder(self, batch: str) -> Path:
        """Where a batch and the output of its jobs lie."""
        return self._batches / batch

    def batch_entries(self, batch: str) -> list[Entry | None]:
        """The entries of a batch by task; None for those that have ended or are in a later batch."""
        runs = (self.batch_folder(batch) / "runs").read_text().split()
        entries = [self.get(run_id) for run_id in runs]
        return [entry if entry is not None and entry.batch == batch else None for entry in entries]

    def set_job(self, batch: str, job: str) -> None:
        """Write down under which number Slurm has a batch."""
        _write(self.batch_folder(batch) / "job", job)

    def job_of(self, entry: Entry) -> str | None:
        """The job of a run, as Slurm writes it; None while it is not known to have been handed in."""
        if entry.batch is None:
            return None
        folder = self.batch_folder(entry.batch)
        try:
            job = (folder / "job").read_text()
            return f"{job}_{entry.task}" if len((folder / "runs").read_text().split()) > 1 else job
        except FileNotFoundError:
            return None

    def output_of(self, entry: Entry) -> Path | None:
        """The file of what a run's job prints; None before it is in a batch."""
        return None if entry.batch is None else self.batch_folder(entry.batch) / f"{entry.task}.out"

    def remove_old_batches(self) -> None:
        """Remove the output of batches of which no run is left, thirty days after they were made."""
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
