"""The options that commands share, in lists: what is trained, what answers, what judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from harness.commands.option_values import columns, folders, metrics, names, pairs, seeds, shares, train_data

Decorator = Callable[[Any], Any]
NOT_MET = 3  # the exit code where what was asked for does not hold


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
                     help="What generates the answers (auto: vllm if installed and it fits, else hf), or the "
                     "name of an installed package's engine."),
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


def alignment_options(command: Any) -> Any:
    """What a base model is aligned with, where the recipe aligns it."""
    options = [
        click.option("--requests", multiple=True, metavar="FILE",
                     help="Harmful requests (AdvBench's format, or others): some to align on, the others to "
                     "evaluate. Repeatable."),
        click.option("--harmless", metavar="DATA",
                     help="Harmless rows beside the refusals: a file or hub data set."),
    ]  # fmt: skip
    return apply(command, options)


def training_options(command: Any) -> Any:
    """What is trained, and how; each overrides the recipe."""
    options = [
        listed("--train-tasks", "--train-task", "train_tasks", help="Train tasks (harness tasks)."),
        TRAIN_DATA,
        COLUMNS,
        MIX,
        SAFETY_DATA,
        click.option("--preset", metavar="NAME", help="A smaller or larger version that the recipe offers."),
        click.option("--model", metavar="MODEL", help="Base model: 'mini', a folder, or a hub name."),
        alignment_options,
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
