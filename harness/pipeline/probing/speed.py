"""How fast this machine trains and answers with a model, from small pieces of the work.

A step of a large model takes longer than a forecast may. So pieces of it are timed (timing.py): a few
tokens, a micro-batch's rows through the first of the layers, through more of them, through all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from harness.pipeline.probing.time_budget import OutOfTimeError, TimeBudget, time_work
from harness.pipeline.probing.timing import GROWTH_MARGIN, Line, Piece, Point, time_pieces

HELD = 1024  # tokens that a row holds, where it is seen what they cost
DECODED = 2  # tokens of a decoding piece, behind one that warms up


# --- training --------------------------------------------------------------------------------------


class TrainingSpeed:
    """The speed of optimizer steps: passes by their FLOPs (padding included), and the optimizer's update."""

    def __init__(self, step: Any, rows: Sequence[Any]):
        """``step``: a training.step_probe.StepProbe; ``rows``: encoded examples as they will be trained."""
        self.step, self.passes, self.update_s = step, Line(0.0, 0.0), 0.0
        self._points: list[Point] = []
        self._warm_s = 0.0
        self._pieces = {float(step.flops(*piece)): piece for piece in _cut_pieces(step, rows)}

    def warm_up(self, budget: TimeBudget) -> float:
        """The first, smallest pass: its seconds. A usual one hardly takes less than half of them."""
        budget.check()
        with budget.watching(self.step.model):
            self._warm_s = time_work(budget, lambda: self.step.passes(*self._pieces[min(self._pieces)]))
        return self._warm_s

    def measure(self, budget: TimeBudget) -> None:
        """Time what fits; once more makes it surer. Raises OutOfTimeError where nothing does."""

        def piece(rows: Sequence[Any], layers: int | None) -> Piece:
            return lambda: time_work(budget, lambda: self.step.passes(rows, layers))

        with budget.watching(self.step.model):
            pieces = [(amount, piece(*what)) for amount, what in self._pieces.items()]
            self._points += time_pieces(budget, pieces, warm_s=self._warm_s or None)
        _, layers = self._pieces[max(amount for amount, _ in self._points)]
        self.passes = Line.through(self._points, layers / self.step.layers if layers else 1.0)
        if self._warm_s < budget.left():  # the first makes the optimizer's states
            self.update_s = time_work(budget, self.step.update)
            if GROWTH_MARGIN * self.update_s <= budget.left():
                self.update_s = time_work(budget, self.step.update)

    def count(self, rows: Sequence[Any], settings: Any) -> float:
        """Passes for each example, in the steps that ``rows`` make."""
        return sum(len(micros) for micros in self._steps(rows, settings)) / self._count_drawn(rows, settings)

    def seconds_by_example(self, rows: Sequence[Any], settings: Any) -> float:
        """Seconds of training for each example, in the steps that ``rows`` make under ``settings``."""
        total = sum(
            self.update_s + sum(self.passes(self.step.flops(micro)) for micro in micros)
            for micros in self._steps(rows, settings)
        )
        return total / self._count_drawn(rows, settings)

    def _count_drawn(self, rows: Sequence[Any], settings: Any) -> int:
        """How many rows whole steps take, some of them more than once."""
        size = int(settings.batch_size)
        return -(-len(rows) // size) * size

    def _steps(self, rows: Sequence[Any], settings: Any) -> Iterator[list[list[Any]]]:
        """The micro-batches of steps that have all ``rows``."""
        size = settings.batch_size
        for start in range(0, self._count_drawn(rows, settings), size):
            batch = [rows[number % len(rows)] for number in range(start, start + size)]
            yield self.step.micro_batches(batch, settings)

    def forward_s(self, rows: Sequence[Any]) -> float:
        """Seconds of a forward pass over ``rows``, one alone after the other: a third of the operations."""
        return sum(self.passes(self.step.flops([row])) for row in rows) / 3


def _cut_pieces(step: Any, rows: Sequence[Any]) -> list[tuple[list[Any], int | None]]:
    """Of a micro-batch, from some tokens of one row to the whole; and through how many layers, None for all.
    A few layers of the whole say more of its speed than all layers of one row: large products run faster, and
    what they leave behind is read and written more slowly."""
    settings = step.settings
    micros = step.micro_batches([rows[number % len(rows)] for number in range(settings.batch_size)], settings)
    whole = list(sorted(micros, key=step.flops)[len(micros) // 2])
    usual = sorted(whole, key=lambda row: len(row.input_ids))[len(whole) // 2]
    length = len(usual.input_ids)
    cuts = (16, 64) if step.layers else (16, 32, 64, 128, 256, 512, 1024)
    parts = [([step.cut(usual, tokens)], None) for tokens in cuts if tokens < length] or [([usual], None)]
    if not step.layers:
        return [*parts, *((whole[-size:], None) for size in _double_up_to(len(whole)))]
    begun = [(whole[-size:], 1) for size in _double_up_to(len(whole))]
    begun += [(whole, layers) for layers in _double_up_to(step.layers)[1:-1]]
    least = step.flops(*parts[0])  # the smallest goes through all: the optimizer needs all gradients
    return [*parts, *(piece for piece in begun if step.flops(*piece) > least), (whole, None)]


# --- answers ---------------------------------------------------------------------------------------


class AnsweringSpeed:
    """The speed of answers: a prompt's pass by its tokens (padding included), and a decoded token of a batch
    by its rows and the tokens that they hold already."""

    def __init__(self, budget: TimeBudget, model: Any, rows: int, context: int):
        """``rows``: of a whole batch; ``context``: tokens of a usual prompt. Raises OutOfTimeError."""
        import torch

        self.model, self.held = model, 0.0
        self._token = min(1000, model.get_input_embeddings().weight.shape[0] - 1)
        with budget.watching(model), torch.inference_mode():
            with budget.part(0.4):
                sizes = [(1, min(16, context)), *((count, context) for count in _double_up_to(rows))]
                self.prompts = Line.through(
                    time_pieces(budget, [self._prompt(budget, *size) for size in sizes], 2)
                )
            with budget.part(0.6):
                points = time_pieces(
                    budget, [self._decode(budget, count, 1) for count in _double_up_to(rows)], 2
                )
                self.decoded = Line.through(points)
            with contextlib.suppress(OutOfTimeError, AttributeError, RuntimeError):
                most = max(amount for amount, _ in points)
                _, long = self._decode(budget, int(most), 1, times=HELD)
                self.held = max(0.0, long() - self.decoded(most)) / (most * HELD)

    def _prompt(self, budget: TimeBudget, rows: int, tokens: int) -> tuple[float, Piece]:
        return float(rows * tokens), lambda: time_work(budget, lambda: self._read(rows, tokens))

    def _read(self, rows: int, tokens: int) -> Any:
        import torch

        ids = torch.full((rows, tokens), self._token, device=self.model.device)
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def _decode(self, budget: TimeBudget, rows: int, held: int, times: int = 1) -> tuple[float, Piece]:
        """A decoded token of ``rows`` copies of one row that holds ``held`` tokens, ``times`` over. Raises
        AttributeError or RuntimeError for a cache that cannot be lengthened."""
        import torch

        def piece() -> float:
            cache = self._read(1, held)
            cache.batch_repeat_interleave(rows)
            if times > 1:
                for layer in cache.layers:  # to read so many would take far longer
                    layer.keys = layer.keys.repeat(1, 1, times, 1)
                    layer.values = layer.values.repeat(1, 1, times, 1)
            ids = torch.full((rows, 1), self._token, device=self.model.device)

            def decode(tokens: int) -> None:
                for _ in range(tokens):
                    self.model(input_ids=ids, past_key_values=cache, use_cache=True)

            decode(1)  # it warms up
            return time_work(budget, lambda: decode(DECODED)) / DECODED

        return float(rows), piece

    def batch(self, rows: int, prompt: float, tokens: float) -> float:
        """Seconds of ``rows`` prompts of ``prompt`` tokens, and of ``tokens`` decoded for each."""
        return self.prompts(rows * prompt) + self.more(rows, prompt, tokens)

    def more(self, rows: int, held: float, tokens: float) -> float:
        """Seconds of ``tokens`` further tokens for each of ``rows``, which hold ``held`` tokens already."""
        return tokens * (self.decoded(rows) + self.held * rows * (held + tokens / 2))


def _double_up_to(most: int) -> list[int]:
    """1, 2, 4, … and ``most``."""
    found = [1]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    return [*found, most] if most > 1 else found
