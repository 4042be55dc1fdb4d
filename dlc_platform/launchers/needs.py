"""What a run needs of the GPUs. Every launcher asks here, so a run means the same on a workstation and on a cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

GPU_POOL = "gpu"


@dataclass(frozen=True)
class Needs:
    """How many devices."""

    gpus: int = 1


def needs_of(instance: "DagsterInstance", run: "DagsterRun") -> Needs | None:
    """What a run needs: a GPU if a step of it is in the pool ``gpu``, else None."""
    concurrency = run.run_op_concurrency
    return Needs() if concurrency is not None and GPU_POOL in (concurrency.all_pools or ()) else None
