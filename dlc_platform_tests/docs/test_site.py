"""The site is whole, loads nothing from elsewhere, and names no command that there is not."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import dlc_platform
from dlc_platform.cli.app import app
from dlc_platform.docs import reference
from dlc_platform.version import __version__

DOCS = Path(dlc_platform.__file__).parent / "docs"
ROOT = DOCS.parents[1]
_REMOTE = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"' >]*""")
_CODE = re.compile(r"```.*?```|^(?: {4}.*\n?)+|`[^`]+`", re.S | re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a link to nowhere, a page outside the menu and a menu without its page fail."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(DOCS / "mkdocs.yml")]
    built = subprocess.run([*command, "--site-dir", str(folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        assert not _REMOTE.findall(page.read_text(encoding="utf-8")), page.name
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_the_site_says_its_version_and_has_the_changelog(site: Path) -> None:
    assert f"dlc_platform {__version__}" in (site / "index.html").read_text(encoding="utf-8")
    assert f"{__version__}" in (site / "changelog.html").read_text(encoding="utf-8")
    assert 'href="../changelog.html"' in (site / "operations" / "upgrade.html").read_text(encoding="utf-8")


def test_links_of_pages_lead_to_files_of_the_repository() -> None:
    for page in (ROOT / "README.md", *DOCS.glob("pages/**/*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_readme_names_every_page() -> None:
    named = re.findall(r"\]\(([^)]+\.md)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {ROOT / name for name in named} >= {*DOCS.glob("pages/**/*.md")}


@pytest.mark.machine
def test_an_installed_package_says_where_its_site_is(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    built = subprocess.run(
        [uv, "build", "--wheel", "--out-dir", str(tmp_path), str(ROOT)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "installed")
    program = [sys.executable, "-c", "from dlc_platform.cli.app import main; main()", "docs"]
    installed = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    said = subprocess.run(program, cwd=tmp_path, env=installed, capture_output=True, text=True, check=True).stdout
    page = Path(said.strip().removeprefix("file://"))
    assert page.is_relative_to(tmp_path) and page.is_file()
    assert (page.parent / "reference" / "lab-yaml.html").is_file()


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command in the code of a page, without what follows a pipe or a comment."""
    for code in _CODE.findall(text):
        for line in re.split(r"\n|&&|\$\(", code.replace("\\\n", " ")):
            if found := re.search(r"(?:^|[ `'\"])dlc-platform ([a-z-][^`#|)\"']*)", line):
                yield found[1].split()


def test_pages_name_only_commands_and_options_that_there_are() -> None:
    known = {path: command for path, command, _ in reference.commands()}
    general = {option for parameter in typer.main.get_command(app).params for option in parameter.opts} | {"--help"}
    seen = 0
    for page in (ROOT / "README.md", *DOCS.glob("pages/**/*.md"), DOCS.parent / "CHANGELOG.md"):
        if page.parent == reference.PAGES:
            continue
        for words in commands_of(page.read_text(encoding="utf-8")):
            said = f"{page.name}: dlc-platform {' '.join(words)}"
            if words[0].startswith("--"):
                assert words[0] in general, said
                continue
            command = _called(known, words)
            assert command is not None, said
            options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            assert {word for word in words if re.match(r"--[a-z]", word)} <= options, said
            seen += 1
    assert seen > 40


def _called(known: dict[tuple[str, ...], Any], words: list[str]) -> Any:
    """The command that words call; a group alone lists, as `models HOME` does."""
    return known.get(tuple(words[:2])) or known.get((words[0],)) or known.get((words[0], "list"))


def test_the_tests_that_security_names_are_there() -> None:
    text = (DOCS / "pages" / "security.md").read_text(encoding="utf-8")
    tests = ROOT / "dlc_platform_tests"
    files = re.findall(r"`([\w/]*test_\w+\.py)`", text)
    assert len(files) > 20
    assert [file for file in files if not (tests / file).is_file()] == []
    everything = "\n".join(file.read_text(encoding="utf-8") for file in tests.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in everything] == []
