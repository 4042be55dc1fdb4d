"""Rendered videos of a mouse seen from above, with the exact position of its body parts.

Everything here follows from a seed: the motion of the mouse, the look of the session, and the noise of each frame.
`dlc_platform.demo.lab` decides where the videos lie and what is labelled.

Coordinates are those of DeepLabCut's label tables: pixels, x to the right and y down, the centre of the upper left
pixel at (0, 0). Angles are in radians from the x axis towards the y axis, so clockwise on the screen.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BODYPARTS = ("snout", "leftear", "rightear", "tailbase")
SKELETON = (("snout", "leftear"), ("snout", "rightear"), ("leftear", "tailbase"), ("rightear", "tailbase"))
SIZE = 160
FRAME_RATE = 25

# The mouse, in pixels at size 1: distance behind the nose along the midline, and half the width there.
_MIDLINE = np.array([0, 4, 9, 14, 20, 28, 40, 50, 58, 62, 64], dtype=float)
_HALF_WIDTH = np.array([1.8, 3.7, 5.9, 7.2, 7.3, 9.3, 12.2, 12.4, 9.0, 5.0, 2.6])
_SHOULDERS = 26.0
_EARS = 13.0
_EAR_OFFSET = 6.8
_TAIL = 46.0
_MARGIN = 40.0  # distance of the shoulders from the edge, so that all body parts are always inside
_SUPERSAMPLING = 3
_SHIFT = 4  # cv2 draws at 1/16 of a (supersampled) pixel


@dataclass(frozen=True)
class Rendering:
    """A rendered session: `frames` (n, SIZE, SIZE, 3) uint8 RGB, `keypoints` (n, 4, 2) as x, y of `BODYPARTS`."""

    frames: NDArray[np.uint8]
    keypoints: NDArray[np.float64]


@dataclass(frozen=True)
class _Scene:
    """The look of one session: the empty arena, and the effects of the light and the camera."""

    arena: NDArray[np.float32]  # (SIZE, SIZE, 3), grey levels before the light falls on it
    light: NDArray[np.float32]  # (SIZE, SIZE, 1), a factor
    shadow: tuple[float, float, float]  # offset of the cast shadow in x and y, and its depth
    coat: NDArray[np.float64]  # RGB
    skin: NDArray[np.float64]  # RGB of ears, nose and tail
    size: float
    noise: float  # standard deviation, grey levels
    flicker: float  # standard deviation of a frame's brightness, a factor


@dataclass(frozen=True)
class _Motion:
    """The mouse's state in each frame: position of the shoulders (n, 2), and angles (n,) of its parts."""

    shoulders: NDArray[np.float64]
    head: NDArray[np.float64]
    heading: NDArray[np.float64]
    rump: NDArray[np.float64]
    tail: NDArray[np.float64]


def render(seed: int, frames: int) -> Rendering:
    """Render a session; the same seed gives the same picture, and more frames only continue it."""
    scenery, walk, camera = (np.random.default_rng([seed, stream]) for stream in range(3))
    scene = _scene(scenery)
    motion = _walk(walk, frames)
    images = np.empty((frames, SIZE, SIZE, 3), dtype=np.uint8)
    keypoints = np.empty((frames, len(BODYPARTS), 2))
    for index in range(frames):
        outline = _outline(motion, index, scene.size)
        keypoints[index] = outline.keypoints
        images[index] = _photograph(scene, outline, camera)
    return Rendering(images, keypoints)


def write_video(path: Path, frames: NDArray[np.uint8], frame_rate: int = FRAME_RATE) -> None:
    """Encode RGB frames (n, height, width, 3) as H.264 in an MP4 file, each frame once, at a constant rate."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        # One thread: the bytes, and with them the video's identity, are the same on every machine.
        stream: Any = container.add_stream(
            "libx264", rate=frame_rate, options={"crf": "18", "preset": "fast", "threads": "1"}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, frame_rate)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _walk(rng: np.random.Generator, frames: int) -> _Motion:
    """A mouse that runs from place to place, pauses, and looks around."""
    step = 1 / FRAME_RATE
    low, high = _MARGIN, SIZE - 1 - _MARGIN
    position, goal = rng.uniform(low, high, 2), rng.uniform(low, high, 2)
    heading = rump = tail = rng.uniform(-np.pi, np.pi)
    look = look_to = turn = speed = 0.0
    cruise, pause = rng.uniform(40, 125), 0.0
    states = np.empty((frames, 6))
    for index in range(frames):
        way = goal - position
        if np.hypot(*way) < 15:
            goal, cruise = rng.uniform(low, high, 2), rng.uniform(40, 125)
            pause = rng.uniform(0.3, 1.0) if rng.random() < 0.5 else 0.0
        if rng.random() < 1.5 * step:
            look_to = rng.normal(0, 0.45)
        pause -= step
        error = np.angle(np.exp(1j * (np.arctan2(way[1], way[0]) - heading)))
        wanted = 0.0 if pause > 0 else cruise * max(0.15, np.cos(error))
        speed += (wanted - speed) * step / 0.15
        turn += (np.clip(4 * error, -5, 5) * (pause <= 0) + rng.normal(0, 1.5) - turn) * step / 0.12
        heading += turn * step
        position = np.clip(position + speed * step * np.array([np.cos(heading), np.sin(heading)]), low, high)
        # The rump follows the shoulders like a trailer, and the spine bends only so far.
        rump += (speed / 30 + 1.5) * np.sin(heading - rump) * step
        rump = heading - np.clip(heading - rump, -0.8, 0.8)
        tail += 3.0 * np.sin(rump - tail) * step
        look += (np.clip(look_to + 0.12 * turn, -0.8, 0.8) - look) * step / 0.12
        wave = 0.5 * np.sin(2 * np.pi * 0.7 * index * step)
        states[index] = *position, heading + look, heading, rump, tail + wave
    return _Motion(states[:, :2], *states[:, 2:].T)


@dataclass(frozen=True)
class _Outline:
    """One frame's mouse in pixels: the midline and the tail as (points, 2) with half widths, ears, and keypoints."""

    midline: NDArray[np.float64]
    half_width: NDArray[np.float64]
    tail: NDArray[np.float64]
    tail_half_width: NDArray[np.float64]
    ears: NDArray[np.float64]
    head: float
    size: float
    keypoints: NDArray[np.float64]


def _outline(motion: _Motion, index: int, size: float) -> _Outline:
    along = np.arange(0, _MIDLINE[-1] + 1)
    head, heading, rump = motion.head[index], motion.heading[index], motion.rump[index]
    angle = np.interp(along, [12, _SHOULDERS, 46], [head, heading, rump])
    steps = -np.column_stack([np.cos(angle), np.sin(angle)])
    # Trapezoids from the nose backwards, then moved so that the shoulders are on the path of the mouse.
    midline = np.concatenate([np.zeros((1, 2)), np.cumsum((steps[1:] + steps[:-1]) / 2, axis=0)])
    midline = motion.shoulders[index] + size * (midline - midline[int(_SHOULDERS)])
    left = np.array([np.sin(head), -np.cos(head)])
    ears = midline[int(_EARS)] + size * _EAR_OFFSET * np.array([left, -left])
    behind = np.arange(0, _TAIL + 1)
    bend = np.interp(behind, [0, _TAIL], [rump, 2 * motion.tail[index] - rump])
    tail = midline[-1] - size * np.cumsum(np.column_stack([np.cos(bend), np.sin(bend)]), axis=0)
    return _Outline(
        midline,
        size * np.interp(along, _MIDLINE, _HALF_WIDTH),
        tail,
        size * np.interp(behind, [0, 6, _TAIL], [2.2, 1.5, 0.7]),
        ears,
        float(head),
        size,
        np.array([midline[0], *ears, midline[-1]]),
    )


def _photograph(scene: _Scene, mouse: _Outline, rng: np.random.Generator) -> NDArray[np.uint8]:
    import cv2

    colour, cover = _paint(scene, mouse)
    x, y, depth = scene.shadow
    shade = cv2.warpAffine(cover, np.array([[1, 0, x], [0, 1, y]], dtype=np.float32), (SIZE, SIZE))
    shade = cv2.GaussianBlur(shade, (0, 0), 2.5)[..., None]
    picture = scene.arena * (1 - depth * shade) * (1 - cover[..., None]) + colour
    picture *= scene.light * (1 + rng.normal(0, scene.flicker))
    picture += rng.normal(0, scene.noise, (SIZE, SIZE, 1)) + rng.normal(0, scene.noise / 3, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _paint(scene: _Scene, mouse: _Outline) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mouse alone: its colour on black (SIZE, SIZE, 3), and the part of each pixel that it covers (SIZE, SIZE)."""
    import cv2

    large = (SIZE * _SUPERSAMPLING,) * 2
    colour = np.zeros((*large, 3), dtype=np.uint8)
    cover = np.zeros(large, dtype=np.uint8)

    def places(points: NDArray[np.float64]) -> list[list[int]]:
        # The centre of a pixel is the centre of its block of supersampled pixels.
        return np.rint((_SUPERSAMPLING * points + (_SUPERSAMPLING - 1) / 2) * 2**_SHIFT).astype(int).tolist()

    def lengths(pixels: NDArray[np.float64]) -> list[int]:
        return np.rint(pixels * _SUPERSAMPLING * 2**_SHIFT).astype(int).tolist()

    def sweep(canvas: NDArray[np.uint8], points: NDArray[np.float64], radii: NDArray[np.float64], rgb: Any) -> None:
        for centre, radius in zip(places(points), lengths(radii), strict=True):
            cv2.circle(canvas, centre, radius, rgb, cv2.FILLED, shift=_SHIFT)

    def ears(canvas: NDArray[np.uint8], scale: float, rgb: Any) -> None:
        axes = lengths(np.array([3.5, 4.3]) * scale * mouse.size)
        for centre in places(mouse.ears):
            cv2.ellipse(canvas, centre, axes, np.degrees(mouse.head), 0, 360, rgb, cv2.FILLED, shift=_SHIFT)

    sweep(cover, mouse.tail, mouse.tail_half_width, 255)
    sweep(cover, mouse.midline, mouse.half_width, 255)
    ears(cover, 1.0, 255)
    sweep(colour, mouse.tail, mouse.tail_half_width, scene.skin * 0.75)
    # From the flanks to the back: each smaller sweep is lighter, as on a rounded body under light from above.
    for scale, tone in ((1.0, 0.72), (0.86, 0.85), (0.7, 1.0), (0.5, 1.12), (0.28, 1.22)):
        sweep(colour, mouse.midline, scale * mouse.half_width, scene.coat * tone)
    ears(colour, 1.0, scene.coat * 0.6)
    ears(colour, 0.72, scene.skin)
    sweep(colour, mouse.midline[:1], np.array([1.5 * mouse.size]), scene.skin)
    small = [cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for canvas in (colour, cover)]
    return small[0].astype(np.float32), small[1].astype(np.float32) / np.float32(255)


def _scene(rng: np.random.Generator) -> _Scene:
    coat_tone = rng.uniform(32, 85)
    coat = coat_tone * (1 - rng.uniform(0, 1) * np.array([0.0, 0.12, 0.28]))  # from black over grey to brown
    skin = rng.uniform(1.0, 1.2) * (0.45 * coat_tone + np.array([98.0, 72.0, 70.0]))
    bearing = rng.uniform(-np.pi, np.pi)
    distance = rng.uniform(1.5, 5)
    return _Scene(
        _arena(rng),
        _light(rng, bearing),
        (distance * np.cos(bearing), distance * np.sin(bearing), rng.uniform(0.15, 0.4)),
        coat,
        skin,
        rng.uniform(0.76, 0.96),
        rng.uniform(2, 6),
        rng.uniform(0.004, 0.015),
    )


def _light(rng: np.random.Generator, bearing: float) -> NDArray[np.float32]:
    """Brighter on the side that the shadows point away from; a second lamp makes a spot in half of the sessions."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    light = 1 - rng.uniform(0, 0.45) * (x * np.cos(bearing) + y * np.sin(bearing))
    light -= rng.uniform(0, 0.5) * (x**2 + y**2)
    if rng.random() < 0.5:
        spot_x, spot_y = rng.uniform(-0.35, 0.35, 2)
        light += rng.uniform(0.1, 0.3) * np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (2 * 0.15**2))
    return (rng.uniform(0.8, 1.05) * light)[..., None].astype(np.float32)


def _arena(rng: np.random.Generator) -> NDArray[np.float32]:
    """Walls, floor and the things on it, which stay for the whole session: (SIZE, SIZE, 3) grey levels."""
    import cv2

    floor = rng.uniform(140, 215) * np.array([1.0, rng.uniform(0.93, 1.0), rng.uniform(0.85, 1.0)])
    wall = floor * rng.uniform(0.35, 0.75)
    canvas = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    canvas[:] = wall * rng.uniform(0.7, 1.0)
    border = rng.uniform(5, 10)
    edge, far = round(border), SIZE - 1 - round(border)
    if rng.random() < 0.5:
        centre = (SIZE // 2, SIZE // 2)
        cv2.circle(canvas, centre, SIZE // 2 + 8, wall.tolist(), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(canvas, centre, SIZE // 2 + 4 - edge // 2, floor.tolist(), cv2.FILLED, cv2.LINE_AA)
    else:
        cv2.rectangle(canvas, (edge - 4, edge - 4), (far + 4, far + 4), wall.tolist(), cv2.FILLED)
        cv2.rectangle(canvas, (edge, edge), (far, far), floor.tolist(), cv2.FILLED)
    grain = rng.normal(0, 1, (SIZE, SIZE)).astype(np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.8, 3), sigmaY=rng.uniform(0.8, 8))
    canvas *= 1 + rng.uniform(0.01, 0.06) * (grain / grain.std())[..., None]
    for _ in range(rng.integers(0, 220) if rng.random() < 0.5 else 0):  # bedding
        _stroke(canvas, rng, floor * rng.uniform(0.75, 1.2), rng.uniform(2, 5), 1)
    for _ in range(rng.integers(0, 5)):  # scratches
        _stroke(canvas, rng, floor * rng.uniform(0.85, 1.1), rng.uniform(20, 70), 1)
    for _ in range(rng.integers(0, 14)):  # droppings
        _stroke(canvas, rng, np.full(3, rng.uniform(40, 80)), rng.uniform(1, 3), 2)
    for _ in range(rng.integers(0, 4)):
        _object(canvas, rng)
    return cv2.GaussianBlur(canvas, (0, 0), 0.6)


def _stroke(
    canvas: NDArray[np.float32], rng: np.random.Generator, rgb: NDArray[np.float64], length: float, thickness: int
) -> None:
    import cv2

    start, angle = rng.uniform(0, SIZE, 2), rng.uniform(0, np.pi)
    end = start + length * np.array([np.cos(angle), np.sin(angle)])
    points = [(int(x), int(y)) for x, y in np.rint([start, end])]
    cv2.line(canvas, points[0], points[1], rgb.tolist(), thickness, cv2.LINE_AA)


def _object(canvas: NDArray[np.float32], rng: np.random.Generator) -> None:
    """A block, a dish or a pole near the wall, with its own shadow."""
    import cv2

    angle, radius = rng.uniform(-np.pi, np.pi), rng.uniform(4, 11)
    distance = rng.uniform(0.36, 0.44) * SIZE
    centre = np.rint(SIZE / 2 + distance * np.array([np.cos(angle), np.sin(angle)])).astype(int)
    tone = rng.uniform(40, 235) * rng.uniform(0.7, 1.0, 3)
    corners = np.array(cv2.boxPoints(((0.0, 0.0), (2 * radius, 2 * radius * rng.uniform(0.5, 1)), rng.uniform(0, 90))))
    round_one = rng.random() < 0.5
    for offset, scale, rgb in ((3, 1.0, canvas[tuple(centre[::-1])] * 0.7), (0, 1.0, tone), (-1, 0.6, tone * 0.85)):
        middle = (int(centre[0]) + offset, int(centre[1]) + offset)
        if round_one:
            cv2.circle(canvas, middle, round(scale * radius), rgb.tolist(), cv2.FILLED, cv2.LINE_AA)
        else:
            cv2.fillConvexPoly(canvas, np.rint(scale * corners + middle).astype(np.int32), rgb.tolist(), cv2.LINE_AA)
