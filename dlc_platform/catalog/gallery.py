"""Questions of the pages: which sessions there are, where each stands, and which poses draw its picture.

The states of a session are words for people; each has one meaning, here. What stands on the page of one session is
asked in `sessions`, `estimates` and `verdicts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Engine

from dlc_platform.catalog.asking import Asked, Question, rows

#: `good`, `to_look_at` and `failed` are the verdicts on the poses, or quarantine; `waiting` sessions have no poses yet,
#: or some that nobody has judged.
State = Literal["good", "to_look_at", "failed", "waiting"]
STATES: tuple[State, ...] = get_args(State)

#: Of each session its state; the worst verdict on its poses in force counts.
_STATE = """
case when held.reason is not null or f.worst = 3 then 'failed'
     when f.worst = 2 then 'to_look_at'
     when f.poses = 0 or f.unjudged > 0 then 'waiting'
     else 'good' end
"""

_FILES = """
left join lateral (
    select count(e.id) as poses, count(e.id) filter (where p.verdict is null) as unjudged, count(*) as files,
           sum(v.duration_s) as duration_s, min(v.start_time) as start_time,
           array_agg(distinct r.camera) as cameras,
           array_agg(distinct e.model_id) filter (where e.model_id is not null) as models,
           max(case p.verdict when 'fail' then 3 when 'warn' then 2 when 'pass' then 1 end) as worst,
           (array_agg(e.id order by case p.verdict when 'fail' then 1 when 'warn' then 2 else 3 end, r.name, f.position)
            filter (where e.id is not null))[1] as pose_estimate,
           (array_agg(p.findings order by case p.verdict when 'fail' then 1 when 'warn' then 2 else 3 end, r.name,
            f.position) filter (where p.verdict is not null))[1] as findings
    from dlc.recording r
    join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
    left join dlc.video v on v.id = f.video_id
    left join lateral (
        select x.pose_estimate_id from dlc.recording_poses x where x.recording_file_id = f.id order by x.id desc limit 1
    ) m on true
    left join dlc.pose_estimate e on e.id = m.pose_estimate_id
    left join dlc.pose_verdict p on p.pose_estimate_id = e.id
    where r.session_key = s.key
) f on true
left join lateral (
    select q.reason, q.remedy from dlc.quarantine q where q.session_key = s.key and q.released_at is null
    order by q.id limit 1
) held on true
"""

#: Sessions that have ever had poses with this verdict: among them are those that have them now.
_EVER = """
select r.session_key
from dlc.pose_verdict w
join dlc.recording_poses x on x.pose_estimate_id = w.pose_estimate_id
join dlc.recording_file f on f.id = x.recording_file_id
join dlc.recording r on r.id = f.recording_id
where w.verdict = '{}'
"""

#: Where the sessions of a rare state are, so that they are found without a look at all the others.
_CANDIDATES: Mapping[State, str] = {
    "failed": f"""
s.key in (select session_key from dlc.quarantine where released_at is null union {_EVER.format("fail")})""",
    "to_look_at": f"s.key in ({_EVER.format('warn')})",
    "waiting": """
s.key not in (
    select r.session_key from dlc.recording_poses x
    join dlc.pose_verdict w on w.pose_estimate_id = x.pose_estimate_id
    join dlc.recording_file f on f.id = x.recording_file_id and f.replaced_at is null
    join dlc.recording r on r.id = f.recording_id
    group by r.session_key
    having bool_and(w.verdict = 'pass')
)""",
}

#: By sets, because one look at each of 100,000 sessions takes seconds.
_COUNTS = """
with newest as (
    select distinct on (recording_file_id) recording_file_id, pose_estimate_id
    from dlc.recording_poses order by recording_file_id, id desc
), judged as (
    select r.session_key,
           max(case w.verdict when 'fail' then 3 when 'warn' then 2 when 'pass' then 1 else 1.5 end) as worst
    from newest n
    join dlc.recording_file f on f.id = n.recording_file_id and f.replaced_at is null
    join dlc.recording r on r.id = f.recording_id
    left join dlc.pose_verdict w on w.pose_estimate_id = n.pose_estimate_id
    group by r.session_key
), held as (
    select distinct session_key from dlc.quarantine where released_at is null
)
select case when h.session_key is not null or j.worst = 3 then 'failed' when j.worst = 2 then 'to_look_at'
            when j.worst = 1 then 'good' else 'waiting' end as state, count(*) as sessions
from dlc.session s left join judged j on j.session_key = s.key left join held h on h.session_key = s.key
group by 1
"""

_CHOICES = """
select 'subject' as of, subject as name, count(*) as sessions from dlc.session group by subject
union all
select 'camera', camera, count(distinct session_key) from dlc.recording group by camera
union all
select 'model', e.model_id, count(distinct r.session_key)
from (
    select distinct on (recording_file_id) recording_file_id, pose_estimate_id
    from dlc.recording_poses order by recording_file_id, id desc
) n
join dlc.recording_file f on f.id = n.recording_file_id and f.replaced_at is null
join dlc.recording r on r.id = f.recording_id
join dlc.pose_estimate e on e.id = n.pose_estimate_id
where e.model_id is not null
group by e.model_id
order by 1, 2
"""


@dataclass(frozen=True)
class Wanted:
    """Which sessions are listed; None does not choose.

    `key` is that of one session, `search` a part of one. `day` is a date of the lab, and `before` the place where the
    page before ended: when its last session was registered, and its key.
    """

    key: str | None = None
    state: State | None = None
    subject: str | None = None
    camera: str | None = None
    model: str | None = None
    day: str | None = None
    search: str | None = None
    before: tuple[str, str] | None = None


@Question
def session_cards(wanted: Wanted, most: int) -> Asked:
    """The sessions that are wanted, those that were registered last first, a row each."""
    conditions = ["true"]
    parameters: dict[str, Any] = {"most": most}
    for name, condition in (
        ("key", "s.key = :key"),
        ("subject", "s.subject = :subject"),
        ("camera", "exists (select from dlc.recording r where r.session_key = s.key and r.camera = :camera)"),
        ("model", "s.key in (select session from dlc.poses_in_force where model like :model || '%')"),
        ("day", "s.registered_at >= cast(:day as date) and s.registered_at < cast(:day as date) + 1"),
        ("search", "strpos(lower(s.key), lower(:search)) > 0"),
    ):
        if (value := getattr(wanted, name)) is not None:
            conditions.append(condition)
            parameters[name] = value
    if wanted.state is not None:
        conditions += [f"{_STATE} = :state", _CANDIDATES.get(wanted.state, "true")]
        parameters["state"] = wanted.state
    if wanted.before is not None:
        conditions.append("(s.registered_at, s.key) < (cast(:before_at as timestamptz), :before_key)")
        parameters["before_at"], parameters["before_key"] = wanted.before
    query = f"""
select s.key as session, s.subject, s.name, s.registered_at, f.start_time, f.duration_s, f.cameras, f.models, f.poses,
       f.files, f.pose_estimate, f.findings, held.reason, held.remedy, {_STATE} as state
from dlc.session s {_FILES}
where {" and ".join(conditions)}
order by s.registered_at desc, s.key desc
limit :most
"""
    return query, parameters


def state_counts(engine: Engine) -> dict[State, int]:
    """The number of registered sessions in each state."""
    counted = {row["state"]: row["sessions"] for row in rows(engine, _COUNTS)}
    return {state: counted.get(state, 0) for state in STATES}


def choices(engine: Engine) -> dict[str, Sequence[tuple[str, int]]]:
    """The subjects, cameras and models that sessions can be chosen by, each with how many sessions it has."""
    found: dict[str, list[tuple[str, int]]] = {"subject": [], "camera": [], "model": []}
    for row in rows(engine, _CHOICES):
        found[row["of"]].append((row["name"], row["sessions"]))
    return {name: tuple(own) for name, own in found.items()}


_SESSION_FILES = """
select r.name as recording, r.camera, f.id as file, f.position, f.path, f.size_bytes, f.mtime_ns, f.problem,
       f.missing_since, f.video_id as video, v.width, v.height, v.frames, v.duration_s, v.codec, v.pixel_format,
       v.rotation, v.damage, v.variable_frame_rate, v.times_reordered, v.times_estimated, v.clock_resets,
       v.frames_left_out, v.start_time, e.id as pose_estimate, e.model_id as model, e.origin, e.scorer,
       e.frames as rows, e.seconds, e.device, m.run_id, m.materialized_at, p.verdict, p.findings, w.project
from dlc.recording r
join dlc.recording_file f on f.recording_id = r.id and f.replaced_at is null
left join dlc.video v on v.id = f.video_id
left join lateral (
    select x.pose_estimate_id, x.run_id, x.materialized_at
    from dlc.recording_poses x where x.recording_file_id = f.id order by x.id desc limit 1
) m on true
left join dlc.pose_estimate e on e.id = m.pose_estimate_id
left join dlc.model_version w on w.id = e.model_id
left join dlc.pose_verdict p on p.pose_estimate_id = e.id
where r.session_key = :session
order by r.name, f.position
"""

_ESTIMATES_OF_VIDEO = """
select e.id as pose_estimate, e.model_id as model, e.origin, e.scorer, e.estimated_at, e.frames, p.verdict
from dlc.pose_estimate e left join dlc.pose_verdict p on p.pose_estimate_id = e.id
where e.video_id = :video
order by e.estimated_at desc, e.id
"""

_FILE_OF_ESTIMATE = """
select e.id as pose_estimate, e.video_id as video, f.path, f.size_bytes, f.mtime_ns, v.damage is null as whole
from dlc.pose_estimate e
join dlc.video v on v.id = e.video_id
join dlc.recording_file f on f.video_id = e.video_id and f.replaced_at is null
where e.id = :estimate
order by f.missing_since is not null, f.id desc
limit 1
"""

_FILE_OF_VIDEO = """
select f.path, f.size_bytes, f.mtime_ns, v.damage is null as whole, v.frames
from dlc.recording_file f join dlc.video v on v.id = f.video_id
where f.video_id = :video and f.replaced_at is null
order by f.missing_since is not null, f.id desc
limit 1
"""

_NEIGHBOURS = """
select (select key from dlc.session o where (o.registered_at, o.key) < (s.registered_at, s.key)
        order by o.registered_at desc, o.key desc limit 1) as next,
       (select key from dlc.session o where (o.registered_at, o.key) > (s.registered_at, s.key)
        order by o.registered_at, o.key limit 1) as previous
from dlc.session s where s.key = :session
"""


@Question
def session_files(session: str) -> Asked:
    """The current files of a session, a row each, with their video, the poses in force and the verdict on them."""
    return _SESSION_FILES, {"session": session}


@Question
def estimates_of_video(video: str) -> Asked:
    """All poses of a video, by whatever model, the newest first."""
    return _ESTIMATES_OF_VIDEO, {"video": video}


@Question
def file_of_estimate(estimate: str) -> Asked:
    """A current file that holds the video of these poses; no row if there is none."""
    return _FILE_OF_ESTIMATE, {"estimate": estimate}


@Question
def file_of_video(video: str) -> Asked:
    """A current file that holds a video; no row if there is none."""
    return _FILE_OF_VIDEO, {"video": video}


@Question
def neighbours_of(session: str) -> Asked:
    """The sessions beside a session in the list of all: `next` was registered before it, `previous` after it."""
    return _NEIGHBOURS, {"session": session}
