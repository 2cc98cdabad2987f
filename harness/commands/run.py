"""The walk and its parts: compare, train, respond, judge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from harness.commands.options import (
    SETTINGS,
    Sectioned,
    answering_options,
    console,
    example,
    judging_flags,
    judging_options,
    names,
    out_folder,
    pairs,
    resolve,
    resolve_stored,
    run_options,
)
from harness.contracts import UsageError


@click.command(
    cls=Sectioned,
    epilog=example(
        "harness compare --methods all",
        "harness compare --methods vanilla,lookahead-true --train-tasks gsm8k-mini --seeds 1,2",
    ),
)
@click.argument("recipe", required=False)
@click.option("--methods", callback=names, metavar="all|A,B", help="Methods to compare (harness methods).")
@click.option("--checkpoint", "checkpoints", callback=pairs, multiple=True, metavar="NAME=PATH",
              help="A checkpoint of your own as a further row. Repeatable.")  # fmt: skip
@click.option("--trained-on", "trained_on", callback=pairs, multiple=True, metavar="NAME=TASK",
              help="Checkpoint NAME was trained on TASK: compare it with vanilla. Repeatable.")  # fmt: skip
@click.option("--judge", "judges", callback=names, metavar="A,B", help="Judges (harness judges).")
@click.option("--cross-tasks", is_flag=True, help="Score every checkpoint on the other utilities too.")
@judging_options
@click.option(
    "--dry-run", is_flag=True, help="Print the configuration, the plan and what it takes; do nothing."
)
@run_options
@click.pass_context
def compare(ctx: click.Context, /, recipe: str | None, out: Path | None, dry_run: bool, **flags: Any) -> None:
    """Fine-tune with each method, score every checkpoint, print the leaderboard.

    RECIPE is a packaged recipe or a YAML file (default: mini, the embedded world). A run that was
    interrupted goes on where it stopped; what is done is not done again.
    """
    from harness import comparison

    config = resolve(recipe, **flags)
    comparison.compare(config, out_folder(config, out), console(), dry_run=dry_run, debug=ctx.obj["debug"])


@click.command(
    cls=Sectioned,
    epilog=example("harness train lookahead-true --train-tasks gsm8k-mini --out results/runs/one"),
)
@click.argument("method")
@click.option("--recipe", metavar="RECIPE", help="Packaged recipe or YAML file (default: mini).")
@run_options
@click.pass_context
def train(ctx: click.Context, /, method: str, recipe: str | None, out: Path | None, **flags: Any) -> None:
    """Fine-tune with one METHOD into a run folder, without scoring."""
    from harness import comparison

    if method == "seed":
        raise UsageError("'seed' is the seed model itself and is not trained (harness methods)")
    config = resolve(recipe, methods=[method], **flags)
    own = {name: variant for name, variant in config.variants.items() if name == method}
    config = config.model_copy(update={"variants": own})
    folder = out_folder(config, out)
    comparison.compare(
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
@click.option("--tasks", callback=names, metavar="A,B",
              help="Tasks and groups to answer: ours, or lm-eval's (default: the recipe's).")  # fmt: skip
@click.option("--print-ids", type=click.IntRange(min=0), metavar="INDEX",
              help="Only print the token ids of each task's document INDEX, from 0.")  # fmt: skip
@click.option("--show-harmful", is_flag=True, help="With --print-ids: the texts of safety tasks too.")
@click.option("--name", metavar="NAME", help="Its name in the run and the tables (default: its folder's).")
@click.option("--recipe", metavar="RECIPE", help="Packaged recipe or YAML file (default: mini).")
@answering_options
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
    openai:MODEL@BASE_URL. Scores are the tasks' own, safety by rule; harness judge and compare go on with the
    same run folder.
    """
    from harness import benchmarks, comparison, plan, run_folder, trust

    name = name or _row_name(checkpoint)
    groups = benchmarks.groups()
    given = [task for key in ("utility_tasks", "safety_tasks", "safety_sets") for task in flags[key] or ()]
    only = [*tasks, *given] if tasks else []
    for task in tasks or ():
        kinds = {benchmarks.get(one, flags["safety_sets"]).kind for one in groups.get(task, [task])}
        if task not in flags["safety_sets"]:
            key = "utility_tasks" if kinds == {"utility"} else "safety_tasks"
            flags[key] = [*(flags[key] or ()), task]
    flags |= {"methods": ["seed"], "checkpoints": {name: checkpoint}}
    if recipe is None and out is not None and (out / "run.json").is_file():
        config = resolve_stored(out, trust.RESPOND, **flags)
    else:
        config = resolve(recipe, **flags)
    folder = out_folder(config, out)
    if print_ids is None:
        comparison.compare(
            config,
            folder,
            console(),
            debug=ctx.obj["debug"],
            until="respond",
            kinds=("checkpoint",),
            rows=[name],
            only=only,
        )
        config = run_folder.stored_config(folder)
    cells = [plan.limited(cell, only) for cell in plan.cells(config) if cell.method == name]
    from harness.workshop import Workshop, quiet

    quiet()
    from harness import answers

    if print_ids is None:
        answers.show(folder, cells, console())
    else:
        answers.print_ids(Workshop(config, folder), cells, print_ids, console(), show_harmful=show_harmful)


def _row_name(checkpoint: str) -> str:
    """A row's name for a checkpoint: its folder's, or its model's on the hub or a server."""
    from harness.text import is_name

    last = re.split(r"[/:]", checkpoint.partition("@http")[0].rstrip("/"))[-1]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:60]
    return name if is_name(name) else "model"


@click.command(
    cls=Sectioned,
    epilog=example(
        "harness judge results/runs/mini --judge keyword",
        "harness judge results/runs/mini --judge openai:gpt-4o --max-cost 5 --dry-run",
        "harness judge RUN --judge openai:my-model@http://localhost:8000/v1,llama-guard-3,keyword,vote",
    ),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--judge", "judges", callback=names, required=True, metavar="A,B", help="Judges (harness judges)."
)
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
    from harness import comparison, config

    overrides = dict(config.parse_setting(text) for text in settings) | judging_flags(flags)
    own = ("safety.judged_scope", "cache")
    foreign = [key for key in overrides if not key.startswith("judging.") and key not in own]
    if foreign:
        raise UsageError(f"--set {foreign[0]}: judging changes only judging.…, {' and '.join(own)}")
    comparison.judge_again(
        run, judges, console(), overrides, retry_unjudged=retry_unjudged, anew=anew, dry_run=dry_run
    )
