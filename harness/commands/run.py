"""The walk and its parts: compare, train, respond, judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.configured import begun_with, judging_flags, out_folder, resolve, resolve_stored
from harness.commands.help_texts import Sectioned, example
from harness.commands.options import (
    INTERVALS,
    JUDGE_HELP,
    RECIPE,
    SETTINGS,
    answering_options,
    compare_options,
    engine_options,
    judging_options,
    listed,
    out_option,
    recipe_argument,
    training_options,
)
from harness.commands.printing import console
from harness.contracts import UsageError

if TYPE_CHECKING:
    from harness.config import RunConfig


@click.command(
    cls=Sectioned,
    epilog=example(
        "harness compare --methods all",
        "harness compare --methods vanilla,lookahead-true --train-tasks gsm8k-mini --seeds 1,2",
    ),
)
@compare_options
@INTERVALS
@click.option("--dry-run", is_flag=True, help="Print the plan and what it takes; do nothing.")
@click.option("--show-config", is_flag=True, help="With --dry-run: print all settings, too.")
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    recipe: str | None,
    out: Path | None,
    intervals: bool,
    dry_run: bool,
    show_config: bool,
    **flags: Any,
) -> None:
    """Fine-tune with each method, score every checkpoint, print the leaderboard.

    RECIPE is a packaged recipe or a YAML file (default: mini, the embedded world; with --model MODEL: real,
    the paper's tasks and budget). A run that was interrupted goes on where it stopped; finished work is kept.
    """
    from harness.pipeline import compare
    from harness.run.context import quiet

    if show_config and not dry_run:
        raise UsageError("--show-config prints the settings of a plan: add --dry-run")
    quiet()
    if dry_run:
        compare.fetch_nothing()
    config = resolve(recipe or begun_with(out), **flags)
    compare.compare(
        config,
        out_folder(config, out),
        console(),
        dry_run=dry_run,
        show_config=show_config,
        debug=ctx.obj["debug"],
        intervals=intervals,
    )


@click.command(
    cls=Sectioned,
    epilog=example(
        "harness align smollm2-135m --requests advbench.csv --out results/runs/smollm2-135m",
        "harness align my-recipe.yaml --set alignment.method=safety-mixing",
    ),
)
@recipe_argument
@training_options
@answering_options
@out_option()
@click.pass_context
def align(ctx: click.Context, /, recipe: str | None, out: Path | None, **flags: Any) -> None:
    """Make the recipe's base model safe on your own data, before anything is fine-tuned.

    RECIPE says how, under `alignment`: the method, harmful requests to refuse, harmless rows. `harness
    compare` takes the same step first. Prints the checkpoint's folder, which any command takes as --model.
    """
    from harness.pipeline import align as step
    from harness.run.context import quiet

    quiet()
    config = resolve(recipe or begun_with(out), **flags)
    if not config.alignment.method:
        raise UsageError(
            "this recipe aligns nothing: add --set alignment.method=deep-alignment --requests FILE"
        )
    click.echo(step.align(config, out_folder(config, out), console()).model)


@click.command(
    cls=Sectioned,
    epilog=example("harness train lookahead-true --train-tasks gsm8k-mini --out results/runs/one"),
)
@click.argument("method")
@RECIPE
@training_options
@engine_options
@out_option()
@click.pass_context
def train(ctx: click.Context, /, method: str, recipe: str | None, out: Path | None, **flags: Any) -> None:
    """Fine-tune with one METHOD into a run folder, without scoring."""
    from harness.pipeline import compare

    if method == "seed":
        raise UsageError("'seed' is the base model itself and is not trained (harness methods)")
    config = resolve(recipe or begun_with(out), methods=[method], **flags)
    method = config.methods[0]  # a file's class has a name
    own = {name: variant for name, variant in config.variants.items() if name == method}
    config = config.model_copy(update={"variants": own})
    folder = out_folder(config, out)
    compare.compare(
        config,
        folder,
        console(),
        debug=ctx.obj["debug"],
        until="train",
        kinds=("trained",),
        rows=[method],
    )
    for path in sorted(folder.glob(f"*/{method}/seed-*/checkpoint")):
        click.echo(path)


@click.command(
    cls=Sectioned,
    epilog=example(
        "harness respond ./my-checkpoint --name mine --tasks gsm8k-mini,hexphi_raw-mini --out runs/mine",
        "harness respond openai:my-model@http://localhost:8000/v1 --tasks advbench_raw",
        "harness respond mini --tasks hexphi_prefill-mini --print-ids 0",
    ),
)
@click.argument("checkpoint")
@listed("--tasks", "--task", "tasks",
        help="Tasks and groups to answer: ours, or lm-eval's (default: the recipe's).")  # fmt: skip
@click.option("--print-ids", type=click.IntRange(min=0), metavar="INDEX",
              help="Only print the token ids of each task's document INDEX, from 0.")  # fmt: skip
@click.option("--show-harmful", is_flag=True, help="With --print-ids: the texts of safety tasks too.")
@click.option("--name", metavar="NAME", help="Its name in the run and the tables (default: its folder's).")
@RECIPE
@answering_options
@out_option("results/runs/respond-<name>, one of its own")
@click.pass_context
def respond(
    ctx: click.Context,
    /,
    checkpoint: str,
    name: str | None,
    recipe: str | None,
    out: Path | None,
    tasks: list[str] | None,
    print_ids: int | None,
    show_harmful: bool,
    **flags: Any,
) -> None:
    """Let a CHECKPOINT answer utility and safety tasks, and print their scores.

    CHECKPOINT is a folder (a PEFT adapter's too), a hub name, 'mini', or a model on a server:
    openai:MODEL@BASE_URL. Scores are the tasks' own, safety by rule; harness judge goes on in the same run
    folder, which is one of its own unless --out names another.
    """
    from harness.config import base_recipe
    from harness.pipeline.compare import RUNS
    from harness.run import plan
    from harness.run.context import RunContext, quiet

    quiet()
    name = name or base_recipe.short_name(checkpoint)
    given = _columns_given(flags)
    only = [*tasks, *given] if tasks else []
    config = _answering(name, checkpoint, recipe, out, tasks or [], given, flags)
    folder = out or RUNS / f"respond-{name}"
    if print_ids is None:
        config = _answered(config, folder, name, only, debug=ctx.obj["debug"])
    run_context = RunContext(config, folder)
    cells = [plan.limited(cell, only) for cell in run_context.cells() if cell.method == name]
    from harness.pipeline import answers

    if print_ids is None:
        answers.show(folder, cells, console())
    else:
        answers.print_ids(run_context, cells, print_ids, console(), show_harmful=show_harmful)


def _answered(config: RunConfig, folder: Path, name: str, only: list[str], *, debug: bool) -> RunConfig:
    """Let the checkpoint of this name answer; the run's configuration as it is stored then."""
    from harness.pipeline import compare
    from harness.run import run_folder

    compare.compare(
        config,
        folder,
        console(),
        debug=debug,
        until="respond",
        kinds=("checkpoint",),
        rows=[name],
        only=only,
    )
    return run_folder.stored_config(folder)


def _columns_given(flags: dict[str, Any]) -> list[str]:
    """The further columns that options name, sets of the user's own included."""
    tasks = [*(flags["utility_tasks"] or ()), *(flags["safety_tasks"] or ())]
    return [*tasks, *_sets(flags)]


def _sets(flags: dict[str, Any]) -> dict[str, str]:
    return {**flags["safety_sets"], **flags["utility_sets"]}


def _answering(
    name: str,
    checkpoint: str,
    recipe: str | None,
    out: Path | None,
    tasks: list[str],
    given: list[str],
    flags: dict[str, Any],
) -> RunConfig:
    """The configuration of a run in which a checkpoint, under ``name``, answers ``tasks`` and the columns
    ``given``: that of the run in ``out``, the recipe's, or the one that the checkpoint implies."""
    from harness.config import base_recipe, trust

    for key, task in _kinds_of([task for task in tasks if task not in _sets(flags)]):
        flags[key] = [*(flags[key] or ()), task]
    flags |= {"methods": ["seed"], "checkpoints": {name: checkpoint}}
    if recipe is None and out is not None and (out / "run.json").is_file():
        config = resolve_stored(out, trust.RESPOND, **flags)
    else:
        if recipe is None:
            recipe, implied = base_recipe.for_checkpoint(checkpoint, [*tasks, *given])
            flags |= implied
        config = resolve(recipe, **flags)
    declared = {one: task for one, task in config.trained_on.items() if one in config.checkpoints}
    return config.model_copy(update={"trained_on": declared})  # not of checkpoints that answer elsewhere


def _kinds_of(tasks: list[str]) -> Iterator[tuple[str, str]]:
    """Each task or group with the recipe's key that it belongs under."""
    from harness.data import benchmarks

    groups = benchmarks.groups()
    for task in tasks:
        kinds = {benchmarks.get(one).kind for one in groups.get(task, [task])}
        yield ("utility_tasks" if kinds == {"utility"} else "safety_tasks"), task


@click.command(
    cls=Sectioned,
    epilog=example(
        "harness judge results/runs/mini --judge keyword",
        "harness judge results/runs/mini --judge openai:gpt-4o --max-cost 5 --dry-run",
        "harness judge RUN --judge openai:my-model@http://localhost:8000/v1,llama-guard-3,keyword,vote",
    ),
)
@click.argument("run", type=click.Path(path_type=Path))
@listed("--judge", "--judges", "judges", required=True, help=JUDGE_HELP)
@judging_options
@click.option("--retry-unjudged", is_flag=True, help="Ask again where a judge gave no verdict.")
@click.option("--anew", is_flag=True, help="Judge all of it again: no marker, journal or cache counts.")
@click.option("--dry-run", is_flag=True, help="Print what there is to judge and its price; do nothing.")
@SETTINGS
def judge(
    run: Path,
    judges: list[str],
    retry_unjudged: bool,
    anew: bool,
    dry_run: bool,
    settings: tuple[str, ...],
    **flags: Any,
) -> None:
    """Judge a RUN's stored responses; nothing is generated again.

    An interrupted judging goes on where it stopped, and what was judged before is not paid again. Exit
    code 4: a batch is submitted, and the same command collects it later. For a run from somebody else, --anew
    makes the verdicts your own.
    """
    from harness import config
    from harness.pipeline import rejudge

    overrides = dict(config.parse_setting(text) for text in settings) | judging_flags(flags)
    own = ("safety.judged_scope", "cache")
    foreign = [key for key in overrides if not key.startswith("judging.") and key not in own]
    if foreign:
        raise UsageError(f"--set {foreign[0]}: judging changes only judging.…, {' and '.join(own)}")
    rejudge.judge_again(
        run, judges, console(), overrides, retry_unjudged=retry_unjudged, anew=anew, dry_run=dry_run
    )
