"""Comparing the store with the catalogue (`verify`), and finding the parts that nothing refers to (`garbage`).

The store writes and removes products; the catalogue knows the rows that name them. Symbolic links are never followed
here: a link is reported, and its target is never read or removed.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from dlc_platform.catalog.products import is_recorded, recorded_products
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_file
from dlc_platform.store import (
    KINDS,
    MANIFEST,
    Manifest,
    Product,
    Store,
    is_left_alone,
    is_partial,
    is_product,
    last_written,
)
from dlc_platform.text.words import counted

_BRING_BACK = "Bring the product back from a copy of the store, or remove its folder and materialise it again"


@dataclass(frozen=True)
class Difference:
    """A part of the store that differs from the catalogue or from a manifest.

    A warning is not a fault: there is nothing to compare with, or the file is as an earlier version made it.
    """

    path: Path
    problem: str
    remedy: str
    warning: bool = False


@dataclass(frozen=True)
class Garbage:
    """A product (kind and identity) that no row names; or, if `product` is None, something that a crash left behind."""

    path: Path
    product: Product | None
    size_bytes: int
    last_written: datetime


def verify(
    engine: Engine, store: Store, on_progress: Callable[[int, int], None] = lambda done, products: None
) -> Iterator[Difference]:
    """Read the whole store again and compare it with the catalogue and with the manifests.

    Nothing is changed, and a file that cannot be read does not stop it. The lab may be at work meanwhile.

    Parameters
    ----------
    on_progress
        Called with the number of products that were read and the number of all products.
    """
    # A product is in the store before its row: one with a row must be found now, and one without may get its row later.
    before = recorded_products(engine)
    if before and not store.root.is_dir():
        yield Difference(
            store.root,
            f"the store is not there, but the catalogue names {counted(len(before), 'product')} of it",
            "Mount its disk, bring it back from a copy, or correct `store` in lab.yaml",
        )
        return
    found: list[Product] = []
    unseen: set[Product] = set()
    for kind in KINDS:
        listed, differences, whole = _list(store.root / kind)
        found.extend((kind, identity) for identity in listed)
        # Something that lies there and is not a product is reported as that, and not as missing as well.
        names = {difference.path.name for difference in differences}
        unseen |= {product for product in before if product[0] == kind and (not whole or product[1] in names)}
        yield from differences
    after = recorded_products(engine)
    for kind, identity in sorted(before.keys() - set(found) - unseen):
        try:
            path = store.path(kind, identity)
        except PlatformError as error:
            yield Difference(store.root / kind, error.problem, error.remedy)
            continue
        yield Difference(
            path,
            "the catalogue names this product, but the store does not have it",
            "Bring it back from a copy of the store, or materialise it again",
        )
    for done, (kind, identity) in enumerate(found):
        on_progress(done, len(found))
        path = store.path(kind, identity)
        if (kind, identity) in after:
            yield from _verify_product(path, after[kind, identity])
        elif is_left_alone(path):
            yield Difference(
                path, "no row of the catalogue names this product", "Remove it with `dlc-platform gc HOME`, or leave it"
            )
        else:
            yield Difference(
                path,
                "no row of the catalogue names this product yet",
                "Wait for the run that made it; if there is none, `dlc-platform gc HOME` finds it in a day",
                warning=True,
            )
    on_progress(len(found), len(found))


def garbage(engine: Engine, store: Store) -> Iterator[Garbage]:
    """The parts of the store that nothing refers to and that nobody has written to for a day.

    Raises
    ------
    PlatformError
        When a folder of the store cannot be read; or the catalogue names no product of the store at all, so that it
        probably belongs to another store.
    """
    there = store.products()
    # In this order, so that a product that got its row meanwhile counts as named.
    recorded = recorded_products(engine)
    if there and not any(product in recorded for product in there):
        raise PlatformError(
            f"the catalogue names none of the products in {store.root}, which holds {len(there)}",
            "Check that `store` in lab.yaml and the database belong to the same lab; a store cannot be shared",
        )
    for product in there:
        path = store.path(*product)
        if product not in recorded and is_left_alone(path):
            yield _garbage(path, product)
    for path in store.left_overs():
        yield _garbage(path, None)


def remove(engine: Engine, store: Store, item: Garbage) -> bool:
    """Remove what `garbage` found, unless it is in use by now.

    Returns
    -------
    bool
        False if it was kept: a row names it now, or somebody wrote to it or is about to record it.

    Raises
    ------
    PlatformError
        When it cannot be removed. A product whose removal began is hidden, and is found as a left-over later.
    """
    try:
        if item.product is None:
            return store.remove_left_over(item.path)
        return not is_recorded(engine, *item.product) and store.remove(*item.product)
    except OSError as error:
        raise PlatformError(
            f"{item.path} cannot be removed: {error.strerror} ({error.filename})", "Check its permissions and its disk"
        ) from error


def _garbage(path: Path, product: Product | None) -> Garbage:
    size = sum(item.lstat().st_size for item in path.rglob("*") if item.is_symlink() or not item.is_dir())
    return Garbage(path, product, size, datetime.fromtimestamp(last_written(path), UTC))


def _list(folder: Path) -> tuple[list[str], list[Difference], bool]:
    """The products of a kind, the differences beside them, and True if all of the folder could be seen."""
    if folder.is_symlink():
        return [], [_link(folder)], False
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except FileNotFoundError:
        return [], [], True
    except OSError as error:
        return [], [_unreadable(folder, error)], False
    products = [entry.name for entry in entries if is_product(entry)]
    others = []
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            others.append(_link(path))
        elif is_partial(entry):
            if is_left_alone(path):
                problem = "a crash left this half-written or half-removed"
                others.append(Difference(path, problem, "Remove it with `dlc-platform gc HOME`"))
        elif not is_product(entry):
            others.append(Difference(path, "this is not a product of the store", "Move it elsewhere"))
    return products, others, True


class _Imported(Manifest):
    """The manifest of any product; `file_sha256` is there in those that were imported from a file."""

    file_sha256: str | None = None


def _verify_product(product: Path, manifest_sha256: str | None) -> Iterator[Difference]:
    files, differences = _contents(product)
    yield from differences.values()
    manifest = product / MANIFEST
    if files.pop(MANIFEST, None) is None:
        if MANIFEST not in differences and "." not in differences:
            yield Difference(manifest, "the manifest is missing", _BRING_BACK)
        return
    try:
        digest, text = sha256_file(manifest), manifest.read_text()
    except (OSError, UnicodeDecodeError) as error:
        yield _unreadable(manifest, error)
        return
    if manifest_sha256 is None:
        yield Difference(
            manifest,
            "the catalogue knows no checksum of this manifest: the product is older than checksums",
            "Nothing: it goes on working",
            warning=True,
        )
    elif digest != manifest_sha256:
        yield Difference(manifest, "this is not the manifest that the catalogue knows", _BRING_BACK)
    try:
        said = _Imported.parse(text)
    except ValueError:
        yield Difference(manifest, "the manifest is damaged, so the other files cannot be checked", _BRING_BACK)
        return
    yield from _copies(files, said.file_sha256)
    if said.files is None:
        if digest == manifest_sha256:
            problem = "this manifest lists no checksums of the files: the product is older than checksums"
            yield Difference(manifest, problem, "Nothing: it goes on working", warning=True)
        return
    listed = {file.path: file for file in said.files}
    for name, path in files.items():
        if name not in listed:
            yield Difference(path, "the manifest does not list this file", "Move it out of the product")
        elif (difference := _verify_file(path, listed[name].size_bytes, listed[name].sha256)) is not None:
            yield difference
    for name in listed:
        seen = name in files or any(name == other or name.startswith(f"{other}/") for other in differences)
        if not seen and "." not in differences:
            yield Difference(product / name, "the file is missing", _BRING_BACK)


def _copies(files: Mapping[str, Path], imported: str | None) -> Iterator[Difference]:
    """Files of an imported product that are copies, byte for byte, of pose files; an earlier version made such
    copies."""
    for path in files.values():
        if imported is None or path.suffix.lower() not in (".h5", ".hdf5"):
            continue
        with suppress(OSError):  # the file itself is reported elsewhere
            if sha256_file(path) == imported:
                yield Difference(
                    path,
                    "an earlier version copied this imported file unchanged, with all that it holds besides numbers",
                    "Open it with no program that unpickles, such as pandas; to have its numbers alone written anew, "
                    "move the product's folder away and import the file again",
                    warning=True,
                )


def _contents(product: Path) -> tuple[dict[str, Path], dict[str, Difference]]:
    """The files of a product, and the differences of entries that are not files or cannot be seen, by path below it."""
    files: dict[str, Path] = {}
    differences: dict[str, Difference] = {}
    folders = [product]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            differences[folder.relative_to(product).as_posix()] = _unreadable(folder, error)
            continue
        for entry in entries:
            path = Path(entry.path)
            name = path.relative_to(product).as_posix()
            if entry.is_symlink():
                differences[name] = _link(path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                files[name] = path
            else:
                # Opening a pipe would wait for ever.
                differences[name] = Difference(path, "this is neither a file nor a folder", _BRING_BACK)
    return files, differences


def _verify_file(path: Path, size_bytes: int, sha256: str) -> Difference | None:
    try:
        size = path.stat().st_size
        if size != size_bytes:
            return Difference(path, f"the file has {size} bytes instead of {size_bytes}", _BRING_BACK)
        if sha256_file(path) != sha256:
            return Difference(path, "the content of the file has changed", _BRING_BACK)
    except OSError as error:
        return _unreadable(path, error)
    return None


def _link(path: Path) -> Difference:
    return Difference(
        path, "this is a symbolic link, which is not followed", "Put what it points to in its place, or mount it there"
    )


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> Difference:
    said = error.strerror if isinstance(error, OSError) else error.reason
    return Difference(path, f"this cannot be read: {said}", "Check its permissions and its disk")
