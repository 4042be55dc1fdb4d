"""A video of several chunks, for inference that is interrupted."""

from pathlib import Path

import numpy as np

from dlc_platform_tests.conftest import SIZE, draw_frame


def write_long_video(path: Path, frames: int = 700) -> Path:
    """Write frames of 96 x 96 pixels with an animal, at 25 frames per second, with a key frame every 50."""
    import av

    random = np.random.default_rng(7)
    drawn = [draw_frame(random)[0] for _ in range(40)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "50", "preset": "ultrafast"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn[number % len(drawn)], format="bgr24")))
        container.mux(stream.encode())
    return path
