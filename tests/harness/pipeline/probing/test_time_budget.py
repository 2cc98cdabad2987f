"""Guards a probe's time: it is bounded whatever the probe meets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from told_clock import Clock

from harness.pipeline.probing.time_budget import LEAST_S, MOST_S, SHARE, OutOfTimeError, TimeBudget


@pytest.mark.parametrize(
    ("foretold", "allowed"),
    [(0.0, LEAST_S), (60.0, LEAST_S), (400.0, 400 * SHARE), (1e6, MOST_S), (float("inf"), MOST_S)],
)
def test_a_probe_may_take_what_its_forecast_justifies(foretold: float, allowed: float) -> None:
    clock = Clock()
    budget = TimeBudget(clock)
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
    budget = TimeBudget(clock)
    with budget.part(0.5):
        assert budget.left() == pytest.approx(LEAST_S / 2)
        with budget.part(0.5):
            clock.now += LEAST_S / 4
            with pytest.raises(OutOfTimeError):
                budget.check()
    assert budget.left() == pytest.approx(LEAST_S * 3 / 4)


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
    budget, model = TimeBudget(clock), Stack(clock, seconds)
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
