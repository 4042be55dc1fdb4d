"""The account of a video's frames: what was declared, what could be decoded, and what is missing.

It is made from the result of decoding: by `probe.py` when a video is registered, by inference when it is tracked.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlc_platform.text.words import counted
from dlc_platform.video.times import Clock, clock_of

#: Timestamps are rounded to the time base, so that two equal intervals may differ by one tick.
_ROUNDING_TICKS = 1.5


@dataclass(frozen=True)
class Decoded:
    """The result of decoding for each row of a video, all of shape (frames,).

    Attributes
    ----------
    pts, dts
        int64, in units of the time base, as for `times.clock_of`.
    lost, damaged
        bool, as `FrameAccount` counts them.
    """

    pts: np.ndarray
    dts: np.ndarray
    lost: np.ndarray
    damaged: np.ndarray


@dataclass(frozen=True)
class FrameAccount:
    """The account of the frames of a video.

    Attributes
    ----------
    declared
        The number of frames in the container's header; None if it has none. It proves nothing.
    decoded
        Rows with a picture.
    lost
        Rows without one: their packets are in the file and cannot be decoded.
    damaged
        Pictures in which the decoder found errors, and covered or left out the bad parts. Pictures that depend on them
        count only if the decoder finds errors in them too.
    truncated
        True if the file ends before its promised end.
    missing_at_end
        Frames that the index of an MP4 file promises beyond the last row.
    holes
        Places of a file in which bytes are wrong or missing, so that frames may have been there, by its index, its
        elements or its checksums. Formats without any of these, such as raw Motion JPEG, cannot show holes.
    duplicated_timestamps
        Rows with the time of an earlier row; None if the file has no timestamps.
    variable_frame_rate
        True if some interval between two rows differs from the median one by more than the rounding to the time base
        explains: more than 1.5 of its ticks. None if the file has no timestamps.
    decoder
        The software that decoded, and its version.
    left_out
        Packets at the beginning that give no row, because the pictures that they depend on are not in the file. This
        and the next three are None in accounts that are older than this count.
    times_reordered, times_estimated, clock_resets
        As `times.Clock` counts them.
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
    left_out: int | None = None
    times_reordered: int | None = None
    times_estimated: int | None = None
    clock_resets: int | None = None

    @property
    def whole(self) -> bool:
        """True if every frame that the file holds or promises can be decoded without errors."""
        return not (self.lost or self.damaged or self.truncated or self.missing_at_end or self.holes)

    @property
    def damage(self) -> str | None:
        """The missing frames, with the figures; None if the video is whole."""
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
            figures.append(f"frames may be missing in {counted(self.holes, 'place')} where bytes are wrong or missing")
        if self.truncated:
            figures.append("then the file ends")
        return f"{'truncated' if self.truncated else 'damaged'}: {', '.join(figures)}"

    def problem(self, path: Path) -> str | None:
        """A sentence about the damage of the video of that path; None if it is whole."""
        return None if self.whole else f"{path} is {self.damage}"


def account_of(
    rows: Decoded,
    *,
    declared: int | None,
    indexed: int,
    truncated: bool,
    holes: int,
    left_out: int,
    keeps_presentation_times: bool,
    decoder: str,
) -> tuple[FrameAccount, Clock]:
    """The account of all rows of a video, and the times at which they are shown.

    Parameters
    ----------
    declared, indexed, truncated, holes, left_out, keeps_presentation_times, decoder
        The answers of the `Decoder` after it has given the last row.
    """
    lost, damaged = int(np.count_nonzero(rows.lost)), int(np.count_nonzero(rows.damaged))
    missing_at_end = max(0, indexed - len(rows.pts))
    intact = not (lost or damaged or truncated or missing_at_end or holes)
    clock = clock_of(rows.pts, rows.dts, intact, keeps_presentation_times)
    intervals = np.diff(clock.ticks)
    account = FrameAccount(
        declared=declared,
        decoded=len(rows.pts) - lost,
        lost=lost,
        damaged=damaged,
        truncated=truncated,
        missing_at_end=missing_at_end,
        holes=holes,
        duplicated_timestamps=int(np.count_nonzero(intervals == 0)) if clock.known else None,
        variable_frame_rate=bool(len(intervals) and (np.abs(intervals - np.median(intervals)) > _ROUNDING_TICKS).any())
        if clock.known
        else None,
        decoder=decoder,
        left_out=left_out,
        times_reordered=clock.reordered,
        times_estimated=clock.estimated,
        clock_resets=clock.resets,
    )
    return account, clock
