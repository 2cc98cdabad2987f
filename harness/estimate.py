"""The plan as a user sees it before anything is spent: cells, and the time they will take on this machine.

The time comes from a short probe: one training micro-batch and a few decoding steps of the real model on real
data. It is a forecast, not a promise: answers end when they end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import benchmarks, chat, judging, memory, models, plan, registry, responding, splits
from harness.config import TrainingConfig
from harness.contracts import Example, HarnessError
from harness.workshop import Workshop

PROBE_TOKENS = 8  # decoding steps
PROBE_PARAMETERS = 200_000_000  # larger models are probed on an accelerator only
FORWARD_SHARE = 1 / 3  # of a training step's time: a forward pass alone
TYPICAL_ANSWER = 0.5  # of a task's token limit: how long a batch's longest answer tends to be


@dataclass(frozen=True)
class Probe:
    """Measured seconds of one training micro-batch, and of one decoding step of a batch."""

    micro_batch_s: float
    decode_step_s: float


def show(
    bench: judging.Bench, cells: Sequence[plan.Cell], todo: Sequence[plan.Cell], console: Console
) -> None:
    """Print what will be done and what is done already."""
    shop = bench.shop
    config = shop.config
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
    console.print(
        f"{len(todo)} of {len(cells)} cells to do; judged by {', '.join(config.judges)}; "
        f"model {config.model}, {_engines(shop, cells)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    for line in judging.forecast(bench, todo):
        console.print(escape(line), highlight=False, soft_wrap=True)
    needed = expected_memory(shop, todo)
    if needed and shop.config.model != models.MINI:
        console.print(escape(needed), highlight=False, soft_wrap=True)


def _engines(shop: Workshop, cells: Sequence[plan.Cell]) -> str:
    names = dict.fromkeys(responding.engine_name(shop, cell) for cell in cells)
    return f"engine{'s' * (len(names) > 1)} {', '.join(names)}"


def _rows(shop: Workshop, train_task: str) -> str:
    try:
        return f"{len(shop.examples(registry.load('train task', train_task))):,}"
    except HarnessError:  # of the hub, and not fetched yet; a file's complaint comes from the check before
        return "rows of the hub"


def architecture(shop: Workshop) -> memory.Architecture | None:
    """The seed model's; None where it is not here and not a known one."""
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


def expected_memory(shop: Workshop, cells: Sequence[plan.Cell]) -> str | None:
    """One line with the device memory of a training; None where nothing is trained, or nothing is known."""
    known = architecture(shop)
    found = training_memory(shop, cells, known) if known else None
    if known is None or found is None:
        return None
    expected, training = found
    devices = training.num_processes
    shared = f"{devices} devices ({training.distributed})" if devices > 1 else "one device"
    return (
        f"Expected memory to train on {shared}: at most about {expected / 1e9:.0f} GB each "
        f"({known.parameters / 1e9:.1f} B parameters, {training.tuning} tuning; by formula)"
    )


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def forecast(shop: Workshop, todo: Sequence[plan.Cell], jobs: int) -> str:
    """One line with the time that the cells take on this machine, measured by a short probe. The probe
    answers with transformers: what another engine takes is not forecast, and the line says so."""
    shop.import_libraries()
    model = models.load_model(
        shop.seed_folder, shop.config.responses.dtype, shop.device, base=shop.seed_checkpoint.base
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > PROBE_PARAMETERS and shop.device == "cpu":
        return f"Estimated time: not probed ({parameters / 1e9:.1f} B parameters on a CPU)"
    absent: set[str] = set()
    seconds = _seconds(shop, model, todo, absent)
    side_by_side = f", {jobs} jobs side by side" if jobs > 1 else ""
    probed = shop.engine_name == "hf"
    what = "" if probed else f" for training; how fast {shop.engine_name} answers is not probed"
    what += f" without {', '.join(sorted(absent))} (not here yet)" if absent else ""
    return f"Estimated time: about {duration(seconds / jobs)}{what} (by a short probe{side_by_side})"


def _seconds(shop: Workshop, model: Any, todo: Sequence[plan.Cell], absent: set[str]) -> float:
    """``absent`` gets the tasks whose documents cannot be had now."""
    training = [cell for cell in todo if cell.kind == "trained"]
    some = shop.examples(
        registry.load("train task", (training or list(todo))[0].train_task or shop.config.train_tasks[0])
    )
    probe = measure(shop, model, some)
    micro_batch_size = shop.config.training.micro_batch_size
    seconds = 0.0
    for cell in todo:
        if cell.kind == "trained":
            row = shop.config.row(cell.method)
            examples = len(shop.examples(registry.load("train task", cell.train_task or "")))
            seconds += probe.micro_batch_s * examples * row.training.epochs / micro_batch_size
            prepares_with = registry.load("method", row.method).prepares_with
            if prepares_with == "rewrites":
                task = registry.load("train task", cell.train_task or "")
                seconds += _decode(shop, probe, examples, task.rewrite.max_tokens)
            elif prepares_with == "seed_logp":
                seconds += FORWARD_SHARE * probe.micro_batch_s * examples / micro_batch_size
        for name in cell.tasks if shop.engine_name == "hf" else ():
            if name in absent:
                continue
            try:
                lm_task = shop.load_task(name, str(shop.seed_folder))
            except Exception:  # of the hub, and not fetched; the run itself says what is wrong
                absent.add(name)
                continue
            answering = shop.config.responses
            places = splits.places(lm_task.eval_docs, benchmarks.get(name, cell.sets), answering)
            documents = len(places or range(len(lm_task.eval_docs))[: answering.limit])
            answers = documents * int(lm_task.get_config("repeats") or 1)
            tokens = (lm_task.get_config("generation_kwargs") or {}).get("max_gen_toks", 1)
            seconds += _decode(shop, probe, answers, tokens)
    return seconds


def _decode(shop: Workshop, probe: Probe, prompts: int, max_tokens: int) -> float:
    batches = prompts / shop.config.responses.batch_size
    return batches * probe.decode_step_s * max_tokens * TYPICAL_ANSWER


def measure(shop: Workshop, model: Any, examples: Sequence[Example]) -> Probe:
    """Time one training micro-batch (forward, backward, step) and decoding, both after a warm-up."""
    from harness.engines.hf import HFEngine

    step = registry.load_object(f"{registry.TRAINER.partition(':')[0]}:probe")
    settings = shop.config.training
    tokenizer = shop.seed_tokenizer
    encoded = [chat.encode(tokenizer, example) for example in examples[: settings.micro_batch_size]]
    training = step(copy.deepcopy(model), tokenizer, encoded, settings)
    engine = HFEngine(model, tokenizer, shop.config.responses.batch_size)

    prompts = [
        chat.prompt_ids(tokenizer, example.messages[:-1])
        for example in (list(examples) * shop.config.responses.batch_size)[: shop.config.responses.batch_size]
    ]
    return Probe(
        micro_batch_s=_timed(training, 3),
        decode_step_s=_timed(lambda: engine.generate(prompts, PROBE_TOKENS), 1) / PROBE_TOKENS,
    )


def _timed(work: Any, repeats: int) -> float:
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats
