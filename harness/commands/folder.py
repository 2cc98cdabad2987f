"""What is done with a run's folder: score, clean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.help_texts import example
from harness.commands.options import INTERVALS, listed
from harness.commands.printing import console
from harness.contracts import UsageError

if TYPE_CHECKING:
    from harness.config import RunConfig


@click.command(epilog=example("harness score results/runs/mini"))
@click.argument("run", type=click.Path(path_type=Path))
@INTERVALS
def score(run: Path, intervals: bool) -> None:
    """Compute a RUN's scores and leaderboard anew from its responses and verdicts."""
    from harness.pipeline import cleaning, table
    from harness.run import run_folder

    with run_folder.open_run(run) as config:
        cleaning.unmark(run)
        table.present(config, run, console(), intervals=intervals)


@click.command(
    epilog=example(
        "harness clean results/runs/mini",
        "harness clean results/runs/mini --row sdft --dry-run",
        "harness clean results/runs/mini --all --yes",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Remove the whole run folder, scores included.")
@listed("--row", "--rows", "rows",
        help="Take rows out (methods, variants, checkpoints), trainings and answers included.")  # fmt: skip
@listed("--task", "--tasks", "tasks",
        help="Take tasks out: train tasks with their rows, or further columns. With --row: only what these "
        "rows have for them, to be made anew.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List what would be removed; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(
    run: Path, everything: bool, rows: list[str] | None, tasks: list[str] | None, dry_run: bool, yes: bool
) -> None:
    """Free a RUN's disk space: its checkpoints and unfinished trainings, or with --all everything.

    Scores, responses and verdicts stay; the same compare would train anew. With --row or --task a row or a
    task is taken out, and the leaderboard is made anew.
    """
    from harness.pipeline import cleaning
    from harness.run import run_folder

    if everything and (rows or tasks):
        raise UsageError("--all removes the whole run: leave out --row and --task")
    with run_folder.open_run(run) as config:
        if bool(rows) != bool(tasks) and cleaning.is_interrupted(run, config, rows or (), tasks or ()):
            _table(run, config)
            return
        targets, after = _chosen(run, config, rows, tasks, everything=everything)
        if not targets and after == config:
            click.echo(f"{run}: nothing to remove.")
            return
        size = f"{cleaning.size(targets) / 2**20:,.0f} MiB"
        what = f"the whole run in {run}" if everything else f"{len(targets)} checkpoints of {run}"
        if rows or tasks:
            what = f"{' of '.join(', '.join(names) for names in (tasks, rows) if names)} from {run}"
        if dry_run:
            click.echo("".join(f"{target}\n" for target in targets) + f"Would remove {what} ({size}).")
            return
        if not (yes or _agreed(f"Remove {what} ({size})?")):
            click.echo("Nothing removed.")
            return
        if rows or tasks:
            _take_out(run, config, after, targets)
        else:
            cleaning.remove(run, targets)
    if everything:
        cleaning.remove_empty(run)
    click.echo(f"Removed {what} ({size}).")
    if rows or tasks:
        _tell_derived(run)


def _agreed(question: str) -> bool:
    """What somebody answers. Raises UsageError where nobody does: in a script, whose input has ended."""
    try:
        return click.confirm(question)
    except click.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise
        raise UsageError("nothing removed, since nobody answered; --yes removes without asking") from None


def _table(run: Path, config: RunConfig) -> None:
    from harness.pipeline import table

    table.present(config, run, console())


def _chosen(
    run: Path, config: RunConfig, rows: list[str] | None, tasks: list[str] | None, *, everything: bool
) -> tuple[list[Path], RunConfig]:
    """What is to be removed, and the run's configuration afterwards."""
    from harness.pipeline import cleaning

    if rows and tasks:
        return cleaning.again(run, config, rows, tasks), config
    if rows or tasks:
        after = cleaning.without(config, rows or (), tasks or ())
        return cleaning.list_removed(run, config, after), after
    return (cleaning.whole if everything else cleaning.weights)(run, config), config


def _tell_derived(run: Path) -> None:
    """Tell which files of a run still hold what was taken out."""
    derived = [str(run / name) for name in ("figures", "analysis") if (run / name).exists()]
    if derived:
        click.echo(f"Not made anew: {' and '.join(derived)} (harness figures {run}; harness analyze).")


def _take_out(run: Path, before: RunConfig, after: RunConfig, targets: list[Path]) -> None:
    """Remove rows or tasks, from the record too, and make the leaderboard anew where there was one."""
    from harness.pipeline import cleaning

    scored = (run / "leaderboard.csv").exists()
    cleaning.unmark(run)
    cleaning.remove(run, targets)
    cleaning.forget(run, before, after)
    if scored:
        _table(run, after)
