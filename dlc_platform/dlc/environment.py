"""The software and the machine that made a product, found without importing deeplabcut or torch."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from dlc_platform.version import __version__

#: The packages that can change a number, by their names in the package index.
_PACKAGES = (
    "albumentations",
    "av",
    "dagster",
    "deeplabcut",
    "numpy",
    "opencv-python-headless",
    "openvino",
    "pandas",
    "pillow",
    "pyarrow",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)


@cache
def versions() -> Mapping[str, str]:
    """The versions of computing software; the platform, host, CPU and GPU of this machine (``none`` without one).

    Asked once in a process: looking up installed packages takes as long as judging the poses of a short session.
    """
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "dlc_platform": __version__,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu(),
        "gpu": _gpu(),
    }


def _cpu() -> str:
    """The model as the kernel names it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


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
