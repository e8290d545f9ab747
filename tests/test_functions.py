"""Functions that fit on a screen, as CONTRIBUTING.md asks for."""

import ast
import re
from collections.abc import Iterator

from tests.support.commands import ROOT

_RULE = re.compile(r"under (\d+) lines, docstring and blank lines\s+not counted")
LIMIT = int(_RULE.search((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))[1])


def _lengths(text: str) -> Iterator[tuple[str, int]]:
    """Yields the name of every function, and its lines from ``def`` on."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            counted = {number for number in range(node.lineno, node.end_lineno + 1) if lines[number - 1].strip()}
            if ast.get_docstring(node) is not None:
                counted -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
            yield node.name, len(counted)


def test_docstrings_and_blank_lines_are_not_counted():
    text = 'def f(\n    x,\n):\n    """Does.\n\n    Much.\n    """\n\n    y = x  # why\n    # how\n    return y\n'
    assert list(_lengths(text)) == [("f", 6)]


def test_functions_of_the_package_fit_on_a_screen():
    files = [*(ROOT / "spo_jax").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    lengths = [(file, *found) for file in files for found in _lengths(file.read_text(encoding="utf-8"))]
    assert len(lengths) > 1000
    assert [f"{file.relative_to(ROOT)}: {name} has {lines}" for file, name, lines in lengths if lines >= LIMIT] == []
