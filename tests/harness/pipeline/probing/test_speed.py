"""Guards the measuring of speed: pieces of a step and of a batch give the whole's time, checked against
models whose cost is known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from told_clock import Clock

from harness.contracts import Encoded
from harness.pipeline.probing import speed
from harness.pipeline.probing.speed import AnsweringSpeed, TrainingSpeed
from harness.pipeline.probing.time_budget import LEAST_S, TimeBudget

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
    measured = TrainingSpeed(step, some)
    budget = TimeBudget(clock)
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
    pieces = speed._cut_pieces(KnownStep(Clock(), layers=layers), rows([length] * count))
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
    measured = TrainingSpeed(step, some)
    measured.measure(TimeBudget(clock))
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


@pytest.mark.parametrize(("batch", "reached"), [(16, True), (4096, False)])
def test_parts_of_a_batch_give_the_batchs_time(batch: int, reached: bool) -> None:
    clock = Clock()
    model, budget = Decoder(clock), TimeBudget(clock)
    measured = AnsweringSpeed(budget, model, batch, 96)
    assert budget.spent() <= LEAST_S + model.seconds(batch, 1, 1)
    assert (model.most == batch) == reached
    for prompt, tokens in ((50, 20), (300, 100)):
        truth = model.seconds(batch, prompt, 0)
        truth += sum(model.seconds(batch, 1, prompt + place) for place in range(tokens))
        assert measured.batch(batch, prompt, tokens) == pytest.approx(truth, rel=0.03)
        assert measured.batch(batch, prompt, tokens) - measured.batch(
            batch, prompt, tokens - 10
        ) == pytest.approx(measured.more(batch, prompt + tokens - 10, 10))


def test_sizes_double() -> None:
    assert [speed._double_up_to(n) for n in (1, 2, 3, 8, 9)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 9],
    ]
