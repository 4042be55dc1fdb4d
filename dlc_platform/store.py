"""The store: one immutable directory for each product, named by its identity.

A product is written in a hidden directory beside its final place, fsynced and renamed, so a directory that exists is
complete. What a product contains is decided by the module that makes it; nothing here knows about DeepLabCut.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from dlc_platform.errors import PlatformError

Kind = Literal["datasets", "models", "evaluations", "poses"]
MANIFEST = "manifest.json"
_PARTIAL = ".partial-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPARE_BYTES = 1 << 20
_LEFT_OVER_SECONDS = 24 * 3600


class Store:
    """Products below one directory, as ``root/kind/identity``."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, kind: Kind, identity: str) -> Path:
        """Where a product lies, or will lie."""
        return self.root / kind / identity

    def has(self, kind: Kind, identity: str) -> bool:
        """True when the product is there; what is there is complete."""
        return self.path(kind, identity).is_dir()

    def manifest(self, kind: Kind, identity: str) -> dict[str, Any]:
        """What a product says of itself."""
        return json.loads((self.path(kind, identity) / MANIFEST).read_text())

    def put(self, kind: Kind, identity: str, manifest: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Make a product that is not there yet; one that is there is kept as it is.

        Parameters
        ----------
        manifest
            Written as ``manifest.json`` of the product.
        write
            Called with an empty directory, which it fills. Whatever it raises leaves nothing visible behind.

        Raises
        ------
        PlatformError
            When the disk is full, or nothing can be written to the store.
        """
        final = self.path(kind, identity)
        if final.is_dir():
            return final
        with self._beside(final) as partial:
            write(partial)
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
            _sync_tree(partial)
            try:
                os.rename(partial, final)
            except OSError as error:
                # Somebody else was quicker with the same content.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _sync(final.parent)
            _sync(self.root)
        return final

    @contextmanager
    def _beside(self, final: Path) -> Iterator[Path]:
        partial = final.parent / f"{_PARTIAL}{final.name[:12]}-{uuid4().hex[:8]}"
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            if error.errno in _FULL:
                raise self._full() from error
            raise PlatformError(
                f"nothing can be written to the store {self.root}: {error.strerror}",
                "Check its disk and permissions, or point `store` in lab.yaml to another folder, and run again",
            ) from error
        try:
            yield partial
        except PlatformError:
            raise
        except Exception as error:
            # Libraries wrap "no space left" in exceptions of their own, or lose it, so the disk itself is asked.
            if (isinstance(error, OSError) and error.errno in _FULL) or _disk_is_full(partial):
                raise self._full() from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _full(self) -> PlatformError:
        return PlatformError(
            f"no space left on the disk of the store {self.root}",
            "Free some space, or point `store` in lab.yaml to a larger disk, and run again",
        )

    def remove_partials(self) -> list[Path]:
        """Remove what a crash left half-written: what nobody has written to for a day, which no product takes."""
        limit = time.time() - _LEFT_OVER_SECONDS
        partials = [path for path in sorted(self.root.glob(f"*/{_PARTIAL}*")) if _last_written(path) < limit]
        for partial in partials:
            shutil.rmtree(partial, ignore_errors=True)
        return partials


def _last_written(folder: Path) -> float:
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:  # somebody is at work in it
        return time.time()


def _disk_is_full(folder: Path) -> bool:
    """True when a few more bytes cannot be written, for want of blocks or files, or beyond the quota."""
    try:
        with open(folder / f"{_PARTIAL}space", "wb") as file:
            file.write(os.urandom(_SPARE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _FULL
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))
