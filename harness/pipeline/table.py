"""The leaderboard published and printed, and the report beside it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.leaderboard import publish


def present(config: RunConfig, out: Path, console: Console, *, intervals: bool = False) -> None:
    """Publish the leaderboard and write the report; print the first, and what it comes to."""
    from harness.leaderboard import epochs, show, tables

    fresh = publish.publish(config, out)
    written = tables.read(out)
    notes = written.attrs["notes"]
    show.render(written, console, title=publish.title(config), notes=notes, intervals=intervals)
    if epochs.asked(config):
        epochs.render(config, out, console)
    show.render_verdict(written, console)
    console.print()
    _report(out, console, anew=fresh)
    files = ", ".join(str(out / f"leaderboard.{kind}") for kind in ("md", "csv", "json", "tex"))
    console.print(f"Files: {escape(files)}", highlight=False, soft_wrap=True)


def _report(out: Path, console: Console, *, anew: bool) -> None:
    """Write the report where there is none of these figures, and say where it is."""
    from harness import report

    try:
        if anew or not (out / publish.REPORT).exists():
            report.write(out)
    except HarnessError as error:  # the leaderboard stands
        console.print(escape(f"No report: {error}"), style="yellow", highlight=False, soft_wrap=True)
    else:
        console.print(escape(f"Report: {out / publish.REPORT}"), highlight=False, soft_wrap=True)
