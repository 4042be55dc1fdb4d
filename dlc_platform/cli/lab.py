"""Commands on a whole lab: to make, start, examine and bring it up to date, and what it tells people."""

import json
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from dlc_platform.cli.arguments import AsCsv, AsJson, Home, Wide, absolute, asked, lab_and_catalogue
from dlc_platform.cli.printing import remark, say, show_table, show_tables
from dlc_platform.cli.stopping import stop, stoppable, wait
from dlc_platform.cli.usage import Commands, Misuse
from dlc_platform.errors import PlatformError, command, in_a_line, shell_word
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.text import screen

commands = Commands()


@commands.command()
def demo(
    home: Annotated[Path, typer.Option(help="Where the demo makes its lab.")] = Path("demo-lab"),
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop everything at the end instead of leaving the UI up.")
    ] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the UI; a free one by default.")] = None,
) -> None:
    """Make a small lab, train a model, and let the sensor track two new sessions: the main job, end to end."""
    from dlc_platform.demo.story import tell

    good = False
    with stoppable():
        good = tell(absolute(home), port, None if exit_ else wait, say)
    if not good:
        sys.exit(1)


@commands.command()
def init(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The folder to make the lab in.")],
    raw_root: Annotated[
        Path | None, typer.Argument(metavar="RAW_ROOT", help="The folder below which sessions lie.")
    ] = None,
    dlc_project: Annotated[
        Path | None, typer.Argument(metavar="DLC_PROJECT", help="The folder of a DeepLabCut project.")
    ] = None,
    raw: Annotated[list[Path] | None, typer.Option(help="Another folder of sessions; may be given again.")] = None,
    project: Annotated[list[Path] | None, typer.Option(help="Another DeepLabCut project; may be given again.")] = None,
) -> None:
    """Write HOME/lab.yaml for a raw root and a DeepLabCut project; in a terminal it asks for what is not given."""
    from dlc_platform.lab.new_lab import make_lab

    raws = [path for path in (raw_root, *(raw or [])) if path is not None]
    projects = [path for path in (dlc_project, *(project or [])) if path is not None]
    if not (absolute(home) / LAB_FILE).exists():
        how = f"Write {command('init', home, 'RAW_ROOT', 'DLC_PROJECT')}"
        raws = raws or [Path(asked("The folder below which sessions lie:", "RAW_ROOT is missing", how))]
        projects = projects or [Path(asked("The folder of a DeepLabCut project:", "DLC_PROJECT is missing", how))]
    file = make_lab(absolute(home), [absolute(path) for path in raws], [absolute(path) for path in projects])
    say(f"{file} is written. Look it through, then check it with {command('doctor', home)}")


@commands.command()
def up(
    home: Home,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI on 127.0.0.1.")] = 3000,
    read_only_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of a second UI, in which nothing can be started or changed."),
    ] = None,
) -> None:
    """Start Postgres, the Dagster daemon and the webserver; Ctrl-C stops all of it."""
    from dlc_platform.orchestration.up import running

    with stoppable(), running(absolute(home), port, say, read_only_port) as services:
        if services.read_only_address is not None:
            say(f"To look only: {services.read_only_address}")
        say(f"The lab is up: {services.address}")
        if sys.stdout.isatty():
            say("Open this address; it lets in whoever has it. Ctrl-C stops the lab.")
        while not stop.wait(2):
            services.check()


@commands.command("stop")
def stop_(home: Home) -> None:
    """Stop a lab that is up, from another terminal, and the Postgres that commands left running."""
    from dlc_platform.orchestration.stopping import stop as stop_lab

    stop_lab(absolute(home), say)


@commands.command()
def ui(
    home: Home,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI on 127.0.0.1.")] = 3000,
    read_only: Annotated[bool, typer.Option("--read-only", help="The UI in which nothing can be changed.")] = False,
) -> None:
    """Print the address of a lab's UI that lets a browser in, as `up` does."""
    from dlc_platform.orchestration.web_access import address
    from dlc_platform.settings.loading import load_lab

    load_lab(absolute(home))
    print(address(absolute(home), port, read_only))
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)):
            # A port that is forwarded from another machine may be opened later.
            told = f"Nothing answers at port {port} yet. If the lab is not up, {command('up', home)} starts it"
            remark(f"{told}; if its UI has another port, name it with --port")


@commands.command()
def docs() -> None:
    """Print the address of the documentation of this version; a browser on this machine needs no internet for it."""
    import dlc_platform.docs

    folder = Path(dlc_platform.docs.__file__).parent
    page = folder / "site" / "index.html"
    if not page.is_file():
        page = folder / "pages" / "index.md"
        remark(
            "This is a working copy, so these are the texts. "
            f"`uv run mkdocs serve --config-file {shell_word(folder / 'mkdocs.yml')}` shows them as web pages"
        )
    print(page.as_uri())


@commands.command()
def doctor(home: Home, as_json: AsJson = False) -> None:
    """Say what is wrong with a lab, its services included, and what to do; the exit code is 1 when something is."""
    from dlc_platform.lab.doctor import examine
    from dlc_platform.orchestration.inspection import inspect

    wrong = 0
    records = []
    for finding in chain(examine(absolute(home)), inspect(absolute(home))):
        mark = "ok" if not finding.remedy else "warning" if finding.warning else "WRONG"
        wrong += mark == "WRONG"
        records.append({**asdict(finding), "state": mark.lower()})
        if not as_json:
            said = f"{finding.what}: {finding.found}" + (f". {finding.remedy}." if finding.remedy else "")
            say(f"{mark:7} {in_a_line(said)}", 8)
    if as_json:
        print(json.dumps(records, indent=2))
    if wrong:
        sys.exit(1)


@commands.command()
def env(home: Home) -> None:
    """Print the variables that let any `dagster` command work on a lab: eval "$(dlc-platform env HOME)"."""
    from dlc_platform.orchestration.instance import environment_of_started
    from dlc_platform.orchestration.migration import require_known, revisions

    require_known(revisions(absolute(home)))
    for name, value in environment_of_started(absolute(home)).items():
        print(f"export {name}={shlex.quote(value)}")


@commands.command()
def migrate(
    home: Home,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what would be done; the exit code is 1 when it cannot be.")
    ] = False,
) -> None:
    """Bring the database up to date before services of a new version start: the catalogue's tables and Dagster's."""
    from dlc_platform.orchestration.migration import migrate as bring_up_to_date
    from dlc_platform.orchestration.migration import require_known, revisions

    if not check:
        for revision, before in bring_up_to_date(absolute(home)):
            done = "were there already" if before == revision.now else f"are new: they were at {before or 'nothing'}"
            say(f"{revision.what}: the tables of {revision.now} {done}")
        return
    found = revisions(absolute(home))
    require_known(found)
    for revision in found:
        todo = "nothing to do" if revision.now == revision.newest else f"would be brought to {revision.newest}"
        say(f"{revision.what}: the tables are at {revision.now or 'nothing'}; {todo}")
    if not found:
        say("the lab has no database yet; one would be made")


@commands.command()
def gpus(
    home: Home,
    drain: Annotated[
        str | None, typer.Option(metavar="GPU", help="Keep new runs away from this device, by its number or UUID.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="GPU", help="Let a drained device take runs again.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    wide: Wide = False,
) -> None:
    """The devices that runs may use, who computes there, and which take no new runs (drained)."""
    from dlc_platform.devices import leases
    from dlc_platform.devices.gpus import CPU, find_devices
    from dlc_platform.settings.loading import load_lab

    devices = find_devices(load_lab(absolute(home)).gpus) or (CPU,)
    for name, change in ((drain, leases.drain), (resume, leases.resume)):
        if name is not None:
            named = [device for device in devices if device.is_called(name)]
            if not named:
                known = ", ".join(device.visible or device.key for device in devices)
                choice = f"Name one of {known}, or its UUID"
                if devices == (CPU,):
                    choice = f"They run on the CPU, which is called {CPU.key}"
                raise PlatformError(f"runs of this lab use no GPU {name!r}", choice)
            for device in named:
                change(device)
    if devices == (CPU,) and not (as_json or as_csv):
        say("this machine has no GPU that the lab may use: everything runs on the CPU")
    rows: list[Mapping[str, Any]] = [
        {
            "gpu": state.device.visible or state.device.key,
            "uuid": state.device.uuid or "",
            "model": state.device.model or "",
            "memory_gb": state.device.memory_gb,
            "shared_gb": sum(holder.memory_gb or 0 for holder in state.holders) or None,
            "held_by": "; ".join(map(str, state.holders)),
            "drained": state.drained or "",
            "without_lease": ", ".join(map(str, sorted(state.strangers))),
        }
        for state in leases.survey(devices)
    ]
    if devices != (CPU,) or as_json or as_csv or any(row["held_by"] or row["drained"] for row in rows):
        show_table(rows, list(rows[0]), as_json)


@commands.command()
def report(
    home: Home,
    day: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="In the lab's time zone; yesterday by default.")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    wide: Wide = False,
) -> None:
    """Say what a day brought: sessions arrived, estimated, in quarantine and waiting; hours of video and of devices.

    `--csv` has a row for each camera and for each of the last 30 days.
    """
    from dlc_platform.reports.daily import daily_report, first_day, require_reported, yesterday

    try:
        meant = None if day is None else date.fromisoformat(day)
    except ValueError:
        raise Misuse(f"--day: {day!r} is not a day", "Write it like 2026-03-31") from None
    lab, engine = lab_and_catalogue(home)
    if meant is not None:
        require_reported(engine, meant, lab.time_zone)
    elif not (as_json or as_csv) and (first := first_day(engine, lab.time_zone)) > yesterday(lab.time_zone):
        say(f"The lab began today, {first}, so there is nothing to report of yesterday. What today brought until now:")
        meant = first
    found = daily_report(engine, meant or yesterday(lab.time_zone), lab.time_zone, lab.damaged_videos)
    if as_json:
        rows = {"cameras": found.by_camera, "days": found.by_day}
        print(json.dumps({**found.figures(), **rows}, indent=2, default=date.isoformat))
        return
    if as_csv:
        show_tables({"cameras": found.by_camera, "days": found.by_day})
        return
    for line in screen.wrapped(f"{found.day}, {found.time_zone}: {found}", screen.width()):
        say(line)
    say("")
    columns = ["files_arrived", "video_hours_arrived", "sessions_estimated", "video_hours_estimated"]
    columns = ["camera", "project", *columns, "inference_gpu_hours", "inference_cpu_hours"]
    show_table(found.by_camera, columns, nothing="No camera recorded anything, and nothing was estimated")


@commands.command()
def notifications(home: Home, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List what was told to whom, the newest first: what waits, what was sent, and what was given up and why."""
    from dlc_platform.catalog.notifications import notification_table

    columns = ["created_at", "kind", "channel", "state", "attempts", "title", "last_error"]
    show_table(notification_table.rows(lab_and_catalogue(home)[1]), columns, as_json, "nobody was told anything yet")


notify = Commands()
commands.add_typer(notify, name="notify", help="Try the channels by which the lab tells people (`notify test HOME`).")


@notify.command("test")
def notify_test(home: Home) -> None:
    """Send a test message to each channel of lab.yaml; the exit code is 1 when one does not take it."""
    from dlc_platform.notify.messages import SendError, trial_message
    from dlc_platform.notify.sending import send
    from dlc_platform.settings.loading import load_lab

    lab = load_lab(absolute(home))
    if not lab.notify.channels:
        raise PlatformError("lab.yaml names no channel", "Add a webhook or a mail under `notify`")
    failed = 0
    for channel in lab.notify.channels:
        try:
            send(channel, trial_message(lab.name))
            say(f"{channel.name}: taken")
        except (SendError, PlatformError) as error:
            failed += 1
            say(f"{channel.name}: NOT taken: {error}")
    if failed:
        sys.exit(1)


@commands.command()
def serve(
    home: Home,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the pages on 127.0.0.1.")] = 3001,
    read_only: Annotated[bool, typer.Option("--read-only", help="Pages in which nothing can be changed.")] = False,
) -> None:
    """Show the lab's pages: sessions with their videos and poses. `up` does so, too."""
    from dlc_platform.orchestration.web_access import shown_address
    from dlc_platform.web.pages.app import serve as serve_pages

    say(f"The pages of the lab: {shown_address(absolute(home), port, read_only)}")
    serve_pages(absolute(home), port, read_only)
