"""The command line. Each command is a thin door to a layer below; nothing is computed here."""

import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dlc_platform.errors import PlatformError

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Engine

    from dlc_platform.settings import Lab


class _ListGroup(TyperGroup):
    """Commands on one kind of thing, of which the one that lists them needs no name: ``models HOME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Home = Annotated[Path, typer.Argument(metavar="HOME", help="The folder that holds lab.yaml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON records instead of a table.")]


def main() -> None:
    """Run the command line; what a person can mend is printed as one sentence, and the exit code is 1."""
    try:
        app()
    except PlatformError as error:
        sys.exit(f"dlc-platform: {error}")
    except BrokenPipeError:
        # The reader of a table, such as `head`, had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (lost := _lost_connection(error)) is None:
            raise
        problem = PlatformError(
            f"Postgres failed: {lost}",
            "See that it runs (an embedded one is started by the next command) and run again: what was done is kept",
        )
        sys.exit(f"dlc-platform: {problem}")


def _lost_connection(error: BaseException | None) -> str | None:
    """What the database driver said, when an error comes from a server that went away."""
    from sqlalchemy.exc import OperationalError

    while error is not None:
        if isinstance(error, OperationalError):
            return " ".join(str(error.orig).split()).rstrip(".")
        error = error.__cause__ or error.__context__
    return None


@app.command()
def demo(
    home: Annotated[Path, typer.Option(help="Where the demo makes its lab.")] = Path("demo-lab"),
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop everything at the end instead of leaving the UI up.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port of the UI; a free one by default.")] = None,
) -> None:
    """Make a small lab, train a model, and let the sensor track two new sessions: the main job, end to end."""
    from dlc_platform.demo.story import tell

    good = False
    with _stoppable():
        good = tell(_absolute(home), port, None if exit_ else _wait, _say)
    if not good:
        sys.exit(1)


@app.command()
def init(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The folder to make the lab in.")],
    raw: Annotated[list[Path], typer.Option(help="A folder below which sessions lie; may be given again.")],
    project: Annotated[list[Path], typer.Option(help="A DeepLabCut project's folder; may be given again.")],
) -> None:
    """Write HOME/lab.yaml for a raw root and a DeepLabCut project."""
    from dlc_platform.new_lab import make_lab

    file = make_lab(_absolute(home), [_absolute(path) for path in raw], [_absolute(path) for path in project])
    _say(f"{file} is written. Look it through, then run: dlc-platform doctor {shlex.quote(str(home))}")


@app.command()
def up(
    home: Home,
    port: Annotated[int, typer.Option(help="Port of the UI on 127.0.0.1.")] = 3000,
) -> None:
    """Start Postgres, the Dagster daemon and the webserver; Ctrl-C stops all of it."""
    from dlc_platform.orchestration.services import running

    with _stoppable(), running(_absolute(home), port, _say) as services:
        _say(f"The lab is up: {services.url} (Ctrl-C stops it)")
        while not _stop.wait(2):
            services.check()


@app.command()
def doctor(home: Home) -> None:
    """Say what is wrong with a lab and what to do; the exit code is 1 when something is."""
    from dlc_platform.diagnosis import examine

    wrong = 0
    for finding in examine(_absolute(home)):
        mark = "ok     " if not finding.remedy else "warning" if finding.warning else "WRONG  "
        wrong += mark == "WRONG  "
        _say(f"{mark} {finding.what}: {finding.found}" + (f". {finding.remedy}." if finding.remedy else ""))
    if wrong:
        sys.exit(1)


@app.command()
def env(home: Home) -> None:
    """Print the variables that let any `dagster` command work on a lab: eval "$(dlc-platform env HOME)"."""
    from dlc_platform.orchestration.instance import prepare

    for name, value in prepare(_absolute(home)).items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def run(
    home: Home,
    select: Annotated[str, typer.Option(help="Assets, separated by commas, or Dagster's selection syntax.")],
    partition: Annotated[
        list[str] | None, typer.Option(help="A session or recipe; may be given again. Without it: whatever is missing.")
    ] = None,
) -> None:
    """Materialise assets now, in dependency order; the exit code is 1 when something failed."""
    from dlc_platform.orchestration.materialize import materialize

    if not materialize(_absolute(home), select, partition or [], _say):
        sys.exit(1)


@app.command()
def sessions(home: Home, as_json: AsJson = False) -> None:
    """List the registered sessions and their recordings."""
    from dlc_platform.platform import Platform

    columns = ["session", "recording", "camera", "frames", "frame_rate", "width", "height", "model", "problem"]
    _table(Platform(_absolute(home)).sessions(), columns, as_json)


models = typer.Typer(cls=_ListGroup, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models", help="List the model versions (`models HOME`), or import one.")


@models.command("list")
def list_models(home: Home, as_json: AsJson = False) -> None:
    """List the model versions with their test errors, oldest first."""
    from dlc_platform.platform import Platform

    columns = [
        "project",
        "recipe",
        "origin",
        "model",
        "train_images",
        "test_images",
        "epochs",
        "test_rmse_px",
        "production",
    ]
    _table(Platform(_absolute(home)).models(), columns, as_json)


@models.command("import")
def import_model(
    home: Home,
    project: Annotated[str, typer.Option(help="The project in lab.yaml that the model belongs to.")],
    folder: Annotated[Path | None, typer.Option(help="DeepLabCut's `train` folder of the model.")] = None,
    from_project: Annotated[Path | None, typer.Option(help="Or the DeepLabCut project that it was trained in.")] = None,
    iteration: Annotated[int | None, typer.Option(help="That of config.yaml by default.")] = None,
    shuffle: Annotated[int, typer.Option()] = 1,
    trainset: Annotated[int | None, typer.Option(help="Percentage of the images that were trained on.")] = None,
    model_prefix: Annotated[str, typer.Option(help="DeepLabCut's modelprefix.")] = "",
    snapshot: Annotated[str | None, typer.Option(help="A file name; the best one, or the last, by default.")] = None,
    detector_snapshot: Annotated[str | None, typer.Option(help="The same of a top-down model's detector.")] = None,
) -> None:
    """Register a model that DeepLabCut trained elsewhere; its files are copied and checked."""
    from dlc_platform.dlc.snapshots import find_train_folder
    from dlc_platform.imports import register_model

    if from_project is not None and folder is None:
        folder = find_train_folder(_absolute(from_project), iteration, shuffle, trainset, model_prefix).path
    elif folder is None or from_project is not None:
        raise typer.BadParameter("give either --folder or --from-project")
    lab, engine = _lab(home)
    model, new = register_model(engine, lab, project, _absolute(folder), snapshot, detector_snapshot)
    _say(
        f"{model.id[:12]}: {model.source['snapshot']} of {model.source['path']} "
        f"{'is now' if new else 'was already'} a model version of {project}"
    )
    if model.unusable:
        _say(f"It is kept, but cannot be used: {model.unusable}")


poses = typer.Typer(cls=_ListGroup, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(poses, name="poses", help="List the recordings that have poses (`poses HOME`), or import some.")


@poses.command("list")
def list_poses(home: Home, as_json: AsJson = False) -> None:
    """List the recordings that have poses, with their quality."""
    from dlc_platform.platform import Platform

    columns = [
        "session",
        "recording",
        "frames",
        "origin",
        "model",
        "scorer",
        "mean_likelihood",
        "fraction_confident",
    ]
    _table(Platform(_absolute(home)).estimates(), columns, as_json)


@poses.command("import")
def import_poses(
    home: Home,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .h5 or .csv that DeepLabCut wrote for a video.")],
    session: Annotated[str, typer.Option(metavar="KEY", help="The session of that video.")],
    recording: Annotated[str | None, typer.Option(help="Its recording, where the session has several.")] = None,
    model: Annotated[str | None, typer.Option(metavar="ID", help="The model version that made them.")] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Take a file that has more or fewer rows than the video frames.")
    ] = False,
    use: Annotated[bool, typer.Option("--use", help="Put them in force where the video has poses already.")] = False,
) -> None:
    """Register poses that DeepLabCut computed elsewhere as those of a registered video; the file is copied."""
    from dlc_platform.imports import register_poses
    from dlc_platform.platform import Platform

    model_id = None if model is None else Platform(_absolute(home)).model_id(model)
    lab, engine = _lab(home)
    done = register_poses(engine, lab, _absolute(file), session, recording, model_id, allow_mismatch, use)
    _say(f"{done.poses.id[:12]}: {file.name} is kept as poses of {done.video}, {done.poses.frames} frames")
    if done.poses.note:
        _say(f"Mind that {done.poses.note}")
    _say(
        "They are in force"
        if done.in_force
        else "They are not in force, because this video has poses already; `--use` puts them in force"
    )


def _lab(home: Path) -> "tuple[Lab, Engine]":
    """A lab's settings and its catalogue, to write to."""
    from dlc_platform.catalog.database import migrate, open_catalog
    from dlc_platform.postgres.connection import postgres_url
    from dlc_platform.settings import load_lab

    lab = load_lab(_absolute(home))
    engine = open_catalog(postgres_url(_absolute(home)))
    migrate(engine)
    return lab, engine


_stop = threading.Event()


@contextmanager
def _stoppable():
    """Let SIGTERM and SIGINT end the command the orderly way, wherever it is."""

    def interrupt(number: int, frame: object) -> None:
        if not _stop.is_set():
            _stop.set()
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with suppress(KeyboardInterrupt):
        yield


def _wait() -> None:
    with suppress(KeyboardInterrupt):
        _stop.wait()


def _say(line: str) -> None:
    print(line, flush=True)


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


def _table(frame: "pd.DataFrame", columns: list[str], as_json: bool) -> None:
    if as_json:
        frame.to_json(sys.stdout, orient="records", date_format="iso", indent=2)
        print()
        return
    from rich.console import Console
    from rich.table import Table

    if frame.empty:
        print("none yet")
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in frame[columns].itertuples(index=False):
        table.add_row(*(_cell(column, value) for column, value in zip(columns, row, strict=True)))
    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 1000)
    console.print(table, markup=False, highlight=False)


def _cell(column: str, value: object) -> str:
    if value is None or value != value:
        return ""
    if column == "model":
        return str(value)[:12]
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and column in ("frames", "width", "height") else f"{value:.3f}"
    return str(value)
