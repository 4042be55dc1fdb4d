"""Sessions in quarantine: entries begin and end here, and questions about them are answered here.

The checks of videos and poses decide what is wrong with a session; this module keeps what they found.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Engine, Text, and_, cast, func, or_, orm, select, update
from sqlalchemy.dialects.postgresql import insert

from dlc_platform.catalog.asking import Asked, Question, frame
from dlc_platform.catalog.tables import Notification, Quarantine, Session
from dlc_platform.errors import PlatformError
from dlc_platform.identity import sha256_json

if TYPE_CHECKING:
    import pandas as pd


Stage = Literal["videos", "labels", "poses", "quality"]
#: Written as the releaser of an entry whose evidence has changed.
OTHER_EVIDENCE = "other evidence"


@dataclass(frozen=True)
class Fault:
    """Something wrong with a session, or with one of its files; `evidence` is a hash of what was judged."""

    reason: str
    remedy: str
    evidence: str
    path: str | None = None


def judge(
    engine: Engine,
    session_key: str,
    stage: Stage,
    faults: Iterable[Fault],
    run_id: str | None = None,
    *,
    files_only: bool = False,
) -> list[Fault]:
    """Write down what is wrong with a session at one stage now; earlier entries that are not named again end.

    Parameters
    ----------
    files_only
        Judge single files only: an entry for the whole session stays.

    Returns
    -------
    list of Fault
        Those that are in quarantine now. A person released the others, on the same evidence.
    """
    with engine.begin() as connection:
        _lock(connection, session_key)
        entries = _entries(connection, session_key, stage)
        stays, held = _sorted(entries, faults, files_only)
        current = {(path, fault.evidence) for path, fault in held.items()}
        over = [
            e.id for e in entries if e.released_by is None and e not in stays and (e.path, e.evidence) not in current
        ]
        connection.execute(
            update(Quarantine).where(Quarantine.id.in_(over)).values(released_at=func.now(), released_by=OTHER_EVIDENCE)
        )
        for path, fault in held.items():
            statement = insert(Quarantine).values(
                session_key=session_key,
                stage=stage,
                path=path,
                reason=fault.reason,
                remedy=fault.remedy,
                evidence=fault.evidence,
                run_id=run_id,
            )
            # The same evidence: it has been in quarantine since then; only the words for it may differ.
            statement = statement.on_conflict_do_update(
                index_elements=["session_key", "stage", "path"],
                index_where=Quarantine.released_at.is_(None),
                set_={"reason": fault.reason, "remedy": fault.remedy},
            )
            connection.execute(statement)
    return _named(stays, held)


def still_held(
    engine: Engine, session_key: str, stage: Stage, faults: Iterable[Fault], *, files_only: bool = False
) -> list[Fault]:
    """The faults that `judge` would leave in quarantine; nothing is written."""
    with engine.connect() as connection:
        return _named(*_sorted(_entries(connection, session_key, stage), faults, files_only))


def _entries(connection: Connection, session_key: str, stage: Stage) -> Sequence[Any]:
    """Every entry of a session's quarantine at a stage, open or ended."""
    statement = select(
        Quarantine.id,
        Quarantine.path,
        Quarantine.evidence,
        Quarantine.released_by,
        Quarantine.reason,
        Quarantine.remedy,
    )
    return connection.execute(statement.where(Quarantine.session_key == session_key, Quarantine.stage == stage)).all()


def _sorted(
    entries: Sequence[Any], faults: Iterable[Fault], files_only: bool
) -> tuple[list[Any], dict[str | None, Fault]]:
    """The entries that stay whatever was found now, and, by path, the faults that no person has released."""
    stays = [entry for entry in entries if files_only and entry.path is None and entry.released_by is None]
    released = {
        (entry.path, entry.evidence)
        for entry in entries
        if entry.released_by is not None and entry.released_by != OTHER_EVIDENCE
    }
    by_path = _by_place(faults)
    return stays, {path: fault for path, fault in by_path.items() if (path, fault.evidence) not in released}


def _named(stays: Iterable[Any], held: Mapping[str | None, Fault]) -> list[Fault]:
    return [*(Fault(entry.reason, entry.remedy, entry.evidence) for entry in stays), *held.values()]


def _lock(connection: Connection, session_key: str) -> None:
    """One judgement or release of a session at a time. Its row is locked, because it may have no entry yet."""
    connection.execute(select(Session.key).where(Session.key == session_key).with_for_update(key_share=True))


def _by_place(faults: Iterable[Fault]) -> dict[str | None, Fault]:
    """One fault for each file, and one for the session: several faults of one place become one, with all their
    reasons."""
    own: dict[str | None, list[Fault]] = {}
    for fault in faults:
        own.setdefault(fault.path, []).append(fault)
    return {
        path: several[0]
        if len(several) == 1
        else Fault(
            "; ".join(fault.reason for fault in several),
            "; ".join(dict.fromkeys(fault.remedy for fault in several)),
            sha256_json(sorted(fault.evidence for fault in several)),
            path,
        )
        for path, several in own.items()
    }


def release(
    engine: Engine, session_key: str, by: str, stages: Collection[Stage] | None = None, reason: str | None = None
) -> int:
    """Let a session out of quarantine because a person says so; return how many entries that ended.

    Raises
    ------
    PlatformError
        When `by` is empty, or the name that stands for changed evidence.
    """
    if by.strip() in ("", OTHER_EVIDENCE):
        raise PlatformError(f"nobody is called {by!r}", "Say who releases the session")
    statement = update(Quarantine).where(Quarantine.session_key == session_key, Quarantine.released_at.is_(None))
    if stages is not None:
        statement = statement.where(Quarantine.stage.in_(stages))
    with engine.begin() as connection:
        _lock(connection, session_key)
        return connection.execute(
            statement.values(released_at=func.now(), released_by=by, release_reason=reason)
        ).rowcount


def faults_of(engine: Engine, session_key: str, stage: Stage) -> list[Fault]:
    """The faults that hold a session in quarantine at a stage; empty if it is not in quarantine."""
    statement = select(Quarantine.reason, Quarantine.remedy, Quarantine.evidence, Quarantine.path).where(
        Quarantine.session_key == session_key, Quarantine.stage == stage, Quarantine.released_at.is_(None)
    )
    with engine.connect() as connection:
        return [Fault(*row) for row in connection.execute(statement.order_by(Quarantine.id))]


def held_sessions(engine: Engine, stage: Stage) -> list[str]:
    """The sessions that are in quarantine at a stage, for the whole session or for a file."""
    statement = select(Quarantine.session_key).where(Quarantine.stage == stage, Quarantine.released_at.is_(None))
    with engine.connect() as connection:
        return list(connection.scalars(statement.distinct().order_by(Quarantine.session_key)))


def holding_reasons(engine: Engine) -> dict[tuple[str, str | None], str]:
    """The first reason why each session (path None) or file is not tracked, with its remedy, by session and path."""
    statement = select(Quarantine).where(Quarantine.released_at.is_(None), Quarantine.stage.in_(("videos", "poses")))
    reasons: dict[tuple[str, str | None], str] = {}
    with orm.Session(engine) as session:
        for entry in session.scalars(statement.order_by(Quarantine.id)):
            reasons.setdefault((entry.session_key, entry.path), f"{entry.reason}; {entry.remedy}")
    return reasons


def reasons_held_or_told(engine: Engine, keys: Collection[str], run_id: str) -> dict[str, list[str]]:
    """Why these sessions are in quarantine, or were by what a run found, if that was told before they were let out."""
    was_told = select(Notification.id).where(
        Notification.kind == "quarantine", Notification.subject == cast(Quarantine.id, Text)
    )
    held = or_(Quarantine.released_at.is_(None), and_(Quarantine.run_id == run_id, was_told.exists()))
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        entries = select(Quarantine.session_key, Quarantine.reason).where(Quarantine.session_key.in_(keys), held)
        for key, reason in connection.execute(entries):
            found.setdefault(key, []).append(reason)
    return found


def released_files(engine: Engine) -> set[tuple[str, str]]:
    """The video files that a person has ever let out of quarantine, by session and path."""
    statement = select(Quarantine.session_key, Quarantine.path).where(
        Quarantine.stage == "videos", Quarantine.path.is_not(None), Quarantine.released_by != OTHER_EVIDENCE
    )
    with engine.connect() as connection:
        return {(key, path) for key, path in connection.execute(statement) if path is not None}


_QUARANTINE = """
select session_key as session, stage, path as file, reason, remedy, since, run_id, released_at, released_by,
       release_reason
from dlc.quarantine
where not :open_only or released_at is null
order by since desc, id desc
limit :most
"""

_QUARANTINE_COUNTS = """
select stage, count(distinct session_key) as sessions, count(path) as files, min(since) as since
from dlc.quarantine
where released_at is null
group by stage
order by stage
"""


@Question
def quarantine_table(open_only: bool = True, most: int | None = None) -> Asked:
    """The entries of the quarantine, a row for each reason, the newest first; without a `file` the whole session is
    held.

    Parameters
    ----------
    open_only
        Leave out entries that have ended; `released_by` says whether a person or other evidence ended one.
    """
    return _QUARANTINE, {"open_only": open_only, "most": most}


def quarantine_counts(engine: Engine) -> "pd.DataFrame":
    """Count the sessions and files in quarantine by stage; `since` is when the first of them came in."""
    return frame(engine, _QUARANTINE_COUNTS)
