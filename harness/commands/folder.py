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
    import contextlib
    import shutil

    from harness import comparison, epochs, gallery, plan, run_folder
    from harness.analyses.shared import FOLDER
    from harness.store import files_below

    config = run_folder.stored_config(run)
    cells = run.glob("*/*/seed-*")
    parts = ("checkpoint", "epoch-*/checkpoint", ".training")  # the last: what an unfinished one left
    targets = sorted(found for cell in cells for part in parts for found in cell.glob(part))
    if everything:  # what the harness wrote there, and nothing else
        folders = {run / FOLDER, *(run / cell.folder.parts[0] for cell in plan.cells(config))}
        own = (comparison.REPORT, gallery.FOLDER, "run.json", "leaderboard.done.json")
        names = (*comparison.FILES, *epochs.outputs(config), *own)
        files = {run / name for name in names}
        targets = sorted(path for path in folders | files if path.exists())
    if not targets:
        click.echo(f"{run}: nothing to remove.")
        return
    size = sum(file.lstat().st_size for target in targets for file in files_below(target))
    what = f"the whole run in {run}" if everything else f"{len(targets)} checkpoints of {run}"
    if not (yes or click.confirm(f"Remove {what} ({size / 2**20:,.0f} MiB)?")):
        click.echo("Nothing removed.")
        return
    with run_folder.lock(run):
        for target in targets:
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()  # of a link the link alone
    if everything:
        (run / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # files of the user's own stay
            run.rmdir()
    click.echo(f"Removed {what} ({size / 2**20:,.0f} MiB).")
