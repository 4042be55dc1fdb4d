"""The page of one session: its video with the poses on it, what was found, what made it, and what to do."""

from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from dlc_platform.catalog.estimates import lineage_table
from dlc_platform.catalog.gallery import Wanted, estimates_of_video, neighbours_of, session_cards, session_files
from dlc_platform.catalog.quarantine import quarantine_table
from dlc_platform.catalog.verdicts import pose_scores
from dlc_platform.errors import PlatformError
from dlc_platform.estimates.odd_moments import moments_of
from dlc_platform.estimates.quality_gate import references
from dlc_platform.pose.findings import Finding
from dlc_platform.pose.scores import Keypoints
from dlc_platform.views.pictures import colours
from dlc_platform.views.pose_arrays import STEPS, pose_arrays
from dlc_platform.views.preview import plays_as_it_is
from dlc_platform.web.pages.look import page

#: Moments that are listed beside a video.
_MOST_MOMENTS = 200


def session(request: Request) -> HTMLResponse:
    lab = request.app.state.lab
    key = request.path_params["session"]
    files = session_files.rows(lab.engine, key)
    if not files:
        raise PlatformError(f"there is no session {key}", "Search for it above, or look at all sessions")
    shown = _shown(request, files)
    (card,) = session_cards.rows(lab.engine, Wanted(key=key), 1)
    findings = [Finding(**finding) for finding in shown["findings"] or ()]
    lineage = [row for row in lineage_table.rows(lab.engine, key) if row["pose_estimate"] == shown["pose_estimate"]]
    held = [row for row in quarantine_table.rows(lab.engine, True, 1000) if row["session"] == key]
    others = [] if shown["video"] is None else estimates_of_video.rows(lab.engine, shown["video"])
    return page(
        request,
        "session.html",
        key=key,
        state=card["state"],
        files=files,
        shown=shown,
        findings=sorted(findings, key=lambda found: found.level != "fail"),
        lineage=lineage[0] if lineage else None,
        held=held,
        others=[row for row in others if row["pose_estimate"] != shown["pose_estimate"]],
        neighbours=neighbours_of.rows(lab.engine, key)[0],
        data=_address(key, shown),
        name=Path(shown["path"]).name,
    )


def player(request: Request) -> JSONResponse:
    """The addresses, sizes and keypoints with which the player of a file begins."""
    lab = request.app.state.lab
    key = request.path_params["session"]
    files = session_files.rows(lab.engine, key)
    if not files:
        raise PlatformError(f"there is no session {key}", "Look at all sessions")
    shown = _shown(request, files)
    if shown["pose_estimate"] is None:
        raise PlatformError("this file has no poses", "Wait until it is tracked")
    arrays = pose_arrays(lab.store, shown["pose_estimate"])
    video, estimate = shown["video"], shown["pose_estimate"]
    plain = plays_as_it_is(
        Path(shown["path"]), shown["codec"], shown["pixel_format"], shown["rotation"], _is_sound(shown)
    )
    return JSONResponse(
        {
            "width": shown["width"],
            "height": shown["height"],
            "frames": arrays.frames,
            "video": f"/videos/{video}" if plain else None,
            "preview": f"/videos/{video}/preview.json",
            "previewVideo": f"/videos/{video}/preview.mp4",
            "previewTimes": f"/videos/{video}/preview-times",
            "times": f"/poses/{estimate}/times",
            "window": f"/poses/{estimate}/window",
            "extremes": f"/poses/{estimate}/extremes",
            "steps": STEPS,
            "moments": _address(key, shown).replace("/player.json", "/moments.json"),
            "keypoints": [
                {"individual": individual, "bodypart": bodypart, "colour": colour}
                for (individual, bodypart), colour in zip(arrays.keypoints, colours(arrays.keypoints), strict=True)
            ],
            "limbs": _limbs(lab, estimate, arrays.keypoints),
            "cutoff": lab.settings.likelihood_cutoff,
        }
    )


def moments(request: Request) -> JSONResponse:
    """The moments of a file that a person should look at."""
    lab = request.app.state.lab
    key = request.path_params["session"]
    shown = _shown(request, session_files.rows(lab.engine, key))
    if shown["pose_estimate"] is None:
        raise PlatformError("this file has no poses", "Wait until it is tracked")
    arrays = pose_arrays(lab.store, shown["pose_estimate"])
    rules = lab.settings.pose_rules
    poses = Keypoints.of_arrays(arrays.keypoints, arrays.poses)
    reference = references(lab.engine, lab.store, rules.models)
    found, more = moments_of(lab.engine, rules, key, shown["pose_estimate"], poses, reference, _MOST_MOMENTS)
    return JSONResponse({"moments": [asdict(moment) for moment in found], "more": more})


def _shown(request: Request, files: list[dict[str, Any]]) -> dict[str, Any]:
    """The file that is asked for; by default the first with poses, the worst ones first."""
    query = request.query_params
    own = [
        row
        for row in files
        if query.get("camera") in (None, row["camera"])
        and query.get("recording") in (None, row["recording"])
        and query.get("part") in (None, str(row["position"]))
    ]
    if not own:
        raise PlatformError("this session has no such file", "Choose one of its cameras")
    order = {"fail": 0, "warn": 1, "pass": 2}
    return min(own, key=lambda row: (row["pose_estimate"] is None, order.get(row["verdict"], 3)))


def _address(key: str, shown: dict[str, Any]) -> str:
    return (
        f"/sessions/{quote(key)}/player.json?recording={quote(shown['recording'])}&camera={quote(shown['camera'])}"
        f"&part={shown['position']}"
    )


def _is_sound(row: dict[str, Any]) -> bool:
    return (
        row["damage"] is None
        and not row["frames_left_out"]
        and not row["times_reordered"]
        and not row["times_estimated"]
        and not row["clock_resets"]
    )


def _limbs(lab: Any, estimate: str, keypoints: tuple[tuple[str, str], ...]) -> list[list[int]]:
    """The pairs of keypoints that were judged as limbs, by their numbers."""
    judged = {(score.individual, score.bodypart) for score in pose_scores(lab.engine, estimate)}
    return [
        [one, other]
        for one, (individual, bodypart) in enumerate(keypoints)
        for other, (another, other_part) in enumerate(keypoints)
        if individual == another and (individual, f"{bodypart} to {other_part}") in judged
    ]


routes = [
    Route("/sessions/{session}", session),
    Route("/sessions/{session}/player.json", player),
    Route("/sessions/{session}/moments.json", moments),
]
