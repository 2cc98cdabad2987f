"""A method's training data, to look at or to give to another trainer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.config import RunConfig
from harness.contracts import Example, HarnessError, Method, TrainTask
from harness.models import chat
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage.files import write_jsonl_atomic
from harness.training import preparation

STYLES = {"preview": "black on yellow", "masked": "dim", "trained": "bold green"}
MARKS = {"preview": "[", "trained": "{"}  # without colour: [preview], {trained}
ENDS = {"[": "]", "{": "}"}


def prepared(
    config: RunConfig, method: str, task: TrainTask, chosen: Sequence[Example] | None = None
) -> tuple[Any, Sequence[Example], list[Example]]:
    """The tokenizer, the task's examples (or those chosen), and how ``method`` trains on them."""
    return _prepared(RunContext(config, Path()), config, method, task, chosen)


def _prepared(
    ctx: RunContext,
    config: RunConfig,
    method: str,
    task: TrainTask,
    chosen: Sequence[Example] | None = None,
) -> tuple[Any, Sequence[Example], list[Example]]:
    made = resolve(config).make_method(method)
    given = ctx.examples(task) if chosen is None else chosen
    if type(made).prepare is Method.prepare:  # nothing to do, nothing to load
        return ctx.seed_tokenizer, given, list(given)
    cell = Cell("trained", method, task.name, config.seeds[0], Path(), ())
    return ctx.seed_tokenizer, given, preparation.prepare(ctx, task, made, cell, method, given)[0]


def show(config: RunConfig, method: str, train_task: str, index: int, console: Console) -> None:
    """Print one training example token by token, and its counts. ``index`` counts the task's rows (all of
    them, whatever the recipe's budget), then those that are mixed in."""
    task = resolve(config).train_task(train_task)
    ctx = RunContext(_limited(config, None if config.mix else index + 1), Path())
    rows = ctx.examples(task)
    if index >= len(rows):
        raise HarnessError(f"--index {index}: there are {len(rows):,} rows, counted from 0")
    alone = [rows[index]]  # the method prepares no other
    tokenizer, (original, *_), (example, *_) = prepared(config, method, task, alone)
    max_length = config.row(method).training.max_length or task.max_length
    encoded = chat.truncate(chat.encode(tokenizer, example), max_length)
    if encoded is None:
        raise HarnessError(f"--index {index}: its prompt fills max_length {max_length}; it is not trained on")
    kinds = ["trained" if trained else "masked" for trained in encoded.trained]
    for position in preview_positions(tokenizer, original, example):
        kinds[position] = "preview"
    text = Text()
    plain = not console.is_terminal or console.no_color
    before, end = "", 0
    for kind, run in itertools.groupby(kinds):
        end += len(list(run))
        upto = tokenizer.decode(encoded.input_ids[:end])  # a token alone may lose its space or half a letter
        mark = MARKS.get(kind, "") if plain else ""
        piece = upto.removeprefix(before.rstrip("\N{REPLACEMENT CHARACTER}"))
        text.append(mark + piece + ENDS.get(mark, ""), style=STYLES[kind])
        before = upto
    console.print(text, soft_wrap=True)
    legend = Text("\n")
    for kind in STYLES:
        mark = MARKS.get(kind, "") if plain else ""
        legend.append(f"{mark}{kind}{ENDS.get(mark, '')}", style=STYLES[kind])
        legend.append(f" {kinds.count(kind)} tokens   ")
    console.print(legend)
    for line in ctx.unused(task).lines():
        console.print(Text(line), soft_wrap=True)


def _limited(config: RunConfig, rows: int | None) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"max_examples": rows})})


def preview_positions(tokenizer: Any, original: Example, changed: Example) -> list[int]:
    """Which tokens of the prompt come from what the method added to the instruction."""
    before, after = original.instruction, changed.instruction
    if before == after or not after.startswith(before):
        return []
    prompt = chat.render(tokenizer, changed.messages[:-1], generation_prompt=True)
    shown = after if after in prompt else after.strip()  # Llama 2's template, for one, trims a turn
    turn = prompt.rfind(shown)
    if turn < 0:
        return []
    start = turn + len(before) - after.index(shown)
    end = turn + len(shown)
    offsets = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [i for i, (a, b) in enumerate(offsets) if a < end and b > start]


def export(
    config: RunConfig,
    method: str,
    train_task: str,
    limit: int | None,
    out: Path,
    told: Callable[[str], None] = lambda line: None,
) -> int:
    """Write the transformed conversations as ``{"messages": […]}`` lines; returns how many. ``told`` is given
    what of the rows is not used."""
    if out.is_dir():
        raise HarnessError(f"{out} is a folder; give a file to write")
    task = resolve(config).train_task(train_task)
    config = _limited(config, limit)
    ctx = RunContext(config, Path())
    _, _, examples = _prepared(ctx, config, method, task)
    write_jsonl_atomic(
        out,
        ({"messages": [dataclasses.asdict(message) for message in e.messages]} for e in examples),
    )
    for line in ctx.unused(task).lines():
        told(line)
    return len(examples)
