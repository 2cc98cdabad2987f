"""``harness data``: the rows that a method trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.configured import resolve
from harness.commands.help_texts import Commands, example
from harness.commands.option_values import one
from harness.commands.options import COLUMNS, MIX, RECIPE, SAFETY_DATA, SETTINGS, TRAIN_DATA, apply, spelled
from harness.commands.printing import console
from harness.contracts import UsageError

if TYPE_CHECKING:
    from harness.config import RunConfig


@click.group(cls=Commands)
def data() -> None:
    """Look at the data that a method trains on, or write it for another trainer."""


def data_options(command: Any) -> Any:
    options = [
        spelled("--method", "--methods", "method", callback=one, multiple=True, required=True,
                     metavar="NAME", help="Fine-tuning method."),
        spelled("--train-task", "--train-tasks", "train_task", callback=one, multiple=True,
                     metavar="NAME", help="Train task (default: the recipe's first; mini: gsm8k-mini)."),
        TRAIN_DATA,
        click.option("--data", "rows", hidden=True),  # its former name
        COLUMNS,
        MIX,
        SAFETY_DATA,
        spelled("--model", "--tokenizer", "model", metavar="MODEL",
                     help="Whose tokenizer counts the tokens (SDFT: the model that rewrites)."),
        RECIPE,
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
    from harness.training import preview

    config = _data_config(**flags)
    preview.show(config, config.methods[0], config.train_tasks[0], index, console())


@data.command(
    "export",
    epilog=example("harness data export --method lookahead-true --train-data in.jsonl --out out.jsonl"),
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
    from harness.training import preview

    config = _data_config(**flags)
    count = preview.export(config, config.methods[0], config.train_tasks[0], limit, out, click.echo)
    click.echo(f"{out}: {count:,} examples")


def _data_config(
    recipe: str | None,
    settings: tuple[str, ...],
    method: str,
    train_task: str | None,
    train_data: Any,
    rows: str | None,
    **flags: Any,
) -> RunConfig:
    """The recipe, for one method and one train task."""
    from harness.run import plan
    from harness.run.context import quiet

    quiet()
    if rows is not None and train_data is not None:
        raise UsageError("--train-data names the rows to train on; leave --data out")
    if train_task is None:
        train_task = resolve(recipe, settings, model=flags["model"]).train_tasks[0]
    config = resolve(
        recipe, settings, methods=[method], train_tasks=[train_task], train_data=train_data or rows, **flags
    )
    plan.check_train_data(config)
    return config
