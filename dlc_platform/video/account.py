"""The account of a video's frames: what was declared, what could be decoded, and what is missing.

It is made of what decoding gave, whoever decoded: `probe.py` when a video is registered, inference when it is tracked.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Timestamps are rounded to the time base, so that two equal intervals may differ by one tick.
_ROUNDING_TICKS = 1.5


@dataclass(frozen=True)
class FrameAccount:
    """What became of the frames of a video.

    Attributes
    ----------
    declared
        What the container's header says, None where it says nothing. It proves nothing.
    decoded
        Rows with a picture.
    lost
        Rows without one: their packets are in the file and cannot be decoded.
    damaged
        Pictures in which the decoder found errors and covered them up. Those that build on them count only where it
        finds errors in them too.
    truncated
        The file promises bytes beyond its end.
    missing_at_end
        Frames that the index of an MP4 file promises beyond the last row.
    holes
        Places of a Matroska or AVI file in which frames may have been that cannot be found. Streams without an index,
        such as raw H.264, have nothing that would tell.
    duplicated_timestamps
        Rows with the timestamp of a row before; None where a row has no timestamp.
    variable_frame_rate
        Some interval between two rows is further from the median one than the rounding to the time base explains: more
        than 1.5 of its ticks. None where a row has no timestamp.
    decoder
        The software that decoded, and its version.
    """

    declared: int | None
    decoded: int
    lost: int
    damaged: int
    truncated: bool
    missing_at_end: int
    holes: int
    duplicated_timestamps: int | None
    variable_frame_rate: bool | None
    decoder: str

    @property
    def whole(self) -> bool:
        """Every frame that the file holds or promises is there, without errors."""
        return not (self.lost or self.damaged or self.truncated or self.missing_at_end or self.holes)

    @property
    def damage(self) -> str | None:
        """What is missing, with the figures; None when the video is whole."""
        if self.whole:
            return None
        of_declared = f" of {self.declared}" if self.declared is not None else ""
        figures = [f"{self.decoded}{of_declared} frames can be decoded"]
        if self.damaged:
            figures.append(f"{self.damaged} of them with errors")
        if self.lost:
            figures.append(f"{self.lost} between them cannot")
        if self.missing_at_end:
            figures.append(f"{self.missing_at_end} more that the index promises are missing")
        if self.holes:
            places = "1 place that is" if self.holes == 1 else f"{self.holes} places that are"
            figures.append(f"frames may be missing in {places} overwritten")
        if self.truncated:
            figures.append("then the file ends")
        return f"{'truncated' if self.truncated else 'damaged'}: {', '.join(figures)}"

    def problem(self, path: Path) -> str | None:
        """A sentence that says what is wrong with the video of that path; None when it is whole."""
        return None if self.whole else f"{path} is {self.damage}"


def account_of(
    pts: np.ndarray,
    known: bool,
    lost: np.ndarray,
    damaged: np.ndarray,
    *,
    declared: int | None,
    indexed: int,
    truncated: bool,
    holes: int,
    decoder: str,
) -> FrameAccount:
    """The account of all rows of a video.

    Parameters
    ----------
    pts
        int64, shape (frames,), in units of the time base.
    known
        That each row has a timestamp.
    lost, damaged
        bool, shape (frames,).
    declared, indexed, truncated, holes, decoder
        What the `Decoder` says once it has given the last row.
    """
    intervals = np.diff(pts)
    return FrameAccount(
        declared=declared,
        decoded=len(pts) - int(np.count_nonzero(lost)),
        lost=int(np.count_nonzero(lost)),
        damaged=int(np.count_nonzero(damaged)),
        truncated=truncated,
        missing_at_end=max(0, indexed - len(pts)),
        holes=holes,
        duplicated_timestamps=len(pts) - len(np.unique(pts)) if known else None,
        variable_frame_rate=bool(len(intervals) and (np.abs(intervals - np.median(intervals)) > _ROUNDING_TICKS).any())
        if known
        else None,
        decoder=decoder,
    )
