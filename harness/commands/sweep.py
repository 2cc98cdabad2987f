"""``harness sweep``: the same comparison under several values of one thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness.commands.configured import out_folder, resolve, resolve_stored
from harness.commands.help_texts import Commands, Sectioned, example
from harness.commands.option_values import names
from harness.commands.options import (
    JUDGES,
    apply,
    judging_options,
    method_option,
    recipe_argument,
    run_options,
)
from harness.commands.printing import console
from harness.contracts import UsageError


def numbers(kind: Callable[[str], Any], what: str) -> Callable[..., list[Any] | None]:
    """Reads an option's ``A,B``; ``what``: what it should have been."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> list[Any] | None:
        parts = names(ctx, param, value)
        try:
            return [kind(part) for part in parts] if parts is not None else None
        except ValueError:
            raise click.BadParameter(f"'{value}' is not a list of {what}") from None

    return read


def sweep_options(command: Any) -> Any:
    """What all sweeps share: compare's options, and a run that is there already."""
    options = [
        recipe_argument,
        click.option("--run", "existing", type=click.Path(path_type=Path), metavar="RUN",
                     help="Add to this run, under the configuration that it has, instead of a RECIPE."),
        JUDGES,
        judging_options,
        click.option("--dry-run", is_flag=True, help="Print the configuration and the plan; do nothing."),
        run_options,
        click.pass_context,
    ]  # fmt: skip
    return apply(command, options)


METHODS = method_option("Methods with that option (default: LookAhead's own).", metavar="A,B")


@click.group(cls=Commands)
def sweep() -> None:
    """Vary one thing, with all else as it is: a table, figures, and RUN/analysis.

    Each is a comparison of its own, in results/runs/<recipe>-sweep-<name>, or adds to a run. The same
    command goes on where it stopped; more values extend it.
    """


@sweep.command(
    "preview-length",
    cls=Sectioned,
    epilog=example(
        "harness sweep preview-length --values 1,2,4,6,8,12",
        "harness sweep preview-length --run results/runs/mini --values 2,4",
    ),
)
@click.option("--values", callback=numbers(int, "whole numbers, as in 1,2,4"), metavar="1,2,4",
              help="Previewed tokens (default: 1,2,4,6,8,12).")  # fmt: skip
@METHODS
@sweep_options
def preview_length(ctx: click.Context, /, **flags: Any) -> None:
    """How many answer tokens are previewed.

    LookAhead True with each length, the base model and vanilla: the paper's Fig. 4.
    """
    _sweep(ctx, "preview-length", **flags)


@sweep.command(
    "prefix",
    cls=Sectioned,
    epilog=example(
        "harness sweep prefix --train-tasks gsm8k-mini",
        'harness sweep prefix --values "Here we go. " --values "Sure. "',
    ),
)
@click.option("--values", multiple=True, metavar="TEXT",
              help="A prefix, put before the answer as it is: end it with a blank. Repeatable "
              "(default: the paper's three).")  # fmt: skip
@METHODS
@sweep_options
def prefix(ctx: click.Context, /, **flags: Any) -> None:
    """Which prefix is previewed.

    LookAhead Virtual with each prefix, the base model and vanilla: the paper's Fig. 5.
    """
    _sweep(ctx, "prefix", **flags)


@sweep.command(
    "prefill-depth",
    cls=Sectioned,
    epilog=example(
        "harness sweep prefill-depth --run results/runs/mini",
        "harness sweep prefill-depth llama2-7b-paper --methods vanilla,lookahead-virtual",
    ),
)
@method_option()
@sweep_options
def prefill_depth(ctx: click.Context, /, **flags: Any) -> None:
    """JSR when more of a harmful answer is given.

    All rows of a comparison at k = 1, 3, 5, 7 and 10. A run that is there answers the new depths alone.
    """
    _sweep(ctx, "prefill-depth", **flags)


@sweep.command(
    "budget",
    cls=Sectioned,
    epilog=example(
        "harness sweep budget --learning-rates 5e-4,1e-3 --epochs 3 --methods vanilla,lookahead-true"
    ),
)
@click.option("--learning-rates", "values", required=True, metavar="5e-4,1e-3", help="Each is trained.",
              callback=numbers(float, "numbers, as in 5e-4,1e-3"))  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), help="Each is scored (default: the recipe's).")
@method_option()
@sweep_options
def budget(ctx: click.Context, /, epochs: int | None, settings: tuple[str, ...], **flags: Any) -> None:
    """Safety against utility, by learning rate and epoch.

    Each method with each learning rate, scored after every epoch; harness analyze matched compares them
    where their utility is the same.
    """
    if epochs is not None:
        settings = (*settings, f"training.epochs={epochs}")
    flags["eval_every_epoch"] = True
    _sweep(ctx, "budget", settings=settings, **flags)


def _sweep(
    ctx: click.Context,
    name: str,
    recipe: str | None,
    existing: Path | None,
    out: Path | None,
    dry_run: bool,
    methods: list[str] | None = None,
    values: list[Any] | None = None,
    **flags: Any,
) -> None:
    from harness.config import trust
    from harness.plugins import plugin_files
    from harness.studies import sweeps

    if recipe and existing:
        raise UsageError(f"a RECIPE ({recipe}) and --run {existing}: give one of them")
    if methods and any(map(plugin_files.parse, methods)):  # they get names
        flags["methods"] = methods
    config = resolve_stored(existing, trust.ALL, **flags) if existing else resolve(recipe, **flags)
    methods = [*config.methods] if "methods" in flags else methods
    named = config.model_copy(update={"name": f"{config.name}-sweep-{name}"})
    folder = existing if existing and out is None else out_folder(named, out)
    sweeps.run(
        name,
        config,
        folder,
        console(),
        methods=methods,
        values=values,
        dry_run=dry_run,
        debug=ctx.obj["debug"],
    )
