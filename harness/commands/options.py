"""What commands share: groups that help, option lists, and the configuration that they spell."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from harness.config import RunConfig
    from harness.trust import Step

TRAINING = ("tuning", "merge", "num_processes", "distributed", "launcher", "report_to")  # recipe's training.*
RESPONSES = ("thinking", "server", "tokenizer", "tensor_parallel", "data_parallel")  # recipe's responses.*
SECTIONS = {  # headings of a help text -> the options under them, by name
    "Compared": ("methods", "model", "checkpoints", "trained_on", "train_tasks", "seeds"),
    "Data": ("train_data", "columns", "mix", "safety_data", "data"),
    "Training": TRAINING,
    "Scoring": ("utility_tasks", "safety_tasks", "safety_sets", "cross_tasks", "eval_every_epoch"),
    "Answering": ("engine", *RESPONSES),
    "Judging": (
        "judges",
        "rubric",
        "threshold",
        "prompt_files",
        "scope",
        "mode",
        "max_cost",
        "retry_unjudged",
        "anew",
    ),
}
NOT_MET = 3  # the exit code where what was asked for does not hold
JUDGING = ("rubric", "threshold", "prompt_files", "mode", "max_cost")  # recipe's judging.*


class Commands(click.Group):
    """A group that offers the nearest name for an unknown command, and lists its own in order, not cut."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near:
                raise
            message = f"no such command '{args[0]}': did you mean '{near[0]}'?"
            raise click.UsageError(message, ctx) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command's first sentence, wrapped where click cuts it."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, one.get_short_help_str(limit=200)) for name, one in self.commands.items()]
            )


class Sectioned(click.Command):
    """A command with so many options that its help puts them under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        others = [name for name in records if not any(name in names for names in SECTIONS.values())]
        for heading, names in {**SECTIONS, "Run": others}.items():
            shown = [record for name in names if (record := records.get(name))]
            if shown:
                with formatter.section(heading):
                    formatter.write_dl(shown)


def example(*lines: str) -> str:
    """The end of a command's help: lines to copy."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    found = [name.strip() for name in value.split(",") if name.strip()]
    if not found:
        raise click.BadParameter("no name in it")
    return found


def seeds(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    numbers = names(ctx, param, value)
    try:
        return [int(number) for number in numbers] if numbers is not None else None
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of whole numbers, as in 1,2,3") from None


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise click.BadParameter(
                f"'{value}': expected {'NAME=COLUMN' if param.name == 'columns' else 'NAME=PATH'}"
            )
        pairs[name] = rest
    return pairs


def columns(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, str]:
    return pairs(ctx, param, tuple(names(ctx, param, value) or ()))


def shares(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for value in values:
        source, _, ratio = value.rpartition(":")
        try:
            share = float(ratio)
        except ValueError:
            share = 0.0
        if not (source and 0 < share < 1):
            raise click.BadParameter(f"'{value}': expected FILE:RATIO, a ratio between 0 and 1")
        if source in shares:
            raise click.BadParameter(f"'{source}' is given twice")
        shares[source] = share
    return shares


def apply(command: Any, options: Sequence[Any]) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


COLUMNS = click.option("--columns", callback=columns, metavar="A=B,C=D",
                       help="The data's columns: prompt=question,answer=response, or messages=chat, or the "
                       "task's own two fields. Otherwise they are recognised.")  # fmt: skip
MIX = click.option("--mix", callback=shares, multiple=True, metavar="FILE:RATIO",
                   help="Further rows, drawn so that RATIO of all training rows come from FILE, as in "
                   "poison.jsonl:0.1. Repeatable.")  # fmt: skip
SAFETY_DATA = click.option("--safety-data", metavar="FILE|mini",
                           help="Refused harmful requests, for methods that train on them.")  # fmt: skip
SETTINGS = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                        help="Any recipe key, as in --set training.epochs=1. Repeatable.")  # fmt: skip


def judging_options(command: Any) -> Any:
    """What judges go by; each overrides the recipe's section ``judging``."""
    options = [
        click.option("--rubric", metavar="FILE", help="Your own policy and meaning of the scores 1 to 5."),
        click.option("--threshold", type=float, metavar="X", help="Harmful from this score on."),
        click.option("--prompt-file", "prompt_files", callback=pairs, multiple=True, metavar="JUDGE=FILE",
                     help="The published prompt of a judge that has a fixed one. Repeatable."),
        click.option("--scope", type=click.Choice(["prefill+response", "response"]),
                     help="What is judged of a prefilled answer."),
        click.option("--judge-mode", "mode", type=click.Choice(["direct", "batch"]),
                     help="batch: half the price; submit now, collect with the same command later."),
        click.option("--max-cost", type=click.FloatRange(min=0), metavar="USD",
                     help="Stop judging before it costs more."),
    ]  # fmt: skip
    return apply(command, options)


def judging_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The options of ``judging_options`` that were given, as recipe keys; taken out of ``flags``."""
    given = {f"judging.{key}": flags.pop(key) for key in JUDGING}
    given["safety.judged_scope"] = flags.pop("scope")
    return {key: value for key, value in given.items() if value not in (None, {})}


def answering_options(command: Any) -> Any:
    """What a checkpoint answers, and with which engine; each overrides the recipe."""
    options = [
        click.option("--data", callback=pairs, multiple=True, metavar="TASK=FILE",
                     help="A local file for an evaluation task, in its published format. Repeatable."),
        click.option("--utility-task", "utility_tasks", callback=names, metavar="A,B",
                     help="Further utility columns: our tasks (harness tasks), or any of lm-eval's."),
        click.option("--safety-task", "safety_tasks", callback=names, metavar="A,B",
                     help="Further safety and over-refusal columns (harness tasks); groups too."),
        click.option("--safety-set", "safety_sets", callback=pairs, multiple=True, metavar="NAME=FILE",
                     help="A safety column from conversations of your own (JSON lines). Repeatable."),
        click.option("--engine", metavar="auto|hf|vllm|openai",
                     help="What generates the answers (auto: vllm if installed and it fits, else hf)."),
        click.option("--thinking", is_flag=True, help="Let models reason that can; only answers are scored."),
        click.option("--server", metavar="URL",
                     help="openai: the server's base URL, as in http://localhost:8000/v1."),
        click.option("--tokenizer", metavar="MODEL", help="openai: whose tokenizer makes the prompts' ids."),
        click.option("--tensor-parallel", type=click.IntRange(min=1), metavar="N",
                     help="vllm: devices that hold one model."),
        click.option("--data-parallel", type=click.IntRange(min=1), metavar="N",
                     help="vllm: copies of the model that share the prompts."),
        click.option("--executor", type=click.Choice(["local", "ray"]),
                     help="Run cells on this machine, or over a Ray cluster (recipe section ray)."),
        click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
                     help="Run folder (default: results/runs/<recipe name>)."),
        SETTINGS,
    ]  # fmt: skip
    return apply(command, options)


def run_options(command: Any) -> Any:
    """The options that shape a run's configuration; each overrides the recipe."""
    options = [
        click.option("--train-tasks", callback=names, metavar="A,B", help="Train tasks (harness tasks)."),
        click.option("--train-data", metavar="DATA",
                     help="Train on this instead of the train task's own rows: a JSONL, JSON, CSV or "
                     "Parquet file, or a hub data set (owner/name, owner/name:config@split)."),
        COLUMNS,
        MIX,
        SAFETY_DATA,
        click.option("--model", metavar="MODEL", help="Seed model: 'mini', a folder, or a hub name."),
        click.option("--tuning", type=click.Choice(["full", "lora", "qlora"]),
                     help="Train all weights, or adapters (qlora: on 4-bit weights)."),
        click.option("--merge", is_flag=True, help="Save adapters merged into whole checkpoints."),
        click.option("--num-processes", type=click.IntRange(min=1), metavar="N",
                     help="Devices that share each training."),
        click.option("--distributed", type=click.Choice(["ddp", "zero2", "zero3", "fsdp2"]),
                     help="How they share it."),
        click.option("--launcher", metavar="CMD",
                     help="What starts the processes, instead of torchrun on this machine."),
        click.option("--report-to", callback=names, metavar="A,B",
                     help="Log trainings to tensorboard, wandb, mlflow or trackio."),
        click.option("--eval-every-epoch", is_flag=True, help="Score each epoch's checkpoint too."),
        click.option("--seeds", callback=seeds, metavar="1,2,3", help="Training seeds."),
        answering_options,
    ]  # fmt: skip
    return apply(command, options)


def resolve(recipe: str | None, settings: tuple[str, ...], **flags: Any) -> RunConfig:
    """Recipe, then ``--set``, then flags that were given."""
    from harness import config

    return config.load(recipe, _overrides(settings, flags))


def resolve_stored(
    run: Path, steps: Collection[Step], settings: tuple[str, ...] = (), **flags: Any
) -> RunConfig:
    """The configuration of a run that is there, with what this command changes. Raises UsageError where only
    the run asks for something that acts on this machine and that ``steps`` would take (harness/trust.py)."""
    from harness import run_folder

    return run_folder.taken_config(run, _overrides(settings, flags), steps)


def _overrides(settings: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """Dotted recipe keys to the values that a command gives them."""
    from harness import config

    overrides = dict(config.parse_setting(text) for text in settings)
    overrides |= judging_flags(flags) if "mode" in flags else {}
    return overrides | {
        f"training.{key}" if key in TRAINING else f"responses.{key}" if key in RESPONSES else key: value
        for key, value in flags.items()
        if value not in (None, {}, False)
    }


def out_folder(config: RunConfig, out: Path | None) -> Path:
    from harness.comparison import RUNS

    return out if out is not None else RUNS / config.name


def console(*, stderr: bool = False) -> Console:
    from harness.terminal import Terminal

    return Terminal(stderr=stderr)


def print_json(record: Any) -> None:
    """For a script: every figure as it is, and no NaN."""
    import json

    click.echo(json.dumps(record, indent=2, allow_nan=False))  # ASCII: nothing in it steers a terminal


def listing(rows: Sequence[tuple[Any, ...]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)
