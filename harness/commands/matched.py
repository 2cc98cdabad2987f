"""``harness analyze matched``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.help_texts import example
from harness.commands.printing import console, print_json
from harness.run import metrics


@click.command(
    epilog=example(
        "harness analyze matched results/runs/budget",
        "harness analyze matched RUN --utility 45 --metric rsr --json",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--utility", type=click.FloatRange(0, 100), metavar="U",
              help="Compare here, in percent (default: the highest that all methods reach).")  # fmt: skip
@click.option("--metric", type=click.Choice(metrics.headlines()), default="jsr", show_default=True,
              help="The safe rate: of prefilled or of raw requests.")  # fmt: skip
@click.option("--judge", metavar="NAME", help="A judge of the run (default: its first).")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def matched(run: Path, utility: float | None, metric: Any, judge: str | None, as_json: bool) -> None:
    """Compare the safety of a RUN's methods where their utility is the same.

    RUN is one of harness sweep budget, or of harness compare --eval-every-epoch. Safety is read where a
    training first reaches the utility; nothing is extrapolated. Writes RUN/analysis/matched.json,
    matched.csv and a figure for each train task.
    """
    from harness.analyses import matching, matching_report
    from harness.run import run_folder

    with run_folder.open_run(run):
        record = matching.matched(run, utility, metric, judge)
        files = matching_report.write(record, run)
    if as_json:
        print_json(record)
        return
    terminal = console()
    matching_report.show(record, terminal)
    terminal.print(f"\nFiles: {', '.join(map(str, files))}", highlight=False, soft_wrap=True, markup=False)
