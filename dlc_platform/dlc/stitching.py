"""Pieces of tracks become the tracks of a video's individuals.

Long pieces follow each other by the rule of DeepLabCut's ``TrackletStitcher``: as many tracks as individuals, with the
shortest jumps. That class is not called, because it mixes poses up. It adds a short piece to another track than the
chosen one, or to the only free one, however far. It removes other short pieces than those that it joined. It counts
invisible keypoints as if they lay in the corner of the picture. If an animal is missing, it uses a rule whose result
differs from run to run.

Here a piece holds the numbers of detections, so that a track has nothing but detections, each of them once; a short
piece is only added where an animal could have gone; and the same pieces always give the same tracks.

This module works on plain arrays; `tracking` makes the pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: As in DeepLabCut: a piece of fewer frames does not decide where tracks go, but is added to them at the end.
LONG = 10
#: As in DeepLabCut: short pieces with fewer frames between them are joined first.
_NEAR = 5


@dataclass(frozen=True, eq=False)
class Piece:
    """Detections of one animal, in the order of time.

    Attributes
    ----------
    frames, detections
        Whole numbers, shape (n,): the frames, each at most once, and the number of the detection in the frame.
    """

    frames: np.ndarray
    detections: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def first(self) -> int:
        """Its first frame."""
        return int(self.frames[0])

    @property
    def last(self) -> int:
        """Its last frame."""
        return int(self.frames[-1])

    def split(self) -> list[Piece]:
        """The same detections in pieces without gaps."""
        gaps = np.flatnonzero(np.diff(self.frames) != 1) + 1
        parts = zip(np.split(self.frames, gaps), np.split(self.detections, gaps), strict=True)
        return [Piece(frames, detections) for frames, detections in parts]


def stitch(pieces: list[Piece], poses: np.ndarray, individuals: int) -> np.ndarray:
    """Join pieces to one track for each individual.

    Parameters
    ----------
    pieces
        May have gaps. No detection is in two of them.
    poses
        Shape (frames, detections, bodyparts, 4): x and y, NaN where the keypoint is not visible, the likelihood, and
        the number of the individual that the keypoint looks like, or -1.

    Returns
    -------
    array
        Whole numbers, shape (individuals, frames): the detection that is the pose of the individual, -1 for none. A
        track belongs to the individual that it looks like, if the network tells. Without any piece of `LONG` frames (of
        all frames, in a shorter video), there is no track at all.
    """
    looks = _Looks(poses)
    whole = [part for piece in pieces for part in piece.split()]
    enough = min(LONG, len(poses))
    long = sorted((piece for piece in whole if len(piece) >= enough), key=lambda piece: piece.first)
    chains = _chains(long, min(individuals, len(long)), looks) if long else []
    tracks = np.full((len(chains), len(poses)), -1)
    for track, chain in zip(tracks, chains, strict=True):
        for number in chain:
            track[long[number].frames] = long[number].detections
    if chains:
        pace = looks.pace(long)
        short = _join([piece for piece in whole if len(piece) < enough], looks, pace)
        _add([piece for piece in short if len(piece) > 1], tracks, looks, pace)
    placed = np.full((individuals, len(poses)), -1)
    placed[looks.places(tracks, individuals)] = tracks
    return placed


class _Looks:
    """The places of detections, and the individuals that they look like."""

    def __init__(self, poses: np.ndarray):
        visible = np.asarray(np.isfinite(poses[..., :2]).all(axis=-1))
        weights = np.where(visible, poses[..., 2] + 1e-10, 0)
        with np.errstate(invalid="ignore"):
            middles = (weights[..., None] * np.where(visible[..., None], poses[..., :2], 0)).sum(axis=-2)
            #: Shape (frames, detections, 2): the mean of the visible keypoints, by likelihood.
            self.middles = middles / weights.sum(axis=-1)[..., None]
        self._likeness = np.where(visible, poses[..., 3], -1)
        self._tells = bool((self._likeness >= 0).any())

    def distance(self, one: Piece, other: Piece) -> float:
        """The distance in pixels from the end of a piece to the beginning of a later one."""
        ends = self.middles[one.last, one.detections[-1]], self.middles[other.first, other.detections[0]]
        return float(np.linalg.norm(ends[0] - ends[1]))

    def pace(self, pieces: list[Piece]) -> float:
        """The largest move of a detection from one frame to the next, in some pieces without gaps, in pixels."""
        ways = [self.middles[piece.frames, piece.detections] for piece in pieces]
        return max(float(np.linalg.norm(np.diff(way, axis=0), axis=1).max(initial=0)) for way in ways)

    def votes(self, frames: np.ndarray, detections: np.ndarray, individuals: int) -> np.ndarray:
        """The number of keypoints, in some detections, that look like each individual."""
        likeness = self._likeness[frames, detections].ravel()
        return np.bincount(likeness[likeness >= 0].astype(int), minlength=individuals)

    def costs(self, one: Piece, others: list[Piece]) -> np.ndarray:
        """The costs of joining a piece to each of some later ones; pieces that look like the same individual belong
        together."""
        begin = np.array([self.middles[other.first, other.detections[0]] for other in others])
        costs = np.linalg.norm(begin - self.middles[one.last, one.detections[-1]], axis=1)
        if self._tells:
            costs *= np.where([self._is_same(one, other) for other in others], 0.01, 1)
        return costs

    def _is_same(self, one: Piece, other: Piece) -> bool:
        first, second = (self.votes(piece.frames, piece.detections, 1) for piece in (one, other))
        return bool(first.any() and second.any() and first.argmax() == second.argmax())

    def places(self, tracks: np.ndarray, individuals: int) -> np.ndarray:
        """The individual of each track: the one that it looks like, else one after the other."""
        if not self._tells:
            return np.arange(len(tracks))
        from scipy.optimize import linear_sum_assignment

        own = [np.flatnonzero(track >= 0) for track in tracks]
        votes = [self.votes(frames, track[frames], individuals) for frames, track in zip(own, tracks, strict=True)]
        return linear_sum_assignment(np.stack(votes), maximize=True)[1] if votes else np.arange(0)


def _chains(pieces: list[Piece], tracks: int, looks: _Looks) -> list[list[int]]:
    """The numbers of pieces that follow each other in each track; every piece is in one.

    The sum of the jumps is the smallest among all solutions with short gaps: at most one and a half times the longest
    inevitable gap. If no such solution has so few tracks, gaps of any length are allowed.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    number = len(pieces)
    starts = np.array([piece.first for piece in pieces])
    following = np.searchsorted(starts, [piece.last for piece in pieces], side="right")
    gaps = [starts[after] - piece.last for after, piece in zip(following, pieces, strict=True) if after < number]
    # Each piece has one before it, or a beginning, and one after it, or an end.
    every, ends = np.arange(number), np.arange(number, number + tracks)
    edges = [(np.repeat(every, tracks), np.tile(ends, number)), (np.tile(ends, number), np.repeat(every, tracks))]

    def way(longest: int) -> dict[int, int]:
        rows, columns = (list(side) for side in zip(*edges, strict=True))
        costs = [np.zeros(number * tracks)] * 2
        for one, piece in enumerate(pieces):
            others = np.arange(following[one], np.searchsorted(starts, piece.last + longest, side="right"))
            if len(others):
                rows.append(np.full(len(others), one))
                columns.append(others)
                costs.append((100 * looks.costs(piece, pieces[others[0] : others[-1] + 1])).astype(int))
        # Equal costs are added, because a sparse matrix has no zeros.
        graph = csr_array((np.concatenate(costs) + 1.0, (np.concatenate(rows), np.concatenate(columns))))
        return dict(zip(*min_weight_full_bipartite_matching(graph), strict=True))

    try:
        next_of = way(max(1, int(1.5 * max(gaps, default=0))))
    except ValueError:
        # Now there is a solution: no frame has more detections than there are tracks.
        next_of = way(int(starts[-1]) + 1)
    chains = []
    for begin in sorted(next_of[number + begin] for begin in range(tracks)):
        chain = [begin]
        while (after := next_of[chain[-1]]) < number:
            chain.append(after)
        chains.append([int(piece) for piece in chain])
    return chains


def _join(pieces: list[Piece], looks: _Looks, pace: float) -> list[Piece]:
    """Short pieces, joined where one ends shortly before another begins: the nearest ones first."""
    pieces = sorted(pieces, key=lambda piece: piece.first)
    starts = np.array([piece.first for piece in pieces])
    links = []
    for one, piece in enumerate(pieces):
        for other in range(*np.searchsorted(starts, [piece.last + 1, piece.last + _NEAR])):
            distance = looks.distance(piece, pieces[other])
            if distance <= pace * (pieces[other].first - piece.last):
                links.append((distance, one, other))
    after: dict[int, int] = {}
    has_one_before: set[int] = set()
    for _, one, other in sorted(links):
        if one not in after and other not in has_one_before:
            after[one] = other
            has_one_before.add(other)
    joined = []
    for number in range(len(pieces)):
        if number in has_one_before:
            continue
        chain = [number]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        own = [pieces[link] for link in chain]
        frames = np.concatenate([piece.frames for piece in own])
        joined.append(Piece(frames, np.concatenate([piece.detections for piece in own])))
    return joined


def _add(pieces: list[Piece], tracks: np.ndarray, looks: _Looks, pace: float) -> None:
    """Add short pieces to the nearest tracks, in place, if these have no pose at the time."""
    rest = sorted(pieces, key=len, reverse=True)
    before = None
    while before != len(rest):
        before = len(rest)
        left = []
        for piece in rest:
            ways = [_way(piece, track, looks, pace) for track in tracks]
            nearest = tracks[int(np.argmin(ways))]
            if np.isfinite(min(ways)) and (nearest[piece.frames] == -1).all():
                nearest[piece.frames] = piece.detections
            else:
                left.append(piece)
        rest = left


def _way(piece: Piece, track: np.ndarray, looks: _Looks, pace: float) -> float:
    """The distance in pixels from a piece to the pose of a track that is nearest in time; infinite if that is too
    far."""
    own = np.flatnonzero(track >= 0)
    ways = []
    earlier, later = np.searchsorted(own, piece.first), np.searchsorted(own, piece.last, side="right")
    for end, at in ((0, earlier - 1), (-1, later)):
        if 0 <= at < len(own):
            middle = looks.middles[piece.frames[end], piece.detections[end]]
            distance = float(np.linalg.norm(looks.middles[own[at], track[own[at]]] - middle))
            gap = abs(int(own[at] - piece.frames[end]))
            if distance > pace * gap:
                return np.inf
            ways.append((gap, distance))
    return min(ways)[1] if ways else np.inf
