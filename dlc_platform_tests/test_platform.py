"""A notebook that stays open for days."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from dlc_platform.catalog.database import migrate, open_catalog
from dlc_platform.platform import Platform
from dlc_platform.postgres import server


def test_a_postgres_that_was_stopped_meanwhile_is_started_again(
    make_reachable: Callable[[], AbstractContextManager[Path]],
) -> None:
    with make_reachable() as folder:
        for name in ("raw", "project"):
            (folder / name).mkdir()
        (folder / "lab.yaml").write_text("{raw_roots: [raw], projects: {maze: {path: project}}}")
        lab = Platform(folder)
        migrate(open_catalog(server.ensure_running(folder / "postgres")))
        assert lab.sessions().empty
        server.stop(folder / "postgres")
        assert lab.models().empty
