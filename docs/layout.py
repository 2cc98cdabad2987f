"""Writes docs/layout.md: every module with the first sentence of its docstring.

    python docs/layout.py

tests/test_layout.py holds the page to what this writes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "layout.md"
PACKAGES = ("harness", "backends", "judges", "tasks")
OPENING = """# Where things are

`harness/` is the spine: its packages are the steps of the walk from a recipe to the leaderboard, and their
imports point one way (pyproject.toml, checked by `make check`). `backends/` has a file for each
fine-tuning method, `judges/` one for each judge, `tasks/` a folder for each benchmark. `tests/` mirrors them.
`results/` has committed leaderboards and `LOG.md`, every experiment; `results/runs/` is git-ignored.

How to add a method, a task, a judge or an engine: [backends/](../backends/README.md#add-a-method),
[tasks/](../tasks/README.md#add-a-task), [judges/](../judges/README.md#add-a-judge-in-code),
[harness/engines/](../harness/engines/README.md#add-an-engine).

The lines are the modules' own. `python docs/layout.py` writes this page.
"""


def first_sentence(module: Path) -> str:
    """Of a module's docstring. Raises ValueError where it has none."""
    said = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not said:
        raise ValueError(f"{module.relative_to(ROOT)} has no docstring")
    words = " ".join(said.split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s+(?=[A-Z`])", words)[0].rstrip(".:")


def folders(package: Path) -> Iterator[Path]:
    """A package and those below it."""
    yield package
    for below in sorted(package.iterdir()):
        if (below / "__init__.py").is_file():
            yield from folders(below)


def section(folder: Path) -> str:
    """A folder's heading and a line for each of its modules."""
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    lines = [f"- `{module.name}`: {first_sentence(module)}" for module in modules]
    own = folder / "__init__.py"
    said = [first_sentence(own) + "."] if own.read_text(encoding="utf-8").strip() else []
    depth = len(folder.relative_to(ROOT).parts) + 1
    return "\n\n".join(
        [f"{'#' * depth} {folder.relative_to(ROOT)}/", *said, *(["\n".join(lines)] if lines else [])]
    )


def page() -> str:
    found = [section(folder) for name in PACKAGES for folder in folders(ROOT / name)]
    return OPENING + "\n" + "\n\n".join(found) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
