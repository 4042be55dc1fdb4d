"""Dagster's private modules are used in one place, and have what is used of them."""

import re
from pathlib import Path

import dlc_platform
from dlc_platform.launchers import dagster_internals

PACKAGE = Path(dlc_platform.__file__).parent
OWN = Path(dagster_internals.__file__)


def test_this_dagster_has_all_private_names_that_are_used() -> None:
    lacking = [name for name in dagster_internals.__all__ if not hasattr(dagster_internals, name)]
    assert lacking == []


def test_no_other_module_imports_what_is_private_to_dagster() -> None:
    private = re.compile(r"^\s*(?:from|import) dagster(?:_\w+)?(?:\.\w+)*\._", re.M)
    others = [path for path in PACKAGE.rglob("*.py") if path != OWN and private.search(path.read_text())]
    assert others == []
