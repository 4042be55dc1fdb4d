"""A folder of a machine far away: a FUSE mount that shows another folder, and hangs when its process is stopped.

Run as ``python -m dlc_platform_tests.benchmarks.mounted``, with the two folders in the environment: the command line
names no lab. It needs `mfusepy`, which is no part of the project's own packages.
"""

import errno
import os
from pathlib import Path
from typing import Any

SOURCE, MOUNT = "MOUNTED_SOURCE", "MOUNTED_AT"
#: While there is such a file, every answer is an error of the disk.
BROKEN = "MOUNTED_BROKEN_WHILE"


def serve(source: Path, at: Path, broken: Path) -> None:
    """Show a folder at a mount point until the process ends."""
    import mfusepy as fuse  # pyright: ignore[reportMissingImports]

    class Folder(fuse.Operations):
        """What a folder holds, as it is."""

        use_ns = True

        def _place(self, path: str) -> str:
            if broken.exists():
                raise fuse.FuseOSError(errno.EIO)
            return f"{source}{path}"

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            status = os.lstat(self._place(path))
            names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino")
            times = {f"st_{one}time": getattr(status, f"st_{one}time_ns") for one in "amc"}
            return {name: getattr(status, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(self._place(path))]

        def statfs(self, path: str) -> dict[str, int]:
            told = os.statvfs(self._place(path))
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
            return {name: getattr(told, name) for name in names}

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(self._place(path), mode)
            return 0

        def open(self, path: str, flags: int) -> int:
            return os.open(self._place(path), flags)

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(self._place(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            self._place(path)
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            self._place(path)
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(self._place(path), length)
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(self._place(path))
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    fuse.FUSE(Folder(), str(at), foreground=True, nothreads=True, allow_other=True)


if __name__ == "__main__":
    serve(Path(os.environ[SOURCE]), Path(os.environ[MOUNT]), Path(os.environ[BROKEN]))
