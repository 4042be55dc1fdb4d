"""The GPUs of this machine, and the environment that limits a process to its own ones.

All knowledge of NVIDIA's library (NVML) is here. `leases` decides who may use a device at a given moment.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from dlc_platform.errors import PlatformError

#: The GPUs that runs may use, as lab.yaml and dagster.yaml list them: by number, or by the UUID of a GPU or MIG slice.
GpuNames = Literal["auto"] | Sequence[int | str]


@dataclass(frozen=True)
class Device:
    """A GPU, a MIG slice of one, or the CPU, on which a run computes.

    Attributes
    ----------
    key
        The name of its lease, the same for every lab and container of the machine, however those list and number it:
        its UUID in small letters, or ``cpu``. Only without NVML is it the number, as in ``gpu-0``.
    visible
        Its name in ``CUDA_VISIBLE_DEVICES``. A container that sees only some of the GPUs counts these from 0.
    memory_gb
        Its memory in gigabytes (1e9 bytes); None if NVML does not say.
    model
        The vendor's name for it, such as ``NVIDIA A100-SXM4-80GB``.
    """

    key: str
    visible: str
    memory_gb: float | None = None
    model: str | None = None
    uuid: str | None = None

    @property
    def is_slice(self) -> bool:
        """True for a MIG slice."""
        return self.visible.startswith("MIG-")

    def is_called(self, name: str) -> bool:
        """True if a person means this device by `name`: its number or its UUID."""
        return name.lower() in (self.key, self.visible.lower())

    def __str__(self) -> str:
        if self.key == CPU.key:
            return "the CPU"
        return f"GPU {self.visible}" if self.visible.isdigit() else self.visible


CPU = Device("cpu", "")


def find_devices(gpus: GpuNames) -> tuple[Device, ...]:
    """The GPUs that runs may use; an empty tuple means that runs compute on the CPU.

    A GPU that is cut into MIG slices stands for its slices. Without a driver, devices are taken as they are listed:
    containers that see different GPUs must then list them by UUID, or two of them share a lease or a GPU.

    Parameters
    ----------
    gpus
        ``auto`` for all that NVML finds, or some by their number (as ``nvidia-smi`` counts) or their UUID.

    Raises
    ------
    PlatformError
        When a driver does not answer, or knows no such GPU. Going on without it would train on the CPU unnoticed.
    """
    if gpus != "auto" and not gpus:
        return ()
    found = _found()
    if gpus == "auto":
        return tuple(device for _, device in found)
    if not found:
        return tuple(_as_listed(str(name)) for name in gpus)
    devices: dict[Device, None] = {}
    for name in gpus:
        named = [device for names, device in found if str(name) in names]
        if not named:
            raise PlatformError(
                f"this machine has no GPU {name}: NVML knows {', '.join(str(device) for _, device in found)}",
                "Correct `gpus` in lab.yaml; `nvidia-smi -L` lists numbers and UUIDs",
            )
        devices |= dict.fromkeys(named)
    return tuple(devices)


def has_driver() -> bool:
    """True if this machine has NVIDIA's driver; without it everything is computed on the CPU.

    Raises
    ------
    PlatformError
        When the driver does not answer.
    """
    with _nvml() as nvml:
        return nvml is not None


def _as_listed(name: str) -> Device:
    return Device(f"gpu-{name}", name) if name.isdigit() else Device(name.lower(), name, uuid=name)


def computing(device: Device) -> frozenset[int]:
    """The processes that compute on a device now, by NVML; none if NVML cannot be asked."""
    with _nvml() as nvml:
        if nvml is None:
            return frozenset()
        try:
            processes = nvml.library.nvmlDeviceGetComputeRunningProcesses(nvml.handle(device))
        except nvml.error:
            return frozenset()
        return frozenset(process.pid for process in processes)


def environment(devices: Sequence[Device]) -> dict[str, str]:
    """The variables with which a process sees these devices only."""
    # CUDA counts the fastest GPU first unless it is told to count as NVML does.
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(device.visible for device in devices),
    }


class _Nvml:
    """The questions to NVML."""

    def __init__(self, library: Any):
        self.library = library
        self.error: type[Exception] = library.NVMLError

    def devices(self) -> Iterator[tuple[set[str], Device]]:
        """Each device, with the names that a list may give it."""
        for index in range(self.library.nvmlDeviceGetCount()):
            handle = self.library.nvmlDeviceGetHandleByIndex(index)
            whole = str(self.library.nvmlDeviceGetUUID(handle))
            names = {str(index), whole}
            slices = list(self._slices(handle))
            for part in slices:
                uuid = str(self.library.nvmlDeviceGetUUID(part))
                yield {*names, uuid}, Device(uuid.lower(), uuid, self._memory_gb(part), self._model(handle), uuid)
            if not slices:
                memory_gb, model = self._memory_gb(handle), self._model(handle)
                yield names, Device(whole.lower(), str(index), memory_gb, model, whole)

    def handle(self, device: Device) -> Any:
        """NVML's own handle of a device that `devices` found."""
        if device.visible.isdigit():
            return self.library.nvmlDeviceGetHandleByIndex(int(device.visible))
        return self.library.nvmlDeviceGetHandleByUUID(device.visible)

    def _slices(self, handle: Any) -> Iterator[Any]:
        try:
            enabled, _ = self.library.nvmlDeviceGetMigMode(handle)
        except self.error:
            return  # a GPU that cannot be cut
        if enabled != self.library.NVML_DEVICE_MIG_ENABLE:
            return
        for number in range(self.library.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                yield self.library.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except self.error:
                continue  # fewer slices than there could be

    def _memory_gb(self, handle: Any) -> float | None:
        try:
            return self.library.nvmlDeviceGetMemoryInfo(handle).total / 1e9
        except self.error:
            return None  # the GPU uses the machine's own memory

    def _model(self, handle: Any) -> str:
        return str(self.library.nvmlDeviceGetName(handle))


@contextmanager
def _nvml() -> Iterator[_Nvml | None]:
    """NVML, ready to be asked; None on a machine without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):  # pyright: ignore[reportAttributeAccessIssue]
            yield None
            return
        raise _unanswered(error) from error
    try:
        yield _Nvml(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _found() -> list[tuple[set[str], Device]]:
    with _nvml() as nvml:
        if nvml is None:
            return []
        try:
            return list(nvml.devices())
        except nvml.error as error:
            raise _unanswered(error) from error


def _unanswered(error: Exception) -> PlatformError:
    return PlatformError(
        f"the NVIDIA driver does not say which GPUs there are: {error}",
        "Mend the driver (after an update of the driver, reboot), or set `gpus: []` in lab.yaml to work on the CPU",
    )
