"""What a product of the store has in its manifest, as it was written."""

import json
from pathlib import Path
from typing import Any

from dlc_platform.store import MANIFEST


def manifest_of(product: Path) -> dict[str, Any]:
    return json.loads((product / MANIFEST).read_text())
