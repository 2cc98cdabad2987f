"""The help of commands: groups that offer the nearest name, options under headings, defaults, examples."""

from __future__ import annotations

import difflib
from typing import Any

import click

from harness.commands.configured import RESPONSES, TRAINING

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
