"""Finds what would stop a run before anything is spent: names, options, packages, data, folders, judges."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from harness.config import RunConfig
from harness.contracts import HarnessError, NotFetchedError
from harness.data import loading
from harness.generation import lm_tasks
from harness.generation import stage as generation
from harness.judging import session
from harness.models import checkpoints
from harness.pipeline import needs, other_models
from harness.pipeline.stages import Step
from harness.plugins import plugin_files, registry
from harness.run import plan, run_folder
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.storage import disk
from harness.training import stage as training


def check(
    ctx: RunContext,
    kinds: Collection[str],
    until: Step,
    absent: list[str] | None = None,
    answering: Sequence[Cell] | None = None,
) -> None:
    """Names, options, packages, data, folders and what answers, before anything is spent. ``absent`` collects
    what a run would fetch, which raises without it; ``answering``: the cells with the tasks that are asked
    for, where these are not all."""
    cells = ctx.cells()
    if any(cell.kind == "trained" for cell in cells):
        disk.check_writable(ctx.cache.folder, "name another cache: --set cache=DIR, or HARNESS_CACHE")
    check_apart(ctx, absent)
    asked = cells if answering is None else answering
    for task in dict.fromkeys(task for cell in asked for task in cell.tasks):
        if lm_tasks.files(ctx, ctx.benchmark(task)):
            ctx.load_task(task, str(ctx.seed_folder))  # reads the file, and complains by line
    for cell in cells:
        if cell.kind == "trained" and not absent and _is_here(ctx.config, cell.method):
            training.train_stage(ctx, cell)
        generation.checkpoint_of(ctx, cell)
    generation.check(ctx, [cell for cell in cells if cell.kind in kinds])


def check_apart(ctx: RunContext, absent: list[str] | None) -> None:
    """What can be known without the model: packages, plugins, options, training rows and data files."""
    config = ctx.config
    if absent is None:
        needs.check(config)
    for path in (*config.data.values(), *config.set_files.values()):
        loading.data_hash(path)
    rows = [name for name in plan.methods(config) if _is_here(config, name)]
    methods = [ctx.method(name) for name in rows]
    needs.check_methods(ctx, rows)
    for name, users in other_models.named(config).items():
        if absent is not None and not checkpoints.is_here(name):
            absent.append(f"Model {name}, which {', '.join(users)} reads, is not here yet: a run fetches it.")
    for task in config.train_tasks if methods else ():
        train_task = ctx.train_task(task)
        try:
            ctx.examples(train_task)
        except NotFetchedError:
            if absent is None:
                raise
            own = f"--train-data {task}=FILE" if len(config.train_tasks) > 1 else "--train-data FILE"
            absent.append(
                f"The training rows of {task} are not here yet: a run fetches them; {own} takes a local copy."
            )
        if any(method.needs_safety_data for method in methods):
            ctx.safety_examples(train_task)


def _is_here(config: RunConfig, row: str) -> bool:
    """Whether a row's method is at hand: not of a file that the run alone names, where nothing trains it."""
    return config.row(row).method in registry.names("method")


def check_judges(config: RunConfig, out: Path) -> None:
    """Names and settings of the command's judges, and whether the run's are there."""
    if (out / "run.json").is_file():
        check_installed(out, run_folder.stored_config(out))
    plan.check_judges(config.judges)
    for name in config.judges:
        registry.make_judge(name, session.settings(config))


def check_installed(out: Path, config: RunConfig) -> None:
    for name in config.judges:
        if not registry.is_judge(name):
            record = config.code.judges.get(name.partition(":")[0])
            mend = "which is not installed: install it"
            if record:
                again = plugin_files.option("judge", name.partition(":")[0], record.model_dump())
                mend = f"a file with code that only the command line may name: add {again}"
            raise HarnessError(f"{out} was judged by '{name}', {mend}, or choose another run")
