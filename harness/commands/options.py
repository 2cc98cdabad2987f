"""What commands share: groups that help, option lists, and the configuration that they spell."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.contracts import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.config import RunConfig
    from harness.config.trust import Step

Decorator = Callable[[Any], Any]
TRAINING = ("tuning", "merge", "num_processes", "distributed", "launcher", "report_to")  # recipe's training.*
RESPONSES = ("thinking", "server", "tokenizer", "tensor_parallel", "data_parallel")  # recipe's responses.*
SECTIONS = {  # headings of a help text -> the options under them, by name
    "Models and tasks": ("methods", "model", "checkpoints", "trained_on", "train_tasks", "seeds"),
    "Data": ("train_data", "columns", "mix", "safety_data", "data"),
    "Training": (*TRAINING, "eval_every_epoch"),
    "Scoring": (
        *("utility_tasks", "utility_sets", "utility_metrics", "safety_tasks", "safety_sets", "task_dirs"),
        "cross_tasks",
    ),
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
# What holds where neither an option nor a named recipe says otherwise: mini's, and where it differs that of
# the recipe for real models. A test holds them against both.
DEFAULTS = {
    "methods": "the recipe's; mini: all; other models: the paper's five",
    "model": "mini",
    "train_tasks": "the recipe's; mini: gsm8k-mini,samsum-mini; other models: gsm8k,samsum",
    "train_data": "the train task's own rows",
    "columns": "recognised",
    "safety_data": "the recipe's; mini: mini; other models: none",
    "data": "the task's data set on the hub",
    "tuning": "full",
    "num_processes": "1",
    "distributed": "zero2",
    "launcher": "torchrun",
    "seeds": "42",
    "judges": "the recipe's; mini: mini-exact; other models: keyword",
    "scope": "the recipe's; mini: prefill+response; other models: response",
    "rubric": "ours",
    "threshold": "the judge's own",
    "mode": "direct",
    "max_cost": "no limit",
    "engine": "auto",
    "tokenizer": "the model's own",
    "tensor_parallel": "1",
    "data_parallel": "1",
    "executor": "local",
    "recipe": "mini; other models: real",
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


def show_defaults(command: click.Command) -> None:
    """Let the help of every option of a command, and of the commands below it, end in its default."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            show_defaults(below)
    of_recipe = any(param.name == "settings" for param in command.params)
    for param in command.params:
        if not isinstance(param, click.Option) or param.hidden or param.required or param.show_default:
            continue
        help = param.help or ""
        if "default:" not in help.lower():
            value = DEFAULTS.get(param.name or "") if of_recipe else None
            param.help = f"{help} [default: {value or ('off' if param.is_flag else 'none')}]".strip()


def example(*lines: str) -> str:
    """The end of a command's help: lines to copy."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def names(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...] | None
) -> list[str] | None:
    """The names of ``A,B``, and of an option that was given several times."""
    given = (value,) if isinstance(value, str) else value
    if not given:
        return None
    found = []
    for text in given:
        some = [name.strip() for name in text.split(",") if name.strip()]
        if not some:
            raise click.BadParameter("no name in it")
        found += some
    return list(dict.fromkeys(found))


def one(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | None:
    """The one name of an option that takes several elsewhere."""
    found = names(ctx, param, value)
    if found is not None and len(found) > 1:
        raise click.BadParameter(f"takes one name here, and there are {len(found)}: {', '.join(found)}")
    return found[0] if found else None


class Spelled(click.Option):
    """An option that goes by several spellings, of which help and errors show the first."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        return f"'{self.opts[0]}'"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        spellings, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = spellings


def spelled(*declarations: str, **more: Any) -> Decorator:
    return click.option(*declarations, cls=Spelled, **more)


def listed(*declarations: str, help: str, metavar: str = "A,B", **more: Any) -> Decorator:
    """An option that takes names: ``A,B``, and several times."""
    return spelled(*declarations, callback=names, multiple=True, metavar=metavar, help=help, **more)


METHODS_HELP = "Methods to compare (harness methods), or a class in a file of yours: FILE.py:CLASS."
JUDGE_HELP = "Judges (harness judges), or a class in a file of yours: FILE.py:CLASS."


def method_option(help: str = METHODS_HELP, metavar: str = "all|A,B") -> Decorator:
    return listed("--methods", "--method", "methods", metavar=metavar, help=help)


JUDGES = listed("--judge", "--judges", "judges", help=JUDGE_HELP)
RECIPE = click.option("--recipe", metavar="RECIPE", help="A packaged recipe or a YAML file.")


def recipe_argument(command: Any) -> Any:
    """RECIPE where a command's argument is one: there, or as ``--recipe``, as in every other command."""

    def named(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        ctx.meta["recipe"] = value

    def placed(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        other: str | None = ctx.meta.get("recipe")
        if value and other and value != other:
            raise click.BadParameter(f"given twice: {value} and --recipe {other}")
        return value or other

    return apply(
        command,
        [
            click.argument("recipe", required=False, callback=placed),
            click.option("--recipe", "named", metavar="RECIPE", expose_value=False, callback=named,
                         is_eager=True, help="The same as the argument. [default: mini; other models: real]"),
        ],
    )  # fmt: skip


def seeds(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[int] | None:
    numbers = names(ctx, param, value)
    try:
        return [int(number) for number in numbers] if numbers is not None else None
    except ValueError:
        given = ",".join(value)
        raise click.BadParameter(f"'{given}' is not a list of whole numbers, as in 1,2,3") from None


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


def columns(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """``A=B,C=D``, or by train task ``T.A=B,T.C=D``."""
    found = pairs(ctx, param, tuple(names(ctx, param, value) or ()))
    by_task: dict[str, Any] = {}
    for name, column in found.items():
        task, dot, field = name.rpartition(".")
        if dot:
            by_task.setdefault(task, {})[field] = column
    if by_task and sum(map(len, by_task.values())) < len(found):
        raise click.BadParameter("name the train task of each column (T.prompt=A,T.answer=B), or of none")
    return by_task or found


def train_data(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> str | dict[str, str] | None:
    """``DATA``, or for each of several train tasks ``TASK=DATA``."""
    from harness.text import is_name

    found: dict[str, str] = {}
    for value in values:
        name, equals, source = value.partition("=")
        if not (equals and is_name(name)):
            if len(values) > 1:
                raise click.BadParameter(f"'{value}': of several, each names its train task: TASK={value}")
            return value
        if not source:
            raise click.BadParameter(f"'{value}': expected TASK=FILE")
        if name in found:
            raise click.BadParameter(f"'{name}' is given twice")
        found[name] = source
    return found or None


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


def metrics(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Metrics by the name of a set; under "" the one for all sets."""
    found: dict[str, str] = {}
    for value in values:
        name, _, metric = value.rpartition("=")
        if not metric or name in found:
            raise click.BadParameter(f"'{value}': expected METRIC or NAME=METRIC, each once")
        found[name] = metric
    return found


def folders(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Folders of tasks, which every name of a task that follows may be in."""
    from harness.plugins import plugin_files

    return [plugin_files.name_folder(value) for value in values]


def utility_sets(files: dict[str, str], metrics: dict[str, str]) -> dict[str, dict[str, str]]:
    """Utility sets as a recipe has them. Raises UsageError for the metric of none of them."""
    unknown = [name for name in metrics if name and name not in files]
    if unknown:
        raise UsageError(f"--utility-metric {unknown[0]}=…: there is no --utility-set {unknown[0]}=FILE")
    if metrics and not files:
        raise UsageError("--utility-metric: of which questions? --utility-set NAME=FILE")
    every = metrics.get("")
    chosen = {name: metrics.get(name, every) for name in files}
    return {
        name: {"file": file, **({"metric": metric} if (metric := chosen[name]) else {})}
        for name, file in files.items()
    }


def apply(command: Any, options: Sequence[Any]) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


TRAIN_DATA = click.option(
    "--train-data", callback=train_data, multiple=True, metavar="[TASK=]DATA",
    help="Train on this instead of the train task's own rows: a JSONL, JSON, CSV or Parquet file, or a hub "
    "data set (owner/name, owner/name:config@split). With TASK= for one of several train tasks; repeatable.",
)  # fmt: skip
COLUMNS = click.option("--columns", callback=columns, multiple=True, metavar="A=B,C=D",
                       help="The train data's columns: prompt=question,answer=response, or messages=chat, or "
                       "the task's own two fields. For one of several train tasks: TASK.prompt=question,… "
                       "Repeatable.")  # fmt: skip
MIX = click.option("--mix", callback=shares, multiple=True, metavar="FILE:RATIO",
                   help="Further rows, drawn so that RATIO of all training rows come from FILE, as in "
                   "poison.jsonl:0.1. Repeatable.")  # fmt: skip
SAFETY_DATA = click.option("--safety-data", metavar="FILE|mini",
                           help="Refused harmful requests, for methods that train on them.")  # fmt: skip
INTERVALS = click.option(
    "--intervals",
    is_flag=True,
    help="Print the 95 % intervals, too, in tables of their own below each table.",
)
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
        listed("--utility-task", "--utility-tasks", "utility_tasks",
               help="Further utility columns: our tasks (harness tasks), or any of lm-eval's."),
        listed("--safety-task", "--safety-tasks", "safety_tasks",
               help="Further safety and over-refusal columns (harness tasks); groups too."),
        click.option("--safety-set", "safety_sets", callback=pairs, multiple=True, metavar="NAME=FILE",
                     help="A safety column from conversations of your own (JSON lines). Repeatable."),
        click.option("--utility-set", "utility_sets", callback=pairs, multiple=True, metavar="NAME=FILE",
                     help="A utility column from questions with answers of your own (JSON lines). "
                     "Repeatable."),
        click.option("--utility-metric", "utility_metrics", callback=metrics, multiple=True,
                     metavar="[NAME=]METRIC",
                     help="How utility sets are scored, or one of them: exact, contains, regex or rouge1 "
                     "(default: exact). Repeatable."),
        click.option("--task-dir", "task_dirs", callback=folders, multiple=True, is_eager=True, metavar="DIR",
                     help="A folder of lm-eval tasks of your own (YAML, with their Python functions); name "
                     "them with --utility-task or --safety-task. Repeatable."),
        click.option("--thinking", is_flag=True, help="Let models reason that can; only answers are scored."),
        engine_options,
    ]  # fmt: skip
    return apply(command, options)


def engine_options(command: Any) -> Any:
    """What writes answers and rewrites, and where the run is."""
    options = [
        click.option("--engine", metavar="auto|hf|vllm|openai",
                     help="What generates the answers (auto: vllm if installed and it fits, else hf)."),
        click.option("--server", metavar="URL",
                     help="openai: the server's base URL, as in http://localhost:8000/v1."),
        click.option("--tokenizer", metavar="MODEL", help="openai: whose tokenizer makes the prompts' ids."),
        click.option("--tensor-parallel", type=click.IntRange(min=1), metavar="N",
                     help="vllm: devices that hold one model."),
        click.option("--data-parallel", type=click.IntRange(min=1), metavar="N",
                     help="vllm: copies of the model that share the prompts."),
        click.option("--executor", type=click.Choice(["local", "ray"]),
                     help="Run cells on this machine, or over a Ray cluster (recipe section ray)."),
        SETTINGS,
    ]  # fmt: skip
    return apply(command, options)


def out_option(default: str = "results/runs/<name of the recipe, or real-MODEL>") -> Decorator:
    kind = click.Path(path_type=Path)
    return click.option("--out", type=kind, metavar="DIR", help=f"Run folder (default: {default}).")


def training_options(command: Any) -> Any:
    """What is trained, and how; each overrides the recipe."""
    options = [
        listed("--train-tasks", "--train-task", "train_tasks", help="Train tasks (harness tasks)."),
        TRAIN_DATA,
        COLUMNS,
        MIX,
        SAFETY_DATA,
        click.option("--model", metavar="MODEL", help="Base model: 'mini', a folder, or a hub name."),
        click.option("--tuning", type=click.Choice(["full", "lora", "qlora"]),
                     help="Train all weights, or adapters (qlora: on 4-bit weights)."),
        click.option("--merge", is_flag=True, help="Save adapters merged into whole checkpoints."),
        click.option("--num-processes", type=click.IntRange(min=1), metavar="N",
                     help="Devices that share each training."),
        click.option("--distributed", type=click.Choice(["ddp", "zero2", "zero3", "fsdp2"]),
                     help="How they share it."),
        click.option("--launcher", metavar="CMD",
                     help="What starts the processes, instead of torchrun on this machine."),
        listed("--report-to", help="Log trainings to tensorboard, wandb, mlflow or trackio."),
        click.option("--eval-every-epoch", is_flag=True,
                     help="Keep and score each epoch's checkpoint too."),
        spelled("--seeds", "--seed", "seeds", callback=seeds, multiple=True, metavar="1,2,3",
                     help="Training seeds."),
    ]  # fmt: skip
    return apply(command, options)


def run_options(command: Any) -> Any:
    """The options that shape a run's configuration; each overrides the recipe."""
    return apply(command, [training_options, answering_options, out_option()])


def compare_options(command: Any) -> Any:
    """What ``compare`` takes, and what looks whether it would work."""
    options = [
        recipe_argument,
        method_option(),
        click.option("--checkpoint", "checkpoints", callback=pairs, multiple=True, metavar="NAME=PATH",
                     help="A checkpoint of your own as a further row. Repeatable."),
        click.option("--trained-on", "trained_on", callback=pairs, multiple=True, metavar="NAME=TASK",
                     help="Checkpoint NAME was trained on TASK: compare it with vanilla. Repeatable. "
                     "[default: trained elsewhere, compared with the base model]"),
        JUDGES,
        click.option("--cross-tasks", is_flag=True,
                     help="Score every checkpoint on the other utilities too."),
        judging_options,
        run_options,
    ]  # fmt: skip
    return apply(command, options)


def resolve(recipe: str | None, settings: tuple[str, ...], **flags: Any) -> RunConfig:
    """Recipe, then ``--set``, then flags that were given."""
    from harness import config

    return config.load(recipe, _overrides(settings, flags))


def begun_with(out: Path | None) -> str | None:
    """The recipe for a command without one that names a run which is there: the mini world's if that is the
    run's. Then what differs is told against it."""
    from harness.config import base_recipe
    from harness.run import run_folder

    there = out is not None and (out / "run.json").is_file()
    mini = there and out is not None and run_folder.stored_config(out).model == base_recipe.MINI
    return base_recipe.MINI if mini else None


def resolve_stored(
    run: Path, steps: Collection[Step], settings: tuple[str, ...] = (), **flags: Any
) -> RunConfig:
    """The configuration of a run that is there, with what this command changes. Raises UsageError where only
    the run asks for something that acts on this machine and that ``steps`` would take (config/trust.py)."""
    from harness.run import run_folder

    return run_folder.taken_config(run, _overrides(settings, flags), steps)


def _overrides(settings: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """Dotted recipe keys to the values that a command gives them."""
    from harness import config

    overrides = dict(config.parse_setting(text) for text in settings)
    overrides |= judging_flags(flags) if "mode" in flags else {}
    if "utility_sets" in flags:
        flags["utility_sets"] = utility_sets(flags["utility_sets"], flags.pop("utility_metrics"))
    return overrides | {
        f"training.{key}" if key in TRAINING else f"responses.{key}" if key in RESPONSES else key: value
        for key, value in flags.items()
        if value not in (None, {}, False) and not (key == "task_dirs" and not value)
    }


def out_folder(config: RunConfig, out: Path | None) -> Path:
    from harness.pipeline.compare import RUNS

    return out if out is not None else RUNS / config.name


def console(*, stderr: bool = False) -> Console:
    from harness.console.terminal import Terminal

    return Terminal(stderr=stderr)


def print_json(record: Any) -> None:
    """For a script: every figure as it is, and no NaN."""
    import json

    click.echo(json.dumps(record, indent=2, allow_nan=False))  # ASCII: nothing in it steers a terminal


WORD = 40  # characters of a word that a listing leaves whole


def listing(rows: Sequence[tuple[Any, ...]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.markup import escape
    from rich.table import Table

    from harness.console.terminal import natural_width

    def table(gap: int) -> Table:
        made = Table(box=None, header_style="bold", padding=(0, gap, 0, 0))
        for name, cells in zip(columns, zip(*rows, strict=True), strict=True):
            words = max((len(word) for cell in cells for word in cell.split()), default=0)
            whole = words >= max(map(len, cells)) and words <= WORD  # it cannot wrap without breaking a word
            made.add_column(name, overflow="fold", no_wrap=whole)
        for row in rows:
            made.add_row(*map(escape, row))
        return made

    out = console()
    fits = natural_width(table(2), out) <= out.width
    out.print(table(2 if fits else 1))
