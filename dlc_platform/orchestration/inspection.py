"""The state of a lab's Dagster: the second half of `dlc-platform doctor`.

`dlc_platform.lab.doctor` has the checks that need no Dagster. Nothing is changed here.
"""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from dlc_platform.errors import PlatformError, command
from dlc_platform.lab.doctor import Finding
from dlc_platform.launchers.dagster_internals import (
    IN_PROGRESS_RUN_STATUSES,
    RUN_KEY_TAG,
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    TickStatus,
    get_daemon_statuses,
)
from dlc_platform.orchestration.build import build_definitions
from dlc_platform.orchestration.clock import TOLERANCE
from dlc_platform.orchestration.instance import (
    dagster_yaml,
    environment_of,
    open_instance,
    pool_limits,
    wanted_dagster_yaml,
    where_it_stands,
)
from dlc_platform.orchestration.migration import require_known, revisions
from dlc_platform.orchestration.news import kept_news
from dlc_platform.orchestration.retries import NONE_THAT_WAITS, WAITS, WAITS_TAG, is_followed, not_started
from dlc_platform.orchestration.schedules import interval, late
from dlc_platform.orchestration.under_way import Cursor
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.text.words import counted

#: A daemon reports every 30 s that it is alive.
_SILENT_SECONDS = 120
_STUCK = timedelta(hours=1)
#: Slots of finished runs are freed within seconds.
_HELD = timedelta(minutes=2)
_LITTLE_SPACE_BYTES = 5 << 30
#: A sensor that has not looked for so many of its intervals is stuck.
_INTERVALS = 20
_QUEUE = 1000


def inspect(home: Path) -> Iterator[Finding]:
    """Examine a lab's Dagster.

    The order is: definitions, daemon, limits, monitoring, queue, schedules and sensors, and findings of looks.
    """
    try:
        lab = load_lab(home)
    except PlatformError:  # as `diagnosis` says
        return
    yield from _space(home, lab)
    for sentence in where_it_stands(home):
        yield Finding("home", sentence, "Start the lab here, if this is its new place", warning=True)
    try:
        wanted = wanted_dagster_yaml(home, lab)
    except PlatformError as error:
        yield Finding("dagster_yaml", error.problem, error.remedy)
        return
    try:
        found = revisions(home)
    except PlatformError:  # as `diagnosis` says
        return
    try:
        require_known(found)
    except PlatformError as error:
        yield Finding("tables", error.problem, error.remedy)
        return
    for revision in found:
        if revision.now not in (None, revision.newest):
            yield Finding(
                "tables",
                f"those of {revision.what} are at {revision.now}, and this version has {revision.newest}",
                "Stop all work on the lab with the older version, then bring them up to date with "
                f"{command('migrate', home)}",
            )
    try:
        definitions = build_definitions(home)
        definitions.resolve_asset_graph()
    except Exception as error:
        told = " ".join(str(error).split())
        yield Finding("definitions", f"they do not load: {told}", "Mend what it names, and start the lab again")
        return
    yield Finding("definitions", f"they load; the stage is {lab.stage}")
    # Opening an instance makes missing tables.
    if not dagster_yaml(home).exists() or not all(revision.now for revision in found) or not found:
        yield Finding("Dagster", "the lab was never up")
        return
    try:
        instance = open_instance(environment_of(home))
    except Exception as error:
        told = " ".join(str(error).split())
        yield Finding(
            "Dagster", f"its instance does not open: {told}", "Write dagster.yaml anew with `dlc-platform up HOME`"
        )
        return
    with instance:
        alive = yield from _daemon(instance)
        yield from _limits(instance, lab)
        yield from _monitoring(instance, home, lab, wanted)
        yield from _queue(instance, alive)
        yield from _under_way(instance, alive)
        yield from _instigators(instance, definitions, lab, alive)
        yield from _late(lab, instance)
        yield from _news(instance)


def _space(home: Path, lab: Lab) -> Iterator[Finding]:
    """Check disks other than the store's; `doctor` looks at that one."""
    for what, folder in (("home", home), ("backups", lab.backups.folder)):
        place = folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        found = f"{folder}, {free / 2**30:.0f} GiB free"
        if free < _LITTLE_SPACE_BYTES:
            yield Finding(what, found, "Free some space, before the database or a backup needs it", warning=True)
        else:
            yield Finding(what, found)


def _daemon(instance: dg.DagsterInstance) -> Iterator[Finding]:
    """Check that Dagster's daemons are alive; the result is also returned."""
    statuses = get_daemon_statuses(
        instance,
        instance.get_required_daemon_types(),
        ignore_errors=True,
        heartbeat_interval_seconds=0,
        heartbeat_tolerance_seconds=_SILENT_SECONDS,
    )
    silent = sorted(name for name, status in statuses.items() if not status.healthy)
    if len(silent) == len(statuses):
        yield Finding(
            "daemon",
            "it does not run, so nothing starts by itself",
            "Start the lab with `dlc-platform up HOME`, or its service",
            warning=True,
        )
        return False
    if silent:
        yield Finding(
            "daemon",
            f"{', '.join(silent)} said nothing for more than {_SILENT_SECONDS} s, while others are alive",
            "Read HOME/logs/daemon.log, and start the lab again",
        )
    errors = [
        f"{name}: {heartbeat.errors[0].message.strip().splitlines()[0]}"
        for name, status in statuses.items()
        if (heartbeat := status.last_heartbeat) is not None and heartbeat.errors
    ]
    if errors:
        yield Finding("daemon", "; ".join(errors), "Read HOME/logs/daemon.log", warning=True)
    if not silent and not errors:
        yield Finding("daemon", f"all {len(statuses)} parts of it are alive")
    return True


def _runs(limit: int | None) -> str:
    return "any number of runs" if limit is None else counted(limit, "run")


def _limits(instance: dg.DagsterInstance, lab: Lab) -> Iterator[Finding]:
    """Check that the limits of pools are those of the last start, and that no finished run holds a slot."""
    limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    try:
        wanted = pool_limits(lab)
    except PlatformError:  # as `diagnosis` says of the devices
        wanted = {}
    wrong = [
        f"{pool} lets {_runs(limits.get(pool))} at a time, but by lab.yaml and the devices it should be {limit}"
        for pool, limit in wanted.items()
        if limits.get(pool) != limit
    ]
    if wrong:
        yield Finding("pools", "; ".join(wrong), "Start the lab again, which sets them")
    else:
        yield Finding(
            "pools",
            ", ".join(f"{pool} lets {_runs(limit)} at a time" for pool, limit in sorted(limits.items())) or "none",
        )
    now = datetime.now(UTC).timestamp()
    holders = sorted(instance.event_log_storage.get_concurrency_run_ids())
    records = instance.get_run_records(dg.RunsFilter(run_ids=holders)) if holders else []
    ended = [
        record.dagster_run.run_id
        for record in records
        if record.dagster_run.is_finished and (record.end_time or 0) < now - _HELD.total_seconds()
    ]
    if ended:
        yield Finding(
            "pools",
            f"{counted(len(ended), 'finished run still holds a slot', 'finished runs still hold slots')}, such as "
            f"{ended[0]}",
            "Let the daemon run, which frees them; or free them in the UI under Deployment, Concurrency",
        )


def _monitoring(instance: dg.DagsterInstance, home: Path, lab: Lab, wanted: dict[str, Any]) -> Iterator[Finding]:
    """Check that dead runs are noticed, tried again as lab.yaml says, and free their slots."""
    queue = instance.get_concurrency_config().run_queue_config
    off = [
        what
        for what, on in (
            ("run monitoring", instance.run_monitoring_enabled),
            ("freeing slots of ended runs", instance.run_monitoring_enabled and _frees(instance)),
            ("retries of dead runs", instance.run_retries_enabled),
            ("waiting before retries", queue is not None and NONE_THAT_WAITS in list(queue.tag_concurrency_limits)),
        )
        if not on
    ]
    if off:
        yield Finding(
            "runs", f"dagster.yaml switches off: {', '.join(off)}", "Start the lab again, which writes it anew"
        )
        return
    written = yaml.safe_load(dagster_yaml(home).read_text(encoding="utf-8"))
    if other := sorted(key for key in wanted.keys() | written.keys() if wanted.get(key) != written.get(key)):
        yield Finding(
            "runs",
            f"dagster.yaml is not what lab.yaml asks for: {', '.join(other)}",
            "Start the lab again, which writes it anew",
            warning=True,
        )
        return
    tries = instance.run_retries_max_retries
    yield Finding("runs", f"they are monitored, and tried again {counted(tries, 'time')} when their worker dies")


def _frees(instance: dg.DagsterInstance) -> bool:
    return bool((instance.get_settings("run_monitoring") or {}).get("free_slots_after_run_end_seconds"))


def _queue(instance: dg.DagsterInstance, alive: bool) -> Iterator[Finding]:
    """Check that runs do not wait while nothing is at work."""
    records = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]), limit=_QUEUE, order_by="create_timestamp", ascending=True
    )
    waiting = [record for record in records if record.dagster_run.tags.get(WAITS_TAG) != WAITS]
    at_work = instance.get_runs_count(dg.RunsFilter(statuses=list(IN_PROGRESS_RUN_STATUSES)))
    found = f"{counted(len(waiting), 'run waits', 'runs wait')} and {at_work} {'is' if at_work == 1 else 'are'} at work"
    if not (waiting or at_work):
        found = "no run waits or is at work"
    if len(records) > len(waiting):
        found += f"; {counted(len(records) - len(waiting), 'is', 'are')} to be tried again later"
    oldest = waiting[0].create_timestamp if waiting else None
    if oldest is not None and oldest.tzinfo is None:
        oldest = oldest.replace(tzinfo=UTC)
    if alive and oldest is not None and not at_work and datetime.now(UTC) - oldest > _STUCK:
        yield Finding(
            "queue",
            f"{found}, the oldest since {oldest:%Y-%m-%d %H:%M} UTC",
            "Find in the UI, under View queue criteria, what the oldest one waits for; and read HOME/logs/daemon.log",
        )
    else:
        yield Finding("queue", found)


def _under_way(instance: dg.DagsterInstance, alive: bool) -> Iterator[Finding]:
    """Check that the sensor's requests are really under way, and that each waiting run will be started."""
    lost = not_started(instance)
    state = next((one for one in instance.all_instigator_state() if one.name == "new_session_videos"), None)
    asked = Cursor.read(getattr(state.instigator_data, "cursor", None)) if state is not None else None
    runs = asked.runs if asked is not None else {}
    names = {run.run_id for run in lost}
    sessions: set[str] = set()
    under_way: set[str] = set()
    for run_key, own in runs.items():
        run = next(iter(instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: run_key}), limit=1)), None)
        if run is None or run.run_id in names:
            sessions |= own.sessions.keys()
        elif not run.is_finished or is_followed(instance, run):  # the next look removes ended ones
            under_way |= own.sessions.keys()
    under_way -= sessions
    if not lost and not sessions:
        number = counted(len(under_way), "session is", "sessions are")
        yield Finding("under way", f"{number} under way, with a run each" if under_way else "no session is under way")
        return
    said = [f"{counted(len(lost), 'run')} that nothing starts, such as {lost[0].run_id}"] if lost else []
    said += [f"{counted(len(sessions), 'session')} without a run, such as {min(sessions)}"] if sessions else []
    yield Finding(
        "under way",
        "; ".join(said),
        "Nothing: the daemon sets them going within minutes" if alive else "Start the lab, which sets them going",
        warning=True,
    )


def _instigators(instance: dg.DagsterInstance, definitions: dg.Definitions, lab: Lab, alive: bool) -> Iterator[Finding]:
    """Check that schedules and sensors are on, that their last tick went well, and that it was not too long ago."""
    repository = definitions.get_repository_def()
    known: dict[str, timedelta] = {}
    on: set[str] = set()
    for schedule in repository.schedule_defs:
        known[schedule.name] = interval(str(schedule.cron_schedule), lab.time_zone)
        if schedule.default_status == dg.DefaultScheduleStatus.RUNNING:
            on.add(schedule.name)
    for sensor in repository.sensor_defs:
        known[sensor.name] = _INTERVALS * timedelta(seconds=sensor.minimum_interval_seconds or 30)
        if sensor.default_status == dg.DefaultSensorStatus.RUNNING:
            on.add(sensor.name)
    good = 0
    seen: set[str] = set()
    for state in instance.all_instigator_state():
        name = state.name
        if name not in known or name in seen:
            continue
        seen.add(name)
        what = "schedule" if state.instigator_type == InstigatorType.SCHEDULE else "sensor"
        if state.status == InstigatorStatus.STOPPED and name in on:
            yield Finding(
                f"{what} {name}", "it was switched off", "Switch it on in the UI, if it should be on", warning=True
            )
            continue
        if state.status == InstigatorStatus.DECLARED_IN_CODE and name not in on:
            continue
        problem = _tick_problem(instance, state, known[name], alive)
        if problem is None:
            good += 1
        else:
            yield Finding(f"{what} {name}", problem, "Look at its ticks in the UI", warning=True)
    off = (
        "" if lab.stage == "production" else f"; at the stage {lab.stage} they are off until somebody switches them on"
    )
    yield Finding(
        "schedules and sensors",
        f"{counted(good, 'is', 'are') if good else 'none is'} on{' and went well the last time' if good else ''}{off}",
    )


def _tick_problem(instance: dg.DagsterInstance, state: InstigatorState, most: timedelta, alive: bool) -> str | None:
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    if not ticks:
        return None
    (last,) = ticks
    when = datetime.fromtimestamp(last.timestamp, UTC)
    if last.status == TickStatus.FAILURE:
        told = last.error.message.strip().splitlines()[0] if last.error else "no reason is known"
        return f"it failed at {when:%Y-%m-%d %H:%M} UTC: {told}"
    if when - datetime.now(UTC) > TOLERANCE:
        return (
            f"it looked last at {when:%Y-%m-%d %H:%M} UTC, by a clock that was set back since, and looks again only "
            "then; start `dlc-platform up` again, and it goes on at once"
        )
    if alive and datetime.now(UTC) - when > 1.5 * most:
        return f"it has not looked since {when:%Y-%m-%d %H:%M} UTC, although the daemon is alive"
    return None


def _news(instance: dg.DagsterInstance) -> Iterator[Finding]:
    """Changes that looks at the raw roots found and dealt with in the last days."""
    for when, line in kept_news(instance):
        found, _, remedy = line.partition("; ")
        yield Finding(
            "looks",
            f"{when:%Y-%m-%d %H:%M} UTC: {found}",
            remedy[:1].upper() + remedy[1:] if remedy else "Nothing, if you expected that",
            warning=True,
        )


def _late(lab: Lab, instance: dg.DagsterInstance) -> Iterator[Finding]:
    """Work that schedules should have done and did not: backups, verifications, cleaning."""
    for one in late(lab, instance):
        yield Finding(
            f"schedule {one.schedule}",
            f"{one.asset.to_user_string()} is late" + ("" if one.made_before else ", and was never made"),
            "Check in the UI that the schedule is on, and read the errors of its runs",
            warning=True,
        )
