"""Schedules: work at a time of the day, not because something arrived.

Each is on by default in production and off elsewhere (`stage` in lab.yaml), and exists only if lab.yaml gives it a
time. `assets.upkeep` does the work; this module says how late it may be.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from typing import Any

import dagster as dg

from dlc_platform.catalog.promotions import production_model
from dlc_platform.launchers.dagster_internals import FreshnessState, TimeWindowFreshnessPolicy, cron_string_iterator
from dlc_platform.orchestration import jobs
from dlc_platform.orchestration.news import keep_news
from dlc_platform.orchestration.partitions import sessions
from dlc_platform.orchestration.requests import ask
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import CATCH_UP
from dlc_platform.orchestration.under_way import caught_up, recover
from dlc_platform.sessions import scanning
from dlc_platform.settings.lab import Lab
from dlc_platform.text.assets import DAILY_REPORT, LAB_BACKUP, LAB_CLEANING, PRODUCTION_EVALUATION, STORE_VERIFICATION
from dlc_platform.text.words import counted

#: The hour at which yesterday's report is made, by the lab's clock.
_REPORT_HOUR = 7
#: The asset that each schedule of lab.yaml makes.
MADE_BY = {
    "evaluate_new_labels": PRODUCTION_EVALUATION,
    "verify_store": STORE_VERIFICATION,
    "back_up": LAB_BACKUP,
    "clean_up": LAB_CLEANING,
}
#: All patterns of days in a cron come back within this time, except the 29th of February.
_YEAR = timedelta(days=366)


@dataclass(frozen=True)
class Late:
    """An asset that a schedule should have made and did not: since when, and True if it was ever made before."""

    asset: dg.AssetKey
    schedule: str
    since: datetime
    made_before: bool


def default_status(lab: Lab) -> dg.DefaultScheduleStatus:
    """The status of a lab's schedules until somebody changes it in the UI: on in production."""
    on = lab.stage == "production"
    return dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED


def morning_report(lab: Lab) -> tuple[Any, Any]:
    """The job that makes a day's report, and the schedule that runs it each morning for the day before."""
    job = dg.define_asset_job(
        "report_day",
        selection=[DAILY_REPORT],
        executor_def=dg.in_process_executor,
        description="Report what a day brought.",
    )
    schedule = dg.build_schedule_from_partitioned_job(
        job,
        name="morning_report",
        hour_of_day=_REPORT_HOUR,
        default_status=default_status(lab),
        description=f"Makes the report of the day before at {_REPORT_HOUR}:00, {lab.time_zone}.",
    )
    return job, schedule


def upkeep_schedules(lab: Lab) -> list[dg.ScheduleDefinition]:
    """The schedules of lab.yaml that have a time."""
    made = []
    if lab.schedules.catch_up is not None:
        made.append(_catch_up(lab, lab.schedules.catch_up))
    if lab.schedules.evaluate_new_labels is not None:
        made.append(_evaluate_new_labels(lab, lab.schedules.evaluate_new_labels))
    for job, cron in (
        (jobs.verify_store, lab.schedules.verify_store),
        (jobs.back_up, lab.schedules.back_up),
        (jobs.clean_up, lab.schedules.clean_up),
    ):
        if cron is not None:
            made.append(
                dg.ScheduleDefinition(
                    name=job.name,
                    job=job,
                    cron_schedule=cron,
                    execution_timezone=lab.time_zone,
                    default_status=default_status(lab),
                    description=job.description,
                )
            )
    return made


def upkeep_freshness(lab: Lab) -> dict[str, dg.FreshnessPolicy]:
    """The time after which an asset of a schedule counts as late: half an interval after it was due.

    Only in production, where the schedules are on. The check `poses_follow_recordings` covers `catch_up`.
    """
    if lab.stage != "production":
        return {}
    policies = {}
    for schedule, asset in MADE_BY.items():
        cron = getattr(lab.schedules, schedule)
        if cron is not None:
            policies[asset] = dg.FreshnessPolicy.time_window(fail_window=1.5 * interval(cron, lab.time_zone))
    return policies


def interval(cron: str, time_zone: str, now: datetime | None = None) -> timedelta:
    """The longest time between two ticks of a schedule within a year.

    A schedule may tick every minute, and only in January: so its days and its times of the day are handled separately.
    """
    minute, hour, which_days = cron.split(maxsplit=2)
    midnights = cron_string_iterator((now or datetime.now(UTC)).timestamp(), f"0 0 {which_days}", time_zone)
    dates = [next(midnights), next(midnights)]
    while dates[-1] - dates[0] < _YEAR:
        dates.append(next(midnights))
    some = datetime(2001, 1, 1, tzinfo=UTC)
    ticks = cron_string_iterator(some.timestamp(), f"{minute} {hour} * * *", "UTC")
    times = [tick - some for tick in takewhile(lambda tick: tick < some + timedelta(days=1), ticks)]
    over_night = max(later - earlier for earlier, later in pairwise(dates)) - times[-1] + times[0]
    return max([over_night, *(later - earlier for earlier, later in pairwise(times))])


def late(lab: Lab, instance: dg.DagsterInstance) -> Iterator[Late]:
    """The assets that schedules should have made by now and did not.

    Dagster does not report an asset that was never made. For such an asset the time counts from when the daemon first
    saw its policy, which is when the lab came into production, or got the schedule.
    """
    windows = upkeep_freshness(lab)
    made = {dg.AssetKey(asset): schedule for schedule, asset in MADE_BY.items()}
    for key, record in instance.get_freshness_state_records(list(made)).items():
        policy = windows.get(key.to_user_string())
        # Dagster keeps the state of assets that have no policy any more.
        if not isinstance(policy, TimeWindowFreshnessPolicy):
            continue
        if record.freshness_state == FreshnessState.FAIL:
            yield Late(key, made[key], record.updated_at, True)
        elif (
            record.freshness_state == FreshnessState.UNKNOWN
            and datetime.now(UTC) - record.updated_at >= policy.fail_window.to_timedelta()
        ):
            yield Late(key, made[key], record.updated_at, False)


def _catch_up(lab: Lab, cron: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=CATCH_UP,
        job=jobs.process_sessions,
        cron_schedule=cron,
        execution_timezone=lab.time_zone,
        default_status=default_status(lab),
        description="Asks for the sessions that the sensor new_session_videos missed, as when it was off.",
    )
    def catch_up(context: dg.ScheduleEvaluationContext, lab: LabResource) -> dg.SkipReason | list[dg.RunRequest]:
        """Asks for the sessions that need work and that no run is under way for, as when the sensor was off.

        Sessions that wait for their turn behind the sensor's runs were not missed, nor were those in quarantine.
        """
        now = context.scheduled_execution_time
        cursor = recover(context.instance)
        elsewhere = caught_up(context.instance)
        room = max(0, lab.settings.scan.queued_sessions - len(cursor.under_way() | elsewhere))
        found = scanning.look(lab.engine, lab.settings, datetime.now(UTC), room, cursor.under_way() | elsewhere)
        for line in found.news:
            context.log.warning(line)
        keep_news(context.instance, found.news)
        requests, added = ask(lab, context.instance, cursor, found.ready, room, elsewhere=elsewhere)
        if not requests:
            return dg.SkipReason(
                f"nothing was missed of {counted(found.sessions, 'session')} on disk; "
                f"{counted(len(cursor.under_way()), 'session is', 'sessions are')} under way"
            )
        if added:
            context.instance.add_dynamic_partitions(str(sessions.name), added)
        # Dagster remembers every request for ever; a request that came to nothing must be tried again now.
        return [request._replace(run_key=f"{request.run_key}-{now:%Y%m%d%H%M}") for request in requests]

    return catch_up


def _evaluate_new_labels(lab: Lab, cron: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        job=jobs.evaluate_new_labels,
        cron_schedule=cron,
        execution_timezone=lab.time_zone,
        default_status=default_status(lab),
        description="Evaluates the production model of each project on the frames that are labelled by now.",
    )
    def evaluate_new_labels(
        context: dg.ScheduleEvaluationContext, lab: LabResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        """Evaluates the production model of each project on the frames that are labelled by now.

        It uses one recipe of the project, so that the images keep its sides; nothing is evaluated twice.
        """
        asked = False
        for project in lab.settings.projects:
            names = [name for name, recipe in lab.settings.recipes.items() if recipe.project == project]
            if names and production_model(lab.engine, project) is not None:
                asked = True
                key = f"{project}-{context.scheduled_execution_time:%Y%m%d%H%M}"
                yield dg.RunRequest(run_key=key, partition_key=names[0])
        if not asked:
            yield dg.SkipReason("no project has both a recipe and a production model")

    return evaluate_new_labels
