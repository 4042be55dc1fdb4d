"""The platform says its version, and the backup of each earlier one comes over with every value as it was.

`backups` holds one of each migration of the catalogue: the small lab of `catalog/conftest.py`, made by the last commit
that had this migration as its newest; that of 0006 by the last commit before the modules moved into rooms by subject.
"""

import gzip
import io
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import URL
from typer.testing import CliRunner

from dlc_platform.catalog.database import _revisions  # pyright: ignore[reportPrivateUsage]
from dlc_platform.cli.app import app
from dlc_platform.lab.backup import restore
from dlc_platform.orchestration.restored import DAGSTER
from dlc_platform.postgres.dump import shown
from dlc_platform.settings.environment import POSTGRES_VARIABLE
from dlc_platform.version import __version__

BACKUPS = Path(__file__).parent / "backups"
_COPY = re.compile(r"COPY (\w+\.\w+) \((.*)\) FROM stdin;")
#: Where the values of migration 0001 are now, whose recordings were the states of one file: rows, and columns of them.
MOVED = {
    "dlc.dataset": (
        "dlc.dataset t",
        {
            "bodyparts": "(select jsonb_agg(b.name order by b.position) from dlc.bodypart b "
            "where b.skeleton_id = t.skeleton_id)"
        },
    ),
    "dlc.recording": (
        "dlc.recording_file t join dlc.recording r on r.id = t.recording_id",
        {"session_key": "r.session_key", "name": "r.name", "camera": "r.camera"},
    ),
    "dlc.recording_poses": ("dlc.recording_poses t", {"recording_id": "t.recording_file_id"}),
}
#: Tables whose values are gone on purpose: the figures of `pose_summary` had another denominator than all others.
GONE = {"dlc.alembic_version", "dlc.pose_summary"}


def test_the_version_follows_the_catalogue() -> None:
    newest = _revisions()[0]
    assert __version__.split(".")[1] == str(int(newest)), "a new migration is a new version: see version.py"
    changes = (BACKUPS.parents[2] / "dlc_platform" / "CHANGELOG.md").read_text()
    assert f"## {__version__}\n" in changes and newest in changes
    assert CliRunner().invoke(app, ["--version"]).output == f"dlc-platform {__version__}\n"


def test_each_earlier_catalogue_has_a_backup() -> None:
    assert {path.name[:4] for path in BACKUPS.iterdir()} >= set(_revisions()[1:])


def rows(dump: Path) -> Iterator[tuple[str, list[str], list[bytes]]]:
    """Table, columns and rows of a dump, as Postgres writes rows."""
    with shown(dump, 18, "data") as lines:
        for line in lines:
            if match := _COPY.fullmatch(line.decode().rstrip()):
                found = []
                while (row := next(lines)) != b"\\.\n":
                    found.append(row)
                yield match[1], match[2].split(", "), found


@pytest.mark.parametrize("file", sorted(path.name for path in BACKUPS.iterdir()))
def test_an_earlier_backup_comes_over_with_every_value(
    file: str, empty_database: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with gzip.open(BACKUPS / file) as packed, open(tmp_path / "file", "wb") as plain:
        shutil.copyfileobj(packed, plain)
    with tarfile.open(tmp_path / "file") as tar:
        (tmp_path / "dump").write_bytes(tar.extractfile("database.dump").read())  # pyright: ignore
    monkeypatch.setenv(POSTGRES_VARIABLE, empty_database.render_as_string(hide_password=False))
    restored = restore(tmp_path / "file", tmp_path / "lab", DAGSTER)
    assert restored.manifest.revision == file[:4] and restored.unusable is None
    engine = sqlalchemy.create_engine(empty_database, poolclass=sqlalchemy.NullPool)
    compared = 0
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        for table, columns, before in rows(tmp_path / "dump"):
            if table in GONE:
                continue
            source, moved = MOVED.get(table, ("", {})) if file.startswith("0001") else ("", {})
            values = ", ".join(moved.get(column, f"t.{column}") for column in columns)
            after = io.BytesIO()
            cursor.copy_expert(f"copy (select {values} from {source or f'{table} t'}) to stdout", after)
            assert not Counter(before) - Counter(after.getvalue().splitlines(keepends=True)), table
            compared += len(before)
    engine.dispose()
    assert compared > 50
