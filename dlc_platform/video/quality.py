"""The quality of a video's pictures and timestamps, measured while it is decoded: exposure, focus, stillness, gaps.

These are figures, not verdicts: the lab, or the camera's earlier videos, decide what is too dark or too blurred.
`account.py` counts the frames that exist.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlc_platform.video.times import Clock

if TYPE_CHECKING:
    from av import VideoFrame

#: Changes and black are searched in every fourth line: encoders change blocks of at least four lines.
_LINES = 4
#: The most lines and columns, about, of the grid on which exposure and the size of changes are measured.
_GRID = 48
#: Focus and clipping are measured in every sixteenth picture, focus in so many lines: they change slowly.
_EVERY = 16
_FOCUS_LINES = 24

#: A picture is black when no more than this fraction of it is brighter than a tenth of the range: the tenth is that of
#: FFmpeg's `blackdetect`, whose 2 %, however, can be a whole animal that is lit in the dark.
_NOT_BLACK = 0.0002
_BLACK_LEVEL = 25.5
#: Grey levels at which a pixel counts as clipped.
_DARK, _BRIGHT = 5, 250

#: The most grey levels by which pixels of a still picture may differ. Encoders leave out the faint noise of a scene at
#: rest, but then within few frames one pixel of the whole picture changes by more.
_STILL = 2
#: After a key frame an encoder refines its picture in so many rows at most, by less than this many grey levels.
_REFINED_ROWS, _REFINED = 2, 0.5
_SHORTEST_S = 0.5
_SHORTEST_FROZEN = 10
_MOST_STRETCHES = 20

#: The largest distance of a gap from a whole number of intervals, in intervals, if its dropped frames are counted.
_NEAR = 0.25
#: One wrong timestamp may give any number, and an integer column holds no more than this.
_MOST_DROPPED = 2**31 - 1
#: The fraction of the intervals that must be near the median one; else dropped frames cannot be counted.
_REGULAR = 0.5


class Stretch(NamedTuple):
    """Rows that follow each other: the number of the first row, the number of rows, and their seconds."""

    first_frame: int
    frames: int
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """Figures by row, each of shape (frames,), float32; NaN if a row has no picture or was not measured.

    Attributes
    ----------
    exposure
        Mean grey level, 0 to 255.
    change
        Mean absolute difference from the previous picture, in grey levels.
    focus
        As in `VideoQuality`.
    """

    exposure: np.ndarray
    change: np.ndarray
    focus: np.ndarray


@dataclass(frozen=True)
class VideoQuality:
    """The figures of a video; None if they could not be measured.

    Grey levels are those of the luma, from 0 for black to 255 for white whatever range the file stores.

    Attributes
    ----------
    exposure
        Mean grey level of all pictures.
    fraction_dark, fraction_bright
        The fraction of pixels of at most 5, and of at least 250: nothing can be seen in them.
    focus
        Variance of the Laplacian, the median of the pictures measured; it falls with blur, and rises with noise and
        texture, so that only videos of one camera compare. After Pech-Pacheco et al., "Diatom autofocusing in
        brightfield microscopy: a comparative study", ICPR 2000.
    black
        Stretches of at least 0.5 s in which nothing is brighter than a tenth of the range, the longest first.
    frozen
        Stretches of at least 0.5 s and 10 rows in which no pixel changes by more than 2 grey levels from row to row,
        except at a key frame that repeats the previous one.
    dropped
        Frames that are missing in gaps of about 2, 3 or more median intervals; None also if the intervals vary too
        much.
    longest_gap_s
        The longest interval between two rows, in seconds.
    jitter_ms
        Standard deviation of the intervals that are neither gaps nor zero. Rounding to the time base is part of it:
        up to 0.5 ms in Matroska.
    timeline
        The figures of each row.
    """

    exposure: float | None
    fraction_dark: float | None
    fraction_bright: float | None
    focus: float | None
    black: tuple[Stretch, ...]
    frozen: tuple[Stretch, ...]
    dropped: int | None
    longest_gap_s: float | None
    jitter_ms: float | None
    timeline: Timeline = field(repr=False, compare=False)

    @property
    def black_s(self) -> float:
        """The length of the longest black stretch, in seconds."""
        return _longest(self.black)

    @property
    def frozen_s(self) -> float:
        """The length of the longest frozen stretch, in seconds."""
        return _longest(self.frozen)


class QualityMeter:
    """Measures the rows of one video as they are decoded: `add` each of them, then ask for the `quality`."""

    def __init__(self) -> None:
        self._exposure, self._change, self._focus = array("f"), array("f"), array("f")
        self._black, self._still = bytearray(), bytearray()
        self._clipped: list[tuple[float, float]] = []
        self._gray = _Gray()
        self._last: _Luma | None = None
        self._last_key: _Luma | None = None
        self._refining = 0

    def add(self, frame: "VideoFrame | None") -> None:
        """Measure the next row; None if its picture is lost."""
        luma = self._gray.of(frame) if frame is not None else None
        if frame is None or luma is None:
            self._exposure.append(np.nan)
            self._change.append(np.nan)
            self._focus.append(np.nan)
            self._black.append(False)
            self._still.append(False)
            return
        grid = _grid(luma.lines)
        exposure = luma.level(float(grid.mean()))
        if len(self._exposure) % _EVERY == 0:
            self._clipped.append((_fraction(grid <= luma.stored(_DARK)), _fraction(grid >= luma.stored(_BRIGHT))))
            self._focus.append(_focus(luma) * luma.scale**2)
        else:
            self._focus.append(np.nan)
        self._exposure.append(exposure)
        self._black.append(exposure <= 2 * _BLACK_LEVEL and _is_black(luma))
        change, most = _difference(luma, self._last)
        self._change.append(change * luma.scale)
        self._still.append(self._is_still(luma, bool(frame.key_frame), change, most))
        self._last = luma._replace(pixels=luma.lines)
        if frame.key_frame:
            self._last_key = self._last

    def _is_still(self, luma: "_Luma", is_key: bool, change: float, most: float) -> bool:
        """True if a row shows the previous picture again, as an encoder writes it.

        A key frame is coded anew, and so differs from the previous row although the scene does not. Then the previous
        key frame is compared, which was coded in the same way.
        """
        if is_key and self._last_key is not self._last and _difference(luma, self._last_key)[1] <= _STILL:
            self._refining = _REFINED_ROWS
            return True
        is_refined = self._refining > 0 and change <= _REFINED
        self._refining = max(0, self._refining - 1)
        return most <= _STILL or is_refined

    def quality(self, clock: Clock, time_base: Fraction | None, ends_s: np.ndarray) -> VideoQuality:
        """The figures of the rows that were added.

        Parameters
        ----------
        time_base
            The time base of the clock's ticks, in seconds.
        ends_s
            The time at which each row is shown, in seconds from the first, and the end of the last row; shape
            (frames + 1,).
        """
        exposure, change, focus = (
            np.array(values, np.float32) for values in (self._exposure, self._change, self._focus)
        )
        dark, bright = np.mean(self._clipped, axis=0).tolist() if self._clipped else (None, None)
        intervals = _intervals(clock.ticks, time_base if clock.known else None)
        # A still row repeats the previous one, which belongs to the stretch.
        still = np.frombuffer(self._still, np.bool_)
        frozen = still | np.append(still[1:], False) if len(still) else still
        return VideoQuality(
            exposure=_mean(exposure),
            fraction_dark=dark,
            fraction_bright=bright,
            focus=float(np.nanmedian(focus)) if np.isfinite(focus).any() else None,
            black=_stretches(np.frombuffer(self._black, np.bool_), ends_s, 1),
            frozen=_stretches(frozen, ends_s, _SHORTEST_FROZEN),
            dropped=intervals.dropped,
            longest_gap_s=intervals.longest_gap_s,
            jitter_ms=intervals.jitter_ms,
            timeline=Timeline(exposure, change, focus),
        )


class _Luma(NamedTuple):
    """The grey levels of a picture as they are stored, in 8 bits from `shift` on.

    `pixels` has shape (height, width) and as many bits as the file, `lines` is every fourth line of it as uint8. Black
    is stored as `black`, and `scale` turns steps of what is stored into grey levels.
    """

    pixels: np.ndarray
    shift: int
    lines: np.ndarray
    black: int
    scale: float

    def level(self, stored: float) -> float:
        return (stored - self.black) * self.scale

    def stored(self, level: float) -> int:
        # A whole number: compared with any other, numpy would make floats of all pixels.
        return int(level / self.scale + self.black)


class _Gray:
    """Takes the luma of pictures: the first plane if it holds only luma, else swscale's conversion."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._bits: dict[str, int | None] = {}

    def of(self, frame: "VideoFrame") -> _Luma | None:
        from av.error import FFmpegError
        from av.video.reformatter import ColorRange

        name = frame.format.name
        if name not in self._bits:
            self._bits[name] = _luma_bits(frame)
        bits = self._bits[name]
        is_limited = (
            name.startswith(("yuv", "nv")) and not name.startswith("yuvj") and frame.color_range != ColorRange.JPEG
        )
        if bits is None or frame.planes[0].line_size < 0:
            try:
                frame = self._reformatter.reformat(frame, format="gray")
            except (ValueError, FFmpegError):
                return None
            bits, is_limited = 8, False
        plane = frame.planes[0]
        size = 1 if bits == 8 else 2
        pixels = np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else "<u2")
        pixels = pixels.reshape(-1, plane.line_size // size)[: frame.height, : frame.width]
        # A copy: it is contiguous, so that work on it is quick, and it releases the frame.
        lines = (pixels[::_LINES] >> (bits - 8)).astype(np.uint8) if bits > 8 else pixels[::_LINES].copy()
        black, scale = (16, 255 / 219) if is_limited else (0, 1.0)
        return _Luma(pixels, bits - 8, lines, black, scale)


def _luma_bits(frame: "VideoFrame") -> int | None:
    """The bits of the luma, if the first plane of a picture holds only luma; else None."""
    name, layout = frame.format.name, frame.format
    first, *others = layout.components
    is_plain = name.startswith(("yuv", "nv", "gray")) and not layout.has_palette and not layout.is_big_endian
    if not is_plain or any(other.plane == first.plane for other in others) or not 8 <= first.bits <= 16:
        return None
    # Half-planar formats of more than 8 bits keep them at the upper end.
    return None if name.startswith("nv") and first.bits > 8 else first.bits


def _difference(luma: _Luma, other: _Luma | None) -> tuple[float, float]:
    """The mean and the largest absolute difference of two pictures; NaN and infinity if there is only one."""
    if other is None or other.lines.shape != luma.lines.shape or other.black != luma.black:
        return float("nan"), float("inf")
    difference = np.maximum(luma.lines, other.lines)
    difference -= np.minimum(luma.lines, other.lines)
    return float(_grid(difference).mean()), float(difference.max())


def _grid(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape
    return pixels[:: height // _GRID + 1, :: width // _GRID + 1]


def _is_black(luma: _Luma) -> bool:
    return _fraction(luma.lines > luma.stored(_BLACK_LEVEL)) <= _NOT_BLACK


def _fraction(mask: np.ndarray) -> float:
    return int(np.count_nonzero(mask)) / mask.size


def _focus(luma: _Luma) -> float:
    """The variance of the Laplacian in some lines; NaN for pictures of fewer than three lines or columns."""
    height, width = luma.pixels.shape
    if min(height, width) < 3:
        return float("nan")
    middle = np.arange(1, height - 1, (height - 2) // _FOCUS_LINES + 1)
    above, at, below = ((luma.pixels[middle + offset] >> luma.shift).astype(np.int16) for offset in (-1, 0, 1))
    laplacian = 4 * at[:, 1:-1] - at[:, :-2] - at[:, 2:] - above[:, 1:-1] - below[:, 1:-1]
    return float(laplacian.var())


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values, dtype=np.float64)) if np.isfinite(values).any() else None


def _longest(stretches: Iterable[Stretch]) -> float:
    return max((stretch.seconds for stretch in stretches), default=0.0)


def _stretches(flags: np.ndarray, ends_s: np.ndarray, fewest: int) -> tuple[Stretch, ...]:
    """The stretches of rows with a flag, the longest first."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    found = [
        Stretch(int(start), int(end - start), float(ends_s[end] - ends_s[start]))
        for start, end in zip(edges[::2], edges[1::2], strict=True)
        if end - start >= fewest and ends_s[end] - ends_s[start] >= _SHORTEST_S
    ]
    return tuple(sorted(found, key=lambda stretch: -stretch.seconds)[:_MOST_STRETCHES])


class _Intervals(NamedTuple):
    dropped: int | None = None
    longest_gap_s: float | None = None
    jitter_ms: float | None = None


def _intervals(ticks: np.ndarray, time_base: Fraction | None) -> _Intervals:
    """The figures of the intervals between the rows; empty without timestamps, and for a single row."""
    intervals = np.diff(ticks)
    usual = float(np.median(intervals)) if len(intervals) else 0.0
    if time_base is None or usual <= 0:
        return _Intervals()
    in_usual = intervals / usual
    # One tick more or less is rounding.
    near = max(_NEAR, 1.5 / usual)
    steps = np.rint(in_usual)
    is_regular = bool(np.mean(np.abs(in_usual - 1) <= near) >= _REGULAR)
    is_gap = is_regular & (steps >= 2) & (np.abs(in_usual - steps) <= near)
    others = intervals[~is_gap & (intervals > 0)]
    return _Intervals(
        dropped=min(int((steps[is_gap] - 1).sum()), _MOST_DROPPED) if is_regular else None,
        longest_gap_s=float(intervals.max() * float(time_base)),
        jitter_ms=float(others.std() * float(time_base) * 1000) if len(others) else 0.0,
    )
