"""A whole lab: rendered sessions, a trained and promoted model, and poses.

The tests of a worker share it. A test that needs a session adds its own to the raw root, and leaves those of the others
alone.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sqlalchemy
import yaml

from dlc_platform.demo import lab as material
from dlc_platform.orchestration.instance import prepare
from dlc_platform.orchestration.materialize import materialize
from dlc_platform.postgres import server
from dlc_platform.settings.quality import PoseFloors
from dlc_platform_tests.servers import ensure_running_without_fsync

RECIPE = "quick"
#: A network of two epochs is hopeless, and so are its poses: none of that is what the shared lab is for. What becomes
#: of such a network by the floors that labs have is in `test_hopeless.py`.
NOTHING_IS_HOPELESS = {"hopeless": {"correct": None, "confident": None, "spread": None}}
NO_FLOORS = {"floors": dict.fromkeys(PoseFloors.model_fields, None)}


def _make_tracked_lab(home: Path) -> None:
    """The demo's lab with a recipe of two epochs, after `dlc-platform run HOME '*'`; its server is stopped."""
    lab = material.make_lab(home)
    settings = {
        "raw_roots": [str(lab.raw)],
        "projects": {material.PROJECT: {"path": str(lab.project)}},
        "recipes": {RECIPE: {**material.RECIPE.model_dump(mode="json"), "epochs": 2}},
        "inference": [{"camera": "*", "project": material.PROJECT}],
        "settle_seconds": 1,
        "scan_seconds": 2,
        "scan": {"unopened_seconds": 0},
        "promotion": NOTHING_IS_HOPELESS,
        "pose_quality": NO_FLOORS,
        "runs": {"retry_minutes": [0.05]},
    }
    (home / "lab.yaml").write_text(yaml.safe_dump(settings))
    ensure_running_without_fsync(home / "postgres")
    said: list[str] = []
    assert materialize(home, "*", [], said.append), "\n".join(said)
    server.stop(home / "postgres")


def _move(home: Path, before: str) -> None:
    """Let a copied lab know its new place, as if it had always been there."""
    for file in (home / "lab.yaml", *home.glob("*/config.yaml")):
        file.write_text(file.read_text().replace(before, str(home)))
    (home / "postgres" / "port").unlink()
    engine = sqlalchemy.create_engine(server.ensure_running(home / "postgres"), poolclass=sqlalchemy.NullPool)
    texts = (
        "select format('%I.%I', table_schema, table_name), quote_ident(column_name) from information_schema.columns "
        "join information_schema.tables using (table_schema, table_name) where table_type = 'BASE TABLE' "
        "and table_schema in ('dlc', 'dagster') and data_type in ('text', 'character varying')"
    )
    with engine.begin() as connection:
        for table, column in connection.execute(sqlalchemy.text(texts)).all():
            moved = f"{column} = replace({column}, :before, :now) where strpos({column}, :before) > 0"
            connection.execute(sqlalchemy.text(f"update {table} set {moved}"), {"before": before, "now": str(home)})


@pytest.fixture(scope="session")
def tracked_lab(
    make_once: Callable[[str, Callable[[Path], None]], Path],
    make_reachable: Callable[[], AbstractContextManager[Path]],
) -> Iterator[Path]:
    """The home of a lab in which everything has been materialised once; it is made once and copied for each worker."""
    before = dict(os.environ)

    def make(folder: Path) -> None:
        with make_reachable() as place:
            _make_tracked_lab(place / "lab")
            _copy(place / "lab", folder / "lab")
            (folder / "home").write_text(str(place / "lab"))

    made = make_once("tracked-lab", make)
    with make_reachable() as folder:
        home = folder / "lab"
        _copy(made / "lab", home)
        _move(home, (made / "home").read_text())
        os.environ.update(prepare(home))
        yield home
        os.environ.clear()
        os.environ.update(before)


def _copy(folder: Path, copy: Path) -> None:
    """With the owners of files: the database belongs to another account."""
    subprocess.run(["cp", "-a", folder, copy], check=True)
