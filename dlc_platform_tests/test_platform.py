"""A notebook that stays open for days."""

import subprocess
import sys
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
        assert repr(lab) == f"<Platform lab in {folder}: the lab {folder} has no catalogue yet>"
        migrate(open_catalog(server.ensure_running(folder / "postgres")))
        assert lab.sessions().empty
        server.stop(folder / "postgres")
        assert lab.models().empty
        assert repr(lab) == f"<Platform lab in {folder}: 0 sessions, 0 of them with poses; 0 model versions>"


def test_the_package_is_cheap_and_gives_notebooks_what_they_need() -> None:
    code = """
import sys
before = set(sys.modules)
import dlc_platform
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not new - set(sys.stdlib_module_names) - {"dlc_platform"}, new
assert {"Platform", "PlatformError"} <= set(dir(dlc_platform))
assert not hasattr(dlc_platform, "Nothing")
from dlc_platform import Platform, PlatformError
from dlc_platform.platform import Platform as same
assert Platform is same and issubclass(PlatformError, Exception)
assert not {"dagster", "torch", "deeplabcut"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
