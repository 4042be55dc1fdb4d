"""Checks of a session's videos: against lab.yaml, and against the earlier videos of the same camera.

The figures are those of the catalogue; `video/quality.py` measures them. A limit that a lab wrote down may fail and
hold a video in quarantine. A limit that follows from earlier videos or from defaults only warns.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, multimode
from typing import Any, Literal, get_args

from sqlalchemy import Engine

from dlc_platform.catalog.quarantine import Fault
from dlc_platform.catalog.videos import earlier_videos, repeated_videos
from dlc_platform.errors import command
from dlc_platform.identity import sha256_json
from dlc_platform.settings.quality import VideoLimits, VideoRules
from dlc_platform.text.words import counted, rounded
from dlc_platform.video.opening import COPY_AGAIN

#: The questions about each video of a session, in this order; asset checks have these names.
Question = Literal[
    "videos_can_be_read",
    "every_frame_is_there",
    "timestamps_are_regular",
    "neither_black_nor_frozen",
    "exposure_and_focus",
    "no_file_is_a_copy",
    "resolution_as_expected",
]
QUESTIONS: tuple[Question, ...] = get_args(Question)

#: The fewest earlier videos of a camera that show what is usual, and the most that are looked at.
FEWEST_EARLIER, MOST_EARLIER = 20, 200
#: The unusual distance from the median of earlier videos: in standard deviations, which the median absolute deviation
#: gives for a normal distribution, and the least distance: in grey levels, and as a factor of the focus.
_DEVIATIONS = 6 * 1.4826
_LEAST_EXPOSURE = 20.0
_LEAST_FOCUS = 2.0
#: The fraction of the earlier videos that must share a resolution before it counts as the usual one.
_USUAL = 0.8
#: A header may promise so many frames too many without a finding: an edit list hides some.
_HEADER_FRAMES, _HEADER_FRACTION = 2, 0.02
_RATE_TOLERANCE = 0.01

_WHAT = {"exposure": "a mean grey level", "focus": "a focus"}


def unreadable(problem: str) -> tuple[str, str]:
    """The fault and the remedy in the problem that the catalogue keeps of a file that cannot be read.

    Each comes without its full stop.
    """
    said, _, remedy = problem.rpartition(". ")
    return (said, remedy.rstrip(".")) if said else (problem.rstrip("."), COPY_AGAIN)


def release(session: str) -> str:
    """The advice how a person releases a session that is held up for its videos."""
    return f"release the session with {command('sessions', 'release', 'HOME', session)} to have it tracked as it is"


@dataclass(frozen=True)
class Finding:
    """A fact about one file that a person should know.

    Attributes
    ----------
    question
        The question that was asked.
    problem
        A sentence with the file and the figures.
    fails
        True for an error, false for a warning.
    holds
        True if the file must not be tracked.
    evidence
        A hash of the judged figures and of the limits.
    """

    question: Question
    path: str
    problem: str
    remedy: str
    fails: bool
    holds: bool
    evidence: str

    @property
    def fault(self) -> Fault:
        return Fault(self.problem, self.remedy, self.evidence, self.path)


def findings(rules: VideoRules, session: str, figures: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """The faults that lab.yaml and its defaults find in the files of a session.

    Parameters
    ----------
    figures
        As `catalog.videos.video_figures` gives them.
    """
    return [finding for row in figures for finding in _own(rules, session, row)]


def unusual(engine: Engine, rules: VideoRules, session: str, figures: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Differences from the earlier videos of the same camera, in figures for which lab.yaml has no limit."""
    found = []
    earlier: dict[str, list[Mapping[str, Any]]] = {}
    for row in figures:
        if row["video"] is not None:
            camera = row["camera"]
            if camera not in earlier:
                earlier[camera] = earlier_videos(engine, camera, session, MOST_EARLIER)
            found += _beside(rules.limits_for(camera), row, earlier[camera])
    return found


def copies(engine: Engine, session: str) -> list[Finding]:
    """The files of a session whose very video another file holds too."""
    return [
        Finding(
            "no_file_is_a_copy",
            row["path"],
            copy_of(row),
            "Remove the copies, unless the animal was recorded twice",
            False,
            False,
            sha256_json([row["video"], "copy"]),
        )
        for row in repeated_videos(engine, session).to_dict("records")
    ]


def copy_of(row: Mapping[Hashable, Any]) -> str:
    """A sentence about a row of `catalog.videos.repeated_videos`, for any number of copies."""
    more = f" and of {counted(row['files'] - 2, 'more file')}" if row["files"] > 2 else ""
    return (
        f"{row['path']} of {row['session']} is the very video of {row['other_path']} of {row['other_session']}{more}: "
        "its poses are estimated once and count for each"
    )


def _own(rules: VideoRules, session: str, row: Mapping[str, Any]) -> Iterator[Finding]:
    path, video = row["path"], row["video"]
    to_release = release(session)
    if video is None:
        evidence = sha256_json([path, row["size_bytes"], row["mtime_ns"], "unreadable"])
        problem, remedy = unreadable(row["problem"])
        remedy += ". Releasing the session does not make it readable"
        yield Finding("videos_can_be_read", path, problem, remedy, True, True, evidence)
        return
    if row["damage"] is not None:
        stops = rules.damaged == "stop"
        yield Finding(
            "every_frame_is_there",
            path,
            f"{path} is {row['damage']}",
            f"{COPY_AGAIN}, or write `damaged_videos: track` into lab.yaml to track what can be decoded, or "
            f"{to_release}",
            stops,
            stops,
            sha256_json([video, "damage"]),
        )
    if row["video_streams"] is not None and row["video_streams"] > 1:
        yield _warning(
            "videos_can_be_read",
            row,
            f"holds {row['video_streams']} video streams, of which the first one that moves, of {row['width']} x "
            f"{row['height']} pixels, is read",
            "If another one is the recording, write it to a file of its own, for example "
            "`ffmpeg -i OLD -map 0:v:1 -c copy NEW`",
        )
    if row["frames_left_out"]:
        yield _warning(
            "every_frame_is_there",
            row,
            left_out(row["frames_left_out"]),
            "Add them to a frame's number if a camera's triggers were counted. If the recording was copied in "
            "parts, copy all of it",
        )
    declared, frames = row["frames_declared"], row["frames"]
    if declared is not None and declared - frames > max(_HEADER_FRAMES, _HEADER_FRACTION * frames):
        yield _warning(
            "every_frame_is_there",
            row,
            f"has {counted(frames, 'frame')}, and its header promises {declared}",
            "Programs that believe the header wait for frames that never come; `ffmpeg -i OLD -c copy NEW` writes it "
            "anew",
        )
    if row["repeated"]:
        yield _warning(
            "timestamps_are_regular",
            row,
            f"has {counted(row['repeated'], 'frame')} with the time of an earlier frame",
            "Look at the recording program: it wrote frames twice, or at a wrong time",
        )
    if row["times_estimated"]:
        yield _warning(
            "timestamps_are_regular",
            row,
            f"has {counted(row['times_estimated'], 'frame')} whose timestamp is missing or wrong: these times are "
            "estimated "
            "in equal steps between those of other frames",
            "Look at the recording program, or at the disk if the file was copied",
        )
    if row["times_reordered"] and row["damage"]:
        yield _warning(
            "timestamps_are_regular",
            row,
            f"has {counted(row['times_reordered'], 'frame')} whose times had to be put in order, and is damaged: "
            "near the damage they may be some frames early or late",
            "Copy the file again from the recording machine; if it is damaged there too, leave out the frames near "
            "the damage",
        )
    if row["clock_resets"]:
        places = counted(row["clock_resets"], "place")
        yield _warning(
            "timestamps_are_regular",
            row,
            f"has a clock that begins again in {places}: how much time passed there is unknown, and "
            "the time of one frame is assumed",
            "If it was joined from several files, register these instead",
        )
    limits = rules.limits_for(row["camera"])
    for name, question, said in _broken(limits, row):
        fails = name in limits.failing
        yield Finding(
            question,
            path,
            f"{path} {said}",
            f"Look at the camera and at the recording. If that is as it should be, change `{name}` under "
            f"`video_quality` in lab.yaml, or {to_release}",
            fails,
            fails and limits.on_failure == "quarantine",
            sha256_json([video, name, getattr(limits, name)]),
        )


def left_out(frames: int) -> str:
    """The words for a file whose first packets, so many of them, give no frame."""
    return (
        f"begins with {counted(frames, 'frame that builds', 'frames that build')} on data that is not in the file and "
        "cannot be decoded: its frame 0 is not "
        "the first that was recorded"
    )


def _broken(limits: VideoLimits, row: Mapping[str, Any]) -> Iterator[tuple[str, Question, str]]:
    """The limits that a video does not keep, and its figure instead; an unknown figure keeps all limits."""
    size = (row["width"], row["height"])
    if limits.resolution is not None and size != limits.resolution:
        expected = f"{limits.resolution[0]} x {limits.resolution[1]}"
        yield "resolution", "resolution_as_expected", f"is {size[0]} x {size[1]} pixels, and {expected} is expected"
    rate = row["frames"] / row["duration_s"]
    if limits.frame_rate is not None and abs(rate / limits.frame_rate - 1) > _RATE_TOLERANCE:
        yield (
            "frame_rate",
            "timestamps_are_regular",
            f"has {rate:.4g} frames per second, and {limits.frame_rate:g} are expected",
        )
    if limits.constant_frame_rate and row["variable_frame_rate"]:
        yield (
            "constant_frame_rate",
            "timestamps_are_regular",
            "has a variable frame rate, and a constant one is expected",
        )
    if limits.jitter_ms is not None and row["jitter_ms"] is not None and row["jitter_ms"] > limits.jitter_ms:
        yield (
            "jitter_ms",
            "timestamps_are_regular",
            f"has intervals between frames that jitter by {rounded(row['jitter_ms'])} ms, and at most "
            f"{limits.jitter_ms:g} ms are expected",
        )
    for name, what in _WHAT.items():
        ends, value = getattr(limits, name), row[name]
        if ends is not None and value is not None and not ends[0] <= value <= ends[1]:
            yield name, "exposure_and_focus", f"has {what} of {value:.4g}, and {ends[0]:g} to {ends[1]:g} is expected"
    for name, what in (("black", "is black"), ("frozen", "does not change")):
        most = getattr(limits, f"{name}_seconds")
        if row["measured"] and row[f"{name}_s"] >= most:
            first, _, seconds = row[name][0]
            yield f"{name}_seconds", "neither_black_nor_frozen", f"{what} for {seconds:.1f} s from frame {first}"
    if row["dropped"] and row["dropped"] > limits.dropped_fraction * (row["dropped"] + row["frames"]):
        yield (
            "dropped_fraction",
            "timestamps_are_regular",
            f"lacks {counted(row['dropped'], 'frame')} between its {row['frames']}, in gaps of up to "
            f"{rounded(row['longest_gap_s'])} s",
        )


def _beside(limits: VideoLimits, row: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    if len(earlier) < FEWEST_EARLIER:
        return
    remedy = "Check if the camera was changed; you can write the right value under `video_quality` in lab.yaml"
    size = (row["width"], row["height"])
    sizes = [(other["width"], other["height"]) for other in earlier]
    usual = multimode(sizes)[0]
    if limits.resolution is None and size != usual and sizes.count(usual) >= _USUAL * len(sizes):
        said = f"is {size[0]} x {size[1]} pixels, and earlier videos of {row['camera']} are {usual[0]} x {usual[1]}"
        yield _warning("resolution_as_expected", row, said, remedy)
    # Focus depends on the size of the picture, and in factors.
    for name, of_size, scale, unscale, least in (
        ("exposure", False, float, float, _LEAST_EXPOSURE),
        ("focus", True, math.log, math.exp, math.log(_LEAST_FOCUS)),
    ):
        others = [
            other[name]
            for other in earlier
            if other[name] and (not of_size or (other["width"], other["height"]) == size)
        ]
        if getattr(limits, name) is not None or not row[name] or len(others) < FEWEST_EARLIER:
            continue
        low, high = _range([scale(value) for value in others], least)
        if not low <= scale(row[name]) <= high:
            yield _warning(
                "exposure_and_focus",
                row,
                f"has {_WHAT[name]} of {row[name]:.4g}, and earlier videos of {row['camera']} have "
                f"{unscale(low):.4g} to {unscale(high):.4g}",
                remedy,
            )


def _range(values: Sequence[float], least: float) -> tuple[float, float]:
    """The usual range: so many deviations around the median, and at least `least` to each side."""
    middle = median(values)
    reach = max(least, _DEVIATIONS * median(abs(value - middle) for value in values))
    return middle - reach, middle + reach


def _warning(question: Question, row: Mapping[str, Any], said: str, remedy: str) -> Finding:
    return Finding(
        question,
        row["path"],
        f"{row['path']} {said}",
        remedy,
        False,
        False,
        sha256_json([row["video"], question, said]),
    )
