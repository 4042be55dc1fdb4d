"""The needs of work for GPUs, as a value; `launchers.needs` finds out which work needs how much."""

from collections.abc import Iterable
from dataclasses import dataclass

from dlc_platform.errors import PlatformError
from dlc_platform.text.words import counted


class UnmetNeed(PlatformError):
    """A need that neither a wait nor another try can meet."""


@dataclass(frozen=True)
class Needs:
    """A number of devices, and gigabytes (1e9 bytes) of memory of each; None means the whole device, alone."""

    gpus: int = 1
    memory_gb: float | None = None

    def __str__(self) -> str:
        what = "a GPU" if self.gpus == 1 else counted(self.gpus, "GPU")
        return what if self.memory_gb is None else f"{self.memory_gb:g} GB of {what}"

    @classmethod
    def all_of(cls, several: Iterable["Needs"]) -> "Needs":
        """The needs that suffice for several, one after the other; one whole device if there are none."""
        several = list(several)
        gpus = max((needs.gpus for needs in several), default=1)
        if not several or any(needs.memory_gb is None for needs in several):
            return cls(gpus)
        return cls(gpus, max(needs.memory_gb or 0.0 for needs in several))


#: The gigabytes that a process may use of each of its GPUs, if it shares them.
GPU_MEMORY_VARIABLE = "DLC_PLATFORM_GPU_MEMORY_GB"
