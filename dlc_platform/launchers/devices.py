"""Which GPUs this machine has, and how a process is told which of them is its own.

Who may use a device at a given moment is decided in `leases`.
"""

from collections.abc import Sequence
from typing import Literal

from dlc_platform.errors import PlatformError


def gpu_indices(gpus: Literal["auto"] | Sequence[int]) -> tuple[int, ...]:
    """The GPUs that runs may use, as NVML and ``nvidia-smi`` number them.

    Parameters
    ----------
    gpus
        ``auto`` asks NVML, and a machine without a driver has none. Listed indices are taken as they are.

    Raises
    ------
    PlatformError
        When there is a driver that does not answer: going on without it would train on the CPU unnoticed.
    """
    if gpus != "auto":
        return tuple(gpus)
    import pynvml

    no_driver = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    try:
        pynvml.nvmlInit()
        try:
            return tuple(range(pynvml.nvmlDeviceGetCount()))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        if error.value in no_driver:  # pyright: ignore[reportAttributeAccessIssue]
            return ()
        raise PlatformError(
            f"the NVIDIA driver does not say which GPUs there are: {error}",
            "Mend the driver (after its update that takes a reboot), or set `gpus: []` in lab.yaml to work on the CPU",
        ) from error


def environment(device: int | None) -> dict[str, str]:
    """The variables with which a process sees one GPU only, or none (None)."""
    # CUDA counts the fastest GPU first unless it is told to count as NVML does.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "" if device is None else str(device)}
