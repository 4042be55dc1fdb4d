"""The software and the machine that made a product, found without importing deeplabcut or torch."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of what computes, the platform, the host and the GPU of this process's machine (``none`` without)."""
    return {
        "python": platform.python_version(),
        "deeplabcut": version("deeplabcut"),
        "torch": version("torch"),
        "dlc_platform": version("dlc-platform"),
        "platform": platform.platform(),
        "host": platform.node(),
        "gpu": _gpu(),
    }


def _gpu() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "none"
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return ", ".join(sorted({str(pynvml.nvmlDeviceGetName(device)) for device in devices})) or "none"
    finally:
        pynvml.nvmlShutdown()
