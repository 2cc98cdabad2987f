"""``harness data``: the rows that a method trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import (
    COLUMNS,
    MIX,
    SAFETY_DATA,
    SETTINGS,
    Commands,
    apply,
    console,
    example,
    resolve,
)

if TYPE_CHECKING:
    from harness.config import RunConfig


@click.group(cls=Commands)
def data() -> None:
    """Look at the data that a method trains on, or write it for another trainer."""


def data_options(command: Any) -> Any:
    options = [
        click.option("--method", required=True, metavar="NAME", help="Fine-tuning method."),
        click.option("--train-task", default="gsm8k-mini", show_default=True, help="Train task."),
        click.option("--data", "rows", metavar="DATA",
                     help="What to use instead of the task's rows (as compare's --train-data)."),
        COLUMNS,
        MIX,
        SAFETY_DATA,
        click.option("--tokenizer", default="mini", show_default=True, metavar="MODEL",
                     help="Whose tokenizer counts the tokens (SDFT: the model that rewrites)."),
        SETTINGS,
    ]  # fmt: skip
    return apply(command, options)


@data.command(
    "show",
    epilog=example(
        "harness data show --method lookahead-true",
        "harness data show --method lookahead-virtual --train-task samsum-mini --index 3",
    ),
)
@data_options
@click.option("--index", default=0, show_default=True, type=click.IntRange(min=0), help="Which row, from 0.")
def data_show(index: int, **flags: Any) -> None:
    """Print one example as a method trains on it: preview, masked and trained tokens told apart."""
    from harness import dataview

    config = _data_config(flags)
    dataview.show(config, config.methods[0], flags["train_task"], index, console())


@data.command(
    "export",
    epilog=example(
        "harness data export --method lookahead-true --train-task gsm8k --data in.jsonl --out out.jsonl"
    ),
)
@data_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Written as {"messages": […]} lines.',
)
@click.option("--limit", type=click.IntRange(min=1), help="The first so many rows (default: all).")
def data_export(out: Path, limit: int | None, **flags: Any) -> None:
    """Write a method's transformed data for any other trainer (TRL, LLaMA-Factory, Axolotl)."""
    from harness import dataview

    config = _data_config(flags)
    count = dataview.export(config, config.methods[0], flags["train_task"], limit, out, click.echo)
    click.echo(f"{out}: {count:,} examples")


def _data_config(flags: dict[str, Any]) -> RunConfig:
    return resolve(
        None,
        flags["settings"],
        methods=[flags["method"]],
        train_tasks=[flags["train_task"]],
        train_data=flags["rows"],
        columns=flags["columns"],
        mix=flags["mix"],
        safety_data=flags["safety_data"],
        model=flags["tokenizer"],
    )
