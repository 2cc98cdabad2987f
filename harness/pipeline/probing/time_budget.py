"""The time that a probe may take, and what breaks it off between two layers when that is over."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# A forecast may take the larger of 5 s and 5 % of what it foretells, and never more than 30 s. These limits
# are lower, because what has begun is finished: a layer, a file, one batch of documents.
LEAST_S, SHARE, MOST_S = 4.0, 0.04, 24.0


class OutOfTimeError(Exception):
    """The probe's time is over."""


class TimeBudget:
    """The seconds that a probe may take, from now on. ``clock`` gives the time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self._start, self.allowed_s = clock, clock(), LEAST_S
        self.jobs = 1  # workers that share the work
        self._until = [float("inf")]
        self._known_s, self._least_s = 0.0, 0.0

    def grant(self, forecast_s: float) -> None:
        """Allow what work of ``forecast_s`` seconds justifies."""
        self.allowed_s = max(LEAST_S, min(MOST_S, SHARE * forecast_s))

    def learn(self, seconds: float) -> None:
        """The work takes these ``seconds`` too, whatever else it takes."""
        self._known_s += seconds

    def justify(self, more_s: float = 0.0) -> None:
        """Allow what the known seconds of the work, and ``more_s``, justify. What was once justified stays
        so: all of them are the least that the work takes."""
        self._least_s = max(self._least_s, (self._known_s + more_s) / self.jobs)
        self.grant(self._least_s)

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


def time_work(budget: TimeBudget, work: Callable[[], object]) -> float:
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
