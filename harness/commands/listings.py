"""What there is: methods, tasks, judges, recipes and their keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from harness.commands.help_texts import example
from harness.commands.printing import console, listing
from harness.contracts import HarnessError


@click.command(epilog=example("harness methods"))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def methods(as_json: bool) -> None:
    """List the fine-tuning methods and their options."""
    import dataclasses

    from harness.plugins import registry

    rows: list[tuple[str, str, Any]] = []
    broken = []
    for name in registry.names("method"):
        try:
            method = registry.load("method", name)
        except HarnessError as error:
            broken.append(str(error))
            continue
        made = method()
        options = {
            field.name: getattr(made, field.name) for field in dataclasses.fields(method) if field.init
        }
        shown = ", ".join(f"{option}={value!r}" for option, value in options.items())
        rows.append((name, method.summary, options if as_json else shown))
    seed = ("seed", "no training: the base model itself", {} if as_json else "")
    listing([seed, *rows], ("method", "what it does", "options"), as_json)
    _say(broken)


def _say(broken: Iterable[str]) -> None:
    """Raises HarnessError with the plugins that are not in the list above."""
    if broken:
        raise HarnessError("; ".join(dict.fromkeys(broken)))


@click.command(
    epilog=example(
        "harness tasks", 'lm_eval run --include_path "$(harness tasks --path)" --tasks gsm8k-mini …'
    )
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--path", is_flag=False, flag_value="", metavar="[NAME]",
              help="Print the folder for lm_eval --include_path: ours, or that of one task.")  # fmt: skip
def tasks(as_json: bool, path: str | None) -> None:
    """List the train tasks and the lm-eval tasks."""
    from harness.data import benchmarks
    from harness.plugins import registry

    if path is not None:
        click.echo(benchmarks.get(path).path.parent if path else registry.task_folders()[0])
        return
    rows = []
    found, groups, broken = benchmarks.listed()
    for name in registry.names("train task"):
        try:
            task = registry.load("train task", name)
        except HarnessError as error:
            broken.append(str(error))
            continue
        rows.append((name, "train", f"measured by {task.utility_task} ({task.utility_metric})"))
    for name, benchmark in found.items():
        about = ["prefilled"] if benchmark.prefilled else []
        about += [f"{len(benchmark.decodings)} samples"] if benchmark.decodings else []
        hub = benchmark.hub if as_json else (benchmark.hub or "").partition("@")[0]
        sources = [hub, f"--data {benchmark.local_data}=FILE" if benchmark.local_data else None]
        about += [" or ".join(filter(None, sources)) or "generated"]
        rows.append((name, benchmark.kind, ", ".join(about)))
    rows += [(name, "group", ", ".join(members)) for name, members in groups.items()]
    listing(rows, ("task", "kind", "about"), as_json)
    _say(broken)


@click.command(epilog=example("harness judges", "harness judges --json"))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def judges(as_json: bool) -> None:
    """List the judges: what each needs, and what a standard run costs with it."""
    from harness.judging import cost

    rows, broken = cost.listing()
    if as_json:
        listing(rows, ("judge", "how it judges", "needs", "standard run"), as_json=True)
        _say(broken)
        return
    _described(
        (name, [summary, f"needs {needs}", f"standard run: {price}"]) for name, summary, needs, price in rows
    )
    console().print(f"\nA standard run: {cost.STANDARD_RUN}.", highlight=False)
    _say(broken)


@click.command(epilog=example("harness recipes", "harness recipes --keys"))
@click.option("--keys", is_flag=True, help="List every key of a recipe: its default and what it means.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def recipes(keys: bool, as_json: bool) -> None:
    """List the packaged recipes, or what a recipe may hold."""
    from harness import config
    from harness.config import base_recipe

    if keys:
        rows: list[tuple[Any, ...]] = list(config.meanings())
        if as_json:
            listing(rows, ("key", "default", "meaning"), as_json=True)
        else:
            _described(
                [
                    (f"{key}: {json.dumps(default)}", [meaning] * bool(meaning))
                    for key, default, meaning in rows
                ]
            )
        return
    found = [(name, config.load(name)) for name in config.recipe_names()]
    rows = [(name, one.model, ", ".join(one.train_tasks), one.training.tuning) for name, one in found]
    own = config.load(base_recipe.REAL, {"model": "yours"})
    rows.append((own.name, "yours (--model MODEL)", ", ".join(own.train_tasks), own.training.tuning))
    listing(rows, ("recipe", "model", "trained on", "tuning"), as_json)


def _described(items: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Print each name and, further in, what is said of it."""
    from rich.padding import Padding
    from rich.text import Text

    out = console()
    for name, lines in items:
        out.print(Text(name, style="bold"))
        for line in lines:
            out.print(Padding(Text(line), (0, 0, 0, 4)))
