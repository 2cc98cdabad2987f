"""Whether a recipe can be planned, and has the packages, options and code of its own that it needs."""

from __future__ import annotations

from collections.abc import Iterator

from harness.models import checkpoints
from harness.pipeline import needs
from harness.pipeline.checkup.finding import Finding
from harness.pipeline.checkup.inputs import is_of_hub, row_sources
from harness.run import plan
from harness.run.context import RunContext


def check_plan(ctx: RunContext) -> Iterator[Finding]:
    cells = ctx.cells()
    plan.check_judges(ctx.config.judges)
    yield Finding("pass", "recipe", f"{ctx.config.name}: {len(cells)} checkpoints to score")


def check_needs(ctx: RunContext) -> Iterator[Finding]:
    """Packages of trackers, tunings and judges' engines; the options and the own code of each method."""
    missing = needs.missing(ctx.config)
    for what, mend in missing:
        yield Finding("fail", what.partition(":")[0].partition(" is ")[0], what, mend)
    if not missing:
        yield Finding("pass", "needed packages", "trackers, tunings and engines have theirs")
    needs.check_methods(ctx, plan.methods(ctx.config))
    if checkpoints.is_here(ctx.config.model) and not any(map(is_of_hub, row_sources(ctx.config))):
        needs.try_out(ctx, ctx.cells())
