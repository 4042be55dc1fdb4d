"""What work needs of the GPUs, as a value; which work needs how much is found out in `launchers.needs`."""

from collections.abc import Iterable
from dataclasses import dataclass

from dlc_platform.errors import PlatformError
from dlc_platform.text.words import counted


class UnmetNeed(PlatformError):
    """A need that waiting does not help, and another try neither."""


@dataclass(frozen=True)
class Needs:
    """How many devices, and how much memory of each in gigabytes (1e9 bytes); None means all of it, for itself."""

    gpus: int = 1
    memory_gb: float | None = None

    def __str__(self) -> str:
        what = "a GPU" if self.gpus == 1 else counted(self.gpus, "GPU")
        return what if self.memory_gb is None else f"{self.memory_gb:g} GB of {what}"

    @classmethod
    def all_of(cls, several: Iterable["Needs"]) -> "Needs":
        """What is enough for each of several, one after the other; one whole device where there are none."""
        several = list(several)
        gpus = max((needs.gpus for needs in several), default=1)
        if not several or any(needs.memory_gb is None for needs in several):
            return cls(gpus)
        return cls(gpus, max(needs.memory_gb or 0.0 for needs in several))


#: How many gigabytes of each of its GPUs a process may use, where it shares them.
GPU_MEMORY_VARIABLE = "DLC_PLATFORM_GPU_MEMORY_GB"
