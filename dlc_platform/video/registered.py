"""A registered video for computations: its identity and size, without the catalogue."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFile:
    """A readable file of a session.

    Attributes
    ----------
    name
        The file's name without its suffix.
    video
        The identity of its content.
    width, height
        The size of its picture as it is shown, in pixels.
    """

    session: str
    camera: str
    name: str
    video: str
    size_bytes: int
    width: int
    height: int
