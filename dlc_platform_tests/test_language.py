"""The plain English of the code, as far as a machine can hold it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import dlc_platform


def docstrings() -> Iterator[tuple[str, str]]:
    """Every docstring of the package, with the place that it stands in."""
    root = Path(dlc_platform.__file__).parent
    for file in sorted(root.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = ast.get_docstring(node)
                if words:
                    yield f"{file.relative_to(root)}: {getattr(node, 'name', 'module')}", words


def test_the_name_of_a_test_has_at_most_sixty_characters() -> None:
    long = []
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > 60:
                long.append(f"{file.name}: {node.name}")
    assert long == []


def test_a_docstring_opens_with_what_the_thing_is_or_does() -> None:
    said = dict(docstrings())
    assert len(said) > 1000
    assert [place for place, words in said.items() if words.split()[0].rstrip(",") in ("What", "Whether", "How")] == []
