"""Pictures of a report for the README: light and wide, dark and narrow. Real Chromium, no network.

    harness report results/runs/mini
    python tests/support/screenshots.py results/runs/mini/report.html results

writes ``report-light.png`` (1,280 px) and ``report-dark.png`` (390 px, dark mode, the exchanges).
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
        wide = browser.new_page(viewport={"width": 1280, "height": 1400}, color_scheme="light")
        wide.goto(report.resolve().as_uri())
        wide.screenshot(path=folder / "report-light.png")
        narrow = browser.new_page(
            viewport={"width": 390, "height": 1200}, color_scheme="dark", reduced_motion="reduce"
        )
        narrow.goto(report.resolve().as_uri())
        narrow.check("#changed")
        narrow.locator("#exchanges").evaluate("element => element.scrollIntoView()")
        narrow.screenshot(path=folder / "report-dark.png")


if __name__ == "__main__":
    shoot(Path(sys.argv[1]), Path(sys.argv[2]))
