"""Data for the scripts of a page: videos by stretches of bytes, poses as typed arrays, pictures.

Things are named by their identities, never by paths. Of the raw roots the registered videos are given out and nothing
else, each only while it is the file that was registered.
"""

import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from dlc_platform.catalog.gallery import file_of_estimate, file_of_video
from dlc_platform.errors import PlatformError
from dlc_platform.identity import is_identity
from dlc_platform.views.pictures import STILL, STRIP, pictures
from dlc_platform.views.pose_arrays import STEPS, PoseArrays, pose_arrays
from dlc_platform.views.preview import PREVIEW, TIMES
from dlc_platform.web.pages.previews import Making

#: Frames of poses that one answer holds at most: half a megabyte for twenty keypoints.
_MOST_FRAMES = 4096
#: Pictures are drawn by so many at a time: each decodes a part of a video.
_DRAWING = threading.BoundedSemaphore(2)
#: What is named by its content never changes.
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
_TYPES = {".webm": "video/webm", ".mov": "video/mp4"}


def _identity(request: Request, name: str) -> str:
    value = request.path_params[name]
    if not is_identity(value):
        raise PlatformError(f"{value!r} is no identity", "Go there from the page of a session")
    return value


def registered_file(row: Any) -> Path:
    """The path of a registered file, if it is still the file that was registered.

    Raises
    ------
    PlatformError
        When it is gone, or another one.
    """
    path = Path(row["path"])
    try:
        state = path.stat()
    except OSError as error:
        raise PlatformError(f"{path} cannot be read: {error.strerror}", "Look after its disk") from error
    if not stat.S_ISREG(state.st_mode) or (state.st_size, state.st_mtime_ns) != (row["size_bytes"], row["mtime_ns"]):
        raise PlatformError(
            f"{path} is not the file that was registered", "Wait until the lab has looked at it again, or put it back"
        )
    return path


def _one(rows: list[dict[str, Any]], what: str) -> dict[str, Any]:
    if not rows:
        raise PlatformError(f"no file of the lab holds {what}", "It was replaced or removed since it was tracked")
    return rows[0]


def video(request: Request) -> Response:
    identity = _identity(request, "video")
    path = registered_file(_one(file_of_video.rows(request.app.state.lab.engine, identity), "this video"))
    kind = _TYPES.get(path.suffix.lower(), "video/mp4")
    return FileResponse(path, media_type=kind, headers={"Cache-Control": "private, no-cache"})


def preview(request: Request) -> Response:
    folder = request.app.state.previews.folder(_identity(request, "video"))
    return FileResponse(folder / PREVIEW, media_type="video/mp4", headers=_FOR_EVER)


def preview_state(request: Request) -> Response:
    """The state of a video's preview; the first who asks sets it going."""
    making: Making = request.app.state.previews.ask(_identity(request, "video"))
    return JSONResponse({"state": making.state, "done": making.done, "frames": making.frames, "says": making.says})


def preview_times(request: Request) -> Response:
    folder = request.app.state.previews.folder(_identity(request, "video"))
    return _binary((folder / TIMES).read_bytes(), _FOR_EVER)


def _arrays(request: Request) -> PoseArrays:
    return pose_arrays(request.app.state.lab.store, _identity(request, "estimate"))


def pose_about(request: Request) -> Response:
    """The number of frames, and the keypoints in the order of the other answers."""
    arrays = _arrays(request)
    return JSONResponse({"frames": arrays.frames, "keypoints": arrays.keypoints}, headers=_FOR_EVER)


def pose_times(request: Request) -> Response:
    return _binary(_arrays(request).times_s.tobytes(), _FOR_EVER)


def pose_window(request: Request) -> Response:
    """x, y and likelihood of a stretch of frames, float32, keypoint by keypoint."""
    arrays = _arrays(request)
    first, last = _range(request, arrays.frames)
    if last - first > _MOST_FRAMES:
        raise PlatformError(f"{last - first} frames are too many at a time", f"Ask for {_MOST_FRAMES} at most")
    return _binary(np.ascontiguousarray(arrays.poses[:, first:last]).tobytes(), _FOR_EVER)


def pose_extremes(request: Request) -> Response:
    """The smallest and largest values over steps of so many frames, float32; of one keypoint or of all."""
    arrays = _arrays(request)
    step = _number(request, "step", 0)
    if step not in STEPS:
        raise PlatformError(f"there are no steps of {step} frames", f"Choose among {', '.join(map(str, STEPS))}")
    values = arrays.extremes(step)
    if (keypoint := request.query_params.get("keypoint")) is not None:
        number = _number(request, "keypoint", 0)
        if not 0 <= number < len(values):
            raise PlatformError(f"there is no keypoint {keypoint}", "Count from 0")
        values = values[number]
    first, last = _range(request, arrays.frames)
    part = values[..., first // step : -(-last // step), :, :]
    if part.nbytes > 64_000_000:
        raise PlatformError("this is too much at a time", "Ask for longer steps, or for a shorter stretch")
    return _binary(np.ascontiguousarray(part).tobytes(), _FOR_EVER)


def picture(request: Request) -> Response:
    lab = request.app.state.lab
    estimate = _identity(request, "estimate")
    name = request.path_params["name"]
    if name not in (STILL, STRIP):
        raise PlatformError(f"there is no picture {name}", f"Ask for {STILL} or {STRIP}")
    row = _one(file_of_estimate.rows(lab.engine, estimate), "the video of these poses")
    with _DRAWING:
        folder = pictures(lab.store, estimate, registered_file(row), row["whole"], lab.settings.likelihood_cutoff)
    return FileResponse(folder / name, headers={"Cache-Control": "private, max-age=3600"})


def _binary(content: bytes, headers: dict[str, str]) -> Response:
    return Response(content, media_type="application/octet-stream", headers=headers)


def _number(request: Request, name: str, otherwise: int) -> int:
    try:
        return int(request.query_params.get(name, otherwise))
    except ValueError:
        raise PlatformError(f"{name} is no number", "Ask as the pages of the lab do") from None


def _range(request: Request, frames: int) -> tuple[int, int]:
    first = min(max(_number(request, "first", 0), 0), frames)
    return first, min(max(_number(request, "last", frames), first), frames)


routes = [
    Route("/videos/{video}", video),
    Route("/videos/{video}/preview.mp4", preview),
    Route("/videos/{video}/preview.json", preview_state),
    Route("/videos/{video}/preview-times", preview_times),
    Route("/poses/{estimate}/about.json", pose_about),
    Route("/poses/{estimate}/times", pose_times),
    Route("/poses/{estimate}/window", pose_window),
    Route("/poses/{estimate}/extremes", pose_extremes),
    Route("/pictures/{estimate}/{name:str}", picture),
]
