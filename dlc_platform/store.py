"""The store: one immutable directory for each product, named by its identity.

A product is written in a hidden directory beside its final place, fsynced and renamed, so a directory that exists is
complete; it is removed in the reverse order. Its manifest lists the SHA-256 of its other files. Work that takes hours
is kept in a workspace beside it, in which it is continued after an interruption. The module that makes a product
decides about its content; nothing here knows about DeepLabCut. `retention` decides which products are still needed.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from dlc_platform.errors import MachineFault, PlatformError, one_line
from dlc_platform.faults import FULL
from dlc_platform.identity import is_identity, sha256_file

Kind = Literal["datasets", "models", "exports", "evaluations", "poses"]
#: A product's kind and identity.
Product = tuple[Kind, str]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: A view, from which pages draw, by what it is of. It may be removed at any time.
View = Literal["poses", "previews", "pictures"]
MANIFEST = "manifest.json"
_VIEWS = "views"
_PARTIAL = ".partial-"
_WORK = ".work-"
_LOCK = "lock"
#: The possible names of a product's folder. Those of a lab are identities; a hidden folder is not a product.
_NAME = re.compile(r"\w[\w -]{0,127}")
_SPARE_BYTES = 1 << 20
_LEFT_OVER_SECONDS = 24 * 3600
_INTERRUPTED_SECONDS = 30 * 24 * 3600
#: The way to get a lost product again, by its kind.
_MADE_AGAIN = {
    "datasets": ", or move it away and materialise training_dataset again",
    "models": ", or train its recipe again, which gives another version (one from elsewhere is imported again)",
    "exports": ", or move it away: the next run makes it again",
    "evaluations": ", or move it away and materialise model_evaluation and model_comparison again",
    "poses": ", or move it away and materialise pose_estimates again (poses from elsewhere are imported again)",
}


class ListedFile(BaseModel):
    """A file of a product as its manifest lists it, with its path below the product."""

    model_config = ConfigDict(strict=True, frozen=True)

    path: str
    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """The ``manifest.json`` of a product; `manifests` has the keys of each kind.

    It is written once, as JSON with sorted keys, and the catalogue knows the hash of its bytes. Keys that are not known
    here are left alone: other versions have written them, and the lab of a newer one does not open.

    Attributes
    ----------
    files
        All other files; None in products from before they were listed.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    files: list[ListedFile] | None = None

    @classmethod
    def read(cls, product: Path) -> Self:
        """The manifest of the product in this directory.

        Raises
        ------
        PlatformError
            As `opened` does; and when it does not say what a product of this kind says, naming the key.
        """
        with opened(product, MANIFEST) as file:
            return cls.parse(file.read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The manifest with this text.

        Raises
        ------
        ValueError
            When it is not the text of such a manifest, with its faults in words.
        """
        try:
            return cls.model_validate(json.loads(text))
        except RecursionError:
            raise ValueError("it holds lists in lists without end") from None
        except ValidationError as error:
            raise ValueError(in_words(error)) from None

    def said(self) -> dict[str, Any]:
        """The values that were given, for `Store.put`: nothing is added, and no number changes its type."""
        return self.model_dump(exclude_unset=True)


def in_words(error: ValidationError) -> str:
    """The faults of a manifest in one line, without its values, which can be long."""
    told = []
    for one in error.errors():
        place, message = ".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")
        if one["type"] == "missing":
            told.append(f"it does not say `{place}`")
        else:
            told.append((f"`{place}`: " if place else "") + message[:1].lower() + message[1:])
    return "; ".join(told)


class Store:
    """Products below one directory, as ``root/kind/identity``."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, kind: Kind, identity: str) -> Path:
        """The present or future folder of a product.

        Raises
        ------
        PlatformError
            When no product has such a name, which could lead out of the store: rows and manifests can come from
            anybody.
        """
        return self._place(Path(kind), identity)

    def _place(self, folder: Path, identity: str) -> Path:
        if not _NAME.fullmatch(identity):
            raise PlatformError(
                f"{one_line(repr(identity))} is not the identity of a product ({folder}), "
                "so it names no folder of the store",
                "See who wrote the row or the manifest that names it; nothing was read or removed",
            )
        return self.root / folder / identity

    def has(self, kind: Kind, identity: str) -> bool:
        """True if the product exists; an existing product is complete."""
        return self.path(kind, identity).is_dir()

    def put(self, kind: Kind, identity: str, manifest: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Make a product that does not exist yet; an existing one is kept unchanged.

        Parameters
        ----------
        manifest
            Written as ``manifest.json`` of the product, with the key `files` added: path, size in bytes and SHA-256 of
            every other file. See `Manifest.said`.
        write
            Called with an empty directory, which it fills. If it raises an error, nothing visible is left.

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
            text = json.dumps({**manifest, "files": _files(partial)}, indent=2, sort_keys=True)
            (partial / MANIFEST).write_text(text)
            _sync_tree(partial)
            _rename_unless_there(partial, final)
            _sync(final.parent)
            _sync(self.root)
        return final

    def view(self, kind: View, identity: str, write: Callable[[Path], None]) -> Path:
        """A view, from which a page draws, made if it is not there; those that were looked at last are the last to go.

        Parameters
        ----------
        write
            Called with an empty directory, which it fills. Whatever it raises leaves nothing visible behind.

        Raises
        ------
        PlatformError
            When the disk is full, or nothing can be written to the store.
        """
        final = self._place(Path(_VIEWS, kind), identity)
        if not final.is_dir():
            with self._beside(final) as partial:
                write(partial)
                _sync_tree(partial)
                _rename_unless_there(partial, final)
        with suppress(OSError):  # of another user, who looks at it, too
            os.utime(final)
        return final

    def has_view(self, kind: View, identity: str) -> bool:
        """True when a view is there."""
        return self._place(Path(_VIEWS, kind), identity).is_dir()

    def trim_views(self, most_bytes: int) -> int:
        """Remove the views that nobody has looked at for longest, until the others take no more than so many bytes.

        What a crash has left half-written goes after a day. Returns how many bytes that freed.
        """
        folders = [path for kind in get_args(View) for path in self._listed(f"{_VIEWS}/{kind}", os.DirEntry.is_dir)]
        left, freed = 0, 0
        for folder in sorted(folders, key=_last_used, reverse=True):
            size = sum(path.lstat().st_size for path in folder.rglob("*"))
            if folder.name.startswith(_PARTIAL):
                useless = _is_left_over(folder)
            else:
                left += size
                useless = left > most_bytes
            if useless:
                shutil.rmtree(folder, ignore_errors=True)
                freed += size
        return freed

    @contextmanager
    def workspace(self, kind: Kind, identity: str) -> Iterator[Path]:
        """The directory of the work on a product that is continued after an interruption; it is removed with the
        product's completion.

        Only one process at a time is in it. Others wait, and may find the product when it is their turn. A file that is
        written there with `write_atomically` is complete or missing, whatever happens.
        """
        final = self.path(kind, identity)
        folder = final.parent / f"{_WORK}{identity}"
        with self._locked(folder):
            try:
                yield folder
            except OSError as error:
                if error.errno in FULL:
                    raise self._full() from error
                raise
            finally:
                if final.is_dir():
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = open(folder / _LOCK, "wb")  # noqa: SIM115 (kept open over the whole work)
            except FileNotFoundError:  # the process that was in it has removed it just now
                continue
            except OSError as error:
                raise self._not_written(error) from error
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it when the process ends, however that happens
                if _is_still(folder / _LOCK, file.fileno()):
                    yield
                    return

    def claim(self, kind: Kind, identity: str) -> str:
        """The SHA-256 of a product's manifest, for the row that is about to name it.

        The product counts as written now, so that it is not removed as unused before its row is written.
        """
        path = self.path(kind, identity)
        with suppress(PermissionError, FileNotFoundError):  # it belongs to another user, and we cannot remove it either
            os.utime(path)
        with opened(path, MANIFEST) as manifest:
            return sha256_file(manifest)

    @contextmanager
    def _beside(self, final: Path) -> Iterator[Path]:
        partial = _hidden(final)
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise self._not_written(error) from error
        try:
            yield partial
        except PlatformError:
            raise
        except Exception as error:
            # Libraries wrap "no space left" in their own exceptions, or lose it, so the disk itself is asked.
            if (isinstance(error, OSError) and error.errno in FULL) or disk_is_full(partial):
                raise self._full() from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _not_written(self, error: OSError) -> PlatformError:
        if error.errno in FULL:
            return self._full()
        return PlatformError(
            f"nothing can be written to {error.filename or self.root} in the store: {error.strerror}",
            "Check its disk and permissions, or point `store` in lab.yaml to another folder, and run again",
        )

    def _full(self) -> MachineFault:
        return MachineFault(
            f"no space left on the disk of the store {self.root}",
            "Free some space, or point `store` in lab.yaml to a larger disk, and run again",
        )

    def products(self) -> list[Product]:
        """The products that exist; the target of a link is not one."""
        return [(kind, path.name) for kind in KINDS for path in self._listed(kind, is_product)]

    def remove(self, kind: Kind, identity: str) -> bool:
        """Remove a product that nobody has written or claimed for a day: it is hidden first, then removed file by file.

        Returns
        -------
        bool
            False if it is kept because it is younger or a link, or if it does not exist.
        """
        final = self.path(kind, identity)
        if final.is_symlink() or not final.is_dir() or not is_left_alone(final):
            return False
        hidden = _hidden(final)
        try:
            os.rename(final, hidden)
        except FileNotFoundError:  # somebody else removes it
            return False
        if not is_left_alone(hidden):  # claimed between our check and the renaming
            _rename_unless_there(hidden, final)
            return False
        _sync(final.parent)
        shutil.rmtree(hidden)
        return True

    def discard(self, kind: Kind, identity: str) -> None:
        """Remove a damaged product that the caller will make anew; it is hidden first."""
        hidden = _hidden(self.path(kind, identity))
        try:
            os.rename(self.path(kind, identity), hidden)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._not_written(error) from error
        shutil.rmtree(hidden)

    def left_overs(self) -> list[Path]:
        """Folders that a crash left half-written or half-removed and that nobody has written to for a day.

        Interrupted work waits for its continuation longer, for thirty days.
        """
        return [path for kind in KINDS for path in self._listed(kind, is_partial) if _is_left_over(path)]

    def remove_left_over(self, path: Path) -> bool:
        """Remove one of `left_overs`; False if somebody works in it again, or it is gone."""
        if not path.is_dir() or not _is_left_over(path):
            return False
        shutil.rmtree(path)
        return True

    def _listed(self, kind: str, wanted: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
        folder = self.root / kind
        if folder.is_symlink() or not folder.is_dir():
            return []
        try:
            with os.scandir(folder) as entries:
                return sorted(Path(entry.path) for entry in entries if wanted(entry))
        except OSError as error:
            raise PlatformError(f"{folder} cannot be read: {error.strerror}", "Check its permissions") from error

    def remove_partials(self) -> list[Path]:
        """Remove what crashes left behind, as far as possible."""
        partials = self.left_overs()
        for partial in partials:
            shutil.rmtree(partial, ignore_errors=True)
        return partials


@contextmanager
def opened(product: Path, name: str, whole: bool = False) -> Iterator[Path]:
    """A file of a product, for reading within the block.

    Parameters
    ----------
    name
        Its path below the product.
    whole
        Check the whole content against its checksum. By default a file of the right size is trusted.

    Raises
    ------
    PlatformError
        When the product or the file is missing, has changed, or cannot be read; errors of reading within the block are
        included.
    """
    file = product / name
    with _told(product, file):
        _require_below(name)
        # An unfinished or foreign product has no manifest to compare with.
        if name != MANIFEST and is_identity(product.name):
            _require_as_made(product, name, whole)
        yield file


def require_intact(product: Path) -> None:
    """Check that every file of a product is unchanged, before hours are spent on it; raises as `opened` does."""
    for made in Manifest.read(product).files or ():
        with _told(product, product / made.path):
            _require_below(made.path)
            if sha256_file(product / made.path) != made.sha256:
                raise ValueError("its content has changed since it was made")


@contextmanager
def _told(product: Path, file: Path) -> Iterator[None]:
    """Turn an error with a file of a product into a sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise _damaged(product, f"{file} is missing", error) from error
    except OSError as error:
        raise _damaged(product, f"{file} cannot be read: {error.strerror or error}", error) from error
    except (ValueError, KeyError, EOFError) as error:
        raise _damaged(product, f"{file} is damaged: {' '.join(str(error).split())}", error) from error


def intact(product: Path, name: str) -> Path:
    """A file of a product for another program to read, with unchanged content; raises as `opened` does."""
    with opened(product, name, whole=True) as file:
        return file


def _require_below(name: str) -> None:
    """Check that the path of a product's file stays inside the product: a manifest can come from anybody."""
    if os.path.isabs(name) or ".." in name.split("/"):
        raise ValueError("its path leads out of the product")


def _require_as_made(product: Path, name: str, whole: bool) -> None:
    file = product / name
    size = file.stat().st_size
    made = {own.path: own for own in Manifest.read(product).files or ()}.get(name)
    if made is None:  # the product is older than checksums
        return
    if size != made.size_bytes:
        raise ValueError(f"it has {size} bytes, and had {made.size_bytes} when it was made")
    if whole and sha256_file(file) != made.sha256:
        raise ValueError("its content has changed since it was made")


def _damaged(product: Path, problem: str, error: Exception) -> PlatformError:
    if isinstance(error, PermissionError):
        return PlatformError(problem, "Give the user who runs the platform the right to read the store")
    if isinstance(error, FileNotFoundError) and is_identity(product.name) and not product.parent.is_dir():
        # If only a product is lost, the others of its kind are still there.
        return MachineFault(
            f"{product.parent} of the store is not there",
            "Mount its disk, or bring the folder back; work goes on by itself then",
        )
    if not is_identity(product.name):
        return PlatformError(problem, "Give the path of a file that can be read")
    again = _MADE_AGAIN.get(product.parent.name, "")
    return PlatformError(
        problem,
        f"Bring {product} back from a copy of the store{again}; `dlc-platform verify HOME` finds all such damage",
    )


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is complete and on the disk, or missing."""
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync(path.parent)


def is_product(entry: os.DirEntry[str]) -> bool:
    """True for a directory with the name of a product."""
    return entry.is_dir(follow_symlinks=False) and is_identity(entry.name)


def is_partial(entry: os.DirEntry[str]) -> bool:
    """True for a directory in which a product is being written, or was when it crashed or was interrupted."""
    return entry.is_dir(follow_symlinks=False) and entry.name.startswith((_PARTIAL, _WORK))


def is_left_alone(folder: Path) -> bool:
    """True if nothing in a folder was written for a day: no product, and no writing of its row, takes so long."""
    return last_written(folder) < time.time() - _LEFT_OVER_SECONDS


def _is_left_over(partial: Path) -> bool:
    seconds = _INTERRUPTED_SECONDS if partial.name.startswith(_WORK) else _LEFT_OVER_SECONDS
    return last_written(partial) < time.time() - seconds


def last_written(folder: Path) -> float:
    """The time of the last write to anything in a folder, in seconds since the epoch; now, if that cannot be seen."""
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:  # for example, somebody works in it
        return time.time()


def _last_used(folder: Path) -> float:
    try:
        return folder.lstat().st_mtime
    except FileNotFoundError:  # somebody else has removed it
        return 0.0


def _hidden(final: Path) -> Path:
    return final.parent / f"{_PARTIAL}{final.name[:12]}-{uuid4().hex[:8]}"


def _rename_unless_there(hidden: Path, final: Path) -> None:
    try:
        os.rename(hidden, final)
    except OSError as error:
        # Another process was quicker with the same content.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _is_still(path: Path, descriptor: int) -> bool:
    """True if the open file is the one with that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _files(folder: Path) -> list[dict[str, Any]]:
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"a product holds files of its own, but {path} is a link")
        if not path.is_dir():
            name = path.relative_to(folder).as_posix()
            files.append({"path": name, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)})
    return files


def disk_is_full(folder: Path) -> bool:
    """True if a few more bytes cannot be written, for lack of blocks or inodes, or because of the quota."""
    some = folder / f"{_PARTIAL}space"
    try:
        with open(some, "wb") as file:
            file.write(os.urandom(_SPARE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in FULL
    finally:
        with suppress(OSError):
            some.unlink(missing_ok=True)
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
