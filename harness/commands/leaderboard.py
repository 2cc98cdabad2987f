"""``harness leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import console, example


@click.command(
    epilog=example("harness leaderboard results/runs/mini", "harness leaderboard results/runs/mini --json")
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def leaderboard(runs: tuple[Path, ...], as_json: bool) -> None:
    """Print the leaderboard of one or more RUNs."""
    from rich.console import Console

    from harness import comparison

    for run in runs:
        config = comparison.stored_config(run)
        with comparison.lock(run):
            comparison.table(config, run, Console(quiet=True) if as_json else console())
        if as_json:
            click.echo((run / "leaderboard.json").read_text(encoding="utf-8"), nl=False)
