"""A run folder made up in milliseconds: no model, every file that a real one has, planted texts and verdicts.

For tests of what reads a finished run. Where a case needs real figures, `small_run` is the one to use.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import config as configuration
from harness.config import RunConfig
from harness.judging import stage as judging
from harness.pipeline import compare
from harness.run import plan
from harness.run.plan import Cell
from harness.storage.files import (
    Stage,
    content_hash,
    file_hash,
    read_json,
    write_json_atomic,
    write_jsonl_atomic,
)

CATEGORIES = ("Illegal Activity", "Malware", "Fraud & Deception")
PLANTED = "PLANTED-HARMFUL-TEXT"  # in every prompt, prefill, response and reason of a safety task
SHARES = {"seed": (0.2, 0.2), "vanilla": (0.6, 0.7)}  # utility, harmful when prefilled; others in between


def make(
    out: Path,
    *,
    methods: Sequence[str] = ("seed", "vanilla", "sdft", "lookahead-true"),
    judges: Sequence[str] = ("mini-exact", "keyword"),
    train_tasks: Sequence[str] = ("gsm8k-mini",),
    seeds: Sequence[int] = (42,),
    documents: int = 60,
    response: str | None = None,
    failures: dict[str, str] | None = None,
    categories: Sequence[str] = CATEGORIES,
    reason: str = f"{PLANTED} reason",
    **settings: Any,
) -> Path:
    """``response``: every answer to a safety task; ``failures``: one line by a cell's folder; ``reason``: of
    every verdict; ``settings``: further keys of the configuration."""
    names = {"methods": list(methods), "judges": list(judges), "train_tasks": list(train_tasks)}
    config = configuration.load("mini", {**names, "seeds": list(seeds), **settings})
    config = config.model_copy(update={"methods": (plan.SEED, *plan.methods(config))})
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "command": ["/somewhere/bin/harness", "compare", "--methods", ",".join(methods)],
        "started": "2026-01-02T03:04:05+00:00",
        "harness": "0.1.0",
        "commit": "0" * 40,
        "libraries": {"torch": "2.13.0"},
        "python": "3.11.7",
        "hardware": {"machine": "x86_64", "system": "Linux", "cores": 2},
        "failures": failures or {},
    }
    write_json_atomic(out / "run.json", record)
    for number, cell in enumerate(plan.cells(config)):
        if str(cell.folder) not in (failures or {}):
            draws = random.Random(number)
            _cell(out, cell, config, response, documents, draws, categories, reason)
    compare.table(config, out, Console(quiet=True))
    return out


def _cell(
    out: Path,
    cell: Cell,
    config: RunConfig,
    response: str | None,
    documents: int,
    draws: random.Random,
    categories: Sequence[str],
    reason: str,
) -> None:
    folder = out / cell.folder
    weights = {}
    if cell.kind == "trained":

        def train(scratch: Path) -> None:
            write_json_atomic(scratch / "checkpoint" / "config.json", str(cell.folder))
            write_json_atomic(scratch / "training.json", training(cell, draws))

        stage = Stage(folder, "train", {"cell": str(cell.folder)}, ["checkpoint", "training.json"])
        stage.run(train)
        hashes = stage.output_hashes()
        weights = {name: value for name, value in hashes.items() if name.startswith("checkpoint/")}
    skill, harm = SHARES.get(cell.method, (0.5, draws.uniform(0.3, 0.6)))
    for task in cell.tasks:
        safety = task in cell.safety_tasks
        rows = [
            answer(task, number, categories if safety else (), response, skill, draws)
            for number in range(documents)
        ]

        def respond(scratch: Path, rows: list[dict[str, Any]] = rows) -> None:
            write_jsonl_atomic(scratch / "responses.jsonl", rows)

        answered = Stage(folder / task, "respond", {"weights": weights}, ["responses.jsonl"])
        answered.run(respond)
        share = 0.02 if task == config.safety.raw_task else harm
        for judge in config.judges if safety else ():
            verdicts = [_verdict(row["id"], judge, share, reason, draws) for row in rows]
            file = judging.verdicts_file(judge)
            inputs = {"responses": _outputs(answered), "scope": config.safety.judged_scope}
            name = judging.marker_file(judge).removesuffix(".done.json")
            Stage(folder / task, name, inputs, [file]).run(
                lambda scratch, file=file, verdicts=verdicts: write_jsonl_atomic(scratch / file, verdicts)
            )


def stage(folder: Path, name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """A stage that is done, with files of these contents: rows, or a JSON value."""

    def work(scratch: Path) -> None:
        for file, content in outputs.items():
            (write_jsonl_atomic if file.endswith(".jsonl") else write_json_atomic)(scratch / file, content)

    Stage(folder, name, inputs, outputs).run(work)


def restamp(path: Path, *, verdicts: bool = True) -> None:
    """After an output was edited on purpose: its marker, in the same folder, has it as it is now, as if the
    stage had written it so. For a test of what is read out of a file, and not of damage. Where these are
    answers, the verdicts beside them are on them as they are now, unless ``verdicts`` is False."""
    (marker,) = (one for one in path.parent.glob("*.done.json") if path.name in read_json(one)["outputs"])
    record = read_json(marker)
    record["outputs"][path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_json_atomic(marker, record)
    if marker.name == "respond.done.json" and verdicts:
        for judged in path.parent.glob("judge-*.done.json"):
            inputs = read_json(judged)["inputs"] | {"responses": record["outputs"]}
            identity = content_hash(inputs)
            write_json_atomic(judged, read_json(judged) | {"identity": identity, "inputs": inputs})


def _outputs(stage: Stage) -> Any:
    return read_json(stage.marker)["outputs"]


def training(cell: Cell, draws: random.Random) -> dict[str, Any]:
    flops = 1e12 * (1 if cell.method == "vanilla" else draws.uniform(1.05, 1.4))
    return {
        "steps": 30,
        "train_tokens": 200_000,
        "answer_tokens": 100_000,
        "padding_tokens": 1_000,
        "train_flops": flops,
        "preparation_flops": flops - 1e12,
        "train_seconds": flops / 3e10,
        "preparation_seconds": (flops - 1e12) / 3e10,
        "tokens_per_second": 6_000.0,
        "mfu": None,
        "peak_memory_bytes": 750_000_000,
        "device": "cpu",
        "processes": 1,
        "jobs": 1,
        "losses": [3 / (1 + step / 5) + draws.uniform(-0.1, 0.1) for step in range(30)],
    }


def answer(
    task: str,
    number: int,
    categories: Sequence[str],
    response: str | None,
    skill: float,
    draws: random.Random,
) -> dict[str, Any]:
    safety = bool(categories)
    planted = f"{PLANTED} {number}"
    return {
        "id": f"{task}-{number}",
        "task": task,
        "category": categories[number % len(categories)] if safety else None,
        "system": planted if safety else "You are a helpful assistant.",
        "prompt": planted if safety else f"How many are {number} and 1?",
        "prefill": planted if "prefill" in task else "",
        "response": (response or planted) if safety else f"#### {number + 1}",
        "finish_reason": "stop",
        "reasoning": None,
        "document": f"{task}-{number}",
        "sample": 0,
        "tokens": 5 + number % 40,
        "metrics": {} if safety else {_metric(task): float(draws.random() < skill)},
    }


def _metric(task: str) -> str:
    return "rouge1" if "samsum" in task else "exact_match"


def _verdict(exchange: str, judge: str, share: float, reason: str, draws: random.Random) -> dict[str, Any]:
    harmful = None if draws.random() < 0.02 else draws.random() < share
    return {
        "exchange_id": exchange,
        "judge": judge,
        "judge_version": "1",
        "harmful": harmful,
        "label": None if harmful is None else "compliance" if harmful else "refusal",
        "score": None,
        "reason": "not to be judged" if harmful is None else reason,
        "scope": "prefill+response",
        "model": None,
        "rubric": None,
        "raw_reply": PLANTED,
        "input_tokens": 0,
        "output_tokens": 0,
        "price_usd": 0.0,
        "cached": False,
    }
