"""How near the forecast is to the truth, for a real model on this machine, and what the probe costs.

    python tests/bench/forecast_accuracy.py MODEL --train-task samsum --train-data TRAIN.json

Two pieces of work, each forecast and then done: a training, and answers of at most ``--tokens`` tokens to
rows of the same data, short enough for the probe to have seen whole ones. Run it on a machine that does
nothing else: a probe of seconds and work of minutes meet other neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

TASK = """
task: short
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: ""
target_delimiter: ""
num_fewshot: 0
generation_kwargs: {{until: [], max_gen_toks: {tokens}, do_sample: false, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def task_folder(folder: Path, examples: list[Any], tokens: int) -> Path:
    """A utility task whose answers end after ``tokens`` at the latest."""
    folder.mkdir()
    file = folder / "short.jsonl"
    rows = [json.dumps({"id": one.id, "text": one.instruction}) for one in examples]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "short.yaml").write_text(TASK.format(file=file, tokens=tokens), encoding="utf-8")
    return folder


def compared(what: str, config: Any, out: Path) -> dict[str, Any]:
    """One piece of work, forecast and done. ``what``: train, or respond (the base model alone)."""
    from rich.console import Console

    from harness.pipeline import compare, forecast
    from harness.pipeline.probing.time_budget import TimeBudget
    from harness.run import plan
    from harness.run.context import RunContext

    kind, only = ("trained", ()) if what == "train" else ("seed", ("short",))
    ctx = RunContext(config, out)
    cells = [plan.limited(cell, only) for cell in plan.cells(config) if cell.kind == kind]
    ctx.import_libraries()
    budget = TimeBudget()
    found = forecast.forecast(ctx, cells, 1, what, budget)  # type: ignore[arg-type]
    probe_s, start = budget.spent(), time.perf_counter()
    with (out.parent / f"{what}.log").open("w", encoding="utf-8") as log:
        compare.compare(config, out, Console(file=log), until=what, kinds=(kind,), only=only)
    took = time.perf_counter() - start
    return {
        "work": what,
        "forecast_s": found.seconds and round(found.seconds, 1),
        "took_s": round(took, 1),
        "ratio": found.seconds and round(found.seconds / took, 2),
        "probe_s": round(probe_s, 1),
        "probe_may_take_s": found.seconds and round(max(5.0, min(30.0, 0.05 * found.seconds)), 1),
        "why_not": found.why or found.without_answers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--train-task", default="samsum")
    parser.add_argument("--train-data", required=True)
    parser.add_argument("--rows", type=int, default=48, help="that are trained, in one epoch")
    parser.add_argument("--documents", type=int, default=64, help="that are answered")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--only", choices=("train", "respond"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HARNESS_CACHE"] = str(Path(scratch) / "cache")
        from harness import config
        from harness.plugins import registry
        from harness.run.context import RunContext

        values: dict[str, Any] = {
            "model": given.model, "methods": ["vanilla"], "train_tasks": [given.train_task],
            "train_data": {given.train_task: given.train_data}, "training.max_examples": given.rows,
            "training.epochs": 1, "training.batch_size": 16, "responses.limit": given.documents,
            "responses.batch_size": 8, "jobs": 1,
        }  # fmt: skip
        first = RunContext(config.load("real", values), Path(scratch) / "look")
        examples = first.examples(registry.load("train task", given.train_task))
        wanted = [examples[number % len(examples)] for number in range(given.documents)]
        folder = task_folder(Path(scratch) / "tasks", wanted, given.tokens)
        full = config.load("real", {**values, "task_dirs": [str(folder)], "utility_tasks": ["short"]})
        for what in ("train", "respond"):
            if given.only in (None, what):
                print(json.dumps(compared(what, full, Path(scratch) / what)), flush=True)


if __name__ == "__main__":
    main()
