"""``harness simulate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from harness.commands.help_texts import example
from harness.commands.printing import console


@click.command(epilog=example("harness simulate", "harness simulate --runs 200 --out coverage.csv"))
@click.option("--runs", default=2_000, show_default=True, type=click.IntRange(min=1), metavar="N",
              help="Simulated runs of each setting.")  # fmt: skip
@click.option("--documents", default=330, show_default=True, type=click.IntRange(min=2), metavar="N",
              help="Documents of a task.")  # fmt: skip
@click.option("--family-runs", default=1_000, show_default=True, type=click.IntRange(min=1), metavar="N",
              help="Simulated runs of each family of comparisons.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the simulation.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="Write the table, as Markdown beside it too.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def simulate(runs: int, documents: int, family_runs: int, seed: int, out: Path | None, as_json: bool) -> None:
    """Print how often the leaderboard's 95 % intervals hold the truth, and what its star finds, in
    simulated runs.

    Rates, means and paired differences, of one seed and of several; then families of 14 comparisons: how
    often their simultaneous intervals hold the truth together, and the star's power beside Holm's. No
    model is run.
    """
    from harness.studies import family_simulation, simulation

    shown = console(stderr=as_json)
    single = simulation.simulate(simulation.settings(), runs=runs, n=documents, seed=seed, console=shown)
    families = family_simulation.simulate(
        family_simulation.settings(), runs=family_runs, n=documents, seed=seed, console=shown
    )
    tables = [simulation.make_table(single), family_simulation.make_table(families)]
    if out is not None:
        simulation.write(tables, out, " ".join(["harness", *sys.argv[1:]]))
    if as_json:
        click.echo(
            json.dumps(
                {"intervals": simulation.rows(single), "families": simulation.rows(families)}, indent=2
            )
        )
        return
    for table in tables:
        simulation.show(table, shown)
