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
from harness.pipeline import check
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
    if not stage.is_done(config, out):
        with planned(config, out) as plan:
            check.check(RunContext(plan, out), kinds, until)
    with run_folder.lock(out), Display(console, None, "alignment") as display:
        aligned, made = stage.apply(config, out, Reporter(display.show))
    for one in made:
        console.print(escape(one.line(config.model)), highlight=False, soft_wrap=True)
    return aligned


@contextlib.contextmanager
def planned(config: RunConfig, out: Path) -> Iterator[RunConfig]:
    """The configuration as ``align`` will leave it, for a plan; with the unaligned model where it is not
    aligned yet."""
    if not stage.wanted(config):
        yield config
    elif not config.alignment.requests:
        yield config.model_copy(update={"alignment": AlignmentConfig()})
    elif stage.is_done(config, out):
        yield stage.apply(config, out)[0]
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield stage.provisional(config, Path(scratch))


def lines(config: RunConfig, out: Path) -> list[str]:
    """For the plan: what is to be aligned."""
    if not stage.wanted(config):
        return []
    if not config.alignment.requests:
        return [f"Missing here: {NO_REQUESTS}"]
    if stage.is_done(config, out):
        return []
    methods = dict.fromkeys(one.method for one in stage.wanted(config).values() if one.method)
    return [
        f"Alignment first: {config.model} by {', '.join(map(str, methods))}; its time is not in the forecast"
    ]
