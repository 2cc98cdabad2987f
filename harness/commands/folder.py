"""What is done with a run's folder: score, clean."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import console, example


@click.command(epilog=example("harness score results/runs/mini"))
@click.argument("run", type=click.Path(path_type=Path))
def score(run: Path) -> None:
    """Compute a RUN's scores and leaderboard anew from its responses and verdicts."""
    from harness import comparison, crash, run_folder

    with run_folder.opened(run) as config:
        (run / "leaderboard.done.json").unlink(missing_ok=True)
        crash.point("scores.unmarked", run / "leaderboard.done.json")
        comparison.table(config, run, console())


@click.command(
    epilog=example("harness clean results/runs/mini", "harness clean results/runs/mini --all --yes")
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Remove the whole run folder, scores included.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(run: Path, everything: bool, yes: bool) -> None:
    """Free a RUN's disk space: its checkpoints and unfinished trainings, or with --all everything.

    Scores, responses and verdicts stay; the same compare would train anew.
    """
    from harness import cleaning, run_folder

    with run_folder.opened(run) as config:
        targets = cleaning.whole(run, config) if everything else cleaning.weights(run, config)
        if not targets:
            click.echo(f"{run}: nothing to remove.")
            return
        size = f"{cleaning.size(targets) / 2**20:,.0f} MiB"
        what = f"the whole run in {run}" if everything else f"{len(targets)} checkpoints of {run}"
        if not (yes or click.confirm(f"Remove {what} ({size})?")):
            click.echo("Nothing removed.")
            return
        cleaning.remove(run, targets)
    if everything:
        cleaning.remove_empty(run)
    click.echo(f"Removed {what} ({size}).")
