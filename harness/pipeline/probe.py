"""How fast this machine trains and answers with a model, from small pieces of the work, within a time budget.

A step of a large model takes longer than a forecast may. So pieces of it are timed, the smallest first,
each next one only if it will fit: a few tokens, a micro-batch's rows through the first of the layers, through
more of them, through all. Two sizes give the fixed cost of a pass and its cost for each unit of work, and
with them any other size. Should a piece take longer than its predecessors let expect, it is broken off
between two layers.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A forecast may take the larger of 5 s and 5 % of what it foretells, and never more than 30 s. These limits
# are lower, because what has begun is finished: a layer, a file, one batch of documents.
LEAST_S, SHARE, MOST_S = 4.0, 0.04, 24.0
GROWTH_MARGIN = 1.5  # a larger piece may take so many times what a smaller one lets expect
GROWTH = 8.0  # and is at most so many times as large
RISK = 6.0  # times the amount may cost as much, for the first larger piece
REPEATS = 4  # timed pieces of one size, at most
ROUNDING = 1e-6
HELD = 1024  # tokens that a row holds, where it is seen what they cost
DECODED = 2  # tokens of a decoding piece, behind one that warms up

Point = tuple[float, float]  # amount of work, seconds


class OutOfTimeError(Exception):
    """The probe's time is over."""


class Budget:
    """The seconds that a probe may take, from now on. ``clock`` gives the time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self._start, self.allowed_s = clock, clock(), LEAST_S
        self._until = [float("inf")]

    def grant(self, forecast_s: float) -> None:
        """Allow what work of ``forecast_s`` seconds justifies."""
        self.allowed_s = max(LEAST_S, min(MOST_S, SHARE * forecast_s))

    def spent(self) -> float:
        return self.clock() - self._start

    def left(self) -> float:
        """Seconds of the part that is being measured; below 0 when they are over."""
        return min(self._start + self.allowed_s, self._until[-1]) - self.clock()

    def check(self) -> None:
        """Raises OutOfTimeError when the time is over."""
        if self.left() <= 0:
            raise OutOfTimeError

    @contextlib.contextmanager
    def part(self, share: float) -> Iterator[None]:
        """The block may take ``share`` of what is left."""
        self._until.append(self.clock() + share * max(0.0, self.left()))
        try:
            yield
        finally:
            self._until.pop()

    @contextlib.contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """While the block runs, each layer of ``model`` looks at the clock, forwards and backwards."""

        def before(module: Any, arguments: Any) -> None:
            self.check()

        def after(module: Any, arguments: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if getattr(first, "requires_grad", False):
                first.register_hook(lambda gradient: self.check())

        layers = list(_layers(model))
        hooks = [layer.register_forward_pre_hook(before) for layer in layers]
        hooks += [layer.register_forward_hook(after) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _layers(model: Any) -> Iterator[Any]:
    """The members of the model's lists of modules, which its blocks are."""
    for module in model.modules():
        if type(module).__name__ == "ModuleList":
            yield from module


@dataclass(frozen=True)
class Line:
    """Seconds of a piece of work by its amount: ``fixed`` + ``slope`` * amount."""

    fixed: float
    slope: float

    def __call__(self, amount: float) -> float:
        return self.fixed + self.slope * amount

    @classmethod
    def through(cls, points: Sequence[Point], share: float = 1.0) -> Line:
        """From (amount, seconds) of a smallest and a largest size, each the median of its points: what else
        a machine does for a moment is no part of it. ``share``: how much of the fixed cost the largest has.
        Where the larger took less, or so much more that a pass would begin below zero, seconds go with the
        amount."""
        sizes = sorted({amount for amount, _ in points})
        small, large = sizes[0], sizes[-1]
        took_small, took_large = (
            statistics.median(seconds for amount, seconds in points if amount == size)
            for size in (small, large)
        )
        if large > small:
            slope = (took_large - share * took_small) / (large - share * small)
            if took_large > share * took_small * (1 - ROUNDING) and took_small >= slope * small:
                return cls(took_small - max(0.0, slope) * small, max(0.0, slope))
        return cls(0.0, took_large / large)


Piece = Callable[[], float]  # does some work and returns what of its seconds counts


def timed(budget: Budget, work: Callable[[], object]) -> float:
    """The seconds of a piece of work, on the device included."""
    _wait_for_device()
    start = budget.clock()
    work()
    _wait_for_device()
    return budget.clock() - start


def _wait_for_device() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def growing(
    budget: Budget,
    pieces: Sequence[tuple[float, Piece]],
    repeats: int = REPEATS,
    warm_s: float | None = None,
) -> list[Point]:
    """(amount, seconds) of the largest of ``pieces`` that fits into the budget, and of the smallest, each up
    to ``repeats`` times. Raises OutOfTimeError where not even the smallest fits.

    The smallest warms up, where that has not been done in ``warm_s`` seconds; it counts where there is no
    time for it again. A larger one is begun if it fits into half of what is left, going by those before.
    While one size alone is known, which may be little more than what any pass costs, one larger piece is
    risked: what is too much is broken off.
    """
    sizes = sorted(pieces, key=lambda piece: piece[0])
    costs: dict[float, float] = {}  # seconds by amount, with what does not count

    def take(amount: float, piece: Piece) -> Point:
        budget.check()
        start = budget.clock()
        seconds = piece()
        costs[amount] = budget.clock() - start
        return amount, seconds

    if warm_s is None:
        _, warm_s = take(*sizes[0])
    least = sizes[0][0]
    costs.setdefault(least, warm_s)
    points, place = list[Point](), 0
    with contextlib.suppress(OutOfTimeError):
        while (following := _next(budget, sizes, place, costs)) is not None:
            place, points = following, [take(*sizes[following])]
        for number in range(repeats):
            for amount, piece in dict.fromkeys((sizes[0], sizes[place])):
                if number == 0 and place and amount == sizes[place][0]:
                    continue  # that was the first
                if GROWTH_MARGIN * costs[amount] > budget.left():
                    raise OutOfTimeError
                points.append(take(amount, piece))
    if all(amount != least and warm_s <= seconds for amount, seconds in points):
        return [(least, warm_s), *points]  # what took longer had something to read first
    return points


def _next(
    budget: Budget, sizes: Sequence[tuple[float, Piece]], place: int, costs: Mapping[float, float]
) -> int | None:
    """The place of the largest piece that can be begun after the one at ``place``."""
    amount, known = sizes[place][0], Line.through([*costs.items()])
    larger = [later for later in range(len(sizes) - 1, place, -1) if sizes[later][0] > amount]
    for later in larger:
        near = sizes[later][0] <= GROWTH * amount or later == place + 1
        if near and GROWTH_MARGIN * known(sizes[later][0]) <= budget.left() / 2:
            return later
    for later in larger if len(costs) == 1 else ():
        if costs[amount] * max(1.0, sizes[later][0] / amount / RISK) <= budget.left():
            return later
    return None


# --- training --------------------------------------------------------------------------------------


class Training:
    """The speed of optimizer steps: passes by their FLOPs (padding included), and the optimizer's update."""

    def __init__(self, step: Any, rows: Sequence[Any]):
        """``step``: a training.step_probe.StepProbe; ``rows``: encoded examples as they will be trained."""
        self.step, self.passes, self.update_s = step, Line(0.0, 0.0), 0.0
        self._points: list[Point] = []
        self._warm_s = 0.0
        self._pieces = {float(step.flops(*piece)): piece for piece in _pieces(step, rows)}

    def warm_up(self, budget: Budget) -> float:
        """The first, smallest pass: its seconds. A usual one hardly takes less than half of them."""
        budget.check()
        with budget.watching(self.step.model):
            self._warm_s = timed(budget, lambda: self.step.passes(*self._pieces[min(self._pieces)]))
        return self._warm_s

    def measure(self, budget: Budget) -> None:
        """Time what fits; once more makes it surer. Raises OutOfTimeError where nothing does."""

        def piece(rows: Sequence[Any], layers: int | None) -> Piece:
            return lambda: timed(budget, lambda: self.step.passes(rows, layers))

        with budget.watching(self.step.model):
            pieces = [(amount, piece(*what)) for amount, what in self._pieces.items()]
            self._points += growing(budget, pieces, warm_s=self._warm_s or None)
        _, layers = self._pieces[max(amount for amount, _ in self._points)]
        self.passes = Line.through(self._points, layers / self.step.layers if layers else 1.0)
        if self._warm_s < budget.left():  # the first makes the optimizer's states
            self.update_s = timed(budget, self.step.update)
            if GROWTH_MARGIN * self.update_s <= budget.left():
                self.update_s = timed(budget, self.step.update)

    def count(self, rows: Sequence[Any], settings: Any) -> float:
        """Passes for each example, in the steps that ``rows`` make."""
        return sum(len(micros) for micros in self._steps(rows, settings)) / self._drawn(rows, settings)

    def seconds_by_example(self, rows: Sequence[Any], settings: Any) -> float:
        """Seconds of training for each example, in the steps that ``rows`` make under ``settings``."""
        total = sum(
            self.update_s + sum(self.passes(self.step.flops(micro)) for micro in micros)
            for micros in self._steps(rows, settings)
        )
        return total / self._drawn(rows, settings)

    def _drawn(self, rows: Sequence[Any], settings: Any) -> int:
        """How many rows whole steps take, some of them more than once."""
        size = int(settings.batch_size)
        return -(-len(rows) // size) * size

    def _steps(self, rows: Sequence[Any], settings: Any) -> Iterator[list[list[Any]]]:
        """The micro-batches of steps that have all ``rows``."""
        size = settings.batch_size
        for start in range(0, self._drawn(rows, settings), size):
            batch = [rows[number % len(rows)] for number in range(start, start + size)]
            yield self.step.micro_batches(batch, settings)

    def forward_s(self, rows: Sequence[Any]) -> float:
        """Seconds of a forward pass over ``rows``, one alone after the other: a third of the operations."""
        return sum(self.passes(self.step.flops([row])) for row in rows) / 3


def _pieces(step: Any, rows: Sequence[Any]) -> list[tuple[list[Any], int | None]]:
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
        return [*parts, *((whole[-size:], None) for size in _powers(len(whole)))]
    begun = [(whole[-size:], 1) for size in _powers(len(whole))]
    begun += [(whole, layers) for layers in _powers(step.layers)[1:-1]]
    least = step.flops(*parts[0])  # the smallest goes through all: the optimizer needs all gradients
    return [*parts, *(piece for piece in begun if step.flops(*piece) > least), (whole, None)]


# --- answers ---------------------------------------------------------------------------------------


class Answering:
    """The speed of answers: a prompt's pass by its tokens (padding included), and a decoded token of a batch
    by its rows and the tokens that they hold already."""

    def __init__(self, budget: Budget, model: Any, rows: int, context: int):
        """``rows``: of a whole batch; ``context``: tokens of a usual prompt. Raises OutOfTimeError."""
        import torch

        self.model, self.held = model, 0.0
        self._token = min(1000, model.get_input_embeddings().weight.shape[0] - 1)
        with budget.watching(model), torch.inference_mode():
            with budget.part(0.4):
                sizes = [(1, min(16, context)), *((count, context) for count in _powers(rows))]
                self.prompts = Line.through(
                    growing(budget, [self._prompt(budget, *size) for size in sizes], 2)
                )
            with budget.part(0.6):
                points = growing(budget, [self._decode(budget, count, 1) for count in _powers(rows)], 2)
                self.decoded = Line.through(points)
            with contextlib.suppress(OutOfTimeError, AttributeError, RuntimeError):
                most = max(amount for amount, _ in points)
                _, long = self._decode(budget, int(most), 1, times=HELD)
                self.held = max(0.0, long() - self.decoded(most)) / (most * HELD)

    def _prompt(self, budget: Budget, rows: int, tokens: int) -> tuple[float, Piece]:
        return float(rows * tokens), lambda: timed(budget, lambda: self._read(rows, tokens))

    def _read(self, rows: int, tokens: int) -> Any:
        import torch

        ids = torch.full((rows, tokens), self._token, device=self.model.device)
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def _decode(self, budget: Budget, rows: int, held: int, times: int = 1) -> tuple[float, Piece]:
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
            return timed(budget, lambda: decode(DECODED)) / DECODED

        return float(rows), piece

    def batch(self, rows: int, prompt: float, tokens: float) -> float:
        """Seconds of ``rows`` prompts of ``prompt`` tokens, and of ``tokens`` decoded for each."""
        return self.prompts(rows * prompt) + self.more(rows, prompt, tokens)

    def more(self, rows: int, held: float, tokens: float) -> float:
        """Seconds of ``tokens`` further tokens for each of ``rows``, which hold ``held`` tokens already."""
        return tokens * (self.decoded(rows) + self.held * rows * (held + tokens / 2))


def _powers(most: int) -> list[int]:
    """1, 2, 4, … and ``most``."""
    found = [1]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    return [*found, most] if most > 1 else found
