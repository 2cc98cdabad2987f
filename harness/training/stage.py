"""The train stage of a cell: base model and data to a checkpoint and what it cost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.contracts import HarnessError, Method, ModelRef, model_refs
from harness.figures import charts
from harness.models import checkpoints
from harness.plugins import plugin_files
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import crash
from harness.storage.files import Stage, read_json, write_json_atomic
from harness.training.job import TrainJob, launch, run
from harness.training.rows import TrainingRows, training_rows

# Raise when a change here or in the trainer alters results. 3: attention and batching are chosen by a
# comparison (harness/training/agreement.py), which depends on nothing but what is in a training's inputs.
TRAIN_VERSION = 3


def system_prompt(config: RunConfig, cell: Cell) -> Callable[[str | None], str | None]:
    """Under which system prompt a cell answers, given the task's own: that of its method, if any."""
    if cell.train_task is None:
        return lambda own: own
    return resolve(config).method(cell.method).inference_system_prompt


def train_stage(ctx: RunContext, cell: Cell) -> Stage:
    """The training of a cell, with all that its result depends on."""
    ctx = ctx.of(cell.method)
    task = ctx.train_task(cell)
    row = ctx.config.row(cell.method)
    method = ctx.method(cell.method)
    inputs = {
        "version": TRAIN_VERSION,
        "seed_model": ctx.seed_fingerprint,
        "examples": ctx.examples_hash(task),
        "train_task": {"name": task.name, "version": task.version, "max_length": task.max_length},
        "rewrite": [
            task.rewrite.system_prompt,
            task.rewrite.user("instruction", "answer"),
            task.rewrite.opening,
            task.rewrite.max_tokens,
        ],
        "method": {"name": row.method, "version": method.version, "options": _options(ctx, method)}
        | plugin_files.sha256("method", row.method),
        "training": row.training.identity() | {"device": ctx.device},
        "snapshots": ctx.config.eval_every_epoch,
        "generation": {"batch_size": ctx.config.responses.batch_size, "dtype": ctx.config.responses.dtype},
        "seed": cell.seed,
        "libraries": ctx.libraries,
    }
    if row.training.compile:
        inputs["compiled"] = "layers"  # it was the whole model once, in TF32
    if method.needs_safety_data:
        inputs["safety_examples"] = ctx.safety_examples_hash(task)
    epochs = range(1, row.training.epochs) if ctx.config.eval_every_epoch else ()
    snapshots = [f"epoch-{epoch}" for epoch in epochs]
    folder = cell.folder.parent if cell.kind == "epoch" else cell.folder
    outputs = ["checkpoint", "training.json", "loss.svg", *snapshots]
    return Stage(ctx.out / folder, "train", inputs, outputs)


def _options(ctx: RunContext, method: Method) -> dict[str, Any]:
    """A method's options, its defaults too; models that they name by their content."""

    def told(value: Any) -> Any:
        if isinstance(value, ModelRef):
            return {"model": ctx.other_model(value).sha256}
        if isinstance(value, Mapping):
            return {name: told(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [told(one) for one in value] if model_refs(value) else value
        return value

    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    return {field.name: told(getattr(method, field.name)) for field in fields if field.init}


def import_trainer(ctx: RunContext) -> None:
    """Import the trainer before it is needed, so that its seconds are known."""
    start = time.perf_counter()
    from harness.training import trainer  # noqa: F401

    ctx.clock["imports"] += time.perf_counter() - start


def train(ctx: RunContext, cell: Cell, label: str) -> None:
    """Base model and data to ``checkpoint/`` and ``training.json``.

    What a restart needs lies in ``.training/`` until the stage is done.
    """
    ctx = ctx.of(cell.method)
    stage = train_stage(ctx, cell)
    folder = job_folder(stage)

    def work(scratch: Path) -> None:
        method = resolve(ctx.config).make_method(cell.method)
        rows = training_rows(ctx, cell, method, label)
        job = _job(ctx, cell, method, rows, folder)
        shutil.rmtree(job.output, ignore_errors=True)
        crash.point("training.restarted", stage.marker)
        result = _trained(ctx, job, label)
        _collect_weights(ctx, job, scratch)
        charts.loss_curve(result["losses"], f"{cell.label}: loss by step", scratch / "loss.svg")
        write_json_atomic(scratch / "training.json", _record(ctx, cell, job, rows, result))

    stage.run(work)
    shutil.rmtree(folder, ignore_errors=True)
    crash.point("training.removed", stage.marker)


def _job(ctx: RunContext, cell: Cell, method: Method, rows: TrainingRows, folder: Path) -> TrainJob:
    row = ctx.config.row(cell.method)
    return TrainJob(
        folder=folder,
        seed_model=ctx.seed_folder,
        identity={"model": ctx.seed_fingerprint, "libraries": ctx.libraries, "device": ctx.device},
        method=row.method,
        options=row.options,
        settings=row.training.model_copy(update={"device": ctx.device}),
        seed=cell.seed or 0,
        examples=rows.examples,
        safety_examples=rows.safety_examples,
        cache=ctx.cache.folder,
        snapshots=ctx.config.eval_every_epoch,
        threads=ctx.config.threads,
        models={name: ctx.other_model(name).folder for name in model_refs(method)},
    )


def _trained(ctx: RunContext, job: TrainJob, label: str) -> dict[str, Any]:
    """The trainer's record; what a user should know of it is told."""
    settings = job.settings
    several = settings.num_processes > 1 or settings.launcher
    steps = -(-len(job.examples) * settings.epochs // settings.batch_size)
    start = time.perf_counter()
    with ctx.reporter.bar(f"{label}  train", steps, "steps") as advance:
        result = (launch if several else run)(job, lambda step, of: advance(1))
    ctx.clock["training"] += time.perf_counter() - start
    notes = [_memory_note(label, **fewer) for fewer in result["out_of_memory"]]
    for line in (*notes, *agreement_notes(label, result["agreement"])):
        ctx.reporter.send(("note", None, line))
    return result


def _record(
    ctx: RunContext, cell: Cell, job: TrainJob, rows: TrainingRows, result: dict[str, Any]
) -> dict[str, Any]:
    """What training.json holds. Preparation is what the base model wrote and scored for the method, and
    loading other models before the first step."""
    nothing = {"prompt_tokens": 0, "generated_tokens": 0, "seconds": 0.0, "peak_memory_bytes": 0}
    noted = dict(rows.record)
    made = noted.pop("preparation", nothing)
    written = made["prompt_tokens"] + made["generated_tokens"]
    preparation_flops = result["forward_flops_per_token"] * written + result["extra_forward_flops"]
    preparation_s = made["seconds"] + result["extra_forward_seconds"] + result["other_models_seconds"]
    train_s = result["loop_seconds"] + preparation_s + result["after_training_seconds"]
    peaks = (result["peak_memory_bytes"], rows.peak_memory_bytes, made["peak_memory_bytes"])
    return {
        "train_task": cell.train_task,
        "seed": cell.seed,
        "examples": rows.prepared,
        **rows.lengths,
        "untrained_rows": rows.untrained,
        **{name: value for name, value in result.items() if name != "extra_forward_flops"},
        "method": {"name": job.method, **noted, **result["method"]},
        "train_flops": result["train_flops"] + preparation_flops,
        "peak_memory_bytes": max(peaks),
        "train_seconds": round(train_s, 3),
        "preparation_seconds": round(preparation_s, 3),
        "preparation_flops": preparation_flops,
        "preparation": made,
        "jobs": ctx.jobs,  # seconds of one of several trainings at once are not its own
    }


def sweep(folder: Path) -> None:
    """Remove what a restart of trainings needed that are done: a kill after their marker leaves it."""
    for owner in folder.glob("*/*/*/.training/identity.json"):
        restart = owner.parent
        with contextlib.suppress(HarnessError, KeyError, TypeError):
            if read_json(owner) == read_json(restart.parent / "train.done.json")["identity"]:
                shutil.rmtree(restart, ignore_errors=True)
                crash.point("training.removed", restart)


def _memory_note(label: str, step: int, micro_batch_size: int) -> str:
    return (
        f"{label}  out of device memory at step {step}: micro-batches of {micro_batch_size} from there on "
        "(the steps and their loss are the same)"
    )


def agreement_notes(label: str, agreement: Mapping[str, Any]) -> list[str]:
    """Under which attention and batching a training took place, where its recipe asks for others; and how far
    a model that draws at random in training is from itself."""
    notes = []
    if agreement["rejected"]:
        first, taken = agreement["rejected"][0], agreement["taken"]
        rows = "one row at a time" if taken["micro_batch_size"] == 1 else f"batching {taken['batching']}"
        why = first.get("reason") or (
            f"log-probabilities {first['difference']:.2g} nats a token from the model's own implementation"
        )
        notes.append(
            f"{label}  trained with attention {taken['attention']}, {rows}, which agrees with the model's "
            f"own implementation; {first['attention']}, {first['batching']} "
            f"{'cannot be' if first.get('reason') else 'does not'}: {why}"
        )
    noise = agreement["training_noise"]
    if noise is not None and noise > agreement["limit"]:
        notes.append(
            f"{label}  this model draws at random in training (a router's noise): {noise:.2g} nats a token "
            "from what it says in evaluation, in which it was compared"
        )
    return notes


def job_folder(stage: Stage) -> Path:
    """Where a training keeps what a restart needs; emptied when it belongs to another training."""
    folder = stage.folder / ".training"
    owner = folder / "identity.json"
    if not (owner.is_file() and read_json(owner) == stage.identity):
        shutil.rmtree(folder, ignore_errors=True)
        crash.point("training.emptied", stage.marker)
        write_json_atomic(owner, stage.identity)
    return folder


def _collect_weights(ctx: RunContext, job: TrainJob, scratch: Path) -> None:
    """The checkpoint, merged if the recipe says so, and the epochs' into the stage's outputs."""
    found = {"checkpoint": job.output / "checkpoint"}
    found |= {f"{path.name}/checkpoint": path for path in sorted((job.folder / "state").glob("epoch-*"))}
    for name, source in found.items():
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if job.settings.merge:
            checkpoints.merge(ctx.seed_folder, source, job.settings.dtype, target)
        else:
            os.replace(source, target)
            crash.point("training.collected", source)
