"""Questions to the catalogue in SQL: a `Question` gives its answer as a DataFrame, or as plain rows.

Plain rows are for a caller that prints a table, because importing pandas takes longer than the answer. The questions
themselves stand with their subjects. Those that a lab asks for years are views of the database (``dlc.pose_lineage``,
``model_sessions``, ``stale_sessions``, ``best_models``), so that any tool answers them with one query.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from sqlalchemy import Engine, text

if TYPE_CHECKING:
    import pandas as pd


#: A query and its parameters.
Asked = tuple[str, dict[str, Any]]

Parameters = ParamSpec("Parameters")


class Question(Generic[Parameters]):
    """A question to the catalogue, made of the function that gives its query and parameters (as a decorator)."""

    def __init__(self, asks: Callable[Parameters, Asked]):
        self._asks = asks
        update_wrapper(self, asks)

    def __call__(self, engine: Engine, *args: Parameters.args, **kwargs: Parameters.kwargs) -> "pd.DataFrame":
        query, parameters = self._asks(*args, **kwargs)
        return frame(engine, query, **parameters)

    def rows(self, engine: Engine, *args: Parameters.args, **kwargs: Parameters.kwargs) -> list[dict[str, Any]]:
        """The answer as a list of rows by column. Whole numbers are int, others float."""
        query, parameters = self._asks(*args, **kwargs)
        return [{name: _plain(value) for name, value in row.items()} for row in rows(engine, query, **parameters)]


def _plain(value: Any) -> Any:
    """A number of Postgres's numeric type, which sums have, as an int or float."""
    if not isinstance(value, Decimal):
        return value
    return int(value) if value == value.to_integral_value() else float(value)


def frame(engine: Engine, query: str, **parameters: Any) -> "pd.DataFrame":
    import pandas as pd

    with engine.connect() as connection:
        return pd.read_sql_query(text(query), connection, params=parameters)


def rows(engine: Engine, query: str, **parameters: Any) -> list[Mapping[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(query), parameters).mappings()]
