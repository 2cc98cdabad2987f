"""What a run will take on this machine: tokens, time and disk, from a short probe of the real thing.

The probe prepares some of each method's data, asks each task for some of its documents, and times pieces of
what then follows: of an optimizer step and of a batch of answers (probe.py). It asks only for what the
command will do, and takes at most the larger of 5 seconds and 5 % of the time that it foretells, never over
30 seconds. It is a forecast, not a promise: tuned models answer at other lengths than the base model, and a
machine that others use is slower.
"""

from __future__ import annotations

import contextlib
import copy
import heapq
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.contracts import Encoded, Example, Message, NotFetchedError, model_refs
from harness.data import benchmarks
from harness.engines import select
from harness.engines.base import Request
from harness.generation import answering, lm_tasks, splits
from harness.generation import stage as generation
from harness.models import checkpoints
from harness.pipeline import estimate, stages
from harness.pipeline.probe import Answering, Budget, OutOfTimeError, Training, timed
from harness.pipeline.stages import Step
from harness.run import plan
from harness.run.context import RunContext
from harness.run.resolve import resolve
from harness.training import hook_checks, preparation
from harness.training import stage as training
from harness.training.rows import encode_all

SAMPLE = 128  # examples that are prepared and tokenized
LONGEST = 64  # tokens of a probed answer
FEWER = ((4, 64), (2, 64), (2, 32), (2, 16), (1, 8))  # rows and tokens, where a whole batch takes too long
MARGIN = 1.5  # a batch may take so many times what its parts let expect
TYPICAL_REST = 0.5  # of what a task's token limit leaves: how far an answer goes that the probe cut off
UNSEEN = 32  # tokens of an answer, at least about, that no look has been taken at
LETTERS = 4.0  # bytes of a token in a stored answer, about
AGREEMENT_PASSES = 4  # forward passes over some rows, before a training (harness/training/agreement.py)
AGREEMENT_ROWS = 4
MOST_FLOPS_S = {"cpu": 2e11, "cuda": 2e15}  # of a core, of a device: no machine is faster
PROBE_PARAMETERS = 200_000_000  # larger models are probed on an accelerator only
LOOK_BYTES = 4 << 20  # of the weights, read at some places, to see how fast their disk is
LOAD_SHARE = 0.6  # of the probe's time that may go into loading
TRAINING_SHARE = 0.5  # of the probe's time: for training, where answers are asked for, too
ANSWERING_SHARE = 0.4  # of what is left then: for the speed of answers, before any are read
ANSWERING_ALONE = 0.7  # where nothing is trained
TASK_SHARE = 0.4  # of what is left then: for the answers to one task
AGAIN_S = 1.0  # what must be left for training to be timed once more
USUAL_PROMPT = 96  # tokens
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
    without_answers: str | None = None  # what answers at a speed that the probe does not know
    why: str = ""  # it was not probed
    each: tuple[float, ...] = ()  # seconds of each cell, as they were given

    def lines(self, shop: RunContext, todo: Sequence[plan.Cell]) -> list[str]:
        """Time, tokens and disk, a line each."""
        known = estimate.architecture(shop)
        size, rest = self.work.disk, ""
        if self.seconds is None and known:
            size, rest = estimate.checkpoints_bytes(shop, todo, known), " for checkpoints"
        trained = sum(cell.kind == "trained" for cell in todo)
        if known and trained:
            more = estimate.state_bytes(known) * min(self.jobs, trained)
            rest += f", up to {estimate.gigabytes(more)} more while trainings run"
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
        pieces = [f"{_count(self.work.trained)} trained"] if self.work.trained else []
        if self.work.read:
            pieces.append(f"{_count(self.work.read)} read and {_count(self.work.written)} written in answers")
        return f"Estimated tokens: {', '.join(pieces) or 'none'}"


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def forecast(
    shop: RunContext,
    todo: Sequence[plan.Cell],
    jobs: int,
    until: Step = "leaderboard",
    budget: Budget | None = None,
) -> Forecast:
    """Probe this machine for what is left of ``todo`` up to the step ``until``, and add up. Raises what the
    work itself would raise. ``budget``: its time, from when the libraries are there, which the work needs."""
    import torch

    start = time.perf_counter()
    trains = any(_trains(shop, cell) for cell in todo)
    shop.import_libraries()
    if trains:
        training.import_trainer(shop)
    imports_s = time.perf_counter() - start
    budget = budget or Budget()
    known = estimate.architecture(shop)
    if known and (why := _too_large(shop, known.parameters)):
        return Forecast(jobs, why=why)
    try:
        probe = Probe(shop, until, budget)
        works = probe.works(todo, jobs, known.parameters if known else 0)
    except NotProbedError as error:
        return Forecast(jobs, why=str(error))
    except OutOfTimeError:
        return Forecast(jobs, why=f"a look at it takes over {budget.allowed_s:.0f} s")
    except torch.OutOfMemoryError:
        return Forecast(jobs, why="one device alone does not hold it")
    table_s = TABLE_S if until == "leaderboard" else 0.0
    return Forecast(
        jobs,
        seconds=_last_done(works, jobs, imports_s) + table_s,
        work=sum(works, Work()),
        absent=tuple(probe.absent),
        without_answers=probe.without_answers,
        each=tuple(work.seconds for work in works),
    )


def _last_done(works: Sequence[Work], jobs: int, begin_s: float) -> float:
    """When the last of ``jobs`` workers is done, which take the cells in their order."""
    free = [begin_s] * jobs
    for work in works:
        heapq.heapreplace(free, free[0] + work.seconds)
    return max(free)


def _trains(shop: RunContext, cell: plan.Cell) -> bool:
    return cell.kind == "trained" and not training.train_stage(shop, cell).done()


class NotProbedError(Exception):
    """Why there is no forecast of the time."""


def _too_large(shop: RunContext, parameters: int) -> str:
    """Why a model is not probed; "" where it is."""
    if parameters > PROBE_PARAMETERS and shop.device == "cpu":
        return f"{parameters / 1e9:.1f} B parameters on a CPU"
    return ""


def load_seconds(folder: Path, clock: Callable[[], float] = time.perf_counter) -> float:
    """How long the weights in a folder take to read, from some of their bytes."""
    files = sorted(folder.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    read, start = 0, clock()
    for file in files[:4]:
        with file.open("rb") as weights:
            for piece in range(2):
                weights.seek(file.stat().st_size // 2 * piece)
                read += len(weights.read(LOOK_BYTES))
    return total / max(1, read) * (clock() - start)


@dataclass(frozen=True)
class Rows:
    """What a training takes: some of its encoded examples, and how many there are."""

    some: list[Encoded]
    number: float

    @property
    def tokens(self) -> float:
        return self.number * sum(len(row.input_ids) for row in self.some) / len(self.some)


@dataclass
class Asked:
    """What is asked of an engine, caught before it answers: prompts in groups of one token limit, and the
    lengths of what is only read."""

    prompts: dict[int, list[list[int]]] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Beginnings:
    """Of some answers: the places of their prompts, the prompts' tokens, the answers' tokens, and the seconds
    that all took."""

    places: Sequence[int] = ()
    prompts: Sequence[int] = ()
    found: Sequence[list[int]] = ()
    seconds: float = 0.0


class Probe:
    """Measures each kind of work once, with the base model, and scales it to a cell's size."""

    def __init__(self, shop: RunContext, until: Step, budget: Budget):
        self.shop, self.until, self.budget = shop, until, budget
        self.absent: set[str] = set()
        self.without_answers: str | None = None
        self.load_s = 0.0
        self.model: Any = None
        self.training: Training | None = None
        self.answering: Answering | None = None
        self.engine: Any = None
        self.jobs, self.known_s, self._least_s = 1, 0.0, 0.0  # seconds: of the work as far as it is known
        self._plain: dict[str, Rows] = {}
        self._prepared: dict[tuple[str, str], tuple[Rows, Work]] = {}
        self._tasks: dict[str, Work] = {}

    def works(self, todo: Sequence[plan.Cell], jobs: int, parameters: int) -> list[Work]:
        """What is left of each cell, in their order. Raises OutOfTimeError where nothing can be said."""
        trained = [cell for cell in todo if _trains(self.shop, cell)]
        answers = any(self._names(cell, cell) for cell in todo)
        if not (trained or answers):
            return [Work()] * len(todo)
        self.jobs = jobs
        tokens = sum(self._epochs(cell) * self._raw(cell).tokens for cell in trained)
        self._grant(6 * parameters * tokens / _fastest(self.shop.device))
        self._load()
        rewrites = any(self.shop.method(c.method).prepares_with == "rewrites" for c in trained)
        if trained:
            self._time_training(trained, alone=not (answers or rewrites))
            self.known_s = sum(self._train_s(cell, self._raw(cell)) for cell in trained)
            self._grant()
        if answers or rewrites:
            self._time_answers()
        found = [self._cell(cell) for cell in todo]
        if self.training and self.budget.left() > AGAIN_S:
            with contextlib.suppress(OutOfTimeError):
                self.training.measure(self.budget)
            found = [self._cell(cell) for cell in todo]
        return found

    def _grant(self, more_s: float = 0.0) -> None:
        """Allow what the known seconds of the work, and ``more_s``, justify. What was once justified stays
        so: all of them are the least that the work takes."""
        self._least_s = max(self._least_s, (self.known_s + more_s) / self.jobs)
        self.budget.grant(self._least_s)

    def _load(self) -> None:
        shop, folder = self.shop, self.shop.seed_folder
        self.budget.check()
        expected = load_seconds(folder, self.budget.clock)
        if expected > LOAD_SHARE * self.budget.left():
            raise NotProbedError(f"its weights take about {expected:.0f} s to load")
        base, dtype = shop.seed_checkpoint.base, shop.config.responses.dtype

        def load() -> None:
            self.model = checkpoints.load_model(folder, dtype, shop.device, base=base)

        self.load_s = timed(self.budget, load)
        self.budget.check()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        if why := _too_large(shop, parameters):
            raise NotProbedError(why)

    # --- training ----------------------------------------------------------------------------------

    def _epochs(self, cell: plan.Cell) -> int:
        return self.shop.config.row(cell.method).training.epochs

    def _encoded(self, cell: plan.Cell, examples: Sequence[Example]) -> list[Encoded]:
        task, settings = self.shop.train_task(cell), self.shop.config.row(cell.method).training
        longest = settings.max_length or task.max_length
        return encode_all(self.shop.seed_tokenizer, examples, longest, settings.too_long)[0]

    def _some(self, cell: plan.Cell) -> list[Example]:
        examples = self.shop.examples(self.shop.train_task(cell))
        return estimate.spread(examples, SAMPLE)

    def _raw(self, cell: plan.Cell) -> Rows:
        """A cell's rows as its train task has them."""
        name = cell.train_task or ""
        if name not in self._plain:
            self._plain[name] = Rows(
                self._encoded(cell, self._some(cell)), len(self.shop.examples(self.shop.train_task(cell)))
            )
        return self._plain[name]

    def _rows(self, cell: plan.Cell) -> tuple[Rows, Work]:
        """A cell's rows as its method prepares them, and what the base model writes for it."""
        key = cell.train_task or "", cell.method
        if key not in self._prepared:
            shop, task, some = self.shop, self.shop.train_task(cell), self._some(cell)
            whole = len(shop.examples(task)) / len(some)
            method, made = resolve(shop.config).make_method(cell.method), Work()

            def write(
                conversations: Sequence[Sequence[Message]],
                *,
                opening: str,
                max_tokens: int,
                **decoding: float,
            ) -> list[str]:
                nonlocal made
                prompts, opened = preparation.prompted(shop, conversations, opening)
                work, found = self._answers(prompts, max_tokens, whole)
                made += work * whole
                self.known_s += work.seconds * whole
                texts = {place: self.engine.completion(ids, opened).text for place, ids in found.items()}
                return [texts.get(place, "") for place in range(len(prompts))]

            prepared = method.prepare(list(some), preparation.context(shop, task, method, cell, write))
            rows = self._encoded(cell, prepared or some)
            self._prepared[key] = Rows(rows, whole * len(rows)), Work(seconds=made.seconds)
        return self._prepared[key]

    def _time_training(self, trained: Sequence[plan.Cell], *, alone: bool) -> None:
        from harness.training.adapters import load_dtype
        from harness.training.step_probe import StepProbe

        settings, rows = self.shop.config.training, self._raw(trained[0]).some
        # What answers after this must be as it was: a training has its own attention and adapters.
        model = self.model if alone else copy.deepcopy(self.model)
        step = StepProbe(_in_dtype(model, load_dtype(settings)), self.shop.seed_tokenizer, settings)
        self.training = Training(step, rows)
        pass_s = self.training.warm_up(self.budget) / 2
        passes = sum(
            self._epochs(cell) * self._raw(cell).number * self.training.count(rows, settings)
            for cell in trained
        )
        self._grant(pass_s * passes)
        with self.budget.part(1.0 if alone else TRAINING_SHARE):
            self.training.measure(self.budget)

    def _train_s(self, cell: plan.Cell, rows: Rows) -> float:
        """Seconds of a training's loop, and of what is compared before it."""
        assert self.training is not None
        settings = self.shop.config.row(cell.method).training
        steps = self.training.seconds_by_example(rows.some, settings) * rows.number * settings.epochs
        method = self.shop.method(cell.method)
        if method.prepares_with == "seed_logp":
            steps += self.training.forward_s(rows.some) / len(rows.some) * rows.number
        steps += self._safety_s(cell, rows)
        compared = self.training.forward_s(rows.some) / len(rows.some) * AGREEMENT_PASSES * AGREEMENT_ROWS
        return steps / settings.num_processes + compared

    def _safety_s(self, cell: plan.Cell, rows: Rows) -> float:
        """Seconds of the safety gradients: about those of another step on safety data."""
        assert self.training is not None
        if not hook_checks.asks_safety_gradient(self.shop.method(cell.method)):
            return 0.0
        settings = self.shop.config.row(cell.method).training
        examples = self.shop.safety_examples(self.shop.train_task(cell))
        some = self._encoded(cell, estimate.spread(examples, SAMPLE))
        return self.training.seconds_by_example(some, settings) * rows.number * settings.epochs

    def _training(self, cell: plan.Cell) -> Work:
        """A training, its preparation included."""
        rows, made = self._rows(cell)
        config = self.shop.config
        settings = config.row(cell.method).training
        known = estimate.architecture(self.shop)
        copies = settings.epochs if config.eval_every_epoch else 1
        return made + Work(
            seconds=self._train_s(cell, rows) + self.load_s + self._other_models_s(cell),
            trained=rows.tokens * settings.epochs,
            disk=copies * estimate.checkpoint_bytes(settings, known) if known else 0.0,
        )

    def _other_models_s(self, cell: plan.Cell) -> float:
        """Seconds to load the models that a method's options name, each once."""
        folders = [self.shop.other_model(ref).folder for ref in model_refs(self.shop.method(cell.method))]
        return sum(load_seconds(folder, self.budget.clock) for folder in folders)

    # --- answers -----------------------------------------------------------------------------------

    def _names(self, cell: plan.Cell, piece: plan.Cell) -> tuple[str, ...]:
        """The tasks that a part of a cell (itself, or the weights after an epoch) has to answer with an
        engine that the probe knows."""
        if self.until == "train":
            return ()
        engine = generation.engine_name(self.shop, cell)
        if not select.engine_class(engine).like_transformers:
            self.without_answers = engine
            return ()
        return piece.tasks if _trains(self.shop, cell) else stages.unanswered(self.shop, piece)

    def _time_answers(self) -> None:
        import torch

        from harness.engines.hf import HFEngine

        settings = self.shop.config.responses
        self.engine = HFEngine(self.model, self.shop.seed_tokenizer, settings.batch_size)
        try:
            with self.budget.part(ANSWERING_SHARE if self.training else ANSWERING_ALONE):
                self.answering = Answering(self.budget, self.model, settings.batch_size, USUAL_PROMPT)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # no time, or an architecture whose cache is of another kind
            self.without_answers = self.shop.engine_name

    def _task(self, name: str, cell: plan.Cell) -> Work:
        """One task's documents, answered by one checkpoint. A task that there is no time for is taken to be
        as the others are."""
        if name not in self._tasks:
            if self.budget.left() <= 0 and self._tasks:
                return sum(self._tasks.values(), Work()) * (1 / len(self._tasks))
            self._tasks[name] = self._measured(name, cell)
        return self._tasks[name]

    def _measured(self, name: str, cell: plan.Cell) -> Work:
        benchmark = self.shop.benchmark(name)
        settings = self.shop.config.responses
        small = RunContext(self.shop.config, self.shop.out)
        start = self.budget.clock()
        try:
            task = lm_tasks.load(small, benchmark, str(self.shop.seed_folder))
        except NotFetchedError:
            self.absent.add(name)
            return Work()
        load_s = self.budget.clock() - start
        number = len(splits.chosen(task.eval_docs, benchmark, settings))
        some = min(number, settings.batch_size)
        small.config = small.config.model_copy(
            update={"responses": settings.model_copy(update={"limit": some})}
        )
        small.load_task = lambda *given: task  # type: ignore[method-assign]
        start = self.budget.clock()
        asked, rows = self._caught(small, benchmark)
        around_s = load_s + (self.budget.clock() - start) * number / some
        made = Work(seconds=self._read_s(asked.read), read=sum(asked.read))
        for limit, prompts in asked.prompts.items():
            work = self._answers(prompts, limit, number / some)[0]
            made += work
            self.known_s += work.seconds * number / some
        size = sum(len(json.dumps(row, ensure_ascii=False)) for row in rows) + LETTERS * made.written
        if benchmark.kind == "safety":
            size += VERDICT_BYTES * len(rows) * len(self.shop.config.judges)
        return made * (number / some) + Work(seconds=around_s, disk=size * number / some)

    def _caught(
        self, shop: RunContext, benchmark: benchmarks.Benchmark
    ) -> tuple[Asked, list[dict[str, Any]]]:
        """What a task asks for, and the rows that it makes of empty answers."""
        asked, end = Asked(), min(self.engine.stop_ids)

        def generate(prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
            asked.prompts.setdefault(request.max_new_tokens, []).extend(prompts)
            return [[end]] * len(prompts)

        def logprobs(
            pairs: Sequence[tuple[list[int], list[int]]], request: Request
        ) -> list[tuple[float, bool]]:
            asked.read += [len(context) + len(continuation) for context, continuation in pairs]
            return [(-1.0, False)] * len(pairs)

        engine = copy.copy(self.engine)
        engine.generate, engine.logprobs = generate, logprobs
        rows, _ = answering.respond_rows(shop, engine, benchmark, benchmark.name)
        return asked, rows

    def _read_s(self, lengths: Sequence[int]) -> float:
        """Seconds of passes over what is only read."""
        size, ordered = self.shop.config.responses.batch_size, sorted(lengths)
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        assert self.answering is not None
        return sum(self.answering.prompts(max(batch) * len(batch)) for batch in batches)

    def _answers(
        self, prompts: Sequence[list[int]], limit: int, times: float
    ) -> tuple[Work, dict[int, list[int]]]:
        """What all prompts take, in batches, and the beginnings of those answers that the probe has made, by
        their prompts' places. ``times``: how many such prompts the work has for each of these.

        One look after another, each at more of a batch's rows and further into their answers, as long as what
        the last has shown justifies the time.
        """
        size = self.shop.config.responses.batch_size
        if self.answering is None:
            return Work(), {}
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        batch = estimate.spread(order, size)
        share = len(prompts) / len(batch)
        lengths = [len(prompts[place]) for place in batch]
        looks = [(len(batch), LONGEST), *FEWER]
        seen = Beginnings()
        while True:
            least = self._extrapolated(lengths, seen, limit, typical_rest=0.0)
            self._grant(least.seconds * share * times)
            place = self._next_look(looks, prompts, batch, limit)
            if place is None:
                break
            rows, tokens = looks[place]
            with contextlib.suppress(OutOfTimeError), self.budget.watching(self.model):
                seen = self._begun(prompts, estimate.spread(batch, rows), min(limit, tokens))
            looks = looks[:place]
        work = self._extrapolated(lengths, seen, limit, TYPICAL_REST)
        work.read = sum(map(len, prompts)) / share
        return work * share, dict(zip(seen.places, seen.found, strict=True))

    def _next_look(
        self, looks: Sequence[tuple[int, int]], prompts: Sequence[list[int]], batch: Sequence[int], limit: int
    ) -> int | None:
        """The place of the largest look, of so many rows and tokens, that there is time for."""
        assert self.answering is not None
        for place, (rows, tokens) in enumerate(looks):
            longest = max(len(prompts[one]) for one in estimate.spread(batch, rows))
            expected = self.answering.batch(min(rows, len(batch)), longest, min(limit, tokens))
            if MARGIN * expected <= TASK_SHARE * self.budget.left():
                return place
        return None

    def _begun(self, prompts: Sequence[list[int]], places: Sequence[int], tokens: int) -> Beginnings:
        """Answers to the prompts at ``places``, of ``tokens`` at most."""
        some, found = [prompts[place] for place in places], list[list[int]]()
        took = timed(self.budget, lambda: found.extend(self.engine.generate(some, Request(tokens))))
        return Beginnings(places, [len(prompt) for prompt in some], found, took)

    def _extrapolated(self, batch: Sequence[int], seen: Beginnings, limit: int, typical_rest: float) -> Work:
        """A whole batch from the beginnings of some of its answers. ``batch``: tokens of its prompts;
        ``typical_rest``: of what the limit leaves, how far an answer goes that was cut off."""
        speed, rows, prompt, found, some = self.answering, len(batch), max(batch), seen.found, seen.prompts
        assert speed is not None
        if not found:
            tokens = limit * typical_rest if typical_rest else min(limit, UNSEEN)
            return Work(seconds=speed.batch(rows, prompt, tokens), written=rows * tokens)
        steps = max(map(len, found))
        cut = [len(ids) == steps and ids[-1] not in self.engine.stop_ids for ids in found]
        rest = (limit - steps) * typical_rest if any(cut) else 0.0
        # What generate() does besides the model's passes, or the machine being slower or faster than before.
        apart = seen.seconds - speed.batch(len(some), max(some), steps)
        whole = speed.batch(rows, prompt, steps) + apart if rows > len(some) else seen.seconds
        seconds = max(seen.seconds, whole) + speed.more(rows, prompt + steps, rest)
        return Work(seconds=seconds, written=(sum(map(len, found)) + rest * sum(cut)) * rows / len(found))

    # --- a cell ------------------------------------------------------------------------------------

    def _cell(self, cell: plan.Cell) -> Work:
        """All that is left of one cell, the weights in the middle of its training included."""
        total = Work()
        if _trains(self.shop, cell):
            total += self._training(cell)
        if self.until == "train":
            return total
        for one in (cell, *plan.epochs(self.shop.config, cell)):
            total += Work(seconds=self.load_s)
            for name in self._names(cell, one) if self.answering else ():
                total += self._task(name, one)
        return total


def _in_dtype(model: Any, dtype: str) -> Any:
    import torch

    return model.to(getattr(torch, dtype))


def _fastest(device: str) -> float:
    """FLOP/s that no machine exceeds: what takes long even so may be looked at for longer."""
    return MOST_FLOPS_S["cpu"] * (os.cpu_count() or 1) if device == "cpu" else MOST_FLOPS_S["cuda"]
