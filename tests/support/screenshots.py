"""Pictures of a report for the README: its top, light and dark. Real Chromium, no network.

    harness report results/runs/mini
    python tests/support/screenshots.py results/runs/mini/report.html results

writes ``report-light.png`` and ``report-dark.png`` (1,280 px wide).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's own Chromium (Debian: apt-get install chromium), driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=[*ARGUMENTS])
        yield browser
        browser.close()


def shoot(report: Path, folder: Path) -> None:
    with chromium() as browser:
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
            page.goto(report.resolve().as_uri())
            page.screenshot(path=folder / f"report-{scheme}.png")


if __name__ == "__main__":
    shoot(Path(sys.argv[1]), Path(sys.argv[2]))
