"""Single pictures from a video, by exact frame number.

`probe.py` reads the whole video and finds its damage; code that needs all frames reads them through `decode.py`.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from dlc_platform.errors import PlatformError
from dlc_platform.video.decode import Decoder, to_bgr
from dlc_platform.video.rows import Picture


def read_frames(path: Path, indices: Sequence[int], whole: bool = True) -> list[np.ndarray]:
    """The frames of a video with these numbers, in the order asked for, as `find_frames` finds them.

    Raises
    ------
    PlatformError
        When the video cannot be opened, has no frame with such a number, or has lost it.
    """
    found = find_frames(path, indices, whole)
    missing = [str(number) for number in sorted(set(indices)) if number not in found]
    if missing:
        raise PlatformError(
            f"{path} has no frame {', '.join(missing)}",
            "If it has changed since it was registered, scan the sessions again",
        )
    return [found[index] for index in indices]


def find_frames(path: Path, indices: Sequence[int], whole: bool) -> dict[int, np.ndarray]:
    """Those of these frames of a video that exist and can be decoded.

    Parameters
    ----------
    indices
        Frame numbers in order of presentation, from 0, as `VideoInfo.frames` counts them.
    whole
        As `Decoder` takes it.

    Returns
    -------
    dict of uint8 arrays by frame number
        RGB, shape (height, width, 3), turned as the video is shown.

    Raises
    ------
    PlatformError
        When the video cannot be opened.
    """
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    pictures: dict[int, np.ndarray] = {}
    position = 0
    with Decoder(path, whole) as decoder:
        rows: Iterator[Picture] | None = None
        for number in sorted({index for index in indices if index >= 0}):
            if rows is None or decoder.begins_at(number) > position:
                rows, position = decoder.pictures(number), number
            row = next(islice(rows, number - position, None), None)
            position = number + 1
            if row is None:
                break
            if row.frame is not None:
                pictures[number] = np.ascontiguousarray(to_bgr(row.frame, reformatter)[:, :, ::-1])
    return pictures
