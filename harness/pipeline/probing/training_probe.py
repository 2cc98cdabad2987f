"""What a cell's training takes: some of its rows are prepared as in a run, and pieces of its steps timed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.contracts import Encoded, Example, Message, model_refs
from harness.pipeline import estimate
from harness.pipeline.probing.answer_probe import AnswerProbe
from harness.pipeline.probing.base_model import estimate_load_s
from harness.pipeline.probing.effort import Effort
from harness.pipeline.probing.speed import TrainingSpeed
from harness.run import plan
from harness.run.context import RunContext
from harness.run.resolve import resolve
from harness.training import hook_checks, preparation
from harness.training.rows import encode_all

SAMPLE = 128  # examples that are prepared and tokenized
AGREEMENT_PASSES = 4  # forward passes over some rows, before a training (harness/training/agreement.py)
AGREEMENT_ROWS = 4
SHARE = 0.5  # of the probe's time, where answers are asked for, too


@dataclass(frozen=True)
class SampledRows:
    """What a training takes: some of its encoded examples, and how many there are."""

    some: list[Encoded]
    number: float

    @property
    def tokens(self) -> float:
        return self.number * sum(len(row.input_ids) for row in self.some) / len(self.some)


class TrainingProbe:
    """Measures steps once, and each method's preparation once a train task."""

    def __init__(self, ctx: RunContext, answers: AnswerProbe):
        """``answers``: writes what a method lets the base model write."""
        self.ctx, self.answers, self.budget = ctx, answers, answers.budget
        self.speed: TrainingSpeed | None = None
        self._plain: dict[str, SampledRows] = {}
        self._prepared: dict[tuple[str, str], tuple[SampledRows, Effort]] = {}

    def tokens(self, trained: Sequence[plan.Cell]) -> float:
        """Of all epochs of some cells, with the rows that their train tasks have."""
        return sum(self._epochs(cell) * self._load_rows(cell).tokens for cell in trained)

    def measure_speed(self, model: Any, trained: Sequence[plan.Cell], *, alone: bool) -> None:
        """Time pieces of steps of the base model, and learn what the trainings take by them. ``alone``:
        nothing answers with it after this. Raises OutOfTimeError."""
        from harness.training.adapters import load_dtype
        from harness.training.step_probe import StepProbe

        settings, rows = self.ctx.config.training, self._load_rows(trained[0]).some
        # What answers after this must be as it was: a training has its own attention and adapters.
        model = model if alone else copy.deepcopy(model)
        step = StepProbe(_convert(model, load_dtype(settings)), self.ctx.seed_tokenizer, settings)
        self.speed = TrainingSpeed(step, rows)
        pass_s = self.speed.warm_up(self.budget) / 2
        passes = sum(
            self._epochs(cell) * self._load_rows(cell).number * self.speed.count(rows, settings)
            for cell in trained
        )
        self.budget.justify(pass_s * passes)
        with self.budget.part(1.0 if alone else SHARE):
            self.speed.measure(self.budget)
        self.budget.learn(sum(self._train_s(cell, self._load_rows(cell)) for cell in trained))
        self.budget.justify()

    def measure(self, cell: plan.Cell) -> Effort:
        """A training, its preparation included, but not the loading of its base model."""
        rows, made = self._prepare_rows(cell)
        config = self.ctx.config
        settings = config.row(cell.method).training
        known = estimate.architecture(self.ctx)
        copies = settings.epochs if config.eval_every_epoch else 1
        return made + Effort(
            seconds=self._train_s(cell, rows) + self._other_models_s(cell),
            trained=rows.tokens * settings.epochs,
            disk=copies * estimate.checkpoint_bytes(settings, known) if known else 0.0,
        )

    # --- rows --------------------------------------------------------------------------------------

    def _epochs(self, cell: plan.Cell) -> int:
        return self.ctx.config.row(cell.method).training.epochs

    def _encode(self, cell: plan.Cell, examples: Sequence[Example]) -> list[Encoded]:
        task, settings = self.ctx.train_task(cell), self.ctx.config.row(cell.method).training
        longest = settings.max_length or task.max_length
        return encode_all(self.ctx.seed_tokenizer, examples, longest, settings.too_long)[0]

    def _sample(self, cell: plan.Cell) -> list[Example]:
        return estimate.spread(self.ctx.examples(self.ctx.train_task(cell)), SAMPLE)

    def _load_rows(self, cell: plan.Cell) -> SampledRows:
        """A cell's rows as its train task has them."""
        name = cell.train_task or ""
        if name not in self._plain:
            number = len(self.ctx.examples(self.ctx.train_task(cell)))
            self._plain[name] = SampledRows(self._encode(cell, self._sample(cell)), number)
        return self._plain[name]

    def _prepare_rows(self, cell: plan.Cell) -> tuple[SampledRows, Effort]:
        """A cell's rows as its method prepares them, and what the base model writes for it."""
        key = cell.train_task or "", cell.method
        if key not in self._prepared:
            ctx, task, some = self.ctx, self.ctx.train_task(cell), self._sample(cell)
            whole = len(ctx.examples(task)) / len(some)
            method, made = resolve(ctx.config).make_method(cell.method), Effort()

            def write(
                conversations: Sequence[Sequence[Message]],
                *,
                opening: str,
                max_tokens: int,
                **decoding: float,
            ) -> list[str]:
                nonlocal made
                prompts, opened = preparation.build_prompts(ctx, conversations, opening)
                effort, found = self.answers.answer(prompts, max_tokens, whole)
                made += effort * whole
                self.budget.learn(effort.seconds * whole)
                engine = self.answers.engine
                texts = {place: engine.completion(ids, opened).text for place, ids in found.items()}
                return [texts.get(place, "") for place in range(len(prompts))]

            prepared = method.prepare(list(some), preparation.make_context(ctx, task, method, cell, write))
            rows = self._encode(cell, prepared or some)
            self._prepared[key] = SampledRows(rows, whole * len(rows)), Effort(seconds=made.seconds)
        return self._prepared[key]

    # --- seconds -----------------------------------------------------------------------------------

    def _train_s(self, cell: plan.Cell, rows: SampledRows) -> float:
        """Seconds of a training's loop, and of what is compared before it."""
        assert self.speed is not None
        settings = self.ctx.config.row(cell.method).training
        steps = self.speed.seconds_by_example(rows.some, settings) * rows.number * settings.epochs
        method = self.ctx.method(cell.method)
        if method.prepares_with == "seed_logp":
            steps += self.speed.forward_s(rows.some) / len(rows.some) * rows.number
        steps += self._safety_s(cell, rows)
        compared = self.speed.forward_s(rows.some) / len(rows.some) * AGREEMENT_PASSES * AGREEMENT_ROWS
        return steps / settings.num_processes + compared

    def _safety_s(self, cell: plan.Cell, rows: SampledRows) -> float:
        """Seconds of the safety gradients: about those of another step on safety data."""
        assert self.speed is not None
        if not hook_checks.asks_safety_gradient(self.ctx.method(cell.method)):
            return 0.0
        settings = self.ctx.config.row(cell.method).training
        examples = self.ctx.safety_examples(self.ctx.train_task(cell))
        some = self._encode(cell, estimate.spread(examples, SAMPLE))
        return self.speed.seconds_by_example(some, settings) * rows.number * settings.epochs

    def _other_models_s(self, cell: plan.Cell) -> float:
        """Seconds to load the models that a method's options name, each once."""
        folders = [self.ctx.other_model(ref).folder for ref in model_refs(self.ctx.method(cell.method))]
        return sum(estimate_load_s(folder, self.budget.clock) for folder in folders)


def _convert(model: Any, dtype: str) -> Any:
    import torch

    return model.to(getattr(torch, dtype))
