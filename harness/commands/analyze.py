"""``harness analyze``: what a finished run says beyond its leaderboard."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import Commands, console, example


@click.group(cls=Commands)
def analyze() -> None:
    """Look closer at a finished run; nothing is computed anew or written."""


@analyze.command(
    "flops", epilog=example("harness analyze flops results/runs/mini", "harness analyze flops RUN --json")
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def analyze_flops(run: Path, as_json: bool) -> None:
    """Print what each method's training cost in a RUN: FLOPs against vanilla, tokens, time, memory."""
    from harness import analysis

    record = analysis.flops(run)
    if as_json:
        import json

        click.echo(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        analysis.show_flops(record, console())
