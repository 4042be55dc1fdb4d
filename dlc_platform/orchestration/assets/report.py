"""The group `reports`: what each day brought. The figures are in `dlc_platform.reports`."""

from datetime import date

import dagster as dg
from dagster import AssetExecutionContext

from dlc_platform.notifications import News, announce
from dlc_platform.orchestration.metadata import number, picture, table
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.reports import daily_report as report_of
from dlc_platform.reports import yesterday

#: No lab was up before.
_FIRST_DAY = "2025-01-01"


def days(time_zone: str) -> dg.DailyPartitionsDefinition:
    """The days of a lab that are over, from midnight to midnight in its time zone."""
    return dg.DailyPartitionsDefinition(start_date=_FIRST_DAY, timezone=time_zone)


def report_asset(time_zone: str) -> dg.AssetsDefinition:
    """The asset `daily_report` of a lab in this time zone."""

    # Without dependencies: the report reads what was written down, and a day has no sessions for partitions.
    @dg.asset(
        partitions_def=days(time_zone),
        group_name="reports",
        kinds={"postgres"},
        owners=["team:acquisition"],
        code_version="1",
    )
    def daily_report(context: AssetExecutionContext, lab: LabResource) -> dg.MaterializeResult:
        """What a day brought: sessions arrived, estimated, in quarantine and waiting; hours of video and of devices.

        The figures of a day that is over stay what they are, whenever it is materialised.
        """
        from dlc_platform.pose.pictures import days_plot

        day = date.fromisoformat(context.partition_key)
        report = report_of(lab.engine, day, time_zone, lab.settings.damaged_videos)
        if day == yesterday(time_zone):
            # Who fills in reports of before does not want them in the mail.
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
