"""A test double of NVML, for GPUs that we lack: it takes the place of `pynvml` where its folder is on the path first.

What it answers is in the JSON file that ``TEST_NVML`` names: a list of GPUs with `memory_gb`, the pids in `computing`,
a `uuid` unless it is to be ``GPU-`` and the number, and `slices`, where it is cut, which are the same. Without that
variable there is no driver.
"""

import json
import os
from dataclasses import dataclass, field
from types import SimpleNamespace

NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_DEVICE_MIG_ENABLE = 1


class NVMLError(Exception):
    def __init__(self, value: int):
        super().__init__(f"error {value}")
        self.value = value


@dataclass(frozen=True)
class _Handle:
    uuid: str
    memory_gb: float | None = None
    computing: tuple[int, ...] = ()
    slices: tuple["_Handle", ...] = field(default=())


def _handle(kind: str, number: str, told: dict) -> _Handle:
    slices = tuple(_handle("MIG", f"{number}-{place}", part) for place, part in enumerate(told.get("slices", ())))
    return _Handle(
        told.get("uuid", f"{kind}-{number}"), told.get("memory_gb"), tuple(told.get("computing", ())), slices
    )


def _gpus() -> list[_Handle]:
    with open(os.environ["TEST_NVML"]) as file:
        return [_handle("GPU", str(index), told) for index, told in enumerate(json.load(file))]


def nvmlInit() -> None:  # noqa: N802
    if "TEST_NVML" not in os.environ:
        raise NVMLError(NVML_ERROR_LIBRARY_NOT_FOUND)


def nvmlShutdown() -> None: ...  # noqa: N802


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> _Handle:  # noqa: N802
    try:
        return _gpus()[index]
    except IndexError:
        raise NVMLError(NVML_ERROR_NOT_FOUND) from None


def nvmlDeviceGetHandleByUUID(uuid: str) -> _Handle:  # noqa: N802
    for gpu in _gpus():
        for handle in (gpu, *gpu.slices):
            if handle.uuid == uuid:
                return handle
    raise NVMLError(NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetUUID(handle: _Handle) -> str:  # noqa: N802
    return handle.uuid


def nvmlDeviceGetName(handle: _Handle) -> str:  # noqa: N802
    return "A test double"


def nvmlDeviceGetMemoryInfo(handle: _Handle) -> SimpleNamespace:  # noqa: N802
    if handle.memory_gb is None:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return SimpleNamespace(total=int(handle.memory_gb * 1e9))


def nvmlDeviceGetMigMode(handle: _Handle) -> tuple[int, int]:  # noqa: N802
    if not handle.slices:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return NVML_DEVICE_MIG_ENABLE, NVML_DEVICE_MIG_ENABLE


def nvmlDeviceGetMaxMigDeviceCount(handle: _Handle) -> int:  # noqa: N802
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: _Handle, index: int) -> _Handle:  # noqa: N802
    try:
        return handle.slices[index]
    except IndexError:
        raise NVMLError(NVML_ERROR_NOT_FOUND) from None


def nvmlDeviceGetComputeRunningProcesses(handle: _Handle) -> list[SimpleNamespace]:  # noqa: N802
    return [SimpleNamespace(pid=pid) for pid in handle.computing]
