"""``harness agreement``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.help_texts import example
from harness.commands.printing import console, print_json


@click.command(
    epilog=example(
        "harness agreement results/runs/mini",
        "harness agreement RUN --template labels.jsonl   # then fill in harmful: true or false",
        "harness agreement RUN --labels labels.jsonl",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="People's labels, JSON lines: cell, task, exchange_id, harmful.")  # fmt: skip
@click.option("--template", type=click.Path(path_type=Path), metavar="FILE",
              help="Write a random sample of exchanges to label (ids, no texts), and end.")  # fmt: skip
@click.option("--sample", default=200, show_default=True, type=click.IntRange(min=1), help="Its size.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def agreement(run: Path, labels: Path | None, template: Path | None, sample: int, as_json: bool) -> None:
    """Print how far a RUN's judges agree, with each other and with people.

    Raw agreement, Cohen's kappa, Krippendorff's alpha and the disputed exchanges; with labels each judge's
    precision and recall, and safe rates corrected for its errors.
    """
    from harness.analyses import agreement, agreement_report
    from harness.run import run_folder

    if template is not None:
        count = agreement.write_template(run, template, sample)
        click.echo(
            f"{template}: {count} exchanges to label; their texts are in {run}/CELL/TASK/responses.jsonl"
        )
        return
    with run_folder.open_run(run):
        record = agreement.analyse(run, labels)
    if as_json:
        print_json(record)
    else:
        agreement_report.show(record, console())
