"""The README tells the truth about the tree: every module has its line there, and every line a module."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("harness", "backends", "judges", "tasks")


def listed() -> set[str]:
    """The paths that the README's tree names."""
    tree = re.search(r"## The repository\n+```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert tree is not None
    paths, folder = set(), ""
    for line in tree[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
            assert (ROOT / name).exists(), f"README's tree names {name}, which is not there"
        else:
            paths.add(folder + name)
    return paths


def test_every_module_has_a_line_in_the_readme_and_every_line_a_module() -> None:
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    there = listed()
    covered = {m for m in modules if m in there or any(m.startswith(p) for p in there if p.endswith("/"))}
    assert modules == covered
    assert all((ROOT / path).exists() for path in there)
