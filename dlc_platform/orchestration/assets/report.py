"""The group `reports`: a report for each day. `dlc_platform.reports.daily` computes the figures."""

from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
from dagster import AssetExecutionContext
from sqlalchemy.exc import SQLAlchemyError

from dlc_platform.catalog.database import open_catalog
from dlc_platform.errors import PlatformError
from dlc_platform.notify.messages import News
from dlc_platform.notify.outbox import announce
from dlc_platform.orchestration.metadata import number, picture, table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.retries import tried_again
from dlc_platform.postgres.connection import existing_url
from dlc_platform.reports.daily import daily_report as report_of
from dlc_platform.reports.daily import first_day, yesterday

#: Used if the lab's first day is not known, because its database does not answer.
_NO_LAB_BEFORE = date(2025, 1, 1)


def days(home: Path, time_zone: str) -> dg.DailyPartitionsDefinition:
    """The lab's finished days, from its first one on, from midnight to midnight in its time zone."""
    try:
        if (url := existing_url(home)) is None:
            first = datetime.now(ZoneInfo(time_zone)).date()
        else:
            engine = open_catalog(url)
            first = first_day(engine, time_zone)
            engine.dispose()
    except (PlatformError, SQLAlchemyError):
        first = _NO_LAB_BEFORE
    return dg.DailyPartitionsDefinition(start_date=first.isoformat(), timezone=time_zone)


def report_asset(days: dg.DailyPartitionsDefinition, time_zone: str) -> dg.AssetsDefinition:
    """The asset `daily_report` of the lab with these days, in this time zone."""

    # Without dependencies: the report reads the catalogue, and its partitions are days, not sessions.
    @dg.asset(
        partitions_def=days,
        group_name="reports",
        kinds={"postgres"},
        owners=["team:acquisition"],
        code_version="1",
    )
    @tried_again
    def daily_report(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """The events of a day: sessions arrived, estimated, in quarantine and waiting; hours of video and of devices.

        The figures of a day that is over stay what they are, whenever it is materialised.
        """
        from dlc_platform.plots.days import days_plot

        day = date.fromisoformat(context.partition_key)
        report = report_of(lab.engine, day, time_zone, lab.settings.damaged_videos)
        if day == yesterday(time_zone):
            # Reports of earlier days are not mailed.
            news = News("daily_report", day.isoformat(), f"Report of {day:%A}, {day.isoformat()}", str(report))
            announce(lab.engine, lab.settings.notify.channels, [news])
        figures = report.figures()
        return dg.MaterializeResult(
            metadata={
                "summary": dg.MetadataValue.text(str(report)),
                "picture": picture(days_plot(report.days), f"The last {len(report.days)} days, to {day}"),
                "cameras": table(report.cameras),
                "days": table(report.days.iloc[::-1]),
                **{name: number(value) for name, value in figures.items() if isinstance(value, float)},
                **{name: value for name, value in figures.items() if isinstance(value, int)},
            },
        )

    return daily_report


def days_without_report(lab: LabResource, _: Callable[[str], None]) -> list[str]:
    """The last finished day: reading it again is quick."""
    day = yesterday(lab.settings.time_zone)
    return [day.isoformat()] if day >= first_day(lab.engine, lab.settings.time_zone) else []
