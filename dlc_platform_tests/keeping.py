"""Products for a catalogue that was written by hand, and time that passes."""

import os
import time
from pathlib import Path

from sqlalchemy import Engine, text

from dlc_platform.catalog.products import recorded_products
from dlc_platform.store import Kind, Store

TABLES: dict[Kind, str] = {
    "datasets": "dataset",
    "models": "model_version",
    "exports": "model_export",
    "evaluations": "evaluation",
    "poses": "pose_estimate",
}


def fill(engine: Engine, store: Store) -> None:
    """Make every product that the catalogue names, and let its rows know the manifests."""
    for kind, identity in recorded_products(engine):

        def write(folder: Path, first: str = identity[0]) -> None:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text(first)

        store.put(kind, identity, {"frames": 300}, write)
        with engine.begin() as connection:
            connection.execute(
                text(f"update dlc.{TABLES[kind]} set manifest_sha256 = :sha256 where id = :id"),
                {"sha256": store.claim(kind, identity), "id": identity},
            )


def make_old(folder: Path) -> None:
    """Let everything in a folder be written more than a day ago."""
    yesterday = time.time() - 25 * 3600
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (yesterday, yesterday), follow_symlinks=False)
