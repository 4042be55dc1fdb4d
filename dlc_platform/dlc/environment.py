"""The software and the machine that made a product, found without importing deeplabcut or torch."""

import platform
from importlib.metadata import version

#: What can change a number, as the packages are called where they come from.
_PACKAGES = (
    "albumentations",
    "av",
    "dagster",
    "deeplabcut",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pyarrow",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)


def versions() -> dict[str, str]:
    """Versions of what computes, the platform, the host and the GPU of this process's machine (``none`` without)."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
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
