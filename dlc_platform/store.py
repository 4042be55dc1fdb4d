"""The store: one immutable directory for each product, named by its identity.

A product is written in a hidden directory beside its final place, fsynced and renamed, so a directory that exists is
complete. What a product contains is decided by the module that makes it; nothing here knows about DeepLabCut.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from dlc_platform.errors import PlatformError

Kind = Literal["datasets", "models", "evaluations", "poses"]
MANIFEST = "manifest.json"


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
            When the disk is full.
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
        return final

    @contextmanager
    def _beside(self, final: Path) -> Iterator[Path]:
        partial = final.parent / f".partial-{final.name[:12]}-{uuid4().hex[:8]}"
        try:
            partial.mkdir(parents=True)
            yield partial
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PlatformError(
                    f"no space left on the disk of the store {self.root}",
                    "Free some space, or point `store` in lab.yaml to a larger disk, and run again",
                ) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def remove_partials(self) -> list[Path]:
        """Remove what a crash left half-written. Call it only while nothing else writes to the store."""
        partials = sorted(self.root.glob("*/.partial-*"))
        for partial in partials:
            shutil.rmtree(partial)
        return partials


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
