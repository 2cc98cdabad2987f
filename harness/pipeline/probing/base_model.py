"""The base model, loaded for a probe, unless it is too large for one or takes too long to load."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.models import checkpoints
from harness.pipeline.probing.time_budget import TimeBudget, time_work
from harness.run.context import RunContext

MOST_PARAMETERS = 200_000_000  # larger models are probed on an accelerator only
LOOK_BYTES = 4 << 20  # of the weights, read at some places, to see how fast their disk is
LOAD_SHARE = 0.6  # of the probe's time that may go into loading


class NotProbedError(Exception):
    """Why there is no forecast of the time."""


def check_size(ctx: RunContext, parameters: int) -> None:
    """Raises NotProbedError for a model that is too large for a probe on this device."""
    if parameters > MOST_PARAMETERS and ctx.device == "cpu":
        raise NotProbedError(f"{parameters / 1e9:.1f} B parameters on a CPU")


def estimate_load_s(folder: Path, clock: Callable[[], float] = time.perf_counter) -> float:
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


def load(ctx: RunContext, budget: TimeBudget) -> tuple[Any, float]:
    """The base model, and the seconds that it took to load. Raises NotProbedError and OutOfTimeError."""
    folder = ctx.seed_folder
    budget.check()
    expected = estimate_load_s(folder, budget.clock)
    if expected > LOAD_SHARE * budget.left():
        raise NotProbedError(f"its weights take about {expected:.0f} s to load")
    base, dtype = ctx.seed_checkpoint.base, ctx.config.responses.dtype
    models: list[Any] = []

    def load_model() -> None:
        models.append(checkpoints.load_model(folder, dtype, ctx.device, base=base))

    load_s = time_work(budget, load_model)
    budget.check()
    (model,) = models
    check_size(ctx, sum(parameter.numel() for parameter in model.parameters()))
    return model, load_s
