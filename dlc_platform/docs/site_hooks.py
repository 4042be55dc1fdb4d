"""Hooks of mkdocs: the site shows its version, has the changelog, and holds no unused files."""

import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_PACKAGE = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Put the version into the site's name; read, not imported, so that a wheel is built without the package."""
    found = re.search(r'__version__ = "([^"]+)"', (_PACKAGE / "version.py").read_text(encoding="utf-8"))
    assert found is not None
    config.site_name = f"dlc_platform {found[1]}"
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the changelog, which lies at the top of the package."""
    files.append(File.generated(config, "changelog.md", abs_src_path=str(_PACKAGE / "CHANGELOG.md")))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Let links to the changelog lead to its page of the site: in the repository it lies beside the folder of pages."""
    return markdown.replace("../../CHANGELOG.md", "changelog.md")


def on_post_build(config: Any) -> None:
    """Remove what only the theme's developers, search engines and other languages need, a third of the site."""
    site = Path(config.site_dir)
    for file in (*site.rglob("*.map"), *site.glob("sitemap.xml*")):
        file.unlink()
    shutil.rmtree(site / "assets" / "javascripts" / "lunr")
