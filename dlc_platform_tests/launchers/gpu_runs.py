"""A code location whose runs say which device they see, and then wait until they are let go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dagster import Config, Definitions, OpExecutionContext, asset, in_process_executor

# A worker inherits this variable; the server that only loads the definitions must survive.
_death = os.environ.get("TEST_DEATH_ON_LOAD")
if _death and Path(_death).exists() and "dlc_platform.launchers.gpu_worker" in " ".join(sys.orig_argv):
    os.kill(os.getpid(), signal.SIGKILL)


class Stay(Config):
    folder: str
    deaf: bool = False
    last_words: str = ""


def _stay(context: OpExecutionContext, config: Stay) -> None:
    if config.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report = {
        "devices": os.environ["CUDA_VISIBLE_DEVICES"],
        "order": os.environ["CUDA_DEVICE_ORDER"],
        "memory_gb": os.environ.get("DLC_PLATFORM_GPU_MEMORY_GB"),
        "pid": os.getpid(),
        "child": child.pid,
    }
    if config.last_words:
        os.write(2, f"{config.last_words}\n".encode())
        os.abort()
    folder = Path(config.folder)
    (folder / f"{context.run_id}.part").write_text(json.dumps(report))
    (folder / f"{context.run_id}.part").rename(folder / f"{context.run_id}.json")
    while not (folder / f"{context.run_id}.go").exists():
        time.sleep(0.1)
    child.kill()
    child.wait()


@asset(pool="gpu")
def on_gpu(context: OpExecutionContext, config: Stay) -> None:
    _stay(context, config)


@asset
def on_cpu(context: OpExecutionContext, config: Stay) -> None:
    _stay(context, config)


defs = Definitions(assets=[on_gpu, on_cpu], executor=in_process_executor)
