"""Questions to an empty catalogue."""

from typing import Any

import pytest
from sqlalchemy import Engine

from dlc_platform.catalog.estimates import pose_table
from dlc_platform.catalog.evaluations import evaluation_table
from dlc_platform.catalog.models import model_table
from dlc_platform.catalog.sessions import session_table


@pytest.mark.parametrize("query", [session_table, model_table, evaluation_table, pose_table])
def test_a_new_lab_has_empty_tables(engine: Engine, query: Any) -> None:
    found = query(engine)
    assert found.empty and len(found.columns) > 10
