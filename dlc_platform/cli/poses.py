"""Commands on poses: to make, import, list, judge and trace them."""

import getpass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlc_platform.cli import completion
from dlc_platform.cli.arguments import (
    AsCsv,
    AsJson,
    Home,
    Session,
    Wide,
    absolute,
    lab_and_catalogue,
    require_session,
)
from dlc_platform.cli.printing import say, show_details, show_table, warn
from dlc_platform.cli.stopping import end_with
from dlc_platform.cli.usage import Commands, ListGroup, Misuse
from dlc_platform.errors import PlatformError, command
from dlc_platform.text import screen
from dlc_platform.text.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dlc_platform.settings.lab import Lab

commands = Commands()


poses = Commands(ListGroup)
commands.add_typer(poses, name="poses", help="List the recordings that have poses (`poses HOME`), or import some.")
#: What `quality` lists without a session.
_NOT_PASSING = 100
#: The scores that fit into a terminal beside the body part and its verdict, and what each of them says.
_SHOWN_SCORES = {
    "fraction_confident": "frames in which the body part reaches the likelihood_cutoff of lab.yaml",
    "mean_likelihood": "how sure the network is, from 0 to 1",
    "jumps": "steps from a frame to the next that are longer than the animal",
    "limb_outliers": "frames in which the limb is longer or shorter than the labels leave plausible",
    "outside": "confident positions outside the picture or the arena",
}
#: The software of an estimate that matters most; `--wide` and `--json` name all of it.
_SOFTWARE = ("dlc_platform", "deeplabcut", "torch", "openvino", "python")


@commands.command()
def run(
    home: Home,
    assets: Annotated[
        list[str],
        typer.Argument(
            metavar="ASSETS",
            help="Such as session_videos, or pose_estimates,pose_quality. Dagster's selection syntax works, too: "
            "'pose_estimates+' adds what depends on the poses.",
            autocompletion=completion.assets,
        ),
    ],
    partition: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A session or recipe; may be given again. Without it: whatever is missing."),
    ] = None,
) -> None:
    """Materialise assets now, in dependency order; the exit code is 1 when something failed or was interrupted.

    `session_videos` registers sessions, `pose_estimates,pose_quality` tracks them and judges the poses.
    """
    from dlc_platform.orchestration.materialize import materialize

    end_with(lambda: materialize(absolute(home), ",".join(assets), partition or [], say))


@poses.command("list")
def list_poses(home: Home, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List the recordings that have poses, with their quality."""
    from dlc_platform.catalog.estimates import pose_table

    columns = ["session", "recording", "position", "frames", "origin", "model"]
    columns += ["mean_likelihood", "fraction_confident", "scorer"]
    show_table(pose_table.rows(lab_and_catalogue(home)[1]), columns, as_json, "no session has poses yet")


@poses.command("import")
def import_poses(
    home: Home,
    session: Session,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .h5 or .csv that DeepLabCut wrote for a video of the session.")
    ],
    recording: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its recording, where the session has several.")
    ] = None,
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
    from dlc_platform.store import Store

    model_id = None if model is None else Platform(absolute(home)).model_id(model)
    lab, engine = lab_and_catalogue(home)
    by = getpass.getuser()
    done = register_poses(
        engine,
        Store(lab.store),
        lab.video_rules,
        lab.pose_rules,
        absolute(file),
        session,
        recording,
        model_id,
        allow_mismatch,
        use,
        by,
    )
    show_imported_poses(absolute(home), session, done, by)
    say(f"{done.poses.id[:12]}: {file.name} is kept as poses of {done.video}, {counted(done.poses.frames, 'frame')}")
    if done.poses.note:
        say(f"Mind that {done.poses.note}")
    say(
        "They are in force"
        if done.in_force
        else "They are not in force, because this video has poses already; `--use` puts them in force"
    )


@commands.command()
def quality(
    home: Home,
    session: Annotated[
        str | None,
        typer.Argument(metavar="SESSION", help="A session's key; all by default.", autocompletion=completion.sessions),
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Judge again first, by the limits that lab.yaml has now.")
    ] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    wide: Wide = False,
) -> None:
    """List how good the poses in force look, with the verdict as it was last given and what it rests on.

    Of a session by body part and limb; without one, the newest recordings that do not pass. `--json` and `--csv` give
    all scores of all, and fractions from 0 to 1 instead of percent.
    """
    from dlc_platform.catalog.estimates import pose_table
    from dlc_platform.catalog.verdicts import judged_files
    from dlc_platform.estimates.verdicts import quality_rows, worst_quality

    if wide and session is None:
        raise Misuse("--wide is for the scores of a SESSION", f"Name one: {command('quality', home, 'SESSION')}")
    lab, engine = lab_and_catalogue(home)
    if session is not None and (judge or not judged_files(engine, session)):
        require_session(home, engine, session)
    if judge:
        from dlc_platform.estimates import quality_gate
        from dlc_platform.store import Store

        store = Store(lab.store)
        known = quality_gate.references(engine, store, lab.model_rules)
        for key in [session] if session else dict.fromkeys(row["session"] for row in pose_table.rows(engine)):
            quality_gate.assess(engine, store, lab.pose_rules, key, reference=known)
    found = judged_files(engine, session)
    unjudged = [path for path, judged in found.items() if not judged]
    if as_json or as_csv:
        columns = ["session", "recording", "individual", "bodypart", "verdict", *_SHOWN_SCORES]
        show_table(quality_rows(engine, session), columns, as_json)
        return
    if session and not found:
        say("the session has no poses yet")
    elif session:
        _show_quality(quality_rows(engine, session))
    else:
        worst, verdicts = worst_quality(engine, _NOT_PASSING)
        if verdicts and not worst:
            say("all pass")
        for row in worst:
            say(f"{row['session']}, {row['recording']}" + ("" if row["findings"] else f": {row['verdict']}"))
            _list_findings(row["findings"], most=3)
        if not verdicts:
            say("no poses were judged yet" if unjudged else "no session has poses yet")
        counts = [f"{verdicts[verdict]} {verdict}" for verdict in ("fail", "warn", "pass") if verdict in verdicts]
        if counts:
            bad = sum(verdicts.values()) - verdicts.get("pass", 0)
            newest = f" (the newest {len(worst)} of {bad} that do not pass are listed)" if bad > len(worst) else ""
            say(f"{counted(sum(verdicts.values()), 'recording')}: {', '.join(counts)}{newest}")
    if unjudged:
        recordings = counted(len(unjudged), "recording has", "recordings have")
        again = command("quality", home, *([session] if session else []), "--judge")
        say(f"{recordings} poses that were not judged by the floors of lab.yaml yet: judge them with {again}")


def _show_quality(scores: list[dict[str, Any]]) -> None:
    """Print the scores of a session, and below those of each recording why its verdict is what it is."""
    if not scores:
        say("its poses were not judged yet")
    for (recording, _), of_recording in groupby(scores, lambda row: (row["recording"], row["position"])):
        own = list(of_recording)
        several = len({row["individual"] for row in own if row["bodypart"] != "all"}) > 1
        over_all = next(row for row in own if row["bodypart"] == "all")
        say(f"{recording}: {over_all['verdict']}, judged {over_all['judged_at']:%Y-%m-%d %H:%M}")
        show_table(own, [*(["individual"] if several else []), "bodypart", "verdict", *_SHOWN_SCORES])
        _list_findings(over_all["findings"])
    if scores:
        say("")
        for line in screen.details("The scores:", list(_SHOWN_SCORES.items()), screen.width()):
            print(line)
    if any(row["verdict"] != "pass" for row in scores):
        say(
            'Each line above names its limit. `pose_quality` in lab.yaml changes limits; the page "Good poses and bad '
            'ones" of the documentation (`dlc-platform docs`) says where the others come from.'
        )


def _list_findings(findings: str, most: int | None = None) -> None:
    """Print findings as `Platform.quality` has them, one to a line."""
    lines = findings.split("; ") if findings else []
    for line in lines[:most]:
        say(f"  {line}")
    if most is not None and len(lines) > most:
        say(f"  and {len(lines) - most} more")


@commands.command()
def lineage(home: Home, session: Session, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """Say which model, labels, parameters, software and machine made the poses of a session."""
    from dlc_platform.catalog.estimates import lineage_table

    engine = lab_and_catalogue(home)[1]
    rows = lineage_table.rows(engine, session)
    if not rows:
        require_session(home, engine, session)
    columns = ["recording", "path", "origin", "source", "model", "model_origin", "recipe", "trained_at"]
    columns += ["training_environment", "dataset", "train_images", "test_images", "parameter_set", "parameters"]
    columns += ["inference_parameters", "estimated_at", "estimation_environment", "host", "gpu", "backend", "device"]
    if not (as_json or as_csv or wide):
        environments = ("training_environment", "estimation_environment")
        rows = [{**row, **{name: _software(row[name]) for name in environments}} for row in rows]
    show_details(rows, [*columns, "run_id"], as_json, "the session has no poses yet")


def _software(environment: dict[str, Any] | None) -> str | None:
    """The software of an environment in words."""
    if environment is None:
        return None
    return ", ".join(f"{name} {environment[name]}" for name in _SOFTWARE if environment.get(name)) or None


@commands.command()
def stale(home: Home, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List the sessions whose poses the production model did not make, the newest first.

    Then, other than with --json and --csv, the poses that were made by other rules than lab.yaml has now.
    """
    from dlc_platform.catalog.estimates import stale_sessions
    from dlc_platform.estimates.other_rules import OTHER_RULES, made_by_other_rules
    from dlc_platform.store import Store

    lab, engine = lab_and_catalogue(home)
    warn_of_rules(engine, lab)
    columns = ["session", "project", "production_model", "models", "imported", "files", "frames", "recorded_at"]
    show_table(stale_sessions.rows(engine), columns, as_json, "no session is stale")
    if as_json or as_csv:
        return
    if other := made_by_other_rules(engine, Store(lab.store), lab.tracking):
        number = len({row["session"] for row in other})
        say("\n" + OTHER_RULES.format(sessions=counted(number, "session has", "sessions have")))
        show_table(other, ["session", "recording", "position", "camera", "made_with", "lab_yaml"])


def warn_of_rules(engine: "Engine", lab: "Lab") -> None:
    from dlc_platform.estimates.other_rules import unread_rules

    if (said := unread_rules(engine, lab.tracking)) is not None:
        warn(said)


@commands.command()
def backfill(
    home: Home,
    session: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only this stale session; may be given again.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only sessions of this project.", autocompletion=completion.projects),
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="Only so many, the newest.")] = None,
    imported: Annotated[bool, typer.Option("--imported", help="Also sessions whose poses were imported.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be estimated.")] = False,
) -> None:
    """Track stale sessions again with the production model, the newest first; the poses from before are kept."""
    from dlc_platform.catalog.estimates import stale_sessions
    from dlc_platform.catalog.sessions import session_keys
    from dlc_platform.text.names import require_known

    lab, engine = lab_and_catalogue(home)
    require_known("registered session", session or [], session_keys(engine), command("sessions", home))
    if project is not None:
        require_known("project", [project], lab.projects, "`projects` in HOME/lab.yaml")
    warn_of_rules(engine, lab)
    stale = [row for row in stale_sessions.rows(engine) if project is None or row["project"] == project]
    if session:
        if current := sorted(set(session) - {row["session"] for row in stale}):
            raise PlatformError(f"{', '.join(current)} is not stale", "Choose among `dlc-platform stale HOME`")
        stale = [row for row in stale if row["session"] in session]
    found = [row for row in stale if imported or not row["imported"]][:most]
    if not found:
        only = counted(len(stale), "session has", "sessions have")
        say(f"{only} only imported poses: add --imported" if stale else "no session is stale")
        return
    if dry_run:
        show_table(found, ["session", "project", "models", "production_model", "frames", "recorded_at"])
        return
    from dlc_platform.orchestration.materialize import backfill as estimate_again

    end_with(lambda: estimate_again(absolute(home), list(dict.fromkeys(row["session"] for row in found)), say))
