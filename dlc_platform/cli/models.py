"""Commands on model versions: to train, import, compare and promote them."""

import getpass
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dlc_platform.cli import completion
from dlc_platform.cli.arguments import AsCsv, AsJson, Home, Model, Wide, absolute, asked, lab_and_catalogue
from dlc_platform.cli.poses import warn_of_rules
from dlc_platform.cli.printing import complaint, rows_of, say, show_details, show_table, show_tables
from dlc_platform.cli.stopping import end_with
from dlc_platform.cli.usage import Commands, ListGroup, Misuse
from dlc_platform.errors import PlatformError
from dlc_platform.identity import short
from dlc_platform.text.words import counted

commands = Commands()


models = Commands(ListGroup)
commands.add_typer(models, name="models", help="List the model versions (`models HOME`), or import one.")
_NO_REASON = "the promotion has no reason", "Say why in --reason: the promotion keeps it"


@commands.command()
def train(
    home: Home,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe of lab.yaml.", autocompletion=completion.recipes)
    ],
) -> None:
    """Train a recipe: dataset, training, evaluation, comparison, promotion by the rule; the first failure ends it."""
    from dlc_platform.orchestration.materialize import train as train_recipe

    end_with(lambda: train_recipe(absolute(home), recipe, say))


@models.command("list")
def list_models(home: Home, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List the model versions with their test errors, oldest first."""
    from dlc_platform.catalog.models import model_table

    columns = ["project", "recipe", "origin", "model", "train_images", "epochs"]
    columns += ["test_rmse_px", "tested_on", "production"]
    show_table(model_table.rows(lab_and_catalogue(home)[1]), columns, as_json, "there is no model yet")


@commands.command()
def compare(
    home: Home,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A project of lab.yaml; every one by default.",
            autocompletion=completion.projects,
        ),
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    wide: Wide = False,
) -> None:
    """Compare the model versions of a project on the same test images, from what is evaluated already.

    `--csv` has a row for each version, for each of its body parts, and for each session of the test images. The exit
    code is 1 when a project has nothing to compare.
    """
    from dlc_platform.models.comparison import compare_project
    from dlc_platform.store import Store
    from dlc_platform.text.names import require_known

    lab, engine = lab_and_catalogue(home)
    if project is not None:
        require_known("project", [project], lab.projects, "`projects` in HOME/lab.yaml")
    problems = []
    records = []
    csv_rows: dict[str, list[dict[str, Any]]] = {}
    for name in [project] if project else lab.projects:
        try:
            compared = compare_project(engine, Store(lab.store), name, lab.likelihood_cutoff)
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
        if as_csv:
            for key, frame in frames.items():
                csv_rows.setdefault(key, []).extend({"project": name, **row} for row in rows_of(frame))
            continue
        say(f"{name}: {counted(images, 'test image')} of the dataset {short(compared.dataset_id)}; 95 % intervals")
        for warning in compared.warnings:
            say(f"Warning: {warning}.\n")
        errors = ["test_rmse_px", "rmse_low_px", "rmse_high_px", "fraction_confident"]
        columns = ["model", "recipe", "train_images", *errors, "frames_per_second", "production"]
        show_table(rows_of(frames["versions"]), columns)
        errors[0] = "rmse_px"
        for title, key, columns in (
            ("By body part", "bodyparts", ["bodypart", "model", "images", "keypoints", *errors]),
            ("By session", "sessions", ["session", "model", "images", *errors]),
        ):
            say(f"\n{title}:")
            show_table(rows_of(frames[key]), columns, nothing="it is not known which sessions the images came from")
        for row in frames["left_out"].itertuples():
            say(f"\nNot compared: {short(row.model)}, because {row.reason}")
        say("")
    if as_json:
        print(json.dumps(records, indent=2))
    if as_csv:
        show_tables(csv_rows)
    if problems:
        sys.exit("\n".join(map(complaint, problems)))


@models.command("import")
def import_model(
    home: Home,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="The DeepLabCut project that the model was trained in, or its `train` folder."
        ),
    ],
    project: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The project in lab.yaml that the model belongs to, where it has several.",
            autocompletion=completion.projects,
        ),
    ] = None,
    iteration: Annotated[
        int | None,
        typer.Option(help="The project's iteration; that of config.yaml by default."),
    ] = None,
    shuffle: Annotated[
        int | None, typer.Option(help="DeepLabCut's number of the shuffle in the project; 1 by default.")
    ] = None,
    trainset: Annotated[
        int | None, typer.Option(help="The percentage of the project's images that the model was trained on.")
    ] = None,
    model_prefix: Annotated[str | None, typer.Option(help="The modelprefix of the project's models.")] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The snapshot's file; the best one, or the last, by default."),
    ] = None,
    detector_snapshot: Annotated[
        str | None, typer.Option(metavar="FILE", help="The same for the detector of a top-down model.")
    ] = None,
) -> None:
    """Register a model that DeepLabCut trained elsewhere; its files are copied and checked."""
    from dlc_platform.dlc.project import CONFIG_FILE
    from dlc_platform.dlc.snapshots import find_train_folder
    from dlc_platform.estimates.importing import register_model
    from dlc_platform.store import Store

    lab, engine = lab_and_catalogue(home)
    if project is None:
        (project, *others) = lab.projects
        if others:
            raise Misuse("lab.yaml has several projects", f"Name one with --project: {' or '.join(lab.projects)}")
    folder = absolute(folder)
    if (folder / CONFIG_FILE).is_file():
        folder = find_train_folder(folder, iteration, shuffle or 1, trainset, model_prefix or "").path
    elif not all(one is None for one in (iteration, shuffle, trainset, model_prefix)):
        raise Misuse(
            f"{folder} holds no {CONFIG_FILE}, so it is no DeepLabCut project",
            "Give the project's folder, or leave out --iteration, --shuffle, --trainset and --model-prefix",
        )
    model, new = register_model(engine, Store(lab.store), lab.projects, project, folder, snapshot, detector_snapshot)
    say(
        f"{model.id[:12]}: {model.source['snapshot']} of {model.source['path']} "
        f"{'is now' if new else 'was already'} a model version of {project}"
    )
    if model.unusable:
        say(f"It is kept, but cannot be used: {model.unusable}")


@commands.command()
def touched(home: Home, model: Model, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List the sessions that a model version touched: those that taught it, tested it, or were tracked by it."""
    from dlc_platform.catalog.models import model_sessions, require_model_id

    engine = lab_and_catalogue(home)[1]
    rows = model_sessions.rows(engine, require_model_id(engine, model))
    if not (as_json or as_csv):
        rows = _by_session(rows)
    show_table(rows, ["session", *_ROLES], as_json, "no session is known that it touched")


#: How a model version touches a session, and what is counted of it.
_ROLES = {"taught": "images", "tested": "images", "tracked": "frames"}


def _by_session(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of sessions and roles as one for each session: what it has in each role."""
    sessions: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = sessions.setdefault(row["session"], {"session": row["session"], **dict.fromkeys(_ROLES)})
        unit = _ROLES[row["role"]]
        own[row["role"]] = None if row[unit] is None else counted(row[unit], unit.removesuffix("s"))
    return [sessions[session] for session in sorted(sessions)]


@commands.command()
def best(home: Home, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List which model version is best on the frozen test images, by body part."""
    from dlc_platform.catalog.models import best_models

    columns = ["project", "bodypart", "rank", "model", "images", "rmse_px", "rmse_low_px", "rmse_high_px", "production"]
    found = best_models.rows(lab_and_catalogue(home)[1])
    show_table(found, columns, as_json, "no models were compared yet")
    if not (as_json or as_csv):
        from dlc_platform.dlc.cautions import warnings_about

        for warning in warnings_about(found):
            say(f"\nWarning: {warning}.")


@commands.command()
def parameters(home: Home, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List the parameters that each recipe had, and the recipes that had the very same ones under another name."""
    from dlc_platform.catalog.models import parameter_table

    columns = ["recipe", "version", "project", "parameter_set", "also_called", "first_used_at", "parameters"]
    show_details(parameter_table.rows(lab_and_catalogue(home)[1]), columns, as_json, "no recipe was trained yet")


@commands.command()
def promotions(home: Home, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """List who promoted which model version, when and why, oldest first."""
    from dlc_platform.catalog.promotions import promotion_table

    columns = ["promotion", "project", "model", "kind", "promoted_by", "promoted_at", "reason"]
    columns += ["test_rmse_px", "tested_on", "warning"]
    found = promotion_table.rows(lab_and_catalogue(home)[1])
    if not as_json:
        found = [{**row, "warning": row["warning"] and f"the model is {row['warning']}"} for row in found]
    show_table(found, columns, as_json, "no model was promoted yet")


@commands.command()
def impact(home: Home, model: Model, as_json: AsJson = False, as_csv: AsCsv = False, wide: Wide = False) -> None:
    """Say which sessions would become stale if a model version were promoted, and what that would cost."""
    from dlc_platform.catalog.models import require_model_id
    from dlc_platform.models.impact import impact_of

    lab, engine = lab_and_catalogue(home)
    version = require_model_id(engine, model)
    warn_of_rules(engine, lab)
    found = impact_of(engine, version)
    if as_json or as_csv or found.rows:
        show_table(found.rows, ["session", "project", "models", "imported", "files", "frames", "recorded_at"], as_json)
    if not (as_json or as_csv):
        say(str(found))


@commands.command()
def promote(
    home: Home,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="The version to use, as `models` shows it.", autocompletion=completion.models
        ),
    ] = None,
    back: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Go back to the previous version of this project, instead.",
            autocompletion=completion.projects,
        ),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(metavar="WHY", help="Why; the promotion keeps it. In a terminal you are asked for it."),
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="WHO", help="Who promotes; you, by default.")] = None,
) -> None:
    """Make a model version the production model of its project, or go back to the one before.

    Nothing is estimated again by itself: see `stale` and `backfill`.
    """
    from dlc_platform.orchestration.materialize import promote as promote_version
    from dlc_platform.platform import Platform

    if model is None and back is None:
        raise Misuse("MODEL is missing", "Name a version that `models` shows, or --back PROJECT to go back")
    if model is not None and back is not None:
        raise Misuse("a MODEL and --back PROJECT are two ways to say which version", "Give one of them")
    if reason is not None and not reason.strip():
        raise Misuse(*_NO_REASON)
    platform = Platform(absolute(home))
    known = platform.promotions()
    version = platform.model_id(model) if model is not None else platform.earlier_model(str(back))
    if reason is None:
        reason = asked(f"Why is {short(version)} promoted?", *_NO_REASON)
        if not reason:
            raise Misuse(*_NO_REASON)
    # What this decision is made against: a promotion that comes in meanwhile is not overruled unseen.
    in_force = known[known["project"] == platform.project_of(version)]["promotion"]
    follows = int(in_force.iloc[-1]) if len(in_force) else None
    who = by or getpass.getuser()
    end_with(lambda: promote_version(absolute(home), version, reason, who, say, follows, rollback=back is not None))
