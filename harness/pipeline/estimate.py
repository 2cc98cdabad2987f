"""The plan as a user sees it before anything is spent: cells, what they train on and answer, and by formula
the memory and the disk that they take. Time and tokens need a probe (forecast.py)."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError, TrainTask
from harness.generation import stage as generation
from harness.judging import cost
from harness.judging.session import JudgeSession
from harness.models import checkpoints
from harness.pipeline import other_models
from harness.run import plan
from harness.run.context import RunContext
from harness.storage import disk
from harness.training import hook_checks, memory
from harness.training.rows import encode_all

Item = TypeVar("Item")
SAMPLE = 256  # training rows whose lengths are looked at
STATE_SHARE = 3.0  # of a checkpoint in float32: an unfinished training's weights and moments


def show(
    session: JudgeSession,
    cells: Sequence[plan.Cell],
    todo: Sequence[plan.Cell],
    console: Console,
    *,
    judged: bool = True,
) -> None:
    """Print what will be done and what is done already; ``judged``: whether the command judges."""
    ctx = session.ctx
    config = ctx.config
    heading = plan.heading(config, cells, ctx.device, _list_engines(ctx, cells), judged)
    for line in (heading, *(plan.by_rule(config) if judged else ())):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(_tabulate(ctx, cells, todo))
    console.print(f"{len(todo)} of {len(cells)} cells to do", highlight=False)
    for line in [*cost.find_unjudgeable(config, cells), *cost.forecast(session, todo)] if judged else ():
        console.print(escape(line), highlight=False, soft_wrap=True)
    for line in other_models.lines(ctx):
        console.print(escape(line), highlight=False, soft_wrap=True)
    needed = describe_memory(ctx, todo)
    if needed:
        console.print(escape(needed), highlight=False, soft_wrap=True)


def _tabulate(ctx: RunContext, cells: Sequence[plan.Cell], todo: Sequence[plan.Cell]) -> Table:
    """A row for all cells of one train task and the same tasks to answer."""
    title = escape(f"Plan: {ctx.config.name} → {ctx.out}")
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("cells", "train", "answer", "to do"):
        table.add_column(column, justify="right" if column == "to do" else "left", overflow="fold")
    groups: dict[tuple[str, tuple[str, ...]], list[plan.Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.train_task or cell.label, cell.tasks), []).append(cell)
    for (name, tasks), members in groups.items():
        trained = members[0].kind == "trained"
        label, work = _describe_trainings(ctx, name, members) if trained else (name, "-")
        left = sum(cell in todo for cell in members)
        table.add_row(escape(label), work, escape(", ".join(tasks)), f"{left}/{len(members)}")
    return table


def _describe_trainings(ctx: RunContext, train_task: str, cells: Sequence[plan.Cell]) -> tuple[str, str]:
    """The methods and seeds of one train task's cells, and the rows and epochs of each training."""
    config = ctx.config
    methods = ", ".join(dict.fromkeys(cell.method for cell in cells))
    epochs = sorted({config.row(cell.method).training.epochs for cell in cells})
    times = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    work = f"{_count_rows(ctx, train_task)} x {times} epoch{'s' * (epochs[-1] > 1)}"
    seeds = f" x {len(config.seeds)} seeds" if len(config.seeds) > 1 else ""
    return f"{train_task}: {methods}{seeds}", work


def _list_engines(ctx: RunContext, cells: Sequence[plan.Cell]) -> list[str]:
    return [*dict.fromkeys(generation.engine_name(ctx, cell) for cell in cells)]


def _count_rows(ctx: RunContext, train_task: str) -> str:
    try:
        return f"{len(ctx.examples(ctx.train_task(train_task))):,}"
    except HarnessError:  # of the hub, and not fetched yet; a file's complaint comes from the check before
        return "rows of the hub"


def architecture(ctx: RunContext) -> memory.Architecture | None:
    """The base model's; None where it is not here and not a known one."""
    here = checkpoints.is_here(ctx.config.model)
    return memory.find(ctx.config.model, ctx.seed_folder if here else None)


class Needed(NamedTuple):
    """Of the training that takes most on a device: bytes, by formula, its settings, and the tokens of its
    largest micro-batch. ``together``: bytes of all that run side by side, so many (``jobs``) at a time."""

    size: float
    training: TrainingConfig
    tokens: int
    together: float
    jobs: int


def estimate_training_memory(
    ctx: RunContext, cells: Sequence[plan.Cell], known: memory.Architecture
) -> Needed | None:
    """What the cells' trainings take; None where nothing is trained."""
    trained = [cell for cell in cells if cell.kind == "trained"]
    found: dict[tuple[str | None, str], tuple[float, TrainingConfig, int]] = {}
    trainings = _Trainings(ctx, known)
    for cell in trained:
        if (cell.train_task, cell.method) not in found:
            found[cell.train_task, cell.method] = trainings.take(cell)
    if not found:
        return None
    largest = max(found.values(), key=lambda one: one[0])
    sizes = sorted((found[cell.train_task, cell.method][0] for cell in trained), reverse=True)
    jobs = plan.job_count(ctx.config, len(trained)) if ctx.config.executor == "local" else 1
    return Needed(*largest, together=sum(sizes[:jobs]), jobs=jobs)


@dataclass
class _Trainings:
    """What each training of a run takes; what the next method needs again is kept."""

    ctx: RunContext
    known: memory.Architecture
    encoded: dict[tuple[str | None, int, str], list[Encoded]] = field(default_factory=dict)

    @functools.cached_property
    def context(self) -> float:
        """Tokens that the model has room for; any number, where it is not here."""
        is_here = checkpoints.is_here(self.ctx.config.model)
        return checkpoints.context_of(self.ctx.seed_folder) if is_here else math.inf

    def take(self, cell: plan.Cell) -> tuple[float, TrainingConfig, int]:
        """Bytes, settings, and the tokens of the largest micro-batch."""
        row = self.ctx.config.row(cell.method).training
        settings = row.model_copy(update={"device": self.ctx.device})
        task = self.ctx.train_task(cell)
        max_length = int(min(settings.max_length or task.max_length, self.context))
        rows = self._measure_lengths(cell, task, settings, max_length)
        steps = memory.micro_batches(settings, max_length, rows)
        tokens = max(micro.tokens for step in steps for micro in step)
        needed = memory.training_bytes(self.known, settings, max_length, rows)
        return needed + self._hooks(cell, settings), settings, tokens

    def _hooks(self, cell: plan.Cell, settings: TrainingConfig) -> float:
        """Bytes on the device that a method's hooks take: a safety gradient, and other models on a CPU."""
        asks = hook_checks.asks_safety_gradient(self.ctx.method(cell.method))
        gradient = 4.0 * memory.trained_parameters(self.known, settings) if asks else 0.0
        return gradient + (other_models.size(self.ctx, cell.method) if settings.device == "cpu" else 0)

    def _measure_lengths(
        self, cell: plan.Cell, task: TrainTask, settings: TrainingConfig, max_length: int
    ) -> list[memory.RowSize]:
        """Lengths of some training rows; none where rows or tokenizer are not here. An answer that the base
        model is going to rewrite is taken to go half as far as it may."""
        if not checkpoints.is_here(self.ctx.config.model):
            return []
        rewritten = self.ctx.method(cell.method).prepares_with == "rewrites"
        try:
            rows = self._encode(cell, task, settings, max_length)
        except HarnessError:  # the hub's, and not fetched yet; a file's complaint comes from the check before
            return []
        found = []
        for row in rows:
            tokens, loss = len(row.input_ids), sum(row.trained)
            room = min(task.rewrite.max_tokens, max_length - (tokens - loss)) if rewritten else 0
            more = max(0, (room - loss) // 2)
            found.append(memory.RowSize(tokens + more, loss + more))
        return found

    def _encode(
        self, cell: plan.Cell, task: TrainTask, settings: TrainingConfig, max_length: int
    ) -> list[Encoded]:
        key = cell.train_task, max_length, settings.too_long
        if key not in self.encoded:
            examples = self.ctx.examples(task)
            some = spread(examples, SAMPLE)
            tokenizer = self.ctx.seed_tokenizer
            self.encoded[key] = encode_all(tokenizer, some, max_length, settings.too_long)[0]
        return self.encoded[key]


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """At most ``number`` of them, evenly spread."""
    return list(items[:: max(1, -(-len(items) // number))])


def free_memory(ctx: RunContext) -> float:
    """Bytes that are free now on the device that trains."""
    import psutil

    if on_cuda(ctx):
        import torch

        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def describe_memory(ctx: RunContext, cells: Sequence[plan.Cell]) -> str | None:
    """One line with the memory of a training, and whether it is free here; None where nothing is trained, or
    nothing is known."""
    known = architecture(ctx)
    found = estimate_training_memory(ctx, cells, known) if known else None
    if known is None or found is None:
        return None
    settings = found.training
    devices = settings.num_processes
    shared = f"each of {devices} devices ({settings.distributed})" if devices > 1 else "one device"
    line = (
        f"Memory: a training takes at most about {gigabytes(found.size)} on {shared} "
        f"({known.parameters / 1e9:.3g} B parameters, {settings.tuning} tuning, micro-batches of up to "
        f"{found.tokens:,} tokens; by formula)"
    )
    if found.jobs > 1:
        line += f", {found.jobs} side by side about {gigabytes(found.together)}"
    if ctx.config.executor != "local" or (ctx.device == "cuda" and not on_cuda(ctx)):
        return line
    free = free_memory(ctx)
    return f"{line}; {gigabytes(free)} are free here: {_compare_free(found, free)}"


def _compare_free(found: Needed, free: float) -> str:
    if found.together <= free:
        return "it fits" if found.jobs == 1 else "they fit"
    if found.size > free:
        return "it does NOT fit (harness doctor says what helps)"
    return f"they do NOT fit (--jobs {int(free / found.size)} would)"


def on_cuda(ctx: RunContext) -> bool:
    """Whether trainings are on a CUDA device, and one is here."""
    if ctx.device != "cuda":
        return False
    import torch  # seconds, for what a plan on a CPU does not need

    return bool(torch.cuda.is_available())


def checkpoint_bytes(training: TrainingConfig, known: memory.Architecture) -> float:
    """What one trained checkpoint takes on disk."""
    if training.tuning != "full" and not training.merge:
        return 4.0 * known.adapter_parameters(training.lora.r)
    return float((2 if training.dtype == "bfloat16" else 4) * known.parameters)


def checkpoints_bytes(ctx: RunContext, cells: Sequence[plan.Cell], known: memory.Architecture) -> float:
    """What all trained checkpoints take on disk."""
    trained = [cell for cell in cells if cell.kind == "trained"]
    pieces = [piece for cell in trained for piece in (cell, *plan.epochs(ctx.config, cell))]
    return sum(checkpoint_bytes(ctx.config.row(piece.method).training, known) for piece in pieces)


def state_bytes(known: memory.Architecture) -> float:
    """What a training in the middle keeps for a restart, at most."""
    return STATE_SHARE * 4 * known.parameters


def disk_at(folder: Path) -> tuple[Path, int]:
    """The nearest folder that is there, and the bytes that are free on its disk."""
    place = disk.nearest(folder.absolute())
    return place, shutil.disk_usage(place).free


def gigabytes(size: float) -> str:
    """As much as is worth reading: 0.08 GB, 13.5 GB, 410 GB."""
    digits = ".0f" if size >= 99.5e9 else ".2g" if size < 1e9 else ".1f"
    return f"{size / 1e9:{digits}} GB"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
