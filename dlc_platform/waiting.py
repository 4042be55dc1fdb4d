"""Sessions that wait or are held up: since when, why, and what to do. One place for all of them.

Everything is read from the catalogue: what the sensor saw at its last look, what is in quarantine, and which registered
files have no poses. A file of a camera that no inference rule names waits for nothing. What runs are under way for is
known to Dagster alone.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, text

from dlc_platform.catalog import registry
from dlc_platform.gate import hopeless_in_production
from dlc_platform.settings import Lab
from dlc_platform.store import Store

if TYPE_CHECKING:
    import pandas as pd

_BY_ITSELF = "Nothing: it goes on by itself"

_UNREGISTERED = """
select w.session_key, w.changed_at, w.unready_since, w.left_out,
       (select min(r.path || ': ' || r.problem) from dlc.sighting s join dlc.scanned_folder f on f.id = s.folder_id
        join dlc.scanned_root r on r.id = f.root_id
        where s.session_key = w.session_key and r.problem is not null) as root_problem
from dlc.waiting_session w
where not exists (select from dlc.quarantine q where q.session_key = w.session_key and q.stage = 'videos'
                  and q.path is null and q.evidence = w.held and q.released_at is null)
order by w.session_key
"""
_QUARANTINE = """
select session_key, stage, path, reason, remedy, since from dlc.quarantine where released_at is null
order by session_key, id
"""
_WITHOUT_POSES = """
select r.session_key, r.camera, f.path, f.registered_at, f.missing_since, p.promoted_at, c.project
from dlc.recording_file f
join dlc.recording r on r.id = f.recording_id
join dlc.camera c on c.name = r.camera
left join lateral (select min(promoted_at) as promoted_at from dlc.promotion where project = c.project) p on true
where f.replaced_at is null
and not exists (select from dlc.recording_poses m where m.recording_file_id = f.id)
and not exists (select from dlc.quarantine q where q.session_key = r.session_key and q.released_at is null
                and q.stage in ('videos', 'poses') and (q.path is null or q.path = f.path))
and not exists (select from dlc.waiting_session w where w.session_key = r.session_key)
order by r.session_key, f.id
"""


@dataclass(frozen=True)
class Waiting:
    """A session, or one of its files, that waits or is held up.

    Attributes
    ----------
    step
        What it waits for: ``registration``, or the stage of its quarantine, or ``poses``.
    passing
        True where nobody has to do anything.
    """

    session: str
    step: str
    file: str | None
    since: datetime | None
    reason: str
    remedy: str
    passing: bool = False


def waiting(engine: Engine, lab: Lab, now: datetime | None = None) -> list[Waiting]:
    """Every session that waits or is held up, by key."""
    moment = now or datetime.now(UTC)
    with engine.connect() as connection:
        unregistered = connection.execute(text(_UNREGISTERED)).all()
        quarantine = connection.execute(text(_QUARANTINE)).all()
        without_poses = connection.execute(text(_WITHOUT_POSES)).all()
    found = [_unregistered(row, lab, moment) for row in unregistered]
    found += [Waiting(row.session_key, row.stage, row.path, row.since, row.reason, row.remedy) for row in quarantine]
    found += _without_poses(engine, without_poses, lab)
    return sorted(found, key=lambda one: (one.session, one.step, one.file or ""))


def waiting_table(engine: Engine, lab: Lab) -> "pd.DataFrame":
    """`waiting` as a table: session, step, file, since, reason, remedy, passing."""
    import pandas as pd

    columns = pd.Index(list(Waiting.__dataclass_fields__))
    return pd.DataFrame([asdict(one) for one in waiting(engine, lab)], columns=columns)


def _unregistered(row: Any, lab: Lab, now: datetime) -> Waiting:
    file, remedy, passing = None, _BY_ITSELF, True
    since = row.unready_since or row.changed_at
    if row.root_problem is not None:
        reason, _, remedy = row.root_problem.partition("; ")
        passing = False
    elif row.left_out:
        file, told, _ = row.left_out[0]
        reason, _, remedy = told.partition("; ")
        if told.startswith("it does not open"):
            until = since + timedelta(seconds=lab.scan.unopened_seconds)
            remedy = (
                f"If it is broken, replace it; else wait: it is looked at again, and at {until:%Y-%m-%d %H:%M} UTC "
                "read as it is"
            )
        passing = False
    elif now - row.changed_at < timedelta(seconds=lab.settle_seconds):
        reason = f"its files changed less than {lab.settle_seconds:g} s ago"
    else:
        reason = "its files have settled, and it is registered when its turn comes"
    return Waiting(row.session_key, "registration", file, since, reason, _sentence(remedy), passing)


def _without_poses(engine: Engine, rows: Any, lab: Lab) -> Iterator[Waiting]:
    in_production = {project for project in lab.projects if registry.production_model(engine, project)}
    hopeless = hopeless_in_production(engine, Store(lab.store), lab) if rows else {}
    for row in rows:
        project = lab.project_of(row.camera)
        if row.missing_since is not None:
            reason, remedy = "its file is gone", "Bring it back, or leave it: nothing is deleted"
            yield Waiting(row.session_key, "poses", row.path, row.missing_since, reason, remedy)
        elif project is None:
            continue
        elif project not in in_production:
            reason = f"the project {project} has no production model"
            remedy = "Train or import one, and promote it"
            yield Waiting(row.session_key, "poses", row.path, row.registered_at, reason, remedy)
        elif project in hopeless:
            reason, _, remedy = hopeless[project].partition(". ")
            since = row.promoted_at or row.registered_at
            yield Waiting(row.session_key, "poses", row.path, since, reason, remedy.rstrip("."))
        else:
            since = max(row.registered_at, row.promoted_at or row.registered_at)
            reason = "it has no poses yet, and is tracked when its turn comes"
            yield Waiting(row.session_key, "poses", row.path, since, reason, _BY_ITSELF, passing=True)


def _sentence(remedy: str) -> str:
    return remedy[:1].upper() + remedy[1:] if remedy else "See what it says, and mend it"
