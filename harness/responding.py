"""The respond stage of a cell: its checkpoint answers a task, through lm-eval."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import benchmarks, models, training
from harness.contracts import (
    Exchange,
    HarnessError,
)
from harness.plan import Cell
from harness.store import (
    Stage,
    file_hash,
    write_jsonl_atomic,
)
from harness.workshop import Workshop

RESPOND_VERSION = 1


def checkpoint_folder(shop: Workshop, cell: Cell) -> Path:
    if cell.kind == "seed":
        return shop.seed_folder
    if cell.kind == "checkpoint":
        return models.locate(shop.config.checkpoints[cell.method])
    return shop.out / cell.folder / "checkpoint"


def respond_stage(shop: Workshop, cell: Cell, task: str) -> Stage:
    """The answers of a cell's checkpoint to one task's documents."""
    if cell.kind == "seed":
        weights: dict[str, str] = shop.seed_fingerprint
    elif cell.kind == "checkpoint":
        weights = models.fingerprint(checkpoint_folder(shop, cell))
    else:
        hashes = training.train_stage(shop, cell).output_hashes()
        place = f"{cell.folder.name}/checkpoint/" if cell.kind == "epoch" else "checkpoint/"
        weights = {name: value for name, value in hashes.items() if name.startswith(place)}
    benchmark = benchmarks.get(task)
    settings = shop.config.responses
    inputs: dict[str, Any] = {
        "version": RESPOND_VERSION,
        "weights": weights,
        "task": {"name": task, "version": benchmark.version, "content": benchmark.content()},
        "engine": shop.config.engine,
        "responses": settings.model_dump(mode="json"),
        "device": shop.device,
        "libraries": shop.libraries,
    }
    if benchmark.prefilled:
        inputs["prefill_tokens"] = shop.config.safety.prefill_tokens
    if task in shop.config.data:
        inputs["data"] = data_hash(shop.config.data[task])
    if cell.train_task is not None:
        method = training.make_method(shop.config, cell.method)
        probes: list[str | None] = [None, "the task's own"]
        changed = [method.inference_system_prompt(own) for own in probes]
        if changed != probes:
            inputs["inference_system_prompt"] = changed
    return Stage(shop.out / cell.folder / task, "respond", inputs, ["responses.jsonl"])


def respond(shop: Workshop, cell: Cell, tasks: Sequence[str], label: str) -> None:
    """Checkpoint to ``<task>/responses.jsonl``, through lm-eval; the checkpoint is loaded once for all."""
    folder = checkpoint_folder(shop, cell)
    engine = shop.engine(folder)
    if cell.train_task is not None:
        engine.system_prompt = training.make_method(shop.config, cell.method).inference_system_prompt
    for task in tasks:

        def work(scratch: Path, task: str = task) -> None:
            rows = respond_rows(shop, engine, task, folder, f"{label}  respond {task}")
            write_jsonl_atomic(scratch / "responses.jsonl", rows)

        respond_stage(shop, cell, task).run(work)


def respond_rows(shop: Workshop, engine: Any, task: str, folder: Path, label: str) -> list[dict[str, Any]]:
    """One row a document: the Exchange, its token count and lm-eval's per-document metrics."""
    from lm_eval.evaluator import evaluate

    loaded = shop.load_task(task, folder)
    lm_task = loaded["tasks"][task]
    if lm_task.get_config("num_fewshot"):
        raise HarnessError(f"task '{task}' asks for few-shot examples; the harness scores zero-shot")
    lm_task.set_config(key="num_fewshot", value=0)
    limit = shop.config.responses.limit
    documents = len(lm_task.eval_docs)
    engine.seconds = 0.0
    shown = min(documents, limit or documents)
    with shop.reporter.bar(label, shown, "answers") as advance:
        engine.on_progress = advance
        engine.completions.clear()
        try:
            results = evaluate(
                lm=engine,
                task_dict=loaded,
                limit=limit,
                bootstrap_iters=0,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
            )
        except (HarnessError, MemoryError):
            raise
        except Exception as error:  # where, and the type alone: its message may quote an answer
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise HarnessError(
                f"task '{task}' cannot be scored: {type(error).__name__} in {Path(last.filename).name}, "
                f"line {last.lineno} (--debug shows it)"
            ) from error
    shop.clock["generation"] += engine.seconds
    rows = []
    for sample in results["samples"][task]:
        document = sample["doc"]
        turns = json.loads(sample["arguments"][0][0])
        completion = engine.completions[task, sample["doc_id"]]
        exchange = Exchange(
            id=str(document.get("id", sample["doc_id"])),
            task=task,
            category=document.get("category"),
            system=_system(engine, turns),
            prompt=next(turn["content"] for turn in reversed(turns) if turn["role"] == "user"),
            prefill=document.get("prefill") or "",
            response=completion.text,
            finish_reason=completion.finish_reason,
        )
        measured = {name: sample[name] for name in sample["metrics"]}
        rows.append({**dataclasses.asdict(exchange), "tokens": completion.tokens, "metrics": measured})
    if len({row["id"] for row in rows}) < len(rows):
        raise HarnessError(f"task '{task}': two documents have the same id; verdicts are joined by it")
    return rows


def _system(engine: Any, turns: list[dict[str, str]]) -> str | None:
    system: str | None = engine.system_prompt(turns[0]["content"] if turns[0]["role"] == "system" else None)
    return system


def data_hash(path: Path) -> str:
    if not path.is_file():
        raise HarnessError(f"{path}: no such data file")
    return file_hash(path)
