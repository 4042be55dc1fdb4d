"""Requests for runs of sessions: which sessions, in which order, and how many together."""

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

import dagster as dg

from dlc_platform.catalog import wanted
from dlc_platform.identity import sha256_json, short
from dlc_platform.launchers.dagster_internals import PRIORITY_TAG
from dlc_platform.orchestration.outcomes import wanted_labels, wanted_poses
from dlc_platform.orchestration.partitions import newest_first, range_tags
from dlc_platform.orchestration.resources import LabResource
from dlc_platform.orchestration.under_way import Asked, Cursor
from dlc_platform.sessions import scanning
from dlc_platform.text.assets import LABELED_FRAMES, POSE_ESTIMATES, POSE_QUALITY, SESSION_VIDEOS

#: Assets that are made in the same run as others.
_WITH: dict[tuple[str, ...], tuple[str, ...]] = {(POSE_ESTIMATES,): (POSE_QUALITY,)}
#: Dagster's priorities: recent recordings come before the backlog, and both before sessions that have poses already.
_LATELY = timedelta(days=1)
PRIORITIES = {"lately": "10", "stale": "-10"}


def ask(
    lab: LabResource,
    instance: dg.DagsterInstance,
    cursor: Cursor,
    ready: Sequence[scanning.Candidate],
    room: int,
    in_line: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> tuple[list[dg.RunRequest], list[str]]:
    """Ask for the wanted sessions, in the order of lab.yaml, as far as there is room.

    Behind a run for poses that waits for its turn, another one could only wait too. So sessions that come meanwhile are
    gathered, and few runs have to load networks for few sessions.

    Parameters
    ----------
    in_line
        The first assets of the runs that wait for their turn.
    elsewhere
        Sessions that are under way because somebody else asked for them.

    Returns
    -------
    tuple
        The runs, and the sessions to add to the partitions for them, in this order.
    """
    if not room:
        return [], []
    projects = list(lab.settings.projects)
    labelled = wanted.labelled(lab.engine, projects, [candidate.session.key for candidate in ready])
    but = cursor.under_way(SESSION_VIDEOS) | set(elsewhere) | cursor.postponed(time.time())
    changed = {candidate.session.key for candidate in ready}
    together = (SESSION_VIDEOS, LABELED_FRAMES)
    # By session: its newest file, and for each run that it needs the assets and the evidence.
    newest: dict[str, int] = {candidate.session.key: candidate.newest_ns for candidate in ready}
    runs: dict[tuple[str, ...], dict[str, str]] = {together: {}, together[:1]: {}}
    for candidate in ready:
        runs[together[:1] if candidate.session.key in labelled else together][candidate.session.key] = (
            candidate.fingerprint
        )
    for asset, look in ((LABELED_FRAMES, wanted_labels), (POSE_ESTIMATES, wanted_poses)):
        found = look(lab, limit=room, but=changed | but | cursor.under_way(asset))
        if asset in in_line and len(found) < min(room, lab.settings.scan.sessions_per_run):
            continue
        runs[(asset,)] = {session.session_key: session.evidence for session in found}
        newest |= {session.session_key: session.newest_ns for session in found}
    first = _ordered(newest, lab.settings.scan.order)[:room]
    order = list(instance.get_dynamic_partitions("sessions")) if first else []
    known = set(order)
    added: list[str] = []
    requests: list[tuple[int, dg.RunRequest]] = []
    place = {key: index for index, key in enumerate(first)}
    sizes = wanted.sizes(lab.engine, first)
    lately = 1e9 * (time.time() - _LATELY.total_seconds())
    for assets, evidence in runs.items():
        keys = [key for key in first if key in evidence]
        new = [key for key in keys if key not in known]
        known.update(new)
        order += new
        added += new
        for stretch in newest_first(keys, order, lab.settings.scan, sizes):
            asked_for = [(key, evidence[key], *_tries(cursor, key)) for key in stretch]
            run_key = short(sha256_json([assets, asked_for]))
            cursor.runs[run_key] = Asked(list(assets), {key: evidence[key] for key in stretch})
            request = dg.RunRequest(
                run_key=run_key,
                asset_selection=[dg.AssetKey(asset) for asset in (*assets, *_WITH.get(assets, ()))],
                tags={
                    **range_tags(stretch),
                    **({PRIORITY_TAG: PRIORITIES["lately"]} if any(newest[key] >= lately for key in stretch) else {}),
                },
            )
            requests.append((min(place[key] for key in stretch), request))
    return [request for _, request in sorted(requests, key=lambda entry: entry[0])], added


def _tries(cursor: Cursor, key: str) -> tuple[int, ...]:
    """The number of times that the machine kept a session from being worked on: Dagster starts one key only once."""
    return cursor.again[key][:1] if key in cursor.again else ()


def _ordered(newest: Mapping[str, int], order: wanted.Order) -> list[str]:
    keys = sorted(newest)
    if order == "name":
        return keys
    return sorted(keys, key=newest.__getitem__, reverse=order == "newest")
