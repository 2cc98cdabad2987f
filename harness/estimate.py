"""The plan as a user sees it before anything is spent: cells, what they train on and answer, and by formula
the memory and the disk that they take. Time and tokens need a probe (forecast.py)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import disk, judging, memory, models, plan, registry, responding
from harness.config import TrainingConfig
from harness.contracts import HarnessError
from harness.workshop import Workshop

STATE_SHARE = 3.0  # of a checkpoint in float32: an unfinished training's weights and moments


def show(
    bench: judging.Bench,
    cells: Sequence[plan.Cell],
    todo: Sequence[plan.Cell],
    console: Console,
    *,
    judged: bool = True,
) -> None:
    """Print what will be done and what is done already; ``judged``: whether the command judges."""
    shop = bench.shop
    config = shop.config
    heading = plan.heading(config, cells, shop.device, _engines(shop, cells), judged)
    for line in (heading, *(plan.by_rule(config) if judged else ())):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    table = Table(
        title=escape(f"Plan: {config.name} → {shop.out}"), title_justify="left", header_style="bold"
    )
    for column in ("cells", "train", "answer", "to do"):
        table.add_column(column, justify="right" if column == "to do" else "left", overflow="fold")
    groups: dict[tuple[str, tuple[str, ...]], list[plan.Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.train_task or cell.label, cell.tasks), []).append(cell)
    for (name, tasks), members in groups.items():
        if members[0].kind == "trained":
            methods = ", ".join(dict.fromkeys(cell.method for cell in members))
            epochs = sorted({config.row(cell.method).training.epochs for cell in members})
            times = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
            work = f"{_rows(shop, name)} x {times} epoch{'s' * (epochs[-1] > 1)}"
            label = f"{name}: {methods}" + (f" x {len(config.seeds)} seeds" if len(config.seeds) > 1 else "")
        else:
            work, label = "-", name
        table.add_row(
            escape(label), work, escape(", ".join(tasks)), f"{sum(c in todo for c in members)}/{len(members)}"
        )
    console.print(table)
    console.print(f"{len(todo)} of {len(cells)} cells to do", highlight=False)
    for line in [*judging.blind(config, cells), *judging.forecast(bench, todo)] if judged else ():
        console.print(escape(line), highlight=False, soft_wrap=True)
    needed = expected_memory(shop, todo)
    if needed:
        console.print(escape(needed), highlight=False, soft_wrap=True)


def _engines(shop: Workshop, cells: Sequence[plan.Cell]) -> list[str]:
    return [*dict.fromkeys(responding.engine_name(shop, cell) for cell in cells)]


def _rows(shop: Workshop, train_task: str) -> str:
    try:
        return f"{len(shop.examples(registry.load('train task', train_task))):,}"
    except HarnessError:  # of the hub, and not fetched yet; a file's complaint comes from the check before
        return "rows of the hub"


def architecture(shop: Workshop) -> memory.Architecture | None:
    """The base model's; None where it is not here and not a known one."""
    here = models.is_here(shop.config.model)
    return memory.find(shop.config.model, shop.seed_folder if here else None)


def training_memory(
    shop: Workshop, cells: Sequence[plan.Cell], known: memory.Architecture
) -> tuple[float, TrainingConfig] | None:
    """Bytes on a device of the training that takes most, by formula, and its settings; None where nothing is
    trained."""
    tasks = {cell.train_task for cell in cells if cell.train_task}
    if not tasks:
        return None
    longest = max(registry.load("train task", task).max_length for task in tasks)
    rows = {cell.method: shop.config.row(cell.method).training for cell in cells if cell.train_task}
    return max(
        ((memory.training_bytes(known, row, row.max_length or longest), row) for row in rows.values()),
        key=lambda found: found[0],
    )


def free_memory(shop: Workshop) -> float:
    """Bytes that are free now on the device that trains."""
    import psutil

    if on_cuda(shop):
        import torch

        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def expected_memory(shop: Workshop, cells: Sequence[plan.Cell]) -> str | None:
    """One line with the memory of a training, and whether it is free here; None where nothing is trained, or
    nothing is known."""
    known = architecture(shop)
    found = training_memory(shop, cells, known) if known else None
    if known is None or found is None:
        return None
    expected, training = found
    devices = training.num_processes
    shared = f"each of {devices} devices ({training.distributed})" if devices > 1 else "one device"
    line = (
        f"Memory: a training takes at most about {gigabytes(expected)} on {shared} "
        f"({known.parameters / 1e9:.3g} B parameters, {training.tuning} tuning; by formula)"
    )
    if shop.config.executor != "local" or (shop.device == "cuda" and not on_cuda(shop)):
        return line
    free = free_memory(shop)
    verdict = "fits" if expected <= free else "does NOT fit (harness doctor says what helps)"
    return f"{line}; {gigabytes(free)} are free here: it {verdict}"


def on_cuda(shop: Workshop) -> bool:
    """Whether trainings are on a CUDA device, and one is here."""
    if shop.device != "cuda":
        return False
    import torch  # seconds, for what a plan on a CPU does not need

    return bool(torch.cuda.is_available())


def checkpoint_bytes(training: TrainingConfig, known: memory.Architecture) -> float:
    """What one trained checkpoint takes on disk."""
    if training.tuning != "full" and not training.merge:
        return 4.0 * known.adapter_parameters(training.lora.r)
    return float((2 if training.dtype == "bfloat16" else 4) * known.parameters)


def checkpoints_bytes(shop: Workshop, cells: Sequence[plan.Cell], known: memory.Architecture) -> float:
    """What all trained checkpoints take on disk."""
    trained = [cell for cell in cells if cell.kind == "trained"]
    parts = [part for cell in trained for part in (cell, *plan.epochs(shop.config, cell))]
    return sum(checkpoint_bytes(shop.config.row(part.method).training, known) for part in parts)


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
