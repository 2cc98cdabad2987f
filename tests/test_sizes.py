"""The product stays in pieces that are read in one go: short functions, few long ones, files of one subject.

What is larger stands in a list below, with its reason. Once it has become smaller, or is gone, its name
has to leave the list.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("harness", "backends", "judges", "tasks")
LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 60  # lines, from ``def`` to the end, what is nested in it included
LONG_FUNCTION = 40
MOST_LONG_FUNCTIONS = 5

FILES = {
    "harness/mini/grammar.py": "tasks hash it as their source: another text would be another task",
}
# Functions longer than the longest.
FUNCTIONS: dict[str, str] = {}
# Long functions beyond the few that may be.
LONG_FUNCTIONS: dict[str, str] = {
    "harness/mini/grammar.py:dialogue": "tasks hash it as their source: another text would be another task",
}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file, as FILE:NAME, and its lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", node.end_lineno - node.lineno + 1


def longer(lines: int) -> dict[str, int]:
    """The product's functions of more than so many lines."""
    return {name: count for path in sources() for name, count in functions(path) if count > lines}


def test_functions_are_measured() -> None:
    measured = dict(functions(Path(__file__)))
    assert measured["tests/test_sizes.py:sources"] == 2
    assert measured["tests/test_sizes.py:functions"] == 6
    assert len(sources()) > 200


def test_no_file_is_too_long() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    found = {
        path.relative_to(ROOT).as_posix(): count for path, count in lines.items() if count > LONGEST_FILE
    }
    assert {name: count for name, count in found.items() if name not in FILES} == {}
    assert sorted(FILES.keys() - found.keys()) == []


def test_no_function_is_too_long() -> None:
    found = longer(LONGEST_FUNCTION)
    assert {name: count for name, count in found.items() if name not in FUNCTIONS} == {}
    assert sorted(FUNCTIONS.keys() - found.keys()) == []


def test_few_functions_are_long() -> None:
    found = longer(LONG_FUNCTION)
    others = {name: count for name, count in found.items() if name not in {*FUNCTIONS, *LONG_FUNCTIONS}}
    assert len(others) <= MOST_LONG_FUNCTIONS, others
    assert sorted(LONG_FUNCTIONS.keys() - found.keys()) == []
