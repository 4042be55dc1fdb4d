"""A lab in one file, and a lab made from that file: the database, the index of the store, and lab.yaml.

The file is a plain tar that any tool opens, for years:

==================  ==================================================================================
``SHA256SUMS``      The checksums of the others, as `sha256sum --check` reads them.
``manifest.json``   The platform that made the file, and when: `BackupManifest`.
``lab.yaml``        As it was.
``store.json.gz``   Every product of the store: kind, identity, SHA-256 of its manifest.
``database.dump``   Both schemas of the database, as `pg_dump` writes them in its custom format.
==================  ==================================================================================

A backup can come from anybody, so nothing in it is run: `restore` makes the tables itself, and takes rows as values
from the dump (`postgres.rows`). A backup that defines more than the platform's own tables is refused.

The products themselves, raw data and DeepLabCut projects are not in it: they never change, so copying their folders is
enough. The database is dumped first and the index is written after it. A product is in the store before it has a row,
so every product that the database names is in the index.
"""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from dlc_platform.catalog.database import (
    catalog_revision,
    knows_revision,
    make_tables,
    migrate,
    open_catalog,
    require_known,
)
from dlc_platform.catalog.foreign_rows import harmful_row
from dlc_platform.catalog.products import named_products
from dlc_platform.catalog.tables import SCHEMA
from dlc_platform.errors import PlatformError, one_line
from dlc_platform.identity import sha256_file
from dlc_platform.postgres import rows, server
from dlc_platform.postgres.connection import DAGSTER_SCHEMA, existing_url, is_external, postgres_url
from dlc_platform.postgres.dump import definitions, dump_schemas, server_version, shown
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import KINDS, MANIFEST, Product, Store
from dlc_platform.version import __version__

_SUMS = "SHA256SUMS"
_ABOUT = "manifest.json"
_INDEX = "store.json.gz"
_DATABASE = "database.dump"
_PARTS = (_ABOUT, LAB_FILE, _INDEX, _DATABASE)
_SCHEMAS = (SCHEMA, DAGSTER_SCHEMA)
_BLOCK_BYTES = 1 << 20
#: The longest header of the tar; Python's reader of headers takes minutes for a hundred thousand digits.
_HEADER_BYTES = 16 << 10
#: The largest size of each part except the dump, and how many times longer than its file the index may be: it consists
#: of checksums, which compress to half at best.
_MOST_BYTES = {_SUMS: 1 << 12, _ABOUT: 1 << 16, LAB_FILE: 1 << 20}
_INDEX_BEFORE, _INDEX_TIMES = 1 << 20, 6
_ENTRY = re.compile(rf'\["({"|".join(KINDS)})", "([0-9a-f]{{64}})", "([0-9a-f]{{64}}|)"\](?:, (?=\[)|(?=\]))')
_LONGEST_ENTRY = 200
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: The products of a restored lab may be in this folder already.
_STORE = "store"

Index = dict[Product, str]


class BackupManifest(BaseModel):
    """The backup's own description.

    `revision` is the catalogue's migration, empty for a lab without tables; `postgres` is the server's major version,
    and `store` the folder of the products.
    """

    format: Literal[1] = 1
    made_at: datetime
    platform: str = Field(pattern=r"^[A-Za-z0-9_.+-]{1,64}\z")
    revision: str = Field(pattern=r"^[A-Za-z0-9_]{0,64}\z")
    postgres: int = Field(ge=0, le=999)
    products: int = Field(ge=0)
    store: Path


@dataclass(frozen=True)
class Backup:
    """A backup that was made; `missing` are products that the catalogue names and that the store did not have even
    then."""

    file: Path
    size_bytes: int
    products: int
    missing: list[Path]


@dataclass(frozen=True)
class Restored:
    """A restored lab, and the products of the backup that its store lacks.

    `store` is the folder where lab.yaml expects the products. `unusable` says why lab.yaml cannot be used, if so.
    `changed` are products with another manifest than in the backup, and `unknown` those that the backup does not have.
    `lacking` is the file that `dagster_yaml` in lab.yaml names, if it is missing: no backup holds it.
    """

    manifest: BackupManifest
    store: Path | None
    unusable: PlatformError | None
    missing: list[Path]
    changed: list[Path]
    unknown: list[Path]
    lacking: Path | None = None


def backup(home: Path, file: Path) -> Backup:
    """Write the lab into a new file; the lab may be at work meanwhile. The file holds no password.

    The tables stay as they are: from the backup of an older platform's lab, that platform can make the lab again.

    Raises
    ------
    PlatformError
        When the file exists or cannot be written, its folder is missing, or the database cannot be taken out or has the
        tables of a newer platform.
    """
    lab = load_lab(home)
    store = Store(lab.store)
    _require_new(file)
    if not file.parent.is_dir():
        raise PlatformError(f"there is no folder {file.parent}", "Make it, or choose another place for the backup")
    with _explained(file), tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as private:
        folder = Path(private)
        engine = _open(home)
        made_at, migration, postgres = datetime.now(UTC), "", 0
        recorded: set[Product] = set()
        if engine is None:
            (folder / _DATABASE).touch()
        else:
            try:
                with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
                    dump_schemas(connection, _SCHEMAS, folder / _DATABASE)
                    migration, postgres = str(catalog_revision(connection)), server_version(connection)
                    recorded = named_products(connection)
            finally:
                engine.dispose()
        index = _index(store)
        manifest = BackupManifest(
            made_at=made_at,
            platform=__version__,
            revision=migration,
            postgres=postgres,
            products=len(index),
            store=lab.store,
        )
        (folder / _ABOUT).write_text(manifest.model_dump_json(indent=2))
        with gzip.open(folder / _INDEX, "wt") as compressed:
            json.dump([[kind, identity, sha256] for (kind, identity), sha256 in index.items()], compressed)
        shutil.copyfile(home / LAB_FILE, folder / LAB_FILE)
        sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in _PARTS)
        (folder / _SUMS).write_text(sums)
        _pack(folder, file)
    # Only people read it: a row can name a path out of the store.
    missing = sorted(store.root.joinpath(*product) for product in recorded - index.keys())
    return Backup(file, file.stat().st_size, len(index), missing)


@dataclass(frozen=True)
class Storage:
    """Dagster's tables, which lie in the same database and do not belong to this layer.

    `make` makes them, empty, within the connection's transaction, whose search path is their schema. `settle` ends runs
    that were under way in the backup, and raises a ValueError for rows that are not Dagster's.
    """

    make: Callable[[Connection], None]
    settle: Callable[[URL], None]


def restore(file: Path, home: Path, storage: Storage, leave_out: bool = False) -> Restored:
    """Make a lab from a backup, in an empty or new folder, which may already hold the products in ``store``.

    Its database is the one that the environment names, which must not hold a lab, else a new embedded one. If this
    fails or is killed, there is no lab: lab.yaml is written last.

    Parameters
    ----------
    leave_out
        Leave out everything in the backup's database that is not the platform's own, instead of refusing the backup.

    Raises
    ------
    PlatformError
        When the file is not a whole backup, or comes from a newer platform; its database holds more than the
        platform's own; the folder or the database is not empty; or the database cannot be restored.
    """
    made_home = not home.exists()
    try:
        with _explained(home):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".restore-", dir=home) as private:
                # Our own folder exists before the check, so two restores at once do not both find it empty.
                _require_empty(home, Path(private))
                manifest, index = _unpack(file, Path(private))
                _restore_database(home, Path(private) / _DATABASE, manifest, file, storage, leave_out)
                _put_in_place(Path(private) / LAB_FILE, home)
    except BaseException:
        if made_home:
            with suppress(OSError):
                home.rmdir()
        raise
    try:
        lab = load_lab(home)
    except PlatformError as error:
        return Restored(manifest, None, error, [], [], [])
    store = Store(lab.store)
    now = _index(store)
    return Restored(
        manifest,
        store.root,
        None,
        missing=sorted(store.path(*product) for product in index.keys() - now.keys()),
        changed=sorted(store.path(*product) for product, sha256 in index.items() if now.get(product, sha256) != sha256),
        unknown=sorted(store.path(*product) for product in now.keys() - index.keys()),
        lacking=None if lab.dagster_yaml is None or lab.dagster_yaml.exists() else lab.dagster_yaml,
    )


def _open(home: Path) -> Engine | None:
    """The catalogue of a lab, whose tables may be older than this version's; None if the lab has none."""
    if (url := existing_url(home)) is None:
        return None
    engine = open_catalog(url)
    with engine.connect() as connection:
        if require_known(connection) is not None:
            return engine
    engine.dispose()
    return None


def _index(store: Store) -> Index:
    """The products in the store with the SHA-256 of their manifests; an empty text if a manifest cannot be read."""
    index: Index = {}
    for product in store.products():
        index[product] = ""
        with suppress(OSError):
            index[product] = sha256_file(store.path(*product) / MANIFEST)
    return index


def _pack(folder: Path, file: Path) -> None:
    """Make the tar of the parts beside its place, readable for nobody else, and put it in place when it is on the
    disk."""
    packed = folder / "packed"
    with open(packed, "xb", opener=_private) as output:
        with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in (_SUMS, *_PARTS):
                member = tarfile.TarInfo(name)
                member.size = (folder / name).stat().st_size
                member.mode = 0o600
                member.mtime = int((folder / name).stat().st_mtime)
                with open(folder / name, "rb") as part:
                    tar.addfile(member, part)
        output.flush()
        os.fsync(output.fileno())
    try:
        os.link(packed, file)  # unlike a renaming, this never replaces a file
    except FileExistsError:
        _require_new(file)
    except OSError:  # a disk without hard links
        _require_new(file)
        os.rename(packed, file)
    _sync(file.parent)


def _unpack(file: Path, folder: Path) -> tuple[BackupManifest, Index]:
    """Check a backup and write its parts into a folder; only parts of known names are ever written."""
    with _Frugal(file, "rb", opener=_waiting_for_nobody) as given:
        if not stat.S_ISREG(os.fstat(given.fileno()).st_mode):
            raise _damaged(file, "it is not a file but a device or a pipe")
        try:
            with tarfile.open(fileobj=given, mode="r:") as tar:
                sums = dict(_take_out(tar, folder))
            if lacking := {_SUMS, *_PARTS} - sums.keys():
                raise _damaged(file, f"{', '.join(sorted(lacking))} is missing")
            listed = (folder / _SUMS).read_text().splitlines()
            if changed := [name for name in _PARTS if f"{sums[name]}  {name}" not in listed]:
                raise _damaged(file, f"{', '.join(changed)} has changed since it was made")
            about = json.loads((folder / _ABOUT).read_text())
            if about["format"] != 1:
                raise PlatformError(
                    f"{file} was made by a newer platform, {one_line(str(about['platform']))}",
                    "Install that version, or a newer one",
                )
            manifest = BackupManifest.model_validate(about)
            index = _read_index(folder / _INDEX)
        except ValidationError as error:
            wrong = ", ".join(str(one["loc"][0]) for one in error.errors() if one["loc"])
            raise _damaged(file, f"{_ABOUT} is not valid: {one_line(wrong)}") from error
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _damaged(file, one_line(str(error)).rstrip(".")) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(file, one_line(str(error)).rstrip(".")) from error
    return manifest, index


class _Frugal(io.FileIO):
    """A file for `tarfile` that refuses long headers; `tarfile` would read all of a header at once, whatever its
    length."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _HEADER_BYTES:
            raise ValueError(f"a header in it is longer than {_HEADER_BYTES} bytes")
        return super().read(size)


def _take_out(tar: tarfile.TarFile, folder: Path) -> Iterator[tuple[str, str]]:
    """Write the members into the folder; give their names and the SHA-256 of the written bytes."""
    for member in tar:
        shown = repr(one_line(member.name))
        # A sparse member is as long as its header says, whatever the length of the backup.
        if member.name not in (_SUMS, *_PARTS) or not member.isreg() or member.issparse():
            raise ValueError(f"{shown} does not belong in it")
        if (folder / member.name).exists():
            raise ValueError(f"{shown} is in it twice")
        if member.size > (most := _MOST_BYTES.get(member.name, member.size)):
            raise ValueError(f"{shown} is longer than {most} bytes")
        part = tar.extractfile(member)
        assert part is not None
        digest = hashlib.sha256()
        with open(folder / member.name, "xb", opener=_private) as output:
            while block := part.read(_HEADER_BYTES):
                digest.update(block)
                output.write(block)
        yield member.name, digest.hexdigest()


def _read_index(file: Path) -> Index:
    most = _INDEX_BEFORE + _INDEX_TIMES * file.stat().st_size
    index: Index = {}
    with gzip.open(file, "rt", encoding="ascii") as compressed:
        first, rest, length = compressed.read(1), "", 1
        # Read in parts; only the products that they name are kept.
        while first == "[" and (part := compressed.read(_BLOCK_BYTES)):
            if (length := length + len(part)) > most:
                raise ValueError(f"{_INDEX} would grow to more than {_INDEX_TIMES} times its size")
            listed, place = rest + part, 0
            while entry := _ENTRY.match(listed, place):
                if (entry[1], entry[2]) in index:
                    raise ValueError(f"{_INDEX} lists a product twice")
                index[entry[1], entry[2]] = entry[3]  # pyright: ignore[reportArgumentType] (the pattern knows the kinds)
                place = entry.end()
            rest = listed[place:]
            if len(rest) > _LONGEST_ENTRY:
                break
    if first != "[" or rest != "]":
        raise ValueError(f"{_INDEX} does not list products")
    return index


def _restore_database(
    home: Path, dump: Path, manifest: BackupManifest, file: Path, storage: Storage, leave_out: bool
) -> None:
    """Fill the lab's empty database and bring it up to date; if that fails, it is as empty as before."""
    embedded = not is_external()
    empty = False
    engine = None
    try:
        engine = open_catalog(postgres_url(home))
        _require_suitable(engine, manifest)
        empty = True
        if not manifest.revision:
            migrate(engine)
        else:
            try:
                _fill(engine, dump, manifest, file, storage, leave_out)
                migrate(engine)
                with engine.connect() as connection:
                    if (row := harmful_row(connection)) is not None:
                        raise _damaged(file, row)
                storage.settle(engine.url)
            except ValueError as error:
                raise _damaged(file, one_line(str(error), 300).rstrip(".")) from error
            except (DBAPIError, rows.Unfilled) as error:
                said = str(error.orig if isinstance(error, DBAPIError) else error)
                raise PlatformError(
                    f"the database cannot be filled: {one_line(said, 300).rstrip('.')}",
                    "Mend what it says and restore again; nothing was changed",
                ) from error
    except BaseException:
        if embedded and (home / "postgres").exists():
            server.discard(home / "postgres")
        elif empty and engine is not None:
            with engine.begin() as connection:
                for schema in _SCHEMAS:
                    connection.execute(text(f"drop schema if exists {schema} cascade"))
        raise
    finally:
        if engine is not None:
            engine.dispose()


def _fill(engine: Engine, dump: Path, manifest: BackupManifest, file: Path, storage: Storage, leave_out: bool) -> None:
    """Make the tables of the backup's version, compare them with what the dump defines, and put its rows into them."""
    with engine.begin() as connection:
        make_tables(connection, manifest.revision)
        connection.execute(CreateSchema(DAGSTER_SCHEMA))
        connection.execute(text(f"set local search_path to {DAGSTER_SCHEMA}"))
        storage.make(connection)
    with engine.connect() as connection:
        wanted = definitions(connection, _SCHEMAS)
    with shown(dump, manifest.postgres, "schema") as lines:
        foreign = rows.foreign(wanted, lines)
    if foreign and not leave_out:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise PlatformError(
            f"{file} is refused: its database holds {foreign[0]}{others}",
            "Ask the person who made the backup what that is; to restore the lab's own tables without it, give "
            "`dlc-platform restore` the option --leave-out",
        )
    with engine.begin() as connection, shown(dump, manifest.postgres, "data") as lines:
        rows.fill(connection, lines, _SCHEMAS, leave_out)
        found = list(connection.scalars(text(f"select version_num from {SCHEMA}.alembic_version")))
        if found != [manifest.revision]:
            said = one_line(", ".join(found)) or "none"
            raise ValueError(f"its tables are at {said}, and it says that they are at {manifest.revision}")


def _require_suitable(engine: Engine, manifest: BackupManifest) -> None:
    with engine.connect() as connection:
        if manifest.revision and not knows_revision(manifest.revision):
            raise PlatformError(
                f"the backup was made by a newer platform, {manifest.platform}, whose tables this one, {__version__}, "
                "does not know",
                "Install that version, or a newer one, and restore again",
            )
        for schema in _SCHEMAS:
            if connection.scalar(text("select to_regnamespace(:name)"), {"name": schema}) is not None:
                raise PlatformError(
                    f"the database {connection.engine.url.database} that the environment names has a schema {schema} "
                    "already",
                    "Make an empty database for the restored lab, or unset the variable to use an embedded one",
                )


def _put_in_place(lab_file: Path, home: Path) -> None:
    beside = lab_file.with_name("placed")
    with open(beside, "wb") as file:  # made anew, with the permissions of the lab's other files
        file.write(lab_file.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, home / LAB_FILE)
    _sync(home)


def _require_new(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise PlatformError(f"{file} exists already", "Choose another name: a backup never replaces a file")


def _require_empty(home: Path, private: Path) -> None:
    if {path.name for path in home.iterdir()} - {_STORE, private.name}:
        raise PlatformError(
            f"{home} is not empty",
            f"Restore into a new folder; only the products may be there already, in {home / _STORE}",
        )


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise PlatformError(
                f"the disk of {place} is full", "Free some space there, or use another disk, and try again"
            ) from error
        raise PlatformError(
            f"{error.filename or place} cannot be used: {error.strerror}",
            "Check that it is there, can be read and written, and that its disk has free space",
        ) from error


def _damaged(file: Path, problem: str) -> PlatformError:
    return PlatformError(f"{file} is not a whole backup: {problem}", "Use another copy of it, or an older backup")


def _waiting_for_nobody(path: str, flags: int) -> int:
    # Opening a pipe would wait for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
