"""The needs of a run for GPUs: how many, and how much memory of each.

Tags that a person writes on a run come before the declarations of lab.yaml for its assets. The needs are computed when
the run is launched, and never written on the run, because a retried run has the tags of its predecessor. Every launcher
asks here, so a run has the same needs on a workstation and on a cluster.
"""

import math
import os
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from dlc_platform.devices.needs import Needs, UnmetNeed
from dlc_platform.errors import HOME_VARIABLE
from dlc_platform.settings.environment import home_from_environment
from dlc_platform.settings.lab import Lab
from dlc_platform.settings.loading import load_lab
from dlc_platform.text.assets import MODEL_COMPARISON, MODEL_EVALUATION, POSE_ESTIMATES, TRAINED_MODEL

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

    from dlc_platform.devices.gpus import Device

GPU_POOL = "gpu"
#: A run's tags: a whole number of GPUs, and gigabytes (1e9 bytes) of each.
GPUS_TAG = "dlc_platform/gpus"
MEMORY_TAG = "dlc_platform/gpu_memory_gb"

_PARTITION_TAG = "dagster/partition"
#: Assets whose partition is the recipe that they work for.
_OF_A_RECIPE = (TRAINED_MODEL, MODEL_EVALUATION)
#: The most runs that share a device: each has its own process and CUDA context.
_MOST_SHARES = 8


def needs_of(instance: "DagsterInstance", run: "DagsterRun") -> Needs | None:
    """The needs of a run; None if it computes on no GPU.

    A run needs one if a step of it is in the pool ``gpu``, or if its tag asks for some.

    Raises
    ------
    UnmetNeed
        When a tag is not a number.
    """
    concurrency = run.run_op_concurrency
    in_pool = concurrency is not None and GPU_POOL in (concurrency.all_pools or ())
    gpus, memory_gb = _gpus_tag(run), _memory_tag(run)
    if gpus == 0 or (gpus is None and not in_pool):
        return None
    declared = Needs()
    if (lab := _lab()) is not None:
        declared = declared_needs(lab, _steps(instance, run), [run.tags.get(_PARTITION_TAG, "")])
    return Needs(gpus or declared.gpus, declared.memory_gb if memory_gb is None else memory_gb)


def declared_needs(lab: Lab, assets: Collection[str], partitions: Collection[str]) -> Needs:
    """The needs of assets by lab.yaml: recipes declare those of training, inference rules those of inference.

    Parameters
    ----------
    partitions
        The partitions of the run; if no recipe is among them, it may be any recipe.
    """
    found: list[Needs] = []
    recipes = [Needs(own.gpus, own.gpu_memory_gb) for own in lab.recipes.values()]
    for asset in sorted(set(assets) & set(_OF_A_RECIPE)):
        named = [Needs(own.gpus, own.gpu_memory_gb) for name, own in lab.recipes.items() if name in partitions]
        # Only training works on several devices.
        found += [own if asset == TRAINED_MODEL else Needs(1, own.memory_gb) for own in named or recipes]
    if MODEL_COMPARISON in assets:
        # Every version is evaluated, one after the other on one device.
        found.append(Needs(1, Needs.all_of(recipes).memory_gb))
    if POSE_ESTIMATES in assets:
        found.append(Needs.all_of(Needs(1, rule.gpu_memory_gb) for rule in lab.inference))
    return Needs.all_of(found)


def gpu_slots(devices: Sequence["Device"], lab: Lab) -> int:
    """The number of runs of the pool ``gpu`` at a time: as many as can compute, and a few that wait, ready to start.

    Without the waiting ones a device would be idle while the next run's process starts. On the CPU there are none,
    because their start would slow down the run that computes.
    """
    if not devices:
        return 1
    declared = [own.gpu_memory_gb for own in (*lab.recipes.values(), *lab.inference) if own.gpu_memory_gb is not None]
    slots = len(devices)
    if declared:
        shares = [int((device.memory_gb or 0.0) // min(declared)) for device in devices]
        slots = sum(max(1, min(_MOST_SHARES, share)) for share in shares)
    return slots + max(1, len(devices) // 2)


def _gpus_tag(run: "DagsterRun") -> int | None:
    text = run.tags.get(GPUS_TAG)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,4}", text):
        raise UnmetNeed(f"the tag {GPUS_TAG} of the run {run.run_id} is {text!r}", "Write a whole number of GPUs")
    return int(text)


def _memory_tag(run: "DagsterRun") -> float | None:
    text = run.tags.get(MEMORY_TAG)
    if text is None:
        return None
    try:
        memory_gb = float(text)
    except ValueError:
        memory_gb = math.nan
    if not 0 < memory_gb < math.inf:
        raise UnmetNeed(f"the tag {MEMORY_TAG} of the run {run.run_id} is {text!r}", "Write gigabytes, such as 6.5")
    return memory_gb


def _lab() -> Lab | None:
    """The lab whose Dagster this is; None for somebody else's Dagster, which the launchers serve as well."""
    return load_lab(home_from_environment()) if os.environ.get(HOME_VARIABLE) else None


def _steps(instance: "DagsterInstance", run: "DagsterRun") -> Collection[str]:
    if run.step_keys_to_execute is not None:
        return run.step_keys_to_execute
    if run.execution_plan_snapshot_id is None:
        return ()
    return instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute
