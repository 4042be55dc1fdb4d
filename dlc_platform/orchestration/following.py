"""The things that looks follow besides videos: the inference rules of lab.yaml, and the lab's own tables."""

import time
from collections.abc import Iterable
from pathlib import Path

from dlc_platform.catalog.quarantine import held_sessions
from dlc_platform.catalog.sessions import assign_cameras
from dlc_platform.identity import sha256_json, short
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.under_way import Cursor
from dlc_platform.sessions.raw_roots import Threads
from dlc_platform.sessions.sidecars import Sidecars

#: The seconds that a look waits for the lab's own tables.
_FOLLOWING_SECONDS = 2.0
_threads = Threads()
#: For each lab whose tables were followed since the last question: their state, or the error.
_followed: dict[str, str | Exception] = {}


def follow_rules(lab: LabResource, cursor: Cursor) -> None:
    """Update the catalogue if lab.yaml's rules for cameras, or for videos in quarantine, have changed."""
    from dlc_platform.sessions.registration import judge

    said = lab.settings.model_dump(mode="json", include={"inference", "damaged_videos", "video_quality"})
    rules = short(sha256_json(said))
    if rules != cursor.rules:
        assign_cameras(lab.engine, lab.settings.tracking.project_of)
        for key in held_sessions(lab.engine, "videos"):
            judge(lab.engine, lab.settings.video_rules, key, files_only=True)
        cursor.rules = rules


def follow_tables(lab: LabResource, cursor: Cursor, unreachable: Iterable[Path]) -> None:
    """Update the catalogue if one of the lab's own tables in a raw root has changed.

    A disk may answer slowly or never, and an archive has many tables: work that takes longer goes on beside the looks,
    and a later look finds it done.
    """
    from dlc_platform.sessions.registration import reread_details

    settings, engine, before = lab.settings, lab.engine, cursor.tables

    def follow() -> None:
        try:
            sidecars = Sidecars(settings.raw_roots, unreachable)
            state = short(sidecars.state(()))
            if state != before:
                reread_details(engine, sidecars)
            _followed[lab.home] = state
        except Exception as problem:  # a thread has nobody else to tell
            _followed[lab.home] = problem

    if lab.home not in _followed:
        _threads.start(lab.home, follow)
    until = time.monotonic() + _FOLLOWING_SECONDS
    while lab.home not in _followed and time.monotonic() < until:
        time.sleep(0.002)
    outcome = _followed.pop(lab.home, before)
    if isinstance(outcome, Exception):
        raise outcome
    cursor.tables = outcome
