"""Hook of hatchling: a wheel holds the built site, and an editable install does without it.

The site is built from the pages alone and imports nothing from the package: the build needs none of its dependencies.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # pyright: ignore[reportMissingImports]


class SiteHook(BuildHookInterface):  # pyright: ignore[reportUntypedBaseClass]
    """Builds the site into a temporary folder, from which the wheel takes it."""

    _site: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        from mkdocs.commands.build import build
        from mkdocs.config import load_config

        self._site = Path(tempfile.mkdtemp(prefix="dlc-platform-site-"))
        described = Path(self.root) / "dlc_platform" / "docs" / "mkdocs.yml"
        build(load_config(str(described), site_dir=str(self._site), strict=True))
        build_data["force_include"][str(self._site)] = "dlc_platform/docs/site"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._site is not None:
            shutil.rmtree(self._site)
