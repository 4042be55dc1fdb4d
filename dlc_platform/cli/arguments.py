"""What several commands ask for: the lab, a session, a model; and how that is opened or refused."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from dlc_platform.cli import completion, printing
from dlc_platform.cli.printing import labs
from dlc_platform.errors import command

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dlc_platform.settings.lab import Lab
    from dlc_platform.store import Store

Session = Annotated[
    str,
    typer.Argument(
        metavar="SESSION", help="A session's key, such as sub-001_ses-01.", autocompletion=completion.sessions
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model version's identity, or as much as `models` shows.",
        autocompletion=completion.models,
    ),
]
Stage = Literal["videos", "labels", "poses", "quality"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON records instead of a table.")]


def _csv(asked: bool) -> bool:
    printing.csv_asked = asked
    return asked


def _wide(asked: bool) -> bool:
    printing.wide_asked = asked
    return asked


#: Of listing commands, whose tables follow them by themselves.
AsCsv = Annotated[
    bool,
    typer.Option(
        "--csv",
        callback=_csv,
        help="Print CSV with all columns instead of a table. A text that begins with =, +, - or @ has an apostrophe "
        "before it, so that no spreadsheet runs it as a formula; a negative number has none.",
    ),
]
Wide = Annotated[bool, typer.Option("--wide", callback=_wide, help="Print all columns, as wide as they are.")]


class ListGroup(TyperGroup):
    """Commands on one kind of thing, of which the one that lists them needs no name: ``models HOME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _remembered(home: Path) -> Path:
    labs[:] = [home]
    return home


Home = Annotated[Path, typer.Argument(metavar="HOME", help="The folder that holds lab.yaml.", callback=_remembered)]


def catalogue_and_store(home: Path) -> "tuple[Engine, Store]":
    from dlc_platform.store import Store

    lab, engine = lab_and_catalogue(home)
    return engine, Store(lab.store)


def lab_and_catalogue(home: Path) -> "tuple[Lab, Engine]":
    """A lab's settings and its catalogue."""
    from dlc_platform.catalog.database import open_lab
    from dlc_platform.settings.loading import load_lab

    return load_lab(absolute(home)), open_lab(absolute(home))


def require_session(home: Path, engine: "Engine", session: str) -> None:
    """Refuse a session that is not registered, with those that come near."""
    from dlc_platform.catalog.sessions import session_keys
    from dlc_platform.text.names import require_known

    require_known("registered session", [session], session_keys(engine), command("sessions", home))


def absolute(path: Path) -> Path:
    return path.expanduser().resolve()
