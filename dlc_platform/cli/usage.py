"""The calls of commands: the text of `--help`, and the answer to a call that is not understood.

Arguments stand in capitals, options with what they take, and no name of a type of Python is shown.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from typer._click.exceptions import BadOptionUsage, BadParameter, MissingParameter, NoSuchOption
from typer._click.exceptions import NoArgsIsHelpError as NoArgsIsHelpError
from typer._click.exceptions import UsageError as UsageError
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import Abort as Abort

from dlc_platform.cli.printing import labs
from dlc_platform.errors import PlatformError, in_a_line
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.text.names import near_names

#: What an option takes, where it says nothing else, by its type.
_TAKES = {Path: "PATH", int: "NUMBER", float: "NUMBER", str: "TEXT"}
#: The command of a group that needs no name: `models HOME`.
_LISTING = "list"
_TOO_MANY = re.compile(r"unexpected extra argument\(s\) \((.*)\)")
_NO_NUMBER = re.compile("should be a valid (integer|number)")
#: Arguments that were options of another name in earlier versions.
_WAS_OPTION = {"select": "ASSETS", "from-project": "FOLDER"}


class Command(TyperCommand):
    """A command whose help is in the words of whoever calls it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*(_argument(one) for one in self.params if one.param_type_name == "argument"), "[OPTIONS]"]

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(called(ctx), " ".join(self.collect_usage_pieces(ctx)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            own = [
                one for one in self.get_params(ctx) if one.param_type_name == kind and not getattr(one, "hidden", False)
            ]
            if own:
                with formatter.section(title):
                    formatter.write_dl([(spelled(one), described(one)) for one in own])


class Group(TyperGroup):
    """Several commands under one name."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(called(ctx), "COMMAND ...")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name: one for name, one in self.commands.items() if not one.hidden and name != _LISTING}
        if shown:
            with formatter.section("Commands"):
                formatter.write_dl([(name, summary(one)) for name, one in shown.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not ctx.resilient_parsing and not args[0].startswith("-"):
            raise NoSuchCommand(args, ctx)
        return super().resolve_command(ctx, args)


class ListGroup(Group):
    """Commands on one kind of thing, of which the one that lists them needs no name: ``models HOME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            if len(args) > 1 and near_names(args[0], self.commands) and not Path(args[0]).exists():
                raise NoSuchCommand(args, ctx)
            args = [_LISTING, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(called(ctx), " ".join(self.commands[_LISTING].collect_usage_pieces(ctx)))
        for name, other in self.commands.items():
            if name != _LISTING:
                formatter.write_usage(f"{called(ctx)} {name}", " ".join(other.collect_usage_pieces(ctx)), "   or: ")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        listing = self.commands[_LISTING]
        listing.format_options(self._context(ctx, listing), formatter)
        self.format_commands(ctx, formatter)

    @staticmethod
    def _context(ctx: Any, listing: Any) -> Any:
        return listing.context_class(listing, info_name=_LISTING, parent=ctx)


class Commands(typer.Typer):
    """The commands of a module."""

    def __init__(self, group: type[TyperGroup] = Group):
        super().__init__(cls=group, no_args_is_help=True, rich_markup_mode=None)

    def command(self, name: str | None = None) -> Callable[[Any], Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().command(name, cls=Command)


class Misuse(PlatformError):
    """A call that cannot be meant: something is missing, or would do nothing."""


class NoSuchCommand(UsageError):
    """A word stands where a command is expected."""

    def __init__(self, words: list[str], ctx: Any):
        super().__init__(f"there is no command {words[0]}", ctx)
        self.words = words


def called(ctx: Any) -> str:
    """The words that call a command, without those that need not be said."""
    return ctx.command_path.removesuffix(f" {_LISTING}")


def summary(one: Any) -> str:
    """The first paragraph of a command's help, whole: typer cuts it at the end of the line."""
    return " ".join((one.help or "").split("\n\n")[0].split())


def spelled(parameter: Any) -> str:
    """An argument or option as it is written: ``HOME``, ``--port NUMBER``."""
    if parameter.param_type_name == "argument":
        return _name(parameter)
    return ", ".join(parameter.opts) + ("" if parameter.is_flag else f" {_takes(parameter)}")


def described(parameter: Any) -> str:
    """The purpose of an argument or option, and its default if it tells something."""
    said = inspect.cleandoc(parameter.help or "")
    default = parameter.default
    if default in (None, False, "", ()) or callable(default) or parameter.param_type_name == "argument":
        return said
    return f"{said} Default: {default}."


def _takes(option: Any) -> str:
    if option.metavar:
        return option.metavar
    if option.type_descriptor.is_choice:
        return "|".join(map(str, option.type_descriptor.choices))
    kind = option.type_descriptor.annotation
    while get_origin(kind) is list:
        (kind,) = get_args(kind)
    return _TAKES.get(kind, "TEXT")


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _argument(argument: Any) -> str:
    name = _name(argument) + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def misunderstood(error: UsageError) -> PlatformError:
    """The error for a call that is not understood, with the right way to call."""
    ctx = error.ctx
    if ctx is None:
        return PlatformError(_begun(error.format_message()), "See `dlc-platform --help`")
    problem, hint = _problem(error)
    words = called(ctx)
    usage = " ".join([words, *ctx.command.collect_usage_pieces(ctx)]).removesuffix(" [OPTIONS]")
    if isinstance(error, NoSuchCommand) or isinstance(ctx.command, TyperGroup):
        how = f"`{words} --help` lists the commands"
    elif isinstance(error, NoSuchOption):
        how = f"`{words} --help` lists the options"
    elif isinstance(error, MissingParameter) or _TOO_MANY.search(error.message):
        how = f"Write `{usage}`"
    else:
        how = f"See `{words} --help`"
    return PlatformError(problem, f"{hint} {how}" if hint else how)


def _problem(error: UsageError) -> tuple[str, str]:
    """The fault of a call, and, as a sentence of its own, what may be meant."""
    ctx: Any = error.ctx
    if isinstance(error, NoSuchCommand):
        near = near_names(error.words[0], ctx.command.commands)
        if near:
            return error.message, f"Did you mean {' or '.join(near)}?"
        (only, *others) = (name for name in ctx.command.commands if name != _LISTING)
        if not others:
            return f"`{called(ctx)}` needs a command before {error.words[0]}", f"Write `{called(ctx)} {only} HOME`;"
        return error.message, ""
    if isinstance(error, NoSuchOption):
        known = [name for one in ctx.command.get_params(ctx) if not getattr(one, "hidden", False) for name in one.opts]
        near = [f"--{name}" for name in near_names(error.option_name.lstrip("-"), [one.lstrip("-") for one in known])]
        problem = f"`{called(ctx)}` has no option {in_a_line(error.option_name)}"
        arguments = {_name(one) for one in ctx.command.params if one.param_type_name == "argument"}
        named = error.option_name.lstrip("-")
        if (place := _WAS_OPTION.get(named, named.upper())) in arguments:
            usage = " ".join([called(ctx), *ctx.command.collect_usage_pieces(ctx)]).removesuffix(" [OPTIONS]")
            return problem, f"{place} is written without it: `{usage}`."
        return problem, f"Did you mean {' or '.join(near)}?" if near else ""
    if isinstance(error, BadOptionUsage):
        return f"{error.option_name} needs a value", ""
    if isinstance(error, MissingParameter) and error.param is not None:
        return _missing(error, ctx)
    if isinstance(error, BadParameter) and error.param is not None:
        return f"{spelled(error.param).split()[0]}: {_not_taken(error)}", ""
    if (many := _TOO_MANY.search(error.message)) is not None:
        return f"`{called(ctx)}` has no place for {in_a_line(many[1])}", ""
    return _begun(error.message), ""


def _missing(error: MissingParameter, ctx: Any) -> tuple[str, str]:
    """A word is missing; where the lab is what was left out, another word stands in its place."""
    param: Any = error.param
    name = _name(param) if param.param_type_name == "argument" else spelled(param)
    given = ctx.params.get("home")
    if given is None or (given / LAB_FILE).exists() or name == "HOME":
        return f"{name} is missing: {_begun(described(param))}", ""
    labs.clear()
    return f"{name} is missing, and {given} is no lab: HOME is the folder that holds {LAB_FILE}", ""


def _not_taken(error: BadParameter) -> str:
    """The fault of a value, in words of people: the ones of pydantic are for who writes programs."""
    if (found := _NO_NUMBER.search(error.message)) is not None:
        return f"this is not a {'whole ' if found[1] == 'integer' else ''}number"
    return _begun(error.message.removeprefix("Value error, "))


def _begun(message: str) -> str:
    """A message of typer's as the problem of one of ours."""
    message = " ".join(in_a_line(message).split()).rstrip(".")
    return message[:1].lower() + message[1:]
