"""What a checkpoint's answers to a task take: some documents are asked as in a run, and some answered."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.contracts import NotFetchedError
from harness.data import benchmarks
from harness.engines.base import Request
from harness.generation import answering, lm_tasks, splits
from harness.pipeline.probing.answer_probe import AnswerProbe
from harness.pipeline.probing.effort import Effort
from harness.run.context import RunContext

LETTERS = 4.0  # bytes of a token in a stored answer, about
VERDICT_BYTES = 400


@dataclass
class Asked:
    """What is asked of an engine, caught before it answers: prompts in groups of one token limit, and the
    lengths of what is only read."""

    prompts: dict[int, list[list[int]]] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)


class TaskProbe:
    """Measures each task once, and keeps which of them are ``absent``: their documents cannot be had now."""

    def __init__(self, ctx: RunContext, answers: AnswerProbe):
        self.ctx, self.answers, self.budget = ctx, answers, answers.budget
        self.absent: set[str] = set()
        self._measured: dict[str, Effort] = {}

    def measure(self, name: str) -> Effort:
        """One task's documents, answered by one checkpoint. A task that there is no time for is taken to be
        as the others are."""
        if name not in self._measured:
            if self.budget.left() <= 0 and self._measured:
                return sum(self._measured.values(), Effort()) * (1 / len(self._measured))
            self._measured[name] = self._measure(name)
        return self._measured[name]

    def _measure(self, name: str) -> Effort:
        benchmark, settings = self.ctx.benchmark(name), self.ctx.config.responses
        small = RunContext(self.ctx.config, self.ctx.out)
        start = self.budget.clock()
        try:
            task = lm_tasks.load(small, benchmark, str(self.ctx.seed_folder))
        except NotFetchedError:
            self.absent.add(name)
            return Effort()
        load_s = self.budget.clock() - start
        number = len(splits.choose(task.eval_docs, benchmark, settings))
        some = min(number, settings.batch_size)
        small.config = small.config.model_copy(
            update={"responses": settings.model_copy(update={"limit": some})}
        )
        small.load_task = lambda *given: task  # type: ignore[method-assign]
        start = self.budget.clock()
        asked, rows = self._catch(small, benchmark)
        around_s = load_s + (self.budget.clock() - start) * number / some
        effort = self._answer(asked, number / some)
        size = sum(len(json.dumps(row, ensure_ascii=False)) for row in rows) + LETTERS * effort.written
        if benchmark.kind == "safety":
            size += VERDICT_BYTES * len(rows) * len(self.ctx.config.judges)
        return effort * (number / some) + Effort(seconds=around_s, disk=size * number / some)

    def _catch(self, ctx: RunContext, benchmark: benchmarks.Benchmark) -> tuple[Asked, list[dict[str, Any]]]:
        """What a task asks for, and the rows that it makes of empty answers."""
        asked, end = Asked(), min(self.answers.engine.stop_ids)

        def generate(prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
            asked.prompts.setdefault(request.max_new_tokens, []).extend(prompts)
            return [[end]] * len(prompts)

        def logprobs(
            pairs: Sequence[tuple[list[int], list[int]]], request: Request
        ) -> list[tuple[float, bool]]:
            asked.read += [len(context) + len(continuation) for context, continuation in pairs]
            return [(-1.0, False)] * len(pairs)

        engine = copy.copy(self.answers.engine)
        engine.generate, engine.logprobs = generate, logprobs
        rows, _ = answering.respond_rows(ctx, engine, benchmark, benchmark.name)
        return asked, rows

    def _answer(self, asked: Asked, times: float) -> Effort:
        """What was asked for, read and answered; the work asks so many ``times`` as much."""
        effort = Effort(seconds=self.answers.read_s(asked.read), read=sum(asked.read))
        for limit, prompts in asked.prompts.items():
            answered, _ = self.answers.answer(prompts, limit, times)
            effort += answered
            self.budget.learn(answered.seconds * times)
        return effort
