"""What loading the definitions costs, which every Dagster process pays: seconds, and peak memory in MB.

Run as ``python -m dlc_platform_tests.benchmarks.load_definitions``; Linux only.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dlc_platform.errors import HOME_VARIABLE

_REPEATS = 5
_LAB = """\
raw_roots: [raw]
projects: {openfield: {path: openfield}}
recipes:
  first: {project: openfield}
  second: {project: openfield, epochs: 100}
inference: [{project: openfield}]
"""
# VmHWM, because ru_maxrss of a child begins with the memory of its parent.
_LOAD = """
import json, sys
from dlc_platform.definitions import defs
defs.get_repository_def()
assets = sorted(key.to_user_string() for key in defs.resolve_all_asset_keys())
with open("/proc/self/status") as file:
    peak_kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(json.dumps({"peak_mb": peak_kib / 1024, "modules": sorted(sys.modules), "assets": assets}))
"""


def load(home: Path) -> dict[str, Any]:
    """Load the definitions of a small lab, made at `home`, in a fresh process.

    Returns
    -------
    dict
        ``seconds`` from the start of the process to its end, ``peak_mb``, ``modules`` and ``assets``.
    """
    (home / "lab.yaml").write_text(_LAB)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        env={**os.environ, HOME_VARIABLE: str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        loads = [load(Path(folder)) for _ in range(_REPEATS)]
    seconds, peak_mb = (statistics.median(one[figure] for one in loads) for figure in ("seconds", "peak_mb"))
    print(f"definitions: {seconds:.2f} s, {peak_mb:.0f} MB peak (median of {_REPEATS} fresh processes)")


if __name__ == "__main__":
    main()
