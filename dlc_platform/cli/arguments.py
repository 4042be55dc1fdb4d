"""Arguments that several commands share: the lab, a session, a model; and how each is opened or refused."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dlc_platform.cli import completion, printing
from dlc_platform.cli.printing import labs
from dlc_platform.cli.usage import Misuse
from dlc_platform.errors import PlatformError, command, shell_word
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.text.names import near_names

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


def _csv(ctx: typer.Context, asked: bool) -> bool:
    printing.csv_asked = asked
    return _one_form(ctx, asked)


def _json(ctx: typer.Context, asked: bool) -> bool:
    return _one_form(ctx, asked)


def _wide(ctx: typer.Context, asked: bool) -> bool:
    printing.wide_asked = asked
    return _one_form(ctx, asked)


def _one_form(ctx: typer.Context, asked: bool) -> bool:
    """Refuse two forms of one answer: the other one was read before, wherever it stands in the call."""
    if asked and any(ctx.params.get(other) for other in ("as_json", "as_csv", "wide")):
        raise Misuse("--json, --csv and --wide are forms of one answer", "Ask for one of them")
    return asked


AsJson = Annotated[
    bool, typer.Option("--json", callback=_json, help="Print JSON records with all columns instead of a table.")
]
#: Of listing commands, whose tables follow them by themselves.
AsCsv = Annotated[
    bool,
    typer.Option(
        "--csv",
        callback=_csv,
        help="Print CSV with all columns instead of a table. A text that a spreadsheet would run as a formula has an "
        "apostrophe before it.",
    ),
]
Wide = Annotated[bool, typer.Option("--wide", callback=_wide, help="Print all columns, as wide as they are.")]


def _remembered(ctx: typer.Context, home: Path) -> Path:
    if home.name == LAB_FILE and home.is_file():
        home = home.parent
    labs[:] = [home]
    if not ctx.resilient_parsing and not (home / LAB_FILE).exists():
        _suggest_lab(home)
    return home


def _suggest_lab(home: Path) -> None:
    """Refuse a folder that is no lab, where one that is comes near: beside it, or where the command is called."""
    beside = home.absolute().parent
    with suppress(OSError):
        labs_beside = [one.parent.name for one in beside.glob(f"*/{LAB_FILE}")]
        if near := [home.parent / name for name in near_names(home.name, labs_beside)]:
            meant = f"Did you mean {' or '.join(map(shell_word, near))}?"
        elif Path(LAB_FILE).is_file():
            meant = f"This folder is a lab, so write . for HOME: `dlc-platform ... . {shell_word(home)}`."
        else:
            return
        labs.clear()
        raise PlatformError(
            f"{home.absolute() / LAB_FILE} does not exist", f"{meant} HOME is the folder that holds {LAB_FILE}"
        )


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


def asked(question: str, problem: str, remedy: str) -> str:
    """The answer of a person at a terminal; without a terminal, the missing argument is a problem."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Misuse(problem, remedy)
    return str(typer.prompt(question, prompt_suffix=" ", err=True)).strip()
