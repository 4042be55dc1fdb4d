"""Commands on the store and on backups."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dlc_platform.cli.arguments import Home, absolute, catalogue_and_store
from dlc_platform.cli.printing import say, show_table
from dlc_platform.cli.usage import Commands
from dlc_platform.errors import PlatformError, command
from dlc_platform.text.words import counted, said_of, sized

commands = Commands()


@commands.command()
def verify(home: Home) -> None:
    """Read the whole store again and report every difference to the catalogue; the exit code is 1 when one is found."""
    from rich.console import Console
    from rich.progress import Progress

    from dlc_platform.lab import retention

    wrong, warnings = 0, 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("products")
        for difference in retention.verify(
            *catalogue_and_store(home), lambda done, products: progress.update(task, completed=done, total=products)
        ):
            mark = "warning" if difference.warning else "WRONG  "
            wrong += not difference.warning
            warnings += difference.warning
            say(f"{mark} {said_of(difference.path, difference.problem)}. {difference.remedy}.", 8)
    found = counted(wrong, "difference") if wrong else "No difference was found"
    if warnings:
        say(f"{found}; {counted(warnings, 'warning')}")
    else:
        say(found if wrong else "The store is as the catalogue knows it")
    if wrong:
        sys.exit(1)


@commands.command()
def gc(
    home: Home,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them, instead of only listing them.")] = False,
) -> None:
    """List products that nothing refers to any more and that are older than a day."""
    from dlc_platform.lab import retention

    engine, store = catalogue_and_store(home)
    found = list(retention.garbage(engine, store))
    if not found:
        say("Nothing to remove")
        return
    removed, failed = 0, 0
    rows = []
    for item in found:
        outcome = "could go"
        if delete:
            try:
                outcome = "removed" if retention.remove(engine, store, item) else "kept: it is of use again"
            except PlatformError as error:
                failed += 1
                outcome = f"NOT removed: {error.problem}"
        removed += item.size_bytes if outcome == "removed" else 0
        rows.append(
            {
                "path": str(item.path.relative_to(store.root)),
                "why": "nothing refers to it" if item.product else "left by a crash",
                "size": sized(item.size_bytes),
                "last_written": f"{item.last_written:%Y-%m-%d %H:%M}",
                "outcome": outcome,
            }
        )
    show_table(rows, ["path", "why", "size", "last_written", "outcome"])
    if delete:
        say(f"{sized(removed)} removed from {store.root}")
    else:
        say(f"{sized(sum(item.size_bytes for item in found))} of {store.root}; --delete removes it")
    if failed:
        sys.exit(1)


@commands.command()
def backup(
    home: Home, file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to make; it must not exist.")]
) -> None:
    """Write the database, the index of the store and lab.yaml into one file. The products are copied otherwise."""
    from dlc_platform.lab.backup import backup as make
    from dlc_platform.orchestration.instance import used

    with used(absolute(home)):
        made = make(absolute(home), absolute(file))
    say(f"{made.file} is written: {sized(made.size_bytes)}; it names {counted(made.products, 'product')}")
    if made.missing:
        say(
            f"warning: the store lacks {counted(len(made.missing), 'product')} that the catalogue names, such as "
            f"{made.missing[0]}. Run {command('verify', home)}."
        )


@commands.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `dlc-platform backup` made.")],
    home: Annotated[Path, typer.Argument(metavar="HOME", help="A new or empty folder to make the lab in.")],
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out what its database has beyond the platform's own tables.")
    ] = False,
) -> None:
    """Make a lab out of a backup, and say which products its store lacks."""
    from dlc_platform.lab.backup import restore as make
    from dlc_platform.orchestration.restored import DAGSTER

    if not file.expanduser().exists():
        raise PlatformError(
            f"there is no file {absolute(file)}",
            "Name one that `dlc-platform backup` made; those that a lab makes by itself lie where `backups` in its "
            "lab.yaml says",
        )
    made = make(absolute(file), absolute(home), DAGSTER, leave_out)
    say(f"{absolute(home)} is the lab of {made.manifest.made_at:%Y-%m-%d %H:%M} UTC again")
    if made.unusable is not None:
        say(f"warning: {made.unusable}")
    else:
        say(f"lab.yaml expects the store in {made.store}; it was in {made.manifest.store}")
    if made.lacking is not None:
        say(f"warning: lab.yaml names {made.lacking}, which is not there and in no backup. Bring it from elsewhere.")
    for products, what, remedy in (
        (made.missing, "missing from the store", "Copy the store there, or point `store` in lab.yaml to it"),
        (made.changed, "not those of the backup", "Bring them back from a copy of the store"),
        (
            made.unknown,
            "not known to the backup",
            "What made them after it finds them again when it is repeated; until then, do not let `gc` remove them",
        ),
    ):
        if products:
            say(
                f"warning: {counted(len(products), 'product is', 'products are')} {what}, such as {products[0]}. "
                f"{remedy}."
            )
    say(f"Check it with {command('verify', home)}")
