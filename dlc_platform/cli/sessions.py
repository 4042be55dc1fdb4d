"""Commands on sessions: to register, list and release them."""

import getpass
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlc_platform.cli.arguments import (
    AsCsv,
    AsJson,
    Home,
    Session,
    Stage,
    Wide,
    absolute,
    lab_and_catalogue,
    require_session,
)
from dlc_platform.cli.printing import say, show_table
from dlc_platform.cli.stopping import end_with
from dlc_platform.cli.usage import Commands, ListGroup, Misuse
from dlc_platform.errors import PlatformError, command, in_a_line
from dlc_platform.text import screen
from dlc_platform.text.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dlc_platform.settings.lab import Lab

commands = Commands()


sessions = Commands(ListGroup)
commands.add_typer(
    sessions, name="sessions", help="List the sessions (`sessions HOME`), or release one from quarantine."
)


@commands.command("scan")
def scan_(
    home: Home,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and why the rest not.")
    ] = False,
    session: Annotated[str | None, typer.Option(metavar="KEY", help="Only this session; with --dry-run.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Name all of it, not only the first; with --dry-run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON; with --dry-run.")] = False,
) -> None:
    """Register the sessions that are ready now, as `run session_videos` does; or say what would be done.

    What the lab's own tables say of sessions is read again too. With --dry-run nothing is written, and the exit code is
    1 when something is lost until a person mends it.
    """
    if not dry_run:
        from dlc_platform.lab.plan import broken_projects
        from dlc_platform.orchestration.materialize import register_sessions
        from dlc_platform.sessions.raw_roots import Disks
        from dlc_platform.sessions.registration import reread_details
        from dlc_platform.sessions.sidecars import Sidecars

        if session is not None or all_ or as_json:
            raise Misuse("--session, --all and --json go with --dry-run", "Add --dry-run, or leave them out")
        say("Registering the sessions that are ready, as `dlc-platform run HOME session_videos` does")

        def register() -> bool:
            succeeded = register_sessions(absolute(home), say)
            lab, engine = lab_and_catalogue(home)
            disks = Disks(lab.raw_roots, lab.scan.root_timeout_seconds)
            disks.answering()
            changed = reread_details(engine, Sidecars(lab.raw_roots, disks.silent))
            say(
                "The lab's own tables say something new of "
                f"{counted(changed, 'subject or session', 'subjects and sessions')}"
            )
            for line in broken_projects(lab):
                say(line)
            return succeeded

        end_with(register)
        return
    from dlc_platform.catalog.database import open_where_there
    from dlc_platform.cli.plan_lines import plan_lines
    from dlc_platform.lab.plan import plan as plan_lab
    from dlc_platform.settings.loading import load_lab

    lab = load_lab(absolute(home))
    plan = whole = plan_lab(lab, open_where_there(absolute(home)))
    if session is not None:
        plan = whole.of(session)
        if not plan.sessions and not plan.skipped:
            from dlc_platform.text.names import require_known

            known = {planned.key for planned in whole.sessions}
            listing = command("scan", home, "--dry-run", "--all")
            require_known("session", [session], known, listing)
    if as_json:
        print(json.dumps(plan.to_json(), indent=2))
    else:
        for line in plan_lines(plan, all_ or session is not None):
            # Some begin a new paragraph.
            say(line[: line.startswith("\n")] + in_a_line(line.removeprefix("\n")))
    if plan.loses:
        sys.exit(1)


@sessions.command("list")
def list_sessions(
    home: Home,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Those that are held up, why, and what to do.")
    ] = False,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="All that wait or are held up: since when, why, and what to do.")
    ] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    wide: Wide = False,
) -> None:
    """List the registered sessions and their recordings; or what waits, or what is in quarantine."""
    from dlc_platform.catalog.quarantine import quarantine_table
    from dlc_platform.catalog.sessions import session_table

    if waiting and quarantined:
        raise Misuse("--waiting lists what --quarantined lists, and more", "Ask for one of them")
    if waiting and wide:
        raise Misuse("--waiting prints everything as it is", "Leave out --wide")
    lab, engine = lab_and_catalogue(home)
    if waiting:
        _show_waiting(engine, lab, as_json, as_csv)
    elif quarantined:
        columns = ["session", "stage", "since", "file", "reason", "remedy"]
        show_table(quarantine_table.rows(engine), columns, as_json, "no session is in quarantine")
    else:
        columns = ["session", "recording", "position", "camera", "duration_s", "frames", "frame_rate", "size", "model"]
        rows = [_with_left_out(row) for row in session_table.rows(engine)]
        nothing = "no session is registered yet: `dlc-platform scan HOME --dry-run` says what lies on the disks"
        show_table(rows, [*columns, "damage", "problem"], as_json, nothing)


def _show_waiting(engine: "Engine", lab: "Lab", as_json: bool, as_csv: bool) -> None:
    from dlc_platform.lab.runs_under_way import daemon_lives
    from dlc_platform.lab.waiting import Waiting, waiting, waiting_lines

    found = waiting(engine, lab)
    if as_json or as_csv:
        show_table([asdict(one) for one in found], list(Waiting.__dataclass_fields__), as_json)
        return
    for line in waiting_lines(found, screen.width()):
        say(line)
    held = {one.session for one in found if not one.passing}
    number = len({one.session for one in found})
    waits = counted(number, "session waits", "sessions wait")
    say(f"{waits}, {len(held)} of them for a person" if found else "nothing waits")
    if number > len(held) and daemon_lives(engine) is False:
        say("The lab is not up, so nothing goes on by itself: start it with `dlc-platform up HOME`, or its service")


def _with_left_out(row: dict[str, Any]) -> dict[str, Any]:
    """A file of `sessions` with its picture's size, and what is left out at its beginning beside the damage in it."""
    left_out = row["frames_left_out"]
    said = [row["damage"], f"{counted(left_out, 'frame')} left out at the start" if left_out else None]
    size = f"{row['width']}x{row['height']} px" if row["width"] else None
    return {**row, "size": size, "damage": "; ".join(filter(None, said)) or None}


@sessions.command("release")
def release_session(
    home: Home,
    session: Session,
    stage: Annotated[Stage | None, typer.Option(help="Only what holds it up at this stage.")] = None,
    reason: Annotated[str | None, typer.Option(metavar="WHY", help="Why; the entry keeps it.")] = None,
    by: Annotated[str | None, typer.Option(metavar="WHO", help="Who releases it; you, by default.")] = None,
) -> None:
    """Let a session out of quarantine as it is: it goes on where it was held up, until its files change."""
    from dlc_platform.catalog import quarantine
    from dlc_platform.catalog.sessions import current_files

    engine = lab_and_catalogue(home)[1]
    require_session(home, engine, session)
    ended = quarantine.release(engine, session, by or getpass.getuser(), [stage] if stage else None, reason)
    if not ended:
        raise PlatformError(
            f"session {session!r} is not in quarantine" + (f" at the stage {stage}" if stage else ""),
            "Choose among `dlc-platform sessions HOME --quarantined`",
        )
    held = counted(ended, "reason that held it up does not", "reasons that held it up do not")
    say(f"{session} is released: {held} count any more, until its files change")
    if stage in (None, "videos"):
        for file in current_files(engine, session):
            if file.problem is not None:
                say(
                    f"But {file.path} cannot be read, and a release does not help there: the file stays out until it "
                    "is copied again"
                )
