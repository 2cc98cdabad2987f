"""The page on threats names tests that there are, and every line of its table names one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")


def test_each_promise_names_tests_that_there_are() -> None:
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    table = PAGE.partition("## What is tested")[2].partition("## Not defended")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") and "threat | held" not in line]
    assert len(lines) > 20
    for line in lines:
        named = re.findall(r"`([^`]+)`", line.split("|")[3])
        assert named, line
        for name in named:
            assert (ROOT / name).is_file() if "/" in name else name in tests, name


def test_the_page_names_modules_and_keys_that_there_are() -> None:
    for name in re.findall(r"`(\w+\.py)`", PAGE):
        assert list((ROOT / "harness").rglob(name)), name
    for name in re.findall(r"`(harness/[\w/.]+)`", PAGE):
        assert (ROOT / name).is_file(), name
