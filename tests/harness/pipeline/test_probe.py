"""Guards the measuring of speed: a probe's time is bounded whatever it meets, and pieces of a step and of a
batch give the whole's time, checked against models whose cost is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import Encoded
from harness.pipeline import probe
from harness.pipeline.probe import (
    LEAST_S,
    MOST_S,
    SHARE,
    Answering,
    Budget,
    Line,
    OutOfTimeError,
    Training,
    growing,
)

positive = st.floats(1e-4, 50.0)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: Callable[[], float] | float) -> Callable[[], float]:
        """Work that takes so long and says so."""

        def work() -> float:
            took = seconds() if callable(seconds) else seconds
            self.now += took
            return took

        return work


@pytest.mark.parametrize(
    ("foretold", "allowed"),
    [(0.0, LEAST_S), (60.0, LEAST_S), (400.0, 400 * SHARE), (1e6, MOST_S), (float("inf"), MOST_S)],
)
def test_a_probe_may_take_what_its_forecast_justifies(foretold: float, allowed: float) -> None:
    clock = Clock()
    budget = Budget(clock)
    assert budget.left() == LEAST_S
    budget.grant(foretold)
    assert budget.left() == pytest.approx(allowed)
    assert allowed <= max(5.0, min(30.0, 0.05 * foretold))
    clock.now += allowed / 2
    budget.check()
    clock.now += allowed / 2 + 0.001
    with pytest.raises(OutOfTimeError):
        budget.check()


def test_a_part_of_the_time_ends_before_the_whole_and_gives_the_rest_back() -> None:
    clock = Clock()
    budget = Budget(clock)
    with budget.part(0.5):
        assert budget.left() == pytest.approx(LEAST_S / 2)
        with budget.part(0.5):
            clock.now += LEAST_S / 4
            with pytest.raises(OutOfTimeError):
                budget.check()
    assert budget.left() == pytest.approx(LEAST_S * 3 / 4)


@given(fixed=st.floats(0, 10), slope=positive, sizes=st.tuples(st.floats(1, 10), st.floats(20, 1000)))
def test_a_line_through_two_sizes_is_the_fit(fixed: float, slope: float, sizes: tuple[float, float]) -> None:
    noise = (-0.01, 0.01)
    points = [(x, (fixed + slope * x) * (1 + e)) for x in sizes for e in noise]
    found = Line.through(points)
    expected_slope, expected_fixed = np.polyfit(*np.array(points).T, 1)
    if expected_fixed >= 0:
        assert found(123.0) == pytest.approx(expected_fixed + expected_slope * 123.0, rel=1e-6, abs=1e-6)


def test_where_two_sizes_contradict_each_other_seconds_go_with_the_amount() -> None:
    assert Line.through([(1.0, 5.0), (10.0, 4.0)]) == Line(0.0, 0.4)  # the larger took less
    assert Line.through([(1.0, 1.0), (10.0, 40.0)]) == Line(0.0, 4.0)  # a pass would begin below zero
    assert Line.through([(4.0, 2.0), (4.0, 4.0)]) == Line(0.0, 0.75)  # one size
    busy = [(1.0, 2.0), (1.0, 2.0), (1.0, 90.0), (10.0, 11.0), (10.0, 50.0), (10.0, 11.0)]
    assert Line.through(busy) == Line(1.0, 1.0)  # another program ran for a moment
    assert Line.through([(1.0, 0.3), (9.0, 0.3)]) == Line(0.3, 0.0)


@given(fixed=st.floats(0, 5), slope=st.floats(1e-6, 5), most=st.integers(1, 4000))
def test_pieces_grow_as_far_as_the_time_allows(fixed: float, slope: float, most: int) -> None:
    clock = Clock()
    budget = Budget(clock)
    sizes = [float(2**n) for n in range(12) if 2**n < most] + [float(most)]

    def piece(seconds: float) -> Callable[[], float]:
        def work() -> float:  # of a hundred layers
            for _ in range(100):
                budget.check()
                clock.now += seconds / 100
            return seconds

        return work

    costs = {size: fixed + slope * size for size in sizes}
    try:
        points = growing(budget, [(size, piece(seconds)) for size, seconds in costs.items()])
    except OutOfTimeError:
        assert costs[sizes[0]] >= 0.98 * LEAST_S
        return
    assert budget.spent() <= LEAST_S + max(costs.values()) / 100 + 1e-9
    amounts = {amount for amount, _ in points}
    assert len(amounts) <= 2
    assert all(seconds == pytest.approx(costs[amount]) for amount, seconds in points)
    if 40 * costs[most] < LEAST_S:  # there was time for the whole, and for the smallest beside it
        assert amounts == {sizes[0], sizes[-1]}


def test_one_larger_piece_is_risked_where_the_smallest_takes_most_of_the_time() -> None:
    """A pass of 135 M parameters on a slow core: 16 tokens take little less than 64."""
    clock = Clock()
    budget = Budget(clock)
    costs = {16.0: 1.2, 64.0: 1.4, 128.0: 2.5, 2000.0: 30.0}
    pieces = [(size, clock.taking(seconds)) for size, seconds in costs.items()]
    assert growing(budget, pieces) == [(16.0, 1.2), (128.0, 2.5)]  # what warmed up counts
    budget.grant(400.0)
    assert {amount for amount, _ in growing(budget, pieces)} == {16.0, 128.0}
    budget.grant(1e6)
    cold = growing(budget, pieces, repeats=1, warm_s=9.0)  # what warmed up read its weights first
    assert (16.0, 9.0) not in cold
    assert (128.0, 2.5) in cold


def test_a_piece_that_takes_longer_than_foreseen_is_the_last() -> None:
    clock = Clock()
    budget = Budget(clock)

    def breaks_off() -> float:
        clock.now += 10.0
        budget.check()
        return 10.0

    assert growing(budget, [(1.0, clock.taking(0.1)), (2.0, breaks_off)]) == [(1.0, 0.1)]


class Block(torch.nn.Module):
    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.clock, self.seconds, self.passed = clock, seconds, 0
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        self.clock.now += self.seconds
        self.passed += 1
        made = self.linear(x)
        made.register_hook(lambda gradient: self._back())
        return made

    def _back(self) -> None:
        self.clock.now += self.seconds
        self.passed += 1


class Stack(torch.nn.Module):
    def __init__(self, clock: Clock, seconds: float, layers: int = 10):
        super().__init__()
        self.layers = torch.nn.ModuleList(Block(clock, seconds) for _ in range(layers))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    @property
    def passed(self) -> int:
        return sum(layer.passed for layer in self.layers)


@pytest.mark.parametrize(("seconds", "passed"), [(1.0, 4), (0.27, 15), (0.15, 20)])
def test_what_takes_too_long_is_broken_off_between_two_layers(seconds: float, passed: int) -> None:
    """Ten layers forwards and ten backwards, in the least time that a probe has."""
    clock = Clock()
    budget, model = Budget(clock), Stack(clock, seconds)
    assert LEAST_S == 4.0
    try:
        with budget.watching(model):
            model(torch.ones(1, 4)).sum().backward()
        assert seconds == 0.15
    except OutOfTimeError:
        assert seconds > 0.15
    assert model.passed == passed
    clock.now += 100
    model(torch.ones(1, 4)).sum().backward()  # nobody looks any more


# --- training --------------------------------------------------------------------------------------


def rows(lengths: Sequence[int]) -> list[Encoded]:
    return [Encoded(str(n), list(range(length)), [True] * length) for n, length in enumerate(lengths)]


class KnownStep:
    """A pass takes 0.2 s and a millisecond a token, an update 0.7 s; micro-batches are of two rows. Of
    ``layers``, where a pass can be cut to the first, each has its part of both."""

    settings = SimpleNamespace(batch_size=8)
    model = torch.nn.Linear(1, 1)

    def __init__(self, clock: Clock, slowness: float = 1.0, layers: int = 0):
        self.clock, self.slowness, self.layers, self.passed = clock, slowness, layers, list[int]()

    def flops(self, micro: Sequence[Encoded], layers: int | None = None) -> int:
        whole = max(len(row.input_ids) for row in micro) * len(micro)
        return whole * (layers or 1) // (self.layers if layers else 1)

    def passes(self, micro: Sequence[Encoded], layers: int | None = None) -> None:
        self.passed.append(self.flops(micro))
        share = layers / self.layers if layers else 1.0
        self.clock.now += self.slowness * (0.2 * share + 0.001 * self.flops(micro, layers))

    def update(self) -> None:
        self.clock.now += self.slowness * 0.7

    def micro_batches(self, batch: Sequence[Encoded], settings: Any) -> list[list[Encoded]]:
        return [list(batch[start : start + 2]) for start in range(0, len(batch), 2)]

    @staticmethod
    def cut(row: Encoded, tokens: int) -> Encoded:
        return Encoded(row.id, row.input_ids[-tokens:], row.trained[-tokens:])


@pytest.mark.parametrize("slowness", [0.01, 1.0])
@pytest.mark.parametrize("layers", [0, 1, 20])
def test_parts_of_a_step_give_the_steps_time(slowness: float, layers: int) -> None:
    """Whether or not there is time for a whole micro-batch, which takes 4.2 s at the slower speed; where a
    pass can be cut to its first layers, all rows of it are looked at even so."""
    clock = Clock()
    step, some = KnownStep(clock, slowness, layers), rows([2000, 1900] * 8)
    measured = Training(step, some)
    budget = Budget(clock)
    measured.warm_up(budget)
    measured.measure(budget)
    assert (max(step.passed) == 4000) == (slowness < 1 or layers == 20)
    one_step = 4 * (0.2 + 0.001 * 4000) + 0.7
    assert measured.seconds_by_example(some, step.settings) == pytest.approx(slowness * one_step / 8)
    assert measured.count(some, step.settings) == 4 / 8
    assert measured.forward_s(some) == pytest.approx(slowness * (16 * 0.2 + 8 * 3.9) / 3)
    assert budget.spent() <= LEAST_S + slowness * 0.7  # an update has no layers to look between


@given(length=st.integers(1, 200), count=st.integers(1, 9), layers=st.integers(1, 40))
def test_the_smallest_piece_goes_through_all_layers(length: int, count: int, layers: int) -> None:
    pieces = probe._pieces(KnownStep(Clock(), layers=layers), rows([length] * count))
    sizes = {KnownStep(Clock(), layers=layers).flops(*piece): piece for piece in pieces}
    assert sizes[min(sizes)][1] is None
    assert sizes[max(sizes)] == (pieces[-1][0], None)


def test_every_update_has_gradients_to_work_on(tmp_path: Any) -> None:
    from harness import config
    from harness.mini import seed_model_path
    from harness.models import checkpoints
    from harness.training.step_probe import StepProbe

    settings = config.load().training
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    step = StepProbe(model, checkpoints.load_tokenizer(seed_model_path()), settings)
    step.passes(rows([20, 30]))
    for _ in range(2):
        step.update()
        assert all(parameter.grad is not None for parameter in model.parameters())
    lengths = [20, 30]
    assert step.flops(rows(lengths)) == step._costs.train([30, 30], 19 + 29)  # as padded


def test_a_last_step_that_is_not_full_is_filled_up() -> None:
    clock = Clock()
    step, some = KnownStep(clock, 0.01), rows([100] * 5)
    measured = Training(step, some)
    measured.measure(Budget(clock))
    assert measured.seconds_by_example(some, step.settings) == pytest.approx(0.01 * (4 * 0.4 + 0.7) / 8)


# --- answers ---------------------------------------------------------------------------------------


class Cache:
    """Of one layer, as transformers keeps it."""

    def __init__(self, rows: int, tokens: int):
        self.rows, self.layers = rows, [SimpleNamespace(keys=self._of(tokens), values=self._of(tokens))]

    @staticmethod
    def _of(tokens: int) -> torch.Tensor:
        return torch.empty(1, 1, tokens, 1)

    @property
    def tokens(self) -> int:
        (layer,) = self.layers
        assert layer.keys.shape == layer.values.shape
        return int(layer.keys.shape[2])

    def append(self, tokens: int) -> None:
        (layer,) = self.layers
        layer.keys = layer.values = self._of(self.tokens + tokens)

    def batch_repeat_interleave(self, times: int) -> None:
        self.rows *= times


class Decoder(torch.nn.Module):
    """A model whose passes take 2 ms a token that is read, and 10 ms, 1 ms a row and 5 us a token that the
    batch holds for one that is decoded."""

    device = "cpu"

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock, self.embedding, self.most = clock, torch.nn.Embedding(50, 2), 0

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def forward(self, input_ids: Any, past_key_values: Cache | None = None, **options: Any) -> Any:
        count, tokens = input_ids.shape
        assert int(input_ids.max()) < 50
        cache = Cache(count, 0) if past_key_values is None else past_key_values
        assert cache.rows == count
        self.most = max(self.most, count)
        self.clock.now += self.seconds(count, tokens, cache.tokens)
        cache.append(tokens)
        return SimpleNamespace(past_key_values=cache)

    @staticmethod
    def seconds(rows: int, tokens: int, held: int) -> float:
        return 0.002 * rows * tokens if not held else 0.01 + 0.001 * rows + 5e-6 * rows * held


@pytest.mark.parametrize(("batch", "whole"), [(16, True), (4096, False)])
def test_parts_of_a_batch_give_the_batchs_time(batch: int, whole: bool) -> None:
    clock = Clock()
    model, budget = Decoder(clock), Budget(clock)
    speed = Answering(budget, model, batch, 96)
    assert budget.spent() <= LEAST_S + model.seconds(batch, 1, 1)
    assert (model.most == batch) == whole
    for prompt, tokens in ((50, 20), (300, 100)):
        truth = model.seconds(batch, prompt, 0)
        truth += sum(model.seconds(batch, 1, prompt + place) for place in range(tokens))
        assert speed.batch(batch, prompt, tokens) == pytest.approx(truth, rel=0.03)
        assert speed.batch(batch, prompt, tokens) - speed.batch(batch, prompt, tokens - 10) == pytest.approx(
            speed.more(batch, prompt + tokens - 10, 10)
        )


def test_sizes_double() -> None:
    assert [probe._powers(n) for n in (1, 2, 3, 8, 9)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 9],
    ]
