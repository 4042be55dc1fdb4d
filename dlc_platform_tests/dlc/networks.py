"""The networks that a run of the tests compares with DeepLabCut: one of each family, or all where that is not proved.

It is proved for code and libraries by `uv run python -m dlc_platform_tests.dlc.networks`: all networks are compared,
and `networks.json` keeps what they were compared with. After any change of that, all of them run each time, until the
command has run again.
"""

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import dlc_platform
from dlc_platform.dlc.backbone import NETWORKS
from dlc_platform.identity import sha256_json

COMPARISON = "test_every_network_gives_the_numbers_of_deeplabcut"
#: The smallest of each family: the larger ones have the same layers, only more of them.
FAMILIES = ("cspnext_s", "hrnet_w18", "resnet_50")
_ALL_VARIABLE = "DLC_PLATFORM_TEST_ALL_NETWORKS"
_RECORD = Path(__file__).with_suffix(".json")
_LIBRARIES = ("av", "deeplabcut", "numpy", "opencv-python-headless", "openvino", "timm", "torch", "torchvision")


def networks_to_compare() -> tuple[str, ...]:
    """The names of networks, as recipes have them."""
    proved = not os.environ.get(_ALL_VARIABLE) and json.loads(_RECORD.read_text()) == _conditions()
    return FAMILIES if proved else tuple(NETWORKS)


def _conditions() -> dict[str, str]:
    """All that the numbers depend on: the code that decodes and computes, the comparison, and the libraries."""
    package, tests = Path(dlc_platform.__file__).parent, Path(__file__).parent
    files = [*sorted(package.glob("dlc/*.py")), *sorted(package.glob("video/*.py"))]
    files += [tests / "deeplabcut_videos.py", tests / "test_engine.py"]
    code = sha256_json([_computing(file) for file in files])
    return {"code": code, **{library: version(library) for library in _LIBRARIES}}


def _computing(file: Path) -> str:
    """The code of a module without comments, docstrings and imports: another word or place changes no number."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        for name in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, name, None), list):
                kept = [one for one in statements if not isinstance(one, ast.Import | ast.ImportFrom)]
                setattr(node, name, kept if kept or name != "body" else [ast.Pass()])
    return ast.unparse(tree)


def _prove() -> int:
    conditions = _conditions()
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_engine.py")), "-k", COMPARISON]
    # Without the real video nothing is compared.
    done = subprocess.run(
        command, env={**os.environ, _ALL_VARIABLE: "1", "DLC_PLATFORM_TEST_NO_SKIP": "1"}, check=False
    )
    if done.returncode == 0:
        _RECORD.write_text(json.dumps(conditions, indent=2) + "\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(_prove())
