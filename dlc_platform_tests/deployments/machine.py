"""A machine whose init is systemd: this one's files, whatever is written to them forgotten afterwards, and no network.

It is `systemd-nspawn` on an overlay. What is tried on it is what a person does as root.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import pytest

_SECONDS = 60
#: The code under test, with its environment.
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Started:
    """A command under way."""

    _process: subprocess.Popen[bytes]
    _output: IO[bytes]

    def signal(self, number: int, group: bool) -> None:
        """Send it a signal; to its group, as Ctrl-C does, or to it alone."""
        (first,) = psutil.Process(self._process.pid).children()
        (os.killpg if group else os.kill)(first.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(2 * _SECONDS)

    def runs(self) -> bool:
        """True as long as it has not ended."""
        return self._process.poll() is None

    def said(self) -> str:
        """What it has said so far."""
        return os.pread(self._output.fileno(), 1 << 20, 0).decode()


@dataclass(frozen=True)
class Machine:
    """It is up. `root` is where its files are seen from outside, `init` its systemd."""

    root: Path
    init: int

    def run(self, *command: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[str]:
        """What a command says that root runs there, with standard input."""
        done = subprocess.run(self._inside(*command), input=given, capture_output=True, check=False)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextlib.contextmanager
    def started(self, *command: str | Path, given: bytes = b"") -> Iterator[Started]:
        """A command that root has started there, with a group of processes of its own, as at a terminal."""
        with tempfile.TemporaryFile() as standard_input, tempfile.TemporaryFile() as said:
            standard_input.write(given)
            standard_input.seek(0)
            # Where the tests were started in the background, SIGINT is ignored.
            inside = self._inside("env", "--default-signal=INT", "setsid", *command)
            process = subprocess.Popen(inside, stdin=standard_input, stdout=said, stderr=said)
            try:
                yield Started(process, said)
            finally:
                _end(process)

    def _inside(self, *command: str | Path) -> list[str | Path]:
        return [
            *("nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid"),
            *("--root", "--wdns=/"),
            *("env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *command),
        ]

    def do(self, *command: str | Path) -> str:
        """What a command says that has to go well."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def write(self, file: str, content: str, mode: int = 0o644) -> None:
        """Write a file as root, with its folder."""
        place = self.root / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
        place.chmod(mode)


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """The machine; `folder` is an empty one for its overlay."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a machine")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("the system has no systemd-nspawn: install the package systemd-container")
    written, root = folder / "written", folder / "root"
    for made in (written, root):
        made.mkdir()
    with contextlib.ExitStack() as stack:
        _mount(stack, written, "-t", "tmpfs", "tmpfs")
        for part in ("upper", "work"):
            (written / part).mkdir()
        layers = f"lowerdir=/,upperdir={written / 'upper'},workdir={written / 'work'}"
        _mount(stack, root, "-t", "overlay", "-o", layers, "overlay")
        read_only = {CHECKOUT, Path(sys.base_prefix).resolve()} - {Path("/usr"), Path("/usr/local")}
        for place in read_only:
            for above in place.parents:
                # The account of the labs has to reach them.
                (root / above.relative_to("/")).mkdir(exist_ok=True)
                (root / above.relative_to("/")).chmod(0o755)
        log = stack.enter_context(open(folder / "log", "w+b"))
        process = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--directory", root, "--boot", "--machine", f"lab-{os.getpid()}"),
                *("--register=no", "--keep-unit", "--private-network"),
                *(f"--bind-ro={place}" for place in read_only),
                *("--", "--unit=basic.target"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(_end, process)
        yield _wait(process, root, folder / "log")


def _mount(stack: contextlib.ExitStack, place: Path, *arguments: str) -> None:
    done = subprocess.run(["mount", *arguments, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "--lazy", place], check=True)


def _wait(process: subprocess.Popen[bytes], root: Path, log: Path) -> Machine:
    deadline = time.monotonic() + _SECONDS
    while True:
        for child in psutil.Process(process.pid).children() if process.poll() is None else ():
            machine = Machine(root, child.pid)
            if machine.run("systemctl", "is-active", "basic.target").stdout.strip() == "active":
                return machine
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.xfail(f"no systemd boots on this machine: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    inside = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    for one in inside:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(_SECONDS)
