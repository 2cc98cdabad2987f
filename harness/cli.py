"""The command line. Imports stay light here: ``harness --help`` answers before torch could be loaded."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from harness import __version__
from harness.contracts import HarnessError, JudgePendingError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.config import RunConfig

DISTRIBUTION = "safetune-harness"
IMPORT_NAMES = ("harness", "backends", "judges", "tasks")
TRAINING = ("tuning", "merge", "num_processes", "distributed", "launcher", "report_to")  # recipe's training.*
RESPONSES = ("thinking", "server", "tokenizer", "tensor_parallel", "data_parallel")  # recipe's responses.*
SECTIONS = {  # headings of a help text -> the options under them, by name
    "Compared": ("methods", "model", "checkpoints", "train_tasks", "seeds"),
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
    ),
}
JUDGING = ("rubric", "threshold", "prompt_files", "mode", "max_cost")  # recipe's judging.*


class Commands(click.Group):
    """A group that offers the nearest name for an unknown command, and keeps its commands in order."""

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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="harness")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """How much safety does fine-tuning cost, and which method keeps it without giving up the skill?

    \b
    Example:
      harness compare --methods all          # the embedded mini world, a few minutes on a CPU
      harness compare --dry-run              # the plan and the time it would take
      harness compare my-recipe.yaml --model ./my-chat-model --judge keyword
    """
    ctx.ensure_object(dict)["debug"] = debug


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",") if name.strip()] if value is not None else None


def _seeds(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    names = _names(ctx, param, value)
    try:
        return [int(name) for name in names] if names is not None else None
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of whole numbers, as in 1,2,3") from None


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise click.BadParameter(
                f"'{value}': expected {'NAME=COLUMN' if param.name == 'columns' else 'NAME=PATH'}"
            )
        pairs[name] = rest
    return pairs


def _columns(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, str]:
    return _pairs(ctx, param, tuple(_names(ctx, param, value) or ()))


def _shares(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
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


def _apply(command: Any, options: Sequence[Any]) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


COLUMNS = click.option("--columns", callback=_columns, metavar="A=B,C=D",
                       help="The data's columns: prompt=question,answer=response, or messages=chat, or the "
                       "task's own two fields. Otherwise they are recognised.")  # fmt: skip
MIX = click.option("--mix", callback=_shares, multiple=True, metavar="FILE:RATIO",
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
        click.option("--prompt-file", "prompt_files", callback=_pairs, multiple=True, metavar="JUDGE=FILE",
                     help="The published prompt of a judge that has a fixed one. Repeatable."),
        click.option("--scope", type=click.Choice(["prefill+response", "response"]),
                     help="What is judged of a prefilled answer."),
        click.option("--judge-mode", "mode", type=click.Choice(["direct", "batch"]),
                     help="batch: half the price; submit now, collect with the same command later."),
        click.option("--max-cost", type=click.FloatRange(min=0), metavar="USD",
                     help="Stop judging before it costs more."),
    ]  # fmt: skip
    return _apply(command, options)


def judging_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The options of ``judging_options`` that were given, as recipe keys; taken out of ``flags``."""
    given = {f"judging.{key}": flags.pop(key) for key in JUDGING}
    given["safety.judged_scope"] = flags.pop("scope")
    return {key: value for key, value in given.items() if value not in (None, {})}


def run_options(command: Any) -> Any:
    """The options that shape a run's configuration; each overrides the recipe."""
    options = [
        click.option("--train-tasks", callback=_names, metavar="A,B", help="Train tasks (harness tasks)."),
        click.option("--train-data", metavar="DATA",
                     help="Train on this instead of the train task's own rows: a JSONL, JSON or Parquet "
                     "file, or a hub data set (owner/name, owner/name:config@split)."),
        COLUMNS,
        MIX,
        SAFETY_DATA,
        click.option("--data", callback=_pairs, multiple=True, metavar="TASK=FILE",
                     help="A local file for an evaluation task, in its published format. Repeatable."),
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
        click.option("--report-to", callback=_names, metavar="A,B",
                     help="Log trainings to tensorboard, wandb, mlflow or trackio."),
        click.option("--utility-task", "utility_tasks", callback=_names, metavar="A,B",
                     help="Further utility columns: our tasks (harness tasks), or any of lm-eval's."),
        click.option("--safety-task", "safety_tasks", callback=_names, metavar="A,B",
                     help="Further safety and over-refusal columns (harness tasks); groups too."),
        click.option("--safety-set", "safety_sets", callback=_pairs, multiple=True, metavar="NAME=FILE",
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
        click.option("--eval-every-epoch", is_flag=True, help="Score each epoch's checkpoint too."),
        click.option("--seeds", callback=_seeds, metavar="1,2,3", help="Training seeds."),
        click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
                     help="Run folder (default: results/runs/<recipe name>)."),
        SETTINGS,
    ]  # fmt: skip
    return _apply(command, options)


def resolve(recipe: str | None, settings: tuple[str, ...], **flags: Any) -> RunConfig:
    """Recipe, then ``--set``, then flags that were given."""
    from harness import config

    overrides = dict(config.parse_setting(text) for text in settings)
    overrides |= judging_flags(flags) if "mode" in flags else {}
    overrides |= {
        f"training.{key}" if key in TRAINING else f"responses.{key}" if key in RESPONSES else key: value
        for key, value in flags.items()
        if value not in (None, {}, False)
    }
    return config.load(recipe, overrides)


def out_folder(config: RunConfig, out: Path | None) -> Path:
    from harness.comparison import RUNS

    return out if out is not None else RUNS / config.name


def console() -> Console:
    from rich.console import Console

    return Console()


@cli.command(
    cls=Sectioned,
    epilog=example(
        "harness compare --methods all",
        "harness compare --methods vanilla,lookahead-true --train-tasks gsm8k-mini --seeds 1,2",
    ),
)
@click.argument("recipe", required=False)
@click.option("--methods", callback=_names, metavar="all|A,B", help="Methods to compare (harness methods).")
@click.option("--checkpoint", "checkpoints", callback=_pairs, multiple=True, metavar="NAME=PATH",
              help="A checkpoint of your own as a further row. Repeatable.")  # fmt: skip
@click.option("--judge", "judges", callback=_names, metavar="A,B", help="Judges (harness judges).")
@click.option("--cross-tasks", is_flag=True, help="Score every checkpoint on the other utilities too.")
@judging_options
@click.option("--dry-run", is_flag=True, help="Print the configuration, the plan and the time; do nothing.")
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


@cli.command(
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
    folder = out_folder(config, out)
    comparison.compare(config, folder, console(), debug=ctx.obj["debug"], until="train", kinds=("trained",))
    for path in sorted(folder.glob(f"*/{method}/seed-*/checkpoint")):
        click.echo(path)


@cli.command(
    cls=Sectioned,
    epilog=example(
        "harness respond ./my-checkpoint --name mine --tasks gsm8k-mini,hexphi_raw-mini --out runs/mine",
        "harness respond openai:my-model@http://localhost:8000/v1 --tasks advbench_raw",
        "harness respond mini --tasks hexphi_prefill-mini --print-ids 0",
    ),
)
@click.argument("checkpoint")
@click.option("--tasks", callback=_names, metavar="A,B",
              help="Tasks and groups to answer: ours, or lm-eval's (default: the recipe's).")  # fmt: skip
@click.option("--print-ids", type=click.IntRange(min=0), metavar="INDEX",
              help="Only print the token ids of each task's document INDEX, from 0.")  # fmt: skip
@click.option("--show-harmful", is_flag=True, help="With --print-ids: the texts of safety tasks too.")
@click.option("--name", default="checkpoint", show_default=True, help="Its name in the run and the tables.")
@click.option("--recipe", metavar="RECIPE", help="Packaged recipe or YAML file (default: mini).")
@run_options
@click.pass_context
def respond(
    ctx: click.Context,
    /,
    checkpoint: str,
    name: str,
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
    from harness import benchmarks, comparison, plan

    groups = benchmarks.groups()
    for task in tasks or ():
        kinds = {benchmarks.get(one, flags["safety_sets"]).kind for one in groups.get(task, [task])}
        if task not in flags["safety_sets"]:
            key = "utility_tasks" if kinds == {"utility"} else "safety_tasks"
            flags[key] = [*(flags[key] or ()), task]
    config = resolve(recipe, methods=["seed"], checkpoints={name: checkpoint}, **flags)
    folder = out_folder(config, out)
    only = [*(tasks or ()), *(flags["safety_sets"] if tasks else ())]
    if print_ids is None:
        comparison.compare(
            config,
            folder,
            console(),
            debug=ctx.obj["debug"],
            until="respond",
            kinds=("checkpoint",),
            only=only,
        )
        config = comparison.stored_config(folder)
    cells = [plan.limited(cell, only) for cell in plan.cells(config) if cell.method == name]
    from harness.workshop import Workshop, quiet

    quiet()
    from harness import answers

    if print_ids is None:
        answers.show(folder, cells, console())
    else:
        answers.print_ids(Workshop(config, folder), cells, print_ids, console(), show_harmful=show_harmful)


@cli.command(
    cls=Sectioned,
    epilog=example(
        "harness judge results/runs/mini --judge keyword",
        "harness judge results/runs/mini --judge openai:gpt-4o --max-cost 5 --dry-run",
        "harness judge RUN --judge openai:my-model@http://localhost:8000/v1,llama-guard-3,keyword,vote",
    ),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--judge", "judges", callback=_names, required=True, metavar="A,B", help="Judges (harness judges)."
)
@judging_options
@click.option("--retry-unjudged", is_flag=True, help="Ask again where a judge gave no verdict.")
@click.option("--dry-run", is_flag=True, help="Print what there is to judge and its price; do nothing.")
@SETTINGS
def judge(
    run: Path, judges: list[str], retry_unjudged: bool, dry_run: bool, settings: tuple[str, ...], **flags: Any
) -> None:
    """Judge a RUN's stored responses; nothing is generated again.

    An interrupted judging goes on where it stopped, and what was judged before is not paid again. Exit
    code 4: a batch is submitted, and the same command collects it later.
    """
    from harness import comparison, config

    overrides = dict(config.parse_setting(text) for text in settings) | judging_flags(flags)
    foreign = [key for key in overrides if key.partition(".")[0] not in ("judging", "safety")]
    if foreign:
        raise UsageError(f"--set {foreign[0]}: judging changes only keys of 'judging' and 'safety'")
    comparison.judge_again(run, judges, console(), overrides, retry_unjudged=retry_unjudged, dry_run=dry_run)


@cli.command(epilog=example("harness score results/runs/mini"))
@click.argument("run", type=click.Path(path_type=Path))
def score(run: Path) -> None:
    """Compute a RUN's scores and leaderboard anew from its responses and verdicts."""
    from harness import comparison

    config = comparison.stored_config(run)
    with comparison.lock(run):
        (run / "leaderboard.done.json").unlink(missing_ok=True)
        comparison.table(config, run, console())


@cli.command(
    epilog=example("harness leaderboard results/runs/mini", "harness leaderboard results/runs/mini --json")
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def leaderboard(runs: tuple[Path, ...], as_json: bool) -> None:
    """Print the leaderboard of one or more RUNs."""
    from rich.console import Console

    from harness import comparison

    for run in runs:
        config = comparison.stored_config(run)
        with comparison.lock(run):
            comparison.table(config, run, Console(quiet=True) if as_json else console())
        if as_json:
            click.echo((run / "leaderboard.json").read_text(encoding="utf-8"), nl=False)


@cli.command(epilog=example("harness clean results/runs/mini", "harness clean results/runs/mini --all --yes"))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Remove the whole run folder, scores included.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(run: Path, everything: bool, yes: bool) -> None:
    """Free a RUN's disk space: its checkpoints and unfinished trainings, or with --all everything.

    Scores, responses and verdicts stay; the same compare would train anew.
    """
    import contextlib
    import shutil

    from harness import comparison, epochs, plan
    from harness.store import files_below

    config = comparison.stored_config(run)
    cells = run.glob("*/*/seed-*")
    parts = ("checkpoint", "epoch-*/checkpoint", ".training")  # the last: what an unfinished one left
    targets = sorted(found for cell in cells for part in parts for found in cell.glob(part))
    if everything:  # what the harness wrote there, and nothing else
        folders = {run / cell.folder.parts[0] for cell in plan.cells(config)}
        names = (*comparison.FILES, *epochs.outputs(config), "run.json", "leaderboard.done.json")
        files = {run / name for name in names}
        targets = sorted(path for path in folders | files if path.exists())
    if not targets:
        click.echo(f"{run}: nothing to remove.")
        return
    size = sum(file.stat().st_size for target in targets for file in files_below(target))
    what = f"the whole run in {run}" if everything else f"{len(targets)} checkpoints of {run}"
    if not (yes or click.confirm(f"Remove {what} ({size / 2**20:,.0f} MiB)?")):
        click.echo("Nothing removed.")
        return
    with comparison.lock(run):
        for target in targets:
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
    if everything:
        (run / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # files of the user's own stay
            run.rmdir()
    click.echo(f"Removed {what} ({size / 2**20:,.0f} MiB).")


@cli.group(cls=Commands)
def analyze() -> None:
    """Look closer at a finished run; nothing is computed anew or written."""


@analyze.command(
    "flops", epilog=example("harness analyze flops results/runs/mini", "harness analyze flops RUN --json")
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def analyze_flops(run: Path, as_json: bool) -> None:
    """Print what each method's training cost in a RUN: FLOPs against vanilla, tokens, time, memory."""
    from harness import analysis

    record = analysis.flops(run)
    if as_json:
        import json

        click.echo(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        analysis.show_flops(record, console())


@cli.command(
    epilog=example(
        "harness agreement results/runs/mini",
        "harness agreement RUN --template labels.jsonl   # then fill in harmful: true or false",
        "harness agreement RUN --labels labels.jsonl",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="People's labels, JSON lines: cell, task, exchange_id, harmful.")  # fmt: skip
@click.option("--template", type=click.Path(path_type=Path), metavar="FILE",
              help="Write a random sample of exchanges to label (ids, no texts), and end.")  # fmt: skip
@click.option("--sample", default=200, show_default=True, type=click.IntRange(min=1), help="Its size.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def agreement(run: Path, labels: Path | None, template: Path | None, sample: int, as_json: bool) -> None:
    """Print how far a RUN's judges agree, with each other and with people.

    Raw agreement, Cohen's kappa, Krippendorff's alpha and the disputed exchanges; with labels each judge's
    precision and recall, and safe rates corrected for its errors.
    """
    from harness import agreement

    if template is not None:
        count = agreement.write_template(run, template, sample)
        click.echo(
            f"{template}: {count} exchanges to label; their texts are in {run}/CELL/TASK/responses.jsonl"
        )
        return
    record = agreement.analyse(run, labels)
    if as_json:
        click.echo(agreement.dumps(record))
    else:
        agreement.show(record, console())


@cli.group(cls=Commands)
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
    return _apply(command, options)


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

    dataview.show(_data_config(flags), flags["method"], flags["train_task"], index, console())


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

    count = dataview.export(_data_config(flags), flags["method"], flags["train_task"], limit, out)
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


def _listing(rows: Sequence[tuple[Any, ...]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)


@cli.command(epilog=example("harness methods"))
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
    _listing([seed, *rows], ("method", "what it does", "options"), as_json)


@cli.command(
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
    _listing(rows, ("task", "kind", "about"), as_json)


@cli.command(epilog=example("harness judges", "harness judges --json"))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def judges(as_json: bool) -> None:
    """List the judges: what each needs, and what a standard run costs with it."""
    from rich.padding import Padding
    from rich.text import Text

    from harness import judging

    rows = judging.listing()
    if as_json:
        _listing(rows, ("judge", "how it judges", "needs", "standard run"), as_json=True)
        return
    out = console()
    for name, summary, needs, price in rows:
        out.print(Text(name, style="bold"))
        for line in (summary, f"needs {needs}", f"standard run: {price}"):
            out.print(Padding(Text(line), (0, 0, 0, 4)))
    out.print(f"\nA standard run: {judging.STANDARD_RUN}.", highlight=False)


@cli.group(cls=Commands)
def mini() -> None:
    """The embedded mini world: rebuild its seed model, or print its properties."""


@mini.command("build", epilog=example("harness mini build --out /tmp/seed-model"))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the model goes."
)
@click.option("--seed", default=1, show_default=True, help="Random seed (1: the shipped model's).")
def mini_build(out: Path, seed: int) -> None:
    """Build the seed model from nothing (15 minutes on one core) and print its properties."""
    from harness.mini import properties

    properties.build_and_show(out, seed, console())


@mini.command(
    "properties", epilog=example("harness mini properties", "harness mini properties --model /tmp/seed-model")
)
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="A seed model (default: the shipped one)."
)
def mini_properties(model: Path | None) -> None:
    """Measure the seed model: safe, helpful, as shallow as intended, and what vanilla does to it."""
    from harness.mini import properties

    if not properties.show(model, console()):
        raise HarnessError("the seed model lacks a property that it must have (see the table)")


def check_import_names() -> None:
    """PyPI has foreign packages with our import names; installing one breaks ours."""
    owners = metadata.packages_distributions()
    for name in IMPORT_NAMES:
        foreign = [owner for owner in owners.get(name, ()) if owner.lower() != DISTRIBUTION]
        if foreign:
            raise HarnessError(
                f"the package '{foreign[0]}' also installs '{name}': "
                f"use an environment of its own for {DISTRIBUTION}"
            )


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 gate not met, 4 not ready yet."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        if not {"-h", "--help", "--version"} & set(sys.argv[1:]):
            check_import_names()
        cli.main(args=(["--debug"] if debug else []) + sys.argv[1:], standalone_mode=False)
        sys.exit(0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        hint = (
            f" (see {error.ctx.command_path} --help)"
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        click.echo(f"Error: {error.format_message()}{hint}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        sys.exit(130)
    except JudgePendingError as error:
        click.echo(f"Not done yet: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(4)
    except HarnessError as error:
        if debug:
            raise
        click.echo(f"Error: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        if debug:
            raise
        message = " ".join(str(error).split())[:300]
        click.echo(f"Error: {type(error).__name__}: {message} (--debug shows the traceback)", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
