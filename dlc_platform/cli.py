"""The command line. Each command is a thin door to a layer below; nothing is computed here."""

import getpass
import json
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, date, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from dlc_platform.errors import (
    PlatformError,
    PlatformWarning,
    at_home,
    command,
    in_a_line,
    printable,
    sentence_for_people,
    shell_word,
)
from dlc_platform.identity import short
from dlc_platform.text import screen
from dlc_platform.text.words import counted, said_of

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Engine

    from dlc_platform.settings.lab import Lab
    from dlc_platform.store import Store


class _ListGroup(TyperGroup):
    """Commands on one kind of thing, of which the one that lists them needs no name: ``models HOME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


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
) -> None: ...


#: The lab that the command is about, as it was typed.
_labs: list[Path] = []


def _remembered(home: Path) -> Path:
    _labs[:] = [home]
    return home


def _pasteable(message: str) -> str:
    """A message with this lab in its commands, and without what would command the terminal."""
    return printable(at_home(message, _labs[0]) if _labs else message)


Home = Annotated[Path, typer.Argument(metavar="HOME", help="The folder that holds lab.yaml.", callback=_remembered)]
Session = Annotated[str, typer.Argument(metavar="SESSION", help="A session's key, such as sub-001_ses-01.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model version's identity, or as much as `models` shows.")
]
Stage = Literal["videos", "labels", "poses", "quality"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON records instead of a table.")]


def main() -> None:
    """Run the command line; what a person can mend is printed as one sentence, and the exit code is 1."""
    if not sys.warnoptions:
        _keep_others_quiet()
    try:
        app()
    except PlatformError as error:
        sys.exit(f"dlc-platform: {_pasteable(str(error))}")
    except BrokenPipeError:
        # The reader of a table, such as `head`, had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (told := sentence_for_people(error)) is not None:
            sys.exit(f"dlc-platform: {_pasteable(str(told))}")
        if (lost := _lost_connection(error)) is None:
            raise
        problem = PlatformError(
            f"Postgres failed: {lost}",
            "See that it runs (an embedded one is started by the next command) and run again: what was done is kept",
        )
        sys.exit(f"dlc-platform: {problem}")


def _keep_others_quiet() -> None:
    """Leave out what libraries say to who writes programs: warnings of betas, of deprecations, of training options.

    With `python -W` or PYTHONWARNINGS everything is shown, as without this.
    """

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, PlatformWarning):
            print(f"dlc-platform: {_pasteable(str(message))}", file=sys.stderr)

    warnings.showwarning = show
    ours = logging.StreamHandler()
    ours.addFilter(lambda record: record.name.startswith("dlc_platform") or record.levelno >= logging.ERROR)
    ours.setLevel(logging.WARNING)
    # Where there is none, the first library that logs something adds one for everything.
    logging.getLogger().addHandler(ours)


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
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the UI; a free one by default.")] = None,
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
    from dlc_platform.lab.new_lab import make_lab

    file = make_lab(_absolute(home), [_absolute(path) for path in raw], [_absolute(path) for path in project])
    _say(f"{file} is written. Look it through, then run: dlc-platform doctor {shell_word(home)}")


@app.command()
def up(
    home: Home,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI on 127.0.0.1.")] = 3000,
    read_only_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of a second UI, in which nothing can be started or changed."),
    ] = None,
) -> None:
    """Start Postgres, the Dagster daemon and the webserver; Ctrl-C stops all of it."""
    from dlc_platform.orchestration.services import running

    with _stoppable(), running(_absolute(home), port, _say, read_only_port) as services:
        if services.read_only_address is not None:
            _say(f"To look only: {services.read_only_address}")
        _say(f"The lab is up: {services.address}")
        if sys.stdout.isatty():
            _say("Open this address; it lets in whoever has it. Ctrl-C stops the lab.")
        while not _stop.wait(2):
            services.check()


@app.command()
def ui(
    home: Home,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI on 127.0.0.1.")] = 3000,
    read_only: Annotated[bool, typer.Option("--read-only", help="Of the UI in which nothing can be changed.")] = False,
) -> None:
    """Print the address of a lab's UI that lets a browser in, as `up` does."""
    from dlc_platform.orchestration.web_access import address
    from dlc_platform.settings.loading import load_lab

    load_lab(_absolute(home))
    print(address(_absolute(home), port, read_only))


@app.command()
def doctor(home: Home, as_json: AsJson = False) -> None:
    """Say what is wrong with a lab, its services included, and what to do; the exit code is 1 when something is."""
    from dlc_platform.lab.doctor import examine
    from dlc_platform.orchestration.inspection import inspect

    wrong = 0
    records = []
    for finding in chain(examine(_absolute(home)), inspect(_absolute(home))):
        mark = "ok" if not finding.remedy else "warning" if finding.warning else "WRONG"
        wrong += mark == "WRONG"
        records.append({**asdict(finding), "state": mark.lower()})
        if not as_json:
            said = f"{finding.what}: {finding.found}" + (f". {finding.remedy}." if finding.remedy else "")
            _say(f"{mark:7} {in_a_line(said)}")
    if as_json:
        print(json.dumps(records, indent=2))
    if wrong:
        sys.exit(1)


@app.command()
def env(home: Home) -> None:
    """Print the variables that let any `dagster` command work on a lab: eval "$(dlc-platform env HOME)"."""
    from dlc_platform.orchestration.instance import environment_of_started
    from dlc_platform.orchestration.migration import require_known, revisions

    require_known(revisions(_absolute(home)))
    for name, value in environment_of_started(_absolute(home)).items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
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
        for revision, before in bring_up_to_date(_absolute(home)):
            done = "were there already" if before == revision.now else f"are new: they were at {before or 'nothing'}"
            _say(f"{revision.what}: the tables of {revision.now} {done}")
        return
    found = revisions(_absolute(home))
    require_known(found)
    for revision in found:
        todo = "nothing to do" if revision.now == revision.newest else f"would be brought to {revision.newest}"
        _say(f"{revision.what}: the tables are at {revision.now or 'nothing'}; {todo}")
    if not found:
        _say("the lab has no database yet; one would be made")


@app.command()
def run(
    home: Home,
    select: Annotated[str, typer.Option(help="Assets, separated by commas, or Dagster's selection syntax.")],
    partition: Annotated[
        list[str] | None, typer.Option(help="A session or recipe; may be given again. Without it: whatever is missing.")
    ] = None,
) -> None:
    """Materialise assets now, in dependency order; the exit code is 1 when something failed or was interrupted."""
    from dlc_platform.orchestration.materialize import materialize

    _end_with(lambda: materialize(_absolute(home), select, partition or [], _say))


@app.command()
def train(home: Home, recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe of lab.yaml.")]) -> None:
    """Train a recipe: dataset, training, evaluation, comparison, promotion by the rule; the first failure ends it."""
    from dlc_platform.orchestration.materialize import train as train_recipe

    _end_with(lambda: train_recipe(_absolute(home), recipe, _say))


@app.command()
def gpus(
    home: Home,
    drain: Annotated[
        str | None, typer.Option(metavar="GPU", help="Keep new runs away from this device, by its number or UUID.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="GPU", help="Let a drained device take runs again.")] = None,
    as_json: AsJson = False,
) -> None:
    """The devices that runs may use, who computes there, and which take no new runs (drained)."""
    from dlc_platform.devices import leases
    from dlc_platform.devices.gpus import CPU, find_devices
    from dlc_platform.settings.loading import load_lab

    devices = find_devices(load_lab(_absolute(home)).gpus) or (CPU,)
    for name, change in ((drain, leases.drain), (resume, leases.resume)):
        if name is not None:
            named = [device for device in devices if device.is_called(name)]
            if not named:
                known = ", ".join(device.visible or device.key for device in devices)
                raise PlatformError(f"runs of this lab use no GPU {name!r}", f"Name one of {known}, or its UUID")
            for device in named:
                change(device)
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
    _table(rows, list(rows[0]), as_json)


@app.command("scan")
def scan_(
    home: Home,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and why the rest not.")
    ] = False,
    session: Annotated[str | None, typer.Option(metavar="KEY", help="Only this session; with --dry-run.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Name all of it, not only the first; with --dry-run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON; with --dry-run.")] = False,
) -> None:
    """Register the sessions that are ready now, as `run --select session_videos` does; or say what would be done.

    What the lab's own tables say of sessions is read again too. With --dry-run nothing is written, and the exit code is
    1 when something is lost until a person mends it.
    """
    from dlc_platform.platform import Platform

    if not dry_run:
        from dlc_platform.lab.plan import broken_projects
        from dlc_platform.orchestration.materialize import register_sessions
        from dlc_platform.sessions.raw_roots import Disks
        from dlc_platform.sessions.registration import update_details
        from dlc_platform.sessions.sidecars import Sidecars

        if session is not None or all_ or as_json:
            raise PlatformError("--session, --all and --json go with --dry-run", "Add --dry-run, or leave them out")
        _say("Registering the sessions that are ready, as `dlc-platform run --select session_videos` does")

        def register() -> bool:
            succeeded = register_sessions(_absolute(home), _say)
            lab, engine = _lab(home)
            disks = Disks(lab.raw_roots, lab.scan.root_timeout_seconds)
            disks.answering()
            changed = update_details(engine, Sidecars(lab.raw_roots, disks.silent))
            _say(
                "The lab's own tables say something new of "
                f"{counted(changed, 'subject or session', 'subjects and sessions')}"
            )
            for line in broken_projects(lab):
                _say(line)
            return succeeded

        _end_with(register)
        return
    plan = whole = Platform(_absolute(home)).plan()
    if session is not None:
        plan = whole.of(session)
        if not plan.sessions and not plan.skipped:
            from dlc_platform.text.names import require_known

            known = {planned.key for planned in whole.sessions}
            listing = command("scan", home, "--dry-run", "--all")
            require_known("session on disk or registered", [session], known, listing)
    if as_json:
        print(json.dumps(plan.to_json(), indent=2))
    else:
        for line in plan.lines(all_ or session is not None):
            # Some begin a new paragraph.
            _say(line[: line.startswith("\n")] + in_a_line(line.removeprefix("\n")))
    if plan.loses:
        sys.exit(1)


sessions = typer.Typer(cls=_ListGroup, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sessions, name="sessions", help="List the sessions (`sessions HOME`), or release one from quarantine.")


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
) -> None:
    """List the registered sessions and their recordings; or what waits, or what is in quarantine."""
    from dlc_platform.catalog import queries

    lab, engine = _lab(home)
    if waiting:
        _show_waiting(engine, lab, as_json)
    elif quarantined:
        columns = ["session", "stage", "since", "file", "reason", "remedy"]
        _table(queries.quarantine.rows(engine), columns, as_json, "no session is in quarantine")
    else:
        columns = ["session", "recording", "position", "camera", "frames", "frame_rate", "size", "model"]
        rows = [_with_left_out(row) for row in queries.sessions.rows(engine)]
        _table(rows, [*columns, "damage", "problem"], as_json)


def _show_waiting(engine: "Engine", lab: "Lab", as_json: bool) -> None:
    from dlc_platform.lab.runs_under_way import daemon_lives
    from dlc_platform.lab.waiting import waiting, waiting_lines

    found = waiting(engine, lab)
    if as_json:
        _table([asdict(one) for one in found], [], as_json)
        return
    for line in waiting_lines(found, screen.width()):
        _say(line)
    held = {one.session for one in found if not one.passing}
    number = len({one.session for one in found})
    waits = counted(number, "session waits", "sessions wait")
    _say(f"{waits}, {len(held)} of them for a person" if found else "nothing waits")
    if number > len(held) and daemon_lives(engine) is False:
        _say("The lab is not up, so nothing goes on by itself: start it with `dlc-platform up HOME`, or its service")


def _with_left_out(row: dict[str, Any]) -> dict[str, Any]:
    """A file of `sessions` with its picture's size, and what is left out at its beginning beside the damage in it."""
    left_out = row["frames_left_out"]
    said = [row["damage"], f"{counted(left_out, 'frame')} left out at the start" if left_out else None]
    size = f"{row['width']}x{row['height']}" if row["width"] else None
    return {**row, "size": size, "damage": "; ".join(filter(None, said)) or None}


@sessions.command("release")
def release_session(
    home: Home,
    session: Session,
    stage: Annotated[Stage | None, typer.Option(help="Only what holds it up at this stage.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; the entry keeps it.")] = None,
    by: Annotated[str | None, typer.Option(help="Who releases it; you, by default.")] = None,
) -> None:
    """Let a session out of quarantine as it is: it goes on where it was held up, until its files change."""
    from dlc_platform.catalog import quarantine

    engine = _lab(home)[1]
    _require_session(home, engine, session)
    ended = quarantine.release(engine, session, by or getpass.getuser(), [stage] if stage else None, reason)
    if not ended:
        raise PlatformError(
            f"session {session!r} is not in quarantine" + (f" at the stage {stage}" if stage else ""),
            "Choose among `dlc-platform sessions HOME --quarantined`",
        )
    _say(f"{session}: {counted(ended, 'reason holds', 'reasons hold')} it up no longer")


@app.command()
def report(
    home: Home,
    day: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="In the lab's time zone; yesterday by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a day brought: sessions arrived, estimated, in quarantine and waiting; hours of video and of devices."""
    from dlc_platform.platform import Platform

    try:
        meant = None if day is None else date.fromisoformat(day)
    except ValueError:
        raise PlatformError(f"{day!r} is not a day", "Write it like 2026-03-31") from None
    found = Platform(_absolute(home)).report(meant)
    if as_json:
        tables = {"cameras": found.cameras, "days": found.days.assign(day=found.days["day"].astype(str))}
        rows = {name: json.loads(one.to_json(orient="records", date_format="iso")) for name, one in tables.items()}
        print(json.dumps({**found.figures(), "day": found.day.isoformat(), **rows}, indent=2))
        return
    _say(f"{found.day}, {found.time_zone}: {found}\n")
    columns = ["files_arrived", "video_hours_arrived", "sessions_estimated", "video_hours_estimated"]
    columns = ["camera", "project", *columns, "inference_gpu_hours", "inference_cpu_hours"]
    _table(_rows(found.cameras), columns, False, "No camera recorded anything, and nothing was estimated")


@app.command()
def notifications(home: Home, as_json: AsJson = False) -> None:
    """List what was told to whom, the newest first: what waits, what was sent, and what was given up and why."""
    from dlc_platform.catalog import queries

    columns = ["created_at", "kind", "channel", "state", "attempts", "title", "last_error"]
    _table(queries.notifications.rows(_lab(home)[1]), columns, as_json)


@app.command()
def notify(
    home: Home,
    test: Annotated[bool, typer.Option("--test", help="Send a test message to each channel of lab.yaml.")] = False,
) -> None:
    """Send a test message to each channel; the exit code is 1 when one does not take it."""
    from dlc_platform.notify.outbox import SendError, send, trial_message
    from dlc_platform.settings.loading import load_lab

    if not test:
        raise PlatformError("what to send was not said", "Write --test")
    lab = load_lab(_absolute(home))
    if not lab.notify.channels:
        raise PlatformError("lab.yaml names no channel", "Add a webhook or a mail under `notify`")
    failed = 0
    for channel in lab.notify.channels:
        try:
            send(channel, trial_message(lab))
            _say(f"{channel.name}: taken")
        except (SendError, PlatformError) as error:
            failed += 1
            _say(f"{channel.name}: NOT taken: {error}")
    if failed:
        sys.exit(1)


models = typer.Typer(cls=_ListGroup, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models", help="List the model versions (`models HOME`), or import one.")


@models.command("list")
def list_models(home: Home, as_json: AsJson = False) -> None:
    """List the model versions with their test errors, oldest first."""
    from dlc_platform.catalog import queries

    columns = ["project", "recipe", "origin", "model", "train_images", "epochs"]
    columns += ["test_rmse_px", "tested_on", "production"]
    _table(queries.models.rows(_lab(home)[1]), columns, as_json)


@app.command()
def compare(
    home: Home,
    project: Annotated[str | None, typer.Option(help="A project of lab.yaml; every one by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the model versions of a project on the same test images, from what is evaluated already.

    The exit code is 1 when a project has nothing to compare.
    """
    from dlc_platform.platform import Platform

    platform = Platform(_absolute(home))
    problems = []
    records = []
    for name in [project] if project else platform.settings.projects:
        try:
            compared = platform.compare(name)
        except PlatformError as error:
            problems.append(str(error))
            continue
        frames = {key: getattr(compared, key) for key in ("versions", "bodyparts", "sessions", "left_out")}
        images = len(compared.comparison.images)
        if as_json:
            rows = {
                key: json.loads(frame.to_json(orient="records", date_format="iso")) for key, frame in frames.items()
            }
            own = {"project": name, "dataset": compared.dataset_id, "test_images": images}
            records.append({**own, "warnings": compared.warnings, **rows})
            continue
        _say(f"{name}: {counted(images, 'test image')} of the dataset {short(compared.dataset_id)}; 95 % intervals")
        for warning in compared.warnings:
            _say(f"Warning: {warning}.\n")
        errors = ["test_rmse_px", "rmse_low_px", "rmse_high_px", "fraction_confident"]
        columns = ["model", "recipe", "train_images", *errors, "frames_per_second", "production"]
        _table(_rows(frames["versions"]), columns, as_json=False)
        errors[0] = "rmse_px"
        for title, key, columns in (
            ("By body part", "bodyparts", ["bodypart", "model", "images", "keypoints", *errors]),
            ("By session", "sessions", ["session", "model", "images", *errors]),
        ):
            _say(f"\n{title}:")
            _table(_rows(frames[key]), columns, as_json=False)
        for row in frames["left_out"].itertuples():
            _say(f"\nNot compared: {short(row.model)}, because {row.reason}")
        _say("")
    if as_json:
        print(json.dumps(records, indent=2))
    if problems:
        sys.exit("\n".join(f"dlc-platform: {_pasteable(problem)}" for problem in problems))


@models.command("import")
def import_model(
    home: Home,
    project: Annotated[str, typer.Option(help="The project in lab.yaml that the model belongs to.")],
    folder: Annotated[Path | None, typer.Option(help="DeepLabCut's `train` folder of the model.")] = None,
    from_project: Annotated[Path | None, typer.Option(help="Or the DeepLabCut project that it was trained in.")] = None,
    iteration: Annotated[int | None, typer.Option(help="That of config.yaml by default.")] = None,
    shuffle: Annotated[int, typer.Option(help="DeepLabCut's number of the training set.")] = 1,
    trainset: Annotated[int | None, typer.Option(help="Percentage of the images that were trained on.")] = None,
    model_prefix: Annotated[str, typer.Option(help="DeepLabCut's modelprefix.")] = "",
    snapshot: Annotated[str | None, typer.Option(help="A file name; the best one, or the last, by default.")] = None,
    detector_snapshot: Annotated[str | None, typer.Option(help="The same of a top-down model's detector.")] = None,
) -> None:
    """Register a model that DeepLabCut trained elsewhere; its files are copied and checked."""
    from dlc_platform.dlc.snapshots import find_train_folder
    from dlc_platform.estimates.importing import register_model

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
    from dlc_platform.catalog import queries

    columns = ["session", "recording", "position", "frames", "origin", "model"]
    columns += ["mean_likelihood", "fraction_confident", "scorer"]
    _table(queries.poses.rows(_lab(home)[1]), columns, as_json)


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
    from dlc_platform.estimates.importing import register_poses
    from dlc_platform.orchestration.imported_poses import show_imported_poses
    from dlc_platform.platform import Platform

    model_id = None if model is None else Platform(_absolute(home)).model_id(model)
    lab, engine = _lab(home)
    by = getpass.getuser()
    done = register_poses(engine, lab, _absolute(file), session, recording, model_id, allow_mismatch, use, by)
    show_imported_poses(_absolute(home), session, done, by)
    _say(f"{done.poses.id[:12]}: {file.name} is kept as poses of {done.video}, {counted(done.poses.frames, 'frame')}")
    if done.poses.note:
        _say(f"Mind that {done.poses.note}")
    _say(
        "They are in force"
        if done.in_force
        else "They are not in force, because this video has poses already; `--use` puts them in force"
    )


#: What `quality` lists without a session.
_NOT_PASSING = 100


@app.command()
def quality(
    home: Home,
    session: Annotated[str | None, typer.Argument(metavar="[SESSION]", help="A session's key; all by default.")] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Judge again first, by the limits that lab.yaml has now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List how good the poses in force look, with the verdict as it was last given and what it rests on.

    Of a session by body part and limb; without one, the newest recordings that do not pass. `--json` gives all scores.
    """
    from dlc_platform.catalog import queries
    from dlc_platform.estimates.verdicts import quality_rows, worst_quality

    lab, engine = _lab(home)
    if session is not None and (judge or not queries.judged_files(engine, session)):
        _require_session(home, engine, session)
    if judge:
        from dlc_platform.estimates import quality_gate
        from dlc_platform.store import Store

        store = Store(lab.store)
        known = quality_gate.references(engine, store, lab)
        for key in [session] if session else dict.fromkeys(row["session"] for row in queries.poses.rows(engine)):
            quality_gate.assess(engine, store, lab, key, reference=known)
    unjudged = [path for path, judged in queries.judged_files(engine, session).items() if not judged]
    if as_json:
        _table(quality_rows(engine, session), [], as_json)
        return
    if session:
        _show_quality(quality_rows(engine, session))
    else:
        worst, verdicts = worst_quality(engine, _NOT_PASSING)
        if verdicts and not worst:
            _say("all pass")
        for row in worst:
            _say(f"{row['verdict']}: {row['session']}, {row['recording']}")
            _list_findings(row["findings"], most=3)
        if not verdicts:
            _say("no poses were judged yet" if unjudged else "no session has poses yet")
        counts = [f"{verdicts[verdict]} {verdict}" for verdict in ("fail", "warn", "pass") if verdict in verdicts]
        if counts:
            bad = sum(verdicts.values()) - verdicts.get("pass", 0)
            newest = f" (the newest {len(worst)} of {bad} that do not pass are listed)" if bad > len(worst) else ""
            _say(f"{counted(sum(verdicts.values()), 'recording')}: {', '.join(counts)}{newest}")
    if unjudged:
        recordings = counted(len(unjudged), "recording has", "recordings have")
        again = command("quality", home, *([session] if session else []), "--judge")
        _say(f"{recordings} poses that were not judged by the floors of lab.yaml yet: judge them with {again}")


#: The scores that fit into a terminal beside the body part and its verdict.
_SHOWN_SCORES = ("fraction_confident", "mean_likelihood", "jumps", "limb_outliers", "outside")


def _show_quality(scores: list[dict[str, Any]]) -> None:
    """Print the scores of a session, and below those of each recording why its verdict is what it is."""
    if not scores:
        _say("its poses were not judged yet, or it has none")
    for (recording, _), of_recording in groupby(scores, lambda row: (row["recording"], row["position"])):
        own = list(of_recording)
        several = len({row["individual"] for row in own if row["bodypart"] != "all"}) > 1
        over_all = next(row for row in own if row["bodypart"] == "all")
        _say(f"{recording}: {over_all['verdict']}, judged {over_all['judged_at']:%Y-%m-%d %H:%M}")
        _table(own, [*(["individual"] if several else []), "bodypart", "verdict", *_SHOWN_SCORES], as_json=False)
        _list_findings(over_all["findings"])


def _list_findings(findings: str, most: int | None = None) -> None:
    """Print findings as `Platform.quality` has them, one to a line."""
    lines = findings.split("; ") if findings else []
    for line in lines[:most]:
        _say(f"  {line}")
    if most is not None and len(lines) > most:
        _say(f"  and {len(lines) - most} more")


@app.command()
def lineage(home: Home, session: Session, as_json: AsJson = False) -> None:
    """Say which model, labels, parameters and machine made the poses of a session."""
    from dlc_platform.catalog import queries

    engine = _lab(home)[1]
    rows = queries.lineage.rows(engine, session)
    if not rows:
        _require_session(home, engine, session)
    columns = ["recording", "origin", "model", "recipe", "dataset", "parameter_set"]
    columns += ["path", "host", "gpu", "backend", "device", "run_id"]
    _table(rows, columns, as_json)


@app.command()
def touched(home: Home, model: Model, as_json: AsJson = False) -> None:
    """List the sessions that a model version touched: those that taught it, tested it, or were tracked by it."""
    from dlc_platform.catalog import queries

    engine = _lab(home)[1]
    rows = queries.model_sessions.rows(engine, queries.require_model_id(engine, model))
    _table(rows, ["session", "role", "images", "frames"], as_json)


@app.command()
def stale(home: Home, as_json: AsJson = False) -> None:
    """List the sessions whose poses the production model did not make, the newest first.

    Then, other than with --json, the poses that were made by other rules than lab.yaml has now.
    """
    from dlc_platform.catalog import queries
    from dlc_platform.estimates.other_rules import OTHER_RULES, made_by_other_rules

    lab, engine = _lab(home)
    _warn_of_rules(engine, lab)
    columns = ["session", "project", "production_model", "models", "imported", "files", "frames", "recorded_at"]
    _table(queries.stale_sessions.rows(engine), columns, as_json, "no session is stale")
    if as_json:
        return
    if other := made_by_other_rules(engine, lab):
        number = len({row["session"] for row in other})
        _say("\n" + OTHER_RULES.format(sessions=counted(number, "session has", "sessions have")))
        _table(other, ["session", "recording", "position", "camera", "made_with", "lab_yaml"], as_json=False)


def _warn_of_rules(engine: "Engine", lab: "Lab") -> None:
    from dlc_platform.estimates.other_rules import unread_rules

    if (said := unread_rules(engine, lab)) is not None:
        print(f"dlc-platform: {_pasteable(said)}", file=sys.stderr)


@app.command()
def best(home: Home, as_json: AsJson = False) -> None:
    """List which model version is best on the frozen test images, by body part."""
    from dlc_platform.catalog import queries

    columns = ["project", "bodypart", "rank", "model", "images", "rmse_px", "rmse_low_px", "rmse_high_px", "production"]
    found = queries.best_models.rows(_lab(home)[1])
    _table(found, columns, as_json)
    if not as_json:
        from dlc_platform.dlc.cautions import warnings_about

        for warning in warnings_about(found):
            _say(f"\nWarning: {warning}.")


@app.command()
def parameters(home: Home, as_json: AsJson = False) -> None:
    """List the parameters that each recipe had, and the recipes that had the very same ones under another name."""
    from dlc_platform.catalog import queries

    columns = ["recipe", "version", "project", "parameter_set", "also_called", "first_used_at", "parameters"]
    _table(queries.parameters.rows(_lab(home)[1]), columns, as_json)


@app.command()
def promotions(home: Home, as_json: AsJson = False) -> None:
    """List who promoted which model version, when and why, oldest first."""
    from dlc_platform.catalog import queries

    columns = ["promotion", "project", "model", "kind", "promoted_by", "reason", "test_rmse_px", "tested_on"]
    columns += ["promoted_at", "warning"]
    found = queries.promotions.rows(_lab(home)[1])
    if not as_json:
        found = [{**row, "warning": row["warning"] and f"the model is {row['warning']}"} for row in found]
    _table(found, columns, as_json)


@app.command()
def impact(home: Home, model: Model, as_json: AsJson = False) -> None:
    """Say which sessions would become stale if a model version were promoted, and what that would cost."""
    from dlc_platform.catalog.queries import require_model_id
    from dlc_platform.models.impact import impact_of

    lab, engine = _lab(home)
    version = require_model_id(engine, model)
    _warn_of_rules(engine, lab)
    found = impact_of(engine, version)
    if as_json or found.rows:
        _table(found.rows, ["session", "project", "models", "imported", "files", "frames", "recorded_at"], as_json)
    if not as_json:
        _say(str(found))


@app.command()
def promote(
    home: Home,
    reason: Annotated[str, typer.Option(help="Why; the promotion keeps it.")],
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The version to use, as `models` shows it.")
    ] = None,
    back: Annotated[str | None, typer.Option(metavar="PROJECT", help="Go back to the version before, instead.")] = None,
    by: Annotated[str | None, typer.Option(help="Who promotes; you, by default.")] = None,
) -> None:
    """Make a model version the production model of its project, or go back to the one before.

    Nothing is estimated again by itself: see `stale` and `backfill`.
    """
    from dlc_platform.orchestration.materialize import promote as promote_version
    from dlc_platform.platform import Platform

    if not reason.strip():
        raise PlatformError("the promotion has no reason", "Say why in --reason: the promotion keeps it")
    platform = Platform(_absolute(home))
    known = platform.promotions()
    if (model is None) == (back is None):
        raise PlatformError("there is nothing to promote, or too much", "Name either a MODEL or --back PROJECT")
    version = platform.model_id(model) if model is not None else platform.earlier_model(str(back))
    # What this decision is made against: a promotion that comes in meanwhile is not overruled unseen.
    in_force = known[known["project"] == platform.project_of(version)]["promotion"]
    follows = int(in_force.iloc[-1]) if len(in_force) else None
    who = by or getpass.getuser()
    _end_with(lambda: promote_version(_absolute(home), version, reason, who, _say, follows, rollback=back is not None))


@app.command()
def backfill(
    home: Home,
    stale: Annotated[
        bool, typer.Option("--stale", help="The sessions whose poses the production model did not make.")
    ] = False,
    session: Annotated[list[str] | None, typer.Option(help="Only this session of them; may be given again.")] = None,
    project: Annotated[str | None, typer.Option(help="Only sessions of this project.")] = None,
    most: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Only so many, the newest.")] = None,
    imported: Annotated[bool, typer.Option("--imported", help="Also sessions whose poses were imported.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be estimated.")] = False,
) -> None:
    """Estimate stale sessions again, the newest first and many to a run; the poses of before are kept."""
    from dlc_platform.orchestration.materialize import backfill as estimate_again
    from dlc_platform.platform import Platform

    if not stale:
        raise PlatformError("what to estimate again was not said", "Write --stale")
    platform = Platform(_absolute(home))
    platform.require_sessions(session or [])
    found = platform.stale_sessions(imported)
    if project is not None:
        platform.require_project(project)
        found = found[found["project"] == project]
    if session and (current := sorted(set(session) - set(found["session"]))):
        raise PlatformError(f"{', '.join(current)} is not stale", "Choose among `dlc-platform stale HOME`")
    if session:
        found = found[found["session"].isin(session)]
    found = found.head(most) if most else found
    if found.empty:
        only_imported = 0 if imported else len(platform.stale_sessions())
        only = counted(only_imported, "session has", "sessions have")
        _say(f"{only} only imported poses: add --imported" if only_imported else "no session is stale")
        return
    if dry_run:
        columns = ["session", "project", "models", "production_model", "frames", "recorded_at"]
        _table(_rows(found), columns, as_json=False)
        return
    _end_with(lambda: estimate_again(_absolute(home), list(dict.fromkeys(found["session"])), _say))


@app.command()
def verify(home: Home) -> None:
    """Read the whole store again and report every difference to the catalogue; the exit code is 1 when one is found."""
    from rich.console import Console
    from rich.progress import Progress

    from dlc_platform.lab import retention

    wrong, warnings = 0, 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("products")
        for difference in retention.verify(
            *_catalog_and_store(home), lambda done, products: progress.update(task, completed=done, total=products)
        ):
            mark = "warning" if difference.warning else "WRONG  "
            wrong += not difference.warning
            warnings += difference.warning
            _say(f"{mark} {said_of(difference.path, difference.problem)}. {difference.remedy}.")
    found = counted(wrong, "difference") if wrong else "No difference was found"
    if warnings:
        _say(f"{found}; {counted(warnings, 'warning')}")
    else:
        _say(found if wrong else "The store is as the catalogue knows it")
    if wrong:
        sys.exit(1)


@app.command()
def gc(
    home: Home,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it, instead of only listing it.")] = False,
) -> None:
    """List what of the store nothing refers to and nobody has written for a day."""
    from dlc_platform.lab import retention

    engine, store = _catalog_and_store(home)
    found = list(retention.garbage(engine, store))
    if not found:
        _say("Nothing to remove")
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
                "size": f"{item.size_bytes / 1e6:.1f} MB",
                "last_written": f"{item.last_written:%Y-%m-%d %H:%M}",
                "outcome": outcome,
            }
        )
    _table(rows, ["path", "why", "size", "last_written", "outcome"], as_json=False)
    if delete:
        _say(f"{removed / 1e6:.1f} MB removed from {store.root}")
    else:
        _say(f"{sum(item.size_bytes for item in found) / 1e6:.1f} MB of {store.root}; --delete removes it")
    if failed:
        sys.exit(1)


@app.command()
def backup(
    home: Home, file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to make; it must not exist.")]
) -> None:
    """Write the database, the index of the store and lab.yaml into one file. The products are copied otherwise."""
    from dlc_platform.lab.backup import backup as make
    from dlc_platform.orchestration.instance import used

    with used(_absolute(home)):
        made = make(_absolute(home), _absolute(file))
    _say(f"{made.file} is written: {made.size_bytes / 1e6:.1f} MB, which know of {counted(made.products, 'product')}")
    if made.missing:
        _say(
            f"warning: the store lacks {counted(len(made.missing), 'product')} that the catalogue names, such as "
            f"{made.missing[0]}. Run {command('verify', home)}."
        )


@app.command()
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

    made = make(_absolute(file), _absolute(home), DAGSTER, leave_out)
    _say(f"{_absolute(home)} is the lab of {made.manifest.made_at:%Y-%m-%d %H:%M} UTC again")
    if made.unusable is not None:
        _say(f"warning: {made.unusable}")
    else:
        _say(f"lab.yaml expects the store in {made.store}; it was in {made.manifest.store}")
    if made.lacking is not None:
        _say(f"warning: lab.yaml names {made.lacking}, which is not there and in no backup. Bring it from elsewhere.")
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
            _say(
                f"warning: {counted(len(products), 'product is', 'products are')} {what}, such as {products[0]}. "
                f"{remedy}."
            )
    _say(f"Then check it with: dlc-platform verify {shell_word(home)}")


def _catalog_and_store(home: Path) -> "tuple[Engine, Store]":
    from dlc_platform.store import Store

    lab, engine = _lab(home)
    return engine, Store(lab.store)


def _lab(home: Path) -> "tuple[Lab, Engine]":
    """A lab's settings and its catalogue."""
    from dlc_platform.catalog.database import open_lab
    from dlc_platform.settings.loading import load_lab

    return load_lab(_absolute(home)), open_lab(_absolute(home))


def _require_session(home: Path, engine: "Engine", session: str) -> None:
    """Refuse a session that is not registered, with those that come near."""
    from dlc_platform.catalog import registry
    from dlc_platform.text.names import require_known

    require_known("registered session", [session], registry.session_keys(engine), command("sessions", home))


_stop = threading.Event()


@contextmanager
def _stoppable():
    """Let SIGTERM, SIGINT and a closed terminal (SIGHUP) end the command the orderly way, wherever it is."""

    def interrupt(number: int, frame: object) -> None:
        if not _stop.is_set():
            _stop.set()
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What `nohup` started outlives its terminal.
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:
            signal.signal(number, interrupt)
    with suppress(KeyboardInterrupt):
        yield


def _end_with(runs: Callable[[], bool]) -> None:
    """Materialise in this process; the exit code is 1 when a run failed or was interrupted."""
    succeeded = None
    with _stoppable():
        succeeded = runs()
    if succeeded is None:
        sys.exit("dlc-platform: interrupted. What was done is kept; run the same again to complete the rest")
    if not succeeded:
        sys.exit(1)


def _wait() -> None:
    with suppress(KeyboardInterrupt):
        _stop.wait()


def _say(line: str) -> None:
    try:
        print(_pasteable(line), flush=True)
    except OSError:
        # Nobody reads any more, as when the terminal was closed; what is at work must still end in order.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


#: Columns whose values are cut to as much as a person needs; `--json` has them whole.
_IDENTITIES = ("model", "models", "production_model", "dataset", "parameter_set")


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, nothing: str = "none yet") -> None:
    """Print rows as a table of these columns; as JSON, with all columns that they have."""
    if as_json:
        print(json.dumps([{name: _in_json(value) for name, value in row.items()} for row in rows], indent=2))
        return
    if not rows:
        print(nothing)
        return
    # Almost every recording is one file.
    shown = [name for name in columns if name != "position" or any(row[name] for row in rows)]
    cells = [[_cell(name, row[name]) for name in shown] for row in rows]
    headings = [_HEADINGS.get(name, name) for name in shown]
    for line in screen.table(headings, cells, screen.width(), _COPIED):
        print(line)


def _rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


#: What columns are called in tables, where their own name takes more room than their figures.
_HEADINGS = {
    "fraction_confident": "confident",
    "mean_likelihood": "likelihood",
    "rmse_low_px": "low_px",
    "rmse_high_px": "high_px",
    "frames_per_second": "frames/s",
    "limb_outliers": "limbs",
}
#: Columns of paths, which a person copies.
_COPIED = ("path", "file")
#: Numbers that a missing one among them has made floats, and those that mostly are whole.
_COUNTS = ("position", "frames", "images", "rank", "train_images", "test_images", "epochs", "frame_rate")


def _cell(column: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(column, item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if column in _IDENTITIES:
        return str(value)[:12]
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and column in _COUNTS else f"{value:.3f}"
    return in_a_line(_pasteable(str(value)))


def _in_json(value: Any) -> Any:
    """A value as JSON has it: a time in UTC to the millisecond, and null for what is no number."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return None if value != value else value
