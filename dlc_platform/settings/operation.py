"""The sections of lab.yaml on what the lab does by itself: looks, schedules, backups, runs and web servers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from dlc_platform.settings.fields import YEAR_SECONDS, Cron, Folder, Section

#: A name of the internet's, or an address of it: no wildcards, no port.
_HOST = r"^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])$"


class Freshness(Section):
    """When poses are late."""

    poses_within_hours: float | None = Field(
        default=24.0,
        ge=0.01,
        le=YEAR_SECONDS / 3600,
        description="A session that can be tracked has poses so many hours after it arrived, or the check "
        "`poses_follow_recordings` fails and names it; null switches that off.",
    )
    warn_hours: float | None = Field(
        default=None,
        ge=1 / 60,
        le=YEAR_SECONDS / 3600,
        description="The UI shows `pose_estimates` as yellow when nothing was estimated for so long, whether or not "
        "anything was recorded; off by default.",
    )
    fail_hours: float | None = Field(default=None, ge=1 / 60, le=YEAR_SECONDS / 3600, description="The same in red.")

    @model_validator(mode="after")
    def _in_order(self) -> "Freshness":
        if self.warn_hours is not None and (self.fail_hours is None or self.warn_hours >= self.fail_hours):
            raise ValueError("warn_hours needs fail_hours, and must be less")
        return self


class ScanRule(Section):
    """How the raw roots are looked through, and how much of what is new is asked for at a time."""

    tick_seconds: float = Field(
        default=20.0, ge=1, le=50, description="The time that one look may take; the next one goes on where it stopped."
    )
    root_timeout_seconds: float = Field(
        default=10.0,
        ge=0.01,
        le=3600,
        description="A raw root that does not answer for so long is said to be stalled and left.",
    )
    order: Literal["newest", "oldest", "name"] = Field(
        default="newest", description="Which sessions come first, by the time of their newest file or by their key."
    )
    queued_sessions: int = Field(
        default=200, ge=1, le=1_000_000, description="Sessions that are under way at a time, at most."
    )
    sessions_per_run: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Sessions of a run, at most: many spare starts of processes and of networks.",
    )
    gigabytes_per_run: float = Field(
        default=4.0,
        ge=0.000_000_001,
        le=1_000_000,
        description="A run with video files of so many gigabytes is full too, so that long recordings soon show their "
        "results, and what is recorded next does not wait for long.",
    )
    live_sessions: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Sessions that the UI lists as partitions; of more, the oldest that are done are taken off the "
        "list until something is wanted of them. The catalogue keeps all.",
    )
    unopened_seconds: float = Field(
        default=3600.0,
        ge=0,
        le=YEAR_SECONDS,
        description="How long a file that does not open may be one that is still being copied; then it is read all the "
        "same, and named with what is wrong with it.",
    )


class Schedules(Section):
    """When the platform looks after itself, as cron expressions in the lab's time zone; null switches one off."""

    catch_up: Cron | None = Field(
        default="30,40 2 * * *",
        description="Ask for the sessions that the sensor should have asked for and did not. What nobody saw before is "
        "seen by one look and asked for by the next, when it has not changed meanwhile: so there are two.",
    )
    evaluate_new_labels: Cron | None = Field(
        default="0 3 * * 6", description="Evaluate production models again where more frames were labelled."
    )
    verify_store: Cron | None = Field(default="0 4 1 * *", description="Read the whole store again and compare it.")
    back_up: Cron | None = Field(default="0 6 1 * *", description="Write a backup into the folder of `backups`.")
    clean_up: Cron | None = Field(
        default="0 5 * * *", description="Remove what crashes left, and events of runs that are old."
    )


class Backups(Section):
    """Where the schedule `back_up` writes to."""

    folder: Folder = Field(
        default=Path("backups"), description="Best on another disk than the database's; it is made when it is missing."
    )
    keep: int = Field(default=12, ge=1, le=10_000, description="So many of its own backups stay there, the newest.")


class RunRules(Section):
    """What becomes of runs that die, hang or are old."""

    retry_minutes: tuple[Annotated[float, Field(ge=0, le=24 * 60)], ...] = Field(
        default=(1.0, 5.0, 25.0),
        max_length=10,
        description="A run whose worker died waits so long before each further try; [] tries nothing again. A "
        "computation that failed is never tried again by itself: it would fail the same way. What a fault of the "
        "machine ended is tried again like one whose worker died.",
    )
    start_minutes: float = Field(
        default=10.0, ge=1, le=7 * 24 * 60, description="A run whose worker has not started for so long has failed."
    )
    cancel_minutes: float = Field(
        default=5.0,
        ge=1,
        le=7 * 24 * 60,
        description="A run that has not stopped so long after it was told to is called cancelled.",
    )
    gpu_runs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="So many runs of the pool `gpu` are started at a time; by default as many as this machine's GPUs "
        "can take. For clusters, where the GPUs are elsewhere.",
    )
    most_hours: float | None = Field(
        default=None,
        ge=0.01,
        le=YEAR_SECONDS / 3600,
        description="A run that takes longer has failed; no limit by default, for trainings.",
    )
    keep_events_days: int | None = Field(
        default=90,
        ge=7,
        le=36_500,
        description="What runs logged is removed after so many days by `clean_up`; that they ran, how they ended and "
        "what they made stays. null keeps all.",
    )


class Web(Section):
    """Under which names the lab's pages answer."""

    hosts: tuple[Annotated[str, StringConstraints(pattern=_HOST)], ...] = Field(
        default=(),
        description="Besides 127.0.0.1 and localhost, as of a proxy before the UI: lab.example.org, without a port. "
        "Under any other name nothing is answered.",
    )
