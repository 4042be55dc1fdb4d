"""Completion at the Tab key: assets, and the sessions, projects, recipes and model versions of the lab in the line.

Nothing is started for it, and where the lab does not answer, nothing is offered.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dlc_platform.settings.lab import Lab

_MOST = 200


def sessions(ctx: typer.Context, incomplete: str) -> list[str]:
    """The keys of registered sessions."""
    from dlc_platform.catalog.names import sessions_that_begin

    return _of_catalogue(ctx, lambda engine: sessions_that_begin(engine, incomplete, _MOST))


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """The identities of model versions, as much of them as tables show."""
    from dlc_platform.catalog.names import models_that_begin
    from dlc_platform.identity import short

    return _of_catalogue(ctx, lambda engine: map(short, models_that_begin(engine, incomplete, _MOST)))


def recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """The recipes of lab.yaml."""
    return _of_settings(ctx, lambda lab: lab.recipes, incomplete)


def projects(ctx: typer.Context, incomplete: str) -> list[str]:
    """The projects of lab.yaml."""
    return _of_settings(ctx, lambda lab: lab.projects, incomplete)


def assets(incomplete: str) -> list[str]:
    """The names of assets, also behind the comma after another one."""
    from dlc_platform.text import assets as names

    before, comma, begun = incomplete.rpartition(",")
    known = [name for constant, name in vars(names).items() if constant.isupper()]
    return [f"{before}{comma}{name}" for name in known if name.startswith(begun)]


def _of_settings(ctx: typer.Context, names: "Callable[[Lab], Iterable[str]]", incomplete: str) -> list[str]:
    from dlc_platform.settings.loading import load_lab

    with suppress(Exception):
        return [name for name in names(load_lab(_home(ctx))) if name.startswith(incomplete)]
    return []


def _of_catalogue(ctx: typer.Context, ask: "Callable[[Engine], Iterable[str]]") -> list[str]:
    from dlc_platform.catalog.database import open_catalog
    from dlc_platform.postgres.connection import answering_url

    # A shell's line is no place for errors.
    with suppress(Exception):
        if (url := answering_url(_home(ctx))) is not None:
            return list(ask(open_catalog(url)))
    return []


def _home(ctx: typer.Context) -> Path:
    # Behind an option that still lacks its value, words are left as they are.
    return Path(ctx.params.get("home") or ctx.args[0]).expanduser().resolve()
