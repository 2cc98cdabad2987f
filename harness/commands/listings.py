"""What is installed: methods, tasks, judges."""

from __future__ import annotations

from typing import Any

import click

from harness.commands.options import console, example, listing


@click.command(epilog=example("harness methods"))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def methods(as_json: bool) -> None:
    """List the fine-tuning methods and their options."""
    import dataclasses

    from harness import registry

    rows: list[tuple[str, str, Any]] = []
    for name in registry.names("method"):
        method = registry.load("method", name)
        made = method()
        options = {
            field.name: getattr(made, field.name) for field in dataclasses.fields(method) if field.init
        }
        shown = ", ".join(f"{option}={value!r}" for option, value in options.items())
        rows.append((name, method.summary, options if as_json else shown))
    seed = ("seed", "no training: the seed model itself", {} if as_json else "")
    listing([seed, *rows], ("method", "what it does", "options"), as_json)


@click.command(
    epilog=example(
        "harness tasks", 'lm_eval run --include_path "$(harness tasks --path)" --tasks gsm8k-mini …'
    )
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--path", is_flag=True, help="Print the folder for lm_eval --include_path.")
def tasks(as_json: bool, path: bool) -> None:
    """List the train tasks and the lm-eval tasks."""
    from harness import benchmarks, registry

    if path:
        click.echo(registry.task_folders()[0])
        return
    rows = []
    for name in registry.names("train task"):
        task = registry.load("train task", name)
        rows.append((name, "train", f"measured by {task.utility_task} ({task.utility_metric})"))
    for name, benchmark in benchmarks.installed().items():
        about = ["prefilled"] if benchmark.prefilled else []
        about += [f"{len(benchmark.decodings)} samples"] if benchmark.decodings else []
        hub = benchmark.hub if as_json else (benchmark.hub or "").partition("@")[0]
        sources = [hub, f"--data {benchmark.local_data}=FILE" if benchmark.local_data else None]
        about += [" or ".join(filter(None, sources)) or "generated"]
        rows.append((name, benchmark.kind, ", ".join(about)))
    rows += [(name, "group", ", ".join(members)) for name, members in benchmarks.groups().items()]
    listing(rows, ("task", "kind", "about"), as_json)


@click.command(epilog=example("harness judges", "harness judges --json"))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def judges(as_json: bool) -> None:
    """List the judges: what each needs, and what a standard run costs with it."""
    from rich.padding import Padding
    from rich.text import Text

    from harness import judging

    rows = judging.listing()
    if as_json:
        listing(rows, ("judge", "how it judges", "needs", "standard run"), as_json=True)
        return
    out = console()
    for name, summary, needs, price in rows:
        out.print(Text(name, style="bold"))
        for line in (summary, f"needs {needs}", f"standard run: {price}"):
            out.print(Padding(Text(line), (0, 0, 0, 4)))
    out.print(f"\nA standard run: {judging.STANDARD_RUN}.", highlight=False)
