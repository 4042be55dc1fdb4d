"""Lack of memory: recognised among other errors, and answered with smaller batches; and the memory used on a GPU.

A batch's size decides speed and memory. In inference it decides nothing else. In training it is a parameter of the
recipe, so a training with a smaller batch must report it.
"""

import gc
import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from dlc_platform.devices.needs import GPU_MEMORY_VARIABLE
from dlc_platform.errors import PlatformError

Result = TypeVar("Result")

#: Words in the log about a batch that was too large; code that looks there for a cause of death skips them.
TRIED_WITH_LESS = "and is tried with"

#: The memory of a GPU that CUDA and its libraries take for a process, besides the tensors.
_CUDA_GB = 0.5
#: Words of allocators that raise a plain RuntimeError: of CUDA and its libraries, of PyTorch and OpenVINO on the CPU.
_WORDS = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error means that memory ran out, on a GPU or on the machine."""
    # By name, because work on OpenVINO does not import torch.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def with_smaller_batches(
    attempt: Callable[[int], Result], batch_size: int, say: Callable[[str], None], what: str
) -> tuple[Result, int]:
    """Try with a batch size, and with half of it each time that memory runs out.

    Parameters
    ----------
    attempt
        Called with the batch size; a failed call must not hinder a second one.
    say
        Called with a sentence before each try with less.
    what
        The name of the work, such as ``training``.

    Returns
    -------
    tuple
        The result of `attempt`, and its batch size.

    Raises
    ------
    PlatformError
        When not even a batch of one fits into memory.
    """
    while True:
        _forget_peak()
        try:
            return attempt(batch_size), batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = " ".join(str(error).split())[:300] or type(error).__name__
            if batch_size == 1:
                raise PlatformError(
                    f"{what} ran out of memory even with a batch of 1: {told}",
                    "Use a GPU with more memory, give it more of one (gpu_memory_gb), or a smaller network or pictures",
                ) from error
        # Only here, after the error with its frames, and the memory that these held, are gone.
        _free()
        say(f"{what} ran out of memory with a batch of {batch_size}, {TRIED_WITH_LESS} {batch_size // 2}: {told}")
        batch_size //= 2


def keep_to_share() -> None:
    """Limit the memory that this process takes of its GPUs to its lease, so that it takes none from its neighbours."""
    share_gb = os.environ.get(GPU_MEMORY_VARIABLE)
    if share_gb is None:
        return
    try:
        known = 0 < float(share_gb) < math.inf
    except ValueError:
        known = False
    if not known:
        raise PlatformError(
            f"the environment variable {GPU_MEMORY_VARIABLE} is {share_gb!r}",
            "Unset it, or set it to gigabytes of each GPU, such as 6.5",
        )
    import torch

    for device in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(device).total_memory
        part = max(float(share_gb) - _CUDA_GB, float(share_gb) / 2) * 1e9 / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, part), device)


def gpu_peak_gb() -> float | None:
    """The most that PyTorch took of a GPU since the last attempt began, in gigabytes (1e9 bytes); None without one.

    CUDA itself takes about half a gigabyte more.
    """
    torch = _torch_on_a_gpu()
    if torch is None:
        return None
    peaks = [torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count())]
    return max(peaks, default=0) / 1e9


def _forget_peak() -> None:
    """Reset the peak, so that it does not include an earlier recipe, or a batch that was too large."""
    torch = _torch_on_a_gpu()
    if torch is not None:
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def _torch_on_a_gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _free() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
