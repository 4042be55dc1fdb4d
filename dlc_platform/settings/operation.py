"""The sections of lab.yaml about the lab's own work: looks, schedules, backups, runs and web servers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from dlc_platform.settings.fields import YEAR_SECONDS, Cron, Folder, Section

#: A host name or an address: no wildcards, no port.
_HOST = r"^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])$"


class Freshness(Section):
    """The hours after which poses are late."""

    poses_within_hours: float | None = Field(
        default=24.0,
        ge=0.01,
        le=YEAR_SECONDS / 3600,
        description="If a session that can be tracked has no poses so many hours after it arrived, the check "
        "`poses_follow_recordings` fails and names it; null switches that off.",
    )
    warn_hours: float | None = Field(
        default=None,
        ge=1 / 60,
        le=YEAR_SECONDS / 3600,
        description="The UI shows `pose_estimates` in yellow if nothing was estimated for so long, even if nothing "
        "was recorded; off by default.",
    )
    fail_hours: float | None = Field(default=None, ge=1 / 60, le=YEAR_SECONDS / 3600, description="The same, in red.")

    @model_validator(mode="after")
    def _in_order(self) -> "Freshness":
        if self.warn_hours is not None and (self.fail_hours is None or self.warn_hours >= self.fail_hours):
            raise ValueError("warn_hours needs fail_hours, and must be less")
        return self


class ScanRule(Section):
    """The pace of the looks at the raw roots, and the amount of new work that is asked for at a time."""

    tick_seconds: float = Field(
        default=20.0, ge=1, le=50, description="The time that one look may take; the next one goes on where it stopped."
    )
    root_timeout_seconds: float = Field(
        default=10.0,
        ge=0.01,
        le=3600,
        description="A raw root that does not answer for so long is reported as stalled and skipped.",
    )
    order: Literal["newest", "oldest", "name"] = Field(
        default="newest", description="The sessions that come first, by the time of their newest file or by their key."
    )
    queued_sessions: int = Field(
        default=200, ge=1, le=1_000_000, description="The most sessions that are under way at a time."
    )
    sessions_per_run: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="The most sessions of one run: larger runs start fewer processes and load networks less often.",
    )
    gigabytes_per_run: float = Field(
        default=4.0,
        ge=0.000_000_001,
        le=1_000_000,
        description="A run with video files of so many gigabytes is full too, so that long recordings soon show their "
        "results, and later recordings do not wait for long.",
    )
    live_sessions: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="The most sessions that the UI lists as partitions; if there are more, the oldest finished ones "
        "leave the list until there is work for them. The catalogue keeps all.",
    )
    unopened_seconds: float = Field(
        default=3600.0,
        ge=0,
        le=YEAR_SECONDS,
        description="The hours during which a file that does not open may still be being copied; after them it is read "
        "nevertheless, and its fault is named.",
    )


class Schedules(Section):
    """The times of the platform's own upkeep, as cron expressions in the lab's time zone; null switches one off."""

    catch_up: Cron | None = Field(
        default="30,40 2 * * *",
        description="Ask for the sessions that the sensor missed. A new session is seen by one look and asked for by "
        "the next if it has not changed meanwhile: so there are two looks.",
    )
    evaluate_new_labels: Cron | None = Field(
        default="0 3 * * 6", description="Evaluate production models again if more frames were labelled."
    )
    verify_store: Cron | None = Field(
        default="0 4 1 * *", description="Read the whole store again and compare it with the catalogue."
    )
    back_up: Cron | None = Field(default="0 6 1 * *", description="Write a backup into the folder of `backups`.")
    clean_up: Cron | None = Field(
        default="0 5 * * *", description="Remove files that crashes left, and the events of old runs."
    )


class Backups(Section):
    """The folder of the schedule `back_up`."""

    folder: Folder = Field(
        default=Path("backups"),
        description="The folder, best on another disk than the database's; it is made if it is missing.",
    )
    keep: int = Field(
        default=12, ge=1, le=10_000, description="The number of its own backups that stay there, the newest ones."
    )


class RunRules(Section):
    """The treatment of runs that die, hang or are old."""

    retry_minutes: tuple[Annotated[float, Field(ge=0, le=24 * 60)], ...] = Field(
        default=(1.0, 5.0, 25.0),
        max_length=10,
        description="The waits before each new try of a run whose worker died, or that a fault of the machine ended; "
        "[] tries nothing again. A computation that failed is never tried again by itself, because it would fail the "
        "same way.",
    )
    start_minutes: float = Field(
        default=10.0,
        ge=1,
        le=7 * 24 * 60,
        description="A run whose worker has not started after so long counts as failed.",
    )
    cancel_minutes: float = Field(
        default=5.0,
        ge=1,
        le=7 * 24 * 60,
        description="A run that has not stopped so long after it was cancelled counts as cancelled.",
    )
    gpu_runs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="The most runs of the pool `gpu` at a time; by default as many as this machine's GPUs "
        "can take. For clusters, whose GPUs are elsewhere.",
    )
    most_hours: float | None = Field(
        default=None,
        ge=0.01,
        le=YEAR_SECONDS / 3600,
        description="A run that takes longer counts as failed; no limit by default, because trainings may be long.",
    )
    keep_events_days: int | None = Field(
        default=90,
        ge=7,
        le=36_500,
        description="The days after which `clean_up` removes the logs of runs; the runs themselves, their ends and "
        "their products stay. null keeps all.",
    )


class Web(Section):
    """The host names under which the lab's pages answer, and the space that they may take."""

    hosts: tuple[Annotated[str, StringConstraints(pattern=_HOST)], ...] = Field(
        default=(),
        description="More names besides 127.0.0.1 and localhost, such as that of a proxy before the UI: "
        "lab.example.org, without a port. Requests under any other name get no answer.",
    )
    views_gigabytes: float = Field(
        default=20.0,
        ge=0.1,
        le=1_000_000,
        description="The space that the lab's pages take in the store for what they draw from: previews of videos and "
        "copies of poses, made when somebody first looks. Of more, what nobody looked at for longest is removed.",
    )
