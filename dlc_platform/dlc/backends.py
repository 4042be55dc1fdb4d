"""Ways to compute a `network.keypoint_network`: PyTorch as it is, which always works, and OpenVINO on CPUs.

Each is called with uint8 pictures of one size, shape (pictures, height, width, 3), blue first, as `geometry` fits them,
and gives float32 keypoints, shape (pictures, bodyparts, 3). `exports` and `engine` decide which one may be used.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from dlc_platform.dlc.memory import is_out_of_memory
from dlc_platform.dlc.network import keypoint_network

if TYPE_CHECKING:
    import torch

#: ``half`` is float16 on a GPU, and bfloat16 on a CPU that has it.
Precision = Literal["full", "half"]

#: The largest batch of pictures in bytes: it is copied, queued and held a few times.
_MOST_BYTES = 32 << 20
_MOST_PICTURES = 64
_CPU_BATCH = 8


class Backend(Protocol):
    """See the module."""

    name: str
    device: str

    def batch_size(self, width: int, height: int) -> int:
        """The best number of pictures of a size to give at once; the results do not depend on it."""
        ...

    def __call__(self, pictures: np.ndarray) -> np.ndarray: ...


class PyTorch:
    """The network in PyTorch, on any device.

    Parameters
    ----------
    batch_size
        None means, on a GPU, the largest power of two that fits its memory and is still faster; it is found by trying.
    """

    name = "pytorch"

    def __init__(self, model_path: Path, device: str, precision: Precision = "full", batch_size: int | None = None):
        import torch

        self.device = device
        self._precision = precision
        self._asked = batch_size
        self._found: dict[tuple[int, int], int] = {}
        self._network = keypoint_network(model_path).to(device)
        if torch.device(device).type == "cuda":
            # The same kernels in every run; else a continued video would have other last digits.
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True

    def batch_size(self, width: int, height: int) -> int:
        if self._asked is not None:
            return self._asked
        if not self.device.startswith("cuda"):
            return min(_CPU_BATCH, most_pictures(width, height))
        if (width, height) not in self._found:
            self._found[width, height] = self._try_batches(width, height)
        return self._found[width, height]

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode(), self._autocast():
            batch = torch.from_numpy(pictures).to(self.device)
            return self._network(batch).float().cpu().numpy()

    def _autocast(self) -> torch.autocast:
        import torch

        kind = torch.device(self.device).type
        half = torch.float16 if kind == "cuda" else torch.bfloat16
        return torch.autocast(kind, half, enabled=self._precision == "half")

    def _try_batches(self, width: int, height: int) -> int:
        """Double the batch as long as that makes it faster by a twentieth, and it fits the memory."""
        import time

        import torch

        best, best_seconds, size = 1, float("inf"), 1
        while size <= most_pictures(width, height):
            pictures = np.zeros((size, height, width, 3), np.uint8)
            try:
                self(pictures)
                started = time.perf_counter()
                self(pictures)
                seconds = (time.perf_counter() - started) / size
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            if seconds > best_seconds * 0.95:
                break
            best, best_seconds, size = size, seconds, size * 2
        torch.cuda.empty_cache()
        return best


class OpenVino:
    """An exported network on a CPU.

    Each core works on its own picture. That is the fastest way, and makes the numbers independent of the number of
    pictures in a batch and of the number of cores.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, file: Path, precision: Precision = "full", batch_size: int | None = None):
        self._asked = batch_size
        self._core = openvino().Core()
        self._network = self._core.read_model(file)
        self._precision = precision
        self._compiled: tuple[tuple[int, int], _Compiled] | None = None

    def batch_size(self, width: int, height: int) -> int:
        if self._asked is not None:
            return self._asked
        # So many for each core, because at the end of a batch they wait for each other.
        return _cores() * max(2, most_pictures(width, height) // _cores())

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        size = (pictures.shape[2], pictures.shape[1])
        if self._compiled is None or self._compiled[0] != size:
            self._compiled = (size, self._compile(*size))
        return self._compiled[1](pictures)

    def _compile(self, width: int, height: int) -> _Compiled:
        ov = openvino()
        self._network.reshape([1, height, width, 3])
        cores = _cores()
        settings = {
            # Without it, CPUs that have bfloat16 use it.
            "INFERENCE_PRECISION_HINT": "f32" if self._precision == "full" else "bf16",
            "NUM_STREAMS": cores,
            "INFERENCE_NUM_THREADS": cores,
            # Its fused kernels crash the process where a GroupNorm (of resnet_50) meets a small picture (2026.4.1).
            "SNIPPETS_MODE": "DISABLE",
        }
        return _Compiled(ov.AsyncInferQueue(self._core.compile_model(self._network, "CPU", settings), cores))


class _Compiled:
    """A network for pictures of one size, and as many requests to it as there are cores."""

    def __init__(self, queue) -> None:
        self._queue = queue
        # The queue is C++ and holds its callback: a callback that held this object would keep both for ever.
        queue.set_callback(_keep)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        results: list[np.ndarray] = [np.empty(0)] * len(pictures)
        for number, picture in enumerate(pictures):
            self._queue.start_async({0: picture[np.newaxis]}, (results, number))
        self._queue.wait_all()
        return np.concatenate(results)


def _keep(request, place: tuple[list[np.ndarray], int]) -> None:
    results, number = place
    results[number] = request.get_output_tensor(0).data.copy()


def openvino():
    """OpenVINO, kept from telling its makers of each start."""
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType] (None forbids the import)
    import openvino

    return openvino


def most_pictures(width: int, height: int) -> int:
    """The most pictures of a size that one batch holds."""
    return max(1, min(_MOST_PICTURES, _MOST_BYTES // (width * height * 3)))


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
