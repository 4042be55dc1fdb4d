"""Materialising assets now, in this process, in dependency order: what `dlc-platform run` does."""

import logging
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import dagster as dg

from dlc_platform.catalog.estimates import stale_sessions
from dlc_platform.catalog.models import current_model, model_table
from dlc_platform.catalog.promotions import production_model
from dlc_platform.catalog.sessions import registered_sessions
from dlc_platform.catalog.verdicts import session_verdicts
from dlc_platform.catalog.wanted import sizes
from dlc_platform.devices import leases
from dlc_platform.devices.gpus import find_devices
from dlc_platform.devices.processes import WorkerProcess
from dlc_platform.errors import PlatformError, command
from dlc_platform.identity import short
from dlc_platform.launchers.connections import kept_connections
from dlc_platform.launchers.dagster_internals import (
    MAX_RETRIES_TAG,
    RUN_FAILURE_REASON_TAG,
    RunFailureReason,
)
from dlc_platform.launchers.needs import declared_needs
from dlc_platform.launchers.run_ends import as_told
from dlc_platform.models.judging import judge_version
from dlc_platform.orchestration.assets.models import GPU_POOL
from dlc_platform.orchestration.assets.production import REFUSED
from dlc_platform.orchestration.assets.report import days
from dlc_platform.orchestration.assets.upkeep import UPKEEP_GROUP
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.failures import failure_reasons
from dlc_platform.orchestration.instance import clean, open_instance, prepare, used
from dlc_platform.orchestration.missing_partitions import (
    _MISSING,
    missing,
    without_quality,
)
from dlc_platform.orchestration.partitions import neighbours, newest_first, range_tags, sessions
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.run_summary import RunSummary
from dlc_platform.settings.environment import LAB_FILE
from dlc_platform.settings.loading import load_lab
from dlc_platform.text.names import near_names, require_known
from dlc_platform.text.words import counted, listed, said_of

#: The assets that `train` makes, in this order, before the rule of promotion.
_TRAINING = ("training_dataset", "trained_model", "model_evaluation", "model_comparison")
_INTERRUPTED = RunFailureReason.UNEXPECTED_TERMINATION.value

#: The one asset that looks for sessions below the raw roots.
_REGISTERS = dg.AssetKey("session_videos")
#: The asset that judges poses, and the most sessions that are named for a verdict.
_JUDGES, _NAMED = dg.AssetKey("pose_quality"), 10


def promote(
    home: Path,
    model_id: str,
    reason: str,
    by: str,
    say: Callable[[str], None],
    follows: int | None = None,
    rollback: bool = False,
) -> bool:
    """Make a model version the production model of its project, as the job `promote_model` does.

    Parameters
    ----------
    follows
        The number of the promotion that was in force when the person decided; by default the one in force now.

    Returns
    -------
    bool
        False if it was not promoted, as when somebody else promoted another one at the same moment.
    """
    choice = {"model": model_id, "reason": reason, "by": by, "rollback": rollback}
    if follows is not None:
        choice["follows"] = follows
    ops = {"production_model": {"config": choice}}
    with used(home):
        return _materialize(home, prepare(home, migrates=False), "production_model", [], say, ops)


def backfill(home: Path, sessions: Sequence[str], say: Callable[[str], None]) -> bool:
    """Estimate the poses of sessions again, in the given order as far as runs over several sessions allow.

    Returns
    -------
    bool
        False if some failed; the others were done nevertheless.
    """
    with used(home):
        return _materialize(home, prepare(home, migrates=False), "pose_estimates,pose_quality", sessions, say)


def register_sessions(home: Path, say: Callable[[str], None]) -> bool:
    """Register the sessions that are ready now, as `materialize` does; but the tables stay as they are.

    Returns
    -------
    bool
        False if some could not be registered; the others were registered nevertheless.
    """
    with used(home):
        return _materialize(home, prepare(home, migrates=False), "session_videos", [], say)


def train(home: Path, recipe: str, say: Callable[[str], None]) -> bool:
    """Make a model version of a recipe, from its dataset to the rule of promotion, and report the result.

    Returns
    -------
    bool
        False if a step failed, and later steps were not begun; or if the rule refused to promote any version.

    Raises
    ------
    PlatformError
        When lab.yaml has no such recipe.
    """
    settings = load_lab(home)
    require_known("recipe", [recipe], settings.recipes, f"`recipes` in {home / LAB_FILE}")
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        say(line)

    with used(home):
        environment = prepare(home, migrates=False)
        lab = LabResource(home=str(home))
        say(
            f"Training the recipe {recipe} takes {len(_TRAINING) + 1} steps: its dataset of labelled frames, the "
            "training itself, an evaluation, the comparison with other versions, and the rule of promotion"
        )
        if not registered_sessions(lab.engine):
            say(
                "No session is registered, so it is not known which of them taught the model: "
                f"{command('scan', home)} registers them"
            )
        if not _materialize(home, environment, ",".join(_TRAINING), [recipe], say, stop_at_failure=True):
            return False
        decided = _materialize(home, environment, "production_model", [], tell)
        with open_instance(environment) as instance:
            for line in _what_came_of(lab, instance, recipe, "\n".join(said)):
                say(line)
    return decided


def _what_came_of(lab: LabResource, instance: dg.DagsterInstance, recipe: str, said: str = "") -> Iterator[str]:
    """The result of the training of a recipe, for a person, and what to do next.

    Parameters
    ----------
    said
        The lines that were printed already; a long reason in them is not repeated.
    """
    model = current_model(lab.engine, recipe)
    if model is None:
        return
    own = [row for row in model_table.rows(lab.engine) if row["model"] == model.id][-1]
    yield f"The recipe {recipe} made the model version {short(model.id)} of the project {model.project}"
    if own["test_rmse_px"] is None:
        yield f"Its error is not known, because it was tested on no image; it was trained on {own['train_images']}"
    else:
        yield (
            f"Its error: {own['test_rmse_px']:.2f} px RMSE on {counted(own['test_images'], 'test image')} that it has "
            f"not seen (trained on {own['train_images']}); "
            f"{command('compare', lab.home, '--project', model.project)} has more"
        )
    event = instance.get_latest_materialization_event(dg.AssetKey("production_model"))
    made = event.asset_materialization if event is not None else None
    choices = made.metadata.get("production") if made is not None else None
    rows = choices.records if isinstance(choices, dg.TableMetadataValue) else []
    decided = {str(row.data["project"]): row.data for row in rows}.get(model.project)
    promote_it = command("promote", lab.home, short(model.id), "--reason", "WHY")
    if production_model(lab.engine, model.project) == model.id:
        yield f"It is the production model of {model.project}" + (f": {decided['reason']}" if decided else "")
        yield (
            f"Next: {command('run', lab.home, 'pose_estimates,pose_quality')} tracks the sessions that are "
            f"registered; while {command('up', lab.home)} runs, sessions are tracked as they arrive"
        )
        if stale := len(stale_sessions(lab.engine, imported=False)):
            yield (
                f"{counted(stale, 'session has', 'sessions have')} poses of another version: "
                f"{command('backfill', lab.home)}"
            )
    else:
        judgement = judge_version(lab.engine, lab.store, model.id, lab.settings.model_rules)
        if judgement.standing == "hopeless":
            yield "It was not promoted: " + ("see the reason above" if str(judgement) in said else f"it is {judgement}")
            yield "Next: label more frames, or train longer (`epochs` of the recipe), and train again"
            return
        reason = str(decided["reason"]) if decided else "the rule of lab.yaml promotes no version"
        yield f"It was not promoted: {reason}"
        yield f"Next: look at its comparison; to use it nevertheless, {promote_it}"


def materialize(home: Path, selection: str, partitions: Sequence[str], say: Callable[[str], None]) -> bool:
    """Materialise the selected assets.

    Parameters
    ----------
    selection
        Names of assets separated by commas, or Dagster's selection syntax, such as ``+pose_estimates``.
    partitions
        Sessions and recipes; if there are none, everything that is missing is made.
    say
        Called with one line for each step.

    Returns
    -------
    bool
        False if something failed; the rest was done nevertheless.

    Raises
    ------
    PlatformError
        When the selection or a partition names nothing.
    KeyboardInterrupt
        At SIGINT, and at SIGTERM if the caller handles it so; the run under way is cancelled.
    """
    with used(home):
        return _materialize(home, prepare(home), selection, partitions, say)


def _materialize(
    home: Path,
    environment: dict[str, str],
    selection: str,
    partitions: Sequence[str],
    say: Callable[[str], None],
    ops: Mapping[str, Any] | None = None,
    stop_at_failure: bool = False,
) -> bool:
    definitions = dg.Definitions.merge(
        build_definitions(home), dg.Definitions(loggers={"console": _progress_logger(say)})
    )
    lab = LabResource(home=str(home))
    job = definitions.resolve_implicit_global_asset_job_def()
    selected = _selected(definitions, selection)
    succeeded = True
    judged: list[str] = []
    summary = RunSummary()
    lease = None
    with (
        open_instance(environment) as instance,
        kept_connections(instance, waits=False),
        _signals() as interrupted,
        ExitStack() as held,
    ):
        clean(lab)
        keys = _keys(lab, instance)
        unknown = sorted(set(partitions).difference(*keys.values()))
        reasons: list[str] = []
        if unknown and _REGISTERS in selected:
            # Only a command that registers sessions looks for them.
            found = lab.scan()
            keys["sessions"] += sorted({session.key for session in found.sessions} & set(unknown))
            unknown = sorted(set(unknown).difference(keys["sessions"]))
            reasons = [line for line in found.left_out() if any(key in line for key in unknown)]
            reasons += [said_of(i.path, i.reason) for i in found.skipped if i.path in lab.settings.raw_roots]
        if unknown:
            near = [name for key in unknown for name in near_names(key, [*keys["sessions"], *keys["recipes"]])]
            raise PlatformError(
                "; ".join([f"{', '.join(unknown)} is neither a session nor a recipe of this lab", *reasons]),
                (f"Did you mean {' or '.join(dict.fromkeys(near))}? " if near else "")
                + f"Choose a session of {command('sessions', home)}, a recipe of lab.yaml, or a day that is over "
                "and not before the lab began",
            )
        kinds = {_kind(lab, definitions.get_assets_def(asset)) for asset in selected}
        foreign = [key for key in partitions if not any(kind is not None and key in keys[kind] for kind in kinds)]
        if foreign:
            raise PlatformError(
                f"{', '.join(foreign)} is no partition of {selection}",
                "Name recipes for training_dataset, trained_model and model_evaluation, and sessions for the others",
            )
        for asset in selected:
            if stop_at_failure and not succeeded:
                say(f"{asset.to_user_string()}: not begun, because of the failure")
                continue
            node = definitions.get_assets_def(asset)
            left_out: list[str] = []
            stretches = _stretches(lab, instance, node, keys, partitions, left_out.append)
            for line in left_out:
                say(line)
            if not stretches:
                nothing = "nothing else can be made now" if left_out else "nothing is missing"
                say(f"{asset.to_user_string()}: {'not asked for' if partitions else nothing}")
                if asset == _REGISTERS:
                    for line in lab.scan().left_out():
                        say(f"  left out: {line}")
            for stretch in _as_they_lie(lab, instance, node, stretches):
                title = asset.to_user_string() + (f" [{listed(stretch, _NAMED)}]" if stretch else "")
                if GPU_POOL in _pools(node) and lease is None:
                    # Once for the whole selection: a process that computes cannot change its devices any more.
                    needs = declared_needs(lab.settings, [key.to_user_string() for key in selected], partitions)
                    lease = held.enter_context(
                        leases.acquire(
                            find_devices(lab.settings.gpus),
                            f"dlc-platform run {selection}",
                            say,
                            needs=needs,
                            avoid_busy=lab.settings.avoid_busy_gpus,
                        )
                    )
                    os.environ.update(lease.environment())
                say(f"{title}: running")
                run_id = str(uuid4())
                tags = {**WorkerProcess.current().tags(), **(range_tags(stretch) if len(stretch) > 1 else {})}
                try:
                    result = job.execute_in_process(
                        instance=instance,
                        asset_selection=[asset],
                        partition_key=stretch[0] if len(stretch) == 1 else None,
                        # A person sees the end of the run; the daemon does not start it a second time.
                        tags={**tags, MAX_RETRIES_TAG: "0"},
                        # A logger that is not named here is replaced by Dagster's own, which prints everything.
                        run_config={"loggers": {"console": {}}, "ops": dict(ops or {})},
                        run_id=run_id,
                        raise_on_error=False,
                    )
                    if interrupted():
                        raise KeyboardInterrupt
                except KeyboardInterrupt:
                    if _cancel(instance, run_id):
                        say(f"{title}: cancelled (run {run_id})")
                    raise
                refused = _refusals(result.all_events)
                for reason in [*failure_reasons(result.all_events), *refused]:
                    say(f"  {reason}")
                outcome = "FAILED" if not result.success else "nothing was promoted" if refused else "done"
                say(f"{title}: {outcome} (run {result.run_id})")
                succeeded = succeeded and result.success and not refused
                summary.add(asset, stretch, result.all_events)
                if asset == _JUDGES:
                    judged += stretch
        for line in (*summary.lines(), *_how_good(lab, judged), *summary.where_to_look(lab)):
            say(line)
    return succeeded


def _how_good(lab: LabResource, judged: Sequence[str]) -> Iterator[str]:
    """The number of judged sessions with each verdict, and what to do about those that failed."""
    verdicts: dict[str, list[str]] = {"fail": [], "warn": [], "pass": []}
    for key, verdict in session_verdicts(lab.engine, judged).items():
        verdicts[verdict].append(key)
    if not any(verdicts.values()):
        return
    failed, warned, passed = verdicts.values()
    yield (
        f"The poses of {counted(sum(map(len, verdicts.values())), 'session')} were judged: {len(passed)} passed, "
        f"{len(warned)} with warnings, {len(failed)} failed"
    )
    for title, keys in (("Failed", failed), ("With warnings", warned)):
        if keys:
            yield f"{title}: {listed(keys, _NAMED)}"
    if failed:
        yield (
            f"Do not use poses that failed as they are: {command('sessions', lab.home, '--quarantined')} says why and "
            "what to do"
        )
    if failed or warned:
        yield f"{command('quality', lab.home)} lists what was found"


def _as_they_lie(
    lab: LabResource, instance: dg.DagsterInstance, node: dg.AssetsDefinition, stretches: Sequence[Sequence[str]]
) -> Iterator[Sequence[str]]:
    """Each stretch when its turn comes; the sensor may have changed the order of the partitions meanwhile."""
    for stretch in stretches:
        if not stretch or _kind(lab, node) != "sessions":
            yield stretch
        else:
            yield from neighbours(stretch, _with_partitions(instance, stretch), most=len(stretch))


def _refusals(events: Sequence[dg.DagsterEvent]) -> list[str]:
    """The reasons why choices of a production model were refused in a run."""
    observed = [event.asset_observation_data.asset_observation for event in events if event.is_asset_observation]
    return [str(one.metadata[REFUSED].value) for one in observed if REFUSED in one.metadata]


def _cancel(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Mark a run that was interrupted in this process as cancelled; one that had ended before keeps its end."""
    run = as_told(instance, run_id)
    # Dagster takes an interrupted run for a failed one.
    interrupted = run is not None and run.tags.get(RUN_FAILURE_REASON_TAG) == _INTERRUPTED
    if run is None or (run.is_finished and not interrupted):
        return False
    instance.report_run_canceled(run, "The command that made this run was interrupted")
    return True


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Give a function that tells if a signal has come since.

    Dagster's handlers replace ours while it executes: they end a step, and forget a signal after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield lambda: bool(select.select([reader], [], [], 0)[0])
        finally:
            signal.set_wakeup_fd(before)


def _progress_logger(say: Callable[[str], None]) -> dg.LoggerDefinition:
    """A logger for the progress messages of assets; Dagster's own events and stack traces stay in its event log."""

    class Progress(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = getattr(record, "dagster_meta", {})
            if told.get("dagster_event") is None and record.levelno < logging.ERROR:
                say(f"  {told.get('orig_message', record.getMessage())}")

    def make(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("dlc_platform.progress", logging.INFO)
        logger.addHandler(Progress())
        return logger

    return dg.LoggerDefinition(make, description="Progress, a line each, for the command line.")


def _selected(definitions: dg.Definitions, selection: str) -> list[dg.AssetKey]:
    graph = definitions.resolve_asset_graph()
    # People type a bare name; Dagster's syntax needs a mark that it is a key.
    parts = [re.sub(r"^(\+*\d*)([A-Za-z]\w*)(\d*\+*)$", r'\1key:"\2"\3', part.strip()) for part in selection.split(",")]
    text = " or ".join(part for part in parts if part)
    try:
        chosen = dg.AssetSelection.from_string(text).resolve(graph)
    except Exception as error:
        raise PlatformError(
            f"{selection!r} is not a selection of assets: {error}", "Name assets as the UI does"
        ) from error
    if not chosen:
        names = ", ".join(sorted(key.to_user_string() for key in graph.get_all_asset_keys()))
        raise PlatformError(f"{selection!r} selects no asset", f"Choose among {names}")
    # Upkeep from time to time is not missing when everything else is asked for.
    named = set(re.findall(r"\w+", selection))
    return [
        key
        for key in graph.toposorted_asset_keys
        if key in chosen and (graph.get(key).group_name != UPKEEP_GROUP or named & {key.to_user_string(), UPKEEP_GROUP})
    ]


def _keys(lab: LabResource, instance: dg.DagsterInstance) -> dict[str, list[str]]:
    """The partition keys of the lab, in Dagster's order, followed by sessions that are only registered."""
    live = list(instance.get_dynamic_partitions("sessions"))
    others = registered_sessions(lab.engine)
    return {
        "sessions": live + sorted(others - set(live)),
        "recipes": sorted(lab.settings.recipes),
        "days": list(days(Path(lab.home), lab.settings.time_zone).get_partition_keys()),
    }


def _stretches(
    lab: LabResource,
    instance: dg.DagsterInstance,
    node: dg.AssetsDefinition,
    keys: dict[str, list[str]],
    partitions: Sequence[str],
    say: Callable[[str], None],
) -> list[list[str]]:
    """The partitions to materialise, those of one run together; an empty one for an asset without partitions.

    Sessions that Dagster does not know (any more) are added.
    """
    kind = _kind(lab, node)
    if kind is None:
        return [[]]
    name = node.key.to_user_string()
    if partitions:
        wanted = [key for key in partitions if key in keys[kind]]
    elif name == "pose_quality":
        wanted = sorted(without_quality(lab, instance))
    elif name in _MISSING:
        wanted = missing(lab, name, say)
    else:
        # For a lab's own asset, only Dagster knows what was made.
        made = instance.get_materialized_partitions(node.key)
        # This very command may have registered sessions a moment ago.
        there = sorted(registered_sessions(lab.engine)) if kind == "sessions" else keys[kind]
        wanted = [key for key in (there[-1:] if kind == "days" else there) if key not in made]
    if kind != "sessions":
        return neighbours(wanted, keys[kind], most=1)
    order = _with_partitions(instance, wanted)
    if partitions:
        return newest_first(wanted, order, lab.settings.scan, sizes(lab.engine, wanted))
    return neighbours(wanted, order, most=len(order))


def _with_partitions(instance: dg.DagsterInstance, keys: Sequence[str]) -> Sequence[str]:
    """All sessions that are partitions, in their order, after these keys were added."""
    live = set(instance.get_dynamic_partitions("sessions"))
    if new := [key for key in dict.fromkeys(keys) if key not in live]:
        instance.add_dynamic_partitions("sessions", new)
    return instance.get_dynamic_partitions("sessions")


def _kind(lab: LabResource, node: dg.AssetsDefinition) -> Literal["sessions", "recipes", "days"] | None:
    """The kind of an asset's partitions; None for an asset without partitions.

    Raises
    ------
    PlatformError
        When they are of another kind than the lab's.
    """
    partitions = node.partitions_def
    if partitions is None:
        return None
    if partitions == sessions:
        return "sessions"
    if isinstance(partitions, dg.DailyPartitionsDefinition):
        return "days"
    recipes = sorted(lab.settings.recipes)
    if isinstance(partitions, dg.StaticPartitionsDefinition) and partitions.get_partition_keys() == recipes:
        return "recipes"
    raise PlatformError(
        f"the partitions of {node.key.to_user_string()} are neither sessions nor recipes nor days",
        "Leave it out here, and materialise it in the UI",
    )


def _pools(node: dg.AssetsDefinition) -> set[str]:
    return {pool for op in node.node_def.iterate_op_defs() if (pool := op.pool) is not None}
