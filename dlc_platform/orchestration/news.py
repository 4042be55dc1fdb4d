"""Changes that a look at the raw roots found and dealt with by itself, kept so that people find them later.

Nobody reads the log of a tick. So the lines stand at `session_videos` in the UI, and `dlc-platform doctor` prints them
for some days.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dagster as dg

from dlc_platform.errors import in_this_lab
from dlc_platform.text.assets import SESSION_VIDEOS

_ASSET = dg.AssetKey(SESSION_VIDEOS)
#: The metadata key that marks these observations.
_KEY = "found_by_a_look"
#: The time for which a line is shown, and the most lines.
_TOLD_FOR = timedelta(days=7)
_MOST = 200


def keep_news(instance: dg.DagsterInstance, lines: Iterable[str]) -> None:
    """Keep lines for people; a line that is shown already is not kept twice."""
    new = list(dict.fromkeys(map(in_this_lab, lines)))
    known = {line for _, line in kept_news(instance)} if new else set()
    for line in new:
        if line not in known:
            observation = dg.AssetObservation(_ASSET, description=line, metadata={_KEY: True})
            instance.report_runless_asset_event(observation)


def kept_news(instance: dg.DagsterInstance, now: datetime | None = None) -> list[tuple[datetime, str]]:
    """The lines of the last days, the newest first, each with the time when it was first kept."""
    since = (now or datetime.now(UTC)) - _TOLD_FOR
    wanted = dg.AssetRecordsFilter(_ASSET, after_timestamp=since.timestamp())
    return [
        (datetime.fromtimestamp(record.timestamp, UTC), observation.description)
        for record in instance.fetch_observations(wanted, limit=_MOST).records
        if (observation := record.asset_observation) is not None
        and _KEY in observation.metadata
        and observation.description is not None
    ]
