"""Recovery from a clock that was set back: Dagster's notes of the wrong time must not keep it from working.

Dagster looks again a while after its last look, and a schedule starts after its last tick. If these lie in the future,
as after a night with the clock a day ahead, nothing would happen until that time comes.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from dlc_platform.launchers.dagster_internals import InstigatorTick

#: Synchronised clocks differ by less.
TOLERANCE = timedelta(minutes=1)
_TIMES = (
    *("last_tick_timestamp", "last_tick_start_timestamp", "last_sensor_start_timestamp"),
    *("last_tick_success_timestamp", "start_timestamp", "last_iteration_timestamp"),
)


def forget_the_future(instance: dg.DagsterInstance, now: datetime | None = None) -> list[str]:
    """Let sensors and schedules whose last look lies in the future go on from now; no daemon may run meanwhile.

    Returns
    -------
    list of str
        Their names.
    """
    moment = (now or datetime.now(UTC)).timestamp()
    latest = moment + TOLERANCE.total_seconds()
    names: set[str] = set()
    for state in instance.all_instigator_state():
        data: Any = state.instigator_data
        ahead = {name: moment for name in _TIMES if (getattr(data, name, None) or 0) > latest}
        if ahead:
            instance.update_instigator_state(state.with_data(data._replace(**ahead)))
            names.add(state.name)
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, after=latest):
            instance.update_tick(InstigatorTick(tick.tick_id, tick.tick_data._replace(timestamp=moment)))
            names.add(state.name)
    return sorted(names)
