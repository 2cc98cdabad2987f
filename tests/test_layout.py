"""docs/layout.md tells the truth about the tree: it is what docs/layout.py writes today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_has_every_module_as_it_is_today() -> None:
    spec = importlib.util.spec_from_file_location("layout", ROOT / "docs" / "layout.py")
    assert spec is not None
    assert spec.loader is not None
    layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layout)
    page = layout.page()
    assert layout.PAGE.read_text(encoding="utf-8") == page, "run: python docs/layout.py"
    modules = {path for name in layout.PACKAGES for path in (ROOT / name).rglob("*.py")}
    named = {
        line.partition("`: ")[0].removeprefix("- `") for line in page.splitlines() if line.startswith("- `")
    }
    assert {path.name for path in modules if path.name != "__init__.py"} == named
