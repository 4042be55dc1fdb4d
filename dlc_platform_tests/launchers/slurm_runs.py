"""A code location whose runs write down each time they begin and end, and stay until they are let go."""

import json
import os
import time
from pathlib import Path

from dagster import Config, Definitions, OpExecutionContext, asset, in_process_executor


class Stay(Config):
    folder: str
    megabytes: int = 0
    seconds: float | None = None


def _stay(context: OpExecutionContext, config: Stay) -> None:
    record = Path(config.folder) / f"{context.run_id}.jsonl"

    def write(what: str) -> None:
        told = {name: value for name, value in os.environ.items() if name.startswith(("SLURM", "CUDA"))}
        told["secret"] = os.environ.get("DLC_PLATFORM_TEST_SECRET", "")
        with record.open("a") as file:
            file.write(json.dumps({"what": what, "pid": os.getpid(), "at": time.time(), **told}) + "\n")

    write("begin")
    taken = []
    for _ in range(config.megabytes):
        taken.append(b"x" * 1_000_000)
        time.sleep(0.002)
    until = None if config.seconds is None else time.monotonic() + config.seconds
    go = Path(config.folder) / f"{context.run_id}.go"
    while not go.exists() if until is None else time.monotonic() < until:
        time.sleep(0.05)
    write("end")


@asset(pool="gpu")
def on_gpu(context: OpExecutionContext, config: Stay) -> None:
    _stay(context, config)


@asset
def on_cpu(context: OpExecutionContext, config: Stay) -> None:
    _stay(context, config)


defs = Definitions(assets=[on_gpu, on_cpu], executor=in_process_executor)
