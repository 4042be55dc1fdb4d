"""Schedules: what happens at a time of the day, rather than because something arrived."""

from typing import Any

import dagster as dg

from dlc_platform.orchestration.assets.report import days

#: When yesterday's report is made, by the lab's clock.
_REPORT_HOUR = 7


def morning_report(time_zone: str) -> tuple[Any, Any]:
    """The job that makes a day's report, and the schedule that runs it each morning for the day before."""
    job = dg.define_asset_job(
        "report_day",
        selection=["daily_report"],
        partitions_def=days(time_zone),
        executor_def=dg.in_process_executor,
        description="Report what a day brought.",
    )
    schedule = dg.build_schedule_from_partitioned_job(
        job,
        name="morning_report",
        hour_of_day=_REPORT_HOUR,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Makes the report of the day before at {_REPORT_HOUR}:00, {time_zone}.",
    )
    return job, schedule
