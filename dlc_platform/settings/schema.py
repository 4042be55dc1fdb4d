"""The schema of lab.yaml as a file beside it, with which editors complete keys and check them without the internet.

Only the file belongs here. Every start of a lab writes it anew, so that it is that of the installed version after an
upgrade too.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlc_platform.settings.lab import Lab
from dlc_platform.version import __version__

SCHEMA_FILE = "lab.schema.json"
#: The first line of a lab.yaml: editors with the YAML language server (VS Code, JetBrains, Vim, Emacs) read it.
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"


def lab_schema() -> dict[str, Any]:
    """The JSON schema of lab.yaml: all keys with their types, ranges, defaults and meaning."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Lab.model_json_schema(),
        "title": f"lab.yaml of dlc_platform {__version__}",
    }


def write_schema(home: Path) -> None:
    """Put the schema of this version into HOME, unless it is there already."""
    file = home / SCHEMA_FILE
    content = json.dumps(lab_schema(), indent=1) + "\n"
    # A missing help for editors must not stop the lab from starting.
    with suppress(OSError):
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            beside = home / f".{SCHEMA_FILE}.{os.getpid()}"
            beside.write_text(content, encoding="utf-8")
            beside.replace(file)
