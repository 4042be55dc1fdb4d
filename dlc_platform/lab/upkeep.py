"""The upkeep that a lab does for itself from time to time: check the store, back up, clean up.

`retention`, `backup` and `store` do the work; this module does the part that needs no person, and reports the rest.
`orchestration.schedules` says when.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from dlc_platform.errors import PlatformError
from dlc_platform.lab import retention
from dlc_platform.lab.backup import Backup, backup
from dlc_platform.settings.loading import load_lab
from dlc_platform.store import Store
from dlc_platform.text.words import counted, said_of

#: The most differences that an error names; the log has all of them.
_NAMED = 5


@dataclass(frozen=True)
class Verified:
    """The result of reading the store again; `unchecked` counts its warnings, about files that are older than
    checks."""

    products: int
    unchecked: int


@dataclass(frozen=True)
class BackedUp:
    """A new backup, and the earlier ones that were removed for it."""

    backup: Backup
    removed: list[Path]


@dataclass(frozen=True)
class CleanedUp:
    """The paths that were removed from the store, and the count of its products that no row names."""

    removed: list[Path]
    removed_bytes: int
    unnamed: int
    unnamed_bytes: int


def verify_store(engine: Engine, store: Store, say: Callable[[str], None]) -> Verified:
    """Read the whole store again.

    Raises
    ------
    PlatformError
        When it differs from the catalogue; `say` is called with each difference.
    """
    wrong: list[retention.Difference] = []
    unchecked, products = 0, 0

    def count(done: int, there: int) -> None:
        nonlocal products
        products = there

    for difference in retention.verify(engine, store, count):
        if difference.warning:
            unchecked += 1
            continue
        wrong.append(difference)
        say(f"{said_of(difference.path, difference.problem)}. {difference.remedy}")
    if wrong:
        told = "; ".join(said_of(one.path, one.problem) for one in wrong[:_NAMED])
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise PlatformError(
            f"{counted(len(wrong), 'difference')} between the store and the catalogue: {told}{more}",
            "See what to do about each with `dlc-platform verify HOME`",
        )
    return Verified(products, unchecked)


def back_up(home: Path, now: datetime | None = None) -> BackedUp:
    """Write a backup into the folder that lab.yaml names, and remove the oldest ones beyond the number to keep.

    Only files with the name of such a backup are removed, and none before the new one is whole.

    Raises
    ------
    PlatformError
        When the folder or the backup cannot be written.
    """
    lab = load_lab(home)
    folder = lab.backups.folder
    try:
        # Backups hold the details of animals and persons: nobody else may read them.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            f"the folder of backups {folder} cannot be made: {error.strerror}", "Correct `backups.folder` in lab.yaml"
        ) from error
    made = backup(home, folder / f"{lab.name}-{now or datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar")
    ours = re.compile(re.escape(lab.name) + r"-\d{8}T\d{6}Z\.tar")
    old = sorted(path for path in folder.iterdir() if ours.fullmatch(path.name))[: -lab.backups.keep]
    for path in old:
        path.unlink(missing_ok=True)
    return BackedUp(made, old)


def clean_up(engine: Engine, store: Store) -> CleanedUp:
    """Remove what crashes left in the store and nobody continued.

    Products that no row names are only counted; only a person removes them. After a restore, the run that would make
    such a product finds it, if it is still there.
    """
    removed: list[Path] = []
    removed_bytes, unnamed, unnamed_bytes = 0, 0, 0
    for item in retention.garbage(engine, store):
        if item.product is not None:
            unnamed += 1
            unnamed_bytes += item.size_bytes
        elif retention.remove(engine, store, item):
            removed.append(item.path)
            removed_bytes += item.size_bytes
    return CleanedUp(removed, removed_bytes, unnamed, unnamed_bytes)
