"""``harness mini``: the embedded world."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.help_texts import Commands, example
from harness.commands.printing import console
from harness.contracts import HarnessError


@click.group(cls=Commands)
def mini() -> None:
    """The embedded mini world: rebuild its base model, or print its properties."""


@mini.command("build", epilog=example("harness mini build --out /tmp/seed-model"))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the model goes."
)
@click.option("--seed", default=1, show_default=True, help="Random seed (1: the shipped model's).")
def mini_build(out: Path, seed: int) -> None:
    """Build the base model from nothing (15 minutes on one core) and print its properties."""
    from harness.studies import mini_properties

    mini_properties.build_and_show(out, seed, console())


@mini.command(
    "properties", epilog=example("harness mini properties", "harness mini properties --model /tmp/seed-model")
)
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="A base model (default: the shipped one)."
)
def mini_properties(model: Path | None) -> None:
    """Measure the base model: safe, helpful, as shallow as intended, and what vanilla does to it."""
    from harness.studies import mini_properties

    if not mini_properties.show(model, console()):
        raise HarnessError("the base model lacks a property that it must have (see the table)")
