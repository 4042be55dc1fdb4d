"""What the pages answer to browsers and to others: addresses, filters, names that are no names, faults of the lab."""

import json
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pytest

from dlc_platform.catalog import tables
from dlc_platform.catalog.gallery import state_counts
from dlc_platform.catalog.quarantine import Fault, judge
from dlc_platform.catalog.sessions import register_session
from dlc_platform.catalog.verdicts import record_verdict
from dlc_platform.views.pose_arrays import STEPS, pose_arrays, speed
from dlc_platform_tests.catalog.small_lab import identity, recording, session
from dlc_platform_tests.web.pages.conftest import LookedAt


def get(lab: LookedAt, address: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urlopen(Request(lab.address + address, headers=headers)) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def listed(lab: LookedAt, query: str = "") -> list[str]:
    """The sessions on a page of the list, in order."""
    status, body, _ = get(lab, f"/sessions{query}")
    assert status == 200
    return [part.split('"')[0] for part in body.decode().split('class="card" href="/sessions/')[1:]]


def give_verdict(lab: LookedAt, letter: str, level: str) -> None:
    found = {"metric": "jumps", "individual": "animal", "bodypart": "tail", "value": 0.2, "limit": 0.1, "level": level}
    verdict = tables.PoseVerdict(
        pose_estimate_id=identity(letter),
        verdict=level,
        basis={},
        limits={},
        findings=[] if level == "pass" else [found],
    )
    record_verdict(lab.engine, verdict, None)


def test_sessions_are_listed_and_chosen(looked_at: LookedAt):
    lab = looked_at
    for letter, level in (("1", "pass"), ("2", "warn"), ("3", "pass"), ("4", "pass")):
        give_verdict(lab, letter, level)
    judge(lab.engine, "sub-cut_ses-1", "quality", [Fault("the tail jumps", "look at it", "e")])
    register_session(
        lab.engine, session("sub-new_ses-1"), [(recording("sub-new_ses-1", "top", problem="cut short"), None)]
    )
    assert listed(lab)[0] == "sub-new_ses-1" and len(listed(lab)) == 6
    assert listed(lab, "?state=to_look_at") == ["sub-b-frames_ses-1"]
    assert listed(lab, "?state=failed") == ["sub-cut_ses-1"]
    # One has no poses, and those of the other are not judged yet.
    assert listed(lab, "?state=waiting") == ["sub-new_ses-1", "sub-preview_ses-1"]
    assert listed(lab, "?state=good") == ["sub-variable_ses-1", "sub-plain_ses-1"]
    assert state_counts(lab.engine) == {"good": 2, "to_look_at": 1, "failed": 1, "waiting": 2}
    assert listed(lab, "?search=VARI") == ["sub-variable_ses-1"]
    assert listed(lab, "?subject=plain&camera=top") == ["sub-plain_ses-1"]
    assert listed(lab, f"?model={identity('a')[:8]}&state=failed") == ["sub-cut_ses-1"]
    assert listed(lab, "?day=1999-01-01") == []
    body = get(lab, "/sessions")[1].decode()
    assert "the tail jumps" in body and "tail" in body
    assert get(lab, "/sessions?state=odd")[0] == 404 and get(lab, "/sessions?day=tomorrow")[0] == 404
    assert get(lab, "/sessions?before=x")[0] == 404


def test_pages_follow_one_another(looked_at: LookedAt, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlc_platform.web.pages.sessions._MOST", 2)
    seen, address = [], "/sessions?search=ses"
    while address:
        body = get(looked_at, address)[1].decode()
        seen += [part.split('"')[0] for part in body.split('class="card" href="/sessions/')[1:]]
        address = body.split('class="more" href="')[1].split('"')[0].replace("&amp;", "&") if "more" in body else ""
        address = address if 'class="more"' in body else ""
    assert len(seen) == len(set(seen)) == 5


def test_names_are_text_wherever_they_stand(looked_at: LookedAt):
    key = "sub-<script>alert(1)<!--\"'&?#%_ses-1\n2"
    register_session(looked_at.engine, session(key), [(recording(key, "<b>\n", problem="<i>"), None)])
    for address in ("/sessions", f"/sessions/{quote(key)}", f"/sessions?search={quote('<script>')}"):
        status, body, headers = get(looked_at, address)
        assert status == 200 and b"<script>alert" not in body and b"<b>" not in body and b"<i>" not in body
        assert "'unsafe" not in headers["content-security-policy"]


def test_what_is_not_there_is_said(looked_at: LookedAt):
    lab = looked_at
    for address in (
        "/sessions/nobody",
        "/sessions/sub-plain_ses-1?camera=none",
        "/nothing",
        f"/videos/{identity('c')}",
        f"/poses/{identity('c')}/times",
        "/videos/..%2f..%2flab.yaml",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        f"/pictures/{identity('1')}/other.png",
    ):
        status, body, _ = get(lab, address)
        assert status == 404, address
        assert b"Traceback" not in body and b"lab.yaml" not in body.replace(b"..%2f..%2flab.yaml", b"").replace(
            b"../../lab.yaml", b""
        )


def test_a_video_is_given_out_by_stretches_while_it_is_the_one(looked_at: LookedAt):
    lab = looked_at
    path = next((lab.home / "raw" / "plain").glob("*.mp4"))
    status, body, headers = get(lab, f"/videos/{identity('1')}", Range="bytes=10-19")
    assert status == 206 and body == path.read_bytes()[10:20] and headers["content-type"] == "video/mp4"
    path.write_bytes(path.read_bytes() + b"more")
    status, body, _ = get(lab, f"/videos/{identity('1')}")
    assert status == 404 and "is not the file that was registered" in json.loads(body)["problem"]
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert get(lab, f"/videos/{identity('1')}")[0] == 404
    # The rest of the page works.
    assert get(lab, "/sessions/sub-plain_ses-1")[0] == 200


def test_poses_come_in_stretches_and_extremes(looked_at: LookedAt):
    lab = looked_at
    points = lab.points["variable"]
    address = f"/poses/{identity('3')}"
    times = np.frombuffer(get(lab, f"{address}/times")[1])
    window = np.frombuffer(get(lab, f"{address}/window?first=100&last=140")[1], np.float32).reshape(3, 40, 3)
    assert (
        np.array_equal(window[..., :2], points[100:140].transpose(1, 0, 2))
        and (window[..., 2] == np.float32(0.9)).all()
    )
    extremes = np.frombuffer(get(lab, f"{address}/extremes?step=16")[1], np.float32).reshape(3, -1, 4, 2)
    own = points[16:32, 1]
    assert np.array_equal(extremes[1, 1, :2], np.stack([own.min(axis=0), own.max(axis=0)], axis=1))
    fast = speed(points[:, 1], times)[16:32]
    assert np.array_equal(extremes[1, 1, 3], [fast.min(), fast.max()])
    part = np.frombuffer(get(lab, f"{address}/extremes?step=16&keypoint=2&first=32&last=64")[1], np.float32)
    assert np.array_equal(part.reshape(2, 4, 2), extremes[2, 2:4])
    for wrong in ("window?first=x", "extremes?step=7", "extremes?step=16&keypoint=9", "extremes?step=16&keypoint=-1"):
        assert get(lab, f"{address}/{wrong}")[0] == 404
    assert set(STEPS) == {16, 256, 4096}


def test_unknown_keypoints_stay_unknown_in_extremes(looked_at: LookedAt):
    arrays = pose_arrays(looked_at.store, identity("1"))
    assert np.isnan(arrays.extremes(16)[:, 0, 3]).sum() == 0
    assert np.isnan(speed(np.array([[0, 0], [np.nan, 1], [3, 4], [6, 8]], np.float32), np.array([0.0, 1, 2, 2]))).all()


def test_pictures_are_drawn_once_and_may_be_removed(looked_at: LookedAt):
    lab = looked_at
    for name, kind in (("still.jpg", b"\xff\xd8"), ("strip.png", b"\x89PNG")):
        status, body, _ = get(lab, f"/pictures/{identity('5')}/{name}")
        assert status == 200 and body.startswith(kind)
    assert lab.store.trim_views(0) > 0
    assert not [path for path in (lab.home / "store" / "views").rglob("*") if path.is_file()]
    assert get(lab, f"/pictures/{identity('5')}/still.jpg")[0] == 200
    # What was looked at last is the last to go.
    newest = Path(lab.store.view("poses", identity("2"), lambda folder: (folder / "x").write_bytes(b"1" * 100)))
    lab.store.trim_views(100)
    assert [path.name for path in newest.iterdir()] == ["x"]
