"""The command line as a whole: its groups of commands in order, and how what goes wrong is told.

Each command stands in the module of its group.
"""

import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dlc_platform.cli import lab, models, poses, sessions, store
from dlc_platform.cli.printing import complaint, warn
from dlc_platform.cli.usage import Abort, Group, Misuse, NoArgsIsHelpError, UsageError, misunderstood, summary
from dlc_platform.errors import PlatformError, PlatformWarning, sentence_for_people

#: The groups of commands, in the order in which `--help` shows them.
GROUPS = {
    "The lab": lab.commands,
    "Sessions": sessions.commands,
    "Models": models.commands,
    "Poses": poses.commands,
    "Store and backups": store.commands,
}


class _Grouped(Group):
    """The commands by groups in `--help`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        TyperGroup.format_options(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, group in GROUPS.items():
            names = typer.main.get_group(group).list_commands(ctx)
            with formatter.section(title):
                formatter.write_dl([(name, summary(self.commands[name])) for name in names])


app = typer.Typer(cls=_Grouped, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for _group in GROUPS.values():
    app.add_typer(_group)


def _say_version(wanted: bool) -> None:
    if wanted:
        from dlc_platform.version import __version__

        print(f"dlc-platform {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is, and stop."),
    ] = False,
) -> None:
    """Track a lab's videos with its best model. Begin with `demo`, or with `init` for a lab of your own.

    HOME is the folder that holds lab.yaml. `dlc-platform COMMAND --help` says what a command takes.
    """


def main() -> None:
    """Run the command line; what a person can mend is told as one message.

    The exit code is 1 when something did not go well, and 2 when the call was not understood.
    """
    if not sys.warnoptions:
        _keep_others_quiet()
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        if isinstance(error, NoArgsIsHelpError):
            print(error.format_message(), file=sys.stderr)
        else:
            print(complaint(misunderstood(error)), file=sys.stderr)
        sys.exit(2)
    except Misuse as error:
        print(complaint(error), file=sys.stderr)
        sys.exit(2)
    except Abort:
        sys.exit(complaint("nothing was done"))
    except PlatformError as error:
        sys.exit(complaint(error))
    except BrokenPipeError:
        # The reader of a table, such as `head`, had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (told := sentence_for_people(error)) is not None:
            sys.exit(complaint(told))
        if (lost := _lost_connection(error)) is None:
            raise
        problem = PlatformError(
            f"Postgres failed: {lost}",
            "See that it runs (an embedded one is started by the next command) and run again: what was done is kept",
        )
        sys.exit(complaint(problem))
    sys.exit(code or 0)


def _keep_others_quiet() -> None:
    """Leave out what libraries say to who writes programs: warnings of betas, of deprecations, of training options.

    With `python -W` or PYTHONWARNINGS everything is shown, as without this.
    """

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, PlatformWarning):
            warn(message)

    warnings.showwarning = show
    ours = logging.StreamHandler()
    ours.addFilter(lambda record: record.name.startswith("dlc_platform") or record.levelno >= logging.ERROR)
    ours.setLevel(logging.WARNING)
    # Where there is none, the first library that logs something adds one for everything.
    logging.getLogger().addHandler(ours)


def _lost_connection(error: BaseException | None) -> str | None:
    """The message of the database driver, if an error comes from a server that went away."""
    from sqlalchemy.exc import OperationalError

    while error is not None:
        if isinstance(error, OperationalError):
            return " ".join(str(error.orig).split()).rstrip(".")
        error = error.__cause__ or error.__context__
    return None
