"""Every line of CONVENTIONS.md names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "CONVENTIONS.md").read_text().splitlines() if line.startswith("- ")]


def test_there_are_conventions() -> None:
    assert len(LINES) > 15


def test_tests_that_docstrings_name_exist() -> None:
    named = {
        name
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"tests/\w[\w/]*\.py", path.read_text())
    }
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("line", LINES)
def test_the_named_test_exists(line: str) -> None:
    match = re.search(r"\[(tests/\S+\.py)::(test_\w+)\]$", line)
    assert match, f"no test is named at the end of {line!r}"
    tree = ast.parse((ROOT / match[1]).read_text())
    assert match[2] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
