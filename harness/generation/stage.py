"""The respond stage of a cell: its checkpoint answers a task, through lm-eval."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from harness.data import loading
from harness.engines import select
from harness.generation import answering, lm_tasks, splits
from harness.models import checkpoints
from harness.models.checkpoints import Checkpoint
from harness.plugins import plugin_files
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.storage.files import Journal, Stage, json_line, write_json_atomic
from harness.training import stage as training

log = logging.getLogger(__name__)

RESPOND_VERSION = 4  # 4: the ids of a model's own tokenizer.json (tokenizer_files.py)
FILES = ("responses.jsonl", "task.json")


def check(ctx: RunContext, cells: Sequence[Cell]) -> None:
    """The engine of the answers, before anything is spent. Raises HarnessError where it cannot work."""
    settings = ctx.config.responses
    names = {engine_name(ctx, cell) for cell in cells}
    for name in sorted({ctx.engine_name for cell in cells if not _on_server(ctx, cell)}):
        select.engine_class(name).check(name, settings, ctx.device)
    if settings.server:
        checkpoints.base_url(settings.server)
    if settings.tokenizer:
        checkpoints.tokenizer_folder(settings.tokenizer)
        if not any(select.engine_class(name).remote for name in names):
            log.warning(
                "--tokenizer is not used: engine %s has each checkpoint's own", ", ".join(sorted(names))
            )


def checkpoint_of(ctx: RunContext, cell: Cell) -> Checkpoint:
    """Raises HarnessError where it cannot be had."""
    if cell.kind == "seed":
        return ctx.seed_checkpoint
    if cell.kind == "checkpoint":
        return checkpoints.checkpoint(ctx.config.checkpoints[cell.method])
    folder = ctx.out / cell.folder / "checkpoint"
    return Checkpoint(folder, ctx.of(cell.method).seed_folder if checkpoints.is_adapter(folder) else None)


def _weights(ctx: RunContext, cell: Cell) -> dict[str, str]:
    """What identifies a cell's weights: hashes, or the name under which a server has them."""
    if cell.kind == "seed":
        return ctx.seed_fingerprint
    if cell.kind == "checkpoint":
        checkpoint = checkpoint_of(ctx, cell)
        if checkpoint.folder is None:
            assert checkpoint.server is not None
            return dataclasses.asdict(checkpoint.server)
        return checkpoints.fingerprint(checkpoint.folder, checkpoint.base)
    hashes = training.train_stage(ctx, cell).output_hashes()
    place = f"{cell.folder.name}/checkpoint/" if cell.kind == "epoch" else "checkpoint/"
    return {name: value for name, value in hashes.items() if name.startswith(place)}


def engine_name(ctx: RunContext, cell: Cell) -> str:
    """The engine of a cell's answers."""
    return ctx.server_engine_name if _on_server(ctx, cell) else ctx.engine_name


def _on_server(ctx: RunContext, cell: Cell) -> bool:
    """Whether a cell is a model of the user's that a server answers as."""
    return cell.kind == "checkpoint" and ctx.config.checkpoints[cell.method].startswith(checkpoints.SERVER)


def respond_stage(ctx: RunContext, cell: Cell, task: str) -> Stage:
    """The answers of a cell's checkpoint to one task's documents."""
    benchmark = ctx.benchmark(task)
    engine = engine_name(ctx, cell)
    inputs: dict[str, Any] = {
        "version": RESPOND_VERSION,
        "weights": _weights(ctx, cell),
        "task": {"name": task, "version": benchmark.version, "content": benchmark.content},
        "engine": {"name": engine, **select.versions(engine)},
        "responses": select.settings_of_answers(ctx.config.responses, engine),
        "device": ctx.device,
        "libraries": ctx.libraries,
    }
    inputs |= splits.identity(ctx.config.responses)
    if cell.train_task is not None:
        inputs |= plugin_files.sha256("method", ctx.config.row(cell.method).method)
    if benchmark.counted:
        inputs["prefill_tokens"] = benchmark.prefill_tokens(ctx.config.safety.prefill_tokens)
    given = lm_tasks.files(ctx, benchmark)
    if given:
        inputs["data"] = {name: loading.data_hash(file) for name, file in given.items()}
    if select.engine_class(engine).remote and ctx.config.responses.tokenizer:
        inputs["tokenizer"] = checkpoints.fingerprint(
            checkpoints.tokenizer_folder(ctx.config.responses.tokenizer)
        )
    probes: list[str | None] = [None, "the task's own"]
    changed = list(map(training.system_prompt(ctx.config, cell), probes))
    if changed != probes:
        inputs["inference_system_prompt"] = changed
    return Stage(ctx.out / cell.folder / task, "respond", inputs, FILES)


def respond(ctx: RunContext, cell: Cell, tasks: Sequence[str], label: str) -> None:
    """Checkpoint to ``<task>/responses.jsonl``, through lm-eval; the checkpoint is loaded once for all. What
    an interrupted run has answered is not answered again."""
    engine = ctx.engine(checkpoint_of(ctx, cell))
    system_prompt = training.system_prompt(ctx.config, cell)
    for task in tasks:
        benchmark = ctx.benchmark(task)
        stage = respond_stage(ctx, cell, task)
        journal = Journal(stage)
        with stage.writing() as scratch:
            with (scratch / "responses.jsonl").open("w", encoding="utf-8") as file:
                record = answering.answer(
                    ctx,
                    engine,
                    benchmark,
                    f"{label}  respond {benchmark.name}",
                    lambda row, file=file: file.write(json_line(row)),  # type: ignore[misc]
                    journal,
                    system_prompt,
                )
            write_json_atomic(scratch / "task.json", record)
        journal.remove()
