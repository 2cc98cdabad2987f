"""The first step of the walk, where a recipe has one: base models are aligned (harness/alignment)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.alignment import stage
from harness.config import AlignmentConfig, RunConfig
from harness.console.progress import Display, Reporter
from harness.contracts import UsageError
from harness.models import checkpoints
from harness.pipeline import check, estimate, forecast
from harness.pipeline.stages import Step
from harness.run import run_folder
from harness.run.context import RunContext

NO_REQUESTS = "alignment.requests: an alignment needs harmful requests to refuse: --requests FILE"


def align(
    config: RunConfig, out: Path, console: Console, kinds: Collection[str] = (), until: Step = "train"
) -> RunConfig:
    """The configuration with aligned base models, made where they are not there. What would stop the rest of
    the run is found before."""
    if not stage.wanted(config):
        return config
    if not config.alignment.requests:
        raise UsageError(NO_REQUESTS)
    if stage.find(config, out) is None:
        with tempfile.TemporaryDirectory() as scratch:
            plan = stage.provisional(config, Path(scratch))
            check.check(RunContext(plan, out), kinds, until)
    with run_folder.lock(out), Display(console, None, "alignment") as display:
        aligned, made = stage.apply(config, out, Reporter(display.show))
    for one in made:
        console.print(escape(one.line(config.model)), highlight=False, soft_wrap=True)
    return aligned


@contextlib.contextmanager
def planned(config: RunConfig, out: Path) -> Iterator[tuple[RunConfig, list[str]]]:
    """The configuration as ``align`` will leave it, for a plan, and what the plan says of it; with the
    unaligned model where it is not aligned yet."""
    with stand_in(config, out) as (plan, place):
        if stage.wanted(config) and not config.alignment.requests:
            yield plan, [f"Missing here: {NO_REQUESTS}"]
        else:
            yield plan, [_forecast_line(config, place)] if place else []


@contextlib.contextmanager
def stand_in(config: RunConfig, out: Path) -> Iterator[tuple[RunConfig, Path | None]]:
    """The configuration as ``align`` will leave it, to look at; where it is not aligned yet, with the
    unaligned model, and the folder of the files that stand in for those of the alignment."""
    if not stage.wanted(config):
        yield config, None
    elif not config.alignment.requests:
        yield config.model_copy(update={"alignment": AlignmentConfig()}), None
    elif (found := stage.find(config, out)) is not None:
        yield found, None
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield stage.provisional(config, Path(scratch)), Path(scratch)


def _forecast_line(config: RunConfig, place: Path) -> str:
    """What is to be aligned, and how long that takes by a probe of its trainings."""
    jobs = stage.find_trainings(config, place)
    line = f"Alignment first: {config.model} by {', '.join(dict.fromkeys(cell.method for _, cell in jobs))}"
    if not checkpoints.is_here(config.model):
        return line
    found = [forecast.forecast(ctx, [cell], 1, until="train") for ctx, cell in jobs]
    if unknown := next((one for one in found if one.seconds is None), None):
        return f"{line}; its time is not probed ({unknown.why})"
    seconds = sum(one.seconds or 0.0 for one in found)
    return f"{line}, about {estimate.duration(seconds)} (by a short probe; not in the time below)"
