"""Previews: a video again in a form that every browser plays and seeks in at once, with each frame in its place.

What browsers can play as it is needs none, which `plays_as_it_is` says. A preview has as many frames as the video has
rows, in their order and at their times; a row whose picture is lost is a grey one.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlc_platform.video.decode import Decoder, rotation, to_bgr

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

PREVIEW, TIMES = "preview.mp4", "times.f64"
#: Ticks of a second: what MP4 files of cameras use, and fine enough for any rate.
_TICKS = 90_000
#: A preview is no larger than that, in pixels; a keypoint of a larger picture is drawn where it belongs all the same.
_WIDTH, _HEIGHT = 1280, 960
#: Frames from one key frame to the next: a step back decodes half as many, which takes no time that is seen.
_GROUP = 12
_GREY = 96
#: What browsers play without a plug-in, by the names of FFmpeg: codec, with the formats of its pixels.
_PLAYED = {
    "h264": ("yuv420p", "yuvj420p"),
    "vp8": ("yuv420p",),
    "vp9": ("yuv420p",),
    "av1": ("yuv420p",),
}
_CONTAINERS = (".mp4", ".m4v", ".mov", ".webm")


def plays_as_it_is(path: Path, codec: str, pixel_format: str, turned: int, is_sound: bool) -> bool:
    """True when browsers show each row of a video, in the order and at the times that its poses have.

    Parameters
    ----------
    codec, pixel_format, turned
        As FFmpeg names them, and the degrees by which a player turns the picture.
    is_sound
        Nothing of it is lost or damaged, and its timestamps are those of its rows as they stand.
    """
    return is_sound and turned == 0 and path.suffix.lower() in _CONTAINERS and pixel_format in _PLAYED.get(codec, ())


def make_preview(
    path: Path, whole: bool, times_s: np.ndarray, folder: Path, on_progress: Callable[[int], object] = lambda done: None
) -> None:
    """Write a video's preview, and the times of its frames as the preview has them.

    Parameters
    ----------
    whole
        As `Decoder` takes it.
    times_s
        Seconds from the first row, shape (rows,); the preview has as many frames.
    on_progress
        Called with the number of frames that are done.

    Raises
    ------
    PlatformError
        When the video cannot be opened, or no longer gives these rows.
    """
    import av
    from av.video.reformatter import VideoReformatter

    ticks = np.round(np.asarray(times_s) * _TICKS).astype(np.int64)
    # Two frames at one time: a browser would show one of them only.
    ticks = np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))
    reformatter = VideoReformatter()
    with (
        Decoder(path, whole) as decoder,
        av.open(str(folder / PREVIEW), "w", options={"movflags": "faststart"}) as file,
    ):
        first = next((row.frame for row in decoder.pictures() if row.frame is not None), None)
        width, height = _size(first)
        stream = file.add_stream("libx264", rate=decoder.frame_rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
        stream.options = {"preset": "veryfast", "crf": "23", "bf": "0", "g": str(_GROUP), "tune": "fastdecode"}
        grey = _grey(width, height)
        done = 0
        for tick, row in zip(ticks.tolist(), decoder.pictures(), strict=False):
            shown = grey if row.frame is None else _shown(row.frame, reformatter, width, height)
            shown.pts, shown.time_base = tick, Fraction(1, _TICKS)
            file.mux(stream.encode(shown))
            done += 1
            if done % 100 == 0:
                on_progress(done)
        while done < len(ticks):  # what follows the last picture that can be decoded
            grey.pts, grey.time_base = int(ticks[done]), Fraction(1, _TICKS)
            file.mux(stream.encode(grey))
            done += 1
        file.mux(stream.encode(None))
    (ticks / _TICKS).tofile(folder / TIMES)


def _size(frame: "VideoFrame | None") -> tuple[int, int]:
    width, height = (frame.width, frame.height) if frame is not None else (_WIDTH, _HEIGHT)
    if frame is not None and rotation(frame) % 180:
        width, height = height, width
    scale = min(1.0, _WIDTH / width, _HEIGHT / height)
    # The colours of four pixels are stored together.
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _shown(frame: "VideoFrame", reformatter: "VideoReformatter", width: int, height: int) -> "VideoFrame":
    import av

    if rotation(frame):
        frame = av.VideoFrame.from_ndarray(to_bgr(frame, reformatter), format="bgr24")
    return reformatter.reformat(frame, width, height, "yuv420p")


def _grey(width: int, height: int) -> "VideoFrame":
    import av

    return av.VideoFrame.from_ndarray(np.full((height, width, 3), _GREY, np.uint8), format="bgr24").reformat(
        format="yuv420p"
    )
