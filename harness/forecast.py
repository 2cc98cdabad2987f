"""What a run will take on this machine: tokens, time and disk, from a short probe of the real thing.

The probe prepares some of each method's data, takes a few training steps, and lets the seed model answer a
batch of each task's documents, tens of tokens long. It is a forecast, not a promise: tuned models answer at
other lengths than the seed model, and a machine that others use is slower.
"""

from __future__ import annotations

import copy
import heapq
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import (
    benchmarks,
    estimate,
    models,
    plan,
    preparation,
    registry,
    responding,
    splits,
    stages,
    training,
)
from harness.contracts import Encoded, Message, NotFetchedError, TrainTask
from harness.workshop import Workshop

SAMPLE = 128  # examples that are prepared and tokenized
MICRO_BATCHES = 4  # of one optimizer step, at most
STEPS = 3  # optimizer steps that are timed, after one that is not
LONGEST = 64  # tokens of a probed answer, or as many as fit into BUDGET_S
SHORTEST = 8
BUDGET_S = 5.0  # of one batch of answers
TYPICAL_REST = 0.5  # of what a task's token limit leaves: how far an answer goes that the probe cut off
FORWARD_SHARE = 1 / 3  # of a training step's time: a forward pass alone
PROBE_PARAMETERS = 200_000_000  # larger models are probed on an accelerator only
TABLE_S = 3.0  # leaderboard and report
VERDICT_BYTES = 400


@dataclass
class Work:
    """What a piece of work takes: seconds of one process, tokens trained, read and written, bytes left."""

    seconds: float = 0.0
    trained: float = 0.0
    read: float = 0.0
    written: float = 0.0
    disk: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(value * factor for value in vars(self).values()))


@dataclass
class Forecast:
    """Of all cells. ``seconds``: until the last of ``jobs`` workers is done; None where it was not probed."""

    jobs: int
    seconds: float | None = None
    work: Work = field(default_factory=Work)
    absent: tuple[str, ...] = ()  # tasks whose documents cannot be had now
    without_answers: str | None = None  # the engine whose speed the probe does not know
    why: str = ""  # it was not probed

    def lines(self, shop: Workshop, todo: Sequence[plan.Cell]) -> list[str]:
        """Time, tokens and disk, a line each."""
        known = estimate.architecture(shop)
        size, rest = self.work.disk, ""
        if self.seconds is None and known:
            size, rest = estimate.checkpoints_bytes(shop, todo, known), " for checkpoints"
        if known and any(cell.kind == "trained" for cell in todo):
            rest += f", up to {estimate.gigabytes(estimate.state_bytes(known))} more while a training runs"
        place, free = estimate.disk_at(shop.out)
        disk = f"Disk: about {estimate.gigabytes(size)}{rest}; {estimate.gigabytes(free)} are free at {place}"
        return [self.time(), *([self.tokens()] if self.seconds is not None else []), disk]

    def time(self) -> str:
        """The line about time."""
        if self.seconds is None:
            return f"Estimated time: not probed ({self.why})"
        side_by_side = f", {self.jobs} jobs side by side" if self.jobs > 1 else ""
        engine = self.without_answers
        what = f" for training; how fast {engine} answers is not probed" if engine else ""
        what += f" without {', '.join(sorted(self.absent))} (not downloaded)" if self.absent else ""
        seconds = estimate.duration(self.seconds)
        return f"Estimated time: about {seconds}{what} (by a short probe{side_by_side})"

    def tokens(self) -> str:
        """The line about tokens."""
        parts = [f"{_count(self.work.trained)} trained"] if self.work.trained else []
        if self.work.read:
            parts.append(f"{_count(self.work.read)} read and {_count(self.work.written)} written in answers")
        return f"Estimated tokens: {', '.join(parts)}"


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def forecast(shop: Workshop, todo: Sequence[plan.Cell], jobs: int) -> Forecast:
    """Probe this machine and add up. Raises what the work itself would raise."""
    import torch

    start = time.perf_counter()
    shop.import_libraries()
    imports_s = time.perf_counter() - start
    known = estimate.architecture(shop)
    if known and (why := _too_large(shop, known.parameters)):
        return Forecast(jobs, why=why)
    try:
        probe = Probe(shop)
        if why := _too_large(shop, probe.parameters):
            return Forecast(jobs, why=why)
        works = [probe.cell(cell) for cell in todo]
    except torch.OutOfMemoryError:
        return Forecast(jobs, why="one device alone does not hold it")
    free = [imports_s] * jobs
    for work in works:
        heapq.heapreplace(free, free[0] + work.seconds)
    return Forecast(
        jobs,
        seconds=max(free) + TABLE_S,
        work=sum(works, Work()),
        absent=tuple(probe.absent),
        without_answers=None if probe.answers else shop.engine_name,
    )


def _too_large(shop: Workshop, parameters: int) -> str:
    """Why a model is not probed; "" where it is."""
    if parameters > PROBE_PARAMETERS and shop.device == "cpu":
        return f"{parameters / 1e9:.1f} B parameters on a CPU"
    return ""


class Probe:
    """Measures each kind of work once, with the seed model, and scales it to a cell's size."""

    def __init__(self, shop: Workshop):
        from harness.engines.hf import HFEngine

        self.shop, self.answers = shop, shop.engine_name == "hf"
        self.absent: set[str] = set()
        self._tasks: dict[str, Work] = {}
        self._token_s: float | None = None
        start = time.perf_counter()
        settings = shop.config.responses
        model = models.load_model(
            shop.seed_folder, settings.dtype, shop.device, base=shop.seed_checkpoint.base
        )
        self.load_s = time.perf_counter() - start
        self.model = model
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        engine: Any = HFEngine(model, shop.seed_tokenizer, settings.batch_size)
        self._generate, engine.generate = engine.generate, self._some
        self.engine = engine
        self._limit: int | None = None
        self.made = Work()

    # --- answers -----------------------------------------------------------------------------------

    def _some(self, prompts: Sequence[list[int]], max_new_tokens: int, **sampling: Any) -> list[list[int]]:
        """The engine's ``generate``, cut short; adds to ``made`` what all of it would take."""
        if self._limit is None:  # the first call warms up
            self._generate(prompts, min(max_new_tokens, SHORTEST), **sampling)
            start = time.perf_counter()
            self._generate(prompts, min(max_new_tokens, SHORTEST), **sampling)
            step_s = (time.perf_counter() - start) / SHORTEST
            self._limit = max(SHORTEST, min(LONGEST, int(BUDGET_S / step_s)))
        limit = min(max_new_tokens, self._limit)
        start = time.perf_counter()
        found: list[list[int]] = self._generate(prompts, limit, **sampling)
        seconds = time.perf_counter() - start
        cut = [len(ids) == limit and ids[-1] not in self.engine.stop_ids for ids in found]
        rest = (max_new_tokens - limit) * TYPICAL_REST
        self.made += Work(
            seconds=seconds * (1 + rest / limit if any(cut) else 1),
            read=sum(map(len, prompts)),
            written=sum(map(len, found)) + rest * sum(cut),
        )
        return found

    def _task(self, name: str, cell: plan.Cell) -> Work:
        """One task's documents, answered by one checkpoint."""
        benchmark = benchmarks.get(name, cell.sets)
        settings = self.shop.config.responses
        try:
            task = responding.load(self.shop, benchmark, str(self.shop.seed_folder))
        except NotFetchedError:
            self.absent.add(name)
            return Work()
        number = len(splits.chosen(task.eval_docs, benchmark, settings))
        some = min(number, settings.batch_size)
        limited = settings.model_copy(update={"limit": some})
        small = Workshop(self.shop.config.model_copy(update={"responses": limited}), self.shop.out)
        start, self.made = time.perf_counter(), Work()
        rows, _ = responding.respond_rows(small, self.engine, benchmark, name)
        around_s = max(0.0, time.perf_counter() - start - self.engine.seconds)
        size = sum(len(json.dumps(row, ensure_ascii=False)) for row in rows)
        if benchmark.kind == "safety":
            size += VERDICT_BYTES * len(rows) * len(self.shop.config.judges)
        return self.made * (number / some) + Work(seconds=around_s, disk=size * number / some)

    # --- training ----------------------------------------------------------------------------------

    def _training(self, cell: plan.Cell) -> Work:
        config = self.shop.config
        row, method = config.row(cell.method), training.make_method(config, cell.method)
        task: TrainTask = registry.load("train task", cell.train_task or "")
        settings = row.training
        examples = self.shop.examples(task)
        some = examples[:: -(-len(examples) // SAMPLE)]
        self.made = Work()
        handed = preparation.context(self.shop, task, method, cell, self._rewrites)
        prepared = method.prepare(list(some), handed)
        prepared = prepared or list(some)
        whole = len(examples) / len(some)
        made = Work(seconds=self.made.seconds) * whole if method.prepares_with == "rewrites" else Work()
        encoded, _ = training.encode_all(
            self.shop.seed_tokenizer, prepared, settings.max_length or task.max_length, settings.too_long
        )
        tokens = whole * sum(len(example.input_ids) for example in encoded)
        if self._token_s is None:
            self._token_s = self._step_s_by_token(encoded)
        passes = settings.epochs + (FORWARD_SHARE if method.prepares_with == "seed_logp" else 0)
        known = estimate.architecture(self.shop)
        copies = settings.epochs if config.eval_every_epoch else 1
        disk = copies * estimate.checkpoint_bytes(settings, known) if known else 0.0
        return made + Work(
            seconds=tokens * passes * self._token_s / settings.num_processes + self.load_s,
            trained=tokens * settings.epochs,
            disk=disk,
        )

    def _rewrites(
        self, conversations: Sequence[Sequence[Message]], *, opening: str, max_tokens: int, **decoding: float
    ) -> list[str]:
        """A method's ``generate``, cut short."""
        prompts, opened = preparation.prompted(self.shop, conversations, opening)
        found = self.engine.generate(prompts, max_tokens)
        return [self.engine.completion(ids, opened).text for ids in found]

    def _step_s_by_token(self, encoded: Sequence[Encoded]) -> float:
        """Seconds of an optimizer step for each of its tokens, on a copy of the model."""
        make: Callable[..., Any] = registry.load_object(f"{registry.TRAINER.partition(':')[0]}:probe")
        settings = self.shop.config.training
        some = list(encoded)[: min(settings.batch_size, MICRO_BATCHES * settings.micro_batch_size)]
        step = make(copy.deepcopy(self.model), self.shop.seed_tokenizer, some, settings)
        step()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        seconds = (time.perf_counter() - start) / STEPS
        return seconds / sum(len(example.input_ids) for example in some)

    # --- a cell ------------------------------------------------------------------------------------

    def cell(self, cell: plan.Cell) -> Work:
        """All that is left of one cell, the weights in the middle of its training included."""
        shop = self.shop
        total = Work()
        if cell.kind == "trained" and not training.train_stage(shop, cell).done():
            total += self._training(cell)
        for one in (cell, *plan.epochs(shop.config, cell)):
            total += Work(seconds=self.load_s)
            names = one.tasks if total.trained else stages.unanswered(shop, one)
            for name in names if self.answers else ():
                if name not in self._tasks:
                    self._tasks[name] = self._task(name, one)
                total += self._tasks[name]
        return total
