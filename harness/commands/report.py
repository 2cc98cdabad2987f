"""``harness report`` and ``harness figures``: a finished run for people to read."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.help_texts import example


@click.command(
    epilog=example(
        "harness report results/runs/mini", "harness report RUN --show-harmful --out for-reviewers.html"
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--show-harmful", is_flag=True,
              help="Put the texts of safety tasks in too: requests, answers, judges' reasons.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Default: RUN/report.html.")
@click.option("--open", "show", is_flag=True, help="Open it in a browser.")
def report(run: Path, show_harmful: bool, out: Path | None, show: bool) -> None:
    """Write a RUN's report: one HTML file that opens from disk and asks the network for nothing.

    It opens with safety against utility and one bottom line per train task. The verdict in detail, the
    leaderboard, figures, categories, agreement, costs, configuration, and every exchange follow.
    """
    from harness import report as pages
    from harness.run import run_folder

    with run_folder.open_run(run):
        written = pages.write(run, out, show_harmful=show_harmful)
    click.echo(f"{written}: {written.stat().st_size / 1e6:.1f} MB")
    if show_harmful:
        click.echo("It contains requests for harm and answers to them: mind who gets it.", err=True)
    if show:
        click.launch(str(written))


@click.command(epilog=example("harness figures results/runs/mini", "harness figures RUN --out paper/figures"))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Default: RUN/figures.")
def figures(run: Path, out: Path | None) -> None:
    """Draw a RUN's figures as SVG, PDF and PNG: safety against utility and cost, training curves."""
    from harness.report import plots
    from harness.run import run_folder

    with run_folder.open_run(run):
        written = plots.write(run, out)
    for path in written:
        click.echo(path)
